r"""The API's pages, from the docstrings of whatever modules there are: `make docs`.

A page for each module: its derivation, a table of what is in it, and that. Nothing is listed by hand, and nothing is fetched
when a page is read: equations are MathML.
"""

import ast
import re
import shutil
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.ext import autosummary
from sphinx.util import logging

import ddpm_vlb

ROOT = Path(__file__).parents[2]
logger = logging.getLogger(__name__)

project = "ddpm_vlb"
author = "the ddpm_vlb authors"
version = release = ddpm_vlb.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
# Single backticks hold code; what is the name of something described here becomes a link.
default_role = "py:obj"
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 100
autosummary_generate = False
# A name is described where it is defined, not where it is given out once more.
autodoc_default_options = {"members": True, "ignore-module-all": True, "member-order": "bysource", "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# The first sentence of a summary does not end here.
autosummary.WELL_KNOWN_ABBREVIATIONS += ("eq.", "eqs.")

html_theme = "alabaster"
html_theme_options = {"page_width": "1240px", "sidebar_width": "260px", "body_max_width": "940px", "show_powered_by": False}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_math_renderer = "mathml"


def write_pages(app, config):
    r"""A source page for each module of the package, in `api/`."""
    folder = Path(app.srcdir) / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    paths = [path for path in sorted((ROOT / "ddpm_vlb").rglob("*.py")) if path.name != "__main__.py"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    trees = {name: ast.parse(path.read_text()) for name, path in zip(names, paths)}
    for name, tree in trees.items():
        definitions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        public = [node.name for node in definitions if node.name[0] != "_" and ast.get_docstring(node)]
        children = [child for child in names if child.rpartition(".")[0] == name]
        lines = [name, "=" * len(name), "", f".. automodule:: {name}", ""]
        # What a directive contains stands below the docstring and above the members.
        if children:
            heads = [" ".join(ast.get_docstring(trees[child]).partition("\n\n")[0].split()) for child in children]
            lines += [f"   - :py:mod:`~{child}`: {head}" for child, head in zip(children, heads)]
            lines += ["", "   .. toctree::", "      :hidden:", ""]
            lines += [f"      {child.rpartition('.')[2]} <{child}>" for child in children] + [""]
        if public:
            lines += ["   .. autosummary::", "", *(f"      {member}" for member in public)]
        (folder / f"{name}.rst").write_text("\n".join(lines) + "\n")


def skip(app, what, name, value, skipped, options):
    r"""The fields of named tuples say nothing of themselves; the class does."""
    return True if type(value).__name__ == "_tuplegetter" else None


def plain_links(app, what, name, value, options, lines):
    r"""diffusers' way to write a link, a name in backticks and brackets, without the brackets."""
    lines[:] = [re.sub(r"\[`~?([\w.]+)`\]", r"`\1`", line) for line in lines]


def visit_math(writer, node):
    r"""Equations as MathML, which browsers show by themselves."""
    block = isinstance(node, nodes.math_block)
    latex = re.sub(r"\\log\s*(?=[\\\w])", r"\\log\\,", node.astext())
    if "&" in latex:
        latex = rf"\begin{{align*}}{latex}\end{{align*}}"
    equation = convert(latex, display="block" if block else "inline")
    if "\\" in equation:
        logger.warning("not understood as an equation: %s", latex, location=node)
    writer.body.append(equation)
    raise nodes.SkipNode


def setup(app):
    app.connect("config-inited", write_pages)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", plain_links, priority=400)  # before napoleon
    app.add_html_math_renderer("mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math, None))
