"Questions with one thing altered: what stays, what goes, and what two scores make of it."

import numpy as np
import polars as pl
import pytest

from llmrec.data.changes import CHANGES, changed, emptied, exchanged, numbered_titles, retargeted
from llmrec.data.yesno import load_yesno
from llmrec.evaluation.auc import auc
from llmrec.paths import ITEM, LlmrecError


@pytest.fixture
def few():
    return pl.DataFrame(
        dict(
            user=[1, 2, 3],
            history=[[11, 12], [13], []],
            history_labels=[[1, 0], [1], []],
            item=[14, 15, 16],
            label=[0, 1, 1],
        )
    )


@pytest.fixture(scope='module')
def films():
    return load_yesno('films')


@pytest.fixture(scope='module')
def versions(films):
    return {change: changed(films, change) for change in CHANGES}


@pytest.fixture(scope='module')
def new(versions):
    return {change: data.splits['test'] for change, data in versions.items()}


def places(samples):
    return sorted([*samples['history'].explode().drop_nulls(), *samples[ITEM]])


def test_an_exchange_keeps_items_labels_and_lengths(few):
    mixed = exchanged(few, np.random.default_rng(0))
    assert places(mixed) == places(few) and mixed.drop('history', ITEM).equals(few.drop('history', ITEM))
    assert mixed['history'].list.len().equals(few['history'].list.len())


def test_targets_alone_and_histories_alone(few):
    moved, bare = retargeted(few, np.random.default_rng(1)), emptied(few)
    assert sorted(moved[ITEM]) == [14, 15, 16] and moved.drop(ITEM).equals(few.drop(ITEM))
    assert bare['history'].to_list() == [[], [], []]
    assert bare.drop('history', 'history_labels').equals(few.drop('history', 'history_labels'))


def test_numbers_are_those_of_all_items_once():
    assert sorted(numbered_titles(5, seed=0)) == ['', *(f'item {i}' for i in range(1, 6))]


@pytest.mark.parametrize('change', CHANGES)
def test_people_labels_and_places_of_likes_stay(films, new, change):
    test, now = films.splits['test'], new[change]
    assert now.select('user', 'label', 'timestamp').equals(test.select('user', 'label', 'timestamp'))
    if change != 'history emptied':
        assert now['history_labels'].equals(test['history_labels'])


def test_what_each_change_takes_away(films, versions, new):
    test = films.splits['test']
    assert places(new['titles exchanged']) == places(test)
    assert (new['titles exchanged']['history'] != test['history']).all()
    assert new['target replaced']['history'].equals(test['history'])
    assert sorted(new['target replaced'][ITEM]) == sorted(test[ITEM])
    assert new['titles numbered'].equals(test)
    assert all(p.startswith('"item ') for p in versions['titles numbered'].phrases[1:])
    assert new['history emptied'][ITEM].equals(test[ITEM])


def test_the_original_stays_and_the_seed_decides(films, versions, new):
    assert films.phrases[1] == load_yesno('films').phrases[1] != versions['titles numbered'].phrases[1]
    assert changed(films, 'titles exchanged').splits['test'].equals(new['titles exchanged'])
    assert not changed(films, 'titles exchanged', seed=1).splits['test'].equals(new['titles exchanged'])
    assert len({data.checksum for data in versions.values()}) == len(CHANGES)


def test_some_splits_only(films, new):
    only_test = changed(films, 'titles exchanged', splits=('test',))
    assert only_test.splits['test'].equals(new['titles exchanged'])
    assert only_test.splits['train'].equals(films.splits['train'])


def test_what_cannot_be_changed(films):
    with pytest.raises(LlmrecError, match="Did you mean 'titles exchanged'"):
        changed(films, 'titles exchange')
    with pytest.raises(LlmrecError, match='belong to all splits'):
        changed(films, 'titles numbered', splits=('test',))


@pytest.fixture(scope='module')
def aucs(films, new):
    "Per change: AUC of the like-rate, and of nearness in the training rows."
    ratings = np.zeros((len(films.users), films.n_items + 1))
    for s in films.splits['train'].iter_rows(named=True):
        ratings[s['user'], s['history'] + [s[ITEM]]] = 2 * np.array(s['history_labels'] + [s['label']]) - 1
    nearness = ratings.T @ ratings
    np.fill_diagonal(nearness, 0)
    out = {}
    for change, samples in new.items():
        rate = samples['history_labels'].list.mean().fill_null(0.5).to_numpy()
        near = [
            nearness[s[ITEM], s['history']] @ (2 * np.array(s['history_labels'], dtype=float) - 1)
            for s in samples.iter_rows(named=True)
        ]
        out[change] = auc(samples['label'].to_numpy(), rate), auc(samples['label'].to_numpy(), near)
    return out


@pytest.mark.parametrize('change', ['titles exchanged', 'titles numbered', 'target replaced'])
def test_counting_does_not_notice(aucs, change):
    assert aucs[change][0] == aucs['as they are'][0]


def test_looking_items_up_does_not_notice_numbers_and_nothing_is_left_of_an_empty_history(aucs):
    assert aucs['titles numbered'][1] == aucs['as they are'][1]
    assert aucs['history emptied'][0] == 0.5


@pytest.mark.parametrize('change', ['titles exchanged', 'target replaced'])
def test_tastes_are_lost(aucs, change):
    assert aucs['as they are'][1] - aucs[change][1] > 0.3
