"Updates that visit only the rows a step reads, against PyTorch's AdamW on the whole matrix."

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmrec.data.interactions import from_lists
from llmrec.experiments.retrieval import RetrievalConfig, loss_maker
from llmrec.paths import LlmrecError
from llmrec.sequential import rows, sasrec
from llmrec.sequential.lrurec import windows
from llmrec.sequential.training import Task, TrainingConfig, fit, optimiser, row_optimiser, step


def catalogue(n_items=300, users=40, seed=0):
    rng = np.random.default_rng(seed)
    return from_lists([rng.integers(1, n_items + 1, rng.integers(3, 9)) for _ in range(users)], n_items)


@pytest.mark.parametrize('decay', [0.0, 0.1])
@pytest.mark.parametrize('settle_every', [None, 7])
@pytest.mark.parametrize(
    'eps, off', [(1e-15, 1e-9), (1e-9, 1e-5)]
)  # epsilon is what the two treat differently
def test_rows_end_where_dense_adamw_ends(decay, settle_every, eps, off):
    torch.manual_seed(0)
    start, goal = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 4, dtype=torch.float64)
    dense = torch.nn.Parameter(start.clone())
    whole = torch.optim.AdamW([dense], lr=0.01, weight_decay=decay, eps=eps)
    opt = rows.RowAdamW(torch.nn.Parameter(start.clone()), 0.01, decay, eps)
    for i in range(400):
        ids = torch.randperm(45)[:5]  # five rows are never read
        whole.zero_grad()
        ((dense[ids] - goal[ids]) ** 2).sum().backward()
        whole.step()
        asked = rows.read(opt, ids)
        assert torch.allclose(asked.detach(), opt.weight.detach()[ids])
        ((asked - goal[ids]) ** 2).sum().backward()
        rows.write(opt, ids, asked.grad)
        if settle_every and i % settle_every == 0:
            rows.settle(opt)
    rows.settle(opt, block=8)
    assert (opt.weight - dense).abs().max() < off
    assert (opt.weight[:45] - start[:45]).abs().max() > 0.1  # something was learnt
    assert torch.allclose(opt.weight[45:].detach(), start[45:] * (1 - 0.01 * decay) ** 400)
    state = whole.state[dense]
    for mine, theirs in ((opt.mean, state['exp_avg']), (opt.square, state['exp_avg_sq'])):
        assert torch.allclose(mine, theirs, atol=10 * off)


def test_only_the_rows_that_are_read_are_touched():
    opt = rows.RowAdamW(torch.nn.Parameter(torch.randn(1000, 4)), 0.1, 0.1, 1e-9)
    before, ids = opt.weight.detach().clone(), torch.tensor([3, 500])
    for _ in range(3):
        asked = rows.read(opt, ids)
        asked.sum().backward()
        rows.write(opt, ids, asked.grad)
    assert (opt.weight.detach() != before).any(1).nonzero().flatten().tolist() == [3, 500]


@pytest.mark.parametrize('loss', ['bce', 'gbce', 'sampled'])
def test_training_by_rows_is_training(loss):
    "Sixty steps of SASRec with few and many negatives: the same losses and the same weights."
    data, arch = catalogue(), sasrec.SASRecConfig(hidden=8, dropout=0.0, loss=loss, negatives=3, max_length=8)
    cfg, spans = TrainingConfig(weight_decay=0.1, lr=0.01), windows(data, 8)

    def model():
        torch.manual_seed(0)
        return sasrec.build(data.n_items, arch)

    a, b = model(), model()
    whole, parts = sasrec.make_loss(data, arch), sasrec.make_row_loss(data, arch)
    dense, some = optimiser(a, cfg), row_optimiser(b, cfg)
    for i in range(60):
        batch = spans[np.arange(i, i + 4) % len(spans)]
        torch.manual_seed(i)
        x = step(a, dense, whole, batch, 0.5)
        torch.manual_seed(i)
        y = rows.row_step(b, some, parts, batch, 0.5)
        assert abs(float(x - y)) < 2e-4
    rows.settle(some.rows)
    for (name, p), q in zip(a.named_parameters(), b.parameters()):
        if name.endswith('k.bias'):
            continue  # softmax ignores it: its gradient is rounding, which Adam makes large
        assert (p - q).abs().max() < 2e-3, name
    assert (a.embedding.weight - model().embedding.weight).abs().max() > 0.05


def test_padding_stays_zero():
    data, arch = catalogue(), sasrec.SASRecConfig(hidden=8, loss='bce', max_length=8)
    model = sasrec.build(data.n_items, arch)
    cfg = TrainingConfig(lr=0.05)
    opt = row_optimiser(model, cfg)
    for i in range(5):
        rows.row_step(model, opt, sasrec.make_row_loss(data, arch), windows(data, 8)[:10], 5.0)
    assert not model.embedding.weight[0].any()


def test_a_killed_run_by_rows_ends_like_an_undisturbed_one(tmp_path):
    data, arch = catalogue(), sasrec.SASRecConfig(hidden=8, loss='sampled', negatives=5, max_length=8)
    cfg, spans = TrainingConfig(updates='rows', batch_size=10, epochs=6, validate_every=5), windows(data, 8)

    def run(loss, checkpoint=None):
        torch.manual_seed(0)
        model, calls = sasrec.build(data.n_items, arch), iter(range(1, 100))
        # the best is the last validation, so the very last weights are compared
        return model, fit(
            model, Task(loss, lambda m: next(calls) / 100, spans), cfg, checkpoint, progress=False
        )

    parts, left = sasrec.make_row_loss(data, arch), iter(range(13))

    def dies(batch):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return parts(batch)

    undisturbed, _ = run(parts)
    with pytest.raises(KeyboardInterrupt):
        run(dies, tmp_path / 'state.pt')
    torch.manual_seed(1)
    model = sasrec.build(data.n_items, arch)
    more = iter(range(50, 100))
    state = fit(
        model, Task(parts, lambda m: next(more) / 100, spans), cfg, tmp_path / 'state.pt', progress=False
    )
    assert state.iteration == 24
    for p, q in zip(undisturbed.parameters(), model.parameters()):
        assert torch.equal(p, q)


def test_what_scores_every_item_is_refused():
    with pytest.raises(LlmrecError, match="'cross_entropy' scores every item"):
        sasrec.make_row_loss(catalogue(), sasrec.SASRecConfig())
    cfg = RetrievalConfig('films', 'LRURec', training=TrainingConfig(updates='rows'))
    with pytest.raises(LlmrecError, match='LRURec scores every item; take SASRec'):
        loss_maker(cfg)
    assert loss_maker(replace(cfg, model='SASRec')) is sasrec.make_row_loss
    assert loss_maker(replace(cfg, training=TrainingConfig())) is not sasrec.make_row_loss
