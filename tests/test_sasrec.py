"SASRec: rectangles, the padded form and the formulas agree in value and gradient; the losses are what they say."

import numpy as np
import pytest
import torch
from fastcore.test import test_close as close
from fastcore.test import test_eq as eq
from torch.nn import functional as F

from llmrec.data.interactions import from_lists
from llmrec.paths import LlmrecError
from llmrec.sequential import sasrec
from llmrec.sequential.narm import cross_entropy, padded_batch, padded_cross_entropy, score
from llmrec.sequential.sampled_losses import (
    bce,
    calibration,
    chosen_scores,
    draw_negatives,
    gbce,
    pointwise,
    sampled_cross_entropy,
)
from llmrec.sequential.sasrec import SPARE, SASRecConfig

FLAT, SPANS = np.array([3, 1, 4, 1, 5, 9, 2, 6]), np.array([[0, 6], [5, 8], [5, 7], [7, 8]])
TRAIN = from_lists([FLAT], 9)


def test_the_published_settings():
    eq(SASRecConfig.as_published(hidden=50), SASRecConfig(hidden=50, heads=1, loss='bce', prior=False))


# --- attention


def test_what_is_visible():
    row = torch.tensor([[False, True, True]])
    eq(sasrec.visible(row, True)[0, 0].int().tolist(), [[1, 0, 0], [0, 1, 0], [0, 1, 1]])
    eq(sasrec.visible(row, False)[0, 0].int().tolist(), [[1, 1, 1], [0, 1, 1], [0, 1, 1]])


def test_rectangles_are_joined_while_that_is_cheap():
    eq(sasrec.groups([(1, 40), (1, 30), (9, 8), (20, 6)], spare=800), [[(1, 40), (1, 30)], [(9, 8), (20, 6)]])
    eq(sasrec.groups([(2, 4), (1, 3)], spare=0), [[(2, 4)], [(1, 3)]])
    eq(sasrec.occupied([(1, 3), (2, 1)]).int().tolist(), [[1, 1, 1], [1, 0, 0], [1, 0, 0]])
    shapes, masks, place = sasrec.rectangles(((1, 3), (2, 1), (9, 1)), spare=16)
    eq(shapes, [(3, 3), (9, 1)])
    eq(masks[1], None)
    eq(masks[0][:, 0, 0].int().tolist(), [[1, 1, 1], [1, 0, 0], [1, 0, 0]])
    eq(place.tolist(), [0, 1, 2, 3, 6, *range(9, 18)])


def test_what_was_first_asked_for_in_inference_does_for_training():
    with torch.inference_mode():
        place = sasrec.rectangles(((1, 7), (2, 3)))[2]
    assert not place.is_inference()


def by_hand(q, k, v, heads, causal):
    "Attention of one sequence (length, hidden), one head and one position at a time."
    out = torch.empty_like(q)
    for s in torch.arange(q.shape[1]).chunk(heads):
        for t in range(len(q)):
            seen = slice(0, t + 1) if causal else slice(None)
            w = torch.stack([q[t, s] @ key for key in k[seen][:, s]]).div(len(s) ** 0.5).exp()
            out[t, s] = (w / w.sum()) @ v[seen][:, s]
    return out


@pytest.mark.parametrize('spare', [0, SPARE])
@pytest.mark.parametrize('causal', [True, False])
def test_attention_is_the_formula_however_rectangles_are_joined(causal, spare):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 8, 4)
    alone = torch.cat([by_hand(*x, 2, causal) for x in zip(*(y.split([4, 2, 2]) for y in (q, k, v)))])
    close(
        sasrec.attention((q, k, v), [(1, 4), (2, 2)], sasrec.Heads(2, causal), spare=spare), alone, eps=1e-6
    )


def test_positions_from_either_side():
    eq(sasrec.positions([(1, 3), (2, 2)]).tolist(), [2, 1, 0, 1, 0, 1, 0])
    eq(sasrec.positions([(1, 3), (2, 2)], from_end=False).tolist(), [0, 1, 2, 0, 1, 0, 1])


# --- losses


@pytest.fixture
def drawn():
    "States, item embeddings, targets and two negatives each, among five items."
    torch.manual_seed(0)
    states, weight, targets = torch.randn(4, 3), torch.randn(6, 3), torch.tensor([3, 1, 5, 5])
    return states, weight, targets, draw_negatives(targets, 5, 2)


def test_negatives_are_uniform_over_all_but_the_target():
    torch.manual_seed(0)
    n = draw_negatives(torch.full((20_000,), 3), 5, 2)
    close(
        torch.bincount(n.flatten(), minlength=6) / n.numel(),
        torch.tensor([0, 0.25, 0.25, 0, 0.25, 0.25]),
        eps=0.01,
    )


@pytest.mark.parametrize('k', [1, 7])
def test_scores_looked_up_and_found_among_all(k):
    torch.manual_seed(0)
    z, e, i = torch.randn(5, 4), torch.randn(20, 4), torch.randint(20, (5, k))
    close(chosen_scores(z, e, i), (e[i] * z[:, None]).sum(-1), eps=1e-5)


def test_binary_cross_entropy_is_the_formula(drawn):
    states, weight, targets, negatives = drawn
    loops = 0.0
    for z, y, others in zip(states, targets, negatives):
        loops -= torch.sigmoid(z @ weight[y]).log() + sum(
            (1 - torch.sigmoid(z @ weight[j])).log() for j in others
        )
    close(bce(states, weight, targets, negatives), loops / 4, eps=1e-6)
    one = negatives[:, :1]
    close(bce(states, weight, targets, one, prior=True), bce(states, weight, targets, one), eps=1e-6)
    start = bce(0 * states, weight, targets, negatives, prior=True)
    close(start, np.log(3) + 2 * np.log(3 / 2), eps=1e-6)  # one in three, before anything is known


@pytest.mark.parametrize('k, n, t', [(1, 100, 0.75), (256, 12_000, 1.0), (5, 6, 0.3)])
def test_calibration_is_the_formula(k, n, t):
    alpha = k / (n - 1)
    close(calibration(k, n, t), alpha * (t * (1 - 1 / alpha) + 1 / alpha), eps=1e-9)


def test_generalised_binary_cross_entropy(drawn):
    close(3 * gbce(*drawn, calibration(2, 5, 0)), bce(*drawn), eps=1e-6)
    plain, positive = (pointwise(*drawn, beta).mean() for beta in (0.0, 1.0))
    close(3 * gbce(*drawn, calibration(2, 5, 1)), plain + 2 / 4 * (positive - plain), eps=1e-6)


def test_sampled_cross_entropy(drawn):
    states, weight, targets, _ = drawn
    full = F.cross_entropy((states @ weight.T)[:, 1:], targets - 1)
    close(cross_entropy(states, weight, targets), full, eps=1e-6)
    close(sampled_cross_entropy(states, weight, targets, torch.arange(1, 6)), full, eps=1e-6)
    two, loops = torch.tensor([3, 4]), 0.0
    for z, y in zip(states, targets.tolist()):
        among = [y, *(j for j in two.tolist() if j != y)]
        loops -= (z @ weight[among].T).softmax(0)[0].log() / 4
    close(sampled_cross_entropy(states, weight, targets, two), loops, eps=1e-6)


# --- the model


def oracle(model, row):
    "States (length, hidden) of one row, 0 = padding on the left; rows of padding are not meaningful."
    real, d = row > 0, model.cfg.hidden
    x = model.embedding.weight[row] * d**0.5 + model.positions.weight[torch.arange(len(row) - 1, -1, -1)]
    for b in model.blocks:
        q = b.layer_norm_1(x)
        source = x if model.cfg.block == 'code' else q
        a = torch.zeros_like(x)
        a[real] = by_hand(b.q(q)[real], b.k(source)[real], b.v(source)[real], model.cfg.heads, True)
        x = b.layer_norm_2(a + q) if model.cfg.block == 'code' else x + a
        h = x if model.cfg.block == 'code' else b.layer_norm_2(x)
        x = x + b.w_2(torch.relu(b.w_1(h)))
    return model.layer_norm(x)


def gradients(value, model):
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def large(cfg):
    "A model with larger weights, so that a mistake would show."
    torch.manual_seed(0)
    model = sasrec.build(9, cfg).eval()
    for p in model.parameters():
        p.data.mul_(5)
    return model


@pytest.mark.parametrize('block', ['code', 'paper'])
def test_rectangles_padding_and_formulas_agree(block):
    cfg = SASRecConfig(hidden=8, max_length=4, block=block)
    model = large(cfg)
    tokens, labels = padded_batch(FLAT, SPANS, 4)
    plain = torch.stack([oracle(model, row) for row in tokens])
    ours = model(torch.tensor([1, 4, 1, 5, 9, 2, 9]), [(1, 4), (1, 2), (1, 1)])
    close(ours.detach(), plain[tokens > 0].detach(), eps=1e-5)
    losses = [
        sasrec.make_loss(TRAIN, cfg)(model, SPANS),
        sasrec.padded_loss(TRAIN, cfg)(model, SPANS),
        padded_cross_entropy(plain.flatten(0, 1), model.embedding.weight, labels),
    ]
    g = [gradients(x, model) for x in losses]
    close(losses[0].item(), losses[2].item(), eps=1e-5)
    close(losses[1].item(), losses[2].item(), eps=1e-5)
    close(g[0], g[2], eps=1e-4)
    close(g[1], g[2], eps=1e-4)
    s = score(model, [[1, 4, 1, 5], [], [3, 1, 4, 1, 5]])
    eq(s.shape, (3, 10))
    close(s[0], (plain[0, -1] @ model.embedding.weight.T).detach(), eps=1e-4)
    close(s[2], s[0], eps=1e-5)  # only the latest four items are seen


@pytest.mark.parametrize('block', ['code', 'paper'])
def test_the_binary_loss_with_the_same_negatives_in_both_forms(block):
    cfg, shuffled, both = (
        SASRecConfig(hidden=8, max_length=4, block=block, loss='bce'),
        SPANS[[2, 0, 3, 1]],
        [],
    )
    model = large(cfg)
    for form in (sasrec.make_loss, sasrec.padded_loss):
        torch.manual_seed(1)
        value = form(TRAIN, cfg)(model, shuffled)
        both.append((value.item(), gradients(value, model)))
    close(both[0][0], both[1][0], eps=1e-5)
    close(both[0][1], both[1][1], eps=1e-4)


@pytest.mark.parametrize(
    'call, said',
    [
        (lambda: sasrec.build(9, SASRecConfig(heads=3)), '3 heads do not divide'),
        (lambda: sasrec.make_loss(TRAIN, SASRecConfig(loss='softmax')), 'softmax'),
        (lambda: sasrec.padded_loss(TRAIN, SASRecConfig(loss='gbce')), 'gbce'),
    ],
)
def test_what_cannot_be_is_one_sentence(call, said):
    with pytest.raises(LlmrecError, match=said):
        call()
