r"""Every Python block of both READMEs runs, in order, and says what the text says."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.cli import build_parser

ROOT = Path(__file__).parents[1]


def blocks(name):
    # Those that need a Hub run in test_hub.py.
    return re.findall(r"(?<! -->\n)```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "README.ja.md"])
def test_examples_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scheduler = VLBDDPMScheduler(20, 0.003, 0.3, prediction_type="v_prediction", num_pixel_levels=17)
    VLBDDPMPipeline(tiny_unet(), scheduler).save_pretrained("runs/quickstart/pipeline")
    torch.manual_seed(0)
    namespace = {}
    for block in blocks(name):
        exec(compile(block, name, "exec"), namespace)
    assert namespace["likelihood"] == pytest.approx(0.004) and namespace["log_likelihood"] == pytest.approx(-5.5215, abs=5e-5)
    assert namespace["density_at_zero"] == pytest.approx(0.3989, abs=5e-5)
    assert (tmp_path / "gaussian.png").stat().st_size > 1000
    sampled, closed = namespace["sampled"], namespace["closed"]
    assert sampled.var() > closed.var() and abs((sampled - closed).mean()) < 5 * (sampled - closed).std() / 500**0.5
    # The same images with other noise: this network's terms vary by some per cent.
    assert namespace["bits_per_dim"].mean() == pytest.approx(namespace["out"].bits_per_dim.mean().item(), rel=0.2)
    capsys.readouterr()


def test_both_languages_show_the_same_code_and_numbers():
    english, japanese = ((ROOT / name).read_text() for name in ("README.md", "README.ja.md"))

    def without_comments(text):
        return [
            re.sub(r"\s*#.*", "", block) for block in re.findall(r"```(?:python|bash|text)\n(.*?)```", text, flags=re.DOTALL)
        ]

    assert without_comments(english) == without_comments(japanese)


def test_measured_blocks_are_filled():
    """Every block is one that `make readme` writes, and every one that it writes is there."""
    written = {"quickstart", *re.findall(r"\| tee runs/benchmarks/(\w+)\.txt", (ROOT / "Makefile").read_text())}
    assert len(written) > 10
    for name in ("README.md", "README.ja.md"):
        measured = re.findall(r"<!-- measured: (\w+) -->\n```text\n(.*?)\n?```", (ROOT / name).read_text(), flags=re.DOTALL)
        assert sorted(block for block, _ in measured) == sorted(written)
        assert all(len(content.split("\n")) >= 3 for _, content in measured)


def test_commands_are_understood():
    lines = re.findall(
        r"^(?:ddpm-vlb|accelerate launch -m ddpm_vlb) (.*)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE
    )
    assert len(lines) > 12
    for line in lines:
        build_parser().parse_args(shlex.split(line))  # exits where it is not
