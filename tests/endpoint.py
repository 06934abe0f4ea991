"""Two real servers on a free port: `transformers serve`, and one that gives a small model's own log-probabilities and can be told to misbehave."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

DEFAULTS = dict(
    busy=0, retry_after='0.05', status=0, hang=0.0, delay=0.0, refuse='', logprobs='give', key='', html=False
)
NONE = dict(requests=0, answers=0, asked_logprobs=0)


def app(folder):
    "OpenAI's chat and completions over the causal language model in `folder`; POST /behave changes DEFAULTS, GET /count counts."
    import torch
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder).eval(),
    )
    out, state, counts, lock = FastAPI(), dict(DEFAULTS), [NONE.copy()], threading.Lock()

    def steps(prompt, n, top):
        "n greedy tokens with the `top` most probable ones at each position."
        ids, found = tokenizer(prompt)['input_ids'], []
        with torch.no_grad():
            for _ in range(n):
                values, tokens = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1).topk(
                    min(max(1, top), len(tokenizer))
                )
                if tokens[0] == tokenizer.eos_token_id:
                    break
                found.append([(tokenizer.decode([t]), v) for t, v in zip(tokens.tolist(), values.tolist())])
                ids.append(int(tokens[0]))
        return found, len(ids) - len(found)

    def wrong(status, message, **headers):
        return JSONResponse(dict(error=dict(message=message, type='test', code=None)), status, headers)

    def obstacle(request, body):
        "The response that stands in the way of an answer, or None."
        if state['key'] and request.headers.get('authorization') != f"Bearer {state['key']}":
            return wrong(401, 'Incorrect API key provided.')
        if body['model'] != 'tiny':
            return wrong(404, f"The model {body['model']} does not exist.")
        if state['html']:
            return HTMLResponse('<html>Welcome</html>')
        if state['busy']:
            state['busy'] -= 1
            return wrong(429, 'Rate limit reached.', **{'retry-after': state['retry_after']})
        if state['status']:
            return wrong(state['status'], 'Something broke.')
        if body.get('logprobs') and state['logprobs'] == 'reject':
            return wrong(400, 'logprobs is not supported with this model.')

    def answer(request, body, chat):
        with lock:
            count = counts[-1]  # a late answer belongs to the test that has asked for it
            count['requests'] += 1
            count['asked_logprobs'] += bool(body.get('logprobs'))
            stop = obstacle(request, body)
        if stop:
            return stop
        time.sleep(state['hang'] or state['delay'])
        prompt = tokenizer.apply_chat_template(body['messages'], tokenize=False) if chat else body['prompt']
        top = (body.get('top_logprobs') if chat else body.get('logprobs')) or 0
        with lock:
            found, before = steps(prompt, body.get('max_tokens', 16), top)
        text, given = state['refuse'] or ''.join(s[0][0] for s in found), top and state['logprobs'] == 'give'
        choice = dict(index=0, finish_reason='stop', logprobs=None)
        if chat:
            choice['message'] = dict(role='assistant', content=text)
            if given:
                choice['logprobs'] = dict(
                    content=[
                        dict(
                            token=s[0][0],
                            logprob=s[0][1],
                            top_logprobs=[dict(token=t, logprob=v) for t, v in s],
                        )
                        for s in found
                    ]
                )
        else:
            choice['text'] = text
            if given:
                choice['logprobs'] = dict(
                    tokens=[s[0][0] for s in found],
                    token_logprobs=[s[0][1] for s in found],
                    top_logprobs=[dict(reversed(s)) for s in found],
                )
        with lock:
            count['answers'] += 1
        usage = dict(prompt_tokens=before, completion_tokens=len(found), total_tokens=before + len(found))
        return dict(
            id='0',
            created=0,
            model='tiny-2026',
            object='chat.completion' if chat else 'text_completion',
            choices=[choice],
            usage=usage,
        )

    @out.post('/v1/chat/completions')
    def chat(request: Request, body: dict):
        return answer(request, body, True)

    @out.post('/v1/completions')
    def completions(request: Request, body: dict):
        return answer(request, body, False)

    @out.get('/count')
    def counted():
        return counts[-1]

    @out.post('/behave')
    def behave(changes: dict):
        with lock:
            counts.append(NONE.copy())
            state.update(DEFAULTS | changes)
        return state

    return out


def outspoken(folder, prompts, rtol=1e-3):
    "A tiny Llama in `folder` that answers Yes and No in turn to `prompts` (roughly, the larger `rtol` is), with a chat template that adds nothing."
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmrec.llm.tiny import default_texts, tiny_backbone

    tiny_backbone(folder, [*default_texts(), *['Yes.', 'No.'] * 50])
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with torch.no_grad():
        last = torch.stack(
            [
                model.base_model(torch.tensor([tokenizer(p)['input_ids']])).last_hidden_state[0, -1]
                for p in prompts
            ]
        )
        firmly = (
            torch.linspace(0.5, 2.0, len(prompts))
            * torch.tensor([1.0, -1.0]).repeat(len(prompts))[: len(prompts)]
        )
        for token, sign in (('Yes', 1), ('No', -1)):
            (at,) = tokenizer(token, add_special_tokens=False)['input_ids']
            model.lm_head.weight[at] = torch.linalg.pinv(last, rtol=rtol) @ (15 + sign * firmly)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def get(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(
        urllib.request.Request(url, data, {'Content-Type': 'application/json'}), timeout=5
    ) as answer:
        return json.load(answer)


class Server:
    "Where a server answers, what it has counted, and how to change its behaviour."

    def __init__(self, port):
        self.root = f'http://127.0.0.1:{port}'

    @property
    def url(self):
        return f'{self.root}/v1'

    @property
    def count(self):
        return get(f'{self.root}/count')

    def behave(self, **changes):
        return get(f'{self.root}/behave', changes)


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextmanager
def running(command, port, ready, log, patience=120):
    "The server that `command` starts on `port`, stopped at the end; it is there when GET `ready` answers."
    env = os.environ | dict(
        HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', PYTHONPATH=str(Path(__file__).resolve().parent.parent)
    )
    with open(log, 'w') as f:
        process = subprocess.Popen([str(c) for c in command], stdout=f, stderr=subprocess.STDOUT, env=env)
    server, end = Server(port), time.monotonic() + patience
    try:
        while True:
            try:
                get(server.root + ready)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(
                        f'the server did not start:\n{Path(log).read_text()[-3000:]}'
                    ) from None
                time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def own_server(folder, log):
    port = free_port()
    return running([sys.executable, __file__, folder, port], port, '/count', log)


def transformers_serve(folder, log):
    port = free_port()
    command = [
        Path(sys.executable).parent / 'transformers',
        'serve',
        folder,
        '--host',
        '127.0.0.1',
        '--port',
        port,
        '--device',
        'cpu',
        '--dtype',
        'float32',
    ]
    return running(command, port, '/health', log)


if __name__ == '__main__':
    import uvicorn

    uvicorn.run(app(sys.argv[1]), host='127.0.0.1', port=int(sys.argv[2]), log_level='warning')
