"The rehearsal of a tuning step: to the byte as a real step, for every way of holding weights and activations."

import logging

import pytest
import torch
from transformers import LlamaConfig

from llmrec.llm.memory import StepPlan, linear_bytes, part_of, scales
from llmrec.llm.memory_step import loaded, planned, rehearse, taken, with_layers
from llmrec.llm.tuning import TuningConfig

pytest.importorskip('bitsandbytes')
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU rounds what it allocates')

SMALL = LlamaConfig(
    vocab_size=1000,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=512,
)
LORA = TuningConfig(lora_alpha=16)
PLANS = [
    StepPlan(w, c, 3, 20, loss)
    for w in ('none', '8bit', '4bit')
    for c, loss in (('off', 'answer'), ('on', 'answer'), ('reentrant', 'answer'), ('off', 'all'))
]


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger('bitsandbytes.autograd._functions').setLevel(logging.ERROR)


@pytest.mark.parametrize('plan', PLANS, ids=lambda p: f'{p.weights}-{p.checkpointing}-{p.loss}')
def test_a_rehearsal_is_a_real_step_to_the_byte(plan):
    with loaded(SMALL, plan, LORA) as model:
        real = taken(model, plan)
        for name, m in model.named_modules():
            if (
                part_of(name) == 'linear layers'
                and hasattr(m, 'in_features')
                and hasattr(m, 'weight')
                and not hasattr(m, 'lora_A')
            ):
                beside = [] if plan.weights == 'none' else scales(m)
                bytes_ = sum(t.numel() * t.element_size() for t in [m.weight, *beside])
                assert bytes_ == linear_bytes(m.out_features, m.in_features, plan.weights), name
    assert rehearse(SMALL, plan, LORA) == real


@pytest.mark.parametrize('plan', PLANS[1::5], ids=lambda p: f'{p.weights}-{p.checkpointing}-{p.loss}')
def test_two_rehearsals_tell_of_any_number_of_blocks(plan):
    five = with_layers(SMALL, 5)
    assert planned(five, plan, LORA) == rehearse(five, plan, LORA)
