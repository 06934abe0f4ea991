"Tuning: what is refused, and adapters of another shape or from elsewhere."

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from fastcore.test import test_eq as same
from fastcore.test import test_fail as fails
from safetensors.torch import load_file

from llmrec.llm.backbones import BackboneConfig, load_backbone
from llmrec.llm.prompts import LlamaRecPromptConfig, encode_example, fit_prompt, letters
from llmrec.llm.rec_tuning import RECIPE, AlpacaTuningConfig, RecTuningConfig
from llmrec.llm.tuning import (
    Session,
    TuningConfig,
    draw_candidates,
    misfit,
    sample_negatives,
    training_rows,
    tune,
    with_adapter,
)
from llmrec.paths import output_to
from llmrec.runs.records import write_atomic

WORDS = ['', *'star war king dead dark blue red black white city girl boy'.split()]
quick = TuningConfig(target_modules='all-linear', lr=1e-2, warmup_steps=5, eval_steps=20)


@pytest.fixture
def load_tiny(tmp_path):
    def load(**kw):
        with output_to(tmp_path / 'models'):
            return load_backbone(BackboneConfig('tiny-metaspace', **kw))

    return load


@pytest.fixture
def bb(load_tiny):
    return load_tiny()


@pytest.fixture
def learnable(bb):
    "Rows whose right candidate repeats the history."
    right = np.random.default_rng(0).integers(6, size=640)
    cfg = LlamaRecPromptConfig()
    prompts = [fit_prompt(bb.tokenizer, [WORDS[1 + r]] * 3, WORDS[1:7], cfg) for r in right]
    pairs = [encode_example(bb.tokenizer, p, letters(6)[r], cfg) for p, r in zip(prompts, right)]
    return [dict(input_ids=i, labels=l) for i, l in pairs]


def test_what_is_refused(bb, learnable, load_tiny, tmp_path):
    d = tmp_path
    fails(lambda: tune(bb, [], None, quick, f'{d}/a'), contains='no training rows')
    fails(
        lambda: tune(
            bb, learnable, lambda m: dict(MRR=1.0), dataclasses.replace(quick, max_steps=1), f'{d}/b'
        ),
        contains="not 'NDCG@10'",
    )
    fails(
        lambda: tune(bb, learnable, None, dataclasses.replace(quick, max_steps=1), f'{d}/c'),
        contains='still zero',
    )
    fails(lambda: with_adapter(bb, d), contains='no adapter')
    other = tune(bb, learnable, None, dataclasses.replace(quick, max_steps=6), f'{d}/other')
    fails(lambda: with_adapter(load_tiny(seed=1), other), contains='it was made for tiny-metaspace-llama')
    narrow = dataclasses.replace(quick, lora_r=4, max_steps=6)
    fails(
        lambda: tune(bb, learnable, None, narrow, f'{d}/d', Session(other)),
        contains='has r 8 and the settings 4',
    )
    few = dataclasses.replace(quick, target_modules=('q_proj',), max_steps=6)
    fails(
        lambda: tune(bb, learnable, None, few, f'{d}/e', Session(other)),
        contains='set TuningConfig.target_modules',
    )
    fails(
        lambda: tune(load_tiny(seed=1), learnable, None, quick, f'{d}/f', Session(other)),
        contains='does not fit the backbone',
    )


def test_adapters_of_another_shape_and_from_elsewhere(bb, learnable, load_tiny, tmp_path):
    d = tmp_path
    made = tune(
        bb,
        learnable,
        None,
        dataclasses.replace(quick, target_modules=('q_proj', 'v_proj'), max_steps=6),
        f'{d}/made',
    )
    config = json.loads((made / 'adapter_config.json').read_text())
    foreign = config | dict(base_model_name_or_path='somebody/llama')
    write_atomic(made / 'adapter_config.json', json.dumps(foreign))
    tuned = with_adapter(load_tiny(), made)
    same('+adapter-' in tuned.identity, True)
    weights = load_file(made / 'adapter_model.safetensors')
    same(misfit(bb.model, weights), '')
    same(
        misfit(bb.model, {'base_model.model.model.layers.9.q_proj.lora_A.weight': torch.zeros(8, 64)}),
        'it corrects model.layers.9.q_proj, which the backbone does not have',
    )
    wide = {k: torch.cat([v, v], 1) if 'lora_A' in k else v for k, v in weights.items()}
    same(misfit(bb.model, wide).endswith("has size 128 and the backbone's 64"), True)


def test_rows_and_negatives():
    offsets, items = np.array([0, 3, 4, 4, 6]), np.array([5, 6, 7, 8, 1, 2])
    same(len(training_rows(offsets, items, 2)[0]), 2)
    fails(lambda: training_rows([0, 3], items), contains='do not belong')
    rng = np.random.default_rng(0)
    draws = np.concatenate([sample_negatives(rng, 6, [2, 5, 2], 3, 2) for _ in range(3000)])
    same(np.unique(draws).tolist(), [1, 4, 6])
    assert np.abs(np.bincount(draws)[[1, 4, 6]] / len(draws) - 1 / 3).max() < 0.02
    same(len(sample_negatives(rng, 4, [2, 1], 3, 9, distinct=False)), 9)


def test_shuffled_candidates_hold_the_target_and_nothing_of_the_history():
    mixed = draw_candidates(np.random.default_rng(0), 9, [1, 4], 5, TuningConfig())
    same((len(mixed), 4 in mixed, 1 in mixed), (5, True, False))


def test_the_recipes_of_both_stages():
    both = RecTuningConfig.as_published(), RecTuningConfig.corrected()
    same([c.prompt.loss for c in both], ['prompt+answer', 'answer'])
    same((RECIPE.lora_r, RECIPE.lora_alpha, RECIPE.lora_dropout, RECIPE.schedule), (8, 16, 0.05, 'linear'))
    same(AlpacaTuningConfig.corrected().tuning.lr, 3e-4)


# --- watching from outside


class Listener:
    "A reporter that keeps what it is told."

    heard = []

    def __init__(self):
        self.heard.clear()

    def __getattr__(self, name):
        if not name.startswith('on_'):
            raise AttributeError(name)
        return lambda args, state, control, logs=None, **kw: (
            self.heard.append((state.global_step, logs)) if name == 'on_log' else None
        )


@pytest.fixture
def listening(monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, 'listener', Listener)
    return Listener.heard


def adapter_of(bb, rows, folder, **changes):
    cfg = dataclasses.replace(quick, max_steps=4, eval_steps=2, warmup_steps=0, batch_size=2, **changes)
    measured = iter(range(9))
    return tune(bb, rows[:16], lambda m: {'NDCG@10': float(next(measured))}, cfg, folder)


def test_a_reporter_hears_every_loss_and_changes_nothing(bb, learnable, listening, tmp_path):
    plain, heard = (adapter_of(bb, learnable, tmp_path / str(r), report_to=r) for r in (None, 'listener'))
    for name in (
        'adapter/adapter_model.safetensors',
        'adapter/adapter_config.json',
        'tuning.json',
        'history.json',
    ):
        assert (plain.parent / name).read_bytes() == (heard.parent / name).read_bytes()
    told = {(step, k): v for step, logs in listening for k, v in logs.items()}
    losses = [h for h in json.loads((heard.parent / 'history.json').read_text()) if 'loss' in h]
    assert len(losses) == 2 and all(told[h['step'], 'loss'] == h['loss'] for h in losses)
    assert [told[s, 'eval_NDCG@10'] for s in (2, 4)] == [0, 1]
    listening.clear()
    assert (
        adapter_of(bb, learnable, tmp_path / 'None', report_to='listener') == plain and not listening
    )  # finished before


def test_tensorboard_writes_into_the_folder_of_the_tuning(bb, learnable, tmp_path, monkeypatch):
    pytest.importorskip('tensorboardX')
    monkeypatch.delenv('TENSORBOARD_LOGGING_DIR', raising=False)
    adapter_of(bb, learnable, tmp_path / 'a', report_to='tensorboard')
    (events,) = (tmp_path / 'a' / 'tensorboard').glob('events.out.tfevents.*')
    assert (
        b'train/loss' in events.read_bytes() and b'eval/NDCG' in events.read_bytes()
    )  # tensorboardX writes _ for @
    assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == [
        'adapter',
        'history.json',
        'tensorboard',
        'tuning.json',
    ]


def test_a_reporter_that_cannot_be_used_is_named_before_anything_is_tuned(
    bb, learnable, monkeypatch, tmp_path
):
    from transformers.integrations import integration_utils

    fails(
        lambda: adapter_of(bb, learnable, tmp_path / 'a', report_to='tensorbord'),
        contains="Did you mean 'tensorboard'?",
    )
    monkeypatch.setattr(integration_utils, 'is_tensorboard_available', lambda: False)
    fails(
        lambda: adapter_of(bb, learnable, tmp_path / 'b', report_to='tensorboard'),
        contains='install it, or leave report_to out',
    )
    assert not list(tmp_path.rglob('checkpoint-*'))


def test_a_tuning_shows_how_far_it_is_and_how_long_it_will_take(bb, learnable, tmp_path, capfd):
    cfg = dataclasses.replace(quick, max_steps=4, eval_steps=4, warmup_steps=0, batch_size=2)
    for progress in (False, True):
        tune(bb, learnable[:16], None, cfg, tmp_path / str(progress), Session(progress=progress))
        said = capfd.readouterr().err
        assert bool(re.search(r'4/4 \[\d\d:\d\d<\d\d:\d\d', said)) == progress, said
