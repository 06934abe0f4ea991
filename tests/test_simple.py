"The counting recommenders against loops over a small random world."

import numpy as np

from llmrec.data.interactions import from_lists
from llmrec.sequential.simple import item_knn, markov, neighbours, ownership, popularity, transitions


def close(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-5


def test_popularity_is_a_count():
    score = popularity(from_lists([[1, 2], [2, 3, 2]], n_items=4))
    assert score([[1], [2]]).tolist() == [[0, 1, 3, 1, 0]] * 2


def test_item_knn_with_loops():
    rng = np.random.default_rng(0)
    toy = from_lists([rng.integers(1, 9, rng.integers(0, 7)) for _ in range(12)], 8)
    users = [{u for u in range(12) if i in toy[u]} for i in range(9)]

    def cosine(i, j):
        return len(users[i] & users[j]) / max(1, len(users[i]) * len(users[j])) ** 0.5 if i != j else 0.0

    histories = [[1, 2, 2], [], [5]]
    for k in (2, 8):
        best = [sorted(range(9), key=lambda j: (-cosine(i, j), j))[:k] for i in range(9)]
        by_loops = [[sum(cosine(i, j) for i in set(h) if j in best[i]) for j in range(9)] for h in histories]
        assert close(item_knn(toy, k)(histories), by_loops)
        own = ownership([toy[u] for u in range(12)], 8)
        assert close(neighbours(own, k, chunk=3).toarray(), neighbours(own, k).toarray())
    assert (item_knn(toy, window=1)([[1, 2]]) == item_knn(toy)([[2]])).all()


def test_transitions_by_hand():
    follow = transitions(from_lists([[1, 2, 1, 2], [], [3], [2, 2]], 3)).toarray()
    assert follow.tolist() == [[0, 0, 0, 0], [0, 0, 2, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert transitions(from_lists([[1, 2], []], 2)).toarray().tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_the_chain_by_hand():
    score = markov(from_lists([[1, 2, 1, 2], [1, 3]], 4), smoothing=0.5)
    assert close(score([[4, 1]])[0], (np.array([0, 0, 2, 1, 0]) + 0.5 * np.array([0, 3, 2, 1, 0]) / 6) / 3.5)
    assert close(score([[], [3]]), np.tile(np.array([0, 3, 2, 1, 0]) / 6, (2, 1)))
