r"""Anomaly scores: the guarantee by counting, the known hard cases, and the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import generator

from ddpm_vlb.cli import main
from ddpm_vlb.data import load_images
from ddpm_vlb.data.complexity import _adaptive_code_length, complexity
from ddpm_vlb.evaluation import detect, fit_detector
from ddpm_vlb.evaluation.conformal import (
    area_under_roc,
    benjamini_hochberg,
    binomial_interval,
    conformal_p_values,
    false_alarm_interval,
)
from ddpm_vlb.evaluation.detect import _usual

# The p-values.


def test_p_values_are_valid_in_finite_samples():
    # P(p <= alpha) over many calibration sets: at most alpha, and floor(alpha (n + 1)) / (n + 1) where there are no ties.
    rng, count, n = np.random.default_rng(0), 20_000, 19
    for draw, exact in ((rng.standard_normal, True), (lambda shape: rng.integers(0, 4, shape), False)):
        calibration, scores = draw((count, n)), draw(count)
        p = np.array([conformal_p_values(c, s[None])[0] for c, s in zip(calibration, scores)])
        for alpha in (0.05, 0.1, 0.33):
            flagged, most = (p <= alpha).sum(), np.floor(alpha * (n + 1) + 1e-9) / (n + 1)
            assert stats.binomtest(int(flagged), count, most, alternative="greater").pvalue > 1e-3
            assert not exact or stats.binomtest(int(flagged), count, most).pvalue > 1e-3


def test_the_share_of_false_alarms_given_the_calibration_images():
    rng, n, alpha = np.random.default_rng(1), 99, 0.1
    # Of uniform scores the share given the calibration set is known: that above its l-th largest.
    rates = [1 - np.sort(rng.random(n))[-10] for _ in range(4000)]
    low, high = false_alarm_interval(n, alpha)
    inside = sum(low <= rate <= high for rate in rates)
    assert stats.binomtest(inside, len(rates), 0.95).pvalue > 1e-3
    assert false_alarm_interval(9, 0.05) == (0.0, 0.0)  # no p-value is below 1/10


def test_benjamini_hochberg_equals_scipys_and_keeps_the_rate():
    rng = np.random.default_rng(2)
    for _ in range(50):
        p = rng.random(30) ** rng.integers(1, 6)
        expected = stats.false_discovery_control(p, method="bh") <= 0.2
        assert (benjamini_hochberg(p, 0.2) == expected).all()
    assert not benjamini_hochberg(np.ones(5), 0.5).any()
    shares = []
    for _ in range(1000):
        calibration, own = rng.standard_normal(200), np.r_[rng.standard_normal(40), rng.standard_normal(10) + 4]
        flagged = benjamini_hochberg(conformal_p_values(calibration, own), 0.2)
        shares.append(flagged[:40].sum() / max(flagged.sum(), 1))
    assert np.mean(shares) <= 0.2 * 0.8 + 4 * np.std(shares) / len(shares) ** 0.5


def test_the_area_under_the_curve_counts_pairs():
    rng = np.random.default_rng(3)
    scores, anomalous = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[anomalous] for b in scores[~anomalous]]
    assert area_under_roc(scores, anomalous) == pytest.approx(np.mean(pairs), rel=1e-12)
    assert binomial_interval(5, 100) == pytest.approx((stats.beta.ppf(0.025, 5, 96), stats.beta.ppf(0.975, 6, 95)), rel=1e-9)


def test_the_covariance_is_shrunk_only_as_few_images_ask_for():
    rng, size = np.random.default_rng(4), 6
    root = rng.standard_normal((size, size))
    for count, tolerance in ((200_000, 0.1), (12, np.inf)):
        phi = rng.standard_normal((count, size)) @ root.T + 3
        usual = _usual(phi, phi.sum(axis=1))
        assert np.linalg.eigvalsh(usual.precision).min() > 0
        assert np.abs(usual.precision @ (root @ root.T) - np.eye(size)).max() < tolerance


# Of images.


def test_complexity():
    rng = np.random.default_rng(0)
    flat = torch.full((1, 8, 8), 3, dtype=torch.uint8)
    assert complexity(flat, 17) == 0
    random = torch.from_numpy(rng.integers(0, 17, (1, 8, 8), dtype=np.uint8))
    assert complexity(random, 17) == pytest.approx(math.log2(17))  # nothing beats the levels as they are
    assert complexity(random, 257) is None and complexity(torch.zeros(2, 8, 8), 17) is None
    gradient = torch.arange(28, dtype=torch.uint8).expand(1, 28, 28)
    assert complexity(gradient, 256) < 1  # PNG and WebP see it
    # The adaptive code's length is that of its probabilities, one value after the other, and every code is possible (Kraft).
    values = rng.integers(0, 3, 20)
    counts, bits = np.full(3, 0.5), 0.0
    for value in values:
        bits -= math.log2(counts[value] / counts.sum())
        counts[value] += 1
    assert _adaptive_code_length(values, 3) == pytest.approx(bits)
    every = np.stack(np.meshgrid(*[range(3)] * 4), axis=-1).reshape(-1, 4)
    assert sum(2 ** -_adaptive_code_length(row, 3) for row in every) == pytest.approx(1)


def smooth(count):
    rows, columns = np.mgrid[:8, :8] / 7
    slopes = np.random.default_rng(0).random((count, 2, 1, 1))
    ramps = slopes[:, 0] * rows + slopes[:, 1] * columns
    return torch.from_numpy(np.round(8 * ramps).astype(np.uint8))[:, None]


@pytest.fixture(scope="module")
def digits():
    r"""The shipped digits: a detector of half of what they were not trained on, and the other half."""
    from ddpm_vlb import VLBDDPMPipeline

    folder = Path(__file__).parents[1] / "spaces_demo" / "checkpoints" / "ddpm-vlb-digits"
    pipe = VLBDDPMPipeline.from_pretrained(folder)
    images = load_images("digits", "test").images
    mixed = torch.randperm(len(images), generator=generator())
    return fit_detector(pipe, images[mixed[:240]], evaluations_per_image=8), images[mixed[240:]]


def test_hard_cases_are_found(digits):
    detector, others = digits
    constant = torch.arange(17, dtype=torch.uint8)[:, None, None, None].expand(17, 1, 8, 8).clone()
    noise = torch.randint(17, (30, 1, 8, 8), generator=generator()).to(torch.uint8)
    held_out = detector(others)
    for kind in (constant, 16 - others[:30], smooth(30), noise):
        found = detector(kind)
        scores = np.r_[held_out.scores, found.scores]
        assert area_under_roc(scores, np.arange(len(scores)) >= len(others)) > 0.99
    # 120 images, of which 5 % are expected: of binomial and beta spread together, more than 20 come once in a million.
    assert (held_out.p_values <= 0.05).sum() <= 20 and held_out.num_fitted == 0


def test_scores_depend_on_no_batches_and_know_what_was_fitted(pipe):
    images = torch.randint(17, (40, 1, 8, 8), generator=generator()).to(torch.uint8)
    one, other = (fit_detector(pipe, images, evaluations_per_image=3, batch_size=size) for size in (64, 7))
    assert np.allclose(one.calibration, other.calibration, rtol=1e-4) and len(one.calibration) == 20
    assert one.timesteps[0] == 0 and one.timesteps[-1] == 19 and len(set(one.timesteps)) == 3
    assert one(images[:5]).num_fitted == 5
    assert not np.array_equal(
        one(images[:5]).scores, fit_detector(pipe, images, evaluations_per_image=3, seed=1)(images[:5]).scores
    )


def test_of_many_images_most_are_for_calibration(pipe, monkeypatch):
    monkeypatch.setattr(detect, "MAX_LEARNED", 10)
    images = torch.randint(17, (60, 1, 8, 8), generator=generator()).to(torch.uint8)
    detector = fit_detector(pipe, images, evaluations_per_image=2)
    assert len(detector.calibration) == 50
    # As few as their evaluations are: calibration images and others of their kind are scored alike, noise included.
    others = torch.randint(17, (300, 1, 8, 8), generator=generator(1)).to(torch.uint8)
    low, high = false_alarm_interval(50, 0.2, 0.999)
    assert 300 * low - 25 < (detector(others).p_values <= 0.2).sum() < 300 * high + 25


def test_it_refuses(pipe):
    images = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    for options, message in (
        ({"num_inference_steps": 4}, "`evaluations_per_image` must be at most the 4 steps of the model, got 8"),
        ({"evaluations_per_image": 1}, r"`evaluations_per_image` must lie in \[2, 8\] or be a multiple of 8, got 1"),
        ({"evaluations_per_image": 20}, "or be a multiple of 8, got 20"),
        ({"max_images": 10}, "`fit` must have at least 40 images, got 10"),
        ({"seed": -1}, "`seed` must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_detector(pipe, images, **options)


# The command.


def test_the_command(pipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("pipeline")
    images = torch.randint(6, 11, (80, 8, 8), generator=generator()).to(torch.uint8).numpy()
    np.savez("held-in.npz", images=images[:60])
    odd = np.zeros((20, 8, 8), np.uint8)
    labels = np.array([0] * 20 + [1] * 20)
    np.savez("new.npz", images=np.r_[images[60:], odd], labels=labels)
    command = ["detect", "pipeline", "--fit", "held-in.npz", "--dataset", "new.npz", "--num-pixel-levels", "256"]
    few = ["--evaluations-per-image", "4", "--alpha", "0.1"]
    assert main([*command, *few, "--anomalous", "1"]) == 0
    printed, result = capsys.readouterr().out, json.loads((tmp_path / "detection.json").read_text())
    assert result["auroc"] > 0.99 and result["num_found"] == 20 and f"AUROC {result['auroc']:.4f}" in printed
    assert result["num_flagged"] == 20 + result["num_false_alarms"] == sum(result["per_image"]["flagged"])
    assert result["per_image"]["p_value"][25] == 1 / 31 and result["num_calibration_images"] == 30
    assert main([*command, *few, "--fdr", "--output", "fdr.json"]) == 0
    fdr = json.loads((tmp_path / "fdr.json").read_text())
    assert fdr["num_flagged"] == benjamini_hochberg(np.array(fdr["per_image"]["p_value"]), 0.1).sum() >= 20
    capsys.readouterr()
    assert main([*command, *few, "--dataset", "held-in.npz"]) == 0
    assert "60 of the images are among those of --fit: their p-values mean nothing" in capsys.readouterr().out
    for more, message in (
        (["--alpha", "0.01"], "`alpha` must be at least 0.032, the smallest p-value beside 30 calibration images, got 0.01"),
        (["--alpha", "1.5"], "`alpha` must lie in (0, 1), got 1.5"),
        (["--evaluations-per-image", "9"], "`evaluations_per_image` must lie in [2, 8] or be a multiple of 8, got 9"),
        (["--max-fit-images", "20"], "`fit` must have at least 40 images, got 20"),
        (["--anomalous", "7"], "`anomalous` must be the labels of some images in 'new.npz', and not of all, got [7]"),
        (["--dataset", "held-in.npz", "--anomalous", "1"], "`anomalous` must be labels of the data set, got [1]"),
        (["--max-fit-images", "0"], "`max_fit_images` must be at least 1, got 0"),
        (["--fit", "nowhere.npz"], "`dataset` must be a file or folder that exists"),
    ):
        assert main([*command, *few, *more]) == 2
        assert message in capsys.readouterr().err
