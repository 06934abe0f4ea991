"""Readers and profiles against what nobody has thought of: each returns, or complains in one sentence.

A short fixed draw here; LLMREC_FUZZ=100000 draws as many examples a test, at random.
"""

import gzip
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec.data.alpaca import read_instructions
from llmrec.data.amazon import read_amazon_metadata, read_amazon_ratings
from llmrec.data.bookcrossing import read_bx_books, read_bx_ratings, read_bx_users
from llmrec.data.movielens import read_genres, read_movies, read_ratings, read_u_item, read_u_user
from llmrec.data.own import OwnData, load_own, read_table
from llmrec.experiments import study as llamarec_study
from llmrec.experiments import tallrec_study
from llmrec.paths import LlmrecError, parse_json, read_json
from llmrec.recommend.commands import histories_in, setting
from llmrec.repro import profiles as module
from llmrec.repro.profiles import load_profile, parameters, read_notebook
from llmrec.repro.reproduce import overrides
from llmrec.runs.records import load_record

ROOT = Path(__file__).resolve().parent.parent
MANY = int(os.environ.get('LLMREC_FUZZ', 0))
fuzz = settings(
    max_examples=MANY or 25,
    deadline=None,
    derandomize=not MANY,
    database=None,
    suppress_health_check=list(HealthCheck),
)

BX = '"User-ID";"ISBN";"Book-Rating"\r\n"1";"034";"5"\r\n"2";"035";"0"\r\n'
BOOKS = '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-S";"Image-URL-M";"Image-URL-L"\r\n"1";"A \\"b\\"";"C";"1999";"D";"u";"v";"w"\r\n'
OWN = 'user,item,rating,timestamp,title\n' + ''.join(
    f'u{u},i{i},{i % 5 + 1},{100 * i + u},Film {i}\n' for u in range(3) for i in range(6)
)
READERS = {  # name -> (reader, file name, a good text)
    'ratings': (lambda p: read_ratings(p, '\t'), 'u.data', '1\t2\t4\t100\n1\t3\t5\t101\n'),
    'movielens': (
        lambda p: read_ratings(p, ',', ('userId', 'movieId', 'rating', 'timestamp')),
        'r.csv',
        'userId,movieId,rating,timestamp\n1,2,4.5,100\n',
    ),
    'items': (read_u_item, 'u.item', '1|Io (1999)|01-Jan-1999||u|' + '|'.join('0' * 19) + '\n'),
    'genres': (read_genres, 'u.genre', 'Action|0\nDrama|1\n'),
    'users': (read_u_user, 'u.user', '1|24|M|writer|12345\n'),
    'movies': (read_movies, 'movies.csv', 'movieId,title,genres\n1,"Io, The (1999)",Drama|X\n2,Sea,\n'),
    'bx ratings': (read_bx_ratings, 'b.csv', BX),
    'bx books': (read_bx_books, 'k.csv', BOOKS),
    'bx users': (read_bx_users, 'u.csv', '"User-ID";"Location";"Age"\r\n"1";"here";NULL\r\n'),
    'amazon ratings': (read_amazon_ratings, 'a.csv', 'A1,B1,5.0,100\nA2,B2,nan,101\n'),
    'amazon items': (
        read_amazon_metadata,
        'm.json',
        '{"asin": "B1", "title": "A \\u00e9"}\n{\'asin\': \'B2\'}\n',
    ),
    'instructions': (read_instructions, 'i.json', '[{"instruction": "a", "input": "", "output": "b"}]'),
    'own csv': (read_table, 'o.csv', OWN),
    'own tsv': (read_table, 'o.inter', OWN.replace(',', '\t')),
    'own parquet': (read_table, 'o.parquet', 'PAR1xPAR1'),
    'own json': (read_table, 'o.jsonl', '{"user": "a", "item": 1, "more": [1]}\n{"user": "b", "item": 2}\n'),
    'own data': (
        lambda p: load_own(
            OwnData('mine', str(p), rating='rating', timestamp='timestamp', title='title', core=2)
        ),
        'd.csv',
        OWN,
    ),
    'histories': (histories_in, 'h.txt', '["a", "b"]\na\tb\n'),
    'notebook': (
        read_notebook,
        'n.ipynb',
        '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
    ),
    'json': (lambda p: read_json(p, dict(seconds=int)), 'j.json', '{"seconds": 1}'),
    'record': (
        load_record,
        'toy-1.json',
        '{"experiment": "toy", "version": 1, "key": "1", "npz_sha256": ""}',
    ),
}
ODD = [
    '\0',
    '\ufeff',
    '"',
    '""',
    "'",
    '\\',
    '\r',
    '\n',
    '\n\n',
    '\t',
    ',',
    ';',
    '|',
    '²',
    '४',
    'nan',
    'inf',
    '-inf',
    '1e999',
    '-1',
    '1_000',
    '9' * 30,
    '9' * 5000,
    '\\ud800',
    'NULL',
    'null',
    '[' * 5000,
    '{' * 5000,
    '(' * 300,
    '-' * 4000,
    '{"a":',
    '\x1a',
    '\x85',
    '\u2028',
    '\u200b',
    'é',
    '🎬',
    '<<<<<<< HEAD\n',
    ' ' * 100,
    'true',
    '1.0',
    '0x1',
    '1,2',
    '{}',
    '[]',
    '__import__("os")',
    '2024-01-01',
    '2024-02-30T25:00',
    'a' * 140_000,
]
PIECES = st.one_of(
    st.sampled_from(ODD).map(lambda s: s.encode()),
    st.binary(max_size=4),
    st.text(max_size=4).map(lambda s: s.encode('utf-8', 'replace')),
    st.sampled_from([b'\xff\xfe', b'\xed\xa0\x80', b'\x1f\x8b', b'PK\x03\x04']),
)
EDITS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 40), PIECES), min_size=1, max_size=4)


def edited(content: bytes, edits) -> bytes:
    "`content` with each edit's piece in the place of so many bytes at its position."
    for at, length, piece in edits:
        at %= len(content) + 1
        content = content[:at] + piece + content[at + length :]
    return content


def in_one_sentence(call, *names):
    "Call; a complaint has to be one line, and has to name the file."
    try:
        return call()
    except LlmrecError as e:
        assert '\n' not in str(e) and 10 < len(str(e)) < 3000 and all(n in str(e) for n in names), str(e)[
            :500
        ]


@pytest.mark.parametrize('name', READERS)
def test_the_good_file_is_read(name, tmp_path):
    read, file, text = READERS[name]
    (tmp_path / file).write_text(text, encoding='utf-8')
    if name in ('own parquet', 'record'):
        with pytest.raises(LlmrecError):
            read(tmp_path / file)
    else:
        assert read(tmp_path / file) is not None


@pytest.mark.parametrize('name', READERS)
@fuzz
@given(edits=EDITS, zipped=st.sampled_from([False] * 9 + [True]))
def test_readers(name, tmp_path_factory, edits, zipped):
    read, file, text = READERS[name]
    path = tmp_path_factory.getbasetemp() / file
    content = edited(text.encode(), edits)
    path.write_bytes(gzip.compress(content)[: -3 if len(content) % 2 else None] if zipped else content)
    in_one_sentence(lambda: read(path), file)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A project folder whose profile `mine` the function that it returns writes."
    folder, patch = tmp_path_factory.mktemp('project'), pytest.MonkeyPatch()
    for name in ('artefacts.yaml', 'settings.ini'):
        shutil.copy(ROOT / name, folder)
    for name in ('nbs', 'llmrec'):
        (folder / name).symlink_to(ROOT / name)
    (folder / 'profiles').mkdir()
    patch.setattr(module, 'root', lambda: folder)

    def write(content):
        module._yaml.cache_clear()
        (folder / 'profiles/mine.yaml').write_bytes(content)

    yield write
    patch.undo()


ARTEFACTS = ('llamarec/table1', 'llamarec/table2', 'tallrec/table3', 'tallrec/figure1', 'beyond/speed')
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ['films', 'miniature', 'as_published', '1e-3', '../../evil', 'http://a:b@c', '\ud83c', '²']
    ),
    st.dates(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=6), st.integers(), st.none()), inner, max_size=3),
    ),
    max_leaves=6,
)
NAMES = [
    'datasets',
    'seeds',
    'training',
    'tuning',
    'methods',
    'preset',
    'ks',
    'binary',
    'encoder',
    'backbone',
    'endpoints',
    'profile',
    'variants',
    'search',
    'protocol',
    'weight_decays',
]
SECTION = st.one_of(
    st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=5)), VALUES, max_size=3), VALUES
)


def as_yaml(value):
    return yaml.dump(value, allow_unicode=True).encode('utf-8', 'surrogatepass')


@fuzz
@given(
    st.one_of(
        st.fixed_dictionaries(
            {},
            optional=dict(
                about=SCALARS,
                parameters=SECTION,
                papers=st.one_of(
                    st.dictionaries(st.sampled_from(['llamarec', 'tallrec', 'x']), SECTION, max_size=2),
                    VALUES,
                ),
                artefacts=st.one_of(
                    st.dictionaries(st.sampled_from([*ARTEFACTS, 'x/y']), SECTION, max_size=2), VALUES
                ),
            ),
        ),
        VALUES,
    )
)
def test_profiles(project, value):
    project(as_yaml(value))
    found = in_one_sentence(lambda: load_profile('mine'), 'mine')
    for artefact in ARTEFACTS if found is not None else ():
        in_one_sentence(lambda: parameters(artefact, 'mine', {}))


@fuzz
@given(EDITS, st.sampled_from(['miniature', 'real-cpu', 'paper']))
def test_edited_profiles(project, edits, name):
    project(
        edited(
            (ROOT / f'profiles/{name}.yaml').read_bytes()[:3000],
            [(at * 7, n, piece) for at, n, piece in edits],
        )
    )
    found = in_one_sentence(lambda: load_profile('mine'), 'mine')
    if found is not None:
        in_one_sentence(lambda: parameters('llamarec/table1', 'mine', {}))


@fuzz
@given(
    st.one_of(
        st.text(max_size=30),
        st.tuples(st.sampled_from(NAMES), st.text(max_size=20)).map('='.join),
        st.tuples(st.sampled_from(NAMES), VALUES).map(lambda x: f'{x[0]}={json.dumps(x[1], default=str)}'),
    )
)
def test_parameters_on_the_command_line(text):
    in_one_sentence(lambda: overrides([text]))


PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 300),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(['films', 'books', 'LRURec', 'tiny', 'AT']),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                st.text(max_size=5),
                st.sampled_from(
                    ['films', 'lr', 'epochs', 'dropout', 'seed', 'name', 'hidden', 'model', 'base_url']
                ),
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=5,
)


@pytest.mark.parametrize('make', [llamarec_study.study, tallrec_study.study], ids=['llamarec', 'tallrec'])
@fuzz
@given(data=st.data())
def test_studies(make, data):
    fields = list(
        (
            llamarec_study.LlamaRecStudy if make is llamarec_study.study else tallrec_study.TallrecStudy
        ).__dataclass_fields__
    )
    values = data.draw(st.dictionaries(st.sampled_from(fields), PLAIN, max_size=3))
    in_one_sentence(lambda: make(**values))


@fuzz
@given(st.one_of(st.text(max_size=20), st.sampled_from(ODD)))
def test_json_and_settings(text):
    try:
        json.dumps(parse_json(text), ensure_ascii=False).encode()
    except (ValueError, UnicodeEncodeError) as e:
        assert type(e) is not UnicodeEncodeError or not sys.modules
    setting(f'lr={text}')
