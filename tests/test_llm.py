"""The language-model chapter: tokenizer families, verbalizer ids, one-pass scores, tuning that resumes and adapters that reload."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    LlamaTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    TrainerCallback,
)

from llmrec.llm import backbones
from llmrec.llm.backbones import BackboneConfig, load_backbone
from llmrec.llm.folders import file_fingerprint
from llmrec.llm.tiny import byte_tokenizer, default_texts, metaspace_tokenizer
from llmrec.llm.checkpoints import last_checkpoint
from llmrec.llm.prompts import (
    LlamaRecPromptConfig,
    encode_example,
    encode_prompt,
    fit_prompt,
    letters,
    render,
)
from llmrec.llm.ranking import rank_candidates, score_candidates
from llmrec.llm.loss import can_gather, collate, label_loss
from llmrec.llm.tuning import RankerRows, Session, TuningConfig, sample_negatives, tune, with_adapter
from llmrec.llm.verbalizer import letter_ids
from llmrec.paths import LlmrecError

WORDS = ['', *'star war king dead dark blue red black white city girl boy'.split()]
PROMPT = LlamaRecPromptConfig()


@dataclasses.dataclass(frozen=True)
class Sequences:
    offsets: np.ndarray
    items: np.ndarray
    n_items: int


SEQUENCES = Sequences(np.array([0, 6, 10]), np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 1]), 12)


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    "A place for the tiny backbones."
    before = os.environ.get('LLMREC_OUT')
    os.environ['LLMREC_OUT'] = str(tmp_path_factory.mktemp('llm'))
    yield Path(os.environ['LLMREC_OUT'])
    os.environ.pop('LLMREC_OUT')
    if before is not None:
        os.environ['LLMREC_OUT'] = before


@pytest.fixture(scope='module')
def tiny(out):
    return load_backbone(BackboneConfig('tiny-metaspace'))


def tokenizer(kind):
    "A toy tokenizer of the given family."
    names = dict(unk_token='<unk>', eos_token='</s>', pad_token='<unk>')
    if kind == 'metaspace':
        return PreTrainedTokenizerFast(
            tokenizer_object=metaspace_tokenizer(default_texts()), bos_token='<s>', **names
        )
    tok = byte_tokenizer(default_texts())
    if kind == 'byte':
        return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token='<s>', **names)
    single = {'byte, no start': '$A', 'byte, end appended': '$A </s>'}[kind]
    tok.post_processor = type(tok.post_processor)(single=single, special_tokens=[('</s>', 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, **names)


FAMILIES = ['metaspace', 'byte', 'byte, no start', 'byte, end appended']


@pytest.mark.parametrize('kind', FAMILIES)
def test_label_is_one_letter_and_end_in_every_family(kind):
    tok, prompt = tokenizer(kind), render(['One Film (1999)', 'Two'], ['x'] * 20)
    ids = letter_ids(tok, 20)
    for i, letter in enumerate(letters(20)):
        row, labels = encode_example(tok, prompt, letter, PROMPT)
        assert [l for l in labels if l != -100] == [ids[i], tok.eos_token_id] == row[-2:]
        assert row[:-2] == encode_prompt(tok, prompt, PROMPT)
        assert row.count(tok.eos_token_id) == 1
        assert tok.decode(row[-2:-1]).strip() == letter


@pytest.mark.parametrize(
    'cls, kind', [(LlamaTokenizer, 'metaspace'), (GPT2Tokenizer, 'byte'), (Qwen2Tokenizer, 'byte')]
)
def test_the_tokenizer_classes_of_transformers(cls, kind):
    base = tokenizer(kind)
    model = __import__('json').loads(base.backend_tokenizer.to_str())['model']
    tok = cls(
        vocab=model['vocab'],
        merges=[tuple(m) for m in model['merges']],
        unk_token='<unk>',
        eos_token='</s>',
        pad_token='<unk>',
    )
    ids = letter_ids(tok, 20)
    row, labels = encode_example(tok, render(['a'], ['b'] * 20), 'C', PROMPT)
    assert labels[-2:] == [ids[2], tok.eos_token_id]
    assert (ids != letter_ids(tok, 20, 'as_published')).all() == (cls is LlamaTokenizer)


def test_published_ids_miss_all_trained_ones_in_llama_style():
    tok = tokenizer('metaspace')
    trained, published = letter_ids(tok, 20), letter_ids(tok, 20, 'as_published')
    assert not np.isin(published, trained).any()
    assert (letter_ids(tok, 20, 'log_sum') == np.stack([trained, published], 1)).all()
    assert (letter_ids(tokenizer('byte'), 20) == letter_ids(tokenizer('byte'), 20, 'as_published')).all()


def test_more_candidates_than_labels_is_one_sentence_with_both_numbers():
    with pytest.raises(LlmrecError, match=r'60 candidates .* 1 to 52'):
        letter_ids(tokenizer('byte'), 60)
    few = PreTrainedTokenizerFast(
        tokenizer_object=metaspace_tokenizer(['A B C cab'] * 9), unk_token='<unk>', eos_token='</s>'
    )
    with pytest.raises(LlmrecError, match=r'6 candidates .* only 4'):
        letter_ids(few, 6, 'as_published')


@pytest.mark.parametrize('kind', FAMILIES)
def test_truncation_never_touches_answer_and_keeps_instruction(kind):
    tok, titles = tokenizer(kind), [f'A rather long title of film number {i}' for i in range(20)]
    short = LlamaRecPromptConfig(max_text_tokens=600)
    row, labels = encode_example(tok, fit_prompt(tok, titles * 3, titles[:5], short), 'B', short)
    assert len(row) <= 602 and tok.decode(row, skip_special_tokens=True).startswith('### Instruction')
    cut = dataclasses.replace(short, truncation='left', max_text_tokens=100)
    row, labels = encode_example(tok, fit_prompt(tok, titles, titles[:5], cut), 'B', cut)
    assert len(row) == 101 and '### Instruction' not in tok.decode(row)
    assert tok.decode(row[-2:-1]).strip() == 'B'


def small(cls, config, **kw):
    torch.manual_seed(0)
    sizes = (
        dict(n_embd=32, n_layer=2, n_head=2)
        if cls is GPT2LMHeadModel
        else dict(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    return cls(config(vocab_size=1000, initializer_range=0.2, **sizes, **kw)).eval()


@pytest.mark.parametrize(
    'cls, config, extra',
    [
        (GPT2LMHeadModel, GPT2Config, {}),
        (Qwen2ForCausalLM, Qwen2Config, {}),
        (MistralForCausalLM, MistralConfig, dict(sliding_window=16)),
        (Gemma2ForCausalLM, Gemma2Config, dict(head_dim=16, final_logit_softcapping=2.0)),
    ],
)
def test_scores_are_those_of_the_plain_forward_in_every_architecture(tiny, cls, config, extra):
    model, rng = small(cls, config, **extra), np.random.default_rng(0)
    bb = dataclasses.replace(tiny, model=model)
    prompts, ids = [rng.integers(3, 900, size=n).tolist() for n in (5, 60, 17, 33)], np.arange(100, 120)
    with torch.no_grad():
        want = np.stack([model(torch.tensor([p])).logits[0, -1, ids].numpy() for p in prompts])
    for batch_tokens in (1, 100, 10**6):
        assert np.abs(score_candidates(bb, prompts, ids, batch_tokens) - want).max() < 1e-4
    rows = [dict(input_ids=p, labels=[-100] * (len(p) - 2) + p[-2:]) for p in prompts]
    batch = collate(rows, 0)
    with torch.no_grad():
        gather = can_gather(model, rows[0])
    assert abs(label_loss(model, batch, gather).item() - model(**batch).loss.item()) < 1e-5


def test_ties_keep_the_retrievers_order():
    assert rank_candidates(np.zeros((1, 20)), np.arange(20)[None]).tolist() == [list(range(20))]


def test_negatives_are_uniform_over_what_the_user_has_not_met():
    draws = np.concatenate(
        [sample_negatives(np.random.default_rng(i), 9, [1, 9, 4], 5, 3) for i in range(4000)]
    )
    assert np.abs(np.bincount(draws, minlength=10)[[2, 3, 6, 7, 8]] / len(draws) - 0.2).max() < 0.02
    assert np.isin(draws, [2, 3, 6, 7, 8]).all()


SHORT = TuningConfig(lr=1e-2, warmup_steps=2, batch_size=2, eval_steps=3, max_steps=14, patience=9)


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kw):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def rows_of(bb, cfg=SHORT):
    return RankerRows(SEQUENCES, WORDS, bb.tokenizer, PROMPT, cfg, n_candidates=4)


def measure(bb):
    batch = collate([rows_of(bb)[i] for i in range(4)], bb.tokenizer.pad_token_id)
    return lambda model: {'NDCG@10': -label_loss(model, batch, True).item()}


def left_behind(folder):
    return [
        file_fingerprint(Path(folder) / n)
        for n in ('adapter/adapter_model.safetensors', 'adapter/adapter_config.json', 'history.json')
    ]


@pytest.mark.parametrize('step, accumulation', [(2, 1), (5, 1), (11, 2)])
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(tiny, tmp_path, step, accumulation):
    cfg = dataclasses.replace(SHORT, accumulation=accumulation)
    tune(tiny, rows_of(tiny), measure(tiny), cfg, tmp_path / 'calm')
    with pytest.raises(KeyboardInterrupt):
        tune(tiny, rows_of(tiny), measure(tiny), cfg, tmp_path / 'cut', Session(callbacks=[Kill(step)]))
    tune(tiny, rows_of(tiny), measure(tiny), cfg, tmp_path / 'cut')
    assert left_behind(tmp_path / 'calm') == left_behind(tmp_path / 'cut')


CHILD = """
import os, signal
from pathlib import Path
from llmrec.llm.backbones import BackboneConfig, load_backbone
from llmrec.llm.tuning import Session, tune
from tests.test_llm import SHORT, TrainerCallback, measure, rows_of
class Sigkill(TrainerCallback):
    def on_step_end(self, args, state, control, **kw):
        if state.global_step == 8: os.kill(os.getpid(), signal.SIGKILL)
bb = load_backbone(BackboneConfig('tiny-metaspace'))
tune(bb, rows_of(bb), measure(bb), SHORT, {folder!r}, Session(callbacks=[Sigkill()]))
"""


def test_sigkill_in_another_process_with_another_hash_seed(tiny, out, tmp_path):
    env = os.environ | dict(
        PYTHONHASHSEED='7', LLMREC_OUT=str(tmp_path), OMP_NUM_THREADS=str(torch.get_num_threads())
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(CHILD.format(folder=str(tmp_path / 'cut')))],
        env=env,
        cwd=root,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    name = f'data/miniature/backbone-{tiny.identity}/model.safetensors'
    assert (tmp_path / name).read_bytes() == (out / name).read_bytes()
    assert last_checkpoint(tmp_path / 'cut/work').name == 'checkpoint-6'
    for folder in ('calm', 'cut'):
        tune(tiny, rows_of(tiny), measure(tiny), SHORT, tmp_path / folder)
    assert left_behind(tmp_path / 'calm') == left_behind(tmp_path / 'cut')


def test_patience_stops_and_the_best_step_is_kept_even_after_a_kill_at_the_end(tiny, tmp_path, monkeypatch):
    given = iter([0.1, 0.5, 0.4, 0.3, 0.9, 0.9])
    cfg = dataclasses.replace(SHORT, patience=2)
    import llmrec.llm.tuning as module

    keep = module.save_adapter

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, 'save_adapter', killed)
    with pytest.raises(KeyboardInterrupt):
        tune(tiny, rows_of(tiny), lambda m: {'NDCG@10': next(given)}, cfg, tmp_path / 't')
    best = file_fingerprint(tmp_path / 't/work/checkpoint-6/adapter_model.safetensors')
    monkeypatch.setattr(module, 'save_adapter', keep)
    adapter = tune(tiny, rows_of(tiny), lambda m: {'NDCG@10': next(given)}, cfg, tmp_path / 't')
    assert file_fingerprint(adapter / 'adapter_model.safetensors') == best
    assert next(given) == 0.9  # four evaluations and no more


@pytest.mark.parametrize(
    'quantisation, dtype',
    [
        ('none', 'float32'),
        ('none', 'bfloat16'),
        ('4bit', 'bfloat16'),
        ('4bit', 'float32'),
        ('8bit', 'bfloat16'),
    ],
)
def test_an_adapter_folder_reopens_with_equal_scores(out, tmp_path, quantisation, dtype):
    cfg = BackboneConfig('tiny-metaspace', quantisation=quantisation, dtype=dtype)
    if quantisation != 'none':
        pytest.importorskip('bitsandbytes', reason='quantised weights need bitsandbytes')
    bb, seen = load_backbone(cfg), {}
    rows = rows_of(bb)
    prompts = [rows[i]['input_ids'][:-2] for i in range(4)]
    ids = letter_ids(bb.tokenizer, 4)

    def evaluate(model):
        seen['last'] = score_candidates(dataclasses.replace(bb, model=model), prompts, ids)
        return {'NDCG@10': float(len(seen))}

    base = score_candidates(bb, prompts, ids)
    folder = tune(
        bb,
        rows,
        evaluate,
        dataclasses.replace(SHORT, max_steps=3, gradient_checkpointing=True),
        tmp_path / 't',
    )
    assert np.abs(score_candidates(bb, prompts, ids) - base).max() == 0
    tuned = with_adapter(load_backbone(cfg), folder)
    plain = dataclasses.replace(bb, model=PeftModel.from_pretrained(load_backbone(cfg).model, folder).eval())
    again = score_candidates(tuned, prompts, ids)
    assert np.abs(again - seen['last']).max() < 1e-4
    assert np.abs(score_candidates(plain, prompts, ids) - again).max() == 0
    assert np.abs(again - base).max() > 1e-3


def test_a_backbone_that_cannot_be_had_is_one_sentence(monkeypatch):
    def offline(*args, **kw):
        raise OSError("We couldn't connect to the hub.\nMany more lines.")

    for kind in ('AutoModelForCausalLM', 'AutoTokenizer'):
        monkeypatch.setattr(getattr(backbones.transformers, kind), 'from_pretrained', offline)
    with pytest.raises(LlmrecError) as e:
        load_backbone(BackboneConfig('nobody/no-such-model'))
    assert "'nobody/no-such-model'" in str(e.value) and 'folder' in str(e.value) and '\n' not in str(e.value)


def test_without_evaluation_the_last_step_is_kept_and_a_finished_tuning_returns_at_once(tiny, tmp_path):
    cfg = dataclasses.replace(SHORT, max_steps=4)
    adapter = tune(tiny, rows_of(tiny), None, cfg, tmp_path / 't')
    written = (adapter / 'adapter_model.safetensors').stat().st_mtime_ns
    assert tune(tiny, rows_of(tiny), None, cfg, tmp_path / 't') == adapter
    assert (adapter / 'adapter_model.safetensors').stat().st_mtime_ns == written
    with pytest.raises(LlmrecError, match='another tuning'):
        tune(tiny, rows_of(tiny), None, dataclasses.replace(cfg, lr=0.1), tmp_path / 't')
    with pytest.raises(LlmrecError, match='does not fit'):
        with_adapter(load_backbone(BackboneConfig(str(adapter_of_another_shape(tmp_path)))), adapter)


def adapter_of_another_shape(folder):
    return backbones.tiny_backbone(folder / 'deep', num_hidden_layers=3)


def test_rows_depend_on_seed_epoch_and_row_alone(tiny):
    a, b = rows_of(tiny), rows_of(tiny)
    assert [a[i] for i in range(len(a))] == [b[i] for i in reversed(range(len(b)))][::-1]
    b.set_epoch(1)
    assert [a[i] for i in range(len(a))] != [b[i] for i in range(len(b))]
    with pytest.raises(LlmrecError, match="candidate_order='shuffled'"):
        rows_of(tiny, dataclasses.replace(SHORT, candidate_order='retriever'))
