"What the tests share: places of their own, the one sentence of a refusal, and a mark for those that need real data."

import importlib.util
from pathlib import Path

import pytest

from llmrec.data.raw import available
from llmrec.paths import LlmrecError


@pytest.fixture
def out(tmp_path, monkeypatch):
    "Everything that llmrec writes goes below this folder."
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    return tmp_path


@pytest.fixture
def nothing_set(out, monkeypatch):
    "Models are looked for nowhere but in the test's own folder."
    for name in ('LLMREC_MODELS', 'LLMREC_OFFLINE', 'LLMREC_EVENTS'):
        monkeypatch.delenv(name, raising=False)


def refused(call, *parts) -> str:
    "The one sentence with which `call` is refused; `parts` must be in it."
    with pytest.raises(LlmrecError) as e:
        call()
    said = str(e.value)
    assert '\n' not in said and said.endswith('.')
    for part in parts:
        assert str(part) in said, said
    return said


def tool(name: str):
    "A script of tools/ as a module."
    path = Path(__file__).resolve().parent.parent / 'tools' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(name, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def pytest_configure(config):
    config.addinivalue_line(
        'markers',
        "real_data(*datasets): needs these datasets on this machine, e.g. 'ml-latest-small' or 'beauty'",
    )


LONGEST = (
    'test_book',
    'test_engine',
    'test_reproduce',
    'test_smollm2',
    'test_tallrec_runs',
    'test_launch',
    'test_wheel',
    'test_own_profile',
    'test_trace',
)


def pytest_collection_modifyitems(items):
    "The files that take minutes come first, so that the processes (-n 3) end at about the same time."
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_runtest_setup(item):
    "Skip what is marked `real_data` when a dataset is not here; nothing is downloaded."
    wanted = dict.fromkeys(name for mark in item.iter_markers('real_data') for name in mark.args)
    absent = [name for name in wanted if not available(name)]
    if absent:
        pytest.skip(f"real data not present: {', '.join(absent)}")
