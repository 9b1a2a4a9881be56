r"""How results are shown: short, with the numbers that they hold, and as data frames."""

import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from tiny import generator, quiet, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler, importance_weighted_nll, ode_nll
from ddpm_vlb.calibration import calibrate
from ddpm_vlb.evaluation import evaluate
from ddpm_vlb.likelihoods.rate_distortion import rate_distortion
from ddpm_vlb.pipeline_vlb_ddpm import VLBOutput


@pytest.fixture(scope="module")
def shown():
    pipe = quiet(VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(num_train_timesteps=20, num_pixel_levels=17)))
    images = torch.randint(17, (5, 1, 8, 8), generator=generator()).to(torch.uint8)
    sixteen = images[:1].expand(16, -1, -1, -1)
    return {
        "full": pipe.evaluate_nll(images, generator=generator()),
        "one": pipe.evaluate_nll(images[:1], generator=generator()),
        "sampled": pipe.evaluate_nll(images, generator=generator(), method="sampled"),
        "iw": importance_weighted_nll(pipe, images, k=2),
        "ode": ode_nll(pipe, images[:2], trace="hutchinson", rtol=0.1, atol=0.1),
        "curve": rate_distortion(pipe, images),
        "calibration": calibrate(pipe, sixteen, num_timesteps=4, evaluations=64, quiet=True),
    }


class Cells(HTMLParser):
    r"""The texts of a table's cells."""

    def __init__(self, page):
        super().__init__()
        self.texts = []
        self.feed(page)

    def handle_data(self, data):
        self.texts.append(data)


def test_results_are_shown_short_with_their_own_numbers(shown):
    for name, result in shown.items():
        line, lines, page = repr(result), result.summary(), result._repr_html_()
        assert line == str(result) and "\n" not in line and len(line) < 160 and "tensor" not in line + lines, line
        assert line.startswith(f"{type(result).__name__}(")
        # One set of numbers, however they are shown.
        pairs = [re.split(r"  +", row) for row in lines.splitlines()]
        assert Cells(page).texts == [text for pair in pairs for text in pair]
        assert all(f"{key} {value}" in line for key, value in pairs[:3]), name
        assert f"network evaluations {result.num_network_evaluations}" in line
    full, sampled = shown["full"], shown["sampled"]
    mean, error = full.bits_per_dim.mean().item(), full.bits_per_dim.std().item() / 5**0.5
    assert f"bits/dim {mean:.4f}, standard error {error:.4f}, images 5" in repr(full)
    parts = dict(re.split(r"  +", row) for row in full.summary().splitlines())
    assert sum(float(parts[key]) for key in ("L_T prior", "L_t KL terms", "L_0 decoder")) == pytest.approx(mean, abs=2e-4)
    assert "error" not in repr(shown["one"]) and "Monte Carlo" not in repr(full)
    assert f"Monte Carlo error of an image {(sampled.monte_carlo_error**2).mean().sqrt():.4f}" in repr(sampled)
    curve, calibration = shown["curve"], shown["calibration"]
    assert f"bits/dim {curve.rate[-1]:.4f}, standard error {curve.rate_standard_error[-1]:.4f}" in repr(curve)
    best = calibration.scheduler.config["calibration"]["num_inference_steps"]
    assert f"best steps {best} of 20, bits/dim {calibration.bits_per_dim[best - 1]:.4f}" in repr(calibration)


def test_results_as_data_frames(shown, monkeypatch):
    for name, result in shown.items():
        frame = result.to_pandas()
        for column in frame:
            assert np.array_equal(frame[column], getattr(result, column), equal_nan=True), (name, column)
    assert shown["full"].to_pandas().index.tolist() == list(range(5)) and shown["full"].to_pandas().index.name == "image"
    assert shown["curve"].to_pandas().index.tolist() == [*range(19, -1, -1), -1]
    assert "monte_carlo_error" in shown["sampled"].to_pandas() and "monte_carlo_error" not in shown["full"].to_pandas()
    assert shown["calibration"].to_pandas().index.tolist() == list(range(1, 21))
    monkeypatch.setitem(sys.modules, "pandas", None)  # as where it is not installed
    with pytest.raises(ImportError, match="`to_pandas` needs pandas, which is not installed: pip install pandas."):
        shown["full"].to_pandas()


def test_an_output_is_what_it_was(shown):
    r"""A `BaseOutput`, by attribute, by name and as a tuple; at its old place, too."""
    out = shown["full"]
    assert type(out) is VLBOutput and out["prior"] is out.prior and out[0] is out.bits_per_dim
    assert torch.equal(out.to_tuple()[1], out.prior) and out.keys()


def test_a_report_and_a_pipeline_are_shown_by_what_they_are(pipe, images):
    report = evaluate(pipe, images, method="full", quiet=True)
    assert repr(report).startswith(
        f"Report(bits/dim {report['bits_per_dim']:.4f}, standard error {report['standard_error']:.4f}"
    )
    assert len(repr(report)) < 160 and "images 5, network evaluations 100" in repr(report)
    assert "VLBDDPMPipeline" in repr(pipe).partition("{")[2] and "VLBDDPMScheduler" in repr(pipe)
    assert '"DDPMPipeline"' not in repr(pipe) and '"_class_name": "DDPMPipeline"' in pipe.to_json_string()
    assert isinstance(pipe, VLBDDPMPipeline)
