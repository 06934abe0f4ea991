"The site: every page opened from disk in headless Chromium, and what stands on the pages."
import base64
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import matplotlib
import nbformat
import pytest
import websocket
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from llmrec.runs.artefacts import figure_style, save_figure, save_table
from llmrec.paths import output_to, records_dir, root
from llmrec.runs.records import write_atomic
from llmrec.repro.reproduce import executed_path, stamp_path
from llmrec.repro.site import main

matplotlib.use('agg')
import matplotlib.pyplot as plt  # noqa: E402
import polars as pl  # noqa: E402

CHROMIUM = next((found for name in ('chromium', 'chromium-browser', 'google-chrome') if (found := shutil.which(name))), None)
FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
         '--disable-sync', '--disable-extensions', '--disable-dev-shm-usage', '--remote-debugging-port=0', '--remote-allow-origins=*', 'about:blank')


class Browser:
    "A headless Chromium with one page, driven over the DevTools protocol."
    def __init__(self, home: Path):
        self.log = open(home / 'chromium.log', 'wb')
        self.process = subprocess.Popen([CHROMIUM, f'--user-data-dir={home}/profile', *FLAGS], stdout=self.log, stderr=self.log, start_new_session=True)
        port, until = home / 'profile' / 'DevToolsActivePort', time.monotonic() + 60
        while not (port.exists() and len(port.read_text().split()) == 2):
            assert time.monotonic() < until and self.process.poll() is None, (home / 'chromium.log').read_text()
            time.sleep(.05)
        number, path = port.read_text().split()
        self.socket = websocket.create_connection(f'ws://127.0.0.1:{number}{path}', timeout=60)
        self.count, self.session, self.events = 0, None, []
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'): self.call(f'{domain}.enable')

    def call(self, method, **params):
        self.count += 1
        self.socket.send(json.dumps(dict(id=self.count, method=method, params=params) | (dict(sessionId=self.session) if self.session else {})))
        while True:
            message = json.loads(self.socket.recv())
            if 'method' in message: self.events.append(message)
            elif message['id'] == self.count:
                assert 'error' not in message, (method, message['error'])
                return message['result']

    def open(self, page, width=1400, height=900, scheme='light'):
        "Load `page` from disk; returns the complaints that the browser had."
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
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
            if name == 'Log.entryAdded' and p['entry']['level'] in ('error', 'warning'): out.append(f"{p['entry']['level']}: {p['entry']['text']}")
            if name == 'Runtime.exceptionThrown': out.append(f"exception: {p['exceptionDetails']['text']}")
            if name == 'Runtime.consoleAPICalled' and p['type'] in ('error', 'assert'): out.append(f"console: {p['args']}")
            if name == 'Network.loadingFailed': out.append(f"failed: {p['errorText']} {p.get('blockedReason', '')}")
            if name == 'Network.requestWillBeSent' and not p['request']['url'].startswith(('file:', 'data:')): out.append(f"request: {p['request']['url']}")
        return out

    def js(self, expression):
        result = self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def picture(self, path, whole=False):
        Path(path).write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png', captureBeyondViewport=whole)['data']))

    def close(self):
        self.socket.close()
        os.killpg(self.process.pid, signal.SIGKILL); self.process.wait(timeout=20); self.log.close()


# --- a small world: two artefacts through the library's own writers, one executed notebook with everything that is hard to show

LINE = 'Profile miniature on films (data 0123456789ab); backbone none; seeds 0, 1. Protocol: made up.'
WIDE = '<table border="1" class="dataframe"><thead><tr>' + ''.join(f'<th>column {i}</th>' for i in range(40)) + '</tr></thead><tr>' + '<td>0.12345</td>' * 40 + '</tr></table>'
HOSTILE = '<style>body { width: 4000px }</style><script src="https://example.org/x.js"></script><script>undefinedFunction()</script><img src="https://example.org/x.png" alt="elsewhere"><p onclick="x()">kept</p>'
TINY_PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><rect width="40" height="20" fill="#0072B2"/></svg>'

def notebook(title='Toy'):
    "An executed notebook such as papermill leaves, ids and times included."
    def result(**data): return new_output('execute_result', {k.replace('_', '/', 1).replace('_', '+'): v for k, v in data.items()})
    cells = [new_markdown_cell(f'# {title}\n\n> One sentence.'),
             new_markdown_cell('## Idea\n\nWith $n_{20}$ of $n$ users, and a folder `$LLMREC_DATA`:\n\n$$ \\frac{n_{20}}{n} = \\text{Recall@20}, \\qquad \\left\\lceil \\tfrac{b}{256} \\right\\rceil $$\n\nNot known: $\\nosuchthing{$ and a [link](https://example.org), a [neighbour](../nbs/90_paths.ipynb), a [part](#gone).'),
             new_code_cell("seeds = [0]", metadata=dict(tags=['parameters'])),
             new_code_cell("seeds = [0, 1]", metadata=dict(tags=['injected-parameters'], papermill=dict(status='completed', end_time='2026-11-21'))),
             new_code_cell("x = '" + 'long ' * 200 + "'", outputs=[new_output('stream', name='stderr', text='\rrun: 1%'), new_output('stream', name='stderr', text='\rrun: 100%\n'),
                                                                    new_output('stream', name='stdout', text='word' * 300 + '\n')]),
             new_code_cell('wide', outputs=[result(text_html=WIDE, text_plain='wide')]),
             new_code_cell('hostile', outputs=[result(text_html=HOSTILE, text_plain='hostile')]),
             new_code_cell('pictures', outputs=[result(image_png=TINY_PNG + '\n', text_plain='<Figure>'), result(**{'image_svg_xml': SVG})])]
    return new_notebook(cells=cells, metadata=dict(papermill=dict(start_time='2026-11-21T17:52:16')))

def stamp(artefact, profile='miniature', **more):
    "A stamp as llmrec_reproduce writes it."
    what = dict(artefact=artefact, notebook='71_llamarec_table1.ipynb', parameters=dict(profile=profile, seeds=[0, 1]), files={}, failed={}, records={}, runs=dict(computed=0, seconds=0.),
                inputs=dict(notebook='a', parameters='b', library={}, data={}), seconds=61.5, versions=dict(python='3.11.7'), commit='0123456789abcdef', dirty=False, machine=dict(cpus=2))
    write_atomic(stamp_path(artefact, profile), json.dumps(what | more))

def small_world(out):
    with output_to(out):
        table = pl.DataFrame({'dataset': ['films'] * 8, 'method': [f'method <{i}> & co' for i in range(8)], **{f'Recall@{k}': [.1 * k] * 7 + [float('nan')] for k in range(1, 16)}})
        save_table(table, 'llamarec', 'table1', LINE, 'miniature', bold=[(0, 'Recall@1')])
        record = write_atomic(records_dir('miniature') / 'retrieval-1c9b.json', json.dumps(dict(config=dict(dataset='films', training=dict(seed=17)))))
        write_atomic(record.with_suffix('.provenance.json'), json.dumps(dict(seconds=dict(total=12.25), commit='feedbeef01234')))
        stamp('llamarec/table1', records={'retrieval-1c9b': hashlib.sha256(record.read_bytes()).hexdigest(), 'retrieval-gone': '0'}, failed={'retrieval-2': 'The loss is nan.'})
        with figure_style():
            fig, ax = plt.subplots(); ax.plot([0, 1], [0, 1])
            save_figure(fig, 'tallrec', 'figure1', LINE, 'miniature')
        stamp('tallrec/figure1', inputs='older', **{'records': None})
        write_atomic(executed_path('llamarec/table1', 'miniature'), nbformat.writes(notebook()))
    return out

def site(out, *args):
    "(exit status, standard output, standard error) of the command, here in this process: importing the library takes longer than all the rest."
    with output_to(out), redirect_stdout(StringIO()) as said, redirect_stderr(StringIO()) as complaint, pytest.MonkeyPatch.context() as patch:
        patch.setenv('LLMREC_DATA', ''); patch.setenv('LLMREC_OFFLINE', '1')
        status = main(args)
    return status, said.getvalue(), complaint.getvalue()

def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "The site of the small world."
    out = small_world(tmp_path_factory.mktemp('site'))
    assert site(out, '--profile', 'miniature') == (0, f"{out.resolve() / 'site' / 'miniature' / 'index.html'}\n", '')
    return out

@pytest.fixture(scope='module')
def pages(made): return sorted((made / 'site' / 'miniature').glob('*.html'))

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    if CHROMIUM is None: pytest.skip('no chromium, chromium-browser or google-chrome on PATH')
    there = Browser(tmp_path_factory.mktemp('chromium'))
    yield there
    there.close()

def soup(made, name): return BeautifulSoup((made / 'site' / 'miniature' / name).read_text(encoding='utf-8'), 'html.parser')


# --- in the browser

IMAGES = '[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.src.slice(0, 80))'
TOO_WIDE = 'document.documentElement.scrollWidth - document.documentElement.clientWidth'

def test_every_page_opens_from_disk_without_a_complaint(browser, pages):
    assert [p.name for p in pages] == ['index.html', 'llamarec-table1.html', 'tallrec-figure1.html']
    for page in pages:
        for width in (400, 1400):
            assert browser.open(page, width) == [], page
            assert browser.js(IMAGES) == [], page
            assert browser.js(TOO_WIDE) == 0, (page, width)
            assert browser.js('getComputedStyle(document.querySelector("main")).maxWidth') != 'none'    # the style sheet was read
        assert browser.js('document.scripts.length') == 0
    browser.open(pages[0])
    assert browser.js('document.images.length') == 1


def test_opening_every_fold_changes_neither_width_nor_complaints(browser, pages):
    for page in pages:
        browser.open(page, 400)
        browser.js('document.querySelectorAll("details").forEach(d => d.open = true)')
        assert browser.js(TOO_WIDE) == 0 and browser.complaints() == [], page


def test_formulas_are_drawn_by_the_browser_itself(browser, made):
    browser.open(made / 'site' / 'miniature' / 'llamarec-table1.html')
    drawn = browser.js('[...document.querySelectorAll("math")].map(m => [m.namespaceURI, m.getBoundingClientRect().width, m.getBoundingClientRect().height])')
    assert len(drawn) >= 3 and all(space.endswith('MathML') and width > 3 and height > 5 for space, width, height in drawn)
    tall = browser.js('document.querySelector("mfrac").getBoundingClientRect().height / document.querySelector("mfrac mn, mfrac mi").getBoundingClientRect().height')
    assert tall > 1.7    # the numerator is above the denominator
    assert '$LLMREC_DATA' in browser.js('document.querySelector("#main").innerText')


def test_wide_tables_scroll_in_their_box_and_can_be_reached_by_key(browser, made):
    browser.open(made / 'site' / 'miniature' / 'llamarec-table1.html', 400)
    boxes = browser.js('[...document.querySelectorAll(".scroll")].map(b => [b.tabIndex, b.scrollWidth > b.clientWidth, b.getAttribute("aria-label") || ""])')
    assert any(scrolls for _, scrolls, _ in boxes) and all(index == 0 and label for index, _, label in boxes)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_can_be_read_in_both_schemes(browser, pages, scheme):
    "The contrast of every text with the nearest ground that is painted, as the browser computed both."
    script = '''(() => {
      const rgb = c => c.match(/[\\d.]+/g).map(Number), lum = c => rgb(c).slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
      const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return getComputedStyle(e).backgroundColor; } return 'rgb(255, 255, 255)'; };
      document.querySelectorAll("details").forEach(d => d.open = true);
      const bad = {};
      for (const e of document.querySelectorAll("body *")) {
        if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) continue;
        const [a, b] = [lum(getComputedStyle(e).color), lum(ground(e))].sort((x, y) => x - y), ratio = (b + .05) / (a + .05);
        if (ratio < 4.5) bad[e.tagName + '.' + e.className] = ratio;
      }
      return bad; })()'''
    for page in pages:
        browser.open(page, scheme=scheme)
        assert browser.js(script) == {}, page
    dark = browser.js('getComputedStyle(document.body).backgroundColor').startswith('rgb(21')
    assert dark == (scheme == 'dark')


def test_links_within_the_site_lead_somewhere(made, pages):
    for page in pages:
        html = BeautifulSoup(page.read_text(encoding='utf-8'), 'html.parser')
        for tag in html.find_all(href=True):
            if tag['href'] in ('https://example.org', 'https://example.org/x.png', 'data:,'): continue
            name, _, part = tag['href'].partition('#')
            target = page.parent / name if name else page
            assert target.exists(), (page.name, tag['href'])
            if part: assert BeautifulSoup(target.read_text(encoding='utf-8'), 'html.parser').find(id=part), (page.name, tag['href'])


def test_the_browser_of_these_tests_would_notice(browser, tmp_path):
    "Each assertion above fails on a page that has the fault."
    page = tmp_path / 'bad.html'
    page.write_text('<!doctype html><body><div style="width: 3000px">x</div><img src="gone.png"><script>console.error("no"); nothing()</script><img src="http://127.0.0.1:9/x.png">')
    said = ' '.join(browser.open(page, 400))
    for part in ('console:', 'exception:', 'failed:', 'request: http://127.0.0.1:9/x.png'): assert part in said, said
    assert len(browser.js(IMAGES)) == 2 and browser.js(TOO_WIDE) > 0


# --- on the pages

def test_the_front_page_shows_what_there_is_and_lists_what_is_missing(made):
    index = soup(made, 'index.html')
    cards = {a.h3.get_text(): a for a in index.select('article')}
    assert [title.split(':')[0] for title in cards] == ['TALLRec, Figure 1', 'LlamaRec, Table 1']
    table = cards['LlamaRec, Table 1: the main results']
    assert len(table.select('tbody tr')) == 5 and '5 of 8 rows' in table.get_text() and table.strong.get_text() == '0.1000'
    assert {(a['aria-label'], a.get_text()) for a in table.select('.files a')} >= {('table1.csv', 'csv'), ('table1.tex', 'tex'), ('table1.json', 'json')}
    assert '2 records' in table.get_text() and 'seeds 0, 1' in table.get_text()
    absent = ' '.join(li.get_text() for li in index.select('ul.note li'))
    assert 'llmrec_reproduce llamarec/table2 --profile miniature' in absent and 'llamarec/table1 ' not in absent
    assert [h.get_text() for h in index.select('h2')] == ['TALLRec', 'LlamaRec', 'Beyond the papers']


def test_the_page_of_an_artefact_says_where_its_numbers_come_from(made):
    page = soup(made, 'llamarec-table1.html')
    rows = [[td.get_text() for td in tr.select('td')] for tr in page.select('[aria-label=Records] tbody tr')]
    assert rows == [['retrieval-1c9b', 'films', '17', '12.2', 'feedbeef01', 'as it was'], ['retrieval-gone', '', '', '', '', 'not here']]
    assert 'The loss is nan.' in page.get_text() and '0123456789abcdef' in page.get_text()
    assert page.select_one('.state').get_text() == 'failed' and page.select('td.failed')
    older = soup(made, 'tallrec-figure1.html')
    assert 'older format' in older.get_text() and older.select_one('.state').get_text() == 'stale'
    assert older.find(id='notebook') is None and older.select_one('img')['alt']


def test_what_a_notebook_carries_into_the_page(made):
    page, text = soup(made, 'llamarec-table1.html'), (made / 'site' / 'miniature' / 'llamarec-table1.html').read_text(encoding='utf-8')
    assert [h.get_text() for h in page.select('h1')] == ['LlamaRec, Table 1: the main results'] and page.find('h3', string='Idea')
    assert 'run: 100%' in text and 'run: 1%' not in text
    folds = {d.summary.get_text(): d.has_attr('open') for d in page.select('details.code')}
    assert folds['Parameters of this run'] and not folds['Parameters by default'] and not folds['Code, 1 line']
    assert [i for i in page.select('img') if not i.get('alt')] == [] and len(page.select('#main img')) == 2
    assert 'kept' in text and 'onclick' not in text and page.find('script') is None and page.find('style') is None
    assert '\\nosuchthing' in text
    assert [t['src'] for t in page.find_all(src=True) if not t['src'].startswith(('data:', 'files/'))] == []


def test_the_frame_of_every_page(pages):
    for page in pages:
        html = BeautifulSoup(page.read_text(encoding='utf-8'), 'html.parser')
        assert html.html['lang'] == 'en' and len(html.select('h1')) == len(html.select('main')) == 1 and html.select('header') and html.select('footer')
        assert html.select_one('a.skip')['href'] == '#main' and html.find(id='main').name == 'main'
        ids = [t['id'] for t in html.find_all(id=True)]
        assert len(ids) == len(dict.fromkeys(ids))
        labels = [n['aria-label'] for n in html.select('nav')]
        assert len(labels) == len(dict.fromkeys(labels))


# --- the folder

def test_the_same_input_gives_the_same_bytes(made, tmp_path):
    before = contents(made / 'site' / 'miniature')
    shutil.copytree(made / 'figures', tmp_path / 'figures'); shutil.copytree(made / 'data' / 'records', tmp_path / 'data' / 'records')
    assert site(tmp_path, '--profile', 'miniature')[0] == 0
    assert contents(tmp_path / 'site' / 'miniature') == before
    executed = tmp_path / 'figures' / 'executed' / 'miniature' / 'llamarec-table1.ipynb'
    nb = nbformat.read(executed, as_version=4)
    for i, cell in enumerate(nb.cells): cell['id'] = f'other-{i}'
    nb.cells[3].metadata['papermill']['end_time'] = '2027-01-01'; nb.metadata['papermill']['start_time'] = '2027-01-01'
    nbformat.write(nb, executed)
    (tmp_path / 'figures' / 'miniature' / 'llamarec' / 'table1.tex').unlink()
    assert site(tmp_path, '--profile', 'miniature')[0] == 0
    after = contents(tmp_path / 'site' / 'miniature')
    assert 'files/llamarec/table1.tex' not in after    # nothing of the old site stays
    part = re.compile(rb'<section aria-labelledby="notebook">.*?</section>', re.S)
    assert part.search(after['llamarec-table1.html'])[0] == part.search(before['llamarec-table1.html'])[0]
    assert not list(tmp_path.rglob('*.tmp-*'))


def test_complaints_are_one_sentence_and_leave_the_old_site(made, tmp_path):
    before = contents(made / 'site' / 'miniature')
    def complaint(out, *args):
        status, said, text = site(out, *args)
        assert (status, said) == (1, '') and len(text.splitlines()) == 1 and text.startswith('llmrec_site: '), text
        return text
    assert "Did you mean 'miniature'?" in complaint(made, '--profile', 'minature')
    assert 'llmrec_reproduce --profile real-cpu' in complaint(made, '--profile', 'real-cpu')
    assert 'llmrec_reproduce' in complaint(tmp_path)
    (tmp_path / 'figures').symlink_to(made / 'figures'); (tmp_path / 'site').write_text('in the way')
    assert 'LLMREC_OUT' in complaint(tmp_path, '--profile', 'miniature')
    assert contents(made / 'site' / 'miniature') == before


def test_a_notebook_that_was_not_run_to_its_end_says_so(made, tmp_path):
    shutil.copytree(made / 'figures', tmp_path / 'figures')
    with output_to(tmp_path): executed = executed_path('llamarec/table2', 'miniature')
    half = notebook('Half')
    banner = '<span style="color:red">An Exception was encountered at \'<a href="#papermill-error-cell">In [3]</a>\'.</span>'
    half.cells.insert(0, new_markdown_cell(banner, metadata=dict(tags=['papermill-error-cell-tag'])))
    half.cells[-2].outputs = [new_output('error', ename='ValueError', evalue='no such\nthing', traceback=['\x1b[0;31mValueError\x1b[0m: <no such> thing'])]
    half.cells[-1].metadata['papermill'] = dict(status='pending')
    nbformat.write(half, executed)
    executed.with_name('llamarec-table3.ipynb').write_text('{"cells": [')
    assert site(tmp_path, '--profile', 'miniature')[0] == 0
    text = (tmp_path / 'site' / 'miniature' / 'llamarec-table2.html').read_text(encoding='utf-8')
    page = BeautifulSoup(text, 'html.parser')
    assert 'ended with an error: no such thing' in page.get_text() and 'No file of this artefact is here' in page.get_text()
    assert 'ValueError: <no such> thing' in page.select_one('pre.error').get_text() and 'An Exception was encountered' not in text
    assert [h.get_text() for h in page.select('h1')] == ['LlamaRec, Table 2: the datasets'] and 'Half' not in page.select_one('main').get_text()
    half.cells[-2].outputs = []
    nbformat.write(half, executed)
    assert site(tmp_path, '--profile', 'miniature')[0] == 0
    assert 'not run to its end' in (tmp_path / 'site' / 'miniature' / 'llamarec-table2.html').read_text(encoding='utf-8')
    assert not (tmp_path / 'site' / 'miniature' / 'llamarec-table3.html').exists()


def test_the_site_of_a_real_run(browser, tmp_path):
    "What llmrec_reproduce leaves is what the site expects: the state, the records, and the notebook."
    command = [sys.executable, '-c', "from llmrec.repro.reproduce import main; raise SystemExit(main(['llamarec/table2', '--jobs', '1']))"]
    done = subprocess.run(command, cwd=root(), env=os.environ | dict(LLMREC_OUT=str(tmp_path), LLMREC_DATA='', OMP_NUM_THREADS='1'), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert site(tmp_path)[0] == 0
    folder = tmp_path / 'site' / 'miniature'
    for name in ('index.html', 'llamarec-table2.html'):
        assert browser.open(folder / name, 400) == [] and browser.js(IMAGES) == [] and browser.js(TOO_WIDE) == 0
    page = BeautifulSoup((folder / 'llamarec-table2.html').read_text(encoding='utf-8'), 'html.parser')
    assert page.select_one('.state').get_text() == 'fresh' and page.find(id='notebook') and page.select('.output table')
    records = [[td.get_text() for td in tr.select('td')] for tr in page.select('[aria-label=Records] tbody tr')]
    stamped = json.loads((tmp_path / 'figures' / 'miniature' / 'llamarec' / 'table2.json').read_text())['records']
    assert stamped and [(r[0], r[-1]) for r in records] == [(name, 'as it was') for name in sorted(stamped)]
