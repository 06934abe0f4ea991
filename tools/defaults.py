"""Keys leave out what is at its default, so a changed default would give old records a new meaning.

`tests/schema_defaults.json` holds the defaults of every schema of the library and the notebooks. This compares, adds
lines for new fields and schemas, and writes a schema anew when its version was raised. A default that changed while
the version did not is told, nothing is written, and the exit status is 1.
"""

import ast
import dataclasses
import importlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from llmrec.config import broken_promises, declared_schema, defaults_of  # noqa: E402
from llmrec.paths import LlmrecError  # noqa: E402
from llmrec.runs.records import write_atomic  # noqa: E402

TABLE = ROOT / 'tests' / 'schema_defaults.json'


def declared(values) -> list[type]:
    "The dataclasses among `values` that declare a schema."
    return [v for v in values if isinstance(v, type) and dataclasses.is_dataclass(v) and declared_schema(v)]


def in_library(root: Path = ROOT) -> list[type]:
    "The classes with a schema that the modules of the library define."
    found = []
    for path in sorted((root / 'llmrec').rglob('*.py')):
        if '@schema(' not in path.read_text(encoding='utf-8'):
            continue
        module = importlib.import_module('.'.join(path.relative_to(root).with_suffix('').parts))
        found += [c for c in declared(vars(module).values()) if c.__module__ == module.__name__]
    return found


def code_in(path: Path) -> str:
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')


def names_in(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def needed(body: list[ast.stmt]) -> list[ast.stmt]:
    "The imports and dataclasses of a notebook, and the assignments on which the classes' fields depend."
    kept = [
        n
        for n in body
        if isinstance(n, (ast.Import, ast.ImportFrom))
        or (isinstance(n, ast.ClassDef) and any('dataclass' in names_in(d) for d in n.decorator_list))
    ]
    fields = [f for n in kept if isinstance(n, ast.ClassDef) for f in n.body if isinstance(f, ast.AnnAssign)]
    todo = set().union(*(names_in(part) for f in fields for part in (f.annotation, f.value) if part))
    while todo:
        name = todo.pop()
        more = [
            n
            for n in body
            if isinstance(n, ast.Assign) and n not in kept and any(name in names_in(t) for t in n.targets)
        ]
        kept += more
        todo |= set().union(*(names_in(n.value) for n in more))
    return [n for n in body if n in kept]


def in_notebook(path: Path) -> list[type]:
    "The classes with a schema that a notebook of results defines; nothing else of it is executed."
    code = code_in(path)
    if '@schema(' not in code:
        return []
    space = {'__name__': path.stem}
    exec(compile(ast.Module(needed(ast.parse(code).body), []), str(path), 'exec'), space)
    return declared(space[n] for n in space if getattr(space[n], '__module__', '') == path.stem)


def classes(root: Path = ROOT) -> dict[str, type]:
    "Schema -> its class, in the library and in the notebooks that no module is exported from."
    found = {}
    results = [p for p in sorted((root / 'nbs').glob('*.ipynb')) if '#| default_exp' not in code_in(p)]
    for cls in [*in_library(root), *(c for p in results for c in in_notebook(p))]:
        name, _ = declared_schema(cls)
        if name in found:
            raise LlmrecError(
                f"Both {found[name].__name__} and {cls.__name__} declare the schema '{name}'; give one another name."
            )
        found[name] = cls
    return dict(sorted(found.items()))


def load() -> dict:
    return json.loads(TABLE.read_text(encoding='utf-8')) if TABLE.exists() else {}


def compared(found: dict, table: dict) -> tuple[list[str], dict]:
    "(what forbids to write, the table as it should be)."
    wrong, out = (
        [
            f"schema '{n}' is in the table, and no class declares it: take it out"
            for n in table
            if n not in found
        ],
        {},
    )
    for name, cls in found.items():
        version, defaults = declared_schema(cls)[1], defaults_of(cls)
        out[name] = dict(version=version, defaults=defaults)
        older = table.get(name, {'version': 0})['version']
        if older > version:
            wrong.append(f"schema '{name}' is at version {version}, and was at {older}: a version only rises")
        if older == version:
            wrong += [
                s
                for s in broken_promises(name, version, defaults, table)
                if 'python tools/defaults.py' not in s
            ]
    return wrong, out


def main() -> int:
    wrong, table = compared(classes(), load())
    if not wrong:
        write_atomic(TABLE, json.dumps(table, indent=1, sort_keys=True) + '\n')
    for sentence in wrong:
        print(sentence)
    return int(bool(wrong))


if __name__ == '__main__':
    sys.exit(main())
