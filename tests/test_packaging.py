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

def run(*command, cwd=ROOT): return subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True)

def state(root):
    "Checksums of all files below `root` that a tool could have changed."
    files = [f for folder in ('llmrec', 'nbs') for f in (root / folder).rglob('*') if f.is_file() and '__pycache__' not in f.parts]
    return {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_console_scripts_exist():
    for entry in settings()['console_scripts'].split():
        module, function = entry.split('=')[1].split(':')
        if importlib.util.find_spec(module) is None: pytest.skip(f'{module} is not written yet')
        assert callable(getattr(importlib.import_module(module), function))


def test_the_lock_pins_everything_exactly():
    lines = [line for line in (ROOT / 'requirements.lock').read_text().splitlines() if line and not line.startswith('#')]
    pins = dict(line.split('==') for line in lines)
    assert pins['nbdev'] == '2.4.14' and pins['torch'] == '2.13.0' and 'setuptools' in pins and 'llmrec' not in pins
    assert not [line for line in lines if '/' in line or '+' in line]


def test_the_version_is_one():
    cff = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert importlib.import_module('llmrec').__version__ == settings()['version'] == cff['version']


def test_citation_names_the_papers():
    cff = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert cff['cff-version'] == '1.2.0' and cff['license'] == 'Apache-2.0'
    assert {'arXiv:2305.00447', 'arXiv:2311.02089'} <= {i['value'] for r in cff['references'] for i in r['identifiers']}


def test_ci_runs_the_tests():
    assert os.access(ROOT / '.ci' / 'run', os.X_OK)
    assert 'make' in (ROOT / '.ci' / 'run').read_text().splitlines()[-1]


def test_readme_is_filled():
    done = run('tools/readme.py', '--check')
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path):
    "A project of one notebook and one hand-made README, in a folder of its own, in step."
    cell = lambda kind, source: {'cell_type': kind, 'id': f'{len(source):08x}', 'metadata': {}, 'source': source.splitlines(True),
                                 **({'outputs': [], 'execution_count': None} if kind == 'code' else {})}
    book = {'cells': [cell('code', '#| default_exp one'), cell('markdown', '# One\n\n> A | sentence.'), cell('code', '#| export\nx = 1')],
            'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5}
    for folder in ('nbs', 'tools', 'llmrec'): (tmp_path / folder).mkdir()
    for file in ('settings.ini', 'tools/sync.py', 'tools/readme.py'): shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / 'nbs' / '00_one.ipynb').write_text(json.dumps(book))
    for name in ('nbdev_export', 'nbdev_clean'): subprocess.run([Path(sys.executable).with_name(name)], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / 'README.md').write_text(''.join(f'<!-- {n} -->\nold\n<!-- /{n} -->\n' for n in ('expected-numbers', 'notebook-map')))
    return tmp_path


def test_sync_is_silent_when_all_is_in_step(project):
    before = state(project)
    done = run('tools/sync.py', cwd=project)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '') and state(project) == before


def test_sync_names_what_is_out_of_step_and_changes_nothing(project):
    (project / 'llmrec' / 'one.py').write_text((project / 'llmrec' / 'one.py').read_text().replace('x = 1', 'x = 2'))
    (project / 'llmrec' / 'stray.py').write_text('y = 1\n')
    notebook = project / 'nbs' / '00_one.ipynb'
    notebook.write_text(notebook.read_text().replace('"execution_count": null', '"execution_count": 7', 1))
    before = state(project)
    done = run('tools/sync.py', cwd=project)
    assert done.returncode == 1 and state(project) == before
    for part in ('llmrec/one.py differs', 'llmrec/stray.py is exported by no notebook', 'nbs/00_one.ipynb is not as nbdev_clean'): assert part in done.stdout
    assert '_modidx' not in done.stdout


def test_readme_is_filled_from_files(project):
    assert run('tools/readme.py', '--check', cwd=project).returncode == 1
    assert run('tools/readme.py', cwd=project).returncode == 0
    text = (project / 'README.md').read_text()
    assert '| [00](nbs/00_one.ipynb) | One | A \\| sentence. |' in text and text.count('not yet computed') == 3 and 'old' not in text
    path = project / 'figures' / 'real-cpu' / 'llamarec' / 'table1.long.csv'
    path.parent.mkdir(parents=True)
    path.write_text('dataset,method,metric,value,low,high,seeds,paper\ntoy,A,NDCG@10,0.12345,0.1,0.2,3,0.13\ntoy,B,Recall@10,0.5,,,1,\n')
    assert run('tools/readme.py', '--check', cwd=project).returncode == 1
    run('tools/readme.py', cwd=project)
    text = (project / 'README.md').read_text()
    assert '| toy | A | 0.1235 [0.1000, 0.2000] | 0.1300 | – | – | 3 |' in text and '| toy | B | – | – | 0.5000 | – | 1 |' in text
    assert run('tools/readme.py', '--check', cwd=project).returncode == 0


def test_readme_spreads_tallrec_over_k(project):
    path = project / 'figures' / 'real-cpu' / 'tallrec' / 'table3.long.csv'
    path.parent.mkdir(parents=True)
    path.write_text('dataset,method,setting,metric,value,low,high,seeds,paper,protocol\ntoy,A,K=16,AUCx100,51.234,48,53.5,5,49.07,as_published\n'
                    'toy,A,K=64,AUCx100,52,49,54,5,,as_published\ntoy,A,K=16,AUCx100,70,60,80,5,,corrected\n')
    run('tools/readme.py', cwd=project)
    text = (project / 'README.md').read_text()
    assert '| dataset | method | K=16 | paper | K=64 | paper | seeds |' in text
    assert '| toy | A | 51.23 [48, 53.50] | 49.07 | 52 [49, 54] | – | 5 |' in text and '70' not in text


def test_reading_a_table_imports_no_trainer():
    heavy = "{'peft', 'bitsandbytes', 'accelerate', 'transformers.trainer', 'distributed'}"
    code = f'import sys, llmrec.experiments.study, llmrec.experiments.tallrec_study, llmrec.llm.tuning; print(sorted({heavy} & set(sys.modules)))'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == '[]\n', done.stdout + done.stderr
