"One run in two processes, on CPUs: the same record, nearly the same adapter, going on after a kill, and complaints."

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from llmrec.repro import launch
from llmrec.runs import together
from llmrec.config import to_dict
from llmrec.experiments import tallrec
from llmrec.experiments.tallrec import Rows, Stages, make_run
from llmrec.llm.backbones import BackboneConfig
from llmrec.paths import LlmrecError, records_dir, root
from llmrec.runs.records import Busy, lock

TWO = [str(Path(sys.executable).parent / 'accelerate'), 'launch', '--multi_gpu', '--num_processes', '2']
QUICK = dict(eval_steps=2, warmup_steps=1, gradient_checkpointing=False, lr=1e-3)
# the first stage divides the passes of a step and has dropout, the second divides the rows of its pass and has none
FIRST = dict(QUICK, max_steps=24, batch_size=2, accumulation=2, valid_rows=2)
RUN = make_run(
    'TALLRec',
    'corrected',
    Rows(['films'], ['films'], 16, 0, 10, 20),
    BackboneConfig(),
    Stages(dict(QUICK, max_steps=4, lora_dropout=0.0), FIRST),
)


def environment(out):
    return os.environ | dict(LLMREC_OUT=str(out), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')


def command(folder, cfg=RUN, *more):
    path = folder / 'run.json'
    path.write_text(json.dumps(to_dict(cfg)))
    return [
        *TWO,
        '--main_process_port',
        '0',
        '-m',
        'llmrec.repro.launch',
        'tallrec',
        str(path),
        '--profile',
        'test',
        *more,
    ]


def files(folder, part):
    return {
        p.relative_to(folder).as_posix(): p
        for p in sorted((folder / 'data' / part).rglob('*'))
        if p.is_file() and '.lock' not in str(p)
    }


def same_for_all(folder):
    "Content of what a repetition must reproduce."
    kept = files(folder, 'records') | files(folder, 'checkpoints')
    return {k: p.read_bytes() for k, p in kept.items() if not k.endswith('.provenance.json')}


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    "A folder in which two processes have computed the run, undisturbed."
    out = tmp_path_factory.mktemp('shared')
    done = subprocess.run(command(out), env=environment(out), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_two_processes_leave_one_record_and_what_one_process_leaves(shared, tmp_path, monkeypatch):
    first = next(
        p.parent.parent
        for k, p in files(shared, 'checkpoints').items()
        if '/alpaca-' in k and k.endswith('.safetensors')
    )
    shutil.copytree(
        first, tmp_path / first.relative_to(shared)
    )  # the second stages begin with the same adapter
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    alone = tallrec.run(RUN, 'test', progress=False)
    assert list(files(tmp_path, 'records')) == list(files(shared, 'records')) and list(
        files(tmp_path, 'checkpoints')
    ) == list(files(shared, 'checkpoints'))
    together = json.loads((shared / 'data/records/test' / f'{alone.name}.json').read_text())
    assert (
        together['config'] == alone.config
        and together['key'] == alone.key
        and set(together['metrics']) == set(alone.metrics)
    )
    name = next(k for k in files(shared, 'checkpoints') if '/tallrec-' in k and k.endswith('.safetensors'))
    one, two = load_file(tmp_path / name), load_file(shared / name)
    assert sorted(one) == sorted(two) and max(np.abs(v).max() for k, v in one.items() if 'lora_B' in k) > 1e-4
    assert max(np.abs(one[k] - two[k]).max() for k in one) < 1e-6  # gradients that were not averaged: 1e-3
    losses = [
        [
            h['loss']
            for h in json.loads((folder / name).parents[1].joinpath('history.json').read_text())
            if 'loss' in h
        ]
        for folder in (tmp_path, shared)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def kill(process):
    "End `process` and everything that it started, at once."
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(family, timeout=20)
    process.wait(timeout=20)


def test_killed_and_resumed_by_a_grid_it_ends_with_the_same_bytes(shared, tmp_path, monkeypatch):
    process = subprocess.Popen(
        command(tmp_path),
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until, found = time.monotonic() + 300, []
        while time.monotonic() < until and process.poll() is None and not found:
            found = [
                p
                for p in tmp_path.rglob('checkpoint-*/trainer_state.json')
                if len(list(p.parent.glob('rng_state_*.pth'))) == 2
            ]
            time.sleep(0.02)
    finally:
        kill(process)
    assert found and not list(tmp_path.rglob('adapter')) and files(tmp_path, 'records') == {}
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    monkeypatch.chdir(root())
    with pytest.raises(LlmrecError, match='was written by 2 processes and this tuning has 1'):
        tallrec.run(RUN, 'test', progress=False)
    monkeypatch.setenv('LLMREC_LAUNCH', ' '.join([*TWO, '--main_process_port', '0']))
    together.compute_together(together.shared(tallrec.run), RUN, 'test')
    assert same_for_all(tmp_path) == same_for_all(shared)
    assert not list(tmp_path.rglob('*.tmp-*')) and not list(tmp_path.rglob('work'))


def test_a_step_that_cannot_be_divided_is_one_sentence(tmp_path):
    odd = make_run(
        'RT',
        'corrected',
        Rows(['films'], ['films'], 3, 0, 10, 20),
        BackboneConfig(),
        Stages(dict(QUICK, max_steps=4)),
    )
    done = subprocess.run(
        command(tmp_path, odd, '--said', str(tmp_path / 'said')),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith('llmrec_launch: ')]
    assert done.returncode != 0 and len(said) == 1
    for part in ('A step of 3 rows', 'among 2 processes', 'as many as fit (1, 3)', 'multiple of 2'):
        assert part in said[0]
    assert (
        said[0] == f"llmrec_launch: {(tmp_path / 'said').read_text()}"
        and 'Error' not in done.stderr.split('llmrec_launch: ')[0]
    )
    assert files(tmp_path, 'records') == {}


# --- in this process


@pytest.mark.parametrize(
    'content, said',
    [
        ('{"variant": "RT"', 'cannot be read'),
        ('[]', 'JSON object'),
        ('{"varient": "RT"}', "Did you mean 'variant'?"),
        (None, 'cannot be read'),
    ],
)
def test_bad_configurations(tmp_path, capsys, content, said):
    path = tmp_path / 'run.json'
    if content is not None:
        path.write_text(content)
    assert launch.main(['tallrec', str(path)]) == 1
    text = capsys.readouterr().err
    assert said in text and text.startswith('llmrec_launch: ') and len(text.splitlines()) == 1


def test_processes_that_were_not_started_are_noticed(tmp_path, capsys, monkeypatch):
    (tmp_path / 'run.json').write_text(json.dumps(to_dict(RUN)))
    monkeypatch.setenv('MASTER_PORT', '29500')  # what `accelerate launch --cpu --num_processes 2` sets
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    assert launch.main(['tallrec', str(tmp_path / 'run.json')]) == 1
    assert '--multi_gpu' in capsys.readouterr().err


def test_a_run_that_another_command_computes_is_put_off(out, capsys):
    path, said = out / 'run.json', out / 'said'
    path.write_text(json.dumps(to_dict(RUN)))
    name = f'tallrec-{tallrec.record_key(RUN, tallrec.data_of(RUN), tallrec.backbone_identity(RUN.backbone))}'
    with lock(records_dir('test') / f'{name}.json'):
        assert launch.main(['tallrec', str(path), '--profile', 'test', '--said', str(said)]) == 1
    assert said.read_text() == together.BUSY


def test_the_outcome_comes_back_to_the_grid(out, monkeypatch, tmp_path):
    script = tmp_path / 'launcher'
    monkeypatch.setenv('LLMREC_LAUNCH', str(script))

    def answers(body):
        script.write_text(
            f'#!{sys.executable}\nimport sys\nsaid = open(sys.argv[sys.argv.index("--said") + 1], "w")\n{body}\n'
        )
        script.chmod(0o755)
        return lambda: together.compute_together('tallrec', RUN, 'test')

    with pytest.raises(Busy):
        answers(f'said.write({together.BUSY!r})')()
    with pytest.raises(LlmrecError, match='^The loss is nan.$'):
        answers('said.write("The loss is nan."); sys.exit(1)')()
    answers('pass')()
    script.write_text(f'#!{sys.executable}\nimport sys\nsys.exit("out of memory")\n')
    with pytest.raises(LlmrecError, match='ended with status 1 .out of memory.'):
        together.compute_together('tallrec', RUN, 'test')
