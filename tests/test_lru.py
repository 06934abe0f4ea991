"The scans of the linear recurrent unit against the recurrence step by step, at every length."

import pytest
import torch

from llmrec.sequential.lru import layout, scan_packed, scan_padded, scan_sequential


def draw(batch, length, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    lam = torch.polar(0.8 + 0.19 * torch.rand(width, generator=g), 6.28 * torch.rand(width, generator=g))
    return torch.randn(batch, length, width, dtype=torch.cfloat, generator=g), lam


def value_and_gradients(scan, u, lam, weight):
    u, lam = u.clone().requires_grad_(), lam.clone().requires_grad_()
    h = scan(u, lam)
    (h * weight).real.sum().backward()
    return h.detach(), u.grad, torch.zeros_like(lam) if lam.grad is None else lam.grad  # no step, no gradient


def largest_error(a, b):
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1)) for x, y in zip(a, b))


def packed(parallel, lay):
    def scan(u, lam):
        h = scan_packed(u[lay.row, lay.pos], lam, lay.sizes, parallel)
        return torch.zeros_like(u).index_put((torch.as_tensor(lay.row), torch.as_tensor(lay.pos)), h)

    return scan


def test_the_padded_scan_at_every_length():
    for length in range(1, 258):
        u, lam = draw(2, length, 3, length)
        for pads in ([0, 0], [length // 3, length - 1]):
            mask = torch.arange(length) >= torch.tensor(pads)[:, None]
            weight = draw(2, length, 3, 1000)[0] * mask[..., None]
            oracle, padded = (
                value_and_gradients(lambda u, lam: f(u, lam, mask), u, lam, weight)
                for f in (scan_sequential, scan_padded)
            )
            assert largest_error(padded, oracle) < 1e-5, (length, pads)


@pytest.mark.parametrize('parallel', [False, True])
def test_the_packed_scan_at_every_length(parallel):
    for lengths in [*([n] for n in range(1, 258)), [257, 1, 100, 3, 3, 64, 128, 2]]:
        u, lam = draw(len(lengths), max(lengths), 3, sum(lengths))
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        u, weight, lay = (
            u * real[..., None],
            draw(len(lengths), max(lengths), 3, 1000)[0] * real[..., None],
            layout(lengths),
        )
        oracle = value_and_gradients(lambda u, lam: scan_sequential(u, lam, real | True), u, lam, weight)
        oracle = (oracle[0] * real[..., None], *oracle[1:])
        assert largest_error(value_and_gradients(packed(parallel, lay), u, lam, weight), oracle) < 1e-5, (
            lengths
        )
