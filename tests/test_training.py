"The training loop: its batches, and a run that was killed and goes on."

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from llmrec.paths import LlmrecError
from llmrec.sequential.training import Task, TrainingConfig, batches, fit, schedule

SPANS = np.stack([np.arange(100)] * 2, 1)
TOY = TrainingConfig(batch_size=10, epochs=6, validate_every=15, patience=3, lr=0.01)


class Killed(Exception):
    pass


def toy_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.3), nn.Linear(8, 1))


def toy_loss(model, spans):
    x = torch.from_numpy(spans[:, :1].astype(np.float32)) / 100
    return ((model(x) - 2 * x) ** 2).mean()


def toy_score(model):
    model.eval()
    return -float(toy_loss(model, SPANS))


TASK = Task(toy_loss, toy_score, SPANS)


def killed_after(n):
    calls = iter(range(n))

    def f(model, spans):
        if next(calls, None) is None:
            raise Killed
        return toy_loss(model, spans)

    return f


def test_the_named_configurations():
    assert TrainingConfig.corrected(seed=1).valid_mask == 'whole'
    assert TrainingConfig.as_published() == TrainingConfig()


def test_the_batches_of_an_epoch():
    cfg = TrainingConfig(batch_size=4)
    assert [len(b) for b in batches(10, cfg, 0)] == [4, 4, 2]
    assert sorted(np.concatenate(batches(10, cfg, 3))) == list(range(10))
    assert (batches(10, cfg, 3)[0] == batches(10, cfg, 3)[0]).all()
    assert (batches(10, cfg, 0)[0] != batches(10, cfg, 1)[0]).any()


def test_the_schedule_goes_on_from_any_iteration():
    cfg = TrainingConfig(batch_size=4, epochs=2)
    every = batches(10, cfg, 0) + batches(10, cfg, 1)
    for start in range(7):
        assert [b.tolist() for b in schedule(10, cfg, start)] == [b.tolist() for b in every[start:]]


def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path):
    undisturbed, resumed, file = toy_model(), toy_model(), tmp_path / 'state.pt'
    state = fit(undisturbed, TASK, TOY, progress=False)
    with pytest.raises(Killed):
        fit(toy_model(), replace(TASK, loss=killed_after(37)), TOY, file, progress=False)
    again = fit(resumed, TASK, TOY, file, progress=False)
    for a, b in zip(undisturbed.parameters(), resumed.parameters()):
        assert torch.equal(a, b)
    assert state.curve == again.curve
    assert state.curve[0][0] == 0
    assert abs(toy_score(undisturbed) - state.best) < 1e-5


@pytest.mark.parametrize(
    'other',
    [lambda: nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.3), nn.Linear(8, 2)), lambda: nn.Linear(1, 1)],
    ids=['another catalogue', 'another model'],
)
def test_the_checkpoint_of_another_model_is_refused(tmp_path, other):
    file = tmp_path / 'state.pt'
    with pytest.raises(Killed):
        fit(toy_model(), replace(TASK, loss=killed_after(37)), TOY, file, progress=False)
    with pytest.raises(LlmrecError, match='belongs to another run'):
        fit(other(), TASK, TOY, file, progress=False)
