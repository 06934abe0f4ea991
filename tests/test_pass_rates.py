"""The count of operations beside PyTorch's own counter, and what the shares are made of."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmrec.experiments import pass_rates
from llmrec.llm.backbones import BackboneConfig, load_backbone
from llmrec.paths import LlmrecError


@pytest.fixture(scope='module')
def model():
    return load_backbone(BackboneConfig('miniature'))


def counted(model, tokens: int) -> tuple[int, int]:
    "Operations of the products with weights and of attention in one pass over the blocks, as PyTorch counts them."
    ids = torch.arange(tokens)[None] + 5
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # it knows no fused attention
        model.base_model(input_ids=ids, use_cache=False)
    by_name = {str(op): n for op, n in counter.get_flop_counts()['Global'].items()}
    attention = sum(n for op, n in by_name.items() if 'attention' in op or 'bmm' in op)
    return sum(by_name.values()) - attention, attention


@pytest.mark.parametrize('tokens', [7, 64, 150])
def test_a_pass_has_the_operations_that_pytorch_counts(model, tokens):
    weights, attention = counted(model.model, tokens)
    assert weights > 0 and attention > 0
    # a causal mask removes half of the pairs, which PyTorch's counter does not subtract
    assert pass_rates.operations(model.model, [tokens]) == pytest.approx(weights + attention / 2)


def test_a_common_prefix_is_counted_once(model):
    once, three = (
        pass_rates.operations(model.model, [90]),
        pass_rates.operations(model.model, [90, 90, 90], 90),
    )
    assert three == pytest.approx(once)
    some = pass_rates.operations(model.model, [90, 120], 60)
    assert once < some < pass_rates.operations(model.model, [90, 120])


def test_the_record_holds_what_the_table_says(model, tmp_path, monkeypatch):
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    cfg = pass_rates.make_config(
        'miniature', 'float32', questions='films', lists='films', prompts=3, users=2, repeats=2
    )
    record = pass_rates.run(cfg, 'miniature')
    assert {k: v.shape for k, v in record.arrays.items()} == {
        'ceiling': (2,),
        'questions': (2, 2),
        'lists': (2, 2),
    }
    table = pass_rates.rate_table({'float32': record})
    r = record.metrics['operations']['lists'] / record.arrays['lists'][:, 1] / record.arrays['ceiling']
    assert table.row(1, named=True)['share'] == pytest.approx(np.median(r))
    again = pass_rates.run(cfg, 'miniature')
    assert again.arrays['lists'].tolist() == record.arrays['lists'].tolist()  # not measured twice


def test_a_measurement_of_nothing_is_refused():
    with pytest.raises(LlmrecError, match='prompts must be at least 1, got 0'):
        pass_rates.make_config(
            'miniature', 'float32', questions='films', lists='films', prompts=0, users=1, repeats=1
        )


@pytest.mark.parametrize('rate, width', [(1e12, 2048), (2e9, 512), (1e6, 256)])
def test_the_ceiling_of_a_slow_number_type_comes_from_smaller_matrices(rate, width, monkeypatch):
    "On a clock of which a product of n x n matrices takes 2 n^3 / rate seconds."
    sizes = []
    monkeypatch.setattr(pass_rates, 'product_of', lambda dtype, n: sizes.append(n) or n)
    monkeypatch.setattr(pass_rates, 'timed', lambda n: (np.full(2, 2 * n**3 / rate), None))
    assert pass_rates.ceiling(torch.bfloat16) == pytest.approx(rate)
    assert sizes == [256, width]
