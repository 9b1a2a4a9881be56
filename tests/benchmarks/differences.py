r"""What two files of one name differ by: numbers to the last bit, pictures pixel by pixel, weights tensor by tensor."""

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file


class Difference(NamedTuple):
    r"""Of a field of a file, or of the whole of it."""

    file: str
    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, self.field) if part)
        return f"{where}: {_short(self.old)} -> {_short(self.new)}"


class Allowed(NamedTuple):
    r"""What may differ: fields of files, as patterns of the shell, and why."""

    file: str
    field: str
    reason: str

    def holds(self, difference: Difference) -> bool:
        return fnmatch(difference.file, self.file) and fnmatch(difference.field, self.field)


def differences(name: str, old: Path, new: Path) -> list[Difference]:
    r"""Of a file `name`, which is `old` and `new`."""
    if not (old.exists() and new.exists()):
        return [Difference(name, "", *("there" if path.exists() else "missing" for path in (old, new)))]
    if old.read_bytes() == new.read_bytes():
        return []
    return [Difference(name, *found) for found in _OF_KIND.get(old.suffix, _of_bytes)(old, new)]


def _of_json(old: Path, new: Path) -> Iterator[tuple[str, Any, Any]]:
    yield from _of_values("", *(json.loads(path.read_text()) for path in (old, new)))


def _of_json_lines(old: Path, new: Path) -> Iterator[tuple[str, Any, Any]]:
    yield from _of_values("", *([json.loads(line) for line in path.read_text().splitlines()] for path in (old, new)))


def _of_values(field: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _of_values(f"{field}.{key}".lstrip("."), old.get(key, "missing"), new.get(key, "missing"))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new)):
            yield from _of_values(f"{field}.{index}".lstrip("."), *pair)
    elif repr(old) != repr(new):  # NaN is NaN here; the shortest digits that tell a float from all others, 1 from 1.0
        yield field, old, new


def _of_text(old: Path, new: Path) -> Iterator[tuple[str, Any, Any]]:
    # A run's own time is no number of it.
    texts = [re.sub(r"\b\d+ (?:seconds|s)\b", "some seconds", path.read_text()).splitlines() for path in (old, new)]
    if len(texts[0]) == len(texts[1]):
        yield from ((f"line {i}", *pair) for i, pair in enumerate(zip(*texts), start=1) if pair[0] != pair[1])
        return
    only = [[line for line in text if line not in other] for text, other in (texts, texts[::-1])]
    yield "lines", *only


def _of_picture(old: Path, new: Path) -> Iterator[tuple[str, Any, Any]]:
    pixels = [np.asarray(Image.open(path)) for path in (old, new)]
    if pixels[0].shape != pixels[1].shape:
        yield "size", *(array.shape for array in pixels)
    elif (pixels[0] != pixels[1]).any():
        different = (pixels[0] != pixels[1]).mean()
        yield "pixels", "", f"{100 * different:.2g} % of the values are others"


def _of_tensors(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*old, *new]):
        pair = old.get(key), new.get(key)
        if any(tensor is None for tensor in pair):
            yield key, *("missing" if tensor is None else "there" for tensor in pair)
        elif pair[0].dtype != pair[1].dtype or pair[0].shape != pair[1].shape or not _same_bits(*pair):
            yield key, *(tensor.flatten()[:1].tolist() for tensor in pair)


def _same_bits(old: torch.Tensor, new: torch.Tensor) -> bool:
    return torch.equal(*(tensor.flatten().view(torch.uint8) for tensor in (old, new)))  # 0 and -0 differ, NaN is NaN


def _of_weights(old: Path, new: Path) -> Iterator[tuple[str, Any, Any]]:
    yield from _of_tensors(load_file(old), load_file(new))


def _of_arrays(old: Path, new: Path) -> Iterator[tuple[str, Any, Any]]:
    yield from _of_tensors(*({key: torch.from_numpy(array) for key, array in np.load(path).items()} for path in (old, new)))


def _of_bytes(old: Path, new: Path) -> Iterator[tuple[str, Any, Any]]:
    yield "bytes", *(f"{path.stat().st_size} of them" for path in (old, new))


_OF_KIND = {
    ".json": _of_json,
    ".jsonl": _of_json_lines,
    ".png": _of_picture,
    ".safetensors": _of_weights,
    ".npz": _of_arrays,
    ".txt": _of_text,
    ".md": _of_text,
    ".csv": _of_text,
}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
