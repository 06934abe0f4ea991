"What a tuned model reads: changed questions, AUC over matched pairs, and a tuned model that is asked again."

import shutil

import numpy as np
import polars as pl
import pytest

from llmrec.config import values_of
from llmrec.data.changes import CHANGES, changed, numbered_titles
from llmrec.data.yesno import load_yesno
from llmrec.evaluation.auc import auc, auc_summary, compare, within_between
from llmrec.evaluation.intervals import holm
from llmrec.evaluation.matched import matched, matched_auc, matched_compare
from llmrec.experiments import readings, tallrec
from llmrec.experiments.readings import (
    Answers,
    ReadingRun,
    counted,
    facts,
    finding,
    flipped,
    long_table,
    study_answers,
    verdict,
)
from llmrec.experiments.tallrec_study import study
from llmrec.llm.backbones import BackboneConfig, backbone_identity
from llmrec.paths import LlmrecError, checkpoints_dir, records_dir

QUICK = dict(max_steps=2, eval_steps=1, warmup_steps=0, gradient_checkpointing=False, optimiser='adamw_torch')
ALPACA = dict(QUICK, valid_rows=4, batch_size=4, accumulation=1)


def model(variant='RT', **changes):
    rows = tallrec.Rows(['films'], ['films'], 4, 0, 10, 20, **changes)
    return tallrec.make_run(variant, 'as_published', rows, BackboneConfig(), tallrec.Stages(QUICK, ALPACA))


def places(samples):
    "Row, place, label of the place and item, of histories and targets."
    return [
        (r, p, y, i)
        for r, s in enumerate(samples.iter_rows(named=True))
        for p, (i, y) in enumerate([*zip(s['history'], s['history_labels']), (s['item'], s['label'])])
    ]


@pytest.mark.parametrize('name', ['films', 'books'])
@pytest.mark.parametrize('change', CHANGES)
def test_a_change_keeps_people_labels_and_their_numbers(name, change):
    data = load_yesno(name)
    before = {split: frame.clone() for split, frame in data.splits.items()}
    new = changed(data, change, seed=3)
    for split, old in data.splits.items():
        now = new.splits[split]
        assert now.schema == old.schema
        assert now.select('user', 'label', 'timestamp').equals(old.select('user', 'label', 'timestamp'))
        if change == 'history emptied':
            assert now['history'].list.len().sum() == now['history_labels'].list.len().sum() == 0
        else:
            assert now['history_labels'].equals(old['history_labels'])
        assert old.equals(before[split])
    assert data.titles[1] == load_yesno(name).titles[1] and (new.checksum == data.checksum) == (
        change == 'as they are'
    )


def test_an_exchange_moves_items_and_nothing_else():
    data = load_yesno('films')
    for split, old in data.splits.items():
        was, now = places(old), places(changed(data, 'titles exchanged').splits[split])
        assert [p[:3] for p in was] == [p[:3] for p in now]
        assert sorted(p[3] for p in was) == sorted(p[3] for p in now)
        assert np.mean([a[3] == b[3] for a, b in zip(was, now)]) < 0.05


def test_only_targets_are_replaced():
    data = load_yesno('films')
    old, now = data.splits['test'], changed(data, 'target replaced').splits['test']
    assert now['history'].equals(old['history'])
    assert sorted(now['item']) == sorted(old['item']) and (now['item'] != old['item']).mean() > 0.9


def test_numbers_name_every_item_once_and_keep_no_author():
    data = load_yesno('books')
    new = changed(data, 'titles numbered', seed=2)
    assert sorted(new.titles[1:]) == sorted(f'item {i}' for i in range(1, data.n_items + 1))
    assert (
        set(new.authors) == {None}
        and new.phrases[5] == f'"{new.titles[5]}"'
        and data.phrases[5] != new.phrases[5]
    )
    assert all(new.splits[s].equals(data.splits[s]) for s in data.splits)
    assert numbered_titles(9, 0) == numbered_titles(9, 0) != numbered_titles(9, 1)


@pytest.mark.parametrize('change', ['titles exchanged', 'target replaced'])
def test_the_seed_decides_and_a_split_does_not_depend_on_the_others(change):
    data = load_yesno('films')
    one, same, other = (changed(data, change, seed).splits['test'] for seed in (1, 1, 2))
    assert one.equals(same) and not one.equals(other)
    alone = changed(data, change, 1, splits=('test',))
    assert alone.splits['test'].equals(one) and alone.splits['train'].equals(data.splits['train'])


def brute(strata, labels, scores):
    "The share of pairs by two loops; scores (seeds, n)."
    pairs = [
        (i, j)
        for i in range(len(labels))
        for j in range(len(labels))
        if labels[i] > labels[j] and strata[i] == strata[j]
    ]
    won = [np.mean([(s[i] > s[j]) + 0.5 * (s[i] == s[j]) for s in scores]) for i, j in pairs]
    return (np.mean(won) if pairs else np.nan), len(pairs)


@pytest.mark.parametrize('seed', range(5))
def test_matched_auc_is_the_share_of_pairs(seed):
    rng = np.random.default_rng(seed)
    n = 60
    users, labels = rng.integers(0, 9, n), rng.integers(0, 2, n)
    strata, scores = rng.integers(0, 4, n) / 7, rng.integers(0, 6, (3, n)).astype(float)
    got = matched_auc(strata, users, labels, scores, n=50)
    want = brute(strata, labels, scores)
    assert (got['value'], got['pairs']) == (pytest.approx(want[0], abs=1e-12), want[1])
    assert got['low'] <= got['value'] <= got['high']


@pytest.mark.parametrize('seed', range(3))
def test_bounds_are_those_of_copied_rows(seed):
    "Every draw of users rebuilt as rows, with copies, and counted by two loops."
    rng = np.random.default_rng(seed)
    n, draws = 30, 25
    users, labels, strata = rng.integers(0, 6, n), rng.integers(0, 2, n), rng.integers(0, 3, n)
    users[:6] = np.arange(6)
    a, b = rng.normal(size=(2, 2, n))
    values = []
    for drawn in np.random.default_rng(seed).integers(0, 6, (draws, 6)):
        rows = np.concatenate([np.flatnonzero(users == u) for u in drawn])
        values.append([brute(strata[rows], labels[rows], s[:, rows])[0] for s in (a, b)])
    values = np.array(values)
    got = matched_auc(strata, users, labels, a, n=draws, seed=seed)
    assert [got['low'], got['high']] == pytest.approx(np.nanquantile(values[:, 0], [0.025, 0.975]), abs=1e-12)
    gap = matched_compare(*(matched(strata, users, labels, s) for s in (a, b)), n=draws, seed=seed)
    assert [gap['low'], gap['high']] == pytest.approx(
        np.nanquantile(values[:, 0] - values[:, 1], [0.025, 0.975]), abs=1e-12
    )
    assert gap['difference'] == pytest.approx(
        brute(strata, labels, a)[0] - brute(strata, labels, b)[0], abs=1e-12
    )


def test_one_stratum_and_users_as_strata_are_notebook_22():
    rng = np.random.default_rng(0)
    users, labels = rng.integers(0, 20, 400), rng.integers(0, 2, 400)
    scores = rng.normal(size=(2, 400)) + labels
    one, want = matched_auc(np.zeros(400), users, labels, scores), auc_summary(users, labels, scores)
    assert [one[k] for k in ('value', 'low', 'high')] == pytest.approx(
        [want[k] for k in ('AUC', 'AUC_low', 'AUC_high')], abs=1e-12
    )
    assert matched_auc(users, users, labels, scores)['value'] == pytest.approx(
        within_between(users, labels, scores)['within'], abs=1e-12
    )
    rate = rng.integers(0, 11, 400) / 10
    assert [matched_auc(rate, users, labels, rate)[k] for k in ('value', 'low', 'high')] == [0.5, 0.5, 0.5]


def test_asked_as_they_are_the_questions_give_the_runs_own_scores(out):
    cfg = model('TALLRec')
    own = tallrec.run(cfg, 'example', False)
    record = readings.run(ReadingRun(cfg, 'films', rows=20), 'example', False)
    for mine, theirs in dict(
        row='films_row', user='films_user', label='films_label', score_0='films_score'
    ).items():
        assert np.array_equal(record.arrays[mine], own.arrays[theirs])
    test = load_yesno('films').splits['test'][record.arrays['row']]
    assert (record.arrays['likes'] + record.arrays['dislikes']).tolist() == test[
        'history'
    ].list.len().to_list()
    assert record.arrays['likes'].tolist() == [sum(h) for h in test['history_labels']]
    assert record.metrics['auc']['titles exchanged'] == auc(record.arrays['label'], record.arrays['score_1'])


def test_a_deleted_adapter_is_tuned_to_the_same_record(out):
    asked = ReadingRun(model(), 'films', CHANGES[:2], rows=20)
    first = readings.run(asked, 'example', False)
    kept = {
        p.name: p.read_bytes() for p in records_dir('example').glob('reading-*') if 'provenance' not in p.name
    }
    for p in records_dir('example').glob('reading-*'):
        p.unlink()
    folder = tallrec.adapter_folder(asked.run, 'example')
    weights = (folder / 'adapter' / 'adapter_model.safetensors').read_bytes()
    shutil.rmtree(folder)
    again = readings.run(asked, 'example', False)
    assert again.name == first.name and again.metrics['adapter'] == first.metrics['adapter']
    assert {
        p.name: p.read_bytes() for p in records_dir('example').glob('reading-*') if 'provenance' not in p.name
    } == kept
    assert (folder / 'adapter' / 'adapter_model.safetensors').read_bytes() == weights


def test_the_untuned_model_has_no_adapter_and_tunes_nothing(out):
    cfg = model('zero-shot')
    record = tallrec.run(cfg, 'example', False)
    assert record.metrics['adapter'] == backbone_identity(cfg.backbone) and record.metrics['rows'] == {}
    assert record.metrics['valid_auc'] is None and not [
        p for p in checkpoints_dir('example').glob('*') if p.name[0] != '.'
    ]
    assert (cfg.k, cfg.alpaca) == (0, None) and cfg.rec == model('AT').rec


def test_a_run_on_numbers_reads_numbers_everywhere(out):
    plain, numbered = model(), model(titles='titles numbered')
    assert values_of(numbered) == values_of(plain) | dict(
        titles='titles numbered'
    ) and 'titles' not in values_of(plain)
    data = tallrec.questions('films', numbered)
    assert all(t.startswith('item ') for t in data.titles[1:])
    one, two = (tallrec.run(cfg, 'example', False) for cfg in (plain, numbered))
    assert one.metrics['adapter'] != two.metrics['adapter'] and one.metrics['rows'] == two.metrics['rows']
    asked = readings.run(ReadingRun(numbered, 'films', CHANGES[:3:2], rows=20), 'example', False)
    assert np.array_equal(asked.arrays['score_0'], two.arrays['films_score'])
    assert np.array_equal(asked.arrays['score_1'], two.arrays['films_score'])  # numbers, again


def test_a_study_asks_its_models_and_the_untuned_one(out, monkeypatch):
    monkeypatch.setenv('LLMREC_JOBS', '1')
    s = study(
        profile='example',
        datasets=['films'],
        llm_ks=[4],
        llm_seeds=[0, 1],
        llm_tests=['films'],
        variants=['RT'],
        valid_rows=10,
        test_rows=20,
        tuning=QUICK,
    )
    found = study_answers(s)
    name = 'RT (tiny Llama, random weights)'
    assert [(found[i].model, found[i].setting) for i in (0, 5, 6, 11)] == [
        (name, 'K=4'),
        (f'{name}, tuned on numbers', 'K=4'),
        ('not tuned', 'K=0'),
        ('not tuned, sign flipped', 'K=0'),
    ]
    assert [len(a.scores) for a in found] == [2] * 6 + [1] * 6
    bare, turned = found[6], found[-1]
    assert auc(bare.labels, turned.scores) == pytest.approx(1 - auc(bare.labels, bare.scores), abs=1e-12)
    long = long_table(found)
    assert long['model'][0] == 'History like-rate' and len(long) == 13
    assert long['effect'].null_count() == 13 - 8  # four changes of two models


def test_a_second_model_before_tuning_has_a_name_of_its_own(monkeypatch):
    rng = np.random.default_rng(0)
    asked = [invented(change, lambda likes, labels: rng.random(300)) for change in CHANGES]
    monkeypatch.setattr(readings, 'asked_again', lambda s, variants, *a, **kw: asked)
    monkeypatch.setattr(readings, 'numbers_only', lambda *a: [])
    own, other = (
        study_answers(study(datasets=['films']), on_numbers=(), untuned=name)
        for name in ('not tuned', 'Gemma, not tuned')
    )
    assert {a.model for a in other} - {a.model for a in own} == {
        'Gemma, not tuned',
        'Gemma, not tuned, sign flipped',
    }
    long = long_table(own + [a for a in other if a.model.startswith('Gemma')])
    rows = readings.figure_rows(long, 'Model', 'Gemma, not tuned')
    assert ('Gemma, not tuned', 'as they are') in rows and ('not tuned', 'as they are') not in rows
    flipped = {
        m: long.filter(model=m)['AUC'][0] for m in ('Gemma, not tuned', 'Gemma, not tuned, sign flipped')
    }
    assert sum(flipped.values()) == pytest.approx(100)
    assert readings.without_tuning(long, 'Gemma, not tuned') and not readings.without_tuning(long, 'Llama')


def test_the_datasets_to_tune_on_numbers_are_named(monkeypatch):
    asked = []
    monkeypatch.setattr(
        readings, 'asked_again', lambda s, variants, *a, **kw: asked.append((s.datasets, s.titles)) or []
    )
    s = study(datasets=['films', 'books'])
    study_answers(s, on_numbers=('books',))
    assert asked == [
        (('films', 'books'), 'as they are'),
        (('books',), 'titles numbered'),
        (('films', 'books'), 'as they are'),
    ]
    with pytest.raises(LlmrecError, match="Did you mean 'books'"):
        study_answers(s, on_numbers=('book s',))


def invented(change, score, protocol='corrected'):
    rng = np.random.default_rng(0)
    users, likes = np.arange(30).repeat(10), rng.integers(0, 11, 300)
    labels = (rng.random(300) < 0.1 + 0.08 * likes).astype(int)
    return Answers(
        protocol,
        'films',
        'Model',
        'K=64',
        change,
        users,
        labels,
        likes,
        10 - likes,
        score(likes, labels)[None],
    )


@pytest.mark.parametrize(
    'exchanged, said',
    [
        (
            lambda likes, labels: 1.0 * likes,
            'behaves like a counter of likes, with no evidence that it needs the titles',
        ),
        (lambda likes, labels: np.arange(300) % 7.0, 'reads the titles, whose exchange'),
    ],
)
def test_the_finding_follows_the_numbers(exchanged, said):
    true = lambda likes, labels: 1.0 * likes if 'counter' in said else 3.0 * labels + np.arange(300) % 7
    asked = [
        invented(change, true if change in (CHANGES[0], CHANGES[3]) else exchanged) for change in CHANGES
    ]
    text = finding(long_table(asked), 'corrected', 'films', 'Model', 'K=64')
    assert text.startswith('Model, tuned on 64 rows, has an AUC of') and f'. It {said}' in text
    assert ('not clearly different from the 50' in text) == ('counter' in said)


def test_worse_than_counting_is_said():
    true = dict(AUC=60.0, AUC_low=55.0, over_high=-0.5)
    exchanged = dict(effect=-1.0, effect_low=-3.0, effect_high=1.0, AUC_low=54.0)
    assert 'of likes that orders less well than the like-rate, with no' in readings.verdict(true, exchanged)
    assert 'less well' not in readings.verdict(true | dict(over_high=0.5), exchanged)


def test_a_failed_run_leaves_a_line_without_numbers():
    good = [invented(change, lambda likes, labels: 1.0 * likes) for change in CHANGES]
    bad = Answers('corrected', 'films', 'Broken', 'K=64', CHANGES[0], *[np.array([])] * 4, np.empty((1, 0)))
    line = long_table([*good, bad]).row(-1, named=True)
    assert line['model'] == 'Broken' and np.isnan(line['AUC']) and line['over'] is None


def test_what_cannot_be_changed_or_asked_is_said():
    with pytest.raises(LlmrecError, match="Did you mean 'titles numbered'"):
        changed(load_yesno('films'), 'title numbered')
    with pytest.raises(LlmrecError, match="Did you mean 'test'"):
        changed(load_yesno('films'), 'target replaced', splits=('tests',))
    with pytest.raises(LlmrecError, match="Did you mean 'as they are'"):
        readings.run(ReadingRun(model(), 'films', ('as the are',)), 'example', False)


def test_what_could_be_counted_in_a_history():
    few = pl.DataFrame(dict(user=[5, 5, 9], label=[1, 0, 1], history_labels=[[1, 0, 0], [1], []]))
    found = {name: values.tolist() for name, values in facts(few, np.array([0, 4, 8])).items()}
    assert found == dict(row=[0, 4, 8], user=[0, 0, 1], label=[1, 0, 1], likes=[1, 1, 0], dislikes=[2, 0, 0])


def test_the_flipped_sign_and_the_like_rate():
    a = invented(CHANGES[0], lambda likes, labels: np.random.default_rng(1).normal(size=300) + likes)
    assert auc(a.labels, flipped(a).scores) == pytest.approx(1 - auc(a.labels, a.scores), abs=1e-12)
    assert counted(a).scores.tolist() == [(a.likes / 10).tolist()]


def two_models():
    "One that counts likes, and one that counts and knows the label while the titles are its own."
    rng = np.random.default_rng(2)

    def told(change, likes, labels):
        own = 4 * labels + 2 * rng.normal(size=300)
        return {CHANGES[0]: likes + own, 'history emptied': own}.get(change, likes + rng.normal(size=300))

    counter = [
        invented(c, lambda likes, labels: (c != 'history emptied') * likes + rng.normal(size=300))
        for c in CHANGES
    ]
    reader = [
        readings.replace(invented(c, lambda likes, labels: told(c, likes, labels)), model='Reader')
        for c in CHANGES
    ]
    return counter, reader


def test_the_long_table_and_its_correction():
    counter, reader = two_models()
    long = long_table(counter + reader)
    rows = {(r['model'], r['change']): r for r in long.iter_rows(named=True)}
    assert rows['Reader', CHANGES[0]]['AUC'] == pytest.approx(
        100 * auc(reader[0].labels, reader[0].scores), abs=1e-9
    )
    assert rows['History like-rate', '']['matched'] == 50
    assert (
        rows['Reader', 'titles exchanged']['effect_high']
        < 0
        < rows['Model', 'titles exchanged']['effect_high']
    )
    assert rows['Reader', CHANGES[0]]['effect'] is None and rows['Reader', CHANGES[0]]['over_low'] > 0
    p = lambda a, b: compare(a.users, a.labels, a.scores, b.scores, n=readings.RESAMPLES)['p_bootstrap']
    raw = [
        p(a, b)
        for c in (counter, reader)
        for a, b in [(a, c[0]) for a in c[1:]] + [(a, counted(a)) for a in c]
    ]
    assert sorted([*long['effect_p'].drop_nulls(), *long['over_p'].drop_nulls()]) == pytest.approx(
        sorted(holm(raw)), abs=1e-12
    )


def test_a_blind_model_and_a_table_without_what_a_finding_needs():
    rng = np.random.default_rng(3)
    blind = [invented(change, lambda likes, labels: rng.normal(size=300)) for change in CHANGES]
    assert 'not clearly better than chance' in finding(
        long_table(blind), 'corrected', 'films', 'Model', 'K=64'
    )
    with pytest.raises(LlmrecError, match='titles numbered'):
        finding(long_table(blind[:2]), 'corrected', 'films', 'Model', 'K=64')


def test_an_exchange_that_costs_something_only_at_equal_like_rate_is_said():
    true = dict(AUC=73.0, AUC_low=64.0, over_high=1.0)
    exchanged = dict(AUC_low=60.0, effect=-2.0, effect_low=-5.5, effect_high=0.7)
    alike = dict(effect_matched=-9.2, effect_matched_low=-18.5, effect_matched_high=-0.5)
    assert verdict(true, exchanged | alike).startswith('mostly counts likes')
    assert '-9.2 [-18.5, -0.5]' in verdict(true, exchanged | alike)
    assert verdict(true, exchanged | alike | dict(effect_matched_high=0.5)).startswith(
        'behaves like a counter'
    )
