"""The same race: public implementations beside ours, on our split of a dataset, each in an environment of its own.

    python tools/peers.py install FOLDER          makes FOLDER/rectools, FOLDER/recbole and FOLDER/lrurec
    python tools/peers.py race FOLDER --try       a few users and seconds, nothing is recorded
    python tools/peers.py race FOLDER             the settings of artefact beyond/peers of a profile, recorded

Nobody else's code is part of this repository: RecTools and RecBole come from PyPI, LRURec's code from its repository
(--lrurec names another copy). FOLDER must be outside the project. Every contestant runs in a process of its own, on one
thread; a race that was interrupted goes on where it stopped. `llmrec.experiments.peers` says what is compared; notebook 82a shows the result.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = 'torch==2.13.0'
COMMON = [TORCH, 'numpy==1.26.4', 'pandas==2.1.4', 'tqdm']
PACKAGES = {  # RecBole's own list asks for ray, which only its search for settings uses
    'rectools': [[TORCH, 'rectools[torch]==0.19.0']],
    'recbole': [
        [
            *COMMON,
            'scipy==1.11.4',
            'scikit-learn==1.3.2',
            'colorlog==4.7.2',
            'colorama==0.4.4',
            'pyyaml',
            'tensorboard',
            'thop',
            'tabulate',
            'plotly',
            'texttable',
            'psutil',
        ],
        ['--no-deps', 'recbole==1.2.1'],
    ],
    'lrurec': [[*COMMON, 'tensorboard', 'scipy==1.11.4']],
}
LRUREC, COMMIT = 'https://github.com/yueqirex/LRURec', 'e02a559'


def install(folder, lrurec):
    "One virtual environment for each project."
    for name, steps in PACKAGES.items():
        python = folder / name / 'bin' / 'python'
        if not python.exists():
            subprocess.run([sys.executable, '-m', 'venv', str(folder / name)], check=True)
        for packages in steps:
            subprocess.run([str(python), '-m', 'pip', 'install', '-q', *packages], check=True)
    code = folder / 'LRURec'
    if not code.exists():
        subprocess.run(['git', 'clone', '-qn', lrurec, str(code)], check=True)
        files = ['config.py', 'dataloader', 'datasets', 'model', 'trainer']  # its code, not its data
        subprocess.run(['git', '-C', str(code), 'checkout', '-q', COMMIT, '--', *files], check=True)


# What follows runs in the environments of the others: only what they have may be imported.


def peak_mib():
    "MiB that this process has held at most; not what its parent held, which getrusage would count on Linux."
    status = Path('/proc/self/status')
    if status.exists():
        return int(status.read_text().split('VmHWM:')[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == 'darwin' else 2**10)


class Watch:
    "Counts and times updates; `over` when the seconds are spent."

    def __init__(self, most):
        self.most, self.wall, self.cpu = most, [], []

    def start(self):
        self.last = time.perf_counter(), time.process_time()

    def tick(self):
        now = time.perf_counter(), time.process_time()
        self.wall.append(now[0] - self.last[0])
        self.cpu.append(now[1] - self.last[1])
        self.last = now

    @property
    def over(self):
        return sum(self.cpu) >= self.most


class Limited:
    "A loader that stops when the watch is over; everything else is the loader's own."

    def __init__(self, loader, watch):
        self.loader, self.watch = loader, watch

    def __len__(self):
        return len(self.loader)

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __iter__(self):
        self.watch.start()
        for batch in self.loader:
            yield batch
            self.watch.tick()
            if self.watch.over:
                return


def sequences(file, name):
    import numpy as np

    offsets, items = file[f'{name}_offsets'], file[f'{name}_items']
    return [items[a:b] for a, b in zip(offsets[:-1], offsets[1:])]


def best(scores, histories, k=20):
    "The k best items of each row, those of the history left out; item 0 is padding."
    import torch

    scores[:, 0] = -torch.inf
    for row, seen in zip(scores, histories):
        row[torch.as_tensor(seen)] = -torch.inf
    return scores.topk(k, 1).indices.numpy()


def rectools(model, data, cfg, watch):
    "RecTools' own Dataset, its lightning loop, its `recommend`."
    import numpy as np
    import pandas as pd
    import pytorch_lightning as pl
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import BERT4RecModel, SASRecModel

    class Clock(pl.Callback):
        def __deepcopy__(self, memo):
            return self  # RecTools trains with a copy of its trainer

        def on_train_start(self, trainer, module):
            self.steps = trainer.num_training_batches
            watch.start()

        def on_train_batch_end(self, trainer, *_):
            watch.tick()
            if watch.over:
                trainer.should_stop = True

    clock = Clock()
    pl.seed_everything(cfg['seed'], verbose=False)

    def trainer():
        return pl.Trainer(
            max_epochs=cfg['epochs'],
            accelerator='cpu',
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
        )

    def dataset(seqs):
        lengths = [len(s) for s in seqs]
        place = np.concatenate([np.arange(n) for n in lengths])
        frame = {
            Columns.User: np.repeat(np.arange(len(seqs)), lengths),
            Columns.Item: np.concatenate(seqs),
            Columns.Weight: 1,
            Columns.Datetime: pd.Timestamp('2000-01-01') + pd.to_timedelta(place, unit='D'),
        }
        return Dataset.construct(pd.DataFrame(frame))

    kind = {'SASRec': SASRecModel, 'BERT4Rec': BERT4RecModel}[model]
    more = {} if model == 'SASRec' else dict(mask_prob=cfg['mask'])
    m = kind(
        n_factors=cfg['width'],
        n_blocks=cfg['blocks'],
        n_heads=cfg['heads'],
        dropout_rate=cfg['dropout'],
        lr=cfg['lr'],
        session_max_len=cfg['max_length'],
        batch_size=cfg['batch_size'],
        epochs=cfg['epochs'],
        loss='softmax',
        get_trainer_func=trainer,
        recommend_torch_device='cpu',
        **more,
    )
    m.fit(dataset(sequences(data, 'train')))
    memory, users = peak_mib(), data['users']
    histories = sequences(data, 'history')
    found = m.recommend(users, dataset(histories), k=20, filter_viewed=True)
    lists = np.zeros((len(users), 20), np.int64)
    row = pd.Series(np.arange(len(users)), users)[found[Columns.User]].to_numpy()
    lists[row, found[Columns.Rank].to_numpy() - 1] = found[Columns.Item].to_numpy()
    return lists, clock.steps, memory


def recbole(model, data, cfg, watch):
    "RecBole's dataset, loaders and trainer, fed with a file of interactions; every prefix is an example."
    import numpy as np
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    work = Path(cfg['work']) / f'recbole-{model}'
    (work / 'race').mkdir(parents=True, exist_ok=True)
    with open(work / 'race' / 'race.inter', 'w') as out:
        out.write('user_id:token\titem_id:token\ttimestamp:float\n')
        for u, (seen, target) in enumerate(zip(sequences(data, 'history'), data['truth'])):
            for t, i in enumerate([*seen, target]):
                out.write(f'{u}\t{i}\t{t}\n')
    common = dict(
        hidden_size=cfg['width'],
        n_layers=cfg['blocks'],
        n_heads=cfg['heads'],
        hidden_dropout_prob=cfg['dropout'],
        attn_dropout_prob=cfg['dropout'],
        inner_size=4 * cfg['width'],
        mask_ratio=cfg['mask'],
    )
    narm = dict(
        embedding_size=cfg['width'], hidden_size=cfg['narm_hidden'], dropout_probs=[cfg['dropout']] * 2
    )
    config = Config(
        model=model,
        dataset='race',
        config_dict=dict(
            data_path=str(work),
            load_col={'inter': ['user_id', 'item_id', 'timestamp']},
            loss_type='CE',
            train_neg_sample_args=None,
            MAX_ITEM_LIST_LENGTH=cfg['max_length'],
            train_batch_size=cfg['batch_size'],
            eval_batch_size=256,
            learning_rate=cfg['lr'],
            eval_args=dict(split={'LS': 'valid_and_test'}, order='TO', group_by='user', mode='full'),
            use_gpu=False,
            gpu_id='',
            show_progress=False,
            seed=cfg['seed'],
            checkpoint_dir=str(work),
            state='WARNING',
            **(narm if model == 'NARM' else common),
        ),
    )
    init_seed(config['seed'], config['reproducibility'])
    dataset = create_dataset(config)
    train, _, test = data_preparation(config, dataset)
    m = get_model(model)(config, train._dataset).to('cpu')
    trainer = get_trainer(config['MODEL_TYPE'], model)(config, m)
    loader = Limited(train, watch)
    for epoch in range(cfg['epochs']):
        trainer._train_epoch(loader, epoch)
        if watch.over:
            break
    memory, histories, users = peak_mib(), sequences(data, 'history'), data['users']
    token = dataset.field2id_token
    known, lists, m = np.zeros(m.n_items, np.int64), np.zeros((len(users), 20), np.int64), m.eval()
    known[1:] = token['item_id'][1:].astype(np.int64)
    number = np.zeros(known.max() + 1, np.int64)
    number[known] = np.arange(len(known))
    where = {int(u): i for i, u in enumerate(users)}
    with torch.no_grad():
        for interaction, *_ in test:
            own = token['user_id'][interaction['user_id'].numpy()].astype(np.int64)
            keep = [i for i, u in enumerate(own) if int(u) in where]
            if not keep:
                continue
            scores = m.full_sort_predict(interaction[torch.tensor(keep)]).view(len(keep), -1)
            found = best(scores, [number[histories[own[i]]] for i in keep])
            lists[[where[int(own[i])] for i in keep]] = known[found]
    return lists, len(train), memory


def lrurec(model, data, cfg, watch):
    "LRURec's dataset, model and trainer."
    import torch

    sys.path.insert(0, str(Path(cfg['folder']) / 'LRURec'))
    sys.argv = [
        'train.py',
        '--dataset_code',
        'beauty',
        '--device',
        'cpu',
        '--num_epochs',
        str(cfg['epochs']),
        '--lr',
        str(cfg['lr']),
        '--weight_decay',
        '0.01',
        '--val_strategy',
        'epoch',
        '--bert_hidden_units',
        str(cfg['width']),
        '--bert_dropout',
        str(cfg['dropout']),
        '--bert_attn_dropout',
        str(cfg['dropout']),
    ]
    work = Path(cfg['work']) / 'lrurec'
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    import datasets  # noqa: F401  before config, which it imports and which imports it
    from config import args, set_template
    from dataloader.sas import SASTrainDataset
    from model.lru import LRU
    from trainer.lru import LRUTrainer

    set_template(args)
    args.train_batch_size, args.num_items, args.bert_max_len = (
        cfg['batch_size'],
        int(data['n_items']),
        cfg['max_length'],
    )
    args.bert_num_blocks, args.device = cfg['blocks'], 'cpu'
    torch.manual_seed(cfg['seed'])
    train = {u: s.tolist() for u, s in enumerate(sequences(data, 'train'))}
    rows = SASTrainDataset(args, train, args.bert_max_len, args.sliding_window_size, None)
    loader = torch.utils.data.DataLoader(rows, batch_size=args.train_batch_size, shuffle=True)
    m, limited = LRU(args), Limited(loader, watch)
    trainer = LRUTrainer(args, m, limited, None, None, str(work), False)
    for epoch in range(cfg['epochs']):
        trainer.train_one_epoch(epoch, 0)
        if watch.over:
            break
    memory, histories, users = peak_mib(), sequences(data, 'history'), data['users']
    m.eval()
    lists = []
    with torch.no_grad():
        for start in range(0, len(users), 256):
            seen = [histories[u] for u in users[start : start + 256]]
            padded = torch.zeros(len(seen), args.bert_max_len, dtype=torch.long)
            for row, s in zip(padded, seen):
                row[-len(s[-args.bert_max_len :]) :] = torch.as_tensor(s[-args.bert_max_len :])
            lists.append(best(m(padded)[0][:, -1], seen))
    import numpy as np

    return np.concatenate(lists), len(loader), memory


def child(project, model, settings):
    "One contestant; writes its lists and prints what was measured."
    import numpy as np
    import torch

    torch.set_num_threads(1)
    cfg = json.loads(Path(settings).read_text())
    if project == 'ours':
        sys.path.insert(0, str(ROOT))
        from llmrec.experiments.peers import our_child

        said, arrays = our_child(cfg, model, peak_mib)
        np.savez(f"{cfg['out']}.npz", **arrays)
        return Path(f"{cfg['out']}.json").write_text(json.dumps(said))
    data, watch = np.load(cfg['data']), Watch(cfg['seconds'])
    run = {'RecTools': rectools, 'RecBole': recbole, 'LRURec': lrurec}[project]
    lists, steps, memory = run(model, data, cfg, watch)
    np.savez(f"{cfg['out']}.npz", lists=lists, wall=watch.wall, cpu=watch.cpu)
    Path(f"{cfg['out']}.json").write_text(
        json.dumps(dict(steps=steps, peak_mib=memory, torch=torch.__version__))
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    todo = parser.add_subparsers(dest='what', required=True)
    for name in ('install', 'race'):
        sub = todo.add_parser(name)
        sub.add_argument('folder', type=Path, help='of the environments, outside the project')
        if name == 'install':
            sub.add_argument('--lrurec', default=LRUREC, help='where its code is cloned from')
    sub.add_argument('--profile', default='real-cpu', help='whose settings and records')
    sub.add_argument('--try', action='store_true', dest='trial', help='a few users and seconds, not recorded')
    sub.add_argument('--only', nargs='+', help='peers by name, with --try')
    sub = todo.add_parser('child')
    for name in ('project', 'model', 'settings'):
        sub.add_argument(name)
    args = parser.parse_args()
    if args.what == 'child':
        return child(args.project, args.model, args.settings)
    args.folder = args.folder.resolve()
    if args.folder.is_relative_to(ROOT):
        sys.exit(f'{args.folder} lies in the project; name a folder outside it.')
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.what == 'install':
        return install(args.folder, args.lrurec)
    sys.path.insert(0, str(ROOT))
    from llmrec.config import from_dict
    from llmrec.experiments.peers import PeersConfig, race
    from llmrec.repro.profiles import load_profile

    cfg = from_dict(PeersConfig, load_profile(args.profile)['artefacts'].get('beyond/peers', {}))
    race(cfg, args.folder, args.profile, Path(__file__).resolve(), args.trial, args.only)


if __name__ == '__main__':
    main()
