"AUC over matched pairs in a world of people who differ in how easily they are pleased."

import numpy as np
import pytest

from llmrec.evaluation.auc import auc_summary, compare, within_between
from llmrec.evaluation.intervals import clustered_interval
from llmrec.evaluation.matched import _shares, matched, matched_auc, matched_compare
from llmrec.paths import LlmrecError


class World:
    def __init__(self):
        rng = np.random.default_rng(0)
        self.who = np.arange(16).repeat(40)
        pleased, title = rng.normal(size=16)[self.who], rng.normal(size=640)
        self.gold = (pleased + 0.7 * title + rng.normal(size=640) > 0).astype(int)
        self.shown = rng.binomial(10, 1 / (1 + np.exp(-pleased))) / 10
        self.reads = title + rng.normal(size=640)
        self.both = 3 * self.shown + self.reads
        self.strata = {'all alike': np.zeros(640), 'user': self.who, 'like-rate': self.shown}

    def value(self, strata, scores):
        return matched_auc(strata, self.who, self.gold, scores)['value']


@pytest.fixture(scope='module')
def w():
    return World()


def naive(strata, labels, scores):
    won = of = 0
    for i in np.flatnonzero(labels):
        for j in np.flatnonzero(labels == 0):
            if strata[i] != strata[j]:
                continue
            of += 1
            won += (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
    return won / of


def close(x):
    return pytest.approx(x, abs=1e-12)


def test_six_rows_by_hand():
    user, rate = ['a', 'a', 'b', 'b', 'c', 'c'], np.array([0.8, 0.8, 0.8, 0.8, 0.3, 0.3])
    m = matched(rate, user, np.array([1, 0, 1, 1, 0, 0]), [0.7, 0.2, 0.9, 0.1, 0.5, 0.8])
    assert m.pairs.tolist() == [[1, 0], [2, 0]]  # a's like and b's two against a's dislike
    assert m.wins.tolist() == [[1, 0], [1, 0]]
    assert _shares(m, np.ones((1, 3))).tolist() == [2 / 3]
    assert _shares(m, np.array([[2.0, 1, 0]])).tolist() == [(4 + 2) / (4 + 4)]
    assert np.isnan(_shares(m, np.array([[0.0, 3, 0]]))).all()  # without a's dislike there is no pair


def test_what_only_counts_has_one_half_in_every_resample(w):
    f = matched_auc(w.shown, w.who, w.gold, w.shown)
    assert [f['value'], f['low'], f['high']] == [0.5] * 3
    assert matched_auc(w.shown, w.who, w.gold, w.reads)['low'] > 0.55
    assert w.value(w.shown, w.both) == close(w.value(w.shown, w.reads))


@pytest.mark.parametrize('strata', ['all alike', 'user', 'like-rate'])
def test_the_double_sum(w, strata):
    assert w.value(w.strata[strata], w.both) == close(naive(w.strata[strata], w.gold, w.both))


def test_one_stratum_is_pooled_auc_and_users_are_auc_within(w):
    pooled, one = auc_summary(w.who, w.gold, w.both), matched_auc(np.zeros(640), w.who, w.gold, w.both)
    assert [one[k] for k in ('value', 'low', 'high')] == close(
        [pooled[k] for k in ('AUC', 'AUC_low', 'AUC_high')]
    )
    assert one['pairs'] == w.gold.sum() * (1 - w.gold).sum()
    assert w.value(w.who, w.both) == close(within_between(w.who, w.gold, w.both)['within'])


def test_the_bounds_are_those_of_copied_rows(w):
    few = np.random.default_rng(1).permutation(640)[:120]
    shown, gold, both = w.shown[few], w.gold[few], w.both[few]
    want = clustered_interval(lambda r: naive(shown[r], gold[r], both[r]), w.who[few], n=40, seed=3)
    got = matched_auc(shown, w.who[few], gold, both, n=40, seed=3)
    assert [got['value'], got['low'], got['high']] == close(want)


def test_runs_are_averaged_and_columns_make_one_stratum(w):
    runs = np.stack([w.both, w.reads])
    assert w.value(w.shown, runs) == close(np.mean([w.value(w.shown, s) for s in runs]))
    assert w.value(np.stack([w.who, w.shown], 1), w.both) == close(
        naive([*zip(w.who, w.shown)], w.gold, w.both)
    )


def test_what_cannot_be_compared(w):
    alone = matched_auc(np.arange(640), w.who, w.gold, w.both)
    assert np.isnan(alone['value']) and alone['pairs'] == 0
    for args, says in (
        ((w.shown[:5], w.who, w.gold, w.both), 'Every row needs a stratum'),
        ((w.shown, w.who[:5], w.gold, w.both), '5 users for 640 rows'),
        ((w.shown, w.who, np.ones(640), w.both), 'same label'),
    ):
        with pytest.raises(LlmrecError, match=says):
            matched_auc(*args)


def gap(w, strata, a, b):
    return matched_compare(*(matched(strata, w.who, w.gold, s) for s in (a, b)))


def test_a_comparison_of_different_pairs_is_refused(w):
    with pytest.raises(LlmrecError, match='different pairs'):
        matched_compare(
            matched(w.shown, w.who, w.gold, w.reads), matched(np.zeros(640), w.who, w.gold, w.reads)
        )


def test_a_comparison_of_all_pairs_is_that_of_pooled_auc(w):
    keys = ('difference', 'low', 'high', 'p_bootstrap')
    c, all_alike = (
        f for f in (compare(w.who, w.gold, w.reads, w.shown), gap(w, np.zeros(640), w.reads, w.shown))
    )
    assert [all_alike[k] for k in keys] == close([c[k] for k in keys])


def test_a_comparison_turns_with_its_methods_and_is_0_for_equals(w):
    there = gap(w, w.shown, w.reads, w.shown)
    back = gap(w, w.shown, w.shown, w.reads)
    assert there['low'] > 0
    assert [back['difference'], back['low']] == close([-there['difference'], -there['high']])
    same = gap(w, w.shown, w.both, 2 * w.both)
    assert [same['difference'], same['p_bootstrap']] == [0, 1]
