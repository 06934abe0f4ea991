"Files with the faults that were met in the wild: the right value, or one sentence with the line."

import pytest

from llmrec.data.alpaca import read_instructions
from llmrec.data.amazon import read_amazon_ratings
from llmrec.data.datasets import load_dataset, load_listed
from llmrec.data.movielens import load_ml_100k, read_movies, read_ratings
from llmrec.paths import LlmrecError

RATINGS = 'userId,movieId,rating,timestamp\n'


@pytest.fixture
def movielens(tmp_path, monkeypatch):
    "A folder with ml-latest-small's files, made from two texts, as dataset ml-100k."
    folder = tmp_path / 'ml-latest-small'
    folder.mkdir()
    for name, value in dict(LLMREC_DATA=tmp_path, LLMREC_UNCHECKED='1', LLMREC_OUT=tmp_path / 'out').items():
        monkeypatch.setenv(name, str(value))
    load_listed.cache_clear()

    def load(ratings, movies, encoding='utf-8'):
        (folder / 'ratings.csv').write_text(ratings, encoding=encoding)
        (folder / 'movies.csv').write_text(movies, encoding=encoding)
        return load_dataset('ml-100k')

    yield load
    load_listed.cache_clear()


def rows(users=6, items=6):
    return ''.join(f'{u},{i},4.0,{i}\n' for u in range(1, users + 1) for i in range(1, items + 1))


def titles(items=7):
    return 'movieId,title,genres\n' + ''.join(f'{i},Film {i} (1999),Drama\n' for i in range(1, items + 1))


def test_copies_of_an_event_do_not_lift_an_item_over_the_core(movielens):
    data = movielens(RATINGS + rows() + '1,7,5.0,99\n' * 5, titles())
    assert len(data.indexed.items) == 6 and data.indexed.sequences[0].tolist() == [1, 2, 3, 4, 5, 6]


def test_an_item_listed_twice_once_without_a_title(movielens):
    assert movielens(RATINGS + rows(), titles() + '3, ,Drama\n').titles[3] == 'Film 3 (1999)'


def test_an_item_with_two_titles(movielens):
    with pytest.raises(LlmrecError, match='Item 3 of ml-100k has 2 titles'):
        movielens(RATINGS + rows(), titles() + '3,Flood (2001),Drama\n')


def test_a_byte_order_mark_is_no_text(movielens, tmp_path):
    assert len(movielens(RATINGS + rows(), titles(), 'utf-8-sig').titles) == 7
    path = tmp_path / 'instructions.json'
    path.write_text('[{"instruction": "a", "input": "", "output": "b"}]', encoding='utf-8-sig')
    assert read_instructions(path).height == 1


@pytest.mark.parametrize('rating', ['nan', 'inf', '-inf'])
def test_a_rating_that_is_not_finite_is_no_like(tmp_path, rating):
    (tmp_path / 'u.data').write_text(f'1\t2\t4\t100\n1\t3\t{rating}\t101\n')
    (tmp_path / 'u.item').write_text('')
    with pytest.raises(LlmrecError, match=f'u.data, line 2: the rating is {rating}'):
        load_ml_100k(tmp_path)


def test_amazon_may_not_know_a_rating_but_no_rating_is_infinite(tmp_path):
    path = tmp_path / 'ratings.csv'
    path.write_text('U1,B1,nan,1\nU1,B2,5.0,2\n')
    assert read_amazon_ratings(path)['rating'].to_list() == [None, 5.0]
    path.write_text('U1,B1,nan,1\nU1,B2,inf,2\n')
    with pytest.raises(LlmrecError, match='line 2: the rating is inf'):
        read_amazon_ratings(path)


def test_quotes_in_ids_swallow_no_rows(tmp_path):
    path = tmp_path / 'ratings.csv'
    path.write_text('A1,B1,5.0,100\n"A2,B2,4.0,101\nA3,B3,3.0,102\nA4",B4,3.0,103\nA5,B5,1.0,5\n')
    assert read_amazon_ratings(path)['user'].to_list() == ['A1', '"A2', 'A3', 'A4"', 'A5']


@pytest.mark.parametrize('end', ['', '\n', '\n\n\n', '\r\n\r\n'])
def test_empty_lines_at_the_end_are_none(tmp_path, end):
    path = tmp_path / 'ratings.csv'
    path.write_bytes(b'A1,B1,5.0,100\nA2,B2,4.0,101' + end.encode())
    assert read_amazon_ratings(path).height == 2


def test_an_empty_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / 'ratings.csv'
    path.write_text('A1,B1,5.0,100\n\nA2,B2,4.0,101\n')
    with pytest.raises(LlmrecError, match='line 2: 1 fields'):
        read_amazon_ratings(path)


def test_what_the_csv_reader_cannot_read_is_said_with_its_line(tmp_path):
    path = tmp_path / 'movies.csv'
    path.write_text('movieId,title,genres\n1,"' + 'a' * 140_000 + '",X\n')
    with pytest.raises(LlmrecError, match='line 2: field larger'):
        read_movies(path)
    path.write_text('movieId,title,genres\n\N{SUPERSCRIPT TWO},Tide,X\n', encoding='utf-8')
    with pytest.raises(LlmrecError, match='line 2: 3 fields beginning'):
        read_movies(path)


def test_a_number_with_a_separator_of_thousands_is_no_number(tmp_path):
    path = tmp_path / 'u.data'
    path.write_text('1\t2\t4\t1_0x\n')
    with pytest.raises(LlmrecError, match="timestamp is '1_0x'"):
        read_ratings(path, '\t')
