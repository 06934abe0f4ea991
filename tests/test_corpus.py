"The corpus: nobody of the world, no prompt of either paper, true statements, consistent people, and a curriculum."

import dataclasses
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from llmrec.miniature import corpus
from llmrec.data import miniature as mini
from llmrec.config import digest, from_dict, to_dict
from llmrec.miniature.corpus import (
    FACT,
    KINDS,
    VERDICT,
    CorpusConfig,
    Now,
    documents,
    now_at,
    shares_at,
    things_of,
    tokenizer_texts,
)
from llmrec.data.tallrec import ASK, DISLIKED, LIKED, TALLREC_INSTRUCTION
from llmrec.llm.tiny import byte_tokenizer
from llmrec.miniature.pretraining import PretrainingConfig
from llmrec.llm.prompts import INSTRUCTION
from llmrec.llm.yesno import COMMENT, PAPER_INSTRUCTION, PREAMBLE, paper_record, wrap
from llmrec.paths import ITEM, TITLE, USER, LlmrecError

CFG = CorpusConfig()
STEPS = (0, 100, 300, 600, 900, 1100, 1500, 2500, 4000, 7000)


def text_of(document):
    return ''.join(text for text, _ in document)


@pytest.fixture(scope='module')
def world():
    return mini.make_world()


@pytest.fixture(scope='module')
def things(world):
    return things_of(world)


@pytest.fixture(scope='module')
def sample(things):
    return [d for step in STEPS for d in documents(things, CFG, step, 2000)]  # 20,000


@pytest.fixture(scope='module')
def by_name(things):
    return {i.bare: i for i in things.items}


@pytest.fixture(scope='module')
def names(by_name):
    return re.compile(
        r'(?<!\w)(' + '|'.join(re.escape(t) for t in sorted(by_name, key=len, reverse=True)) + r')(?!\w)'
    )


def test_two_worlds_with_one_catalogue_have_one_corpus(world, things):
    other = mini.make_world(mini.WorldConfig(seed=5))
    swapped = dataclasses.replace(
        world,
        config=other.config,
        users=other.users,
        film_ratings=other.film_ratings,
        book_ratings=other.book_ratings,
    )
    nobody = dataclasses.replace(world, users=None, film_ratings=None, book_ratings=None)
    for w in (swapped, nobody):
        assert things_of(w) == things
        assert documents(things_of(w), CFG, 3000, 500) == documents(things, CFG, 3000, 500)
        assert tokenizer_texts(things_of(w), CFG) == tokenizer_texts(things, CFG)


def test_no_four_titles_in_a_row_from_anybodys_history(world, sample, names):
    "A row ends where genres stand between titles. By chance one seed in some dozens has such a row (notebook 96)."
    histories = {}
    for items, ratings in ((world.films, world.film_ratings), (world.books, world.book_ratings)):
        bare = {i: corpus.YEAR.sub('', t) for i, t in items.select(ITEM, TITLE).iter_rows()}
        for (user,), own in ratings.group_by(USER, maintain_order=True):
            row = [bare[i] for i in own[ITEM]]
            for k in range(len(row) - 3):
                histories[tuple(row[k : k + 4])] = user
    assert len(histories) > 30_000
    genres, rows, found = re.compile(r'\b(?:' + '|'.join(mini.GENRES) + r')\b', re.I), 0, []
    for document in sample:
        for part in genres.split(text_of(document)):
            row = names.findall(part)
            rows += max(0, len(row) - 3)
            found += [row[k : k + 4] for k in range(len(row) - 3) if tuple(row[k : k + 4]) in histories]
    assert rows > 50_000 and found == []


def pieces_of(template):
    return [p for p in re.split(r'\{\w*\}', template) if len(p.strip()) > 3]


def phrases():
    "The constant strings of both papers' prompts, whole and in parts, and words that occur in no other text of this size."
    paper = paper_record(['a', 'b'], [1, 0], 'c', 1)['input']
    out = [
        *pieces_of(TALLREC_INSTRUCTION),
        *pieces_of(PAPER_INSTRUCTION),
        *re.split(r'\W[ab]\W|c$', paper),
        INSTRUCTION,
        LIKED,
        DISLIKED,
        *pieces_of(ASK),
        COMMENT,
        *PREAMBLE,
        'user\'s preference',
        'identify whether',
        'will like the target',
        'by answering',
        'historical interactions',
        'determine whether',
        'will enjoy',
        'liked items',
        'disliked items',
        'Target new',
        'chronological order',
        'candidate pool',
        'User history',
        'index letter',
        'recommend an item',
        'User Preference',
        'User Unpreference',
        'Unpreference',
        'target movie',
        'target book',
        '### Response',
        '### Instruction',
        '### Input',
    ]
    return [p.strip().lower() for p in out if p.strip(' .:;,\n')]


def test_no_document_has_the_words_of_a_prompt(sample):
    texts = '\0'.join(map(text_of, sample)).lower()
    assert len(phrases()) > 20 and [p for p in phrases() if p in texts] == []


def test_no_verdict_is_a_yes_or_a_no(sample):
    said = dict.fromkeys(text for d in sample for text, w in d if w == VERDICT)
    assert len(said) > 60 and not [t for t in said if re.search(r'\b(yes|no|not|y|n)\b', t, re.I)]
    for document in sample:
        for k, (text, w) in enumerate(document):
            if re.search(r'\b(Yes|No)\b', text):
                assert text in ('Yes', 'No') and w == FACT and document[k + 1][0] == ', it is '


def test_the_wrapper_is_alpacas():
    assert corpus.WRAPPER.format(instruction='Do.', input='This', output='') == wrap('Do.', 'This')


STATEMENTS = (
    (r'{name} is a (?P<mood>\w+) (?P<genre>\w+) (?P<kind>film|book)\. ', 'it_is'),
    (r'Genre of {name}: (?P<genre>\w+)\. ', 'its_genre'),
    (r'Mood of {name}: (?P<mood>\w+)\. ', 'its_mood'),
    (r'{name}, (?P<genre>\w+) \((?P<mood>\w+)\)\. ', 'in_brackets'),
    (r'Everybody says that {name} is (?P<mood>\w+)\. ', 'everybody'),
    (r'{name} was written by (?P<author>\w+ \w+)\. ', 'origin'),
    (r'{name} came out in (?P<year>\d+)\. ', 'origin'),
)


def test_facts_are_true(things, by_name, names):
    r, found = random.Random(0), dict.fromkeys(f for _, f in STATEMENTS)
    quoted = r'\W?' + names.pattern + r'(?: \((?P<stated>\d{4})\))?\W?'
    forms = [(re.compile(p.replace('{name}', quoted)), f) for p, f in STATEMENTS]
    for _ in range(6000):
        text = text_of(corpus.sentence(r, things))
        for form, f in forms:
            m = form.fullmatch(text)
            if not m:
                continue
            thing, found[f] = by_name[m[1]], (found[f] or 0) + 1
            for field, value in m.groupdict().items():
                if value:
                    assert value == getattr(thing, 'year' if field == 'stated' else field), text
            break
        else:
            assert re.search(r' genre\. $| more\. $|\? (Yes|No), it is ', text), text
    assert min(found.values()) > 400


def test_shelves_and_questions_about_facts_are_true(things, by_name, names):
    for seed in range(400):
        i = random.Random(seed).choice(things.items)
        shelf = text_of(corpus.on_the_shelf(random.Random(seed), things, i, ''))
        assert [(by_name[t].genre, by_name[t].kind) for t in names.findall(shelf)] == [
            (i.genre, i.kind)
        ] * 3 and shelf.lower().startswith(f'{i.genre} {i.kind}s')
        ask = re.search(
            r' a (\w+) (\w+)\? (Yes|No), it is (\w+)\.',
            text_of(corpus.asked(random.Random(seed), things, i, 'X')),
        )
        assert (ask[1] == i.genre) == (ask[3] == 'Yes') and ask[2] == i.kind and ask[4] == i.genre
        alike = text_of(corpus.alike(random.Random(seed), things, i, 'X'))
        assert (by_name[names.search(alike)[1]].genre == i.genre) == ('the same' in alike)
    documents_ = [
        corpus.brief(random.Random(seed), things, Now(0.0, 0.0, seed % 2, 0.0)) for seed in range(400)
    ]
    for name, said in (
        p for d in documents_ for p in re.findall(names.pattern + r'\W? ([\w ]+), ', text_of(d))
    ):
        assert said in (
            by_name[name].genre,
            by_name[name].mood,
            f'{by_name[name].mood} {by_name[name].genre}',
        )


def test_quizzes_are_answered_rightly(things, by_name, names):
    found = 0
    for seed in range(1500):
        document = corpus.quiz(random.Random(seed), things, None)
        lettered = {
            m[1]: by_name[m[2]]
            for m in re.finditer(
                r'([A-T])\W+' + names.pattern,
                ''.join(t for t, w in document[:22] if w == corpus.TITLES and re.match(r'\W?[A-T]\W', t)),
            )
        }
        for k, (text, w) in enumerate(document):
            if w != FACT:
                continue
            found += 1
            if text in mini.GENRES + mini.MOODS:
                assert text in (lettered[document[k - 2][0]].genre, lettered[document[k - 2][0]].mood)
            elif document[k - 3][0] in ('Letter of ', 'Where is '):
                assert lettered[text].bare == names.search(document[k - 2][0])[1]
            else:
                assert re.search(rf'\b({lettered[text].genre}|{lettered[text].mood})\b', document[k - 1][0])
    assert found > 3000


def test_a_person_is_of_one_mind_about_a_genre(sample, by_name, names):
    mention, people = re.compile(names.pattern + r'|\b(' + '|'.join(mini.GENRES) + r')\b'), 0
    for document in sample:
        side, since = {}, ''
        for text, w in document:
            if w != VERDICT:
                since += text
                continue
            thing = mention.findall(since)[-1]
            genre = thing[1] or by_name[thing[0]].genre
            assert side.setdefault(genre, text.lower()) == text.lower(), text_of(document)
            since = ''
        people += bool(side)
        for word in dict.fromkeys(side.values()):
            assert sum(v == word for v in side.values()) <= 3
    assert people > 5000


@pytest.mark.parametrize('kind', ['plain_lists', 'lists', 'labelled_lists'])
def test_lists_agree_with_the_verdicts_after_them(things, by_name, names, kind):
    "All of a genre stands in one list, and the lists say the verdicts that follow."
    for seed in range(300):
        document, agree = KINDS[kind](random.Random(seed), things, Now(0.0, 0.0, 1.0, 0.8)), {}
        first = next(k for k, (_, w) in enumerate(document) if w == VERDICT)
        listed = [
            text
            for k, (text, w) in enumerate(document[:first])
            if w == corpus.TITLES and names.search(text) and document[k - 1][0] != 'Is '
        ][:-1]
        if kind == 'plain_lists':
            word = {
                by_name[t].genre: text.split()[0].strip(':') for text in listed for t in names.findall(text)
            }
        else:
            groups = [text for text in listed if ' are of ' not in text]
            word = {by_name[t].genre: k for k, text in enumerate(groups[-2:]) for t in names.findall(text)}
        assert len(word) > 0
        since = ''
        for text, w in document:
            if w != VERDICT:
                since += text
                continue
            genre, since = by_name[names.findall(since)[-1]].genre, ''
            if kind == 'plain_lists' and genre in word:
                assert word[genre] == text
            elif genre in word:
                assert agree.setdefault(word[genre], text) == text
        assert len(dict.fromkeys(agree.values())) == len(agree)


def test_documents_are_a_function_of_configuration_and_step(things):
    some = documents(things, CFG, 2000, 300)
    assert documents(things, CFG, 2000, 100) == some[:100]
    assert (
        documents(things, CFG, 2001, 300)
        != some
        != documents(things, dataclasses.replace(CFG, seed=1), 2000, 300)
    )
    code = 'from llmrec.miniature.corpus import *; from llmrec.data.miniature import *; from llmrec.config import digest; print(digest(documents(things_of(make_world()), CorpusConfig(), 2000, 300)))'
    env = {**os.environ, 'PYTHONHASHSEED': '7'}
    other = subprocess.run(
        [sys.executable, '-c', code], check=True, capture_output=True, text=True, env=env
    ).stdout.strip()
    assert other == mini.digest(some)


def test_attributes_give_way_to_titles(things, names):
    "The share of judged things that are named by attributes falls from all to few."
    shares = []
    for step in (0, 500, 750, 900, 5000):
        by_title = [
            bool(names.search(d[k - 2][0]))
            for d in documents(things, CFG, step, 1500)
            for k, (_, w) in enumerate(d)
            if w == VERDICT and k > 1
        ]
        shares.append(1 - np.mean(by_title))
    assert shares[0] == shares[1] == 1 and shares[1] > shares[2] > shares[3]
    assert [now_at(CFG, s).attributes for s in (0, 10_000)] == [1, CFG.attributes.values[-1]]


def test_shares_are_kept_and_every_kind_is_there_in_the_end(things):
    assert list(KINDS) == [f.name for f in dataclasses.fields(corpus.Shares)] and all(
        v > 0 for v in shares_at(CFG, 6000).values()
    )
    only = dataclasses.replace(
        CFG, shares=corpus.Shares(**{name: corpus.Course((0,), (float(name == 'brief'),)) for name in KINDS})
    )
    assert all(
        text_of(d).count(', ') >= 8 and not any(w == VERDICT for _, w in d)
        for d in documents(things, only, 10, 50)
    )


def test_words_of_titles_are_single_tokens(things):
    "After a space and at a quotation mark, with the tokens of the recipe."
    tokenizer = byte_tokenizer(tokenizer_texts(things, CFG), PretrainingConfig().vocab_size)
    single = [
        len(tokenizer.encode(f'x {word}').tokens) == 3
        for i in things.items
        for word in re.findall(r'\w+', i.bare)[:1]
    ]
    quoted = [
        len(tokenizer.encode(f'x "{word}').tokens) == 4
        for i in things.items
        for word in re.findall(r'\w+', i.bare)[:1]
    ]
    assert np.mean(single) > 0.98 and np.mean(quoted) > 0.98
    for text in (*mini.GENRES, *mini.MOODS, *(word for pair in corpus.WORDS for word in pair)):
        assert len(tokenizer.encode(f'x {text}').tokens) == 3
    for text in corpus.ORDINARY:
        assert len(tokenizer.encode(f'x {text}').tokens) == 3
    for text in ('Yes', 'No', *corpus.LETTERS):
        assert len(tokenizer.encode(f'x\n{text}').tokens) == 4


def test_a_world_that_is_too_small_is_told_so(world):
    with pytest.raises(LlmrecError, match='larger world'):
        things_of(dataclasses.replace(world, books=world.books[:5]))


def test_small_worlds_have_a_corpus():
    small = things_of(mini.make_world(mini.WorldConfig(seed=3, n_users=40, n_films=64, n_books=64)))
    assert all(text_of(d) for step in (0, 1000, 5000) for d in documents(small, CFG, step, 200))


def test_ordinary_words_judge_nothing(sample):
    "'preference', 'user' and 'target' are met, and never as a heading or a verdict."
    assert {'preference', 'user', 'target', 'whether'} < set(corpus.ORDINARY) - {
        w.lower() for w in corpus.verdict_words()
    }
    met = dict.fromkeys(w for d in sample for w in re.findall(r'the (\w+) and the', text_of(d)))
    assert {'preference', 'user', 'target', 'whether'} < set(met)
    said = {t.lower() for d in sample for t, w in d if w == VERDICT}
    assert said <= {w.lower() for pair in (*corpus.WORDS, *corpus.HEADS) for w in pair} | set(corpus.LABELS)


def test_words_that_the_headings_do_not_say_are_announced(things):
    "Either the lists or an announcement hold both words of the verdicts, before the first of them."
    for kind in ('lists', 'labelled_lists'):
        for seed in range(400):
            document = KINDS[kind](random.Random(seed), things, Now(0.0, 1.0, 1.0, 0.5))
            first = next(k for k, (_, w) in enumerate(document) if w == VERDICT)
            before = ''.join(t for t, _ in document[:first]).lower()
            assert all(t.lower() in before for t, w in document if w == VERDICT), before


def test_yes_and_no_are_about_facts_also_after_lists(things):
    "As often Yes as No, whatever the person likes."
    said = [
        document[k][0]
        for seed in range(2000)
        for document in [KINDS['lists'](random.Random(seed), things, Now(0.0, 0.0, 1.0, 0.8))]
        for k in range(len(document))
        if document[k][0] in ('Yes', 'No')
    ]
    assert len(said) > 400 and abs(said.count('Yes') / len(said) - 0.5) < 0.06


def test_the_catalogue_has_twelve_equal_shelves(things, world):
    assert (len(things.items), [len(shelf) for shelf in things.shelves.values()]) == (600, [50] * 12)
    with pytest.raises(LlmrecError, match='at least three'):
        things_of(dataclasses.replace(world, films=world.films[:9]))


def test_a_course_goes_straight_from_one_value_to_the_next():
    course = corpus.Course((100, 300, 301), (1.0, 0.5, 0.0))
    assert [course.at(step) for step in (0, 100, 200, 300, 301, 9999)] == [1, 1, 0.75, 0.5, 0, 0]


def test_the_numbers_of_a_step():
    assert now_at(CFG, 0) == (1, 0, 0, 0) and tuple(now_at(CFG, 3000)) == pytest.approx((0.05, 0.6, 1, 0.8))
    for step in STEPS:
        assert sum(shares_at(CFG, step).values()) == pytest.approx(1)
    assert from_dict(CorpusConfig, to_dict(CFG)) == CFG  # so a recipe can be read back
    assert list(KINDS) == [f.name for f in dataclasses.fields(corpus.Shares)]


def test_a_title_is_printed_in_its_style(things):
    film, book = things.items[0], things.items[-1]
    assert corpus.mention(film, corpus.Style()) == film.bare
    assert (
        corpus.mention(book, corpus.Style(('"', '"'), True, ' written by '))
        == f'"{book.bare}" written by {book.author}'
    )
    assert corpus.mention(film, corpus.Style(('<', '>'), True)) == f'<{film.title}>'


def test_neighbours_are_far_apart_where_there_is_a_choice(things):
    row = corpus.drawn(corpus.drawing(random.Random(0), things, ('book',), corpus.GENRES), 200)
    assert {i.genre for i in row} == set(corpus.GENRES) and {i.kind for i in row} == {'book'}
    assert sum(corpus.far(a, b) for a, b in zip(row, row[1:])) > 190
    assert len(corpus.drawn(corpus.drawing(random.Random(0), things, ('book',), ('crime',)), 5)) == 5
    draw, liked = (
        corpus.drawing(random.Random(0), things, ('film',), corpus.GENRES),
        ('crime', 'horror', 'comedy'),
    )
    good, bad = corpus.drawn_sides(draw, liked, 40)
    assert (len(good + bad), {i.genre in liked for i in good}, {i.genre in liked for i in bad}) == (
        40,
        {True},
        {False},
    )
    assert sum(corpus.far(a, b) for side in (good, bad) for a, b in zip(side, side[1:])) > 34


def test_views_follow_the_law_of_the_world():
    rng, steps = random.Random(0), []
    for _ in range(2000):
        state = rng.choice(corpus.GENRES), rng.choice(corpus.MOODS)
        then = corpus.next_state(rng, *state)
        steps.append(
            ((corpus.GENRES.index(then[0]) - corpus.GENRES.index(state[0])) % 6, then[1] == state[1])
        )
    share = [sum(s == k for s, _ in steps) / len(steps) for k in range(6)]
    assert share[:2] == pytest.approx(
        [0.85 * (0.55 + 0.1 / 6) + 0.15 / 6, 0.85 * (0.35 + 0.1 / 6) + 0.15 / 6], abs=0.04
    )
    assert sum(same for _, same in steps) / len(steps) == pytest.approx(
        0.85 * (0.8 + 0.2 / 4) + 0.15 / 4, abs=0.04
    )


def test_another_step_or_seed_gives_other_documents(things):
    some = documents(things, CFG, 3000, 200)
    assert documents(things, CFG, 3000, 50) == some[:50]
    assert (
        documents(things, CFG, 3001, 50)
        != some[:50]
        != documents(things, dataclasses.replace(CFG, seed=1), 3000, 50)
    )
    again = documents(things_of(mini.make_world()), CFG, 3000, 200)
    assert digest([text_of(d) for d in again]) == digest([text_of(d) for d in some])


def test_verdicts_and_names_as_words(things):
    assert [w in corpus.verdict_words() for w in ('loved', 'Loved', 'Keepers', 'red', 'umbrella')] == [
        True
    ] * 4 + [False]
    names = set(corpus.naming_words(things))
    assert set(things.items[0].bare.split()) < names and 'horror' in names
    texts = tokenizer_texts(things, CFG)
    assert tokenizer_texts(things, CFG) == texts
    film, book = things.items[0], things.items[-1]
    for text in (film.title, f' {film.title}', f'"{book.title}'):
        assert '\n'.join([text] * CFG.repeats) in texts


def test_a_person_has_two_words_and_keeps_to_them(sample):
    assert all(len({t for t, w in d if w == VERDICT}) <= 2 for d in sample[::10])
