"A server that repeats the key it is given: the key stands in nothing that was written, whatever its variable is called."

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmrec.llm.asking import ask
from llmrec.llm.chat import EndpointConfig, connect
from llmrec.paths import LlmrecError
from llmrec.repro.reproduce import overrides

from test_engine import command, notebook, project  # noqa: F401, the fixture

KEY = 'sk-Very+Secret/1234='


@pytest.fixture
def echo():
    "A server that puts the Authorization header into what it answers; the status is `echo.status`."

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers['content-length']))
            said = f'Yes. You sent {self.headers["authorization"]}, that is {self.headers["authorization"].removeprefix("Bearer ")}'
            choice = dict(
                index=0, finish_reason='stop', logprobs=None, message=dict(role='assistant', content=said)
            )
            body = (
                dict(error=dict(message=said, type='x', code=None))
                if server.status != 200
                else dict(
                    id='0',
                    created=0,
                    model=said,
                    object='chat.completion',
                    choices=[choice],
                    usage=dict(prompt_tokens=1, completion_tokens=1, total_tokens=2),
                )
            )
            content = json.dumps(body).encode()
            self.send_response(server.status)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *a):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.status, server.url = 401, f'http://127.0.0.1:{server.server_port}/v1'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def written(folder):
    "All bytes in all files, and names of files, below a folder."
    return b''.join(p.as_posix().encode() + p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file())


@pytest.mark.parametrize('status', [400, 401, 403, 404, 422, 429, 500])
@pytest.mark.parametrize('variable', ['OPENAI_API_KEY', 'MY_SERVER'])
def test_no_complaint_repeats_the_key(echo, monkeypatch, tmp_path, status, variable):
    echo.status = status
    monkeypatch.setenv(variable, KEY)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with pytest.raises(LlmrecError) as e:
        ask(
            EndpointConfig('m', base_url=echo.url, key_env=variable, retries=0),
            ['x'],
            tmp_path,
            progress=False,
        )
    assert KEY not in str(e.value) and '[hidden]' in str(e.value) and e.value.__cause__ is None


def test_no_kept_answer_has_the_key(echo, monkeypatch, tmp_path):
    echo.status = 200
    monkeypatch.setenv('MY_SERVER', KEY)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    (answer,) = ask(
        EndpointConfig('m', base_url=echo.url, key_env='MY_SERVER', retries=0),
        ['x'],
        tmp_path,
        progress=False,
    )
    assert (
        answer.kind == 'yes'
        and '[hidden]' in answer.text
        and KEY not in f'{answer}'
        and KEY.encode() not in written(tmp_path)
    )


ASK = '''
import polars as pl
from llmrec.llm.asking import ask
from llmrec.llm.chat import EndpointConfig
from llmrec.paths import checkpoints_dir
from llmrec.runs.artefacts import caption, save_table
'''
TABLE = '''
print(f'The server is {url}')
answers = ask(EndpointConfig('m', base_url=url, key_env=variable, retries=0), ['x', 'y'], checkpoints_dir(profile) / 'answers', progress=False)
save_table(pl.DataFrame(dict(said=[a.text for a in answers], served=[a.served for a in answers])), 'beyond', name, caption(profile, {'toy': 'data'}, '', [0], 'none'), profile)
'''


@pytest.mark.parametrize('status', [200, 401])
@pytest.mark.parametrize('variable', ['OPENAI_API_KEY', 'MY_SERVER'])
def test_nothing_that_a_batch_writes_has_the_key(echo, project, tmp_path, status, variable):  # noqa: F811
    echo.status = status
    notebook(
        project / 'nbs' / '01_one.ipynb',
        dict(profile='mine', name='one', url='', variable='', size=1),
        ASK,
        TABLE,
    )
    how = command(
        project,
        tmp_path / 'out',
        'beyond/one',
        '--jobs',
        '1',
        '-p',
        f'url={echo.url}',
        '-p',
        f'variable={variable}',
    )
    how['env'] |= {variable: KEY, 'NO_PROXY': '127.0.0.1'}
    done = subprocess.run(**how, capture_output=True, timeout=300)
    assert done.returncode == (0 if status == 200 else 3), done.stderr
    assert KEY.encode() not in written(tmp_path / 'out') and KEY not in done.stdout + done.stderr
    assert b'[hidden]' in written(tmp_path / 'out')
    if status == 401:
        assert (
            'refuses the key in' in done.stderr
            and '[hidden]'
            in next((tmp_path / 'out/figures/executed').rglob('beyond-one.failed.txt')).read_text()
        )


def test_a_traceback_of_somebody_else_shows_no_key(project, tmp_path):  # noqa: F811
    notebook(
        project / 'nbs' / '01_one.ipynb',
        dict(profile='mine', size=1),
        'import os',
        "raise RuntimeError('at https://ann:pw-1@host: Bearer ' + os.environ['SOME_TOKEN'])",
    )
    how = command(project, tmp_path / 'out', 'beyond/one', '--jobs', '1')
    how['env'] |= dict(SOME_TOKEN=KEY)
    done = subprocess.run(**how, capture_output=True, timeout=300)
    assert done.returncode == 3 and 'RuntimeError' in done.stderr
    everything = written(tmp_path / 'out') + (done.stdout + done.stderr).encode()
    assert KEY.encode() not in everything and b'pw-1' not in everything and b'[hidden]@host' in everything


@pytest.mark.parametrize('key', ['schlüssel', 'two words', 'sk-1\nsk-2', '“sk-1234”'])
def test_a_key_that_cannot_be_sent(monkeypatch, key):
    monkeypatch.setenv('MY_SERVER', key)
    with pytest.raises(LlmrecError, match='The key in MY_SERVER holds characters') as e:
        connect(EndpointConfig('m', key_env='MY_SERVER'))
    assert key not in str(e.value)


def test_a_password_in_an_address(monkeypatch, tmp_path):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with pytest.raises(LlmrecError, match='hidden.@127.0.0.1:9') as e:
        ask(
            EndpointConfig('m', base_url='http://ann:pw-1@127.0.0.1:9/v1', key_env='', retries=0),
            ['x'],
            tmp_path,
            progress=False,
        )
    assert 'pw-1' not in str(e.value)
    with pytest.raises(LlmrecError, match='holds a password or a key') as e:
        overrides(['endpoints=[{model: m, base_url: "http://ann:pw-1@host/v1"}]'])
    assert 'pw-1' not in str(e.value)
    with pytest.raises(LlmrecError) as e:
        overrides(['endpoints=[http://ann:pw-1@host'])
    assert 'pw-1' not in str(e.value)
