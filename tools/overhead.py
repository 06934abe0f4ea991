#!/usr/bin/env python3
"How much of a batch's wall time is spent outside its runs: 200 runs of a second that only wait, as one artefact and as four."

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
from test_engine import MAIN, RUNS, TABLE, TOY, notebook  # noqa: E402

RUNS_AT_ONCE, COUNT, SECONDS = 2, 200, 1.0


def project(folder: Path, artefacts: int) -> Path:
    "A project with `artefacts` notebooks that share `COUNT` toy runs among them."
    for part in ('nbs', 'profiles', 'data'):
        (folder / part).mkdir(parents=True)
    (folder / 'llmrec').symlink_to(ROOT / 'llmrec', target_is_directory=True)
    (folder / 'settings.ini').symlink_to(ROOT / 'settings.ini')
    (folder / 'data' / 'paper_numbers').symlink_to(ROOT / 'data' / 'paper_numbers', target_is_directory=True)
    lines = []
    for i in range(artefacts):
        values = dict(
            profile='mine',
            seconds=SECONDS,
            size=10,
            version=1,
            name=f'toy{i}',
            numbers=list(range(i * COUNT // artefacts + 1, (i + 1) * COUNT // artefacts + 1)),
        )
        notebook(
            folder / 'nbs' / f'0{i}_toy.ipynb',
            values,
            TOY,
            RUNS,
            TABLE.replace("ax.plot(frame['n']", 'ax.plot(numbers'),
        )  # an axis of numbers: 200 words on it take seconds to draw
        lines.append(f'beyond/toy{i}: 0{i}_toy.ipynb')
    (folder / 'artefacts.yaml').write_text('\n'.join(lines) + '\n')
    (folder / 'profiles' / 'mine.yaml').write_text('about: toys\n')
    return folder


for artefacts in map(int, sys.argv[1:] or (1, 4)):
    with tempfile.TemporaryDirectory() as d:
        where, out = project(Path(d) / 'project', artefacts), Path(d) / 'out'
        environment = os.environ | dict(LLMREC_OUT=str(out), OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
        start, began = time.perf_counter(), time.time()
        subprocess.run(
            [*MAIN, '--profile', 'mine', '--jobs', str(RUNS_AT_ONCE)],
            cwd=where,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        wall = time.perf_counter() - start
        records = list((out / 'data' / 'records' / 'mine').glob('*.provenance.json'))
        spent, ends = (
            [json.loads(p.read_text())['seconds']['total'] for p in records],
            [p.stat().st_mtime - began for p in records],
        )
        assert len(spent) == COUNT
        runs = sum(spent) / RUNS_AT_ONCE
        print(
            f'{artefacts} artefact(s), {COUNT} runs of {SECONDS} s, {RUNS_AT_ONCE} at a time: {wall:.1f} s, of which {runs:.1f} s in runs; outside {1 - runs / wall:.1%} '
            f'({min(ends) - SECONDS:.1f} s before the first run, {wall - max(ends):.1f} s after the last)',
            flush=True,
        )
