"Asked in its own prose: the text, the token that decides, the score, and the reader's oracle, on made-up data and tiny models."
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from llmrec.data.miniature import WorldConfig, make_world
from llmrec.data.yesno import YesNoData, load_yesno
from llmrec.evaluation.auc import auc
from llmrec.experiments import native as n
from llmrec.llm.backbones import BackboneConfig, load_backbone
from llmrec.paths import LlmrecError

TITLES = ['', 'Zam {0} & Co (1961)', 'Ubi, The (1950)', '2001 (2001)', 'Ten (1999) Again']
SAMPLE = dict(history=[1, 2, 3], history_labels=[0, 1, 0], item=4, label=1)


def made(thing='movie', titles=TITLES, authors=None):
    return YesNoData('made', 'as_published', thing, 'x' * 12, {}, titles, authors or [None] * len(titles), [None])


def test_a_year_goes_only_from_the_end_and_only_from_films():
    text = n.native_prompt(made(), SAMPLE, n.native())
    assert text == 'loved Ubi, The; hated Zam {0} & Co, 2001; then Ten (1999) Again '
    assert n.native_prompt(made(), SAMPLE, n.native(years=True)).endswith('then Ten (1999) Again ') and '(1961)' in n.native_prompt(made(), SAMPLE, n.native(years=True))
    assert '(1950)' in n.native_prompt(made('book'), SAMPLE, n.native())


def test_books_have_authors_when_asked_for():
    books = made('book', ['', 'A &amp; B', 'C'], [None, 'Ann O&#39;Hm', None])
    sample = dict(history=[1], history_labels=[1], item=2, label=0)
    assert n.native_prompt(books, sample, n.native('headings', authors=True, words=['good', 'bad'])) == 'Good: "A & B by Ann O\'Hm".\nThen came "C": '


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
    record, model = n.run(cfg, 'films', BackboneConfig(backbone), 'test', False), load_backbone(BackboneConfig(backbone))
    for score, row in zip(record.arrays['score'], record.arrays['row']):
        text = n.native_prompt(films, films.splits['test'].row(int(row), named=True), cfg)
        good, bad = (model.tokenizer(text + word)['input_ids'] for word in words)
        at = next(i for i, (a, b) in enumerate(zip(good, bad)) if a != b)
        with torch.no_grad(): logp = model.model(torch.tensor([good[:at]])).logits[0, -1].log_softmax(-1)
        assert abs(score - float(logp[good[at]] - logp[bad[at]])) < 1e-3


def test_words_that_do_not_part(out):
    with pytest.raises(LlmrecError, match='beginning of the other'):
        n.run(n.native(words=['like', 'liked'], rows=2), 'films', BackboneConfig(), 'test', False)


def test_other_words_rows_and_models_are_other_records(out):
    runs = [(n.native(rows=4), 'films'), (n.native(rows=5), 'films'), (n.native(rows=4, words=['good', 'bad']), 'films'), (n.native(rows=4), 'books'),
            (n.native(rows=4, protocol='corrected'), 'books'), (n.native('in turn', rows=4), 'films')]
    assert len({n.run(cfg, d, BackboneConfig(), 'test', False).key for cfg, d in runs}) == len(runs)


def test_the_reader_knows_the_world_and_no_other(out):
    films = load_yesno('films')
    labels, scores = films.splits['test']['label'].to_numpy(), n.reader_scores(films, make_world())
    assert auc(labels, scores) > .93 and ((scores > 0) & (scores < 1)).all()
    flipped = pl.col('history_labels').list.eval(1 - pl.element())
    lied_to = replace(films, splits={'test': films.splits['test'].with_columns(flipped)})
    assert auc(labels, n.reader_scores(lied_to, make_world())) < .3
    with pytest.raises(LlmrecError, match='title in films'): n.catalogue_places(films, make_world(WorldConfig(seed=1)))
    assert np.array_equal(np.sort(n.catalogue_places(films, make_world())[1:]), np.arange(films.n_items))
