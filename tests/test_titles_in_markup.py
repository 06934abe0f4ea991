"Titles stand in tables and figures as they are written: Markdown, TeX and matplotlib are given text, not markup."

import html
import re

import matplotlib.pyplot as plt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from llmrec.paths import output_to
from llmrec.runs.artefacts import _escape_tex, save_figure, save_table, table_md, table_tex

TITLES = [
    'Cash $5 and $9 more',
    '<DVD> Cats',
    '_b_ `c` ~~d~~',
    '__init__',
    'snake_case_name',
    'a | b',
    'a \\| b',
    '*M*A*S*H*',
    '<base href=https://evil.example/>',
    '<plaintext>',
    '<svg><rect onclick=alert(2) /></svg>',
    '<!-- gone',
    '<?php',
    'AT&amp;T &#60;b&#62; R&B',
    '[x](javascript:alert(1))',
    '![x](y)',
    '[x][y]',
    '[^1]: note',
    '[x]: /y',
    '\\',
    'a\\',
    '\\$5$',
    '$\\foo$',
    '{{ config }}',
    '{ref}`x`',
    '~ a ~b~',
    '# one',
    '- two',
    '1. three',
    '> four',
    '```',
    '---',
    '===',
    '<3',
    'a < b > c',
    '$$x$$',
    'x^2_i',
    'Été ☂',
    '"quoted"',
    "'",
    '\u200b|',
]
READ = (
    MarkdownIt('commonmark')
    .enable('table')
    .enable('strikethrough')
    .use(dollarmath_plugin, allow_space=True, double_inline=True)
)


def cells(markdown):
    "The texts of a table's cells as a reader sees them; other tags than those of a table stay in the text."
    found = re.findall(r'<(?:th|td)(?: [^>]*)?>(.*?)</(?:th|td)>', READ.render(markdown), re.S)
    return [' '.join(html.unescape(x).split()) for x in found]


def as_seen(text):
    return ' '.join(text.replace('\0', '').split())


@pytest.mark.parametrize('title', TITLES)
def test_a_markdown_table_shows_the_title(title):
    assert cells(table_md(pl.DataFrame({'title': [title, 'x']}), 'none')) == ['title', as_seen(title), 'x']
    assert cells(table_md(pl.DataFrame({title: ['x']}), title)) == [as_seen(title), 'x']


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.sampled_from('ab1 \\|*_`$~<>&#;[](){}!/:^-"\''), max_size=12))
def test_any_text_is_shown(title):
    seen = cells(table_md(pl.DataFrame({'t': [f'a{title}b']}), ''))
    assert seen == ['t', as_seen(f'a{title}b')]


def test_what_cannot_be_mistaken_is_not_escaped():
    text = table_md(pl.DataFrame({'a': ['ml_100k, a < b, [0.1, 0.2], R&B, (x)']}), '')
    assert '| ml_100k, a < b, [0.1, 0.2], R&B, (x) |' in text


def test_the_caption_of_a_figure_is_text(tmp_path):
    with output_to(tmp_path):
        paths = save_figure(plt.figure(), 'beyond', 'x', 'Costs $5 to $9, <DVD>', 'miniature')
        assert paths['caption'].read_text() == 'Costs \\$5 to \\$9, \\<DVD>\n'
        md = save_table(pl.DataFrame({'t': ['<DVD>']}), 'beyond', 'y', '_c_', 'miniature')['md'].read_text()
    assert '| \\<DVD> |' in md and md.endswith('\\_c\\_\n')


@pytest.mark.parametrize('title', TITLES)
def test_tex_has_no_bare_special_character(title):
    text = _escape_tex(title)
    plain = re.sub(
        r'\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|textasciigrave)\{\}',
        '',
        text,
    )
    plain = re.sub(r'\\[&%$#_{}]', '', plain)
    assert not set(re.sub(r'^\{[\[*]\}', '', plain)) & set('\\&%$#_{}~^<>|`'), text
    assert not text.startswith(('[', '*')), 'the end of the row above would take it for its option'
    assert r'\\[' not in table_tex(pl.DataFrame({'t': [title, title]}), title, 'l').replace('\n', '')


@pytest.mark.parametrize('title', [*TITLES, '$\\frac{1}$', '$a', '$$', 'a\nb'])
def test_a_figure_shows_the_title(title, tmp_path, recwarn):
    fig, (ax, log) = plt.subplots(2)
    ax.set_title(title)
    ax.set_yticks([0, 1], [title, 'x'])
    ax.plot([0, 1], label=title)
    ax.legend()
    ax.annotate(title, (0, 0))
    log.plot([1, 1e4])
    log.set_yscale('log')
    with output_to(tmp_path):
        svg = save_figure(fig, 'beyond', 'x', title, 'miniature')['svg'].read_text()
    assert (
        '-- $' not in svg and svg.count('mathdefault') == 0 or '$\\mathdefault' in svg
    )  # those of the axis are formulas
