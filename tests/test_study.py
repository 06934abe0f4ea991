"What the studies behind the tables read."

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from llmrec.data import yesno
from llmrec.data.datasets import load_dataset
from llmrec.experiments import llamarec
from llmrec.experiments import study as st
from llmrec.experiments import tables, tallrec_study
from llmrec.experiments.retrieval import for_dataset, make_split
from llmrec.paths import LlmrecError
from llmrec.sequential.simple import popularity
from llmrec.systems.lists import sampled

SEARCH = {'films': {'weight_decay': [0, 0.01], 'dropout': [0.1, 0.5]}, 'books': {'dropout': [0.1, 0.5]}}


@pytest.fixture
def searching():
    return st.study(search=SEARCH, seeds=[0, 1], methods=['Popularity', 'SASRec', 'LRURec'])


@pytest.fixture
def asked(monkeypatch):
    "How often each run was asked for; its validation is best at dropout .5, and with weight decay."
    seen = Counter()

    def run_all(run, configs, profile, what):
        seen.update(configs)
        return [SimpleNamespace(config=c, metrics=dict(training=dict(best_valid=value(c)))) for c in configs]

    def value(c):
        return getattr(c.architecture, 'dropout', 0) + c.training.weight_decay

    monkeypatch.setattr(st, 'run_all', run_all)
    return seen


def test_what_was_searched_is_read_once_for_the_table_and_once_for_the_retrievers(searching, asked):
    chosen = st.choices(searching).filter(chosen=True)
    assert set(asked.values()) == {1} and len(asked) == 2 * (4 + 2)
    assert chosen.select('dataset', 'method').rows() == [(d, m) for d in SEARCH for m in ('SASRec', 'LRURec')]
    asked.clear()
    st.retrieval_records(searching)
    assert max(asked.values()) == 2  # in the search and, where it was chosen, as seed 0
    assert sum(asked.values()) == 2 * (4 + 2) + 2 * (1 + 2 + 2)


def test_the_choice_is_the_same_whoever_has_read_the_search(searching, asked):
    for d, best in (('films', dict(weight_decay=0.01, dropout=0.5)), ('books', dict(dropout=0.5))):
        for m in ('SASRec', 'LRURec'):
            assert (
                st.choice(searching, d, m)
                == st.best_setting(searching, d, m, st.search_records(searching))
                == best
            )
        assert st.choice(searching, d, 'Popularity') == {}
    runs = st.retrieval_records(searching)
    assert {runs['films', 'LRURec', seed].config.training.weight_decay for seed in (0, 1)} == {0.01}
    assert {runs['books', 'LRURec', seed].config.architecture.lru_dropout for seed in (0, 1)} == {0.5}


@pytest.mark.real_data('ml-100k-classic', 'bookcrossing', 'tallrec-book')
def test_a_caption_says_of_the_data_what_their_samples_say_and_loads_none(monkeypatch):
    published, corrected = (
        tallrec_study.study(datasets=['movie', 'book'], llm_tests=['movie', 'book'], protocol=p)
        for p in yesno.PROTOCOLS
    )
    loaded = {(d, p): yesno.load_yesno(d, p) for p in yesno.PROTOCOLS for d in ('movie', 'book')}
    for loader in ('load_films', 'load_books'):
        monkeypatch.setattr(yesno, loader, lambda *_, **__: pytest.fail('samples were loaded'))
    yesno.load_yesno.cache_clear()
    said = tallrec_study.study_caption(published, 'the end', llm=False, others=[corrected])
    for (d, p), data in loaded.items():
        assert f'{yesno.YESNO_DATASETS[d]} {p} (data {data.checksum})' in said
        assert not data.note or said.count(data.note) == 1
    assert loaded['book', 'corrected'].note and said.index(loaded['book', 'as_published'].note) < said.index(
        loaded['book', 'corrected'].note
    )


def test_a_dataset_may_have_other_numbers_of_training_rows():
    s = tallrec_study.study(
        datasets=['movie', 'book'],
        llm_tests=[],
        llm_ks=[16, 64],
        llm_ks_by_dataset={'book': [64]},
        variants=['AT', 'TALLRec'],
    )
    asked = [(train, variant, k) for train, variant, k, _ in tallrec_study.llm_grid(s)]
    assert asked == [
        (('movie',), 'AT', 0),
        (('movie',), 'TALLRec', 16),
        (('movie',), 'TALLRec', 64),
        (('book',), 'AT', 0),
        (('book',), 'TALLRec', 64),
    ]
    assert s.ks_of(('movie', 'book')) == (16, 64)


@pytest.mark.parametrize('place, hits', [(0, 0), (1, 200)])
def test_bounds_without_a_single_hit_are_no_point(place, hits):
    found = {r['metric']: r for r in tables.rows('films', 'x', [np.full(200, place)])}
    theirs = stats.binomtest(hits, 200).proportion_ci(method='wilson')
    for metric in ('Recall@10', 'NDCG@10', 'MRR@5'):
        assert (found[metric]['low'], found[metric]['high']) == pytest.approx(
            (theirs.low, theirs.high), abs=1e-9
        )
    assert found['Recall@10']['value'] == hits / 200 and theirs.high - theirs.low > 0.01


def test_a_setting_may_have_draws_of_its_own():
    s = tallrec_study.study(
        datasets=['movie', 'book'],
        llm_tests=[],
        llm_ks=[16, 64],
        llm_seeds_by_setting={'movie K=64': [0, 1, 2], 'movie+book K=16': [3]},
        variants=['AT', 'TALLRec'],
    )
    grid = tallrec_study.llm_grid(s, [('movie',), ('book',), ('movie', 'book')])
    tuned = {
        (train, k): [seed for t, v, n, seed in grid if (t, v, n) == (train, 'TALLRec', k)]
        for train, _, k, _ in grid
        if k
    }
    assert tuned == {
        (('movie',), 16): [0],
        (('movie',), 64): [0, 1, 2],
        (('book',), 16): [0],
        (('book',), 64): [0],
        (('movie', 'book'), 16): [3],
        (('movie', 'book'), 64): [0],
    }
    said = tallrec_study.said_of_seeds(s)
    assert (
        said
        == 'The language model has seed 0; on Movie with K = 64, seeds 0, 1, 2; on Movie and Book with K = 16, seed 3.'
    )


@pytest.mark.parametrize(
    'value, said',
    [
        ({'movie K=46': [0]}, "Did you mean 'movie K=64'"),
        ({'movie K=64': []}, r'got \[\]'),
        ({'movie K=64': [-1]}, 'seeds from 0'),
    ],
)
def test_such_draws_belong_to_a_setting_of_the_study(value, said):
    with pytest.raises(LlmrecError, match=said):
        tallrec_study.study(datasets=['movie'], llm_tests=[], llm_ks=[64], llm_seeds_by_setting=value)


@pytest.mark.parametrize(
    'name, value',
    [
        ('search', {'films': None}),
        ('search', {'films': {'dropout': 0.1}}),
        ('methods_by_dataset', {'films': 'LRURec'}),
        ('variants', {'a': None}),
        ('seeds_by_dataset', {'films': 1}),
        ('ranker_seeds_by_dataset', {'films': ['0']}),
    ],
)
def test_what_stands_in_a_mapping_of_a_study_has_the_right_kind(name, value):
    with pytest.raises(LlmrecError, match=f'LlamaRecStudy.{name} must be dict'):
        st.study(**{name: value})


@pytest.mark.parametrize(
    'value, said',
    [
        (64, r'must be dict\[str, list\[int\]\]'),
        ([], r'got \[\]'),
        ([64, True], 'must be dict'),
        ([0], 'above 0'),
    ],
)
def test_such_numbers_are_whole_and_above_0(value, said):
    with pytest.raises(LlmrecError, match=said):
        tallrec_study.study(datasets=['movie', 'book'], llm_tests=[], llm_ks_by_dataset={'book': value})
    with pytest.raises(LlmrecError, match="Did you mean 'book'"):
        tallrec_study.study(datasets=['movie'], llm_tests=[], llm_ks_by_dataset={'boo': [64]})


@pytest.mark.parametrize('name', ['seeds', 'ks', 'llm_ks', 'llm_seeds'])
def test_a_study_without_runs_is_refused(name):
    with pytest.raises(LlmrecError, match=f"'{name}' of a TallrecStudy is empty"):
        tallrec_study.study(**{name: []})
    with pytest.raises(LlmrecError, match='no seeds for films'):
        st.study(datasets=['films'], ranker_datasets=[], seeds_by_dataset={'films': []})


def test_a_rankers_seed_without_a_retriever_is_one_sentence():
    with pytest.raises(LlmrecError, match="Unknown .*'0'.* Known: 3"):
        st.study(
            datasets=['films'], ranker_datasets=['films'], ranker_seeds=[0], seeds_by_dataset={'films': [3]}
        )


@pytest.fixture(scope='module')
def two_tests():
    "The questions about all users and about a sample of 60, from the same retriever, with the truth behind them."
    cfg = llamarec.corrected(for_dataset('films', 'Popularity'))
    split = make_split(cfg.retrieval, load_dataset('films'))
    few = replace(cfg, test_users=60)
    score = popularity(split.train)
    return split, few, llamarec.last_questions(cfg, score, split), llamarec.last_questions(few, score, split)


def test_a_sample_is_asked_what_it_is_asked_among_all(two_tests):
    split, few, every, some = two_tests
    users = sampled(split.test, 60)
    assert len(users) == 60 and set(some.users) == set(every.users) & set(users) and 0 < len(some.users) < 60
    assert np.array_equal(some.retrieved_rank[users], every.retrieved_rank[users])
    assert not np.delete(some.retrieved_rank, users).any()
    there = np.isin(every.users, users)
    assert np.array_equal(some.shown, every.shown[there]) and np.array_equal(some.truth, every.truth[there])


def test_means_of_a_sample_are_over_the_sample_hits_or_not(two_tests):
    split, few, _, some = two_tests
    users, rng = sampled(split.test, 60), np.random.default_rng(0)
    rank = llamarec.rerank(some, rng.random(some.shown.shape))
    found = llamarec.results(some, rank, llamarec.only(split.test, users))
    assert found['users'] == 60
    assert found['overall']['ranked']['MRR@20'] == pytest.approx(sum(1 / r for r in rank if r) / 60)
    kept = llamarec.arrays_of(some, rank, users)
    row = next(r for r in tables.rows('films', 'x', [kept['rank']]) if r['metric'] == 'Recall@10')
    assert row['value'] == pytest.approx(((rank > 0) & (rank <= 10)).sum() / 60)
    assert kept['user'].tolist() == users.tolist() and len(kept['retrieved_rank']) == 60


@pytest.mark.parametrize('value', [0, -5])
def test_a_sample_has_somebody_in_it(value):
    with pytest.raises(LlmrecError, match='test_users'):
        st.study(ranker_datasets=['books'], test_users_by_dataset={'books': value})


def test_a_sample_belongs_to_a_dataset_of_the_study():
    with pytest.raises(LlmrecError, match="test_users_by_dataset.*Did you mean 'films'"):
        st.study(test_users_by_dataset={'film': 20})


def test_budgets_that_differ_are_said_by_dataset():
    s = st.study(datasets=['films', 'beauty'], ranker_datasets=['films', 'beauty'], tuning=dict(max_steps=40))
    said = st.ranker_said(s)
    assert (
        '40 steps of 16 prompts on Films (miniature)' in said and '40 steps of 12 prompts on Beauty' in said
    )


def test_a_row_about_a_sample_is_never_in_bold_where_it_is_one():
    s = st.study(
        datasets=['beauty', 'games'], ranker_datasets=['beauty', 'games'], test_users_by_dataset={'games': 20}
    )
    best = {'LRURec': 0.1, 'SASRec': 0.05, 'Retriever order': 0.2}
    long = tables.pl.DataFrame(
        [
            dict(
                dataset=d,
                method=m,
                metric='NDCG@10',
                value=v,
                low=v,
                high=v,
                seed_sd=None,
                seeds=1,
                records='',
            )
            for d in s.datasets
            for m, v in best.items()
        ]
    )
    shown, bold = st.readable(long, 'table1', ('NDCG@10',), apart=st.sampled_rows(s))
    assert [shown.row(i, named=True)['method'] for i, _ in bold] == ['Retriever order', 'LRURec']


def test_a_dataset_may_have_a_number_type_of_its_own():
    s = st.study(ranker_datasets=['films', 'books'], dtype='bfloat16', dtype_by_dataset={'books': 'float32'})
    films, books = (st.ranking_config(s, d, 0) for d in ('films', 'books'))
    assert (films.backbone.dtype, books.backbone.dtype) == ('bfloat16', 'float32')
    assert films == st.ranking_config(replace(s, dtype_by_dataset={}), 'films', 0)
    one = st.backbone_of(replace(s, dtype_by_dataset={}))
    assert one.endswith('+bfloat16') and ',' not in one
    both = st.backbone_of(s)
    assert f'{one} on Films' in both and f"{one.removesuffix('+bfloat16')} on Books" in both
    assert 'in bfloat16 on Films (miniature), in float32 on Books (miniature)' in st.ranker_said(s)


@pytest.mark.parametrize(
    'value, said',
    [({'film': 'float32'}, "Did you mean 'films'"), ({'films': 'bfloat61'}, "Did you mean 'bfloat16'")],
)
def test_such_a_number_type_and_its_dataset_are_known(value, said):
    with pytest.raises(LlmrecError, match=said):
        st.study(dtype_by_dataset=value)
