"The registry of datasets, and what the miniature's files become."

import numpy as np
import polars as pl
import pytest

from llmrec.data.datasets import HIDDEN_BY, known_places, load_dataset
from llmrec.data.interactions import random_places
from llmrec.paths import ITEM, LlmrecError


@pytest.mark.parametrize('name', ['films', 'books'])
def test_the_miniature_has_titles_and_a_core(name):
    data = load_dataset(name)
    assert len(data.titles) == data.indexed.sequences.n_items + 1
    assert all(data.titles[1:]) and data.indexed.sequences.lengths.min() >= 5


def test_names_and_rules_are_known():
    with pytest.raises(LlmrecError, match="Did you mean 'films'"):
        load_dataset('film')
    with pytest.raises(LlmrecError, match="Did you mean 'guessed'"):
        load_dataset('films', ties='guesed')


def test_places_come_from_the_metadata_where_days_are_lost_and_hide_days_elsewhere():
    kept = pl.DataFrame({ITEM: ['a', 'c', 'a']})
    assert list(known_places('games', pl.DataFrame({ITEM: ['c', 'a', 'b']}), kept)) == [1, 0, 1]
    assert list(known_places('books', None, kept)) == list(
        random_places(pl.Series(['a', 'c', 'a']), HIDDEN_BY)
    )


def test_a_guess_keeps_everybodys_items_in_days_of_its_own():
    books, guess = (load_dataset('books', ties=rule).indexed for rule in ('item', 'guessed'))
    assert (guess.sequences.offsets == books.sequences.offsets).all()
    for u in range(9):
        assert (np.sort(guess.sequences[u]) == np.sort(books.sequences[u])).all()
    assert 0 < (np.diff(guess.times) == 0).sum() and (guess.sequences.items != books.sequences.items).any()
