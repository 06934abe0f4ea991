"TALLRec's prompts: wrapper, wordings, the deciding token, lengths and labels, for every family of tokenizers."

import re
from types import SimpleNamespace

import polars as pl
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llmrec.data.alpaca import INPUT, INSTRUCTION, OUTPUT
from llmrec.data.tallrec import TALLREC_ANSWERS
from llmrec.llm.backbones import BackboneConfig, load_backbone
from llmrec.llm.tiny import byte_tokenizer, default_texts, metaspace_tokenizer
from llmrec.llm.prompts import prompt_ids
from llmrec.llm.yesno import (
    COMMENT,
    PREAMBLE,
    YesNoPromptConfig,
    answer_form,
    context_of,
    encode_questions,
    paper_record,
    question,
    question_ids,
    question_limit,
    shortened,
    wrap,
    yesno_ids,
)
from llmrec.llm.yesno_rows import AlpacaRows, YesNoRows, labelled_row
from llmrec.paths import LlmrecError

NAMES = dict(unk_token='<unk>', bos_token='<s>', eos_token='</s>', pad_token='<unk>')
SPECIAL = dict(special_tokens=['<unk>', '<s>', '</s>'], show_progress=False)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FRAME = pl.DataFrame(
    dict(
        user=[1, 1, 2],
        history=[[1, 2, 3], [2, 3], [5]],
        history_labels=[[1, 0, 1], [0, 0], [1]],
        item=[4, 1, 2],
        label=[1, 0, 0],
    )
)
TITLES = ['', 'Slow Boat (2004)', 'Tidewater (1990)', 'Owl, The (1987)', 'Io (1999)', 'No Harm (1971)']
DATA = SimpleNamespace(
    name='toy',
    thing='movie',
    titles=TITLES,
    authors=[None] * 6,
    n_items=5,
    splits=dict(train=FRAME, valid=FRAME, test=FRAME),
)
SAMPLE = FRAME.row(0, named=True)
TEXTS = default_texts() + [question(DATA, SAMPLE, YesNoPromptConfig()), 'Yes No'] * 9


def llama3():
    tok = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), 'isolated'), level])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=2048, **SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    return tok


def lower():
    tok = byte_tokenizer([t.lower() for t in TEXTS])
    tok.normalizer = normalizers.Lowercase()
    return tok


def glueing():
    tok = Tokenizer(models.BPE(unk_token='<unk>'))
    tok.train_from_iterator(['\nYes', '\nNo'] * 9 + list(''.join(TEXTS)), trainers.BpeTrainer(**SPECIAL))
    tok.decoder = decoders.Fuse()
    return tok


def poor():
    tok = Tokenizer(models.BPE(unk_token='<unk>'))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tok.train_from_iterator(
        [t.replace('Y', '').replace('N', '') for t in TEXTS], trainers.BpeTrainer(**SPECIAL)
    )
    return tok


MAKE = dict(
    meta=lambda: metaspace_tokenizer(TEXTS),
    byte=lambda: byte_tokenizer(TEXTS),
    llama3=llama3,
    lower=lower,
    spelling=lambda: byte_tokenizer(['the A'], vocab_size=270),
    glueing=glueing,
    poor=poor,
)


def of_family(name):
    return PreTrainedTokenizerFast(tokenizer_object=MAKE[name](), **NAMES)


@pytest.fixture(scope='module')
def meta():
    return of_family('meta')


@pytest.fixture(scope='module')
def row_length(meta):
    return len(encode_questions(meta, DATA, FRAME, YesNoPromptConfig())[0][0]) + 3


def learnt(row):
    return [label for label in row['labels'] if label != -100]


def test_presets():
    assert YesNoPromptConfig() == YesNoPromptConfig.corrected()
    assert YesNoPromptConfig.as_published().loss == 'prompt+answer'


def test_the_wrapper_and_its_stray_comment():
    parts = wrap('Name a colour.').split('\n\n')
    assert parts == [PREAMBLE[0], '### Instruction:\nName a colour.', '### Response:\n']
    assert wrap('a', 'b').split('\n\n')[2] == '### Input:\nb'
    first = lambda comment: [wrap('a', i, comment).split('\n')[0] for i in ('b', '')]
    assert first('with input') == [PREAMBLE[1] + COMMENT, PREAMBLE[0] + ' ']
    assert first(True) == [PREAMBLE[1] + COMMENT, PREAMBLE[0] + COMMENT]


def test_the_papers_wording():
    text = paper_record(['Slow Boat', 'Owl'], [1, 0], 'Io', 0)[INPUT]
    assert text.split('\n') == [
        "User's liked items: Slow Boat.",
        "User's disliked items: Owl.",
        'Target new movie: Io',
    ]


def test_the_question_in_three_settings():
    lists = (
        'User Preference: "Slow Boat (2004)", "Owl, The (1987)"\n'
        'User Unpreference: "Tidewater (1990)"\nWhether'
    )
    assert lists in question(DATA, SAMPLE, YesNoPromptConfig())
    assert 'liked items: Slow Boat (2004), Owl, The (1987).' in question(
        DATA, SAMPLE, YesNoPromptConfig('paper')
    )
    assert COMMENT in question(DATA, SAMPLE, YesNoPromptConfig.as_published())


@pytest.mark.parametrize(
    'name, tokens',
    [
        ('meta', ['Yes', 'No']),
        ('byte', ['Yes', 'No']),
        ('llama3', ['Yes', 'No']),
        ('spelling', ['Y', 'N']),
        ('lower', ['yes', 'no']),
        ('glueing', ['\nYes', '\nNo']),
    ],
)
def test_the_deciding_tokens(name, tokens):
    tok = of_family(name)
    assert tok.convert_ids_to_tokens(yesno_ids(tok)) == tokens


@pytest.mark.parametrize('name, token', [('meta', '▁Yes'), ('byte', 'Yes'), ('llama3', 'Yes')])
def test_the_bare_word(name, token):
    tok = of_family(name)
    assert tok.convert_ids_to_tokens(tok('Yes', add_special_tokens=False)['input_ids']) == [token]


def test_llama_3_glues_the_colon_to_the_newline():
    tok = of_family('llama3')
    assert tok.convert_ids_to_tokens(prompt_ids(tok, 'Response:\n'))[-1] == ':Ċ'


def test_a_spelt_answer():
    tok = of_family('spelling')
    assert tok.convert_ids_to_tokens(answer_form(tok, wrap('x')).yes) == ['Y', 'e', 's', '.']


def test_a_vocabulary_without_the_letters_is_refused():
    message = "splits the answers ambiguously: from where they differ they read 'es.' and 'o.'"
    with pytest.raises(LlmrecError, match=re.escape(message)):
        yesno_ids(of_family('poor'))


@pytest.mark.parametrize('name', ['meta', 'llama3', 'glueing'])
def test_a_question_is_the_beginning_of_a_row(name):
    tok, prompt = of_family(name), question(DATA, SAMPLE, YesNoPromptConfig())
    form = answer_form(tok, prompt)
    for answer, ids in zip(TALLREC_ANSWERS, (form.no, form.yes)):
        assert question_ids(tok, prompt, form) + list(ids) == prompt_ids(tok, prompt + answer)


def test_lengths(out):
    assert context_of(load_backbone(BackboneConfig())) == 4096
    tok, cfg = of_family('byte'), YesNoPromptConfig(max_tokens=100)
    form = answer_form(tok, wrap('x'))
    assert len(form.yes) == 2
    assert question_limit(tok, cfg, form) == 97
    assert question_limit(tok, cfg, form, context=60) == 57
    assert question_limit(tok, YesNoPromptConfig.as_published(), form, context=2048) == 2048


def test_a_long_question_loses_its_oldest_item(meta, row_length):
    dropped = encode_questions(meta, DATA, FRAME, YesNoPromptConfig())[1]
    assert (dropped.tolist(), shortened(dropped)) == ([0, 0, 0], '')
    first = FRAME[:1]
    assert encode_questions(meta, DATA, first, YesNoPromptConfig(max_tokens=row_length))[1].tolist() == [0]
    cut, dropped = encode_questions(meta, DATA, first, YesNoPromptConfig(max_tokens=row_length - 1))
    text = meta.decode(cut[0])
    assert dropped.tolist() == [1]
    assert '"Tidewater (1990)"' in text and 'Slow Boat' not in text and text.endswith('### Response:\n')
    assert encode_questions(meta, DATA, first, YesNoPromptConfig(), context=row_length - 1)[0] == cut
    with pytest.raises(LlmrecError, match=r'Row 0 \(counted from 0\)'):
        encode_questions(meta, DATA, FRAME, YesNoPromptConfig(max_tokens=60))


def test_labels():
    both, right = YesNoPromptConfig(loss='prompt+answer'), YesNoPromptConfig.as_published()
    made = lambda cfg, limit: labelled_row([1, 5, 6], [8, 9], cfg, limit, 2)
    whole = [1, 5, 6, 8, 9, 2]
    assert made(YesNoPromptConfig(), 10) == dict(input_ids=whole, labels=[-100, -100, -100, 8, 9, 2])
    assert made(both, 10)['labels'] == [-100, 5, 6, 8, 9, 2]
    assert made(right, 5) == dict(input_ids=[1, 5, 6, 8, 9], labels=[-100, 5, 6, 8, 9])
    assert made(right, 3)['labels'] == [-100, 5, 6]


@pytest.mark.parametrize('name', ['meta', 'byte', 'llama3', 'spelling'])
def test_rows_learn_answer_and_end_token(name):
    tok = of_family(name)
    rows = YesNoRows(DATA, [0, 2], tok, YesNoPromptConfig(max_tokens=2000))
    for row, want, answer in zip(rows, yesno_ids(tok), ('Yes.', 'No.')):
        found = learnt(row)
        assert (found[0], found[-1]) == (want, tok.eos_token_id)
        assert tok.decode(found[:-1]) == answer
        assert row['input_ids'][-len(found) :] == found
    asked = [r['input_ids'][: -len(learnt(r))] for r in rows]
    assert asked == encode_questions(tok, DATA, FRAME[[0, 2]], rows.cfg)[0]


def test_the_published_cut_takes_the_answer(meta, row_length):
    def rows(limit, **kw):
        return YesNoRows(DATA, [0], meta, YesNoPromptConfig(max_tokens=limit, truncation='right', **kw))

    published, whole = rows(row_length - 3, loss='prompt+answer'), rows(row_length, loss='prompt+answer')
    assert (published.cut.tolist(), len(published[0]['input_ids'])) == ([True], row_length - 3)
    assert (whole.cut.tolist(), whole[0]['input_ids'][-1]) == ([False], meta.eos_token_id)
    with pytest.raises(LlmrecError, match='Training row 0: cutting at'):
        rows(row_length - 3)


@pytest.mark.parametrize('name', ['meta', 'byte', 'llama3'])
def test_general_instructions(name):
    tok = of_family(name)
    records = pl.DataFrame(
        [
            {INSTRUCTION: 'Name a colour.', INPUT: '', OUTPUT: 'Blue.'},
            {INSTRUCTION: 'Name it. ' * 99, INPUT: 'x', OUTPUT: 'No.'},
        ]
    )
    rows = AlpacaRows(records, tok, YesNoPromptConfig(max_tokens=256))
    assert (len(rows), rows.left_out) == (1, 1)
    assert tok.decode(learnt(rows[0])) == 'Blue.</s>'
    both = AlpacaRows(records, tok, YesNoPromptConfig(max_tokens=256, loss='prompt+answer'))
    assert (len(both), both.left_out, len(both[1]['input_ids'])) == (2, 0, 256)
