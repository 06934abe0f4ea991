"LlamaRec's prompts: titles, lengths, the letter's id and the labels, for every family of tokenizers."

import pytest
from transformers import PreTrainedTokenizerFast

from llmrec.llm.tiny import byte_tokenizer, default_texts, metaspace_tokenizer
from llmrec.llm.prompts import (
    LlamaRecPromptConfig,
    encode_example,
    encode_prompt,
    fit_prompt,
    label_id,
    letters,
    prompt_ids,
    render,
    truncate_title,
)
from llmrec.paths import LlmrecError

NAMES = dict(unk_token='<unk>', eos_token='</s>', pad_token='<unk>')
HISTORY, POOL = [f'Film {i}' for i in range(30)], ['Blue King', 'Snow']
PROMPT = render(['Small Boat (1999)', 'Red {Night}'], POOL)
FULL = render(HISTORY, POOL)
TIGHT = LlamaRecPromptConfig(max_text_tokens=140)


def of_family(name):
    "A toy tokenizer; `closing` sets no BOS token and appends an EOS token."
    if name == 'metaspace':
        return PreTrainedTokenizerFast(
            tokenizer_object=metaspace_tokenizer(default_texts()), bos_token='<s>', **NAMES
        )
    tok = byte_tokenizer(default_texts())
    if name == 'byte':
        return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token='<s>', **NAMES)
    tok.post_processor = type(tok.post_processor)(single='$A </s>', special_tokens=[('</s>', 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, **NAMES)


@pytest.fixture(params=['byte', 'metaspace', 'closing'])
def tok(request):
    return of_family(request.param)


@pytest.fixture
def byte():
    return of_family('byte')


def test_only_some_tokenizers_set_a_start_token():
    assert [of_family(n)('A')['input_ids'][0] == 1 for n in ('byte', 'metaspace', 'closing')] == [
        True,
        True,
        False,
    ]


def test_presets():
    assert LlamaRecPromptConfig.as_published().truncation == 'left'
    assert LlamaRecPromptConfig() == LlamaRecPromptConfig.corrected()


def test_a_long_title_is_cut_to_what_fits_and_a_short_one_is_left_alone(tok):
    long = 'The very long night of the small red boat and the king who never came back'
    short = truncate_title(tok, long, 8)
    assert long.startswith(short)
    assert 6 <= len(tok(short, add_special_tokens=False)['input_ids']) <= 8
    assert truncate_title(tok, 'Ça va ☂', 32) == 'Ça va ☂'


def test_letters():
    assert ''.join(letters(20)) == 'ABCDEFGHIJKLMNOPQRST'
    assert letters(27)[-1] == 'a'
    with pytest.raises(LlmrecError, match='60 candidates'):
        letters(60)


def test_the_published_wording():
    assert '(1) Small Boat (1999) \n (2) Red {Night}; \n Candidate pool: (A) Blue King \n (B) Snow' in PROMPT
    assert PROMPT.endswith('\n\n### Response:\n')


def test_a_long_prompt_loses_its_oldest_items(tok):
    fitted = fit_prompt(tok, HISTORY, POOL, TIGHT)
    assert 'Film 29; ' in fitted and '(1) Film' in fitted and fitted.startswith('### Instruction')
    assert 'Film 9 ' not in fitted
    assert len(prompt_ids(tok, fitted)) <= 140


def test_candidates_that_are_too_long_by_themselves(byte):
    with pytest.raises(LlmrecError, match='without any history'):
        fit_prompt(byte, HISTORY, POOL, LlamaRecPromptConfig(max_text_tokens=20))


def test_the_published_cut_takes_the_start_token(byte):
    assert encode_prompt(byte, FULL, LlamaRecPromptConfig())[0] == byte.bos_token_id
    cut = encode_prompt(byte, FULL, LlamaRecPromptConfig(max_text_tokens=50, truncation='left'))
    assert len(cut) == 50 and cut[0] != byte.bos_token_id
    with pytest.raises(LlmrecError, match='drops the oldest'):
        encode_prompt(byte, FULL, LlamaRecPromptConfig(max_text_tokens=50))


def test_an_appended_end_token_is_no_part_of_the_prompt():
    closing = of_family('closing')
    assert encode_prompt(closing, PROMPT, TIGHT)[-1] != closing.eos_token_id


def test_the_letters_id(tok):
    assert tok.convert_ids_to_tokens(label_id(tok, PROMPT, 'B')) == 'B'


def test_letters_that_are_refused(byte):
    with pytest.raises(LlmrecError, match='must be one'):
        label_id(byte, PROMPT, 'Bq')
    with pytest.raises(LlmrecError, match='merges the letter'):
        label_id(byte, PROMPT + 'lo', 've')


def test_letter_and_end_token_are_learnt(tok):
    ids, labels = encode_example(tok, PROMPT, 'B', LlamaRecPromptConfig())
    assert len(ids) == len(labels)
    assert [l for l in labels if l != -100] == ids[-2:]
    assert tok.convert_ids_to_tokens(ids[-2:]) == ['B', '</s>']
    assert ids[:-2] == encode_prompt(tok, PROMPT, LlamaRecPromptConfig())


def test_the_published_cut_spares_the_answer(byte):
    ids, _ = encode_example(byte, FULL, 'A', LlamaRecPromptConfig(max_text_tokens=50, truncation='left'))
    assert (len(ids), byte.convert_ids_to_tokens(ids[-2:])) == (51, ['A', '</s>'])


def test_the_loss_on_the_prompt_leaves_out_the_first_token_only(byte):
    ids, labels = encode_example(byte, PROMPT, 'B', LlamaRecPromptConfig(loss='prompt+answer'))
    assert labels == [-100, *ids[1:]]
