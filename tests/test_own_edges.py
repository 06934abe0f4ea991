"What people bring and ask for at the edges: one heavy user, changed data, odd arguments, names and endings."

import asyncio
import json
import os
import resource
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from llmrec.data.interactions import from_lists
from llmrec.data.own import OwnData, load_own, read_table
from llmrec.data.own_ratings import load_own_ratings
from llmrec.evaluation.ranking import recall, summary
from llmrec.experiments.llamarec import RankingConfig, within_context
from llmrec.experiments.retrieval import for_dataset
from llmrec.llm import folders
from llmrec.llm.backbones import Backbone
from llmrec.llm.prompts import LlamaRecPromptConfig
from llmrec.paths import LlmrecError
from llmrec.recommend import commands, rater
from llmrec.recommend.batches import Batches, Recommend, recommended
from llmrec.recommend.hub import name_base
from llmrec.recommend.recommender import Recommender, evaluate, pool_size
from llmrec.recommend.saved import replaced
from llmrec.sequential.candidates import ranks

SHORT = dict(epochs=2, validate_every=20, seed=0)
TUNING = dict(max_steps=2, eval_steps=2, warmup_steps=0, batch_size=2, lr=1e-3)


def histories(n_users=40, n_items=60, each=8):
    "User -> item ids, overlapping, none alike."
    return {f'u{u}': [f'i{(3 * u + 7 * j) % n_items}' for j in range(each)] for u in range(n_users)}


def own(folder, lists, name='mine', titles=None, **more):
    "The data of these lists in files of `folder`."
    rows = [(u, i, t) for u, items in lists.items() for t, i in enumerate(items)]
    log, names = folder / f'{name}.csv', folder / f'{name}-titles.csv'
    pl.DataFrame(rows, schema=['user', 'item', 'at'], orient='row').write_csv(log)
    every = sorted({i for items in lists.values() for i in items})
    titles = titles or {i: f'Title of {i}' for i in every}
    pl.DataFrame(dict(item=list(titles), title=list(titles.values()))).write_csv(names)
    settings = dict(timestamp='at', items=str(names), title='title', core=1) | more
    return OwnData(name, str(log), **settings)


def fitted(where, lists, **more):
    data, _ = load_own(own(where, lists))
    return Recommender.fit(data, training=SHORT, progress=False, **more)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp('plain'), histories())


def test_one_person_who_has_met_nearly_everything_changes_nobody_elses_numbers(tmp_path):
    lists = histories()
    r = fitted(tmp_path, lists | {'shop': [f'i{i}' for i in range(59)]})
    split = __import__('llmrec.data.interactions', fromlist=['leave_one_out']).leave_one_out(
        r.people, r.users
    )
    place = ranks(r.score, split.test_history, split.test)
    assert r.about['measured']['retriever'] == summary(place[split.test > 0])
    assert r.config.candidates == 20 and place.max() > 1


def test_a_ranker_is_tuned_and_measured_beside_such_a_person(tmp_path):
    lists = histories(n_users=30) | {'shop': [f'i{i}' for i in range(59)]}
    more = dict(backbone='miniature', folder=tmp_path / 'work', tuning=TUNING, max_valid_users=4)
    r = fitted(tmp_path, lists, **more)
    found = r.about['measured']
    assert found['users'] == 31 and 0 < found['users_ranked'] <= 30
    assert len(r.recommend('shop')) == 1 and len(r.recommend('u0')) == 10


def test_a_small_catalogue_limits_the_candidates():
    assert pool_size(from_lists([[1, 2, 3]] * 10, 12)) == 9
    assert pool_size(from_lists([[1, 2]] * 19 + [range(1, 40)], 40)) == 20
    assert pool_size(from_lists([[1, 2]], 2)) == 1


def test_other_data_in_the_same_folder_is_another_tuning(tmp_path):
    more = dict(backbone='miniature', folder=tmp_path / 'work', tuning=TUNING, max_valid_users=4)
    fitted(tmp_path, histories(n_users=12), **more)
    turned = {u: items[::-1] for u, items in histories(n_users=12).items()}
    with pytest.raises(LlmrecError, match='holds a tuning for other data'):
        fitted(tmp_path, turned, **more)
    again = fitted(tmp_path, histories(n_users=12), **more)
    assert again.adapter.is_dir()


def test_an_output_folder_may_end_with_a_slash(tmp_path, monkeypatch, capsys):
    asked = {}

    def fit(data, retriever, backbone, folder, *args, **how):
        asked['folder'] = folder
        folder.mkdir()
        return SimpleNamespace(
            about=dict(measured={'retriever': summary(np.ones(1))}), save=lambda out: asked.update(out=out)
        )

    monkeypatch.setattr(commands.Recommender, 'fit', staticmethod(fit))
    data = own(tmp_path, histories(n_users=12))
    argv = [data.interactions, '--timestamp', 'at', '--core', '1', '--out', f'{tmp_path}/model/']
    assert commands.fit_main([*argv, '--backbone', 'miniature']) == 0, capsys.readouterr().err
    assert asked == dict(folder=tmp_path / 'model.work', out=tmp_path / 'model')
    assert not asked['folder'].exists()  # a finished tuning is in the saved folder


def test_two_commands_do_not_make_one_folder(tmp_path, monkeypatch, capsys):
    data = own(tmp_path, histories(n_users=12))
    argv = [data.interactions, '--timestamp', 'at', '--core', '1', '--out', f'{tmp_path}/model']

    def fit(*args, **how):
        assert commands.fit_main(argv) == 1  # the second one, while the first is at it
        raise LlmrecError('the first one ends')

    monkeypatch.setattr(commands.Recommender, 'fit', staticmethod(fit))
    assert commands.fit_main(argv) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith('llmrec_fit: ')]
    assert said == [
        f'llmrec_fit: Another llmrec_fit is making {tmp_path}/model; wait until it has ended, or give another --out.',
        'llmrec_fit: the first one ends',
    ]
    assert not list(tmp_path.glob('.*'))


def test_one_request_that_breaks_spoils_no_other():
    class Broken(Exception):
        pass

    def answer(questions):
        if 'bad' in questions:
            raise Broken
        return [q.upper() for q in questions]

    async def ask():
        batches = Batches(answer)
        asked = [asyncio.create_task(batches.ask(q)) for q in ('good', 'bad', 'fine')]
        worker = asyncio.create_task(batches.work())
        found = await asyncio.gather(*asked, return_exceptions=True)
        worker.cancel()
        return found

    one, two, three = asyncio.run(ask())
    assert (one, three) == ('GOOD', 'FINE') and isinstance(two, Broken)


def test_half_a_character_in_a_cold_title_is_refused(plain):
    with pytest.raises(ValueError, match='half a character'):
        Recommend(user='u1', cold={'x': '\ud800 film'})
    said = recommended(plain, [Recommend(user='u1', k=2)])
    assert len(said[0]) == 2


def test_a_prompt_is_no_longer_than_the_context():
    model = GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=8, n_layer=1, n_head=1, vocab_size=50))
    cfg = RankingConfig(for_dataset('films', 'LRURec'))
    assert within_context(cfg, Backbone(model, None, '')).prompt.max_text_tokens == 62
    wide = GPT2LMHeadModel(GPT2Config(n_positions=4096, n_embd=8, n_layer=1, n_head=1, vocab_size=50))
    assert within_context(cfg, Backbone(wide, None, '')) == cfg
    assert cfg.prompt.max_text_tokens == LlamaRecPromptConfig().max_text_tokens


def test_a_full_disk_leaves_the_adapters_configuration_as_it_was(tmp_path):
    path = tmp_path / 'adapter_config.json'
    path.write_text(json.dumps(dict(base_model_name_or_path='elsewhere')))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises((LlmrecError, OSError)):
            name_base(tmp_path, 'here')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    name_base(tmp_path, 'here')
    assert json.loads(path.read_text())['base_model_name_or_path'] == 'here'


@pytest.mark.parametrize('make', [list, iter, np.array, pl.Series, lambda x: (i for i in x)])
def test_ids_may_come_in_anything_that_holds_them(plain, make):
    best = plain.recommend('u1', k=5)['item'].to_list()
    left = plain.recommend('u1', k=5, leave_out=make(best[:2]))['item'].to_list()
    assert not set(best[:2]) & set(left) and len(left) == 5
    assert set(plain.recommend('u1', candidates=make(best[:3]))['item']) == set(best[:3])
    by_history = plain.recommend(history=make(['i1', 'i4']), k=3)
    assert by_history.equals(plain.recommend(history=['i1', 'i4'], k=3))
    assert plain.recommend(make(['u1', 'u2']), k=2)['user'].to_list() == ['u1', 'u1', 'u2', 'u2']


@pytest.mark.parametrize(
    'asked, said',
    [
        (dict(user='u1', k=-1), 'k is a whole number'),
        (dict(user='u1', k=0), 'k is a whole number'),
        (dict(user='u1', k=2.5), 'k is a whole number'),
        (dict(history='i1'), 'a list of item ids'),
        (dict(history=['i1', ['i2']]), 'There is no item'),
        (dict(user='u1', leave_out='i1'), 'leave_out is a list'),
        (dict(user='u1', candidates='i1'), 'candidates is a list'),
        (dict(user=[['u1']]), 'There is no user'),
    ],
)
def test_other_arguments_are_refused_in_a_sentence(plain, asked, said):
    with pytest.raises(LlmrecError, match=said):
        plain.recommend(**asked)


def test_a_recommender_without_its_people_cannot_be_measured(plain, tmp_path):
    bare = Recommender.load(plain.save(tmp_path / 'bare', people=False))
    with pytest.raises(LlmrecError, match='saved without its people'):
        evaluate(bare)


def test_what_a_killed_process_left_does_not_stop_the_next(plain, tmp_path):
    folder = plain.save(tmp_path / 'model')
    old = folder.with_name(f'model.old-{os.getpid()}')
    old.mkdir()
    (old / 'left').touch()
    plain.save(folder)
    assert not old.exists() and Recommender.load(folder).items == plain.items


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(plain, tmp_path, monkeypatch):
    folder = plain.save(tmp_path / 'model')
    real = folders.os.replace

    def fails(a, b):
        if '.tmp-' in str(a):
            raise OSError('no')
        return real(a, b)

    monkeypatch.setattr(folders.os, 'replace', fails)
    with pytest.raises(LlmrecError), replaced(folder, 'recommender') as aside:
        (aside / 'new').touch()
    assert Recommender.load(folder).items == plain.items


@pytest.mark.parametrize('name', ['l.ndjson', 'l.json', 'l.parquet', 'l.jsonl.gz', 'l.JSONL', 'l'])
def test_an_ending_that_would_not_be_kept_is_refused_before_the_model_is_loaded(name, tmp_path, capsys):
    assert commands.recommend_main([str(tmp_path / 'none'), '--user', 'u1', '--out', name]) == 1
    assert 'write a .csv or a .jsonl file' in capsys.readouterr().err


def rated(folder, likes):
    rows = [
        (f'u{u}', f'i{(u + j) % 12}', 5 if likes(u, j) else 1, 100 * u + j)
        for u in range(12)
        for j in range(14)
    ]
    log = folder / 'ratings.csv'
    pl.DataFrame(rows, schema=['user', 'item', 'rating', 'at'], orient='row').with_columns(
        title=pl.lit('Title of ') + pl.col('item')
    ).write_csv(log)
    return OwnData('rated', str(log), timestamp='at', rating='rating', title='title', core=1, like_from=4)


def test_a_rater_whose_validation_has_one_answer_is_refused_before_its_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(rater, 'load_backbone', lambda cfg: pytest.fail('loaded'))
    with pytest.raises(LlmrecError, match='validation rows of rated have the same answer'):
        rater.fit(rated(tmp_path, lambda u, j: True), 'miniature', tmp_path / 'work', progress=False)


def test_an_auc_that_cannot_be_is_none():
    assert rater.auc_or_none(np.ones(3), np.arange(3)) is None
    assert rater.auc_or_none(np.array([0, 1]), np.arange(2)) == 1
    assert rater.auc_text(None).startswith('none') and rater.auc_text(0.5) == '0.5000'


def test_equal_times_of_ratings_follow_the_rule_that_was_asked_for(tmp_path):
    data = rated(tmp_path, lambda u, j: (u * j) % 3 == 0)
    frame = pl.read_csv(data.interactions).with_columns(at=pl.lit(0))
    frame.write_csv(data.interactions)
    samples = {ties: load_own_ratings(replace(data, ties=ties))[0].splits for ties in ('file', 'item')}
    assert not samples['file']['train'].equals(samples['item']['train'])


def test_rows_are_counted_as_they_stand_in_the_file(tmp_path):
    path = tmp_path / 'log.csv'
    path.write_text('user,item,at\n,x,1\n,y,2\nc,z,xx\n')
    with pytest.raises(LlmrecError, match="row 3: 'xx' is not a time"):
        load_own(OwnData('mine', str(path), timestamp='at', core=1))
    path.write_text('user,item,stars\n,x,1\nc,z,many\n')
    with pytest.raises(LlmrecError, match="row 2: 'many' is not a number"):
        load_own(OwnData('mine', str(path), rating='stars', core=1))


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / 'log.csv'
    path.write_text('user,item,user\na,b,c\n')
    with pytest.raises(LlmrecError, match='names'):
        read_table(path)


def test_an_id_that_is_not_a_number_is_no_id(tmp_path):
    path = tmp_path / 'log.parquet'
    pl.DataFrame(dict(user=[1.0, float('nan')], item=[2.0, 3.0])).write_parquet(path)
    assert read_table(path)['user'].to_list() == ['1.0', None]


def test_titles_of_other_items_are_named_as_the_reason(tmp_path):
    data = own(tmp_path, histories(n_users=5), titles={'1': 'One', '2': 'Two'})
    with pytest.raises(LlmrecError, match=r"40 unknown \(item 'i0', for example, .*first item is '1'\)"):
        load_own(data)


def test_a_place_that_is_no_number_is_no_rank():
    with pytest.raises(LlmrecError, match='Ranks must be'):
        recall(np.array([1.0, np.nan]), 1)
