"Tuning: what is refused, and adapters of another shape or from elsewhere."
import dataclasses
import json

import numpy as np
import pytest
import torch
from fastcore.test import test_eq as same
from fastcore.test import test_fail as fails
from safetensors.torch import load_file

from llmrec.llm.backbones import BackboneConfig, load_backbone
from llmrec.llm.prompts import LlamaRecPromptConfig, encode_example, fit_prompt, letters
from llmrec.llm.rec_tuning import RECIPE, AlpacaTuningConfig, RecTuningConfig
from llmrec.llm.tuning import (TuningConfig, draw_candidates, misfit, sample_negatives, training_rows, tune,
                               with_adapter)
from llmrec.paths import output_to
from llmrec.runs.records import write_atomic

WORDS = ['', *'star war king dead dark blue red black white city girl boy'.split()]
quick = TuningConfig(target_modules='all-linear', lr=1e-2, warmup_steps=5, eval_steps=20)


@pytest.fixture
def load_tiny(tmp_path):
    def load(**kw):
        with output_to(tmp_path / 'models'): return load_backbone(BackboneConfig('tiny-metaspace', **kw))
    return load

@pytest.fixture
def bb(load_tiny): return load_tiny()

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
    fails(lambda: tune(bb, learnable, lambda m: dict(MRR=1.), dataclasses.replace(quick, max_steps=1),
                           f'{d}/b'), contains="not 'NDCG@10'")
    fails(lambda: tune(bb, learnable, None, dataclasses.replace(quick, max_steps=1), f'{d}/c'),
              contains='still zero')
    fails(lambda: with_adapter(bb, d), contains='no adapter')
    other = tune(bb, learnable, None, dataclasses.replace(quick, max_steps=6), f'{d}/other')
    fails(lambda: with_adapter(load_tiny(seed=1), other), contains='it was made for tiny-metaspace-llama')
    narrow = dataclasses.replace(quick, lora_r=4, max_steps=6)
    fails(lambda: tune(bb, learnable, None, narrow, f'{d}/d', start=other),
              contains='has r 8 and the settings 4')
    few = dataclasses.replace(quick, target_modules=('q_proj',), max_steps=6)
    fails(lambda: tune(bb, learnable, None, few, f'{d}/e', start=other),
              contains='set TuningConfig.target_modules')
    fails(lambda: tune(load_tiny(seed=1), learnable, None, quick, f'{d}/f', start=other),
              contains='does not fit the backbone')

def test_adapters_of_another_shape_and_from_elsewhere(bb, learnable, load_tiny, tmp_path):
    d = tmp_path
    made = tune(bb, learnable, None, dataclasses.replace(quick, target_modules=('q_proj', 'v_proj'),
                                                         max_steps=6), f'{d}/made')
    config = json.loads((made / 'adapter_config.json').read_text())
    foreign = config | dict(base_model_name_or_path='somebody/llama')
    write_atomic(made / 'adapter_config.json', json.dumps(foreign))
    tuned = with_adapter(load_tiny(), made)
    same('+adapter-' in tuned.identity, True)
    weights = load_file(made / 'adapter_model.safetensors')
    same(misfit(bb.model, weights), '')
    same(misfit(bb.model, {'base_model.model.model.layers.9.q_proj.lora_A.weight': torch.zeros(8, 64)}),
            'it corrects model.layers.9.q_proj, which the backbone does not have')
    wide = {k: torch.cat([v, v], 1) if 'lora_A' in k else v for k, v in weights.items()}
    same(misfit(bb.model, wide).endswith("has size 128 and the backbone's 64"), True)

def test_rows_and_negatives():
    offsets, items = np.array([0, 3, 4, 4, 6]), np.array([5, 6, 7, 8, 1, 2])
    same(len(training_rows(offsets, items, 2)[0]), 2)
    fails(lambda: training_rows([0, 3], items), contains='do not belong')
    rng = np.random.default_rng(0)
    draws = np.concatenate([sample_negatives(rng, 6, [2, 5, 2], 3, 2) for _ in range(3000)])
    same(np.unique(draws).tolist(), [1, 4, 6])
    assert np.abs(np.bincount(draws)[[1, 4, 6]] / len(draws) - 1 / 3).max() < .02
    same(len(sample_negatives(rng, 4, [2, 1], 3, 9, distinct=False)), 9)

def test_shuffled_candidates_hold_the_target_and_nothing_of_the_history():
    mixed = draw_candidates(np.random.default_rng(0), 9, [1], 4, 5, TuningConfig())
    same((len(mixed), 4 in mixed, 1 in mixed), (5, True, False))

def test_the_recipes_of_both_stages():
    both = RecTuningConfig.as_published(), RecTuningConfig.corrected()
    same([c.prompt.loss for c in both], ['prompt+answer', 'answer'])
    same((RECIPE.lora_r, RECIPE.lora_alpha, RECIPE.lora_dropout, RECIPE.schedule), (8, 16, .05, 'linear'))
    same(AlpacaTuningConfig.corrected().tuning.lr, 3e-4)
