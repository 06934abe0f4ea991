"Yes-or-no samples of small invented files: numbering, drawing, both protocols, few shots and arrays."

import json

import numpy as np
import polars as pl
import pytest

from llmrec.data.tallrec import MovieSamplesConfig, phrase, tallrec_record
from llmrec.data.yesno import (
    PROTOCOLS,
    describe_yesno,
    few_shot,
    load_films,
    load_yesno,
    seen_targets,
    yesno_checksum,
)
from llmrec.data.yesno_books import (
    EXPLICIT_ONLY,
    SEEN_USERS,
    BookSamplesConfig,
    book_samples,
    book_splits,
    from_prompts,
    likes_first,
    load_books,
    owners,
    titled_ratings,
)
from llmrec.data.yesno_form import COLUMNS, arrays, filled, number, numbered, used_items
from llmrec.paths import AUTHOR, ITEM, RATING, TITLE, USER, LlmrecError

AS_PUBLISHED, CORRECTED = BookSamplesConfig.as_published(), BookSamplesConfig.corrected()


def split(users, history, labels, items, label):
    return pl.DataFrame(dict(zip(COLUMNS, (users, history, labels, items, label, [None] * len(users)))))


@pytest.fixture
def raw():
    return {
        'train': split(['u9', 'u2'], [['b', 'a'], ['c']], [[1, 0], [1]], ['c', 'a'], [0, 1]),
        'valid': split(['u2'], [['a', 'c']], [[0, 0]], ['b'], [1]),
    }


@pytest.fixture
def parsed():
    return pl.DataFrame(
        dict(liked=[[], ['x', 'y']], disliked=[['z'], []], target=['t', 'u'], label=[1, 0]),
        schema_overrides={'liked': pl.List(pl.String), 'disliked': pl.List(pl.String)},
    )


def test_numbers_are_places_from_1():
    frame = pl.DataFrame({'x': ['b', 'a', 'b']})
    assert frame.select(number(pl.col('x'), ['a', 'b'], pl.String))['x'].to_list() == [2, 1, 2]


def test_users_are_numbered_as_they_appear_and_items_as_given(raw):
    made, names = numbered(raw, ['a', 'b', 'c'])
    assert names == [None, 'u9', 'u2'] and used_items(raw) == ['b', 'a', 'c']
    assert made['train'].rows() == [(1, [2, 1], [1, 0], 3, 0, None), (2, [3], [1], 1, 1, None)]
    assert made['valid'].rows() == [(2, [1, 3], [0, 0], 2, 1, None)]


def films_in(folder, n_titles=13):
    flags = '|'.join(['0'] * 19)
    rated = [f'{u}\t{i}\t{1 + (u + i) % 5}\t{100 * u + i}\n' for u in (5, 3) for i in range(1, 14)]
    titles = [f'{i}|Film {i} (1990)|01-Jan-1990|||{flags}\n' for i in range(1, n_titles + 1)]
    (folder / 'u.data').write_text(''.join(rated))
    (folder / 'u.item').write_text(''.join(titles))
    return folder


def test_films(tmp_path):
    films = load_films(MovieSamplesConfig.as_published(), films_in(tmp_path))
    assert [s.height for s in films['splits'].values()] == [4, 1, 1] and films['users'] == [None, 5, 3]
    assert films['splits']['train']['history'][0].to_list() == list(range(1, 11))
    assert films['titles'][13] == 'Film 13 (1990)'
    with pytest.raises(LlmrecError, match='u.item: item 13 is rated'):
        load_films(MovieSamplesConfig.as_published(), films_in(tmp_path, 12))


def test_a_book_is_its_title_and_author():
    books = pl.DataFrame(
        {
            ITEM: ['i1', 'i2', 'i3', 'i4'],
            TITLE: ['Salt', 'Pine', 'Pine', None],
            AUTHOR: ['Ada', 'Bo', 'Bo', 'Cy'],
        }
    )
    rated = pl.DataFrame(
        {
            USER: ['7', '7', '7', '7', '8'],
            ITEM: ['i3', 'i1', 'i2', 'i4', 'i1'],
            RATING: [9.0, 0.0, 2.0, 8.0, 7.0],
        }
    )
    salt, pine = phrase('Salt', 'Ada'), phrase('Pine', 'Bo')
    kept = titled_ratings(rated, books, AS_PUBLISHED).rows()
    assert kept == [('7', pine, 9.0), ('7', salt, 0.0), ('8', salt, 7.0)]
    assert titled_ratings(rated, books, CORRECTED).rows() == [('7', pine, 9.0), ('8', salt, 7.0)]


def test_book_samples_by_hand():
    many = pl.DataFrame(
        {
            USER: ['u'] * 13 + ['v'] * 4 + ['w'] * 3,
            ITEM: [f'b{i}' for i in range(20)],
            RATING: [float(i % 10) for i in range(20)],
        }
    )
    s, like = book_samples(many, BookSamplesConfig()), {f'b{i}': int(i % 10 > 5) for i in range(20)}
    assert s[USER].to_list() == ['u', 'v'] and s['history'].list.len().to_list() == [10, 3]
    for row in s.iter_rows(named=True):
        assert row['history_labels'] == [like[i] for i in row['history']]
        assert row['label'] == like[row[ITEM]] and row[ITEM] not in row['history']
    mixed = book_samples(many, BookSamplesConfig(labels='permuted'))
    assert mixed['history'][0].to_list() == s['history'][0].to_list()
    assert mixed['history_labels'][0].to_list() != s['history_labels'][0].to_list()


def test_book_splits_by_hand():
    crowd = pl.DataFrame(
        {
            USER: [f'u{i // 5}' for i in range(100)],
            ITEM: [f'b{i % 30}' for i in range(100)],
            RATING: [float(i % 11) for i in range(100)],
        }
    )
    parts = book_splits(crowd, BookSamplesConfig())
    assert [p.height for p in parts.values()] == [16, 2, 2] and pl.concat(parts.values())[
        USER
    ].n_unique() == 20


def test_released_rows_have_likes_first(raw, parsed):
    want = [('test 1', ['z'], [0], 't', 1, None), ('test 2', ['x', 'y'], [1, 1], 'u', 0, None)]
    assert from_prompts(parsed, 'test').rows() == want
    some = raw['valid'].with_columns(history_labels=pl.Series([[0, 1]]))
    assert likes_first(some)['history'].to_list() == [['c', 'a']]


def test_owners_have_all_books_of_a_row(parsed):
    shelves = pl.DataFrame({USER: ['a', 'a', 'b', 'b', 'b'], ITEM: ['x', 't', 'x', 'y', 'u']})
    assert owners(shelves, from_prompts(parsed, 'test')).to_list() == ['b']


def bx(rows):
    return ''.join(';'.join(f'"{v}"' for v in row) + '\r\n' for row in rows)


def books_in(folder, n=40):
    head = (
        'ISBN',
        'Book-Title',
        'Book-Author',
        'Year-Of-Publication',
        'Publisher',
        'Image-URL-S',
        'Image-URL-M',
        'Image-URL-L',
    )
    titles = [(f'00{i}', f'Sun &amp; Rain {i}', 'Ada', 1990, 'P', '', '', '') for i in range(9)]
    rated = [(u, f'00{(u + k) % 9}', (u * k) % 11) for u in range(1, n + 1) for k in range(5)]
    ratings = bx([('User-ID', 'ISBN', 'Book-Rating'), *rated])
    record = tallrec_record(
        [phrase('Sun &amp; Rain 3', 'Ada'), phrase('Elm', 'Bo')],
        [0, 1],
        phrase('Sun &amp; Rain 4', 'Ada'),
        1,
        'book',
    )
    files = {
        'BX-Books.csv': bx([head, *titles]),
        'BX-Book-Ratings.csv': ratings,
        EXPLICIT_ONLY: ratings,
        SEEN_USERS: '{"valid": [1, 2], "test": [2, 3]}',
        'valid.json': json.dumps([record]),
        'test.json': json.dumps([record] * 2),
    }
    for file, text in files.items():
        (folder / file).write_text(text, newline='')
    return folder


def test_both_protocols_of_books(tmp_path):
    published = load_books(AS_PUBLISHED, books_in(tmp_path), released=True)
    assert [s.height for s in published['splits'].values()] == [37, 1, 2]
    assert [x for x in ('1', '2', '3') if x in published['users']] == []
    row = published['splits']['test'].row(0, named=True)
    assert [published['titles'][i] for i in row['history']] == ['Elm', 'Sun &amp; Rain 3']
    assert row['history_labels'] == [1, 0]
    assert row[ITEM] in published['splits']['train'][ITEM].to_list()  # the same text is the same item
    assert all('&amp;' not in t for t in load_books(CORRECTED, tmp_path, EXPLICIT_ONLY)['titles'])


def test_broken_files_of_books(tmp_path):
    def published():
        return load_books(AS_PUBLISHED, tmp_path, released=True)

    (books_in(tmp_path) / SEEN_USERS).write_text('[1]')
    with pytest.raises(LlmrecError, match="under 'valid' and 'test'"):
        published()
    (books_in(tmp_path) / 'test.json').write_text('[{"instruction": "a", "input": "b", "output": "No."}]')
    with pytest.raises(LlmrecError, match='test.json, record 1:'):
        published()
    with pytest.raises(LlmrecError, match='BX-Book-Ratings.csv: a split is empty'):
        load_books(AS_PUBLISHED, books_in(tmp_path, 3))


@pytest.mark.parametrize('name', ['films', 'books'])
@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_the_miniature_by_name(name, protocol):
    data = load_yesno(name, protocol)
    assert (
        len(data.phrases) == data.n_items + 1
        and data.texts[0] == ''
        and data.checksum == yesno_checksum(name, protocol)
    )
    assert len(data.users) - 1 == max(s[USER].max() for s in data.splits.values())
    for s in data.splits.values():
        assert tuple(s.columns) == COLUMNS and s.schema['history'] == pl.List(pl.Int64)
        assert 1 <= s[ITEM].min() and s[ITEM].max() <= data.n_items
        assert 1 <= s['history'].list.len().min() and s['history'].list.len().max() <= 10


def test_names_of_the_miniature():
    assert load_yesno('films').n_items == 300 and yesno_checksum('films') != yesno_checksum(
        'films', 'corrected'
    )
    with pytest.raises(LlmrecError, match="Did you mean 'films'"):
        load_yesno('film')
    with pytest.raises(LlmrecError, match='Known: as_published, corrected'):
        load_yesno('films', 'published')


def test_few_shots_are_nested_complete_and_of_a_seed():
    draws = {k: few_shot(8000, k, 7) for k in (16, 64, 256)}
    assert all(np.isin(draws[a], draws[b]).all() for a, b in ((16, 64), (64, 256)))
    assert (np.sort(few_shot(50, None, 1)) == np.arange(50)).all()
    assert (few_shot(50, 8, 1) != few_shot(50, 8, 2)).any()
    for k in (0, 51):
        with pytest.raises(LlmrecError, match='choose K between 1 and 50'):
            few_shot(50, k, 0)


def test_filling():
    lists = pl.Series([[4, 5], [], [1]])
    assert filled(lists, 3, 'last', int).tolist() == [[4, 5, 5], [0, 0, 0], [1, 1, 1]]
    assert filled(lists, 3, 'zero', int).tolist() == [[4, 5, 0], [0, 0, 0], [1, 0, 0]]
    with pytest.raises(LlmrecError, match='Known: last, zero'):
        filled(lists, 3, 'first', int)


def test_arrays_by_hand():
    short = split(
        [1, 2, 3], [[5, 6], [7, 8, 9, 4, 3], []], [[1, 0], [0, 1, 1, 1, 0], []], [1, 2, 3], [1, 0, 1]
    )
    last, zero = arrays(short, width=4), arrays(short, 'zero', width=4)
    assert last.history.tolist() == [[5, 6, 6, 6], [8, 9, 4, 3], [0] * 4] and last.lengths.tolist() == [
        4,
        4,
        0,
    ]
    assert last.history_labels.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [0] * 4]
    assert zero.history.tolist() == [[5, 6, 0, 0], [8, 9, 4, 3], [0] * 4] and zero.lengths.tolist() == [
        2,
        4,
        0,
    ]
    assert (last.history.dtype, last.history_labels.dtype, last.labels.dtype) == (
        np.int64,
        np.float32,
        np.int64,
    )
    assert len(last.take(np.array([2, 0]))) == 2 and last.take([True, False, True]).items.tolist() == [1, 3]


def test_what_training_has_seen():
    assert describe_yesno(load_yesno('films'))['users_seen'][0] == 1.0
    assert describe_yesno(load_yesno('books'))['users_seen'].to_list() == [1.0, 0.0, 0.0]
    few, many = (seen_targets(load_yesno('films'), k, 0).mean() for k in (16, 256))
    assert few < many
