"The server: many questions at once, faults in a sentence, a clean end, and a start after it."

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from llmrec.data.datasets import load_dataset
from llmrec.data.yesno import load_yesno
from llmrec.recommend.rater import Rater
from llmrec.recommend.recommender import Recommender
from llmrec.paths import LlmrecError
from llmrec.recommend.server import Recommend, RequestLimits, make_app, recommended, serve_main

ROOT = Path(__file__).resolve().parent.parent
START = 'import sys; from llmrec.recommend.server import serve_main; sys.exit(serve_main())'


@pytest.fixture(scope='module')
def recommender():
    return Recommender.fit(
        load_dataset('films'), training=dict(epochs=1, validate_every=5, seed=0), progress=False
    )


@pytest.fixture(scope='module')
def rater(tmp_path_factory):
    quick = dict(max_steps=1, eval_steps=1, warmup_steps=0, batch_size=2, accumulation=1)
    return Rater.fit(
        load_yesno('films', 'corrected'),
        'miniature',
        tmp_path_factory.mktemp('work'),
        k=2,
        tuning=quick,
        valid_rows=10,
        test_rows=20,
        progress=False,
    )


@contextlib.contextmanager
def serving(folder, *options):
    "A server in a process of its own, and its address; it is told to stop at the end, and must stop cleanly."
    p = subprocess.Popen(
        [sys.executable, '-c', START, str(folder), '--port', '0', *options],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = p.stderr.readline()
        assert line.startswith('http://127.0.0.1:'), line + p.stderr.read()
        yield p, line.split()[0]
        if p.poll() is None:
            p.send_signal(signal.SIGTERM)
        assert p.wait(60) == 0
        assert p.stderr.read().replace('WARNING:  Invalid HTTP request received.\n', '') == ''
    finally:
        if p.poll() is None:
            p.kill()
        p.wait()
        p.stderr.close()


def post(address, path, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = urllib.request.Request(address + path, data, {'Content-Type': 'application/json'})
    try:
        with urllib.request.urlopen(asked, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())


def test_two_hundred_in_flight_then_a_clean_stop_and_a_start(recommender, tmp_path):
    folder, people = recommender.save(tmp_path / 'mine'), recommender.users[:200]
    want = {u: recommender.recommend(u, k=3)['item'].to_list() for u in people[:200:20]}
    for _ in range(2):  # the second time on what the first has left
        with serving(folder) as (_, address), ThreadPoolExecutor(200) as crowd:
            answers = list(crowd.map(lambda u: post(address, '/recommend', dict(user=u, k=3)), people))
            assert {status for status, _ in answers} == {200}
            got = {u: [x['item'] for x in a['items']] for u, (_, a) in zip(people, answers)}
            assert {u: got[u] for u in want} == want


def test_what_is_in_flight_is_answered_before_the_end(recommender, tmp_path):
    with serving(recommender.save(tmp_path / 'mine')) as (p, address), ThreadPoolExecutor(50) as crowd:
        several = [
            crowd.submit(post, address, '/recommend', dict(user=u, k=1000)) for u in recommender.users[:50]
        ]
        several[0].result()
        p.send_signal(signal.SIGTERM)
        done = [f.exception() or f.result()[0] for f in several]
        assert all(
            d == 200 or isinstance(d, (OSError, urllib.error.URLError)) for d in done
        )  # answered, or never taken
        assert p.wait(60) == 0


@pytest.mark.parametrize(
    'path, body, said',
    [
        ('/recommend', dict(user='nobody'), "no user 'nobody'"),
        ('/recommend', dict(), 'one of `user` and `history`'),
        ('/recommend', dict(user=1, history=[1]), 'one of `user` and `history`'),
        ('/recommend', dict(history=[]), 'A history is empty'),
        ('/recommend', dict(history=['x']), "no item 'x'"),
        ('/recommend', dict(user=1, k=0), 'k: '),
        ('/recommend', dict(usr=1), 'usr: '),
        ('/recommend', dict(user=1, leave_out=['x']), 'leave_out'),
        ('/recommend', dict(user=1, candidates=['x']), 'take it out of candidates'),
        ('/recommend', dict(user=1, cold={'999': 'x'}), 'Only a language model'),
        ('/recommend', dict(user=1, cold=['x']), 'cold: '),
        ('/recommend', b'{', 'JSON'),
        ('/recommend', b'\xff', ''),
        ('/score', dict(history=[], targets=[]), 'targets: '),
        ('/score', dict(history=[[1, 7]], targets=[1]), 'history.0.1: '),
        ('/score', dict(history=[[1, 1]], targets=['x']), "no item 'x'"),
        ('/score', dict(history=[], targets=['x'], titles={'x': ' '}), 'The title'),
        ('/recommend', dict(history=[True]), 'history.0.'),
        ('/recommend', dict(history=['9' * 6000]), 'There is no item'),
        ('/recommend', b'{"history": ["\\ud800"]}', 'half a character'),
        ('/score', b'{"history": [], "targets": ["x"], "titles": {"x": "\\ud800"}}', 'half a character'),
        ('/score', b'{"history": [], "targets": ["x"], "titles": {"\\udfff": "x"}}', 'half a character'),
        ('/recommend', b'[' * 100_000, 'JSON'),
    ],
)
def test_a_bad_request_is_answered_with_one_sentence(recommender, rater, path, body, said):
    with TestClient(make_app(recommender, rater)) as client:
        answer = client.post(
            path,
            content=body if isinstance(body, bytes) else json.dumps(body),
            headers={'Content-Type': 'application/json'},
        )
        assert answer.status_code == 422 and list(answer.json()) == ['detail'], answer.text
        detail = answer.json()['detail']
        assert said in detail and '\n' not in detail and detail.endswith('.')
        assert client.get('/health').json()['status'] == 'ok'


def test_scores_are_the_raters(rater):
    history, targets = [(rater.items[0], 1), (rater.items[1], 0)], rater.items[5:8]
    want = rater.score([*history], [*targets, 9999], {9999: 'A New Film (2001)'})['probability'].to_list()
    with TestClient(make_app(None, rater)) as client:
        body = dict(history=history, targets=[*targets, '9999'], titles={'9999': 'A New Film (2001)'})
        got = client.post('/score', json=body).json()['items']
        assert [x['probability'] for x in got] == pytest.approx(want, abs=1e-5)
        plain = client.post('/score', json=dict(history=history, targets=targets)).json()['items']
        assert [x['item'] for x in plain] == targets
        assert client.post('/recommend', json=dict(user=1)).status_code == 404


def test_questions_of_one_batch_get_what_they_would_get_alone(recommender):
    u, items = recommender.users, recommender.items
    several = [
        Recommend(user=u[0], k=3),
        Recommend(user=u[0], k=3, leave_out=items[:50]),
        Recommend(history=items[:250], k=100),
        Recommend(user='nobody'),
        Recommend(user=u[1], k=5, rank=False),
        Recommend(user=u[2], k=1),
        Recommend(user=u[1], k=5, candidates=items[:9]),
        Recommend(user=u[1], candidates=[]),
        Recommend(user=u[0], cold={'999': 'x'}),
    ]

    def plain(answer):
        return [x['item'] for x in answer] if isinstance(answer, list) else str(answer)

    assert [plain(a) for a in recommended(recommender, several)] == [
        plain(recommended(recommender, [q])[0]) for q in several
    ]
    assert len(recommended(recommender, several)[2]) == 50  # nothing twice
    assert set(plain(recommended(recommender, several)[6])) <= set(items[:9])


def test_cold_items_are_ranked_by_their_titles(tmp_path):
    quick = dict(max_steps=1, eval_steps=1, warmup_steps=0, batch_size=2, accumulation=1)
    r = Recommender.fit(
        load_dataset('films'),
        backbone='miniature',
        folder=tmp_path / 'work',
        training=dict(epochs=1, validate_every=50),
        tuning=quick,
        max_valid_users=2,
        test_users=20,
        progress=False,
    )
    body = dict(
        history=r.items[:4],
        candidates=r.items[10:15],
        cold={'999': 'A film of tomorrow', '1000': 'Another one'},
    )
    want = r.recommend(
        history=r.items[:4], candidates=r.items[10:15], cold={999: 'A film of tomorrow', 1000: 'Another one'}
    )
    with TestClient(make_app(r)) as client:
        got = client.post('/recommend', json=body).json()['items']
        odd = client.post('/recommend', json=body | dict(cold={'new': 'x'}))
    assert [(x['item'], x['title']) for x in got] == want.select('item', 'title').rows() and {
        999,
        1000,
    } <= set(want['item'])
    assert odd.status_code == 422 and 'are whole numbers' in odd.json()['detail']


def test_a_fault_of_ours_is_a_500_and_the_server_goes_on(recommender, monkeypatch):
    calls = []

    def broken(r, **how):
        calls.append(how)
        if len(calls) == 1:
            raise RuntimeError('a bug')
        return whole(r, **how)

    whole = Recommender.recommend
    monkeypatch.setattr(Recommender, 'recommend', broken)
    with TestClient(make_app(recommender), raise_server_exceptions=False) as client:
        statuses = [
            client.post('/recommend', json=dict(user=recommender.users[0])).status_code for _ in range(2)
        ]
    assert statuses == [500, 200]


def test_it_does_not_start_without_a_folder_or_an_address(recommender, tmp_path, capsys):
    assert serve_main([str(tmp_path)]) == 1
    assert 'neither a recommender nor a rater' in capsys.readouterr().err
    folder = str(recommender.save(tmp_path / 'mine'))
    assert serve_main([folder, folder, '--port', '0']) == 1
    assert 'second recommender' in capsys.readouterr().err
    assert serve_main([folder, '--port', '-1']) == 1
    assert 'cannot be listened on' in capsys.readouterr().err


MOST = dict(body=1000, items=12, targets=3, seconds=2.0)
SEND = b'POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n'


@pytest.fixture(scope='module')
def strict(recommender, tmp_path_factory):
    "The address of a server with small limits."
    options = [text for name, value in MOST.items() for text in (f'--max-{name}', str(value))]
    with serving(recommender.save(tmp_path_factory.mktemp('strict') / 'mine'), *options) as (_, address):
        yield address


def connected(address):
    host, port = address.removeprefix('http://').split(':')
    return socket.create_connection((host, int(port)), timeout=20)


def said(s) -> tuple:
    "Status and detail of the first answer on a socket; None when the server hung up without one."
    with s, s.makefile('rb') as f:
        status, headers = f.readline(), {}
        if not status:
            return None
        while line := f.readline().strip():
            headers.update([line.lower().split(b': ')])
        return int(status.split()[1]), json.loads(f.read(int(headers[b'content-length']))).get('detail')


def sent(address, *parts):
    s = connected(address)
    for part in parts:
        s.sendall(part)
    return said(s)


def in_chunks(body: bytes, size: int = 100) -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b''.join(b'%x\r\n%b\r\n' % (len(p), p) for p in pieces) + b'0\r\n\r\n'


def of_length(n: int) -> bytes:
    "A good question of n bytes."
    body = b'{"history": [1, 2], "k": 2}'
    return body + b' ' * (n - len(body))


def test_a_body_may_have_as_many_bytes_as_the_limit_and_no_more(strict):
    declared = SEND + b'Content-Length: %d\r\n\r\n'
    chunked = SEND + b'Transfer-Encoding: chunked\r\n\r\n'
    assert (
        sent(strict, declared % 1000, of_length(1000))
        == sent(strict, chunked, in_chunks(of_length(1000)))
        == (200, None)
    )
    for status, detail in (
        sent(strict, declared % 1001, of_length(1001)),
        sent(strict, chunked, in_chunks(of_length(1001))),
    ):
        assert status == 413 and '1,000 bytes' in detail and detail.endswith('.')


def test_a_client_that_is_still_writing_reads_the_refusal(strict):
    for n in (5_000, 15_000):
        assert post(strict, '/recommend', of_length(n))[0] == 413


def test_a_content_length_that_lies(strict):
    head = SEND + b'Content-Length: %d\r\n\r\n'
    assert sent(strict, head % 10**15, b'{}')[0] == 413  # nothing is waited for
    status, detail = sent(strict, head % 900, of_length(100))  # the rest never comes
    assert status == 408 and '2 seconds' in detail
    assert sent(strict, head % 10, of_length(100))[0] == 422  # the rest is no request
    assert sent(strict, SEND + b'\r\n')[0] == 422  # none: an empty body
    assert (
        sent(strict, SEND + b'Expect: 100-continue\r\nContent-Length: 2000\r\n\r\n')[0] == 413
    )  # no 100 before it
    assert post(strict, '/recommend', of_length(100))[0] == 200


def test_chunks_without_end_are_cut_off(strict):
    with connected(strict) as s:
        s.sendall(SEND + b'Transfer-Encoding: chunked\r\n\r\n')
        with pytest.raises(OSError):
            for _ in range(100_000):
                s.sendall(in_chunks(b' ' * 1000, 1000)[:-5])


def test_slow_clients_hold_up_nobody_and_are_not_waited_for(strict):
    half = [SEND[:30], SEND + b'Content-Length: 100\r\n\r\n{"user"', b'']
    slow = [connected(strict) for _ in range(60)]
    for i, s in enumerate(slow):
        s.sendall(half[i % 3])
    with ThreadPoolExecutor(10) as crowd:
        statuses = list(crowd.map(lambda n: post(strict, '/recommend', of_length(100))[0], range(30)))
    assert statuses == [200] * 30
    assert [a and a[0] for a in map(said, slow)] == [None, 408, None] * 20


def test_a_second_request_may_not_dawdle_either(strict):
    with connected(strict) as s:
        for part in (SEND + b'Content-Length: 100\r\n\r\n', of_length(100)):
            s.sendall(part)
        assert s.recv(10_000).startswith(b'HTTP/1.1 200')
        start = time.monotonic()
        s.settimeout(0.2)
        while time.monotonic() - start < 15:
            try:
                s.sendall(SEND[:1])  # a byte now and then, never a head
            except OSError:
                break
            try:
                if s.recv(100) == b'':
                    break
            except TimeoutError:
                pass
        assert time.monotonic() - start < 12


@pytest.mark.parametrize(
    'path, body, words',
    [
        ('/recommend', dict(history=[1] * 6, leave_out=[2] * 7), '13 items'),  # all lists together
        ('/recommend', dict(history=[1], cold={str(n): 'x' for n in range(12)}), '13 items'),
        ('/recommend', {str(n): 1 for n in range(13)}, '13 items'),
        ('/score', dict(history=[[1, 1]], targets=[1, 2, 3, 4]), '4 targets'),
        ('/score', dict(history=[], targets=[1], titles={str(n): 'x' for n in range(12)}), '13 items'),
    ],
)
def test_a_request_names_a_limited_number_of_items(recommender, rater, path, body, words):
    with TestClient(make_app(recommender, rater, allowed=RequestLimits(**MOST))) as client:
        answer = client.post(path, json=body)
        assert answer.status_code == 413 and words in answer.json()['detail'], answer.text
        assert 'at most 12' in answer.json()['detail'] or 'at most 3' in answer.json()['detail']
        assert client.post('/recommend', json=dict(history=[1] * 6, leave_out=[2] * 6)).status_code == 200
        assert (
            client.post('/recommend', content='hello', headers={'Content-Type': 'text/plain'}).status_code
            == 422
        )
        assert client.post('/recommend', json=[[1] * 20]).status_code == 422


def test_more_clients_than_files_that_are_open_by_default(recommender, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1000:
        pytest.skip('this machine allows few open files')
    folder = recommender.save(tmp_path / 'mine')
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 300), hard))  # what the server inherits
    try:
        with serving(folder) as (_, address):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(1000, hard), hard))
            idle = [connected(address) for _ in range(400)]
            assert post(address, '/recommend', of_length(100))[0] == 200
            for s in idle:
                s.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_limits_are_checked_before_anything_is_loaded(capsys):
    for name, wrong in (('body', '0'), ('items', '-1'), ('seconds', '0'), ('seconds', 'nan')):
        assert serve_main(['nowhere', f'--max-{name}', wrong]) == 1
        assert f'RequestLimits.{name} must be' in capsys.readouterr().err
    with pytest.raises(LlmrecError, match='RequestLimits.items'):
        make_app(allowed=RequestLimits(items=0))
