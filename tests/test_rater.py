"The rater to take away: from one's own ratings, in another process, from another folder; its command."

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from llmrec.data.miniature import ensure_world
from llmrec.data.movielens import load_ml_100k
from llmrec.data.own import OwnData
from llmrec.data.own_ratings import load_own_ratings
from llmrec.data.tallrec import MovieSamplesConfig
from llmrec.data.yesno import load_yesno
from llmrec.llm.yesno import YesNoPromptConfig, record_of
from llmrec.paths import LlmrecError
from llmrec.recommend.commands import fit_main, questions_in_lines, score_main
from llmrec.recommend.rater import Rater

ROOT = Path(__file__).resolve().parent.parent
QUICK = dict(max_steps=2, eval_steps=2, warmup_steps=0, batch_size=4, accumulation=1, lr=1e-3)


@pytest.fixture(scope='module')
def own(tmp_path_factory):
    "The ratings of the invented world as somebody's CSV, with zero-padded text for ids."
    (ratings, films), folder = load_ml_100k(ensure_world() / 'ml-100k'), tmp_path_factory.mktemp('own')
    padded = lambda c, n: pl.col(c).cast(pl.String).str.zfill(n)
    ratings.select(who=padded('user', 5), what=padded('item', 6), stars='rating', at='timestamp').write_csv(
        folder / 'ratings.csv'
    )
    films.select(what=padded('item', 6), name='title').write_csv(folder / 'films.csv')
    return OwnData(
        'mine',
        str(folder / 'ratings.csv'),
        'who',
        'what',
        'at',
        'stars',
        items=str(folder / 'films.csv'),
        title='name',
        core=1,
        like_from=4,
        thing='movie',
    )


@pytest.fixture(scope='module')
def tuned(own, tmp_path_factory):
    data, _ = load_own_ratings(own)
    return Rater.fit(
        data,
        'miniature',
        tmp_path_factory.mktemp('work'),
        k=8,
        tuning=QUICK,
        valid_rows=20,
        test_rows=40,
        progress=False,
    )


def asked(r, n=3):
    "Histories and targets of test rows, with raw ids."
    rows, ids = r.data.splits['test'].head(n), r.data.items
    return [
        ([(ids[i], y) for i, y in zip(s['history'], s['history_labels'])], [ids[s['item']]])
        for s in rows.iter_rows(named=True)
    ]


@pytest.mark.parametrize('protocol', ['as_published', 'corrected'])
def test_ones_own_ratings_give_the_prompts_of_the_registered_samples(own, protocol):
    mine, _ = load_own_ratings(own, getattr(MovieSamplesConfig, protocol)())
    registered = load_yesno('films', protocol)
    for split, rows in registered.splits.items():
        prompts = [
            [record_of(data, s, YesNoPromptConfig()) for s in data.splits[split].iter_rows(named=True)]
            for data in (registered, mine)
        ]
        assert prompts[0] == prompts[1] and len(prompts[0]) == len(rows) > 0


def test_the_files_order_and_the_label_of_a_rating_in_between(tmp_path):
    "Without times the file's order is the order of each reader; a rating of 3.5 is a like from 3.5 on and none from 4 on."
    rows = [(u, f'i{n % 7}', (n * 7 % 10 + 1) / 2) for n in range(60) for u in ('b', 'a')]
    pl.DataFrame(rows, schema=['user', 'item', 'stars'], orient='row').write_csv(tmp_path / 'r.csv')
    pl.DataFrame(dict(item=[f'i{n}' for n in range(7)], name=[f'Title {n}' for n in range(7)])).write_csv(
        tmp_path / 'i.csv'
    )
    own = OwnData(
        'mine',
        str(tmp_path / 'r.csv'),
        rating='stars',
        items=str(tmp_path / 'i.csv'),
        title='name',
        core=1,
        like_from=3.5,
    )
    cfg = MovieSamplesConfig(history=2, order='time', time_as_text=False)
    stars = {u: [s for v, _, s in rows if v == u] for u in 'ab'}
    for like_from in (3.5, 4.0):
        data, _ = load_own_ratings(replace(own, like_from=like_from), cfg)
        samples = pl.concat(data.splits.values())
        got = [
            (data.users[s['user']], data.items[s['item']], s['label'], s['history_labels'])
            for s in samples.iter_rows(named=True)
        ]
        want = [
            (
                u,
                f'i{n % 7}',
                int(stars[u][n] >= like_from),
                [int(x >= like_from) for x in stars[u][n - 2 : n]],
            )
            for u in 'ba'
            for n in range(2, 60)
        ]
        assert got == want


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(like_from=None), 'what a like is'),
        (dict(rating=None), 'needs a rating'),
        (dict(title=None, items=None), 'names titles'),
        (dict(least_rating=4.0), 'nothing is disliked'),
        (dict(thing=''), 'is a noun'),
        (dict(core=10_000), 'too few'),
        (dict(title='nmae'), "Did you mean 'name'"),
    ],
)
def test_ratings_that_make_no_questions(own, change, said):
    with pytest.raises(LlmrecError, match=said):
        load_own_ratings(replace(own, **change))


def test_another_process_and_another_folder_give_the_same_scores(tuned, tmp_path):
    before = tuned.score_many(asked(tuned)).write_csv()
    tuned.save(tmp_path / 'here')
    shutil.move(tmp_path / 'here', tmp_path / 'there')
    code = f"from llmrec.recommend.rater import Rater; print(Rater.load({str(tmp_path / 'there')!r}).score_many({asked(tuned)!r}).write_csv(), end='')"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == before, done.stderr


def test_plain_peft_scores_the_same(tuned, tmp_path):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    folder = tuned.save(tmp_path / 'mine') / 'adapter'
    model, tokenizer = (
        AutoPeftModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    ((history, (target,)),) = asked(tuned, 1)
    prompt, yes = tuned.explain(history, target)
    ids = [tokenizer(prompt + answer)['input_ids'] for answer in ('Yes.', 'No.')]
    at = next(i for i, (a, b) in enumerate(zip(*ids)) if a != b)
    with torch.no_grad():
        logits = model(torch.tensor([ids[0][:at]])).logits[0, -1]
    assert torch.sigmoid(logits[ids[0][at]] - logits[ids[1][at]]).item() == pytest.approx(yes, abs=1e-5)
    assert json.loads((folder / 'adapter_config.json').read_text())['base_model_name_or_path'] == str(
        folder.parent / 'base'
    )


def test_measured_again_after_loading_and_not_without_test_rows(tuned, tmp_path):
    assert Rater.load(tuned.save(tmp_path / 'all')).evaluate(40) == tuned.about['measured']
    shut = Rater.load(tuned.save(tmp_path / 'less', people=False))
    assert not (tmp_path / 'less/test.parquet').exists()
    with pytest.raises(LlmrecError, match='without its test rows'):
        shut.evaluate()


def test_labels_and_order_of_the_history_are_read(tuned):
    ((history, targets),) = asked(tuned, 1)
    scores = [
        tuned.score(h, targets)['score'][0]
        for h in (history, [(i, 1 - y) for i, y in history], history[::-1], history[1:])
    ]
    assert len(set(scores)) == 4
    longer = [(tuned.items[0], 1), *history]
    assert tuned.score(longer, targets)['score'][0] == scores[0]  # only the latest ten, as in the tuning


def test_a_new_save_replaces_the_old_one(tuned, tmp_path):
    folder = tuned.save(tmp_path / 'mine')
    (folder / 'README.md').write_text('old')
    tuned.save(folder)
    assert 'AUC' in (folder / 'README.md').read_text() and [p.name for p in tmp_path.iterdir()] == ['mine']
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis/text').write_text('years of work')
    with pytest.raises(LlmrecError, match='holds no rater'):
        tuned.save(tmp_path / 'thesis')


@pytest.mark.parametrize(
    'damage, said',
    [
        (lambda p: (p / 'rater.json').unlink(), 'no rater'),
        (lambda p: (p / 'rater.json').write_text('[]'), 'no rater'),
        (
            lambda p: (p / 'items.parquet').write_bytes(b'PAR1'),
            'items.parquet is missing or has been changed',
        ),
        (
            lambda p: (p / 'adapter/adapter_model.safetensors').unlink(),
            'adapter_model.safetensors is missing',
        ),
    ],
    ids=['gone', 'list', 'items', 'adapter'],
)
def test_a_damaged_folder_is_not_opened(tuned, tmp_path, damage, said):
    folder = tuned.save(tmp_path / 'mine')
    damage(folder)
    with pytest.raises(LlmrecError, match=said):
        Rater.load(folder)


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(config=[]), 'another version'),
        (dict(about={}), 'does not say what data'),
        (dict(thing=[]), 'how long a history is'),
        (dict(config=dict(x=1)), "Unknown RaterConfig setting 'x'"),
        (dict(about=dict(data='a', checksum='b', history=0)), 'how long a history is'),
        (dict(protocol=None), 'damaged'),
        (dict(form='1'), 'another version'),
    ],
    ids=str,
)
def test_an_old_folder_that_is_damaged_is_said_in_a_sentence(tuned, tmp_path, change, said):
    folder = tuned.save(tmp_path / 'mine')
    body = {
        k: v
        for k, v in json.loads((folder / 'rater.json').read_text()).items()
        if k not in ('files', 'digest')
    } | change
    (folder / 'rater.json').write_text(json.dumps({k: v for k, v in body.items() if v is not None}))
    with pytest.raises(LlmrecError, match=said):
        Rater.load(folder)


@pytest.mark.parametrize(
    'text',
    [
        '{"history": {"a": 1}, "targets": ["b"]}',
        '{"history": ["a1"], "targets": ["b"]}',
        '{"history": [], "targets": "b"}',
        '{"history": [], "targets": [null]}',
        '{"history": [[["a"], 1]], "targets": ["b"]}',
        '{"user": [1], "history": [], "targets": ["b"]}',
        '[' * 100_000,
    ],
)
def test_a_line_that_is_no_question(tmp_path, text):
    (tmp_path / 'q.jsonl').write_text('{"history": [], "targets": ["b"]}\n' + text + '\n\n')
    with pytest.raises(LlmrecError, match='line 2: no question'):
        questions_in_lines(tmp_path / 'q.jsonl')


def test_the_command_reads_tables_and_lines_and_gives_the_raters_scores(tuned, tmp_path, capsys):
    folder, questions = str(tuned.save(tmp_path / 'mine')), asked(tuned)
    want = [pytest.approx(x, abs=1e-5) for x in tuned.score_many(questions)['probability']]
    rows = [
        (f'u{n}', i, y)
        for n, (history, targets) in enumerate(questions)
        for i, y in [*history, *((t, None) for t in targets)]
    ]
    pl.DataFrame(rows, schema=['user', 'item', 'like'], orient='row').write_csv(tmp_path / 'q.csv')
    lines = [json.dumps(dict(user=f'u{n}', history=h, targets=t)) for n, (h, t) in enumerate(questions)]
    (tmp_path / 'q.jsonl').write_text('\n'.join(lines))
    assert score_main([folder, str(tmp_path / 'q.csv'), '--out', str(tmp_path / 'a.jsonl')]) == 0
    assert score_main([folder, str(tmp_path / 'q.jsonl'), '--out', str(tmp_path / 'a.csv')]) == 0
    for answers in (
        pl.read_ndjson(tmp_path / 'a.jsonl'),
        pl.read_csv(tmp_path / 'a.csv', infer_schema_length=0),
    ):
        assert answers['user'].to_list() == ['u0', 'u1', 'u2'] and answers['item'].to_list() == [
            t for _, (t,) in questions
        ]
        assert [float(p) for p in answers['probability']] == want
    (tmp_path / 'bad.csv').write_text('user,item,like\nu,000001,maybe\n')
    (tmp_path / 'bad.jsonl').write_text('{"history": 5}\n')
    (tmp_path / 'none.csv').write_text('user,item,like\nu,000001,1\n')
    for name, said in (
        ('bad.csv', 'row 1'),
        ('bad.jsonl', 'line 1'),
        ('none.csv', 'nothing is asked'),
        ('lost.csv', 'no file'),
    ):
        assert score_main([folder, str(tmp_path / name)]) == 1
        assert said in capsys.readouterr().err


def test_a_rater_needs_a_language_model(own, tmp_path, capsys):
    line = [
        own.interactions,
        '--user',
        'who',
        '--item',
        'what',
        '--rating',
        'stars',
        '--like-from',
        '4',
        '--titles',
        own.items,
        '--title',
        'name',
    ]
    assert fit_main([*line, '--out', str(tmp_path / 'mine')]) == 1
    assert '--backbone' in capsys.readouterr().err
    for more in (['--set', 'epochs=3'], ['--test-users', '5']):
        assert fit_main([*line, '--out', str(tmp_path / 'mine'), '--backbone', 'miniature', *more]) == 1
        assert f'{more[0]} is about a recommender' in capsys.readouterr().err
