"The law of the miniature: names, catalogue, people, what comes next, likes, instructions and files of the default world."

import os

import numpy as np
import polars as pl
import pytest

from llmrec.data import miniature as mini
from llmrec.data.amazon import load_amazon
from llmrec.data.bookcrossing import load_bookcrossing
from llmrec.paths import AUTHOR, ITEM, RATING, TITLE, USER, LlmrecError

CFG = mini.WorldConfig()


@pytest.fixture(scope='module')
def world():
    return mini.make_world()


@pytest.fixture(scope='module')
def made():
    "Words, titles, films and books of one stream."
    words = mini.coin_words(np.random.default_rng(0), 500)
    titles, rng = mini.coin_titles(np.random.default_rng(0), words, 0.2), np.random.default_rng(0)
    return words, titles, mini.make_films(rng, CFG, titles), mini.make_books(rng, CFG, titles, words[:160])


def test_words_and_titles(made):
    words, titles, *_ = made
    assert len(set(words)) == 500 and len(set(titles)) == len(titles)
    assert np.mean([' ' in t for t in titles]) == pytest.approx(0.22, abs=0.04)
    for odd in ('"', '&'):
        assert any(odd in t for t in titles)
    assert any('é' in t or 'ö' in t for t in titles)


def test_the_catalogue(made):
    *_, films, books = made
    assert (films['genre'].value_counts()['count'] == 50).all()
    assert books.group_by(AUTHOR).agg(pl.col('genre').n_unique())['genre'].max() == 1
    assert mini.isbn(30640615) == '0306406152'  # the standard's usual example
    assert all(len(i) == 10 for i in books[ITEM]) and books[ITEM].is_unique().all()


def test_shares_of_implicit_ratings():
    shares = mini.implicit_share(np.random.default_rng(0).standard_normal(100_000), CFG)
    assert shares.mean() == pytest.approx(0.1, abs=0.003)
    assert [(shares < 0.02).mean(), (shares > 0.5).mean()] == pytest.approx([0.65, 0.075], abs=0.02)
    assert mini.implicit_share(np.zeros(1), mini.WorldConfig(implicit=0.5)) == pytest.approx([0.5])


def test_attention():
    assert mini.attention(mini.GENRE_VALENCE).sum() == pytest.approx(1)
    assert mini.attention([1.0, -1.0])[0] == pytest.approx(1 / (1 + np.exp(-1.4)))


def test_what_comes_next(made):
    films, likes = made[2], (mini.GENRE_VALENCE, mini.MOOD_VALENCE)
    for state in ((0, 0), (5, 3)):
        assert mini.onward(*likes, state, CFG).sum() == pytest.approx(1)
    law = mini.next_item_law(*likes, (1, 2), mini.choice_weights(films, CFG), np.arange(300) < 5, CFG)
    assert law.sum() == pytest.approx(1) and (law[:5] == 0).all()
    share = pl.DataFrame({'genre': films['genre'], 'p': law}).group_by('genre').agg(pl.col('p').sum())
    first = share.sort('p', descending=True)['genre'][:2].to_list()
    assert first == ['crime', 'fantasy']  # state 1 is crime; fantasy comes after it


def test_walks_follow_the_law(made):
    films, likes = made[2], (mini.GENRE_VALENCE, mini.MOOD_VALENCE)
    weights, genre_of = (
        mini.choice_weights(films, CFG),
        np.array([mini.GENRES.index(g) for g in films['genre']]),
    )
    rng, counts, expected = np.random.default_rng(0), np.zeros(6), np.zeros(6)
    for _ in range(1500):
        items, states, _ = mini.walk(rng, *likes, weights, 2, CFG)
        counts[genre_of[items[1]]] += 1
        law = mini.next_item_law(*likes, tuple(states[0]), weights, np.arange(300) == items[0], CFG)
        expected += np.bincount(genre_of, law, 6)
    assert ((counts - expected) ** 2 / expected).sum() < 20.5  # 5 degrees of freedom, p = .001


def test_the_world_repeats_and_more_books_leave_the_films(world):
    assert mini.make_world().book_ratings.equals(world.book_ratings)
    more = mini.make_world(mini.WorldConfig(n_books=320))
    assert more.film_ratings.select(ITEM, RATING).equals(world.film_ratings.select(ITEM, RATING))
    with pytest.raises(LlmrecError, match='at least 40'):
        mini.make_world(mini.WorldConfig(n_users=3))


def tastes(w):
    return {tuple(g) + tuple(m) + (b,) for g, m, b in w.users.select('genres', 'moods', 'bias').iter_rows()}


def test_other_people_are_nobody_twice_and_like_alike(world):
    others = mini.other_people(world, 200)
    assert others.films is world.films and others.books is world.books
    assert mini.other_people(world, 200).book_ratings.equals(others.book_ratings)
    met = tastes(world)
    for crowd in (others, mini.other_people(world, 200, seed=1)):
        assert met.isdisjoint(tastes(crowd))
        met |= tastes(crowd)
        for theirs, ours in (
            (crowd.film_ratings, world.film_ratings),
            (crowd.book_ratings, world.book_ratings),
        ):
            assert abs((theirs['stars'] > 3).mean() - (ours['stars'] > 3).mean()) < 0.05


def test_questions_about_genres_of_films_are_answered_right(world):
    records = mini.instructions(world)
    assert len(records) == 2000 and mini.instructions(world) == records
    genre_of = dict(world.films.select(TITLE, 'genre').iter_rows())
    asked = [r for r in records if 'Is the genre of the film' in r['instruction']]
    assert asked
    for r in asked:
        assert r['output'] == ('Yes.' if genre_of[r['input'].strip('"')] in r['instruction'] else 'No.')


def test_the_folder_of_a_world(world, tmp_path, monkeypatch):
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    folder = mini.ensure_world()
    assert mini.ensure_world() == folder and [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert mini.world_checksum() == mini.checksum_of(mini.world_files(world))
    assert sorted(os.listdir(folder)) == ['alpaca', 'bookcrossing', 'books', 'ml-100k', 'ml-latest-small']
    (folder / 'ml-100k/u.data').write_bytes(b'')
    assert mini.world_checksum() != mini.checksum_of(mini.world_files(world))


def test_the_default_world_is_pinned(world):
    want = '1149ab67ea3d403c3e874b50d7bb473340137dd71af28662c526130cb6e101ff'
    assert mini.checksum_of(mini.world_files(world)) == want


def test_books_come_back_with_titles_and_authors(world, tmp_path):
    mini.write_world(world, tmp_path)
    _, books, report = load_bookcrossing(tmp_path / 'bookcrossing', unescape=True)
    names = ITEM, TITLE, AUTHOR
    assert report.bad_rows == 0 and books.select(names).rows() == world.books.select(names).rows()
    _, items = load_amazon(
        ratings=tmp_path / 'books/ratings_Books.csv.gz',
        meta=tmp_path / 'books/meta_Books.json.gz',
        unescape=True,
    )
    want = [
        None if untitled else title for title, untitled in world.books.select(TITLE, 'untitled').iter_rows()
    ]
    assert items[TITLE].to_list() == want


def test_like_chance_by_hand():
    assert mini.like_chance(np.array([3.5]), CFG, 'film') == pytest.approx([0.5])
    with pytest.raises(LlmrecError, match='Known: film, book'):
        mini.like_chance(np.zeros(1), CFG, 'song')


def test_all_people(world):
    everyone = mini.all_people(CFG, 3, 5)
    assert len(everyone) == 20 * 24 * 3 * 5 and everyone['prior'].sum() == pytest.approx(1)
    assert (everyone['bias'] ** 2 * everyone['prior']).sum() ** 0.5 == pytest.approx(mini.BIAS)
    assert mini.opinions(everyone, world.films).shape == (7200, 300)


def test_the_posterior_by_hand():
    two, half = np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0.5, 0.5])
    assert mini.posterior_like(two, half, [0], [True], 1) == pytest.approx(0.82)
    assert mini.posterior_like(two, half, [], [], 1) == pytest.approx(0.5)
