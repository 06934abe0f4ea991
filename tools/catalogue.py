"""What a training step and retrieval cost as the catalogue grows, each the plain way and the way for large catalogues.

    python tools/catalogue.py [--sizes 1000 10000 100000 1000000] [--steps 20] [--users 1000] [--index]

Every measurement runs in a process of its own, on one thread, on made-up data; seconds are those of the processor,
so that what else runs on the machine counts little. Nothing is stored. `--index` adds the approximate index (faiss).
"""
import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WIDTH, BATCH, NEGATIVES, K = 64, 64, 256, 20


def catalogue(items, sequences, seed=42):
    import numpy as np
    from llmrec.data.interactions import from_lists
    rng = np.random.default_rng([seed, items])
    return from_lists([rng.integers(1, items + 1, rng.integers(5, 16)) for _ in range(sequences)], items)


def training(how, items, n):
    "Median milliseconds of a step and the MiB that training held at most."
    import numpy as np
    import torch
    from llmrec.runs.records import watch_memory
    from llmrec.sequential import sasrec
    from llmrec.sequential.lrurec import windows
    from llmrec.sequential.rows import row_step
    from llmrec.sequential.training import TrainingConfig, optimiser, row_optimiser, step
    arch = sasrec.SASRecConfig(hidden=WIDTH, loss='sampled', negatives=NEGATIVES)
    data, cfg = catalogue(items, BATCH * (n + 3)), TrainingConfig(updates=how)
    spans, seconds = windows(data, arch.max_length), []
    with watch_memory(.002) as seen:
        model = sasrec.build(items, arch)
        if how == 'rows': update, opt, loss = row_step, row_optimiser(model, cfg), sasrec.make_row_loss(data, arch)
        else: update, opt, loss = step, optimiser(model, cfg), sasrec.make_loss(data, arch)
        for i in range(0, len(spans), BATCH):
            start = time.process_time()
            update(model, opt, loss, spans[i:i + BATCH], 5.)
            seconds.append(time.process_time() - start)
    return {'ms a step': 1000 * float(np.median(seconds[3:])), 'MiB': (seen.peak - seen.before) / 2**20}


def retrieval(how, items, n):
    "Seconds for 1000 users, and what of the exact lists was found."
    import numpy as np
    import torch
    from llmrec.sequential import nearest, sasrec
    from llmrec.sequential.candidates import recommend
    torch.manual_seed(0)
    model, histories = sasrec.build(items, sasrec.SASRecConfig(hidden=WIDTH)).requires_grad_(False), catalogue(items, n)
    def factors_of(past): return nearest.factors(model, past)
    def timed(act):
        start = time.process_time()
        out = act()
        return out, (time.process_time() - start) * 1000 / n
    users = np.arange(n)
    if how == 'plain': return {'s for 1000 users': timed(lambda: recommend(lambda past: sasrec.score(model, past), histories, users, K))[1]}
    exact, seconds = timed(lambda: nearest.recommend_blocks(factors_of, histories, users, K))
    if how == 'blocks': return {'s for 1000 users': seconds}
    import faiss
    faiss.omp_set_num_threads(1)
    index, built = timed(lambda: nearest.build_index(factors_of([histories[0]])))
    out = {'s to build': built * n / 1000}
    for probes in (16, 64, 256):
        found, seconds = timed(lambda: nearest.recommend_index(index, factors_of, histories, users, K, probes=probes))
        out |= {f's, {probes} lists': seconds, f'found, {probes} lists': nearest.found_share(found, exact)}
    return out


def apart(what, how, items, n):
    "One measurement in a process of its own."
    done = subprocess.run([sys.executable, __file__, '--child', what, how, str(items), str(n)], capture_output=True, text=True)
    if done.returncode: sys.exit(f'{what}, {how}, {items} items: {(done.stderr.strip().splitlines() or ["killed, probably for want of memory"])[-1]}')
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', type=int, nargs='+', default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--users', type=int, default=1000)
    parser.add_argument('--index', action='store_true', help='also the approximate index')
    parser.add_argument('--child', nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        import torch
        torch.set_num_threads(1)
        what, how, items, n = args.child
        return print(json.dumps({'training': training, 'retrieval': retrieval}[what](how, int(items), int(n))))
    if min(*args.sizes, args.steps, args.users, 100) < 1 or min(args.sizes) < 100: sys.exit('A catalogue needs 100 items, and steps and users must be at least 1.')
    plans = [('training', how, args.steps) for how in ('dense', 'rows')] + [('retrieval', how, args.users) for how in ('plain', 'blocks')]
    if args.index: plans.append(('retrieval', 'index', args.users))
    for items in args.sizes:
        for what, how, n in plans:
            said = ', '.join(f'{name} {value:,.2f}' for name, value in apart(what, how, items, n).items())
            print(f'{items:>9,} items, {what}, {how}: {said}', flush=True)


if __name__ == '__main__': main()
