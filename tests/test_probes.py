"Single runs with another setting than the table's."

import pytest

from llmrec.experiments import probes, retrieval
from llmrec.experiments.study import study
from llmrec.paths import LlmrecError, output_to
from llmrec.runs.records import Failed

S = dict(datasets=['films'], ranker_datasets=[], training=dict(epochs=1, validate_every=20))


def test_groups_begin_with_the_tables_own_run_and_keep_the_order(tmp_path, monkeypatch):
    asked = []

    def run_all(run, configs, profile, what):
        asked.extend(configs)
        return [Failed('x', str(i)) for i, _ in enumerate(configs)]

    monkeypatch.setattr(probes, 'run_all', run_all)
    given = [
        dict(dataset='films', method='NARM', dropout=0.3),
        dict(dataset='films', method='BERT4Rec', ties='items', tie_seed=4),
        dict(dataset='films', method='NARM', training=dict(lr=0.01, seed=7)),
    ]
    with output_to(tmp_path):
        groups = probes.probed(study(seeds=[2, 5], **S), given)
    assert [(g.method, len(g.probes)) for g in groups] == [('NARM', 3), ('BERT4Rec', 2)]
    assert [
        (c.model, c.architecture.dropout, c.training.lr, c.training.seed, c.ties, c.tie_seed)
        for c in asked[1:]
    ] == [
        ('NARM', 0.3, asked[0].training.lr, 2, 'item', 0),
        ('NARM', asked[0].architecture.dropout, 0.01, 7, 'item', 0),
        ('BERT4Rec', asked[3].architecture.dropout, asked[3].training.lr, 2, 'item', 0),
        ('BERT4Rec', asked[3].architecture.dropout, asked[3].training.lr, 2, 'items', 4),
    ]
    assert groups[0].whole == [] and [r.error for r in groups[1].records] == ['3', '4']
    assert 'not all of its runs are whole' in probes.group_said(groups[0], [], {})


@pytest.mark.parametrize(
    'probe, said',
    [
        (dict(dataset='films'), 'needs a dataset and a method'),
        (dict(dataset='film', method='NARM'), "Did you mean 'films'"),
        (dict(dataset='films', method='Popularity'), 'method of a probe'),
        (dict(dataset='films', method='NARM', dropuot=0.1), "Did you mean 'dropout'"),
        (dict(dataset='films', method='NARM', training=dict(lrr=1)), "Did you mean 'lr'"),
    ],
)
def test_a_wrong_probe_is_refused_before_anything_runs(probe, said, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, 'run', lambda *_, **__: pytest.fail('a run was started'))
    with output_to(tmp_path), pytest.raises(LlmrecError, match=said):
        probes.probed(study(seeds=[0], **S), [dict(dataset='films', method='NARM', dropout=0.2), probe])
    assert list(tmp_path.rglob('*.json')) == []


def test_without_a_probe_or_a_run_there_is_a_sentence_and_no_empty_table():
    with pytest.raises(LlmrecError, match='probes is empty'):
        probes.probed(study(seeds=[0], **S), [])
    group = probes.Group(
        'films', 'NARM', {}, (probes.Probe('films', 'NARM'),), (Failed('x', 'out of memory'),)
    )
    with pytest.raises(LlmrecError, match='No probe could be run'):
        probes.probe_table([group], {})


def record(valid, test):
    class R:
        metrics = dict(training=dict(best_valid=valid), test={'Recall@10': test})
        arrays = {}
        name = f'r{valid}'

    return R()


def test_a_probe_counts_as_better_only_above_every_seed_and_orders_of_ties_do_not_count():
    P = probes.Probe
    g = probes.Group(
        'films',
        'NARM',
        dict(dropout=0.5),
        (
            P('films', 'NARM'),
            P('films', 'NARM', dict(dropout=0.1)),
            P('films', 'NARM', dict(dropout=0.2)),
            P('films', 'NARM', ties='items'),
        ),
        (record(0.10, 0.08), record(0.12, 0.05), record(0.14, 0.07), record(0.99, 0.99)),
    )
    assert probes.group_said(g, [0.10, 0.13], {('films', 'NARM', 'Recall@10'): 0.2}) == (
        "Films (miniature), NARM: 1 of 2 other settings validate better than every seed of the table; the best in validation (dropout 0.2) has a test Recall@10 of 0.0700, "
        "the table's first seed 0.0800, the paper 0.2000."
    )
    assert [probes.probe_said(g, p) for p in g.probes] == [
        "the table's dropout 0.5",
        'dropout 0.1',
        'dropout 0.2',
        'ties items, tie_seed 0',
    ]
