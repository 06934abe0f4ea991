"NARM: every prefix in one pass gives what each prefix gives alone, and the rectangles give what padding gives."

from dataclasses import replace

import numpy as np
import pytest
import torch
from fastcore.test import test_close as close
from fastcore.test import test_eq as eq

from llmrec.data.interactions import from_lists
from llmrec.sequential import narm
from llmrec.sequential.narm import NARMConfig

FLAT = np.array([1, 2, 3, 4, 5, 6, 7, 8])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return narm.build(9, NARMConfig(embedding=6, hidden=8)).eval()


def gradients(value, model):
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_the_published_dropout():
    eq(NARMConfig.as_published(hidden=20).context_dropout, 0.5)


def test_sequences_are_laid_out_longest_first():
    order, shapes = narm.by_length(np.array([1, 3, 1, 2]))
    eq((order.tolist(), shapes), ([1, 3, 0, 2], [(1, 3), (1, 2), (2, 1)]))
    eq(narm.unroll(np.array([10, 5]), np.array([3, 2])), [10, 11, 12, 5, 6])


def test_inputs_and_the_items_that_follow():
    b = narm.next_items(FLAT, np.array([[5, 7], [0, 5], [7, 8]]), max_length=3)
    eq((b.items.tolist(), b.targets.tolist(), b.shapes), ([2, 3, 4, 6], [3, 4, 5, 7], [(1, 3), (1, 1)]))


def test_the_latest_items_and_where_they_end():
    items, shapes, last = narm.latest([[7], [], [1, 2, 3]], 2)
    eq((items.tolist(), shapes, last.tolist()), ([2, 3, 7, 0], [(1, 2), (2, 1)], [2, 3, 1]))


@pytest.mark.parametrize('normalised', [True, False])
def test_attention_is_the_formula_for_every_prefix_and_every_strip(normalised):
    torch.manual_seed(0)
    h, q, k, v = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.randn(3)
    whole = narm.prefix_attention(q, k, h, v, 'sigmoid', normalised)
    for row in range(2):
        for t in range(5):
            raw = torch.stack([v @ torch.sigmoid(q[row, t] + k[row, j]) for j in range(t + 1)])
            weights = raw.exp() / raw.exp().sum() if normalised else raw
            close(whole[row, t], sum(w * h[row, j] for j, w in enumerate(weights)), eps=1e-5)
    close(narm.last_attention(q, k, h, v, 'sigmoid', normalised), whole[:, -1:], eps=1e-6)
    for strip in (1, 10, 15):
        close(narm.prefix_attention(q, k, h, v, 'sigmoid', normalised, strip=strip), whole, eps=1e-6)


def test_padded_batches_on_either_side():
    spans = np.array([[0, 5], [5, 7]])
    left, right = (narm.padded_batch(FLAT, spans, 3, left=side) for side in (True, False))
    eq([x.tolist() for x in left], [[[2, 3, 4], [0, 0, 6]], [[3, 4, 5], [0, 0, 7]]])
    eq([x.tolist() for x in right], [[[2, 3, 4], [6, 0, 0]], [[3, 4, 5], [7, 0, 0]]])


def test_rectangles_and_padding_agree_in_value_and_gradient(model):
    train, spans = from_lists([FLAT], 9), np.array([[0, 5], [5, 7], [2, 5], [7, 8]])
    cfg = NARMConfig(embedding=6, hidden=8, max_length=3)
    ours, plain = narm.make_loss(train, cfg)(model, spans), narm.padded_loss(train, cfg)(model, spans)
    close(ours.item(), plain.item(), eps=1e-6)
    close(gradients(ours, model), gradients(plain, model), eps=1e-6)
    eq(narm.make_loss(train, cfg)(model, spans[3:]).item(), 0)


def test_prefixes_cut_apart_agree_in_value_and_gradient(model):
    pair = from_lists([FLAT[:5], [], FLAT[5:6], FLAT[6:]], 9)
    eq(narm.prefixes(pair, 3), [[0, 2], [0, 3], [0, 4], [1, 5], [6, 8]])
    cfg = NARMConfig(embedding=6, hidden=8)
    whole = narm.make_loss(pair, cfg)(model, np.array([[0, 5], [6, 8]]))
    cut = narm.make_loss(pair, replace(cfg, apart=True))(model, narm.prefixes(pair, 50))
    close(whole.item(), cut.item(), eps=1e-6)
    close(gradients(whole, model), gradients(cut, model), eps=1e-6)


def test_scores_are_those_of_the_last_prefix(model):
    a, b = torch.tensor([3, 1, 4, 1]), torch.tensor([5, 9])
    together = model(torch.cat([a, b]), [(1, 4), (1, 2)]).detach()
    s = narm.score(model, [[5, 9], [], [3, 1, 4, 1]])
    eq(s.shape, (3, 10))
    close(s[[2, 0]], together[[3, 5]] @ model.embedding.weight.detach().T, eps=1e-6)
