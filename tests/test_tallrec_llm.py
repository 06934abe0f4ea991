"""TALLRec's language-model side: prompts and the deciding token in every tokenizer, one-pass scores, rec-tuning that reloads what it selected."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from peft import PeftModel
from sklearn.metrics import roc_auc_score
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.multiprocessing.reductions import StorageWeakRef
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

from llmrec.config import digest
from llmrec.data.alpaca import INPUT, INSTRUCTION, OUTPUT
from llmrec.llm.answers import Score, generate_answers, score_answers, usable_start
from llmrec.llm.backbones import BackboneConfig, load_backbone
from llmrec.llm.tiny import byte_tokenizer, default_texts, metaspace_tokenizer, tiny_backbone
from llmrec.llm.prompts import prompt_ids
from llmrec.llm.rec_tuning import (
    ALPACA_RECIPE,
    RECIPE,
    AlpacaTuningConfig,
    RecTuningConfig,
    alpaca_tune,
    for_rows,
    log_likelihood,
    rec_tune,
    validation_rows,
)
from llmrec.llm.loss import can_gather, collate, label_loss, labelled_tokens
from llmrec.llm.tuning import Session, TuningConfig, add_lora, continue_from, read_adapter, tune, with_adapter
from llmrec.llm.yesno import (
    COMMENT,
    YesNoPromptConfig,
    answer_form,
    context_of,
    encode_questions,
    question,
    question_ids,
    record_of,
    wrap,
    yesno_ids,
)
from llmrec.llm.yesno_rows import AlpacaRows, YesNoRows
from llmrec.paths import LlmrecError, output_to

TITLES = [
    '',
    *(f'{quality} {thing}' for thing in 'Boat Night King Garden Star'.split() for quality in ('Good', 'Bad')),
]
PROMPT = YesNoPromptConfig()


def frame(n, seed, history=3):
    "Rows whose target is liked when its title begins with Good, whatever the history."
    rng = np.random.default_rng(seed)
    items = rng.integers(1, len(TITLES), size=n)
    return pl.DataFrame(
        dict(
            user=np.arange(n) // 3,
            history=rng.integers(1, len(TITLES), size=(n, history)).tolist(),
            history_labels=rng.integers(2, size=(n, history)).tolist(),
            item=items,
            label=items % 2,
        )
    )


def toy(name='toy', seed=0):
    splits = {
        split: frame(n, [seed, i]) for i, (split, n) in enumerate(dict(train=200, valid=50, test=80).items())
    }
    return SimpleNamespace(
        name=name,
        protocol='corrected',
        checksum=digest(name, seed, length=12),
        thing='movie',
        titles=TITLES,
        n_items=len(TITLES) - 1,
        authors=[None] * len(TITLES),
        splits=splits,
    )


DATA = toy()
SAMPLES = DATA.splits['train'][:12]
TEXTS = (
    default_texts()
    + [
        wrap(
            'Yes "Yes." or "No."', 'User Preference: User Unpreference: Whether the user will like the target'
        ),
        'Yes No',
    ]
    * 9
)
NAMES = dict(unk_token='<unk>', eos_token='</s>', pad_token='<unk>')
SPECIAL = ['<unk>', '<s>', '</s>']

SPLITS = dict(
    llama3=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    qwen=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


def split_bpe(pattern, texts=TEXTS, vocab_size=1500):
    "Byte-level BPE behind a regular expression, in the manner of Llama 3 and Qwen."
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), 'isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tok


def glueing():
    "A tokenizer that makes one token of a newline and the word after it."
    tok = Tokenizer(models.BPE(unk_token='<unk>'))
    tok.train_from_iterator(
        ['\nYes', '\nNo'] * 9 + list(''.join(TEXTS)),
        trainers.BpeTrainer(special_tokens=SPECIAL, show_progress=False),
    )
    tok.decoder = decoders.Fuse()
    return tok


def of_class(cls, tok):
    "The vocabulary of `tok` in a tokenizer class of transformers."
    model = json.loads(tok.to_str())['model']
    return cls(vocab=model['vocab'], merges=[tuple(m) for m in model['merges']], **NAMES)


def fast(tok, **kw):
    return PreTrainedTokenizerFast(tokenizer_object=tok, **(NAMES | kw))


def no_start(tok):
    tok.post_processor = type(tok.post_processor)(single='$A </s>', special_tokens=[('</s>', 2)])
    return tok


TOKENIZERS = {
    'metaspace': lambda: fast(metaspace_tokenizer(TEXTS), bos_token='<s>'),
    'byte': lambda: fast(byte_tokenizer(TEXTS), bos_token='<s>'),
    'end appended': lambda: fast(no_start(byte_tokenizer(TEXTS))),
    'llama3': lambda: fast(split_bpe(SPLITS['llama3'])),
    'qwen': lambda: fast(split_bpe(SPLITS['qwen'])),
    'spelling': lambda: fast(byte_tokenizer(['the A'], 270), bos_token='<s>'),
    'spelling metaspace': lambda: fast(metaspace_tokenizer(['the A'])),
    'glueing': lambda: fast(glueing()),
    'LlamaTokenizer': lambda: of_class(LlamaTokenizer, metaspace_tokenizer(TEXTS)),
    'GPT2Tokenizer': lambda: of_class(GPT2Tokenizer, byte_tokenizer(TEXTS)),
    'Qwen2Tokenizer': lambda: of_class(Qwen2Tokenizer, split_bpe(SPLITS['qwen'])),
}
every_tokenizer = pytest.mark.parametrize('kind', TOKENIZERS)


@every_tokenizer
def test_the_deciding_token_in_every_family(kind):
    tok = TOKENIZERS[kind]()
    pieces = tok.convert_ids_to_tokens(yesno_ids(tok))
    special = {
        'spelling': ['Y', 'N'],
        'spelling metaspace': ['<0x59>', '<0x4E>'],
        'glueing': ['\nYes', '\nNo'],
    }
    assert pieces == special.get(kind, ['Yes', 'No'])
    assert yesno_ids(tok, YesNoPromptConfig.as_published()) == yesno_ids(tok)


@every_tokenizer
@pytest.mark.parametrize('wording', ['released', 'paper'])
def test_a_row_is_the_scored_prompt_then_the_answer_then_the_end(kind, wording):
    tok, cfg = TOKENIZERS[kind](), YesNoPromptConfig(wording, max_tokens=5000)
    prompts, dropped = encode_questions(tok, DATA, SAMPLES, cfg)
    rows, ids = YesNoRows(DATA, range(12), tok, cfg), dict(zip((1, 0), yesno_ids(tok, cfg)))
    assert not dropped.any() and not rows.cut.any()
    for row, prompt, sample in zip(rows, prompts, SAMPLES.iter_rows(named=True)):
        learnt = [label for label in row['labels'] if label != -100]
        answer = ('No.', 'Yes.')[sample['label']]
        assert (
            row['input_ids'] == prompt + learnt
            and learnt[0] == ids[sample['label']]
            and learnt[-1] == tok.eos_token_id
        )
        assert learnt.count(tok.eos_token_id) == 1
        whole = prompt_ids(tok, question(DATA, sample, cfg) + answer)
        assert row['input_ids'][:-1] == whole


def test_llama_style_bare_words_are_other_tokens_than_the_answers():
    tok = TOKENIZERS['metaspace']()
    bare = [tok(w, add_special_tokens=False)['input_ids'] for w in ('Yes', 'No')]
    assert [b[0] for b in bare] != list(yesno_ids(tok)) and not any(
        i in b for i, b in zip(yesno_ids(tok), bare)
    )


def test_an_ambiguous_answer_token_is_one_sentence():
    poor = Tokenizer(models.BPE(unk_token='<unk>'))
    poor.pre_tokenizer, poor.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    poor.train_from_iterator(
        [t.replace('Y', '').replace('N', '') for t in TEXTS],
        trainers.BpeTrainer(special_tokens=SPECIAL, show_progress=False),
    )
    for f in (
        lambda t: yesno_ids(t),
        lambda t: encode_questions(t, DATA, SAMPLES, PROMPT),
        lambda t: YesNoRows(DATA, [0], t, PROMPT),
    ):
        with pytest.raises(LlmrecError, match="splits the answers ambiguously") as e:
            f(fast(poor))
        assert '\n' not in str(e.value)


def test_the_wrapper_has_four_forms():
    assert wrap('a', 'b', True) == wrap('a', 'b').replace('request.\n', f'request.{COMMENT}\n')
    assert wrap('a', '', True) == wrap('a').replace('request.\n', f'request.{COMMENT}\n')
    assert wrap('a', 'b', 'with input') == wrap('a', 'b', True)
    assert wrap('a', '', 'with input') == wrap('a').replace('request.\n', 'request. \n')
    assert wrap('a').count('### ') == 2 and wrap('a', 'b').count('### ') == 3


@pytest.mark.parametrize('kind', ['metaspace', 'byte', 'llama3', 'spelling', 'glueing'])
def test_long_prompts_lose_their_oldest_history_and_never_the_answer(kind):
    tok = TOKENIZERS[kind]()
    full = [len(r['input_ids']) for r in YesNoRows(DATA, range(12), tok, YesNoPromptConfig(max_tokens=9000))]
    cfg = YesNoPromptConfig(max_tokens=int(np.median(full)) - 6)
    prompts, dropped = encode_questions(tok, DATA, SAMPLES, cfg)
    assert 0 < (dropped > 0).sum() and dropped.max() <= 3
    form = answer_form(tok, wrap('x', 'y'))
    room = cfg.max_tokens - max(len(form.yes), len(form.no)) - 1
    for prompt, drop, sample in zip(prompts, dropped, SAMPLES.iter_rows(named=True)):

        def at(n):
            return question_ids(
                tok,
                question(DATA, sample | {k: sample[k][n:] for k in ('history', 'history_labels')}, cfg),
                form,
            )

        assert prompt == at(drop) and len(prompt) <= room
        assert drop == 0 or len(at(drop - 1)) > room
    rows = YesNoRows(DATA, range(12), tok, cfg)
    assert (
        (rows.dropped == dropped).all()
        and not rows.cut.any()
        and max(len(r['input_ids']) for r in rows) <= cfg.max_tokens
    )
    ids = yesno_ids(tok)
    assert all(
        ids[0 if sample['label'] else 1] in row['labels']
        for row, sample in zip(rows, SAMPLES.iter_rows(named=True))
    )
    with pytest.raises(LlmrecError, match=r'Row 0 .* even without any history'):
        encode_questions(tok, DATA, SAMPLES, YesNoPromptConfig(max_tokens=30))
    assert (
        encode_questions(tok, DATA, SAMPLES, YesNoPromptConfig(max_tokens=9000), context=cfg.max_tokens)[0]
        == prompts
    )


def test_published_truncation_cuts_the_answer_and_is_counted():
    tok = TOKENIZERS['metaspace']()
    full = YesNoRows(
        DATA, range(12), tok, dataclasses.replace(YesNoPromptConfig.as_published(), max_tokens=9000)
    )
    assert all(row['labels'][1:] == row['input_ids'][1:] and row['labels'][0] == -100 for row in full)
    limit = int(np.median([len(r['input_ids']) for r in full])) - 1
    cut = YesNoRows(
        DATA, range(12), tok, dataclasses.replace(YesNoPromptConfig.as_published(), max_tokens=limit)
    )
    assert cut.cut.any() and not cut.cut.all()
    for a, b, lost in zip(full, cut, cut.cut):
        assert b['input_ids'] == (
            a['input_ids'][:-1][:limit] if len(a['input_ids']) > limit else a['input_ids']
        )
        assert (b['input_ids'][-1] == tok.eos_token_id) == (len(a['input_ids']) <= limit)
        assert lost == (len(a['input_ids']) - 1 > limit)


def test_instruction_rows_learn_the_output_and_are_cut_on_the_right():
    records = pl.DataFrame(
        [
            {INSTRUCTION: 'Name a colour.', INPUT: i, OUTPUT: o}
            for i, o in (('', 'Blue.'), ('of the sky', 'Blue and long ' * 60), ('night ' * 300, 'Black.'))
        ]
    )
    tok = TOKENIZERS['metaspace']()
    rows = AlpacaRows(records, tok, YesNoPromptConfig(max_tokens=200))
    assert (len(rows), rows.left_out) == (2, 1)
    assert tok.decode([l for l in rows[0]['labels'] if l != -100], skip_special_tokens=True) == 'Blue.'
    assert len(rows[1]['input_ids']) == 200 and rows[1]['input_ids'][-1] != tok.eos_token_id
    both = AlpacaRows(
        records, tok, YesNoPromptConfig(max_tokens=200, loss='prompt+answer', wrapper_comment='with input')
    )
    assert len(both) == 3 and all(r['labels'][1:] == r['input_ids'][1:] for r in both)


@pytest.mark.real_data('ml-100k-classic', 'tallrec-movie')
@pytest.mark.parametrize('split, n', [('train', 8000), ('valid', 1000), ('test', 1000)])
def test_prompts_are_the_released_ones_character_by_character(split, n):
    from llmrec.data.tallrec import load_tallrec_json
    from llmrec.data.yesno import load_yesno

    data, released, cfg = (
        load_yesno('movie', 'as_published'),
        load_tallrec_json('movie', split),
        YesNoPromptConfig.as_published(),
    )
    samples = data.splits[split]
    assert samples.height == released.height == n
    for sample, record in zip(samples.iter_rows(named=True), released.iter_rows(named=True)):
        ours = record_of(data, sample, cfg)
        assert [ours[k] for k in (INSTRUCTION, INPUT, OUTPUT)] == [
            record[k] for k in (INSTRUCTION, INPUT, OUTPUT)
        ]
        prompt = question(data, sample, cfg)
        assert prompt == wrap(record[INSTRUCTION], record[INPUT], True)
        assert (
            f'### Instruction:\n{record[INSTRUCTION]}\n\n### Input:\n{record[INPUT]}\n\n### Response:\n'
            == prompt[prompt.index('###') :]
        )


@pytest.mark.real_data('tallrec-book')
@pytest.mark.parametrize('split', ['valid', 'test'])
def test_book_prompts_are_the_released_ones_character_by_character(split):
    from llmrec.data.tallrec import load_tallrec_json
    from llmrec.data.yesno import load_yesno

    data, released = load_yesno('book', 'as_published'), load_tallrec_json('book', split)
    assert data.splits[split].height == released.height == 2427
    for sample, record in zip(data.splits[split].iter_rows(named=True), released.iter_rows(named=True)):
        assert record_of(data, sample, PROMPT) == {k: record[k] for k in (INSTRUCTION, INPUT, OUTPUT)}


# --- backbones with a tokenizer that knows the wording, so that prompts are short

WORDING = [question(DATA, s, PROMPT) for s in DATA.splits['train'][:20].iter_rows(named=True)]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    with output_to(tmp_path_factory.mktemp('tallrec')) as folder:
        yield folder


def load(place, **kw):
    with output_to(place):
        return load_backbone(BackboneConfig('tiny-metaspace', **kw), default_texts() + WORDING * 5)


@pytest.fixture(scope='module')
def tiny(place):
    return load(place)


@pytest.fixture(scope='module')
def held(tiny):
    "Test prompts, their labels, the ids of the answers."
    return (
        encode_questions(tiny.tokenizer, DATA, DATA.splits['test'], PROMPT)[0],
        DATA.splits['test']['label'].to_numpy(),
        yesno_ids(tiny.tokenizer),
    )


@pytest.mark.parametrize('how', Score.__args__)
def test_one_pass_scores_are_those_of_the_plain_forward_and_of_generation(tiny, held, how):
    prompts, ids = held[0][:9], held[2]
    with torch.no_grad():
        logits = torch.stack([tiny.model(torch.tensor([p])).logits[0, -1] for p in prompts])
    pair = logits[:, list(ids)]
    want = dict(
        logit_difference=pair[:, 0] - pair[:, 1],
        two_way_softmax=pair.softmax(1)[:, 0],
        double_softmax=logits.softmax(1)[:, list(ids)].softmax(1)[:, 0],
    )[how].numpy()
    for batch_tokens in (1, 300, 10**6):
        assert np.abs(score_answers(tiny, prompts, ids, how, batch_tokens) - want).max() < 1e-5
    if how == 'double_softmax':
        scores, texts = generate_answers(tiny, prompts, max_new_tokens=3, batch_size=4, ids=ids)
        assert np.abs(scores - want).max() < 1e-5 and len(texts) == 9


@pytest.mark.parametrize(
    'cls, config, extra, shares',
    [
        (GPT2LMHeadModel, GPT2Config, {}, True),
        (Qwen2ForCausalLM, Qwen2Config, {}, True),
        (MistralForCausalLM, MistralConfig, dict(sliding_window=16), None),
        (
            Gemma2ForCausalLM,
            Gemma2Config,
            dict(head_dim=16, final_logit_softcapping=2.0, sliding_window=16),
            None,
        ),
    ],
)
def test_the_common_prefix_changes_no_score_in_any_architecture(tiny, cls, config, extra, shares):
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
    model, rng = (
        cls(config(vocab_size=1000, initializer_range=0.2, **sizes, **extra)).eval(),
        np.random.default_rng(0),
    )
    start = rng.integers(3, 900, size=40).tolist()
    prompts = [start + rng.integers(3, 900, size=n).tolist() for n in (1, 30, 7, 7, 55, 12, 2, 21, 40)]
    with torch.no_grad():
        logits = torch.stack([model(torch.tensor([p])).logits[0, -1, [100, 200]] for p in prompts])
    for batch_tokens in (1, 90, 10**6):
        assert (
            np.abs(
                score_answers(
                    dataclasses.replace(tiny, model=model), prompts, (100, 200), batch_tokens=batch_tokens
                )
                - (logits[:, 0] - logits[:, 1]).numpy()
            ).max()
            < 1e-4
        )
    if shares:
        with torch.no_grad():
            assert usable_start(model, prompts, torch.tensor([100, 200]), 0).get_seq_length() == 40


def test_scores_that_are_no_numbers_stop_the_run_and_name_the_row(place, held):
    bb = load(place)
    with torch.no_grad():
        bb.model.model.embed_tokens.weight[bb.tokenizer.unk_token_id] = float('nan')
    prompts = [*held[0][:4], [bb.tokenizer.unk_token_id, *held[0][4]], *held[0][5:7]]
    for how in Score.__args__:
        with pytest.raises(LlmrecError, match=r'Row 4 \(counted from 0\).*not finite'):
            score_answers(bb, prompts, held[2], how, batch_tokens=1)


def test_a_prompt_beyond_the_context_is_refused_at_scoring_and_shortened_at_encoding(tiny, held):
    long = [5] * (context_of(tiny) + 1)
    with pytest.raises(LlmrecError, match=r'Row 1 .* context'):
        score_answers(tiny, [held[0][0], long], held[2])
    with pytest.raises(LlmrecError, match=r'Row 0 .* context'):
        generate_answers(tiny, [long])


def test_the_loss_applies_the_head_to_labelled_positions_only(tiny, monkeypatch):
    rows = YesNoRows(DATA, range(20), tiny.tokenizer, YesNoPromptConfig(loss='prompt+answer'))
    batch, sizes = collate(list(rows), tiny.tokenizer.pad_token_id), []
    labelled = int((batch['labels'] != -100).sum())
    assert labelled < batch['labels'][:, 1:].numel()

    def counted(states, weight, bias=None):
        sizes.append((len(states), len(weight)))
        return torch.nn.functional.linear(states, weight, bias)

    monkeypatch.setattr('llmrec.llm.loss.linear', counted)
    monkeypatch.setattr('llmrec.llm.loss.CHUNK', 64 * len(tiny.tokenizer))
    assert can_gather(tiny.model, rows[0])
    value = label_loss(tiny.model, batch, True)
    assert sum(states for states, _ in sizes) == labelled and max(states for states, _ in sizes) == 64
    assert abs(value.item() - tiny.model(**batch).loss.item()) < 1e-5
    answer = collate(list(YesNoRows(DATA, range(6), tiny.tokenizer, PROMPT)), tiny.tokenizer.pad_token_id)
    assert abs(label_loss(tiny.model, answer, True).item() - tiny.model(**answer).loss.item()) < 1e-5


@pytest.mark.parametrize('loss', ['answer', 'prompt+answer'])
def test_gradients_are_those_of_all_logits(place, loss):
    rows = None

    def gradients(f):
        nonlocal rows
        bb = load(place)
        rows = rows or list(YesNoRows(DATA, range(8), bb.tokenizer, YesNoPromptConfig(loss=loss)))
        model = add_lora(bb, TuningConfig(lora_dropout=0.0, target_modules='all-linear'))
        for name, p in model.named_parameters():
            if 'lora_B' in name:
                torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(0))
        f(model, collate(rows, bb.tokenizer.pad_token_id)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    want = gradients(lambda model, batch: model(**batch).loss)
    for gather in (True, False):
        found = gradients(lambda model, batch: label_loss(model, batch, gather))
        assert (found - want).abs().max() < 1e-5 * want.abs().max().clamp(min=1)
    shared = collate(rows, pad := load(place).tokenizer.pad_token_id, share=True)
    assert (
        shared['start'].shape[1] > 40
        and len(shared['input_ids'][0]) < len(collate(rows, pad)['input_ids'][0]) - 40
    )
    found = gradients(lambda model, batch: label_loss(model, shared, True))
    assert (found - want).abs().max() < 1e-5 * want.abs().max().clamp(min=1)
    assert labelled_tokens(shared) == labelled_tokens(collate(rows, pad))


QUICK = dataclasses.replace(
    RECIPE, target_modules='all-linear', lr=1e-2, warmup_steps=5, eval_steps=10, max_steps=60
)


def short(steps, **kw):
    return dataclasses.replace(QUICK, **(dict(warmup_steps=0, max_steps=steps, eval_steps=steps) | kw))


def left_behind(folder):
    return [(Path(folder) / n).read_bytes() for n in ('adapter_model.safetensors', 'adapter_config.json')]


def test_a_decidable_task_is_learnt(place, tiny, held, tmp_path):
    before = roc_auc_score(held[1], score_answers(tiny, held[0], held[2]))
    folder = rec_tune(tiny, [(DATA, range(64))], DATA, RecTuningConfig(tuning=QUICK), tmp_path / 'rt')
    after = roc_auc_score(held[1], score_answers(with_adapter(load(place), folder), held[0], held[2]))
    assert before < 0.8 and after > 0.9, (before, after)


def test_the_published_loss_learns_the_prompt_too(tiny, tmp_path):
    cfg = dataclasses.replace(RecTuningConfig.as_published(), tuning=short(20, eval_steps=10), valid_rows=20)
    folder = rec_tune(tiny, [(DATA, range(16))], DATA, cfg, tmp_path / 'rt')
    losses = [h['loss'] for h in json.loads((folder.parent / 'history.json').read_text()) if 'loss' in h]
    assert losses[-1] < losses[0] / 2


def test_the_best_step_is_what_plain_peft_opens(place, tiny, held, tmp_path):
    seen, aucs = [], iter([0.6, 0.9, 0.7, 0.5])

    def spy(model):
        seen.append(score_answers(dataclasses.replace(tiny, model=model), held[0], held[2]))
        return dict(AUC=next(aucs))

    rows = YesNoRows(DATA, range(16), tiny.tokenizer, PROMPT)
    folder = tune(tiny, rows, spy, short(20, eval_steps=5, batch_size=16, accumulation=1), tmp_path / 't')
    fresh = load(place)
    again = score_answers(
        dataclasses.replace(fresh, model=PeftModel.from_pretrained(fresh.model, folder).eval()),
        held[0],
        held[2],
    )
    assert len(seen) == 4
    assert np.abs(again - seen[1]).max() < 1e-5
    assert min(np.abs(again - seen[i]).max() for i in (0, 2, 3)) > 1e-3


@pytest.mark.parametrize(
    'quantisation, dtype',
    [('8bit', 'bfloat16'), ('8bit', 'float32'), ('4bit', 'bfloat16'), ('4bit', 'float32')],
)
@pytest.mark.parametrize('loss', ['answer', 'prompt+answer'])
def test_a_quantised_base_takes_a_step_with_finite_gradients(place, tmp_path, quantisation, dtype, loss):
    pytest.importorskip('bitsandbytes', reason='quantised weights need bitsandbytes')
    bb, norms = load(place, quantisation=quantisation, dtype=dtype), []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kw):
            norms.extend(float(p.grad.norm()) for n, p in model.named_parameters() if 'lora_B' in n)

    cfg = RecTuningConfig(YesNoPromptConfig(loss=loss), short(2, gradient_checkpointing=True), valid_rows=20)
    folder = rec_tune(bb, [(DATA, range(8))], DATA, cfg, tmp_path / 'q', Session(callbacks=[Watch()]))
    assert norms and np.isfinite(norms).all() and min(norms) > 0
    prompts, _ = encode_questions(bb.tokenizer, DATA, DATA.splits['test'][:8], PROMPT)
    base, tuned = (
        score_answers(b, prompts, yesno_ids(bb.tokenizer))
        for b in (bb, with_adapter(load(place, quantisation=quantisation, dtype=dtype), folder))
    )
    assert np.abs(base - tuned).max() > 1e-3


@pytest.mark.parametrize('quantisation', ['none', '8bit', '4bit'])
def test_checkpointing_lets_go_of_every_blocks_activations(place, tmp_path, monkeypatch, quantisation):
    if quantisation != 'none':
        pytest.importorskip('bitsandbytes', reason='quantised weights need bitsandbytes')
    bb, inputs, kept, seen = load(place, quantisation=quantisation), [], [], {}

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kw):
            seen['norms'] = [float(p.grad.norm()) for n, p in model.named_parameters() if 'lora_B' in n]
            seen['ways'] = [
                m._gradient_checkpointing_func.keywords['use_reentrant']
                for m in model.modules()
                if getattr(m, 'gradient_checkpointing', False)
            ]

    def loss_and_count(model, batch, gather):
        inputs.clear()
        value = label_loss(model, batch, gather)
        kept.append(sum(not i.expired() for i in inputs))
        return value

    monkeypatch.setattr('llmrec.llm.trainer.label_loss', loss_and_count)
    for layer in bb.model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda module, args: inputs.append(StorageWeakRef(args[0].untyped_storage()))
        )
    for on in (False, True):
        cfg = short(1, gradient_checkpointing=on, target_modules=('q_proj', 'v_proj'))
        tune(
            bb,
            YesNoRows(DATA, range(8), bb.tokenizer, PROMPT),
            None,
            cfg,
            tmp_path / str(on),
            Session(callbacks=[Watch()]),
        )
    assert kept[-1] == 0 and (kept[0] > 0 or quantisation != '8bit'), kept
    assert seen['norms'] and min(seen['norms']) > 0
    assert seen['ways'] and all(way == (quantisation == '8bit') for way in seen['ways'])
    assert not bb.model.get_input_embeddings()._forward_hooks


def test_one_row_and_no_row(tiny, tmp_path):
    folder = rec_tune(
        tiny, [(DATA, [3])], DATA, RecTuningConfig(tuning=short(3), valid_rows=20), tmp_path / 'one'
    )
    assert json.loads((folder.parent / 'prompts.json').read_text())['train_rows'] == 1
    with pytest.raises(LlmrecError, match='K must be at least 1'):
        rec_tune(tiny, [(DATA, [])], DATA, RecTuningConfig(), tmp_path / 'none')


@pytest.mark.parametrize('k', [1, 2, 16, 33, 64, 100, 128, 256, 300])
def test_a_step_takes_all_rows_up_to_the_batch(k):
    cfg = for_rows(RECIPE, k)
    micro = -(-k // cfg.batch_size)
    assert cfg.batch_size <= 32 and -(-micro // cfg.accumulation) == max(1, -(-k // 128))
    if k <= 128:
        assert (
            k - cfg.batch_size * (cfg.accumulation - 1) > cfg.batch_size - cfg.accumulation
        )  # micro-batches of nearly equal size


def test_a_step_over_micro_batches_is_the_step_over_the_whole(tiny, tmp_path):
    rows = YesNoRows(DATA, range(12), tiny.tokenizer, PROMPT)
    plain = short(1, lora_dropout=0.0, optimiser='adamw_torch', max_grad_norm=0.0, lr=1e-2)
    weights = [
        read_adapter(
            tune(
                tiny,
                rows,
                None,
                dataclasses.replace(plain, batch_size=size, accumulation=12 // size),
                tmp_path / str(size),
            )
        )[1]
        for size in (12, 4)
    ]
    assert all((weights[0][k] - weights[1][k]).abs().max() < 1e-4 for k in weights[0])
    assert any(weights[0][k].abs().max() > 1e-3 for k in weights[0] if 'lora_B' in k)


def test_both_domains_are_one_after_the_other_and_validation_is_the_first(tiny, tmp_path):
    other = toy('other', 1)
    folder = rec_tune(
        tiny,
        [(DATA, [1, 2]), (other, [5, 6])],
        DATA,
        RecTuningConfig(tuning=short(2), valid_rows=20),
        tmp_path / 'both',
    )
    note = json.loads((folder.parent / 'tuning.json').read_text())
    assert note['rows'] == 4 and note['valid'][0] == 'toy' and note['cfg']['batch_size'] == 4
    with pytest.raises(LlmrecError, match='another tuning'):
        rec_tune(
            tiny,
            [(DATA, [1, 2]), (other, [5, 7])],
            DATA,
            RecTuningConfig(tuning=short(2), valid_rows=20),
            tmp_path / 'both',
        )


RECORDS = pl.DataFrame(
    [
        {
            INSTRUCTION: f'Count to {n}.',
            INPUT: '' if n % 2 else 'Use words.',
            OUTPUT: ' '.join('one two three four'.split()[: n % 5]),
        }
        for n in range(1, 25)
    ]
)
FIRST = AlpacaTuningConfig(
    YesNoPromptConfig(), short(4, batch_size=8, accumulation=1, eval_steps=2, select='log_likelihood'), 4
)


@pytest.fixture(scope='module')
def first_stage(tiny, tmp_path_factory):
    return alpaca_tune(tiny, RECORDS, FIRST, tmp_path_factory.mktemp('alpaca'))


def test_the_full_recipe_goes_on_with_the_first_stages_adapter(place, tiny, held, first_stage, tmp_path):
    def scores(folder):
        return score_answers(with_adapter(load(place), folder), held[0], held[2])

    still = RecTuningConfig(tuning=short(1, lr=1e-12), valid_rows=20)
    assert (
        np.abs(
            scores(rec_tune(tiny, [(DATA, range(8))], DATA, still, tmp_path / 'still', Session(first_stage)))
            - scores(first_stage)
        ).max()
        < 1e-4
    )
    cfg = RecTuningConfig(tuning=short(3), valid_rows=20)
    full, alone = (
        rec_tune(tiny, [(DATA, range(8))], DATA, cfg, tmp_path / name, Session(start))
        for name, start in (('full', first_stage), ('alone', None))
    )
    assert (
        np.abs(scores(full) - scores(alone)).max() > 1e-3
        and np.abs(scores(full) - scores(first_stage)).max() > 1e-3
    )
    assert 'start' in json.loads((tmp_path / 'full/tuning.json').read_text())
    assert (
        score_answers(tiny, held[0], held[2]).tolist()
        == score_answers(load(place), held[0], held[2]).tolist()
    )  # the base is handed back untouched


@pytest.mark.parametrize(
    'change, what',
    [
        (dict(lora_r=4), 'lora_r to 8'),
        (dict(lora_alpha=32), 'lora_alpha to 16'),
        (dict(target_modules=('q_proj',)), 'target_modules'),
    ],
)
def test_a_start_adapter_of_another_kind_is_one_sentence(tiny, first_stage, tmp_path, change, what):
    with pytest.raises(LlmrecError, match=f'set TuningConfig.{what}') as e:
        rec_tune(
            tiny,
            [(DATA, range(4))],
            DATA,
            RecTuningConfig(tuning=short(2, **change), valid_rows=20),
            tmp_path / 'x',
            Session(first_stage),
        )
    assert '\n' not in str(e.value)


def test_a_killed_full_recipe_ends_with_the_bytes_of_an_undisturbed_one(tiny, first_stage, tmp_path):
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == 5:
                raise KeyboardInterrupt

    cfg = RecTuningConfig(tuning=short(8, eval_steps=2), valid_rows=20)

    def go(name, **kw):
        return rec_tune(tiny, [(DATA, range(40))], DATA, cfg, tmp_path / name, Session(first_stage, **kw))

    calm = go('calm')
    with pytest.raises(KeyboardInterrupt):
        go('cut', callbacks=[Kill()])
    assert left_behind(go('cut')) == left_behind(calm)
    assert (tmp_path / 'cut/history.json').read_bytes() == (tmp_path / 'calm/history.json').read_bytes()


def test_alpaca_tuning_raises_the_held_out_likelihood(tiny, first_stage):
    log = [
        h['eval_log_likelihood']
        for h in json.loads((first_stage.parent / 'history.json').read_text())
        if 'eval_log_likelihood' in h
    ]
    rows = AlpacaRows(RECORDS, tiny.tokenizer, YesNoPromptConfig())
    assert len(log) == 2 and max(log) > log_likelihood(tiny, rows)
    with pytest.raises(LlmrecError, match='to be held out'):
        alpaca_tune(tiny, RECORDS, dataclasses.replace(FIRST, valid_rows=24), first_stage.parent / 'x')


def test_an_adapter_for_another_base_model_is_one_sentence(place, tiny, first_stage, tmp_path):
    def refused(bb, match, folder=first_stage):
        with pytest.raises(LlmrecError, match=match) as e:
            with_adapter(bb, folder)
        assert '\n' not in str(e.value) and not isinstance(bb.model, PeftModel)
        assert not any('lora' in n for n, _ in bb.model.named_parameters())

    other_seed = load(place, seed=1)
    refused(other_seed, 'it was made for tiny-metaspace-llama')
    wide = load_backbone(BackboneConfig(str(tiny_backbone(tmp_path / 'wide', hidden_size=128))))
    refused(wide, 'does not fit the backbone')
    mirror = tmp_path / 'mirror'
    mirror.mkdir()
    for name, content in zip(('adapter_model.safetensors', 'adapter_config.json'), left_behind(first_stage)):
        (mirror / name).write_bytes(content)
    config = json.loads((mirror / 'adapter_config.json').read_text())
    (mirror / 'adapter_config.json').write_text(
        json.dumps(config | dict(base_model_name_or_path='somebody/llama-7b-hf'))
    )
    refused(wide, "size 64 and the backbone's 128", mirror)
    assert '+adapter-' in with_adapter(load(place), mirror).identity
    hub = dataclasses.replace(load(place), identity='another/llama-7b@main', commit='1')
    with pytest.warns(UserWarning, match='names somebody/llama-7b-hf'):
        with_adapter(hub, mirror)


def test_an_adapter_tuned_in_another_precision_of_the_same_model_is_accepted(place, first_stage):
    assert with_adapter(load(place, dtype='bfloat16'), first_stage).dtype == 'bfloat16'


def test_validation_rows_are_one_draw_for_all_runs():
    assert validation_rows(DATA, None).height == 50 and validation_rows(DATA, 500).height == 50
    a, b = validation_rows(DATA, 20), validation_rows(DATA, 20)
    assert a.equals(b) and a['user'].n_unique() > 8 and a['user'].is_sorted()
