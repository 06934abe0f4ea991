"Which tokens the letters are: as trained, as published, and both."

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from llmrec.llm.tiny import byte_tokenizer, default_texts, metaspace_tokenizer
from llmrec.llm.verbalizer import label_scores, letter_ids
from llmrec.paths import LlmrecError

NAMES = dict(unk_token='<unk>', bos_token='<s>', eos_token='</s>')


@pytest.fixture
def byte():
    return PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(default_texts()), **NAMES)


@pytest.fixture
def meta():
    return PreTrainedTokenizerFast(tokenizer_object=metaspace_tokenizer(default_texts()), **NAMES)


def test_in_llama_style_all_twenty_differ(meta):
    trained, published = letter_ids(meta, 20), letter_ids(meta, 20, 'as_published')
    assert (trained != published).all()
    assert meta.convert_ids_to_tokens(trained)[:3] == ['A', 'B', 'C']
    assert meta.convert_ids_to_tokens(published)[:3] == ['▁A', '▁B', '▁C']


def test_in_byte_level_style_they_are_the_same(byte):
    assert (letter_ids(byte, 20) == letter_ids(byte, 20, 'as_published')).all()
    assert byte.convert_ids_to_tokens(letter_ids(byte, 2)) == ['A', 'B']
    assert byte.tokenize(' A') == ['ĠA']


def test_too_many_candidates(byte):
    assert len(letter_ids(byte, 52)) == 52
    with pytest.raises(LlmrecError, match='60 candidates'):
        letter_ids(byte, 60)


def test_letters_that_share_a_piece():
    few = PreTrainedTokenizerFast(tokenizer_object=metaspace_tokenizer(['A B C cab'] * 9), **NAMES)
    assert len(letter_ids(few, 3, 'as_published')) == 3
    with pytest.raises(LlmrecError, match='has only 4 distinct single-token labels'):
        letter_ids(few, 6, 'as_published')


def test_the_log_sum(meta):
    both, two = letter_ids(meta, 20, 'log_sum'), np.zeros((5, 20, 2))
    assert both.shape == (20, 2)
    assert np.abs(label_scores(two, both) - np.log(2)).max() < 1e-6
    assert label_scores(two[..., 0], letter_ids(meta, 20)).shape == (5, 20)
