r"""Values that are given as text: YAML files of flags, and mappings on the command line."""

import json
import math
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

# No configuration comes near; beyond, reading itself would take its time.
MAX_CHARACTERS, MAX_DEPTH = 1_000_000, 20


def parse_mapping(text: str) -> dict[str, Any]:
    r"""A mapping of names to values, of YAML or JSON.

    Raises:
        ValueError: anything else, and what would grow when it is read: aliases, and nesting without end.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"must have at most {MAX_CHARACTERS} characters, got {len(text)}")
    try:
        value = json.loads(text)  # YAML would take JSON's 1e-06 for a word
    except (ValueError, RecursionError):
        try:
            _check_events(text)
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, OverflowError) as error:  # of a number or a date, too
            reason = " ".join(str(error).split())
            raise ValueError(f"must be YAML or JSON, got {reprlib.repr(text)}: {reason[:300]}") from error
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"must be a mapping of names to values, got {reprlib.repr(text)}")
    return value


def _check_events(text: str) -> None:
    # The parser hands out one event after the other, and builds nothing yet.
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"aliases are not taken, got *{event.anchor[:50]}")
        depth += isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent))
        depth -= isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent))
        if depth > MAX_DEPTH:
            raise ValueError(f"at most {MAX_DEPTH} levels of nesting are taken, got more")


def read_flags(path: Path, names: Sequence[str], switches: Sequence[str]) -> list[str]:
    r"""A YAML file as a command line, so that it is checked like one.

    Args:
        path: of the file.
        names: of all flags, without dashes.
        switches: those that are on or off.

    Raises:
        ValueError: a file that cannot be read, a name that is no flag's, a switch that is neither true nor false.
    """
    try:
        with path.open(encoding="utf-8") as file:
            config = parse_mapping(file.read(MAX_CHARACTERS + 1))
    except (OSError, ValueError) as error:
        raise ValueError(f"`config` must be a readable YAML file of flags, got {str(path)!r}: {error}") from error
    flags = []
    for name, value in config.items():
        if name not in names:
            raise ValueError(f"`config` must hold flags of this script only, got {reprlib.repr(name)} in {str(path)!r}.")
        if name in switches:
            if not isinstance(value, bool):
                raise ValueError(f"`{name}` must be true or false in {str(path)!r}, got {reprlib.repr(value)}.")
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif name == "prompt" and isinstance(value, list):
            flags += [f"--{name}={one}" for one in value]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def parse_step_rules(text: str) -> str:
    r"""diffusers' rules of a piecewise constant learning rate, as they are.

    `"1:1000,0.1:2000,0.01"` is the learning rate for 1000 updates, a tenth of it up to update 2000, a hundredth from there.

    Raises:
        ValueError: anything else.
    """
    *parts, last = text.split(",")
    try:
        steps = [int(step) for _, step in (part.split(":") for part in parts)]
        factors = [float(part.split(":")[0]) for part in parts] + [float(last)]
    except ValueError:
        steps, factors = [], []
    if not factors or steps != sorted(set(steps)) or min(steps, default=1) < 1 or not all(0 <= x < math.inf for x in factors):
        raise ValueError(f"must be of the form 1:1000,0.1:2000,0.01, its steps ascending, got {reprlib.repr(text)}")
    return text
