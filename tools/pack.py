"""Pack the records of profiles into the zips that are committed, one for each experiment.

    python tools/pack.py real-cpu miniature-full
    python tools/pack.py --check real-cpu        say which zips lack records that lie beside them, and exit with 1
"""
import argparse
import sys
import zipfile

from llmrec.runs.records import experiment_of, pack, records_of


def experiments(folder) -> list[str]:
    return sorted({experiment_of(p) for p in folder.glob('*.json')} - {''})


def lacking(folder, experiment: str) -> list[str]:
    "Files of the experiment's records that are not in its zip, or differ there."
    path = folder / f'{experiment}.zip'
    loose = {p.name: p for p in folder.glob(f'{experiment}-*')
             if p.suffix in ('.json', '.npz') and experiment_of(p.name.split('.')[0]) == experiment}
    if not path.exists(): return sorted(loose)
    with zipfile.ZipFile(path) as z:
        names = set(z.namelist())
        return sorted(n for n, p in loose.items() if n not in names or z.read(n) != p.read_bytes())


if __name__ == '__main__':
    p = argparse.ArgumentParser('pack', description=__doc__.split('\n')[0])
    p.add_argument('profiles', nargs='+')
    p.add_argument('--check', action='store_true', help='write nothing')
    args, behind = p.parse_args(), 0
    for profile in args.profiles:
        folder = records_of(profile)
        for experiment in experiments(folder):
            missing = lacking(folder, experiment)
            behind += bool(missing)
            if missing and not args.check: pack(folder, experiment)
            print(f'{profile}/{experiment}.zip: {len(missing)} files behind' if missing else f'{profile}/{experiment}.zip is complete')
    sys.exit(int(bool(behind) and args.check))
