"Backbones: toy tokenizers, tiny models and their bytes, identities, labels, loading."

import hashlib
from pathlib import Path

import pytest
import torch
import transformers

from llmrec.config import values_of
from llmrec.llm.backbones import (
    BackboneConfig,
    backbone_identity,
    backbone_label,
    bits,
    load_backbone,
    prepare_tokenizer,
)
from llmrec.llm.checked import NOTE, RECIPE_FILE
from llmrec.llm.folders import NO_PART, file_fingerprint, folder_identity, miniature_llama
from llmrec.llm.tiny import byte_tokenizer, default_texts, metaspace_tokenizer, tiny_backbone
from llmrec.paths import LlmrecError


def sha(folder, name='model.safetensors'):
    return hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest()


@pytest.fixture
def three(tmp_path):
    "Two tiny models from one seed and one from another."
    return [tiny_backbone(tmp_path / name, seed=seed) for name, seed in (('a', 0), ('b', 0), ('c', 1))]


def test_configurations():
    assert BackboneConfig().name == 'tiny'
    assert BackboneConfig.as_published().quantisation == '4bit'
    assert values_of(BackboneConfig('gpt2', label='GPT-2')) == dict(name='gpt2')


def test_a_byte_level_tokenizer():
    tok = byte_tokenizer(['the A and the B'] * 9)
    assert tok.encode('A').tokens == ['<s>', 'A']
    assert tok.encode('x\nA').tokens == ['<s>', 'x', 'Ċ', 'A']


def test_a_metaspace_tokenizer():
    tok = metaspace_tokenizer(['the A and the B'] * 9)
    assert tok.encode('A').tokens == ['<s>', '▁A']
    assert tok.encode('x\nA').tokens[-2:] == ['<0x0A>', 'A']
    assert tok.token_to_id('<0x0A>') == 13
    assert tok.decode(tok.encode('the A\nand é').ids) == 'the A\nand é'


def test_the_texts_of_the_tiny_tokenizers_do_not_change():
    "The identity of the tiny models, under which runs are recorded, is made from them."
    assert default_texts() == default_texts()
    assert hashlib.sha256('\0'.join(default_texts()).encode()).hexdigest()[:16] == 'd6270aa991ff6b1b'
    assert backbone_identity(BackboneConfig()) == 'tiny-llama-accaa49063106216'


def test_one_seed_gives_one_set_of_bytes(three):
    a, b, c = three
    assert sha(a) == sha(b) and sha(a, 'tokenizer.json') == sha(b, 'tokenizer.json')
    assert sha(a) != sha(c)
    assert sorted(p.name for p in a.parent.iterdir()) == ['a', 'b', 'c']


def test_identities():
    tiny = backbone_identity(BackboneConfig())
    assert tiny == backbone_identity(BackboneConfig(), default_texts())
    assert tiny != backbone_identity(BackboneConfig(seed=1))
    assert tiny != backbone_identity(BackboneConfig(), ['other texts'])
    assert backbone_identity(BackboneConfig.as_published()) == 'meta-llama/Llama-2-7b-hf@main+4bit+bfloat16'
    smollm2 = backbone_identity(BackboneConfig('smollm2', dtype='bfloat16'))
    assert smollm2 == 'SmolLM2-135M-Instruct-Q4_1-b179c9523d0e6a0f+bfloat16'
    with pytest.raises(LlmrecError, match='no config.json'):
        backbone_identity(BackboneConfig('./no-such-folder'))
    with pytest.raises(LlmrecError, match='There is no GGUF file none.gguf'):
        backbone_identity(BackboneConfig('./none.gguf'))


def test_a_folder_is_known_by_its_files_wherever_it_lies(three):
    a, b, c = (backbone_identity(BackboneConfig(str(folder))) for folder in three)
    assert a == b != c
    assert NO_PART == (RECIPE_FILE, NOTE)
    (three[0] / RECIPE_FILE).write_text('{"seconds": 1}')
    (three[0] / NOTE).write_text('{}')
    assert backbone_identity(BackboneConfig(str(three[0]))) == a


def test_the_last_byte_of_a_large_file_counts(tmp_path):
    big = tmp_path / 'big.bin'
    big.write_bytes(bytes(5 * 2**20))
    first = file_fingerprint(big)
    big.write_bytes(bytes(5 * 2**20 - 1) + b'x')
    assert file_fingerprint(big) != first


def test_the_miniature_llama_is_found_in_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'settings.ini').touch()
    (tmp_path / 'llmrec').mkdir()
    with pytest.raises(LlmrecError, match='The miniature Llama is not in'):
        backbone_identity(BackboneConfig('miniature'))
    tiny_backbone(miniature_llama())
    want = f'miniature-{folder_identity(miniature_llama())}+4bit'
    assert backbone_identity(BackboneConfig('miniature', quantisation='4bit')) == want


def test_labels():
    names = ('tiny', 'miniature', 'smollm2', 'meta-llama/Llama-2-7b-hf', '/models/mine/', '~/a.Q4_0.gguf')
    assert [backbone_label(n) for n in names] == [
        'tiny Llama, random weights',
        'miniature Llama',
        'SmolLM2-135M (Q4_1)',
        'meta-llama/Llama-2-7b-hf',
        'mine',
        'a.Q4_0',
    ]
    assert backbone_label(BackboneConfig('/models/mine', label='My model')) == 'My model'
    assert backbone_label('/models/mine', 'My model') == 'My model'
    assert backbone_label(BackboneConfig('tiny', label='Llama 70B')) == 'tiny Llama, random weights'


def test_a_pad_token_adds_nothing_to_the_vocabulary():
    tok = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(['a b']), unk_token='<unk>', eos_token='</s>'
    )
    n = len(tok)
    assert (prepare_tokenizer(tok).pad_token, len(tok)) == ('<unk>', n)


def test_settings_of_quantisation():
    assert bits(BackboneConfig.as_published()).bnb_4bit_quant_type == 'nf4'
    assert bits(BackboneConfig()) is None


def test_loading(out):
    bb, again = load_backbone(BackboneConfig()), load_backbone(BackboneConfig())
    (out / 'empty').mkdir()
    (out / 'empty/config.json').write_text('{}')
    with pytest.raises(LlmrecError, match='cannot be loaded'):
        load_backbone(BackboneConfig(str(out / 'empty')))
    assert bb.identity == again.identity
    assert bb.tokenizer.padding_side == 'left'
    assert torch.equal(bb.model.lm_head.weight, again.model.lm_head.weight)
