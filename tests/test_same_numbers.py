r"""What compares two commits sees the last bit, and nothing where there is nothing."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parent / "benchmarks"))

from differences import Allowed, Difference, differences
from same_numbers import ALLOWED

NEXT = math.nextafter(0.1, 1)


def write_json(path, value):
    path.write_text(json.dumps(value))


def write_png(path, pixels, **how):
    Image.fromarray(np.array(pixels, dtype=np.uint8)).save(path, **how)


def write_weights(path, values):
    save_file({"w": torch.tensor(values)}, path)


def write_arrays(path, values):
    np.savez(path, images=np.array(values))


@pytest.mark.parametrize(
    ("name", "write", "old", "new", "field"),
    [
        ("report.json", write_json, {"a": [1.0, {"b": 0.1}]}, {"a": [1.0, {"b": NEXT}]}, "a.1.b"),
        ("report.json", write_json, {"a": 1}, {"a": 1.0}, "a"),
        ("report.json", write_json, {"a": [1]}, {"a": [1, 2]}, "a"),
        ("report.json", write_json, {"a": 1, "b": None}, {"a": 1}, "b"),
        ("report.json", write_json, {"a": 0.0}, {"a": -0.0}, "a"),
        ("picture.png", write_png, [[1, 2], [3, 4]], [[1, 2], [3, 5]], "pixels"),
        ("picture.png", write_png, [[1, 2]], [[1], [2]], "size"),
        ("weights.safetensors", write_weights, [0.5, 1.0], [0.5, 1.0 + 2**-23], "w"),
        ("weights.safetensors", write_weights, [0.0], [-0.0], "w"),
        ("images.npz", write_arrays, [1, 2], [1, 3], "images"),
        ("printed.txt", Path.write_text, "one\ntwo 0.25\n", "one\ntwo 0.26\n", "line 2"),
        ("printed.txt", Path.write_text, "one\n", "one\ntwo\n", "lines"),
        ("state.bin", Path.write_bytes, b"a", b"b", "bytes"),
    ],
)
def test_a_change_is_seen(name, write, old, new, field, tmp_path):
    paths = tmp_path / f"old-{name}", tmp_path / f"new-{name}"
    for path, value in zip(paths, (old, new)):
        write(path, value)
    (found,) = differences(name, *paths)
    assert (found.file, found.field) == (name, field) and name in str(found)
    assert differences(name, paths[0], paths[0]) == []
    assert [difference.field for difference in differences(name, paths[0], tmp_path / "missing")] == [""]


def test_what_is_no_change(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text('{"a": 1.0, "b": NaN}')
    new.write_text('{\n  "b": NaN,\n  "a": 1.00\n}')
    assert differences("report.json", old, new) == []
    for path, level in ((tmp_path / "old.png", 0), (tmp_path / "new.png", 9)):
        write_png(path, [[1, 2], [3, 4]] * 50, compress_level=level)
    assert (tmp_path / "old.png").read_bytes() != (tmp_path / "new.png").read_bytes()
    assert differences("picture.png", tmp_path / "old.png", tmp_path / "new.png") == []
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_text("done\n27 seconds\n")
    new.write_text("done\n3 seconds\n")
    assert differences("printed.txt", old, new) == []


def test_what_is_allowed_is_a_field_of_a_file(tmp_path):
    write_json(tmp_path / "old.json", {"config": {"versions": {"torch": "1"}, "seed": 0}})
    write_json(tmp_path / "new.json", {"config": {"versions": {"torch": "2"}, "seed": 1}})
    allowed = Allowed("*.json", "config.versions.*", "versions are what they are")
    found = differences("a/report.json", tmp_path / "old.json", tmp_path / "new.json")
    assert [(difference.field, allowed.holds(difference)) for difference in found] == [
        ("config.versions.torch", True),
        ("config.seed", False),
    ]


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("report.json", "bits_per_dim"),
        ("ode.json", "bits_per_dim"),
        ("trace.json", "standard_error"),
        ("readme.json", "ode.bits_per_dim.0"),
        ("readme.json", "full.printed"),
        ("report.json", "per_image.3"),
        ("report.json", "degrees_of_freedom"),
        ("report.json", "config.num_pilot_evaluations"),
        ("scores.csv", "line 2"),
        ("sample.png", "pixels"),
        ("printed/evaluate.txt", "line 4"),
        ("printed/evaluate.txt", "lines"),
        ("checkpoint-2/model.safetensors", "unet.conv_in.weight"),
        ("metrics.jsonl", "0.loss"),
        ("report.json", ""),
    ],
)
def test_no_number_is_excused(file, field):
    difference = Difference(file, field, 0.1, NEXT)
    assert not any(allowed.holds(difference) for allowed in ALLOWED)
