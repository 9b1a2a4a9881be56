r"""The package as one file, for those who do not have it installed: `pipeline.py` of a Hub repository, or beside a demo.

diffusers loads remote code from a single file (relative imports are cached across repositories, and nested ones fail). That
file is made here from the modules of the package and from nothing else: their imports of each other fall away, the others are
gathered at the top, and what is left stands one module after the other, the lowest first. Two modules that give one name
two meanings could not be joined; they are refused.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
# This module itself; what it gives to others is written into the file.
HERE = Path(__file__).stem
# What models and the demo need; nothing that imports more than a model does.
DEFAULT_MODULES = ("pipeline_vlb_ddpm", "rate_distortion")

HEADER = '''\
# ddpm_vlb {version}, its modules {modules} in one file; made by ddpm_vlb, not meant to be edited.
# Licence: Apache-2.0
r"""Exact variational bounds on the likelihood for DDPMs of diffusers, for use where `ddpm_vlb` is not installed."""
'''
RESOURCES = '''
# ---- what the package reads from its own files ----

CARD_TEMPLATE = (
{template}
)


def card_template() -> str:
    r"""The Jinja template of a model card."""
    return CARD_TEMPLATE


def standalone_source() -> str:
    r"""This file."""
    with open(__file__, encoding="utf-8") as file:
        return file.read()
'''


@cache
def card_template() -> str:
    r"""The Jinja template of a model card."""
    # In an installed package, and in a clone.
    for folder in (PACKAGE, PACKAGE.parent):
        if (folder / "model_cards" / "template.md").is_file():
            return (folder / "model_cards" / "template.md").read_text(encoding="utf-8")
    raise FileNotFoundError("`ddpm_vlb` was installed without model_cards/template.md.")


@cache
def standalone_source(*modules: str) -> str:
    r"""The source of one file that holds `modules` (by default those of the pipeline and of the rate-distortion curve) and all
    modules of the package they need.

    Raises:
        ValueError: modules that cannot be joined: two meanings of one name, a module of the package imported whole, under
            another name, or inside of a function.
    """
    order: list[str] = []
    for module in modules or DEFAULT_MODULES:
        _visit(module, order)
    imports: dict[str | None, set[str]] = {}
    bodies, meanings = [], {}
    for module in order:
        tree, lines = _parse(module), _read(module).split("\n")
        inside = {id(node) for statement in tree.body for node in ast.walk(statement)} - {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level and id(node) in inside:
                raise ValueError(f"Modules must import each other at the top to be joined, got line {node.lineno} of {module}.")
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for line in range(node.lineno - 1, node.end_lineno):
                    lines[line] = None
                names = []
                if not getattr(node, "level", 0):
                    imports.setdefault(getattr(node, "module", None), set()).update(map(ast.unparse, node.names))
                    names = [(alias.asname or alias.name, ast.dump(alias)) for alias in node.names]
            elif "__all__" in _bound_names(node):  # what a module gives to others; here there are none
                lines[node.lineno - 1 : node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
                names = []
            else:
                names = [(name, ast.dump(node)) for name in _bound_names(node)]
            for name, meaning in names:
                if meanings.setdefault(name, meaning) != meaning:
                    raise ValueError(f"Modules must give each name one meaning to be joined, got two of {name!r} in {module}.")
        body = "\n".join(line for line in lines if line is not None).strip()
        bodies.append(f"# ---- ddpm_vlb/{module}.py ----\n\n{body}\n")
    version = next(ast.unparse(node) for node in _parse("__init__").body if "__version__" in _bound_names(node))
    header = HEADER.format(version=ast.literal_eval(version.partition(" = ")[2]), modules=", ".join(order))
    # Line by line as literals: diffusers takes a line of any text that begins with an import for one.
    template = "\n".join(f"    {line!r}" for line in card_template().splitlines(keepends=True))
    return "\n\n".join(
        ["\n".join([header, *_import_lines(imports), "", version, RESOURCES.format(template=template)]), *bodies]
    )


def _read(module: str) -> str:
    return (PACKAGE / f"{module}.py").read_text(encoding="utf-8")


def _parse(module: str) -> ast.Module:
    return ast.parse(_read(module))


def _visit(module: str, order: list[str]) -> None:
    if module in order:
        return
    for node in _parse(module).body:
        if not (isinstance(node, ast.ImportFrom) and node.level):
            continue
        whole = node.module is None and [alias.name for alias in node.names] != ["__version__"]
        if whole or any(alias.asname for alias in node.names):
            raise ValueError(f"Modules must import single names under their own, got {ast.unparse(node)!r} in {module}.")
        if node.module not in (None, HERE):
            _visit(node.module, order)
    order.append(module)


def _import_lines(imports: dict[str | None, set[str]]) -> Iterator[str]:
    yield from (f"import {name}" for name in sorted(imports.get(None, ())))
    for module in sorted(imports.keys() - {None}):
        yield f"from {module} import {', '.join(sorted(imports[module]))}"


def _bound_names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store))


if __name__ == "__main__":
    import sys

    # python -m ddpm_vlb.standalone PATH
    Path(sys.argv[1]).write_text(standalone_source(), encoding="utf-8")
