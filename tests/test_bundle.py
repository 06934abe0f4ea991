"The bundle: what is in it and what must not be, its description, its checksums, and notebooks that run from it. One small real artefact."

import gzip
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate

from llmrec.repro import bundle as module
from llmrec.repro.bundle import bundle, check_no_data, collect, main
from llmrec.paths import LlmrecError, root
from llmrec.repro.reproduce import load_stamp, stamp_path

ROOT = root()
REPRODUCE = [sys.executable, '-c', 'from llmrec.repro.reproduce import main; raise SystemExit(main())']


def environment(out, **changes):
    env = os.environ | dict(LLMREC_OUT=str(out), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1') | changes
    return {k: v for k, v in env.items() if v is not None}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A folder in which Table 2 was made."
    out = tmp_path_factory.mktemp('made')
    done = subprocess.run(
        [*REPRODUCE, 'llamarec/table2', '--jobs', '1'],
        cwd=ROOT,
        env=environment(out),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope='module')
def unpacked(made, tmp_path_factory):
    "The bundle of that folder, unpacked."
    folder, before = tmp_path_factory.mktemp('unpacked'), os.environ.get('LLMREC_OUT')
    os.environ['LLMREC_OUT'] = str(made)
    try:
        path, _ = bundle('miniature', folder.parent / 'bundle.zip')
    finally:
        os.environ.pop('LLMREC_OUT')
        if before:
            os.environ['LLMREC_OUT'] = before
    with zipfile.ZipFile(path) as z:
        z.extractall(folder)
    return folder


@pytest.fixture
def copy(made, tmp_path, monkeypatch):
    "A copy of the folder, to which llmrec writes, without the generated world."
    for part in ('figures', 'data/records'):
        shutil.copytree(made / part, tmp_path / part)
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    return tmp_path


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*') if p.is_file())


def test_everything_that_the_table_needs_is_in_it_as_it_was(made, unpacked):
    have = set(names(unpacked))
    stamp = json.loads((made / 'figures/miniature/llamarec/table2.json').read_text())
    assert stamp['records']
    wanted = [p.relative_to(made).as_posix() for p in (made / 'figures/miniature/llamarec').iterdir()] + [
        'figures/executed/miniature/llamarec-table2.ipynb'
    ]
    wanted += [
        f'data/records/miniature/{r}{kind}'
        for r in stamp['records']
        for kind in ('.json', '.npz', '.provenance.json')
    ]
    for name in wanted:
        assert (unpacked / name).read_bytes() == (made / name).read_bytes()
    for name in (
        'artefacts.yaml',
        'profiles/miniature.yaml',
        'requirements.lock',
        'LICENSE',
        'CITATION.cff',
        'llmrec/repro/bundle.py',
        'nbs/72_llamarec_table2.ipynb',
    ):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()
    assert {'README.md', 'SHA256SUMS', 'ro-crate-metadata.json'} <= have


def test_nothing_of_the_data_is_in_it(made, unpacked):
    assert list((made / 'data/miniature').rglob('ratings.csv'))  # it was there to be taken
    for name in names(unpacked):
        assert (
            not name.startswith(('data/raw', 'data/checkpoints'))
            and '.locks' not in name
            and '.tmp-' not in name
        )
        assert Path(name).name not in ('ratings.csv', 'movies.csv', 'u.data', 'u.item', 'BX-Book-Ratings.csv')
    assert {p.name for p in (unpacked / 'data').iterdir()} == {'miniature', 'paper_numbers', 'records'}
    assert [p.name for p in (unpacked / 'data/miniature').iterdir()] == ['llama']


@pytest.mark.parametrize('packed', [False, True])
def test_a_raw_file_is_refused_whatever_it_is_called(copy, monkeypatch, packed):
    raw = b'invented, but known as raw\n' * 20
    monkeypatch.setattr(module, 'RAW', frozenset([module.hashlib.sha256(raw).hexdigest()]))
    (copy / 'figures/miniature/llamarec/table2.extra.csv').write_bytes(gzip.compress(raw) if packed else raw)
    with pytest.raises(LlmrecError, match='table2.extra.csv is a raw data file'):
        bundle('miniature')


def test_rating_rows_in_an_executed_notebook_are_refused(copy, capsys):
    executed = copy / 'figures/executed/miniature/llamarec-table2.ipynb'
    notebook = json.loads(executed.read_text())
    notebook['cells'][-1]['outputs'] = [
        dict(output_type='stream', name='stdout', text=['│ 1 ┆ 17 ┆ 4.0 ┆ 964982703 │\n'])
    ]
    executed.write_text(json.dumps(notebook, ensure_ascii=False))
    assert main([]) == 1 and 'llamarec-table2.ipynb shows rating rows' in capsys.readouterr().err
    assert not (copy / 'llmrec-miniature.zip').exists()


def test_numbers_of_tables_are_no_rating_rows():
    check_no_data(
        {
            'figures/p/a.csv': b'ml-100k,LRURec,0.0573,6738415616\nfilms,5,4,3,1234567\n',
            'figures/p/a.svg': b'M 100000000 200000000 L 3, 4, 5, 100',
        }
    )


@pytest.mark.parametrize(
    'row',
    ['A1,B1,nan,1388534400', '276725,034545104X,0.0', '"276725";"0155061224";"5"', '12\\t0155061224\\t10'],
)
def test_rows_of_the_other_datasets_are_refused_too(row):
    with pytest.raises(LlmrecError, match='shows rating rows'):
        check_no_data({'figures/x/a.csv': f'a\n{row}\n'.encode()})
    check_no_data(
        {
            'figures/x/a.csv': row.replace('034545104X', '0345451049')
            .replace('0155061224', '0155061225')
            .replace('nan', '0.0573')
            .encode()
        }
    )


def test_checksums(unpacked):
    done = subprocess.run(
        ['sha256sum', '--strict', '-c', 'SHA256SUMS'], cwd=unpacked, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    listed = [line.split('  ', 1)[1] for line in (unpacked / 'SHA256SUMS').read_text().splitlines()]
    assert sorted([*listed, 'SHA256SUMS']) == names(unpacked)


# --- the description


def test_the_crate_can_be_loaded_and_covers_every_file(unpacked):
    text = json.loads((unpacked / 'ro-crate-metadata.json').read_text(encoding='utf-8'))
    context = text['@context'] if isinstance(text['@context'], list) else [text['@context']]
    assert context[0] == 'https://w3id.org/ro/crate/1.1/context' and all(
        isinstance(c, (str, dict)) for c in context
    )
    identifiers = [e['@id'] for e in text['@graph']]
    assert len(identifiers) == len(set(identifiers))
    crate = ROCrate(unpacked)
    folders = [e.id for e in crate.data_entities if e.type == 'Dataset']
    listed = [e.id for e in crate.data_entities if e.type != 'Dataset']
    assert all((unpacked / f).is_dir() for f in folders) and all((unpacked / f).is_file() for f in listed)
    rest = [
        n
        for n in names(unpacked)
        if n not in listed and n != 'ro-crate-metadata.json' and not n.startswith(tuple(folders))
    ]
    assert rest == [] and {'README.md', 'SHA256SUMS', 'requirements.lock'} <= set(listed)


def test_no_reference_of_the_crate_leads_nowhere(unpacked):
    graph = json.loads((unpacked / 'ro-crate-metadata.json').read_text(encoding='utf-8'))['@graph']
    have = {e['@id'] for e in graph}

    def references(value):
        if isinstance(value, dict):
            return [value['@id']]
        return [r for v in value for r in references(v)] if isinstance(value, list) else []

    found = [
        r
        for e in graph
        for key, v in e.items()
        if e['@id'] != 'ro-crate-metadata.json'
        for r in references(v)
    ]
    assert len(found) > 20 and [r for r in found if r not in have] == []


def test_the_root_and_the_action_say_what_they_must(made, unpacked):
    crate, stamp = (
        ROCrate(unpacked),
        json.loads((made / 'figures/miniature/llamarec/table2.json').read_text()),
    )
    top = crate.root_dataset
    assert (
        top['license'].id == 'https://spdx.org/licenses/Apache-2.0'
        and top['datePublished'].startswith('20')
        and top['name']
        and top['description']
    )
    assert top['author']['name'] == 'The llmrec developers' and len(top['citation']) == 3
    action = top['mentions']
    assert action.type == 'CreateAction' and action['instrument'].id == 'nbs/72_llamarec_table2.ipynb'
    assert {'File', 'SoftwareSourceCode'} == set(action['instrument'].type)
    records = [o.id for o in action['object'] if '/records/' in o.id]
    assert records == [f'data/records/miniature/{r}.json' for r in sorted(stamp['records'])]
    results = {r.id.rsplit('/', 1)[1]: r for r in action['result']}
    assert set(results) == {*stamp['files'], 'table2.json', 'llamarec-table2.ipynb'}
    assert (
        results['table2.csv']['encodingFormat'] == 'text/csv'
        and results['table2.csv']['sha256'] == stamp['files']['table2.csv']
    )
    assert 'Profile miniature on Films' in results['table2.tex']['description']
    assert (
        stamp['seconds'] in [u['value'] for u in action['resourceUsage']]
        and action['startTime'] < action['endTime']
    )
    software = {s['name']: s['version'] for s in action['instrument']['softwareRequirements']}
    assert software == stamp['versions']
    assert crate.get(f"#llmrec-{software['llmrec']}")['softwareRequirements'].id == 'requirements.lock'


# --- the same tree, the same bytes; and what it says about itself


def test_twice_the_same_bytes_and_no_half_file(copy, capsys):
    assert main(['-o', str(copy / 'a.zip')]) == 0 and main(['-o', str(copy / 'b' / 'b.zip')]) == 0
    assert (copy / 'a.zip').read_bytes() == (copy / 'b' / 'b.zip').read_bytes()
    assert not list(copy.rglob('*.tmp-*')) and str(copy / 'a.zip') in capsys.readouterr().out


def test_a_stale_table_a_lost_record_and_an_older_stamp_are_told(copy, capsys):
    stamp, path = load_stamp('llamarec/table2', 'miniature'), stamp_path('llamarec/table2', 'miniature')
    first, second = sorted(stamp['records'])
    csv, record = path.with_suffix('.csv'), copy / f'data/records/miniature/{first}.json'
    csv.write_text(csv.read_text().replace('1', '2', 1))
    record.unlink()
    assert main([]) == 0
    said = capsys.readouterr().out
    assert (
        '`llamarec/table2` is stale' in said
        and 'table2.csv' in said
        and f'the record {first} is not there as it was read' in said
        and second not in said
    )
    with zipfile.ZipFile(copy / 'llmrec-miniature.zip') as z:
        letter = z.read('README.md').decode()
        assert f'the record {first} is not there' in letter and '`llamarec/table2` is stale' in letter
        assert (
            f'data/records/miniature/{first}.json' not in z.namelist()
            and f'data/records/miniature/{second}.json' in z.namelist()
        )
    path.write_text(
        json.dumps(
            {k: v for k, v in stamp.items() if k not in ('records', 'failed', 'runs', 'machine')}
            | dict(inputs='8c7d36da830a5077')
        )
    )
    files = collect('miniature')[1]
    assert 'older llmrec' in files['README.md'].decode() and f'data/records/miniature/{second}.json' in files


def test_a_failed_run_is_told(copy, capsys):
    path = stamp_path('llamarec/table2', 'miniature')
    path.write_text(
        json.dumps(load_stamp('llamarec/table2', 'miniature') | dict(failed={'toy-1': 'The loss is nan.'}))
    )
    _, files = collect('miniature')
    action = next(
        e for e in json.loads(files['ro-crate-metadata.json'])['@graph'] if e['@id'] == '#llamarec/table2'
    )
    assert (
        action['actionStatus'].endswith('FailedActionStatus')
        and 'The loss is nan.' in action['error']
        and 'The loss is nan.' in files['README.md'].decode()
    )


@pytest.mark.parametrize(
    'args, said',
    [
        (['--profile', 'minature'], "Did you mean 'miniature'?"),
        (['--profile', 'paper'], 'make reproduce PROFILE=paper'),
        (['-o', '.'], 'is a folder'),
    ],
)
def test_complaints(tmp_path, made, monkeypatch, capsys, args, said):
    monkeypatch.setenv('LLMREC_OUT', str(made))
    monkeypatch.chdir(tmp_path)
    assert main(args) == 1
    text = capsys.readouterr().err
    assert said in text and text.startswith('llmrec_bundle: ') and len(text.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# --- it runs


def test_a_notebook_runs_from_the_unpacked_bundle(made, unpacked, tmp_path):
    tree = tmp_path / 'tree'
    shutil.copytree(unpacked, tree)
    before = tree / 'figures/miniature/llamarec/table2.csv'
    shutil.rmtree(tree / 'figures')
    env = environment('', LLMREC_OUT=None, LLMREC_DATA=None, PYTHONPATH=str(tree))
    where = subprocess.run(
        [sys.executable, '-c', 'import llmrec; print(llmrec.__file__)'],
        cwd=tree / 'nbs',
        env=env,
        capture_output=True,
        text=True,
    )
    assert where.stdout.strip() == str(tree / 'llmrec/__init__.py')
    command = [
        sys.executable,
        '-m',
        'papermill',
        'nbs/72_llamarec_table2.ipynb',
        str(tmp_path / 'out.ipynb'),
        '-p',
        'profile',
        'miniature',
        '--cwd',
        'nbs',
    ]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for kind in ('csv', 'md', 'tex'):
        assert (before.with_suffix(f'.{kind}')).read_bytes() == (
            made / f'figures/miniature/llamarec/table2.{kind}'
        ).read_bytes()


# --- small parts


def test_media_types_do_not_depend_on_the_machine():
    assert [module.encoding(f'a.{k}') for k in ('csv', 'svg', 'caption.md', 'png', 'pdf', 'lock')] == [
        'text/csv',
        'image/svg+xml',
        'text/markdown',
        'image/png',
        'application/pdf',
        'text/plain',
    ]


def test_a_zip_does_not_depend_on_order_or_clock():
    assert module.zipped({'b': b'2', 'a': b'1'}) == module.zipped({'a': b'1', 'b': b'2'})


@pytest.mark.parametrize(
    'row', ['1,17,4.0,964982703', '1\\t17\\t4\\t881250949', '│ 1 ┆ 17 ┆ 4.5 ┆ 964982703 │']
)
def test_rows_of_movielens_are_refused(row):
    with pytest.raises(LlmrecError, match='rating rows'):
        check_no_data({'figures/p/a.md': f'first\n{row}\n'.encode()})
    check_no_data({'figures/p/a.csv': b'films,LRURec,.5,0.1426,6738415616\n'})


def test_the_tree_runs_and_has_no_data():
    tree = module.tree_files()
    assert {
        'nbs/90_paths.ipynb',
        'llmrec/data/raw.py',
        'profiles/miniature.yaml',
        'requirements.lock',
    } <= set(tree)
    check_no_data(tree)


def test_a_caption_without_a_file_is_the_last_paragraph_of_the_table(copy):
    path = stamp_path('llamarec/table2', 'miniature')
    path.with_suffix('.caption.md').unlink(missing_ok=True)
    path.with_suffix('.md').write_text('| a |\n|---|\n| 1 |\n\nProfile miniature\\_x.\n')
    assert module.caption(module.made('llamarec/table2', 'miniature')) == 'Profile miniature_x.'
    assert module.settings()['lib_name'] == 'llmrec' and module.citation()['license'] == 'Apache-2.0'
