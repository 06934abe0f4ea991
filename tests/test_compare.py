"`llmrec_compare`: what a row of a table is, which users are behind it, and intervals against plain resampling."

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec.paths import LlmrecError, figures_dir, output_to
from llmrec.repro.compare import compare, contributions, long_rows, main, partners
from llmrec.runs.records import Record, records_of, save_record, write_atomic

HERE = Path(__file__).resolve().parent.parent
USERS, METRICS = 90, ('Recall@5', 'NDCG@5', 'MRR@5')


def metric(ranks, name):
    "Recall, NDCG and MRR at five, written out."
    hit = (ranks > 0) & (ranks <= 5)
    value = dict(Recall=lambda r: 1.0, NDCG=lambda r: 1 / np.log2(r + 1), MRR=lambda r: 1 / r)[
        name.split('@')[0]
    ]
    return np.array([value(r) if h else 0.0 for r, h in zip(ranks, hit)])


def record(profile, seed, data='films', **arrays):
    r = Record('toy', f'{seed:016x}', {}, data, '', {}, arrays)
    save_record(r, records_of(profile))
    return r.name


def table(profile, artefact, rows, columns='dataset,method,metric,value,records'):
    paper, name = artefact.split('/')
    write_atomic(figures_dir(profile, paper) / f'{name}.long.csv', '\n'.join([columns, *rows]) + '\n')


def bounds(statistic, n, draws=2000):
    "Percentiles of a statistic of the drawn users."
    rng = np.random.default_rng(11)
    return np.quantile([statistic(rng.integers(0, n, n)) for _ in range(draws)], [0.025, 0.975])


def command(capsys, *args):
    status = main(list(args))
    return status, *capsys.readouterr()


@pytest.fixture
def ranks():
    rng = np.random.default_rng(0)
    return rng.integers(1, 30, (5, USERS)).astype(np.int32)


# --- intervals against an oracle that draws users and computes both cells again


def test_means_over_users_and_seeds(out, ranks):
    sides = dict(one=ranks[:3], other=ranks[3:])  # three seeds and two
    for profile, own in sides.items():
        names = ' '.join(record('x', n, test_rank=r) for n, r in enumerate(own, 10 * len(profile)))
        values = {m: np.mean([metric(r, m).mean() for r in own]) for m in METRICS}
        table(f'x+{profile}', 'llamarec/table1', [f'films,LRURec,{m},{v},{names}' for m, v in values.items()])
    found = compare('x+one', 'x+other')
    for row in found.iter_rows(named=True):
        one, other = ([metric(r, row['metric']) for r in sides[p]] for p in sides)

        def difference(u):
            return np.mean([v[u].mean() for v in other]) - np.mean([v[u].mean() for v in one])

        assert row['difference'] == pytest.approx(difference(np.arange(USERS)), abs=1e-12)
        assert (row['low'], row['high']) == pytest.approx(tuple(bounds(difference, USERS)), abs=0.012)


def test_a_part_of_the_users_that_differs_from_seed_to_seed(out, ranks):
    "Table 3: the method's records first, then those of the retriever whose users count."
    lru, own = ranks[:2], dict(one=ranks[2:4], other=ranks[4:5])
    kept = [r <= 20 for r in lru]
    for profile, mine in own.items():
        names = [record('x', n, test_rank=r) for n, r in enumerate([*mine, *lru], 10 * len(profile))]
        cells = {
            m: np.mean([metric(mine[min(s, len(mine) - 1)], m)[k].mean() for s, k in enumerate(kept)])
            for m in METRICS
        }
        table(
            f'x+{profile}',
            'llamarec/table3',
            [f'films,SASRec,{m},{v},{" ".join(names)}' for m, v in cells.items()],
        )
    for row in compare('x+one', 'x+other').iter_rows(named=True):
        values = [
            [metric(mine[min(s, len(mine) - 1)], row['metric']) for s in range(2)] for mine in own.values()
        ]

        def difference(u):
            a, b = ([v[u][k[u]].mean() for v, k in zip(side, kept)] for side in values)
            return np.mean(b) - np.mean(a)

        assert (row['low'], row['high']) == pytest.approx(tuple(bounds(difference, USERS)), abs=0.015)


def test_auc_draws_users_with_all_their_questions(out):
    rng = np.random.default_rng(3)
    users, labels = np.repeat(np.arange(25), 6), (rng.random(150) < 0.5).astype(np.int8)
    scores = {
        p: (rng.normal(size=150) + shift * labels).astype(np.float32)
        for p, shift in (('one', 0.3), ('other', 1.2))
    }

    def auc(y, s):
        gap = s[y == 1][:, None] - s[y == 0]
        return 100 * np.mean((gap > 0) + 0.5 * (gap == 0))

    for profile, s in scores.items():
        name = record(
            'x', len(profile), films_user=users, films_label=labels, films_row=np.arange(150), films_score=s
        )
        table(
            f'x+{profile}',
            'tallrec/table3',
            [f'films,TALLRec,K=16,AUCx100,{auc(labels, s)},50,49,51,{name}'],
            'dataset,method,setting,metric,value,UAUC,UAUC_low,UAUC_high,records',
        )
    rows = np.arange(150).reshape(25, 6)

    def difference(u):
        return auc(labels[r := rows[u].ravel()], scores['other'][r]) - auc(labels[r], scores['one'][r])

    found = {r['metric']: r for r in compare('x+one', 'x+other').iter_rows(named=True)}
    assert found['AUCx100']['difference'] == pytest.approx(difference(np.arange(25)))
    assert (found['AUCx100']['low'], found['AUCx100']['high']) == pytest.approx(
        tuple(bounds(difference, 25)), abs=1.5
    )
    assert (found['UAUC']['difference'], found['UAUC']['low']) == (0, None)  # no mean over all users


def test_contributions_are_the_users_means_where_everybody_counts(ranks):
    values = np.stack([metric(r, 'MRR@5') for r in ranks])
    assert contributions(values, np.ones_like(values, bool)) == pytest.approx(values.mean(0), abs=1e-15)


# --- which users: never by a name, never by a coincidence of one number


def test_ranks_before_and_after_are_told_apart_by_all_metrics_of_the_row(out):
    before, after = (
        np.array([1, 9, 2, 9], np.int32),
        np.array([9, 1, 9, 3], np.int32),
    )  # the same recall, of other users
    name = record('x', 1, retrieved_rank=before, rank=after)
    other = record('x', 2, retrieved_rank=before, rank=np.array([1, 1, 1, 1], np.int32))

    def rows(ranks, name):
        return [f'films,LlamaRec,{m},{metric(ranks, m).mean()},{name}' for m in METRICS]

    table('x+one', 'llamarec/table1', rows(after, name))
    table('x+other', 'llamarec/table1', rows(np.ones(4, int), other))
    row = compare('x+one', 'x+other').filter(metric='NDCG@5').row(0, named=True)
    gap = 1 - metric(after, 'NDCG@5')
    assert (row['low'], row['high']) == pytest.approx(tuple(bounds(lambda u: gap[u].mean(), 4)), abs=0.02)


@pytest.mark.parametrize('change', [dict(data='another'), dict(test_rank=np.arange(1, 8, dtype=np.int32))])
def test_other_people_have_no_interval(out, change):
    one = dict(test_rank=np.arange(1, 10, dtype=np.int32))
    for n, (profile, arrays) in enumerate((('one', one), ('other', one | change))):
        name, ranks = record('x', n, **arrays), arrays['test_rank']
        table(
            f'x+{profile}',
            'llamarec/table1',
            [f'films,LRURec,{m},{metric(ranks, m).mean()},{name}' for m in METRICS],
        )
    assert compare('x+one', 'x+other')['low'].to_list() == [None] * 3


def test_a_number_that_no_record_gives_has_no_interval(out, ranks):
    name = record('x', 1, test_rank=ranks[0])
    for p in ('one', 'other'):
        table(f'x+{p}', 'llamarec/table1', [f'films,LRURec,Recall@5,.123,{name}'])
    table('x+gone', 'llamarec/table1', ['films,LRURec,Recall@5,.123,toy-00000000000000ff'])
    assert (
        compare('x+one', 'x+other')['low'].to_list() == compare('x+one', 'x+gone')['low'].to_list() == [None]
    )


# --- rows


def test_a_model_in_brackets_is_matched_where_there_is_one_on_either_side():
    def key(method):
        return ('', 'films', method, '', 'NDCG@10')

    def found(left, right):
        return {
            a[2]: b[2] for a, b in partners({key(m): 0 for m in left}, {key(m): 0 for m in right}).items()
        }

    assert found(['LRURec', 'LlamaRec (A)'], ['LRURec', 'LlamaRec (B)']) == {
        'LRURec': 'LRURec',
        'LlamaRec (A)': 'LlamaRec (B)',
    }
    assert found(['LlamaRec (A)', 'LlamaRec (B)'], ['LlamaRec (B)']) == {'LlamaRec (B)': 'LlamaRec (B)'}
    assert found(['LlamaRec (A)', 'LlamaRec (B)'], ['LlamaRec (C)']) == {}


@pytest.mark.parametrize(
    'path', sorted(p.relative_to(HERE).as_posix() for p in HERE.glob('figures/*/*/*.long.csv'))
)
def test_every_number_of_a_committed_table_has_a_name_of_its_own(path):
    _, profile, paper, name = path.split('/')
    lines = pl.read_csv(HERE / path, infer_schema=False)
    with output_to(HERE):
        found = long_rows(f"{paper}/{name.split('.')[0]}", profile)
    numbers = {'value'} & set(lines.columns) or {c for c in lines.columns if f'{c}_low' in lines.columns}
    assert len(found) >= sum(lines[c].drop_nulls().len() for c in numbers) > 0


def test_what_only_one_has_is_shown_and_counted(out, capsys):
    table('x+one', 'llamarec/table2', ['films,,users,10,', 'films,,items,nan,', 'books,,users,3,'])
    table('x+other', 'llamarec/table2', ['films,,users,12,', 'films,,items,5,', 'songs,,users,1,'])
    status, said, counts = command(capsys, 'x+one', 'x+other')
    assert status == 0 and counts.startswith(
        '1 numbers are in both, 0 of them with an interval; 1 only in x+one, 2 only'
    )
    rows = {
        (r['dataset'], r['metric']): (r['a'], r['b'], r['difference'])
        for r in pl.read_csv(said.encode()).iter_rows(named=True)
    }
    assert rows == {
        ('films', 'users'): (10, 12, 2),
        ('films', 'items'): (None, 5, None),
        ('books', 'users'): (3, None, None),
        ('songs', 'users'): (None, 1, None),
    }
    assert command(capsys, 'x+one', 'x+other', '--out', str(out / 'both.md'))[0] == 0
    head, _, first, *_ = (out / 'both.md').read_text().splitlines()
    assert '| x+one | x+other | difference |' in head and '| 10.0000 | 12.0000 | 2.0000 |' in first


# --- what cannot be compared, in one sentence


@pytest.mark.parametrize(
    'args, said',
    [
        (['x+one', 'x+othe'], "Did you mean 'x+other'?"),
        (['x+one', 'x+other', 'llamarec/tabel2'], "Did you mean 'llamarec/table2'?"),
        (['x+one', 'x+other', 'llamarec/table1'], 'have not made llamarec/table1 for both'),
        (['x+one', 'x+far'], 'have not made the same artefact'),
        (['x+one', 'x+other', '--out', 'both.xlsx'], '.csv or .md'),
    ],
)
def test_a_complaint_is_one_sentence(out, capsys, args, said):
    table('x+one', 'llamarec/table2', ['films,,users,10,'])
    table('x+other', 'llamarec/table2', ['films,,users,12,'])
    table('x+far', 'llamarec/table3', ['films,LRURec,Recall@5,1,'])
    status, text, err = command(capsys, *args)
    assert (
        (status, text) == (1, '')
        and said in err
        and len(err.splitlines()) == 1
        and err.startswith('llmrec_compare: ')
    )


@pytest.mark.parametrize(
    'content, said',
    [
        ('dataset,method,metric,value\nfilms,,users,ten\n', "row 1 has 'ten' for a number"),
        (
            'dataset,method,metric,value\nfilms,,users,1\nfilms,,users,2\n',
            'row 2 has the same labels as a row before it',
        ),
        ('dataset,method,metric,value\nfilms,"users,1\n', 'cannot be read as a table'),
        ('', 'cannot be read as a table'),
        ('dataset,method\nfilms,LRURec\n', 'hold no long table of numbers'),
    ],
)
def test_a_damaged_table_is_named(out, capsys, content, said):
    table('x+one', 'llamarec/table2', ['films,,users,10,'])
    write_atomic(figures_dir('x+other', 'llamarec') / 'table2.long.csv', content)
    if 'no long table' in said:
        write_atomic(figures_dir('x+one', 'llamarec') / 'table2.long.csv', content)
    status, text, err = command(capsys, 'x+one', 'x+other')
    assert (status, text) == (1, '') and said in err and len(err.splitlines()) == 1


def test_a_damaged_record_is_named(out, ranks):
    name = record('x', 1, test_rank=ranks[0])
    for p in ('one', 'other'):
        table(
            f'x+{p}',
            'llamarec/table1',
            [f"films,LRURec,Recall@5,{metric(ranks[0], 'Recall@5').mean()},{name}"],
        )
    assert compare('x+one', 'x+other')['low'].to_list() == [0]
    (records_of('x') / f'{name}.npz').write_bytes(b'')
    with pytest.raises(LlmrecError, match='does not have the checksum'):
        compare('x+one', 'x+other')
