"BERT4Rec: the gaps are drawn as they should be; rectangles, padding and formulas agree in value and gradient."

import numpy as np
import pytest
import torch
from fastcore.test import test_close as close
from fastcore.test import test_eq as eq
from torch.nn import functional as F

from llmrec.data.interactions import from_lists
from llmrec.paths import LlmrecError
from llmrec.sequential import bert4rec
from llmrec.sequential.bert4rec import BERT4RecConfig

TRAIN = from_lists([[1, 2, 3, 4, 5], [6, 7], [8]], 9)
SPANS = np.array([[5, 7], [0, 5], [7, 8], [1, 4]])


# --- the cloze


def test_gaps_are_uniform_and_at_least_one():
    torch.manual_seed(0)
    shapes = [(20_000, 10), (20_000, 1)]
    ten, one = bert4rec.cloze(shapes, 0.2, 0.0).split([200_000, 20_000])
    eq((ten.view(-1, 10).sum(1).unique().tolist(), one.all().item()), ([2], True))
    close(ten.view(-1, 10).float().mean(0), torch.full((10,), 0.2), eps=0.01)
    m = bert4rec.cloze(shapes, 0.2, 0.25)[:200_000].view(-1, 10)
    last_only = m.sum(1) == 1
    close(last_only.float().mean(), 0.25, eps=0.01)
    eq(m[last_only].float().mean(0).tolist(), [0] * 9 + [1])


def test_what_stands_in_a_gap():
    torch.manual_seed(0)
    hidden = torch.full((100_000,), 3)
    eq(bert4rec.shown(hidden, 9, 0.0).unique().tolist(), [10])
    seen = bert4rec.shown(hidden, 9, 0.2).bincount(minlength=11) / len(hidden)
    close(seen, torch.tensor([0, *[0.1 / 9] * 2, 0.1 + 0.1 / 9, *[0.1 / 9] * 6, 0.8]), eps=0.005)


def test_a_batch_with_gaps():
    spans = np.array([[5, 7], [0, 5], [7, 8]])
    b = bert4rec.cloze_batch(TRAIN, spans, BERT4RecConfig(max_length=4, last_item_share=1.0))
    eq((b.items.tolist(), b.gaps.tolist()), ([2, 3, 4, 10, 6, 10, 10], [3, 5, 6]))
    eq((b.targets.tolist(), b.shapes), ([5, 7, 8], [(1, 4), (1, 2), (1, 1)]))
    without = bert4rec.cloze_batch(TRAIN, spans[1::-1], BERT4RecConfig(unmasked_share=1.0))
    assert len(without.gaps) and (without.items <= 9).all()


def test_places_of_tokens_between_padding():
    eq(bert4rec.padded_places([(1, 3), (2, 1)], 4, left=True).tolist(), [1, 2, 3, 7, 11])
    eq(bert4rec.padded_places([(1, 3), (2, 1)], 4, left=False).tolist(), [0, 1, 2, 4, 8])


# --- the model


def oracle(model, items):
    "Answers (length, hidden) at every place of one sequence."
    n, heads = len(items), model.cfg.heads
    place = torch.arange(n) if model.cfg.places == 'start' else torch.arange(n - 1, -1, -1)
    x = model.layer_norm_in(model.embedding.weight[items] + model.positions.weight[place])
    for b in model.blocks:
        q, k, v = (f(x).view(n, heads, -1) for f in (b.q, b.k, b.v))
        w = torch.einsum('ihd,jhd->hij', q, k).div((model.cfg.hidden / heads) ** 0.5).softmax(-1)
        x = b.layer_norm_1(x + b.out(torch.einsum('hij,jhd->ihd', w, v).reshape(n, -1)))
        x = b.layer_norm_2(x + b.w_2(F.gelu(b.w_1(x))))
    return model.layer_norm_out(F.gelu(model.head(x)))


def gradients(value, model):
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize('places, unmasked', [('start', 0.0), ('end', 0.5)])
def test_rectangles_padding_and_formulas_agree(places, unmasked):
    cfg = BERT4RecConfig(hidden=8, max_length=4, mask_probability=0.5, places=places, unmasked_share=unmasked)
    torch.manual_seed(0)
    model = bert4rec.build(9, cfg).eval()
    for name, p in model.named_parameters():
        p.data.add_(0.3 * torch.randn_like(p) * (name != 'embedding.weight'))
    torch.manual_seed(1)
    b = bert4rec.cloze_batch(TRAIN, SPANS, cfg)
    alone = [oracle(model, s) for s in b.items.split([length for n, length in b.shapes for _ in range(n)])]
    answers = torch.cat(alone)[b.gaps]
    by_formula = F.cross_entropy(
        (answers @ model.embedding.weight[1:10].T) + model.item_bias[1:], b.targets - 1
    )
    expected = gradients(by_formula, model)
    padded = [bert4rec.padded_loss(TRAIN, cfg, scored=s) for s in ('all', 'gaps')]
    for loss in (bert4rec.make_loss(TRAIN, cfg), *padded):
        torch.manual_seed(1)
        value = loss(model, SPANS)
        close(value.item(), by_formula.item(), eps=1e-5)
        close(gradients(value, model), expected, eps=1e-5)
    s = bert4rec.score(model, [[3, 4], [], [1, 2, 3, 4, 5]])
    eq(s.shape, (3, 10))
    for row, seen in zip(s, ([3, 4], [], [3, 4, 5])):
        last = oracle(model, torch.tensor([*seen, 10]))[-1] @ model.embedding.weight[:10].T + model.item_bias
        close(row, last.detach(), eps=1e-5)


def test_heads_that_do_not_divide():
    with pytest.raises(LlmrecError, match='3 heads do not divide'):
        bert4rec.build(9, BERT4RecConfig(heads=3))
