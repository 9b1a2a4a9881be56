r"""The table of likelihood methods, a row each; read by `evaluate`, by reports and cards, and by the command line."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .method import Method, Option

# Where nothing says when a sampled evaluation stops.
TARGET_SE = 0.005
MAX_EVALUATIONS = 100_000
MAX_SWEEPS = 100  # of few images at few steps: no more evaluations than so many full sweeps would take


def most_evaluations(num_images: int | None, num_steps: int) -> int:
    r"""Evaluations at which an evaluation stops that nobody told when to, of N images (`None`: nobody knows) at K steps."""
    return MAX_EVALUATIONS if num_images is None else min(MAX_EVALUATIONS, MAX_SWEEPS * num_images * num_steps)


def _of_weights(report: Mapping[str, Any]) -> Iterator[tuple[str, bool, Any]]:
    r"""What must hold of a report of the importance-weighted bound."""
    config, method, size = report["config"], report["method"], report["effective_sample_size"]
    value, vlb, k = report["bits_per_dim"], report["vlb"], config.get("k")
    yield "the method 'iw, k = ' and its k", type(k) is int and method == f"iw, k = {k}", f"{method!r} for k = {k}"
    yield "from one to k trajectories that count", 1 - 1e-9 <= size <= k * (1 + 1e-9), size
    yield (
        "no larger bound than that of each trajectory by itself",
        value <= vlb + 1e-9 * max(1.0, abs(vlb)),
        f"{value} and {vlb}",
    )
    made, wanted = report["num_network_evaluations"], report["num_images"] * k * config["num_steps"]
    yield "evaluated each trajectory of each image at every step", made == wanted, f"{made} for {wanted} evaluations"


def _of_ode(report: Mapping[str, Any]) -> Iterator[tuple[str, bool, Any]]:
    r"""What must hold of a report of the probability-flow ODE."""
    parts, value = [report[name] for name in ("density", "dequantisation", "reconstruction")], report["bits_per_dim"]
    yield "parts that sum to its total", abs(sum(parts) - value) <= 1e-9 * max(1.0, *map(abs, parts)), f"{parts} for {value}"
    yield "a reconstruction that is not negative", parts[2] >= -1e-9, parts[2]
    trace, method = report["config"].get("trace"), report["method"]
    yield (
        "the method 'ode' with the trace that was asked for",
        trace is None or f"{trace} trace" in method,
        f"{method!r} for {trace!r}",
    )
    made, images = report["num_network_evaluations"], report["num_images"]
    yield "evaluated each image along its path", made >= 2 * images, f"{made} network evaluations of {images} images"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="sampled",
            help="an unbiased estimate with its error",
            metric="bits/dim (variational bound)",
            options=(
                Option("target_se", float, f"Monte Carlo error at which to stop (default: {TARGET_SE} bits/dim)", free=True),
                Option(
                    "max_evaluations",
                    int,
                    f"network evaluations at which to stop (default: {MAX_EVALUATIONS:,}, or {MAX_SWEEPS} full sweeps)",
                    free=True,
                ),
                Option(
                    "evaluations_per_image",
                    int,
                    "K evaluations of every image, and a score for each",
                    flag="--per-image",
                    metavar="K",
                    free=True,
                ),
            ),
            if_none_given={"target_se": TARGET_SE, "max_evaluations": MAX_EVALUATIONS},
        ),
        Method(name="full", help="every image at every step", metric="bits/dim (variational bound)"),
        Method(
            name="iw",
            help="importance-weighted",
            metric="bits/dim (importance-weighted bound)",
            options=(Option("k", int, "trajectories of an image", default=16, positive=True),),
            columns={
                "bits_per_dim": "importance-weighted bound",
                "vlb": "the bound of the same trajectories, each by itself",
                "effective_sample_size": "trajectories that count",
            },
            line="the bound of the same trajectories, each by itself: {vlb:.4f}; {effective_sample_size:.1f} of them count",
            rules=_of_weights,
            begin="importance_weighted:importance_weighted",
        ),
        Method(
            name="ode",
            help="of the probability-flow ODE",
            metric="bits/dim (bound of the probability-flow ODE)",
            options=(
                Option("trace", str, "of the divergence (default: exact where D <= 256)", choices=("exact", "hutchinson")),
                Option("num_probes", int, "vectors of signs for the hutchinson trace (default: 1)", positive=True),
                Option("num_draws", int, "of the dequantising noise, for each image", default=1, positive=True),
                Option("rtol", float, "tolerance of the path, relative to the noise", default=1e-4),
                Option("atol", float, "tolerance of the log-density, in nats per dimension", default=1e-4),
            ),
            columns={
                "density": "density",
                "dequantisation": "dequantisation",
                "reconstruction": "reconstruction",
                "bits_per_dim": "bound of the ODE",
            },
            note="the ODE is another model than the chain: neither of their numbers bounds the other",
            rules=_of_ode,
            cost="the solver calls the network a hundred times and more for each image, with --trace exact (the default up to"
            " D = 256) for D = {dimensions} evaluations at a time, with --trace hutchinson for one; try --max-images 2 first",
            takes_half=False,
            min_steps=2,
            begin="probability_flow:ode",
        ),
    )
}


def add_method(method: Method) -> None:
    r"""Add a row, under the method's name: a method that gives each image numbers of its own.

    Raises:
        ValueError: a name that another method has, or that is no word; an option that another method has; a method without
            columns, without `"bits_per_dim"` among them, or that nothing begins.
    """
    if not re.fullmatch(r"\w+", method.name) or method.name in METHODS:
        raise ValueError(f"`method.name` must be a word that no other method has, got {method.name!r}.")
    taken = {option.name for other in METHODS.values() for option in other.options}
    for option in method.options:
        if option.name in taken:
            raise ValueError(f"`method.options` must have names that no other method's have, got {option.name!r}.")
    if method.columns is None or "bits_per_dim" not in method.columns:
        raise ValueError(f"`method.columns` must have 'bits_per_dim' among them, got {method.columns!r}.")
    if method.begin is None:
        raise ValueError("`method.begin` must be given for a method of columns, got None.")
    METHODS[method.name] = method


def method_named(name: str) -> Method:
    r"""The method of a name, or of what a report says its `method` is.

    Raises:
        ValueError: none has it.
    """
    word = re.split(r"\W", name, maxsplit=1)[0] if isinstance(name, str) else None
    if word not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {name!r}.")
    return METHODS[word]


def own_options(method: Method, given: dict[str, Any], arguments: Iterable[str] = ()) -> dict[str, Any]:
    r"""The options of a method, with its defaults where nothing, or `None`, is given.

    Args:
        method: the row.
        given: options by their names.
        arguments: what may be meant besides by a misspelt name.

    Raises:
        ValueError: an option of another method, or of none.
    """
    owners = {option.name: other.name for other in METHODS.values() for option in other.options}
    for name, value in given.items():
        if name not in owners:
            near = difflib.get_close_matches(name, [*owners, *arguments], n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"`{name}` must be an argument or an option of a method, got {value!r} for no such thing.{hint}")
        if owners[name] != method.name and value is not None:
            raise ValueError(
                f"`{name}` must be left out unless method={owners[name]!r}, got {value!r} with method={method.name!r}."
            )
    own = {option.name: given.get(option.name) for option in method.options}
    if all(value is None for value in own.values()):
        own |= method.if_none_given
    return {o.name: o.default if own[o.name] is None else own[o.name] for o in method.options}
