"""Pack the records of profiles into the zips that are committed, one for each experiment.

Three ways to call it:

    python tools/pack.py real-cpu miniature-full
    python tools/pack.py --check real-cpu        say which zips lack records that lie beside them, and exit with 1
    python tools/pack.py --seal real-cpu         give the oldest records in the zips the checksum that they lack
"""

import argparse
import hashlib
import json
import sys
import tempfile
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path

from llmrec.paths import json_or_none, output_root, records_dir
from llmrec.repro.trace import check_record
from llmrec.runs.records import NOTE_OF_PACKS, experiment_of, pack, records_of, write_atomic

SIDE = '.provenance.json'


def experiments(folder) -> list[str]:
    return sorted({experiment_of(p) for p in folder.glob('*.json')} - {''})


def lacking(folder, experiment: str) -> list[str]:
    "Files of the experiment's records that are not in its zip, or differ there."
    path = folder / f'{experiment}.zip'
    loose = {
        p.name: p
        for p in folder.glob(f'{experiment}-*')
        if p.suffix in ('.json', '.npz') and experiment_of(p.name.split('.')[0]) == experiment
    }
    if not path.exists():
        return sorted(loose)
    try:
        with zipfile.ZipFile(path) as z:
            names = set(z.namelist())
            return sorted(n for n, p in loose.items() if n not in names or z.read(n) != p.read_bytes())
    except (zipfile.BadZipFile, zlib.error, EOFError) as e:
        sys.exit(f'{path} is damaged ({e}); get it anew from the repository.')


def deleted(folder, experiment: str) -> list[str]:
    "Records in the experiment's zip that no longer lie beside it."
    path = folder / f'{experiment}.zip'
    if not path.exists():
        return []
    with zipfile.ZipFile(path) as z:
        names = [n for n in z.namelist() if n.endswith('.json') and not n.endswith(SIDE)]
    return sorted(n for n in names if not (folder / n).exists())


def attested(profile: str) -> dict[str, set]:
    "Record -> checksums that the stamps of the profile's artefacts, and of its variants', have of it."
    out = defaultdict(set)
    for path in (output_root() / 'figures').glob(f'{profile}*/*/*.json'):
        for name, sha in ((json_or_none(path) or {}).get('records') or {}).items():
            out[name].add(sha)
    return out


def seal(path: Path, known: dict[str, set]) -> tuple[int, list[str]]:
    "Note the checksum of each record in a zip that has none and is what the stamps say; (how many, the others)."
    done, others = 0, []
    with tempfile.TemporaryDirectory() as d, zipfile.ZipFile(path) as z:
        sides = {
            name.removesuffix(SIDE): json.loads(z.read(name)) for name in z.namelist() if name.endswith(SIDE)
        }
        if all(side.get('record_sha256') for side in sides.values()):
            return 0, []
        z.extractall(d)
        for name, side in sides.items():
            if side.get('record_sha256'):
                continue
            record = Path(d) / f'{name}.json'
            sha = hashlib.sha256(record.read_bytes()).hexdigest()
            if known.get(name) != {sha} or list(check_record(record)):
                others.append(name)
                continue
            (Path(d) / f'{name}{SIDE}').write_text(
                json.dumps(side | dict(record_sha256=sha), indent=1, sort_keys=True) + '\n'
            )
            done += 1
        if done:
            write_atomic(path, pack(Path(d), path.stem).read_bytes())
    return done, others


def sealed(profile: str) -> int:
    "Seal the zips of a profile and say so; 1 when some records stay without."
    known, left = attested(profile), 0
    for path in sorted(records_dir(profile).glob('*.zip')):
        done, others = seal(path, known)
        left += len(others)
        print(
            f'{profile}/{path.name}: {done} records have a checksum now'
            + (f'; no artefact says what these are: {", ".join(others)}' if others else '')
        )
    return int(left > 0)


def packed(profile: str, check: bool) -> int:
    "Pack the loose records of a profile, or only say which are not packed; 1 when there are some."
    folder, behind = records_of(profile), 0
    for experiment in experiments(folder):
        missing = lacking(folder, experiment)
        behind += bool(missing)
        if missing and not check:
            if gone := deleted(folder, experiment):
                sys.exit(
                    f'{experiment}.zip holds {gone[0]}, which no longer lies beside it; delete {NOTE_OF_PACKS} in '
                    f'{folder} to have it unpacked again, or delete the zip to leave it out.'
                )
            pack(folder, experiment)
        print(
            f'{profile}/{experiment}.zip: {len(missing)} files behind'
            if missing
            else f'{profile}/{experiment}.zip is complete'
        )
    return int(behind > 0 and check)


if __name__ == '__main__':
    p = argparse.ArgumentParser('pack', description=__doc__.split('\n')[0])
    p.add_argument('profiles', nargs='+')
    p.add_argument('--check', action='store_true', help='write nothing')
    p.add_argument('--seal', action='store_true', help='only give records a checksum')
    args = p.parse_args()
    sys.exit(max(sealed(profile) if args.seal else packed(profile, args.check) for profile in args.profiles))
