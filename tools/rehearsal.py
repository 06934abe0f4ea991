"""A walk through every artefact of the `paper` profile with SmolLM2 in the place of both Llamas and two steps a tuning.

    LLMREC_OUT=/some/empty/folder python tools/rehearsal.py [ARTEFACT ...]

It needs the real data (LLMREC_DATA) and no GPU, and takes about an hour on one core. Its numbers mean nothing; what it
shows is that whoever starts the profile on a GPU meets no surprise after hours. Everything is written below $LLMREC_OUT.
"""

import fnmatch
import json
import os
import subprocess
import sys

from llmrec.paths import root
from llmrec.repro.profiles import chosen, defaults_of, load_profile

MODEL = dict(backbone='smollm2', quantisation='none', dtype='bfloat16')
STEPS = dict(max_steps=2, eval_steps=1, warmup_steps=0, accumulation=1, optimiser='adamw_torch')
SHORT = dict(epochs=1, patience=1)
WRITTEN = STEPS | dict(batch_size=2, max_rows=8)
NUMBERS = dict(rows=64, training=dict(epochs=1, validate_every=1, batch_size=32))  # no T5: from nothing
SYSTEMS = dict(
    GPT4Rec=dict(query_tokens=4, tuning=WRITTEN),
    PALR=dict(answer_tokens=8, profile_tokens=4, tuning=WRITTEN),
    P5=NUMBERS,
    POD=NUMBERS,
    RecMind=dict(steps=1, max_tokens=8),
)

# artefacts, as patterns -> parameters in the place of the profile's
GROUPS = {
    'beyond/tie-order': dict(datasets=['beauty'], orders=2, trained={}, settings={}, training=SHORT),
    'beyond/lrurec-*': MODEL
    | dict(
        datasets=['ml-100k'],
        ranker_datasets=['ml-100k'],
        seeds=[0],
        ranker_seeds=[0],
        search={},
        variants={},
        training=SHORT,
        max_valid_users=4,
        tuning=STEPS | dict(batch_size=2),
    ),
    'beyond/memory-7b': dict(steps=[[4, 311]], measure_gpu=False),
    'beyond/yesno-speed': dict(
        prompts=8, chunk=8, k=4, micro_batch=2, repeats=1, rate_prompts=2, rate_users=2
    ),
    'beyond/catalogue-size': dict(sizes=[1000], steps=2, users=10),
    'beyond/speed': dict(dataset='ml-100k', steps=2, chunk=1),
    'beyond/miniature': {},
    'beyond/like-rate': MODEL | dict(encoder='minilm'),
    'llamarec/figure3': dict(
        backbone='smollm2', title_tokens=[5, 10], calibrate=10, repeats=1, measure_7b=False
    ),
    'llamarec/table4': MODEL
    | dict(
        datasets=['ml-100k'],
        ranker_datasets=['ml-100k'],
        seeds=[0],
        ranker_seeds=[0],
        search={},
        training=SHORT,
        max_valid_users=4,
        tuning=STEPS | dict(batch_size=2),
        systems=SYSTEMS,
        system_datasets=['ml-100k'],
        system_users=4,
        cost_users=2,
        system_backbone=dict(name='smollm2', dtype='bfloat16'),
    ),
    'llamarec/probes': MODEL
    | dict(
        datasets=['ml-100k'],
        seeds=[0],
        search={},
        training=SHORT,
        probes=[dict(dataset='ml-100k', method='BERT4Rec', places='end')],
    ),
    'llamarec/*': MODEL
    | dict(
        datasets=['ml-100k'],
        ranker_datasets=['ml-100k'],
        seeds=[0],
        ranker_seeds=[0],
        search={},
        training=SHORT,
        max_valid_users=4,
        tuning=STEPS | dict(batch_size=2),
    ),
    '*': MODEL
    | dict(
        seeds=[0],
        ks=[16],
        llm_ks=[16],
        llm_seeds=[0],
        rates=[],
        weight_decays=[0.001],
        binary=dict(epochs=2),
        encoder=dict(name='minilm', dimensions=8),
        tuning=STEPS | dict(batch_size=4),
        alpaca=STEPS | dict(batch_size=4, valid_rows=4),
        valid_rows=12,
        test_rows=12,
        reading_rows=12,
        asked_rows=8,
    ),
}


def group_of(artefact: str) -> dict:
    "The parameters of the first pattern that the artefact fits."
    return next(values for pattern, values in GROUPS.items() if fnmatch.fnmatch(artefact, pattern))


def has(artefact: str, name: str) -> bool:
    return name in defaults_of(artefact)


def rehearse(artefact: str) -> int:
    "Make one artefact in a process of its own; its exit status."
    given = [
        f'--parameter={name}={json.dumps(value)}'
        for name, value in group_of(artefact).items()
        if has(artefact, name)
    ]
    return subprocess.run(
        [
            sys.executable,
            '-c',
            'from llmrec.repro.reproduce import main; raise SystemExit(main())',
            artefact,
            '--profile',
            'paper',
            *given,
        ],
        cwd=root(),
    ).returncode


if __name__ == '__main__':
    if not os.environ.get('LLMREC_OUT'):
        sys.exit('Set LLMREC_OUT to an empty folder: the rehearsal must not write over results.')
    left_out = load_profile('paper').get('without') or {}
    failed = [
        artefact for artefact in chosen(sys.argv[1:]) if artefact not in left_out and rehearse(artefact)
    ]
    print(f"{len(failed)} of the artefacts failed{': ' + ', '.join(failed) if failed else ''}.")
    sys.exit(bool(failed))
