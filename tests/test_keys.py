"The keys of records: what may change without orphaning one, and what may not change without a new version."

import contextlib
import dataclasses
import importlib.util
import json
import re
from dataclasses import dataclass, field, replace

import pytest

from llmrec.config import (
    broken_promises,
    declared_schema,
    defaults_of,
    keyed,
    schema,
    to_dict,
    unkeyed,
    values_of,
)
from llmrec.experiments.binary import BinaryRun
from llmrec.experiments.in_context import InContextRun
from llmrec.experiments.llamarec import RankingConfig
from llmrec.experiments.retrieval import RetrievalConfig
from llmrec.experiments.tallrec import TallrecRun
from llmrec.repro.launch import filled
from llmrec.llm.backbones import BackboneConfig
from llmrec.llm.chat import EndpointConfig
from llmrec.llm.encoders import EncoderConfig
from llmrec.llm.rec_tuning import AlpacaTuningConfig
from llmrec.paths import LlmrecError, output_to, root
from llmrec.runs.records import find_record, record_key, run_once
from llmrec.sequential.lrurec import LRURecConfig
from llmrec.sequential.narm import NARMConfig
from llmrec.sequential.sasrec import SASRecConfig
from llmrec.sequential.training import TrainingConfig
from llmrec.repro.trace import record_files

ROOT = root()


@pytest.fixture(scope='module')
def tool():
    "tools/defaults.py as a module."
    spec = importlib.util.spec_from_file_location('defaults', ROOT / 'tools' / 'defaults.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def classes(tool):
    return tool.classes()


def key(cfg):
    return record_key(cfg, 'data', 'backbone')


BINARY = BinaryRun('movie', 'as_published', 'GRU4Rec', 16, 1)
TALLREC = TallrecRun('TALLRec', ('movie',), ('movie', 'book'), 64, 0, alpaca=AlpacaTuningConfig())
RANKING = RankingConfig(RetrievalConfig('games', 'SASRec', SASRecConfig(heads=1)))


# --- what changes no key


@contextlib.contextmanager
def renamed(classes):
    "Classes under other names in another module."
    names = '__name__', '__qualname__', '__module__'
    before = {cls: [getattr(cls, n) for n in names] for cls in classes}
    try:
        for cls in classes:
            for n in names:
                setattr(cls, n, 'elsewhere')
        yield
    finally:
        for cls, old in before.items():
            for n, value in zip(names, old):
                setattr(cls, n, value)


def parts(value):
    "A configuration and all configurations in it."
    if not dataclasses.is_dataclass(value):
        return []
    return [value, *(p for f in dataclasses.fields(value) for p in parts(getattr(value, f.name)))]


@pytest.mark.parametrize('cfg', [BINARY, TALLREC, RANKING])
def test_the_names_of_classes_and_modules_are_in_no_key(cfg):
    before, mine = key(cfg), {type(p) for p in parts(cfg)}
    assert len(mine) > 1
    with renamed(mine):
        assert type(cfg).__name__ == 'elsewhere' and key(cfg) == before


def test_a_field_that_is_added_to_a_class_changes_no_key():
    "To the top class and to a nested one; with another value than its default it does."
    grown_training = dataclasses.make_dataclass(
        'T', [('warmup', int, field(default=0))], bases=(TrainingConfig,), frozen=True
    )
    grown = schema('retrieval', 1)(
        dataclasses.make_dataclass(
            'R',
            [
                ('dataset', str),
                ('model', str, 'LRURec'),
                ('architecture', LRURecConfig | SASRecConfig, field(default_factory=LRURecConfig)),
                ('training', grown_training, field(default_factory=grown_training)),
                ('augment', bool, False),
            ],
            frozen=True,
        )
    )
    old = RetrievalConfig('games', training=TrainingConfig(seed=1))
    assert key(grown('games', training=grown_training(seed=1))) == key(old)
    assert key(grown('games', training=grown_training(seed=1, warmup=5))) != key(old)
    assert key(grown('games', training=grown_training(seed=1), augment=True)) != key(old)


def test_the_order_of_fields_and_the_kind_of_number_change_no_key():
    turned = schema('toy', 1)(dataclasses.make_dataclass('Turned', [('b', float, 0.0), ('a', tuple, ())]))
    straight = schema('toy', 1)(dataclasses.make_dataclass('Straight', [('a', tuple, ()), ('b', float, 0)]))
    assert key(turned(b=1.0, a=(1, 2))) == key(straight([1, 2], 1)) and key(turned()) == key(
        straight((), 0.0)
    )


def test_what_is_not_keyed_is_recorded_and_found_under_any_value(tmp_path):
    Named = schema('named', 1)(
        dataclasses.make_dataclass('Named', [('n', int), ('label', str, unkeyed(''))], frozen=True)
    )
    with output_to(tmp_path):
        made = run_once('named', Named(1, 'ours'), lambda: ({}, {}, {}), 'data', 'test')
        found = find_record('named', Named(1, 'theirs'), 'data', 'test')
    assert found.key == made.key and found.config == {'n': 1, 'label': 'ours'} and found.values == {'n': 1}


# --- what does


def test_a_value_data_backbone_version_or_name_changes_the_key():
    other = dataclasses.make_dataclass('BinaryRun', [], bases=(BinaryRun,), frozen=True)
    values = [getattr(BINARY, f.name) for f in dataclasses.fields(BINARY)]
    keys = [
        key(BINARY),
        key(replace(BINARY, seed=2)),
        key(replace(BINARY, model=replace(BINARY.model, heads=2))),
        record_key(BINARY, 'other', 'backbone'),
        record_key(BINARY, 'data', 'other'),
        key(schema('binary', 2)(other)(*values)),
        key(schema('trinary', 1)(other)(*values)),
    ]
    assert len(set(keys)) == len(keys)
    assert key(schema('binary', 1)(other)(*values)) == keys[0]


def test_none_and_nothing_but_defaults_are_two_things():
    plain = (
        BINARY,
        replace(BINARY, encoder=EncoderConfig()),
        replace(BINARY, encoder=EncoderConfig(), backbone=BackboneConfig()),
    )
    assert len({key(c) for c in plain}) == 3
    assert values_of(plain[1])['encoder'] == {} and 'encoder' not in values_of(plain[0])
    assert values_of(InContextRun('movie', endpoint=EndpointConfig('m'), backbone=None))['endpoint'] == {
        '@schema': ['endpoint', 1],
        'model': 'm',
    }
    assert key(replace(TALLREC, alpaca=None)) != key(TALLREC)


def test_a_default_within_a_default_is_that_of_the_field():
    "A class's own defaults are not those that it has as the default of a field."

    @dataclass(frozen=True)
    class Inner:
        lr: float = 0.1

    @schema('outer', 1)
    @dataclass(frozen=True)
    class Outer:
        inner: Inner = Inner(0.2)

    assert [values_of(Outer(i)) for i in (Inner(0.2), Inner(0.1), Inner(0.3))] == [
        {},
        {'inner': {}},
        {'inner': {'lr': 0.3}},
    ]


def test_true_is_not_one_and_a_required_field_is_always_there():
    Odd = schema('odd', 1)(dataclasses.make_dataclass('Odd', [('a', object), ('b', object, 1)]))
    assert [values_of(Odd(None, b)) for b in (1, 1.0, True)] == [
        {'a': None},
        {'a': None},
        {'a': None, 'b': True},
    ]


def test_architectures_with_the_same_values_are_told_apart():
    same = [
        RetrievalConfig('games', 'Popularity', a(hidden=32)) for a in (LRURecConfig, SASRecConfig, NARMConfig)
    ]
    plain = [RetrievalConfig('games', 'Popularity', a()) for a in (LRURecConfig, SASRecConfig, NARMConfig)]
    assert len({key(c) for c in same + plain}) == 6


def test_the_version_of_a_nested_experiment_is_in_the_key(monkeypatch):
    before = key(RANKING)
    monkeypatch.setattr(RetrievalConfig, '__schema__', ('retrieval', 2))
    assert key(RANKING) != before


def test_nested_classes_that_could_be_confused_are_refused():
    @dataclass(frozen=True)
    class A:
        n: int = 1

    @dataclass(frozen=True)
    class B:
        n: int = 1

    for kind, value in (
        (A | B, A()),
        (object, A()),
        (A | dict, A()),
        (A, B()),
        (A, {'n': 1}),
        (tuple, (A(),)),
    ):
        Top = schema('top', 1)(dataclasses.make_dataclass('Top', [('x', kind)]))
        with pytest.raises(LlmrecError, match=r'^Top\.x holds a '):
            values_of(Top(value))
    assert values_of(dataclasses.make_dataclass('Top', [('x', tuple[A, ...])])((A(), A(2)))) == {
        'x': [{}, {'n': 2}]
    }


def test_a_class_without_a_schema_and_a_wrong_name_are_refused(tmp_path):
    Child = dataclasses.make_dataclass('Child', [], bases=(BinaryRun,), frozen=True)
    child = Child(*(getattr(BINARY, f.name) for f in dataclasses.fields(BINARY)))
    with pytest.raises(LlmrecError, match="Child declares no schema; put @schema"):
        key(child)
    with (
        output_to(tmp_path),
        pytest.raises(LlmrecError, match="experiment 'retrieval', and its schema is 'binary'"),
    ):
        run_once('retrieval', BINARY, lambda: 1 / 0, 'data', 'test')
    for name, version in (('A b', 1), ('a_b', 1), ('', 1), ('a', 0), ('a', True), ('a', '1')):
        with pytest.raises(LlmrecError):
            schema(name, version)


# --- the records of this project


def plain_key(body):
    "What a key with nothing left out would be made of."
    return json.dumps([body[k] for k in ('experiment', 'config', 'data', 'backbone')], sort_keys=True)


@pytest.mark.parametrize('profile', ['real-cpu', 'miniature-full'])
def test_two_records_that_differ_in_anything_have_two_keys(profile, classes):
    "And each configuration, made through its class, gives the values and the key that its record has."
    with output_to(ROOT):
        bodies = [json.loads(p.read_text(encoding='utf-8')) for p in record_files(profile)]
    assert (
        len({plain_key(b) for b in bodies})
        == len({(b['experiment'], b['key']) for b in bodies})
        == len(bodies)
        > 1000
    )
    for body in bodies:
        cfg = filled(classes[body['experiment']], body['config'])
        assert (
            values_of(cfg) == body['values']
            and record_key(cfg, body['data'], body['backbone']) == body['key']
        )
        assert to_dict(cfg).keys() >= body['config'].keys()  # a field may have been added since


# --- defaults


def test_no_default_changed_without_a_new_version(tool, classes):
    table = tool.load()
    said = [
        s
        for name, cls in classes.items()
        for s in broken_promises(name, declared_schema(cls)[1], defaults_of(cls), table)
    ]
    assert said == [] and list(table) == list(classes)


def test_every_experiment_declares_its_schema(classes):
    notebooks = [
        json.loads(p.read_text(encoding='utf-8')) for p in sorted((ROOT / 'nbs').glob('[5-8]*.ipynb'))
    ]
    text = '\n'.join(''.join(c['source']) for nb in notebooks for c in nb['cells'])
    experiments = set(re.findall(r"run_once\(\s*'([a-z-]+)'", text))
    assert len(experiments) >= 16 and experiments <= set(classes)


def test_a_changed_default_is_told_and_a_new_field_is_a_new_line(tool):
    @schema('toy', 1)
    @dataclass(frozen=True)
    class Toy:
        n: int
        lr: float = 0.1
        inner: BackboneConfig = BackboneConfig(seed=3)

    wrong, table = tool.compared({'toy': Toy}, {})
    assert (
        wrong == []
        and table['toy']['defaults']['inner'] == {'seed': 3}
        and table['toy']['defaults']['inner.seed'] == 0
    )

    def told(version=1, **changes):
        fields = dict(n=(int,), lr=(float, 0.1), inner=(BackboneConfig, BackboneConfig(seed=3))) | changes
        cls = schema('toy', version)(
            dataclasses.make_dataclass('New', [(name, *f) for name, f in fields.items() if f], frozen=True)
        )
        return tool.compared({'toy': cls}, table)

    assert told()[0] == [] and told()[1] == table
    assert told(lr=(float, 0.2))[0] == ["the default of lr changed: raise the version of schema 'toy'"]
    assert told(inner=(BackboneConfig, BackboneConfig(seed=4)))[0] == [
        "the default of inner changed: raise the version of schema 'toy'"
    ]
    assert told(version=2, lr=(float, 0.2)) == (
        [],
        {'toy': dict(version=2, defaults=table['toy']['defaults'] | dict(lr=0.2))},
    )
    wrong, grown = told(more=(int, 0))
    assert wrong == [] and grown['toy']['defaults'] == table['toy']['defaults'] | dict(more=0)
    assert 'is gone' in told(lr=None)[0][0]
    assert broken_promises('toy', 1, grown['toy']['defaults'], table) == [
        "more of schema 'toy' is not in the table of defaults: run python tools/defaults.py"
    ]
    assert 'only rises' in tool.compared({'toy': Toy}, {'toy': dict(version=2, defaults={})})[0][0]


@pytest.mark.parametrize(
    'cls, name, value',
    [(TrainingConfig, 'epochs', 1), (BackboneConfig, 'dtype', 'bfloat16'), (EncoderConfig, 'pooling', 'cls')],
)
def test_the_guard_sees_a_default_of_the_library(tool, classes, monkeypatch, cls, name, value):
    "Changed in a nested class, for all schemas that hold it."
    monkeypatch.setattr(cls.__dataclass_fields__[name], 'default', value)
    wrong, _ = tool.compared(classes, tool.load())
    assert any(
        s.startswith('the default of ') and f'.{name} changed: raise the version of schema' in s
        for s in wrong
    )


def test_what_a_version_of_a_nested_schema_means_for_defaults(tool, classes, monkeypatch):
    "A field whose default is a model of a schema counts as changed with that schema's version."
    monkeypatch.setattr(LRURecConfig, '__schema__', ('lrurec', 2))
    assert tool.compared(classes, tool.load())[0] == [
        "the default of architecture changed: raise the version of schema 'retrieval'"
    ]


def test_a_fingerprint_of_a_configuration_has_its_schema():
    assert keyed(AlpacaTuningConfig(valid_rows=7)) == {'@schema': ['alpaca-tuning', 1], 'valid_rows': 7}
    assert keyed(TrainingConfig(seed=7)) == {'seed': 7}
