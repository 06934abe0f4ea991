"Ranks under every rule for ties, metrics against oracles, and how LlamaRec's printed means were taken."

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from llmrec.evaluation import ranking as rk
from llmrec.paths import LlmrecError
from llmrec.runs.artefacts import paper_number

SCORES = np.array([[0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2], [0.1, -np.inf, 3, 2]])
TRUTH = np.array([2, 2, 1])
RANKS = np.array([1, 2, 3, 10, 11, 0])


@pytest.fixture
def dense():
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 30)), rng.integers(0, 30, 200)


@pytest.mark.parametrize(
    'ties, want',
    [
        ('stable', [3, 3, 0]),
        ('optimistic', [2, 1, 0]),
        ('pessimistic', [3, 4, 0]),
        ('average', [2.5, 2.5, 0]),
    ],
)
def test_ranks_by_hand(ties, want):
    assert rk.rank_of_truth(SCORES, TRUTH, ties).tolist() == want


def test_a_truth_outside_the_items_has_rank_0():
    assert rk.rank_of_truth(SCORES, [-1, 0, 2]).tolist() == [0, 1, 1]


def test_what_cannot_be_ranked_says_why():
    with pytest.raises(LlmrecError, match="Did you mean 'optimistic'"):
        rk.rank_of_truth(SCORES, TRUTH, 'optimist')
    with pytest.raises(LlmrecError, match='User 0'):
        rk.rank_of_truth([[0.0, np.nan]], [0])
    with pytest.raises(LlmrecError, match='k = 0'):
        rk.recall(RANKS, 0)


def test_metrics_by_hand():
    assert rk.recall(RANKS, 10).tolist() == [1, 1, 1, 1, 0, 0]
    assert rk.ndcg(RANKS, 10) == pytest.approx([1, 1 / np.log2(3), 0.5, 1 / np.log2(11), 0, 0])
    assert rk.mrr(RANKS, 10) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 10, 0, 0])


@pytest.mark.parametrize('k', [1, 5, 10])
def test_metrics_against_scikit_learn_and_loops(dense, k):
    scores, target = dense
    r = rk.rank_of_truth(scores, target)
    tops = [list(np.argsort(-row)[:k]) for row in scores]
    assert rk.ndcg(r, k).mean() == pytest.approx(ndcg_score(np.eye(30)[target], scores, k=k))
    assert rk.recall(r, k) == pytest.approx([float(t in top) for t, top in zip(target, tops)])
    assert rk.mrr(r, k) == pytest.approx(
        [1 / (1 + top.index(t)) if t in top else 0.0 for t, top in zip(target, tops)]
    )


def test_the_order_of_the_metrics_is_that_of_table_1():
    want = ['MRR@5', 'NDCG@5', 'Recall@5', 'MRR@10', 'NDCG@10', 'Recall@10']
    assert list(rk.per_user(RANKS, ks=(5, 10))) == want


def test_values_follow_their_users(dense):
    scores, target = dense
    order = np.random.default_rng(1).permutation(200)
    again = rk.per_user(rk.rank_of_truth(scores[order], target[order]))
    for name, values in rk.per_user(rk.rank_of_truth(scores, target)).items():
        assert (again[name] == values[order]).all()


def test_both_roads_to_the_mean_over_all_users_meet():
    rng = np.random.default_rng(2)
    retrieved = rng.integers(1, 60, 300)
    reranked = rng.integers(1, 21, (retrieved <= 20).sum())
    spread = rk.spread(reranked, retrieved)
    assert (rk.within_retrieved(spread, retrieved) == reranked).all()
    everyone = rk.summary(spread)
    for name, mean in rk.summary(reranked).items():
        rest = rk.per_user(retrieved)[name][retrieved > 20].mean()
        assert rest == 0
        assert everyone[name] == pytest.approx(rk.combine(mean, len(reranked), len(retrieved), rest))
    with pytest.raises(LlmrecError, match='got ranks for'):
        rk.spread(reranked[1:], retrieved)


def test_batch_means_by_hand():
    assert rk.batch_mean(np.array([1.0, 0, 0, 0]), 2) == 0.25
    assert rk.batch_mean(np.array([0.0, 0, 0, 0, 1]), 2) == 1 / 3


def reads(value, printed):
    return printed - 1e-9 <= value < printed + 1e-4 - 1e-9


@pytest.mark.parametrize('method', ['NARM', 'BERT4Rec', 'SASRec'])
@pytest.mark.parametrize('metric', ['Recall@5', 'Recall@10'])
def test_a_printed_baseline_is_a_batch_mean_and_no_exact_one(method, metric):
    printed = paper_number('llamarec', 'table1', 'ml-100k', method, metric)
    assert not any(reads(hits / 610, printed) for hits in range(610))
    found = []
    for n in range(124):
        for m in range(min(n, 2) + 1):  # of the two users of the last batch
            values = np.r_[np.ones(n - m), np.zeros(608 - n + m), np.ones(m), np.zeros(2 - m)]
            if reads(rk.batch_mean(values, 16), printed):
                found.append((n, m))
    assert sorted(m for _, m in found) == [0, 1, 2]


def test_the_exact_mean_behind_lrurecs_recall_at_10():
    assert f'{82 / 610:.4f}' == '0.1344'
