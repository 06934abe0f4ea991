"Tables and figures: same bytes when repeated, escaped, labelled, and the paper's numbers kept apart from ours."

import csv
import subprocess
import sys

import polars as pl
import numpy as np
import pytest

from llmrec.runs import artefacts as ar
from llmrec.paths import LlmrecError

FIGURE = '''
import matplotlib.pyplot as plt
from llmrec.runs.artefacts import figure_style, save_figure
with figure_style():
    fig, ax = plt.subplots()
    ax.plot([1, 2, 3], [1, 4, 9], marker='s', label='a'); ax.legend()
save_figure(fig, 'llamarec', 'figure3', 'caption', 'miniature')
'''


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    return tmp_path / 'figures' / 'miniature' / 'llamarec'


def test_a_figure_has_the_same_bytes_in_another_process(out):
    runs = []
    for _ in range(2):
        subprocess.run([sys.executable, '-c', FIGURE], check=True)
        runs.append({p.name: p.read_bytes() for p in sorted(out.iterdir())})
    assert sorted(runs[0]) == ['figure3.caption.md', 'figure3.pdf', 'figure3.png', 'figure3.svg']
    assert runs[0] == runs[1]


def test_csv_keeps_every_digit_and_missing_values(out):
    frame = pl.DataFrame({'method': ['a, "b"', 'c'], 'value': [1 / 3, None], 'n': [1234567, 0]})
    paths = ar.save_table(frame, 'llamarec', 'table1', 'caption', 'miniature')
    rows = list(csv.DictReader(paths['csv'].open(encoding='utf-8', newline='')))
    assert float(rows[0]['value']) == 1 / 3 and rows[1]['value'] == '' and rows[0]['method'] == 'a, "b"'
    assert '| 0.3333 | 1,234,567 |' in paths['md'].read_text() and '| – | 0 |' in paths['md'].read_text()
    assert sorted(p.name for p in out.iterdir()) == [
        'table1.caption.md',
        'table1.csv',
        'table1.md',
        'table1.sources.csv',
        'table1.tex',
    ]


def test_tex_is_escaped_and_labelled():
    text = ar.table_tex(pl.DataFrame({'a_b': ['50 % & more']}), 'Cost in $', 'tab:x')
    assert (
        r'a\_b' in text
        and r'50 \% \& more \\' in text
        and r'\caption{Cost in \$}' in text
        and r'\label{tab:x}' in text
    )


def test_best_ignores_missing_and_marks_ties():
    frame = pl.DataFrame({'x': [None, 0.2, 0.2, float('nan')], 'y': [0.3, 0.1, 0.5, None]})
    assert ar.best_in_column(frame, ['x']) == [(1, 'x'), (2, 'x')]
    assert ar.best_in_row(frame, ['x', 'y']) == [(0, 'y'), (1, 'x'), (2, 'y')]
    assert ar.best_in_row(frame, ['x', 'y'], largest=False) == [(0, 'y'), (1, 'y'), (2, 'x')]


def test_caption_says_everything():
    text = ar.caption('paper', {'beauty': 'a' * 64}, 'meta-llama/Llama-2-7b-hf', (3,), 'full ranking')
    for part in ('paper', 'beauty', 'a' * 12, 'Llama-2-7b-hf', 'seed 3', 'Full ranking'):
        assert part in text
    assert 'backbone none' in ar.caption('paper', {'beauty': 'a'}, '', (1, 2), 'x')


@pytest.mark.parametrize(
    'frame, kwargs',
    [
        (pl.DataFrame({'a': [[1]]}), {}),
        (pl.DataFrame({'a': [1]}), {'bold': [(0, 'b')]}),
        (pl.DataFrame({'a': [1]}), {'formats': {'b': '.1f'}}),
    ],
)
def test_bad_tables_are_refused(out, frame, kwargs):
    with pytest.raises(LlmrecError):
        ar.save_table(frame, 'llamarec', 'table1', 'c', 'miniature', **kwargs)


def test_paper_numbers_are_numbers():
    for paper in ('tallrec', 'llamarec', 'lrurec'):
        frame = ar.paper_numbers(paper)
        assert len(frame) >= 20 and frame.filter(pl.col('value').is_null())['printed'].is_in(['<1']).all()


def test_their_numbers_never_become_ours():
    ours = pl.DataFrame(
        {'dataset': ['beauty'], 'method': ['Popularity'], 'metric': ['Recall@10'], 'value': [0.01]}
    )
    both = ar.beside_paper(ours, 'llamarec', 'table1', missing=True)
    assert both['value'].drop_nulls().to_list() == [0.01] and both['paper'].null_count() == 1
    assert both['difference'].null_count() == len(both)


def test_the_interval_covers_or_not():
    ours = pl.DataFrame(
        {
            'dataset': ['movie'] * 2,
            'method': ['TALLRec'] * 2,
            'setting': ['K=16', 'K=64'],
            'metric': ['AUCx100'] * 2,
            'value': [70.0, 60.0],
            'low': [66.0, 58.0],
            'high': [74.0, 62.0],
        }
    )
    assert ar.beside_paper(ours, 'tallrec', 'table3')['covered'].to_list() == [True, False]
    with pytest.raises(LlmrecError):
        ar.beside_paper(ours.drop('setting'), 'tallrec', 'table3')


def test_a_public_run_averages_over_batches():
    "38 batches of 16 users and one of 2: a hit counts 1/624 or eight times as much, never 1/610."
    runs = ar.paper_numbers('public_runs').filter(
        pl.col('dataset') == 'ml-100k', pl.col('metric').str.starts_with('Recall')
    )
    hits = runs['value'].to_numpy()
    assert (
        len(hits) == 3
        and abs(hits * 624 - (hits * 624).round()).max() < 1e-9
        and abs(hits * 610 - (hits * 610).round()).min() > 0.1
    )


def test_a_caption_begins_with_the_finding_and_ends_small():
    said = ar.caption('paper', {'beauty': 'a' * 64}, '', (1,), 'full\nranking', 'A note.', 'It is so.')
    finding, setting, made = said.split('\n')
    assert (
        finding == 'It is so.'
        and setting == 'Full ranking. A note.'
        and made.startswith('Profile paper on beauty')
    )
    assert ar.caption_md(said).split('\n\n') == [finding, setting, f'<small>{made}</small>']
    tex = ar.table_tex(pl.DataFrame({'a': [1]}), said, 'tab:x')
    assert (
        r'\caption{It is so. Full ranking. A note.}' in tex
        and r'{\scriptsize Profile paper' in tex
        and 'max width' in tex
    )


def test_what_is_shown_has_ten_columns_and_the_csv_has_all(out):
    wide = pl.DataFrame({f'c{i}': [i] for i in range(11)})
    with pytest.raises(LlmrecError, match='room for 10'):
        ar.save_table(wide, 'llamarec', 'table1', 'c', 'miniature')
    paths = ar.save_table(
        wide, 'llamarec', 'table1', 'c', 'miniature', shown=wide.select('c0', 'c1'), by='c0', bold=[(0, 'c1')]
    )
    assert (
        pl.read_csv(paths['csv']).width == 11
        and '**1**' in paths['md'].read_text()
        and 'c2' not in paths['md'].read_text()
    )
    with pytest.raises(LlmrecError):
        ar.save_table(wide, 'llamarec', 'table1', 'c', 'miniature', shown=wide.select('c0'), by='c5')


def test_bold_is_the_best_of_what_may_be_compared():
    row = lambda group, method, value, competes=True: dict(
        group=group,
        method=method,
        column='AUC',
        value=value,
        low=None,
        high=None,
        paper=0.4,
        competes=competes,
    )
    shown, bold = ar.beside(
        pl.DataFrame(
            [
                row('a', 'x', 0.5),
                row('a', 'y', 0.7, False),
                row('a', 'z', 0.6),
                row('b', 'x', 0.9),
                row('a', 'nan', float('nan')),
            ]
        ),
        '.1f',
    )
    assert bold == [(2, 'AUC')] and shown['difference'].to_list()[:2] == ['+0.1', '+0.3']
    assert shown.filter(method='nan').row(0, named=True) == dict(
        group='a', method='nan', AUC='failed', paper='0.4', difference=None
    )


def test_labels_keep_their_order_and_their_distance():
    rng = np.random.default_rng(0)
    for _ in range(20):
        at = rng.uniform(0, 10, 6)
        new = ar.spread_apart(at, 1.5)
        assert (new.argsort() == at.argsort()).all() and (
            sorted(new)[1:] - np.sort(new)[:-1] >= 1.5 - 1e-9
        ).all()
    assert (ar.spread_apart([0, 5, 10], 1.5) == [0, 5, 10]).all()


COMMITTED = [
    p
    for profile in ('real-cpu', 'miniature-full')
    for p in sorted((ar.root() / 'figures' / profile).glob('*/*.md'))
]


@pytest.mark.parametrize('path', COMMITTED, ids=lambda p: p.relative_to(ar.root()).as_posix())
def test_every_committed_table_fits_and_every_caption_finds_something(path):
    text = path.read_text(encoding='utf-8')
    if path.name.endswith('.caption.md'):
        assert len(text.strip().split('\n\n')) == 3 and '<small>Profile' in text
    else:
        assert max(line.count(' | ') for line in text.splitlines() if line.startswith('|')) < ar.WIDEST


def test_public_baselines_name_a_source_that_can_be_found_again():
    "A repository at a commit with a file, or a numbered thread; Recall and NDCG from the same place."
    rows = ar.paper_numbers('public_baselines')
    source = r'^[\w.-]+/[\w.-]+@[0-9a-f]{8}, .+|.*[\w.-]+/[\w.-]+, issue \d+'
    assert rows['artefact'].str.contains(source).all() and rows['value'].is_between(0.01, 0.2).all()
    pairs = rows.group_by('artefact', 'method', 'setting').agg(pl.col('metric').sort())
    assert all(metrics == ['NDCG@10', 'Recall@10'] for metrics in pairs['metric'].to_list())


TOY = pl.DataFrame(
    {
        'dataset': ['films', 'films', 'books'],
        'method': ['Popularity', 'LRU_Rec & more', 'LRU_Rec & more'],
        'ours': [0.05, 0.1234567, None],
        'paper': [None, 0.1426, 0.0916],
        'users': [1610, 1610, 22332],
    }
)


def test_a_cell_as_a_person_reads_it():
    assert [ar.cell_text(v) for v in (0.13442, 90274, None, float('nan'), True, 'LRURec')] == [
        '0.1344',
        '90,274',
        '–',
        'failed',
        'yes',
        'LRURec',
    ]
    assert ar.cell_text(56.16, '.1f') == '56.2'


def test_the_best_of_a_column_a_group_and_a_row():
    assert ar.best_in_column(TOY, ['ours']) == [(1, 'ours')] and ar.best_in_column(
        TOY, ['ours'], largest=False
    ) == [(0, 'ours')]
    assert ar.best_in_column(TOY, ['paper'], by='dataset') == [(1, 'paper'), (2, 'paper')]
    assert ar.best_in_row(TOY, ['ours', 'paper']) == [(0, 'ours'), (1, 'paper'), (2, 'paper')]


def test_markdown_and_tex_of_a_table_in_groups():
    lines = ar.table_md(TOY, 'c', bold=ar.best_in_column(TOY, ['ours'])).splitlines()
    assert lines[3:5] == [
        '| films | LRU_Rec & more | **0.1235** | 0.1426 | 1,610 |',
        '| books | LRU_Rec & more | – | 0.0916 | 22,332 |',
    ]
    groups = ar.table_md(TOY, 'c', by='dataset').splitlines()
    assert [row for row in groups if row.startswith('| **')] == [
        '| **films** |  |  |  |',
        '| **books** |  |  |  |',
    ]
    assert ar.table_md(pl.DataFrame({'a|b': ['x|y']}), '').splitlines()[2] == '| x\\|y |'
    text = ar.table_tex(TOY, 'A 95 % interval', 'tab:toy', bold=[(1, 'ours')])
    assert (
        r'films & LRU\_Rec \& more & \textbf{0.1235} & 0.1426 & 1,610 \\' in text
        and r'\caption{A 95 \% interval}' in text
        and r'{llrrr}' in text
    )
    assert r'\multicolumn{4}{l}{\textit{films}} \\' in ar.table_tex(TOY, 'x', 'tab:toy', by='dataset')
    assert (
        ar._escape_tex('a\\b{c}^~<')
        == r'a\textbackslash{}b\{c\}\textasciicircum{}\textasciitilde{}\textless{}'
    )


def test_nothing_is_bold_where_nothing_competes():
    row = lambda method, value: dict(
        group='a', method=method, column='AUC', value=value, low=None, high=None, paper=0.1426
    )
    long = pl.DataFrame([row('x', 0.05), row('y', 0.135)])
    assert (
        ar.beside(long)[1] == [(1, 'AUC')] and ar.beside(long.with_columns(competes=pl.lit(False)))[1] == []
    )
    assert ar.beside(long)[0]['difference'][1] == '-0.0076'


def test_a_table_twice_where_its_files_lie_and_where_its_numbers_come_from(out):
    save = lambda **how: ar.save_table(TOY, 'llamarec', 'table1', 'c', 'miniature', bold=[(1, 'ours')], **how)
    first = {kind: path.read_bytes() for kind, path in save().items()}
    paths = save()
    assert (
        first == {kind: path.read_bytes() for kind, path in paths.items()}
        and paths['tex'] == out / 'table1.tex'
    )
    assert pl.read_csv(paths['csv']).equals(TOY)
    origin = pl.read_csv(
        save(source=lambda row, column: f"toy-{row['method']}" if column == 'ours' else '')['sources.csv']
    )
    assert origin.filter(row=1)['source'][0] == 'toy-LRU_Rec & more' and set(origin['source']) >= {
        '*',
        'paper',
    }
    assert set(origin['column']) <= set(TOY.columns)
    with pytest.raises(LlmrecError, match="Did you mean 'ours'"):
        save(formats={'our': '.2f'})
    with pytest.raises(LlmrecError, match='cannot name a file'):
        ar.save_table(TOY, 'llamarec', '../table1', 'c', 'miniature')


def test_a_figure_tells_neither_date_nor_version_and_is_closed(out):
    with ar.figure_style():
        fig, ax = ar.plt.subplots()
    ax.fill_between([1, 20], 0.01, 0.02, alpha=0.3)
    made = {
        kind: path.read_bytes()
        for kind, path in ar.save_figure(fig, 'llamarec', 'figure3', 'c', 'miniature').items()
    }
    assert list(made) == ['svg', 'pdf', 'png', 'caption'] and ar.plt.get_fignums() == []
    assert (
        b'matplotlib v' not in made['svg'].lower()
        and b'CreationDate' not in made['pdf']
        and b'Software' not in made['png']
    )


def test_a_published_number_is_looked_up_by_name():
    assert ar.paper_numbers('llamarec').columns == [
        'paper',
        'artefact',
        'dataset',
        'method',
        'setting',
        'metric',
        'value',
        'printed',
    ]
    assert ar.paper_number('llamarec', 'table1', 'ml-100k', 'LRURec', 'Recall@10') == 0.1426
    assert ar.paper_number('llamarec', 'table2', 'beauty', '', 'interactions') == 198_000
    assert ar.paper_number('tallrec', 'table3', 'movie', 'TALLRec', 'AUCx100', 'K=16') == 67.24
    with pytest.raises(LlmrecError, match='K=16, K=64, K=256'):
        ar.paper_number('tallrec', 'table3', 'movie', 'TALLRec', 'AUCx100')
    with pytest.raises(LlmrecError, match="Did you mean 'LRURec'"):
        ar.paper_number('llamarec', 'table1', 'ml-100k', 'LRUrec', 'Recall@10')
    with pytest.raises(LlmrecError, match="Did you mean 'llamarec'"):
        ar.paper_numbers('llamrec')


def test_beside_the_paper_every_row_of_ours_stays_and_theirs_are_added():
    ours = pl.DataFrame(
        {
            'dataset': ['ml-100k'] * 3,
            'method': ['Popularity', 'LRURec', 'LRURec'],
            'metric': ['Recall@10', 'Recall@10', 'Recall@5'],
            'value': [0.05, 0.135, 0.07],
            'low': [0.03, 0.11, float('nan')],
            'high': [0.07, 0.165, float('nan')],
        }
    )
    table = ar.beside_paper(ours, 'llamarec', 'table1')
    assert table['paper'].to_list() == [None, 0.1426, 0.0705] and table['covered'].to_list() == [
        None,
        True,
        None,
    ]
    assert table['difference'][1] == pytest.approx(0.135 - 0.1426)
    full = ar.beside_paper(ours, 'llamarec', 'table1', missing=True)
    assert (
        full.head(3)['value'].to_list() == ours['value'].to_list()
        and full.tail(-3)['value'].null_count() == len(full) - 3 > 0
    )
