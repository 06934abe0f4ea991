"Records that are shipped in zips: complete, unpacked once, and nothing but records."

import hashlib
import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import tool

from llmrec.paths import LlmrecError
from llmrec.runs import records as module
from llmrec.runs.records import KINDS, Record, load_record, make_key, pack, records_of, save_record

ROOT = Path(__file__).resolve().parent.parent
NAMES = [f'toy-{n:016x}' for n in range(3)]


@pytest.fixture
def packed(tmp_path, monkeypatch):
    "A folder of a profile with a zip of three records and nothing else."
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    module._unpacked.cache_clear()
    folder = tmp_path / 'data/records/test'
    for n, name in enumerate(NAMES):
        save_record(Record('toy', name[4:], {'n': n}, 'd', '', {'n': n}, {'rank': np.arange(n)}), folder)
    pack(folder, 'toy')
    for p in folder.glob('toy-*'):
        p.unlink()
    return folder


def test_the_records_come_back_as_they_were(packed):
    assert [p.name for p in packed.iterdir()] == ['toy.zip']
    found = [load_record(records_of('test') / f'{name}.json') for name in NAMES]
    assert [r.metrics for r in found] == [{'n': 0}, {'n': 1}, {'n': 2}]
    assert found[2].arrays['rank'].tolist() == [0, 1] and found[2].provenance['record_sha256']
    before = (packed / 'toy.zip').read_bytes()
    assert pack(packed, 'toy').read_bytes() == before


@pytest.fixture
def unsealed(tmp_path, monkeypatch):
    "(path of a zip whose records have no checksum of themselves, the zip before, record -> checksum)."
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    folder, shas = tmp_path / 'data/records/test', {}
    for n in range(2):
        key = make_key('toy', 1, {'n': n}, 'd', '')
        path = save_record(
            Record(
                'toy', key, {'n': n}, 'd', '', {'m': n}, {'rank': np.arange(n)}, {'seconds': {}}, 1, {'n': n}
            ),
            folder,
        )
        shas[path.stem] = {hashlib.sha256(path.read_bytes()).hexdigest()}
    path = pack(folder, 'toy')
    before = path.read_bytes()
    for p in folder.glob('*.provenance.json'):
        p.write_text(
            json.dumps(
                {k: v for k, v in json.loads(p.read_text()).items() if k != 'record_sha256'},
                indent=1,
                sort_keys=True,
            )
            + '\n'
        )
    pack(folder, 'toy')
    assert path.read_bytes() != before
    return path, before, shas


def test_records_without_a_checksum_get_the_one_that_they_would_have_had(unsealed):
    path, before, shas = unsealed
    assert tool('pack').seal(path, shas) == (2, []) and path.read_bytes() == before
    assert tool('pack').seal(path, shas) == (0, []) and path.read_bytes() == before


def test_a_record_that_nobody_vouches_for_gets_none(unsealed):
    path, before, shas = unsealed
    one, other = sorted(shas)
    assert tool('pack').seal(path, {one: shas[one]}) == (1, [other])
    assert tool('pack').seal(path, {one: shas[one], other: {'0' * 64}}) == (0, [other])
    with zipfile.ZipFile(path) as z:
        files = {n: z.read(n) for n in z.namelist()}
    with zipfile.ZipFile(path, 'w') as z:
        for n, content in files.items():
            z.writestr(n, content.replace(b'"n": ', b'"n": 7') if n == f'{other}.json' else content)
    edited = {hashlib.sha256(files[f'{other}.json'].replace(b'"n": ', b'"n": 7')).hexdigest()}
    assert tool('pack').seal(path, {other: edited}) == (0, [other])


def test_what_is_loose_is_not_written_over_and_what_is_deleted_not_brought_back(packed):
    mine = packed / f'{NAMES[0]}.json'
    mine.write_text('mine')
    records_of('test')
    assert mine.read_text() == 'mine'
    (packed / f'{NAMES[1]}.json').unlink()
    module._unpacked.cache_clear()
    records_of('test')
    assert not (packed / f'{NAMES[1]}.json').exists()


def test_a_new_zip_is_unpacked_too(packed):
    records_of('test')
    save_record(Record('toy', f'{9:016x}', {'n': 9}, 'd', '', {'n': 9}, {}), packed)
    pack(packed, 'toy')
    for kind in KINDS:
        (packed / f'toy-{9:016x}{kind}').unlink()
    module._unpacked.cache_clear()
    assert load_record(records_of('test') / f'toy-{9:016x}.json').metrics == {'n': 9}


def test_several_at_once(packed):
    code = f"from llmrec.runs.records import records_of, load_record; load_record(records_of('test') / '{NAMES[2]}.json')"
    with ThreadPoolExecutor(3) as pool:
        done = list(
            pool.map(
                lambda _: subprocess.run(
                    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
                ),
                range(3),
            )
        )
    assert [d.returncode for d in done] == [0, 0, 0], done[0].stderr
    assert not list(packed.glob('*.tmp-*'))


@pytest.mark.parametrize(
    'damage',
    [
        lambda p: p.write_bytes(p.read_bytes()[:-40]),
        lambda p: p.write_bytes(b'not a zip'),
        lambda p: p.write_bytes(
            p.read_bytes().replace(b'"n"', b'"m"', 1)[:200] + b'\0' * 60 + p.read_bytes()[260:]
        ),
        lambda p: zipped(p, '../../evil.json'),
        lambda p: zipped(p, 'other-0000000000000000.json'),
        lambda p: zipped(p, 'toy-0000000000000000.py'),
    ],
    ids=['cut', 'no zip', 'bytes', 'outside', 'another experiment', 'no record'],
)
def test_what_is_no_zip_of_records_is_refused(packed, damage, tmp_path):
    damage(packed / 'toy.zip')
    with pytest.raises(LlmrecError, match='cannot be unpacked'):
        records_of('test')
    assert not list(tmp_path.rglob('evil.json')) and not list(packed.glob('*.py'))


def zipped(path, name):
    with zipfile.ZipFile(path, 'a') as z:
        z.writestr(name, '{}')


@pytest.mark.parametrize('profile', ['real-cpu', 'miniature-full'])
def test_every_committed_artefact_finds_its_records_in_the_zips(profile):
    folder = ROOT / 'data/records' / profile
    packed = {n for p in folder.glob('*.zip') for n in zipfile.ZipFile(p).namelist()}
    stamps = [json.loads(p.read_text()) for p in (ROOT / 'figures' / profile).glob('*/*.json')]
    wanted = {name for s in stamps for name in s['records']}
    assert len(wanted) > 50
    assert sorted(name for name in wanted for kind in KINDS if name + kind not in packed) == []


def test_a_damaged_zip_is_noticed_although_its_records_lie_beside_it(packed):
    records_of('test')
    module._unpacked.cache_clear()
    path = packed / 'toy.zip'
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as z:
        content[z.infolist()[1].header_offset + 60] ^= 255
    path.write_bytes(content)
    with pytest.raises(LlmrecError, match='toy.zip cannot be unpacked'):
        records_of('test')


def test_packing_again_loses_no_record(packed):
    records_of('test')
    packs = tool('pack')
    assert packs.packed('test', check=False) == 0
    for path in packed.glob(f'{NAMES[0]}.*'):
        path.unlink()
    changed = packed / f'{NAMES[2]}.json'
    changed.write_text(changed.read_text() + ' ')
    before = (packed / 'toy.zip').read_bytes()
    with pytest.raises(SystemExit, match=f'toy.zip holds {NAMES[0]}.json, which no longer lies beside it'):
        packs.packed('test', check=False)
    assert (packed / 'toy.zip').read_bytes() == before
