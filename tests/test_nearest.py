"The best of a large catalogue, against all scores sorted."

import numpy as np
import pytest
import torch

from llmrec.data.interactions import from_lists
from llmrec.paths import LlmrecError
from llmrec.sequential import bert4rec, lrurec, narm, nearest, sasrec
from llmrec.sequential.candidates import recommend
from llmrec.sequential.nearest import Factors, factors, recommend_blocks


def users_of(n_items, n=30, longest=40, seed=0):
    rng = np.random.default_rng(seed)
    return from_lists([rng.integers(1, n_items + 1, rng.integers(1, longest)) for _ in range(n)], n_items)


def sorted_scores(f, past, k, part=slice(None)):
    "Every pair scored in the plain order, history hidden, sorted by score and then by item."
    rows = torch.arange(len(f.items))
    out = []
    for i, history in enumerate(past):
        scores = nearest.plain_scores(f, torch.full_like(rows, i), rows).numpy().copy()
        scores[np.append(history[part], 0)] = -np.inf
        out.append(np.lexsort((np.arange(len(scores)), -scores))[:k])
    return np.array(out)


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('n_items', [70, 8191, 8192, 20_000])
@pytest.mark.parametrize('k', [1, 20])
def test_lists_are_those_of_all_scores_sorted(n_items, bias, k):
    g = torch.Generator().manual_seed(n_items)
    histories = users_of(n_items)
    items = torch.randn(n_items + 1, 16, generator=g)
    f = Factors(
        torch.randn(30, 16, generator=g), items, torch.randn(n_items + 1, generator=g) if bias else None
    )
    found = recommend_blocks(lambda past: f, histories, np.arange(30), k)
    assert np.array_equal(found.items, sorted_scores(f, [histories[u] for u in range(30)], k))
    rows = torch.arange(30).repeat_interleave(k)
    assert np.array_equal(
        found.scores.ravel(),
        nearest.plain_scores(f, rows, torch.from_numpy(found.items.ravel().astype(np.int64))).numpy(),
    )


@pytest.mark.parametrize('mask', ['whole', 'window', 'none'])
def test_ties_everywhere_and_every_mask(mask):
    "Whole numbers, so that every sum is exact and most scores are equal: the same as the plain way, tie for tie."
    n, g = 20_000, torch.Generator().manual_seed(1)
    items = torch.randint(-1, 2, (n + 1, 4), generator=g).float()
    states = torch.randint(-1, 2, (30, 4), generator=g).float()
    histories = users_of(n)
    plain = recommend(lambda past: states @ items.T, histories, np.arange(30), 50, mask, 5)
    fast = recommend_blocks(lambda past: Factors(states, items, None), histories, np.arange(30), 50, mask, 5)
    assert np.array_equal(plain.items, fast.items) and np.array_equal(plain.scores, fast.scores)


def test_equal_items_in_different_blocks_come_by_id():
    n = 20_000
    items, states = torch.randn(n + 1, 64), torch.randn(3, 64)
    twins = torch.tensor([5, 8191, 8192, 16_384, n])
    items[twins] = 10 * states[0]
    found = recommend_blocks(
        lambda past: Factors(states, items, None), from_lists([[1], [2], [3]], n), np.arange(3), 5
    )
    assert found.items[0].tolist() == twins.tolist()


def test_the_margin_covers_every_order_of_summing():
    "Fast and plain float32 scores lie within delta of the exact ones, and the margin is four of them."
    g = torch.Generator().manual_seed(0)
    f = Factors(
        torch.randn(20, 64, generator=g) * 10,
        torch.randn(5000, 64, generator=g),
        torch.randn(5000, generator=g),
    )
    exact = f.states.double() @ f.items.double().T + f.bias.double()
    rows, ids = torch.meshgrid(torch.arange(20), torch.arange(5000), indexing='ij')
    plain = nearest.plain_scores(f, rows.flatten(), ids.flatten()).view(20, -1)
    fast = torch.addmm(f.bias, f.states, f.items.T)
    off = torch.maximum((plain - exact).abs().amax(1), (fast - exact).abs().amax(1))
    assert (off <= nearest.margin(f) / 4).all() and (off > 0).all()


@pytest.mark.parametrize(
    'module, cfg',
    [
        (sasrec, sasrec.SASRecConfig(hidden=8)),
        (lrurec, lrurec.LRURecConfig(hidden=8)),
        (narm, narm.NARMConfig(embedding=8, hidden=8)),
        (bert4rec, bert4rec.BERT4RecConfig(hidden=8)),
    ],
    ids=['SASRec', 'LRURec', 'NARM', 'BERT4Rec'],
)
def test_the_two_sides_make_the_scores_of_each_model(module, cfg):
    torch.manual_seed(0)
    histories = users_of(400)
    model = module.build(400, cfg)
    past = [histories[u] for u in range(30)] + [np.zeros(0, np.int64)]
    f, scores = factors(model, past), module.score(model, past)
    mine = f.states @ f.items.T + (0 if f.bias is None else f.bias)
    assert torch.allclose(mine[:, 1:], scores[:, 1:], atol=1e-6)


def test_few_items_left_and_too_many_asked_for():
    n, items = 30, torch.randn(31, 4)
    full = from_lists([list(range(1, 29)), [1]], n)
    f = Factors(torch.randn(2, 4), items, None)
    with pytest.raises(LlmrecError, match='User 0 .* only 2 of them can be recommended'):
        recommend_blocks(lambda past: f, full, np.arange(2), 5)
    with pytest.raises(LlmrecError, match='31 candidates were asked for'):
        recommend_blocks(lambda past: f, full, np.arange(2), 31)


@pytest.mark.parametrize('bias', [False, True])
def test_an_index_that_searches_every_list_is_exact(bias):
    pytest.importorskip('faiss')
    n, g = 3000, torch.Generator().manual_seed(0)
    f = Factors(
        torch.randn(30, 8, generator=g),
        torch.randn(n + 1, 8, generator=g),
        torch.randn(n + 1, generator=g) if bias else None,
    )
    histories = users_of(n)
    index, exact = nearest.build_index(f, 20), recommend_blocks(lambda past: f, histories, np.arange(30))
    shares = [
        nearest.found_share(
            nearest.recommend_index(index, lambda past: f, histories, np.arange(30), probes=p), exact
        )
        for p in (1, 5, 20)
    ]
    assert shares[0] < shares[1] < shares[2] == 1.0
    found = nearest.recommend_index(index, lambda past: f, histories, np.arange(30), probes=1)
    assert not any(np.isin(histories[u], found.items[u]).any() for u in range(30))
