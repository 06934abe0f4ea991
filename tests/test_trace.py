"llmrec_trace and llmrec_verify on a small real table and figure, and on copies of them in which something was changed."

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import nbformat
import numpy as np
import polars as pl
import pytest

from llmrec.evaluation.ranking import per_user
from llmrec.paths import output_to, root
from llmrec.repro.profiles import manifest
from llmrec.repro.trace import check_record, record_files, run_trace, run_verify

ROOT, TABLE, CURVE = root(), 'beyond/lrurec-exact', 'beyond/lrurec-curve'
PROFILE = 'parameters: {datasets: [films], ranker_datasets: [], seeds: [0, 1], variants: {}, training: {epochs: 2, validate_every: 10}}\n'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A project folder with the library and notebooks of this one, as copies, and a profile of its own."
    folder = tmp_path_factory.mktemp('project')
    for name in ('settings.ini', 'artefacts.yaml'):
        shutil.copy(ROOT / name, folder)
    for name in ('llmrec', 'nbs'):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
        )
    (folder / 'data').symlink_to(ROOT / 'data', target_is_directory=True)
    (folder / 'profiles').mkdir()
    (folder / 'profiles' / 'mine.yaml').write_text(PROFILE)
    return folder


@pytest.fixture(scope='module')
def made(project, tmp_path_factory):
    "What llmrec_reproduce leaves of a table and a figure of the same two runs."
    out = tmp_path_factory.mktemp('made')
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            'from llmrec.repro.reproduce import main; raise SystemExit(main())',
            TABLE,
            CURVE,
            '--profile',
            'mine',
            '--jobs',
            '1',
        ],
        cwd=project,
        env=os.environ | dict(LLMREC_OUT=str(out), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1'),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def out(made, project, tmp_path, monkeypatch):
    "A copy of it, with which a test may do what it likes; the working directory is the project."
    for name in ('figures', 'data/records'):
        shutil.copytree(made / name, tmp_path / name)
    (tmp_path / 'data' / 'miniature').symlink_to(made / 'data' / 'miniature', target_is_directory=True)
    monkeypatch.chdir(project)
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    with patch.dict(os.environ):
        yield tmp_path


@pytest.fixture
def verify(out, capsys):
    "llmrec_verify in that copy: (exit status, what does not match, what is stale), a list of lines each."

    def run(*argv):
        capsys.readouterr()
        status, said = run_verify(list(argv)), capsys.readouterr()
        wrong, _, stale = said.out.partition('Stale, but as it was made:\n')
        return status, *(
            [line.strip() for line in part.splitlines() if line.startswith('  ')] for part in (wrong, stale)
        )

    return run


@pytest.fixture
def trace(out, capsys):
    "llmrec_trace in that copy: (exit status, standard output, standard error)."

    def run(*argv):
        capsys.readouterr()
        return run_trace([str(a) for a in argv]), *capsys.readouterr()

    return run


def figures(out):
    return out / 'figures' / 'mine' / 'beyond'


def records(out):
    return [
        p for p in sorted((out / 'data' / 'records' / 'mine').glob('*.json')) if 'provenance' not in p.name
    ]


def edit(path, old, new):
    text = path.read_text(encoding='utf-8')
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding='utf-8')


def digit(path, pattern=r'0\.\d\d(\d)'):
    "Change one digit of the first number in a file."
    text = path.read_text(encoding='utf-8')
    at = re.search(pattern, text).start(1)
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :], encoding='utf-8')


def restamp(out, artefact=TABLE):
    "Make the stamp agree with the files and records as they are now, as a thorough forger would."
    path = out / 'figures' / 'mine' / f'{artefact}.json'
    stamp = json.loads(path.read_text())
    sha = lambda p: hashlib.sha256(p.read_bytes()).hexdigest()
    stamp |= dict(
        files={n: sha(path.parent / n) for n in stamp['files']},
        records={n: sha(out / 'data' / 'records' / 'mine' / f'{n}.json') for n in stamp['records']},
    )
    path.write_text(json.dumps(stamp))


# --- where a number comes from


def test_a_cell_leads_to_the_run_that_made_it(out, trace):
    csv = figures(out) / 'lrurec-exact.csv'
    status, said, _ = trace(csv, '--row', 'Recall@10', '--column', 'seed 1')
    lines = [line for line in said.splitlines() if line.startswith('  [')]
    assert status == 0 and len(lines) == 1
    for part in ('dataset films', 'model LRURec', 'training.seed 1', 'no language model', ' s, ', ' MiB'):
        assert part in lines[0]
    assert re.search(r'^computed at commit [0-9a-f]{12}|^computed at no commit', said, re.M)
    name = re.search(r'retrieval-[0-9a-f]{16}', lines[0])[0]
    record = next(p for p in records(out) if p.stem == name)
    assert f"data {json.loads(record.read_text())['data']}" in lines[0]
    with np.load(record.with_suffix('.npz')) as arrays:
        value = float(per_user(arrays['test_rank'])['Recall@10'].mean())
    assert f'  seed 1 {value}: [1]' in said  # the number of the table is the number of that record
    assert pl.read_csv(csv).filter(metric='Recall@10')['seed 1'].item() == value


def test_a_mean_names_all_its_seeds_and_every_number_is_told(out, trace):
    table = pl.read_csv(figures(out) / 'lrurec-exact.csv', infer_schema=False)
    for kind in ('csv', 'md', 'tex'):
        status, said, _ = trace(figures(out) / f'lrurec-exact.{kind}', '--row', 'Recall@10')
        both = next(line for line in said.splitlines() if line.startswith('  exact'))
        assert status == 0 and 'interval' in both and both.endswith(': [1-2]') and 'seed 0' not in both
        for name, text in table.filter(metric='Recall@10').row(0, named=True).items():
            if name not in ('dataset', 'method', 'metric'):
                assert (
                    f'{name} {text if len(text) < 9 or " to " in text else format(float(text), ".6g")}'
                    in said
                )
    assert sum(
        line.startswith('row ') for line in trace(figures(out) / 'lrurec-exact.csv')[1].splitlines()
    ) == len(table)


def test_a_figure_is_traced_as_a_whole(out, trace):
    for kind in ('svg', 'png', 'caption.md'):
        status, said, _ = trace(figures(out) / f'lrurec-curve.{kind}')
        assert status == 0 and 'comes from 2 records' in said and said.count('dataset films') == 2
    assert trace(figures(out) / 'lrurec-curve.svg', '--row', '0')[::2] == (
        1,
        'llmrec_trace: lrurec-curve.svg has no cells with a source of their own; leave out --row and --column.\n',
    )


def test_what_has_changed_or_is_gone_is_said(out, trace):
    digit(figures(out) / 'lrurec-exact.csv')
    edit(records(out)[0], 'films', 'books')
    records(out)[1].unlink()
    _, said, _ = trace(figures(out) / 'lrurec-exact.csv')
    assert (
        'not as the notebook wrote it' in said
        and said.count('CHANGED') == 1
        and said.count('no such record') == 1
    )


def test_a_stamp_of_an_older_llmrec_gets_one_sentence(out, trace):
    stamp = figures(out) / 'lrurec-exact.json'
    stamp.write_text(
        json.dumps(
            {
                k: v
                for k, v in json.loads(stamp.read_text()).items()
                if k not in ('records', 'failed', 'machine')
            }
            | dict(inputs='8c7d36da830a5077')
        )
    )
    status, said, _ = trace(figures(out) / 'lrurec-exact.csv')
    assert (
        status == 0
        and len(said.splitlines()) == 3
        and 'older llmrec' in said
        and f'llmrec_reproduce {TABLE}' in said
    )


@pytest.mark.parametrize(
    'file, argv, part',
    [
        ('README.md', [], 'does not belong to an artefact'),
        ('no-such.csv', [], 'is not there'),
        (TABLE, ['--column', 'exct'], "Did you mean 'exact'?"),
        (TABLE, ['--row', 'Recall@7'], 'counted from 0'),
    ],
)
def test_complaints_are_one_sentence(out, trace, file, argv, part):
    path = ROOT / file if file != TABLE else figures(out) / 'lrurec-exact.csv'
    status, said, complaint = trace(path, *argv)
    assert (
        status == 1
        and len(complaint.splitlines()) == 1
        and complaint.startswith('llmrec_trace: ')
        and part in complaint
    )


# --- what verify finds


def test_nothing_is_found_where_nothing_was_touched(verify):
    assert verify() == (0, [], []) and verify('--strict', TABLE, '--profile', 'mine') == (0, [], [])


@pytest.mark.parametrize('kind', ['csv', 'md', 'tex', 'sources.csv'])
def test_one_digit_in_a_table(out, verify, kind):
    digit(figures(out) / f'lrurec-exact.{kind}')
    status, wrong, _ = verify()
    assert (
        status == 1
        and wrong[0].startswith(
            f'figures/mine/beyond/lrurec-exact.{kind}: has been changed since it was made'
        )
        and f'llmrec_reproduce {TABLE}' in wrong[0]
    )
    assert len(wrong) == (2 if 'csv' in kind else 1) and ('where the table has' in wrong[-1]) == (
        'csv' in kind
    )
    assert verify(CURVE)[0] == 0


@pytest.mark.parametrize('kind', ['svg', 'png', 'pdf'])
def test_a_figure_replaced(out, verify, kind):
    svg = figures(out) / f'lrurec-curve.{kind}'
    svg.write_bytes(svg.read_bytes()[:-7] + b'another')
    status, wrong, _ = verify()
    assert (
        status == 1
        and len(wrong) == 1
        and wrong[0].startswith(f'figures/mine/beyond/lrurec-curve.{kind}: has been changed')
    )


def test_files_missing_and_added(out, verify):
    (figures(out) / 'lrurec-exact.tex').unlink()
    for name in ('lrurec-exact.png', 'mine.csv'):
        (figures(out) / name).write_text('1')
    assert [re.split(': |;', line)[1].split(' of ')[0] for line in verify()[1]] == [
        'was not written by the notebook',
        'is missing',
        'belongs to no artefact',
    ]


def test_a_record_edited(out, verify):
    record = records(out)[0]
    digit(record)
    status, wrong, _ = verify()
    assert status == 1 and all(line.startswith(f'data/records/mine/{record.name}: ') for line in wrong)
    assert (
        sum('is not the record that' in line for line in wrong) == 2
        and sum('since it was computed' in line for line in wrong) == 1
    )  # two artefacts, one record


def test_the_arrays_of_a_record_edited(out, verify):
    npz = records(out)[0].with_suffix('.npz')
    with np.load(npz) as z:
        arrays = dict(z)
    arrays['test_rank'][0] = 1
    np.savez_compressed(npz, **arrays)
    status, wrong, _ = verify()
    assert (
        status == 1
        and len(wrong) == 1
        and wrong[0].startswith(f'data/records/mine/{npz.name}: is missing or has been changed')
    )


def test_a_record_that_does_not_belong_to_its_key(out, verify):
    "Edited with all checksums put right: the key, a fingerprint of the configuration, does not fit any more."
    record = records(out)[0]
    text = record.read_text()
    assert text.count('"epochs": 2') == 2  # in the configuration and in the values
    record.write_text(text.replace('"epochs": 2', '"epochs": 200'))
    edit(
        (side := record.with_suffix('.provenance.json')),
        json.loads(side.read_text())['record_sha256'],
        hashlib.sha256(record.read_bytes()).hexdigest(),
    )
    for artefact in (TABLE, CURVE):
        restamp(out, artefact)
    status, wrong, _ = verify()
    assert status == 1 and len(wrong) == 1 and 'does not belong to its key' in wrong[0]


def forge(record, **changes):
    "Change what a record says and put its checksum in the provenance right."
    body = json.loads(record.read_text())
    for part, values in changes.items():
        body[part] = body[part] | values if isinstance(values, dict) else values
    old = hashlib.sha256(record.read_bytes()).hexdigest()
    record.write_text(json.dumps(body, indent=1, sort_keys=True) + '\n')
    edit(record.with_suffix('.provenance.json'), old, hashlib.sha256(record.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    'changes, said',
    [
        (dict(config=dict(training=dict(seed=7))), 'does not agree with the values of its key'),
        (dict(config={'dataset': 'books'}), 'does not agree'),
        (dict(values={'dataset': 'books'}, config={'dataset': 'books'}), 'does not belong to its key'),
        (dict(version=2), 'does not belong to its key'),
        (dict(data='other'), 'does not belong to its key'),
        (dict(values=[]), 'cannot be read as a record|does not belong'),
    ],
)
def test_a_record_says_its_key_itself(out, changes, said):
    record = records(out)[0]
    forge(record, **changes)
    assert [bool(re.search(said, str(f))) for f in check_record(record)][:1] == [True]


def test_a_record_renamed(out, verify):
    record = records(out)[0]
    for kind in ('.json', '.npz', '.provenance.json'):
        shutil.copy(record.with_suffix(kind), record.with_name(f'retrieval-0000{kind}'))
    assert [
        line.startswith('data/records/mine/retrieval-0000.json: is called otherwise') for line in verify()[1]
    ] == [True]


def test_a_record_gone(out, verify):
    first, second = records(out)
    second.unlink()
    first.with_suffix('.provenance.json').unlink()
    wrong = verify()[1]
    assert len(wrong) == 3 and all('is missing' in line for line in wrong)
    assert sum(line.startswith(f'data/records/mine/{second.name}: ') for line in wrong) == 2


def test_sources_that_name_what_was_not_read(out, verify):
    edit(figures(out) / 'lrurec-exact.sources.csv', records(out)[0].stem, 'retrieval-0000')
    restamp(out)
    assert ['a record that was not read' in line for line in verify()[1]] == [True]


# --- notebooks, library, stamps


@pytest.fixture
def notebook(project):
    "The table's notebook in the project; put back afterwards."
    path = project / 'nbs' / manifest()[TABLE]
    whole = path.read_bytes()
    yield path
    path.write_bytes(whole)


def test_a_notebook_changed_after_its_run(verify, notebook):
    edit(notebook, 'exact_table(runs)', 'exact_table(dict(runs))')
    status, wrong, _ = verify()
    assert (
        status == 1
        and len(wrong) == 1
        and f'{notebook.name}: has other code than the notebook that made {TABLE}' in wrong[0]
    )


def test_prose_and_comments_are_no_code(verify, notebook):
    nb = nbformat.read(notebook, as_version=4)
    nb.cells[0].source += '\n\nMore prose.'
    nb.cells[-2].source = (
        '# a remark\n' + nb.cells[-2].source
        if nb.cells[-2].cell_type == 'code'
        else nb.cells[-2].source + ' more'
    )
    nbformat.write(nb, notebook)
    assert verify() == (0, [], [])


def test_an_executed_notebook_edited(out, verify):
    edit(
        out / 'figures' / 'executed' / 'mine' / f"{TABLE.replace('/', '-')}.ipynb",
        'exact_table(runs)',
        'exact_table(dict(runs))',
    )
    status, wrong, _ = verify()
    assert (
        status == 1
        and len(wrong) == 1
        and wrong[0].startswith('figures/executed/mine/beyond-lrurec-exact.ipynb: has other code')
    )


def test_a_newer_library_is_stale_and_no_reproach(verify, project):
    module = project / 'llmrec' / 'evaluation' / 'intervals.py'
    whole = module.read_bytes()
    module.write_bytes(whole + b'\nNEW = 1\n')
    try:
        (status, wrong, stale), strict = verify(), verify('--strict')
    finally:
        module.write_bytes(whole)
    assert (status, wrong) == (0, []) and strict[0] == 1
    assert stale and all('library changed: llmrec.evaluation.intervals' in line for line in stale)


def test_other_parameters_than_the_profiles_are_stale(verify, project):
    profile = project / 'profiles' / 'mine.yaml'
    profile.write_text(PROFILE.replace('epochs: 2', 'epochs: 3'))
    try:
        status, wrong, stale = verify()
    finally:
        profile.write_text(PROFILE)
    assert (status, wrong) == (0, []) and ['parameters changed: training' in line for line in stale] == [
        True,
        True,
    ]


def test_stamps_lost_borrowed_and_old(out, verify):
    stamp = figures(out) / 'lrurec-exact.json'
    whole = stamp.read_text()
    for text in ('{"half": ', '[]', '{}'):
        stamp.write_text(text)
        status, wrong, _ = verify(TABLE)
        assert status == 1 and len(wrong) == 1 and 'lrurec-exact.json: is ' in wrong[0]
    stamp.unlink()
    assert verify(TABLE)[0] == 1
    stamp.write_text(
        json.dumps(
            {k: v for k, v in json.loads(whole).items() if k != 'records'} | dict(inputs='8c7d36da830a5077')
        )
    )
    status, wrong, stale = verify(TABLE)
    assert (status, wrong) == (0, []) and 'older llmrec' in stale[0]
    digit(figures(out) / 'lrurec-exact.md')
    assert 'lrurec-exact.md: has been changed' in verify(TABLE)[1][0]  # the files are checked even so
    stamp.write_text(whole)
    (out / 'figures' / 'mine').rename(out / 'figures' / 'paper')
    (out / 'data' / 'records' / 'mine').rename(out / 'data' / 'records' / 'paper')
    assert f'is the stamp of {TABLE} of profile mine' in ' '.join(verify(TABLE)[1])


def test_complaints_of_verify(verify, capsys):
    for argv, part in (
        (['--profile', 'mien'], "Did you mean 'mine'?"),
        (['beyond/speed'], 'has not been made for mine'),
        (['beyond/sped'], "Did you mean 'beyond/speed'?"),
    ):
        capsys.readouterr()
        assert run_verify(argv) == 1
        complaint = capsys.readouterr().err
        assert len(complaint.splitlines()) == 1 and part in complaint


# --- once more


def state(out):
    return {
        p.relative_to(out): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(out.rglob('*'))
        if p.is_file()
    }


def test_again_gives_the_same_bytes_and_touches_nothing(out, verify):
    before = state(out)
    assert verify(CURVE, '--again') == (0, [], [])
    assert state(out) == before


def test_again_finds_a_forgery_in_which_everything_agrees(out, verify):
    table, sources = figures(out) / 'lrurec-exact.csv', figures(out) / 'lrurec-exact.sources.csv'
    value = pl.read_csv(table, infer_schema=False)['exact'][0]
    for path in (table, sources):
        edit(path, f'{value},', '0.9,')
    restamp(out)
    assert verify(TABLE) == (0, [], [])
    status, wrong, _ = verify(TABLE, '--again')
    assert status == 1 and [line.split(':')[0].split('/')[-1] for line in wrong] == [
        'lrurec-exact.csv',
        'lrurec-exact.sources.csv',
    ]
    assert all('comes out differently' in line for line in wrong)


# --- this project


@pytest.mark.parametrize('profile', ['real-cpu', 'miniature-full'])
def test_the_records_of_the_repository_are_sound(profile):
    with output_to(ROOT):
        files = record_files(profile)
    assert files and [str(f) for p in files for f in check_record(p)] == []
