"AUC, its interval over users, and the rows without a language model: properties and oracles."

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from llmrec.runs.artefacts import paper_number
from llmrec.data.yesno import load_yesno
from llmrec.data.yesno_form import YesNoArrays, arrays
from llmrec.evaluation import auc as ev
from llmrec.evaluation.intervals import clustered_interval
from llmrec.paths import LlmrecError
from llmrec.sequential import counting


def coarse(seed, n=200, n_users=9):
    "Users of unequal size, labels and scores with many ties."
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return rng.integers(0, n_users, n) ** 2, labels, (rng.integers(0, 5, n) + labels).astype(float)


def by_pairs(labels, scores):
    won = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    return np.mean(won) if won else np.nan


@pytest.mark.parametrize('seed', range(5))
def test_auc_is_a_share_of_pairs(seed):
    _, labels, scores = coarse(seed)
    assert ev.auc(labels, scores) == pytest.approx(by_pairs(labels, scores), abs=1e-12)
    assert ev.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auc_depends_on_the_order_alone():
    _, labels, scores = coarse(0)
    assert ev.auc(labels, np.exp(3 * scores)) == ev.auc(labels, scores)
    assert ev.auc(labels, -scores) == pytest.approx(1 - ev.auc(labels, scores))
    assert ev.auc(1 - labels, scores) == pytest.approx(1 - ev.auc(labels, scores))
    assert ev.auc(labels, np.zeros(len(labels))) == 0.5


@pytest.mark.parametrize(
    'labels, scores, says',
    [
        ([1, 1, 1], [1.0, 2, 3], 'same label'),
        ([0, 0], [1.0, 2], 'same label'),
        ([1, 0, 1], [1.0, np.inf, 2], 'Row 1'),
        ([1, 0], [[1.0, 2], [3, np.nan]], 'Row 1'),
        ([1, 0, 0.5], [1.0, 2, 3], 'Row 2'),
        ([1, 0], [1.0, 2, 3], 'one label per row'),
        ([], [], 'same label'),
    ],
)
def test_what_has_no_auc_is_refused(labels, scores, says):
    with pytest.raises(LlmrecError, match=says):
        ev.auc(np.array(labels), np.array(scores))


@pytest.mark.parametrize('seed', range(3))
def test_auc_of_each_user(seed):
    users, labels, scores = coarse(seed, n=40, n_users=12)
    frame = ev.user_auc(users, labels, scores)
    for user, n, positives, value in frame.iter_rows():
        own = users == user
        assert (n, positives) == (own.sum(), labels[own].sum())
        if 0 < positives < n:
            assert value == pytest.approx(by_pairs(labels[own], scores[own]), abs=1e-12)
        else:
            assert value is None
    s = ev.auc_summary(users, labels, scores, n=10)
    assert s['users_skipped'] == frame['auc'].null_count()
    assert s['UAUC'] == pytest.approx(frame['auc'].mean())
    kept = frame.drop_nulls()
    assert s['UAUC_weighted'] == pytest.approx(np.average(kept['auc'], weights=kept['rows']))


@pytest.mark.parametrize('n_users', [2, 9, 200])
def test_the_quadratic_form_is_the_bootstrap_over_users(n_users):
    users, labels, scores = coarse(1, n_users=n_users)
    statistic = lambda rows: (
        roc_auc_score(labels[rows], scores[rows]) if 0 < labels[rows].sum() < len(rows) else np.nan
    )
    s = ev.auc_summary(users, labels, scores, n=100, seed=3)
    assert (s['AUC'], s['AUC_low'], s['AUC_high']) == pytest.approx(
        clustered_interval(statistic, users, n=100, seed=3), abs=1e-12
    )


def test_the_mean_over_users_is_drawn_with_its_users():
    users, labels, scores = coarse(2, n=60, n_users=15)
    own = {u: by_pairs(labels[users == u], scores[users == u]) for u in np.unique(users)}
    rng, draws = np.random.default_rng(4), []
    for _ in range(100):
        draws.append(np.nanmean([own[u] for u in np.unique(users)[rng.integers(0, len(own), len(own))]]))
    s = ev.auc_summary(users, labels, scores, n=100, seed=4)
    assert (s['UAUC_low'], s['UAUC_high']) == pytest.approx(np.nanquantile(draws, [0.025, 0.975]), abs=1e-12)


def test_neither_rows_nor_blocks_matter(monkeypatch):
    users, labels, scores = coarse(3)
    runs = np.stack([scores, np.random.default_rng(0).normal(size=len(scores))])
    s = ev.auc_summary(users, labels, runs, n=200)
    order = np.random.default_rng(1).permutation(len(users))
    assert ev.auc_summary(users[order], labels[order], runs[:, order], n=200) == s
    monkeypatch.setattr(ev, 'CHUNK', 50)
    assert ev.auc_summary(users, labels, runs, n=200) == pytest.approx(s, abs=1e-12)
    assert ev.auc_summary([f'user {u:03d}' for u in users], labels, runs, n=200) == pytest.approx(
        s, abs=1e-12
    )


def test_seeds_are_averaged_not_pooled():
    users, labels, scores = coarse(4)
    other = np.random.default_rng(0).normal(size=len(scores))
    s, each = (
        ev.auc_summary(users, labels, np.stack([scores, other]), n=10),
        [ev.auc_summary(users, labels, x, n=10) for x in (scores, other)],
    )
    for key in ('AUC', 'UAUC', 'UAUC_weighted'):
        assert s[key] == pytest.approx(np.mean([e[key] for e in each]))


def test_one_row_a_user():
    rng = np.random.default_rng(0)
    labels = (rng.random(500) < 0.4).astype(int)
    a, b = labels + rng.normal(size=(2, 500))
    s, c = ev.auc_summary(np.arange(500), labels, a, n=200), ev.compare(np.arange(500), labels, a, b, n=200)
    assert s['users'] == s['users_skipped'] == 500
    assert all(np.isnan(s[key]) for key in ('UAUC', 'UAUC_low', 'UAUC_high', 'UAUC_weighted')) and np.isnan(
        c['p_permutation']
    )
    assert s['AUC_low'] < s['AUC'] < s['AUC_high'] and 0 < c['p_bootstrap'] <= 1


def test_comparison_on_the_same_draws():
    users, labels, a = coarse(5)
    b = np.random.default_rng(1).normal(size=len(a))
    difference = lambda rows: roc_auc_score(labels[rows], a[rows]) - roc_auc_score(labels[rows], b[rows])
    c, back = ev.compare(users, labels, a, b, n=100, seed=3), ev.compare(users, labels, b, a, n=100, seed=3)
    assert (c['difference'], c['low'], c['high']) == pytest.approx(
        clustered_interval(difference, users, n=100, seed=3), abs=1e-12
    )
    assert c['p_bootstrap'] == back['p_bootstrap'] and c['p_permutation'] == back['p_permutation']
    level = ev.compare(users, labels, a, a)
    assert (level['difference'], level['p_bootstrap'], level['p_permutation']) == (0, 1, 1)


def test_seed_t_test_needs_something_to_vary():
    assert ev.seed_t_test([0.7, 0.71, 0.69], [0.5, 0.5, 0.5]) < 0.01
    assert np.isnan(ev.seed_t_test([0.7], [0.5])) and np.isnan(ev.seed_t_test([0.7, 0.7], [0.5, 0.5]))
    assert ev.seed_t_test([0.5, 0.6], [0.6, 0.5]) == pytest.approx(1)


def yesno_rows(seed, n, n_items=30, n_users=10, width=10):
    "Random rows with histories of 1 to 10 items, padded with zeros."
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, width + 1, n)
    picked = np.stack([1 + rng.choice(n_items, width + 1, replace=False) for _ in range(n)])
    real = np.arange(width) < lengths[:, None]
    return YesNoArrays(
        users=rng.integers(0, n_users, n),
        history=picked[:, :width] * real,
        history_labels=(rng.random((n, width)) * real > 0.5).astype(np.float32),
        lengths=lengths,
        items=picked[:, width],
        labels=rng.integers(0, 2, n),
    )


def with_labels(rows, labels):
    fields = {
        name: getattr(rows, name) for name in ('users', 'history', 'history_labels', 'lengths', 'items')
    }
    return YesNoArrays(labels=labels, **fields)


@pytest.mark.parametrize('method', counting.SIMPLE)
@pytest.mark.parametrize('k', [1, 2, 5, 40])
@pytest.mark.parametrize('one_label', [False, True])
def test_every_simple_row_answers_at_every_k(method, k, one_label):
    train, target = yesno_rows(0, 40).take(np.arange(k)), yesno_rows(1, 25)
    if one_label:
        train = with_labels(train, np.ones(k, int))
    texts = np.random.default_rng(2).normal(size=(31, 6)).astype(np.float32)
    scores = counting.simple_scores(method, train, target, 30, texts)
    assert scores.shape == (25,) and np.isfinite(scores).all()
    np.testing.assert_array_equal(scores, counting.simple_scores(method, train, target, 30, texts))


@pytest.mark.parametrize('method', counting.SIMPLE)
def test_no_row_is_scored_with_its_own_answer(method):
    train, target = yesno_rows(0, 40), yesno_rows(1, 25)
    texts = np.random.default_rng(2).normal(size=(31, 6)).astype(np.float32)
    other = with_labels(target, 1 - target.labels)
    np.testing.assert_array_equal(
        *(counting.simple_scores(method, train, t, 30, texts) for t in (target, other))
    )


def test_features_of_training_rows_leave_their_answers_out():
    train = yesno_rows(0, 40, n_users=40)
    for i in (0, 7, 23):
        labels = train.labels.copy()
        labels[i] = 1 - labels[i]
        before, after = (counting.item_counts(t, t, 30) for t in (train, with_labels(train, labels)))
        assert before[0][i] == after[0][i] and before[1][i] == after[1][i]


def test_counts_against_loops():
    train, target = yesno_rows(3, 30), yesno_rows(4, 20)
    told = {}
    for r in range(30):
        told.setdefault((train.users[r], train.items[r]), train.labels[r])
    for r in range(30):
        for i, y in zip(train.history[r][: train.lengths[r]], train.history_labels[r]):
            told.setdefault((train.users[r], i), y)
    for r, (likes, count) in enumerate(zip(*counting.item_counts(train, target, 30))):
        mine = [y for (u, i), y in told.items() if i == target.items[r] and u != target.users[r]]
        assert (likes, count) == (sum(mine), len(mine))
    m = (sum(told.values()) + 1) / (len(told) + 2)
    for r, value in enumerate(counting.user_mean(train, target)):
        mine = {i: y for i, y in zip(target.history[r][: target.lengths[r]], target.history_labels[r])}
        for (u, i), y in told.items():
            if u == target.users[r]:
                mine.setdefault(i, y)
        mine.pop(target.items[r], None)
        assert value == pytest.approx((sum(mine.values()) + 2 * m) / (len(mine) + 2))


def test_both_paddings_count_the_same():
    samples = pl.DataFrame(
        dict(
            user=[1, 2],
            history=[[3, 1, 2], [5]],
            history_labels=[[1, 0, 0], [1]],
            item=[4, 2],
            label=[1, 0],
            timestamp=[1, 2],
        )
    )
    rates = [counting.history_like_rate(arrays(samples, pad=pad)) for pad in ('zero', 'last')]
    np.testing.assert_allclose(rates[0], [1 / 3, 1])
    np.testing.assert_array_equal(*rates)


@pytest.mark.parametrize(
    'dataset, split, plain, smoothed',
    [
        ('movie', 'test', 0.726, 0.726),
        ('movie', 'valid', 0.689, 0.689),
        ('book', 'test', 0.696, 0.699),
        ('book', 'valid', 0.687, 0.691),
    ],
)
@pytest.mark.real_data('tallrec-movie', 'tallrec-book', 'ml-100k-classic', 'bookcrossing')
def test_the_like_rate_on_the_released_files(dataset, split, plain, smoothed):
    rows = arrays(load_yesno(dataset).splits[split], pad='zero')
    assert round(ev.auc(rows.labels, counting.history_like_rate(rows)), 3) == plain
    assert round(ev.auc(rows.labels, counting.history_like_rate(rows, weight=2)), 3) == smoothed


@pytest.mark.real_data('tallrec-movie', 'ml-100k-classic')
def test_the_counters_interval_on_the_movie_test_rows():
    rows = arrays(load_yesno('movie').splits['test'], pad='zero')
    s = ev.auc_summary(rows.users, rows.labels, counting.history_like_rate(rows), n=10_000)
    assert (s['users'], s['users_skipped'], s['rows']) == (16, 0, 1000)
    assert (s['AUC_low'], s['AUC_high']) == pytest.approx((0.647, 0.796), abs=0.01)
    assert (s['UAUC'], s['UAUC_weighted']) == pytest.approx((0.541, 0.601), abs=5e-4)
    assert paper_number('tallrec', 'table3', 'movie', 'TALLRec', 'AUCx100', 'K=256') / 100 < s['AUC']
