"Loading that refuses what is damaged, with a sentence that says what is wrong."

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from conftest import refused
from llmrec.llm.backbones import BackboneConfig, backbone_identity, load_backbone
from llmrec.llm.checked import write_note
from llmrec.llm.encoders import EncoderConfig, load_encoder
from llmrec.llm.folders import miniature_llama
from llmrec.llm.tiny import tiny_backbone
from llmrec.paths import LlmrecError

ROOT = Path(__file__).resolve().parent.parent


pytestmark = pytest.mark.usefixtures('nothing_set')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A folder with a tiny Llama that has fewer heads for keys than for queries."
    folder = tmp_path_factory.mktemp('made')
    tiny_backbone(folder / 'llama', num_attention_heads=4, num_key_value_heads=2)
    return folder


def weights(change):
    "A damage: `change` of the dictionary of weights."

    def spoil(folder):
        path = folder / 'model.safetensors'
        save_file(change(load_file(path)), path, {'format': 'pt'})

    return spoil


def config(name, by):
    def spoil(folder):
        values = json.loads((folder / 'config.json').read_text())
        (folder / 'config.json').write_text(json.dumps(values | {name: values[name] + by}))

    return spoil


def file(change, name='model.safetensors'):
    def spoil(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return spoil


def middle(key, values):
    "Other `values` in the middle of the one weight whose name ends with `key`."

    def change(all_weights):
        (name,) = (k for k in all_weights if k.endswith(key))
        flat = all_weights[name].flatten()
        flat[len(flat) // 2 + 7 : len(flat) // 2 + 7 + len(values)] = torch.tensor(values)
        return all_weights | {name: flat.view_as(all_weights[name])}

    return change


def without(key):
    return lambda all_weights: {k: v for k, v in all_weights.items() if not k.endswith(key)}


def damages(matrix, layers, width, prefix):
    return {
        'a tensor missing': weights(without(matrix)),
        'a prefix': weights(lambda w: {f'{prefix}.{k}': v for k, v in w.items()}),
        '400 bytes zeroed': weights(middle(matrix, [0.0] * 100)),
        'a layer more': config(layers, 1),
        'a layer fewer': config(layers, -1),
        'another width': config(width, 32),
        'nan': weights(middle(matrix, [float('nan')])),
        'infinity': weights(middle(matrix, [-float('inf')])),
        'cut short': file(lambda b: b[:-1_000]),
        'cut and padded': file(lambda b: b[:-50_000] + bytes(50_000)),
        'empty': file(lambda b: b''),
    }


LLAMA = damages('1.mlp.up_proj.weight', 'num_hidden_layers', 'intermediate_size', 'transformer')
BERT = damages('1.output.dense.weight', 'num_hidden_layers', 'intermediate_size', 'encoder')


def spoilt(source, folder, damage, noted):
    shutil.copytree(source, folder)
    if noted:
        write_note(folder)
    damage(folder)
    return str(folder)


@pytest.mark.parametrize('quantisation', ['none', '4bit', '8bit'])
@pytest.mark.parametrize('noted', [False, True], ids=['no note', 'noted'])
@pytest.mark.parametrize('damage', LLAMA)
def test_a_damaged_backbone_is_not_loaded(made, tmp_path, damage, noted, quantisation):
    if quantisation != 'none':
        pytest.importorskip('bitsandbytes', reason='quantised weights need bitsandbytes')
    folder = spoilt(made / 'llama', tmp_path / 'x', LLAMA[damage], noted)
    refused(
        lambda: load_backbone(BackboneConfig(folder, quantisation=quantisation, dtype='bfloat16')), folder
    )


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bert')
    vocab = {w: i for i, w in enumerate(['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'a', 'quiet', 'house'])}
    tok = Tokenizer(models.WordLevel(vocab, '[UNK]'))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.post_processor = processors.TemplateProcessing(
        single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tok, unk_token='[UNK]', pad_token='[PAD]', cls_token='[CLS]', sep_token='[SEP]'
    )
    shape = BertConfig(
        vocab_size=len(vocab),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
    )
    torch.manual_seed(0)
    for name, model in (
        ('plain', BertModel(shape)),
        ('masked', BertForMaskedLM(shape)),
        ('without-pooler', BertModel(shape, add_pooling_layer=False)),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize('noted', [False, True], ids=['no note', 'noted'])
@pytest.mark.parametrize('damage', BERT)
def test_a_damaged_encoder_is_not_loaded(bert, tmp_path, damage, noted):
    folder = spoilt(bert / 'plain', tmp_path / 'x', BERT[damage], noted)
    refused(lambda: load_encoder(EncoderConfig(folder)), folder)


@pytest.mark.parametrize('name', ['plain', 'masked', 'without-pooler'])
def test_an_encoder_needs_no_head_and_no_pooler(bert, name):
    encoder = load_encoder(EncoderConfig(str(bert / name)))
    stored = load_file(bert / name / 'model.safetensors')
    key = next(k for k in stored if k.endswith('layer.1.output.dense.weight'))
    assert torch.equal(encoder.model.encoder.layer[1].output.dense.weight, stored[key])


def test_a_masked_bert_with_a_layer_too_many_is_refused(bert, tmp_path):
    folder = spoilt(bert / 'masked', tmp_path / 'x', config('num_hidden_layers', -1), False)
    refused(lambda: load_encoder(EncoderConfig(folder)), 'unknown', 'layer.1')


def test_the_encoder_that_is_a_backbone_is_checked_too(made, tmp_path):
    folder = spoilt(made / 'llama', tmp_path / 'x', LLAMA['a prefix'], False)
    refused(lambda: load_encoder(EncoderConfig('backbone'), BackboneConfig(folder)), folder)


@pytest.mark.parametrize('name', ['tokenizer.json', 'config.json', 'tokenizer_config.json'])
def test_a_turned_bit_in_any_noted_file_is_seen(made, tmp_path, name):
    folder = spoilt(
        made / 'llama', tmp_path / 'x', file(lambda b: b[:-3] + bytes([b[-3] ^ 1]) + b[-2:], name), True
    )
    refused(lambda: load_backbone(BackboneConfig(folder)), name)


def test_a_noted_folder_has_no_file_more_and_none_less(made, tmp_path):
    more = spoilt(
        made / 'llama', tmp_path / 'more', lambda f: (f / 'adapter_config.json').write_text('{}'), True
    )
    refused(lambda: load_backbone(BackboneConfig(more)), 'adapter_config.json', 'write_note')
    fewer = spoilt(
        made / 'llama', tmp_path / 'fewer', lambda f: (f / 'generation_config.json').unlink(), True
    )
    refused(lambda: load_backbone(BackboneConfig(fewer)), 'generation_config.json is missing')
    said = spoilt(made / 'llama', tmp_path / 'said', lambda f: (f / 'README.md').write_text('mine'), True)
    assert load_backbone(BackboneConfig(said)).identity == backbone_identity(
        BackboneConfig(str(made / 'llama'))
    )  # the note is no part of it


@pytest.mark.parametrize('name', ['tokenizer.json', 'config.json', 'tokenizer_config.json'])
def test_a_text_file_cut_short_is_one_sentence(made, tmp_path, name):
    folder = spoilt(made / 'llama', tmp_path / 'x', file(lambda b: b[: len(b) // 2], name), False)
    with pytest.raises(LlmrecError):
        load_backbone(BackboneConfig(folder))


def test_zeros_that_are_meant_are_noted(made, tmp_path):
    folder = spoilt(made / 'llama', tmp_path / 'x', LLAMA['400 bytes zeroed'], False)
    refused(lambda: load_backbone(BackboneConfig(folder)), '100 zeros', 'write_note')
    write_note(folder)
    load_backbone(BackboneConfig(folder))


@contextlib.contextmanager
def saved(folder, made, **shape):
    "A Llama of another shape, to be changed within and then saved beside the tokenizer of `made`."
    settings = LlamaConfig.from_pretrained(made / 'llama')
    model = LlamaForCausalLM(LlamaConfig(**(settings.to_dict() | shape)))
    with torch.no_grad():
        yield model
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(made / 'llama').save_pretrained(folder)


@pytest.mark.parametrize('quantisation', ['none', '4bit', '8bit'])
def test_what_is_in_order_is_loaded(made, tmp_path, quantisation):
    if quantisation != 'none':
        pytest.importorskip('bitsandbytes', reason='quantised weights need bitsandbytes')
    with saved(tmp_path / 'x', made, tie_word_embeddings=True, attention_bias=True) as model:
        model.model.embed_tokens.weight[[0, 5, 6]] = 0  # rows of padding
        model.model.layers[1].mlp.gate_proj.weight.zero_()  # a matrix that has not been trained
        for layer in model.model.layers:
            layer.self_attn.q_proj.bias.zero_()
    assert not [
        k for k in load_file(tmp_path / 'x/model.safetensors') if 'lm_head' in k
    ]  # tied: the file has no head
    old = load_file(tmp_path / 'x/model.safetensors') | {
        'model.layers.0.self_attn.rotary_emb.inv_freq': torch.ones(8)
    }  # as old files have it
    save_file(old, tmp_path / 'x/model.safetensors', {'format': 'pt'})
    load_backbone(BackboneConfig(str(tmp_path / 'x'), quantisation=quantisation))


@pytest.mark.parametrize('damage', ['none', '400 bytes zeroed', 'nan', 'a tensor missing'])
def test_files_of_the_old_kind_are_checked_in_the_model(made, tmp_path, damage):
    folder = Path(spoilt(made / 'llama', tmp_path / 'x', LLAMA.get(damage, lambda f: None), False))
    torch.save(load_file(folder / 'model.safetensors'), folder / 'pytorch_model.bin')
    (folder / 'model.safetensors').unlink()
    load = lambda: load_backbone(BackboneConfig(str(folder)))
    if damage == 'none':
        load()
    else:
        refused(load, folder)


def test_weights_in_half_precision_and_in_shards(made, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(made / 'llama', dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / 'x', max_shard_size='100KB')
    AutoTokenizer.from_pretrained(made / 'llama').save_pretrained(tmp_path / 'x')
    shards = sorted((tmp_path / 'x').glob('*.safetensors'))
    assert len(shards) > 2
    load_backbone(BackboneConfig(str(tmp_path / 'x'), dtype='bfloat16'))
    hit = next(s for s in shards if any(k.endswith('1.mlp.up_proj.weight') for k in load_file(s)))
    save_file(middle('1.mlp.up_proj.weight', [0.0] * 100)(load_file(hit)), hit, {'format': 'pt'})
    refused(lambda: load_backbone(BackboneConfig(str(tmp_path / 'x'), dtype='bfloat16')), '100 zeros')


@pytest.mark.skipif(
    not (ROOT / 'data/miniature/llama/recipe.json').is_file(),
    reason='the miniature Llama is not in the repository',
)
@pytest.mark.parametrize('name', ['model.safetensors', 'tokenizer.json'])
def test_the_miniature_llama_is_compared_with_its_recipe(tmp_path, monkeypatch, name):
    monkeypatch.chdir(ROOT)
    load_backbone(BackboneConfig('miniature'))
    folder = Path(shutil.copytree(miniature_llama(), tmp_path / 'x'))
    content = bytearray((folder / name).read_bytes())
    content[-5] ^= 1
    (folder / name).write_bytes(content)
    refused(lambda: load_backbone(BackboneConfig(str(folder))), name, 'recipe.json')


def test_a_bad_model_scores_nothing(made, tmp_path, out):
    code = 'import sys; from llmrec.llm.backbones import *; load_backbone(BackboneConfig(sys.argv[1])); print("scored")'
    folder = spoilt(made / 'llama', tmp_path / 'x', LLAMA['a prefix'], False)
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, folder], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode and 'scored' not in done.stdout and 'LOAD REPORT' not in done.stderr
