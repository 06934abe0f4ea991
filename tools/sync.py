"""Are the library and the notebooks in step? Prints the files that are not and exits with 1.

The notebooks are copied aside, cleaned and exported into an empty library there, and the result is compared with the
files here, so nothing in the project changes, and neither git nor a clean working tree is needed.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIP = shutil.ignore_patterns('.*', '_*', '*.tmp-*')  # as nbdev does


def hashes(root: Path) -> dict[str, str]:
    "Checksums of the library's modules and of the notebooks below `root`, by path."
    files = [*root.glob('llmrec/**/*.py'), *root.glob('nbs/**/*.ipynb')]
    hidden = {'.py': '.', '.ipynb': '._'}  # first letters of files and folders that nbdev does not look at
    files = [f for f in files if not any(part[0] in hidden[f.suffix] for part in f.relative_to(root).parts)]
    return {f.relative_to(root).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)}


def rebuilt(root: Path, aside: Path) -> dict[str, str]:
    "The same checksums after nbdev has cleaned and exported a copy of the notebooks in the folder `aside`."
    shutil.copytree(root / 'nbs', aside / 'nbs', ignore=SKIP)
    shutil.copy(root / 'settings.ini', aside)
    (aside / 'llmrec').mkdir()
    for command in ('nbdev_export', 'nbdev_clean'):
        done = subprocess.run(
            [Path(sys.executable).with_name(command)], cwd=aside, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f'{command} failed:\n{done.stdout}{done.stderr}')
    return hashes(aside)


def verdict(path: str, here: dict, there: dict) -> str:
    "What is wrong with the file at `path`, '' when nothing is."
    if here.get(path) == there.get(path):
        return ''
    if path not in there:
        return 'is exported by no notebook'
    if path not in here:
        return 'is missing'
    return (
        'is not as nbdev_clean leaves it'
        if path.endswith('.ipynb')
        else 'differs from what the notebooks export'
    )


def main(root: Path = ROOT) -> int:
    with tempfile.TemporaryDirectory() as aside:
        there = rebuilt(root, Path(aside))
    here = hashes(root)
    wrong = [f'  {path} {what}' for path in sorted({*here, *there}) if (what := verdict(path, here, there))]
    if wrong:
        print(
            'The library and the notebooks are out of step:',
            *wrong,
            'Change the notebooks, never llmrec/; then run '
            '.venv/bin/nbdev_export and .venv/bin/nbdev_clean, and commit both.',
            sep='\n',
        )
    return int(bool(wrong))


if __name__ == '__main__':
    sys.exit(main(*map(Path, sys.argv[1:])))
