"""The longer search of LlamaRec's Table 1, which the artefact shows where it is recorded and does not start.

    python tools/longer_search.py --list                               the settings of each dataset, and what is recorded
    python tools/longer_search.py games SASRec                         all settings, then all seeds of the chosen one
    python tools/longer_search.py games SASRec --settings 5 --seeds 0 1 2

The settings are those of `llamarec/table1` in the profile; records go to data/records/<profile>. A run that was interrupted
goes on from its last validation. $LLMREC_JOBS runs stand side by side, one thread each.
"""

import argparse
import os
from dataclasses import fields, replace

from llmrec.experiments import longer, retrieval
from llmrec.experiments.study import LlamaRecStudy, best_setting, search_records, study
from llmrec.repro.profiles import parameters
from llmrec.runs.grid import run_all


def table1(profile: str) -> tuple[LlamaRecStudy, dict]:
    "The study of Table 1 and its longer searches, by dataset."
    values = parameters('llamarec/table1', profile, {})
    s = study(**{k: v for k, v in values.items() if k in {f.name for f in fields(LlamaRecStudy)}})
    return s, longer.longer_searches(s, values.get('longer', {}))


def tell(found: list) -> None:
    "A line for every trial."
    best = longer.chosen(found)
    for t in found:
        text = (
            'not run'
            if t.record is None
            else (
                f"validation {t.valid:.4f}, test Recall@10 {t.record.metrics['test']['Recall@10']:.4f}, "
                f"NDCG@10 {t.record.metrics['test']['NDCG@10']:.4f}"
            )
        )
        mark = ', chosen' if t is best.get((t.dataset, t.method)) else ''
        print(f'{t.dataset} {t.method} ({longer.said(t.setting)}): {text}{mark}', flush=True)


def compute(
    s: LlamaRecStudy,
    search: longer.LongerSearch,
    dataset: str,
    method: str,
    which: list[int],
    seeds: list[int],
) -> None:
    "Some settings with some seeds."
    start = best_setting(s, dataset, method, search_records(replace(s, datasets=(dataset,)), (method,)))
    settings = longer.settings_of(search, method)
    configs = [
        longer.longer_config(s, search, dataset, method, seed, start | settings[i])
        for i in which
        for seed in seeds
    ]
    run_all(retrieval.run, configs, s.profile, 'longer search')


def main() -> None:
    p = argparse.ArgumentParser('longer_search', description=__doc__.split('\n')[0])
    p.add_argument('dataset', nargs='?')
    p.add_argument('method', nargs='?')
    p.add_argument(
        '--settings', type=int, nargs='*', help='numbers of settings in the list of the method, from 0; all'
    )
    p.add_argument(
        '--seeds', type=int, nargs='*', help='seeds; the first one, and the others for the chosen setting'
    )
    p.add_argument('--profile', default='real-cpu')
    p.add_argument('--list', action='store_true', help='print settings and records, and run nothing')
    args = p.parse_args()
    s, searches = table1(args.profile)
    if args.list or not args.method:
        for d in [args.dataset] if args.dataset else searches:
            for m in longer.trained(s, d):
                for i, setting in enumerate(longer.settings_of(searches[d], m)):
                    print(d, m, i, longer.said(setting))
        return tell(longer.trials(s, searches))
    if args.dataset not in searches:
        p.error(f"no longer search on {args.dataset!r}; there is one on {', '.join(searches)}")
    search = searches[args.dataset]
    if args.method not in longer.trained(s, args.dataset):
        p.error(f"unknown method {args.method!r}; trained: {', '.join(longer.trained(s, args.dataset))}")
    settings = longer.settings_of(search, args.method)
    which = range(len(settings)) if args.settings is None else args.settings
    if any(not 0 <= i < len(settings) for i in which):
        p.error(f'settings are numbered 0 to {len(settings) - 1}')
    compute(s, search, args.dataset, args.method, list(which), args.seeds or [s.seeds_of(args.dataset)[0]])
    found = longer.trials_of(s, search, args.dataset, args.method, False)
    if args.settings is None:
        longer.longer_rows(s, found, compute=True)
    tell(found)


if __name__ == '__main__':
    os.environ.setdefault('LLMREC_JOBS', str(os.cpu_count()))
    main()
