r"""How far a computation is, in a terminal, in a notebook, and where there is neither."""

import os
import pty
import re
import sys
import time
import types

import pytest
from tiny import generator, tiny_unet

from ddpm_vlb import FunctionModel, VLBDDPMPipeline, VLBDDPMScheduler, progress
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


UNITS = {"seconds": 1, "minutes": 60, "hours": 3600}


class Enough(Exception):
    """Seen enough."""


def slow_pipe(calls):
    """A network that takes a hundredth of a second, and ends the test after so many calls."""
    left, unet = iter(range(calls)), tiny_unet()

    def function(x, t):
        time.sleep(0.01)
        if next(left, None) is None:
            raise Enough
        return unet(x, t).sample

    scheduler = VLBDDPMScheduler(num_train_timesteps=20, num_pixel_levels=17)
    return VLBDDPMPipeline(FunctionModel(function, (1, 8, 8)), scheduler)


@pytest.mark.parametrize(
    "calls, options, aim",
    [
        (90, {"method": "full", "batch_size": 2}, "for the 20,000 evaluations of 1,000 images"),
        (90, {"method": "iw", "k": 2, "batch_size": 2}, "for the 40,000 evaluations of 1,000 images"),
        (200, {"target_se": 0.01, "batch_size": 16}, "to a Monte Carlo error of 0.01 bits/dim"),
        (200, {"target_se": 1e-5, "max_evaluations": 100_000, "batch_size": 16}, "to 100,000 evaluations, where it stops"),
    ],
)
def test_what_it_will_cost_is_said_after_the_first_batches(images, calls, options, aim, capsys):
    many = images.repeat(200, 1, 1, 1)
    with pytest.raises(Enough):
        evaluate(slow_pipe(calls), many, **options)
    said = capsys.readouterr().err
    (line,) = (line for line in said.splitlines() if line.endswith(aim))
    rate, time_left, unit = re.match(r"([\d.e+]+) evaluations a second: about ([\d.]+) (\w+) ", line).groups()
    # At the most a batch in each hundredth of a second; the rest is the machine's.
    assert 0 < float(rate) < 100 * options["batch_size"] and float(time_left) > 0 and unit in line
    if options.get("method") == "full":
        length = {"seconds": 1, "minutes": 60, "hours": 360}[unit]  # of hours a tenth is printed
        seconds = float(time_left) * UNITS[unit]
        # Half of the last digit is the most that either is off; 160 evaluations of 20,000 are done.
        assert abs(seconds - (20_000 - 160) / float(rate)) <= 0.5 * length + 0.01 * seconds
    with pytest.raises(Enough):
        evaluate(slow_pipe(calls), many, quiet=True, **options)
    assert capsys.readouterr().err == ""
