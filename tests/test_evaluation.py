"Ranks, metrics, intervals: properties that must hold whatever the data."

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import ndcg_score

from llmrec.runs.artefacts import paper_number
from llmrec.evaluation import intervals as iv
from llmrec.evaluation import ranking as rk
from llmrec.paths import LlmrecError


@pytest.fixture
def ranked():
    rng = np.random.default_rng(7)
    scores, truth = rng.normal(size=(120, 25)), rng.integers(0, 25, 120)
    return scores, truth, rk.rank_of_truth(scores, truth)


@pytest.mark.parametrize('k', [1, 5, 10, 20])
def test_ndcg_is_scikit_learns(ranked, k):
    scores, truth, ranks = ranked
    assert rk.ndcg(ranks, k).mean() == pytest.approx(ndcg_score(np.eye(25)[truth], scores, k=k))


def test_without_ties_all_rules_agree(ranked):
    scores, truth, ranks = ranked
    for ties in rk.TIES:
        np.testing.assert_array_equal(rk.rank_of_truth(scores, truth, ties), ranks)


def test_stable_is_the_place_in_a_stable_sort():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 3, (80, 12)).astype(float), rng.integers(0, 12, 80)
    want = [1 + list(np.argsort(-row, kind='stable')).index(t) for row, t in zip(scores, truth)]
    np.testing.assert_array_equal(rk.rank_of_truth(scores, truth), want)


def test_users_carry_their_values_along(ranked):
    scores, truth, ranks = ranked
    order = np.random.default_rng(1).permutation(len(truth))
    moved = rk.per_user(rk.rank_of_truth(scores[order], truth[order]))
    for name, values in rk.per_user(ranks).items():
        np.testing.assert_array_equal(moved[name], values[order])


def test_a_missing_truth_is_a_miss_everywhere():
    assert set(rk.summary(np.zeros(5, int)).values()) == {0.0}


def test_masked_truth_is_not_ranked():
    assert rk.rank_of_truth(np.array([[-np.inf, 1.0]]), np.array([0]))[0] == 0


@pytest.mark.parametrize(
    'scores, truth', [([[np.nan, 1.0]], [1]), ([[0.0, 1.0]], [2]), ([[0.0, 1.0]], [0, 1])]
)
def test_what_cannot_be_ranked_is_refused(scores, truth):
    with pytest.raises(LlmrecError):
        rk.rank_of_truth(np.array(scores), np.array(truth))


def test_subset_and_overall_are_one_metric():
    rng = np.random.default_rng(2)
    retrieved = rng.integers(0, 50, 400)
    inside = (retrieved > 0) & (retrieved <= 20)
    reranked = rng.integers(1, 21, inside.sum())
    overall = rk.summary(rk.spread(reranked, retrieved))
    for name, mean in rk.summary(reranked).items():
        assert overall[name] == pytest.approx(rk.combine(mean, int(inside.sum()), 400))


def test_batch_mean_overweights_the_short_last_batch():
    values = np.zeros(610)
    values[:81] = 1
    values[-1] = 1
    assert values.mean() == 82 / 610
    assert rk.batch_mean(values, 16) == pytest.approx(
        paper_number('llamarec', 'table1', 'ml-100k', 'LRURec', 'Recall@10'), abs=1e-4
    )
    assert rk.batch_mean(values[:608], 16) == pytest.approx(values[:608].mean())


def test_bootstrap_does_not_depend_on_the_chunk(monkeypatch):
    values = np.random.default_rng(3).random(97)
    whole = iv.bootstrap_interval(values, n=300)
    monkeypatch.setattr(iv, 'CHUNK', 150)
    assert iv.bootstrap_interval(values, n=300) == whole
    assert whole[1] < whole[0] < whole[2]


def plain_interval(values, level, n, seed):
    "The percentile bootstrap as it is written down: every resample drawn and averaged."
    values, rng = np.asarray(values, float), np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (n, len(values)))].mean(axis=1)
    return float(values.mean()), *map(float, np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))


def kinds_of_values(n_users, rng):
    "Per-user values as they occur, and some that invite rounding errors."
    ranks = rng.geometric(0.03, (3, n_users)) * (rng.random((3, n_users)) < 0.7)
    hits, gains = rk.recall(ranks, 20), rk.ndcg(ranks, 20)
    return {
        'hits of one seed': hits[0],
        'hits of three seeds': hits.mean(0),
        'gains of three seeds': gains.mean(0),
        'a difference': gains[0] - gains[1],
        'normal': rng.normal(size=n_users),
        'all alike': np.full(n_users, 0.1),
        'nothing': np.zeros(n_users),
        'tiny': 1e-300 * rng.random(n_users),
        'wide': rng.normal(size=n_users) * 10.0 ** rng.integers(-12, 12, n_users),
        'integers': rng.integers(0, 3, n_users),
    }


@pytest.mark.parametrize('n_users', [2, 3, 9, 129, 610, 3001])
def test_the_bounds_are_those_of_the_plain_bootstrap_to_the_last_bit(n_users):
    for kind, values in kinds_of_values(n_users, np.random.default_rng(n_users)).items():
        for level, n, seed in [
            (0.95, 2000, 0),
            (0.9, 400, 3),
            (1.0, 100, 0),
            (0.0, 51, 1),
            (0.5, 1, 2),
            (0.95, 2, 0),
        ]:
            assert iv.bootstrap_interval(values, level, n, seed) == plain_interval(values, level, n, seed), (
                kind,
                level,
                n,
                seed,
            )


def test_the_means_behind_the_bounds_need_the_second_look():
    values = np.random.default_rng(5).random(610)
    counts, _ = iv._drawn(610, 2000, 0)
    close = np.quantile(iv._close_means(values, counts), [0.025, 0.975])
    plain = np.array(plain_interval(values, 0.95, 2000, 0)[1:])
    assert (close != plain).any() and close == pytest.approx(plain, rel=1e-12)


def test_means_that_tie_at_a_bound_are_all_looked_at_again():
    means = np.array([0.0, 1.0, 1.0, 1.0 + 1e-9, 2.0, 3.0, 4.0, 4.0, 5.0])
    assert iv._undecided(means, 0.5, 1e-6).tolist() == [1, 2, 3, 6, 7]
    assert iv._undecided(means, 1.0, 1e-6).tolist() == [0, 1, 2, 3, 8]
    assert len(iv._undecided(np.full(9, np.nan), 0.5, 1e-6)) == 9


def test_a_mean_within_both_errors_of_a_bound_is_looked_at_again():
    means = np.array([-2.1, -1.9, 0.0, 1.9, 2.1])  # the bound at level 0 lies at the middle one, and the next
    assert iv._undecided(means, 0.0, 1.0).tolist() == [1, 2, 3, 4]
    assert iv._undecided(means, 0.0, 0.01).tolist() == [2, 3]


def test_a_table_of_draws_that_would_be_too_large_is_not_made(monkeypatch):
    values = np.random.default_rng(6).random(50)
    whole = iv.bootstrap_interval(values, n=300)
    monkeypatch.setattr(iv, 'TABLE', 50 * 300 - 1)
    monkeypatch.setattr(iv, '_drawn', lambda *_: pytest.fail('a table was made'))
    assert iv.bootstrap_interval(values, n=300) == whole


def test_an_interval_leaves_the_draws_of_the_next_as_they_were():
    counts, _ = iv._drawn(40, 30, 0)
    with pytest.raises(ValueError):
        counts[0, 0] = 1


def test_repeating_rows_of_a_user_does_not_narrow_the_interval():
    values = np.random.default_rng(4).random(30)
    once = iv.clustered_interval(lambda rows: values[rows].mean(), np.arange(30), n=500)
    rows10 = values.repeat(10)
    ten = iv.clustered_interval(lambda rows: rows10[rows].mean(), np.arange(30).repeat(10), n=500)
    assert ten == pytest.approx(once)


def test_users_may_come_in_any_order():
    users = np.array(['b', 'a', 'b', 'c', 'a'])
    seen = []
    iv.clustered_interval(lambda rows: seen.append(np.sort(users[rows])) or 0.0, users, n=50)
    sizes = {'a': 2, 'b': 2, 'c': 1}
    for drawn in seen:
        for user, size in sizes.items():
            assert (drawn == user).sum() % size == 0


def test_seed_interval_is_students():
    means = [0.1, 0.12, 0.11]
    assert iv.seed_interval(means)[1:] == pytest.approx(
        stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    )
    assert np.isnan(iv.seed_interval([0.1])[1:]).all()


def test_permutation_p_is_symmetric_never_zero_and_one_without_differences():
    a, b = np.ones(40), np.zeros(40)
    assert iv.paired_permutation(a, b) == iv.paired_permutation(b, a) == 1 / 10_001
    assert iv.paired_permutation(a, a) == 1
    with pytest.raises(LlmrecError):
        iv.paired_permutation(a, b[1:])


def test_wilson_is_scipys():
    for hits, n in ((0, 9), (5, 9), (9, 9)):
        assert iv.proportion_interval(hits, n)[1:] == pytest.approx(
            tuple(stats.binomtest(hits, n).proportion_ci(method='wilson'))
        )


def test_holm_by_hand():
    assert iv.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert iv.holm([0.5, 0.9]) == pytest.approx([1, 1])
