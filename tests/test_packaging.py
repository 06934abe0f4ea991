"The files around the notebooks: settings, lock, README, citation, and the commands they promise."

import configparser
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def settings():
    ini = configparser.ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    return ini['DEFAULT']


def run(*command, cwd=ROOT):
    return subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True)


def state(root):
    "Checksums of all files below `root` that a tool could have changed."
    files = [
        f
        for folder in ('llmrec', 'nbs')
        for f in (root / folder).rglob('*')
        if f.is_file() and '__pycache__' not in f.parts
    ]
    return {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_console_scripts_exist():
    for entry in settings()['console_scripts'].split():
        module, function = entry.split('=')[1].split(':')
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'{module} is not written yet')
        assert callable(getattr(importlib.import_module(module), function))


def test_the_lock_pins_everything_exactly():
    lines = [
        line
        for line in (ROOT / 'requirements.lock').read_text().splitlines()
        if line and not line.startswith('#')
    ]
    pins = dict(line.split('==') for line in lines)
    assert (
        pins['nbdev'] == '2.4.14'
        and pins['torch'] == '2.13.0'
        and 'setuptools' in pins
        and 'llmrec' not in pins
    )
    assert not [line for line in lines if '/' in line or '+' in line]


def test_the_version_is_one():
    cff = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert importlib.import_module('llmrec').__version__ == settings()['version'] == cff['version']


def test_citation_names_the_papers():
    cff = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert cff['cff-version'] == '1.2.0' and cff['license'] == 'Apache-2.0'
    assert {'arXiv:2305.00447', 'arXiv:2311.02089'} <= {
        i['value'] for r in cff['references'] for i in r['identifiers']
    }


def test_ci_runs_the_tests():
    assert os.access(ROOT / '.ci' / 'run', os.X_OK)
    assert 'make' in (ROOT / '.ci' / 'run').read_text().splitlines()[-1]


def test_readme_is_filled():
    done = run('tools/readme.py', '--check')
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path):
    "A project of one notebook and one hand-made README, in a folder of its own, in step."
    cell = lambda kind, source: {
        'cell_type': kind,
        'id': f'{len(source):08x}',
        'metadata': {},
        'source': source.splitlines(True),
        **({'outputs': [], 'execution_count': None} if kind == 'code' else {}),
    }
    book = {
        'cells': [
            cell('code', '#| default_exp one'),
            cell('markdown', '# One\n\n> A | sentence.'),
            cell('code', '#| export\nx = 1'),
        ],
        'metadata': {},
        'nbformat': 4,
        'nbformat_minor': 5,
    }
    for folder in ('nbs', 'tools', 'llmrec'):
        (tmp_path / folder).mkdir()
    for file in ('settings.ini', 'tools/sync.py', 'tools/readme.py'):
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / 'nbs' / '00_one.ipynb').write_text(json.dumps(book))
    for name in ('nbdev_export', 'nbdev_clean'):
        subprocess.run([Path(sys.executable).with_name(name)], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / 'README.md').write_text(
        ''.join(
            f'<!-- {n} -->\nold\n<!-- /{n} -->\n'
            for n in ('findings', 'expected-numbers', 'times', 'notebook-map')
        )
    )
    return tmp_path


def test_sync_is_silent_when_all_is_in_step(project):
    before = state(project)
    done = run('tools/sync.py', cwd=project)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '') and state(project) == before


def test_sync_names_what_is_out_of_step_and_changes_nothing(project):
    (project / 'llmrec' / 'one.py').write_text(
        (project / 'llmrec' / 'one.py').read_text().replace('x = 1', 'x = 2')
    )
    (project / 'llmrec' / 'stray.py').write_text('y = 1\n')
    notebook = project / 'nbs' / '00_one.ipynb'
    notebook.write_text(notebook.read_text().replace('"execution_count": null', '"execution_count": 7', 1))
    before = state(project)
    done = run('tools/sync.py', cwd=project)
    assert done.returncode == 1 and state(project) == before
    for part in (
        'llmrec/one.py differs',
        'llmrec/stray.py is exported by no notebook',
        'nbs/00_one.ipynb is not as nbdev_clean',
    ):
        assert part in done.stdout
    assert '_modidx' not in done.stdout


def long_csv(project, name, text):
    path = project / 'figures' / 'real-cpu' / f'{name}.long.csv'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def filled(project) -> str:
    assert run('tools/readme.py', cwd=project).returncode == 0
    return (project / 'README.md').read_text()


def test_readme_is_filled_from_files(project):
    assert run('tools/readme.py', '--check', cwd=project).returncode == 1
    text = filled(project)
    assert (
        '- **Start here**: [00](nbs/00_one.ipynb) One' in text
        and text.count('not yet computed') == 2
        and 'old' not in text
    )
    assert 'Nothing has been computed yet.' in text
    long_csv(
        project,
        'llamarec/table1',
        'dataset,method,metric,value,low,high,seeds,paper\n'
        'beauty,LRURec,NDCG@10,0.12345,0.1,0.2,3,0.13\nbeauty,LRURec,Recall@10,0.5,,,1,\n'
        'beauty,Random order,NDCG@10,0.06,0.05,0.07,1,\n'
        'beauty,Retriever order,NDCG@10,0.12,0.1,0.2,1,\nbeauty,LlamaRec (toy),NDCG@10,0.05,0.04,0.06,1,\n',
    )
    assert run('tools/readme.py', '--check', cwd=project).returncode == 1
    text = filled(project)
    assert (
        '| LRURec, which proposes the candidates | 0.123 [0.100, 0.200] / 0.130 |' in text
        and '0.5' not in text
    )
    assert '| LlamaRec (toy) | 0.050 [0.040, 0.060] / – |' in text
    assert 'that model is toy' in text and 'goes from 0.120 to 0.050 [0.040, 0.060] on Amazon Beauty' in text
    assert 'on Amazon Beauty (in a random order 0.060). It improves' in text
    assert run('tools/readme.py', '--check', cwd=project).returncode == 0


def test_readme_says_what_part_of_an_epoch_the_ranker_has_seen(project):
    rows = ['Random order,.06,.05,.07', 'Retriever order,.12,.1,.2', 'LlamaRec (toy),.05,.04,.06']
    lines = [f'beauty,{m},NDCG@10,{values},1,' for m, _, values in (r.partition(',') for r in rows)]
    head = 'dataset,method,metric,value,low,high,seeds,paper'
    long_csv(project, 'llamarec/table1', '\n'.join([head, *lines]) + '\n')
    assert 'epoch' not in filled(project)
    (project / 'profiles').mkdir()
    (project / 'profiles' / 'real-cpu.yaml').write_text(
        'parameters:\n  tuning: {max_steps: 10, batch_size: 4, accumulation: 2}\n'
    )
    sizes = project / 'figures' / 'real-cpu' / 'llamarec' / 'table2.csv'
    sizes.write_text('dataset,source,users,items,interactions\nA,ours,100,9,1100\nA,paper,1,1,1k\n')
    assert '80 prompts are at most 10.0% of the one epoch' in filled(project)  # 1100 - 3 * 100 rows


def test_readme_says_what_a_choice_is_worth(project):
    long_csv(
        project,
        'llamarec/table1',
        'dataset,method,metric,value,low,high,seeds,paper\n'
        'beauty,Retriever order,NDCG@10,0.12,0.1,0.2,1,\nbeauty,LlamaRec (toy),NDCG@10,0.05,0.04,0.06,1,\n',
    )
    assert 'what was published' not in filled(project)
    long_csv(
        project,
        'llamarec/choices',
        'dataset,choice,everybody,change,change_low,change_high\n'
        'Beauty,as published,0.05,,,\nBeauty,letters shuffled,0.0463,-0.0037,-0.0081,0.0006\n',
    )
    said = ' With letters shuffled, a change to what was published, it has 0.046 on Amazon Beauty (-0.004 [-0.008, +0.001]).'
    assert said in filled(project)


def test_readme_says_where_a_sample_was_asked(project):
    rows = ['Retriever order,.12,.1,.2', 'LlamaRec (toy),.05,.04,.06']
    lines = [
        f'{d},{m},NDCG@10,{values},1,'
        for d, chance in (('ml-100k', '.06,.05,.07'), ('beauty', '.03,.02,.04'))
        for m, _, values in (r.partition(',') for r in [f'Random order,{chance}', *rows])
    ]
    long_csv(
        project,
        'llamarec/table1',
        '\n'.join(['dataset,method,metric,value,low,high,seeds,paper', *lines]) + '\n',
    )
    assert 'people' not in filled(project)
    (project / 'profiles').mkdir()
    (project / 'profiles' / 'real-cpu.yaml').write_text(
        'artefacts:\n  llamarec/table1: {test_users_by_dataset: {beauty: 2000}}\n'
    )
    text = filled(project)
    assert (
        'on MovieLens (in a random order 0.060) and from 0.120' in text
        and 'to 0.050 [0.040, 0.060] on Amazon Beauty (2,000 people; in a random order 0.030)' in text
        and 'small recommender nowhere' in text
        and '; on a random order it improves on Amazon Beauty alone.' in text
    )
    assert (
        'The last three rows on Amazon Beauty are about a fixed sample of 2,000 people.' in text
        and 'rows on MovieLens' not in text
    )


def test_readme_spreads_tallrec_over_k_and_leaves_other_protocols_out(project):
    rows = [
        'movie,GRU4Rec,K=16,AUCx100,51.23,48,53.5,5,49.07,as_published,true',
        'movie,GRU4Rec,K=64,AUCx100,52,49,54,5,56,as_published,false',
        'movie,Caser,K=16,AUCx100,50,48,53.5,5,50.07,as_published,true',
        'movie,GRU4Rec,K=16,AUCx100,70,60,80,5,,corrected,',
        'movie,History like-rate,K=16,AUCx100,72.6,63.9,79.3,5,,as_published,',
        'movie,TALLRec (toy),K=64,AUCx100,55,50,60,1,,as_published,',
    ]
    long_csv(
        project,
        'tallrec/table3',
        '\n'.join(['dataset,method,setting,metric,value,low,high,seeds,paper,protocol,covered', *rows])
        + '\n',
    )
    text = filled(project)
    assert '|  | 16 examples | 64 examples |' in text
    assert (
        '| six sequential recommenders, lowest to highest | 50.0 to 51.2 / 49.1 to 50.1 | 52.0 to 52.0 / 56.0 to 56.0 |'
        in text
    )
    assert '| TALLRec (toy) | – | 55.0 [50.0, 60.0] / – |' in text and '70' not in text
    assert (
        'an AUC of 72.6 [63.9, 79.3]. Of the 3 numbers published there' in text
        and '2 lie within our intervals.' in text
    )
    assert 'on 64 examples, TALLRec has 55.0 [50.0, 60.0] with toy.' in text
    assert 'split by time' not in text
    (project / 'figures' / 'real-cpu' / 'tallrec' / 'table3.tests.csv').write_text(
        'dataset,setting,protocol,ours,against,difference,low,high\n'
        'movie,K=64,corrected,TALLRec (toy),History like-rate,9,8,10\n'
        'movie,K=64,as_published,TALLRec (toy),GRU4Rec,3,2,4\n'
        'movie,K=64,as_published,TALLRec (toy),History like-rate,-17.55,-20,-15.04\n'
    )
    assert 'with toy (-17.6 [-20.0, -15.0] compared with that share on the same rows).' in filled(project)
    rows += [
        'movie,RT (toy),K=16,AUCx100,68,57.9,76.2,1,,corrected,',
        'movie,History like-rate,K=16,AUCx100,79.4,65,90,5,,corrected,',
    ]
    long_csv(
        project,
        'tallrec/table3',
        '\n'.join(['dataset,method,setting,metric,value,low,high,seeds,paper,protocol,covered', *rows])
        + '\n',
    )
    assert (
        'close to guessing on films (50.0 to 51.2; with 64 examples 52.0 to 52.0). With films split by time and scores from shared item embeddings (protocol `corrected`), they have'
        ' 70.0 to 70.0 after 16 examples; a model tuned here without the first stage has 68.0 [57.9, 76.2], below 1 of the six'
    ) in filled(project)


def test_reading_a_table_imports_no_trainer_and_no_client():
    heavy = (
        "{'peft', 'bitsandbytes', 'accelerate', 'transformers.trainer', 'distributed', 'openai', 'sklearn'}"
    )
    code = f'import sys, llmrec.experiments.study, llmrec.experiments.tallrec_study, llmrec.llm.tuning; print(sorted({heavy} & set(sys.modules)))'
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == '[]\n', done.stdout + done.stderr
