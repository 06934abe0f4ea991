"A dataset of one's own in a profile: its tables, its records, its complaints; and variants, which leave a profile's results alone."

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from llmrec.data.datasets import DATASETS, LISTED, OWN, load_dataset, only_own, registered
from llmrec.data.own import TAKEN, OwnData
from llmrec.experiments import llamarec, retrieval
from llmrec.paths import LlmrecError, records_dir
from llmrec.repro.profiles import parameters, variant, variant_name
from llmrec.repro.reproduce import main, write_atomic

ROOT = Path(__file__).resolve().parent.parent
TINY = dict(
    seeds=[0],
    methods=['Popularity', 'ItemKNN', 'LRURec'],
    training=dict(epochs=2, validate_every=10),
    backbone='miniature',
    ranker_seeds=[0],
    max_valid_users=4,
    tuning=dict(
        max_steps=2,
        eval_steps=1,
        warmup_steps=0,
        batch_size=4,
        optimiser='adamw_torch',
        gradient_checkpointing=False,
    ),
)


def command(name):
    module = dict(
        reproduce='reproduce:main',
        verify='trace:run_verify',
        trace='trace:run_trace',
        bundle='bundle:main',
        site='site:main',
        compare='compare:main',
    )[name]
    module, function = module.split(':')
    return [
        sys.executable,
        '-c',
        f'from llmrec.repro.{module} import {function}; raise SystemExit({function}())',
    ]


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A project whose library and notebooks are ours and whose profiles are its own; a log of 150 listeners."
    folder = tmp_path_factory.mktemp('project')
    for name in (
        'llmrec',
        'nbs',
        'settings.ini',
        'artefacts.yaml',
        'CITATION.cff',
        'LICENSE',
        'README.md',
        'Makefile',
    ):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / 'profiles', folder / 'profiles')
    for name in ('paper_numbers', 'miniature'):
        (folder / 'data').mkdir(exist_ok=True)
        (folder / 'data' / name).symlink_to(ROOT / 'data' / name)
    films = load_dataset('films')
    s, at = films.indexed.sequences, films.indexed.sequences.offsets
    rows = [
        (f'listener-{u:03d}', f'{i:05d}', int(t))
        for u in range(150)
        for i, t in zip(s[u], films.indexed.times[at[u] : at[u + 1]])
    ]
    log = pl.DataFrame(rows, schema=['who', 'what', 'at'], orient='row').sample(
        fraction=1, shuffle=True, seed=1
    )
    log.write_csv(folder / 'log.csv')
    pl.DataFrame(dict(id=[f'{i:05d}' for i in range(1, len(films.titles))], name=films.titles[1:])).write_csv(
        folder / 'songs.csv'
    )
    profile(folder, 'mine')
    return folder


def profile(folder, name, data=None, **changes):
    "Write a profile with the dataset 'songs'."
    songs = (
        dict(
            interactions='log.csv',
            user='who',
            item='what',
            timestamp='at',
            items='songs.csv',
            items_item='id',
            title='name',
            label='My songs',
            core=4,
            ties='item',
        )
        | changes
    )
    body = dict(
        about='Mine.',
        data=dict(songs=songs) if data is None else data,
        parameters=TINY | dict(datasets=['songs'], ranker_datasets=['songs']),
    )
    (folder / 'profiles' / f'{name}.yaml').write_text(yaml.safe_dump(body))


def run(project, name, *args, out=None):
    env = os.environ | dict(
        LLMREC_OUT=str(out or project),
        OMP_NUM_THREADS='1',
        HF_HUB_OFFLINE='1',
        PYTHONPATH=str(ROOT),
        LLMREC_JOBS='1',
    )
    env.pop(OWN, None)
    return subprocess.run(
        [*command(name), *args], cwd=project, env=env, capture_output=True, text=True, timeout=600
    )


def succeeded(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def made(project):
    said = succeeded(
        run(project, 'reproduce', 'llamarec/table2', 'llamarec/table3', '--profile', 'mine', '--jobs', '1')
    )
    assert 'songs (My songs' in said and '150 users' in said
    return project


def test_its_tables_stand_under_its_own_label_without_a_column_of_the_paper(made):
    table = pl.read_csv(made / 'figures/mine/llamarec/table3.csv')
    assert set(table['dataset']) == {'My songs'} and not [c for c in table.columns if 'paper' in c]
    assert [m for m in table['method']][:3] == ['Popularity', 'ItemKNN', 'LRURec'] and table['method'][
        -1
    ].startswith('LlamaRec')
    counted = pl.read_csv(made / 'figures/mine/llamarec/table2.csv')
    assert (counted['dataset'][0], counted['users'][0]) == ('My songs', 150)
    with only_own([]):
        log = pl.read_csv(made / 'log.csv', infer_schema=False)
        for column in ('who', 'what'):
            assert log.filter(pl.len().over(column) >= 4).height > 0
    assert '4-core' in (made / 'figures/mine/llamarec/table2.md').read_text()


def test_the_files_content_is_in_every_record_and_decides_what_is_fresh(made, tmp_path):
    bodies = [
        json.loads(p.read_text())
        for p in (made / 'data/records/mine').glob('*.json')
        if 'provenance' not in p.name
    ]
    assert (
        len({b['data'] for b in bodies}) == 1 and len(bodies) == 5
    )  # statistics, three retrievers, the ranker
    assert {b['config'].get('dataset', b['config'].get('retrieval', {}).get('dataset')) for b in bodies} == {
        'songs'
    }
    assert [b['config']['core'] for b in bodies if b['experiment'] == 'retrieval'] == [4] * 3
    assert 'table2: fresh' in succeeded(
        run(made, 'reproduce', 'llamarec/table2', '--profile', 'mine', '--list')
    )
    before = (made / 'log.csv').read_text()
    try:
        (made / 'log.csv').write_text(before + 'listener-000,00001,999999999\n')
        assert 'data changed: songs' in succeeded(
            run(made, 'reproduce', 'llamarec/table2', '--profile', 'mine', '--list')
        )
        assert 'data changed: songs' in run(made, 'verify', '--profile', 'mine').stdout
    finally:
        (made / 'log.csv').write_text(before)
    done = run(made, 'verify', '--profile', 'mine', '--strict', '--again')
    assert done.returncode == 0, done.stdout + done.stderr
    traced = succeeded(
        run(made, 'trace', 'figures/mine/llamarec/table3.csv', '--row', 'LRURec', '--column', 'NDCG@10')
    )
    assert 'dataset songs' in traced and bodies[0]['data'] in traced


def test_the_guides_profile_runs_on_files_with_its_columns(project, tmp_path):
    "As it stands in the guide, but for the length of the training."
    body = yaml.safe_load(
        re.search(r'`profiles/songs.yaml`.*?```yaml\n(.*?)```', (ROOT / 'GUIDE.md').read_text(), re.S)[1]
    )
    own = body['data']['songs']
    log = pl.read_csv(project / 'log.csv', infer_schema=False).with_columns(
        pl.from_epoch(pl.col('at').cast(pl.Int64)).dt.strftime('%Y-%m-%dT%H:%M:%S')
    )
    log.rename(dict(who=own['user'], what=own['item'], at=own['timestamp'])).write_csv(
        tmp_path / own['interactions']
    )
    songs = pl.read_csv(project / 'songs.csv', infer_schema=False)
    songs.rename(dict(id=own['item'], name=own['title'])).write_csv(tmp_path / own['items'])
    for name in ('interactions', 'items'):
        own[name] = str(tmp_path / own[name])
    body['parameters'] |= {k: v for k, v in TINY.items() if k in body['parameters']}
    (project / 'profiles' / 'songs.yaml').write_text(yaml.safe_dump(body))
    said = succeeded(
        run(
            project,
            'reproduce',
            'llamarec/table2',
            'llamarec/table1',
            '--profile',
            'songs',
            '--jobs',
            '1',
            out=tmp_path,
        )
    )
    assert 'songs (My songs' in said
    table = pl.read_csv(tmp_path / 'figures/songs/llamarec/table1.csv')
    assert set(table['dataset']) == {own['label']} and {'Popularity', 'LRURec', 'Retriever order'} < set(
        table['method']
    )
    assert table['NDCG@10'].is_between(0, 1).all() and not [c for c in table.columns if 'paper' in c]


def complaint(project, out, monkeypatch, capsys, *args):
    "What `llmrec_reproduce` says when it refuses, in this process."
    monkeypatch.chdir(project)
    monkeypatch.setenv('LLMREC_OUT', str(out))
    assert main(list(args)) == 1 and not registered()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    'changes, said',
    [
        (dict(interactions='lag.csv'), ['There is no file', 'lag.csv']),
        (dict(items='sings.csv'), ['There is no file', 'sings.csv']),
        (dict(user='whu'), ["Did you mean 'who'?"]),
        (dict(title='nam'), ["Did you mean 'name'?"]),
        (dict(itme='what'), ["Did you mean 'item'?"]),
        (dict(label='Beauty'), ['that of dataset beauty']),
        (dict(core='5'), ['must be int']),
        (dict(core=400), ['Nothing is left']),
        (dict(title=None, items=None), ['ranks titles']),
        (dict(interactions='spaces.csv'), ["differ by spaces only"]),
        (dict(interactions='short.csv', core=1), ['1 of 1 users', 'the split needs three']),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence_before_anything_runs(
    project, tmp_path, monkeypatch, capsys, changes, said
):
    (project / 'spaces.csv').write_text('who,what,at\na,00001,1\n a,00002,2\n')
    (project / 'short.csv').write_text('who,what,at\na,00001,1\na,00002,2\n')
    profile(project, 'wrong', **changes)
    err = complaint(project, tmp_path, monkeypatch, capsys, 'llamarec/table3', '--profile', 'wrong')
    assert len(err.splitlines()) == 1 and all(s in err for s in said), err
    assert not list(tmp_path.rglob('*.csv')) and not list(tmp_path.rglob('records/*/*.json'))


@pytest.mark.parametrize('name', ['beauty', 'movie'])
def test_a_name_in_use_never_loads_what_bears_it(project, tmp_path, monkeypatch, capsys, name):
    profile(project, 'wrong', data={name: dict(interactions='log.csv', user='who', item='what')})
    assert 'belongs to a registered dataset' in complaint(
        project, tmp_path, monkeypatch, capsys, 'llamarec/table2', '--profile', 'wrong'
    )


def test_a_dataset_that_is_none_is_named_before_anything_runs(project, tmp_path, monkeypatch, capsys):
    args = ['llamarec/table2', '--profile', 'mine', '-p', 'datasets=[song]']
    assert "Did you mean 'songs'?" in complaint(project, tmp_path, monkeypatch, capsys, *args)
    assert not list(tmp_path.rglob('*.csv'))


def test_registered_datasets_are_those_of_this_process_and_its_children(tmp_path, monkeypatch):
    monkeypatch.delenv(OWN, raising=False)
    (tmp_path / 'log.csv').write_text('user,item\n' + ''.join(f'{u},{i}\n' for u in 'abc' for i in 'wxyz'))
    assert set(LISTED) < set(TAKEN) and list(DATASETS) == list(LISTED)
    with only_own([OwnData('letters', str(tmp_path / 'log.csv'), core=3)]):
        code = "from llmrec.data.datasets import load_dataset; print(load_dataset('letters').indexed.users)"
        assert (
            "['a', 'b', 'c']"
            in subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT).stdout
        )
        cfg = retrieval.for_dataset('letters', 'LRURec')
        assert (cfg.core, cfg.ties, cfg.architecture.max_length) == (3, 'file', 50)
        with pytest.raises(LlmrecError, match='ranks titles'):
            llamarec.as_published(cfg)
        with pytest.raises(LlmrecError, match='guessed'):
            load_dataset('letters', ties='guessed')
        with only_own([]):
            assert not registered()
        assert list(registered()) == ['letters']
    assert not registered()


# --- variants


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


def test_a_change_writes_a_variant_and_leaves_the_profiles_results_alone(project):
    succeeded(run(project, 'reproduce', 'llamarec/table2', '--profile', 'miniature', '--jobs', '1'))
    before, records = files(project / 'figures/miniature'), files(project / 'data/records/miniature')
    said = succeeded(
        run(
            project,
            'reproduce',
            'llamarec/table2',
            '--profile',
            'miniature',
            '-p',
            'datasets=[films]',
            '--jobs',
            '1',
        )
    )
    assert 'figures/miniature+datasets-films' in said
    assert files(project / 'figures/miniature') == before
    assert pl.read_csv(project / 'figures/miniature+datasets-films/llamarec/table2.csv').height == 1
    now = files(project / 'data/records/miniature')
    assert {k: v for k, v in now.items() if '.locks' not in k} == {
        k: v for k, v in records.items() if '.locks' not in k
    }  # shared, found again
    assert yaml.safe_load((project / 'figures/miniature+datasets-films/variant.yaml').read_text()) == dict(
        datasets=['films']
    )
    again = succeeded(
        run(project, 'reproduce', 'llamarec/table2', '--profile', 'miniature+datasets-films', '--list')
    )
    assert 'table2: fresh' in again
    done = run(project, 'verify', '--profile', 'miniature+datasets-films', '--strict', '--again')
    assert done.returncode == 0 and '1 artefact and 1 record' in done.stdout, done.stdout + done.stderr
    traced = succeeded(run(project, 'trace', 'figures/miniature+datasets-films/llamarec/table2.csv'))
    assert 'miniature+datasets-films' in traced and 'statistics-' in traced


def test_a_variant_is_named_kept_and_never_redefined(out):
    assert variant('miniature', dict(seeds=[1]), 'one')[0] == 'miniature+one'
    write_atomic(out / 'figures/miniature+one/variant.yaml', 'seeds: [1]\n')
    assert (
        variant('miniature', {}, 'one') == variant('miniature+one', {}) == ('miniature+one', dict(seeds=[1]))
    )
    assert parameters('llamarec/table1', 'miniature+one', {})['seeds'] == [1]
    with pytest.raises(LlmrecError, match='another name'):
        variant('miniature', dict(seeds=[2]), 'one')
    with pytest.raises(LlmrecError, match='There is no variant'):
        variant('miniature+two', {})
    with pytest.raises(LlmrecError, match='letters, digits'):
        variant('miniature', dict(seeds=[2]), '../x')
    assert records_dir('miniature+one') == records_dir('miniature')
    long = dict(tuning=dict(max_steps=2, eval_steps=1, warmup_steps=0), seeds=[0, 1])
    assert len(variant_name(long)) == 8 and variant_name(long) != variant_name(long | dict(seeds=[0]))


def test_one_entry_of_a_mapping_is_changed(out):
    before, after = (parameters('llamarec/table1', 'miniature', g) for g in ({}, {'training.epochs': 3}))
    assert after['training'] == before['training'] | dict(epochs=3) and before['training']['epochs'] == 20
    with pytest.raises(LlmrecError, match='an entry of a mapping'):
        parameters('llamarec/table1', 'miniature', {'seeds.first': 3})
