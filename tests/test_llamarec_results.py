"What the result notebooks of LlamaRec's tables compute, beside direct calculations."

import math
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from llmrec.experiments import by_choice, exact, implied, quoted, reached
from llmrec.experiments.longer import LONGER
from llmrec.experiments.statistics import agrees
from llmrec.runs.artefacts import paper_number


def row(method, value, dataset='beauty', metric='Recall@10', half=0.01):
    return dict(
        dataset=dataset,
        method=method,
        metric=metric,
        value=value,
        low=value - half,
        high=value + half,
        seeds=1,
    )


# Table 1


@pytest.mark.parametrize(
    'value, said', [(0.079, 'below'), (0.08, 'in'), (0.09, 'in'), (0.1, 'in'), (0.101, 'above')]
)
def test_the_bounds_belong_to_an_interval(value, said):
    assert reached.place(value, dict(low=0.08, high=0.1)) == said


@pytest.mark.parametrize(
    'ours, theirs',
    [
        ('SASRec', 'SASRec'),
        ('SASRec-CE', 'SASRec'),
        ('SASRec-gBCE' + LONGER, 'SASRec'),
        ('BERT4Rec-MLM', 'BERT4Rec'),
        ('LlamaRec (a model)', 'LlamaRec'),
        ('LRURec' + LONGER, 'LRURec'),
    ],
)
def test_variants_go_by_the_papers_name(ours, theirs):
    assert reached.own_name(ours) == theirs


def test_one_seed_of_the_longer_search_is_compared_with_the_same_seed():
    plain = row('SASRec', 0.09) | dict(dataset='ml-100k', seeds=5)
    alone = plain | dict(method='SASRec' + LONGER, value=0.12, seeds=1)
    first = {('ml-100k', 'SASRec'): {'Recall@10': 0.11}}
    table = pl.DataFrame([plain, alone])
    said = reached.gains_said([alone], table, {}, same=first)
    assert 'after the longer search, 1 seed (0.0900 without it over 5 seeds, 0.1100 with that one)' in said
    two = alone | dict(seeds=2)
    said = reached.gains_said([two], pl.DataFrame([plain, two]), {}, same=first)
    assert ', 2 seeds (0.0900 without it over 5 seeds, 0.1100 over the same 2)' in said
    every = alone | dict(seeds=5)
    said = reached.gains_said([every], pl.DataFrame([plain, every]), {}, same=first)
    assert said.endswith('after the longer search (0.0900 without it).')


def test_the_best_row_decides_whether_a_number_is_reached():
    printed = {('beauty', 'SASRec', 'Recall@10'): 0.08}
    rows = [row('SASRec', 0.05), row('SASRec-CE', 0.075), row('SASRec' + LONGER, 0.06), row('LRURec', 0.2)]
    best = reached.best_rows(rows, printed)
    assert {key: r['method'] for key, r in best.items()} == {('beauty', 'SASRec', 'Recall@10'): 'SASRec-CE'}
    assert reached.not_reached(best, printed) == {}
    assert list(reached.not_reached(reached.best_rows(rows[:1], printed), printed)) == [
        ('beauty', 'SASRec', 'Recall@10')
    ]


def test_a_failed_row_is_never_the_best():
    printed = {('beauty', 'SASRec', 'Recall@10'): 0.08}
    assert reached.best_rows([row('SASRec', math.nan)], printed) == {}


def test_another_loss_of_others_stands_beside_our_row_with_that_loss():
    about = dict(dataset='beauty', method='SASRec', setting='cross-entropy', metric='Recall@10')
    rows = [
        row('SASRec', 0.05),
        row('SASRec-CE', 0.07),
        row('SASRec-CE' + LONGER, 0.09),
        row('SASRec-CE', 0.5, 'games'),
    ]
    line = reached.public_line(about, [0.07], rows, {})
    assert (line['ours'][:6], line['longer'][:6], line['paper'], line['public']) == (
        '0.0700',
        '0.0900',
        None,
        '0.0700',
    )
    assert reached.public_line(about | dict(setting='binary loss'), [0.07], rows, {})['ours'][:6] == '0.0500'


# LRURec's exact Recall


def test_the_last_batch_counts_more():
    values = np.array([0.0] * 16 + [1.0, 0.0])
    found = exact.published_means([values, values], 16)
    assert found == {'window hidden': 1 / 18, 'mean over batches': 0.25}


def test_one_more_run_lies_where_a_t_interval_says():
    seeds = np.array([0.1, 0.11, 0.13])
    m = exact.one_more({f'seed {i}': v for i, v in enumerate(seeds)} | {'paper, printed': 0.2})
    half = (
        4.302652729911275 * seeds.std(ddof=1) * math.sqrt(1 + 1 / 3)
    )  # the 97.5 % quantile of t with 2 degrees
    assert m.low == pytest.approx(seeds.mean() - half) and m.high == pytest.approx(seeds.mean() + half)
    assert not m.inside


def test_the_exact_number_of_the_paper_goes_before_the_printed_one():
    assert exact.one_more({'seed 0': 0.1, 'paper, printed': 0.1426, 'paper, exact': 0.1344}).paper == 0.1344
    assert exact.one_more({'seed 0': 0.1, 'paper, printed': None, 'paper, exact': None}) is None


def test_seeds_are_ordered_as_numbers():
    table = pl.DataFrame({'seed 10': [1], 'exact': [1], 'seed 2': [1]})
    assert exact.seeds_in(table) == ['seed 2', 'seed 10']


# The implied Recall@20


@pytest.mark.parametrize('users', [123, 2854])
def test_users_in_the_list_can_be_read_back_from_printed_numbers(monkeypatch, users):
    "Two tables are made from known hits and printed with four digits; the range must hold the number of users."
    n, rng = 22332, np.random.default_rng(users)
    totals = {m: rng.uniform(0.2, 0.6) * users for m in implied.PRINTED}
    tables = dict(
        table1={m: round(t / n, 4) for m, t in totals.items()},
        table3={m: round(t / users, 4) for m, t in totals.items()},
        table2={'users': n},
    )
    monkeypatch.setattr(
        implied, 'paper_number', lambda paper, table, d, method, metric: tables[table][metric]
    )
    least, most, of = implied.users_allowed('beauty', 'LlamaRec')
    assert least <= users <= most and of == n


@pytest.mark.parametrize('hits', range(0, 611, 61))
def test_a_share_of_users_fits_its_own_grid_rounded_and_cut(hits):
    for printed in (round(hits / 610, 4), math.floor(hits / 610 * 1e4) / 1e4):
        assert str(hits) in implied.fits(printed, 'hits / 610').split(' or ')


def test_only_the_papers_datasets_have_an_implied_number():
    long = implied.beside_implied(
        pl.DataFrame([row('LRURec', 0.13, metric='Recall@20'), row('LRURec', 0.4, 'films', 'Recall@20')])
    )
    assert long['covered'].to_list() == [True, None]
    assert '1 of 1' in implied.implied_finding(long)


# The choices


def ranked(before, after):
    return SimpleNamespace(name='r', arrays=dict(retrieved_rank=np.array(before), rank=np.array(after)))


def test_a_user_counts_in_the_seeds_that_retrieved_the_item():
    runs = [ranked([1, 21, 0], [2, 0, 0]), ranked([0, 3, 0], [0, 1, 0])]
    before, after = by_choice.on_subset(runs)
    assert before.tolist() == [1, 0.5] and after.tolist() == pytest.approx([1 / math.log2(3), 1])


def test_differences_to_the_published_runs_are_paired_by_user():
    published, other = [ranked([1, 2, 0, 4], [1, 2, 0, 4])], [ranked([1, 2, 0, 4], [1, 1, 0, 4])]
    line = by_choice.choice_line('films', 'other', other, published)
    assert line['change'] == pytest.approx((1 - 1 / math.log2(3)) / 4)
    assert line['gain'] == pytest.approx((1 - 1 / math.log2(3)) / 3) and line['users'] == 3


def test_a_change_of_the_tuning_keeps_the_rest_of_it():
    common = dict(datasets=['films'], ranker_datasets=['films'], tuning=dict(max_steps=2, lr=1e-3))
    studies = by_choice.studies_of(common, dict(slow=dict(tuning=dict(lr=1e-5)), seed=dict(seeds=[0, 1])))
    assert studies['slow'].tuning == dict(max_steps=2, lr=1e-5) and studies['seed'].tuning == common['tuning']
    assert list(studies) == [by_choice.PUBLISHED, 'slow', 'seed']


# Table 4


def test_what_is_said_of_other_datasets_is_left_out():
    values = dict(
        datasets=['ml-100k', 'beauty'],
        ranker_datasets=['ml-100k'],
        seeds=[0, 1],
        seeds_by_dataset={'ml-100k': [0], 'beauty': [3]},
        search={'ml-100k': {'dropout': [0.5]}},
    )
    out = quoted.narrowed(values, ['beauty'])
    assert (out['datasets'], out['ranker_datasets'], out['seeds'], out['search']) == (['beauty'], [], [3], {})
    assert values['datasets'] == ['ml-100k', 'beauty'], 'the caller keeps its own'


def test_a_dagger_marks_copied_numbers_of_beauty_alone():
    table = pl.DataFrame(
        dict(dataset=['Beauty', 'Beauty', 'Films (miniature)'], method=['P5', 'LlamaRec', 'P5'])
    )
    assert quoted.marked(table)['method'].to_list() == ['P5†', 'LlamaRec', 'P5']


def test_a_copied_number_names_the_work_it_comes_from():
    long = pl.DataFrame([row('LRURec', 0.09)])
    sources = dict(
        quoted.beside_sources(long).filter(metric='Recall@10').select('method', 'source').iter_rows()
    )
    assert sources['LRURec'] == 'ours' and sources['LlamaRec'] == 'paper'
    assert all(name in sources[m] for m, name in quoted.COPIED.items())


# Table 2


@pytest.mark.parametrize(
    'ours, printed, same',
    [
        (610, '610', True),
        (611, '610', False),
        (99_500, '100k', True),
        (99_499, '100k', False),
        (100_999, '100k', True),
        (101_000, '100k', False),
        (9.695, '9.69', True),
        (9.699, '9.69', True),
        (9.7001, '9.69', False),
        (7.9e-4, '7e-4', True),
    ],
)
def test_a_count_agrees_when_rounded_or_cut(ours, printed, same):
    assert agrees(ours, printed) is same


def test_the_papers_length_of_ml_100k_is_that_of_its_filtered_rows():
    assert agrees(90_274 / 610, f"{paper_number('llamarec', 'table2', 'ml-100k', '', 'mean_length'):.2f}")
