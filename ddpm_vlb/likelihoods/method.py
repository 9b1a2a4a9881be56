r"""What a likelihood method is: how a data set gets its number, and what a report says of it.

A method is a row of `methods.METHODS`. Two are built into `evaluation`: the sampled estimate of the bound and the full sweep,
whose reports hold the terms of the bound. All others give each image a number of its own, in columns (`Columns`): a new one is
a file that begins it, and a row.

Neither this file nor the table imports torch, so that the command line can read them.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Option:
    r"""An argument of one method: of `evaluate` under its name, and of the command line as a flag.

    Args:
        name: of the argument.
        kind: `int`, `float` or `str`.
        help: for the command line, which adds the default.
        choices: of a `str`.
        flag: of the command line; by default the name's own.
        metavar: as argparse.
        default: where nothing is given.
        positive: whether it must be a positive integer.
        free: whether reports that differ in it can be merged.
    """

    name: str
    kind: type
    help: str
    choices: tuple[str, ...] | None = None
    flag: str | None = None
    metavar: str | None = None
    default: Any = None
    positive: bool = False
    free: bool = False

    @property
    def argument(self) -> str:
        r"""The flag."""
        return self.flag or f"--{self.name.replace('_', '-')}"


class Columns(NamedTuple):
    r"""A method at work: each image gets a number of its own in each column.

    Args:
        name: for the report, `"iw, k = 16"`.
        images_per_batch: that go together.
        cost: network evaluations of an image, `None` where only the run tells.
        score: from levels `(B, C, H, W)`, B seeds and classes `(B,)` or `None`, the columns, of B numbers each, and
            `num_network_evaluations` in all. `"bits_per_dim"` is among the columns.
    """

    name: str
    images_per_batch: int
    cost: int | None
    score: Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Method:
    r"""A likelihood method.

    Args:
        name: of the method, and the first word of `method` in its reports.
        help: what it is, in a few words.
        metric: what its number is, for cards.
        options: its own arguments.
        columns: of the numbers that each image gets, their names and what they are in words, `"bits_per_dim"` among them;
            `None` of a method whose reports hold the terms of the bound.
        if_none_given: options by their names, where none of its own is given.
        merges: whether reports of shards can be put together.
        line: its numbers beside `"bits_per_dim"` in one line, their names in braces; by default each after its words.
        note: a line below its numbers.
        rules: what must hold of its reports, beyond what does of all: a rule in words, whether it holds, and what there is.
        cost: a line before the work of what it costs, where that is more than one expects; `{dimensions}` are the images'.
        takes_half: whether it can score a network in half precision.
        min_steps: of the model, for there to be anything to do.
        begin: from the scorer, the forward process on all T steps, the number of dimensions, the batch size and the options, a
            `Columns`; or where in this folder that function is, `"module:function"`. `None` where `evaluation` knows how.
    """

    name: str
    help: str
    metric: str = "bits/dim"
    options: tuple[Option, ...] = ()
    if_none_given: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] | None = None
    merges: bool = True
    line: str | None = None
    note: str | None = None
    rules: Callable[[Mapping[str, Any]], Iterator[tuple[str, bool, Any]]] | None = None
    cost: str | None = None
    takes_half: bool = True
    min_steps: int = 1
    begin: Callable[..., Columns] | str | None = None

    def check_shard(self, shard: tuple[int, int]) -> None:
        r"""Raise `ValueError` for a shard whose report could not be merged with the others'."""
        if shard[1] > 1 and not self.merges:
            raise ValueError(
                f"`shard` must be left out with method={self.name!r}, whose reports cannot be merged, got {shard}."
            )

    def start(self, scorer, trained, num_dimensions: int, batch_size: int, options: dict[str, Any]) -> Columns:
        r"""The method at work on what `scorer` scores."""
        begin = self.begin
        if isinstance(begin, str):
            module, _, name = begin.partition(":")
            begin = getattr(importlib.import_module(f".{module}", __package__), name)
        if begin is None:
            raise ValueError(f"`method` must be one that gives each image numbers of its own, got {self.name!r}.")
        return begin(scorer, trained, num_dimensions, batch_size, options)
