"""Fill the generated parts of README.md: the map of the notebooks and the numbers to expect.

Usage: python tools/readme.py            writes README.md
       python tools/readme.py --check    changes nothing; exits with 1 when README.md is out of date
"""
import csv
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = {'0': 'Start here', '1': 'Data processing', '2': 'Evaluation', '3': 'The language model', '4': 'Recommenders',
            '5': 'Experiments', '6': "TALLRec's tables and figures", '7': "LlamaRec's tables and figures",
            '8': 'Beyond the papers', '9': 'The workshop'}
COLUMNS = ('dataset', 'method', 'metric', 'value', 'low', 'high', 'seeds', 'paper')
# file below figures/, heading, the column that is spread over the table's columns, its values shown (none: all), rows kept
TABLES = (('real-cpu/tallrec/table3.long.csv', 'AUC x 100 with K training rows (TALLRec, Table 3, as published)', 'setting', (), {'protocol': 'as_published'}),
          ('real-cpu/llamarec/table1.long.csv', 'Retrieval and ranking (LlamaRec, Table 1)', 'metric', ('NDCG@10', 'Recall@10'), {}),
          ('real-cpu/llamarec/table2.long.csv', 'Datasets after preprocessing (LlamaRec, Table 2)', 'metric', (), {}))


def table(head: list[str], rows: list[list[str]]) -> str:
    "A Markdown table."
    cells = [head, ['---'] * len(head), *([text.replace('|', '\\|') for text in row] for row in rows)]
    return '\n'.join(f"| {' | '.join(row)} |" for row in cells)


def opening(path: Path) -> tuple[str, str]:
    "Title and one-sentence summary of a notebook: its H1 and the first line that begins with '>'."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    found = [re.search(rf'^{mark} (.+)$', text, flags=re.M) for mark in '#>']
    if not all(found): sys.exit(f"nbs/{path.name} has no line '# title' or no line '> one sentence'; add it.")
    return found[0][1].strip(), found[1][1].strip()


def notebook_map(root: Path) -> str:
    "All notebooks by chapter."
    parts, notebooks = [], sorted((root / 'nbs').glob('[0-9]*.ipynb'))
    for tens, chapter in CHAPTERS.items():
        rows = [[f"[{p.name.split('_')[0]}](nbs/{p.name})", *opening(p)] for p in notebooks if p.name[0] == tens]
        if rows: parts.append(f"**{tens}x · {chapter}**\n\n{table(['', 'notebook', 'what it is about'], rows)}")
    return '\n\n'.join(parts)


def number(text: str) -> str:
    "A number as a reader wants it: counts whole, the rest with four digits or four decimals."
    if text in ('', 'NaN'): return '–'
    value = float(text)
    if value == round(value) and abs(value) >= 1: return f'{value:,.0f}'
    return f'{value:.4g}' if abs(value) < .001 else f'{value:.4f}' if abs(value) < 10 else f'{value:.2f}'


def long_rows(path: Path) -> list[dict]:
    "The rows of a table in long form, one value a row."
    with path.open(encoding='utf-8', newline='') as f: rows = list(csv.DictReader(f))
    lacks = [c for c in COLUMNS if c not in (rows[0] if rows else ())]
    if lacks: sys.exit(f"{path} has no column {', '.join(lacks)}; tools/readme.py reads {', '.join(COLUMNS)}.")
    return rows


def ours_and_paper(row: dict | None) -> list[str]:
    "Our value with its interval, and the paper's."
    if row is None: return ['–', '–']
    interval = f" [{number(row['low'])}, {number(row['high'])}]" if row['low'] and row['high'] else ''
    return [number(row['value']) + interval, number(row['paper'])]


def expected(path: Path, spread: str, values: tuple, keep: dict) -> str:
    "One table: a line a dataset and method, two columns a value of the column `spread`."
    if not path.exists(): return 'not yet computed'
    rows = [r for r in long_rows(path) if all(r[c] == v for c, v in keep.items())]
    values = values or tuple(dict.fromkeys(r[spread] for r in rows))
    cells = {(r['dataset'], r['method'], r[spread]): r for r in rows}
    seeds = {(r['dataset'], r['method']): r['seeds'] for r in rows}
    head = ['dataset', 'method', *(text for v in values for text in (v, 'paper')), 'seeds']
    return table(head, [[*key, *(text for v in values for text in ours_and_paper(cells.get((*key, v)))), seeds[key]] for key in seeds])


def expected_numbers(root: Path) -> str:
    "The tables of `TABLES`, each with the file that it was read from."
    return '\n\n'.join(f'**{heading}**, from `figures/{file}`:\n\n{expected(root / "figures" / file, *how)}' for file, heading, *how in TABLES)


def filled(root: Path) -> str:
    "README.md with its generated parts made anew."
    text = (root / 'README.md').read_text(encoding='utf-8')
    for name, fill in {'expected-numbers': expected_numbers, 'notebook-map': notebook_map}.items():
        between = re.compile(rf'(<!-- {name} -->\n).*?(<!-- /{name} -->)', flags=re.S)
        if len(between.findall(text)) != 1: sys.exit(f'README.md needs the markers <!-- {name} --> and <!-- /{name} --> exactly once.')
        body = fill(root)
        text = between.sub(lambda m: f'{m[1]}\n{body}\n\n{m[2]}', text)
    return text


def main(argv: list[str]) -> int:
    path, text = ROOT / 'README.md', filled(ROOT)
    if path.read_text(encoding='utf-8') == text: return 0
    if '--check' in argv:
        print('README.md is out of date: run make readme and commit it.')
        return 1
    path.write_text(text, encoding='utf-8')
    print('README.md is filled.')
    return 0


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
