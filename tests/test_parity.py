"""Whole models against loops written down from the papers' equations, with equal weights, in NumPy and one item at a time.

SASRec and BERT4Rec have theirs in test_sasrec.py and test_bert4rec.py; here are LRURec and NARM.
"""

import numpy as np
import pytest
import torch
from scipy.special import erf, expit

from llmrec.sequential import lrurec, narm


def weights(model):
    return {name: p.detach().double().numpy() for name, p in model.named_parameters()}


def scattered(model):
    "Every parameter, also what starts at zero or one, at a value of its own."
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if 'params_log' not in name:
                p += 0.3 * torch.randn(p.shape, generator=g)
    return model.eval()


def normalised(x, w, name):
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return x * w[f'{name}.weight'] + w[f'{name}.bias']


def linear(x, w, name):
    return w[f'{name}.weight'] @ x + w[f'{name}.bias']


def lrurec_scores(w, history, blocks):
    "LRURec (arXiv 2310.02367, 3.2): x_k = lambda x_(k-1) + gamma B i_k, out = Re C x_k + D, then add and normalise, twice a block."
    xs = [normalised(w['embedding.weight'][i], w, 'layer_norm') for i in history]
    for b in range(blocks):
        lru, feed = f'blocks.{b}.0', f'blocks.{b}.1'
        nu, theta, gamma = np.exp(w[f'{lru}.params_log'])
        lam, state, out = np.exp(-nu + 1j * theta), 0j, []
        for x in xs:
            projected = linear(x, w, f'{lru}.in_proj').reshape(-1, 2)
            state = lam * state + gamma * (projected[:, 0] + 1j * projected[:, 1])
            y = linear(np.stack([state.real, state.imag], 1).ravel(), w, f'{lru}.out_proj')
            out.append(normalised(y + x, w, f'{lru}.layer_norm'))
        xs = []
        for x in out:
            h = linear(x, w, f'{feed}.w_1')
            h = h * (1 + erf(h / np.sqrt(2))) / 2
            xs.append(normalised(linear(h, w, f'{feed}.w_2') + x, w, f'{feed}.layer_norm'))
    return w['embedding.weight'] @ xs[-1] + w['item_bias']


def narm_scores(w, history):
    "NARM (arXiv 1711.04725, 3.2 to 3.5): a GRU, its last state, its attended states, and a bilinear decoder."
    gru, a1, a2, v, bilinear = 'gru', 'asks.weight', 'offers.weight', 'v.weight', 'bilinear.weight'
    hidden = w[f'{gru}.weight_hh_l0'].shape[1]
    h, states = np.zeros(hidden), []
    for i in history:
        x = w[f'{gru}.weight_ih_l0'] @ w['embedding.weight'][i] + w[f'{gru}.bias_ih_l0']
        s = w[f'{gru}.weight_hh_l0'] @ h + w[f'{gru}.bias_hh_l0']
        reset, update = expit(x[:hidden] + s[:hidden]), expit(x[hidden : 2 * hidden] + s[hidden : 2 * hidden])
        h = (1 - update) * np.tanh(x[2 * hidden :] + reset * s[2 * hidden :]) + update * h
        states.append(h)
    alphas = [w[v].ravel() @ expit(w[a1] @ h + w[a2] @ s) for s in states]
    local = sum(a * s for a, s in zip(alphas, states))
    return w['embedding.weight'] @ (w[bilinear] @ np.concatenate([h, local]))


HISTORIES = [[3], [1, 2, 3, 4, 5, 6, 7], [9, 9, 2], [12, 4, 4, 8, 1]]


@pytest.mark.parametrize('blocks', [1, 2])
def test_lrurec(blocks):
    torch.manual_seed(0)
    model = scattered(lrurec.build(12, lrurec.LRURecConfig(hidden=6, blocks=blocks)))
    found = lrurec.score(model, [np.array(h) for h in HISTORIES]).numpy()
    for scores, history in zip(found, HISTORIES):
        expected = lrurec_scores(weights(model), history, blocks)
        assert np.abs(scores - expected).max() < 1e-4 and np.ptp(expected) > 1


def test_narm():
    torch.manual_seed(0)
    model = scattered(
        narm.build(12, narm.NARMConfig(embedding=6, hidden=5, gate='sigmoid', normalised=False))
    )
    w = weights(model)
    found = narm.score(model, [np.array(h) for h in HISTORIES]).numpy()
    for scores, history in zip(found, HISTORIES):
        expected = narm_scores(w, history)
        assert np.abs(scores - expected).max() < 1e-4 and np.ptp(expected) > 0.1
