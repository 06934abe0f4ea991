"Records: written whole, found by what determined them, computed once, packed and unpacked; limits on threads, and memory that is seen."

import dataclasses
import logging
import mmap
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from llmrec.config import schema
from llmrec.paths import LlmrecError, output_to, records_dir
from llmrec.runs import records as rec
from llmrec.runs.records import Busy, Record, find_record, load_record, record_key, run_once, save_record


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


@pytest.fixture
def calls():
    return []


def counting(calls, wait=0.0):
    def compute():
        calls.append(1)
        time.sleep(wait)
        return {'n': 3}, {'rank': np.arange(3)}, {'train': 0.0}

    return compute


def test_a_file_is_written_whole_and_alone(tmp_path):
    p = rec.write_atomic(tmp_path / 'deep' / 'er' / 'note.txt', 'naïve\n')
    assert p.read_bytes() == 'naïve\n'.encode() and [f.name for f in p.parent.iterdir()] == ['note.txt']
    with pytest.raises(LlmrecError, match='cannot be written'):
        rec.write_atomic(p / 'below a file', '')


def test_an_event_is_told_to_whom_it_concerns(tmp_path, monkeypatch):
    monkeypatch.delenv('LLMREC_EVENTS', raising=False)
    rec.tell(planned=1)
    monkeypatch.setenv('LLMREC_EVENTS', str(tmp_path / 'events'))
    for n in range(2):
        rec.tell(planned=n)
    assert (tmp_path / 'events').read_text() == '{"planned": 0}\n{"planned": 1}\n'


def test_a_record_is_read_as_it_was_written_or_not_at_all(tmp_path):
    r = Record('toy', 'k', {'a': 1}, 'd', '', {'Recall@10': 0.5}, {'rank': np.array([1, 0, 3])})
    p = save_record(r, tmp_path)
    first, back = (p.read_bytes(), p.with_suffix('.npz').read_bytes()), load_record(p)
    assert back.metrics == r.metrics and back.arrays['rank'].tolist() == [1, 0, 3]
    save_record(back, tmp_path)
    assert first == (p.read_bytes(), p.with_suffix('.npz').read_bytes())
    p.write_text(p.read_text().replace('0.5', '0.9'))
    with pytest.raises(LlmrecError, match='has been changed since it was computed'):
        load_record(p)
    with pytest.raises(LlmrecError, match='cannot be read'):
        load_record(p.rename(p.with_name('toy-l.json')))
    save_record(back, tmp_path)
    p.write_text(p.read_text()[:40])
    with pytest.raises(LlmrecError, match='cannot be read'):
        load_record(p)
    p.write_bytes(first[0])
    p.with_suffix('.npz').write_bytes(b'x')
    with pytest.raises(LlmrecError, match='checksum'):
        load_record(p)


def test_what_is_told_of_how_a_record_was_made():
    how = rec.provenance({'train': 1.0})
    assert set(how) >= {'versions', 'machine', 'seconds', 'peak_mib'} and rec.ill_told(how) == ''
    assert (
        rec.ill_told(how | dict(seconds={'train': 'long'})) == 'seconds'
        and rec.ill_told(how | dict(machine={'a': 1})) == 'machine'
    )


def test_one_thread_inside_and_as_before_outside():
    def threads():
        return {
            torch.get_num_threads(),
            *(p['num_threads'] for p in threadpool_info() if p['user_api'] == 'blas'),
        }

    n = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with threadpool_limits(2):
            assert threads() == {2}
            with rec.one_thread():
                assert threads() == {1}
            assert threads() == {2}
    finally:
        torch.set_num_threads(n)


def test_memory_is_seen_and_not_counted_again():
    mib = 2**20
    with rec.watch_memory() as seen:
        with mmap.mmap(-1, 64 * mib) as held:  # NumPy might use memory that an earlier test has freed
            for page in range(0, 64 * mib, mmap.PAGESIZE):
                held[page] = 1
            time.sleep(0.1)
    assert 60 * mib < seen.peak - seen.before < 80 * mib
    with rec.watch_memory() as after:
        pass
    assert after.peak < seen.peak - 50 * mib


def test_a_run_is_computed_once_and_again_when_its_record_is_damaged(out, calls):
    compute = counting(calls)
    assert find_record('toy', Toy(), 'data', 'test') is None
    with rec.only_reading(), pytest.raises(rec.NotRecorded, match=record_key(Toy(), 'data')):
        run_once('toy', Toy(), compute, 'data', 'test')
    a, b = (run_once('toy', Toy(), compute, 'data', 'test') for _ in range(2))
    assert (len(calls), a.metrics) == (1, b.metrics)
    path = records_dir('test') / f'{a.name}.json'
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    run_once('toy', Toy(), compute, 'data', 'test')
    assert (len(calls), path.read_bytes(), path.with_name(f'{path.name}.aside').read_bytes()) == (
        2,
        whole,
        whole[:50],
    )
    with pytest.raises(LlmrecError, match="its schema is 'toy'"):
        run_once('toys', Toy(), compute, 'data', 'test')


def test_a_record_outlives_a_new_name_and_a_new_setting_but_not_a_new_version(out, calls):
    newer = schema('toy', 2)(dataclasses.make_dataclass('Newer', [('n', int, 3)], frozen=True))
    renamed = schema('toy', 1)(
        dataclasses.make_dataclass('Renamed', [('n', int, 3), ('more', str, 'as always')], frozen=True)
    )
    first = run_once('toy', Toy(7), counting(calls), 'data', 'test')
    assert find_record('toy', renamed(7), 'data', 'test').key == first.key
    assert (
        find_record('toy', renamed(7, 'not so'), 'data', 'test')
        is find_record('toy', newer(7), 'data', 'test')
        is None
    )


def test_two_who_ask_at_once_share_one_computation(out, calls):
    with ThreadPoolExecutor(2) as pool:
        both = list(
            pool.map(lambda _: run_once('toy', Toy(4), counting(calls, 0.2), 'data', 'test'), range(2))
        )
    assert len(calls) == 1 and both[0].key == both[1].key


def test_who_does_not_wait_is_told_at_once(tmp_path):
    def ask():
        with rec.without_waiting(), rec.lock(tmp_path / 'run'):
            return 'mine'

    with rec.lock(tmp_path / 'run'), ThreadPoolExecutor(1) as pool:
        assert (
            isinstance(pool.submit(ask).exception(), Busy)
            and pool.submit(rec.locked, tmp_path / 'run').result()
        )
    assert ask() == 'mine' and not rec.locked(tmp_path / 'run')


def test_packed_records_come_back_once(out):
    folder = records_dir('test')
    for n in range(3):
        save_record(Record('toy', f'{n:016x}', {'n': n}, 'd', '', {'n': n}, {}), folder)
    before = rec.pack(folder, 'toy').read_bytes()
    for p in folder.glob('toy-*'):
        p.unlink()
    found = sorted(p for p in rec.records_of('test').glob('toy-*.json') if rec.experiment_of(p))
    assert [load_record(p).metrics['n'] for p in found] == [0, 1, 2] and rec.pack(
        folder, 'toy'
    ).read_bytes() == before
    found[0].unlink()
    rec._unpacked.cache_clear()  # as in another process
    rec.records_of('test')
    assert not found[0].exists()


def test_the_results_of_a_failed_run_are_its_error():
    with pytest.raises(rec.RunFailed, match='The loss is nan.'):
        rec.Failed('toy-1', 'The loss is nan.').metrics
