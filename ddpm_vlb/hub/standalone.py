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

PACKAGE = Path(__file__).parents[1]
# This module itself; what it gives to others is written into the file.
HERE = "hub.standalone"
# What models and the demo need; nothing that imports more than a model does.
DEFAULT_MODULES = ("pipeline_vlb_ddpm", "likelihoods.rate_distortion", "data.complexity", "codec.codec")

HEADER = '''\
# ddpm_vlb {version}, its modules {modules} in one file; made by ddpm_vlb, not meant to be edited.
# Licence: Apache-2.0
r"""Exact variational bounds on the likelihood for DDPMs of diffusers, for use where `ddpm_vlb` is not installed."""
'''
COMMUNITY_HEADER = '''\
# Copyright 2026 The ddpm_vlb authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0.
#
# Generated from ddpm_vlb {version}, its modules {modules}.
r"""The variational bound on the negative log-likelihood of images, in bits/dim, under any DDPM checkpoint."""
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
    r"""The source of one file that holds `modules` (by default those of the pipeline and of what the demo computes) and all
    modules of the package they need. Modules are named by their path, with dots.

    Raises:
        ValueError: modules that cannot be joined: two meanings of one name, a module of the package imported whole, under
            another name, or through a folder's `__init__`.
    """
    # Line by line as literals: diffusers takes a line of any text that begins with an import for one.
    template = "\n".join(f"    {line!r}" for line in card_template().splitlines(keepends=True))
    return _joined(modules or DEFAULT_MODULES, HEADER, RESOURCES.format(template=template))


def community_source() -> str:
    r"""The source of a community pipeline for diffusers, `ddpm_likelihood.py`: what `hub/community.py` needs in one file."""
    return _joined(("hub.community",), COMMUNITY_HEADER, "")


def _joined(modules: tuple[str, ...], header: str, resources: str) -> str:
    order: list[str] = []
    late: list[str] = []
    for module in modules:
        _visit(module, order, late)
    while late:  # what functions import when they are called may stand below them
        _visit(late.pop(0), order, late)
    imports: dict[str | None, set[str]] = {}
    bodies, meanings = [], {}
    for module in order:
        body, names = _body(module, imports)
        for name, meaning in names:
            first = meanings.setdefault(name, meaning)
            # Compared where two stand under one name: to write out every definition takes longer than all the rest.
            if first is not meaning and ast.dump(first) != ast.dump(meaning):
                raise ValueError(f"Modules must give each name one meaning to be joined, got two of {name!r} in {module}.")
        bodies.append(f"# ---- ddpm_vlb/{module.replace('.', '/')}.py ----\n\n{body}\n")
    version = next(ast.unparse(node) for node in _parse("__init__").body if "__version__" in _bound_names(node))
    _tree.cache_clear()  # no longer needed, and large
    header = header.format(version=ast.literal_eval(version.partition(" = ")[2]), modules=", ".join(order))
    return "\n\n".join(["\n".join([header, *_import_lines(imports), "", version, resources]), *bodies])


def _body(module: str, imports: dict[str | None, set[str]]) -> tuple[str, list[tuple[str, ast.AST]]]:
    r"""A module without its imports, which go into `imports`, and the names it binds with what they mean."""
    tree = _parse(module)
    lines: list[str | None] = [*_read(module).split("\n")]
    meanings: list[tuple[str, ast.AST]] = []

    def leave_out(node: ast.stmt) -> None:
        lines[node.lineno - 1 : node.end_lineno] = [None] * len(lines[node.lineno - 1 : node.end_lineno])

    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            leave_out(node)
            if not getattr(node, "level", 0):
                imports.setdefault(getattr(node, "module", None), set()).update(map(ast.unparse, node.names))
                meanings += [(alias.asname or alias.name, alias) for alias in node.names]
        elif _is_for_types(node) or "__all__" in _bound_names(node):  # for readers of types; what a module gives to others
            leave_out(node)
        else:
            meanings += [(name, node) for name in _bound_names(node)]
            for inner in _relative_imports(node):
                leave_out(inner)
    return "\n".join(line for line in lines if line is not None).strip(), meanings


def _read(module: str) -> str:
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def _parse(module: str) -> ast.Module:
    return _tree(_read(module))


@cache  # each module is looked at twice
def _tree(source: str) -> ast.Module:
    return ast.parse(source)


def _relative_imports(node: ast.stmt) -> Iterator[ast.ImportFrom]:
    r"""Those of a statement and of the statements in it: no expression, most of a tree, holds one."""
    nodes: list[ast.AST] = [node]
    for inner in nodes:  # which grows
        if isinstance(inner, ast.ImportFrom) and inner.level:
            yield inner
        nodes += [child for child in ast.iter_child_nodes(inner) if not isinstance(child, ast.expr)]


def _visit(module: str, order: list[str], late: list[str]) -> None:
    r"""Put a module into the order, after those it imports; what its functions import is for later."""
    if module in order:
        return
    for node in _parse(module).body:
        if _is_for_types(node):
            continue
        for inner in _relative_imports(node):
            target = _target(inner, module)
            if target not in (None, HERE):
                late.append(target) if inner is not node else _visit(target, order, late)
    order.append(module)


def _target(node: ast.ImportFrom, module: str) -> str | None:
    r"""The module that a relative import in `module` names; `None` for the package, which has the version."""
    folder = module.split(".")[: -node.level]
    target = ".".join([*folder, *([node.module] if node.module else [])])
    whole = not (PACKAGE / f"{target.replace('.', '/')}.py").is_file()
    if not target and [alias.name for alias in node.names] == ["__version__"]:
        return None
    if whole or any(alias.asname for alias in node.names):
        raise ValueError(f"Modules must import single names under their own, got {ast.unparse(node)!r} in {module}.")
    return target


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _import_lines(imports: dict[str | None, set[str]]) -> Iterator[str]:
    yield from (f"import {name}" for name in sorted(imports.get(None, ())))
    for module in sorted(module for module in imports if module is not None):
        yield f"from {module} import {', '.join(sorted(imports[module]))}"


def _bound_names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store))
