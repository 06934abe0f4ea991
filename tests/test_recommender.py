"A recommender that is taken away: from one's own file, in another process, from another folder."

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from llmrec.data.datasets import load_dataset
from llmrec.data.own import OwnData, load_own, read_table
from llmrec.experiments import retrieval
from llmrec.paths import LlmrecError
from llmrec.recommend.commands import (
    complaining,
    fit_main,
    fit_parser,
    histories_in,
    printed,
    recommend_main,
    typed,
)
from llmrec.recommend.recommender import Recommender
from llmrec.sequential.training import TrainingConfig
from llmrec.systems.lists import sampled

ROOT = Path(__file__).resolve().parent.parent
SHORT = dict(epochs=4, validate_every=20, seed=0)


@pytest.fixture(scope='module')
def log(tmp_path_factory):
    "The films of the invented world as somebody's CSV, with zero-padded text for ids, in no order."
    films, folder = load_dataset('films'), tmp_path_factory.mktemp('log')
    s = films.indexed
    at = s.sequences.offsets
    rows = [
        (f'{u:05d}', f'{i:04d}', int(t))
        for u in range(len(at) - 1)
        for i, t in zip(s.sequences[u], s.times[at[u] : at[u + 1]])
    ]
    pl.DataFrame(rows, schema=['who', 'what', 'at'], orient='row').sample(
        fraction=1, shuffle=True, seed=1
    ).write_csv(folder / 'log.csv')
    titles = pl.DataFrame(dict(id=[f'{i:04d}' for i in range(1, len(films.titles))], name=films.titles[1:]))
    titles.write_csv(folder / 'titles.csv')
    return OwnData(
        'mine',
        str(folder / 'log.csv'),
        'who',
        'what',
        'at',
        items=str(folder / 'titles.csv'),
        items_item='id',
        title='name',
        ties='item',
    )


@pytest.fixture(scope='module')
def tuned(log, tmp_path_factory):
    data, _ = load_own(log)
    tuning = dict(max_steps=2, eval_steps=2, warmup_steps=0, batch_size=2, lr=1e-3)
    return Recommender.fit(
        data,
        backbone='miniature',
        folder=tmp_path_factory.mktemp('work'),
        training=SHORT,
        tuning=tuning,
        progress=False,
        max_valid_users=4,
        test_users=60,
    )


def test_the_sample_that_is_measured_is_that_of_the_lists(tuned, log):
    "Recall of the retriever, counted once more in lists for the same people without their last item."
    people = sampled(np.ones(len(tuned.users), int), 60)
    own = [tuned.people[u] - 1 for u in people]
    lists = tuned.recommend(history=[[tuned.items[i] for i in met[:-1]] for met in own], k=10, rank=False)
    listed = dict(lists.group_by('user').agg('item').iter_rows())
    hits = [tuned.items[met[-1]] in listed[n] for n, met in enumerate(own)]
    measured = tuned.about['measured']
    assert measured['users'] == 60 and measured['retriever']['Recall@10'] == pytest.approx(np.mean(hits))
    assert measured['ranked']['Recall@20'] == pytest.approx(measured['retriever']['Recall@20'])
    with pytest.raises(LlmrecError, match='test_users'):
        Recommender.fit(load_own(log)[0], training=SHORT, progress=False, test_users=0)


def test_ones_own_file_gives_the_numbers_of_the_registered_dataset(log, tmp_path, monkeypatch):
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    shutil.copytree(ROOT / 'data/miniature', tmp_path / 'data/miniature')
    training = TrainingConfig(**SHORT)
    record = retrieval.run(retrieval.for_dataset('films', 'LRURec', training), 'test', False)
    mine, _ = load_own(log)
    r = Recommender.fit(mine, training=SHORT | dict(batch_size=64), progress=False)
    assert r.about['measured']['retriever']['Recall@10'] == pytest.approx(
        record.metrics['test']['Recall@10'], abs=1e-12
    )
    assert r.titles == load_dataset('films').titles


def test_another_process_and_another_folder_give_the_same_lists(tuned, tmp_path):
    people = tuned.users[:4]
    before = tuned.recommend(people, k=8).write_csv()
    tuned.save(tmp_path / 'here')
    shutil.move(tmp_path / 'here', tmp_path / 'there')
    code = f"from llmrec.recommend.recommender import Recommender; print(Recommender.load({str(tmp_path / 'there')!r}).recommend({people!r}, k=8).write_csv(), end='')"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == before, done.stderr


def test_nobody_is_recommended_what_they_know_or_what_is_left_out(tuned):
    lists = tuned.recommend(tuned.users, k=20, rank=False)
    number = tuned.number
    for u in range(0, len(tuned.users), 97):
        mine = lists.filter(pl.col('user') == tuned.users[u])
        assert len(mine) == 20 and not {number[i] for i in mine['item']} & set(tuned.people[u].tolist())
    first = lists['item'][0]
    assert first not in tuned.recommend(tuned.users[0], k=20, leave_out=[first])['item'].to_list()


def test_each_of_several_histories_keeps_its_place_when_lists_have_different_lengths(tuned):
    "Who has met more items is recommended fewer, when more are asked for than there are."
    short, long = tuned.items[:1], tuned.items[:50]
    lists = tuned.recommend(history=[short, long], k=len(tuned.items), rank=False)
    assert dict(lists.group_by('user').len().iter_rows()) == {
        0: len(tuned.items) - 1,
        1: len(tuned.items) - 50,
    }
    assert not set(lists.filter(pl.col('user') == 1)['item']) & set(long)


def test_the_ranker_orders_the_retrievers_candidates_as_explained(tuned):
    user = tuned.users[5]
    ranked, plain = tuned.recommend(user, k=20), tuned.recommend(user, k=20, rank=False)
    assert (
        sorted(ranked['item']) == sorted(plain['item'])
        and ranked['item'].to_list() != plain['item'].to_list()
    )
    _, letters = tuned.explain(user)
    assert (
        letters.sort('probability', descending=True, maintain_order=True)['item'].to_list()
        == ranked['item'].to_list()
    )


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(interactions='nowhere.csv'), 'no file'),
        (dict(user='hwo'), "Did you mean 'who'"),
        (dict(name='films'), 'registered dataset'),
        (dict(core=10_000), 'Nothing is left'),
        (dict(title='nmae'), "Did you mean 'name'"),
        (dict(core='5'), 'must be int'),
        (dict(name='../evil'), 'part of a file name'),
        (dict(least_rating=3.0), 'needs a rating'),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(log, change, said):
    with pytest.raises(LlmrecError, match=said):
        load_own(replace(log, **change))


@pytest.mark.parametrize(
    'content, said',
    [
        (b'user,item\n1,2,3\n', 'cannot be read'),
        (b'', 'cannot be read'),
        (b'user,user\n1,2\n', 'names that differ'),
        (b'user,item\n\xff\xfe,2\n', 'cannot be read'),
    ],
    ids=['fields', 'empty', 'names', 'bytes'],
)
def test_a_file_that_is_no_table(tmp_path, content, said):
    (tmp_path / 'log.csv').write_bytes(content)
    with pytest.raises(LlmrecError, match=said):
        load_own(OwnData('mine', str(tmp_path / 'log.csv'), core=1))


def test_formats_agree(log, tmp_path):
    table = read_table(log.interactions)
    table.write_parquet(tmp_path / 'log.parquet')
    table.write_ndjson(tmp_path / 'log.jsonl')
    table.write_csv(tmp_path / 'log.tsv', separator='\t')
    for name in ('log.parquet', 'log.jsonl', 'log.tsv'):
        assert read_table(tmp_path / name).equals(table)


@pytest.mark.parametrize(
    'damage, said',
    [
        (lambda p: (p / 'recommender.json').unlink(), 'no recommender'),
        (lambda p: (p / 'recommender.json').write_text('[]'), 'must hold names and values'),
        (
            lambda p: (p / 'items.parquet').write_bytes(b'PAR1'),
            'items.parquet is missing or has been changed',
        ),
        (
            lambda p: (p / 'retriever.safetensors').write_bytes(b'x' * 20),
            'retriever.safetensors is missing or has been changed',
        ),
        (
            lambda p: (p / 'adapter/adapter_model.safetensors').unlink(),
            'adapter_model.safetensors is missing',
        ),
    ],
    ids=['gone', 'list', 'items', 'weights', 'adapter'],
)
def test_a_damaged_folder_is_not_opened(tuned, tmp_path, damage, said):
    folder = tuned.save(tmp_path / 'mine')
    damage(folder)
    with pytest.raises(LlmrecError, match=said):
        Recommender.load(folder)


def unsealed(folder):
    "The folder without its checksums, as the oldest ones are."
    body = json.loads((folder / 'recommender.json').read_text())
    (folder / 'recommender.json').write_text(
        json.dumps({k: v for k, v in body.items() if k not in ('files', 'digest')})
    )


def body(change):
    def damage(folder):
        path = folder / 'recommender.json'
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return damage


def table(name, change):
    def damage(folder):
        change(pl.read_parquet(folder / name)).write_parquet(folder / name)

    return damage


def adapter(**changes):
    def damage(folder):
        path = folder / 'adapter/adapter_config.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


@pytest.mark.parametrize(
    'damage, said',
    [
        (table('items.parquet', lambda f: f.reverse()), 'items.parquet is missing or has been changed'),
        (table('people.parquet', lambda f: f.reverse()), 'people.parquet is missing or has been changed'),
        (adapter(lora_alpha=999), 'adapter_config.json is missing or has been changed'),
        (body(lambda b: b['config'].update(candidates=5)), 'recommender.json is missing or has been changed'),
        (body(lambda b: b['about'].pop('data')), 'does not say what data'),
    ],
    ids=['items', 'people', 'adapter', 'settings', 'about'],
)
def test_a_folder_is_used_as_it_was_saved(tuned, tmp_path, damage, said):
    folder = tuned.save(tmp_path / 'mine')
    damage(folder)
    with pytest.raises(LlmrecError, match=said):
        Recommender.load(folder)


def test_an_old_folder_is_opened(tuned, tmp_path):
    folder = tuned.save(tmp_path / 'mine')
    unsealed(folder)
    assert Recommender.load(folder).items == tuned.items


@pytest.mark.parametrize(
    'damage, said',
    [
        (body(lambda b: b['config'].pop('retrieval')), 'damaged .KeyError'),
        (body(lambda b: b['config'].update(retrieval=[1])), 'damaged'),
        (body(lambda b: b['config']['retrieval'].update(architecture='x')), 'must hold names and values'),
        (table('items.parquet', lambda f: f.drop('item')), 'damaged'),
        (table('items.parquet', lambda f: f.with_columns(item=pl.lit('0001'))), 'an item twice'),
        (table('items.parquet', lambda f: f.with_columns(title=None)), 'no text'),
        (table('people.parquet', lambda f: f.drop('items')), 'damaged'),
        (table('people.parquet', lambda f: f.with_columns(items=pl.lit([9999]))), 'not in items.parquet'),
        (table('people.parquet', lambda f: f.with_columns(items=None)), 'not in items.parquet'),
        (
            lambda p: save_file(
                {
                    k: v * float('nan') if v.is_floating_point() else v
                    for k, v in load_file(p / 'retriever.safetensors').items()
                },
                p / 'retriever.safetensors',
            ),
            'not finite',
        ),
        (lambda p: (p / 'adapter/adapter_config.json').write_text('{'), 'adapter_config.json cannot be read'),
        (adapter(lora_alpha='x'), 'adapter in .* cannot be used'),
        (adapter(r=3), 'adapter in .* cannot be used'),
        (adapter(peft_type='X'), 'adapter in .* cannot be used'),
    ],
)
def test_an_old_folder_that_is_damaged_is_said_in_a_sentence(tuned, tmp_path, damage, said):
    folder = tuned.save(tmp_path / 'mine')
    unsealed(folder)
    damage(folder)
    with pytest.raises(LlmrecError, match=said) as e:
        Recommender.load(folder)
    assert '\n' not in str(e.value)


def test_the_folder_is_looked_at_before_the_data_are_read(tmp_path, capsys):
    (tmp_path / 'file').write_text('years of work')
    for out, said in (
        (tmp_path, 'holds no recommender'),
        (tmp_path / 'file', 'holds no recommender'),
        (tmp_path / 'file/inside', 'cannot be made'),
    ):
        assert fit_main([str(tmp_path / 'nothing.csv'), '--out', str(out)]) == 1
        assert said in capsys.readouterr().err


def test_a_small_catalogue(tmp_path):
    def data(items, met):
        rows = [f'u{u},i{(u * 3 + n) % items},{n}\n' for u in range(12) for n in range(met)]
        (tmp_path / 'log.csv').write_text('user,item,at\n' + ''.join(rows))
        return load_own(OwnData('small', str(tmp_path / 'log.csv'), timestamp='at', core=1))[0]

    r = Recommender.fit(data(24, 10), training=dict(epochs=1, validate_every=1), progress=False)
    assert r.config.candidates == 14 and len(r.recommend(r.users[0], k=30)) == 14
    assert (
        Recommender.fit(
            data(16, 9), training=dict(epochs=1, validate_every=1), progress=False
        ).config.candidates
        == 7
    )


@pytest.mark.parametrize(
    'text, said',
    [
        ('', 'holds no history'),
        ('["0001"]\n\n["0002"]\n', 'line 2: there is no item'),
        ('[]\n', 'line 1: there is no item'),
    ],
)
def test_a_history_that_is_none_is_named_by_its_line(tmp_path, text, said):
    (tmp_path / 'h.txt').write_text(text)
    with pytest.raises(LlmrecError, match=said):
        histories_in(tmp_path / 'h.txt')
    (tmp_path / 'h.txt').write_text('a\tb\n\n\n')
    assert histories_in(tmp_path / 'h.txt') == [['a', 'b']]


def test_an_id_of_a_thousand_digits_is_unknown():
    class Numbers:
        items = [1, 2]

    assert typed(Numbers, ['1', '9' * 6000, 'x'], [1, 2]) == [1, '9' * 6000, 'x']


@pytest.mark.parametrize(
    'raised, status, said',
    [(KeyboardInterrupt, 130, 'llmrec_fit: stopped'), (LlmrecError('no'), 1, 'llmrec_fit: no')],
)
def test_a_command_that_is_stopped(capsys, raised, status, said):
    def run(args):
        raise raised

    assert (
        complaining(fit_parser(), run, ['x.csv', '--out', 'y']) == status and said in capsys.readouterr().err
    )


def test_a_pipe_that_is_closed_is_no_fault(monkeypatch):
    "As when `| head` has seen enough; what is still in the buffer goes nowhere."
    ends = []
    monkeypatch.setattr(os, 'dup2', lambda new, old: ends.append(old))

    def run(args):
        raise BrokenPipeError

    assert complaining(fit_parser(), run, ['x.csv', '--out', 'y']) == 0 and len(ends) == 1


def test_a_list_is_printed_in_utf_8(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr('sys.stdout', out)
    printed('é\n')
    assert out.buffer.getvalue() == 'é\n'.encode()


def test_a_folder_of_something_else_is_not_written_over(tuned, tmp_path):
    (tmp_path / 'thesis.txt').write_text('years of work')
    with pytest.raises(LlmrecError, match='holds no recommender'):
        tuned.save(tmp_path)
    assert (tmp_path / 'thesis.txt').exists()


def test_the_commands(log, tmp_path, capsys):
    out = str(tmp_path / 'mine')
    assert (
        fit_main(
            [
                log.interactions,
                '--user',
                'who',
                '--item',
                'what',
                '--timestamp',
                'at',
                '--titles',
                log.items,
                '--titles-item',
                'id',
                '--title',
                'name',
                '--out',
                out,
                '--set',
                'epochs=2',
            ]
        )
        == 0
    )
    assert 'Recall@10' in capsys.readouterr().out
    (tmp_path / 'histories.txt').write_text('["0001", "0002"]\n0003\t0004\n')
    assert (
        recommend_main(
            [
                out,
                '--histories',
                str(tmp_path / 'histories.txt'),
                '-k',
                '3',
                '--out',
                str(tmp_path / 'lists.jsonl'),
            ]
        )
        == 0
    )
    lists = [json.loads(line) for line in (tmp_path / 'lists.jsonl').read_text().splitlines()]
    assert [x['user'] for x in lists] == [0, 0, 0, 1, 1, 1] and all(x['title'] for x in lists)
    assert recommend_main([out, '--user', 'nobody']) == 1
    assert 'There is no user' in capsys.readouterr().err


def test_candidates_and_cold_items(tuned):
    user, mine = (
        tuned.users[0],
        [i for i in tuned.items if i not in {tuned.items[n - 1] for n in tuned.people[0]}][:6],
    )
    plain = tuned.recommend(user, k=9, candidates=mine, rank=False)
    assert set(plain['item']) == set(mine)
    order = (
        tuned.recommend(user, k=len(tuned.items), rank=False)
        .filter(pl.col('item').is_in(mine))['item']
        .to_list()
    )
    assert plain['item'].to_list() == order
    assert set(tuned.recommend(user, k=9, candidates=mine, leave_out=mine[:1])['item']) == set(mine[1:])
    new = tuned.recommend(user, k=9, candidates=mine, cold={'new-1': 'A film of tomorrow'})
    assert set(new['item']) == {*mine, 'new-1'} and len(new) == 7
    assert new.filter(item='new-1')['title'].item() == 'A film of tomorrow' and new['score'].is_sorted(
        descending=True
    )
    assert 'new-1' not in tuned.items
    for how, said in (
        (dict(candidates=['no']), "no item 'no'"),
        (dict(cold={mine[0]: 'x'}), 'is not cold'),
        (dict(cold={'n': ''}), 'needs a title'),
        (dict(cold={'n': 'x'}, rank=False), 'Only a language model'),
        (dict(cold={f'n{i}': 'x' for i in range(99)}), 'ask in parts'),
    ):
        with pytest.raises(LlmrecError, match=said):
            tuned.recommend(user, **how)


def test_explained_is_what_is_recommended_with_candidates_and_cold_items(tuned):
    mine, new = tuned.items[:8], {'new-1': 'A film of tomorrow', 'new-2': 'Another one'}
    text, table = tuned.explain(history=tuned.items[20:24], candidates=mine, cold=new, leave_out=mine[:1])
    assert table['item'].to_list()[:2] == list(new) and set(table['item']) == {*mine[1:], *new}
    assert text.index('(A) A film of tomorrow') < text.index('(B) Another one') < text.index('(C) ')
    listed = tuned.recommend(history=tuned.items[20:24], candidates=mine, cold=new, leave_out=mine[:1])
    assert listed['item'].to_list() == table.sort('probability', descending=True)['item'].to_list()
    logits = listed['score'].to_numpy()
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert table['probability'].sort(descending=True).to_list() == pytest.approx(shares.tolist(), abs=1e-5)


def test_a_title_decides_where_a_cold_item_stands(tuned):
    "The first candidate of the pool by letter, but another title: the language model has read it."
    ask = dict(history=tuned.items[20:24], candidates=tuned.items[:8])
    scores = [
        tuned.recommend(**ask, cold={'new': title}).filter(item='new')['score'].item()
        for title in tuned.titles[5:8]
    ]
    assert len(set(scores)) == 3


def test_nothing_to_recommend(tuned):
    for rank in (True, False):
        assert len(tuned.recommend(tuned.users[0], candidates=[], rank=rank)) == 0
        both = tuned.recommend(
            history=[tuned.items[:3], tuned.items[3:6]], candidates=tuned.items[:3], rank=rank
        )
        assert both['user'].to_list() == [1, 1, 1]  # the first has met all of them
    for ask, said in (
        (dict(user=[]), 'list of users is empty'),
        (dict(user=tuned.users[0], cold={7: 'x'}), 'are text'),
    ):
        with pytest.raises(LlmrecError, match=said):
            tuned.recommend(**ask)
    with pytest.raises(LlmrecError, match='nothing to explain'):
        tuned.explain(tuned.users[0], candidates=[])
    with pytest.raises(LlmrecError, match='One person'):
        tuned.explain(tuned.users[:2])


@pytest.mark.parametrize(
    'table, said',
    [
        ('item\nx\n', "Unknown column 'title'"),
        ('item,title\nx,\n', 'row 1: expected an item and its title'),
        ('item,title\nx,One\nx,Two\n', 'more than once'),
    ],
)
def test_the_command_takes_candidates_and_cold_items(tuned, tmp_path, capsys, table, said):
    folder, cold = str(tuned.save(tmp_path / 'mine')), tmp_path / 'cold.csv'
    cold.write_text('item,title\nnew-1,A film of tomorrow\n')
    ask = [folder, '--user', tuned.users[0], '--candidates', *tuned.items[:8]]
    assert recommend_main([*ask, '--cold', str(cold), '--out', str(tmp_path / 'lists.csv')]) == 0
    want = tuned.recommend(tuned.users[0], candidates=tuned.items[:8], cold={'new-1': 'A film of tomorrow'})
    assert pl.read_csv(tmp_path / 'lists.csv', infer_schema=False)['item'].to_list() == want['item'].to_list()
    cold.write_text(table)
    assert recommend_main([*ask, '--cold', str(cold)]) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]  # above it stands how the model was loaded


def test_a_catalogue_with_fewer_items_than_candidates(tmp_path, capsys):
    rows = [(u, i) for u in range(12) for i in np.random.default_rng(u).permutation(9)[:6]]
    (tmp_path / 'log.csv').write_text('user,item\n' + ''.join(f'u{u},i{i}\n' for u, i in rows))
    assert (
        fit_main(
            [str(tmp_path / 'log.csv'), '--core', '2', '--out', str(tmp_path / 'mine'), '--set', 'epochs=1']
        )
        == 0
    )
    capsys.readouterr()
    assert recommend_main([str(tmp_path / 'mine'), '--user', 'u0', '-k', '20']) == 0
    listed = pl.read_csv(capsys.readouterr().out.encode())['item'].to_list()
    assert sorted(listed) == sorted({f'i{i}' for i in range(9)} - {f'i{i}' for u, i in rows if u == 0})


@pytest.mark.parametrize(
    'out, said', [('log.csv', 'holds no recommender'), ('log.csv/mine', 'cannot be made')]
)
def test_a_folder_that_cannot_be_written_is_named_before_the_training(
    tmp_path, capsys, monkeypatch, out, said
):
    (tmp_path / 'log.csv').write_text(
        'user,item\n' + ''.join(f'u{u},i{i}\n' for u in range(4) for i in range(4))
    )
    monkeypatch.setattr(Recommender, 'fit', lambda *a, **kw: pytest.fail('trained'))
    assert fit_main([str(tmp_path / 'log.csv'), '--core', '1', '--out', str(tmp_path / out)]) == 1
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1
