"Models of other architectures and their folders: the same numbers as a plain pass, and one sentence where it cannot be."

import json
import urllib.error
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import (
    BartConfig,
    BartForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from llmrec.experiments import tallrec
from llmrec.llm.backbones import Backbone, BackboneConfig, drop_foreign_pad, load_backbone, prepare_tokenizer
from llmrec.llm.chat import EndpointConfig
from llmrec.llm.loss import can_share, has_window
from llmrec.llm.answers import generate_answers, score_answers
from llmrec.llm.generation import generate_rankings
from llmrec.llm.ranking import can_pad, score_candidates, scoring
from llmrec.llm.rec_tuning import log_likelihood
from llmrec.llm.recipe import TuningConfig
from llmrec.llm.serving import read_request, serving
from llmrec.llm.tuning import Session, claim, tune
from llmrec.llm.yesno import context_of
from llmrec.config import from_dict
from llmrec.paths import LlmrecError
from llmrec.recommend.commands import check_work
from llmrec.recommend.rater import rater_config
from llmrec.recommend.saved import keep_base

SMALL = dict(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)


def small(cls, config):
    torch.manual_seed(0)
    return cls(config).eval()


@pytest.fixture(scope='module')
def tiny():
    return load_backbone(BackboneConfig('tiny'))


def rows(*lengths, common=0):
    "Training rows of these lengths with the last two tokens as labels; the first `common` tokens are the same."
    torch.manual_seed(1)
    start = torch.randint(5, 290, (common,)).tolist()
    out = []
    for n in lengths:
        ids = start + torch.randint(5, 290, (n - common,)).tolist()
        out.append(dict(input_ids=ids, labels=[-100] * (n - 2) + ids[-2:]))
    return out


def test_a_search_is_greedy_whatever_the_models_folder_asks_for():
    model = small(GPT2LMHeadModel, GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2))
    model.generation_config = transformers.GenerationConfig(
        repetition_penalty=5.0, no_repeat_ngram_size=1, eos_token_id=0, pad_token_id=0
    )
    backbone = Backbone(model, None, 'gpt2', 'float32')
    ids = [7, 9, 11]
    plain = list(ids)
    for _ in range(12):
        with torch.no_grad():
            plain.append(int(model(torch.tensor([plain])).logits[0, -1].argmax()))
    with scoring(backbone):
        found = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, 3, dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
        )[0].tolist()
        assert model.generation_config.eos_token_id == 0
    assert found == plain[: len(found)] and len(set(plain)) < len(plain)
    assert model.generation_config.repetition_penalty == 5.0


@pytest.mark.parametrize(
    'change, window', [(dict(sliding_window=8), True), (dict(sliding_window=None), False)]
)
def test_a_model_with_a_window_shares_no_start(change, window):
    model = small(MistralForCausalLM, MistralConfig(**SMALL, num_key_value_heads=2, **change))
    assert has_window(model) is window
    assert can_share(model, rows(20, 21, 22, common=16), 0) is not window


def test_layer_types_say_which_layers_have_a_window():
    def model(**fields):
        return SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(**fields)))

    assert not has_window(model(sliding_window=8, layer_types=['full_attention']))
    assert has_window(model(sliding_window=8, layer_types=['full_attention', 'sliding_attention']))
    assert has_window(model(attention_chunk_size=8)) and not has_window(model())


def test_what_stands_between_body_and_head_counts_in_a_log_likelihood():
    config = ModernBertDecoderConfig(
        **SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    )
    model = small(ModernBertDecoderForCausalLM, config)
    backbone = Backbone(model, SimpleNamespace(pad_token_id=0), 'modern', 'float32')
    some = rows(9, 9)
    with torch.no_grad():
        own = [
            -model(input_ids=torch.tensor([r['input_ids']]), labels=torch.tensor([r['labels']])).loss
            for r in some
        ]
    assert abs(log_likelihood(backbone, some) - float(sum(own)) / 2) < 1e-4


def test_a_pad_token_without_an_embedding_is_replaced(tiny):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer.backend_tokenizer, unk_token='<unk>', eos_token='</s>'
    )
    n = len(tokenizer)
    tokenizer.add_special_tokens(dict(pad_token='[PAD]'))
    model = small(LlamaForCausalLM, LlamaConfig(**SMALL | dict(vocab_size=n)))
    assert tokenizer.pad_token_id == n
    drop_foreign_pad(tokenizer, model)
    assert prepare_tokenizer(tokenizer).pad_token_id < n


@pytest.mark.parametrize('left', ['adapter', 'work'])
@pytest.mark.parametrize('resume', [True, False])
def test_an_adapter_of_unknown_origin_is_no_finished_tuning(tmp_path, left, resume):
    (tmp_path / left).mkdir()
    with pytest.raises(LlmrecError, match='holds an adapter or checkpoints and no tuning.json'):
        claim(tmp_path, dict(a=1), resume)
    assert [p.name for p in tmp_path.iterdir()] == [left]


def test_a_wrong_target_leaves_the_folder_free(tiny, tmp_path):
    cfg = TuningConfig(target_modules=('nothing',), gradient_checkpointing=False)
    with pytest.raises(LlmrecError, match='nothing'):
        tune(tiny, rows(8, 8), None, cfg, tmp_path, Session())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'fields, length',
    [
        (dict(max_position_embeddings=64), 64),
        (dict(max_seq_len=64), 64),
        (dict(n_positions=64), 64),
        (dict(max_position_embeddings=-1), None),
        ({}, None),
    ],
)
def test_how_long_an_input_may_be(fields, length):
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(**fields)))
    assert context_of(SimpleNamespace(model=model)) == length


def test_the_test_of_a_run_shortens_its_prompts_as_the_tuning_does(tiny, monkeypatch):
    seen = {}

    def encode(tokenizer, data, samples, prompt, context=None):
        seen['context'] = context
        return [], None

    monkeypatch.setattr(tallrec, 'encode_questions', encode)
    monkeypatch.setattr(tallrec, 'yesno_ids', lambda *_: (1, 2))
    monkeypatch.setattr(tallrec, 'score_answers', lambda *_: None)
    tallrec.scores_of(tiny, None, None, SimpleNamespace(rec=SimpleNamespace(prompt=None, score=None)))
    assert seen['context'] == context_of(tiny) > 0


def test_a_schedule_is_known_before_anything_runs():
    assert from_dict(TuningConfig, dict(schedule='cosine')).schedule == 'cosine'
    with pytest.raises(LlmrecError, match="TuningConfig.schedule 'nope'"):
        from_dict(TuningConfig, dict(schedule='nope'))


def test_the_seed_of_a_raters_tuning_is_the_one_that_is_given():
    def seed_of(tuning):
        return rater_config('tiny', 64, tuning, None, 200, 3).rec.tuning.seed

    assert seed_of({}) == 3 and seed_of(dict(seed=5)) == 5


def test_a_folder_of_somebody_elses_is_not_taken_for_the_tunings(tmp_path):
    work = tmp_path / 'shop.work'
    check_work(work)
    work.mkdir()
    check_work(work)
    (work / 'thesis.txt').write_text('mine')
    with pytest.raises(LlmrecError, match='is there already and is not the folder of a tuning'):
        check_work(work)
    (work / 'tuning.json').write_text('{}')
    check_work(work)


def test_a_quantised_base_is_kept_as_the_files_that_it_was_loaded_from(tmp_path):
    miniature = load_backbone(BackboneConfig('miniature'))
    keep_base(miniature, BackboneConfig('miniature', quantisation='4bit'), tmp_path / 'copied')
    keep_base(miniature, BackboneConfig('miniature'), tmp_path / 'written')
    copied = load_backbone(BackboneConfig(str(tmp_path / 'copied'))).model.state_dict()
    written = load_backbone(BackboneConfig(str(tmp_path / 'written'))).model.state_dict()
    assert all(torch.equal(copied[k], written[k]) for k in written)
    source = next(p for p in (tmp_path / 'copied').glob('*.safetensors'))
    assert source.read_bytes() == (miniature_folder() / source.name).read_bytes()


def miniature_folder():
    from llmrec.llm.folders import shipped_folder

    return shipped_folder()


@pytest.mark.parametrize(
    'body, chat, said',
    [
        ([], False, 'JSON object'),
        ({}, False, "'prompt' must"),
        (dict(prompt=['a']), False, "'prompt' must"),
        (dict(messages=[]), True, "'messages' must"),
        (dict(messages=[dict(content=[dict(text='a')])]), True, "'messages' must"),
        (dict(prompt='a', max_tokens=0), False, "'max_tokens' must"),
        (dict(prompt='a', max_tokens='3'), False, "'max_tokens' must"),
        (dict(prompt='a', stop=[1]), False, "'stop' must"),
    ],
)
def test_a_request_that_cannot_be_answered(body, chat, said):
    with pytest.raises(LlmrecError, match=said):
        read_request(body, chat)


def test_a_stop_may_be_one_text():
    assert read_request(dict(prompt='a', stop='Zx '), False) == ('a', 16, ['Zx '])


def test_bad_json_is_answered(tiny):
    with serving(tiny, EndpointConfig('m', 'http://localhost')) as endpoint:
        for body in (b'{', b'', json.dumps(dict(prompt=5)).encode()):
            request = urllib.request.Request(f'{endpoint.base_url}/completions', body, method='POST')
            with pytest.raises(urllib.error.HTTPError) as e:
                urllib.request.urlopen(request)
            assert e.value.code == 400 and json.loads(e.value.read())['error']['message']


def without_padding(name):
    "A small model that reads padding, or counts positions in its own way."
    bart = dict(d_model=32, decoder_layers=2, decoder_ffn_dim=64, decoder_attention_heads=4)
    made = {
        'bart': (BartForCausalLM, BartConfig(vocab_size=300, pad_token_id=1, **bart)),
        'roberta': (RobertaForCausalLM, RobertaConfig(**SMALL, pad_token_id=1, is_decoder=True)),
        'rwkv': (RwkvForCausalLM, RwkvConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2)),
    }
    model = small(*made[name])
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.2)
    tokenizer = SimpleNamespace(
        pad_token_id=1, eos_token_id=0, batch_decode=lambda new, **kw: [str([*map(int, n)]) for n in new]
    )
    return Backbone(model, tokenizer, name, 'float32')


PROMPTS = [r['input_ids'] for r in rows(29, 33, 33, 21, 40, 29, 25, 28, common=20)]


@pytest.mark.parametrize('name', ['bart', 'roberta', 'rwkv'])
def test_a_model_that_reads_padding_is_asked_without_it(name):
    backbone = without_padding(name)
    assert not can_pad(backbone.model, PROMPTS[0], 1)
    with torch.no_grad():
        own = torch.stack([backbone.model(torch.tensor([p])).logits[0, -1] for p in PROMPTS]).numpy()
    assert abs(score_candidates(backbone, PROMPTS, [7, 8, 9]) - own[:, 7:10]).max() < 1e-4
    assert abs(score_answers(backbone, PROMPTS, [7, 8]) - (own[:, 7] - own[:, 8])).max() < 1e-4
    some = [dict(input_ids=p, labels=[-100] * (len(p) - 2) + p[-2:]) for p in PROMPTS]
    alone = [log_likelihood(backbone, [row]) for row in some]
    assert log_likelihood(backbone, some) == pytest.approx(sum(alone) / len(alone), abs=1e-4)
    with torch.no_grad():
        ids = torch.tensor([some[3]['input_ids']])
        loss = backbone.model(input_ids=ids).logits[0, -3:-1].log_softmax(-1)[[0, 1], ids[0, -2:]].mean()
    assert alone[3] == pytest.approx(float(loss), abs=1e-4)


@pytest.mark.parametrize('name', ['bart', 'roberta'])
def test_such_a_model_writes_the_same_beside_others_as_alone(name):
    backbone = without_padding(name)
    alone = [generate_rankings(backbone, [p], 4)[0] for p in PROMPTS[:4]]
    assert generate_rankings(backbone, PROMPTS[:4], 4, batch_size=4) == alone
    _, texts = generate_answers(backbone, PROMPTS[:4], max_new_tokens=4, ids=[7, 8])
    assert texts == [generate_answers(backbone, [p], max_new_tokens=4, ids=[7, 8])[1][0] for p in PROMPTS[:4]]


def test_such_a_model_is_tuned_row_by_row_or_not_at_all(tmp_path):
    backbone, some = without_padding('bart'), rows(20, 24, 22, 20)
    cfg = TuningConfig(
        target_modules=('q_proj', 'v_proj'),
        lr=1e-2,
        max_steps=1,
        warmup_steps=0,
        gradient_checkpointing=False,
    )
    with pytest.raises(LlmrecError, match='set batch_size to 1, and accumulation to 4 times'):
        tune(backbone, some, None, replace(cfg, batch_size=4), tmp_path, Session())
    alone = replace(cfg, batch_size=1, accumulation=4, lora_dropout=0.0)
    folder = tune(without_padding('bart'), some, None, alone, tmp_path, Session())  # which is still free
    tuned = replace(backbone, model=PeftModel.from_pretrained(without_padding('bart').model, folder).eval())
    assert log_likelihood(tuned, some) > log_likelihood(backbone, some) + 0.1


def test_rounding_in_eight_bits_is_not_taken_for_padding_that_is_read():
    pytest.importorskip('bitsandbytes')
    quantised = load_backbone(BackboneConfig('tiny', quantisation='8bit'))
    assert can_pad(quantised.model, PROMPTS[0], quantised.tokenizer.pad_token_id)
