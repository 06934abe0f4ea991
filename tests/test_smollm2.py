"SmolLM2, fetched by its name: it reads, its scores do not depend on how a pass is cut, and a killed tuning ends in the same bytes."

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from llmrec.data.yesno import load_yesno
from llmrec.llm.answers import common_prefix, score_answers
from llmrec.llm.backbones import BackboneConfig, load_backbone
from llmrec.llm.pretrained import pretrained_folder
from llmrec.llm.yesno import YesNoPromptConfig, encode_questions, yesno_ids
from llmrec.paths import LlmrecError

TUNE = '''
import os, signal, sys
from dataclasses import replace
import torch
from transformers import TrainerCallback
from llmrec.data.yesno import load_yesno
from llmrec.llm.backbones import BackboneConfig, load_backbone
from llmrec.llm.rec_tuning import RecTuningConfig, rec_tune
from llmrec.llm.tuning import Session
torch.set_num_threads(1)
folder, at = sys.argv[1], int(sys.argv[2])
class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kw):
        if state.global_step == at: os.kill(os.getpid(), signal.SIGKILL)
cfg = RecTuningConfig.corrected()
tuning = replace(cfg.tuning, lr=1e-3, max_steps=2, eval_steps=1, warmup_steps=0, batch_size=1, accumulation=1, gradient_checkpointing=False)
backbone, data = load_backbone(BackboneConfig('smollm2')), load_yesno('films')
cfg = replace(cfg, tuning=tuning, prompt=replace(cfg.prompt, max_tokens=160), valid_rows=3)
rec_tune(backbone, [(data, range(4))], data, cfg, folder, Session(callbacks=[Kill()]))
'''


@pytest.fixture(scope='module', autouse=True)
def place(tmp_path_factory):
    "The model is fetched once for these tests, unless LLMREC_MODELS has it."
    folder = tmp_path_factory.mktemp('smollm2')
    before = os.environ.get('LLMREC_OUT')
    os.environ['LLMREC_OUT'] = str(folder)
    try:
        try:
            pretrained_folder('smollm2')
        except LlmrecError as e:
            pytest.skip(str(e))
        yield folder
    finally:
        if before is None:
            del os.environ['LLMREC_OUT']
        else:
            os.environ['LLMREC_OUT'] = before


@pytest.fixture(scope='module')
def model():
    return load_backbone(BackboneConfig('smollm2'))


@pytest.fixture(scope='module')
def prompts(model):
    data = load_yesno('films')
    return encode_questions(
        model.tokenizer, data, data.splits['test'][:4], YesNoPromptConfig(max_tokens=160)
    )[0]


@pytest.fixture(scope='module')
def exact(model, prompts):
    return score_answers(model, prompts, yesno_ids(model.tokenizer))


def test_it_is_a_language_model(model):
    ids = model.tokenizer('The capital of France is', return_tensors='pt')
    with torch.no_grad():
        new = model.model.generate(**ids, max_new_tokens=3, do_sample=False)
    assert 'Paris' in model.tokenizer.decode(new[0])


def test_scores_with_the_common_prefix_are_those_of_one_plain_pass(model, prompts, exact):
    yes, no = yesno_ids(model.tokenizer)
    assert common_prefix(prompts) > 60
    with torch.no_grad():
        logits = torch.stack([model.model(torch.tensor([p])).logits[0, -1] for p in prompts])
    plain = (logits[:, yes] - logits[:, no]).numpy()
    assert np.abs(exact - plain).max() < 1e-4


def test_no_two_rows_tie_in_bfloat16(model, prompts, exact):
    half = load_backbone(BackboneConfig('smollm2', dtype='bfloat16'))
    found = score_answers(half, prompts[:3], yesno_ids(model.tokenizer))  # some processors are slow at it
    assert len(set(found.tolist())) == 3
    assert np.abs(found - exact[:3]).max() < 0.2


def tune(folder, kill_at=-1):
    return subprocess.run(
        [sys.executable, '-c', TUNE, str(folder), str(kill_at)], capture_output=True, text=True
    )


def test_a_tuning_that_was_killed_ends_in_the_same_bytes(tmp_path):
    calm, cut = tmp_path / 'calm', tmp_path / 'cut'
    assert tune(calm).returncode == 0
    killed = tune(cut, 2)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not (cut / 'adapter').exists() and (cut / 'work' / 'checkpoint-1').is_dir()
    assert tune(cut).returncode == 0
    for name in ('adapter/adapter_model.safetensors', 'adapter/adapter_config.json', 'history.json'):
        assert (calm / name).read_bytes() == (cut / name).read_bytes(), name
