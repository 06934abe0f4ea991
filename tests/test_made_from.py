"What an artefact is made from: nothing that determines it changes unseen, and no misspelt name selects nothing."

import json
import os
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
from conftest import tool

from llmrec import paths
from llmrec.data.datasets import only_own
from llmrec.data.own import OwnData
from llmrec.experiments import study as llamarec_study, tallrec_study
from llmrec.experiments.probes import probed
from llmrec.paths import LlmrecError
from llmrec.repro import bundle, profiles, reproduce as module
from llmrec.repro.profiles import check_datasets, parameters, parse_yaml
from llmrec.runs import grid, records

ROOT = Path(__file__).resolve().parent.parent
TABLE2 = 'llamarec/table2'


@pytest.fixture
def made(out, monkeypatch):
    "Make Table 2 with a notebook that writes these files and calls `meanwhile`; returns its stamp."

    def make(*names, meanwhile=lambda: None, values=None):
        def run(artefact, values, executed):
            meanwhile()
            for name in names:
                records.write_atomic(module.stamp_path(TABLE2, 'miniature').parent / name, 'text')

        monkeypatch.setattr(module, 'run_notebook', run)
        module.execute(TABLE2, 'miniature', values or parameters(TABLE2, 'miniature', {}), force=True)
        return module.load_stamp(TABLE2, 'miniature')

    return make


def state(values=None):
    return module.state(TABLE2, 'miniature', values or parameters(TABLE2, 'miniature', {}))


def test_the_stamp_says_what_was_there_before_the_notebook_ran(made, monkeypatch):
    honest, edits = module.inputs, []

    def inputs(*args):
        return honest(*args) | dict(notebook=f'{len(edits)} edits')

    monkeypatch.setattr(module, 'inputs', inputs)
    stamp = made('table2.csv', meanwhile=lambda: edits.append(1))
    assert stamp['inputs']['notebook'] == '0 edits'
    assert state() == ('stale', ['nbs/72_llamarec_table2.ipynb changed'])


def test_what_an_earlier_execution_left_is_removed_and_nobody_elses_file_is_blessed(made):
    assert set(made('table2.csv', 'table2.longer.csv')['files']) == {'table2.csv', 'table2.longer.csv'}
    folder = module.stamp_path(TABLE2, 'miniature').parent
    assert set(made('table2.csv')['files']) == {'table2.csv'} and not (folder / 'table2.longer.csv').exists()
    (folder / 'table2.mine.csv').write_text('mine')
    with pytest.raises(LlmrecError, match='table2.mine.csv was not written by the notebook'):
        made('table2.csv')
    assert (folder / 'table2.mine.csv').read_text() == 'mine'


def test_a_folder_among_the_files_is_none_of_them(made):
    made('table2.csv')
    (module.stamp_path(TABLE2, 'miniature').parent / 'table2.backup').mkdir()
    assert state() == ('fresh', [])


def test_a_record_that_was_looked_for_and_comes_later_is_noticed(made):
    name = f'retrieval-{7:016x}'
    stamp = made('table2.csv', meanwhile=lambda: records.tell(absent=name))
    assert stamp['absent'] == [name] and state() == ('fresh', [])
    records.write_atomic(paths.records_dir('miniature') / f'{name}.json', '{}')
    assert state() == ('stale', [f'records that were not there changed: {name}'])


def test_a_record_that_was_absent_and_then_read_is_read(made):
    def both():
        records.tell(absent='x-1')
        records.tell(read='x-1', sha256='0')

    assert made('table2.csv', meanwhile=both)['absent'] == []


def test_the_weights_of_a_models_folder_count_while_it_is_there(made, tmp_path):
    folder = tmp_path / 'model'
    shutil.copytree(ROOT / 'data/miniature/llama', folder)
    values = parameters(TABLE2, 'miniature', {}) | dict(backbone=str(folder))
    made('table2.csv', values=values)
    assert state(values) == ('fresh', [])
    weights = next(folder.glob('*.safetensors'))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert state(values) == ('stale', [f'data changed: model {folder}'])
    shutil.rmtree(folder)
    assert state(values) == ('fresh', [])


def test_data_are_seen_wherever_a_parameter_names_them():
    for values in (
        dict(probes=[dict(dataset='films')]),
        dict(search={'films': {}}),
        dict(datasets=['films']),
    ):
        assert 'films' in module.data_used(values)
    assert 'alpaca' in module.data_used(dict(instructions='alpaca'))
    assert 'alpaca' not in module.data_used(dict(instructions='miniature'))


def test_what_an_experiment_takes_from_ones_own_data_counts(tmp_path):
    rows = [dict(user=u, item=i, at=n) for u in 'abcdef' for n, i in enumerate('uvwxyz')]
    pl.DataFrame(rows).write_csv(tmp_path / 'log.csv')
    seen = set()
    for change in ({}, dict(max_length=3), dict(batch_size=2), dict(ranker_batch=2)):
        with only_own([OwnData('songs', str(tmp_path / 'log.csv'), timestamp='at', **change)]):
            seen.add(module.data_used(dict(datasets=['songs']))['songs'])
    assert len(seen) == 4


@pytest.mark.parametrize(
    'text', ['a: 1\nb: 2\na: 3\n', 'x: {a: 1, a: 2}\n', 'papers: {llamarec: {}}\n"papers": {}\n']
)
def test_no_mapping_names_a_thing_twice(text):
    with pytest.raises(ValueError, match="line [123]: '(a|papers)' stands twice"):
        parse_yaml(text)


def test_anchors_may_be_merged_and_changed():
    text = 'one: &one {a: 1, b: 2}\ntwo: {<<: *one, b: 3}\nthree: {b: 4, <<: [*one]}\n'
    found = parse_yaml(text)
    assert (found['two'], found['three']) == ({'a': 1, 'b': 3}, {'a': 1, 'b': 4})


def test_a_profile_is_named_so_that_files_can_be(tmp_path, monkeypatch):
    (tmp_path / 'profiles').mkdir()
    (tmp_path / 'profiles/my songs.yaml').write_text('about: mine\n')
    monkeypatch.setattr(profiles, 'root', lambda: tmp_path)
    with pytest.raises(LlmrecError, match='rename it with letters'):
        profiles.load_profile('my songs')


@pytest.mark.parametrize(
    'artefact, change',
    [
        ('tallrec/table3', dict(llm_datasets=['flims'])),
        ('tallrec/table3', dict(llm_protocols=['corected'])),
        ('tallrec/table3', dict(protocols=['corected'])),
        ('tallrec/table3', dict(datasets_by_protocol={'corected': ['films']})),
        ('tallrec/table3', dict(datasets_by_protocol={'corrected': ['flims']})),
        ('tallrec/table3', dict(further_models={'tiny': {'protocol': 'corected'}})),
        ('tallrec/table3', dict(losses=['answr'])),
        ('llamarec/table4', dict(system_datasets=['flims'])),
        ('beyond/tie-order', dict(trained={'flims': ['SASRec']})),
        ('beyond/tie-order', dict(settings={'flims': {}})),
    ],
)
def test_a_misspelt_name_is_refused_and_does_not_select_nothing(artefact, change):
    values = parameters(artefact, 'miniature', {})
    check_datasets(artefact, values)
    with pytest.raises(LlmrecError, match='Did you mean'):
        check_datasets(artefact, values | change)


@pytest.mark.parametrize('name', ['training', 'tuning'])
def test_a_seed_among_the_settings_of_a_ranker_is_refused(name):
    with pytest.raises(LlmrecError, match=f"'{name}' names a seed"):
        llamarec_study.study(**{name: dict(seed=3)})


def test_a_method_is_named_once():
    with pytest.raises(LlmrecError, match='names one twice'):
        llamarec_study.study(methods=['Popularity', 'Popularity'])


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(tuning=dict(seed=3)), "'tuning' names a seed"),
        (dict(alpaca=dict(seed=3)), "'alpaca' names a seed"),
        (dict(binary=dict(seed=3)), "'binary' names a seed"),
        (dict(seeds=[0, 0]), "'seeds' .* twice"),
        (dict(datasets=['films', 'films']), "'datasets' .* twice"),
        (dict(ks=[16, 16]), "'ks' .* twice"),
        (dict(ks=[-4]), "'ks' .* at least 1"),
        (dict(llm_ks=[0]), "'llm_ks' .* at least 1"),
        (dict(test_rows=-1), "'test_rows' .* at least 1"),
        (dict(valid_rows=0), "'valid_rows' .* at least 1"),
        (dict(weight_decays=[]), "'weight_decays' .* is empty"),
    ],
)
def test_a_study_of_tallrec_has_no_row_twice_and_none_without_rows(change, said):
    with pytest.raises(LlmrecError, match=said):
        tallrec_study.study(**change)


def test_a_probe_is_about_a_dataset_of_its_table():
    s = llamarec_study.study(datasets=['films'], ranker_datasets=[])
    with pytest.raises(LlmrecError, match='dataset of a probe'):
        probed(s, [dict(dataset='books', method='BERT4Rec')])


def git(folder, *args):
    who = ['-c', 'user.name=a', '-c', 'user.email=a@b']
    subprocess.run(['git', *who, '-C', str(folder), *args], check=True, capture_output=True)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "A project that was unpacked inside somebody's repository, which has a commit."
    project = tmp_path / 'thesis' / 'llmrec-main'
    (project / 'llmrec').mkdir(parents=True)
    for name in ('settings.ini', 'CITATION.cff'):
        shutil.copy(ROOT / name, project)
    git(project.parent, 'init', '-q')
    git(project.parent, 'add', '.')
    git(project.parent, 'commit', '-qm', 'all')
    monkeypatch.chdir(project)
    records.commit.cache_clear()
    yield project
    records.commit.cache_clear()


def test_the_commit_of_a_repository_around_the_project_is_not_its_own(elsewhere):
    assert records.commit() == {}
    git(elsewhere, 'init', '-q')
    git(elsewhere, 'add', '.')
    git(elsewhere, 'commit', '-qm', 'own')
    records.commit.cache_clear()
    assert records.commit()['dirty'] is False


def test_without_git_a_record_is_kept_without_a_commit(elsewhere, monkeypatch):
    git(elsewhere, 'init', '-q')
    monkeypatch.setenv('PATH', str(elsewhere))
    assert records.commit() == {} and records.provenance({})['versions']


def test_a_command_of_another_checkout_is_refused(elsewhere):
    with pytest.raises(LlmrecError, match='set PYTHONPATH='):
        module.check_library()
    shutil.rmtree(elsewhere / 'llmrec')
    (elsewhere / 'llmrec').symlink_to(ROOT / 'llmrec')
    module.check_library()


def test_the_number_of_jobs_is_a_number(monkeypatch):
    monkeypatch.setenv('LLMREC_JOBS', 'many')
    with pytest.raises(LlmrecError, match='LLMREC_JOBS must be a whole number'):
        grid.jobs_wanted()
    monkeypatch.setenv('LLMREC_JOBS', '3')
    assert grid.jobs_wanted() == 3


def test_without_a_home_there_is_one_sentence(monkeypatch):
    def nowhere():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(Path, 'home', nowhere)
    with pytest.raises(LlmrecError, match='LLMREC_OUT'):
        paths.user_cache()


def test_an_interrupted_bundle_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, 'bundle', interrupted)
    assert bundle.main([]) == 130 and capsys.readouterr().err == 'llmrec_bundle: stopped\n'


def test_a_notebook_that_is_edited_while_it_runs_is_left_alone(tmp_path, monkeypatch):
    notebooks = tool('notebooks')
    path = tmp_path / '99z_toy.ipynb'
    shutil.copy(ROOT / 'nbs/40_simple.ipynb', path)
    saved = json.loads(path.read_text())
    saved['cells'] = saved['cells'][:1]

    def execute(self, **_):
        path.write_text(json.dumps(saved))

    monkeypatch.setattr(notebooks.NotebookClient, 'execute', execute)
    with pytest.raises(SystemExit, match='99z_toy.ipynb was edited while it ran'):
        notebooks.run(path)
    assert json.loads(path.read_text()) == saved


def test_checking_named_notebooks_names_those_that_are_not_current(monkeypatch, capsys):
    notebooks = tool('notebooks')
    monkeypatch.setattr(notebooks, 'is_current', lambda path: not path.stem.startswith('41'))
    assert notebooks.main(['--check', '40']) == 0 and capsys.readouterr().out == ''
    assert notebooks.main(['--check', '40', '41']) == 1 and '41_' in capsys.readouterr().out
    assert os.getcwd() == str(ROOT)
