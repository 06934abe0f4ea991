"Ranking in one pass: batches, padding, rows of the head, scores of the plain forward pass, ties, two rounds."

import copy
import dataclasses

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from llmrec.llm.backbones import BackboneConfig, load_backbone
from llmrec.llm.prompts import LlamaRecPromptConfig, encode_prompt, render
from llmrec.llm.ranking import (
    head_rows,
    in_two_rounds,
    kept_logits,
    left_padded,
    length_batches,
    letter_logits,
    rank_candidates,
    score_candidates,
    usable_rows,
)
from llmrec.llm.verbalizer import letter_ids
from llmrec.paths import LlmrecError, output_to

TITLES = ['Blue King', 'Snow', 'The Long Night', 'War Child', 'Return']


@pytest.fixture(scope='module')
def bb(tmp_path_factory):
    with output_to(tmp_path_factory.mktemp('out')):
        return load_backbone(BackboneConfig())


@pytest.fixture(scope='module')
def prompts(bb):
    texts = [render(TITLES[:i] * i, TITLES[i:] + TITLES[:i]) for i in range(1, 5)] + [render([], TITLES)]
    return [encode_prompt(bb.tokenizer, t, LlamaRecPromptConfig()) for t in texts]


@pytest.fixture(scope='module')
def ids(bb):
    return letter_ids(bb.tokenizer, 5)


@pytest.fixture(scope='module')
def others(bb):
    "A Gemma 2, which soft-caps its logits, and a GPT-2."
    torch.manual_seed(0)
    shape = dict(vocab_size=len(bb.tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    gemma = Gemma2ForCausalLM(Gemma2Config(**shape, intermediate_size=32, num_key_value_heads=1, head_dim=16))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(bb.tokenizer), n_embd=32, n_layer=2, n_head=2))
    return gemma.eval(), gpt2.eval()


def close(a, b, eps):
    return np.abs(np.asarray(a) - np.asarray(b)).max() <= eps


def plain(model, prompts, ids):
    with torch.no_grad():
        return np.stack([model(torch.tensor([p])).logits[0, -1, ids].numpy() for p in prompts])


def test_batches_of_similar_length():
    assert [b.tolist() for b in length_batches([3, 9, 1, 4, 4], 10)] == [[1], [3, 4], [0, 2]]
    assert length_batches([], 10) == []
    assert [b.tolist() for b in length_batches([50], 10)] == [[0]]


def test_padding_on_the_left():
    batch = left_padded([[7, 8, 9], [5]], 0)
    assert batch['input_ids'].tolist() == [[7, 8, 9], [0, 0, 5]]
    assert batch['position_ids'].tolist() == [[0, 1, 2], [0, 0, 0]]


@torch.no_grad()
def test_logits_at_some_positions(bb, prompts):
    batch = left_padded(prompts, bb.tokenizer.pad_token_id)
    width = batch['input_ids'].shape[1]
    some = kept_logits(bb.model, batch, torch.tensor([width - 3, width - 1]))
    assert close(some, bb.model(**batch).logits[:, [-3, -1]], 1e-5)


@torch.no_grad()
def test_rows_of_the_head(bb, prompts, ids):
    batch, t = left_padded(prompts, bb.tokenizer.pad_token_id), torch.as_tensor(ids)
    full = bb.model(**batch).logits[:, -1][:, t]
    assert close(letter_logits(bb.model, batch, t), full, 1e-5)
    assert close(letter_logits(bb.model, batch, t, head_rows(bb.model, t)), full, 1e-5)
    two = torch.stack([t, t + 1], 1)
    by_rows, by_head = (
        letter_logits(bb.model, batch, two, head_rows(bb.model, two)),
        letter_logits(bb.model, batch, two),
    )
    assert close(by_rows, by_head, 1e-5)


@torch.no_grad()
def test_few_rows_are_multiplied_in_float32(bb, prompts, ids):
    half, t = copy.deepcopy(bb.model).bfloat16(), torch.as_tensor(ids)
    many = left_padded([p[:n] for p in prompts for n in range(20, len(p), 3)], bb.tokenizer.pad_token_id)
    by_head, by_rows = letter_logits(half, many, t), letter_logits(half, many, t, head_rows(half, t))
    assert len(by_rows.unique()) > 1.25 * len(by_head.unique())
    assert close(by_rows, by_head, 0.05)


def test_rows_are_used_where_logits_are_untouched(bb, others, prompts, ids):
    one, t = left_padded(prompts[:1], 0), torch.as_tensor(ids)
    with torch.no_grad():
        assert [usable_rows(m, one, t) is None for m in (*others, bb.model)] == [True, False, False]


@pytest.mark.parametrize('size', [1, 400, 8192, 10**6])
def test_scores_are_the_plain_ones_in_batches_of_any_size(bb, prompts, ids, size):
    assert close(score_candidates(bb, prompts, ids, size), plain(bb.model, prompts, ids), 1e-5)


def test_scores_are_the_plain_ones_in_other_architectures(bb, others, prompts, ids):
    for m in others:
        assert close(
            score_candidates(dataclasses.replace(bb, model=m), prompts, ids), plain(m, prompts, ids), 1e-5
        )


def test_scores_are_the_plain_ones_with_an_adapter(bb, prompts, ids):
    torch.manual_seed(0)
    adapter = LoraConfig(target_modules=['q_proj', 'v_proj'], init_lora_weights=False)
    lora = get_peft_model(copy.deepcopy(bb.model), adapter)
    scores = score_candidates(dataclasses.replace(bb, model=lora), prompts, ids)
    assert close(scores, plain(lora.eval(), prompts, ids), 1e-5)
    assert not close(scores, score_candidates(bb, prompts, ids), 1e-4)


def test_both_forms_fewer_candidates_and_no_prompts(bb, prompts, ids):
    both = score_candidates(bb, prompts, np.stack([ids, ids], 1))
    assert close(both, score_candidates(bb, prompts, ids) + np.log(2), 1e-5)
    short = score_candidates(bb, prompts, ids, sizes=[5, 3, 5, 1, 2])
    assert np.isinf(short).sum(1).tolist() == [0, 2, 0, 4, 3]
    assert score_candidates(bb, [], ids).shape == (0, 5)


def test_ranks():
    assert rank_candidates([[1.0, 3.0, 1.0, 2.0]], [[10, 20, 30, 40]]).tolist() == [[20, 40, 10, 30]]
    assert rank_candidates([[0.0, -np.inf, 2.0]], [[10, 0, 30]]).tolist() == [[30, 10, 0]]
    with pytest.raises(LlmrecError, match='not numbers'):
        rank_candidates([[np.nan]], [[1]])
    with pytest.raises(LlmrecError, match='do not belong'):
        rank_candidates([[1.0]], [[1, 2]])


def test_two_rounds():
    many = np.stack([np.random.default_rng(u).permutation(50) for u in range(3)])
    knows, indifferent = (lambda shown: -shown), (lambda shown: shown * 0.0)
    assert in_two_rounds(many, knows, 10)[:, :2].tolist() == [[0, 1]] * 3
    assert np.sort(in_two_rounds(many, indifferent, 20)).tolist() == [list(range(50))] * 3
    assert (in_two_rounds(many[:, :8], knows, 10) == np.sort(many[:, :8])).all()
    with pytest.raises(LlmrecError, match='too many for a second round'):
        in_two_rounds(many, knows, 5)
