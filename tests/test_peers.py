"The race beside public implementations: what is handed over, what is read back, and one measure for all."

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmrec.data.interactions import from_lists, leave_one_out
from llmrec.experiments import peers
from llmrec.experiments.peers import PEERS, PeersConfig
from llmrec.paths import LlmrecError

ROOT = Path(__file__).resolve().parent.parent
FAKE = '''
import json, sys
import numpy as np
cfg = json.load(open(sys.argv[4]))
if cfg.get('fails'): sys.exit('no memory left')
open(cfg['count'], 'a').write('x')
np.savez(cfg['out'] + '.npz', lists=[[1, 2]])
open(cfg['out'] + '.json', 'w').write(json.dumps({'steps': 7}))
'''


def test_places_agree_with_a_search_in_each_list():
    rng = np.random.default_rng(0)
    lists = np.array([rng.permutation(30)[:10] + 1 for _ in range(200)])
    truth = rng.integers(1, 31, 200)
    by_hand = [list(row).index(t) + 1 if t in row else 0 for row, t in zip(lists.tolist(), truth)]
    assert peers.places(lists, truth).tolist() == by_hand and 0 in by_hand and max(by_hand) == 10


def test_contestants_train_on_nothing_but_the_training_part(tmp_path):
    split = leave_one_out(from_lists([[1, 2, 3, 4], [4, 3, 2], [2, 1, 4, 3, 5]], 5))
    peers.hand_over(PeersConfig(users=2), split, tmp_path / 'data.npz')
    with np.load(tmp_path / 'data.npz') as data:
        assert data['train_items'].tolist() == [1, 2, 4, 2, 1, 4] and data['train_offsets'].tolist() == [
            0,
            2,
            3,
            6,
        ]
        assert data['history_items'].tolist() == [1, 2, 3, 4, 3, 2, 1, 4, 3] and data['truth'].tolist() == [
            4,
            2,
            5,
        ]
        assert len(data['users']) == 2 and data['n_items'] == 5


def test_a_contestant_runs_once_for_its_settings_and_its_failure_is_named(tmp_path):
    script, python = tmp_path / 'fake.py', Path(sys.executable)
    script.write_text(FAKE)
    settings = dict(out=str(tmp_path / 'one'), count=str(tmp_path / 'count'))
    for _ in range(2):
        said, arrays = peers.start(python, script, 'RecBole', 'NARM', settings)
    assert (
        said == {'steps': 7}
        and arrays['lists'].tolist() == [[1, 2]]
        and (tmp_path / 'count').read_text() == 'x'
    )
    peers.start(python, script, 'RecBole', 'NARM', settings | {'seconds': 1})
    assert (tmp_path / 'count').read_text() == 'xx'
    with pytest.raises(LlmrecError, match='RecBole NARM failed: no memory left'):
        peers.start(python, script, 'RecBole', 'NARM', settings | {'fails': True})


def test_every_peer_has_a_counterpart_with_the_settings_of_the_race():
    cfg = PeersConfig('films', width=32, narm_hidden=48, dropout=0.3, batch_size=8, max_length=20, lr=0.01)
    for _, _, method in PEERS.values():
        run = peers.our_config(cfg, method)
        arch = run.architecture
        assert (arch.dropout, arch.max_length, run.training.batch_size, run.training.lr) == (0.3, 20, 8, 0.01)
        assert 32 in (arch.hidden, getattr(arch, 'embedding', None))


def test_the_environments_stay_outside_the_project():
    done = subprocess.run(
        [sys.executable, 'tools/peers.py', 'install', 'nbs/here'], cwd=ROOT, capture_output=True, text=True
    )
    assert (
        done.returncode == 1 and 'lies in the project' in done.stderr and not (ROOT / 'nbs' / 'here').exists()
    )
