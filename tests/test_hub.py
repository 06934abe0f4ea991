"Pushing to a hub and pulling from it, with the real client against a server on this machine."

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmrec.data.datasets import load_dataset
from llmrec.paths import LlmrecError
from llmrec.recommend.hub import from_hub, push_to_hub
from llmrec.recommend.recommender import Recommender

SHA = '1' * 40


class Hub(BaseHTTPRequestHandler):
    "The few addresses of a hub that an upload in one commit and a download need."

    def log_message(self, *_):
        pass

    def reply(self, body=b'', status=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for k, v in dict(headers, Content_Length=len(body)).items():
            self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        self.server.asked.append((self.path, self.headers.get('Authorization')))
        if self.server.refuses:
            return self.reply(dict(error='Unauthorized'), 401)
        if self.path == '/api/repos/create':
            self.server.created = json.loads(body)
            return self.reply(dict(url=f"{self.server.url}/somebody/films", name="somebody/films"))
        if '/preupload/' in self.path:
            return self.reply(
                dict(
                    files=[
                        dict(path=f['path'], uploadMode='regular', shouldIgnore=False)
                        for f in json.loads(body)['files']
                    ]
                )
            )
        if '/commit/' in self.path:
            for line in map(json.loads, body.splitlines()):
                if line['key'] == 'file':
                    self.server.files[line['value']['path']] = base64.b64decode(line['value']['content'])
            return self.reply(
                dict(
                    success=True,
                    commitOid=SHA,
                    commitUrl=f'{self.server.url}/somebody/films/commit/{SHA}',
                    hookOutput='',
                )
            )
        self.reply({})

    def do_GET(self):
        if '/resolve/' in self.path:
            content = self.server.files.get(self.path.split('/resolve/')[1].split('/', 1)[1])
            if content is None:
                return self.reply(dict(error='no'), 404, X_Error_Code='EntryNotFound')
            return self.reply(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=SHA)
        if '/tree/' in self.path:
            return self.reply(
                [
                    dict(type='file', path=p, size=len(c), oid=hashlib.sha1(c).hexdigest())
                    for p, c in self.server.files.items()
                ]
            )
        self.reply(
            dict(
                id='somebody/films',
                sha=SHA,
                siblings=[dict(rfilename=p) for p in self.server.files],
                private=True,
            )
        )

    do_HEAD = do_GET


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.asked, server.files, server.created, server.refuses = [], {}, None, False
    server.url = f'http://127.0.0.1:{server.server_address[1]}'
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def api(hub, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return huggingface_hub.HfApi(endpoint=hub.url, token='hf_secret')


@pytest.fixture(scope='module')
def tuned(tmp_path_factory):
    quick = dict(max_steps=1, eval_steps=1, warmup_steps=0, batch_size=2)
    return Recommender.fit(
        load_dataset('films'),
        backbone='miniature',
        folder=tmp_path_factory.mktemp('work'),
        tuning=quick,
        training=dict(epochs=1, validate_every=5, seed=0),
        max_valid_users=2,
        test_users=20,
        progress=False,
    )


def test_there_and_back(tuned, hub, api, tmp_path):
    assert push_to_hub(tuned, 'somebody/films', api=api).endswith('somebody/films')
    assert hub.created['visibility'] == 'private' and {who for _, who in hub.asked} == {'Bearer hf_secret'}
    assert 'people.parquet' not in hub.files and {
        'README.md',
        'recommender.json',
        'adapter/adapter_config.json',
        'base/config.json',
    } <= set(hub.files)
    assert json.loads(hub.files['adapter/adapter_config.json'])['base_model_name_or_path'] == '../base'
    text = b''.join(c for name, c in hub.files.items() if Path(name).suffix in ('.json', '.md'))
    assert b'/tmp' not in text and str(Path.home()).encode() not in text  # no folder of this machine
    back = Recommender.load(from_hub('somebody/films', tmp_path / 'back', api=api))
    history = [tuned.items[:3]]
    assert back.recommend(history=history, k=5).rows() == tuned.recommend(history=history, k=5).rows()
    assert json.loads((tmp_path / 'back/adapter/adapter_config.json').read_text())[
        'base_model_name_or_path'
    ] == str(tmp_path / 'back/base')


def test_a_refusal_is_a_sentence(tuned, hub, api):
    hub.refuses = True
    with pytest.raises(LlmrecError, match='could not be written to the hub') as e:
        tuned.push_to_hub('somebody/films', api=api)
    assert '\n' not in str(e.value) and 'hf_secret' not in str(e.value) and not hub.files
