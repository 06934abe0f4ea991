"Sphinx configuration of the book. `make book` fills _build/source (pages.py) and renders it from there."
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import latex2mathml.converter
from docutils import nodes
from fastcore.docments import docments
from sphinx import addnodes

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from pages import FULL_NAMES, HOMES  # noqa: E402

ini = ConfigParser(delimiters=['='])
ini.read(HERE.parent / 'settings.ini', encoding='utf-8')
settings = ini['DEFAULT']

project, author, copyright, release = settings['title'], settings['author'], settings['copyright'], settings['version']
extensions = ['myst_nb', 'sphinx_design', 'sphinx.ext.autodoc', 'sphinx.ext.viewcode', 'sphinx.ext.napoleon']

exclude_patterns = ['results/files/**']

# Notebooks are shown as they are stored. Their links use Jupyter's names for headings.
nb_execution_mode = 'off'
nb_merge_streams = True
nb_code_prompt_show = 'Show the imports'    # nothing else is folded
nb_code_prompt_hide = 'Hide the imports'
nb_render_markdown_format = 'myst'    # tables are shown as Markdown, which plain CommonMark does not know
nb_mime_priority_overrides = [('html', 'image/svg+xml', 5)]
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'deflist', 'attrs_inline']
myst_heading_anchors = 4
myst_heading_slug_func = 'pages.jupyter_slug'
myst_dmath_double_inline = True
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type']

autodoc_member_order = 'bysource'
autodoc_inherit_docstrings = False
add_module_names = False
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True

html_theme = 'sphinx_book_theme'
html_title = settings['title']
html_static_path = ['_static']
html_css_files = ['book.css']
html_math_renderer = 'mathml'
html_show_search_summary = False    # it would read the pages over a network
html_copy_source = False
html_use_index = html_domain_indices = False    # the search is better
html_show_sphinx = False
templates_path = ['_templates']
AT_THE_TOP = ['navbar-logo.html', 'icon-links.html', 'search-button-field.html']
html_sidebars = {
    '*': [*AT_THE_TOP, 'sbt-sidebar-nav.html'],
    '[!_]*/**': [*AT_THE_TOP, 'sidebar-nav-bs.html'],    # the same list, see `sidebar`
    '_modules/**': []}    # pages of source code lead back to the library, not to every notebook
html_context = dict(default_mode='auto')
html_theme_options = dict(
    repository_url=settings['git_url'], repository_branch=settings['branch'], use_repository_button=True,
    launch_buttons=dict(notebook_interface='jupyterlab', binderhub_url='https://mybinder.org', colab_url='https://colab.research.google.com'),
    collapse_navbar=True, show_navbar_depth=1, show_toc_level=2, navbar_persistent=[], home_page_in_toc=True, navigation_with_keys=True)


def mathml(tex: str, display: str) -> str:
    "A formula as MathML, which browsers draw by themselves."
    return latex2mathml.converter.convert(' '.join(tex.split()), display=display)


def inline_math(translator, node):
    translator.body.append(mathml(node.astext(), 'inline'))
    raise nodes.SkipNode


def block_math(translator, node):
    translator.body.append(f'<div class="formula" tabindex="0">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def restructured(line: str) -> str:
    "A line of a docstring, in which code stands between single backticks and nothing else is marked up."
    def marked(m): return '\\' + m[0] if m[1] is None else f'``{m[1]}``' if m[2] is None else f'``{m[1]}``\\ '
    return re.sub(r'`([^`]+)`(?=(\w)?)|[*|`]|(?<=\w):(?=\w)|(?<=\w)_(?!\w)', marked, line)    # `\ ` stands between code and a letter


def docstring(app, what, name, obj, options, lines):
    "Append the comments beside parameters and fields, and a link to the place in the notebook that explains `obj`."
    lines[:] = map(restructured, lines)
    found = {}
    if what in ('class', 'function', 'method'):
        try: found = docments(obj, full=True, returns=True)
        except (TypeError, ValueError, OSError, KeyError, AttributeError, SyntaxError): pass
    notes = {k: restructured(' '.join(v.docment.split())) for k, v in found.items() if v.get('docment')}
    fields = [f':returns: {text}' if key == 'return' else f':param {key}: {text}' for key, text in notes.items()]
    if fields: lines += ['', *fields, '']
    if name in HOMES:
        title, cell = HOMES[name]
        lines += ['', f':ref:`Explained in {title} <cell-{cell}>`', '']


def linked(app, doctree):
    "In a notebook, make the name of a function or class of the library, set as code, a link to its documentation."
    if not app.env.docname.startswith('nbs/'): return
    for literal in list(doctree.findall(nodes.literal)):
        target = FULL_NAMES.get((app.env.docname.removeprefix('nbs/'), literal.astext())) or FULL_NAMES.get(literal.astext())
        if target is None or isinstance(literal.parent, (nodes.reference, nodes.title)): continue
        link = addnodes.pending_xref('', refdomain='py', reftype='obj', reftarget=target, refexplicit=True, refwarn=False)
        literal.replace_self(link)
        link += literal


def launchable(app, pagename, templatename, context, doctree):
    "No button to run elsewhere what is no notebook of the repository."
    if not pagename.startswith('nbs/'):
        context['header_buttons'] = [b for b in context.get('header_buttons', []) if b.get('label') != 'launch-buttons']


HERE_NOW = ' current active"><a class="current reference internal" href="#">'    # how the theme marks the page itself
GROUP = '<ul class="nav bd-sidenav">'    # the pages below a caption; the page's own group begins with "current"
SIDEBARS = {}    # folder -> the list of pages as its pages show it, with none of them marked


def unmarked(html: str, own: str) -> str:
    "The list of pages without the mark of the page `own`."
    html = html.replace(HERE_NOW, f'"><a class="reference internal" href="{own}">')
    return html if '"toctree-l1 current' in html else html.replace(GROUP.replace('nav', 'current nav', 1), GROUP)


def marked(html: str, own: str) -> str:
    "The list of pages with the page `own` marked as the one that is read."
    before, found, after = html.partition(f'"><a class="reference internal" href="{own}">')
    if not found: return html
    if 'toctree-l1 current' not in html: before = GROUP.replace('nav', 'current nav', 1).join(before.rsplit(GROUP, 1))
    return before + HERE_NOW + after


def sidebar(app, pagename, templatename, context, doctree):
    "Make the list of pages at the side once for a folder, not for each of its pages: a quarter of the book's time."
    folder, _, name = pagename.rpartition('/')
    if not folder: return

    def listed():
        def made(): return str(context['generate_toctree_html'](
            kind='sidebar', startdepth=0, show_nav_level=1, maxdepth=4, collapse=True, includehidden=True, titles_only=True))

        if name == 'index': return made()
        if folder not in SIDEBARS: SIDEBARS[folder] = unmarked(made(), f'{name}.html')
        return marked(SIDEBARS[folder], f'{name}.html')

    context['pages_at_the_side'] = listed


def setup(app):
    app.add_html_math_renderer('mathml', inline_renderers=(inline_math, None), block_renderers=(block_math, None))
    app.connect('autodoc-process-docstring', docstring)
    app.connect('doctree-read', linked)
    app.connect('html-page-context', sidebar)
    app.connect('html-page-context', launchable, priority=502)    # after the theme's
    return dict(parallel_read_safe=True, parallel_write_safe=True)
