"TALLRec from end to end on tiny settings: the command, the same rows for every method, what a table may compare."

import numpy as np
import polars as pl
import pytest

from llmrec.data.yesno import few_shot, load_yesno
from llmrec.evaluation.auc import auc
from llmrec.experiments import binary, tallrec
from llmrec.experiments.tallrec_study import (
    Cell,
    binary_run,
    llm_run,
    printed,
    frame,
    seen_rows,
    study,
    tests as compare_all,
)
from llmrec.runs.records import Record
from llmrec.repro.profiles import load_profile, parameters
from test_reproduce import complaint

ALPACA = '{max_steps: 2, eval_steps: 1, warmup_steps: 0, gradient_checkpointing: false, optimiser: adamw_torch, valid_rows: 4, batch_size: 4, accumulation: 1}'


def test_all_methods_see_the_same_rows(out):
    s = study(
        datasets=['films'],
        ks=[4],
        seeds=[1],
        llm_seeds=[1],
        valid_rows=10,
        test_rows=20,
        tuning=dict(
            max_steps=1, eval_steps=1, warmup_steps=0, gradient_checkpointing=False, optimiser='adamw_torch'
        ),
        variants=['RT'],
    )
    want = few_shot(load_yesno('films').splits['train'].height, 4, 1).tolist()
    assert binary.run(binary_run(s, 'films', 'Item mean', 4, 1), 'example').metrics['rows'] == want
    assert tallrec.run(llm_run(s, ('films',), 'RT', 4, 1), 'example', False).metrics['rows'] == {
        'films': want
    }


def test_rec_tuning_needs_no_alpaca_and_alpaca_no_draw():
    s = study()
    rt, at, full = (llm_run(s, ('films',), v, 16, 0) for v in ('RT', 'AT', 'TALLRec'))
    assert rt.alpaca is None and at.alpaca == full.alpaca is not None
    assert at.k == 0 and at.rec == llm_run(s, ('films',), 'AT', 64, 3).rec
    assert full.rec.tuning.seed == 0 and llm_run(s, ('films',), 'TALLRec', 16, 3).rec.tuning.seed == 3


def test_a_comparison_uses_the_rows_that_both_have():
    rng = np.random.default_rng(0)
    users, labels, rows = np.repeat(np.arange(10), 10), rng.integers(0, 2, 100), np.arange(0, 100, 2)
    whole = Cell('films', 'all', 'K=16', users, labels, rng.normal(size=(2, 100)), float('nan'))
    part = Cell(
        'films',
        'some',
        'K=16',
        users[rows],
        labels[rows],
        labels[rows] + rng.normal(size=(1, 50)),
        float('nan'),
        rows,
    )
    found = compare_all(part, [whole]).row(0, named=True)
    want = auc(labels[rows], part.scores[0]) - np.mean([auc(labels[rows], s[rows]) for s in whole.scores])
    assert found['difference'] == pytest.approx(100 * want)


def test_the_papers_numbers_stand_only_beside_the_published_protocol():
    rng = np.random.default_rng(0)
    cell = Cell(
        'movie',
        'GRU4Rec',
        'K=16',
        np.arange(100),
        rng.integers(0, 2, 100),
        rng.normal(size=(2, 100)),
        float('nan'),
    )
    both = pl.concat([frame([cell]).with_columns(protocol=pl.lit(p)) for p in ('as_published', 'corrected')])
    table = printed(both)
    assert table['paper (16)'].to_list() == [49.07, None]


def test_seen_and_unseen_targets_are_told_apart():
    labels, seen = np.array([0, 1, 0, 1, 0, 1]), np.array([True, True, False, False, False, False])
    run = Record(
        'binary',
        'k',
        {},
        '',
        '',
        {},
        dict(test_label=labels, test_score=np.array([0.0, 1.0, 1.0, 0.0, 1.0, 0.0]), seen=seen),
    )
    found = {r['targets']: r for r in seen_rows('films', 'GRU4Rec', 16, [run])}
    assert (found['seen']['value'], found['unseen']['value']) == (100, 0) and found['seen'][
        'share'
    ] == pytest.approx(1 / 3)


def test_a_profile_speaks_to_one_paper():
    assert parameters('tallrec/table3', 'real-cpu', {})['datasets'] == ['movie', 'book']
    assert (
        parameters('llamarec/table1', 'real-cpu', {})['datasets']
        == load_profile('real-cpu')['parameters']['datasets']
    )


@pytest.mark.parametrize(
    'args, said',
    [
        (['tallrec/table3', '-p', 'datasets=[film, books]'], ["'film'", "Did you mean 'films'?"]),
        (['tallrec/figure4', '-p', 'tuning={max_step: 3}'], ['max_step', "Did you mean 'max_steps'?"]),
        (
            [
                'tallrec/figure1',
                '-p',
                'endpoints=[{paper_model: ChatGTP}]',
                '-p',
                f'alpaca={ALPACA}',
                '-p',
                'test_rows=4',
            ],
            ['ChatGTP', "Did you mean 'ChatGPT'?"],
        ),
    ],
)
def test_a_bad_parameter_is_one_sentence(tmp_path, args, said):
    message = complaint(tmp_path, *args)
    assert all(text in message for text in said)


def test_real_data_that_are_absent_are_asked_for(tmp_path):
    message = complaint(
        tmp_path, 'beyond/like-rate', '--profile', 'real-cpu', LLMREC_DATA=str(tmp_path), LLMREC_OFFLINE='1'
    )
    assert 'u.data' in message and 'LLMREC_DATA' in message
