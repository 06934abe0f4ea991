"Pretraining: wired heads, a kill that changes no byte, and a shipped model that is what its recipe says."

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from llmrec.llm import backbones
from llmrec.miniature import pretraining
from llmrec.llm.backbones import BackboneConfig, backbone_identity, load_backbone
from llmrec.llm.folders import miniature_llama
from llmrec.miniature.pretraining import (
    Hints,
    PretrainingConfig,
    Rates,
    Source,
    Wiring,
    begin,
    changed,
    check_recipe,
    group_losses,
    groups,
    hints_of,
    learnt_tokenizer,
    main,
    new_model,
    pretrain,
    rate,
    replayed,
    rows_of,
    token_weights,
    train,
)
from llmrec.config import from_dict, to_dict
from llmrec.paths import LlmrecError

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / 'data' / 'miniature' / 'llama'
NAMES = 'Ada Ben Cleo Dora Emil Fay Gus Hana Ivo June'.split()
SHORT = PretrainingConfig(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=2,
    head_dim=16,
    max_position_embeddings=128,
    steps=9,
    documents=4,
    max_tokens=60,
    batch_tokens=120,
    rates=Rates(warmup=2, frozen=4),
)
shipped = pytest.mark.skipif(not SHIPPED.is_dir(), reason='the miniature Llama is not in the repository yet')


def notes(step, n):
    "Names and what became of them; the second mention of a name says the same as the first."
    rng, out = np.random.default_rng([step]), []
    for _ in range(n):
        who = rng.permutation(NAMES)[:4]
        fate = dict(zip(who, rng.choice(['won', 'lost'], 4)))
        out.append(
            [
                piece
                for i, w in enumerate([*who, *rng.permutation(who)])
                for piece in ((f'{w} ', 0.3), (str(fate[w]), 1.0 if i < 4 else 3.0), (', ', 0.1))
            ]
        )
    return out


TOY = Source(notes, lambda: [pretraining.text_of(d) for d in notes(0, 50)], lambda: (['won', 'lost'], NAMES))


def made(folder, cfg=SHORT, **how):
    return pretrain(cfg, folder, progress=False, source=TOY, save_every=2, **how)


def bytes_of(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.name != 'recipe.json'}


@pytest.fixture(scope='module')
def calm(tmp_path_factory):
    return made(tmp_path_factory.mktemp('calm') / 'llama')


JUDGES, NAMED = [10, 11, 12], list(range(20, 40))


def some_text(seed, n=60):
    "Start, and a random text of verdicts, names and other tokens, with a verdict and a name at the beginning."
    rng = np.random.default_rng(seed)
    return [1, 10, 20, *rng.choice([*JUDGES, *NAMED, *range(50, 90)], n).tolist()]


def latest(text, k, tokens):
    return max(i for i in range(k + 1) if text[i] in tokens)


@pytest.mark.parametrize('heads, layers, seed', [(2, 4, 0), (4, 3, 1), (6, 6, 2)])
def test_wired_heads_look_where_they_should(heads, layers, seed):
    "The token before, the latest verdict, the latest name, and two tokens back, found by a loop; without wiring they are not."
    cfg = PretrainingConfig(seed=seed, num_attention_heads=heads, num_hidden_layers=layers)
    text, hints, found = some_text(seed), Hints(JUDGES, NAMED, list(range(100))), {}
    where = [
        lambda k: k - 1,
        lambda k: latest(text, k, JUDGES),
        lambda k: latest(text, k, NAMED),
        lambda k: k - 2,
        lambda k: k - 3,
        lambda k: k - 4,
    ]
    for name, c in (('wired', cfg), ('plain', dataclasses.replace(cfg, wiring=Wiring(on=False)))):
        model = new_model(c, 100, hints).eval()
        model.set_attn_implementation('eager')
        with torch.no_grad():
            first = model(torch.tensor([text]), output_attentions=True).attentions[0][0]
        found[name] = [
            np.mean([first[h, k].argmax().item() == where[h](k) for k in range(4, len(text))])
            for h in range(heads)
        ]
    by_mark, by_place = (
        found['wired'][1:3],
        found['wired'][:1] + found['wired'][3:],
    )  # the nearest mark wins as a rule: cosines do not fall evenly
    assert min(by_place) > 0.95 and min(by_mark) > 0.7 and max(found['plain']) < 0.3


def test_embeddings_know_marks_and_spellings():
    hints = Hints([3, 4], [5], [0, 1, 2, 3, 4, 5, 6, 6, 7])  # tokens 6 and 7 are one word
    table = new_model(dataclasses.replace(SHORT, hidden_size=64), 9, hints).lm_head.weight.detach()
    assert torch.allclose(table.norm(dim=1), table[0].norm().expand(9), atol=1e-5)
    assert (table[:, 1:4] != 0).nonzero().tolist() == [[1, 2], [3, 0], [4, 0], [5, 1]]
    alike = (
        torch.nn.functional.normalize(table[:, 4:], dim=1)
        @ torch.nn.functional.normalize(table[:, 4:], dim=1).T
    )
    assert alike[6, 7] > 0.6 and (alike - torch.eye(9)).fill_diagonal_(0)[6, 8] < 0.5


def test_hints_are_read_off_the_vocabulary():
    source = Source(notes, TOY.texts, lambda: (['won', 'Lost'], ['Ada', 'Cleo']))
    tokenizer = learnt_tokenizer(SHORT, source)
    hints = hints_of(tokenizer, source)
    text = [tokenizer.id_to_token(t) for t in hints.judges]
    assert {'Ġwon', 'won'} & set(text) and 'Ġ' not in text
    assert all(len(tokenizer.id_to_token(t)) > 3 for t in hints.names)
    groups_ = [tokenizer.id_to_token(t).lstrip('Ġ').lower() for t in range(tokenizer.get_vocab_size())]
    for a in range(0, len(groups_), 7):
        for b in range(len(groups_)):
            if len(tokenizer.id_to_token(a)) > 2 and len(tokenizer.id_to_token(b)) > 2:
                assert (hints.spelling[a] == hints.spelling[b]) == (groups_[a] == groups_[b])


def test_one_head_cannot_be_wired():
    with pytest.raises(LlmrecError, match='at least 2'):
        new_model(dataclasses.replace(SHORT, num_attention_heads=1), 300)
    new_model(dataclasses.replace(SHORT, num_attention_heads=1, wiring=Wiring(on=False)), 300)


def test_an_initial_model_depends_on_the_seed_alone_and_leaves_the_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (new_model(dataclasses.replace(SHORT, seed=s), 300).lm_head.weight for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize(
    'document',
    [
        [('Zoë', 0.1), (' ', 0.2), ('won', 2.0), ('\n\n', 0.3), ('日本', 0.4), ('  ', 0.5), ('x', 0.6)],
        [('', 2.0), ('won', 0.5), ('', 2.0)],
    ],
)
def test_every_token_has_the_weight_of_its_visible_character(document):
    tokenizer, text = learnt_tokenizer(SHORT, TOY), pretraining.text_of(document)
    e = tokenizer.encode(text)
    by_character = [w for t, w in document for _ in t]
    for token, (a, b), w in list(zip(e.tokens, e.offsets, token_weights(document, e)))[1:]:
        visible = [i for i in range(a, b) if not text[i].isspace()] or [min(a + 1, b - 1)]
        assert w == by_character[visible[0]], token


def test_groups_change_no_loss_and_no_gradient():
    run = begin(SHORT, learnt_tokenizer(SHORT, TOY))
    rows, grads = rows_of(notes(3, 12), run.tokenizer, SHORT, 3), []
    for budget in (1, 120, 10**6):
        run.model.zero_grad()
        losses = pretraining.gradients(run.model, rows, budget)
        grads.append((losses, run.model.model.embed_tokens.weight.grad.clone()))
    for losses, grad in grads[1:]:
        assert losses == pytest.approx(grads[0][0], rel=1e-5) and torch.allclose(grad, grads[0][1], atol=1e-6)
    every = torch.cat([group_losses(run.model, g)[0] for g in groups(rows, 120)])
    assert losses[0] == pytest.approx(every.mean().item(), rel=1e-5)


def test_emphasis_multiplies_the_loss_of_verdicts():
    run, cfg = begin(SHORT, learnt_tokenizer(SHORT, TOY)), dataclasses.replace(SHORT, emphasis=True)
    plain, strong = (rows_of(notes(0, 4), run.tokenizer, c, 0) for c in (SHORT, cfg))
    assert [r.factor[r.verdict].unique().tolist() for r in (plain[0], strong[0])] == [[1.0], [3.0]]
    assert pretraining.gradients(run.model, plain, 500)[1] == pytest.approx(
        pretraining.gradients(run.model, strong, 500)[1]
    )


def test_the_rates_never_fall_to_nothing():
    for cfg in (
        PretrainingConfig(),
        SHORT,
        dataclasses.replace(SHORT, rates=Rates(decay=0.0, warmup=0)),
        dataclasses.replace(SHORT, steps=1),
    ):
        assert all(0 < rate(s, cfg) <= 1 for s in range(cfg.steps))


CHILD = """
import os, signal
from llmrec.miniature import pretraining
from tests.test_pretraining import made
plain = pretraining.update
def update(run, docs):
    plain(run, docs)
    if run.step == 7: os.kill(os.getpid(), signal.SIGKILL)
pretraining.update = update
made({folder!r})
"""


def test_a_killed_pretraining_ends_with_the_bytes_of_an_undisturbed_one(calm, tmp_path):
    env = os.environ | dict(PYTHONHASHSEED='7', OMP_NUM_THREADS=str(torch.get_num_threads()))
    done = subprocess.run(
        [sys.executable, '-c', CHILD.format(folder=str(tmp_path / 'llama'))],
        env=env,
        cwd=ROOT,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert [p.name for p in tmp_path.iterdir()] == ['llama.state.pt']
    folder, key = tmp_path / 'llama', pretraining.run_key(SHORT, TOY)
    assert pretraining.load_run(tmp_path / 'llama.state.pt', SHORT, key).step == 6
    assert made(folder, stop_at=8) is None and made(folder) == folder
    assert bytes_of(folder) == bytes_of(calm) and [p.name for p in tmp_path.iterdir()] == ['llama']
    a, b = (check_recipe(f, SHORT) for f in (calm, folder))
    assert {k: v for k, v in a.items() if k != 'seconds'} == {k: v for k, v in b.items() if k != 'seconds'}
    assert backbone_identity(BackboneConfig(str(folder))) == backbone_identity(BackboneConfig(str(calm)))


def test_the_state_of_another_run_is_refused_and_a_damaged_one_begins_again(calm, tmp_path, caplog):
    folder = tmp_path / 'llama'
    assert made(folder, stop_at=3) is None
    with pytest.raises(LlmrecError, match='another corpus'):
        made(folder, dataclasses.replace(SHORT, seed=1))
    other = Source(lambda step, n: notes(step + 1, n), TOY.texts)
    with pytest.raises(LlmrecError, match='another corpus'):
        pretrain(SHORT, folder, progress=False, source=other)
    (tmp_path / 'llama.state.pt').write_bytes(b'PK')
    assert bytes_of(made(folder)) == bytes_of(calm) and 'starts again' in caplog.text


def test_a_finished_folder_is_left_alone(calm, tmp_path):
    before = {p.name: p.stat().st_mtime_ns for p in calm.iterdir()}
    assert made(calm) == calm and {p.name: p.stat().st_mtime_ns for p in calm.iterdir()} == before
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('x')
    with pytest.raises(LlmrecError, match='is not the recipe'):
        made(tmp_path / 'mine')
    assert (tmp_path / 'mine' / 'thesis.txt').read_text() == 'x'


def test_the_recipe_says_how_the_model_was_made(calm):
    recipe = check_recipe(calm, SHORT)
    assert (
        recipe['curve']['step'] == list(range(1, 10))
        and len(recipe['curve']['verdict_loss']) == 9
        and recipe['tokens'] > 9 * 4 * 10
    )
    assert recipe['first_losses'] == replayed(SHORT, 9, TOY)
    assert recipe['first_losses'][-1] < recipe['first_losses'][0]
    assert {'torch', 'transformers', 'tokenizers', 'numpy'} <= set(recipe['versions'])


def edited(name, change):
    def damage(folder):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))

    return damage


@pytest.mark.parametrize(
    'damage, what',
    [
        (lambda f: (f / 'recipe.json').unlink(), 'is not the recipe'),
        (lambda f: (f / 'recipe.json').write_text('[1]'), 'is not the recipe'),
        (edited('recipe.json', dict(config=dict(seed=0))), "another 'vocab_size'"),
        (edited('recipe.json', dict(weights_sha256='0')), 'model.safetensors .* SHA-256'),
        (lambda f: (f / 'model.safetensors').write_bytes(b''), 'model.safetensors .* SHA-256'),
        (lambda f: (f / 'model.safetensors').unlink(), 'model.safetensors is missing'),
        (edited('tokenizer.json', dict(version='1.1')), 'tokenizer.json .* SHA-256'),
        (edited('config.json', dict(num_attention_heads=4)), 'num_attention_heads'),
        (lambda f: (f / 'config.json').unlink(), 'config.json does not have'),
    ],
)
def test_damage_is_one_sentence(calm, tmp_path, damage, what):
    folder = Path(shutil.copytree(calm, tmp_path / 'llama'))
    damage(folder)
    with pytest.raises(LlmrecError, match=what) as e:
        check_recipe(folder, SHORT)
    assert str(e.value).endswith('.') and '\n' not in str(e.value)
    with pytest.raises(LlmrecError):
        made(folder)


@pytest.mark.parametrize(
    'change, what',
    [(dict(clip=2.0), "another 'clip'"), (dict(wiring=Wiring(pos=1.0)), "another 'wiring.pos'")],
)
def test_another_configuration_is_named(calm, change, what):
    with pytest.raises(LlmrecError, match=what):
        check_recipe(calm, dataclasses.replace(SHORT, **change))


def test_the_command(calm, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretraining, 'changed', lambda cfg, pairs: changed(SHORT, pairs))
    monkeypatch.setattr(pretraining, 'miniature_source', lambda cfg: TOY)
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    assert main(['--stop-at', '2']) == 0 and 'Stopped' in capsys.readouterr().out
    assert (
        main([]) == 0
        and (out := tmp_path / 'data/miniature/llama').is_dir()
        and str(out) in capsys.readouterr().out
    )
    assert bytes_of(out) == bytes_of(calm)
    assert main(['-p', 'clip=2']) == 1 and capsys.readouterr().err.startswith('llmrec_pretrain: ')
    assert main(['-p', 'clip']) == 1 and main(['-p', 'clip=[']) == 1 and main(['-p', 'corpus.no_such=1']) == 1


def test_the_miniature_backbone_is_a_folder_of_the_project(calm, tmp_path, monkeypatch):
    (tmp_path / 'settings.ini').touch()
    (tmp_path / 'llmrec').mkdir()
    (tmp_path / 'work' / 'miniature').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'work')  # where a folder called miniature must not be taken for it
    cfg = BackboneConfig('miniature')
    for act in (backbone_identity, backbones.backbone_source, load_backbone):
        with pytest.raises(LlmrecError, match=r'The miniature Llama is not in .*llmrec_pretrain'):
            act(cfg)
    shutil.copytree(calm, miniature_llama())
    bb = load_backbone(cfg)
    assert miniature_llama() == tmp_path / 'data/miniature/llama' and bb.identity == backbone_identity(cfg)
    assert bb.identity.startswith('miniature-llama-') and bb.identity.endswith(
        backbone_identity(BackboneConfig(str(calm)))
    )
    assert torch.equal(bb.model.lm_head.weight, AutoModelForCausalLM.from_pretrained(calm).lm_head.weight)
    assert backbone_identity(BackboneConfig('miniature', quantisation='4bit')) == bb.identity + '+4bit'


def test_git_lets_the_shipped_model_through_and_nothing_else():
    if not (ROOT / '.git').exists():
        pytest.skip('not a git checkout')
    ignored = lambda path: (
        subprocess.run(['git', 'check-ignore', '-q', '--no-index', path], cwd=ROOT).returncode == 0
    )
    assert not any(
        ignored(f'data/miniature/llama/{name}')
        for name in ('config.json', 'model.safetensors', 'recipe.json', 'tokenizer.json')
    )
    assert all(
        ignored(f'data/miniature/{name}')
        for name in (
            'world-0/films.csv',
            'backbone-tiny-llama-0/config.json',
            'llama.state.pt',
            'llama.tmp-1/config.json',
        )
    )


@shipped
def test_the_shipped_model_is_that_of_the_default_recipe():
    recipe = check_recipe(SHIPPED)
    assert recipe['parameters'] < 2e6 and recipe['curve']['step'][-1] == PretrainingConfig().steps


@shipped
def test_the_first_steps_of_the_shipped_recipe_are_repeatable():
    assert replayed(PretrainingConfig(), 3) == pytest.approx(
        check_recipe(SHIPPED)['first_losses'][:3], rel=1e-3
    )


@shipped
@pytest.mark.parametrize('quantisation', ['none', '8bit'])
def test_the_shipped_model_has_read_the_corpus(quantisation, monkeypatch):
    if quantisation != 'none':
        pytest.importorskip('bitsandbytes', reason='quantised weights need bitsandbytes')
    monkeypatch.chdir(ROOT)
    bb, cfg = load_backbone(BackboneConfig('miniature', quantisation=quantisation)), PretrainingConfig()
    docs = pretraining.miniature_source(cfg.corpus).documents(cfg.steps - 1, 16)
    rows = rows_of(docs, bb.tokenizer.backend_tokenizer, cfg, cfg.steps - 1)
    with torch.no_grad():
        losses = torch.cat([group_losses(bb.model, g)[0] for g in groups(rows, cfg.batch_tokens)])
    assert losses.mean() < 1.5 * check_recipe(SHIPPED)['curve']['loss'][-1] + 0.3


def test_a_configuration_can_be_written_and_read():
    assert from_dict(PretrainingConfig, to_dict(SHORT)) == SHORT


def test_rows_are_cut_and_empty_documents_left_out():
    run = begin(SHORT, learnt_tokenizer(SHORT, TOY))
    rows = rows_of([*notes(0, 6), []], run.tokenizer, SHORT, 0)
    assert len(rows) == 6 and max(len(r.ids) for r in rows) <= SHORT.max_tokens
    assert all(
        torch.equal(a.factor, b.factor) for a, b in zip(rows, rows_of(notes(0, 6), run.tokenizer, SHORT, 0))
    )
    made = list(groups(rows, 120))
    assert sum(map(len, made)) == 6 and all(len(g) == 1 or len(g) * len(g[-1].ids) <= 120 for g in made)
    assert [len(g) for g in groups(rows[:3], 1)] == [1, 1, 1]
    one = rows[0]
    with torch.no_grad():
        losses, whole = (
            group_losses(run.model, [one])[0],
            run.model(one.ids[None]).logits[0, :-1].log_softmax(-1),
        )
    counts = one.factor[1:] > 0
    assert torch.allclose(losses, -whole[range(len(one.ids) - 1), one.ids[1:]][counts], atol=1e-4)


def test_directions_and_spaces_do_not_overlap():
    v = pretraining.directions(32, 16, torch.Generator().manual_seed(0))
    assert torch.allclose(v @ v.T, torch.eye(16), atol=1e-5) and not v[:, :4].any()
    assert torch.allclose(pretraining.phase(torch.tensor([1.0, 0.1]), 0), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    four = pretraining.spaces(96, torch.arange(16) > 5, torch.Generator().manual_seed(0))
    assert torch.allclose(four.own @ four.before.T, torch.zeros(32, 32), atol=1e-5)
    assert torch.allclose(four.side @ four.side.T, torch.diag((torch.arange(32) % 16 > 5).float()), atol=1e-5)


def test_every_weight_has_one_group_and_queries_and_keys_are_frozen_at_first():
    run = begin(SHORT, learnt_tokenizer(SHORT, TOY))
    w = pretraining.weight_groups(run.model)
    assert {k: len(v) for k, v in w.items()} == dict(match=2 * 3, matrix=5 * 3, other=1 + 2 * 3 + 1)
    assert sum(p.numel() for v in w.values() for p in v) == sum(p.numel() for p in run.model.parameters())
    before = [p.detach().clone() for p in w['match']]
    for step in range(3):
        pretraining.update(run, notes(step, 4))
    assert all(torch.equal(a, b) for a, b in zip(before, w['match']))
    for step in range(3, 6):
        pretraining.update(run, notes(step, 4))
    assert not any(torch.equal(a, b) for a, b in zip(before, w['match']))


def test_the_rates_rise_stay_and_fall():
    cfg = PretrainingConfig(steps=1000, rates=Rates(warmup=10, decay=0.2, last=0.05))
    assert [rate(s, cfg) for s in (0, 4, 10, 800, 900, 999)] == pytest.approx([0.1, 0.5, 1, 1, 0.5, 0.05])


def test_a_curve_is_thinned_by_means():
    assert pretraining.thinned([[4.0, None], [2.0, 1.0], [1.0, None]], 2) == dict(
        step=[2, 3], loss=[3.0, 1.0], verdict_loss=[1.0, None]
    )
    assert len(pretraining.thinned([[1.0, 1.0]] * 6001)['step']) == 200 and pretraining.thinned(
        [[1.0, 1.0]] * 3
    )['step'] == [1, 2, 3]


def test_the_first_difference_of_two_recipes():
    assert pretraining.first_difference(dict(a=1, b=dict(c=2, d=3)), dict(a=1.0, b=dict(c=2, d=4))) == 'b.d'
    assert (
        pretraining.first_difference(dict(a=1), dict(a=1, b=None)) == 'b'
        and pretraining.first_difference(dict(a=1), dict(a=1)) is None
    )


@pytest.mark.parametrize(
    'pair, said',
    [
        ('stepps=9', "Did you mean 'steps'"),
        ('wirin.on=1', "Did you mean 'wiring'"),
        ('wiring.gain=high', 'must be float'),
        ('steps', 'NAME=VALUE'),
    ],
)
def test_a_change_that_is_none(pair, said):
    with pytest.raises(LlmrecError, match=said):
        changed(SHORT, [pair])


def test_a_change_of_an_inner_setting():
    assert changed(SHORT, ['steps=9', 'wiring.on=false']) == dataclasses.replace(
        SHORT, steps=9, wiring=dataclasses.replace(SHORT.wiring, on=False)
    )


def test_transformers_opens_the_folder(calm):
    opened = AutoModelForCausalLM.from_pretrained(calm)
    assert torch.equal(opened.lm_head.weight, opened.model.embed_tokens.weight)
