"What TALLRec's result notebooks are made of: models, comparisons, samples, drawings and sentences."

import math
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot
import numpy as np
import polars as pl
import pytest
from transformers import LlamaConfig

from llmrec.data.alpaca import INPUT, INSTRUCTION, OUTPUT
from llmrec.data.yesno import load_yesno
from llmrec.experiments import (
    answer_kinds,
    framework,
    readings_shown,
    tallrec_figures,
    tallrec_results,
    tuning_samples,
)
from llmrec.experiments.in_context import Asked
from llmrec.experiments.tables import Cell
from llmrec.experiments.tallrec_study import llm_name, study
from llmrec.llm.rec_tuning import RecTuningConfig
from llmrec.paths import LlmrecError
from llmrec.runs.records import Failed

matplotlib.use('Agg')


def rows(method, values, dataset='films', ks=(16, 64, 256)):
    return [
        dict(
            dataset=dataset, method=method, setting=f'K={k}', metric='AUCx100', value=v, low=v - 3, high=v + 3
        )
        for k, v in zip(ks, values)
    ]


# Models and comparisons


def test_a_protocol_has_its_own_datasets_or_those_of_the_study():
    values = dict(datasets=['films', 'books'], llm_ks=[16])
    published, corrected = tallrec_results.studies_by_protocol(
        values, ['as_published', 'corrected'], dict(corrected=['books'])
    )
    assert (published.protocol, published.datasets) == ('as_published', ('films', 'books'))
    assert (corrected.protocol, corrected.datasets) == ('corrected', ('books',))
    with pytest.raises(LlmrecError, match="'bookz'"):
        tallrec_results.studies_by_protocol(values, ['corrected'], dict(corrected=['bookz']))


def test_every_loss_of_every_model_and_a_further_one_has_no_label():
    s = study(backbone='miniature', label='ours')
    found = tallrec_results.language_models(
        s, ['preset', 'answer'], dict(tiny=dict(datasets=['films'], llm_ks=[4]))
    )
    assert [(x.backbone, x.label, x.loss) for x in found] == [
        ('miniature', 'ours', 'preset'),
        ('miniature', 'ours', 'answer'),
        ('tiny', '', 'preset'),
        ('tiny', '', 'answer'),
    ]
    assert found[2].datasets == ('films',) and found[2].llm_ks == (4,) and found[0].datasets == s.datasets


def test_a_further_model_with_a_loss_of_its_own_has_that_loss_alone():
    s = study(backbone='miniature')
    further = dict(scripts=dict(backbone='miniature', llm_ks=[4], loss='prompt+answer'))
    found = tallrec_results.language_models(s, ['preset', 'answer'], further)
    assert [(x.loss, x.llm_ks) for x in found] == [
        ('preset', s.llm_ks),
        ('answer', s.llm_ks),
        ('prompt+answer', (4,)),
    ]
    with pytest.raises(LlmrecError, match="'prompts'"):
        tallrec_results.language_models(s, ['answer'], dict(scripts=dict(loss='prompts')))


def test_a_further_model_can_stand_under_a_protocol_of_its_own():
    published, corrected = tallrec_results.studies_by_protocol(
        dict(datasets=['films'], llm_ks=[16]), ['as_published', 'corrected'], {}
    )
    further = dict(
        beside=dict(backbone='tiny', llm_ks=[4]),
        elsewhere=dict(backbone='tiny', llm_ks=[64], variants=['RT'], protocol='corrected'),
    )

    def found(s, own):
        return [
            (x.protocol, x.llm_ks, x.variants)
            for x in tallrec_results.language_models(s, ['answer'], further, own)
        ]

    assert found(published, True) == [
        ('as_published', (16,), ('TALLRec',)),
        ('as_published', (4,), ('TALLRec',)),
    ]
    assert found(corrected, False) == [('corrected', (64,), ('RT',))]
    assert found(corrected, True) == [
        ('corrected', (16,), ('TALLRec',)),
        ('corrected', (4,), ('TALLRec',)),
        ('corrected', (64,), ('RT',)),
    ]
    with pytest.raises(LlmrecError, match="Did you mean 'llm_ks'"):
        tallrec_results.language_models(published, ['answer'], dict(tiny=dict(llm_k=[4])))


def test_a_model_is_tested_against_the_others_of_its_dataset_and_setting():
    rng = np.random.default_rng(0)
    users, labels = np.repeat(np.arange(8), 6), np.tile([0, 1], 24)

    def cell(dataset, name, setting):
        return Cell(dataset, name, setting, users, labels, rng.normal(size=(1, 48)), math.nan)

    cells = [
        cell('films', 'a', 'K=16'),
        cell('films', 'b', 'K=16'),
        cell('films', 'b', 'K=64'),
        cell('books', 'b', 'K=16'),
    ]
    assert tallrec_results.against_others(cells[0], cells)['against'].to_list() == ['b']
    assert tallrec_results.against_others(cells[3], cells).is_empty()


def test_standing_against_a_plain_loop():
    rng = np.random.default_rng(1)
    long = pl.DataFrame(
        sum(
            (
                rows(m, rng.normal(50, 4, 3), d)
                for d in ('films', 'books')
                for m in ('GRU4Rec', 'DROS', 'Item mean', 'History like-rate', 'TALLRec (x)', 'AT (x)')
            ),
            [],
        )
    )
    value = {(r['dataset'], r['method'], r['setting']): r['value'] for r in long.iter_rows(named=True)}
    for r in tallrec_results.standing(long).iter_rows(named=True):
        d, k = r['dataset'], r['setting']
        assert r['above_baselines'] == (
            r['value'] > value[d, 'GRU4Rec', k] and r['value'] > value[d, 'DROS', k]
        )
        assert r['above_rate'] == (r['value'] > value[d, 'History like-rate', k])
    assert tallrec_results.standing(long).height == 6


def test_a_failed_run_is_above_nothing_and_a_setting_without_baselines_counts_for_nothing():
    long = pl.DataFrame(
        rows('GRU4Rec', [50.0], ks=[16])
        + rows('History like-rate', [55.0], ks=[16])
        + rows('TALLRec', [math.nan, 60.0], ks=[16, 64])
    )
    found = tallrec_results.standing(long)
    assert found['above_baselines'].to_list() == [False, None] and found['above_rate'].to_list() == [
        False,
        None,
    ]
    assert 'in 0 of 2 settings' in tallrec_results.standing_said(long)


def test_only_the_first_language_model_is_counted():
    long = pl.DataFrame(
        rows('GRU4Rec', [50.0] * 3)
        + rows('History like-rate', [58.0] * 3)
        + rows('TALLRec (a)', [51.0, 59.0, 40.0])
        + rows('TALLRec (b)', [70.0] * 3)
    )
    assert tallrec_results.standing_said(long) == (
        'TALLRec (a) is above all six sequential baselines in 2 of 3 settings and above that share in 1'
        ' and below it in 2'
    )


def test_runs_below_chance_are_listed_and_failed_ones_left_out(monkeypatch):
    bad = SimpleNamespace(metrics=dict(auc=dict(films=0.4, books=0.6), valid_curve=[(1, 0.45)]))
    failed = Failed.__new__(Failed)
    monkeypatch.setattr(
        tallrec_results,
        'llm_records',
        lambda s: {(('films',), 'RT', 16, 0): bad, (('films',), 'RT', 64, 0): failed},
    )
    s = study()
    assert list(tallrec_results.below_chance(s)) == [
        f"{llm_name(s, 'RT')}, as_published, films, K=16, draw 0: 40.0, flipped 60.0; validation 0.45 at 1"
    ]
    assert tallrec_results.curve_said(SimpleNamespace(metrics={})) == 'not kept'


# Samples


def test_parts_must_have_equally_many_lines():
    a = {INSTRUCTION: 'a', INPUT: '1\n2', OUTPUT: 'x'}
    assert tuning_samples.sample_table(dict(a=a), by_line=True)['part'].to_list() == [
        'Task Instruction',
        'Task Input',
        'Task Input',
        'Task Output',
    ]
    with pytest.raises(ValueError):
        tuning_samples.sample_table(dict(a=a, b=a | {INPUT: '1'}), by_line=True)


def test_the_first_record_about_a_word_has_an_input():
    records = pl.DataFrame({INSTRUCTION: ['Film?', 'Book?', 'FILM!'], INPUT: [' ', 'b', 'c']}).with_row_index(
        'record', offset=1
    )
    assert [tuning_samples.first_about(records, w)['record'] for w in ('film', 'nothing')] == [3, 2]
    with pytest.raises(LlmrecError, match='No instruction record has an input'):
        tuning_samples.first_about(records[:1], 'film')


def test_a_secret_record_shows_none_of_its_words():
    record = {INSTRUCTION: 'Translate this.', INPUT: 'Who?', OUTPUT: 'Wer?'}
    shown = tuning_samples.shown_parts(record, secret=True)
    assert not [text for text in record.values() if any(text in x for x in shown.values())]
    assert shown[INPUT].startswith('4 characters, SHA-256 ') and shown != tuning_samples.shown_parts(
        record | {INPUT: 'Whom'}, True
    )


@pytest.mark.parametrize(
    'ask, counted',
    [
        ('Translate it.', [1, 0]),
        ('TRANSLATION into Dutch', [1, 1]),
        ('Add a mistranslated word', [0, 0]),
        ('Write in French', [0, 0]),
        ('translate into dutch', [1, 0]),
    ],
)
def test_what_counts_as_a_translation(ask, counted):
    found = tuning_samples.translation_counts(pl.DataFrame({INSTRUCTION: [ask], INPUT: ['x']}))
    assert [found['translation tasks'], found['translation tasks that name a language']] == counted


@pytest.mark.parametrize('history', [2, 4, 10])
def test_the_rated_sample_is_the_first_with_both_kinds(history):
    films = load_yesno('films')
    found = tuning_samples.rated_sample(films, history)
    for r in films.splits['train'].iter_rows(named=True):
        labels = r['history_labels'][-history:]
        if len(labels) == history and len(set(labels)) == 2:
            break
    assert (
        found['history'] == r['history'][-history:]
        and found['item'] == r['item']
        and found['history_labels'] == labels
    )


# Figures


def test_the_adapter_of_llama_7b_by_hand():
    found = framework.lora_sizes(LlamaConfig(), RecTuningConfig.as_published().tuning)
    d, layers, inner, vocabulary, r = 4096, 32, 11008, 32000, 8
    assert found.trained == layers * 2 * r * (d + d)
    assert found.frozen == 2 * vocabulary * d + layers * (4 * d * d + 3 * d * inner + 2 * d) + d


def test_the_second_card_shows_likes_and_dislikes_apart():
    sample = dict(history=[9, 1, 2, 3, 4], history_labels=[1, 1, 0, 1, 1], item=5)
    titles = [f't{i}' for i in range(10)]
    assert framework.card_rows(titles, sample)[1:] == [
        ('Preference', 't1, t3, t4'),
        ('Unpreference', 't2'),
        ('Target', 't5'),
    ]
    films = load_yesno('films')
    with pytest.raises(LlmrecError, match='both likes and dislikes'):
        framework.sample_to_show(films.splits['train'][:0])


@pytest.mark.parametrize(
    'yes, no, text',
    [(0, 0, '–'), (1, 0, 'only 1 row'), (10, 9, 'only 19 rows'), (10, 10, '0.70 [0.60, 0.80]')],
)
def test_few_answered_rows_have_no_interval(yes, no, text):
    auc = (None,) * 3 if yes + no == 0 else (0.7, 0.6, 0.8)
    line = dict(zip(('auc_answered', 'auc_answered_low', 'auc_answered_high'), auc))
    made = [
        dict(kind=kind, likes=n, dislikes=0) | line for kind, n in zip(answer_kinds.SHOWN, (yes, no, 50, 50))
    ]
    assert answer_kinds.answered_text(made) == text


def test_an_auc_without_interval_is_not_apart_from_chance():
    long = pl.DataFrame(
        [
            dict(
                kind=k,
                method=m,
                not_asked=why,
                auc_all_low=low,
                auc_all_high=high,
                auc_answered_low=None if m == 'c' else 0.4,
                auc_answered_high=None if m == 'c' else 0.6,
            )
            for k in answer_kinds.SHOWN
            for m, why, low, high in (
                ('a', None, 0.6, 0.7),
                ('b', None, 0.3, 0.4),
                ('c', None, None, None),
                ('d', None, 0.5, 0.6),
                ('e', 'no key', None, None),
            )
        ],
        infer_schema_length=None,
    )
    cases = answer_kinds.apart_from_chance(long)
    assert dict(cases.select('method', 'apart').iter_rows()) == dict(a=True, b=True, c=False, d=False)
    said = answer_kinds.cases_said(cases)
    assert 'excludes 0.5 in 2 of the 4 cases (above it in 1, below it in 1)' in said
    assert said.endswith('that over the answered rows in none of the 3 cases that have one')


def test_nobody_asked_is_no_division_by_zero():
    assert answer_kinds.readable_shares([Asked('a', None, 'no key')]) == '0%'


def test_the_stages_are_compared_where_all_have_rows():
    long = pl.DataFrame(
        rows('SASRec', [49.0, 51.0, 53.0])
        + rows('History like-rate', [56.0] * 3)
        + rows('TALLRec (x)', [60.0, 66.0])
    )
    said = tallrec_figures.stages_said(long)
    assert 'with 64 rows the six baselines reach at most 51.0, TALLRec 66.0' in said and 'alone' not in said
    assert 'with 256 rows' in tallrec_figures.stages_said(long.filter(pl.col('method') != 'TALLRec (x)'))
    assert tallrec_figures.tuning_gaps(long) == {}


def test_a_domain_that_was_not_tuned_on_is_left_out():
    on_films, on_books = (tallrec_figures.tuned_on((d,)) for d in ('films', 'books'))
    long = pl.DataFrame(rows(on_films, [60.0]) + rows(on_films, [52.0], 'books') + rows(on_books, [60.02]))
    assert tallrec_figures.domains_said(long, ['films', 'books'], 16) == (
        'Tuned on 16 rows of the other domain, the model has an AUC x 100 of 60.0 [57.0, 63.0] on Films (miniature) after tuning on Books'
        ' (miniature) (60.0 [57.0, 63.0] after tuning on Films (miniature)).'
    )
    assert tallrec_figures.domains_said(long, ['films', 'books'], 64).startswith('Only one domain')
    both = pl.DataFrame(rows(tallrec_figures.tuned_on(('films', 'books')), [61.0]))
    assert tallrec_figures.domains_said(pl.concat([long, both]), ['films', 'books'], 16).endswith(
        'With 16 rows of each it has 61.0 [58.0, 64.0] on Films (miniature).'
    )


def test_the_lines_of_figure_3a_from_the_top():
    long = pl.DataFrame(
        rows('Llama', [40.0])
        + rows('Alpaca-LoRA', [45.0])
        + rows('TALLRec', [60.0])
        + rows('History like-rate', [55.0])
    )
    assert tallrec_figures.lines_from_top(long, ['ChatGPT']) == [
        'History like-rate',
        'TALLRec',
        'Alpaca-LoRA',
        'Llama',
        'ChatGPT',
    ]


def test_alpaca_tuning_alone_has_no_training_rows():
    s = study(variants=['AT', 'TALLRec'], llm_ks=[4, 64, 16], llm_ks_by_dataset=dict(books=[8]))
    assert [
        readings_shown.largest_setting(s, d, v) for d in ('films', 'books') for v in ('AT', 'TALLRec')
    ] == ['K=0', 'K=64', 'K=0', 'K=8']


def test_a_stage_shows_the_sizes_that_it_is_given():
    fig, ax = framework.plane()
    framework.stage(ax, 0, 35.4, [('Instruction', 'Say yes.')], 'Yes.', framework.Sizes(1_000, 25, 8))
    texts = [t.get_text() for t in ax.texts]
    matplotlib.pyplot.close(fig)
    assert (
        '❄ frozen: 1,000\nparameters' in texts
        and 'LoRA, r = 8\ntrained:\n25\n(2.50%)' in texts
        and 'Yes.' in texts
    )
