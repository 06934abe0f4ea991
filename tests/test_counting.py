"The counting rows by hand, on a few invented people and on a small world."

import numpy as np
import pytest
from fastcore.test import test_close as close
from fastcore.test import test_eq as equal
from sklearn.linear_model import Ridge

from llmrec.data.yesno_form import YesNoArrays
from llmrec.evaluation.auc import auc
from llmrec.paths import LlmrecError
from llmrec.sequential.counting import (
    DIMENSIONS,
    RIDGE,
    SIMPLE,
    STRENGTHS,
    _solve,
    choose_strength,
    factorise,
    history_like_rate,
    item_counts,
    item_factors,
    item_mean,
    labelled,
    like_share,
    logistic,
    logistic_features,
    popularity,
    probe_features,
    seen,
    simple_scores,
    text_probe,
    unit_texts,
    user_mean,
)


def rows_of(*samples, width=4, pad='zero') -> YesNoArrays:
    "Rows from (user, [(item, label) …], target, label), for the examples below."

    def fill(history):
        return history + [(0, 0) if pad == 'zero' else history[-1]] * (width - len(history))

    full = np.array([fill(history) for _, history, _, _ in samples])
    lengths = [len(h) if pad == 'zero' else width for _, h, _, _ in samples]
    users, items, labels = (np.array([s[j] for s in samples]) for j in (0, 2, 3))
    return YesNoArrays(
        users=users,
        history=full[..., 0],
        history_labels=full[..., 1].astype(np.float32),
        lengths=np.array(lengths),
        items=items,
        labels=labels,
    )


ann, bob = ('ann', [(1, 1), (2, 1), (3, 0)], 4, 1), ('bob', [(2, 0), (4, 1)], 1, 0)
train = rows_of(ann, bob)
eve = rows_of(
    ('eve', [(3, 1)], 1, 1), ('eve', [(3, 1)], 4, 0), ('eve', [(1, 1)], 5, 0), ('ann', [(1, 1)], 4, 1)
)
one_label = rows_of(ann, ('bob', [(2, 0)], 1, 1))


def small_world(seed=0, n_users=40, n_items=60, d=6):
    "(train, test, texts): rows of a world in which patience, popularity and kind matter."
    rng = np.random.default_rng(seed)
    kind, fame = rng.normal(size=n_items + 1), rng.gamma(1, size=n_items + 1)
    texts = np.column_stack([kind, rng.normal(size=(n_items + 1, d - 1))]).astype(np.float32)
    texts[0] = 0
    samples = []
    for user in range(n_users):
        taste, patience = rng.choice([-1, 1]), 1.5 * rng.normal()
        items = 1 + rng.choice(n_items, 11, replace=False, p=fame[1:] / fame[1:].sum())
        likes = 2 * taste * kind[items] + patience + 0.5 * fame[items] + rng.normal(size=11) > 0.5
        told = [(int(i), int(y)) for i, y in zip(items, likes)]
        samples.append((user, told[:10], *told[10]))
    return rows_of(*samples[: n_users // 2], width=10), rows_of(*samples[n_users // 2 :], width=10), texts


def test_what_is_counted():
    equal(seen(train).sum(axis=1), [3, 2])
    equal(seen(rows_of(ann, bob, pad='last')), seen(train))
    close(history_like_rate(train), [2 / 3, 1 / 2])
    close(history_like_rate(train, weight=2), [3 / 5, 2 / 4])
    equal(history_like_rate(rows_of(ann, bob, pad='last')), history_like_rate(train))
    equal(history_like_rate(rows_of(('eve', [], 1, 1))), [0.5])


def test_what_the_rows_tell():
    told = [
        ('ann', 4, 1),
        ('bob', 1, 0),
        ('ann', 1, 1),
        ('ann', 2, 1),
        ('ann', 3, 0),
        ('bob', 2, 0),
        ('bob', 4, 1),
    ]
    equal(labelled(train).rows(), told)
    equal(labelled(rows_of(('ann', [(1, 1), (2, 1)], 3, 0), ('ann', [(2, 1), (3, 0)], 4, 1))).height, 4)
    equal(item_counts(train, eve, 5), ([1, 2, 0, 1], [2, 2, 0, 1]))  # ann's own liking of 4 is left out
    equal(like_share(train), (4 + 1) / (7 + 2))


def test_the_means_by_hand():
    m = like_share(train)
    close(item_mean(train, eve, 5), [(1 + 2 * m) / 4, (2 + 2 * m) / 4, m, (1 + 2 * m) / 3])
    equal(popularity(train, eve, 5), [2, 2, 0, 1])
    by_hand = [
        (1 + 2 * m) / 3,
        (1 + 2 * m) / 3,
        (1 + 2 * m) / 3,
        (2 + 2 * m) / (3 + 2),
    ]  # ann: 1, 2, 3, not the asked 4
    close(user_mean(train, eve), by_hand)
    equal(user_mean(train, rows_of(('new', [(1, 1), (2, 0)], 3, 1))), [(1 + 2 * m) / 4])


def test_the_regression_and_what_it_falls_back_to():
    train_w, test_w, _ = small_world(n_users=800)
    assert choose_strength(logistic_features(train_w, train_w, 60), train_w.labels) in STRENGTHS
    assert auc(test_w.labels, logistic(train_w, test_w, 60, items=True)) > 0.55
    equal(logistic(one_label, eve, 5), history_like_rate(eve))
    equal(choose_strength(np.zeros((3, 1)), np.array([1, 0, 0])), STRENGTHS[0])


def test_the_factorisation():
    rng = np.random.default_rng(0)
    design, residual, group = rng.normal(size=(60, 3)), rng.normal(size=60), rng.integers(0, 4, 60)
    for g in range(4):
        ridge = Ridge(RIDGE, fit_intercept=False).fit(design[group == g], residual[group == g])
        close(_solve(design, residual, group, 4)[g], ridge.coef_)
    mean, q = item_factors(labelled(train), 5)
    equal(q[[0, 5]], np.zeros((2, DIMENSIONS + 1)))
    cold = rows_of(('zoe', [(5, 1), (5, 0)], 5, 1))
    close(factorise(train, cold, 5), mean + ((1 - mean) + (0 - mean)) / (2 + RIDGE), eps=0.2)


def test_the_probe():
    units = unit_texts(np.array([[0, 0], [2.0, 0], [0, 2], [-2, -2]]))
    close(np.linalg.norm(units, axis=1), [0, 1, 1, 1])
    one = rows_of(('ann', [(1, 1), (2, 0)], 1, 1), ('bob', [(2, 0)], 1, 0))
    close(probe_features(one, units)[:, :3], [[1, units[1] @ units[2], 0.5], [0, units[1] @ units[2], 0]])
    features = probe_features(one, unit_texts(np.eye(6)[:, :3]))
    close(text_probe(one_label, one, np.eye(6)[:, :3]), features[:, 0] - features[:, 1])


@pytest.mark.parametrize('method', SIMPLE)
def test_every_method_from_one_row_on(method):
    train_w, test_w, texts = small_world(n_users=800)
    for k in (1, 2, 3, 16, 64, 400):
        scores = simple_scores(method, train_w.take(np.arange(k)), test_w, 60, texts)
        assert scores.shape == (len(test_w),) and np.isfinite(scores).all()


def test_the_same_scores_twice():
    train_w, test_w, _ = small_world(n_users=800)
    equal(*(simple_scores('Matrix factorisation', train_w, test_w, 60) for _ in range(2)))


@pytest.mark.parametrize(
    'call, said',
    [
        (lambda: simple_scores('History likerate', train, eve, 5), "Did you mean 'History like-rate'"),
        (
            lambda: simple_scores('Item mean', train, eve, 4),
            'Row 2 of the target rows has an item outside 1..4',
        ),
        (lambda: simple_scores(SIMPLE[-1], train, eve, 5), 'got None'),
        (lambda: simple_scores('Item mean', train.take(np.arange(0)), eve, 5), 'training rows are empty'),
    ],
)
def test_what_is_refused(call, said):
    with pytest.raises(LlmrecError) as error:
        call()
    assert said in str(error.value)
