"The wheel, installed in an environment of its own and used away from the checkout."

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
USE = '''
import sys
from pathlib import Path
import llmrec
from llmrec.data.datasets import load_dataset
from llmrec.recommend.recommender import Recommender
assert Path(llmrec.__file__).is_relative_to(sys.prefix), llmrec.__file__
quick = dict(max_steps=1, eval_steps=1, warmup_steps=0, batch_size=2)
r = Recommender.fit(load_dataset('films'), backbone='miniature', folder='work', tuning=quick, training=dict(epochs=1, validate_every=5, seed=0),
                    max_valid_users=2, test_users=20, progress=False)
r.save('mine')
print(r.recommend(r.users[:2], k=5).write_csv(), end='')
'''
LOAD = '''
import torch
from llmrec.recommend.ask import prompt_of
from llmrec.recommend.recommender import Recommender
from peft import AutoPeftModelForCausalLM
r = Recommender.load('moved')
print(r.recommend(r.users[:2], k=5).write_csv(), end='')
ids = torch.tensor([prompt_of(r, r.people[0], r.people[1][:20])[0]])
alone = AutoPeftModelForCausalLM.from_pretrained('moved/adapter').eval()
with torch.no_grad(): assert (alone(ids).logits - r.backbone.model(ids).logits).abs().max() < 1e-5
'''


def contents(folder):
    "Checksum of every file below `folder`."
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture(scope='module')
def away(tmp_path_factory):
    "A folder with an environment that holds the wheel, and sees the other packages of this one without its llmrec."
    folder = tmp_path_factory.mktemp('away')
    outside = {
        k: v for k, v in os.environ.items() if k != 'PYTHONPATH'
    }  # else pip finds the checkout's llmrec and installs nothing

    def do(*command):
        subprocess.run([str(c) for c in command], check=True, capture_output=True, cwd=folder, env=outside)

    source = folder / 'source'
    do('git', 'clone', '-q', '--no-hardlinks', '--depth', '1', f'file://{ROOT}', source)
    for name in ('settings.ini', 'setup.py'):
        (source / name).write_bytes((ROOT / name).read_bytes())  # what is not committed yet, too
    do('cp', '-r', ROOT / 'llmrec', source)
    do(
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '-q',
        '--no-deps',
        '--no-index',
        '--no-build-isolation',
        '-w',
        folder,
        source,
    )
    do(sys.executable, '-m', 'venv', '--without-pip', folder / 'env')
    do(
        sys.executable,
        '-m',
        'pip',
        '-q',
        '--python',
        folder / 'env/bin/python',
        'install',
        '--no-deps',
        '--no-index',
        *folder.glob('*.whl'),
    )
    (site,) = folder.glob('env/lib/python*/site-packages')
    (site / 'others.pth').write_text(
        sysconfig.get_path('purelib') + '\n'
    )  # a path only; .pth files in there are not read
    do('rm', '-rf', source)
    return folder


def run(away, *command):
    "The finished command, run in the folder with nothing of this checkout in its environment."
    env = {k: v for k, v in os.environ.items() if not k.startswith(('LLMREC', 'PYTHONPATH'))}
    env |= dict(
        PYTHONDONTWRITEBYTECODE='1',
        XDG_CACHE_HOME=str(away / 'cache'),
        HF_HUB_OFFLINE='1',
        PATH=f"{away}/env/bin:{env['PATH']}",
    )
    return subprocess.run([str(c) for c in command], cwd=away, env=env, capture_output=True, text=True)


def test_fit_save_move_and_load_away_from_the_checkout(away):
    (site,) = away.glob('env/lib/python*/site-packages')
    before = contents(site)
    assert any(p.name == 'model.safetensors' for p in before)  # the miniature Llama came along
    first = run(away, 'python', '-c', USE)
    assert first.returncode == 0 and len(first.stdout.splitlines()) == 11, first.stderr
    (away / 'mine').rename(away / 'moved')
    again = run(away, 'python', '-c', LOAD)
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    asked = run(
        away, 'llmrec_recommend', 'moved', '--all', '-k', '1', '--retriever-only', '--out', 'lists.csv'
    )
    assert asked.returncode == 0 and len((away / 'lists.csv').read_text().splitlines()) > 100, asked.stderr
    assert contents(site) == before
    assert sorted(p.name for p in away.iterdir() if p.is_dir()) == ['cache', 'env', 'moved', 'work']


@pytest.mark.parametrize(
    'command',
    [
        ('llmrec_reproduce', 'llamarec/table2'),
        ('llmrec_verify',),
        ('llmrec_bundle',),
        ('llmrec_trace', 'table2.csv'),
    ],
    ids=lambda c: c[0],
)
def test_what_makes_the_tables_says_that_it_needs_the_repository(away, command):
    done = run(away, *command)
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1, done.stderr
    assert 'needs the repository' in done.stderr or command[0] in (
        'llmrec_trace',
        'llmrec_verify',
    )  # these miss artefacts


def test_the_commands_explain_themselves(away):
    for name in ('llmrec_fit', 'llmrec_recommend', 'llmrec_score', 'llmrec_serve'):
        assert run(away, name, '--help').returncode == 0
