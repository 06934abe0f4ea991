"Ranks, metrics, intervals: properties that must hold whatever the data."
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import ndcg_score

from llmrec.artefacts import paper_number
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
    for ties in rk.TIES: np.testing.assert_array_equal(rk.rank_of_truth(scores, truth, ties), ranks)


def test_stable_is_the_place_in_a_stable_sort():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 3, (80, 12)).astype(float), rng.integers(0, 12, 80)
    want = [1 + list(np.argsort(-row, kind='stable')).index(t) for row, t in zip(scores, truth)]
    np.testing.assert_array_equal(rk.rank_of_truth(scores, truth), want)


def test_users_carry_their_values_along(ranked):
    scores, truth, ranks = ranked
    order = np.random.default_rng(1).permutation(len(truth))
    moved = rk.per_user(rk.rank_of_truth(scores[order], truth[order]))
    for name, values in rk.per_user(ranks).items(): np.testing.assert_array_equal(moved[name], values[order])


def test_a_missing_truth_is_a_miss_everywhere():
    assert set(rk.summary(np.zeros(5, int)).values()) == {0.}


def test_masked_truth_is_not_ranked():
    assert rk.rank_of_truth(np.array([[-np.inf, 1.]]), np.array([0]))[0] == 0


@pytest.mark.parametrize('scores, truth', [([[np.nan, 1.]], [1]), ([[0., 1.]], [2]), ([[0., 1.]], [0, 1])])
def test_what_cannot_be_ranked_is_refused(scores, truth):
    with pytest.raises(LlmrecError): rk.rank_of_truth(np.array(scores), np.array(truth))


def test_subset_and_overall_are_one_metric():
    rng = np.random.default_rng(2)
    retrieved = rng.integers(0, 50, 400)
    inside = (retrieved > 0) & (retrieved <= 20)
    reranked = rng.integers(1, 21, inside.sum())
    overall = rk.summary(rk.spread(reranked, retrieved))
    for name, mean in rk.summary(reranked).items():
        assert overall[name] == pytest.approx(rk.combine(mean, int(inside.sum()), 400))


def test_batch_mean_overweights_the_short_last_batch():
    values = np.zeros(610); values[:81] = 1; values[-1] = 1
    assert values.mean() == 82 / 610
    assert rk.batch_mean(values, 16) == pytest.approx(paper_number('llamarec', 'table1', 'ml-100k', 'LRURec', 'Recall@10'), abs=1e-4)
    assert rk.batch_mean(values[:608], 16) == pytest.approx(values[:608].mean())


def test_bootstrap_does_not_depend_on_the_chunk(monkeypatch):
    values = np.random.default_rng(3).random(97)
    whole = iv.bootstrap_interval(values, n=300)
    monkeypatch.setattr(iv, 'CHUNK', 150)
    assert iv.bootstrap_interval(values, n=300) == whole
    assert whole[1] < whole[0] < whole[2]


def test_repeating_rows_of_a_user_does_not_narrow_the_interval():
    values = np.random.default_rng(4).random(30)
    once = iv.clustered_interval(lambda rows: values[rows].mean(), np.arange(30), n=500)
    rows10 = values.repeat(10)
    ten = iv.clustered_interval(lambda rows: rows10[rows].mean(), np.arange(30).repeat(10), n=500)
    assert ten == pytest.approx(once)


def test_users_may_come_in_any_order():
    users = np.array(['b', 'a', 'b', 'c', 'a'])
    seen = []
    iv.clustered_interval(lambda rows: seen.append(np.sort(users[rows])) or 0., users, n=50)
    sizes = {'a': 2, 'b': 2, 'c': 1}
    for drawn in seen:
        for user, size in sizes.items(): assert (drawn == user).sum() % size == 0


def test_seed_interval_is_students():
    means = [.1, .12, .11]
    assert iv.seed_interval(means)[1:] == pytest.approx(stats.t.interval(.95, 2, np.mean(means), stats.sem(means)))
    assert np.isnan(iv.seed_interval([.1])[1:]).all()


def test_permutation_p_is_symmetric_never_zero_and_one_without_differences():
    a, b = np.ones(40), np.zeros(40)
    assert iv.paired_permutation(a, b) == iv.paired_permutation(b, a) == 1 / 10_001
    assert iv.paired_permutation(a, a) == 1
    with pytest.raises(LlmrecError): iv.paired_permutation(a, b[1:])


def test_wilson_is_scipys():
    for hits, n in ((0, 9), (5, 9), (9, 9)):
        assert iv.proportion_interval(hits, n)[1:] == pytest.approx(tuple(stats.binomtest(hits, n).proportion_ci(method='wilson')))


def test_holm_by_hand():
    assert iv.holm([.01, .04, .03]) == pytest.approx([.03, .06, .06])
    assert iv.holm([.5, .9]) == pytest.approx([1, 1])
