"Ranking by generation: hand-written answers are parsed as a person would, the same text comes out however it is batched, and bad input is named."

import copy
import dataclasses

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmrec.evaluation.ranking import summary
from llmrec.llm.backbones import Backbone, prepare_tokenizer
from llmrec.llm.tiny import byte_tokenizer, default_texts, metaspace_tokenizer
from llmrec.llm.generation import (
    ASK_FOR_TITLES,
    GenerationPromptConfig,
    ParsedRanking,
    Rules,
    answer_tokens,
    generate_batch,
    generate_rankings,
    generation_prompt,
    order_scores,
    parse_ranking,
)
from llmrec.llm.prompts import INSTRUCTION, encode_prompt, prompt_ids, render
from llmrec.llm.ranking import rank_candidates
from llmrec.paths import LlmrecError

POOL = ['Lantern, The (1961)', '1. FC Elster', 'Éclair', 'Moor & Sons', 'Moor & Sons', '"Quoted" Life']
NAMES = dict(unk_token='<unk>', bos_token='<s>', eos_token='</s>')


def tokenizer_of(make):
    return prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=make(default_texts()), **NAMES))


@pytest.fixture(scope='module', params=['llama', 'gpt2', 'lora'])
def backbone(request):
    "Three architectures with random weights; the second has absolute positions, the third an adapter."
    tokenizer = tokenizer_of(metaspace_tokenizer if request.param == 'lora' else byte_tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if request.param == 'gpt2':
            model = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=len(tokenizer),
                    n_embd=32,
                    n_layer=2,
                    n_head=2,
                    n_positions=400,
                    initializer_range=0.3,
                )
            )
        else:
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    max_position_embeddings=400,
                    initializer_range=0.3,
                )
            )
        if request.param == 'lora':
            model = get_peft_model(
                model, LoraConfig(target_modules=['q_proj', 'v_proj'], init_lora_weights=False)
            )
    return Backbone(model.eval(), tokenizer, request.param)


def greedy(backbone, prompt, limit, may_end=True):
    "Greedy search written out: one whole forward pass a token, no cache, no padding."
    ids, end = list(prompt), backbone.tokenizer.eos_token_id
    with torch.no_grad():
        while len(ids) < len(prompt) + limit:
            logits = backbone.model(input_ids=torch.tensor([ids])).logits[0, -1].clone()
            if not may_end:
                logits[end] = -torch.inf
            if (best := int(logits.argmax())) == end:
                break
            ids.append(best)
    return backbone.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)


def prompts(backbone):
    return [
        prompt_ids(backbone.tokenizer, generation_prompt(backbone.tokenizer, ['Snow'] * k, POOL[:2]))
        for k in (4, 0, 9, 1, 2)
    ]


# --- generation


def test_text_is_that_of_greedy_search_however_it_is_batched(backbone):
    asked, limits = prompts(backbone), [9, 4, 1, 12, 6]
    oracle = [greedy(backbone, p, limit) for p, limit in zip(asked, limits)]
    for size in (1, 2, 5, 64):
        assert generate_rankings(backbone, asked, limits, size) == oracle
    assert generate_rankings(backbone, asked, limits, progress=True) == oracle


def test_the_end_token_ends_one_row_and_not_the_batch(backbone):
    "A token that the model writes sooner in one row than in another is made the EOS token."
    asked, n = prompts(backbone), 8

    def with_end(token):
        tokenizer = copy.deepcopy(backbone.tokenizer)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(token)
        return dataclasses.replace(backbone, tokenizer=tokenizer)

    rows = generate_batch(backbone, asked, [n] * len(asked), Rules(to_the_end=True))
    stops = {t: [row.index(t) if t in row else n for row in rows] for row in rows for t in row}
    token = max(stops, key=lambda t: len(dict.fromkeys(stops[t])))
    assert len(dict.fromkeys(stops[token])) > 1
    ended = with_end(token)
    assert [len(row) for row in generate_batch(ended, asked, [n] * len(asked))] == stops[token]
    for size in (1, 5):
        assert generate_rankings(ended, asked, n, size) == [greedy(ended, p, n) for p in asked]
    assert generate_rankings(ended, asked, n, 2, Rules(to_the_end=True)) == [
        greedy(ended, p, n, may_end=False) for p in asked
    ]


def test_a_generation_config_that_samples_is_overruled(backbone):
    asked, inner = (
        prompts(backbone),
        backbone.model.get_base_model() if hasattr(backbone.model, 'get_base_model') else backbone.model,
    )
    plain, kept = generate_rankings(backbone, asked, 8), inner.generation_config.to_dict()
    inner.generation_config.update(do_sample=True, num_beams=3)
    try:
        assert generate_rankings(backbone, asked, 8) == plain == generate_rankings(backbone, asked, 8)
    finally:
        inner.generation_config.update(**kept)


def test_the_mode_of_the_model_is_put_back(backbone):
    backbone.model.train()
    try:
        generate_rankings(backbone, prompts(backbone)[:1], 2)
        assert backbone.model.training
    finally:
        backbone.model.eval()


@pytest.mark.parametrize(
    'asked, limits, size, said',
    [
        ([[1], []], 3, 2, ['Row 1', 'empty']),
        ([[1]], 0, 2, ['Row 0', '0 new tokens']),
        ([[1] * 390], 30, 2, ['Row 0', '390', '30', 'context of 400']),
        ([[1]], 3, 0, ['batch_size', '0']),
        ([[1], [1]], [3], 2, ['1 limits', '2 prompts']),
    ],
)
def test_bad_input_is_named(backbone, asked, limits, size, said):
    with pytest.raises(LlmrecError) as e:
        generate_rankings(backbone, asked, limits, size)
    for part in said:
        assert part in str(e.value)


# --- the prompt


@pytest.mark.parametrize('make', [byte_tokenizer, metaspace_tokenizer])
def test_the_prompt_differs_from_the_verbalizers_in_the_instruction_only(make):
    tokenizer, history = tokenizer_of(make), [f'Film {i}' for i in range(40)]
    prompt = generation_prompt(tokenizer, history, POOL)
    assert prompt.replace(ASK_FOR_TITLES, INSTRUCTION, 1) == render(history[-20:], POOL)
    for limit in (200, 320, 400):
        cfg = GenerationPromptConfig(max_text_tokens=limit)
        assert (
            len(encode_prompt(tokenizer, generation_prompt(tokenizer, history, POOL[:3], cfg), cfg)) <= limit
        )


def test_prompts_that_cannot_be_are_complained_about():
    tokenizer = tokenizer_of(byte_tokenizer)
    for call, said in (
        (lambda: GenerationPromptConfig(instruction=''), 'empty'),
        (lambda: answer_tokens(tokenizer, []), 'no candidates'),
        (
            lambda: generation_prompt(tokenizer, [], POOL, GenerationPromptConfig(max_text_tokens=50)),
            'without any history',
        ),
        (lambda: generation_prompt(tokenizer, [], ['x'] * 60), '60 candidates'),
    ):
        with pytest.raises(LlmrecError, match=said):
            call()


def test_the_answer_is_as_long_as_all_titles_one_a_line():
    tokenizer = tokenizer_of(byte_tokenizer)
    assert answer_tokens(tokenizer, POOL) == len(
        tokenizer('\n'.join(POOL), add_special_tokens=False)['input_ids']
    )


# --- the parser


@pytest.mark.parametrize(
    'text, order, unmatched, repeated, missing',
    [
        ('\n'.join(reversed(POOL)), (5, 3, 4, 2, 1, 0), 0, 0, 0),
        ('LANTERN,  the (1961)\r\néclair', (0, 2, 1, 3, 4, 5), 0, 0, 4),
        ('E\u0301clair', (2, 0, 1, 3, 4, 5), 0, 0, 5),  # composed and decomposed accents are one
        (
            '1. FC Elster\n2. Éclair\n(c) Moor & Sons;',
            (1, 2, 3, 0, 4, 5),
            0,
            0,
            3,
        ),  # a title that begins like a mark
        ('3) 1. FC Elster', (1, 0, 2, 3, 4, 5), 0, 0, 5),
        ('"Quoted" Life\n- “Éclair”,', (5, 2, 0, 1, 3, 4), 0, 0, 4),
        ('Moor & Sons\nMoor & Sons\nMoor & Sons', (3, 4, 0, 1, 2, 5), 0, 1, 4),  # two candidates of one title
        ('Eclair\nFC Elster\nLantern\nI suggest Éclair', (0, 1, 2, 3, 4, 5), 4, 0, 6),  # nothing cleverer
        ('Éclair Éclair\nÉclair\nÉclair', (2, 0, 1, 3, 4, 5), 1, 1, 5),
        ('', (0, 1, 2, 3, 4, 5), 0, 0, 6),
        (' \n\n\t', (0, 1, 2, 3, 4, 5), 0, 0, 6),
    ],
)
def test_hand_written_answers(text, order, unmatched, repeated, missing):
    parsed = parse_ranking(text, POOL)
    assert (parsed.order, len(parsed.unmatched), len(parsed.repeated), len(parsed.missing)) == (
        order,
        unmatched,
        repeated,
        missing,
    )
    assert parsed.named == len(POOL) - missing
    assert list(parsed.missing) == [POOL[i] for i in order[parsed.named :]]


def test_any_text_gives_every_candidate_once():
    rng = np.random.default_rng(0)
    pieces = [*POOL, '\n', '\n', '(A) ', '"', '. ', ' ', 'x', '\u2028']
    for _ in range(300):
        text = ''.join(rng.choice(pieces, size=rng.integers(0, 30)))
        parsed = parse_ranking(text, POOL)
        assert sorted(parsed.order) == list(range(len(POOL)))
        assert parsed.named + len(parsed.repeated) + len(parsed.unmatched) == sum(
            bool(line.strip()) for line in text.split('\n')
        )
        assert parse_ranking(text, POOL) == parsed


def test_orders_become_rankings_and_metrics():
    parsed = [parse_ranking('Éclair', POOL), parse_ranking('', POOL[:2])]
    scores = order_scores(parsed, 6)
    ranked = rank_candidates(scores, np.array([[10, 11, 12, 13, 14, 15], [20, 21, 0, 0, 0, 0]]))
    assert (
        ranked[0].tolist() == [12, 10, 11, 13, 14, 15]
        and ranked[1, :2].tolist() == [20, 21]
        and np.isinf(scores[1, 2:]).all()
    )
    assert summary(np.array([int(np.flatnonzero(ranked[0] == 12)[0]) + 1]))['Recall@1'] == 1
    with pytest.raises(LlmrecError, match='Row 0'):
        order_scores(parsed, 5)
    with pytest.raises(LlmrecError, match='no candidates'):
        parse_ranking('x', [])


def test_a_parsed_ranking_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ParsedRanking((0,), (), (), ()).order = ()
