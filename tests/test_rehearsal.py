"The rehearsal of the `paper` profile: its parameters fit every artefact, and no model of the papers is left in them."

import json
import runpy

import pytest

from llmrec.paths import root
from llmrec.repro.profiles import load_profile, manifest, parameters

REHEARSAL = runpy.run_path(str(root() / 'tools/rehearsal.py'))
ARTEFACTS = [a for a in manifest() if a not in load_profile('paper')['without']]


@pytest.mark.parametrize('artefact', ARTEFACTS)
def test_every_artefact_takes_its_parameters_and_needs_no_large_model(artefact):
    given = {
        name: value
        for name, value in REHEARSAL['group_of'](artefact).items()
        if REHEARSAL['has'](artefact, name)
    }
    values = parameters(artefact, 'paper', given)
    assert {name: values[name] for name in given} == given
    said = json.dumps(values)
    assert not [model for model in ('meta-llama/', 'huggyllama/', 't5-small', 'bert-base') if model in said]
