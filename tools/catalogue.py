"""What an approximate index (faiss) costs on a large catalogue, and how much of the exact lists it finds.

    python tools/catalogue.py [--sizes 10000 100000 1000000] [--users 1000]

The exact ways, with all scores and by blocks, are measured by the artefact beyond/catalogue-size. Catalogues and
histories are made up as there; seconds are those of the processor, on one thread. Nothing is stored.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llmrec.experiments.catalogue_size import make_config, sequences
from llmrec.paths import LlmrecError
from llmrec.sequential import nearest, sasrec

PROBES = (16, 64, 256)  # lists of the index that are searched


def timed(act):
    "What `act` returns, and its seconds."
    start = time.process_time()
    out = act()
    return out, time.process_time() - start


def index_costs(items: int, n: int) -> dict:
    "Seconds to build the index; then, for each number of lists, seconds for `n` users and the share that is found."
    import faiss

    faiss.omp_set_num_threads(1)
    cfg, users = make_config([items], 1, n), np.arange(n)
    histories = sequences(np.random.default_rng([cfg.seed, items]), cfg, items, n)
    torch.manual_seed(cfg.seed)
    model = sasrec.build(items, sasrec.SASRecConfig(hidden=cfg.hidden)).requires_grad_(False)
    factors_of = partial(nearest.factors, model)
    exact, seconds = timed(lambda: nearest.recommend_blocks(factors_of, histories, users, cfg.k))
    index, built = timed(lambda: nearest.build_index(factors_of([histories[0]])))
    out = {'s, exact by blocks': seconds, 's to build': built}
    for probes in PROBES:
        found, seconds = timed(
            lambda: nearest.recommend_index(index, factors_of, histories, users, cfg.k, probes=probes)
        )
        out |= {
            f's, {probes} lists': seconds,
            f'share found, {probes} lists': nearest.found_share(found, exact),
        }
    return out


def main():
    parser = argparse.ArgumentParser(
        'catalogue', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--sizes', type=int, nargs='+', default=[10_000, 100_000, 1_000_000])
    parser.add_argument('--users', type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for items in args.sizes:
        try:
            said = ', '.join(f'{name} {value:,.2f}' for name, value in index_costs(items, args.users).items())
        except LlmrecError as e:
            sys.exit(str(e))
        print(f'{items:>9,} items: {said}', flush=True)


if __name__ == '__main__':
    main()
