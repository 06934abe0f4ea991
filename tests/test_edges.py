"Numbers at the edge: scores that are not numbers, mixed units of time, settings out of range, one user."

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from llmrec.config import check_types
from llmrec.data.interactions import from_lists, global_time_split, index
from llmrec.data.own import OwnData, load_own
from llmrec.data.own_ratings import load_own_ratings
from llmrec.data.tallrec import MovieSamplesConfig, movie_samples, split_samples
from llmrec.data.yesno_form import YesNoArrays
from llmrec.evaluation import intervals
from llmrec.paths import LlmrecError
from llmrec.sequential.bert4rec import BERT4RecConfig
from llmrec.sequential.binary import BinaryConfig
from llmrec.sequential.binary_training import BinaryData, make_model
from llmrec.sequential.candidates import ranks, recommend
from llmrec.sequential.lrurec import LRURecConfig
from llmrec.sequential.narm import NARMConfig
from llmrec.sequential.nearest import Factors, recommend_blocks
from llmrec.sequential.sasrec import SASRecConfig
from llmrec.sequential.simple import markov
from llmrec.sequential.training import State, Task, TrainingConfig, entered, fit
from llmrec.systems.palr import pool_of
from llmrec.systems.recmind import RecMindConfig, Tools

SEQS = from_lists([[5], [1, 2], [3]], 5)


@pytest.mark.parametrize('wrong', [torch.nan, torch.inf])
def test_a_score_that_is_no_number_is_never_the_first_place(wrong):
    def score(histories):
        scores = torch.arange(6.0).repeat(len(histories), 1)
        scores[-1, 4] = wrong
        return scores

    with pytest.raises(LlmrecError, match='User 2 has a score that is NaN or infinite'):
        ranks(score, SEQS, np.array([4, 3, 4]))
    with pytest.raises(LlmrecError, match='User 1 has'):
        recommend(score, SEQS, np.array([0, 1]), 2)


@pytest.mark.parametrize('side', ['states', 'items'])
def test_factors_that_are_no_numbers_are_refused(side):
    parts = dict(states=torch.ones(2, 3), items=torch.ones(6, 3))
    parts[side][1] = torch.nan
    with pytest.raises(LlmrecError, match='weights that are NaN or infinite'):
        recommend_blocks(lambda h: Factors(**parts, bias=None), SEQS, np.array([0, 1]), 2)


def test_nothing_hidden_or_met_makes_a_score_wrong():
    def score(histories):
        scores = torch.arange(6.0).repeat(len(histories), 1)
        scores[:, 0] = torch.nan  # padding is never ranked
        return scores

    assert ranks(score, SEQS, np.array([4, 3, 0])).tolist() == [1, 3, 0]


@pytest.mark.parametrize('k', [0, -1, 6])
def test_how_many_can_be_asked_for(k):
    with pytest.raises(LlmrecError, match='ask for 1 to 5'):
        recommend(lambda h: torch.ones(len(h), 6), SEQS, np.array([0]), k)


def test_a_markov_chain_divides_by_something():
    with pytest.raises(LlmrecError, match='above 0'):
        markov(SEQS, smoothing=0)


def test_a_validation_that_is_no_number_ends_the_training():
    model = torch.nn.Linear(1, 1)
    task = Task(lambda m, spans: m(torch.ones(1, 1)).sum(), lambda m: float('nan'), np.zeros((4, 2), int))
    with pytest.raises(LlmrecError, match='validation score is nan at iteration 0'):
        fit(model, task, TrainingConfig(epochs=1, batch_size=2), progress=False)
    with pytest.raises(LlmrecError, match='loss is inf at iteration 7'):
        entered(State(iteration=7), 0.5, float('inf'))


def shop(folder, times, titles=None):
    "Nine rows of three users; `times` of the first user's rows."
    rows = [dict(user=u, item=i, ts=t) for u in 'abc' for i, t in zip('xyz', times)]
    frame = pl.DataFrame(rows, schema=dict(user=pl.String, item=pl.String, ts=pl.String))
    if titles:
        frame = frame.with_columns(title=pl.col('item').replace_strict(titles))
    frame.write_csv(folder / 'shop.csv')
    more = dict(title='title') if titles else {}
    return OwnData('shop', str(folder / 'shop.csv'), timestamp='ts', core=1, **more)


def test_seconds_and_milliseconds_are_not_mixed(tmp_path):
    mixed = shop(tmp_path, ['1577836800', '1588687728923', '1609459200'])
    with pytest.raises(LlmrecError, match='row 1: 1577836800 looks like seconds'):
        load_own(mixed)
    found, _ = load_own(shop(tmp_path, ['0', '1588687728923', '1609459200000']))
    assert found.indexed.times[:3].tolist() == [0, 1588687728.923, 1609459200]


def test_a_time_without_seconds_may_have_an_offset(tmp_path):
    found, _ = load_own(
        shop(tmp_path, ['2020-01-01T00:30+02:00', '2020-01-01T00:30Z', '2020-01-01 02:00:00'])
    )
    assert found.indexed.times[:3].tolist() == [1577831400, 1577838600, 1577844000]


def test_a_title_is_one_line(tmp_path):
    titles = dict(x='A\n  long \t title', y='Y', z='Z')
    found, _ = load_own(shop(tmp_path, ['1', '2', '3'], titles))
    assert found.titles[1] == 'A long title'


def rated(folder, ties, **changes):
    "Two users, the later name first, and twelve items at one moment, in falling order."
    rows = [
        dict(user=u, item=f'{i:02}', title=f't{i}', rating=1 + 4 * (i % 2), ts=1)
        for u in 'ba'
        for i in range(12, 0, -1)
    ]
    pl.DataFrame(rows).write_csv(folder / 'rated.csv')
    return OwnData(
        'rated',
        str(folder / 'rated.csv'),
        timestamp='ts',
        rating='rating',
        like_from=3.0,
        title='title',
        core=1,
        ties=ties,
        **changes,
    )


def test_the_rule_for_ties_orders_ratings_and_leaves_users_where_they_are(tmp_path):
    cfg = replace(MovieSamplesConfig.as_published(), history=2)
    for ties, past, target in (('file', ['12', '11'], '10'), ('item', ['01', '02'], '03')):
        data, _ = load_own_ratings(rated(tmp_path, ties), cfg)
        first = data.splits['train'].row(0, named=True)
        named = [data.items[i] for i in first['history']]
        assert (named, data.items[first['item']]) == (past, target)
        assert data.users[first['user']] == 'b'


def test_samples_that_are_cut_are_counted(tmp_path):
    cfg = replace(MovieSamplesConfig.corrected(), history=2)
    every, report = load_own_ratings(rated(tmp_path, 'file'), cfg)
    assert sum(s.height for s in every.splits.values()) == 20 and report.samples_cut == 0
    some, report = load_own_ratings(rated(tmp_path, 'file'), replace(cfg, keep=12))
    assert sum(s.height for s in some.splits.values()) == 12 and report.samples_cut == 8
    assert '8 samples cut' in str(report)
    assert some.splits['test'].rows()[-1] == every.splits['test'].rows()[-1]


@pytest.mark.parametrize(
    'change', [dict(history=0), dict(history=-1), dict(keep=0), dict(cuts=(0.9,)), dict(cuts=(0.9, 0.8))]
)
def test_samples_that_cannot_be_drawn(change):
    ratings = pl.DataFrame(dict(user=[1] * 9, item=[*range(9)], rating=[5.0] * 9, timestamp=[*range(9)]))
    cfg = replace(MovieSamplesConfig(), history=2)
    assert [s.height for s in split_samples(movie_samples(ratings, cfg), cfg).values()] == [5, 1, 1]
    cfg = replace(cfg, **change)
    with pytest.raises(LlmrecError, match='MovieSamplesConfig.' + next(iter(change))):
        split_samples(movie_samples(ratings, cfg), cfg)


@pytest.mark.parametrize('shares', [(0.8, 0.5), (0.1, 0.0), (-0.1, 0.2)])
def test_shares_of_time_leave_something_to_train_on(shares):
    rows = dict(user=['a'] * 4, item=[*'wxyz'], rating=[1.0] * 4, timestamp=[1, 2, 3, 4])
    with pytest.raises(LlmrecError, match='leave something to train on'):
        global_time_split(index(pl.DataFrame(rows)), *shares)


def test_one_user_has_no_interval():
    assert np.isnan(intervals.bootstrap_interval([0.4])[1:]).all()
    value, *bounds = intervals.clustered_interval(lambda rows: len(rows) / 2, np.array([7, 7, 7, 7]))
    assert value == 2 and np.isnan(bounds).all()


def test_what_is_wrong_with_a_vector_is_named():
    with pytest.raises(LlmrecError, match='pvalues must be finite numbers, got nan at place 1'):
        intervals.holm([0.1, np.nan])
    with pytest.raises(LlmrecError, match='a must be finite numbers, got inf at place 0'):
        intervals.paired_permutation([np.inf, 1], [1, 1])


def test_a_proportion_of_all_or_none_ends_at_its_bound():
    for n in range(1, 400):
        assert intervals.proportion_interval(n, n)[2] == 1 and intervals.proportion_interval(0, n)[1] == 0


@pytest.mark.parametrize(
    'cls, change',
    [
        (SASRecConfig, dict(heads=0)),
        (SASRecConfig, dict(dropout=1.5)),
        (SASRecConfig, dict(max_length=0)),
        (SASRecConfig, dict(hidden=-4)),
        (SASRecConfig, dict(negatives=0)),
        (SASRecConfig, dict(t=-1.0)),
        (LRURecConfig, dict(r_max=1.2)),
        (LRURecConfig, dict(max_length=-1)),
        (LRURecConfig, dict(lru_dropout=1.0)),
        (NARMConfig, dict(embedding=0)),
        (BERT4RecConfig, dict(mask_probability=2.0)),
        (BERT4RecConfig, dict(mask_probability=0.0)),
        (BERT4RecConfig, dict(last_item_share=7.0)),
        (BERT4RecConfig, dict(blocks=0)),
        (BinaryConfig, dict(epochs=0)),
        (BinaryConfig, dict(validate_every=0)),
        (BinaryConfig, dict(batch_size=0)),
        (BinaryConfig, dict(heights=(2, 0))),
        (BinaryConfig, dict(hidden=0)),
    ],
)
def test_settings_out_of_range(cls, change):
    check_types(cls())
    with pytest.raises(LlmrecError, match=f'{cls.__name__}.{next(iter(change))} must be'):
        check_types(replace(cls(), **change))


def yes_no(width, n=4):
    return YesNoArrays(
        history=np.ones((n, width), np.int64),
        history_labels=np.ones((n, width), np.int64),
        lengths=np.full(n, width),
        items=np.full(n, 2),
        labels=np.arange(n) % 2,
        users=np.arange(n),
    )


def test_histories_have_one_width_that_the_filters_fit():
    with pytest.raises(LlmrecError, match='filters over 4 items, and a history has 3 places'):
        make_model(BinaryData(yes_no(3), yes_no(3), 5), BinaryConfig.as_published('Caser'))
    with pytest.raises(LlmrecError, match='hold 5 places of history and the validation rows 4'):
        make_model(BinaryData(yes_no(5), yes_no(4), 5), BinaryConfig.as_published('GRU4Rec'))


def test_an_agents_retriever_never_runs_out():
    tools = Tools(
        ['', *'abcde'], None, lambda h: torch.arange(6.0).repeat(len(h), 1), [1, 2, 3], RecMindConfig()
    )
    assert tools.retrieve('9') == [5, 4] and tools.retrieve('1') == [5]
    assert tools.observe('Retrieve', '') == 'e; d'
    everything = Tools(['', *'abc'], None, tools.score, [1, 2, 3], RecMindConfig())
    assert everything.retrieve('2') == [] and everything.observe('Retrieve', '2') == 'nothing'


def test_a_pool_shows_nothing_that_was_met_and_nothing_twice():
    for seed in range(20):
        pool = pool_of(np.random.default_rng(seed), 9, np.array([1, 2, 3]), np.array([1, 4, 4]), 5)
        assert len(set(pool)) == 5 and 4 in pool and not set(pool) & {1, 2, 3}
