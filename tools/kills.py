"""Kill a run at random moments, start it again, and compare every byte with those of a run that nobody disturbed.

    python tools/kills.py [--kills 10] [--seed 0] [--backbone smollm2]

The run is TALLRec's second stage in small: four steps on two short rows, a few validation and test rows, in bfloat16.
SIGKILL comes after a random part of the processor time that the undisturbed run took. Compared are the record, its
arrays, the adapter and the history of the tuning. Each run is a fork of a process that has done nothing but import;
everything is written to a temporary folder. Exit status 1 when a single byte differs.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

import peft  # noqa: F401, here, so that a fork need not import it
import psutil
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, Trainer  # noqa: F401, likewise

from llmrec.experiments.tallrec import Rows, Stages, TallrecRun, make_run, run
from llmrec.llm.backbones import BackboneConfig
from llmrec.paths import root

TUNING = dict(
    lr=1e-3,
    max_steps=4,
    eval_steps=2,
    warmup_steps=0,
    batch_size=1,
    accumulation=1,
    gradient_checkpointing=False,
)
SUFFIXES = ('.json', '.npz', '.safetensors')


def small_run(backbone: str) -> TallrecRun:
    "What is run."
    lm = BackboneConfig(backbone, dtype='bfloat16')
    cfg = make_run('RT', 'corrected', Rows(['films'], ['films'], 2, 0, 2, 4), lm, Stages(TUNING))
    return replace(cfg, rec=replace(cfg.rec, prompt=replace(cfg.rec.prompt, max_tokens=160)))


def start(cfg: TallrecRun, out: Path) -> int:
    "Fork; the child runs and writes below `out`. Returns its process id."
    pid = os.fork()
    if pid:
        return pid
    try:
        os.environ |= dict(
            LLMREC_OUT=str(out), HF_HUB_DISABLE_PROGRESS_BARS='1', TOKENIZERS_PARALLELISM='false'
        )
        os.environ.setdefault('LLMREC_MODELS', str(root() / 'data/models'))
        out.mkdir(exist_ok=True)
        with open(out / 'said.txt', 'w') as said:
            os.dup2(said.fileno(), 2)
        run(cfg, 'miniature', progress=False)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait(pid: int, most: float | None = None) -> tuple[int, float]:
    "(exit status, processor seconds) of a fork, which gets SIGKILL when it has used `most` seconds."
    process, used = psutil.Process(pid), 0.0
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used
        used = sum(process.cpu_times()[:2])
        if most is not None and used >= most:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def finish(cfg: TallrecRun, out: Path) -> float:
    "Run to the end; processor seconds."
    status, used = wait(start(cfg, out))
    if status:
        sys.exit(f'the run ended with status {status}: {(out / "said.txt").read_text()[-3000:]}')
    return used


def made(out: Path) -> dict[str, bytes]:
    "Record, arrays, adapter and history; provenance holds times, and checkpoints are on the way only."
    every = [p for place in ('records', 'checkpoints') for p in (out / 'data' / place).rglob('*')]
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(every)
        if p.suffix in SUFFIXES and 'provenance' not in p.name and 'work' not in p.parts
    }


def reached(out: Path) -> str:
    "What lies on the disk of a run that was killed."
    if list((out / 'data/records').rglob('*.json')):
        return 'a record'
    if list((out / 'data/checkpoints').rglob('adapter/adapter_model.safetensors')):
        return 'the adapter'
    steps = [
        p.name.removeprefix('checkpoint-')
        for p in (out / 'data/checkpoints').rglob('checkpoint-*')
        if p.is_dir()
    ]
    return f'the checkpoint of step {", ".join(sorted(steps))}' if steps else 'no checkpoint'


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--kills', type=int, default=10)
    p.add_argument('--seed', type=int, default=0, help='of the moments')
    p.add_argument('--backbone', default='smollm2')
    args = p.parse_args()
    torch.set_num_threads(1)
    cfg, draw, killed, differ = small_run(args.backbone), random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        seconds, expected = finish(cfg, Path(folder) / 'calm'), made(Path(folder) / 'calm')
        print(f'undisturbed: {seconds:.1f} s of the processor, {len(expected)} files', flush=True)
        while killed < args.kills:
            out, moment = Path(folder) / f'{killed}', draw.uniform(0, seconds)
            status, _ = wait(start(cfg, out), moment)
            if status != -signal.SIGKILL:
                print(f'it had ended before {moment:.1f} s; another moment is drawn', flush=True)
                shutil.rmtree(out)
                continue
            killed, was = killed + 1, reached(out)
            finish(cfg, out)
            found = made(out)
            wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
            differ += bool(wrong)
            print(
                f'kill {killed}: after {moment:.1f} s, with {was}; '
                + (f'DIFFERENT: {", ".join(wrong)}' if wrong else 'started again, the same bytes'),
                flush=True,
            )
    print(f'{killed - differ} of {killed} ended in the bytes of the undisturbed run')
    return int(differ > 0)


if __name__ == '__main__':
    sys.exit(main())
