"The miniature world: reproducible, readable by the papers' loaders, and with the effects it was built for."

import dataclasses
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from llmrec.data import miniature as mini
from llmrec.data.bookcrossing import load_bookcrossing
from llmrec.data.movielens import load_ml_100k, load_ml_latest_small
from llmrec.paths import ITEM, RATING, TIMESTAMP, TITLE, USER

SMALL = mini.WorldConfig(seed=3, n_users=60, n_films=64, n_books=64)


@pytest.fixture(scope='module')
def world():
    return mini.make_world(SMALL)


def test_the_same_files_in_another_process(world):
    code = 'from llmrec.data.miniature import *; print(checksum_of(world_files(make_world(WorldConfig(seed=3, n_users=60, n_films=64, n_books=64)))))'
    other = subprocess.run(
        [sys.executable, '-c', code], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert other == mini.checksum_of(mini.world_files(world))


def test_another_seed_is_another_world(world):
    assert (
        mini.make_world(mini.WorldConfig(seed=4, n_users=60, n_films=64, n_books=64)).films[TITLE].to_list()
        != world.films[TITLE].to_list()
    )


def test_both_movielens_forms_tell_the_same(world, tmp_path):
    mini.write_world(world, tmp_path)
    a, a_items = load_ml_100k(tmp_path / 'ml-100k')
    b, b_items = load_ml_latest_small(tmp_path / 'ml-latest-small')
    assert a.sort(USER, ITEM).equals(b.sort(USER, ITEM)) and a_items[TITLE].equals(b_items[TITLE])
    assert b[USER].is_sorted() and not a[USER].is_sorted()


def test_bookcrossing_form(world, tmp_path):
    mini.write_world(world, tmp_path)
    ratings, books, report = load_bookcrossing(tmp_path / 'bookcrossing', unescape=True)
    assert report.bad_rows == 0 and books[TITLE].to_list() == world.books[TITLE].to_list()
    assert ratings[RATING].min() == 0 and ratings[RATING].max() == 10
    raw = (tmp_path / 'bookcrossing' / 'BX-Users.csv').read_bytes()
    assert b';NULL\r\n' in raw


def test_nobody_rates_twice_and_time_goes_forward(world):
    for ratings in (world.film_ratings, world.book_ratings):
        assert not ratings.select(USER, ITEM).is_duplicated().any()
        assert ratings.select((pl.col(TIMESTAMP).diff().over(USER) > 0).fill_null(True).all()).item()
        assert ratings[TIMESTAMP].max() < 10**9  # TALLRec's recipe compares times as text


def test_titles_are_unique_and_latin(world):
    titles = world.films[TITLE].to_list() + world.books[TITLE].to_list()
    assert len(dict.fromkeys(titles)) == len(titles)
    for title in titles:
        title.encode('latin-1')


def test_the_law_is_a_distribution_that_leaves_out_what_was_seen(world):
    weights = mini.choice_weights(world.films, SMALL)
    seen = np.zeros(64, bool)
    seen[[0, 7]] = True
    law = mini.next_item_law(mini.GENRE_VALENCE, mini.MOOD_VALENCE, (2, 1), weights, seen, SMALL)
    assert law.sum() == pytest.approx(1) and law[0] == law[7] == 0 and (law[~seen] > 0).all()


def test_genres_go_round_the_ring_one_way(world):
    state = world.film_ratings.with_columns(after=pl.col('genre_state').shift(-1).over(USER)).drop_nulls(
        'after'
    )
    step = (state['after'] - state['genre_state']) % len(mini.GENRES)
    assert (step == 1).sum() > 2 * (step == len(mini.GENRES) - 1).sum()


def test_likes_follow_taste(world):
    mean = mini.opinions(world.users, world.films)
    given = world.film_ratings
    expected = mean[given[USER].to_numpy() - 1, given[ITEM].to_numpy() - 1]
    assert np.corrcoef(expected, given[RATING].to_numpy())[0, 1] > 0.8


@pytest.mark.parametrize('thing, above', [('film', 3), ('book', 5)])
def test_the_chance_of_a_like_is_the_law_of_the_ratings(world, thing, above):
    items, ratings = (
        (world.films, world.film_ratings) if thing == 'film' else (world.books, world.book_ratings)
    )
    place = {raw: i for i, raw in enumerate(items[ITEM])}
    implicit = world.users['implicit'].to_numpy()[:, None]
    chance = mini.like_chance(mini.opinions(world.users, items), SMALL, thing, implicit)[
        ratings[USER].to_numpy() - 1, [place[i] for i in ratings[ITEM]]
    ]
    like = (ratings[RATING] > above).to_numpy()
    assert abs(like.sum() - chance.sum()) < 4 * np.sqrt((chance * (1 - chance)).sum())


def test_the_reader_weighs_all_people_by_their_answers(world):
    "The posterior equals a plain loop over everyone there could be, and whoever likes all of a genre is expected to like its next item."
    people = mini.all_people(SMALL, 2)
    chances, prior = (
        mini.like_chance(mini.opinions(people, world.films), SMALL, 'film').T,
        people['prior'].to_numpy(),
    )
    assert len(people) == 20 * 24 * 2 and prior.sum() == pytest.approx(1)
    history, labels, top, bottom = [3, 9, 11], [True, False, True], 0.0, 0.0
    for person, p in enumerate(prior):
        for item, liked in zip(history, labels):
            p *= chances[item, person] if liked else 1 - chances[item, person]
        top, bottom = top + p * chances[20, person], bottom + p
    assert mini.posterior_like(chances, prior, np.array(history), np.array(labels), 20) == pytest.approx(
        top / bottom
    )
    crime = np.flatnonzero((world.films['genre'] == 'crime').to_numpy())
    loved, hated = (
        mini.posterior_like(chances, prior, crime[:5], np.full(5, answer), crime[5])
        for answer in (True, False)
    )
    assert loved > 0.8 and hated < 0.2


def test_titles_of_two_words_are_as_frequent_as_asked():
    words = mini.coin_words(np.random.default_rng(0), 3000)
    share = [
        np.mean([' ' in t for t in mini.coin_titles(np.random.default_rng(1), words, two)])
        for two in (0.0, 0.2, 0.9)
    ]
    assert share == pytest.approx([0.02, 0.22, 0.9], abs=0.03)


def test_instructions_hold_no_rating_and_no_wording_of_the_papers(world):
    for record in mini.instructions(world, 320):
        assert list(record) == ['instruction', 'input', 'output'] and record['output']
        text = ' '.join(record.values()).lower()
        for word in (
            'like',
            'user',
            'preference',
            'identify',
            'determine',
            'enjoy',
            'recommend',
            'candidate',
            'target',
        ):
            assert word not in text


def test_instructions_are_balanced_and_do_not_depend_on_users(world):
    records = mini.instructions(world, 3200)
    for task in (
        'Is the genre',
        'Is the mood',
        'Was the',
        'Do the two',
        'Is there a',
        'Is the year',
        'The films are sorted by genre. Does',
        'The books are sorted by genre. Does',
    ):
        answers = [r['output'] for r in records if r['instruction'].startswith(task)]
        assert (
            len(answers) > 150
            and sorted(dict.fromkeys(answers)) == ['No.', 'Yes.']
            and 0.38 < answers.count('Yes.') / len(answers) < 0.62
        )
    other = mini.make_world(dataclasses.replace(SMALL, n_users=50))
    assert mini.instructions(other, 100) == mini.instructions(
        dataclasses.replace(world, config=other.config), 100
    )


def test_what_instructions_say_is_true(world):
    items = {i[TITLE]: i for i in (*world.films.to_dicts(), *world.books.to_dicts())}
    for r in mini.instructions(world, 1600):
        ask, given, answer = r.values()
        about = [items[t] for t in items if f'"{t}"' in given]
        if ask.startswith('Name the genre'):
            assert answer == about[0]['genre'].capitalize() + '.'
        elif ask.startswith('Is the mood'):
            assert (answer == 'Yes.') == (about[0]['mood'] in ask)
        elif ask.startswith('Do the two'):
            assert (answer == 'Yes.') == (about[0]['genre'] == about[-1]['genre'])
        elif ask.startswith('Is there a'):
            new = next(i for i in about if f'"{i[TITLE]}"' in given.partition('\n')[2])
            assert (answer == 'Yes.') == any(i['genre'] == new['genre'] for i in about if i is not new)
        elif 'sorted by genre' in ask:
            upper, lower, new = (
                dict.fromkeys(items[t]['genre'] for t in items if f'"{t}"' in line)
                for line in given.split('\n')
            )
            assert not set(upper) & set(lower) and len(upper) <= 3 and len(lower) <= 3 and len(new) == 1
            here = {'Upper.': 0, 'Lower.': 1}.get(answer, int(('lower' in ask) == (answer == 'Yes.')))
            assert not set(new) & set((lower, upper)[here])  # nothing of its genre stands on the other shelf
        elif ask.startswith('Count'):
            assert answer == mini.NUMBERS[len(about)]


def test_a_world_is_made_once(world, tmp_path, monkeypatch):
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    folder = mini.ensure_world(SMALL)
    monkeypatch.setattr(mini, 'make_world', lambda cfg: pytest.fail('made again'))
    assert mini.ensure_world(SMALL) == folder and [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert mini.world_checksum(SMALL) == mini.checksum_of(mini.world_files(world))


def test_the_world_of_the_checkout_is_copied(world, tmp_path, monkeypatch):
    made = tmp_path / 'checkout/data/miniature' / f'world-{mini.digest(SMALL, mini.VERSION)}'
    mini.write_world(world, made)
    monkeypatch.setattr(mini, 'repository', lambda: tmp_path / 'checkout')
    monkeypatch.setattr(mini, 'make_world', lambda cfg: pytest.fail('made again'))
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path / 'out'))
    folder = mini.ensure_world(SMALL)
    assert folder == tmp_path / 'out/data/miniature' / made.name
    assert mini.world_checksum(SMALL) == mini.checksum_of(mini.world_files(world))
    (folder / 'ml-100k/u.data').write_bytes(b'')
    assert (made / 'ml-100k/u.data').read_bytes()


def test_two_builders_of_one_world(world, tmp_path, monkeypatch):
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))

    def made_meanwhile(cfg):
        folder = mini.miniature_dir() / f'world-{mini.digest(cfg, mini.VERSION)}'
        mini.write_world(world, folder)
        return world

    monkeypatch.setattr(mini, 'make_world', made_meanwhile)
    folder = mini.ensure_world(SMALL)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
