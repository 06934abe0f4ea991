"""Fill the generated parts of README.md: the findings, the two main tables, the run times, and the map of the notebooks.

Usage: python tools/readme.py            writes README.md
       python tools/readme.py --check    changes nothing; exits with 1 when README.md is out of date
"""

import csv
import itertools
import json
import re
import sys
import zipfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = {
    '0': 'Start here',
    '1': 'Data processing',
    '2': 'Evaluation',
    '3': 'The language model',
    '4': 'Recommenders',
    '5': 'Experiments',
    '6': "TALLRec's tables and figures",
    '7': "LlamaRec's tables and figures",
    '8': 'Beyond the papers',
    '9': 'The workshop',
}
COLUMNS = ('dataset', 'method', 'metric', 'value', 'low', 'high', 'seeds', 'paper')
BASELINES = ('GRU4Rec', 'Caser', 'SASRec', 'DROS', 'GRU-BERT', 'DROS-BERT')  # TALLRec's
TALLREC, LLAMAREC = 'real-cpu/tallrec/table3', 'real-cpu/llamarec/table1'
SIMPLE = {
    'History like-rate': 'share of likes in the history, untrained',
    'Matrix factorisation': 'matrix factorisation',
}
RANKED = {
    'Popularity': 'most popular items',
    'SASRec': 'SASRec with one negative per item',
    'SASRec (longer search)': 'the same after a longer search, as far as it was run',
    'SASRec-CE': 'SASRec with a softmax over all items',
    'NARM': 'NARM',
    'LRURec': 'LRURec, which proposes the candidates',
    'Random order': 'its twenty candidates in a random order, expected',
    'Retriever order': "the candidates in LRURec's order",
}
DATASETS = {'ml-100k': 'MovieLens', 'beauty': 'Amazon Beauty', 'games': 'Amazon Games'}
LABELS = {'ML-100k': 'MovieLens', 'Beauty': 'Amazon Beauty', 'Games': 'Amazon Games'}  # as captions say


def table(head: list[str], rows: list[list[str]]) -> str:
    "A Markdown table."
    cells = [head, ['---'] * len(head), *([text.replace('|', '\\|') for text in row] for row in rows)]
    return '\n'.join(f"| {' | '.join(row)} |" for row in cells)


def opening(path: Path) -> tuple[str, str]:
    "Title and one-sentence summary of a notebook: its H1 and the first line that begins with '>'."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    found = [re.search(rf'^{mark} (.+)$', text, flags=re.M) for mark in '#>']
    if not all(found):
        sys.exit(f"nbs/{path.name} has no line '# title' or no line '> one sentence'; add it.")
    return found[0][1].strip(), found[1][1].strip()


def notebook_map(root: Path) -> str:
    "All notebooks, one line per chapter."
    parts, notebooks = [], sorted((root / 'nbs').glob('[0-9]*.ipynb'))
    for tens, chapter in CHAPTERS.items():
        names = [
            f"[{p.name.split('_')[0]}](nbs/{p.name}) {opening(p)[0].removeprefix('Beyond: ')}"
            for p in notebooks
            if p.name[0] == tens
        ]
        if names:
            parts.append(f"- **{chapter}**: {' · '.join(names)}")
    return '\n'.join(parts)


def long_rows(path: Path, needed: tuple = COLUMNS) -> list[dict]:
    "The rows of a table in long form, with one value per row."
    with path.open(encoding='utf-8', newline='') as f:
        rows = list(csv.DictReader(f))
    lacks = [c for c in needed if c not in (rows[0] if rows else ())]
    if lacks:
        sys.exit(f"{path} has no column {', '.join(lacks)}; tools/readme.py reads {', '.join(needed)}.")
    return rows


def cell(row: dict | None, spec: str) -> str:
    "'ours [low, high] / paper' of a row, with a dash where a number is missing."
    if row is None:
        return '–'
    text = lambda x: '–' if x in ('', None, 'NaN', 'nan') else format(float(x), spec)
    interval = f" [{text(row['low'])}, {text(row['high'])}]" if row['low'] and row['high'] else ''
    return f"{text(row['value'])}{interval} / {text(row['paper'])}"


def span(rows: list[dict], name: str) -> str:
    "The smallest and the largest value of a column."
    found = [float(r[name]) for r in rows if r[name] not in ('', 'NaN')]
    return f'{min(found):.1f} to {max(found):.1f}' if found else '–'


def tallrec(root: Path, dataset: str = 'movie') -> str:
    "AUC x 100 on one dataset over the number of training examples: the six baselines, two simple rows, the language models."
    path = root / 'figures' / f'{TALLREC}.long.csv'
    if not path.exists():
        return 'not yet computed'
    rows = [r for r in long_rows(path) if r['protocol'] == 'as_published' and r['dataset'] == dataset]
    settings = sorted({r['setting'] for r in rows} - {'K=0'}, key=lambda x: int(x[2:]))
    at = {(r['method'], r['setting']): r for r in rows}
    tuned = [m for m in dict.fromkeys(r['method'] for r in rows) if m.startswith('TALLRec')]
    of = lambda k: [r for r in rows if r['method'] in BASELINES and r['setting'] == k]
    for m, k in [
        (m, k) for m in tuned[:1] for k in settings if (m, k) not in at
    ]:  # not run here, but printed in the paper
        theirs = published(root, 'tallrec', artefact='table3', dataset=dataset, method='TALLRec', setting=k)
        if theirs:
            at[m, k] = dict(value='', low='', high='', paper=theirs[0])
    lines = [
        [
            'six sequential recommenders, lowest to highest',
            *(f"{span(of(k), 'value')} / {span(of(k), 'paper')}" for k in settings),
        ]
    ]
    lines += [
        [SIMPLE.get(m, m), *(cell(at.get((m, k)), '.1f') for k in settings)]
        for m in (*SIMPLE, *tuned)
        if any((m, k) in at for k in settings)
    ]
    return table(['', *(f'{k[2:]} examples' for k in settings)], lines)


def llamarec(root: Path) -> str:
    "NDCG@10 by dataset: the retrievers, and the language model that ranks the candidates of one of them."
    path = root / 'figures' / f'{LLAMAREC}.long.csv'
    if not path.exists():
        return 'not yet computed'
    rows = [r for r in long_rows(path) if r['metric'] == 'NDCG@10']
    at = {(r['method'], r['dataset']): r for r in rows}
    datasets = [d for d in dict.fromkeys(r['dataset'] for r in rows)]
    models = [m for m in dict.fromkeys(r['method'] for r in rows) if m.startswith('LlamaRec')]
    nothing = dict(value='', low='', high='', paper='')
    for m, d in itertools.product(models, datasets):  # the paper's LlamaRec is another model of that name
        theirs = published(
            root, 'llamarec', artefact='table1', dataset=d, method='LlamaRec', metric='NDCG@10'
        )
        own = at.get((m, d), nothing)
        if own is not nothing or theirs:
            at[m, d] = own | dict(paper=own['paper'] or (theirs[0] if theirs else ''))
    lines = [
        [RANKED.get(m, m), *(cell(at.get((m, d)), '.3f') for d in datasets)]
        for m in (*RANKED, *models)
        if any((m, d) in at for d in datasets)
    ]
    return table(['', *(DATASETS.get(d, d) for d in datasets)], lines)


def bounds(row: dict, spec: str) -> str:
    "'value [low, high]'."
    return cell(row | dict(paper=''), spec).removesuffix(' / –')


def on_books(rows: list[dict]) -> str:
    "A sentence on the language model that was tuned on books, '' where none was."
    asked = [r for r in rows if r['protocol'] == 'as_published' and r['dataset'] == 'book']
    tuned = [r for r in asked if r['method'].startswith('TALLRec') and r['value'] not in ('', 'NaN', 'nan')]
    counter = next((r for r in asked if r['method'] == 'History like-rate'), None)
    if not tuned or counter is None:
        return ''
    last = max(tuned, key=lambda r: int(r['setting'][2:]))
    paper = f", where the paper has {float(last['paper']):.1f}" if last['paper'] else ''
    return (
        f" On books it has {bounds(last, '.1f')} after {last['setting'][2:]} examples{paper},"
        f" and the share of likes has {bounds(counter, '.1f')}. In the published book rows that could be"
        ' traced, labels are beside the right titles no more often than by chance'
        ' ([notebook 15b](nbs/15b_yesno_books.ipynb)), so reading titles can hardly help there.'
    )


def on_later_films(rows: list[dict]) -> str:
    "A sentence on the language model where the films are split by time, '' where none was tuned there."
    asked = [r for r in rows if r['protocol'] == 'corrected' and r['dataset'] == 'movie']
    tuned = [
        r for r in asked if re.match(r'(TALLRec|RT)\b', r['method']) and r['value'] not in ('', 'NaN', 'nan')
    ]
    if not tuned:
        return ''
    last = max(tuned, key=lambda r: int(r['setting'][2:]))
    here = [r for r in asked if r['setting'] == last['setting']]
    base = [float(r['value']) for r in here if r['method'] in BASELINES]
    counter = next(r for r in here if r['method'] == 'History like-rate')
    stage = ' without the first stage' if last['method'].startswith('RT') else ''
    published = [
        r
        for r in rows
        if (r['protocol'], r['dataset']) == ('as_published', 'movie') and r['method'] in BASELINES
    ]
    most = max((r['setting'] for r in published), key=lambda k: int(k[2:]))
    fewer = [r for r in published if r['setting'] != most]
    at_most = [r for r in published if r['setting'] == most]
    better = sum(x > float(last['value']) for x in base)
    guessing = f"In the published setting those six are close to guessing on films ({span(fewer or at_most, 'value')}"
    guessing += f"; with {most[2:]} examples {span(at_most, 'value')})" if fewer else ')'
    return (
        f' {guessing}. With films split by time and scores from shared item embeddings (protocol'
        f' `corrected`), they have {min(base):.1f} to {max(base):.1f} after {last["setting"][2:]} examples; a'
        f" model tuned here{stage} has {bounds(last, '.1f')}, below {better} of the six, and the share of likes has"
        f" {bounds(counter, '.1f')}."
    )


def beside_counting(root: Path, row: dict) -> str:
    "A row's paired difference to the share of likes, in brackets; '' where it was not tested."
    path = root / 'figures' / f'{TALLREC}.tests.csv'
    for r in long_rows(path, ()) if path.exists() else []:
        same = all(r[k] == row[k] for k in ('dataset', 'setting', 'protocol'))
        if same and (r['ours'], r['against']) == (row['method'], 'History like-rate'):
            low, high = (f'{float(r[k]):+.1f}' for k in ('low', 'high'))
            return (
                f" ({float(r['difference']):+.1f} [{low}, {high}] compared with that share on the same rows)"
            )
    return ''


def budget(root: Path) -> str:
    "How long both stages of TALLRec are, in brackets; '' where the profile does not say."
    path = root / 'profiles/real-cpu.yaml'
    profile = yaml.safe_load(path.read_text(encoding='utf-8')) if path.exists() else {}
    tuning = profile.get('papers', {}).get('tallrec', {}).get('tuning', {})
    if 'max_steps' not in tuning:
        return ''
    rows = tuning['batch_size'] * tuning['accumulation']
    return f' (two stages, each of at most {tuning["max_steps"]} steps of {rows} rows)'


def runs_said(root: Path) -> str:
    "How many draws stand behind the language model's cells, and what the intervals leave out."
    path = root / 'figures' / f'{TALLREC}.long.csv'
    rows = [
        r
        for r in (long_rows(path) if path.exists() else [])
        if r['protocol'] == 'as_published' and r['method'].startswith('TALLRec') and r['seeds']
    ]
    if not rows:
        return ''
    several = {}  # (draws, domain) -> numbers of examples
    for r in rows:
        if int(r['seeds']) > 1:
            domain = 'books' if r['dataset'] == 'book' else 'films'
            several.setdefault((r['seeds'], domain), []).append(r['setting'][2:])
    means = [f'{n} draws on {domain} with {series(ks)} examples' for (n, domain), ks in several.items()]
    but = f', or the mean of {series(means)}' if means else ''
    return (
        f"A language model's cell is a single run{but}; the intervals"
        ' are over people, and leave out what another draw of examples or another seed would change.'
    )


def searched(root: Path) -> str:
    "How much of the longer search has been run; '' where nothing has."
    path = root / 'figures' / f'{LLAMAREC}.caption.md'
    found = (
        re.search(r'run so far: (.+?) settings', path.read_text(encoding='utf-8')) if path.exists() else None
    )
    if not found:
        return ''
    named = re.sub(r'ML-100k|Beauty|Games', lambda m: LABELS[m[0]], found[1])
    return f'Settings of the longer search that have been run: {named}. The only one on Amazon Beauty comes from public logs.'


def liked(root: Path) -> list[str]:
    "What TALLRec's table says, in plain words."
    path = root / 'figures' / f'{TALLREC}.long.csv'
    every = long_rows(path) if path.exists() else []
    rows = [r for r in every if r['protocol'] == 'as_published' and r['dataset'] == 'movie']
    counter = next((r for r in rows if r['method'] == 'History like-rate'), None)
    if counter is None:
        return []
    base = [r for r in rows if r['method'] in BASELINES and r['paper']]
    held = sum(r['covered'] == 'true' for r in base)
    tuned = [r for r in rows if r['method'].startswith('TALLRec')]
    theirs = published(root, 'tallrec', artefact='table3', dataset='movie', method='TALLRec')
    said = (
        "On films the share of likes among a person's earlier verdicts, a rule that reads no title and learns"
        f" nothing, has an AUC of {bounds(counter, '.1f')}"
    )
    if theirs:
        said += f'; the published TALLRec has {min(theirs):.1f} to {max(theirs):.1f}'
    said += '.'
    if base:
        said += (
            f' Of the {len(base)} numbers published there for six sequential recommenders, {held} lie within our'
            ' intervals.'
        )
    most = max((int(r['setting'][2:]) for r in tuned), default=0)
    people = {r['users'] for r in rows if r.get('users') not in (None, '', '0')}
    if len(people) == 1:
        said += f' These film questions come from only {people.pop()} people, so that all intervals there are rough.'
    last = [
        f"{bounds(r, '.1f')} with {r['method'].partition(' (')[2].removesuffix(')') or 'the model'}"
        f'{beside_counting(root, r)}'
        for r in tuned
        if r['setting'] == f'K={most}'
    ]
    if last:
        said += f" Tuned here on {most} examples{budget(root)}, TALLRec has {', '.join(last)}."
        for r in tuned:
            if 'loss on prompt and answer' not in r['method'] or r['value'] in ('', 'NaN'):
                continue
            same = next((x for x in tuned if x['setting'] == r['setting'] and x is not r), None)
            beside = f", where the loss on the answer has {bounds(same, '.1f')}" if same else ''
            said += (
                f' With the loss of the released scripts, which covers the prompt as well, it has'
                f" {bounds(r, '.1f')} after {r['setting'][2:]} examples{beside}."
            )
        within = next(
            (r for r in tuned if r['setting'] == f'K={most}' and r.get('UAUC_low') not in ('', 'NaN', None)),
            None,
        )
        if within:
            own, low, high = (float(within[c]) for c in ('UAUC', 'UAUC_low', 'UAUC_high'))
            said += f' Within a person, over that person\'s own rows, its mean AUC after {most} examples is {own:.1f} [{low:.1f}, {high:.1f}].'
    return [said + on_books(every) + on_later_films(every)]


def samples(root: Path) -> dict[str, int]:
    "Dataset -> how many people LlamaRec's ranker was asked about, where not all."
    path = root / 'profiles/real-cpu.yaml'
    profile = yaml.safe_load(path.read_text(encoding='utf-8')) if path.exists() else {}
    return profile.get('artefacts', {}).get(LLAMAREC.partition('/')[2], {}).get('test_users_by_dataset', {})


def series(parts: list[str]) -> str:
    "'A, B and C'."
    return ' and '.join(x for x in (', '.join(parts[:-1]), parts[-1]) if x)


def how_little(root: Path) -> str:
    "What part of the paper's one epoch the ranker has been tuned for; '' where that is not known."
    profile, sizes = root / 'profiles/real-cpu.yaml', root / 'figures/real-cpu/llamarec/table2.csv'
    if not (profile.exists() and sizes.exists()):
        return ''
    tuning = yaml.safe_load(profile.read_text(encoding='utf-8')).get('parameters', {}).get('tuning', {})
    if 'max_steps' not in tuning:
        return ''
    n = tuning['max_steps'] * tuning['batch_size'] * tuning['accumulation']
    with sizes.open(encoding='utf-8', newline='') as f:
        ours = [r for r in csv.DictReader(f) if r['source'] == 'ours']
    # an epoch has a prompt for every item of a user but the first and the two that are held out
    share = max(n / (int(r['interactions']) - 3 * int(r['users'])) for r in ours)
    return (
        f' This says little about the method: {n} prompts are at most {share:.1%} of the one epoch for which the'
        ' paper tunes a model fifty times as large.'
    )


IN_WORDS = {
    'negatives from the retriever': "Trained on the small recommender's candidates instead of random ones"
}


def by_choice(root: Path) -> str:
    "What a change to the published choices is worth on the real data; '' where none has been run."
    path = root / 'figures/real-cpu/llamarec/choices.long.csv'
    if not path.exists():
        return ''
    needed = ('dataset', 'choice', 'everybody', 'change', 'change_low', 'change_high')
    full = {name.split()[-1]: name for name in DATASETS.values()}  # 'Beauty' -> 'Amazon Beauty'
    invented = root / 'figures/miniature-full/llamarec/choices.long.csv'
    others = long_rows(invented, needed) if invented.exists() else []

    def elsewhere(choice):
        "What the same change does on the invented world; '' where its intervals do not all exclude 0 on one side."
        same = [r for r in others if r['choice'] == choice and r['change']]
        sides = {(float(r['change_low']) > 0) - (float(r['change_high']) < 0) for r in same}
        if len(sides) != 1 or sides == {0}:
            return ''
        verb = 'raises' if sides == {1} else 'lowers'
        values = [f"{float(r['change']):+.3f} on {r['dataset'].split()[0].lower()}" for r in same]
        return f' On the invented world the same change {verb} it ({series(values)}).'

    return ''.join(
        f" {IN_WORDS.get(r['choice'], 'With ' + r['choice'])}, a change to what was published, it has"
        f" {float(r['everybody']):.3f} on {full.get(r['dataset'], r['dataset'])} ({float(r['change']):+.3f}"
        f" [{', '.join(format(float(r[c]), '+.3f') for c in needed[4:])}]).{elsewhere(r['choice'])}"
        for r in long_rows(path, needed)
        if r['change']
    )


def ordered(root: Path) -> list[str]:
    "What LlamaRec's table says, in plain words."
    path = root / 'figures' / f'{LLAMAREC}.long.csv'
    at = (
        {(r['method'], r['dataset']): r for r in long_rows(path) if r['metric'] == 'NDCG@10'}
        if path.exists()
        else {}
    )
    pairs = [
        (m, d, at['Retriever order', d], r)
        for (m, d), r in at.items()
        if m.startswith('LlamaRec') and ('Retriever order', d) in at
    ]
    if not pairs:
        return []
    few = {d: f'{n:,} people; ' for d, n in samples(root).items()}
    chance = {d: at.get(('Random order', d)) for _, d, _, _ in pairs}
    each = [
        f"from {float(a['value']):.3f} to {bounds(b, '.3f')} on {DATASETS.get(d, d)}"
        + (f" ({few.get(d, '')}in a random order {float(c['value']):.3f})" if (c := chance[d]) else '')
        for _, d, a, b in pairs
    ]

    def improved(others):
        "On which datasets the whole interval lies above the value of the row beside it."
        found = [
            DATASETS.get(d, d)
            for (_, d, _, b), other in zip(pairs, others)
            if other and float(b['low']) > float(other['value'])
        ]
        alone = ' alone' if len(found) == 1 < len(pairs) else ''
        return f'on {series(found)}{alone}' if found else 'nowhere'

    gained = improved([a for _, _, a, _ in pairs]), improved([chance[d] for _, d, _, _ in pairs])
    lost = [DATASETS.get(d, d) for _, d, a, b in pairs if float(b['high']) < float(a['value'])]
    worse = f' and makes it worse on {series(lost)}' if lost else ''
    name = pairs[0][0].partition(' (')[2].removesuffix(')') or 'the model'
    profile = root / 'profiles/real-cpu.yaml'
    steps = (
        re.search(r'^  tuning: .*max_steps: (\d+)', profile.read_text(encoding='utf-8'), re.M)
        if profile.exists()
        else None
    )
    after = f', tuned for {steps[1]} steps,' if steps else ''
    return [
        f'In LlamaRec a language model ranks the twenty candidates of a small recommender: here that model is {name}{after} and the score of the list (NDCG@10, 1 is best) goes {series(each)}. It improves on the order of the small recommender {gained[0]}{worse}; on a random order it improves {gained[1]}.{by_choice(root)}{how_little(root)}'
    ]


def less(books: list[dict]) -> str:
    "The model's paired difference to the like-rate, in brackets; '' where it is not there."
    row = next((r for r in books if r['model'].startswith('TALLRec') and r['change'] == 'as they are'), {})
    if not row.get('over'):
        return ''
    return f" ({float(row['over']):+.1f} [{float(row['over_low']):+.1f}, {float(row['over_high']):+.1f}] compared with it)"


def second_model(path: Path) -> str:
    "What the artefact says of a model with another backbone than the first; '' where there is none."
    blocks = re.split(r'(?<=flipped\.) ', path.read_text(encoding='utf-8').partition('\n\n')[0])
    backbone = lambda block: block.partition(' (')[2].partition(',')[0]
    other = next((b for b in blocks if backbone(b) != backbone(blocks[0])), None)
    return f" Another model, without the first stage: {other.partition(' Over pairs')[0]}" if other else ''


def reads(root: Path) -> list[str]:
    "What the tuned model reads, in the first sentence of that artefact's finding."
    path, numbers = (
        root / f'figures/real-cpu/beyond/what-is-read.{end}' for end in ('caption.md', 'long.csv')
    )
    said = (
        path.read_text(encoding='utf-8').partition('\n\n')[0].partition(' Over pairs')[0]
        if path.exists()
        else ''
    )
    if not said or not numbers.exists():
        return [said] if said else []
    with numbers.open(encoding='utf-8', newline='') as f:
        rows = next(csv.DictReader(f))['rows']
    with numbers.open(encoding='utf-8', newline='') as f:
        books = [r for r in csv.DictReader(f) if r['dataset'] == 'book' and r['protocol'] == 'as_published']
    at = {
        r['change']: f"{float(r['AUC']):.1f} [{float(r['AUC_low']):.1f}, {float(r['AUC_high']):.1f}]"
        for r in books
        if r['model'].startswith('TALLRec')
    }
    shown = [at.get(change) for change in ('as they are', 'titles numbered', 'titles exchanged')]
    if all(shown):
        k = next(r['setting'] for r in books if r['model'].startswith('TALLRec')).removeprefix('K=')
        said += (
            f' On books, tuned on {k} rows, it has {shown[0]}, {shown[1]} with numbers for titles, and'
            f" {shown[2]} with titles exchanged; the like-rate has {float(books[0]['AUC']):.1f}{less(books)}."
        )
    said += second_model(path)
    # fewer rows than in the table, hence other numbers
    return [f'What does the tuned model read? On {rows} of the test rows: {said}']


def findings(root: Path) -> str:
    "What was found on the real data, in plain sentences."
    return (
        '\n'.join(f'* {said}' for said in liked(root) + reads(root) + ordered(root))
        or 'Nothing has been computed yet.'
    )


def published(root: Path, paper: str, **wanted) -> list[float]:
    "The numbers that a paper prints in the rows with these values."
    path = root / 'data' / 'paper_numbers' / f'{paper}.csv'
    if not path.exists():
        return []
    with path.open(encoding='utf-8', newline='') as f:
        return [float(r['value']) for r in csv.DictReader(f) if all(r[k] == v for k, v in wanted.items())]


def by_size(few: dict[str, int]) -> dict[int, list[str]]:
    "Number of people -> the datasets with a sample of so many."
    return {n: [d for d in few if few[d] == n] for n in dict.fromkeys(few.values())}


def expected_numbers(root: Path) -> str:
    "The tables, each with its measure and the file from which it was read; books where a model was tuned on them."
    path = root / 'figures' / f'{TALLREC}.long.csv'
    books = (
        [
            'The same on the books that it published, whose training rows are lost and were rebuilt:',
            tallrec(root, 'book'),
        ]
        if path.exists() and on_books(long_rows(path))
        else []
    )
    return '\n\n'.join(
        (
            f'**Will this person like this film?** AUC x 100 (50 is guessing) on the films that TALLRec published, from `figures/{TALLREC}.csv`. '
            + 'The brackets after TALLRec name the language model tuned here; *loss on the answer* means that it is trained on the answer alone, as in the equations of the paper, whereas the public code trains on the prompt as well. The share of likes is called *history like-rate* in tables and captions.',
            tallrec(root),
            *books,
            *([runs_said(root)] if runs_said(root) else []),
            f'**What comes next?** Everybody\'s last item is hidden and has to be found among all items. NDCG@10 is 1 when it is ranked first, less at each later place, and 0 from '
            + f'the eleventh place on. From `figures/{LLAMAREC}.csv`.',
            llamarec(root),
            *(
                f'The last three rows on {series([DATASETS.get(d, d) for d in some])} are about a fixed sample of {n:,} people.'
                for n, some in by_size(samples(root)).items()
            ),
            *([searched(root)] if searched(root) else []),
            'MovieLens is here *latest-small*, which LlamaRec calls ML-100k; the films of TALLRec come from MovieLens-100K. The paper names no loss for its SASRec, so its number may belong beside the softmax as well. On Amazon Beauty many histories end with several items on one day; our rule for such ties favours LRURec over the published one ([notebook 89](nbs/89_tie_order.ipynb)).',
        )
    )


def hours(root: Path, profile: str) -> str:
    "How long the runs of a profile took together, from its records."
    seconds = 0.0
    for path in sorted((root / 'data' / 'records' / profile).glob('*.zip')):
        with zipfile.ZipFile(path) as z:
            seconds += sum(
                json.loads(z.read(n))['seconds'].get('total', 0)
                for n in z.namelist()
                if n.endswith('.provenance.json')
            )
    return (
        f'{seconds / 3600:,.0f} hours on one core of an x86 server; the records are in the repository, so the figures take minutes'
        if seconds
        else ''
    )


def times(root: Path) -> str:
    "The profiles: data, language model, time."
    return table(
        ['profile', 'data', 'language model', 'how long'],
        [
            [
                '`miniature` (default)',
                'the invented world',
                'the miniature Llama',
                'minutes on two CPU cores',
            ],
            [
                '`miniature-full`',
                'the same, five seeds',
                'the same',
                hours(root, 'miniature-full') or 'hours on a CPU',
            ],
            [
                '`real-cpu`',
                'the real datasets',
                'a small one, named in every caption',
                hours(root, 'real-cpu') or 'days on a CPU',
            ],
            ['`paper`', 'the real datasets', 'Llama-2-7b in 4 bits', 'not run here; one GPU with 24 GB'],
        ],
    )


def filled(root: Path) -> str:
    "README.md with its generated parts renewed."
    text = (root / 'README.md').read_text(encoding='utf-8')
    for name, fill in {
        'findings': findings,
        'expected-numbers': expected_numbers,
        'times': times,
        'notebook-map': notebook_map,
    }.items():
        between = re.compile(rf'(<!-- {name} -->\n).*?(<!-- /{name} -->)', flags=re.S)
        if len(between.findall(text)) != 1:
            sys.exit(f'README.md needs the markers <!-- {name} --> and <!-- /{name} --> exactly once.')
        body = fill(root)
        text = between.sub(lambda m: f'{m[1]}\n{body}\n\n{m[2]}', text)
    return text


def main(argv: list[str]) -> int:
    path, text = ROOT / 'README.md', filled(ROOT)
    if path.read_text(encoding='utf-8') == text:
        return 0
    if '--check' in argv:
        print('README.md is out of date: run make readme and commit it.')
        return 1
    path.write_text(text, encoding='utf-8')
    print('README.md is filled.')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
