"The loaders on bad input, on the quirks of the public files (made-up examples), and on the real data when it is here."

import gzip
import json
import zipfile

import numpy as np
import polars as pl
import pytest

from llmrec.data import raw
from llmrec.data.alpaca import load_alpaca, read_instructions
from llmrec.data.amazon import load_amazon, read_amazon_metadata, read_amazon_ratings
from llmrec.data.bookcrossing import (
    BX_BOOKS,
    BX_RATINGS,
    BX_USERS,
    explicit,
    load_bookcrossing,
    load_bookcrossing_users,
)
from llmrec.data.movielens import clean_title, load_ml_100k, load_ml_100k_users, load_ml_latest_small
from llmrec.data.tallrec import (
    MOVIE_BLOBS,
    MovieSamplesConfig,
    git_blob_id,
    load_tallrec_json,
    movie_samples,
    movie_splits,
    split_samples,
    tallrec_json,
)
from llmrec.paths import ITEM, RATING, TIMESTAMP, TITLE, USER, LlmrecError


def real(dataset):
    return pytest.mark.skipif(
        not raw.available(dataset), reason=f'real data (LLMREC_DATA) not present: {dataset}'
    )


@pytest.fixture
def alone(tmp_path, monkeypatch):
    "A machine without data and without network; returns its $LLMREC_DATA."
    data = tmp_path / 'given'
    data.mkdir()
    monkeypatch.setenv('LLMREC_DATA', str(data))
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path / 'out'))
    monkeypatch.setenv('LLMREC_OFFLINE', '1')
    monkeypatch.delenv('LLMREC_UNCHECKED', raising=False)
    return data


def put(path, text, encoding='utf-8'):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if path.suffix == '.gz' else content)
    return path


def bx(columns):
    return ';'.join(f'"{c}"' for c in columns) + '\r\n'


# -- finding and checking raw files -----------------------------------------------------------------------------------


@pytest.mark.parametrize('dataset', raw.RAW_FILES)
def test_a_missing_dataset_is_one_sentence_with_everything_needed(alone, dataset):
    assert not raw.available(dataset)
    entry = raw.RAW_FILES[dataset][0]
    with pytest.raises(LlmrecError) as e:
        raw.locate(dataset, entry.name)
    for part in (
        entry.name,
        entry.url,
        entry.sha256[0],
        'LLMREC_OFFLINE',
        f'$LLMREC_DATA/{entry.folder}/{entry.name}',
    ):
        assert part in str(e.value)


def test_no_network_is_one_sentence_and_quick(alone, monkeypatch):
    monkeypatch.setenv('LLMREC_OFFLINE', '0')
    entry = raw.RawFile('toy', 'a.csv', ('0' * 64,), 'http://127.0.0.1:9/a.csv')
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with pytest.raises(LlmrecError, match='download failed .*http://127.0.0.1:9/a.csv'):
        raw.fetch(entry)


def test_a_truncated_file_is_refused(alone):
    put(alone / 'ml-latest-small/ratings.csv', 'userId,movieId,rating,timestamp\r\n1,1,4.0,9\r\n')
    with pytest.raises(
        LlmrecError,
        match=r'ratings.csv.*expected aa289ca.*seems truncated \(44 bytes of content, expected 2,483,723\)',
    ):
        raw.locate('ml-latest-small', 'ratings.csv')


def test_a_truncated_gzip_is_refused(alone):
    path = put(alone / 'beauty/ratings_Beauty.csv.gz', 'U1,B1,5.0,86400\n' * 1000)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(LlmrecError, match='seems truncated'):
        raw.locate('beauty', 'ratings_Beauty.csv')
    with pytest.raises(LlmrecError, match='truncated'):
        read_amazon_ratings(path)


def test_a_wrong_checksum_is_refused_and_can_be_overridden(alone, monkeypatch):
    path = put(alone / 'ml-100k/u.data', '1\t1\t3\t9\n' * 400_000)
    with pytest.raises(LlmrecError, match='u.data.*expected 06416e59.*LLMREC_UNCHECKED=1') as e:
        raw.locate('ml-100k-classic', 'u.data')
    assert 'truncated' not in str(e.value)
    monkeypatch.setenv('LLMREC_UNCHECKED', '1')
    assert raw.locate('ml-100k-classic', 'u.data') == path


def test_a_changed_file_is_noticed_within_one_process(alone):
    path = put(alone / 'toy/a.csv', '1\n')
    entry = raw.RawFile('toy', 'a.csv', (raw.content(path)[0],))
    assert raw.verify(entry, path) == path
    put(path, '1\n2\n')
    with pytest.raises(LlmrecError):
        raw.verify(entry, path)


def test_packed_and_plain_files_are_the_same_data(alone):
    text = 'U1,B1,5.0,86400\n'
    packed, plain = put(alone / 'p/a.csv.gz', text), put(alone / 'q/a.csv', text)
    assert raw.content(packed) == raw.content(plain)
    assert raw.in_folder(alone / 'p', 'a.csv') == packed and raw.in_folder(alone / 'q', 'a.csv.gz') == plain


def test_the_data_checksum_needs_no_data_and_follows_the_content(alone, monkeypatch):
    reference = raw.data_checksum('games')
    assert len(reference) == 12 and reference != raw.data_checksum('beauty')
    put(alone / 'games/ratings_Video_Games.csv', 'U1,B1,5.0,1\n')
    assert raw.data_checksum('games') != reference


def test_a_damaged_archive_is_removed(alone, monkeypatch):
    archive = put(raw.raw_dir() / 'downloads/toy-a.zip', 'not a zip')
    monkeypatch.setattr(raw, '_download', lambda _: archive)
    with pytest.raises(LlmrecError, match='archive that was downloaded is damaged'):
        raw.fetch(raw.RawFile('toy', 'a.csv', (), 'http://x/a.zip', 'a.csv'))
    assert not archive.exists()


@pytest.mark.parametrize('derived', [True, False])
def test_an_unknown_original_is_trusted_once_only_where_ours_is_derived(alone, monkeypatch, derived):
    archive = raw.raw_dir() / 'downloads/toy-a.zip'
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, 'w') as z:
        z.writestr('a.csv', '1\n')
    monkeypatch.setattr(raw, '_download', lambda _: archive)
    entry = raw.RawFile('toy', 'a.csv', ('0' * 64,), 'http://x/a.zip', 'a.csv', derived=derived)
    if not derived:
        with pytest.raises(LlmrecError):
            raw.fetch(entry)
        assert not raw.target(entry).exists()
        return
    path = raw.fetch(entry)
    assert raw.sidecar(path).read_text().split() == [raw.content(path)[0]]
    put(path, '2\n')
    with pytest.raises(LlmrecError):
        raw.verify(entry, path)


# -- MovieLens --------------------------------------------------------------------------------------------------------

FLAGS = '|'.join(['0'] * 18 + ['1'])


def test_ml_100k_survives_latin_1_duplicates_and_unknown(tmp_path):
    put(tmp_path / 'u.data', '5\t2\t4\t100\n5\t1\t3\t100\n')
    put(
        tmp_path / 'u.item',
        f'1|Crème, La (1950)|01-Jan-1950||http://x|{FLAGS}\n2|unknown||||{FLAGS}\n3|Crème, La (1950)|||| {FLAGS}\n',
        'latin-1',
    )
    interactions, items = load_ml_100k(tmp_path)
    assert interactions.schema == {USER: pl.Int64, ITEM: pl.Int64, RATING: pl.Float64, TIMESTAMP: pl.Int64}
    assert interactions[ITEM].to_list() == [2, 1]
    assert items[TITLE].to_list() == ['Crème, La (1950)', 'unknown', 'Crème, La (1950)']
    assert items['release_date'].to_list() == ['01-Jan-1950', None, None]


@pytest.mark.parametrize(
    'row, complaint',
    [
        ('7\t3\t4', '3 fields, expected 4'),
        ('7\t3\t4\t9\t9', '5 fields, expected 4'),
        ('7\t3\tfour\t9', "rating is 'four'"),
        ('7\t3\t4\t', "timestamp is ''"),
        ('x\t3\t4\t9', "user is 'x'"),
    ],
)
def test_a_broken_ratings_row_is_named_by_line(tmp_path, row, complaint):
    put(tmp_path / 'u.data', '5\t2\t4\t100\n' * 41 + row + '\n5\t2\t4\t100\n')
    put(tmp_path / 'u.item', f'1|A||||{FLAGS}\n')
    with pytest.raises(LlmrecError, match='u.data, line 42') as e:
        load_ml_100k(tmp_path)
    assert complaint in str(e.value)


def test_ml_latest_small_survives_crlf_quoted_commas_and_missing_titles(tmp_path):
    put(tmp_path / 'ratings.csv.gz', 'userId,movieId,rating,timestamp\r\n1,20,4.5,7\r\n')
    put(
        tmp_path / 'movies.csv',
        'movieId,title,genres\r\n20,"Ñandú, ""The"" (2001)",Drama|War\r\n21,  ,(none)\r\n',
    )
    interactions, items = load_ml_latest_small(tmp_path)
    assert interactions.rows() == [(1, 20, 4.5, 7)]
    assert items[TITLE].to_list() == ['Ñandú, "The" (2001)', None]
    assert load_ml_latest_small(tmp_path, encoding='iso-8859-1')[1][TITLE][0].startswith('Ã\x91and')


def test_ml_latest_small_names_broken_lines_and_headers(tmp_path):
    put(tmp_path / 'ratings.csv', 'userId,movieId,rating,timestamp\r\n1,20,4.5,7\r\n1,20,4.5\r\n')
    put(tmp_path / 'movies.csv', 'movieId,title,genres\r\n20,"A",B\r\n21,A, The,B\r\n')
    with pytest.raises(LlmrecError, match='ratings.csv, line 3: 3 fields'):
        load_ml_latest_small(tmp_path)
    put(tmp_path / 'ratings.csv', 'userId,movieId,rating,timestamp\r\n1,20,4.5,7\r\n')
    with pytest.raises(LlmrecError, match='movies.csv, line 3: 4 fields'):
        load_ml_latest_small(tmp_path)
    put(tmp_path / 'ratings.csv', '1,20,4.5,7\r\n')
    with pytest.raises(LlmrecError, match='expected the header userId,movieId,rating,timestamp'):
        load_ml_latest_small(tmp_path)


def test_bytes_that_are_not_utf_8_are_named(tmp_path):
    put(tmp_path / 'ratings.csv', 'userId,movieId,rating,timestamp\r\n1,20,4.5,7\r\n')
    put(tmp_path / 'movies.csv', 'movieId,title,genres\r\n20,Café (2000),B\r\n', 'latin-1')
    with pytest.raises(LlmrecError, match='movies.csv: byte .* is not utf-8'):
        load_ml_latest_small(tmp_path)


@pytest.mark.parametrize(
    'title, letter, meant',
    [
        ('Garden, The (Le Jardin) (1955)', 'The Garden (1955)', 'The Garden (1955)'),
        ('Slow Boat (2004) ', 'Slow Boat(2004) ', 'Slow Boat (2004)'),
        ('Lumen, Ada (1990)', 'Ada Lumen (1990)', 'Lumen, Ada (1990)'),
        ('Tidewater', 'Tidewater', 'Tidewater'),
        ('', '', ''),
    ],
)
def test_titles_by_letter_and_by_intention(title, letter, meant):
    assert clean_title(title) == letter
    assert clean_title(title, published=False) == meant


# -- BookCrossing -----------------------------------------------------------------------------------------------------


def test_bookcrossing_survives_its_dialect_and_counts_what_it_leaves_out(tmp_path):
    put(
        tmp_path / 'BX-Book-Ratings.csv.gz',
        bx(BX_RATINGS) + '"7";"000X";"0"\r\n"7";"0012";"9"\r\n"8";"0012";"good"\r\n',
        'latin-1',
    )
    put(
        tmp_path / 'BX-Books.csv',
        bx(BX_BOOKS) + '"0012";"The \\"Küster\\"; a tale";"A. B";"1999";"X &amp; Y";"";"";""\r\n'
        '"0013";"a";"b";"c";"1999";"p";"q";"";"";""\r\n"0014";"";NULL;"n.d.";"p";"";"";""\r\n',
        'latin-1',
    )
    interactions, books, report = load_bookcrossing(tmp_path)
    assert interactions[USER].to_list() == ['7', '7'] and interactions[ITEM].to_list() == ['000X', '0012']
    assert interactions[RATING].to_list() == [0.0, 9.0] and interactions[TIMESTAMP].null_count() == 2
    assert explicit(interactions).height == load_bookcrossing(tmp_path, implicit=False)[0].height == 1
    assert books.rows() == [
        ('0012', 'The "Küster"; a tale', 'A. B', 1999, 'X &amp; Y'),
        ('0014', None, None, None, 'p'),
    ]
    assert load_bookcrossing(tmp_path, unescape=True)[1]['publisher'][0] == 'X & Y'
    assert (report.rows, report.bad_rows) == (6, 2) and report.examples == (
        'BX-Book-Ratings.csv.gz:4',
        'BX-Books.csv:3',
    )


def test_bookcrossing_users_survive_a_line_break_in_a_field(tmp_path):
    put(
        tmp_path / 'BX-Users.csv',
        bx(BX_USERS) + '"1";"x\n, atlantis";NULL\r\n"2";"Århus";"31"\r\n',
        'latin-1',
    )
    users, report = load_bookcrossing_users(tmp_path)
    assert users.rows() == [('1', 'x\n, atlantis', None), ('2', 'Århus', 31)] and report.bad_rows == 0


def test_bookcrossing_refuses_another_file(tmp_path):
    put(tmp_path / 'BX-Book-Ratings.csv', 'user,item,rating\n1,2,3\n')
    with pytest.raises(LlmrecError, match='expected the header User-ID;ISBN;Book-Rating'):
        load_bookcrossing(tmp_path)


# -- Amazon -----------------------------------------------------------------------------------------------------------


def test_amazon_survives_nan_ratings_and_odd_titles(tmp_path):
    long = 'very ' * 170 + 'long'
    put(tmp_path / 'ratings_Beauty.csv.gz', 'U2,0001,nan,86400\nU1,0001,5.0,86400\n')
    put(
        tmp_path / 'meta_Beauty.json.gz',
        "{'asin': '0001', 'title': 'Soap &amp;\\n Water'}\n{'asin': 'B2'}\n{'asin': 'B3', 'title': '  '}\n"
        "{'asin': 'B4', 'title': 'Soap &amp;\\n Water'}\n{'asin': 'B5', 'title': '" + long + "'}\n",
    )
    interactions, items = load_amazon('beauty', tmp_path)
    assert interactions.rows() == [('U2', '0001', None, 86400), ('U1', '0001', 5.0, 86400)]
    assert items[TITLE].to_list() == ['Soap &amp; Water', None, None, 'Soap &amp; Water', long]
    assert load_amazon('beauty', tmp_path, unescape=True)[1][TITLE][0] == 'Soap & Water'


def test_amazon_reads_both_dialects_and_runs_nothing(tmp_path):
    assert (
        read_amazon_metadata(put(tmp_path / 'a', '{"asin": "B1", "title": "Caf\\u00e9", "x": null}\n'))[
            TITLE
        ][0]
        == 'Café'
    )
    assert (
        read_amazon_metadata(put(tmp_path / 'b', "{'asin': 'B1', 'title': 'Caf\\xe9', 'x': None}\n"))[TITLE][
            0
        ]
        == 'Café'
    )
    with pytest.raises(LlmrecError, match='line 1'):
        read_amazon_metadata(put(tmp_path / 'c', f"open({str(tmp_path / 'd')!r}, 'w')\n"))
    assert not (tmp_path / 'd').exists()


def test_amazon_names_broken_lines(tmp_path):
    with pytest.raises(LlmrecError, match='line 3: neither JSON nor a Python literal'):
        read_amazon_metadata(put(tmp_path / 'm', '{"asin": "B1"}\n' * 2 + '{"asin": "B2", "title": "x\n'))
    with pytest.raises(LlmrecError, match="line 2: timestamp is 'today'"):
        read_amazon_ratings(put(tmp_path / 'r', 'U1,B1,5.0,1\nU1,B2,5.0,today\n'))


# -- instructions and TALLRec -----------------------------------------------------------------------------------------


def test_broken_json_and_records_are_named(tmp_path):
    good = dict(instruction='a', input='', output='b')
    with pytest.raises(LlmrecError, match='x, line .*not JSON'):
        read_instructions(put(tmp_path / 'x', json.dumps([good], indent=1)[:-9]))
    with pytest.raises(LlmrecError, match="record 2: field 'output'"):
        read_instructions(put(tmp_path / 'x', json.dumps([good, {**good, 'output': 3}])))
    with pytest.raises(LlmrecError, match='expected a list'):
        read_instructions(put(tmp_path / 'x', '{}'))


def test_alpaca_can_leave_out_empty_outputs(tmp_path):
    good = dict(instruction='a', input='', output='b')
    put(tmp_path / 'alpaca_random_9k.json', json.dumps([good, {**good, 'output': ''}]))
    assert (load_alpaca(tmp_path).height, load_alpaca(tmp_path, drop_empty=True).height) == (2, 1)


def loop_samples(rows, history):
    "TALLRec's samples written as a plain loop, as an oracle."
    users = {}
    for user, item, rating, time in rows:
        users.setdefault(user, []).append((str(time), item, int(rating > 3)))
    out = []
    for user, seen in users.items():
        seen = sorted(seen, key=lambda s: s[0])
        for i in range(history, len(seen)):
            past = seen[i - history : i]
            out.append(
                (user, [p[1] for p in past], [p[2] for p in past], seen[i][1], seen[i][2], int(seen[i][0]))
            )
    return out


def test_movie_samples_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    rows = [
        (int(u), int(i), float(r), int(t))
        for u, i, r, t in zip(
            rng.integers(0, 9, 300),
            rng.integers(0, 50, 300),
            rng.integers(1, 6, 300),
            rng.integers(5, 40, 300),
        )
    ]
    frame = pl.DataFrame(rows, schema=[USER, ITEM, RATING, TIMESTAMP], orient='row')
    cfg = MovieSamplesConfig(history=4, keep=100)
    assert movie_samples(frame, cfg).rows() == loop_samples(rows, 4)[-100:]
    late = movie_samples(frame, MovieSamplesConfig(history=4, keep=100, order='time', time_as_text=False))
    assert late[TIMESTAMP].is_sorted() and late.height == 100


def test_tallrec_outputs_are_checked(tmp_path):
    put(
        tmp_path / 'test.json',
        json.dumps(
            [dict(instruction='a', input='', output='Yes.'), dict(instruction='a', input='', output='Yes')]
        ),
    )
    with pytest.raises(LlmrecError, match="record 2: output is 'Yes', expected No. or Yes."):
        load_tallrec_json('book', 'test', tmp_path)


# -- real data --------------------------------------------------------------------------------------------------------


@real('ml-100k-classic')
def test_real_ml_100k():
    interactions, items = load_ml_100k()
    assert interactions.height == 100_000 and interactions[USER].n_unique() == 943 and items.height == 1682
    assert (
        items.filter(pl.col(ITEM) == 267)[TITLE][0] == 'unknown'
        and items.height - items[TITLE].n_unique() == 18
    )
    if raw.find(raw.raw_file('ml-100k-classic', 'u.user')):
        assert load_ml_100k_users().height == 943


@real('ml-latest-small')
def test_real_ml_latest_small():
    interactions, items = load_ml_latest_small()
    assert interactions.height == 100_836 and interactions[USER].n_unique() == 610 and items.height == 9742
    assert (load_ml_latest_small(encoding='iso-8859-1')[1][TITLE] != items[TITLE]).sum() == 293


@pytest.mark.parametrize(
    'name, rows, users, items',
    [
        pytest.param('beauty', 198_502, 22_363, 12_101, marks=real('beauty')),
        pytest.param('games', 147_861, 15_264, 7_676, marks=real('games')),
    ],
)
def test_real_amazon(name, rows, users, items):
    interactions, described = load_amazon(name)
    assert (interactions.height, interactions[USER].n_unique(), interactions[ITEM].n_unique()) == (
        rows,
        users,
        items,
    )
    assert described.height == items and interactions[RATING].null_count() == rows


@real('bookcrossing')
def test_real_bookcrossing():
    interactions, books, report = load_bookcrossing()
    assert report.rows == 138_808 + 33_936 and report.bad_rows == 2
    assert interactions.height == 138_806 and books.height == 33_936
    assert abs((interactions[RATING] == 0).mean() - 0.586) < 5e-4
    assert load_bookcrossing_users()[0].height == 278_858
    if raw.find(raw.raw_file('bookcrossing', 'BX-Book-Ratings.explicit-only.csv')):
        graded = load_bookcrossing(ratings='BX-Book-Ratings.explicit-only.csv')[0]
        assert graded.height == 236_941 and graded[RATING].min() >= 1


@real('alpaca')
def test_real_alpaca():
    assert (load_alpaca().height, load_alpaca(drop_empty=True).height) == (9229, 9225)


@real('ml-100k-classic')
def test_real_tallrec_movie_files_to_the_byte():
    splits, titles = movie_splits(MovieSamplesConfig.as_published())
    assert {k: s.height for k, s in splits.items()} == dict(train=8000, valid=1000, test=1000)
    assert {k: git_blob_id(tallrec_json(s, titles)) for k, s in splits.items()} == MOVIE_BLOBS


@real('ml-100k-classic')
def test_real_corrected_movie_split_is_chronological():
    cfg = MovieSamplesConfig.corrected()
    splits = split_samples(movie_samples(load_ml_100k()[0], cfg), cfg)
    assert [s[USER].n_unique() for s in splits.values()] == [151, 25, 34]
    assert (
        splits['train'][TIMESTAMP].max()
        <= splits['valid'][TIMESTAMP].min()
        <= splits['valid'][TIMESTAMP].max()
        <= splits['test'][TIMESTAMP].min()
    )


@pytest.mark.parametrize(
    'domain, split, rows, liked',
    [
        pytest.param(d, s, n, p, marks=real(f'tallrec-{d}'))
        for d, s, n, p in [
            ('movie', 'train', 8000, 0.557),
            ('movie', 'valid', 1000, 0.658),
            ('movie', 'test', 1000, 0.528),
            ('book', 'valid', 2427, 0.417),
            ('book', 'test', 2427, 0.434),
        ]
    ],
)
def test_real_tallrec_files(domain, split, rows, liked):
    frame = load_tallrec_json(domain, split)
    assert frame.height == rows and abs(frame['label'].mean() - liked) < 5e-4
