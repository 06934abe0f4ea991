"AUC, pairs by user and comparisons by hand, and what has no answer."

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from llmrec.evaluation import auc as ev
from llmrec.evaluation.intervals import clustered_interval
from llmrec.paths import LlmrecError, USER


@pytest.fixture
def rows():
    "Users, labels, scores with many ties."
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 2, 300)
    return rng.integers(0, 12, 300), gold, rng.integers(0, 8, 300) + gold


@pytest.fixture
def methods(rows):
    "Two methods' scores of the rows."
    rng = np.random.default_rng(1)
    return rows[1] + rng.normal(size=300), rows[1] + 2 * rng.normal(size=300)


def close(x, eps=1e-12):
    return pytest.approx(x, abs=eps)


def test_small_sets_by_hand():
    assert ev.auc([1, 0, 1, 0], [0.9, 0.1, 0.4, 0.6]) == 3 / 4  # one of the four pairs is the wrong way round
    assert ev.auc([1, 0, 0], [0.5, 0.5, 0.1]) == 3 / 4  # one tie, one win
    assert ev.auc([1, 0, 1, 0], np.zeros(4)) == 1 / 2
    assert ev.auc([1, 0], [[2.0, 1.0], [1.0, 2.0]]) == 1 / 2  # two runs, one right and one wrong


@pytest.mark.parametrize(
    'labels, scores, says',
    [
        ([1, 1], [0.1, 0.2], 'All 2 rows'),
        ([1, 0, 0], [0.1, 0.2, np.nan], 'Row 2 has the score nan'),
        ([1, 0, 2], [0.1, 0.2, 0.3], 'Row 2 has the label 2'),
        ([1, 0, 0], [0.1, 0.2], 'one label per row'),
    ],
)
def test_what_has_no_auc(labels, scores, says):
    with pytest.raises(LlmrecError, match=says):
        ev.auc(labels, scores)


def test_auc_turns_with_the_scores_and_keeps_under_rising_functions(rows):
    _, gold, coarse = rows
    assert ev.auc(gold, [coarse, -coarse]) == close(0.5)
    assert ev.auc(gold, -coarse) == close(1 - ev.auc(gold, coarse))
    assert ev.auc(gold, np.exp(coarse)) == ev.auc(gold, coarse)


def test_wins_by_hand(rows):
    who, gold, coarse = rows
    p = ev.pairs(*rows)
    likes = [coarse[(who == u) & (gold == 1)] for u in range(12)]
    dislikes = [coarse[(who == u) & (gold == 0)] for u in range(12)]
    by_hand = [
        [sum((a > b) + 0.5 * (a == b) for a in mine for b in theirs) for theirs in dislikes] for mine in likes
    ]
    assert p.wins.tolist() == by_hand
    assert p.wins.sum() / (p.likes.sum() * p.dislikes.sum()) == close(ev.auc(gold, coarse))


def test_users_without_a_like_or_a_dislike():
    lone = ev.pairs(
        ['c', 'a', 'b', 'b'], [1, 0, 1, 0], [4.0, 3.0, 2.0, 1.0]
    )  # a has no like, c has no dislike
    assert lone.wins.tolist() == [[0, 1], [1, 1]]  # rows b, c; columns a, b
    assert lone.own_wins.tolist() == [1]
    frame = ev.user_auc(['c', 'a', 'b', 'b'], [1, 0, 1, 0], [4.0, 3.0, 2.0, 1.0])
    assert frame.rows() == [('a', 1, 0, None), ('b', 2, 1, 1.0), ('c', 1, 1, None)]
    with pytest.raises(LlmrecError, match='2 users for 3 rows'):
        ev.pairs([1, 2], [1, 0, 1], [1.0, 2, 3])


def test_auc_of_each_user_is_scikit_learns(rows):
    who, gold, coarse = rows
    each = ev.user_auc(*rows)
    want = [roc_auc_score(gold[who == u], coarse[who == u]) for u in each[USER]]
    assert each['auc'].to_list() == close(want)
    assert each['rows'].sum() == 300


def test_a_score_that_knows_users_only_wins_between_them():
    rng = np.random.default_rng(2)
    taste = rng.normal(scale=1.5, size=40)
    customer = np.arange(40).repeat(25)
    liked = (taste[customer] + rng.normal(size=1000) > 0).astype(int)
    parts = ev.within_between(customer, liked, taste[customer])
    assert parts['within'] == 0.5 and ev.auc(liked, taste[customer]) > 0.75
    mixed = parts['share_within'] * parts['within'] + (1 - parts['share_within']) * parts['between']
    assert mixed == close(ev.auc(liked, taste[customer]))


def test_the_size_of_a_block_does_not_matter(rows, monkeypatch):
    p = ev.pairs(*rows)

    def draws():
        return np.concatenate([ev._pooled(p, w) for w in ev._draws(12, 300, seed=5)])

    whole = draws()
    monkeypatch.setattr(ev, 'CHUNK', 100)
    assert draws() == close(whole)
    assert (ev.pairs(*rows).wins == p.wins).all()


def test_the_summary_is_made_of_the_parts(rows):
    who, gold, coarse = rows
    s, each = ev.auc_summary(*rows), ev.user_auc(*rows)
    assert s['AUC'] == close(ev.auc(gold, coarse))
    assert s['UAUC'] == close(each['auc'].mean())
    assert s['UAUC_weighted'] == close(np.average(each['auc'], weights=each['rows']))
    assert [s['users'], s['users_skipped'], s['rows']] == [12, 0, 300]


def test_the_summary_of_several_seeds_is_the_mean_of_theirs(rows, methods):
    who, gold, coarse = rows
    three = np.stack([coarse, *methods])
    s = ev.auc_summary(who, gold, three, n=200)
    assert s['AUC'] == close(np.mean([ev.auc(gold, row) for row in three]))
    assert s['UAUC'] == close(np.mean([ev.auc_summary(who, gold, row, n=2)['UAUC'] for row in three]))


def test_one_row_per_user_has_no_auc_of_users_and_one_user_no_interval():
    rng = np.random.default_rng(3)
    like = (rng.random(2427) < 0.43).astype(int)
    s = ev.auc_summary(np.arange(2427), like, like + 2 * rng.normal(size=2427))
    assert s['users_skipped'] == 2427 and np.isnan([s['UAUC'], s['UAUC_low'], s['UAUC_weighted']]).all()
    assert s['AUC_low'] < s['AUC'] < s['AUC_high']
    assert np.isnan(ev.auc_summary(np.zeros(4), [0, 1, 0, 1], np.arange(4))['AUC_low'])


def test_a_comparison_turns_with_its_methods(rows, methods):
    who, gold, _ = rows
    better, worse = methods
    c, swapped = ev.compare(who, gold, better, worse), ev.compare(who, gold, worse, better)
    assert c['difference'] == close(ev.auc(gold, better) - ev.auc(gold, worse))
    assert [c['low'], c['high'], c['p_bootstrap']] == close(
        [-swapped['high'], -swapped['low'], swapped['p_bootstrap']]
    )


def test_a_comparison_of_equals_of_seeds_and_of_lone_rows(rows, methods):
    who, gold, _ = rows
    better, worse = methods
    same = ev.compare(who, gold, better, 2 * better - 1)
    assert [same['difference'], same['p_bootstrap'], same['p_permutation']] == [0, 1, 1]
    seeds = ev.compare(who, gold, np.stack([better, worse]), worse)
    assert seeds['difference'] == close(ev.compare(who, gold, better, worse)['difference'] / 2)
    alone = ev.compare(np.arange(300), gold, better, worse, n=500)
    assert np.isnan(alone['p_permutation']) and alone['low'] < alone['difference'] < alone['high']


def test_a_comparison_is_the_bootstrap_row_by_row(rows, methods):
    who, gold, _ = rows
    better, worse = methods

    def slow(r):
        return roc_auc_score(gold[r], better[r]) - roc_auc_score(gold[r], worse[r])

    fast = ev.compare(who, gold, better, worse, n=300, seed=5)
    assert [fast['difference'], fast['low'], fast['high']] == close(
        clustered_interval(slow, who, n=300, seed=5)
    )


def test_the_t_test_is_students():
    a, b = [0.66, 0.68, 0.67, 0.65, 0.69], [0.50, 0.52, 0.49, 0.51, 0.50]
    x = (np.mean(a) - np.mean(b)) / np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2 * (2 / 5))
    assert ev.seed_t_test(a, b) == close(2 * stats.t.sf(x, 8)) == close(stats.ttest_ind(a, b).pvalue)
    assert np.isnan(ev.seed_t_test([0.7], [0.5, 0.6])) and np.isnan(ev.seed_t_test([0.7, 0.7], [0.5, 0.5]))
