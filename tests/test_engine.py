"The engine under stress: kills, full and read-only disks, two commands at once, damaged and old records, runs and notebooks that fail. On notebooks that take a moment."

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import polars as pl
import psutil
import pytest
import yaml

from llmrec.paths import root
from llmrec.runs.records import load_record

ROOT = root()
MAIN = [sys.executable, '-c', 'from llmrec.repro.reproduce import main; raise SystemExit(main())']

TOY = '''
import time
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import polars as pl

from llmrec.runs.artefacts import caption, figure_style, save_figure, save_table
from llmrec.config import schema
from llmrec.runs.grid import run_all
from llmrec.runs.records import run_once
'''
RUNS = '''
@schema('toy', version)
@dataclass(frozen=True)
class Toy: n: int; size: int

def run(cfg, profile, progress=False):
    def compute():
        time.sleep(seconds)
        value = 100 // cfg.n
        return {'value': value}, {'x': np.random.default_rng(cfg.n).random(cfg.size)}, {}
    return run_once('toy', Toy(cfg.n, cfg.size), compute, 'data', profile)

records = run_all(run, [Toy(n, size) for n in numbers], profile)
'''
TABLE = '''
def value(record):
    try: return float(record.metrics['value'])
    except ValueError: return float('nan')

frame = pl.DataFrame([dict(n=str(n), value=value(r)) for n, r in zip(numbers, records)])
said = caption(profile, {'toy': 'data'}, '', [0], 'none')
save_table(frame, 'beyond', name, said, profile, source=lambda row, column: records[numbers.index(int(row['n']))].name if column == 'value' else '')
with figure_style():
    fig, ax = plt.subplots()
    ax.plot(frame['n'], frame['value'])
save_figure(fig, 'beyond', name, said, profile)
'''


def notebook(path, parameters, *cells):
    "A notebook with a cell of parameters after the first of `cells`."
    tagged = nbformat.v4.new_code_cell(
        '\n'.join(f'{k} = {v!r}' for k, v in parameters.items()), metadata={'tags': ['parameters']}
    )
    kernel = {'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cells[0]), tagged, *map(nbformat.v4.new_code_cell, cells[1:])],
            metadata=kernel,
        ),
        path,
    )


@pytest.fixture
def project(tmp_path):
    "A project with two artefacts of toy runs, some of them shared, and this project's library."
    folder = tmp_path / 'project'
    for part in ('nbs', 'profiles', 'data'):
        (folder / part).mkdir(parents=True)
    shutil.copytree(ROOT / 'llmrec', folder / 'llmrec')  # with what is compiled
    shutil.copy(ROOT / 'settings.ini', folder)
    (folder / 'data' / 'paper_numbers').symlink_to(ROOT / 'data' / 'paper_numbers', target_is_directory=True)
    common = dict(profile='mine', seconds=0.05, size=10, version=1)
    notebook(
        folder / 'nbs' / '01_one.ipynb',
        common | dict(name='one', numbers=[1, 2, 3, 4, 5, 6]),
        TOY,
        RUNS,
        TABLE,
    )
    notebook(
        folder / 'nbs' / '02_two.ipynb',
        common | dict(name='two', numbers=[4, 5, 6, 7, 8, 9]),
        TOY,
        RUNS,
        TABLE,
    )
    (folder / 'artefacts.yaml').write_text('beyond/one: 01_one.ipynb\nbeyond/two: 02_two.ipynb\n')
    (folder / 'profiles' / 'mine.yaml').write_text('about: toys\nparameters: {size: 10}\n')
    return folder


def environment(out):
    return os.environ | dict(LLMREC_OUT=str(out), OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))


def command(project, out, *args):
    "Arguments for `subprocess` that reproduce `project` into `out`."
    return dict(args=[*MAIN, '--profile', 'mine', *args], cwd=project, env=environment(out), text=True)


def reproduce(project, out, *args, status=0):
    done = subprocess.run(**command(project, out, *args), capture_output=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def figures(out, profile='mine'):
    "Name -> bytes of the artefacts' files without the stamps."
    folder = Path(out) / 'figures' / profile
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob('*'))
        if p.is_file() and p.suffix not in ('.json', '.yaml')
    }


def records(out):
    folder = Path(out) / 'data' / 'records' / 'mine'
    return {
        p.name: p.read_bytes()
        for p in sorted(folder.glob('*'))
        if p.suffix in ('.json', '.npz') and 'provenance' not in p.name
    }


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "Figures and records of a batch that nothing disturbed, one run after the other."
    folder = tmp_path_factory.mktemp('undisturbed')
    made = (
        project.__wrapped__(folder)
        if hasattr(project, '__wrapped__')
        else project.__pytest_wrapped__.obj(folder)
    )
    reproduce(made, folder / 'out', '--jobs', '1')
    return figures(folder / 'out'), records(folder / 'out')


# --- the same bytes however it is spread


def test_jobs_and_a_dask_cluster_give_the_same_bytes(tmp_path, project, undisturbed):
    from distributed import LocalCluster

    assert len(undisturbed[0]) == 2 * 8 and len(undisturbed[1]) == 2 * 9
    said = reproduce(project, tmp_path / 'two', '--jobs', '2').stdout
    computed = sum(
        int(line.split(' runs computed')[0].split()[-1])
        for line in said.splitlines()
        if 'runs computed' in line
    )
    assert computed == 9, said  # three runs belong to both artefacts and are computed once
    os.environ['LLMREC_OUT'] = str(tmp_path / 'cluster')
    try:
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50)
    finally:
        del os.environ['LLMREC_OUT']
    with cluster:
        reproduce(project, tmp_path / 'cluster', '--scheduler', cluster.scheduler_address)
        reproduce(
            project, tmp_path / 'elsewhere', '--scheduler', cluster.scheduler_address
        )  # its workers were started for another folder
    for out in ('two', 'cluster', 'elsewhere'):
        assert (figures(tmp_path / out), records(tmp_path / out)) == undisturbed


def test_no_scheduler_at_the_address(tmp_path, project):
    done = reproduce(project, tmp_path / 'out', '--scheduler', 'tcp://127.0.0.1:9', status=1)
    assert (
        'No Dask scheduler answers at tcp://127.0.0.1:9' in done.stderr and len(done.stderr.splitlines()) == 1
    )


def test_figures_deleted_and_made_again_are_the_same(tmp_path, project, undisturbed):
    out = tmp_path / 'out'
    for _ in range(2):
        reproduce(project, out, '--jobs', '1')
        assert {Path(name).suffix for name in figures(out)} == {
            '.csv',
            '.md',
            '.tex',
            '.svg',
            '.pdf',
            '.png',
        } and figures(out) == undisturbed[0]
        shutil.rmtree(out / 'figures')


# --- kills


def family(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def cmdline(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def victim(process, what):
    "The command itself, a worker of its pool, or a notebook's kernel; None when there is none at the moment."
    if what == 'command':
        return psutil.Process(process.pid)
    mark = {'worker': 'multiprocessing', 'kernel': 'ipykernel_launcher'}[what]
    with contextlib.suppress(psutil.NoSuchProcess):
        found = [
            p
            for p in family(process)
            if mark in ' '.join(p.cmdline()) and 'resource_tracker' not in ' '.join(p.cmdline())
        ]
        return found[0] if found else None


def check_nothing_is_broken(out, undisturbed):
    "Every record can be read, every file is what it has to be; returns the records."
    for name in (found := records(out)):
        if name.endswith('.json'):
            load_record(out / 'data' / 'records' / 'mine' / name)
    assert {k: v for k, v in found.items() if undisturbed[1][k] != v} == {}
    assert {k: v for k, v in figures(out).items() if '.tmp-' not in k and undisturbed[0][k] != v} == {}
    return {name for name in found if name.endswith('.json')}


def left_by_joblib():
    "Joblib's workers and trackers, and what they share, on this machine."
    workers = [p.pid for p in psutil.process_iter(['cmdline']) if 'loky' in ' '.join(p.info['cmdline'] or ())]
    return {*workers, *(p.name for p in Path('/dev/shm').glob('*') if 'loky' in p.name or 'joblib' in p.name)}


@pytest.mark.skipif(not Path('/dev/shm').is_dir(), reason='looks at shared memory in /dev/shm')
@pytest.mark.parametrize('killed', [False, True])
def test_a_single_notebook_takes_its_workers_with_it(tmp_path, project, killed):
    before = left_by_joblib()
    process = subprocess.Popen(
        **command(project, tmp_path / 'out', 'beyond/one', '-p', 'seconds=.5', '--jobs', '2'),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    mine, ending = {}, time.monotonic() + 60
    while process.poll() is None and time.monotonic() < ending:
        mine |= {p.pid: p for p in family(process) if 'popen_loky' in ' '.join(cmdline(p))}
        if killed and len(records(tmp_path / 'out')) >= 4 and (kernel := victim(process, 'kernel')):
            kernel.kill()
            killed = False
        time.sleep(0.05)
    assert len(mine) >= 2 and not killed
    assert psutil.wait_procs(mine.values(), timeout=5)[1] == []
    until = time.monotonic() + 5
    while left_by_joblib() - before and time.monotonic() < until:
        time.sleep(0.1)
    assert left_by_joblib() - before == set()


def test_kills_at_random_moments(tmp_path, project, undisturbed):
    out, draw, killed = tmp_path / 'out', random.Random(7), []
    have = set()
    for what in ['command', 'worker', 'kernel'] * 3:
        if len(killed) == 4:
            break
        process = subprocess.Popen(
            **command(project, out, '-p', 'seconds=.6', '--jobs', '2', '--force'),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        relatives, until, at = [], time.monotonic() + 120, None
        while process.poll() is None and time.monotonic() < until:
            relatives += family(process)
            if at is None and victim(process, 'kernel'):
                at = time.monotonic() + draw.uniform(0, 4)
            if at is not None and time.monotonic() > at and (one := victim(process, what)):
                one.kill()
                killed.append(what)
                break
            time.sleep(0.05)
        if what != 'command':
            process.wait(120)
        process.wait(20)
        _, alive = psutil.wait_procs(relatives, timeout=20)
        assert alive == [], f'outlived the {what}: {alive}'
        now = check_nothing_is_broken(out, undisturbed)
        assert have <= now  # nothing that was recorded is lost
        if len(now) == 9:  # all is computed: take something away, so that the next kill has something to hit
            for p in sorted((out / 'data' / 'records' / 'mine').glob('toy-*'))[:15]:
                p.unlink()
            now = set()
        have = now
    assert len(killed) == 4 and {'command', 'worker', 'kernel'} == set(
        killed
    )  # where the batch ended before its moment, another had to be killed
    reproduce(project, out, '--jobs', '2')
    for now, once in zip((figures(out), records(out)), undisturbed):
        assert sorted(now) == sorted(once)
        assert [name for name in now if now[name] != once[name]] == []
    assert not list(out.rglob('*.ipynb.tmp-*')) and not [
        p for p in (out / 'figures' / 'executed' / 'mine').glob('*.tmp-*')
    ]


# --- disks


@pytest.fixture
def small_disk(tmp_path):
    "A folder on a file system of its own with room for 256 KiB; a function that gives it other options."
    folder = tmp_path / 'small'
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', folder], capture_output=True
        ).returncode
    ):
        pytest.skip('a file system cannot be mounted here')

    def options(text):
        subprocess.run(['mount', '-o', f'remount,{text}', folder], check=True)

    yield folder, options
    subprocess.run(['umount', '-l', folder], check=True)


def test_a_full_disk(project, small_disk, tmp_path):
    out, options = small_disk
    big = ('-p', 'size=9000', '--jobs', '1')  # 70 KiB a record
    done = reproduce(project, out, *big, status=3)
    assert 'cannot be written (No space left on device)' in done.stderr and 'Traceback' not in done.stderr
    for path in (out / 'data' / 'records' / 'mine').glob('toy-*.json'):
        if 'provenance' not in path.name:
            load_record(path)
    assert not [p for p in out.rglob('*.tmp-*') if p.suffix != '.ipynb']
    options('size=16m')
    reproduce(project, out, *big)
    reproduce(project, tmp_path / 'whole', *big)
    assert figures(out) == figures(tmp_path / 'whole') and records(out) == records(tmp_path / 'whole')


def test_a_read_only_folder(project, small_disk):
    out, options = small_disk
    options('ro')
    done = reproduce(project, out, '--jobs', '1', status=1)
    assert 'cannot be written (Read-only file system)' in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(out.iterdir()) == []


# --- two commands, damaged and old records


def test_two_commands_at_once(tmp_path, project, undisturbed):
    out = tmp_path / 'out'
    both = [
        subprocess.Popen(
            **command(project, out, '--jobs', '1', '-p', 'seconds=.3', '--variant', 'slow'),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    made = figures(out, 'mine+slow')
    assert made.keys() == undisturbed[0].keys() and records(out) == undisturbed[1]
    assert all(body == undisturbed[0][name] for name, body in made.items() if name.endswith('.csv'))
    computed = [
        int(line.split(' runs computed')[0].split()[-1])
        for text, _ in said
        for line in text.splitlines()
        if 'runs computed' in line
    ]
    assert sum(computed) == 9, said  # no run was made by both


@pytest.mark.parametrize(
    'damage',
    [
        lambda p: p.write_bytes(p.read_bytes()[:60]),
        lambda p: p.with_suffix('.npz').write_bytes(b'PK'),
        lambda p: p.with_suffix('.npz').unlink(),
    ],
)
def test_a_damaged_record_is_set_aside_and_made_again(tmp_path, project, undisturbed, damage):
    out = tmp_path / 'out'
    reproduce(project, out, 'beyond/one', '--jobs', '1')
    one = next(
        p
        for p in sorted((out / 'data' / 'records' / 'mine').glob('toy-*.json'))
        if 'provenance' not in p.name
    )
    before = one.read_bytes()
    damage(one)
    broken = one.read_bytes()
    if broken != before:
        assert 'beyond/one: stale (records changed' in reproduce(project, out, 'beyond/one', '--list').stdout
    done = reproduce(project, out, 'beyond/one', '--jobs', '1', '--force')
    assert one.name in done.stdout and 'is repeated' in done.stdout and '1 runs computed' in done.stdout
    assert one.with_name(f'{one.name}.aside').read_bytes() == broken and one.read_bytes() == before
    assert figures(out) == {k: v for k, v in undisturbed[0].items() if '/one.' in k}


def test_what_a_killed_process_left_half_written_is_deleted(tmp_path, project, undisturbed):
    out = tmp_path / 'out'
    reproduce(project, out, '--jobs', '1')
    record = sorted((out / 'data' / 'records' / 'mine').glob('toy-*.json'))[0]
    left = [record.with_suffix('.npz.tmp-1-2'), out / 'figures' / 'mine' / 'beyond' / 'one.csv.tmp-1-2']
    for path in left:
        path.write_text('half')
    record.unlink()
    reproduce(project, out, '--jobs', '1', '--force')
    assert not any(path.exists() for path in left) and (figures(out), records(out)) == undisturbed


def test_a_newer_version_of_an_experiment_leaves_the_older_records_where_they_are(
    tmp_path, project, undisturbed
):
    out = tmp_path / 'out'
    reproduce(project, out, '--jobs', '1')
    older = records(out)
    assert (
        '6 runs computed'
        in reproduce(project, out, 'beyond/one', '-p', 'version=2', '--variant', 'new', '--jobs', '1').stdout
    )
    newer = {name: text for name, text in records(out).items() if name not in older}
    assert len(newer) == 2 * 6 and records(out) == older | newer
    for name in newer:
        if name.endswith('.json'):
            assert json.loads(newer[name])['version'] == 2
    table, sources = 'beyond/one.csv', 'beyond/one.sources.csv'
    new = figures(out, 'mine+new')
    assert new[table] == undisturbed[0][table] and new[sources] != undisturbed[0][sources]
    assert (
        'runs computed' not in reproduce(project, out, 'beyond/one', '--jobs', '1').stdout
    )  # the older version's are found again
    assert figures(out) == undisturbed[0]


# --- what fails


def test_a_failing_run_fails_its_own_cells(tmp_path, project, undisturbed):
    out = tmp_path / 'out'
    done = reproduce(project, out, '-p', 'numbers=[1, 0, 3]', '--jobs', '1', 'beyond/one', status=3)
    assert (
        'ZeroDivisionError' in done.stderr
        and len(done.stderr.splitlines()) == 1
        and '3 runs computed, 1 failed' in done.stdout
    )
    (variant,) = (out / 'figures').glob('mine+*')
    table = pl.read_csv(variant / 'beyond' / 'one.csv')
    assert table['value'].is_nan().to_list() == [False, True, False] and table['value'][2] == 33
    assert '| 0 | failed |' in (variant / 'beyond' / 'one.md').read_text()
    assert (
        'beyond/one: failed (toy-'
        in reproduce(project, out, '-p', 'numbers=[1, 0, 3]', '--list', 'beyond/one').stdout
    )
    assert (
        '1 runs computed'
        in reproduce(project, out, '-p', 'numbers=[1, 0, 3]', '--jobs', '1', 'beyond/one', status=3).stdout
    )  # is tried again, and only this one


def test_a_failing_notebook_stops_the_batch_unless_it_is_to_keep_going(tmp_path, project, undisturbed):
    out, good = tmp_path / 'out', (project / 'nbs' / '01_one.ipynb').read_bytes()
    notebook(project / 'nbs' / '01_one.ipynb', dict(profile='mine'), TOY, "raise RuntimeError('broken')")
    reproduce(project, out, '--jobs', '1', status=3)
    assert (
        'beyond/one: failed (RuntimeError: broken' in (said := reproduce(project, out, '--list').stdout)
        and 'beyond/two: missing' in said
    )
    done = reproduce(project, out, '--jobs', '2', '--keep-going', status=3)
    assert 'RuntimeError: broken' in done.stderr and figures(out) == {
        k: v for k, v in undisturbed[0].items() if '/two.' in k
    }
    assert (out / 'figures' / 'executed' / 'mine' / 'beyond-one.ipynb').exists()
    (project / 'nbs' / '01_one.ipynb').write_bytes(good)
    assert 'beyond/two' not in reproduce(project, out, '--only', 'failed', '--jobs', '1').stdout
    assert figures(out) == undisturbed[0]


# --- plan before run


def test_an_artefact_is_stale_by_content(tmp_path, project):
    out = tmp_path / 'out'
    reproduce(project, out, '--jobs', '1')

    def states(*args):
        return {
            line.split(': ')[0]: line.split(': ', 1)[1]
            for line in reproduce(project, out, '--list', *args).stdout.splitlines()
        }

    def edit(name, old, new):
        path = project / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def fresh():
        return [a for a, said in states().items() if said.startswith('fresh')]

    for path in project.rglob('*'):
        os.utime(path, (1, 1))  # dates say nothing
    edit('llmrec/runs/grid.py', '"What went wrong, on one line."', '"What went wrong."')  # nor do docstrings
    edit(
        'llmrec/sequential/training.py', 'clip: float = 5.', 'clip: float = 6.'
    )  # nor what the notebooks do not use
    assert fresh() == ['beyond/one', 'beyond/two']
    edit('llmrec/runs/together.py', "'another process is computing it'", "'somebody is computing it'")
    assert {a: 'library changed: llmrec.runs.together' in said for a, said in states().items()} == {
        'beyond/one': True,
        'beyond/two': True,
    }
    edit('llmrec/runs/together.py', "'somebody is computing it'", "'another process is computing it'")
    edit('nbs/02_two.ipynb', '100 // cfg.n', '200 // cfg.n')
    assert fresh() == ['beyond/one'] and 'nbs/02_two.ipynb changed' in states()['beyond/two']
    edit('nbs/02_two.ipynb', '200 // cfg.n', '100 // cfg.n')
    edit('profiles/mine.yaml', 'size: 10', 'size: 11')
    assert fresh() == [] and 'parameters changed: size' in states()['beyond/one']
    edit('profiles/mine.yaml', 'size: 11', 'size: 10')
    only_two = next(
        iter(
            json.loads((out / 'figures/mine/beyond/two.json').read_text())['records'].keys()
            - json.loads((out / 'figures/mine/beyond/one.json').read_text())['records'].keys()
        )
    )
    record = out / 'data' / 'records' / 'mine' / f'{only_two}.json'
    record.write_text(record.read_text().replace('"value": 1', '"value": 2'))
    assert fresh() == ['beyond/one'] and f'records changed: {only_two}' in states()['beyond/two']


def test_a_dry_run_says_what_why_and_how_long_and_does_nothing(tmp_path, project):
    out = tmp_path / 'out'
    said = reproduce(project, out, '--dry-run').stdout
    assert (
        said.splitlines() == ['beyond/one: missing; time unknown', 'beyond/two: missing; time unknown']
        and not out.exists()
    )
    edit = project / 'profiles' / 'mine.yaml'
    was = edit.read_text()
    edit.write_text(was.replace('size: 10', 'size: 10, seconds: .5'))
    reproduce(project, out, 'beyond/one', '--jobs', '1')
    edit.write_text(was)
    before = {p: p.stat().st_mtime_ns for p in out.rglob('*')}
    said = reproduce(project, out, '--dry-run', '--force').stdout
    assert (
        'beyond/one: stale (parameters changed: seconds); notebook ' in said
        and '6 of its 6 records are here and took 3 s' in said
    )
    assert {p: p.stat().st_mtime_ns for p in out.rglob('*')} == before
    assert 'beyond/one' not in reproduce(project, out, '--dry-run', '--only', 'missing').stdout
    assert reproduce(project, out, '--only', 'stael', status=1).stderr.count("Did you mean 'stale'?") == 1


def test_the_stamp_says_where_an_artefact_comes_from(tmp_path, project):
    out = tmp_path / 'out'
    reproduce(project, out, 'beyond/one', '--jobs', '2')
    stamp = json.loads((out / 'figures' / 'mine' / 'beyond' / 'one.json').read_text())
    names = {
        p.stem for p in (out / 'data' / 'records' / 'mine').glob('toy-*.json') if 'provenance' not in p.name
    }
    assert stamp['records'].keys() == names and len(names) == 6 and stamp['runs']['computed'] == 6
    assert {'versions', 'machine', 'seconds', 'inputs', 'files', 'parameters', 'notebook'} <= stamp.keys()
    sources = pl.read_csv(out / 'figures' / 'mine' / 'beyond' / 'one.sources.csv')
    assert sources['source'].n_unique() == 6 and set(sources['source']) == names
