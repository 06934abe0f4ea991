"What the tests share: a place of their own to write to, and a mark for those that need real data."
import pytest

from llmrec.data.raw import available


@pytest.fixture
def out(tmp_path, monkeypatch):
    "Everything that llmrec writes goes below this folder."
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    return tmp_path


def pytest_configure(config):
    config.addinivalue_line('markers', "real_data(*datasets): needs these datasets on this machine, e.g. 'ml-latest-small' or 'beauty'")


def pytest_runtest_setup(item):
    "Skip what is marked `real_data` when a dataset is not here; nothing is downloaded."
    wanted = dict.fromkeys(name for mark in item.iter_markers('real_data') for name in mark.args)
    absent = [name for name in wanted if not available(name)]
    if absent: pytest.skip(f"real data not present: {', '.join(absent)}")
