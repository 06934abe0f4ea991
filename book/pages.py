"""Fill book/_build/source with what Sphinx renders: the notebooks, the results of every profile, and the API.

Usage: python book/pages.py
Nothing is executed and no data is needed; figures and tables are those of figures/ (or of $LLMREC_OUT/figures).
"""
import ast
import html
import json
import re
import shutil
import sys
from collections import Counter
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import nbformat  # noqa: E402

from llmrec.paths import output_root  # noqa: E402
from llmrec.repro.profiles import load_profile, manifest, profiles  # noqa: E402
from llmrec.repro.reproduce import executed_path, load_stamp, outputs, stamp_path  # noqa: E402

SOURCE = HERE / '_build' / 'source'
PAPERS = {'llamarec': 'LlamaRec', 'tallrec': 'TALLRec', 'beyond': 'Beyond the papers'}
SHOWN = ('real-cpu', 'miniature-full', 'miniature', 'paper')    # the order in which profiles are offered


# --- the library and its notebooks

def jupyter_slug(text: str) -> str:
    "The anchor that Jupyter gives to a heading."
    return text.strip().replace(' ', '-')


@cache
def titled(notebook: Path) -> tuple[str, str]:
    "Title, with the notebook's number, and leading sentence."
    text = next(c.source for c in nbformat.read(notebook, as_version=4).cells if c.source.startswith('# '))
    return f"{notebook.name.split('_')[0]} · {text.splitlines()[0][2:]}", ' '.join(re.findall(r'^> ?(.*)$', text, flags=re.M))


def library() -> tuple[dict, dict, dict]:
    """(module -> notebook; full name -> (notebook's title, cell); what prose calls a name -> full name).

    The last one has pairs (notebook, name) for what a notebook exports itself, and names alone where only one module has it.
    """
    modules, homes, names = {}, {}, {}
    for path in sorted((ROOT / 'llmrec').rglob('[a-z]*.py')):
        module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        text = path.read_text(encoding='utf-8')
        listed = re.search(r'^__all__ = (\[.*?\])', text, flags=re.M | re.S)
        public = set(ast.literal_eval(listed[1])) if listed else set()    # what the page on the module shows
        for notebook, cell, code in re.findall(r'^# %% \S*nbs/(\S+)\.ipynb #(\w+)\n(.*?)(?=^# %% |\Z)', text, flags=re.M | re.S):
            modules[module] = notebook
            for name in public.intersection(re.findall(r'^(?:def|class) ([A-Za-z]\w*)', code, flags=re.M)):
                homes[f'{module}.{name}'] = titled(ROOT / 'nbs' / f'{notebook}.ipynb')[0], cell
                names[notebook, name] = f'{module}.{name}'
    known = Counter(name for _, name in names)
    unique = {name: full for (_, name), full in names.items() if known[name] == 1 and ('_' in name or name != name.lower())}
    return modules, homes, names | unique


MODULES, HOMES, FULL_NAMES = library()


def only_imports(code: str) -> bool:
    "Whether a cell does nothing but import, in more lines than a reader wants to see at the beginning."
    try: statements = ast.parse(code).body
    except SyntaxError: return False    # a magic
    return len(code.splitlines()) > 5 and all(isinstance(s, (ast.Import, ast.ImportFrom)) for s in statements)


def shown(nb, number: str, target: str = ''):
    "A copy of the notebook for the book: no directives, a number in the title, and a target before every exported cell."
    cells = []
    for cell in nb.cells:
        directives = re.findall(r'^#\|\s*(\w+)', cell.source, flags=re.M) if cell.cell_type == 'code' else []
        if {'hide', 'default_exp'} & set(directives): continue
        cell = nbformat.from_dict(dict(cell))
        cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M) if directives else cell.source
        if cell.source.startswith('# '): cell.source = f'# {number} · {cell.source[2:]}'
        if cell.cell_type == 'code' and only_imports(cell.source): cell.metadata['tags'] = ['hide-input']
        if target and {'export', 'exporti'} & set(directives): cells.append(nbformat.v4.new_markdown_cell(f'({target}-{cell.id})='))
        cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))


def write(name: str, text: str) -> None:
    "Write a page, unless it is there already as it should be, so that Sphinx need not read it again."
    path = SOURCE / name
    if path.exists() and path.read_text(encoding='utf-8') == text: return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')


def notebooks() -> list[str]:
    "Write the notebooks of nbs/ with their stored outputs; their names."
    module_of = {notebook: module for module, notebook in MODULES.items()}
    names = []
    for path in sorted((ROOT / 'nbs').glob('[0-9]*.ipynb')):
        nb = shown(nbformat.read(path, as_version=4), path.name.split('_')[0], 'cell')
        if path.stem in module_of:
            end = f"---\nThis notebook exports [{module_of[path.stem]}](../api/{module_of[path.stem]}.md)."
            nb.cells.append(nbformat.v4.new_markdown_cell(end))
        for i, cell in enumerate(nb.cells): cell['id'] = f'c{i}'
        names.append(f'nbs/{path.name}')
        write(names[-1], nbformat.writes(nb))
    return names


def api() -> list[str]:
    "Write a page for every module."
    names = []
    for module, notebook in MODULES.items():
        names.append(f'api/{module}.md')
        title, lead = titled(ROOT / 'nbs' / f'{notebook}.ipynb')
        write(names[-1], f'# {module.removeprefix("llmrec.")}\n\nExported from [{title}](../nbs/{notebook}.ipynb).\n\n'
                         f'```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n')
    return names


# --- results

class Result:
    "What lies in figures/ of one artefact of one profile."
    def __init__(self, artefact: str, profile: str):
        self.artefact, self.profile, self.notebook = artefact, profile, manifest()[artefact]
        self.paper, self.name = artefact.split('/')
        self.folder, self.files = stamp_path(artefact, profile).parent, list(outputs(artefact, profile))
        self.stamp = load_stamp(artefact, profile) or {}
        self.title, self.lead = titled(ROOT / 'nbs' / self.notebook)
        self.title = self.title.split(' · ', 1)[1]
        self.executed = executed_path(artefact, profile)

    @property
    def page(self) -> str: return f'results/{self.profile}/{self.paper}-{self.name}.md'

    def file(self, *endings: str) -> str | None:
        return next((f'{self.name}.{e}' for e in endings if f'{self.name}.{e}' in self.files), None)

    def text(self, *endings: str) -> str:
        name = self.file(*endings)
        return (self.folder / name).read_text(encoding='utf-8').strip() if name else ''

    @property
    def tables(self) -> list[str]:
        "Markdown of the table, and of further ones; captions below them."
        own = [f'{self.name}.md'] if f'{self.name}.md' in self.files else []
        own += [f for f in self.files if f.endswith('.md') and f not in own and not f.endswith('caption.md')]
        return [(self.folder / f).read_text(encoding='utf-8').strip() for f in own]

    @property
    def finding(self) -> str:
        "The first sentence of the caption where it says what was found; the notebook's question where it does not."
        caption = self.text('caption.md') or self.text('md').split('\n\n')[-1]
        first = re.split(r'(?<=[.!?])\s+(?=[A-Z])', caption, maxsplit=1)[0]
        return self.lead if not first or first.startswith(('Profile ', '|')) else first


def results(profile: str) -> list[Result]:
    "The artefacts of which something is there, paper by paper."
    order = list(PAPERS)
    every = sorted((Result(a, profile) for a in manifest()), key=lambda r: (order.index(r.paper), r.notebook))
    return [r for r in every if r.files]


def switch(here: str, ways: dict[str, str]) -> str:
    "A row of links to the same thing under other profiles."
    links = ' '.join(f'**{name}**' if name == here else f'[{name}]({way})' for name, way in ways.items())
    return f':::{{div}} switch\n{links}\n:::\n'


def ways_of(r: Result, everything: dict[str, list[Result]]) -> dict[str, str]:
    "Profile -> where its page of the artefact is; the miniature's is the notebook itself when nothing else was made."
    ways = {p: f'../{p}/{r.paper}-{r.name}.md' for p, rs in everything.items() if r.artefact in [o.artefact for o in rs]}
    ways = {'miniature': f'../../nbs/{r.notebook}'} | ways
    return {p: ways[p] for p in SHOWN if p in ways}


def facts(r: Result) -> list[tuple[str, str]]:
    "Where the numbers come from: name and text."
    s = r.stamp
    machine, runs, inputs = s.get('machine') or {}, s.get('runs') or {}, s.get('inputs') if isinstance(s.get('inputs'), dict) else {}
    took = f"{s['seconds']:,.0f} s for the notebook" if s.get('seconds') else ''
    if runs.get('computed'): took += f", {runs['seconds'] or 0:,.0f} s for {runs['computed']} runs"
    lines = [('Notebook', f'[{r.notebook}](../../nbs/{r.notebook})'), ('Profile', f'`{r.profile}`'),
             ('Commit', f"`{s['commit'][:12]}`{' with uncommitted changes' if s.get('dirty') else ''}" if s.get('commit') else ''),
             ('Machine', f"{machine.get('cpus', '?')} cores, {machine.get('platform', '')}" if machine else ''), ('Time', took),
             ('Data', ', '.join(f'{k} `{str(v)[:12]}`' for k, v in sorted((inputs.get('data') or {}).items()))),
             ('Versions', ', '.join(f'{k} {v}' for k, v in sorted((s.get('versions') or {}).items())))]
    return [line for line in lines if line[1]]


def folded(title: str, inside: str) -> str:
    return f'::::{{dropdown}} {title}\n{inside}\n::::\n' if inside else ''


def provenance(r: Result) -> str:
    "The section that says where the numbers come from and how to check them."
    rows = '\n'.join(f'| {k} | {v} |' for k, v in facts(r))
    records = '\n'.join(f'| `{name}` | `{sha[:16]}` |' for name, sha in sorted((r.stamp.get('records') or {}).items()))
    values = json.dumps(r.stamp.get('parameters') or {}, indent=1, sort_keys=True, ensure_ascii=False)
    example = next((f for f in r.files if f.endswith('.csv')), r.files[0])
    parts = ['## Where the numbers come from\n', f'| | |\n|---|---|\n{rows}\n',
             *(f'The run `{name}` failed: {why}\n' for name, why in (r.stamp.get('failed') or {}).items()),
             folded('Parameters', f'```json\n{values}\n```'),
             folded(f"{len(r.stamp.get('records') or {})} records, with their SHA-256", f'| record | sha256 |\n|---|---|\n{records}' if records else ''),
             '`llmrec_trace` names the runs and seeds of every number, `llmrec_verify` checks files and records against these checksums:\n',
             f'```sh\n.venv/bin/llmrec_trace figures/{r.profile}/{r.paper}/{example}\n.venv/bin/llmrec_verify --profile {r.profile}\n'
             f'.venv/bin/llmrec_reproduce {r.artefact} --profile {r.profile}\n```\n']
    return '\n'.join(parts)


def result_page(r: Result, everything: dict[str, list[Result]]) -> str:
    "The page of an artefact: figure or table, caption, files, provenance."
    picture, caption = r.file('svg', 'png'), r.text('caption.md')
    there = f'../files/{r.profile}/{r.paper}'
    for name in r.files:
        if not name.endswith('.md'): copied(r.folder / name, f'results/files/{r.profile}/{r.paper}/{name}')
    links = ' · '.join(f'[{name}]({there}/{name})' for name in r.files if not name.endswith('.md'))
    executed = f'[The notebook as it was executed](executed/{r.paper}-{r.name}.ipynb) · ' if r.executed.exists() else ''
    parts = [f'# {r.title}\n', switch(r.profile, ways_of(r, everything)), f'> {r.lead}\n',
             f'```{{image}} {there}/{picture}\n:alt: {r.title}\n:class: result\n```\n' if picture else '', f'{caption}\n' if caption else '',
             *(f'{table}\n' for table in r.tables), f'{executed}Files: {links}\n', provenance(r)]
    return '\n'.join(p for p in parts if p)


def copied(path: Path, name: str) -> None:
    "Copy a file into the source, with its time."
    to = SOURCE / name
    to.parent.mkdir(parents=True, exist_ok=True)
    if not to.exists() or to.read_bytes() != path.read_bytes(): shutil.copy2(path, to)


def thumbnail(r: Result) -> str:
    "The figure, or the first corner of the table."
    if picture := r.file('svg', 'png'): return f'```{{image}} ../files/{r.profile}/{r.paper}/{picture}\n:alt: {r.title}\n:class: thumb\n```'
    rows = [[c.strip(' *') for c in re.split(r'(?<!\\)\|', line)[1:-1]] for line in r.text('md').splitlines() if line.startswith('|')]
    cells = [''.join(f'<td>{html.escape(c[:24])}</td>' for c in row[:5]) for row in [rows[0], *rows[2:9]]] if rows else []
    return '```{raw} html\n<div class="thumb" aria-hidden="true"><table>' + ''.join(f'<tr>{row}</tr>' for row in cells) + '</table></div>\n```'


def gallery(profile: str, mine: list[Result], everything: dict) -> str:
    "All artefacts of a profile as cards, and how its pages follow each other."
    about = (load_profile(profile).get('about') or '').strip()
    parts = [f'# Profile {profile}\n', switch(profile, {p: f'../{p}/index.md' for p in everything}), f'{about}\n']
    for paper, name in PAPERS.items():
        cards = [f':::{{grid-item-card}} {r.title}\n:link: {r.paper}-{r.name}\n:link-type: doc\n\n{thumbnail(r)}\n\n{r.finding}\n:::'
                 for r in mine if r.paper == paper]
        if cards: parts += [f'## {name}\n', '::::{grid} 1 2 2 3\n:gutter: 3\n:class-container: gallery\n', *cards, '::::\n']
    parts.append('```{toctree}\n:hidden:\n' + '\n'.join(f'{r.paper}-{r.name}' for r in mine) + '\n```\n')
    return '\n'.join(parts)


def write_results() -> list[str]:
    "Write the galleries, the page of every artefact, and the executed notebooks that are kept; their names."
    everything = {p: rs for p in SHOWN if p in profiles() and (rs := results(p))}
    names = []
    for profile, mine in everything.items():
        pages = {f'results/{profile}/index.md': gallery(profile, mine, everything)} | {r.page: result_page(r, everything) for r in mine}
        for r in mine:
            if r.executed.exists():
                nb = shown(nbformat.read(r.executed, as_version=4), f'Profile {profile}')
                for i, cell in enumerate(nb.cells):
                    cell['id'] = f'c{i}'
                    if cell.cell_type == 'markdown': cell.source = re.sub(r'\]\((?=\d\d[a-z]*_\w+\.ipynb)', '](../../../nbs/', cell.source)
                nb.metadata['orphan'] = True
                pages[f'results/{profile}/executed/{r.paper}-{r.name}.ipynb'] = nbformat.writes(nb)
        for name, text in pages.items(): write(name, text)
        names += list(pages)
    write('results/index.md', '# Results\n\nEvery table and figure, for each profile of which results are kept here. '
          'The miniature is an invented world: its numbers are not the papers\' numbers.\n\n'
          + '```{toctree}\n:maxdepth: 2\n' + '\n'.join(f'{p}/index' for p in everything) + '\n```\n')
    return [*names, 'results/index.md']


def main() -> None:
    "Write everything, and remove what an earlier call wrote and this one did not."
    for name in ('index.md', 'glossary.md', 'api/index.md'): copied(HERE / name, name)
    for name in ('CHANGELOG.md', 'CONTRIBUTING.md'): copied(ROOT / name, name.lower())
    kept = {'index.md', 'glossary.md', 'api/index.md', 'changelog.md', 'contributing.md', *notebooks(), *api(), *write_results()}
    for path in SOURCE.rglob('*'):
        name = path.relative_to(SOURCE).as_posix()
        if path.suffix in ('.md', '.ipynb') and name not in kept: path.unlink()
    print(SOURCE)


if __name__ == '__main__': main()
