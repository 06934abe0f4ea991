"How the notebooks are written: what a reader may rely on in every one of them."

import ast
import graphlib
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

from llmrec.repro.profiles import manifest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(
    p
    for p in (ROOT / 'nbs').glob('**/*.ipynb')
    if not any(part[0] in '._' for part in p.relative_to(ROOT).parts)
)
MANIFEST = manifest()
MODULES = sorted((ROOT / 'llmrec').glob('**/*.py'))
MACHINE = re.compile(r'(?<![\w.)}\]])/(work|root|tmp|home)/')

every = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
of_chapters = lambda tens: pytest.mark.parametrize(
    'path', [p for p in NOTEBOOKS if p.name[0] in tens] or [None], ids=lambda p: p.stem if p else 'none'
)


def cells(path, kind):
    return [c for c in nbformat.read(path, as_version=nbformat.NO_CONVERT).cells if c.cell_type == kind]


def prose(path):
    return '\n'.join(c.source for c in cells(path, 'markdown'))


def exported(path):
    return [c.source for c in cells(path, 'code') if re.search(r'^#\|\s*export', c.source, flags=re.M)]


def code_lines(source):
    return [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith('#|')]


def mixes(source):
    "Whether imports and other statements share the cell; cells of one or two lines may."
    if len(code_lines(source)) <= 2:
        return False
    body = ast.parse(re.sub(r'^\s*[%!].*$', 'pass', source, flags=re.M)).body
    return len({isinstance(node, (ast.Import, ast.ImportFrom)) for node in body}) == 2


@every
def test_a_notebook_is_valid_clean_and_introduces_itself(path):
    raw = json.loads(path.read_text(encoding='utf-8'))
    nbformat.validate(raw)
    assert (raw['nbformat'], raw['nbformat_minor']) == (4, 5)
    ids = [c['id'] for c in raw['cells']]
    assert len(set(ids)) == len(ids), 'two cells have one id'
    assert re.search(r'^# \S', prose(path), flags=re.M), 'no H1'
    assert re.search(r'^> \S', prose(path), flags=re.M), "no '> one sentence'"


sys.path.insert(0, str(ROOT / 'tools'))
import notebooks as stored  # noqa: E402


@pytest.mark.parametrize('path', stored.notebooks(), ids=lambda p: p.stem)
def test_the_stored_outputs_are_current(path):
    assert stored.is_current(path), (
        f'the code behind the outputs of {path.name} has changed; run `make notebooks`'
    )
    for cell in cells(path, 'code'):
        assert stored.private(cell.outputs) is None
        assert not [o for o in cell.outputs if o.output_type == 'error']
    assert 'widgets' not in nbformat.read(path, as_version=4).metadata, 'the state of progress bars is stored'


@pytest.mark.parametrize(
    'text', ['tmp57k3wzrq/model', '/tmp/x', '<progress value=2>', '12:01:59', '0x7f3a91c2d4']
)
def test_what_another_run_would_print_otherwise_is_not_stored(text):
    assert stored.private([nbformat.v4.new_output('stream', text=f'seen: {text}')]) is not None
    assert stored.private([nbformat.v4.new_output('stream', text='tmp is a folder, 12:01 a time')]) is None


def test_a_change_of_the_library_makes_the_outputs_stale(monkeypatch):
    "The fingerprint sees the code of modules that a notebook imports, and neither prose nor docstrings."
    path = ROOT / 'nbs' / '41_lru.ipynb'
    before = stored.made_from(nbformat.read(path, as_version=4), path)
    nb = nbformat.read(path, as_version=4)
    next(c for c in nb.cells if c.cell_type == 'markdown').source += ' And more.'
    assert stored.made_from(nb, path) == before
    next(c for c in nb.cells if 'def ' in c.source).source += '\n1 + 1'
    assert stored.made_from(nb, path) != before
    monkeypatch.setattr(stored, 'library_used', lambda code, but='': {'llmrec.paths': 'another'})
    assert stored.made_from(nbformat.read(path, as_version=4), path) != before


@pytest.mark.parametrize(
    'path', sorted(ROOT / 'nbs' / f'{name}.ipynb' for name in stored.MEASURED), ids=lambda p: p.stem
)
def test_what_measures_time_stores_nothing(path):
    assert [c.id for c in cells(path, 'code') if c.outputs] == []


# From the ground up: a room imports from itself and from those before it.
ROOMS = (
    'paths',
    'config',
    'runs',
    'data',
    'evaluation',
    'sequential',
    'llm',
    'miniature',
    'systems',
    'experiments',
    'recommend',
    'repro',
)


def imports(path):
    "Modules of llmrec that a module imports, also those that only a function imports."
    package = ['llmrec', *path.relative_to(ROOT / 'llmrec').parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith('llmrec.'))
        if not isinstance(node, ast.ImportFrom):
            continue
        where = (
            [*package[: len(package) - node.level + 1], *(node.module or '').split('.')]
            if node.level
            else node.module.split('.')
        )
        where = [part for part in where if part]
        if where[:1] == ['llmrec']:
            yield from ('.'.join([*where, a.name]) for a in node.names)


CODE = [p for p in MODULES if p.name not in ('__init__.py', '_modidx.py')]


@pytest.mark.parametrize('path', CODE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_run_downwards(path):
    room = path.relative_to(ROOT / 'llmrec').with_suffix('').parts[0]
    assert [m for m in imports(path) if ROOMS.index(m.split('.')[1]) > ROOMS.index(room)] == []


def test_no_circle_of_imports():
    names = {'.'.join(['llmrec', *p.relative_to(ROOT / 'llmrec').with_suffix('').parts]): p for p in CODE}
    graph = {
        name: {n for m in imports(p) for n in names if n in (m, m.rpartition('.')[0])}
        for name, p in names.items()
    }
    assert sum(map(len, graph.values())) > 100  # imports were found
    graphlib.TopologicalSorter(graph).prepare()  # raises when there is a circle


@every
def test_imports_have_cells_of_their_own(path):
    assert [s for s in (c.source for c in cells(path, 'code')) if mixes(s)] == []


@of_chapters('678')
def test_a_result_notebook_takes_parameters_and_exports_nothing(path):
    "A notebook of the results chapters that makes no artefact belongs to the library and exports something."
    if path is None:
        pytest.skip('no result notebook yet')
    if path.name not in MANIFEST.values():
        assert exported(path) != []
        return
    assert exported(path) == []
    assert sum('parameters' in c.metadata.get('tags', []) for c in cells(path, 'code')) == 1


@of_chapters('34')
def test_a_method_lists_its_departures(path):
    assert re.search(r'^##+ Departures', prose(path), flags=re.M)


# What the papers' public code does stands in one notebook, and the others point to its headings.
SOURCES = ROOT / 'nbs' / '03_public_code.ipynb'
PRIVATE_NOTES = re.compile(r'\bfacts (?:[A-Z]\d*|\d[\d.]*)(?!\w)')
LINK = re.compile(r'03_public_code\.ipynb#([^)\s"\\]*)')
MENTION = re.compile(r'notebook 03, ((?:TALLRec|LlamaRec|LRURec)(?:: [\w ]+)?)')


def headings(path):
    return re.findall(r'^#+ (.+)$', prose(path), flags=re.M)


def sources_cited(path):
    "Headings of the notebook of sources that a file points to, as links write them, with hyphens for spaces."
    text = path.read_text(encoding='utf-8')
    return [*LINK.findall(text), *(m.replace(' ', '-') for m in MENTION.findall(text))]


def test_the_patterns_of_citations_see_what_they_are_for():
    for text in ('(facts A5)', 'facts B4 to B7', '(facts G)', '(facts 0.4)'):
        assert PRIVATE_NOTES.search(text)
    for text in ('the facts alone', 'facts As', 'three facts. A', 'facts(s)'):
        assert not PRIVATE_NOTES.search(text)
    assert LINK.findall('[a](03_public_code.ipynb#LlamaRec:-the-label-ids).') == ['LlamaRec:-the-label-ids']
    assert MENTION.findall('(notebook 03, LlamaRec: the label ids).') == ['LlamaRec: the label ids']
    assert MENTION.findall('(notebook 03, LlamaRec); more') == ['LlamaRec']


@pytest.mark.parametrize(
    'path', [*NOTEBOOKS, *MODULES, ROOT / 'README.md'], ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_what_is_cited_of_the_public_code_can_be_read(path):
    written = (
        '\n'.join(c.source for c in nbformat.read(path, as_version=4).cells)
        if path.suffix == '.ipynb'
        else path.read_text(encoding='utf-8')
    )
    assert PRIVATE_NOTES.findall(written) == []
    there = {h.replace(' ', '-') for h in headings(SOURCES)}
    assert [c for c in sources_cited(path) if c not in there] == []


def test_every_source_is_cited_and_has_its_parts():
    there = [h for h in headings(SOURCES) if ': ' in h]
    assert len(set(there)) == len(there)
    cited = {c for path in [*NOTEBOOKS, *MODULES] for c in sources_cited(path)}
    assert {h.replace(' ', '-') for h in there} - cited == set(), 'no notebook points to this heading'
    for entry in re.split(r'^### ', prose(SOURCES), flags=re.M)[1:]:
        parts = re.findall(r'^\* \*(Paper|Code|Here)\b', entry, flags=re.M)
        assert set(parts) == {'Paper', 'Code', 'Here'}, entry.splitlines()[0]


@pytest.mark.parametrize('path', [*NOTEBOOKS, *MODULES], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_path_of_a_machine(path):
    assert [line for line in path.read_text(encoding='utf-8').splitlines() if MACHINE.search(line)] == []


@pytest.mark.parametrize(
    'path', [p for p in MODULES if p.name != '__init__.py'], ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_a_module_comes_from_a_notebook(path):
    text = path.read_text(encoding='utf-8')
    if path.name == '_modidx.py':
        assert text.startswith('# Autogenerated by nbdev')
        return
    origin = re.search(r'^# AUTOGENERATED! DO NOT EDIT! File to edit: (\S+\.ipynb)\.$', text, flags=re.M)
    assert origin and (path.parent / origin[1]).exists()
