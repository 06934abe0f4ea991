"""Remote models, against real servers: log-probabilities, texts, refusals, rate limits, hangs, kills, keys and costs."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrec.data.yesno import load_yesno
from llmrec.experiments.in_context import InContextRun, existing, line_up, long_rows, run
from llmrec.experiments.tallrec import chosen_rows
from llmrec.llm.backbones import BackboneConfig, load_backbone
from llmrec.llm.asking import answer_path, ask
from llmrec.llm.chat import EndpointConfig, as_asked
from llmrec.llm.replies import one_scale, reads
from llmrec.llm.yesno import YesNoPromptConfig, question
from llmrec.paths import LlmrecError

from endpoint import free_port, outspoken, own_server, transformers_serve

PROMPTS = [
    f'{title} Respond:\n'
    for title in (
        'star war',
        'king',
        'the long night',
        'dead city',
        'blue girl',
        'boy',
        'red king',
        'white star',
    )
]


@pytest.fixture(autouse=True, scope='module')
def direct():
    "No proxy between the tests and the servers of this machine."
    before = os.environ.get('NO_PROXY')
    os.environ['NO_PROXY'] = '127.0.0.1'
    yield
    del os.environ['NO_PROXY']
    if before is not None:
        os.environ['NO_PROXY'] = before


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return outspoken(tmp_path_factory.mktemp('model') / 'tiny', PROMPTS)


@pytest.fixture(scope='module')
def served(folder, tmp_path_factory):
    with own_server(folder, tmp_path_factory.mktemp('log') / 'server.txt') as server:
        yield server


@pytest.fixture
def server(served):
    served.behave()
    return served


def at(server, **settings):
    return EndpointConfig(
        **dict(
            model='tiny', base_url=server.url, key_env='', max_tokens=1, timeout=20.0, retries=2, workers=2
        )
        | settings
    )


@pytest.fixture(scope='module')
def local(folder):
    "log-probabilities over the vocabulary after each prompt, and the vocabulary as words."
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder).eval(),
    )
    with torch.no_grad():
        found = np.stack(
            [
                torch.log_softmax(model(**tokenizer(p, return_tensors='pt')).logits[0, -1], -1).numpy()
                for p in PROMPTS
            ]
        )
    return found, [tokenizer.decode([i]) for i in range(len(tokenizer))]


def mass(local, word):
    return np.exp(local[0][:, [reads(t) == word for t in local[1]]]).sum(1)


@pytest.mark.parametrize('api', ['chat', 'completions'])
def test_scores_are_the_models_own_log_probabilities(server, local, tmp_path, api):
    answers = ask(at(server, api=api, logprobs=len(local[1])), PROMPTS, tmp_path, progress=False)
    scores, source = one_scale(answers)
    assert (
        source == 'logprobs' and np.abs(scores - np.log(mass(local, 'yes') / mass(local, 'no'))).max() < 1e-4
    )
    assert [a.kind for a in answers] == ['yes' if s > 0 else 'no' for s in scores] and len(
        np.unique(scores > 0)
    ) == 2
    assert all(a.tokens_in > 1 and a.tokens_out == 1 and a.served == 'tiny-2026' for a in answers)


@pytest.mark.parametrize('missing', ['rest', 'bound', 'none'])
def test_a_word_outside_the_list_is_treated_as_the_switch_says(server, local, tmp_path, missing):
    scores, source = one_scale(
        ask(at(server, logprobs=1, missing=missing), PROMPTS, tmp_path, progress=False)
    )
    best, token = np.exp(local[0].max(1)), local[0].argmax(1)
    said_yes = np.array([reads(local[1][t]) == 'yes' for t in token])
    other = dict(rest=1 - best, bound=np.minimum(1 - best, best))
    if missing == 'none':
        assert source == 'text' and scores.tolist() == np.where(said_yes, 1, -1).tolist()
    else:
        assert (
            source == 'logprobs'
            and np.abs(scores - np.log(best / other[missing]) * np.where(said_yes, 1, -1)).max() < 1e-3
        )


def test_the_rules_for_a_missing_word_share_their_answers(server, tmp_path):
    for missing in ('rest', 'bound', 'none'):
        ask(at(server, missing=missing), PROMPTS, tmp_path, progress=False)
    assert server.count['requests'] == len(PROMPTS)


def test_answers_come_in_the_order_of_the_prompts_and_repetitions_are_asked_once(server, tmp_path):
    server.behave(delay=0.05)
    many = [f'{i} {p}' for i in range(4) for p in PROMPTS]
    together = ask(at(server, workers=8), many + many[::-1], tmp_path / 'a', progress=False)
    assert server.count['requests'] == len(many)
    alone = ask(at(server, workers=1), many, tmp_path / 'b', progress=False)
    assert [a.text for a in together] == [a.text for a in alone + alone[::-1]] and len(
        dict.fromkeys(a.text for a in alone)
    ) > 1
    assert np.allclose(one_scale(together)[0], one_scale(alone + alone[::-1])[0], atol=1e-5, equal_nan=True)
    assert ask(at(server), [], tmp_path / 'c') == []


def test_a_busy_server_is_asked_again_after_the_time_it_names(server, tmp_path):
    server.behave(busy=2, retry_after='0.4')
    start = time.perf_counter()
    assert ask(at(server), PROMPTS[:1], tmp_path, progress=False)[0].kind in ('yes', 'no')
    assert time.perf_counter() - start > 0.8 and server.count['requests'] == 3


def test_a_server_that_stays_busy_is_one_sentence_that_says_what_is_kept(server, tmp_path):
    ask(at(server), PROMPTS[:3], tmp_path, progress=False)
    server.behave(busy=99)
    with pytest.raises(LlmrecError, match=r'too busy.* in 3 attempts .*3 of 8 answers are kept') as e:
        ask(at(server), PROMPTS, tmp_path, progress=False)
    assert '\n' not in str(e.value) and server.count['requests'] == 3
    server.behave()
    ask(at(server), PROMPTS, tmp_path, progress=False)
    assert server.count['requests'] == 5


@pytest.mark.parametrize(
    'status, words',
    [
        (500, r'failed in 3 attempts \(status 500'),
        (503, 'failed'),
        (422, 'does not accept the request'),
        (403, 'does not allow'),
    ],
)
def test_other_failures_are_one_sentence(server, tmp_path, status, words):
    server.behave(status=status)
    with pytest.raises(LlmrecError, match=words):
        ask(at(server), PROMPTS[:1], tmp_path, progress=False)
    assert server.count['requests'] == (3 if status >= 500 else 1)


def test_a_server_that_hangs_is_given_up(server, tmp_path):
    server.behave(hang=4.0)
    start = time.perf_counter()
    with pytest.raises(LlmrecError, match='did not answer within 0.3 seconds in 2 attempts'):
        ask(at(server, timeout=0.3, retries=1), PROMPTS, tmp_path, progress=False)
    assert time.perf_counter() - start < 3.5


def test_nobody_at_home_a_wrong_model_and_a_wrong_path(server, tmp_path):
    with pytest.raises(LlmrecError, match='cannot be reached in one attempt'):
        ask(
            at(server, base_url=f'http://127.0.0.1:{free_port()}/v1', retries=0),
            PROMPTS,
            tmp_path,
            progress=False,
        )
    with pytest.raises(LlmrecError, match='does not know .*check model'):
        ask(at(server, model='huge'), PROMPTS, tmp_path, progress=False)
    with pytest.raises(LlmrecError, match='base_url'):
        ask(at(server, base_url=server.root), PROMPTS, tmp_path, progress=False)
    server.behave(html=True)
    with pytest.raises(LlmrecError, match='does its base_url end in /v1'):
        ask(at(server), PROMPTS, tmp_path, progress=False)


def test_keys(server, tmp_path, monkeypatch):
    server.behave(key='sesame')
    monkeypatch.delenv('LLMREC_TEST_KEY', raising=False)
    closed = at(server, key_env='LLMREC_TEST_KEY')
    with pytest.raises(LlmrecError, match='set the environment variable LLMREC_TEST_KEY'):
        ask(closed, PROMPTS[:1], tmp_path, progress=False)
    assert server.count['requests'] == 0
    monkeypatch.setenv('LLMREC_TEST_KEY', 'wrong')
    with pytest.raises(LlmrecError, match='refuses the key in LLMREC_TEST_KEY'):
        ask(closed, PROMPTS[:1], tmp_path, progress=False)
    monkeypatch.setenv('LLMREC_TEST_KEY', 'sesame')
    assert len(ask(closed, PROMPTS[:1], tmp_path, progress=False)) == 1
    assert 'sesame' not in ''.join(p.read_text() for p in tmp_path.rglob('*.json'))
    monkeypatch.delenv('LLMREC_TEST_KEY')
    assert len(ask(closed, PROMPTS[:1], tmp_path, progress=False)) == 1  # kept answers need no key


def test_refusals_and_withheld_texts(server, tmp_path):
    server.behave(refuse='As an AI language model, I cannot say yes or no.', logprobs='omit')
    (answer,) = ask(at(server), PROMPTS[:1], tmp_path, progress=False)
    assert answer.kind == 'refusal' and math.isnan(answer.score) and answer.source == 'text'


@pytest.mark.parametrize('api', ['chat', 'completions'])
@pytest.mark.parametrize('how', ['omit', 'reject'])
def test_without_log_probabilities_the_texts_are_read(server, tmp_path, api, how):
    server.behave(logprobs=how)
    answers = ask(at(server, api=api), PROMPTS, tmp_path, progress=False)
    scores, source = one_scale(answers)
    assert source == 'text' and scores.tolist() == [{'yes': 1.0, 'no': -1.0}[a.kind] for a in answers]
    assert server.count == dict(
        requests=8 + (how == 'reject'), answers=8, asked_logprobs=8 if how == 'omit' else 1
    )


CHILD = """
import json, sys
from llmrec.config import from_dict
from llmrec.llm.asking import ask
from llmrec.llm.chat import EndpointConfig
ask(from_dict(EndpointConfig, json.loads(sys.argv[1])), json.loads(sys.argv[2]), sys.argv[3], progress=False)
"""


def test_a_killed_run_loses_nothing_and_a_repeated_one_asks_nothing(server, tmp_path):
    server.behave(delay=0.15)
    prompts, endpoint = [f'{i} {PROMPTS[0]}' for i in range(16)], at(server)
    settings = {
        k: getattr(endpoint, k)
        for k in ('model', 'base_url', 'key_env', 'max_tokens', 'timeout', 'retries', 'workers')
    }
    root = Path(__file__).resolve().parent.parent
    child = subprocess.Popen(
        [
            sys.executable,
            '-c',
            textwrap.dedent(CHILD),
            json.dumps(settings),
            json.dumps(prompts),
            str(tmp_path),
        ],
        cwd=root,
    )
    end = time.monotonic() + 60
    while len(list(tmp_path.rglob('*.json'))) < 5 and child.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    time.sleep(0.4)
    kept, before = len(list(tmp_path.rglob('*.json'))), server.count
    assert 5 <= kept < 16 and before['requests'] <= kept + endpoint.workers
    answers = ask(endpoint, prompts, tmp_path, progress=False)
    assert server.count['requests'] == before['requests'] + 16 - kept
    assert (
        ask(endpoint, prompts, tmp_path, progress=False) == answers
        and server.count['requests'] == before['requests'] + 16 - kept
    )
    assert answers == ask(endpoint, prompts, tmp_path / 'fresh', progress=False)


def test_a_change_of_address_or_price_repeats_nothing_a_change_of_parameters_does(server, tmp_path):
    ask(at(server), PROMPTS[:1], tmp_path, progress=False)
    away = at(
        server, base_url='http://127.0.0.1:1/v1', price_in=1.0, price_out=1.0, label='Tiny', timeout=1.0
    )
    assert len(ask(away, PROMPTS[:1], tmp_path, progress=False)) == 1 and as_asked(away) == as_asked(
        at(server)
    )
    for other in (
        dict(max_tokens=2),
        dict(revision='b'),
        dict(temperature=0.5),
        dict(system='Be brief. '),
        dict(extra={'seed': 1}),
        dict(logprobs=3),
    ):
        assert not answer_path(tmp_path, at(server, **other), PROMPTS[0]).exists(), other


def test_a_damaged_answer_is_named(server, tmp_path):
    ask(at(server), PROMPTS[:2], tmp_path, progress=False)
    path = answer_path(tmp_path, at(server), PROMPTS[0])
    path.write_text(path.read_text()[:50])
    with pytest.raises(LlmrecError, match=path.name):
        ask(at(server), PROMPTS[:2], tmp_path, progress=False)


def test_the_cost_is_told_first_and_limited(server, tmp_path, capsys):
    paid = at(server, price_in=1e4, price_out=1e4)
    with pytest.raises(LlmrecError, match='more than max_cost'):
        ask(replace(paid, max_cost=0.01), PROMPTS, tmp_path, progress=False)
    assert server.count['requests'] == 0 and 'at most about 0.4' in capsys.readouterr().out
    with pytest.raises(LlmrecError, match='give price_in'):
        ask(at(server, max_cost=1.0), PROMPTS, tmp_path, progress=False)
    many = ['Respond:\n' + 'x9' * 30] + [
        f'Respond:\n{i} ' + 'x9' * 30 for i in range(30)
    ]  # more tokens than a quarter of the characters
    limit = 1e-2 * sum(math.ceil(len(p) / 4) + 1 for p in many) + 1e-6
    with pytest.raises(LlmrecError, match='cost already'):
        ask(replace(paid, max_cost=limit, workers=1), many, tmp_path, progress=False)
    assert 1 < server.count['requests'] < len(many)
    ask(replace(paid, max_cost=10.0), PROMPTS, tmp_path, progress=False)
    capsys.readouterr()
    ask(replace(paid, max_cost=0.0), PROMPTS, tmp_path, progress=False)
    assert capsys.readouterr().out == ''


@pytest.fixture(scope='module')
def hf(folder, tmp_path_factory):
    if not (Path(sys.executable).parent / 'transformers').exists():
        pytest.skip('the command transformers is not installed')
    with transformers_serve(folder, tmp_path_factory.mktemp('log') / 'serve.txt') as server:
        yield server


@pytest.mark.parametrize('api', ['chat', 'completions'])
def test_transformers_serve_ignores_log_probabilities_and_its_texts_are_read(
    hf, folder, local, tmp_path, api
):
    endpoint = at(hf, model=str(folder), api=api)
    answers = ask(endpoint, PROMPTS, tmp_path, progress=False)
    scores, source = one_scale(answers)
    want = ['yes' if a > b else 'no' for a, b in zip(mass(local, 'yes'), mass(local, 'no'))]
    assert (
        source == 'text'
        and [a.kind for a in answers] == want
        and scores.tolist() == [1.0 if k == 'yes' else -1.0 for k in want]
    )
    assert all(a.tokens_in and a.tokens_out == 1 for a in answers)
    assert ask(endpoint, PROMPTS, tmp_path, progress=False) == answers


def in_context(server, **settings):
    return InContextRun('films', endpoint=at(server, **dict(logprobs=50) | settings), rows=30)


def test_a_run_is_recorded_without_its_address_and_read_without_a_key(server, tmp_path, monkeypatch):
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    record = run(in_context(server), 'test', progress=False)
    m = record.metrics
    assert (
        (m['rows'], m['served'], m['source']) == (30, ['tiny-2026'], 'logprobs')
        and m['tokens_in'] > 30
        and server.count['requests'] == 30
    )
    assert sum(n for kind in m['counts'].values() for n in kind.values()) == 30 and str(
        server.url
    ) not in json.dumps(record.config)
    away = in_context(
        server, base_url='http://127.0.0.1:1/v1', key_env='LLMREC_NO_SUCH_KEY', label='elsewhere'
    )
    assert run(away, 'test', progress=False).metrics == m == existing(away, 'test').metrics
    assert existing(in_context(server, max_tokens=2), 'test') is None and server.count['requests'] == 30


def test_refused_rows_leave_the_auc_of_the_answered_ones_and_count_as_undecided_in_the_other(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    server.behave(refuse='I am sorry, but I cannot answer.', logprobs='omit')
    refused = run(in_context(server), 'test', progress=False).metrics
    assert sum(refused['counts']['refusal'].values()) == 30
    assert (
        refused['answered'],
        refused['auc_answered'],
        refused['auc_all'],
        refused['share_yes_answered'],
    ) == (0, None, 0.5, None)
    server.behave(refuse='Yes, they will.', logprobs='omit')
    always = run(in_context(server, revision='always'), 'test', progress=False).metrics
    assert (always['share_yes'], always['auc_answered'], always['auc_all'], always['source']) == (
        1.0,
        0.5,
        0.5,
        'text',
    )


def test_a_local_model_says_what_a_server_with_it_says(tmp_path, monkeypatch):
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    films = load_yesno('films')
    samples = films.splits['test'][chosen_rows(films.splits['test'].height, 30)]
    folder = outspoken(
        tmp_path / 'tiny',
        [question(films, s, YesNoPromptConfig()) for s in samples.iter_rows(named=True)],
        rtol=1e-2,
    )
    with own_server(folder, tmp_path / 'server.txt') as server:
        remote = run(in_context(server, logprobs=2000, api='completions'), 'test', progress=False)
    local = run(
        InContextRun('films', backbone=BackboneConfig(str(folder)), rows=30, new_tokens=1),
        'test',
        progress=False,
    )
    assert remote.metrics['answered'] == local.metrics['answered'] == 30
    assert (
        np.abs(remote.arrays['score'] - local.arrays['score']).max() < 0.05
    )  # the server adds up all tokens that read yes or no
    firm = np.abs(local.arrays['score']) > 0.05
    assert (remote.arrays['kind'] == local.arrays['kind'])[firm].all() and firm.sum() > 5


def test_an_adapter_is_asked_for_only_when_the_model_is(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    base = InContextRun('films', backbone=BackboneConfig(str(folder)), rows=20, new_tokens=1)

    def adapter():
        torch.manual_seed(0)
        config = LoraConfig(
            r=2, target_modules=['q_proj', 'v_proj'], init_lora_weights=False, task_type='CAUSAL_LM'
        )
        get_peft_model(load_backbone(base.backbone).model, config).save_pretrained(tmp_path / 'adapter')
        return tmp_path / 'adapter'

    plain, tuned = (
        run(base, 'test', progress=False),
        run(replace(base, adapter='recipe'), 'test', progress=False, adapter=adapter),
    )
    assert 'adapter' in tuned.metrics['served'][0] and (plain.arrays['score'] != tuned.arrays['score']).any()
    assert run(replace(base, adapter='recipe'), 'test').metrics == tuned.metrics


def test_the_line_up_asks_endpoints_and_says_why_others_are_missing(server, folder, tmp_path, monkeypatch):
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    endpoints = [
        dict(model='tiny', base_url=server.url, key_env='', max_tokens=1, label='Tiny'),
        dict(paper_model='ChatGPT', key_env='LLMREC_NO_SUCH_KEY'),
    ]
    base = InContextRun('films', prompt=YesNoPromptConfig.as_published(), rows=10)
    lines = line_up(base, [(BackboneConfig(str(folder)), None)], endpoints, 'test', progress=False)
    assert [(a.name, a.record is None, a.why) for a in lines[1:]] == [
        ('Alpaca-LoRA', True, 'no adapter'),
        ('Tiny', False, ''),
        ('ChatGPT', True, 'no key in LLMREC_NO_SUCH_KEY'),
        ('Text-Davinci-002', True, 'no endpoint'),
        ('Text-Davinci-003', True, 'no endpoint'),
    ]
    rows = [r for a in lines for r in long_rows('films', a)]
    assert sum(r['likes'] + r['dislikes'] for r in rows if r['method'] == 'Tiny') == 10 and all(
        r['likes'] is None for r in rows if r['not_asked']
    )
