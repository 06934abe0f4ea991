"""The language-model runs of the real data, in the order of their worth: one part after another, each run recorded when it is done.

    python tools/long_runs.py --list
    python tools/long_runs.py movie-rates movie-64

The settings are those of `tools/long_runs.yaml`, which becomes `profiles/real-cpu.yaml` when all runs are in: until then
the tables of real-cpu are made with the profile as it is. Run it in a worktree of its own (`git worktree add`), so that
work on the library cannot change a run half-way; records go to data/records/real-cpu there and are copied from there.
A part that was interrupted goes on from its last checkpoint. $LLMREC_JOBS runs stand side by side, one thread each.
"""

import argparse
import os
from dataclasses import fields, replace
from pathlib import Path

import yaml

from llmrec.experiments import readings, systems, tallrec
from llmrec.experiments import study as llamarec_study
from llmrec.experiments.tallrec_study import TallrecStudy, chosen_rates, llm_run, study
from llmrec.runs.grid import run_all
from llmrec.runs.records import Failed
from llmrec.systems import p5

PROFILE = 'real-cpu'
SETTINGS = yaml.safe_load(Path(__file__).with_suffix('.yaml').read_text(encoding='utf-8'))
TUNED = ('TALLRec', 'RT')
SYSTEM_ROWS = ('P5', *systems.numbered({}, p5.NUMBERINGS), 'POD', 'GPT4Rec', 'PALR', 'RecMind')


def settings(**changes) -> TallrecStudy:
    "The study that `long_runs.yaml` describes for TALLRec, with `changes`."
    values = SETTINGS['parameters'] | SETTINGS['papers']['tallrec'] | dict(profile=PROFILE) | changes
    return study(**{k: v for k, v in values.items() if k in {f.name for f in fields(TallrecStudy)}})


def protocols(domain: str) -> list[TallrecStudy]:
    "As published with the loss of the equations and with that of the scripts; films corrected, too."
    both = [settings(datasets=[domain], loss=loss) for loss in ('answer', 'preset')]
    return both + ([settings(datasets=[domain], protocol='corrected')] if domain == 'movie' else [])


def say(run, configs: list, what: str) -> None:
    "Compute what is missing of `configs`, and print a line for each."
    for cfg, record in zip(configs, run_all(run, configs, PROFILE, what)):
        r = getattr(cfg, 'run', cfg)
        about = f'{what}: {r.protocol}, {r.variant}, K={r.k}, draw {r.seed}, lr {r.rec.tuning.lr:g}, loss on {r.rec.prompt.loss}'
        if isinstance(record, Failed):
            print(f'{about}: FAILED, {record.error}', flush=True)
        elif run is tallrec.run:
            print(
                f"{about}: validation {record.metrics['valid_auc']}, test {record.metrics['auc']}", flush=True
            )
        else:
            print(f'{about}: {record.name}', flush=True)


def rates(s: TallrecStudy) -> None:
    (d,) = s.datasets
    say(
        tallrec.run,
        [llm_run(s, (d,), v, s.rate_k, s.llm_seeds[0], rate) for rate in s.rates for v in TUNED],
        f'{d} rates',
    )


def draws(s: TallrecStudy, k: int) -> list[tallrec.TallrecRun]:
    "The runs of K rows, each variant with the rate that validation has chosen."
    (d,) = s.datasets
    best = chosen_rates(replace(s, variants=TUNED), [(d,)])
    return [llm_run(s, (d,), v, k, seed, best[(d,), v]) for seed in s.llm_seeds for v in TUNED]


def read(s: TallrecStudy, k: int) -> None:
    "Ask the runs of K rows again under every change."
    rows = SETTINGS['artefacts']['beyond/what-is-read']['reading_rows']
    (d,) = s.datasets
    say(
        readings.run,
        [readings.ReadingRun(r, d, seed=r.seed, rows=rows) for r in draws(s, k) if r.variant == 'TALLRec'],
        f'{d} read',
    )


def table4_study(**changes) -> tuple[llamarec_study.LlamaRecStudy, dict]:
    "The study of LlamaRec's Table 4, with `changes`, and all of the table's parameters."
    values = (
        SETTINGS['parameters'] | SETTINGS['artefacts']['llamarec/table4'] | dict(profile=PROFILE) | changes
    )
    names = {f.name for f in fields(llamarec_study.LlamaRecStudy)}
    return llamarec_study.study(**{k: v for k, v in values.items() if k in names}), values


def table4() -> dict:
    "(dataset, name) -> run of the five systems of LlamaRec's Table 4, P5 once a numbering, the cheapest first."
    s, values = table4_study()
    named = values['systems']
    order = (
        {'P5': named['P5']}
        | systems.numbered(named['P5'], p5.NUMBERINGS)
        | {n: named[n] for n in ('POD', 'GPT4Rec', 'PALR', 'RecMind')}
    )
    return {
        (d, name): run
        for d in values['system_datasets']
        for name, run in systems.system_runs(
            s, d, order, values['system_users'], values['system_backbone']
        ).items()
    }


def five(*names: str) -> None:
    "Compute the runs of `table4`, or those of the rows `names`."
    for (d, name), run in table4().items():
        if names and name not in names:
            continue
        (record,) = systems.recorded({name: run}, PROFILE).values()
        print(f'{d} {name}: {record.error if isinstance(record, Failed) else record.metrics}', flush=True)


def stages() -> None:
    "What the retriever and the ranker cost a person, with a fresh adapter, so that no ranker need be tuned."
    s, values = table4_study(ranker_datasets=[])
    for d in values['system_datasets']:
        cfg = systems.cost_run(s, d, values['cost_users'], values['system_backbone'])
        record = systems.measured_cost(cfg, PROFILE)
        print(f'{d} {systems.cost_name(cfg)}: {record.metrics}, {record.provenance["seconds"]}', flush=True)


def parts() -> dict:
    "Name -> function without arguments."
    out = {}
    for d in ('movie', 'book'):
        out[f'{d}-rates'] = lambda d=d: [rates(s) for s in protocols(d)]
        for k in (64, 256, 16):
            out[f'{d}-{k}'] = lambda d=d, k=k: [
                say(tallrec.run, draws(s, k), f'{d} K={k}') for s in protocols(d)
            ]
            out[f'{d}-{k}-read'] = lambda d=d, k=k: [read(s, k) for s in protocols(d)]
        out[f'{d}-AT'] = lambda d=d: [
            say(tallrec.run, [llm_run(s, (d,), 'AT', 0, s.llm_seeds[0])], f'{d} AT') for s in protocols(d)[1:]
        ]
    out |= {f'systems-{name}': lambda name=name: five(name) for name in SYSTEM_ROWS}
    return out | {'systems': five, 'systems-stages': stages}


if __name__ == '__main__':
    p = argparse.ArgumentParser('long_runs', description=__doc__.split('\n')[0])
    p.add_argument('parts', nargs='*')
    p.add_argument('--list', action='store_true', help='print the names of the parts')
    args, every = p.parse_args(), parts()
    unknown = [name for name in args.parts if name not in every]
    if unknown:
        p.error(f"unknown part {unknown[0]!r}; known: {', '.join(every)}")
    if args.list or not args.parts:
        print('\n'.join(every))
    os.environ.setdefault('LLMREC_JOBS', str(os.cpu_count()))
    for name in args.parts:
        print(f'=== {name}', flush=True)
        every[name]()
