"tools/rekey.py on three invented records, a table and a stamp."
import hashlib
import importlib.util
import json

import numpy as np
import pytest

from llmrec.config import digest
from llmrec.experiments.retrieval import RetrievalConfig
from llmrec.experiments.statistics import StatisticsConfig
from llmrec.paths import root
from llmrec.records import load_record, record_key
from llmrec.sequential.bert4rec import BERT4RecConfig
from llmrec.sequential.training import TrainingConfig
from llmrec.trace import check_record

CLASSES = {'retrieval': RetrievalConfig, 'statistics': StatisticsConfig}
TRAINING = dict(seed=1, batch_size=64, lr=1e-3, weight_decay=.01, adam_eps=1e-9, clip=5., epochs=500, validate_every=500,
                patience=20, decay_log_params=True, valid_mask='none')
BERT = dict(hidden=64, blocks=2, heads=2, dropout=.2, attention_dropout=None, mask_probability=.2, last_item_share=1 / 11,
            places='start', max_length=50)    # without unmasked_share, which such records did not write
RETRIEVAL = dict(dataset='games', model='BERT4Rec', architecture=BERT, training=TRAINING, core=5, ties='item', tie_seed=0, split='leave-one-out')
OLD = [('retrieval', 'RetrievalConfig', RETRIEVAL), ('statistics', 'StatisticsConfig', dict(dataset='games', core=5)),
       ('statistics', 'StatisticsConfig', dict(dataset='games', core=3))]


@pytest.fixture
def rekey():
    spec = importlib.util.spec_from_file_location('rekey', root() / 'tools' / 'rekey.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def sha(path): return hashlib.sha256(path.read_bytes()).hexdigest()

@pytest.fixture
def old(tmp_path):
    "The invented records, and their names."
    names = []
    for experiment, cls, config in OLD:
        key = digest([cls, config], 'data', '')
        stem = tmp_path / f'{experiment}-{key}'
        np.savez_compressed(f'{stem}.npz', x=np.arange(3))
        body = dict(experiment=experiment, key=key, config=config, data='data', backbone='', metrics=dict(n=3), npz_sha256=sha(stem.with_suffix('.npz')))
        stem.with_suffix('.json').write_text(json.dumps(body, indent=1, sort_keys=True) + '\n')
        stem.with_suffix('.provenance.json').write_text(json.dumps(dict(seconds={}, record_sha256=sha(stem.with_suffix('.json')))))
        names.append(stem.name)
    return names


def test_records_get_their_new_keys_and_nothing_else_changes(rekey, old, tmp_path):
    names = rekey.rekey_records(tmp_path, CLASSES, {})
    assert list(names) == sorted(old) and len(list(tmp_path.iterdir())) == 9
    for before, after in names.items():
        assert not list(tmp_path.glob(f'{before}.*')) and list(check_record(tmp_path / f'{after}.json')) == []
        record = load_record(tmp_path / f'{after}.json')
        assert record.metrics == {'n': 3} and record.arrays['x'].tolist() == [0, 1, 2] and record.version == 1
    made = {names[n]: cfg for n, cfg in zip(old, (RetrievalConfig('games', 'BERT4Rec', BERT4RecConfig(), TrainingConfig(seed=1)),
                                                  StatisticsConfig('games'), StatisticsConfig('games', 3)))}
    for name, cfg in made.items(): assert name.rsplit('-', 1)[1] == record_key(cfg, 'data')
    assert load_record(tmp_path / f'{names[old[0]]}.json').config['architecture']['unmasked_share'] == 0


def test_a_record_whose_old_key_is_wrong_stops_everything(rekey, old, tmp_path):
    path = tmp_path / f'{old[2]}.json'
    path.write_text(path.read_text().replace('"core": 3', '"core": 4'))
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(SystemExit, match='does not have its old key'): rekey.rekey_records(tmp_path, CLASSES, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_names_in_figures_and_stamps(rekey, old, tmp_path):
    records, figures = tmp_path, tmp_path / 'figures' / 'beyond'
    figures.mkdir(parents=True)
    (figures / 't.sources.csv').write_text(f'row,source\n0,{old[0]} {old[1]}\n1,statistics-0123456789abcdef\n')
    (figures / 't.csv').write_text('a\n1\n')
    was = dict(library={'llmrec.config': 'a', 'llmrec.grid': 'b'}, notebooks={'n.ipynb': 'c'})
    now = dict(library={'llmrec.config': 'A', 'llmrec.grid': 'b'}, notebooks={'n.ipynb': 'c'})
    stamp = dict(notebook='n.ipynb', records={n: sha(records / f'{n}.json') for n in old}, files={n: sha(figures / n) for n in ('t.sources.csv', 't.csv')},
                 inputs=dict(library=was['library'], notebook='c'), seconds=1.)
    (figures / 't.json').write_text(json.dumps(stamp))
    names = rekey.rekey_records(records, CLASSES, {})
    assert [p.name for p in rekey.rename_in(figures.parent, names)] == ['t.json', 't.sources.csv']
    rekey.restamp(figures / 't.json', records, was, now)
    new = json.loads((figures / 't.json').read_text())
    assert new['records'] == {names[n]: sha(records / f'{names[n]}.json') for n in old}
    assert new['files'] == {n: sha(figures / n) for n in ('t.sources.csv', 't.csv')} and new['seconds'] == 1
    assert new['inputs']['library'] == now['library']
    assert (figures / 't.sources.csv').read_text() == f'row,source\n0,{names[old[0]]} {names[old[1]]}\n1,statistics-0123456789abcdef\n'
    with pytest.raises(SystemExit, match='stale before'): rekey.restamp(figures / 't.json', records, was, now)
