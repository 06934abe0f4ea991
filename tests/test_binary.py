"TALLRec's sequential baselines: properties that must hold whatever the data, and what bad input says."

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmrec.data.yesno_form import YesNoArrays
from llmrec.evaluation.auc import auc
from llmrec.experiments.binary import BinaryRun, check_run, run
from llmrec.llm.encoders import EncoderConfig, encoder_identity
from llmrec.paths import LlmrecError
from llmrec.runs.records import find_record
from llmrec.sequential import binary as b
from llmrec.sequential.binary_training import (
    BinaryData,
    batches,
    check_classes,
    check_rows,
    check_texts,
    fit_binary,
    make_model,
    score_binary,
    tensors,
    updates,
)

N, D = 9, 4
TINY = dict(hidden=8, layers=2, heads=2, filters=3, epochs=10, lr=0.01)
PRESETS = (b.BinaryConfig.as_published, b.BinaryConfig.corrected)
every = pytest.mark.parametrize('method', b.BINARY)
both = pytest.mark.parametrize('preset', PRESETS, ids=['as_published', 'corrected'])


def rows(n, seed, n_items=N, length=6, short=False):
    "Random rows; the target is liked by those who liked most of what they read."
    rng = np.random.default_rng(seed)
    history, liked = rng.integers(1, n_items + 1, (n, length)), rng.integers(0, 2, (n, length))
    lengths = rng.integers(1, length + 1, n) if short else np.full(n, length)
    inside = np.arange(length) < lengths[:, None]
    labels = ((liked * inside).sum(1) / lengths > 0.5).astype(int)
    return YesNoArrays(
        np.arange(n),
        history * inside,
        (liked * inside).astype(np.float32),
        lengths,
        rng.integers(1, n_items + 1, n),
        labels,
    )


def texts_for(method, n_items=N):
    return (
        np.random.default_rng(5).normal(size=(n_items + 1, D)).astype(np.float32)
        if b.reads_text(method)
        else None
    )


def fit(method, train, valid, preset=b.BinaryConfig.as_published, **changes):
    return fit_binary(BinaryData(train, valid, N, texts_for(method)), preset(method, **TINY | changes))


@every
@both
def test_learns_from_what_was_liked_and_from_nothing_else(method, preset):
    train, valid, test = (rows(n, seed, 5) for n, seed in ((384, 0), (300, 1), (400, 2)))
    changes = dict(lr=0.02, epochs=60, layers=1, weight_decay=1e-5)
    sees, blind = (fit(method, train, valid, preset, label_channel=c, **changes) for c in (True, False))
    assert auc(test.labels, score_binary(sees.model, test)) > 0.8
    assert auc(test.labels, score_binary(blind.model, test)) < 0.6


@every
@both
def test_same_seed_same_bytes_whatever_came_before(method, preset):
    train, valid, test = rows(40, 0), rows(50, 1), rows(30, 2)
    first = fit(method, train, valid, preset)
    torch.manual_seed(99)
    torch.rand(3)
    state = torch.get_rng_state()
    again = fit(method, train, valid, preset)
    assert torch.equal(torch.get_rng_state(), state)
    assert score_binary(first.model, test).tobytes() == score_binary(again.model, test).tobytes()
    assert first.curve == again.curve
    assert (
        score_binary(fit(method, train, valid, preset, seed=1).model, test).tobytes()
        != score_binary(first.model, test).tobytes()
    )


@every
def test_the_weights_of_the_best_validation_come_back(method):
    train, valid = rows(40, 0), rows(50, 1)
    fitted = fit(method, train, valid, epochs=40, validate_every=1, lr=0.05)
    assert fitted.best_at == next(at for at, _, a in fitted.curve if a == max(p[2] for p in fitted.curve))
    assert auc(valid.labels, score_binary(fitted.model, valid)) == fitted.valid_auc
    assert not fitted.model.training


@every
@both
def test_scores_do_not_depend_on_the_batch_or_the_other_rows(method, preset):
    torch.manual_seed(0)
    model, test = b.BinaryModel(N, preset(method, **TINY), 6, texts_for(method)), rows(23, 3, short=True)
    whole = score_binary(model, test)
    np.testing.assert_allclose(score_binary(model, test, batch=4), whole, atol=1e-6)
    np.testing.assert_allclose(score_binary(model, test.take(np.array([7]))), whole[[7]], atol=1e-6)


@pytest.mark.parametrize('method', ['GRU4Rec', 'SASRec'])
@both
def test_what_stands_behind_a_history_is_not_read(method, preset):
    torch.manual_seed(0)
    model, test = b.BinaryModel(N, preset(method, **TINY), 6).eval(), rows(20, 3, short=True)
    behind = np.arange(6) >= test.lengths[:, None]
    dirty = replace(
        test,
        history=np.where(behind, 7, test.history),
        history_labels=np.where(behind, 1, test.history_labels).astype(np.float32),
    )
    np.testing.assert_allclose(score_binary(model, dirty), score_binary(model, test), atol=1e-6)


def test_an_empty_history_is_scored():
    test = rows(4, 0)
    test.history[0] = 0
    test.lengths[0] = 0
    for method in ('GRU4Rec', 'Caser', 'SASRec'):
        assert np.isfinite(score_binary(b.BinaryModel(N, b.BinaryConfig(method, **TINY), 6), test)).all()


def test_gru_gathers_as_packing_does():
    torch.manual_seed(0)
    encoder, x, lengths = (
        b.GRUEncoder(5, 6, b.BinaryConfig(layers=3)),
        torch.randn(7, 6, 5),
        torch.tensor([1, 6, 3, 2, 6, 5, 4]),
    )
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    torch.testing.assert_close(encoder(x, lengths), encoder.gru(packed)[1][-1])


@every
@pytest.mark.parametrize('weight_decay', [0.0, 1e-3])
def test_a_row_no_example_asks_for_changes_by_weight_decay_alone(method, weight_decay):
    train, valid = rows(6, 0), rows(50, 1)
    cfg = b.BinaryConfig.as_published(method, **TINY | dict(weight_decay=weight_decay, alpha=0.0, epochs=5))
    data = BinaryData(train, valid, N, texts_for(method))
    start = make_model(data, cfg).head.weight.detach()
    end = fit_binary(data, cfg).model.head.weight.detach()
    untouched = np.setdiff1d(np.arange(1, N + 1), train.items)
    if not weight_decay:
        assert torch.equal(start[untouched], end[untouched])
    else:
        assert (end[untouched].abs() < start[untouched].abs()).float().mean() > 0.8
    assert not torch.equal(start[train.items], end[train.items])


@pytest.mark.parametrize('head', ['rows', 'tied'])
@pytest.mark.parametrize('method', ['DROS', 'DROS-BERT'])
@pytest.mark.parametrize('robust_to', ['like', 'label'])
def test_robust_term_is_the_published_formula(head, method, robust_to):
    torch.manual_seed(0)
    cfg = b.BinaryConfig.as_published(method, **TINY | dict(head=head, robust_to=robust_to, beta=0.7))
    model, data = b.BinaryModel(N, cfg, 6, texts_for(method)).double(), rows(12, 0)
    history, labels_in, lengths, items, labels = (
        t.double() if t.is_floating_point() else t for t in tensors(data)
    )
    weights = torch.tensor(b.item_weights(data, N, cfg)).double()
    states = model(history, labels_in, lengths)
    fast = b.robust_term(model, states, items, labels, weights, chunk=4)
    got = torch.autograd.grad(fast, list(model.parameters()), retain_graph=True, allow_unused=True)
    s = torch.stack([b.logits(model, states, torch.full_like(items, i)) for i in range(1, N + 1)], 1)
    st, wt = s.gather(1, items[:, None] - 1)[:, 0], weights[items - 1]
    wanted = labels if robust_to == 'label' else torch.ones_like(labels)
    inside = (
        torch.exp(weights * s**2 / 0.7).sum(1)
        - torch.exp(wt * st**2 / 0.7)
        + torch.exp(wt * (st - wanted) ** 2 / 0.7)
    )
    want = torch.log(inside + 1e-24).mean()
    torch.testing.assert_close(fast, want)
    for one, two in zip(got, torch.autograd.grad(want, list(model.parameters()), allow_unused=True)):
        if two is not None and one is not None:
            torch.testing.assert_close(one, two)
        else:
            assert (one is None or not one.any()) and (two is None or not two.any())


def test_robust_term_at_logits_of_a_hundred():
    W = torch.full((50, 2), 50.0, requires_grad=True)
    value = b.RobustSum.apply(
        torch.ones(3, 2),
        W,
        torch.zeros(50),
        b.RobustItems(torch.ones(50), torch.tensor([0, 7, 49]), torch.ones(3), 16),
    ).sum()
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(W.grad).all()
    assert float(value.detach()) == pytest.approx(3 * (1e4 + np.log(49)), abs=0.1)


def test_item_weights_count_what_they_say():
    data = rows(3, 0).take(np.array([0, 0, 0]))
    data.items[:], data.history[:] = 2, 3
    published, corrected = (b.item_weights(data, 3, b.BinaryConfig(counts=c)) for c in ('targets', 'all'))
    np.testing.assert_allclose(published, (np.array([1, 4, 1]) / 6) ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(corrected, (np.array([1, 4, 19]) / 24) ** 0.5, rtol=1e-6)


def test_text_reaches_a_target_never_seen_when_the_head_is_tied():
    train, valid, test = rows(30, 0, 5), rows(40, 1, 5), rows(10, 2, 5)
    test.items[:] = 9
    for head, changes in (('tied', True), ('rows', False)):
        fitted = fit('GRU-BERT', train, valid, head=head)
        before = score_binary(fitted.model, test)
        fitted.model.vectors.texts[9] += 1.0
        assert (before.tobytes() != score_binary(fitted.model, test).tobytes()) == changes


def test_batches_are_min_of_256_and_k():
    for k in (1, 16, 256, 257, 511, 512, 1000):
        assert updates(k, b.BinaryConfig()) == 100 * max(1, k // 256)
    drawn = [x for x in batches(300, b.BinaryConfig(epochs=3))]
    assert [len(np.unique(x)) for x in drawn] == [256] * 3
    whole = np.concatenate(list(batches(300, b.BinaryConfig.corrected(epochs=1))))
    assert sorted(whole) == list(range(300))


def test_one_row_of_one_class_is_enough_to_train():
    for method in b.BINARY:
        assert np.isfinite(score_binary(fit(method, rows(1, 0), rows(20, 1)).model, rows(5, 2))).all()


BAD = {
    'K = 0': (lambda t, v: (t.take(np.arange(0)), v), {}, 'K must be at least 1'),
    'validation of one class': (
        lambda t, v: (t, v.take(np.flatnonzero(v.labels))),
        {},
        'the AUC that selects the weights needs both',
    ),
    'a code too high': (lambda t, v: (replace(t, items=t.items + 100), v), {}, 'target of training row 0'),
    'a history code too high': (
        lambda t, v: (t, replace(v, history=v.history + 100)),
        {},
        'history item of validation row 0',
    ),
    'an unknown method': (lambda t, v: (t, v), dict(method='GRU4Rek'), "Did you mean 'GRU4Rec'?"),
    'heads that do not divide': (
        lambda t, v: (t, v),
        dict(method='SASRec', heads=3),
        '8 wide, which 3 heads do not divide',
    ),
    'a loss that is not a number': (lambda t, v: (t, v), dict(lr=float('inf')), 'lower BinaryConfig.lr'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_one_sentence(name):
    change, settings, message = BAD[name]
    with pytest.raises(LlmrecError, match=message.replace('?', r'\?')) as e:
        fit_binary(
            BinaryData(*change(rows(20, 0), rows(20, 1)), N),
            b.BinaryConfig(**TINY | dict(method='GRU4Rec') | settings),
        )
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'texts, message',
    [
        (None, 'reads text'),
        (np.zeros((N, D)), 'expected \\(10, d\\)'),
        (np.zeros(N + 1), 'expected'),
        (np.full((N + 1, D), np.nan), 'item 0 is not finite'),
    ],
)
def test_bad_texts_are_one_sentence(texts, message):
    with pytest.raises(LlmrecError, match=message):
        fit_binary(BinaryData(rows(9, 0), rows(9, 1), N, texts), b.BinaryConfig('GRU-BERT', **TINY))


QUICK = b.BinaryConfig(hidden=8, layers=1, epochs=10)
RUN = BinaryRun('films', 'as_published', 'GRU4Rec', 16, 0, QUICK, (1e-3, 1e-5))


def test_a_run_leaves_a_small_record_that_says_what_it_saw(out):
    record = run(RUN, 'test')
    n = len(record.arrays['test_score'])
    assert {k: len(v) for k, v in record.arrays.items() if k != 'valid_score'} == dict(
        test_score=n, seen=n, test_user=n, test_label=n
    )
    assert record.arrays['test_score'].dtype == record.arrays['valid_score'].dtype == np.float32
    assert record.metrics['test_auc'] == auc(record.arrays['test_label'], record.arrays['test_score'])
    assert len(set(record.metrics['rows'])) == 16 and record.metrics['weight_decay'] in RUN.weight_decays
    assert run(RUN, 'test').metrics == record.metrics
    assert (
        sum(
            p.stat().st_size
            for p in (out / 'data/records/test').glob('binary-*')
            if 'provenance' not in p.name
        )
        < 20_000
    )


def test_a_run_is_reproducible(out, tmp_path, monkeypatch):
    first = run(RUN, 'test')
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path / 'again'))
    second = run(RUN, 'test')
    assert first.key == second.key and all(
        first.arrays[k].tobytes() == second.arrays[k].tobytes() for k in first.arrays
    )


def test_the_first_draw_searches_for_all(out):
    cfg = replace(RUN, search='first draw', seed=2)
    record = run(cfg, 'test')
    zero = find_record('binary', replace(cfg, seed=0), record.data, 'test')
    assert list(record.metrics['valid_auc_by_weight_decay']) == [str(zero.metrics['weight_decay'])]
    assert set(zero.metrics['valid_auc_by_weight_decay']) == {'0.001', '1e-05'}


def test_text_runs_are_keyed_by_what_reads(out):
    text = replace(RUN, method='GRU-BERT', encoder=EncoderConfig(dimensions=4))
    record = run(text, 'test')
    assert record.backbone and np.isfinite(record.arrays['test_score']).all()
    other = replace(text, encoder=EncoderConfig(dimensions=5))
    assert find_record('binary', text, record.data, 'test', record.backbone).key == record.key
    assert find_record('binary', other, record.data, 'test', encoder_identity(other.encoder)) is None


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(method='GRU-BERT'), 'set BinaryRun.encoder'),
        (dict(encoder=EncoderConfig()), 'leave BinaryRun.encoder out'),
        (dict(k=0), 'at least 1'),
        (dict(dataset='film'), "'films'"),
        (dict(weight_decays=()), 'weight decay'),
        (dict(k=10**9), 'training split'),
    ],
)
def test_a_run_that_cannot_be_is_one_sentence(changes, message, out):
    with pytest.raises(LlmrecError, match=message):
        check_run(replace(RUN, **changes))
        run(replace(RUN, **changes), 'test')


# --- parts of the models, against loops and formulas


def test_text_embedding_and_label_stand_side_by_side_and_padding_is_zero():
    vectors = b.ItemVectors(5, b.BinaryConfig(hidden=4), np.arange(12, dtype=np.float32).reshape(6, 2))
    x = vectors(torch.tensor([[3, 0]]), torch.tensor([[1.0, 1.0]])).detach()
    assert (vectors.width, x.shape) == (6, (1, 2, 6))
    assert x[0, 0, [0, 1, 5]].tolist() == [6, 7, 1] and not x[0, 1].any()


def test_the_attention_of_sasrec_is_the_formula():
    torch.manual_seed(0)
    sasrec, x = b.SASRecEncoder(8, 5, b.BinaryConfig(heads=2, blocks=2)).eval(), torch.randn(2, 5, 8)
    block = sasrec.blocks[0]
    q, k, v = (f(x[0]).detach() for f in (block.q, block.k, block.v))
    heads = [
        (torch.tril(torch.exp(q[:, s] @ k[:, s].T / 8**0.5)), v[:, s]) for s in (slice(0, 4), slice(4, 8))
    ]
    by_hand = torch.cat([w / w.sum(1, keepdim=True) @ values for w, values in heads], 1) + x[0]
    torch.testing.assert_close(block.attend(x, x)[0].detach(), by_hand, atol=1e-5, rtol=0)


def test_robust_sum_in_double_precision_and_its_gradient():
    torch.manual_seed(0)
    q, W, c = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (7, 3), (7,))
    )
    w, t, one = (
        torch.rand(7, dtype=torch.float64),
        torch.tensor([0, 3, 6, 3]),
        torch.ones(4, dtype=torch.float64),
    )
    s = q @ W.T + c
    st, wt = s.gather(1, t[:, None])[:, 0], w[t]
    naive = torch.log(
        torch.exp(w * s**2).sum(1) - torch.exp(wt * st**2) + torch.exp(wt * (st - 1) ** 2) + 1e-24
    )
    for chunk in (2, 7, 100):
        torch.testing.assert_close(
            b.RobustSum.apply(q, W, c, b.RobustItems(w, t, one, chunk)), naive, atol=1e-12, rtol=0
        )
    assert torch.autograd.gradcheck(lambda *a: b.RobustSum.apply(*a, b.RobustItems(w, t, one, 3)), (q, W, c))
    big = (torch.full((1, 1), 100.0), torch.ones(3, 1), torch.zeros(3))
    assert torch.isinf(torch.exp(torch.tensor(100.0) ** 2))
    value = b.RobustSum.apply(*big, b.RobustItems(torch.ones(3), torch.tensor([1]), torch.ones(1), 2)).item()
    assert value == pytest.approx(1e4 + np.log(2), abs=0.01)


def test_presets():
    assert b.BinaryConfig.as_published() == b.BinaryConfig()
    assert b.BinaryConfig.as_published('DROS-BERT').hidden == 256
    assert b.BinaryConfig.corrected('Caser', head='rows').scale == 'head'


def test_the_number_of_updates_is_that_of_the_batches():
    assert [len(x) for x in batches(600, b.BinaryConfig(epochs=2))] == [256] * 4
    assert [len(x) for x in batches(600, b.BinaryConfig.corrected(epochs=1))] == [256, 256, 88]
    for n in (5, 256, 300, 512):
        for cfg in (b.BinaryConfig(), b.BinaryConfig.corrected()):
            assert updates(n, cfg) == len(list(batches(n, cfg)))


CHECKS = [
    (lambda: check_rows(rows(9, 0).take(np.arange(0)), N, 'training'), 'K must be at least 1'),
    (lambda: check_rows(rows(99, 0), 4, 'training'), 'codes go from 1 to 4'),
    (
        lambda: check_classes(rows(99, 0).take(np.flatnonzero(rows(99, 0).labels)), 'validation'),
        'validation rows have the label 1',
    ),
    (lambda: check_texts('GRU-BERT', np.zeros((6, 3)), 6), 'expected \\(7, d\\)'),
    (lambda: check_texts('GRU-BERT', None, 6), 'reads text'),
    (lambda: check_texts('SASRec', np.zeros((7, 3)), 6), 'reads no text'),
    (lambda: b.SASRecEncoder(9, 5, b.BinaryConfig(heads=2)), '9 wide, which 2 heads do not divide'),
    (lambda: score_binary(b.BinaryModel(5, b.BinaryConfig(hidden=8), 6), rows(99, 0)), 'of scored row'),
]


@pytest.mark.parametrize('call, said', CHECKS)
def test_what_cannot_be_trained_or_scored_is_one_sentence(call, said):
    with pytest.raises(LlmrecError, match=said):
        call()
