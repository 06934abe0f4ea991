"""Fill the table of faults in CONTRIBUTING.md: each kind, where it is dealt with, and how many cases the tests try.

Usage: python tools/faults.py            writes CONTRIBUTING.md
       python tools/faults.py --check    changes nothing; exits with 1 when the table is out of date
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# kind -> where it is dealt with, and which tests try it (a file, and a pattern of names)
KINDS = {
    'A record, a stamp or provenance that was edited, cut or renamed': (
        [
            'runs.records.load_record',
            'runs.records.ill_told',
            'paths.read_json',
            'repro.reproduce.load_stamp',
            'repro.trace.sources_of',
        ],
        [
            ('test_faults_records', 'record|stamp|json|vectors|artefacts'),
            ('test_faults_outside', 'provenance|stamp|sources|long_table'),
        ],
    ),
    'A checkpoint, an adapter or a model that lacks a part': (
        [
            'llm.checkpoints.whole',
            'llm.adapter.read_adapter',
            'llm.backbones.check_source',
            'sequential.training.load_state',
        ],
        [('test_faults_tuning', 'checkpoint|bytes|folder|shard|hub|missing_model|program_code|adapter')],
    ),
    'A saved recommender or rater that was changed': (
        ['recommend.saved.sealed', 'recommend.saved.opening', 'recommend.saved.check_tables'],
        [('test_recommender', 'folder'), ('test_rater', 'folder')],
    ),
    'A secret in what others wrote': (
        ['paths.redacted'],
        [('test_secrets', ''), ('test_faults_records', 'redacted|what_is_not')],
    ),
    'A profile, a parameter or a setting that is none': (
        [
            'repro.profiles.parse_yaml',
            'repro.profiles.plain',
            'repro.profiles.check_kinds',
            'config.check_types',
            'config.from_dict',
        ],
        [
            ('test_profiles', 'profile|parameter|command'),
            (
                'test_faults_outside',
                'number|settings|yaml|profile|variant|stands|ones_own|default|parameter|study',
            ),
            ('test_fuzz', 'profiles|parameters|studies|json'),
            ('test_study', 'refused|right_kind|above_0'),
        ],
    ),
    'A name or a parameter that leads elsewhere': (
        ['paths.below', 'recommend.saved.check_free'],
        [
            ('test_profiles', 'outside'),
            ('test_faults_outside', 'section|names_that'),
            ('test_recommender', 'written_over'),
        ],
    ),
    'A file of data with faults': (
        ['data.raw.open_text', 'data.raw.reader', 'data.own.read_table'],
        [
            ('test_odd_files', ''),
            ('test_fuzz', 'readers|good_file'),
            ('test_data', 'broken|survives|refuse|named|damaged|truncated|wrong'),
            ('test_recommender', 'no_table|cannot_be_read|history_that'),
        ],
    ),
    'A notebook that was edited': (
        [
            'repro.profiles.read_notebook',
            'repro.profiles.notebook_parameters',
            'repro.profiles.entries',
            'repro.profiles.defaults_of',
        ],
        [('test_faults_records', 'notebook'), ('test_faults_outside', 'notebook|computed')],
    ),
    'A title that looks like markup': (
        ['runs.artefacts.table_md', 'runs.artefacts.table_tex', 'runs.artefacts.save_figure'],
        [('test_titles_in_markup', '')],
    ),
    'A title that looks like a special token': (
        ['llm.prompts.prompt_ids', 'llm.chat.defused'],
        [('test_titles_are_text', '')],
    ),
    'A server that answers in its own way': (
        ['llm.chat.request', 'llm.chat.complaint'],
        [
            ('test_faults_outside', 'answer|numbers_that|half'),
            ('test_chat', 'failures|hangs|nobody|keys|busy|refusals|damaged'),
        ],
    ),
    'A request that cannot be answered': (
        [
            'recommend.server.complaints',
            'recommend.request_limits.whole_body',
            'recommend.request_limits.counted',
        ],
        [
            (
                'test_server',
                'bad_request|fault|body|refusal|content_length|chunks|slow|dawdle|limited|limits',
            ),
            ('test_rater', 'no_question'),
        ],
    ),
    'A command that is stopped, and a machine without room': (
        ['recommend.commands.complaining', 'repro.reproduce.carried', 'runs.records.write_atomic'],
        [('test_recommender', 'stopped|pipe'), ('test_faults_tuning', 'jobs|disk|finite')],
    ),
}
START, END = '<!-- faults: python tools/faults.py -->', '<!-- end of faults -->'


def tests() -> list[tuple[str, str]]:
    "(file, name) of every case of the tests in `KINDS`."
    files = sorted({f'tests/{file}.py' for _, parts in KINDS.values() for file, _ in parts})
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '--collect-only', '-q', '-p', 'no:cacheprovider', *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return re.findall(r'^tests/(\w+)\.py::(\w+)', done.stdout, flags=re.M)


def table() -> str:
    "The table in Markdown."
    counted, lines = (
        Counter(tests()),
        ['| kind of fault | dealt with in | tests | cases |', '|---|---|---|---|'],
    )
    for kind, (places, parts) in KINDS.items():
        n = sum(
            count
            for (file, name), count in counted.items()
            if any(file == f and re.search(pattern, name) for f, pattern in parts)
        )
        files = ', '.join(f'`{f}`' for f in dict.fromkeys(f for f, _ in parts))
        lines.append(f"| {kind} | {', '.join(f'`{p}`' for p in places)} | {files} | {n} |")
    return '\n'.join(lines)


def main() -> None:
    path = ROOT / 'CONTRIBUTING.md'
    text = path.read_text(encoding='utf-8')
    before, after = text.partition(START)[0], text.partition(END)[2]
    new = f'{before}{START}\n{table()}\n{END}{after}'
    if '--check' in sys.argv:
        sys.exit(f'{path.name} is out of date; run python tools/faults.py' if new != text else 0)
    path.write_text(new, encoding='utf-8')


if __name__ == '__main__':
    main()
