r"""How far a computation is, in a terminal, in a notebook, and where there is neither."""

import os
import pty
import re
import sys
import types

import pytest
from tiny import generator, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler, progress
from ddpm_vlb.calibration import calibrate
from ddpm_vlb.cli.common import draw_samples
from ddpm_vlb.evaluation import compare, evaluate
from ddpm_vlb.progress import Lines, progress_bar


@pytest.fixture
def pipe():
    return VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(num_train_timesteps=20, num_pixel_levels=17))


COMPUTATIONS = {
    "evaluate": lambda pipe, images: evaluate(pipe, images, method="full"),
    "sampled": lambda pipe, images: evaluate(pipe, images, target_se=1.0),
    "compare": lambda pipe, images: compare((pipe, pipe), images, target_se=1.0),
    "calibrate": lambda pipe, images: calibrate(pipe, images[:1].expand(16, -1, -1, -1), num_timesteps=4, evaluations=64),
    "evaluate_nll": lambda pipe, images: pipe.evaluate_nll(images, generator=generator()),
    "evaluate_nll, sampled": lambda pipe, images: pipe.evaluate_nll(images, generator=generator(), method="sampled"),
    "samples": lambda pipe, images: draw_samples(pipe, 2, 0, num_inference_steps=2),
}


@pytest.mark.parametrize("compute", COMPUTATIONS.values(), ids=COMPUTATIONS)
def test_in_a_pipe_there_are_lines_now_and_then(pipe, images, compute, monkeypatch, capsys):
    compute(pipe, images)
    assert capsys.readouterr().err == ""  # nothing of what is done in a moment
    monkeypatch.setattr(progress, "SECONDS", 0)
    compute(pipe, images)
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert len(lines) < 100
    assert lines and "\r" not in said and all(re.search(r"\d+%.*\[\d\d:\d\d", line) for line in lines), said


def test_lines_become_rarer(monkeypatch, capsys):
    r"""Every ten seconds at first, and later whenever a tenth more of the time has gone by."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    bar = progress_bar(36_000, desc="work", unit="step", initial=0)
    assert type(bar) is Lines
    bar.set_postfix_str("3.8 bits/dim")
    for second in range(1, 36_001):
        now = float(second)
        bar.update()
        if second == 100:
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 10 and lines[0].startswith("work:   0% 10/36000 [00:10<9:59:50")
            assert lines[0].endswith("3.8 bits/dim]")
    assert 50 < len(capsys.readouterr().err.splitlines()) < 70  # log(360) / log(1.1) = 62


def test_a_terminal_and_a_notebook_have_a_bar(pipe, images, monkeypatch, capsys):
    master, terminal = pty.openpty()
    with open(terminal, "w") as stderr, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stderr)
        evaluate(pipe, images, method="full")
    assert b"\r" in os.read(master, 100_000)
    os.close(master)
    kernel = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(config={"IPKernelApp": {}}))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    evaluate(pipe, images, method="full")
    assert "100%" in capsys.readouterr().err
    evaluate(pipe, images, method="full", quiet=True)
    assert capsys.readouterr().err == ""


def test_loading_has_no_bar_in_a_pipe(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path)
    VLBDDPMPipeline.from_pretrained(tmp_path)
    assert "Loading" not in capsys.readouterr().err
    from diffusers.utils import logging

    assert logging.is_progress_bar_enabled()  # as it was, for all others
