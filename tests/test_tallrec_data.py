"TALLRec's prompts taken apart and put together, and the yes-or-no samples: made-up quirks, and the released files when they are here."

import dataclasses
import json
import random
import time

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from llmrec.data.tallrec import (
    load_tallrec_json,
    load_tallrec_parsed,
    parse_input,
    parse_phrase,
    phrase,
    read_list,
    tallrec_record,
)
from llmrec.data.yesno import (
    PROTOCOLS,
    YESNO_DATASETS,
    describe_yesno,
    few_shot,
    load_yesno,
    seen_targets,
    yesno_checksum,
)
from llmrec.data.yesno_books import SEEN_USERS, BookSamplesConfig, book_samples, book_splits, seen_users
from llmrec.data.yesno_form import arrays
from llmrec.paths import ITEM, RATING, TIMESTAMP, USER, LlmrecError

# -- prompts ----------------------------------------------------------------------------------------------------------

TITLES = [
    'Owl, The (1987)',
    'Say "Ah"',
    '"Ah", Said Doc',
    'Line\nbreak',
    'Tar, "Oil" and Feather',
    'Yes. No.',
    '',
    '"',
    'Ça (1990)',
    'A: "B", "C"',
    'User Preference: ',
    'will the user like?',
]
AUTHORS = ['Ada Moor', 'Moor, Ada', 'O. "Quill" Ravn, Jr.', '', 'Bo', 'K; L']


@pytest.mark.parametrize('thing', ['movie', 'book'])
def test_whatever_the_titles_a_prompt_taken_apart_renders_to_the_same_text(thing):
    rng, certain = random.Random(0), 0
    for _ in range(2000):
        items = [
            phrase(rng.choice(TITLES), rng.choice(AUTHORS) if thing == 'book' else None)
            for _ in range(rng.randint(1, 11))
        ]
        labels = [rng.randint(0, 1) for _ in items]
        record = tallrec_record(items[:-1], labels[:-1], items[-1], labels[-1], thing)
        liked, disliked, target = parse_input(record['input'], thing)
        assert target == items[-1]
        again = tallrec_record(
            liked + disliked, [1] * len(liked) + [0] * len(disliked), target, labels[-1], thing
        )
        assert again == record
        for want, got in ((1, liked), (0, disliked)):
            true = [p for p, y in zip(items[:-1], labels[:-1]) if y == want]
            found, ways = read_list(', '.join(true))
            assert found == got and ways >= 1
            if ways == 1 and len(found) == len(true):
                certain += 1
                assert found == true
    assert certain > 1000


@pytest.mark.parametrize('title', TITLES)
@pytest.mark.parametrize('author', [None, *AUTHORS])
def test_phrases_are_taken_apart_exactly(title, author):
    assert parse_phrase(phrase(title, author)) == (title, author)


def test_a_list_that_can_be_read_twice_says_so():
    assert read_list('"A" written by X, "B, "C" D" written by Y') == (
        ['"A" written by X', '"B, "C" D" written by Y'],
        2,
    )


@pytest.mark.parametrize(
    'old, new',
    [
        ('User Preference:', 'User preference:'),
        ('\nUser Un', ' User Un'),
        ('"Pine', 'Pine'),
        ('Lind"?', 'Lind?'),
        ('book ""', 'book "'),
        ('target book', 'target movie'),
    ],
)
def test_a_malformed_prompt_is_named_by_file_and_record(tmp_path, old, new):
    good = tallrec_record(
        [phrase('Pine', 'Bo'), phrase('Salt', 'Ada')], [1, 0], phrase('Elm', 'Lind'), 1, 'book'
    )
    bad = {**good, 'input': good['input'].replace(old, new)}
    assert bad != good
    (tmp_path / 'valid.json').write_text(json.dumps([good, good, bad]))
    with pytest.raises(LlmrecError, match=r'valid.json, record 3: .*expected the wording') as e:
        load_tallrec_parsed('book', 'valid', tmp_path)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'domain, split, rows, no_likes, no_dislikes',
    [
        pytest.param(*case, marks=pytest.mark.real_data(f'tallrec-{case[0]}'))
        for case in [
            ('movie', 'train', 8000, None, None),
            ('movie', 'valid', 1000, 1, 128),
            ('movie', 'test', 1000, 60, 62),
            ('book', 'valid', 2427, 289, 175),
            ('book', 'test', 2427, 298, 155),
        ]
    ],
)
def test_every_released_row_is_taken_apart_and_put_together(domain, split, rows, no_likes, no_dislikes):
    parsed = load_tallrec_parsed(domain, split)
    again = [
        tallrec_record([*a, *b], [1] * len(a) + [0] * len(b), t, y, domain)
        for a, b, t, y in parsed.iter_rows()
    ]
    assert (
        again == load_tallrec_json(domain, split).select('instruction', 'input', 'output').to_dicts()
        and len(again) == rows
    )
    if no_likes is not None:
        assert [(parsed[c].list.len() == 0).sum() for c in ('liked', 'disliked')] == [no_likes, no_dislikes]
    assert {read_list(', '.join(items))[1] for c in ('liked', 'disliked') for items in parsed[c]} == {1}


# -- samples ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ratings():
    rng = np.random.default_rng(3)
    return pl.DataFrame(
        {
            USER: [f'u{u}' for u in range(60) for _ in range(u % 15)],
            ITEM: [f'b{(7 * u + k) % 50}' for u in range(60) for k in range(u % 15)],
            RATING: rng.integers(0, 11, sum(u % 15 for u in range(60))).astype(float),
        }
    )


def test_book_samples_are_one_a_user_with_the_right_labels(ratings):
    samples = book_samples(ratings, BookSamplesConfig())
    rated = {}
    for u, i, r in ratings.iter_rows():
        rated.setdefault(u, {})[i] = r
    assert samples[USER].to_list() == [u for u in rated if len(rated[u]) > 3]
    for u, history, labels, item, label, _ in samples.iter_rows():
        assert (
            len(history) == min(10, len(rated[u]) - 1)
            and len(dict.fromkeys([*history, item])) == len(history) + 1
        )
        assert [*labels, label] == [int(rated[u][i] > 5) for i in (*history, item)]


def test_permuted_labels_keep_the_number_of_likes_and_lose_the_pairing(ratings):
    few = ratings.filter(pl.col(ITEM).len().over(USER) <= 11)
    plain, mixed = (book_samples(few, BookSamplesConfig(labels=how)) for how in ('as rated', 'permuted'))
    total = lambda s: (s['history_labels'].list.sum() + s['label']).to_list()
    assert total(plain) == total(mixed)
    assert plain['history_labels'].to_list() != mixed['history_labels'].to_list()


def test_book_splits_share_no_user_and_repeat(ratings):
    a, b, other = (book_splits(ratings, BookSamplesConfig(seed=s)) for s in (1, 1, 2))
    users = pl.concat(a.values())[USER]
    assert (
        users.n_unique() == len(users)
        and all(a[s].equals(b[s]) for s in a)
        and not a['train'].equals(other['train'])
    )


@pytest.mark.parametrize('name', ['films', 'books'])
@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_the_miniature_domains_are_consistent(name, protocol):
    data = load_yesno(name, protocol)
    frames = list(data.splits.values())
    assert (
        list(data.splits) == ['train', 'valid', 'test']
        and data.thing == ('movie' if name == 'films' else 'book')
        and data.protocol == protocol
    )
    assert len(data.titles) == len(data.authors) == len(data.phrases) == len(data.texts) == data.n_items + 1
    assert data.titles[0] == data.phrases[0] == data.texts[0] == '' and data.authors[0] is None
    assert all(
        parse_phrase(p) == (t, a) for p, t, a in zip(data.phrases[1:], data.titles[1:], data.authors[1:])
    )
    assert all((f['history'].list.len() == f['history_labels'].list.len()).all() for f in frames)
    if name == 'books':
        users = pl.concat(frames)[USER]
        assert users.n_unique() == len(users) and all(f[TIMESTAMP].null_count() == f.height for f in frames)
        assert any('&amp;' in t for t in data.titles) == (protocol == 'as_published')
    elif protocol == 'corrected':
        assert all(a[TIMESTAMP].max() <= b[TIMESTAMP].min() for a, b in zip(frames, frames[1:]))
    assert data.checksum == yesno_checksum(name, protocol)


def test_the_miniature_leaves_rows_enough_to_test_on():
    "TALLRec's films keep the last 10,000 windows, its books one row a reader."
    rows = {name: [f.height for f in load_yesno(name).splits.values()] for name in ('films', 'books')}
    assert rows == {'films': [8000, 1000, 1000], 'books': [800, 100, 100]}


def test_checksums_of_real_data_need_no_data_and_tell_protocols_apart(tmp_path, monkeypatch):
    monkeypatch.setenv('LLMREC_DATA', str(tmp_path / 'none'))
    monkeypatch.setenv('LLMREC_OUT', str(tmp_path))
    sums = [yesno_checksum(n, p) for n in YESNO_DATASETS for p in PROTOCOLS]
    assert len(dict.fromkeys(sums)) == len(sums) == 8 and all(len(s) == 12 for s in sums)


@pytest.mark.parametrize('name, missing', [('movie', 'u.data'), ('book', 'valid.json')])
def test_missing_files_are_one_sentence(tmp_path, name, missing):
    with pytest.raises(LlmrecError, match=f'holds no {missing}'):
        load_yesno(name, folder=str(tmp_path))


def test_an_unknown_name_or_protocol_is_offered_the_known_ones():
    with pytest.raises(LlmrecError, match="Did you mean 'movie'"):
        load_yesno('movies')
    with pytest.raises(LlmrecError, match='as_published, corrected'):
        load_yesno('films', 'fixed')


@pytest.mark.parametrize('text', ['{', '[]', '{"valid": [1]}', '{"valid": ["x"], "test": []}'])
def test_a_malformed_list_of_users_is_named(tmp_path, text):
    (tmp_path / SEEN_USERS).write_text(text)
    with pytest.raises(LlmrecError, match=SEEN_USERS):
        seen_users(tmp_path)


# -- few shots and arrays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(5))
def test_few_shots_are_the_first_rows_of_numpys_permutation_and_nested(seed):
    draws = [few_shot(8000, k, seed) for k in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    for a, b in zip(draws, draws[1:]):
        assert np.isin(a, b).all() and len(dict.fromkeys(b.tolist())) == len(b)
    np.testing.assert_array_equal(
        np.sort(draws[-1]), np.sort(np.random.default_rng(seed).permutation(8000)[:256])
    )


@pytest.mark.parametrize('pad', ['last', 'zero'])
def test_arrays_equal_a_plain_loop(pad):
    samples = load_yesno('books').splits['train']
    made = arrays(samples, pad, width=7)
    for n, row in enumerate(samples.iter_rows(named=True)):
        history, labels = row['history'][-7:], row['history_labels'][-7:]
        fill = 7 - len(history)
        assert made.history[n].tolist() == history + [history[-1] if pad == 'last' else 0] * fill
        assert made.history_labels[n].tolist() == labels + [labels[-1] if pad == 'last' else 0] * fill
        assert made.lengths[n] == (7 if pad == 'last' else len(history))
        assert (made.users[n], made.items[n], made.labels[n]) == (row[USER], row[ITEM], row['label'])
    part = made.take(few_shot(len(made), 16, 0))
    assert len(part) == 16 and all(len(getattr(part, f.name)) == 16 for f in dataclasses.fields(part))


# -- the real data ----------------------------------------------------------------------------------------------------


def like_rate_auc(data, split='test'):
    frame = data.splits[split]
    return roc_auc_score(frame['label'], frame['history_labels'].list.mean())


@pytest.mark.parametrize(
    'name, valid, test',
    [
        pytest.param('movie', 0.689, 0.726, marks=pytest.mark.real_data('ml-100k-classic')),
        pytest.param('book', 0.687, 0.696, marks=pytest.mark.real_data('bookcrossing', 'tallrec-book')),
    ],
)
def test_the_like_rate_of_the_history_on_the_released_files(name, valid, test):
    data = load_yesno(name)
    assert (round(like_rate_auc(data, 'valid'), 3), round(like_rate_auc(data), 3)) == (valid, test)


@pytest.mark.parametrize(
    'name',
    [
        pytest.param('movie', marks=pytest.mark.real_data('ml-100k-classic', 'tallrec-movie')),
        pytest.param('book', marks=pytest.mark.real_data('bookcrossing', 'tallrec-book')),
    ],
)
def test_published_samples_render_to_the_released_prompts(name):
    data = load_yesno(name)
    for split in ('train', 'valid', 'test') if name == 'movie' else ('valid', 'test'):
        ours = [
            tallrec_record(
                [data.phrases[i] for i in s['history']],
                s['history_labels'],
                data.phrases[s[ITEM]],
                s['label'],
                name,
            )
            for s in data.splits[split].iter_rows(named=True)
        ]
        assert ours == load_tallrec_json(name, split).select('instruction', 'input', 'output').to_dicts()


@pytest.mark.real_data('ml-100k-classic')
def test_real_film_splits():
    published, corrected = (load_yesno('movie', p) for p in PROTOCOLS)
    assert published.n_items == 1682 and [s.height for s in published.splits.values()] == [8000, 1000, 1000]
    assert describe_yesno(published)['users'].to_list() == [80, 14, 16] and describe_yesno(corrected)[
        'users'
    ].to_list() == [151, 25, 34]
    assert corrected.splits['train'][TIMESTAMP].max() <= corrected.splits['test'][TIMESTAMP].min()
    # few targets of the test rows are targets of a draw: about 4, 9 and 30 % at K = 16, 64, 256
    for k, low, high in ((16, 0.005, 0.06), (64, 0.05, 0.13), (256, 0.25, 0.4)):
        assert low < np.mean([seen_targets(published, k, s).mean() for s in range(5)]) < high


@pytest.mark.real_data('bookcrossing', 'tallrec-book')
def test_real_book_splits():
    published, corrected = (load_yesno('book', p) for p in PROTOCOLS)
    assert 'rebuilt' in published.note and corrected.note
    assert [published.splits[s].height for s in ('valid', 'test')] == [
        2427,
        2427,
    ] and 1500 < published.splits['train'].height < 2448
    assert not [u for u in seen_users() if u in published.users]
    shown = {
        frozenset([*h, i])
        for s in ('valid', 'test')
        for h, i in published.splits[s].select('history', ITEM).iter_rows()
    }
    assert not [
        1
        for h, i in published.splits['train'].select('history', ITEM).iter_rows()
        if frozenset([*h, i]) in shown
    ]
    users = pl.concat(corrected.splits.values())[USER]
    assert users.n_unique() == len(users)
    assert published.splits['train']['label'].mean() < 0.5 < 0.8 < corrected.splits['train']['label'].mean()


@pytest.mark.real_data('ml-100k-classic', 'bookcrossing', 'tallrec-book')
@pytest.mark.parametrize('name', ['movie', 'book'])
@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_loading_is_quick(name, protocol):
    start = time.perf_counter()
    load_yesno.__wrapped__(name, protocol)
    assert time.perf_counter() - start < 10
