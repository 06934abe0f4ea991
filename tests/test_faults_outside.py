"What a stranger brings: endpoints that answer in their own way, YAML at its edges, provenance, stamps, notebooks and tables that somebody has edited."

import dataclasses
import json
import math
import re
from types import SimpleNamespace as S

import pytest

from llmrec.config import check_types, fits, from_dict
from llmrec.paths import LlmrecError, figures_dir, output_to

from test_faults_records import GOOD, go, out, stamped  # noqa: F401, out is a fixture
from test_profiles import profile  # noqa: F401, likewise


def test_the_table_of_faults_names_what_is_there():
    from llmrec.paths import root

    text = (
        (root() / 'CONTRIBUTING.md')
        .read_text(encoding='utf-8')
        .partition('<!-- faults')[2]
        .partition('<!-- end of faults')[0]
    )
    names = re.findall('`([^`]+)`', text)
    assert len(names) > 40
    for name in names:
        module, _, function = name.rpartition('.')
        if module:
            assert f'def {function}(' in (root() / 'llmrec' / f'{module.replace(".", "/")}.py').read_text(
                encoding='utf-8'
            ), name
        else:
            assert (root() / f'tests/{name}.py').is_file(), name


# --- settings


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int = 0
    seeds: tuple[int, ...] = (0,)
    lr: float = 0.1


@pytest.mark.parametrize(
    'wrong',
    [
        dict(seed=-1),
        dict(seed=2**32),
        dict(seeds=(0, -1)),
        dict(lr=10**400),
        dict(seed=10**400),
        dict(lr=math.inf),
    ],
)
def test_a_number_that_no_generator_takes(wrong):
    with pytest.raises(LlmrecError, match='Settings'):
        check_types(Settings(**wrong))
    check_types(Settings(seed=2**32 - 1, seeds=(0, 1)))
    assert fits(3, float) and not fits(True, float) and not fits(2**63, int)


@pytest.mark.parametrize('values', [[1], 'x', None, 3])
def test_settings_that_are_no_mapping(values):
    with pytest.raises(LlmrecError, match='settings of Settings must hold names and values'):
        from_dict(Settings, values)


@pytest.mark.parametrize(
    'values, said',
    [
        (dict(preset='bogus'), "'bogus'. Known: as_published, corrected"),
        (dict(seeds=[0.5]), 'seeds must be'),
        (dict(training=dict(lr='1e-3')), 'write it with a point and a sign, like 1.0e-3'),
        (dict(training=dict(epochs=-1)), 'epochs must be at least 1'),
        (dict(training=dict(epochs=0)), 'epochs must be at least 1'),
        (dict(training=dict(validate_every=0)), 'validate_every must be at least 1'),
        (dict(training=dict(seed=-1)), "'training' names a seed"),
        (dict(seeds=[-1]), 'at least 0'),
        (dict(preset=None), 'Known: as_published'),
        (dict(training=[1]), 'training must be'),
    ],
)
def test_a_study_is_checked_whole_before_its_first_run(values, said):
    from llmrec.experiments.study import study

    with pytest.raises(LlmrecError, match=said):
        study(**values)


# --- YAML at its edges

EDGES = [
    '2024-02-30',
    '!!int ""',
    '!!float x',
    '!!bool x',
    '!!timestamp x',
    '9' * 5000,
    '0x' + 'f' * 5000,
    '? [a]: b',
    '[' * 5000,
    '!!binary é',
    '&a [*a]',
    '<<: 3',
    '!!set {a}',
    '!!python/name:os.system',
]


@pytest.mark.parametrize('value', EDGES, ids=range(len(EDGES)))
def test_values_that_yaml_chokes_on(profile, value):  # noqa: F811
    from llmrec.repro.profiles import load_profile
    from llmrec.repro.reproduce import overrides

    for call in (
        lambda: load_profile(profile(f'parameters:\n  seeds: {value}\n')),
        lambda: overrides([f'seeds={value}']),
    ):
        with pytest.raises(LlmrecError) as e:
            call()
        assert '\n' not in str(e.value)


def test_a_profile_that_would_be_larger_than_the_memory(profile):  # noqa: F811
    from llmrec.repro.profiles import load_profile

    lines = [
        'a0: &a0 [x, x, x, x, x, x, x, x, x, x]',
        *(f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 10)}]' for n in range(1, 12)),
    ]
    with pytest.raises(LlmrecError, match='holds 1e.12 values'):
        load_profile(profile('parameters:\n' + '\n'.join(f'  {line}' for line in lines)))


@pytest.mark.parametrize(
    'text',
    [
        'artefacts: {llamarec/table2: {profile: ../../evil}}\n',
        'parameters: {profile: paper}\n',
        'papers: {llamarec: {profile: paper}}\n',
    ],
)
def test_no_section_sends_results_to_another_profile(profile, text):  # noqa: F811
    from llmrec.repro.profiles import parameters

    with pytest.raises(LlmrecError, match='no parameter that can be changed'):
        parameters('llamarec/table2', profile(text), {})


@pytest.mark.parametrize(
    'text, said',
    [
        ('profile: ../../evil\n', 'no parameter that can be changed'),
        ('sedes: [1]\n', "Did you mean 'seeds'"),
        ('- a\n', 'must hold names and values'),
        ('seeds: 2024-02-30\n', 'not valid YAML'),
        ('seeds: {1: 2}\n', 'is no name'),
    ],
)
def test_a_variant_that_was_edited(profile, text, said, tmp_path):  # noqa: F811
    from llmrec.repro.reproduce import reproduce

    profile('')
    path = tmp_path / 'out/figures/mine+x/variant.yaml'
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(LlmrecError, match=said):
        reproduce(['llamarec/table2'], 'mine+x')
    assert sorted(p.name for p in (tmp_path / 'out').rglob('*')) == ['figures', 'mine+x', 'variant.yaml']


@pytest.mark.parametrize(
    'text, said',
    [
        ('seeds: [0.5]', 'list of whole numbers, and 0.5'),
        ('seeds: [true]', 'and True is true or false'),
        ('seeds: [[0]]', 'is a list'),
        ('datasets: [films, 3]', 'and 3 is a number'),
        ('datasets: [{a: b}]', 'is a mapping'),
        ('datasets: [null]', 'is NoneType'),
    ],
)
def test_what_stands_in_a_list_is_of_its_kind(profile, text, said):  # noqa: F811
    from llmrec.repro.profiles import parameters

    with pytest.raises(LlmrecError, match=said):
        parameters('llamarec/table1', profile(f'parameters: {{{text}}}\n'), {})


@pytest.mark.parametrize(
    'artefact, text, said',
    [
        ('llamarec/choices', 'choices: {mine: 5}', 'mine must hold names and values'),
        (
            'llamarec/choices',
            'choices: {mine: {tuning: [1]}}',
            "'tuning' of .*choices, mine, must be a mapping",
        ),
        ('llamarec/choices', 'choices: [mine]', 'must be a mapping, got a list'),
        ('tallrec/table3', 'further_models: {smollm2: [a]}', 'smollm2 must hold names and values'),
        ('tallrec/table3', 'further_models: {smollm2: {dtype: 3}}', 'must be text, got a number'),
        ('tallrec/table3', 'further_models: [smollm2]', 'must be a mapping, got a list'),
    ],
)
def test_changes_inside_a_parameter_are_of_its_kind(profile, artefact, text, said):  # noqa: F811
    from llmrec.repro.profiles import parameters

    with pytest.raises(LlmrecError, match=said):
        parameters(artefact, profile(f'artefacts: {{{artefact}: {{{text}}}}}\n'), {})


@pytest.mark.parametrize(
    'section',
    [
        '5',
        '{interactions: 5}',
        '{interactions: a.csv, core: x}',
        '{interactions: a.csv, rating_range: [1, x]}',
        '{interactions: a.csv, least_rating: .nan, rating: r}',
        '{interactions: "a\\0b"}',
        '{interactions: a.csv, ties: [a]}',
        '{interactions: a.csv, colour: red}',
        '{interactions: {a: b}}',
        '[a]',
        'null',
    ],
)
def test_data_of_ones_own_that_are_none(profile, section):  # noqa: F811
    from llmrec.repro.profiles import own_of
    from llmrec.repro.reproduce import reproduce

    name = profile(f'data: {{mine: {section}}}\nparameters: {{datasets: [mine]}}\n')
    with pytest.raises(LlmrecError, match='mine|There is no file'):
        own_of(name)
        reproduce(['llamarec/table1'], name)


@pytest.mark.parametrize('name', ['../evil', 'a\nb', 'x' * 200, '.hidden', ''])
def test_names_that_make_no_file(name):
    from llmrec.data.own import OwnData, check_own

    with pytest.raises(LlmrecError, match='a name that can be part of a file name'):
        check_own(OwnData(name, 'a.csv'))


# --- provenance and stamps

ODD = [
    dict(machine=[1]),
    dict(machine={'platform': 'x'}),
    dict(seconds=dict(total='x')),
    dict(seconds=['x']),
    dict(versions='1'),
    dict(commit=7),
    dict(peak_mib='many'),
    dict(record_sha256=1),
]


@pytest.mark.parametrize('change', ODD, ids=str)
def test_provenance_of_another_shape(out, change):  # noqa: F811
    from llmrec.paths import records_dir
    from llmrec.repro.reproduce import spent
    from llmrec.repro.trace import check_record, how_made
    from llmrec.runs.records import provenance_of

    calls = []
    path = records_dir('miniature') / f'{go().name}.json'
    path = records_dir('test') / path.name
    side = path.with_suffix('.provenance.json')
    assert provenance_of(path) and not list(check_record(path))
    side.write_text(json.dumps(json.loads(side.read_text()) | change))
    assert provenance_of(path) == {} and how_made(provenance_of(path)) == 'no commit, machine unknown'
    assert 'is missing or cannot be read' in str(list(check_record(path))[0])
    stamped(GOOD | dict(records={path.stem: 'x'}), 'test')
    assert spent('llamarec/table2', 'test') == (1.0, {})
    assert go(calls).metrics == {'m': 1.5} and calls == [1]


@pytest.mark.parametrize(
    'change',
    [
        dict(machine=[1]),
        dict(runs=dict(seconds='x')),
        dict(records={'a': [1]}),
        dict(files={'a': 3}),
        dict(failed={'a': {}}),
        dict(commit=7),
    ],
    ids=str,
)
def test_a_stamp_that_is_odd_deep_inside(out, change):  # noqa: F811
    from llmrec.repro.reproduce import cost, load_stamp

    stamped(GOOD | change)
    assert (
        load_stamp('llamarec/table2', 'miniature') is None
        and cost('llamarec/table2', 'miniature') == 'time unknown'
    )


def test_every_shipped_stamp_and_provenance_is_believed():
    import zipfile
    from llmrec.paths import root
    from llmrec.repro.profiles import manifest
    from llmrec.repro.reproduce import load_stamp
    from llmrec.runs.records import ill_told

    with output_to(root()):
        for p in sorted((root() / 'figures').glob('*/*/*.json')):
            artefact = f'{p.parent.name}/{p.stem}'
            if artefact in manifest():
                assert load_stamp(artefact, p.parent.parent.name), p
    for pack in sorted((root() / 'data/records').glob('*/*.zip')):
        with zipfile.ZipFile(pack) as z:
            for name in z.namelist():
                if name.endswith('.provenance.json'):
                    assert not ill_told(json.loads(z.read(name))), name


# --- tables, sources, notebooks


@pytest.mark.parametrize(
    'text, said',
    [
        ('a,b\n1,2\n', 'has no column'),
        ('row,column,value,source\nx,a,1,paper\n', 'without a row'),
        ('row,column,value,source\n-1,a,1,paper\n', 'without a row'),
        ('row,column,value,source\n0,a,1,\n', 'without a row'),
        ('', 'cannot be read'),
        ('row,row\n1,2\n', ''),
    ],
)
def test_sources_that_somebody_edited(out, text, said):  # noqa: F811
    from llmrec.repro.trace import check_sources, sources_of

    stamped(GOOD)
    folder = figures_dir('miniature', 'llamarec')
    (folder / 'table2.sources.csv').write_text(text)
    (folder / 'table2.csv').write_text('a\n1\n')
    with pytest.raises(LlmrecError, match=said):
        sources_of(folder / 'table2.sources.csv')
    assert said in str(list(check_sources('llamarec/table2', 'miniature', GOOD))[0])


@pytest.mark.parametrize('value, said', [('abc', "'abc' for a number"), ('1,5,', 'cannot be read')])
def test_a_long_table_that_somebody_edited(out, value, said):  # noqa: F811
    from llmrec.repro.compare import long_rows

    stamped(GOOD)
    (figures_dir('miniature', 'llamarec') / 'table2.long.csv').write_text(f'metric,value\nNDCG,{value}\n')
    with pytest.raises(LlmrecError, match=said):
        long_rows('llamarec/table2', 'miniature')


NOTEBOOK = dict(metadata={}, nbformat=4, nbformat_minor=5)


@pytest.mark.parametrize(
    'cell, said',
    [
        (dict(cell_type='code', source='!ls', tags=1), 'no Python'),
        (dict(cell_type='code', source='a = (', id='a'), 'no Python'),
        (dict(cell_type='code', source='a\0'), 'no Python'),
        (dict(cell_type='code', source=5), 'cannot be read as a notebook'),
        (dict(cell_type=3, source=''), 'cannot be read'),
    ],
)
def test_a_notebook_that_somebody_edited(tmp_path, monkeypatch, cell, said):
    from llmrec.repro import reproduce

    monkeypatch.setattr(reproduce, 'root', lambda: tmp_path)
    monkeypatch.setattr(reproduce, 'manifest', lambda: {'llamarec/table2': 'a.ipynb'})
    (tmp_path / 'nbs').mkdir()
    (tmp_path / 'nbs/a.ipynb').write_text(
        json.dumps(NOTEBOOK | dict(cells=[dict(metadata={}, outputs=[], execution_count=None) | cell]))
    )
    with pytest.raises(LlmrecError, match=said):
        reproduce.inputs('llamarec/table2', {})


def test_a_default_that_is_computed_is_no_parameter(tmp_path, monkeypatch):
    from llmrec.repro import profiles

    monkeypatch.setattr(profiles, 'root', lambda: tmp_path)
    (tmp_path / 'nbs').mkdir()
    cell = dict(
        cell_type='code',
        id='a',
        metadata=dict(tags=['parameters']),
        outputs=[],
        execution_count=None,
        source='seeds = list(range(3))',
    )
    (tmp_path / 'nbs/a.ipynb').write_text(
        json.dumps(
            NOTEBOOK
            | dict(
                cells=[cell],
                metadata=dict(kernelspec=dict(name='python3', language='python', display_name='x')),
            )
        )
    )
    with pytest.raises(LlmrecError, match="the default of 'seeds' is no plain value"):
        profiles.notebook_parameters('a.ipynb')


# --- endpoints


def chat(**changes):
    choice = dict(finish_reason='stop', logprobs=None, message=S(content='Yes', refusal=None)) | changes
    return S(choices=[S(**choice)], model='m', usage=None)


def steps(token, *pairs):
    return S(content=[S(token=token, top_logprobs=[S(token=t, logprob=p) for t, p in pairs])])


def sent(monkeypatch, response, api='chat'):
    from llmrec.llm import chat as module
    from llmrec.llm.replies import read_answer

    monkeypatch.setattr(module, 'lenient', lambda *a: (response, False))
    raw = module.request(None, module.EndpointConfig('m', api=api), 'x')
    json.dumps(raw, ensure_ascii=False).encode()
    return read_answer(raw)


@pytest.mark.parametrize(
    'response',
    [
        'text',
        None,
        S(choices=5),
        S(choices='ab'),
        S(choices=[None], model='m'),
        S(choices={}, model='m'),
        S(choices=[[]]),
        chat(message=None),
        chat(message=S(content=[dict(type='text')], refusal=None)),
        chat(message=S(content=7, refusal=None)),
        S(choices=chat().choices, model=['m'], usage=None),
        S(choices=chat().choices),
        chat(logprobs=S(content=5)),
        chat(logprobs=S(content=['a'])),
    ],
)
def test_an_answer_of_another_shape(monkeypatch, response):
    with pytest.raises(LlmrecError, match="not in OpenAI's format"):
        sent(monkeypatch, response)


@pytest.mark.parametrize(
    'logprobs',
    [
        steps('Yes', ('Yes', None), ('No', 'x')),
        steps('Yes', ('Yes', math.nan)),
        steps('Yes', ('Yes', 1000.0)),
        steps('Yes', ('Yes', 0.5), ('No', -1.0)),
        steps(None, ('Yes', -1.0)),
        steps('Yes', (None, -1.0)),
    ],
)
def test_numbers_that_are_no_log_probabilities_are_not_used(monkeypatch, logprobs):
    answer = sent(monkeypatch, chat(logprobs=logprobs))
    assert (answer.kind, answer.score, answer.source) == ('yes', 1.0, 'text')


def test_numbers_that_are_are(monkeypatch):
    answer = sent(monkeypatch, chat(logprobs=steps('Yes', ('Yes', -0.1), ('No', -math.inf), ('x', -1))))
    assert answer.source == 'logprobs' and answer.score > 0


def test_half_a_character_and_counts_that_are_none(monkeypatch):
    response = chat(message=S(content='Yes \ud800', refusal=None), logprobs=steps('\udfff', ('\udfff', -1.0)))
    response.usage = S(prompt_tokens='many', completion_tokens=-3)
    answer = sent(monkeypatch, response)
    assert (answer.text, answer.tokens_in, answer.tokens_out) == ('Yes ?', 0, 0)
    assert (
        sent(
            monkeypatch,
            S(choices=[S(text=None, finish_reason='length', logprobs=None)], model=None, usage=None),
            'completions',
        ).kind
        == 'unparsable'
    )
