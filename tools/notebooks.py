"""Run the notebooks and store what stands under their cells.

    python tools/notebooks.py                 every notebook whose outputs are not current
    python tools/notebooks.py 41_lru 4        these, or those that begin so, current or not
    python tools/notebooks.py --check         print what is not current, and exit with 1

Outputs come from the invented world only. A result notebook runs with the parameters of the profile `miniature` and reads
the records of `make reproduce`; the other notebooks run in an empty output folder. What a notebook was made from (its code
and the code of the library that it uses) is kept in its metadata as `made_from`: outputs are current as long as that has
not changed. Their bytes are not compared, since another processor may change the last digit.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from llmrec.config import digest
from llmrec.repro.profiles import manifest, parameters
from llmrec.repro.reproduce import HANDS_ON, code_of, library_used

ROOT = Path(__file__).resolve().parent.parent
PROFILE = 'miniature'

# What these measure is time or memory, which differs from run to run, so nothing of theirs is stored.
MEASURED = {'77_llamarec_figure3', '82_speed', '85_yesno_speed', '86_memory_7b', '88_catalogue_size'}

ENVIRONMENT = dict(
    TQDM_DISABLE='1',
    OMP_NUM_THREADS='1',
    TOKENIZERS_PARALLELISM='false',
    PYTHONWARNINGS='ignore',
    HF_HUB_DISABLE_TELEMETRY='1',
    HF_HUB_OFFLINE='1',
    TRANSFORMERS_VERBOSITY='error',
    LLMREC_JOBS='1',
)

# A folder of this machine, the address of an object, and a time of day are different on every run.
PRIVATE = re.compile(
    r'(?<![\w.)}\]])/(?:work|root|tmp|home)/\S*|\b0x[0-9a-f]{8,}|\b\d\d:\d\d:\d\d\b|\btmp[a-z0-9_]{8}\b|<progress\b'
)


def notebooks() -> list[Path]:
    "All notebooks but those that measure."
    return [p for p in sorted((ROOT / 'nbs').glob('[0-9]*.ipynb')) if p.stem not in MEASURED]


def artefact_of(path: Path) -> str | None:
    "The artefact that a result notebook makes; None for the others."
    return next((a for a, name in manifest().items() if name == path.name), None)


def code(nb) -> list[str]:
    return [c.source for c in nb.cells if c.cell_type == 'code']


def made_from(nb, path: Path) -> str:
    "Fingerprint of what determines the outputs: the code, the library that it uses, and a result notebook's parameters."
    sources = [code_of(source) for source in code(nb)]
    artefact = artefact_of(path)
    values = parameters(artefact, PROFILE, {}) if artefact else None
    return digest(sources, library_used('\n'.join(code(nb)), but=HANDS_ON if artefact else ''), values)


def is_current(path: Path) -> bool:
    nb = nbformat.read(path, as_version=4)
    return nb.metadata.get('made_from') == made_from(nb, path)


def is_run(cell) -> bool:
    "Whether the cell can run here; one that is slow does, too, so that its output can be read (`make test` skips it)."
    directives = re.findall(r'^#\|\s*(.+?)\s*$', cell.source, flags=re.M)
    return not {'eval: false', 'gpu'} & set(directives)


def is_tagged(cell) -> bool:
    return 'parameters' in cell.metadata.get('tags', [])


def with_parameters(cells: list, values: dict) -> list:
    "The cells, and after the one that is tagged `parameters` another one that sets those of `values` that it has."
    out = []
    for cell in cells:
        out.append(cell)
        if is_tagged(cell):
            own = [f'{k} = {v!r}' for k, v in values.items() if re.search(rf'^{k} *=', cell.source, re.M)]
            out.append(nbformat.v4.new_code_cell('\n'.join(own), id='given'))
    return out


def tidied(outputs: list) -> list:
    "What is stored of a cell's outputs: no log, no counter, and consecutive prints in one piece."
    kept = []
    for o in outputs:
        if o.output_type == 'stream':
            if o.name != 'stdout':
                continue
            if kept and kept[-1].output_type == 'stream':
                kept[-1].text += o.text
                continue
        if o.output_type == 'execute_result':
            o.execution_count = None
        if any('widget' in kind for kind in o.get('data', {})):
            continue  # a progress bar
        if '<progress' in str(o.get('data', {}).get('text/html', '')):
            continue  # that of a Trainer
        if o.output_type == 'stream' or o.get('data'):
            kept.append(o)
    return kept


def private(outputs: list) -> str | None:
    "The first piece of text that would be different on another machine or in another run."
    for o in outputs:
        texts = [
            o.get('text', ''),
            *(str(v) for k, v in o.get('data', {}).items() if not k.startswith('image/')),
        ]
        for text in texts:
            if found := PRIVATE.search(text):
                return found[0]


def run(path: Path) -> None:
    "Run one notebook and write its outputs into it, unless it was edited meanwhile."
    text = path.read_text(encoding='utf-8')
    nb = nbformat.reads(text, as_version=4)
    artefact = artefact_of(path)
    cells = [c for c in nb.cells if c.cell_type == 'code' and is_run(c)]
    for c in nb.cells:
        if c.cell_type == 'code':
            c.outputs, c.execution_count = [], None
    values = parameters(artefact, PROFILE, {}) if artefact else {}
    probe = nbformat.v4.new_notebook(cells=with_parameters(cells, values), metadata=dict(nb.metadata))
    with tempfile.TemporaryDirectory() as empty:
        env = {
            k: v for k, v in os.environ.items() if k not in ('LLMREC_DATA', 'LLMREC_MODELS', 'LLMREC_OUT')
        } | ENVIRONMENT
        env['PYTHONPATH'] = f'{ROOT}{os.pathsep}{env.get("PYTHONPATH", "")}'
        if not artefact:
            env['LLMREC_OUT'] = empty
        client = NotebookClient(
            probe, kernel_name='python3', timeout=None, resources=dict(metadata=dict(path=str(ROOT / 'nbs')))
        )
        client.execute(env=env)
    for c in cells:
        c.outputs, c.execution_count = tidied(c.outputs), None
        if what := private(c.outputs):
            sys.exit(f'{path.name}, cell {c.id}: {what!r} does not belong into a stored output.')
    nb.metadata.pop('widgets', None)  # the state of progress bars, other in every run
    nb.metadata['made_from'] = made_from(nb, path)
    if path.read_text(encoding='utf-8') != text:
        sys.exit(f'{path.name} was edited while it ran, so nothing is written; run it again.')
    nbformat.write(nb, path)
    subprocess.run(
        [Path(sys.executable).with_name('nbdev_clean'), '--fname', str(path)], check=True, cwd=ROOT
    )


def main(argv=None) -> int:
    p = argparse.ArgumentParser('notebooks', description=__doc__.split('\n')[0])
    p.add_argument('names', nargs='*', help='names of notebooks, or how they begin')
    p.add_argument('--check', action='store_true', help='only say what is not current')
    args = p.parse_args(argv)
    os.chdir(ROOT)
    chosen = (
        [n for n in notebooks() if any(n.name.startswith(x) for x in args.names)]
        if args.names
        else [n for n in notebooks() if not is_current(n)]
    )
    if args.check:
        chosen = [n for n in chosen if not is_current(n)]
        if chosen:
            print('Not current, run `make notebooks`:', *(f'  {n.name}' for n in chosen), sep='\n')
        return int(bool(chosen))
    for i, path in enumerate(chosen, 1):
        print(f'{i}/{len(chosen)} {path.name}', flush=True)
        run(path)
    return 0


if __name__ == '__main__':
    sys.exit(main())
