"The longer search of Table 1: one list for every method, validation alone decides, nothing is computed unasked."

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from llmrec.experiments import longer
from llmrec.experiments import study as st
from llmrec.experiments.tables import METRICS
from llmrec.paths import LlmrecError

ROOT = Path(__file__).resolve().parent.parent
LIST = [
    {},
    {'lr': 0.0005},
    {'heads': 1},
    {'weight_decay': 0},
    {'batch_size': 512},
    {'batch_size': 512, 'heads': 1},
]


@pytest.fixture
def s():
    return st.study(
        datasets=['films'],
        seeds=[0, 1, 2],
        methods=['Popularity', 'NARM', 'SASRec'],
        ranker_datasets=[],
        training=dict(patience=5),
    )


@pytest.fixture
def searches(s):
    return longer.longer_searches(s, dict(films=dict(settings=LIST, epochs=9, judged_every=2048)))


def record(config, valid):
    "A record with a validation, named after its batch and seed; `test_rank` says the same."
    name = f'retrieval-{config.model}-{config.training.batch_size}-{config.training.seed}'

    return SimpleNamespace(
        name=name,
        config=config,
        metrics=dict(valid={'Recall@10': valid}, training=dict(best_valid=valid)),
        arrays=dict(test_rank=np.array([1, 20, config.training.batch_size])),
    )


@pytest.fixture
def shelf(monkeypatch):
    "What is recorded: a function of the configuration, None where nothing is; and what was asked to be computed."
    shelf = SimpleNamespace(valid=lambda c: None, computed=[])

    def look_up(run, c, profile):
        return 'retrieval-missing' if shelf.valid(c) is None else record(c, shelf.valid(c))

    def run_all(run, configs, profile, what):
        shelf.computed += configs if what == 'longer search' else []
        return [record(c, shelf.valid(c) or 0.1) for c in configs]

    monkeypatch.setattr(longer, 'look_up', look_up)
    monkeypatch.setattr(longer, 'run_all', run_all)
    monkeypatch.setattr(st, 'run_all', run_all)
    return shelf


def test_every_method_gets_the_same_list_as_far_as_it_can(searches):
    assert longer.settings_of(searches['films'], 'SASRec') == LIST
    assert longer.settings_of(searches['films'], 'NARM') == [
        {},
        {'lr': 0.0005},
        {'weight_decay': 0},
        {'batch_size': 512},
    ]


def test_a_run_has_the_budget_and_only_the_named_changes(s, searches):
    base = st.retrieval_config(s, 'films', 'SASRec', 1, dropout=0.5)
    cfg = longer.longer_config(
        s, searches['films'], 'films', 'SASRec', 1, dict(dropout=0.5, batch_size=512, heads=1)
    )
    changed = {k: v for k, v in vars(cfg.training).items() if v != getattr(base.training, k)}
    assert changed == dict(batch_size=512, epochs=9, validate_every=4, patience=10, valid_mask='whole')
    assert {k: v for k, v in vars(cfg.architecture).items() if v != getattr(base.architecture, k)} == dict(
        heads=1
    )


def test_what_a_setting_names_is_set_where_it_belongs(s, searches):
    cfg = longer.longer_config(s, searches['films'], 'films', 'SASRec', 0, dict(weight_decay=0, dropout=0.2))
    assert (cfg.training.weight_decay, cfg.architecture.dropout) == (0, 0.2)


def test_a_setting_overrides_the_tables_own_and_leaves_the_rest_of_it(s, searches, shelf, monkeypatch):
    monkeypatch.setattr(longer, 'best_setting', lambda *_: dict(weight_decay=0.03, dropout=0.35))
    shelf.valid = lambda c: 0.3
    runs = {
        str(t.setting): t.config
        for t in longer.trials(s, searches)
        if t.method == 'SASRec' and t.setting is not None
    }
    assert {
        (c.training.weight_decay, c.architecture.dropout)
        for c in (runs['{}'], runs[str(dict(weight_decay=0))])
    } == {(0.03, 0.35), (0, 0.35)}


def test_runs_of_all_batches_are_judged_equally_often(s, searches):
    for batch in (16, 64, 128, 512):
        t = longer.longer_config(s, searches['films'], 'films', 'SASRec', 0, dict(batch_size=batch)).training
        assert t.validate_every * t.batch_size == 2048


def test_nothing_recorded_gives_no_trial_no_row_and_no_word(s, searches, shelf):
    found = longer.trials(s, searches)
    assert (
        found == []
        and longer.longer_rows(s, found) == []
        and longer.longer_told(searches, found) == ''
        and not shelf.computed
    )
    long = pl.DataFrame([dict(dataset='films', method='SASRec', metric='Recall@10', value=0.1)])
    assert longer.with_longer(long, []) is long


def test_what_is_not_recorded_is_left_out_and_counted(s, searches, shelf):
    shelf.valid = lambda c: (
        0.3
        if c.model == 'SASRec' and c.training.valid_mask == 'whole' and c.training.batch_size == 512
        else None
    )
    found = longer.trials(s, searches)
    assert {t.method for t in found} == {'SASRec'} and [t.record is None for t in found] == [
        False,
        True,
        True,
        True,
        True,
        False,
        False,
    ]
    assert 'SASRec on Films (miniature) 2 of 6' in longer.longer_told(searches, found) and not shelf.computed
    assert longer.chosen(found)['films', 'SASRec'].setting == {'batch_size': 512}  # the first of equals
    assert 'until flat, ' not in longer.matters(found)


def test_validation_with_the_history_hidden_decides_and_the_tables_own_run_competes(s, searches, shelf):
    shelf.valid = lambda c: 0.05 if c.training.valid_mask == 'whole' else None
    found = longer.trials(s, searches)
    assert longer.chosen(found)['films', 'SASRec'].setting is None and longer.longer_rows(s, found) == []


def test_the_chosen_setting_has_a_row_over_the_seeds_that_are_recorded(s, searches, shelf):
    shelf.valid = lambda c: (
        0.2 + c.training.batch_size / 1000
        if c.training.valid_mask == 'whole' and c.training.seed < 2
        else None
    )
    rows = longer.longer_rows(s, longer.trials(s, searches))
    assert {r['method'] for r in rows} == {'SASRec (longer search)', 'NARM (longer search)'} and {
        r['seeds'] for r in rows
    } == {2}
    sasrec = [r for r in rows if r['method'].startswith('SASRec')]
    assert [r['metric'] for r in sasrec] == list(METRICS) and {r['records'] for r in sasrec} == {
        'retrieval-SASRec-512-0 retrieval-SASRec-512-1'
    }
    recall = next(r['value'] for r in sasrec if r['metric'] == 'Recall@10')
    assert recall == pytest.approx(1 / 3)


def test_only_when_asked_are_the_other_seeds_of_the_choice_computed(s, searches, shelf):
    shelf.valid = lambda c: (
        c.training.batch_size / 1000 if c.training.valid_mask == 'whole' and c.training.seed == 0 else None
    )
    found = longer.trials(s, searches)
    longer.longer_rows(s, found)
    assert not shelf.computed
    longer.longer_rows(s, found, compute=True)
    assert {(c.model, c.training.seed, c.training.batch_size) for c in shelf.computed} == {
        (m, seed, 512) for m in ('NARM', 'SASRec') for seed in (1, 2)
    }


def test_rows_come_below_their_own_method_with_all_metrics():
    def r(method, metric, d='films'):
        return dict(dataset=d, method=method, metric=metric)

    long = pl.DataFrame(
        [r(m, x, d) for d in ('films', 'books') for m in ('NARM', 'SASRec') for x in ('MRR@10', 'Recall@10')]
    )
    both = longer.with_longer(long, [r('NARM (longer search)', x) for x in ('MRR@10', 'Recall@10')])
    assert (
        both.filter(dataset='films')['method'].to_list()
        == ['NARM'] * 2 + ['NARM (longer search)'] * 2 + ['SASRec'] * 2
    )
    assert both.filter(dataset='books')['method'].to_list() == ['NARM'] * 2 + ['SASRec'] * 2
    assert both.filter(method='NARM (longer search)')['metric'].to_list() == ['MRR@10', 'Recall@10']


def test_the_largest_single_change_is_named(s, searches, shelf):
    worth = {64: 0.1, 512: 0.2}
    shelf.valid = lambda c: (
        worth[c.training.batch_size] + 0.05 * (getattr(c.architecture, 'heads', 2) == 1)
        if c.training.valid_mask == 'whole'
        else None
    )
    group = longer.by_method(longer.trials(s, searches))['films', 'SASRec']
    said = longer.matters(group)
    assert (
        'batch size 512 +0.1000' in said
        and 'heads 1 +0.0500' in said
        and said.endswith('The largest step is batch size 512.')
    )
    assert 'heads 1, ' not in said.split('The largest')[0].replace('heads 1 +', '')  # only single changes


@pytest.mark.parametrize(
    'values, named',
    [
        (dict(film={}), "'films'"),
        (dict(films=dict(settings=[dict(batchsize=1)])), 'batch_size'),
        (dict(films=dict(epoch=3)), 'epochs'),
        (dict(films=dict(settings=[7])), '7'),
        (dict(films=dict(epochs=0)), 'epochs'),
        (dict(films=dict(settings=[dict(lr=-1)])), 'lr'),
    ],
)
def test_a_wrong_list_is_refused_before_anything_runs(s, values, named):
    with pytest.raises(LlmrecError, match=named):
        longer.longer_searches(s, values)


def test_a_caption_names_patience_and_heads_that_are_not_the_presets(s):
    said = longer.beside_preset(s)
    assert (
        'Patience is 5 (20 in the preset).' in said
        and 'SASRec have 2 attention heads (1 in the preset).' in said
        and 'NARM' not in said
    )
    assert longer.beside_preset(st.study(methods=['LRURec'], ranker_datasets=[])) == ''


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location('longer_search', ROOT / 'tools' / 'longer_search.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_the_lists_of_the_real_data_are_valid_and_change_one_thing_at_a_time(tool):
    s, searches = tool.table1('real-cpu')
    assert set(searches) == set(s.datasets)
    for search in searches.values():
        assert {} in search.settings and sum(len(x) == 1 for x in search.settings) >= 4
        assert all(search.settings.count(x) == 1 for x in search.settings)


@pytest.mark.parametrize(
    'words, named',
    [
        (['music', 'SASRec'], 'ml-100k'),
        (['games', 'Popularity'], 'LRURec'),
        (['games', 'SASRec', '--settings', '8'], '0 to 7'),
    ],
)
def test_the_tool_names_what_it_does_not_know_before_it_runs_anything(
    tool, monkeypatch, capsys, words, named
):
    monkeypatch.setattr('sys.argv', ['longer_search', *words])
    monkeypatch.setattr(tool, 'compute', lambda *_: pytest.fail('something was run'))
    with pytest.raises(SystemExit):
        tool.main()
    assert named in capsys.readouterr().err


def test_a_row_is_compared_with_the_table_over_the_seeds_that_it_has(s, searches, shelf, monkeypatch):
    def with_test(made):
        "A record whose test metric is its seed, plus 10 in the longer search."

        def inner(config, valid):
            r = made(config, valid)
            r.metrics['test'] = {'Recall@10': config.training.seed + 10 * (config.training.epochs == 9)}
            return r

        return inner

    monkeypatch.setitem(globals(), 'record', with_test(record))
    more = {0: 0.2, 1: None, 2: 0.2}  # the second seed has not been run
    shelf.valid = lambda c: more[c.training.seed] if c.training.epochs == 9 else 0.1
    same = longer.of_same_seeds(s, longer.trials(s, searches))
    assert same == {('films', 'NARM'): {'Recall@10': 1.0}, ('films', 'SASRec'): {'Recall@10': 1.0}}
