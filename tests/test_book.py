"The book: rendered once from what is stored, its links followed, its pages opened from disk in headless Chromium."

import base64
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import websocket

from llmrec.paths import output_to, root
from llmrec.repro.reproduce import INPUTS

ROOT = root()
BOOK = ROOT / 'book'
HTML = BOOK / '_build' / 'html'
CHROMIUM = next(
    (found for name in ('chromium', 'chromium-browser', 'google-chrome') if (found := shutil.which(name))),
    None,
)
FLAGS = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--disable-extensions',
    '--disable-dev-shm-usage',
    '--remote-debugging-port=0',
    '--remote-allow-origins=*',
    'about:blank',
)


class Browser:
    "A headless Chromium with one page, driven over the DevTools protocol."

    def __init__(self, home: Path):
        self.log = open(home / 'chromium.log', 'wb')
        self.process = subprocess.Popen(
            [CHROMIUM, f'--user-data-dir={home}/profile', *FLAGS],
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        port, until = home / 'profile' / 'DevToolsActivePort', time.monotonic() + 60
        while not (port.exists() and len(port.read_text().split()) == 2):
            assert time.monotonic() < until and self.process.poll() is None, (
                home / 'chromium.log'
            ).read_text()
            time.sleep(0.05)
        number, path = port.read_text().split()
        self.socket = websocket.create_connection(f'ws://127.0.0.1:{number}{path}', timeout=60)
        self.count, self.session, self.events = 0, None, []
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')

    def call(self, method, **params):
        self.count += 1
        self.socket.send(
            json.dumps(
                dict(id=self.count, method=method, params=params)
                | (dict(sessionId=self.session) if self.session else {})
            )
        )
        while True:
            message = json.loads(self.socket.recv())
            if 'method' in message:
                self.events.append(message)
            elif message['id'] == self.count:
                assert 'error' not in message, (method, message['error'])
                return message['result']

    def open(self, page, width=1400, height=900, scheme='light'):
        "Load `page` from disk; returns the complaints that the browser had."
        self.call(
            'Emulation.setDeviceMetricsOverride',
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value=scheme)])
        self.events = []
        self.call('Page.navigate', url=page if isinstance(page, str) else page.as_uri())
        until = time.monotonic() + 60
        while not any(e['method'] == 'Page.loadEventFired' for e in self.events):
            assert time.monotonic() < until, f'{page} was not loaded'
            self.events.append(json.loads(self.socket.recv()))
        self.js('document.readyState')
        return self.complaints()

    def complaints(self):
        "Errors in the console, exceptions, failed requests, and requests to anything but files and data."
        out = []
        for event in self.events:
            name, p = event['method'], event.get('params', {})
            if name == 'Log.entryAdded' and p['entry']['level'] in ('error', 'warning'):
                out.append(f"{p['entry']['level']}: {p['entry']['text']}")
            if name == 'Runtime.exceptionThrown':
                out.append(f"exception: {p['exceptionDetails']['text']}")
            if name == 'Runtime.consoleAPICalled' and p['type'] in ('error', 'assert'):
                out.append(f"console: {p['args']}")
            if name == 'Network.loadingFailed':
                out.append(f"failed: {p['errorText']} {p.get('blockedReason', '')}")
            if name == 'Network.requestWillBeSent' and not p['request']['url'].startswith(('file:', 'data:')):
                out.append(f"request: {p['request']['url']}")
        return out

    def js(self, expression):
        result = self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def picture(self, path, whole=False):
        Path(path).write_bytes(
            base64.b64decode(
                self.call('Page.captureScreenshot', format='png', captureBeyondViewport=whole)['data']
            )
        )

    def close(self):
        self.socket.close()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=20)
        self.log.close()


@pytest.fixture(scope='session')
def book():
    "The folder of the rendered book; what Sphinx complained of is in `complaints.txt`. Without data and without a network."
    env = {k: v for k, v in os.environ.items() if k not in ('LLMREC_DATA', 'LLMREC_OUT')} | dict(
        PYTHONPATH=str(ROOT), LLMREC_OFFLINE='1', HF_HUB_OFFLINE='1'
    )
    shutil.rmtree(BOOK / '_build', ignore_errors=True)
    for command in (
        ['book/pages.py'],
        ['-m', 'sphinx', '-q', '-c', 'book', 'book/_build/source', 'book/_build/html'],
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == 0, done.stderr
    (HTML / 'complaints.txt').write_text(done.stderr)
    return HTML


@pytest.fixture(scope='session')
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip('no chromium, chromium-browser or google-chrome on PATH')
    there = Browser(tmp_path_factory.mktemp('chromium'))
    yield there
    there.close()


class Parsed(HTMLParser):
    "Links, pictures, ids and text of a page."

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.sources, self.ids, self.words = [], [], set(), []
        self.feed(path.read_text(encoding='utf-8'))
        self.text = ' '.join(' '.join(self.words).split())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if found.get('id'):
            self.ids.add(found['id'])
        if tag == 'a' and found.get('href'):
            self.links.append(found['href'])
        if tag in ('img', 'script') and found.get('src'):
            self.sources.append(found['src'])
        if tag == 'link' and found.get('href'):
            self.sources.append(found['href'])

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope='session')
def parsed(book):
    return {
        p.relative_to(book).as_posix(): Parsed(p)
        for p in sorted(book.rglob('*.html'))
        if '_static' not in p.parts
    }


def pages_module():
    "book/pages.py, which is a script."
    spec = importlib.util.spec_from_file_location('pages', BOOK / 'pages.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- what is in it


def test_nothing_is_complained_of(book):
    said = (book / 'complaints.txt').read_text().splitlines()
    assert [line for line in said if re.search(r'WARNING|ERROR|Traceback', line)] == []


def test_every_notebook_is_a_page_in_the_order_of_the_numbers(parsed):
    names = [p.stem for p in sorted((ROOT / 'nbs').glob('[0-9]*.ipynb'))]
    links = [link.split('#')[0] for link in parsed['index.html'].links if re.match(r'nbs/\d', link)]
    assert list(dict.fromkeys(links)) == [f'nbs/{n}.html' for n in names]
    assert [
        name
        for name, page in parsed.items()
        if name.startswith('nbs/') and re.search(r'#\| (export|hide|default_exp)', page.text)
    ] == []


def test_each_page_is_marked_in_its_list_of_pages(book, parsed):
    "The list at the side is made once for a folder; in each page one entry is marked, and it is the page's own."
    for name in parsed:
        if name.startswith('_modules') or '/executed/' in name or '/' not in name:
            continue
        text = (book / name).read_text(encoding='utf-8')
        side = text[text.index('<nav class="bd-links') :].partition('</nav>')[0]
        marked = re.findall(
            r'current active[^"]*"><a class="current reference internal" href="#">(.*?)</a>', side
        )
        assert marked == [re.search(r'<title>(.*?) (?:&#8212;|—)', text, re.S)[1]], name
        assert side.count('<ul class="current nav bd-sidenav">') == 1, name
        here = Path(name).name
        assert f'href="{here}"' not in side or here == 'index.html', name


def test_every_committed_artefact_has_a_page_with_its_table_or_figure(parsed):
    stamps = [
        p for profile in ('real-cpu', 'miniature-full') for p in (ROOT / 'figures' / profile).glob('*/*.json')
    ]
    assert stamps
    for stamp in stamps:
        profile, paper, name = stamp.parts[-3], stamp.parts[-2], stamp.stem
        page = parsed[f'results/{profile}/{paper}-{name}.html']
        assert f'{paper}-{name}.html' in parsed[f'results/{profile}/index.html'].links
        noted = json.loads(stamp.read_text())
        assert noted['commit'][:12] in page.text
        for record, sha in (noted.get('records') or {}).items():
            assert record in page.text and sha[:16] in page.text
        picture = any(stamp.with_suffix(f'.{e}').exists() for e in ('svg', 'png'))
        assert (
            [s for s in page.sources if re.search(rf'_images/{name}\d*\.', s)]
            if picture
            else stamp.with_suffix('.md').exists()
        )
        if (table := stamp.with_suffix('.md')).exists():
            words = re.findall(r'[\w.]+', table.read_text(encoding='utf-8').split('\n\n')[0])
            assert [w for w in words[:40] if w not in page.text] == [], stamp


def test_profiles_can_be_switched(parsed):
    both = parsed['results/real-cpu/tallrec-table3.html']
    assert '../miniature-full/tallrec-table3.html' in both.links
    assert any(
        link.endswith('nbs/63_tallrec_table3.html') or link.endswith('../miniature/tallrec-table3.html')
        for link in both.links
    )
    assert '../real-cpu/tallrec-table3.html' in parsed['results/miniature-full/tallrec-table3.html'].links


def test_a_function_and_its_notebook_link_to_each_other(parsed):
    api, notebook = parsed['api/llmrec.evaluation.auc.html'], parsed['nbs/22_auc.html']
    assert 'llmrec.evaluation.auc.auc' in api.ids
    there = [link for link in api.links if link.startswith('../nbs/22_auc.html#cell-')]
    assert len(there) >= 6 and all(link.split('#')[1] in notebook.ids for link in there)
    assert '../api/llmrec.evaluation.auc.html' in notebook.links
    assert [link for link in notebook.links if link.startswith('../api/llmrec.evaluation.auc.html#llmrec.')]
    assert '1 = like, 0 = dislike' in api.text  # the comment beside the parameter


def test_no_link_or_picture_is_broken(book, parsed):
    broken = []
    for name, page in parsed.items():
        for href in [*page.links, *page.sources]:
            if re.match(r'(https?|mailto|data|javascript):|//', href):
                continue
            path, _, part = href.partition('#')
            target = (book / name).parent / unquote(path.split('?')[0]) if path.split('?')[0] else book / name
            if not target.exists():
                broken.append((name, href))
                continue
            inside = parsed.get(target.resolve().relative_to(book.resolve()).as_posix())
            if part and inside and unquote(part) not in inside.ids:
                broken.append((name, href))
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(parsed):
    assert [
        (name, s) for name, page in parsed.items() for s in page.sources if re.match(r'https?:|//', s)
    ] == []


def test_links_to_run_a_notebook_elsewhere(parsed):
    links = parsed['nbs/33_verbalizer.html'].links
    assert 'https://colab.research.google.com/github/llmrec/llmrec/blob/main/nbs/33_verbalizer.ipynb' in links
    assert any(
        link.startswith('https://mybinder.org/v2/gh/llmrec/llmrec/main?urlpath=')
        and 'nbs/33_verbalizer.ipynb' in unquote(link)
        for link in links
    )
    assert not [link for link in parsed['results/real-cpu/llamarec-table1.html'].links if 'mybinder' in link]


def test_formulas_are_mathml(book, parsed):
    text = (book / 'nbs' / '33_verbalizer.html').read_text(encoding='utf-8')
    assert text.count('<math ') >= 3 and '\\mathbf' not in parsed['nbs/33_verbalizer.html'].text


def test_a_failed_run_is_told_and_a_finding_stands_on_the_card(tmp_path):
    pages = pages_module()
    folder = tmp_path / 'figures' / 'miniature' / 'llamarec'
    folder.mkdir(parents=True)
    (folder / 'table2.md').write_text(
        '| a | b |\n|---|---|\n| 1 | 2 |\n\nFilms are dense. Profile miniature.'
    )
    (folder / 'table2.csv').write_text('a,b\n1,2\n')
    (folder / 'table2.json').write_text(
        json.dumps(
            dict(
                commit='0123456789abcdef',
                dirty=True,
                inputs=INPUTS,
                failed={'run-1': 'The loss is nan.'},
                records={'run-2': 'f' * 64},
            )
        )
    )
    pages.SOURCE = tmp_path / 'source'
    with output_to(tmp_path):
        mine = pages.results('miniature')
        assert [r.artefact for r in mine] == ['llamarec/table2'] and mine[0].finding == 'Films are dense.'
        page, cards = (
            pages.result_page(mine[0], {'miniature': mine}),
            pages.gallery('miniature', mine, {'miniature': mine}),
        )
    assert (
        'The run `run-1` failed: The loss is nan.' in page
        and '`0123456789ab` with uncommitted changes' in page
        and f"`{'f' * 16}`" in page
    )
    assert (tmp_path / 'source/results/files/miniature/llamarec/table2.csv').exists()
    assert 'Films are dense.' in cards and '<td>1</td><td>2</td>' in cards


# --- in the browser

IMAGES = '[...document.images].filter(i => !(i.complete && i.naturalWidth > 0) && i.loading != "lazy").map(i => i.src.slice(0, 80))'
TOO_WIDE = 'document.documentElement.scrollWidth - document.documentElement.clientWidth'


def test_pages_open_from_disk_on_a_telephone(browser, book, parsed):
    """No error in the console, no request to a network, every picture there, nothing that scrolls sideways but what is in a box of its own.

    Every fifth notebook, all results on the real data, and some pages of each other kind; LLMREC_EVERY_PAGE=1 opens all.
    """
    step = {'_modules': None, 'api': 8, 'nbs': 5, 'results/miniature': 8}  # sources are no text pages
    if os.environ.get('LLMREC_EVERY_PAGE'):
        step = {'_modules': None}
    wrong, kinds = {}, {}
    for name in sorted(parsed):
        kinds.setdefault(next((k for k in step if name.startswith(k)), ''), []).append(name)
    for name in [
        n for kind, names in kinds.items() if step.get(kind, 1) for n in names[:: step.get(kind, 1)]
    ]:
        said = browser.open(book / name, 400)
        if found := [
            *said,
            *browser.js(IMAGES),
            *([f'{wide} px too wide'] if (wide := browser.js(TOO_WIDE)) else []),
        ]:
            wrong[name] = found
    assert wrong == {}


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_pages_on_a_desktop(browser, book, scheme):
    for name in (
        'index.html',
        'nbs/33_verbalizer.html',
        'results/index.html',
        'results/real-cpu/index.html',
        'results/real-cpu/llamarec-table1.html',
        'api/llmrec.evaluation.auc.html',
        'glossary.html',
    ):
        assert browser.open(book / name, 1400, scheme=scheme) == [] and browser.js(TOO_WIDE) == 0, name
        assert browser.js('document.documentElement.dataset.theme') == scheme
        ground = sum(
            map(int, re.findall(r'\d+', browser.js('getComputedStyle(document.body).backgroundColor'))[:3])
        )
        assert ground > 700 if scheme == 'light' else ground < 200
    assert browser.js('!!document.querySelector(".prev-next-footer a, .prev-next-area a")')


def test_the_search_finds_the_verbalizer(browser, book):
    assert browser.open(f"{(book / 'search.html').as_uri()}?q=verbalizer") == []
    until = time.monotonic() + 30
    while (
        not browser.js('document.querySelectorAll("#search-results li").length') and time.monotonic() < until
    ):
        time.sleep(0.2)
    links = browser.js(
        '[...document.querySelectorAll("#search-results li a")].map(a => a.getAttribute("href"))'
    )
    assert any('33_verbalizer.html' in link for link in links) and any(
        'glossary.html' in link for link in links
    )
    assert browser.complaints() == []


def test_the_browser_of_these_tests_would_notice(browser, tmp_path):
    "Each assertion above fails on a page that has the fault."
    page = tmp_path / 'bad.html'
    page.write_text(
        '<!doctype html><body><div style="width: 3000px">x</div><img src="gone.png"><script>console.error("no"); nothing()</script><img src="http://127.0.0.1:9/x.png">'
    )
    said = ' '.join(browser.open(page, 400))
    for part in ('console:', 'exception:', 'failed:', 'request: http://127.0.0.1:9/x.png'):
        assert part in said, said
    assert len(browser.js(IMAGES)) == 2 and browser.js(TOO_WIDE) > 0
