"Ranks and candidates against sorting by hand, ties included."

import numpy as np
import pytest
import torch

from llmrec.data.interactions import from_lists
from llmrec.paths import LlmrecError
from llmrec.sequential.candidates import chunk_size, hide, rank, ranks, recommend, top


def by_sorting(row):
    return sorted(range(len(row)), key=lambda i: (-float(row[i]), i))


def by_id(histories):
    return torch.arange(6.0).repeat(len(histories), 1)


@pytest.mark.parametrize(
    'mask, hidden', [('whole', [1, 1, 1, 1, 0]), ('window', [1, 0, 1, 1, 0]), ('none', [1, 0, 0, 0, 0])]
)
def test_what_is_hidden(mask, hidden):
    scores = hide(torch.ones(1, 5), [np.array([1, 2, 3])], mask, 2)
    assert scores[0].isinf().tolist() == [bool(h) for h in hidden]


def test_the_best_and_the_ranks_among_ties():
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.integers(0, 4, (50, 30)).astype(np.float32))
    assert top(scores, 7).tolist() == [by_sorting(row)[:7] for row in scores]
    truth = rng.integers(0, 30, 50)
    assert rank(scores, truth).tolist() == [by_sorting(row).index(t) + 1 for row, t in zip(scores, truth)]
    assert rank(torch.tensor([[0.0, -torch.inf, 2.0]]), [1]).tolist() == [0]


def test_the_size_of_a_chunk():
    assert [chunk_size(n) for n in (5, 12_086, 65_535, 65_536, 1_000_000, 10**9)] == [
        256,
        256,
        256,
        255,
        16,
        1,
    ]


def test_a_toy_recommender():
    seqs = from_lists([[5], [1, 2], [3]], 5)
    assert ranks(by_id, seqs, np.array([4, 3, 0])).tolist() == [1, 3, 0]
    found = recommend(by_id, seqs, np.array([0, 1]), k=2)
    assert found.items.tolist() == [[4, 3], [5, 4]]
    assert found.frame().rows()[1] == (0, 3, 3.0, 2)
    with pytest.raises(LlmrecError, match='catalogue has 5'):
        recommend(by_id, seqs, np.array([0]), k=6)
    with pytest.raises(
        LlmrecError, match='User 1 .* of the 5 items that only 3 of them can be recommended, and 5 candidates'
    ):
        recommend(by_id, seqs, np.array([1, 0]), k=5)


def test_the_rank_is_the_place_in_the_list_whatever_the_ties():
    rng = np.random.default_rng(1)
    tied = torch.from_numpy(rng.integers(0, 3, 31).astype(np.float32))
    seqs = from_lists([rng.choice(np.arange(1, 31), 5, replace=False) for _ in range(40)], 30)
    truth = np.array([rng.choice(np.setdiff1d(np.arange(1, 31), seqs[u])) for u in range(40)])

    def score(histories):
        return tied.repeat(len(histories), 1)

    found, places = recommend(score, seqs, np.arange(40), k=25), ranks(score, seqs, truth)
    assert (places <= 25).all()
    assert places.tolist() == [found.items[u].tolist().index(truth[u]) + 1 for u in range(40)]
