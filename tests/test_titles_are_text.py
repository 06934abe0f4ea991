"Titles with the special tokens of a tokenizer in them are text in every prompt, and ordinary titles have the ids that they had."

from types import SimpleNamespace

import polars as pl
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from llmrec.llm.backbones import prepare_tokenizer
from llmrec.llm.tiny import byte_tokenizer, default_texts, metaspace_tokenizer
from llmrec.llm.chat import EndpointConfig, defused, payload
from llmrec.llm.encoders import Encoder, tokenise
from llmrec.llm.generation import answer_tokens
from llmrec.llm.prompts import (
    LlamaRecPromptConfig,
    as_text,
    encode_example,
    encode_prompt,
    fit_prompt,
    prompt_ids,
    truncate_title,
)
from llmrec.llm.yesno import YesNoPromptConfig, encode_questions, wrap
from llmrec.llm.yesno_rows import AlpacaRows, YesNoRows

CONTROL = ('<unk>', '<s>', '</s>', '<|im_start|>', '<|im_end|>', '<think>', '[INST]')
PLAIN = [
    'Small Boat (1999)',
    'Red {Night}',
    'Owl, The (1987)',
    '<DVD> Cats',
    'Cash $5',
    'a\\b',
    'Été ☂',
    'M*A*S*H [Region 1]',
    '<3',
    'x  y',
]


def of_family(name):
    "A tokenizer with special tokens, two of which its vocabulary does not call so, prepared as that of a backbone."
    if name == 'byt5':
        return prepare_tokenizer(ByT5Tokenizer())
    make = dict(byte=byte_tokenizer, metaspace=metaspace_tokenizer)[name.removesuffix('+')]
    tok = PreTrainedTokenizerFast(
        tokenizer_object=make(default_texts() + ['Yes No'] * 9),
        unk_token='<unk>',
        bos_token='<s>',
        eos_token='</s>',
    )
    if name.endswith('+'):
        tok.add_tokens(['<think>', '[INST]', '  '])
        tok.add_special_tokens(dict(additional_special_tokens=['<|im_start|>', '<|im_end|>']))
    return prepare_tokenizer(tok)


FAMILIES = ['byte', 'byte+', 'metaspace', 'metaspace+', 'byt5']


@pytest.fixture(params=FAMILIES)
def tok(request):
    return of_family(request.param)


def control(tok):
    return [i for i, t in tok.added_tokens_decoder.items() if t.content in CONTROL]


def hostile(i=0):
    return [f'The End {c} of {c}' for c in CONTROL[i:]]


def inside(tok, ids):
    "Special tokens after the first id."
    return [i for i in ids[1:] if i in control(tok)]


def test_the_toys_do_take_them_for_control(tok):
    assert inside(tok, tok('The End </s> of')['input_ids'][:-1]), 'else the tests below prove nothing'


def test_llamarec(tok):
    cfg = LlamaRecPromptConfig()
    titles = [truncate_title(tok, t, 64) for t in hostile()]
    prompt = fit_prompt(tok, titles, titles, cfg)
    assert titles == hostile() and inside(tok, encode_prompt(tok, prompt, cfg)) == []
    ids, labels = encode_example(tok, prompt, 'B', cfg)
    assert inside(tok, ids[:-1]) == [] and labels[-1] == tok.eos_token_id
    assert tok.decode(encode_prompt(tok, prompt, cfg)).count('The End </s> of </s>') == 2


def test_tallrec(tok):
    frame = pl.DataFrame(
        dict(
            user=[1, 2],
            history=[[1, 2, 3, 4, 5, 6], [7]],
            history_labels=[[1, 0, 1, 0, 1, 0], [0]],
            item=[7, 1],
            label=[1, 0],
        )
    )
    data = SimpleNamespace(
        name='toy',
        thing='movie',
        titles=['', *hostile()],
        authors=[None, *hostile()],
        n_items=len(CONTROL),
        splits=dict(train=frame, valid=frame, test=frame),
    )
    cfg = YesNoPromptConfig(max_tokens=4096)
    for ids in encode_questions(tok, data, frame, cfg)[0]:
        assert inside(tok, ids) == []
    rows = YesNoRows(data, [0, 1], tok, cfg)
    for i in range(2):
        assert inside(tok, rows[i]['input_ids'][:-1]) == []


def test_instructions_generation_and_encoders(tok):
    frame = pl.DataFrame(dict(instruction=['Say </s>'], input=['<s>'], output=['a </s> b']))
    ids = AlpacaRows(frame, tok, YesNoPromptConfig())[0]['input_ids']
    assert inside(tok, ids[:-1]) == []
    assert (
        answer_tokens(tok, ['The </s>'])
        == len(as_text(tok, 'The </s>', add_special_tokens=False)['input_ids'])
        > len(tok('The </s>', add_special_tokens=False)['input_ids'])
    )


def test_an_encoder_counts_them_as_words():
    vocab = {w: i for i, w in enumerate(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[', ']', 'SEP', 'the', 'end'])}
    tok = Tokenizer(models.WordLevel(vocab, unk_token='[UNK]'))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.post_processor = processors.TemplateProcessing(
        single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok, pad_token='[PAD]', unk_token='[UNK]', cls_token='[CLS]', sep_token='[SEP]'
    )
    ids, counts = tokenise(Encoder(None, fast, 'toy', skip_special=True), ['the end [SEP] end'], 32)
    assert ids == [[2, 7, 8, 4, 6, 5, 8, 3]] and counts == [[0, 1, 1, 1, 1, 1, 1, 0]]


@pytest.mark.parametrize('name', FAMILIES)
def test_ordinary_titles_have_the_ids_that_they_had(name):
    tok = of_family(name)
    for title in [*PLAIN, wrap('a', 'b') + 'Yes', *default_texts()]:
        assert as_text(tok, title)['input_ids'] == tok(title)['input_ids']
    end = tok('x')['input_ids'][-1] == tok.eos_token_id
    assert prompt_ids(tok, PLAIN[0]) == tok(PLAIN[0])['input_ids'][: -1 if end else None]


@pytest.mark.parametrize('api', ['chat', 'completions'])
def test_a_server_is_sent_no_control_token(api):
    sent = str(payload(EndpointConfig('m', api=api), ' '.join(hostile())))
    assert not [c for c in CONTROL if c in sent] and '< |im_end|>' in sent and '< /s>' in sent
    for title in PLAIN:
        assert defused(title) == title
