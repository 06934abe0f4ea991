"What is read back is checked: records by name and checksum, JSON by shape, stamps, notebooks and artefacts.yaml; and secrets are written nowhere."

import dataclasses
import json
import logging

import numpy as np
import pytest

from llmrec.config import schema
from llmrec.paths import LlmrecError, json_or_none, output_to, parse_json, read_json, records_dir, redacted
from llmrec.runs.records import pack, run_once


@schema('toy', 1)
@dataclasses.dataclass(frozen=True)
class Toy:
    n: int = 3


@pytest.fixture
def out(tmp_path):
    logging.disable()
    with output_to(tmp_path):
        yield tmp_path
    logging.disable(logging.NOTSET)


def go(calls=None):
    def compute():
        if calls is not None:
            calls.append(1)
        return {'m': 1.5}, {'rank': np.arange(3)}, {}

    return run_once('toy', Toy(), compute, 'data', 'test')


def edit(change):
    def damage(p):
        p.write_text(json.dumps(change(json.loads(p.read_text()))))

    return damage


DAMAGE = {
    'edited number': lambda p: p.write_text(p.read_text().replace('1.5', '9.9')),
    'edited and laid out anew': edit(lambda b: b | dict(metrics=dict(m=99.0))),
    'another configuration': edit(lambda b: b | dict(config=dict(n=4))),
    'list': lambda p: p.write_text('[]'),
    'text': lambda p: p.write_text('"x"'),
    'empty': lambda p: p.write_text(''),
    'version is text': edit(lambda b: b | dict(version='x')),
    'no metrics': edit(lambda b: {k: v for k, v in b.items() if k != 'metrics'}),
    'deep': lambda p: p.write_text('[' * 100_000),
    'NUL': lambda p: p.write_bytes(b'\0' * 100),
    'not UTF-8': lambda p: p.write_bytes(b'{"a": "\xff"}'),
    'half a character': lambda p: p.write_text(r'{"a": "\ud800"}'),
    'conflict': lambda p: p.write_text('<<<<<<< HEAD\n' + p.read_text()),
    'another name inside': edit(lambda b: b | dict(key='0' * 16)),
    'provenance empty': lambda p: p.with_suffix('.provenance.json').write_text(''),
    'provenance missing': lambda p: p.with_suffix('.provenance.json').unlink(),
    'provenance is a list': lambda p: p.with_suffix('.provenance.json').write_text('[1]'),
    'arrays of another': lambda p: p.with_suffix('.npz').write_bytes(b'PK'),
}


@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_gives_no_number(out, damage):
    calls = []
    path = records_dir('test') / f'{go(calls).name}.json'
    before = path.read_bytes()
    damage(path)
    assert go(calls).metrics == {'m': 1.5} and len(calls) == 2 and path.read_bytes() == before
    assert path.with_name(f'{path.name}.aside').exists()


def test_a_damaged_record_that_was_shipped_comes_back_from_its_zip(out):
    calls = []
    path = records_dir('test') / f'{go(calls).name}.json'
    before = path.read_bytes()
    zipped = pack(path.parent, 'toy')
    DAMAGE['edited number'](path)
    assert go(calls).metrics == {'m': 1.5} and len(calls) == 1 and path.read_bytes() == before
    DAMAGE['edited number'](path)
    zipped.write_bytes(b'PK')
    assert go(calls).metrics == {'m': 1.5} and len(calls) == 2


def test_a_record_under_another_name_is_not_that_run(out):
    go()
    one = next(p for p in records_dir('test').glob('toy-*.json') if 'provenance' not in p.name)

    def other():
        return run_once('toy', Toy(4), lambda: ({'m': 4.0}, {}, {}), 'data', 'test')

    name = other().name
    for kind in ('.json', '.npz', '.provenance.json'):
        one.with_suffix(kind).replace(one.with_name(name + kind))
    assert other().metrics == {'m': 4.0}


@pytest.mark.parametrize(
    'text, said',
    [
        (b'', 'Expecting value'),
        (b'[1]', 'got list'),
        (b'{"a": "1"}', "'a' must be int, got str"),
        (b'{}', "'a' must be int, got nothing"),
        (b'{"a": true}', "'a' must be int, got bool"),
        (b'[' * 100_000, 'nests too deep'),
        (b'{"a": "\\udfff"}', 'half a character'),
        (b'\xff\xfe{', 'codec'),
        (b'{"a": ' + b'1' * 5000 + b'}', 'limit'),
    ],
)
def test_json_that_is_no_such_mapping(tmp_path, text, said):
    path = tmp_path / 'a.json'
    path.write_bytes(text)
    with pytest.raises(LlmrecError, match=said) as e:
        read_json(path, dict(a=int))
    assert str(path) in str(e.value) and json_or_none(path, dict(a=int)) is None and '\n' not in str(e.value)


def test_json_that_is():
    assert parse_json('{"a": "\\ud83c\\udfac"}') == {'a': '🎬'} and parse_json(b'\xef\xbb\xbf[1]') == [1]


@pytest.mark.parametrize(
    'text, hidden, kept',
    [
        ('key sk-Secret-1234 is wrong', 'sk-Secret-1234', 'is wrong'),
        ('{"Authorization": "Bearer xyz.12-3"}', 'xyz.12-3', 'Authorization'),
        ('basic dXNlcjpwYXNz, no', 'dXNlcjpwYXNz', ', no'),
        ('http://ann:pw@host:80/v1 fails', 'ann:pw', 'host:80/v1 fails'),
        ('https://tok-1@pypi.example/simple', 'tok-1', 'pypi.example/simple'),
        ('my own secret 77', 'secret 77', 'my own'),
    ],
)
def test_what_is_redacted(monkeypatch, text, hidden, kept):
    monkeypatch.setenv('SOME_API_KEY', 'sk-Secret-1234')
    got = redacted(text, 'secret 77')
    assert hidden not in got and kept in got and '[hidden]' in got


def test_what_is_not(monkeypatch):
    for name, value in dict(SOME_KEY='x', LLMREC_OUT='/tmp/place', KEYBOARD='qwertz-long').items():
        monkeypatch.setenv(name, value)
    for text in ('The Bearer of x', 'basic', 'at http://host/a@b', 'qwertz-long /tmp/place', 'a@b.c'):
        assert redacted(text) == text


def stamped(stamp, profile='miniature'):
    from llmrec.paths import figures_dir

    path = figures_dir(profile, 'llamarec') / 'table2.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(stamp if isinstance(stamp, str) else json.dumps(stamp))


GOOD = dict(
    notebook='72_llamarec_table2.ipynb',
    seconds=1.0,
    parameters={},
    records={},
    files={},
    failed={},
    runs={},
    inputs=dict(notebook='a', parameters='b', library={}, data={}),
)


@pytest.mark.parametrize(
    'change',
    [
        dict(records=[]),
        dict(files=3),
        dict(parameters='x'),
        dict(seconds='1'),
        dict(inputs=[]),
        dict(inputs={}),
        dict(runs=[]),
        dict(notebook=None),
        dict(failed=7),
        dict(inputs=GOOD['inputs'] | dict(library=[])),
    ],
    ids=str,
)
def test_a_stamp_of_another_shape_is_no_stamp(out, change):
    from llmrec.repro.profiles import parameters
    from llmrec.repro.reproduce import cost, load_stamp, state
    from llmrec.repro.trace import check_artefact

    values = parameters('llamarec/table2', 'miniature', {})
    stamped(GOOD)
    assert load_stamp('llamarec/table2', 'miniature') == GOOD
    stamped(GOOD | change)
    assert (
        load_stamp('llamarec/table2', 'miniature') is None
        and state('llamarec/table2', 'miniature', values)[0] == 'stale'
    )
    assert (
        'cannot be read' in str(check_artefact('llamarec/table2', 'miniature')[0])
        and cost('llamarec/table2', 'miniature') == 'time unknown'
    )


@pytest.mark.parametrize(
    'missing', [['records'], ['inputs', 'records'], ['parameters'], ['files'], ['seconds', 'runs']]
)
def test_a_stamp_of_before_that_lacks_fields(out, missing):
    from llmrec.repro.profiles import parameters
    from llmrec.repro.reproduce import cost, state

    stamped({k: v for k, v in GOOD.items() if k not in missing})
    assert state('llamarec/table2', 'miniature', parameters('llamarec/table2', 'miniature', {}))[0] == 'stale'
    cost('llamarec/table2', 'miniature')


@pytest.mark.parametrize(
    'text, said',
    [
        ('', 'must hold a line'),
        ('[a]', 'must hold a line'),
        ('a: b', 'does not name an artefact'),
        ('beyond/x: 3', 'does not name'),
        ('beyond/x: {notebok: a.ipynb}', 'does not name'),
        ('beyond/x: {notebook: a.ipynb, paramters: {}}', "Did you mean 'parameters'"),
        ('beyond/x: {notebook: a.ipynb, parameters: [a]}', 'does not name'),
        ('<<<<<<< HEAD\nbeyond/x: a.ipynb\n', 'cannot be read'),
        ('a: &b [*b', 'cannot be read'),
        (b'\xff', 'cannot be read'),
        (None, 'cannot be read'),
    ],
)
def test_a_list_of_artefacts_that_is_none(tmp_path, monkeypatch, text, said):
    from llmrec.repro import profiles

    monkeypatch.setattr(profiles, 'root', lambda: tmp_path)
    if text is not None:
        (tmp_path / 'artefacts.yaml').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LlmrecError, match=said) as e:
        profiles.manifest()
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'text',
    [
        '',
        '{}',
        '[1]',
        '<<<<<<< HEAD\n{"cells": []}',
        '{"cells": [\n<<<<<<< HEAD\n]}',
        '{"cells": [3], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
        '[' * 100_000,
        None,
    ],
)
def test_a_notebook_that_is_none(tmp_path, text):
    from llmrec.repro.profiles import read_notebook

    path = tmp_path / 'a.ipynb'
    if text is not None:
        path.write_text(text)
    with pytest.raises(LlmrecError, match='a.ipynb cannot be read as a notebook') as e:
        read_notebook(path)
    assert '\n' not in str(e.value)


def vectors(path):
    return sorted(path.rglob('*.npy'))[0]


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'x',
        np.zeros((1, 3), np.float32),
        np.zeros((2, 3)),
        np.full((2, 3), np.nan, np.float32),
        np.zeros(2, np.float32),
    ],
    ids=repr,
)
def test_stored_vectors_of_another_shape(out, content, monkeypatch):
    from llmrec.llm import encoders

    monkeypatch.setattr(encoders, 'load_encoder', lambda cfg, backbone: None)
    monkeypatch.setattr(
        encoders, 'fresh_vectors', lambda encoder, texts, cfg, progress: np.ones((len(texts), 3), np.float32)
    )
    monkeypatch.setattr(encoders, 'vectors_identity', lambda cfg, backbone: 'toy')
    cfg = encoders.EncoderConfig('toy')
    assert encoders.encode_texts(['a', 'b'], cfg).shape == (2, 3)
    path = vectors(out)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(LlmrecError, match='cannot be read .* delete the file'):
        encoders.encode_texts(['a', 'b'], cfg)


def test_a_complaint_is_one_line_of_a_length_that_can_be_read():
    import pickle
    from llmrec.paths import known

    with pytest.raises(LlmrecError) as e:
        known('column', 'a', ['x\ny', 'z' * 10**6])
    assert (
        str(e.value).startswith("Unknown column 'a'. Known: x y")
        and len(str(e.value)) < 2100
        and str(e.value).endswith('z.')
    )
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value) and str(LlmrecError('short')) == 'short'
