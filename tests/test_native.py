"Asked in its own prose: the text, the token that decides, the score, and the reader's oracle, on made-up data and tiny models."

import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from llmrec.data.miniature import WorldConfig, make_world
from llmrec.data.yesno import load_yesno
from llmrec.data.yesno_form import YesNoData
from llmrec.evaluation.auc import auc
from llmrec.experiments import native as n
from llmrec.llm.backbones import BackboneConfig, load_backbone
from llmrec.paths import LlmrecError

TITLES = ['', 'Zam {0} & Co (1961)', 'Ubi, The (1950)', '2001 (2001)', 'Ten (1999) Again']
SAMPLE = dict(history=[1, 2, 3], history_labels=[0, 1, 0], item=4, label=1)


def made(thing='movie', titles=TITLES, authors=None):
    return YesNoData(
        'made', 'as_published', thing, 'x' * 12, {}, titles, authors or [None] * len(titles), [None]
    )


def test_a_year_goes_only_from_the_end_and_only_from_films():
    text = n.native_prompt(made(), SAMPLE, n.native())
    assert text == 'loved Ubi, The; hated Zam {0} & Co, 2001; then Ten (1999) Again '
    assert n.native_prompt(made(), SAMPLE, n.native(years=True)).endswith(
        'then Ten (1999) Again '
    ) and '(1961)' in n.native_prompt(made(), SAMPLE, n.native(years=True))
    assert '(1950)' in n.native_prompt(made('book'), SAMPLE, n.native())


def test_books_have_authors_when_asked_for():
    books = made('book', ['', 'A &amp; B', 'C'], [None, 'Ann O&#39;Hm', None])
    sample = dict(history=[1], history_labels=[1], item=2, label=0)
    assert (
        n.native_prompt(books, sample, n.native('headings', authors=True, words=['good', 'bad']))
        == 'Good: "A & B by Ann O\'Hm".\nThen came "C": '
    )


@pytest.mark.parametrize('name', n.PHRASINGS)
def test_every_phrasing_names_every_title_once_and_each_verdict_as_often_as_it_must(name):
    text = n.native_prompt(made(titles=['', *'QWXZ']), SAMPLE, n.native(name)).lower()
    assert [text.count(t) for t in 'qxz'] == [1, 1, 1] and text.count('w') == 1
    assert text.count('loved') == 1 and text.count('hated') == (1 if n.PHRASINGS[name].by == 'side' else 2)
    assert text.rindex('z') > max(text.index(t) for t in 'qwx')


@pytest.mark.parametrize('backbone', ['tiny', 'tiny-metaspace'])
@pytest.mark.parametrize('words', [('loved', 'hated'), ('liked', 'loathed')])
def test_the_score_is_the_difference_of_log_probabilities(out, backbone, words):
    cfg, films = n.native('headings', rows=6, words=list(words)), load_yesno('films')
    record, model = (
        n.run(cfg, 'films', BackboneConfig(backbone), 'test', False),
        load_backbone(BackboneConfig(backbone)),
    )
    for score, row in zip(record.arrays['score'], record.arrays['row']):
        text = n.native_prompt(films, films.splits['test'].row(int(row), named=True), cfg)
        good, bad = (model.tokenizer(text + word)['input_ids'] for word in words)
        at = next(i for i, (a, b) in enumerate(zip(good, bad)) if a != b)
        with torch.no_grad():
            logp = model.model(torch.tensor([good[:at]])).logits[0, -1].log_softmax(-1)
        assert abs(score - float(logp[good[at]] - logp[bad[at]])) < 1e-3


def test_words_that_do_not_part(out):
    with pytest.raises(LlmrecError, match='beginning of the other'):
        n.run(n.native(words=['like', 'liked'], rows=2), 'films', BackboneConfig(), 'test', False)


def test_other_words_rows_and_models_are_other_records(out):
    runs = [
        (n.native(rows=4), 'films'),
        (n.native(rows=5), 'films'),
        (n.native(rows=4, words=['good', 'bad']), 'films'),
        (n.native(rows=4), 'books'),
        (n.native(rows=4, protocol='corrected'), 'books'),
        (n.native('in turn', rows=4), 'films'),
    ]
    assert len({n.run(cfg, d, BackboneConfig(), 'test', False).key for cfg, d in runs}) == len(runs)


def test_the_reader_knows_the_world_and_no_other(out):
    films = load_yesno('films')
    labels, scores = films.splits['test']['label'].to_numpy(), n.reader_scores(films, make_world())
    assert auc(labels, scores) > 0.93 and ((scores > 0) & (scores < 1)).all()
    flipped = pl.col('history_labels').list.eval(1 - pl.element())
    lied_to = replace(films, splits={'test': films.splits['test'].with_columns(flipped)})
    assert auc(labels, n.reader_scores(lied_to, make_world())) < 0.3
    with pytest.raises(LlmrecError, match='title in films'):
        n.catalogue_places(films, make_world(WorldConfig(seed=1)))
    assert np.array_equal(np.sort(n.catalogue_places(films, make_world())[1:]), np.arange(films.n_items))


TOLD = [('Alora', True), ('Corin', False), ('Besuto', True)]


@pytest.mark.parametrize(
    'name, words, text',
    [
        ('in turn', ('loved', 'hated'), 'loved Alora, hated Corin, loved Besuto, then Delmi '),
        (
            'headings',
            ('liked', 'disliked'),
            'Liked: "Alora", "Besuto".\nDisliked: "Corin".\nThen came "Delmi": ',
        ),
    ],
)
def test_a_phrasing_as_text(name, words, text):
    assert n.prose(TOLD, 'Delmi', words, n.PHRASINGS[name]) == text


def test_an_empty_side_and_an_empty_history_are_left_out():
    assert n.prose(TOLD[:1], 'Delmi', ('loved', 'hated'), n.PHRASINGS['plain']) == 'loved Alora; then Delmi '
    assert n.prose([], 'De{l}mi', ('loved', 'hated'), n.PHRASINGS['verdict last']) == 'De{l}mi '


def test_misspelt_settings_are_named():
    with pytest.raises(LlmrecError, match="Did you mean 'words'"):
        n.native(word=('good', 'bad'))
    with pytest.raises(LlmrecError, match="Did you mean 'plain'"):
        n.native('plane')


@pytest.mark.parametrize('name', ['films', 'books'])
def test_every_title_of_every_test_row_stands_once_and_on_its_side(name):
    data = load_yesno(name)
    plain = re.compile(r'(?:loved (?P<liked>.*?); )?(?:hated (?P<disliked>.*?); )?then (?P<target>.*) ')
    joined = lambda title: title.replace(', The', '|The')  # a film's article stands behind a comma
    spoken = [''] + [n.spoken(data, i, n.native()) for i in range(1, data.n_items + 1)]
    for row in data.splits['test'].iter_rows(named=True):
        found = plain.fullmatch(n.native_prompt(data, row, n.native()))
        got = [joined(found[side]).split(', ') if found[side] else [] for side in ('liked', 'disliked')]
        want = [
            [joined(spoken[i]) for i, y in zip(row['history'], row['history_labels']) if y == label]
            for label in (1, 0)
        ]
        assert (got, found['target']) == (want, spoken[row['item']])
    assert '&amp;' not in ''.join(spoken) and (name == 'films' or '&amp;' in ''.join(data.titles))
    assert name == 'books' or not any(n.YEAR.search(title) for title in spoken)


class Letters:
    "A token for each letter; the space before a word is part of its first letter."

    eos_token_id = None

    def __call__(self, text, split_special_tokens=True):
        return dict(
            input_ids=[ord(c) + 1000 * (i > 0 and text[i - 1] == ' ') for i, c in enumerate(text) if c != ' ']
        )


def test_the_token_that_decides():
    ids, deciding = n.parted(Letters(), 'then Delmi ', ('loved', 'hated'))
    assert (len(ids), deciding) == (9, (1000 + ord('l'), 1000 + ord('h')))
    ids, deciding = n.parted(Letters(), 'then Delmi ', ('loved', 'loathed'))
    assert (len(ids), deciding) == (11, (ord('v'), ord('a')))
    with pytest.raises(LlmrecError, match='Row 1'):
        n.encode_native(Letters(), ['then Delmi ', 'then Delmi:'], ('loved', 'hated'))


def test_ids_lead_back_to_the_text():
    tiny, films = load_backbone(BackboneConfig()), load_yesno('films')
    texts = [
        n.native_prompt(films, row, n.native()) for row in films.splits['test'][:6].iter_rows(named=True)
    ]
    prompts, ids = n.encode_native(tiny.tokenizer, texts, ('loved', 'hated'))
    assert [tiny.tokenizer.decode(p, skip_special_tokens=True).strip() for p in prompts] == [
        t.strip() for t in texts
    ]
    for word, i in zip(('loved', 'hated'), ids):
        assert word.startswith(tiny.tokenizer.decode([i]).strip())


def test_a_run_is_kept_and_a_bad_one_is_not(out):
    cfg, films = n.native(rows=12), load_yesno('films')
    record, again = (n.run(cfg, 'films', BackboneConfig(), 'test', False) for _ in range(2))
    assert (record.metrics, record.key) == (again.metrics, again.key)
    labels = films.splits['test'][record.arrays['row']]['label'].to_numpy()
    assert record.arrays['label'].tolist() == labels.tolist()
    assert record.metrics['auc'] == pytest.approx(auc(labels, record.arrays['score']))
    for none in (
        lambda: n.run(n.native(rows=0), 'films', BackboneConfig(), 'test'),
        lambda: n.run_crowd(n.CrowdRun('books', BackboneConfig(), n.native(rows=0)), 'test'),
    ):
        with pytest.raises(LlmrecError, match='at least one row'):
            none()


@pytest.mark.parametrize('protocol, least', [('as_published', 0.78), ('corrected', 0.8)])
def test_the_reader_of_books(protocol, least):
    data, world = load_yesno('books', protocol), make_world()
    scores = n.reader_scores(data, world)
    assert auc(data.splits['test']['label'].to_numpy(), scores) > least
    assert n.reader_scores(data, world, np.array([3, 5])).tolist() == scores[[3, 5]].tolist()


@pytest.mark.parametrize('name, least', [('films', 0.92), ('books', 0.86)])
def test_a_crowd_is_new_and_like_the_others(name, least):
    def told_of(data):
        long = [
            s for split in data.splits.values() for s in split.iter_rows(named=True) if len(s['history']) > 4
        ]
        return {
            (*(data.titles[i] for i in s['history']), *s['history_labels'], data.titles[s['item']])
            for s in long
        }

    (data, theirs), whole = n.crowd(name, 'corrected', 300, 0), load_yesno(name, 'corrected')
    labels = data.splits['test']['label'].to_numpy()
    assert told_of(data) and told_of(data).isdisjoint(told_of(whole))
    assert abs(labels.mean() - pl.concat(whole.splits.values())['label'].mean()) < 0.08
    assert auc(labels, n.reader_scores(data, theirs)) > least


def test_the_record_of_a_crowd_is_of_its_rows(out):
    cfg = n.native(rows=9, protocol='corrected')
    record = n.run_crowd(n.CrowdRun('books', BackboneConfig(), cfg, 300), 'test', progress=False)
    data, theirs = n.crowd('books', 'corrected', 300, 0)
    samples, tiny = data.splits['test'][record.arrays['row']], load_backbone(BackboneConfig())
    assert record.arrays['label'].tolist() == samples['label'].to_list()
    texts = [n.native_prompt(data, s, cfg) for s in samples.iter_rows(named=True)]
    prompts, ids = n.encode_native(tiny.tokenizer, texts, cfg.words)
    assert record.arrays['score'].tolist() == pytest.approx(
        [float(n.score_answers(tiny, [p], ids, progress=False)[0]) for p in prompts], abs=1e-3
    )
    assert record.arrays['reader'].tolist() == n.reader_scores(data, theirs, record.arrays['row']).tolist()
