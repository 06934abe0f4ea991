"The five systems beside LlamaRec: what is written becomes a list, and nothing that goes wrong on the way is lost."

import itertools
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import pytest
import requests
import torch
from scipy import linalg, sparse
from sklearn.metrics import adjusted_rand_score

from llmrec.data.interactions import from_lists, leave_one_out
from llmrec.evaluation.ranking import per_user
from llmrec.experiments import systems
from llmrec.experiments.retrieval import for_dataset
from llmrec.llm import serving
from llmrec.llm.backbones import Backbone, BackboneConfig, load_backbone
from llmrec.llm.chat import EndpointConfig
from llmrec.llm.tuning import TuningConfig
from llmrec.paths import LlmrecError
from llmrec.sequential.simple import markov
from llmrec.sequential.training import TrainingConfig
from llmrec.systems import gpt4rec, item_ids, p5, palr, pod, recmind
from llmrec.systems.lists import Way, collect, places, sampled, tally, title_finder

WORLD = from_lists([[1, 2, 3, 4, 5], [2, 3, 4, 5, 6], [6, 5, 4, 3, 2], [1, 3, 5, 2, 4], [7, 8, 1, 2, 3]], 8)
SPLIT = leave_one_out(WORLD)
TITLES = ['', 'Plonk', 'The Vumse', 'Plonk', 'Ordal', 'Zin', 'Vumse Returns', 'Fenpu', 'Mesal']
TRAINING = TrainingConfig(lr=3e-3, batch_size=8, epochs=1, validate_every=1)


# lists


def slow_collect(written, find, history, k):
    "The same list, by asking for every item whether an earlier line has taken it."
    out = []
    for text in written:
        free = [i for i in find(text) if i not in set(history)]
        new = [i for i in free if i not in out]
        out += new[:1]
    return tuple(out[:k])


def test_every_written_line_is_listed_or_counted():
    find, lines = title_finder(TITLES), ['plonk', 'Ordal', 'Nowhere', 'The Vumse']
    for written in itertools.product(lines, repeat=4):
        for history in ([], [1], [1, 3], [2, 4]):
            got = collect(written, find, history, 10)
            assert got['items'] == slow_collect(written, find, history, 10)
            assert len(got['items']) + len(got['unknown']) + got['repeated'] + got['met'] == len(written)
            assert not set(got['items']) & set(history)


def test_a_repeated_title_that_was_met_counts_as_met_and_one_that_was_listed_as_repeated():
    find = title_finder(TITLES)
    assert collect(['Plonk'], find, [1, 3], 5)['met'] == 1
    assert collect(['Plonk'] * 2, find, [1], 5) == dict(items=(3,), unknown=(), repeated=1, met=0)


def test_ranks_and_samples():
    ways = [Way('', (), (4, 2)), Way('', (), ())]
    assert places(ways, np.array([2, 2])).tolist() == [2, 0]
    assert tally(ways)['empty_lists'] == 1
    truth = np.arange(50) % 3
    assert (
        sampled(truth, 10).tolist() == sampled(truth, 10).tolist() and (truth[sampled(truth, 10)] > 0).all()
    )
    assert sampled(truth, 10, seed=1).tolist() != sampled(truth, 10).tolist()
    with pytest.raises(LlmrecError, match='At least one'):
        sampled(truth, 0)


# P5 and POD


@pytest.mark.parametrize('numbering', item_ids.NUMBERINGS)
def test_a_numbering_gives_each_item_a_name_of_its_own(numbering):
    cfg = p5.P5Config(numbering=numbering, clusters=2, leaf=3)
    names = item_ids.item_names(WORLD, SPLIT.train, cfg)
    assert names[0] == '' and len(set(names)) == WORLD.n_items + 1
    assert names == item_ids.item_names(WORLD, SPLIT.train, cfg)
    tokenizer = item_ids.id_tokenizer(item_ids.TEMPLATES, names)
    assert tokenizer.unk_token_id not in {t for n in names for t in tokenizer(n).input_ids}
    assert [tokenizer.decode(tokenizer(n).input_ids, skip_special_tokens=True) for n in names] == names


def test_only_the_published_numbering_reads_what_is_asked_for():
    "The held-out items are exchanged; the other numberings do not see it."
    swapped = WORLD.items.copy()
    for u in range(len(WORLD)):
        end = WORLD.offsets[u + 1]
        swapped[[end - 2, end - 1]] = swapped[[end - 1, end - 2]]
    other = type(WORLD)(WORLD.offsets, swapped, WORLD.n_items)
    same = {
        n: item_ids.item_names(WORLD, SPLIT.train, p5.P5Config(numbering=n, leaf=3, clusters=2))
        == item_ids.item_names(
            other, leave_one_out(other).train, p5.P5Config(numbering=n, leaf=3, clusters=2)
        )
        for n in ('random', 'collaborative')
    }
    assert same == dict(random=True, collaborative=True)
    two = from_lists([[1, 2, 3, 4], [1, 2, 4, 3]], 4)
    first = item_ids.in_order(item_ids.reading_order(from_lists([[1, 2, 3, 4]], 4), None, 0), 4)
    second = item_ids.in_order(item_ids.reading_order(from_lists([[1, 2, 4, 3]], 4), None, 0), 4)
    assert first != second and first[4] > first[3] and second[4] < second[3]
    train = from_lists([[1, 2], [1, 2]], 4)
    assert item_ids.in_order(item_ids.reading_order(two, train, 0), 4)[1:3] == ['1001', '1002']


def planted(items, kinds, users, seed=0, loose=5):
    "Training histories of communities without an order of ids, the last `loose` items without users; and where an item belongs."
    rng = np.random.default_rng(seed)
    home = np.append(rng.integers(kinds, size=items - loose), [-1] * loose)

    def visit(kind):
        own = np.flatnonzero(home == kind)
        return [*(rng.choice(own, 8, replace=False) + 1), int(rng.integers(items - loose)) + 1]

    return from_lists([visit(u % kinds) for u in range(users)], items), home


@pytest.mark.parametrize('items', (200, 1200))  # the whole matrix is held, and products only
def test_planted_communities_are_found(items):
    train, home = planted(items, 6, 3 * items)
    assert (items <= item_ids.DENSE) == (items == 200)
    labels = item_ids.cut(item_ids.company(train), 6)
    assert adjusted_rand_score(home[home >= 0], labels[home >= 0]) > 0.95
    tree = item_ids.paths(item_ids.company(train), np.arange(items), 6, 30)
    assert len(set(tree.values())) == items and max(map(len, tree.values())) <= 6


@pytest.mark.parametrize('items', (60, 700))
def test_products_give_the_eigenvectors_of_the_whole_matrix(items):
    train, _ = planted(items, 4, 2 * items)
    shared = item_ids.company(train)
    whole = shared.toarray() + 1 / items
    scale = whole.sum(1) ** -0.5
    vectors = np.linalg.eigh(np.eye(items) - scale[:, None] * whole * scale)[1][:, :4]  # of the Laplacian
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = item_ids.embedding(shared, 4)
    np.testing.assert_allclose(found @ found.T, vectors @ vectors.T, atol=1e-2)  # up to a rotation


def test_no_large_group_is_written_out_as_a_matrix(monkeypatch):
    held = []
    monkeypatch.setattr(item_ids, 'eigh', lambda m, **k: (held.append(len(m)), linalg.eigh(m, **k))[1])
    train, _ = planted(4000, 8, 4000)
    shared = item_ids.company(train)
    tracemalloc.start()
    tree = item_ids.paths(shared, np.arange(4000), 8, 50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(tree) == 4000 and held and max(held) <= item_ids.DENSE
    assert peak < 4000**2 * 8 / 4  # a whole matrix would be four times as much


def test_graphs_that_say_little_are_cut_all_the_same():
    "No edges, one clique, one centre, twins: every item has a path of its own, of few steps."

    def graph(edges, n):
        i, j = np.array(edges or [(0, 0)]).T
        a = sparse.coo_array((np.ones(len(i)) * (i != j), (i, j)), (n, n)).tocsr()
        return a + a.T

    for n in (60, 700):
        star = [(0, j) for j in range(1, n)]
        for edges in (
            [],
            star,
            list(itertools.combinations(range(60), 2)),
            [(2 * i, 2 * i + 1) for i in range(n // 2)],
        ):
            shared = graph(edges, n)
            shared.eliminate_zeros()
            tree = item_ids.paths(shared, np.arange(n), 4, 10)
            assert len(set(tree.values())) == n and max(map(len, tree.values())) < 20
            assert tree == item_ids.paths(shared, np.arange(n), 4, 10)


def test_numbers_have_equally_many_digits():
    for n in (1, 8999, 9000, 12101, 90000):
        start = item_ids.first_number(n)
        assert len(str(start)) == len(str(start + n - 1)), n


def test_a_trie_allows_exactly_the_beginnings_of_items_that_are_open():
    ids = {1: [5, 6, 9], 2: [5, 7, 9], 3: [8, 6, 9], 4: [8, 6, 6, 9]}
    trie = item_ids.Trie(ids)
    for n in range(5):
        for met in itertools.combinations(ids, n):
            closed, left = trie.closed(met), {tuple(t) for i, t in ids.items() if i not in met}
            for begun in {tuple(t[:k]) for t in ids.values() for k in range(len(t))}:
                want = {t[len(begun)] for t in left if t[: len(begun)] == begun and len(t) > len(begun)}
                assert set(trie.allowed(begun, closed)) == want, (met, begun)


@pytest.mark.parametrize('numbering', ('random', 'collaborative'))
def test_with_enough_beams_the_search_is_the_order_of_all_probabilities(numbering):
    cfg = p5.P5Config(numbering=numbering, leaf=3, clusters=2, beams=6, hidden=16, layers=1)
    names = item_ids.item_names(WORLD, SPLIT.train, cfg)
    model, tokenizer = p5.build(names, cfg)
    (way,) = p5.answer(
        p5.Trained(model.eval(), tokenizer, names, cfg), from_lists([[1, 2]], 8), np.array([0])
    )
    oracle = p5.log_probabilities(model, tokenizer, way.asked, names)
    oracle[[0, 1, 2]] = -np.inf
    assert way.items == tuple(np.argsort(-oracle, kind='stable')[:6].tolist())
    assert (way.unknown, way.repeated, way.met) == ((), 0, 0)


def test_rows_of_a_batch_do_not_see_each_other():
    cfg = p5.P5Config(numbering='random', beams=4, hidden=16, layers=1)
    names = item_ids.item_names(WORLD, SPLIT.train, cfg)
    model, tokenizer = p5.build(names, cfg)
    together = p5.answer(p5.Trained(model.eval(), tokenizer, names, cfg), SPLIT.test_history, np.arange(5))
    alone = [
        p5.answer(p5.Trained(model, tokenizer, names, cfg), SPLIT.test_history, np.array([u]))[0]
        for u in range(5)
    ]
    assert [w.items for w in together] == [w.items for w in alone]


def test_more_beams_than_items_that_are_left():
    cfg = p5.P5Config(numbering='random', beams=20, hidden=16, layers=1)
    names = item_ids.item_names(WORLD, SPLIT.train, cfg)
    model, tokenizer = p5.build(names, cfg)
    (way,) = p5.answer(
        p5.Trained(model.eval(), tokenizer, names, cfg), from_lists([[1, 2, 3, 4, 5, 6]], 8), np.array([0])
    )
    assert sorted(way.items) == [7, 8]


def test_free_decoding_counts_what_is_no_item():
    cfg = p5.P5Config(numbering='random', beams=10, hidden=16, layers=1, constrained=False)
    names = item_ids.item_names(WORLD, SPLIT.train, cfg)
    model, tokenizer = p5.build(names, cfg)
    (way,) = p5.answer(p5.Trained(model.eval(), tokenizer, names, cfg), SPLIT.test_history, np.array([0]))
    assert len(way.unknown) > 0 and not set(way.unknown) & set(names)
    assert len(way.written) == len(way.items) + len(way.unknown) + way.repeated + way.met


@pytest.mark.parametrize('module, config', ((p5, p5.P5Config), (pod, pod.PODConfig)))
def test_training_can_be_repeated_and_resumed(tmp_path, module, config):
    cfg = config(numbering='random', hidden=16, layers=1, training=TRAINING)
    names = item_ids.item_names(WORLD, SPLIT.train, cfg)
    first, _, state = module.train(SPLIT, names, cfg, tmp_path / 'a.pt', progress=False)
    again, _, resumed = module.train(SPLIT, names, cfg, tmp_path / 'a.pt', progress=False)
    other, *_ = module.train(SPLIT, names, cfg, progress=False)
    assert state.curve == resumed.curve and len(state.curve) > 1
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters()):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize('module, config', ((p5, p5.P5Config), (pod, pod.PODConfig)))
@pytest.mark.parametrize('numbering', ('random', 'collaborative'))
def test_a_batch_in_parts_has_the_loss_and_the_gradient_of_the_whole(module, config, numbering):
    found = []
    for parts in (1, 2, 3, 100):
        cfg = config(numbering=numbering, hidden=16, layers=1, clusters=2, leaf=2, dropout=0.0, parts=parts)
        names = item_ids.item_names(WORLD, SPLIT.train, cfg)
        model, tokenizer = module.build(names, cfg)
        rows = np.stack(p5.training_rows(SPLIT.train.offsets, SPLIT.train.items), 1)
        torch.manual_seed(3)
        loss = module.make_loss(SPLIT.train, names, tokenizer, cfg)(model.train(), rows)
        loss.backward()
        found.append(
            (loss.item(), torch.cat([q.grad.flatten() for q in model.parameters() if q.grad is not None]))
        )
    for value, gradient in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-5) and torch.allclose(
            gradient, found[0][1], atol=1e-6
        )


def test_parts_are_no_wider_than_their_rows():
    cfg = p5.P5Config(numbering='random', hidden=16, layers=1)
    names = item_ids.item_names(WORLD, SPLIT.train, cfg)
    model, tokenizer = p5.build(names, cfg)
    batch = item_ids.encode(
        tokenizer, [item_ids.prompt(item_ids.ASK, 0, h, names, 20) for h in ([1] * 9, [2], [3, 4])]
    )
    widths, forward = [], model.forward
    model.forward = lambda b, labels: (widths.append(b['input_ids'].shape[1]), forward(b, labels))[1]
    p5.batch_loss(model, batch, p5.targets(tokenizer, names[1:4]), 3)
    assert widths == sorted(batch['attention_mask'].sum(1).tolist()) and widths[0] < widths[2]


@pytest.mark.parametrize('numbering', ('random', 'collaborative'))
def test_bare_numbers_say_the_same_in_fewer_pieces(numbering):
    cfg = p5.P5Config(numbering=numbering, clusters=2, leaf=2, notation='numbers', digits=3)
    names = item_ids.item_names(WORLD, SPLIT.train, cfg)
    long, short = (
        item_ids.id_tokenizer(item_ids.TEMPLATES, names),
        item_ids.id_tokenizer(item_ids.TEMPLATES, names, 3),
    )
    for template in item_ids.TEMPLATES:
        both = [
            item_ids.encode(t, [item_ids.prompt(template, 41, [1, 2, 3], names, 20, n)])
            for t, n in ((long, 'words'), (short, 'numbers'))
        ]
        assert both[1]['input_ids'].shape[1] < both[0]['input_ids'].shape[1]
        assert both[1]['whole'].max() == both[0]['whole'].max() == 4  # the person and three items
        assert short.unk_token_id not in both[1]['input_ids']
    assert [short.decode(short(n).input_ids, skip_special_tokens=True) for n in names] == names
    assert max(len(short(n).input_ids) for n in names) <= max(len(long(n).input_ids) for n in names)


def test_the_vectors_of_pod_depend_on_the_task_and_change_what_is_read():
    cfg = pod.PODConfig(numbering='random', hidden=16, layers=1)
    names = item_ids.item_names(WORLD, SPLIT.train, cfg)
    model, tokenizer = pod.build(names, cfg)
    batch = item_ids.encode(tokenizer, ['user_1 item_' + names[1]])
    labels = p5.targets(tokenizer, [names[2]])
    with torch.no_grad():
        one, other = (model.eval()(batch | dict(task=torch.tensor([t])), labels) for t in (0, 1))
        assert one != other
        model.prompts[1] = model.prompts[0]
        assert model(batch | dict(task=torch.tensor([1])), labels) == one


def test_no_such_t5():
    with pytest.raises(LlmrecError, match="no T5 called './nowhere'"):
        p5.build(['', '1001'], p5.P5Config(model='./nowhere'))


# GPT4Rec


def test_join_gives_each_query_its_share():
    assert gpt4rec.join([[1, 2, 3], [4, 5, 6]], [], 4) == (1, 2, 4, 5)
    assert gpt4rec.join([[1, 2, 3], [1, 2, 3]], [2], 4) == (1, 3)
    assert gpt4rec.join([[1], [4, 5, 6]], [], 4) == (1, 4, 5, 6)


def test_titles_that_are_the_same_are_found_together_by_id():
    engine = gpt4rec.Engine(TITLES)
    assert engine.find('plonk') == [1, 3]
    assert engine.find('nothing of the kind') in ([], [2]) and engine.find('?!') == []
    assert gpt4rec.Engine(['', '???', 'Zin']).find('zin') == [2]


def test_settings_of_gpt4rec_are_checked():
    with pytest.raises(LlmrecError, match='raise beams'):
        gpt4rec.GPT4RecConfig(queries=6)
    with pytest.raises(LlmrecError, match='titles'):
        gpt4rec.GPT4RecConfig(prompt='Buy')


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
    from llmrec.paths import output_to

    with output_to(tmp_path_factory.mktemp('tiny')):
        return load_backbone(BackboneConfig('tiny'))


def test_a_long_history_loses_its_oldest_titles(llama):
    cfg = gpt4rec.GPT4RecConfig(max_tokens=60)
    text, ids = gpt4rec.history_prompt(llama.tokenizer, TITLES, [1, 2, 4, 5, 6, 7, 8], cfg)
    assert len(ids) <= 60 and 'Mesal' in text and 'Plonk' not in text
    with pytest.raises(LlmrecError, match='raise max_tokens'):
        gpt4rec.history_prompt(llama.tokenizer, TITLES, [1], gpt4rec.GPT4RecConfig(max_tokens=16))


def test_the_most_probable_query_comes_first(llama):
    cfg = gpt4rec.GPT4RecConfig(queries=3, beams=6, query_tokens=4, length=5)
    several = gpt4rec.answer(llama, TITLES, SPLIT.test_history, np.array([0, 4]), cfg)
    for way in several:
        assert len(way.written) == 3 and not set(way.items) & set(
            SPLIT.test_history[0 if way is several[0] else 4].tolist()
        )


def test_a_prompt_that_is_read_once_is_continued_as_one_that_every_beam_reads(llama):
    cfg = gpt4rec.GPT4RecConfig(query_tokens=6, beams=5)
    asked = [gpt4rec.history_prompt(llama.tokenizer, TITLES, h, cfg)[1] for h in ([1, 2], [3, 4, 5, 6], [7])]
    once, read = gpt4rec.write_queries(llama, asked, cfg), gpt4rec.read_once
    gpt4rec.read_once = lambda backbone, batch, beams: {k: batch[k] for k in ('input_ids', 'attention_mask')}
    try:
        every = gpt4rec.write_queries(llama, asked, cfg)
    finally:
        gpt4rec.read_once = read
    assert once == every


# PALR


def test_confined_lines_are_candidates_each_as_often_as_it_stands_there(llama):
    "Every way through the automaton, with a title that begins another one and one that two candidates have."
    titles = ['Plonk', 'Plonk Returns', 'Zin', 'Zin']
    only, tokenizer = palr.OnlyTitles(llama.tokenizer, titles), llama.tokenizer
    ended, begun = set(), [()]
    while begun:
        written = begun.pop()
        for t in only(list(written)):
            if t == tokenizer.eos_token_id:
                ended.add(tokenizer.decode(written))
            else:
                begun.append((*written, t))
    want = {'\n'.join(x) for n in range(1, 5) for x in itertools.permutations(titles, n)}
    assert ended == want


def test_a_confined_model_that_knows_nothing_lists_candidates_and_a_free_one_does_not(llama):
    score, users = markov(SPLIT.train), np.arange(5)
    for constrained in (True, False):
        cfg = palr.PALRConfig(
            candidates=4, profile='none', answer_tokens=40, constrained=constrained, answer_batch=2
        )
        ways = palr.answer(palr.PALR(llama, llama, TITLES, score, cfg), SPLIT.test_history, users)
        assert all(bool(w.items) == constrained for w in ways)
        if constrained:
            assert not any(w.repeated for w in ways)


def test_only_what_was_written_is_listed_unless_the_rest_is_asked_for():
    text = '1) plonk\nOrdal\nPlonk\nOrdal\nGone'
    short, filled = (palr.listed(text, [3, 5, 4, 1], TITLES, fill) for fill in (False, True))
    assert short == dict(items=(3, 4, 1), unknown=('Gone',), repeated=1)
    assert filled['items'] == (3, 4, 1, 5)


def test_rows_alternate_and_hold_their_targets(llama):
    cfg = palr.PALRConfig(candidates=4, targets=2, profile='none', tuning=TuningConfig(max_rows=6))
    rows = palr.training_set(llama, SPLIT.train, TITLES, cfg)
    for i in range(len(rows)):
        row = rows[i]
        text = llama.tokenizer.decode(row['input_ids'])
        answer = llama.tokenizer.decode([t for t in row['labels'] if t != -100], skip_special_tokens=True)
        assert ('Candidates:' in text) == (i % 2 == 0)
        if i % 2 == 0:
            assert all(t in text.split('Candidates:')[1].split('### Response')[0] for t in answer.split('\n'))


# RecMind


class Lines:
    "An endpoint's function that says the given lines; None is a failure."

    def __init__(self, *lines):
        self.lines, self.asked = list(lines), []

    def __call__(self, prompt):
        from llmrec.llm.replies import Answer

        self.asked.append(prompt)
        line = self.lines[len(self.asked) - 1]
        if line is None:
            raise openai.APIConnectionError(request=None)
        return Answer(line, '', 0.0, 'text', 3, 2)


def tools(cfg, user=0):
    return recmind.Tools(TITLES, gpt4rec.Engine(TITLES), markov(SPLIT.train), SPLIT.test_history[user], cfg)


def test_a_plan_is_bounded_and_ends_in_an_answer():
    for thoughts in (1, 3):
        cfg = recmind.RecMindConfig(steps=3, thoughts=thoughts)
        say = Lines(*['Hm.'] * 20)
        plan = recmind.make_plan(say, tools(cfg), cfg, recmind.Plan('Rules.'))
        assert plan.calls == len(say.asked) == 2 * thoughts + 1
        assert say.asked[-1].endswith('Action: Answer[')
        assert recmind.way_of(plan, tools(cfg)).unknown == ('Hm.',)


def test_all_thoughts_of_a_step_are_seen_by_later_ones():
    cfg = recmind.RecMindConfig(steps=2, thoughts=2)
    say = Lines(' Search[zin]', ' Retrieve[1]', 'Zin]')
    way = recmind.planned(say, tools(cfg), 1)[0]
    assert 'Search[zin]' in say.asked[1] and 'Search[zin]' in say.asked[2] and 'Retrieve[1]' in say.asked[2]
    assert way.items == (5,)


def test_tools_hide_what_was_met_and_bear_nonsense():
    cfg = recmind.RecMindConfig(shown=3)
    t = tools(cfg)
    met = {TITLES[i] for i in SPLIT.test_history[0]}
    assert not met & set(t.observe('Retrieve', '9999999999').split('; '))
    assert t.observe('Search', '') == 'nothing' and t.observe('History', 'all') == '; '.join(
        TITLES[i] for i in SPLIT.test_history[0][-3:]
    )
    assert t.observe('Retrieve', '-0') != 'nothing'


def served(backbone, max_tokens, api='completions'):
    return serving.serving(backbone, replace(recmind.LOCAL, api=api, max_tokens=max_tokens))


def test_a_served_model_says_why_its_answer_ended(llama):
    whole, why, read, wrote = serving.continued(llama, 'a film about', 6, [])
    assert (why, wrote) == ('length', 6) and read > 0 and whole
    assert serving.continued(llama, 'a film about', 6, [whole[1]])[:2] == (whole[:1], 'stop')
    with served(llama, 4) as endpoint:

        def asked(most):
            return requests.post(
                f'{endpoint.base_url}/completions', json=dict(prompt='a film', max_tokens=most)
            )

        assert asked(3).json()['choices'][0]['finish_reason'] == 'length'
        refused = asked(10**6)
        assert refused.status_code == 400 and 'ask for fewer' in refused.json()['error']['message']


def test_an_endpoint_that_fails_in_the_middle_loses_nothing(tmp_path, llama):
    "A real server: it breaks down after three calls; the second try asks only for what is missing."
    cfg, users = recmind.RecMindConfig(steps=2, max_tokens=4), np.array([0, 1, 2])
    calls, broken = [], True
    original = serving.reply

    def reply(backbone, body, chat):
        calls.append(body['prompt'])
        if broken and len(calls) > 3:
            raise ConnectionError('gone')
        return original(backbone, body, chat)

    serving.reply, arguments = (
        reply,
        (recmind.Agent(TITLES, markov(SPLIT.train), cfg), SPLIT.test_history, users),
    )
    try:
        with served(llama, 4) as endpoint:
            with pytest.raises(LlmrecError, match='2 of 3 plans were cut off, all exchanges before are kept'):
                recmind.answer(recmind.Talk(endpoint, tmp_path), *arguments)
            assert len(list(Path(tmp_path).rglob('*.json'))) == 3
            shown = recmind.answer(recmind.Talk(endpoint, tmp_path), *arguments, strict=False)
            assert [bool(w.note) for w in shown] == [False, True, True] and 'after 1 calls' in shown[1].note
            broken, n = False, len(calls)
            whole = recmind.answer(recmind.Talk(endpoint, tmp_path), *arguments)
            assert len(calls) - n == 3 and not any('endpoint' in w.note for w in whole)
            assert whole[0] == shown[0]
        assert (
            recmind.answer(recmind.Talk(endpoint, tmp_path), *arguments) == whole
        )  # the server is gone, the exchanges are not
    finally:
        serving.reply = original


def test_two_persons_share_no_exchange(tmp_path, llama):
    "Nothing that is known of one person may answer for another."
    cfg = recmind.RecMindConfig(steps=1, max_tokens=2)
    with served(llama, 2) as endpoint:
        recmind.answer(
            recmind.Talk(endpoint, tmp_path),
            recmind.Agent(TITLES, markov(SPLIT.train), cfg),
            SPLIT.test_history,
            np.array([0, 1]),
        )
    assert len(list(Path(tmp_path).rglob('*.json'))) == 2


def test_the_purse(tmp_path, llama):
    cfg = recmind.RecMindConfig(steps=3, max_tokens=2)
    with served(llama, 2) as endpoint:
        dear = replace(endpoint, price_in=1e6, price_out=1e6, max_cost=10.0)
        with pytest.raises(LlmrecError, match='max_cost'):
            recmind.answer(
                recmind.Talk(dear, tmp_path),
                recmind.Agent(TITLES, markov(SPLIT.train), cfg),
                SPLIT.test_history,
                np.array([0, 1]),
            )
    assert len(list(Path(tmp_path).rglob('*.json'))) == 1


def test_the_chat_interface_says_the_same(tmp_path, llama):
    ways = []
    for api in ('completions', 'chat'):
        cfg = recmind.RecMindConfig(steps=2, max_tokens=4)
        with served(llama, 4, api) as endpoint:
            ways += recmind.answer(
                recmind.Talk(endpoint, tmp_path / api),
                recmind.Agent(TITLES, markov(SPLIT.train), cfg),
                SPLIT.test_history,
                np.array([0]),
            )
    assert ways[0].asked == ways[1].asked


def test_a_title_with_semicolons_is_one_title():
    names = ['', 'A; B', 'A', 'C&quot; D; E', 'Zin']
    find = title_finder(names)
    for chosen in itertools.permutations(['A; B', 'C&quot; D; E', 'Zin']):
        assert (
            recmind.titles_in('; '.join(chosen), find) == recmind.titles_in('\n'.join(chosen), find) == chosen
        )
    assert recmind.titles_in('A; Zin; C&quot; X;', find) == ('A', 'Zin', 'C&quot', 'X')
    plan = recmind.Plan('', answer='A; B; nowhere')
    assert recmind.way_of(plan, recmind.Tools(names, None, None, [], recmind.RecMindConfig())).items == (1,)


def test_an_example_is_about_somebody_else_and_ends_in_what_he_took(tmp_path, llama):
    score, histories = markov(SPLIT.train), SPLIT.test_history
    for shots in (1, 2):
        cfg = recmind.RecMindConfig(steps=1, max_tokens=2, shots=shots, shown=3)
        with served(llama, 2) as endpoint:
            ways = recmind.answer(
                recmind.Talk(endpoint, tmp_path),
                recmind.Agent(TITLES, score, cfg),
                histories,
                np.array([0, 1]),
            )
        for u, way in enumerate(ways):
            people = [int(x) for x in recmind.re.findall(r'^Person (\d+):$', way.asked, recmind.re.M)]
            assert people[-1] == u + 1 and u + 1 not in people[:-1] and len(people) == shots + 1
            taken = recmind.re.findall(r'Answer\[([^;\]]+)', way.asked.split(f'Person {u + 1}:')[0])[-shots:]
            assert taken == [TITLES[histories[v - 1][-1]] for v in people[:-1]]


# the runs


def test_a_row_may_ask_fewer_people():
    cfg = systems.make_run('PALR', {'users': 7}, for_dataset('films'), BackboneConfig('tiny'), 50)
    assert (
        cfg.users == 7
        and systems.make_run('PALR', {}, for_dataset('films'), BackboneConfig('tiny'), 50).users == 50
    )


def test_what_a_run_was_given_is_read_off_its_settings():
    def said(name, **values):
        return systems.allowed(systems.make_run(name, values, for_dataset('films'), BackboneConfig('tiny')))

    tuning = dict(max_steps=40, batch_size=8, accumulation=2)
    assert said('GPT4Rec', tuning=tuning) == 'Tuned for 40 steps of 16 rows.'
    assert said('PALR', tuning=tuning | dict(max_steps=-1, epochs=3), constrained=True).startswith(
        'Tuned on all training rows 3 times, in steps of 16 rows; it can write'
    )
    assert (
        said('POD', rows=3200, training=dict(epochs=2))
        == 'From fresh weights, 3,200 training rows read 2 times at most.'
    )
    assert 'ids as bare numbers in pieces of 3 digits' in said(
        'P5', notation='numbers', digits=3
    ) and '2 example plans' in said('RecMind', shots=2)


def test_finished_blocks_of_answers_are_not_asked_for_again(tmp_path):
    asked, users = [], np.arange(10, 17)

    def ask(part):
        asked.append(part.tolist())
        if len(asked) == 2 and part[0] == 13:
            raise KeyboardInterrupt
        return [Way(f'about {u}', ('a', 'b'), (int(u), 2), ('b',), note='n', tokens_in=3) for u in part]

    with pytest.raises(KeyboardInterrupt):
        systems.in_blocks(ask, users, tmp_path, 3)
    ways, seconds = systems.in_blocks(ask, users, tmp_path, 3)
    assert asked == [[10, 11, 12], [13, 14, 15], [13, 14, 15], [16]]
    assert (
        ways == [w for part in ([10, 11, 12], [13, 14, 15], [16]) for w in ask(np.array(part))]
        and seconds > 0
    )
    asked.clear()
    (tmp_path / '000003.json').write_text('{"users": [13, 14, 15], "seconds": 1.0, "ways": [{"asked')
    assert systems.in_blocks(ask, users, tmp_path, 3)[0] == ways and asked == [[13, 14, 15]]
    asked.clear()
    systems.in_blocks(ask, users + 1, tmp_path, 3)
    assert len(asked) == 3  # the blocks are about other persons


def test_a_block_is_made_of_whole_batches():
    for batch in (1, 16, 20, 100):
        size = systems.block_size(
            systems.make_run('P5', {'answer_batch': batch}, for_dataset('films'), BackboneConfig('tiny'))
        )
        assert size % batch == 0 and size >= 64
    assert (
        systems.block_size(systems.make_run('RecMind', {}, for_dataset('films'), BackboneConfig('tiny')))
        == 64
    )


def test_names_and_values_are_checked_before_anything_runs():
    below, llama = for_dataset('films'), BackboneConfig('tiny')
    for name, values, said in (
        ('GPT3Rec', {}, "Did you mean 'GPT4Rec'?"),
        ('P5', {'numbering': 'randm'}, "Did you mean 'random'?"),
        ('POD', {'vector': 2}, "Did you mean 'vectors'?"),
        ('PALR', {'tuning': {'lrr': 1.0}}, "Did you mean 'lr'?"),
        ('RecMind', {'steps': 0}, 'at least 1'),
        ('GPT4Rec', {'queries': 9}, 'raise beams'),
    ):
        with pytest.raises(LlmrecError) as e:
            systems.make_run(name, values, below, llama)
        assert said in str(e.value), str(e.value)
    with pytest.raises(LlmrecError, match='at least 1'):
        systems.make_run('P5', {}, below, llama, users=0)


def test_the_address_of_an_endpoint_is_no_part_of_the_key():
    def key(**values):
        endpoint = dict(model='m', api='completions', logprobs=0) | values
        cfg = systems.make_run(
            'RecMind', {'endpoint': endpoint}, for_dataset('films'), BackboneConfig('tiny')
        )
        assert isinstance(cfg.settings.endpoint, EndpointConfig) and cfg.backbone is None
        return systems.folder_of(cfg, 'demo').name

    assert key() == key(base_url='http://127.0.0.1:1/v1', workers=9) != key(model='other')


def test_numberings_are_rows_of_their_own_and_keys_of_their_own():
    rows = systems.numbered({'rows': 64}, item_ids.NUMBERINGS)
    runs = {
        n: systems.make_run(n, v, for_dataset('films'), BackboneConfig('tiny'))
        for n, v in ({'P5': {'rows': 64}} | rows).items()
    }
    assert len({systems.folder_of(r, 'demo') for r in runs.values()}) == 4


def test_without_computing_only_records_are_shown(tmp_path):
    from llmrec.paths import output_to

    values = {
        'rows': 64,
        'hidden': 16,
        'layers': 1,
        'beams': 3,
        'training': {'batch_size': 64, 'validate_every': 1},
    }
    runs = {
        n: systems.make_run(
            n, values | {'system': 'P5', 'numbering_seed': i}, for_dataset('films'), BackboneConfig('tiny'), 5
        )
        for i, n in enumerate('ab')
    }
    with output_to(tmp_path):
        assert systems.recorded(runs, 'demo', compute=False) == {}
        record = systems.run(runs['a'], 'demo', False)
        found = systems.recorded(runs, 'demo', compute=False)
        way, at, user = systems.one_way(runs['a'], 'demo', 2)
    assert list(found) == ['a']
    own = record.arrays
    assert (
        user == own['user'][2]
        and places([way], at.split.test[[user]])[0] == own['rank'][2]
        and way.tokens_in == own['tokens_in'][2]
    )
    assert set(record.provenance['seconds']) >= {'prepare', 'answer'}
    assert at.data.titles[at.split.test[user]] in systems.told(way, at, user)
    table = systems.system_rows('films', found)
    assert next(r for r in table if r['metric'] == 'NDCG@10')['value'] == pytest.approx(
        per_user(own['rank'])['NDCG@10'].mean()
    )
    assert json.dumps(record.metrics)


# what an answer costs


def test_the_cost_without_a_tuned_ranker_does_not_depend_on_the_tuning(tmp_path):
    from llmrec.experiments.study import study
    from llmrec.paths import output_to

    one, other = (
        study(
            datasets=['films'],
            methods=['Popularity', 'LRURec'],
            training=dict(epochs=1),
            seeds=[0],
            ranker_datasets=[],
            tuning=dict(max_steps=n),
            max_valid_users=n,
        )
        for n in (3, 40)
    )
    tuned = replace(one, ranker_datasets=('films',))
    with output_to(tmp_path):
        asked = systems.cost_run(one, 'films', 4)
        assert asked == systems.cost_run(other, 'films', 4) and not asked.tuned
        assert systems.cost_run(tuned, 'films', 4).tuned and 'not tuned' in systems.cost_name(asked)
        assert systems.cost_run(one, 'films', 4, dict(dtype='bfloat16')).ranking.backbone.dtype == 'bfloat16'


def test_the_cost_is_measured_once_and_shown_afterwards(tmp_path, monkeypatch):
    "The ranker carries an adapter while it is timed, no adapter is tuned, and a table reads the record."
    from llmrec.experiments import llamarec
    from llmrec.paths import output_to

    adapters, first = [], systems.score_candidates

    def spy(model, prompts, ids):
        adapters.append((sum('lora_A' in n for n, _ in model.model.named_parameters()), model.model.training))
        return first(model, prompts, ids)

    monkeypatch.setattr(systems, 'score_candidates', spy)
    monkeypatch.setattr(llamarec, 'compute', lambda *a: pytest.fail('a ranker was tuned'))
    cfg = systems.CostRun(
        llamarec.as_published(for_dataset('films', 'Popularity'), BackboneConfig('tiny')), 4, tuned=False
    )
    with output_to(tmp_path):
        assert systems.measured_cost(cfg, 'demo', compute=False) is None and not adapters
        record = systems.measured_cost(cfg, 'demo')
        assert systems.measured_cost(cfg, 'demo', compute=False).metrics == record.metrics
    assert len(adapters) == 1 and adapters[0][0] > 0 and not adapters[0][1]
    table = systems.costs({}, record, 'ours')
    lru, ours = table.iter_rows(named=True)
    spent = record.provenance['seconds']
    assert (lru['tokens_in'], lru['calls']) == (0, 0) and ours['tokens_in'] == record.metrics[
        'tokens_in'
    ] > 50
    assert lru['seconds'] == pytest.approx(spent['retrieve'] / 4)
    assert ours['seconds'] == pytest.approx((spent['retrieve'] + spent['rank']) / 4)
