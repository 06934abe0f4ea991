"""Once: give the committed records the keys of declared schemas, and put their new names into figures and stamps.

Reads each record with its old key (name of the top class, every field), checks that key, makes the configuration
through its class and so the new key, and writes the three files anew. Then replaces the names in `figures/` and
brings the stamps up to date: checksums of records and files, and fingerprints of the modules and notebooks given.
"""
import argparse
import hashlib
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from llmrec.config import canonical, declared_schema, digest, keyed, to_dict, values_of
from llmrec.launch import filled
from llmrec.records import make_key, write_atomic

OLD = {'statistics': 'StatisticsConfig', 'retrieval': 'RetrievalConfig', 'llamarec': 'RankingConfig', 'binary': 'BinaryRun',
       'tallrec': 'TallrecRun', 'in-context': 'InContextRun', 'native': 'NativeRun', 'native-crowd': 'CrowdRun',
       'llamarec-one-user': 'OneUser', 'llamarec-one-prompt': 'OnePrompt', 'ranking-time': 'RankingTime', 'speed': 'SpeedConfig',
       'yesno-speed': 'YesNoSpeedConfig', 'memory': 'MemoryRun', 'catalogue-size': 'CatalogueConfig', 'tie-orders': 'Orders'}
LATER = {'unmasked_share': 0., 'apart': False, 'device': ''}    # not written while they had these defaults


def old_key(body: dict) -> str:
    return digest([OLD[body['experiment']], body['config']], body['data'], body['backbone'])


def without_later(value):
    if isinstance(value, dict): return {k: without_later(v) for k, v in value.items() if k not in LATER or v != LATER[k]}
    return [without_later(v) for v in value] if isinstance(value, list) else value


def rekeyed(
    body: dict,      # of an old record
    cls: type,       # of its configuration
    adapters: dict,  # old recipe of an alpaca adapter -> the new one
) -> dict:
    "The record under its new key."
    if old_key(body) != body['key']: raise SystemExit(f"{body['experiment']}-{body['key']} does not have its old key")
    cfg = filled(cls, body['config'])
    if canonical(without_later(to_dict(cfg))) != canonical(body['config']): raise SystemExit(f"{body['experiment']}-{body['key']} is not read back as it is")
    if body['experiment'] == 'in-context' and cfg.adapter:
        cfg = filled(cls, body['config'] | dict(adapter=adapters[cfg.adapter]))
    (name, version), values = declared_schema(cls), values_of(cfg)
    assert name == body['experiment']
    key = make_key(name, version, values, body['data'], body['backbone'])
    return body | dict(key=key, version=version, config=to_dict(cfg), values=values)


def rekey_records(folder: Path, classes: dict, adapters: dict) -> dict[str, str]:
    "Old name -> new name of the records in `folder`, which are renamed and rewritten."
    names, todo = {}, []
    for path in sorted(p for p in folder.glob('*.json') if not p.name.endswith('.provenance.json')):
        body = json.loads(path.read_text(encoding='utf-8'))
        new = rekeyed(body, classes[body['experiment']], adapters)
        names[path.stem] = f"{new['experiment']}-{new['key']}"
        todo.append((path, new))
    if len(set(names.values())) < len(names): raise SystemExit('two records would have one key')
    if set(names) & set(names.values()): raise SystemExit('a record has its new key already')
    for path, new in todo:
        stem = folder / names[path.stem]
        side = json.loads(path.with_suffix('.provenance.json').read_text(encoding='utf-8'))
        text = json.dumps(new, indent=1, sort_keys=True) + '\n'
        if 'record_sha256' in side: side['record_sha256'] = hashlib.sha256(text.encode()).hexdigest()
        path.with_suffix('.npz').rename(f'{stem}.npz')
        write_atomic(f'{stem}.provenance.json', json.dumps(side, indent=1, sort_keys=True) + '\n')
        write_atomic(f'{stem}.json', text)
        path.with_suffix('.provenance.json').unlink(); path.unlink()
    return names


def rename_in(folder: Path, names: dict) -> list[Path]:
    "Put the new names into all text files below `folder`; returns the files that changed."
    pattern, changed = re.compile('|'.join(sorted(set(n.rsplit('-', 1)[0] for n in names), key=len, reverse=True)).join(['(?:', ')-[0-9a-f]{16}'])), []
    for path in sorted(p for p in folder.rglob('*') if p.suffix in ('.csv', '.json', '.md', '.tex', '.svg')):
        old = path.read_text(encoding='utf-8')
        new = pattern.sub(lambda m: names.get(m[0], m[0]), old)
        if new != old: path.write_text(new, encoding='utf-8'); changed.append(path)
    return changed


def sha256(path: Path) -> str: return hashlib.sha256(path.read_bytes()).hexdigest()


def restamp(path: Path, records: Path, was: dict, now: dict) -> None:
    "Bring a stamp up to date: records, files, and the fingerprints in `was` (as they may be) that are others `now`."
    stamp = json.loads(path.read_text(encoding='utf-8'))
    stamp['records'] = {n: sha256(records / f'{n}.json') for n in stamp['records']}
    stamp['files'] = {n: sha256(path.parent / n) for n in stamp['files']}
    library = stamp['inputs']['library']
    for module, before in library.items():
        if before != was['library'][module]: raise SystemExit(f'{path}: {module} was stale before')
        library[module] = now['library'][module]
    notebook = stamp['notebook']
    if stamp['inputs']['notebook'] != was['notebooks'][notebook]: raise SystemExit(f'{path}: {notebook} was stale before')
    stamp['inputs']['notebook'] = now['notebooks'][notebook]
    write_atomic(path, json.dumps(stamp, indent=1, sort_keys=True) + '\n')


def fingerprints(root: Path) -> dict:
    "Module -> fingerprint and notebook -> fingerprint of a checkout."
    from llmrec.reproduce import code_of
    from llmrec.trace import code_in
    modules = {'.'.join(p.relative_to(root).with_suffix('').parts).removesuffix('.__init__'): digest(code_of(p.read_text(encoding='utf-8')))
               for p in (root / 'llmrec').rglob('*.py')}
    return dict(library=modules, notebooks={p.name: digest(code_in(p)) for p in (root / 'nbs').glob('*.ipynb')})


def alpaca_recipes(folders: list[Path], classes: dict) -> dict[str, str]:
    "Old recipe -> new recipe of the alpaca adapters that tallrec records were tuned from."
    from llmrec.experiments.tallrec import instructions_checksum, instructions_of
    out = {}
    for path in sorted(p for f in folders for p in f.glob('tallrec-*.json') if not p.name.endswith('.provenance.json')):
        body = json.loads(path.read_text(encoding='utf-8'))
        if not body['config']['alpaca']: continue
        cfg = filled(classes['tallrec'], body['config'])
        rest = body['backbone'], instructions_checksum(instructions_of(cfg.train))
        out[digest(cfg.alpaca, *rest)] = digest(keyed(cfg.alpaca), *rest)
    return out


def main() -> None:
    from defaults import classes
    p = argparse.ArgumentParser()
    p.add_argument('root', type=Path, help='the checkout whose records are rekeyed')
    p.add_argument('before', type=Path, help='a checkout of the commit before the change, for the fingerprints of its stamps')
    args = p.parse_args()
    found, folders = classes(), [args.root / 'data' / 'records' / n for n in ('real-cpu', 'miniature-full')]
    adapters, was, now = alpaca_recipes(folders, found), fingerprints(args.before), fingerprints(args.root)
    for records in folders:
        names = rekey_records(records, found, adapters)
        figures = args.root / 'figures' / records.name
        changed = rename_in(figures, names)
        for path in sorted(figures.glob('*/*.json')): restamp(path, records, was, now)
        print(f'{records.name}: {len(names)} records, {len(changed)} files of figures')


if __name__ == '__main__': main()
