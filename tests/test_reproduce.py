"The command: complaints, what it writes, what it leaves alone, and going on after a kill. Everything on tiny settings, in folders of its own."

import ast
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import polars as pl
import psutil
import pytest
import torch
import yaml

from llmrec.runs.records import records_of
from llmrec.data.miniature import world_checksum
from llmrec.experiments.retrieval import METHODS
from llmrec.paths import LlmrecError, output_to, root
from llmrec.repro import profiles as settings_of, reproduce as module
from llmrec.repro.profiles import manifest, parameters, profiles
from llmrec.sequential.binary import BINARY
from llmrec.sequential.counting import SIMPLE

ROOT = root()
MAIN = [sys.executable, '-c', 'from llmrec.repro.reproduce import main; raise SystemExit(main())']
TUNING = '{max_steps: 2, eval_steps: 1, warmup_steps: 0, batch_size: 4, optimiser: adamw_torch, gradient_checkpointing: false}'
TINY = (
    'datasets=[films]',
    'ranker_datasets=[films]',
    'seeds=[0]',
    'training={epochs: 2, validate_every: 10}',
    f'tuning={TUNING}',
    'max_valid_users=8',
)
MANIFEST = manifest()


def pairs(parameters):
    return [x for p in parameters for x in ('-p', p)]


def environment(out, **changes):
    "The test's own environment with output below `out`; None removes a variable."
    env = os.environ | dict(LLMREC_OUT=str(out), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1') | changes
    return {k: v for k, v in env.items() if v is not None}


def reproduce(out, *args, cwd=ROOT, **changes):
    return subprocess.run(
        [*MAIN, *args], cwd=cwd, env=environment(out, **changes), capture_output=True, text=True, timeout=600
    )


def succeeded(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def complaint(out, *args, **more):
    "The one line on standard error; no artefact and no half-written file may be there."
    done = reproduce(out, *args, **more)
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1, done.stderr
    assert 'Traceback' not in done.stdout + done.stderr
    written = [
        p
        for p in Path(out).rglob('*')
        if p.is_file()
        and '.tmp-' in p.name
        or p.match('figures/miniature/*/*')
        or p.match('figures/real-cpu/*/*')
    ]
    assert written == []
    return done.stderr


def files(folder, *suffixes):
    "Relative name -> bytes of the files below `folder`, without those of the invented world."
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(Path(folder).rglob('*'))
        if p.is_file() and '/world-' not in p.as_posix() and (not suffixes or p.suffix in suffixes)
    }


def artefact(out, name, profile='miniature'):
    "File name -> bytes of an artefact of the profile or its variant, without its stamp, which holds times and versions."
    folders = [p for p in (Path(out) / 'figures').glob(f'{profile}*') if p.is_dir()]
    return {
        k: v
        for folder in folders
        for k, v in files(folder).items()
        if k.startswith(f'{name}.') and k != f'{name}.json'
    }


def records(out):
    "Record files that must not depend on when and how often a run was started."
    return {
        k: v
        for k, v in files(Path(out) / 'data' / 'records').items()
        if not k.endswith('.provenance.json') and '.locks' not in k
    }


def times(out):
    return {p.name: p.stat().st_mtime_ns for p in (Path(out) / 'data' / 'records').rglob('*') if p.is_file()}


# --- complaints before anything runs


@pytest.mark.parametrize(
    'args, said',
    [
        (['--profile', 'real-cup'], ['real-cup', "Did you mean 'real-cpu'?"]),
        (['llamarec/tabel1'], ['llamarec/tabel1', "Did you mean 'llamarec/table1'?"]),
        (['llamarec/table1', '-p', 'sedes=[0]'], ['sedes', "Did you mean 'seeds'?"]),
        (['llamarec/table1', '-p', 'seeds'], ['seeds', 'NAME=VALUE']),
        (['llamarec/table1', '-p', 'seeds=[0'], ['seeds']),
    ],
)
def test_bad_arguments(tmp_path, args, said):
    text = complaint(tmp_path, *args)
    for part in said:
        assert part in text
    assert files(tmp_path) == {}


@pytest.fixture
def project(tmp_path):
    "A project folder with this project's code and notebooks and profiles of its own."
    folder = tmp_path / 'project'
    shutil.copytree(ROOT / 'profiles', folder / 'profiles')
    for name in ('settings.ini', 'artefacts.yaml'):
        shutil.copy(ROOT / name, folder)
    for name in ('llmrec', 'nbs', 'data'):
        (folder / name).symlink_to(ROOT / name, target_is_directory=True)
    return folder


@pytest.mark.parametrize(
    'content, said',
    [
        ('parameters: {sedes: [0]}', ['sedes', 'mine', "Did you mean 'seeds'?"]),
        ('artefacts: {llamarec/table1: {sedes: [0]}}', ['sedes', 'mine', "Did you mean 'seeds'?"]),
        ('parametres: {}', ['parametres', 'mine.yaml']),
        ('parameters: [', ['mine.yaml']),
    ],
)
def test_bad_profiles(tmp_path, project, content, said):
    (project / 'profiles' / 'mine.yaml').write_text(content + '\n')
    text = complaint(tmp_path / 'out', '--profile', 'mine', 'llamarec/table1', cwd=project)
    for part in said:
        assert part in text


# --- complaints from inside a notebook


def test_an_ill_typed_value(tmp_path):
    text = complaint(tmp_path, 'llamarec/table1', '-p', 'seeds=abc')
    assert 'llamarec/table1' in text and 'seeds' in text and "'abc'" in text


def test_absent_data_say_what_to_get_and_where_to_put_it(tmp_path):
    text = complaint(
        tmp_path, 'llamarec/table2', '--profile', 'real-cpu', LLMREC_DATA=None, LLMREC_OFFLINE='1'
    )
    for part in (
        'llamarec/table2',
        'ml-latest-small/ratings.csv',
        'https://',
        '$LLMREC_DATA/ml-latest-small/ratings.csv',
    ):
        assert part in text


@pytest.mark.parametrize('artefact', ['beyond/lrurec-exact', 'beyond/tie-order'])
def test_records_of_real_data_are_enough_for_their_tables(tmp_path, artefact):
    "What a notebook does with the real datasets, on a machine that has none of their files."
    kept = records_of('real-cpu')
    (tmp_path / 'data/records').mkdir(parents=True)
    shutil.copytree(kept, tmp_path / 'data/records/real-cpu', copy_function=os.symlink)
    succeeded(
        reproduce(
            tmp_path, artefact, '--profile', 'real-cpu', '--jobs', '1', LLMREC_DATA=None, LLMREC_OFFLINE='1'
        )
    )
    made = tmp_path / f'figures/real-cpu/{artefact}.csv'
    assert made.read_text(encoding='utf-8') == (ROOT / f'figures/real-cpu/{artefact}.csv').read_text(
        encoding='utf-8'
    )


def test_a_damaged_file_is_named(tmp_path):
    there = tmp_path / 'data'
    for dataset in ('beauty', 'ml-latest-small'):
        (there / dataset).mkdir(parents=True)
    (there / 'ml-latest-small' / 'ratings.csv').write_bytes(
        b'userId,movieId,rating,timestamp\r\n' + b'1,17,4.0,1000000000\r\n' * 9
    )
    (there / 'ml-latest-small' / 'movies.csv').write_bytes(
        b'movieId,title,genres\r\n17,"Lantern, The (1961)",Drama\r\n'
    )
    whole = gzip.compress(
        b''.join(b'A%013d,B%09d,4.0,1300000000\n' % (i * 7919, i * 104729) for i in range(2000))
    )
    (there / 'beauty' / 'ratings_Beauty.csv.gz').write_bytes(whole[: len(whole) // 2])
    (there / 'beauty' / 'meta_Beauty.json.gz').write_bytes(
        gzip.compress(b"{'asin': 'B000000000', 'title': 'Soap'}\n")
    )
    for dataset, name in (('ml-100k', 'ratings.csv'), ('beauty', 'ratings_Beauty.csv.gz')):
        text = complaint(
            tmp_path / 'out',
            'llamarec/table2',
            '-p',
            f'datasets=[{dataset}]',
            LLMREC_DATA=str(there),
            LLMREC_OFFLINE='1',
        )
        for part in (name, 'sha256', 'truncated', 'Replace the file'):
            assert part in text


@pytest.mark.parametrize(
    'source, said',
    [
        (
            "raise RuntimeError('first line\\nsecond line')",
            ['RuntimeError', 'first line', 'figures/executed'],
        ),
        ('import os; os.kill(os.getpid(), 9)', ['died']),
        ('pass', ['wrote no']),
    ],
)
def test_a_notebook_that_fails(tmp_path, project, source, said):
    (project / 'nbs').unlink()
    (project / 'nbs').mkdir()
    parameters = nbformat.v4.new_code_cell("profile = 'miniature'", metadata={'tags': ['parameters']})
    kernel = {'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}
    notebook = nbformat.v4.new_notebook(
        cells=[parameters, nbformat.v4.new_code_cell(source)], metadata=kernel
    )
    nbformat.write(notebook, project / 'nbs' / '99_fails.ipynb')
    (project / 'artefacts.yaml').write_text('beyond/fails: 99_fails.ipynb\n')
    (project / 'profiles' / 'mine.yaml').write_text('about: nothing\n')
    text = complaint(tmp_path / 'out', 'beyond/fails', '--profile', 'mine', cwd=project)
    for part in ('beyond/fails', *said):
        assert part in text


# --- what a run leaves behind


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A folder in which Table 1 was made with tiny settings and Table 2 as the profile says."
    out = tmp_path_factory.mktemp('made')
    for args in (['llamarec/table1', *pairs(TINY)], ['llamarec/table2']):
        assert 'done in' in succeeded(reproduce(out, *args))
    return out


def test_the_files_are_there_and_their_captions_say_where_the_numbers_come_from(made):
    for name in ('table1', 'table2'):
        have = artefact(made, f'llamarec/{name}')
        assert [k for k in (f'llamarec/{name}.{s}' for s in ('csv', 'md', 'tex')) if k not in have] == []
        for kind in ('md', 'tex'):
            text = have[f'llamarec/{name}.{kind}'].decode()
            for part in ('Profile miniature', world_checksum()[:12], 'backbone', 'seed'):
                assert part in text
    assert 'backbone miniature-llama' in (text := have_text(made, 'llamarec/table1.md')) and 'seed 0.' in text
    assert not [p for p in made.rglob('*.tmp-*')]


def have_text(out, name):
    return next((out / 'figures').glob(f'miniature*/{name}')).read_text(encoding='utf-8')


def test_what_is_fresh_is_left_alone(made):
    before, tables, executed = times(made), files(made / 'figures'), made / 'figures' / 'executed'
    for args in (['llamarec/table1', *pairs(TINY)], ['llamarec/table2']):
        assert 'fresh' in (said := succeeded(reproduce(made, *args))) and 'running' not in said
    assert times(made) == before and files(made / 'figures') == tables and executed.exists()


def test_an_edited_table_is_noticed_and_made_again(made):
    before, tables = times(made), artefact(made, 'llamarec/table1')
    csv = next((made / 'figures').glob('miniature+*/llamarec/table1.csv'))
    csv.write_bytes(csv.read_bytes().replace(b'0', b'1', 1))
    assert 'stale' in succeeded(reproduce(made, 'llamarec/table1', *pairs(TINY)))
    assert artefact(made, 'llamarec/table1') == tables and times(made) == before


def test_a_damaged_stamp_is_not_believed(made, tmp_path):
    shutil.copytree(made / 'figures', tmp_path / 'figures')
    shutil.copytree(made / 'data', tmp_path / 'data')
    assert 'table2: fresh' in succeeded(reproduce(tmp_path, 'llamarec/table2', '--list'))
    (tmp_path / 'figures' / 'miniature' / 'llamarec' / 'table2.json').write_text('{"inputs": ')
    assert 'table2: stale' in succeeded(reproduce(tmp_path, 'llamarec/table2', '--list'))


def test_force_and_papermill_by_hand_give_the_same_bytes(made, tmp_path):
    tables = artefact(made, 'llamarec/table2')
    assert 'done in' in succeeded(reproduce(made, 'llamarec/table2', '--force'))
    assert artefact(made, 'llamarec/table2') == tables
    by_hand = [
        sys.executable,
        '-m',
        'papermill',
        f'nbs/{MANIFEST["llamarec/table2"]}',
        str(tmp_path / 'out.ipynb'),
        '-p',
        'profile',
        'miniature',
        '--cwd',
        'nbs',
    ]
    done = subprocess.run(
        by_hand, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert artefact(tmp_path, 'llamarec/table2') == tables


# --- killed and started again

CURVE = (
    'datasets=[films]',
    'ranker_datasets=[films]',
    'seeds=[0, 1]',
    'ranker_seeds=[0]',
    'training={epochs: 5, validate_every: 10, patience: 1000}',
)


def state_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)


def kill(process):
    "End `process` and everything that it started, at once and without a word."
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(family, timeout=20)
    process.wait(timeout=20)


def start_and_kill(out, *args):
    "Start the command and kill it in the middle of the first run's training; returns that run's checkpoint."
    process = subprocess.Popen(
        [*MAIN, *args],
        cwd=ROOT,
        env=environment(out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 240
        while time.monotonic() < until and process.poll() is None:
            found = list((out / 'data' / 'checkpoints').rglob('retrieval-*.pt'))
            if found and state_of(found[0])['state']['iteration'] >= 20:
                return found[0]
            time.sleep(0.1)
        raise AssertionError(f'no checkpoint to kill at; exit status {process.poll()}')
    finally:
        kill(process)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    undisturbed, killed = tmp_path / 'undisturbed', tmp_path / 'killed'
    args = ['beyond/lrurec-curve', *pairs(CURVE)]
    checkpoint = start_and_kill(killed, *args, '--jobs', '1')
    saved = state_of(checkpoint)
    assert (
        not saved['state']['done'] and records(killed) == {} and artefact(killed, 'beyond/lrurec-curve') == {}
    )
    saved['state']['seconds'] = 12345.0  # a run that starts from nothing forgets this
    torch.save(saved, checkpoint)
    succeeded(reproduce(killed, *args, '--jobs', '1'))
    key = checkpoint.stem.removeprefix('retrieval-')
    provenance = next((killed / 'data' / 'records').rglob(f'retrieval-{key}.provenance.json'))
    assert yaml.safe_load(provenance.read_text())['seconds']['train'] > 12345
    succeeded(
        reproduce(undisturbed, *args, '--jobs', '2')
    )  # two processes instead of one must not matter either
    assert len(records(killed)) == 4 and records(killed) == records(undisturbed)
    made = artefact(killed, 'beyond/lrurec-curve')
    assert {Path(k).suffix for k in made} >= {'.svg', '.pdf', '.png'} and made == artefact(
        undisturbed, 'beyond/lrurec-curve'
    )


# --- a result notebook has two parameters


def calls_of_settings(name):
    "The first arguments of the calls of `settings` in an artefact's notebook."
    cells = nbformat.read(ROOT / 'nbs' / MANIFEST[name], as_version=4).cells
    nodes = [n for c in cells if c.cell_type == 'code' for n in ast.walk(ast.parse(c.source))]
    return [
        n.args[0].value for n in nodes if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'settings'
    ]


@pytest.mark.parametrize('name', MANIFEST)
def test_a_result_notebook_asks_for_the_settings_of_its_artefact(name):
    found = {
        k: ast.literal_eval(p['default'])
        for k, p in papermill.inspect_notebook(str(ROOT / 'nbs' / MANIFEST[name])).items()
    }
    assert found == {'profile': 'miniature', 'change': {}}
    assert calls_of_settings(name) == [name]


def test_a_notebook_that_is_opened_by_hand_has_the_values_of_its_profile(tmp_path):
    raw = yaml.safe_load((ROOT / 'profiles' / 'real-cpu.yaml').read_text(encoding='utf-8'))
    with output_to(tmp_path):
        found = settings_of.settings('llamarec/table1', 'real-cpu')
    assert (
        found.datasets == raw['parameters']['datasets']
        and found.search == raw['artefacts']['llamarec/table1']['search']
    )
    assert (
        found.profile == 'real-cpu'
        and found.methods == settings_of.entries()['llamarec/table1']['parameters']['methods']
    )
    assert list(tmp_path.rglob('*')) == []


def test_a_change_by_hand_makes_a_variant_and_leaves_the_profile_alone(tmp_path):
    with output_to(tmp_path):
        changed = settings_of.settings('llamarec/table2', change={'datasets': ['films']})
        assert changed.profile.startswith('miniature+') and changed.datasets == ['films']
        again = settings_of.settings('llamarec/table2', changed.profile)
        assert vars(again) == vars(changed)
        assert parameters('llamarec/table2', changed.profile, {})['datasets'] == ['films']
        # as the command hands them on: every value, and no variant
        assert (
            settings_of.settings('llamarec/table2', 'miniature', {'datasets': ['films', 'books']}).profile
            == 'miniature'
        )
        assert (
            settings_of.settings('llamarec/table2', changed.profile, {'datasets': ['films']}).profile
            == changed.profile
        )
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()] == [
        f'figures/{changed.profile}/variant.yaml'
    ]


@pytest.mark.parametrize(
    'change, said',
    [
        ({'datsets': ['films']}, "Did you mean 'datasets'"),
        ({'datasets': 'films'}, 'must be a list'),
        ({'datasets': ['filmes']}, "Did you mean 'films'"),
        ({'profile': 'paper'}, 'no parameter that can be changed'),
        (['datasets'], 'must hold names and values'),
        ({'datasets': ['https://me:hush@example.org']}, 'a password or a key'),
    ],
)
def test_a_wrong_change_by_hand_is_refused_before_anything_is_written(change, said, tmp_path):
    with output_to(tmp_path), pytest.raises(LlmrecError, match=said):
        settings_of.settings('llamarec/table2', change=change)
    assert [p for p in tmp_path.rglob('*') if p.is_file()] == []


def test_a_worker_ends_with_a_killed_command():
    worker = "import os, time; from llmrec.repro.reproduce import end_with; end_with(os.getppid()); print(os.getpid(), flush=True); time.sleep(120)"
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    process = subprocess.Popen([sys.executable, '-c', command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.wait()
    until = time.monotonic() + 20
    while time.monotonic() < until and child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.1)
    alive = child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    if alive:
        child.kill()
    assert not alive


@pytest.mark.parametrize('profile', profiles())
def test_every_profile_names_methods_that_its_notebooks_know(profile):
    "A list of retrievers for LlamaRec's tables once reached TALLRec's figures, where nobody knows them."
    for artefact, notebook in manifest().items():
        asked = parameters(artefact, profile, {}).get('methods')
        if asked is None:
            continue
        text = (ROOT / 'nbs' / notebook).read_text(encoding='utf-8')
        known = METHODS if 'llmrec.experiments.study' in text else (*BINARY, *SIMPLE)
        assert set(asked) <= set(known), (artefact, sorted(set(asked) - set(known)))


# --- Figure 3 measures a model that is too large for a test, here in a small shape

LLAMA = [
    'measure_7b=true',
    'device_7b=cpu',
    'dtype_7b=bfloat16',
    'title_tokens=[5, 8]',
    'calibrate=5',
    'history=3',
    'candidates=3',
]
SMALL = 'shape={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 4}'


def test_figure3_measures_a_fresh_llama_length_by_length_and_goes_on(tmp_path):
    succeeded(reproduce(tmp_path, 'llamarec/figure3', *pairs([*LLAMA, SMALL])))
    paths = sorted(
        p
        for p in (tmp_path / 'data/records/miniature').glob('ranking-time-*.json')
        if p.suffixes == ['.json']
    )
    found = {p: json.loads(p.read_text()) for p in paths}
    fresh = [p for p in paths if found[p]['config'].get('device')]
    assert sorted(found[p]['config']['title_tokens'] for p in fresh) == [[5], [8]] and len(paths) == 3
    for p in fresh:  # the small Llama in bfloat16: two bytes a weight of blocks and head
        counted = found[p]['metrics']['model']
        assert (
            counted['blocks'] == 2 * (4 * 32 * 32 + 3 * 32 * 64)
            and counted['itemsize'] == 2
            and counted['vocabulary'] == 32_000
        )
        assert set(found[p]['metrics']['bytes']) == {'generation', 'verbalizer'}
    table = pl.read_csv(next((tmp_path / 'figures').glob('miniature+*/llamarec/figure3.csv')))
    assert (
        table['model'].to_list()[2:] == ['a Llama of another shape, freshly initialised'] * 2
        and table['title tokens'].to_list() == [5, 8] * 2
    )
    assert table['generation, GiB'].is_null().to_list() == [True, True, False, False]
    before = {p: p.stat().st_mtime_ns for p in paths}
    fresh[1].unlink()
    succeeded(reproduce(tmp_path, 'llamarec/figure3', '--force', *pairs([*LLAMA, SMALL])))
    assert [p for p in paths if p.stat().st_mtime_ns != before[p]] == [fresh[1]]


def test_figure3_says_how_much_memory_a_large_llama_needs(tmp_path):
    said = complaint(
        tmp_path,
        'llamarec/figure3',
        *pairs([*LLAMA, 'shape={hidden_size: 65536, intermediate_size: 131072}']),
    )
    assert 'GiB of memory are needed' in said and 'switch measure_7b off' in said


def test_names_of_artefacts():
    assert settings_of.chosen([]) == list(manifest()) and settings_of.chosen(
        ['llamarec/table2', 'figure4']
    ) == ['llamarec/table2', 'tallrec/figure4']
    for notebook in manifest().values():
        assert (ROOT / 'nbs' / notebook).exists(), notebook
    with pytest.raises(LlmrecError, match="Did you mean 'llamarec/table2'"):
        settings_of.chosen(['llamarec/tabel2'])
    for name in profiles():
        module.check_profile(name)


def test_a_variant_is_known_by_its_name(out):
    assert settings_of.variant('miniature', {}) == ('miniature', {})
    module.write_atomic(settings_of.variant_path('miniature+short'), 'training.epochs: 2\n')
    assert settings_of.variant('miniature+short', {}) == ('miniature+short', {'training.epochs': 2})
    assert parameters('llamarec/table1', 'miniature+short', {})['training']['epochs'] == 2
    with pytest.raises(LlmrecError, match='another name'):
        settings_of.variant('miniature', {'seeds': [1]}, 'short')
    with pytest.raises(LlmrecError, match='There is no variant'):
        settings_of.variant('miniature+shrt', {})


def test_what_counts_of_source():
    assert module.code_of('def f():\n    "What."\n    return 1  # why') == module.code_of('def f(): return 1')
    assert module.imported(
        'from llmrec.experiments import study\nimport os\nfrom llmrec.paths import root'
    ) == ['llmrec.experiments', 'llmrec.experiments.study', 'llmrec.paths']
    assert module.imported('from ..runs.records import Record', 'llmrec.experiments') == [
        'llmrec.runs.records'
    ]
    assert module.imported('def f():\n    import llmrec.paths') == []


def test_the_states_of_an_artefact(out):
    values = parameters('llamarec/table2', 'miniature', {})
    used = module.inputs('llamarec/table2', values)
    assert 'films' in used['data'] and 'llmrec.llm.tuning' not in used['library']
    assert module.state('llamarec/table2', 'miniature', values)[0] == 'missing'
    path, whole = (
        module.stamp_path('llamarec/table2', 'miniature'),
        dict(parameters=values, inputs=used, records={}, files={}),
    )
    module.write_atomic(path, json.dumps(whole))
    assert module.state('llamarec/table2', 'miniature', values) == ('fresh', [])
    assert (
        module.state('llamarec/table2', 'miniature', values | {'datasets': ['films']})[1][0]
        == 'parameters changed: datasets'
    )
    for damaged in (dict(records=[]), dict(files={'a': 1}), dict(inputs={}), dict(runs={'computed': 'x'})):
        module.write_atomic(path, json.dumps(whole | damaged))
        assert module.state('llamarec/table2', 'miniature', values) == ('stale', ['its stamp cannot be read'])
    module.write_atomic(module.failure_path('llamarec/table2', 'miniature'), 'no memory')
    assert module.state('llamarec/table2', 'miniature', values) == ('failed', ['no memory'])


def test_what_the_notebook_reports_and_what_is_left(out):
    module.write_atomic(
        module.events_path('llamarec/table1', 'miniature'),
        '{"planned": 3}\n{"finished": "runs", "seconds": 4}\n{"read": "x-1", "sha256": "0"}\n{"fini',
    )
    told = module.happened('llamarec/table1', 'miniature')
    assert told['records'] == {'x-1': '0'} and module.left({'llamarec/table1': told}, 'miniature') == (
        3,
        1,
        8.0,
    )
    assert [module.minutes(s) for s in (12, 600, 7200)] == ['12 s', '10 min', '2.0 h']


def test_the_command_line_and_the_plan(capsys):
    assert module.overrides(['seeds=[0, 1]', 'preset=corrected']) == {'seeds': [0, 1], 'preset': 'corrected'}
    with pytest.raises(LlmrecError, match='NAME=VALUE'):
        module.overrides(['seeds'])
    args = module.parse(
        ['table1', '-p', 'a=1', '--change', 'b=2', '--only', 'stale', '--jobs', '3', '--keep-going']
    )
    assert (args.artefacts, args.parameter, args.only, args.jobs, args.keep_going, args.force) == (
        ['table1'],
        ['a=1', 'b=2'],
        ['stale'],
        3,
        True,
        False,
    )
    states = {
        'llamarec/table1': ('fresh', []),
        'llamarec/table3': ('stale', ['data changed: films']),
        'tallrec/table3': ('missing', []),
    }
    assert module.wanted(list(states), states, ['missing', 'llamarec/table1']) == [
        'llamarec/table1',
        'tallrec/table3',
    ]
    assert module.wanted(list(states), states, []) == list(states)
    assert 'stale (data changed: films); time unknown' in module.describe(
        'llamarec/table3', 'no-such', {}, states['llamarec/table3'], 'cost'
    )
    assert [
        module.carried(1000, 4, 9000),
        module.carried(1000, 4, 2500),
        module.carried(3, 4, 9000),
        module.carried(0, 4, 9000),
        module.carried(8, 4, 100),
    ] == [8, 3, 3, 1, 1]
    for argv, said in (
        (['--profile', 'real-cup'], "Did you mean 'real-cpu'?"),
        (['llamarec/table9'], 'Unknown artefact'),
        (['llamarec/table1', '-p', 'epoch=3'], 'Unknown parameter'),
    ):
        capsys.readouterr()
        assert module.main(argv) == 1 and said in capsys.readouterr().err


def test_a_notebook_without_the_two_parameters_is_not_run(monkeypatch):
    "papermill would put its cell first, and the notebook would overwrite the values with the miniature's."
    monkeypatch.setattr(settings_of, 'notebook_parameters', lambda notebook: {'profile': 'miniature'})
    with pytest.raises(
        LlmrecError,
        match='72_llamarec_table2.ipynb must have a cell tagged "parameters" that sets profile and change',
    ):
        settings_of.handed('llamarec/table2', parameters('llamarec/table2', 'miniature', {}))


@pytest.fixture
def slow_processor(out, monkeypatch):
    "A processor that is eight times slower in bfloat16, and a command that makes nothing; the types it measured."
    measured = []
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr('llmrec.llm.number_types.times_as_long', lambda dtype: measured.append(dtype) or 8.0)
    monkeypatch.setattr(module, 'make', lambda plan, *args, **how: [])
    return measured


def test_a_slow_number_type_is_said_before_anything_is_made(slow_processor, capsys):
    assert module.main(['llamarec/table1', 'llamarec/table2', '-p', 'dtype=bfloat16']) == 0
    assert (
        'takes 8.0 times as long to multiply in bfloat16' in capsys.readouterr().err
        and slow_processor == ['bfloat16']
    )


@pytest.mark.parametrize(
    'argv',
    [
        ['llamarec/table1'],
        ['llamarec/table1', '-p', 'dtype=bfloat16', '--dry-run'],
        ['llamarec/table1', '-p', 'dtype=bfloat16', '--only', 'stale'],
    ],
)
def test_no_type_is_measured_where_nothing_is_made_in_another(slow_processor, capsys, argv):
    assert module.main(argv) == 0
    assert slow_processor == [] and 'times as long' not in capsys.readouterr().err
