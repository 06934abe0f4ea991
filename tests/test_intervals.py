"Intervals and tests by hand, against scipy, and under the wrong input."

import numpy as np
import pytest
from scipy import stats

from llmrec.evaluation import intervals as iv
from llmrec.paths import LlmrecError


@pytest.fixture
def values():
    return np.random.default_rng(0).beta(0.3, 2, 400)


def test_chunks_add_up():
    assert iv._chunks(5, iv.CHUNK // 2) == [2, 2, 1]
    assert sum(iv._chunks(2000, 610)) == 2000


@pytest.mark.parametrize(
    'call, says',
    [
        (lambda: iv._vector([]), 'non-empty'),
        (lambda: iv.proportion_interval(5, 4), '5 of 4'),
        (lambda: iv.paired_permutation(np.zeros(300), np.ones(299)), '300 and 299'),
    ],
)
def test_what_is_refused(call, says):
    with pytest.raises(LlmrecError, match=says):
        call()


def test_the_bootstrap_is_scipys_repeats_and_knows_constants(values):
    mean, low, high = iv.bootstrap_interval(values)
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method='percentile', rng=np.random.default_rng(1)
    ).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.005)
    assert iv.bootstrap_interval(values) == (mean, low, high)
    assert iv.bootstrap_interval(np.ones(10)) == (1, 1, 1)


def test_the_bounds_depend_neither_on_the_chunk_nor_on_the_order_of_adding(values, monkeypatch):
    mean, low, high = iv.bootstrap_interval(values)
    plain, close = iv._plain_means(values, 2000, 0), iv._close_means(values, iv._drawn(400, 2000, 0)[0])
    assert (plain != close).any()
    assert [low, high] == np.quantile(plain, [(1 - 0.95) / 2, (1 + 0.95) / 2]).tolist()
    monkeypatch.setattr(iv, 'CHUNK', 1000)
    assert iv.bootstrap_interval(values) == (mean, low, high)


def test_draws_hold_every_user_as_often_as_said():
    toy = np.array([0.0, 0.0, 1.0, 0.5])
    counts, _ = iv._drawn(4, 6, seed=0)
    assert counts.sum(axis=0).tolist() == [4] * 6
    assert iv._close_means(toy, counts) == pytest.approx(iv._plain_means(toy, 6, 0), abs=1e-12)


def test_one_row_per_user_is_the_plain_bootstrap_and_repeated_rows_add_nothing(values):
    by_user = iv.clustered_interval(lambda rows: values[rows].mean(), np.arange(400))
    assert by_user == pytest.approx(iv.bootstrap_interval(values), abs=0.004)
    few, who = np.repeat(values[:20], 10), np.repeat(np.arange(20), 10)
    _, low, high = iv.clustered_interval(lambda rows: few[rows].mean(), who)
    _, naive_low, naive_high = iv.bootstrap_interval(few)
    assert (low, high) == pytest.approx(iv.bootstrap_interval(values[:20])[1:], abs=0.02)
    assert high - low > 2.5 * (naive_high - naive_low)


def test_one_mean_has_no_bounds():
    assert iv.seed_interval([0.5])[0] == 0.5
    assert np.isnan(iv.seed_interval([0.5])[1:]).all() and np.isnan(iv.prediction_interval([0.5])[1:]).all()


def test_the_sign_flip_test_is_symmetric_and_one_for_equals():
    rng = np.random.default_rng(4)
    a = rng.binomial(1, 0.16, 300).astype(float)
    b = np.where(rng.random(300) < 0.8, a, rng.binomial(1, 0.10, 300))
    assert iv.paired_permutation(a, b) == iv.paired_permutation(b, a)
    assert iv.paired_permutation(a, a) == 1


def test_holm_lies_between_plain_and_bonferroni_and_keeps_the_order():
    assert iv.holm([0.9, 0.8]) == pytest.approx([1, 1])
    p = np.random.default_rng(5).random(20) ** 3
    assert (iv.holm(p) >= p).all() and (iv.holm(p) <= np.minimum(1, 20 * p) + 1e-15).all()
    assert iv.holm(p).min() == pytest.approx(min(1, 20 * p.min()))
    assert iv.holm(p)[::-1] == pytest.approx(iv.holm(p[::-1]))
