"Profiles that are no profiles, and parameters of the wrong kind: one sentence, before anything runs."

import shutil
from pathlib import Path

import pytest

from llmrec.paths import LlmrecError, checkpoints_dir, figures_dir, records_dir
from llmrec.repro import profiles as module, reproduce as runner
from llmrec.repro.profiles import load_profile, parameters
from llmrec.repro.reproduce import reproduce

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def profile(tmp_path, monkeypatch):
    "A project folder with a single profile whose text is given; the function returns its name."
    for name in ('artefacts.yaml', 'settings.ini'):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / 'nbs').symlink_to(ROOT / 'nbs')
    (tmp_path / 'llmrec').symlink_to(ROOT / 'llmrec')
    (tmp_path / 'profiles').mkdir()
    for m in (module, runner):
        monkeypatch.setattr(m, 'root', lambda: tmp_path)
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path / 'out'))

    def write(text):
        (tmp_path / 'profiles/mine.yaml').write_bytes(text if isinstance(text, bytes) else text.encode())
        return 'mine'

    return write


@pytest.mark.parametrize('text', ['', '# nothing\n', 'papers: {llamarec: null}\n', 'parameters:\n'])
def test_nothing_is_a_profile_with_the_defaults(profile, text):
    assert parameters('llamarec/table2', profile(text), {}) == {
        'profile': 'mine',
        'datasets': ['films', 'books'],
    }


@pytest.mark.parametrize(
    'text, said',
    [
        ('- a\n- b\n', 'mine.yaml must hold names and values'),
        ('5\n', 'must hold names and values'),
        ('parameters: [datasets]\n', 'parameters must hold'),
        ('parameters: 3\n', 'parameters must hold'),
        ('papers: [llamarec]\n', 'papers must hold'),
        ('papers: {llamarec: 7}\n', 'llamarec must hold'),
        ('artefacts: {llamarec/table2: 5}\n', 'llamarec/table2 must hold'),
        ('parameters: {preset: 2024-01-01}\n', 'is a date'),
        ('parameters: {datasets: !!set {films}}\n', 'is a set'),
        ('parameters: {1: 2}\n', '1 is no name'),
        ('paramters: {}\n', "Did you mean 'parameters'"),
        ('parameters: &a {x: *a}\n', 'anchor that contains itself|not valid YAML'),
        (b'about: caf\xe9\n', 'not valid YAML in UTF-8'),
        ('a: [\n', 'not valid YAML'),
        ('without: {llamarec/tabel2: dear}\n', "Did you mean 'llamarec/table2'"),
        ('without: {llamarec/table2: null}\n', 'say in words why'),
        ('parameters: !!python/object/apply:os.getcwd []\n', 'not valid YAML'),
    ],
)
def test_what_is_no_profile(profile, text, said):
    with pytest.raises(LlmrecError, match=said):
        load_profile(profile(text))


@pytest.mark.parametrize(
    'text, said',
    [
        ('parameters: {datasets: films}\n', r'must be a list, got text'),
        ('parameters: {datasets: 3}\n', 'must be a list, got a number'),
        ('parameters: {datasets: []}\n', 'is empty; name at least one'),
        ('parameters: {datasets: {films: 1}}\n', 'must be a list, got a mapping'),
    ],
)
def test_a_parameter_of_another_kind(profile, text, said):
    with pytest.raises(LlmrecError, match=said):
        parameters('llamarec/table2', profile(text), {})


@pytest.mark.parametrize(
    'given, said',
    [
        ({'seeds': []}, 'is empty'),
        ({'methods': []}, 'is empty'),
        ({'training': 'fast'}, 'must be a mapping, got text'),
        ({'profile': '../../../evil'}, 'no parameter that can be changed'),
        ({'sedes': [1]}, "Did you mean 'seeds'"),
    ],
)
def test_the_command_line(profile, given, said, tmp_path):
    profile('')
    with pytest.raises(LlmrecError, match=said):
        reproduce(['llamarec/table1'], 'mine', given)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['../evil', '..', '/tmp/evil', 'a/b', '', 'a\0b'])
def test_nothing_is_written_outside_the_output_folder(name):
    for where in (
        records_dir,
        checkpoints_dir,
        lambda n: figures_dir(n, 'llamarec'),
        lambda n: figures_dir('miniature', n),
    ):
        with pytest.raises(LlmrecError, match='cannot be the name'):
            where(name)


def test_an_artefact_that_the_profile_leaves_out(profile, capsys):
    "It is not planned with the others, and the reason is printed; named, it is."
    name = profile('without: {llamarec/table2: it takes a week}\n')
    reproduce([], name, show='cost')
    said = capsys.readouterr().out
    assert (
        'llamarec/table2: not made by profile mine: it takes a week' in said
        and 'llamarec/table2: missing' not in said
    )
    reproduce(['llamarec/table2'], name, show='cost')
    said = capsys.readouterr().out
    assert 'a week' not in said and 'llamarec/table2: missing' in said
