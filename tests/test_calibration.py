r"""Calibrations: what they find for models that are known, what they do to scoring and sampling, where they live."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from analytic import GaussianDenoiser
from diffusers import DDPMPipeline, DDPMScheduler
from tiny import generator, quiet, sweeps, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.calibration import calibrate, describe, format_calibration
from ddpm_vlb.cli import main
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation import evaluate, make_report
from ddpm_vlb.gaussians import discretized_gaussian_log_likelihood
from ddpm_vlb.hub.cards import check_card, model_card, reproducing_command

VARIANCES = ["fixed_small", "fixed_large", "learned_range", "learned"]


def make_pipe(variance_type="fixed_small", steps=30, seed=0, **options):
    channels = 2 if variance_type.startswith("learned") else 1
    scheduler = VLBDDPMScheduler(steps, 0.002, 0.3, variance_type=variance_type, num_pixel_levels=17, **options)
    return quiet(VLBDDPMPipeline(tiny_unet(out_channels=channels, seed=seed), scheduler))


def digits(count=64, split="train"):
    return load_images("digits", split, count)


def calibrated(variance_type="fixed_small", **options):
    pipe = make_pipe(variance_type, **options)
    result = calibrate(pipe, digits(), evaluations=1920, quiet=True, dataset="digits", split="train")
    pipe.scheduler = result.scheduler
    return pipe, result


@pytest.fixture(scope="module", params=VARIANCES)
def each(request):
    return calibrated(request.param)


@pytest.fixture(scope="module")
def one():
    return calibrated()


# What it finds.


def test_the_errors_of_a_gaussian_model():
    """The optimal denoiser of N(m, s^2): its error is the posterior's variance, the same in all pixels."""
    steps, m, s, levels = 40, 0.0, 0.25, 256
    scheduler = VLBDDPMScheduler(steps, 0.002, 0.3, num_pixel_levels=levels, clip_sample=False)
    alphas = scheduler.forward_process().alphas_cumprod
    pipe = quiet(VLBDDPMPipeline(GaussianDenoiser(alphas.tolist(), m=m, s=s), scheduler))
    values = m + s * torch.randn(400, 1, 4, 4, generator=generator(), dtype=torch.float64)
    images = ((values + 1) / 2 * (levels - 1)).round().clamp(0, levels - 1).to(torch.uint8)
    result = calibrate(pipe, images, num_timesteps=steps, evaluations=400 * steps, quiet=True)
    expected = (s**2 * (1 - alphas) / (s**2 * alphas + 1 - alphas)).numpy()
    # 6400 squares of a Gaussian: 1 / sqrt(3200) = 1.8 % each; rounding to a level adds 1 / 12 of its width squared.
    assert np.allclose(result.mean_squared_errors, expected + (2 / 255) ** 2 / 12, rtol=5 * 0.018)
    # Steps of any length then cost the same (test_sub_schedules.py): the best bound hardly depends on their number, and lies
    # above the entropy of the data.
    entropy = 0.5 * math.log(2 * math.pi * math.e * s**2) - math.log(2 / 255)
    bits = result.bits_per_dim[[4, 9, 19, 39]]
    assert np.ptp(bits) < 0.05 and (abs(bits - entropy / math.log(2)) < 0.05 + 4 * result.standard_error[4]).all()


def test_it_foretells_the_bound_of_its_images(each):
    pipe, result = each
    images = digits().images
    for steps in (2, 7, 15, 30):
        out = pipe.evaluate_nll(images.repeat(4, 1, 1, 1), num_inference_steps=steps, generator=generator())
        assert out.config["inference_timesteps"] == result.scheduler.inference_grid(steps)
        # The same images with other noise. Between the timesteps that were looked at, and between 48 lengths of steps, costs
        # are taken as straight lines: some per cent of them.
        error = 4 * result.standard_error[steps - 1] + 0.03 * result.bits_per_dim[steps - 1]
        assert abs(out.bits_per_dim.mean().item() - result.bits_per_dim[steps - 1]) < error


def test_other_images_gain_by_it(each):
    pipe, result = each
    plain = make_pipe(pipe.scheduler.config.variance_type)
    images = digits(32, "test").images
    for steps in (5, 30):
        before, after = (
            model.evaluate_nll(images, num_inference_steps=steps, generator=generator()).bits_per_dim for model in (plain, pipe)
        )
        assert after.mean() < before.mean()
    assert result.bits_per_dim[result.scheduler.calibration.num_inference_steps - 1] <= result.bits_per_dim.min() + 1e-4


def test_no_even_spacing_is_better(one):
    pipe, _ = one
    images = digits().images
    even = np.linspace(29, 0, 6).round().astype(int).tolist()
    best, spaced = (
        pipe.evaluate_nll(images, generator=generator(), **options).bits_per_dim
        for options in ({"num_inference_steps": 6}, {"inference_timesteps": even})
    )
    difference = best - spaced
    assert difference.mean() < 2 * difference.std() / 8


def test_it_is_reproducible_and_depends_on_no_batch_size(one):
    _, result = one
    again = calibrate(make_pipe(), digits(), evaluations=1920, batch_size=7, quiet=True, dataset="digits", split="train")
    assert np.allclose(again.bits_per_dim, result.bits_per_dim, rtol=1e-3) and again.kinds == result.kinds
    other = calibrate(make_pipe(), digits(), evaluations=1920, seed=1, quiet=True)
    assert not np.allclose(other.bits_per_dim, result.bits_per_dim, rtol=1e-6)


def test_what_does_not_help_is_left_as_it_was():
    # A network that predicts black and white alike, and whose learned variances are true at every pixel.
    pipe = make_pipe("learned_range")
    f = pipe.scheduler.forward_process()

    def forward(sample, timestep, class_labels=None):
        t = int(timestep.flatten()[0])
        errors = f.one_minus_alphas_cumprod[t] * torch.linspace(0.01, 0.4, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
        low = f.posterior_log_variance[max(t, 1)]
        log_variance = torch.log(f.posterior_variance[t] + f.posterior_mean_coef1[t] ** 2 * errors)
        share = (log_variance - low) / (f.log_betas[t] - low)
        epsilon = sample.double() / f.sqrt_one_minus_alphas_cumprod[t]
        return SimpleNamespace(sample=torch.cat([epsilon, (2 * share - 1).expand(sample.shape)], dim=1).to(sample.dtype))

    pipe.unet.forward = forward
    # Images whose distance from the prediction is what the variances say, at a timestep in the middle.
    t = 12
    spread = (f.one_minus_alphas_cumprod[t] * torch.linspace(0.01, 0.4, 64)).sqrt().reshape(1, 1, 8, 8)
    values = spread * torch.randn(64, 1, 8, 8, generator=generator())
    images = ((values + 1) * 8).round().clamp(0, 16).to(torch.uint8)
    result = calibrate(pipe, images, evaluations=960, quiet=True)
    place = result.scheduler.config["calibration"]["timesteps"].index(t)
    assert result.kinds[place] != "one variance"
    gains = result.scheduler.config["calibration"]["learned_gains"]
    assert gains[place] == pytest.approx(1.0, abs=0.25)


# What it does.


def test_step_is_the_model_that_is_scored(each):
    pipe, _ = each
    scheduler, channels = pipe.scheduler, 2 if pipe.scheduler.config.variance_type.startswith("learned") else 1
    scheduler.set_timesteps(6)
    grid = scheduler.timesteps.tolist()
    assert grid == scheduler.inference_grid(6)
    sample = torch.randn(4, 1, 8, 8, generator=generator(0))
    output = torch.randn(4, channels, 8, 8, generator=generator(1))
    for t in grid:
        expected = scheduler.p_mean_variance(output, sample, t, inference_timesteps=grid)
        stepped = scheduler.step(output, t, sample, generator=generator(2)).prev_sample
        if t == grid[-1]:
            assert torch.allclose(stepped.double(), expected.mean, atol=1e-5)
        else:
            noise = torch.randn(4, 1, 8, 8, generator=generator(2))
            std = (stepped - expected.mean) / noise
            # float32 beside float64, the noise divided out.
            assert torch.allclose(std[noise.abs() > 0.1], expected.variance.sqrt()[noise.abs() > 0.1], rtol=2e-3, atol=1e-4)


def test_the_grid_is_the_calibrations_and_timesteps_win(one):
    pipe, result = one
    images = digits(4).images
    default = pipe.evaluate_nll(images, generator=generator())
    assert default.config["inference_timesteps"] == result.timesteps
    assert default.config["num_inference_steps"] == result.scheduler.calibration.num_inference_steps
    own = pipe.evaluate_nll(images, generator=generator(), inference_timesteps=[25, 11, 3])
    assert own.config["inference_timesteps"] == [25, 11, 3] and "measured" in own.config["decoder_variance"]
    pipe(1, generator=generator())
    assert pipe.scheduler.timesteps.tolist() == result.timesteps
    pipe(1, generator=generator(), num_inference_steps=4)
    assert pipe.scheduler.timesteps.tolist() == pipe.evaluate_nll(images, num_inference_steps=4).config["inference_timesteps"]
    pipe(1, generator=generator(), inference_timesteps=[25, 11, 3])
    assert pipe.scheduler.timesteps.tolist() == [25, 11, 3]
    assert pipe.scheduler.inference_grid(30) == list(range(29, -1, -1))


def test_a_draw_from_the_decoder(one):
    pipe, _ = one
    images = pipe(3, generator=generator(), num_inference_steps=5, output_type="pt", draw_from_decoder=True).images
    assert torch.allclose(images * 16, (images * 16).round(), atol=1e-4)
    # One prediction, drawn often: the levels come as often as the decoder says.
    pipe.scheduler.set_timesteps(5)
    timestep, count = int(pipe.scheduler.timesteps[-1]), 20000
    output, latents = (torch.randn(1, 1, 2, 2, generator=generator(seed)) for seed in range(2))
    drawn = pipe.scheduler.draw_from_decoder(
        output.expand(count, -1, -1, -1), timestep, latents.expand(count, -1, -1, -1), generator(3)
    )
    grid = torch.linspace(-1, 1, 17, dtype=torch.float64)
    decoder = pipe.scheduler.p_mean_variance(output, latents, timestep, inference_timesteps=pipe.scheduler.timesteps.tolist())
    for pixel in range(4):
        mean, log_variance = (values.flatten()[pixel].expand(17) for values in (decoder.mean, decoder.log_variance))
        expected = discretized_gaussian_log_likelihood(grid, mean=mean, log_variance=log_variance, num_pixel_levels=17).exp()
        got = (drawn.flatten(1)[:, pixel, None].double() - grid).abs().lt(1e-3).double().mean(dim=0)
        assert (abs(got - expected) < 5 * (expected * (1 - expected) / count).sqrt() + 1e-4).all()


def test_sampled_and_full_evaluations_agree(one):
    pipe, _ = one
    images = digits(40, "test")
    sampled = evaluate(pipe, images, max_evaluations=3000, quiet=True)
    bounds = sweeps(pipe, images.images, 8).mean(dim=1)
    error = math.hypot(sampled["monte_carlo_error"], bounds.std().item() / 8**0.5)
    assert abs(sampled["bits_per_dim"] - bounds.mean().item()) < 4 * error


# Where it lives.


def test_on_the_disk_and_in_stock_diffusers(each, tmp_path):
    pipe, result = each
    pipe.save_pretrained(tmp_path / "pipeline")
    loaded = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "pipeline"))
    assert loaded.scheduler.config.calibration == pipe.scheduler.config.calibration
    images = digits(4).images
    scores = [model.evaluate_nll(images, generator=generator()).bits_per_dim for model in (pipe, loaded)]
    assert torch.equal(*scores)
    assert loaded.scheduler.calibration.sha256 == result.scheduler.calibration.sha256
    if pipe.scheduler.config.variance_type != "learned":  # stock diffusers samples NaN with it
        stock = DDPMPipeline.from_pretrained(tmp_path / "pipeline")
        stock.set_progress_bar_config(disable=True)
        assert type(stock.scheduler) is DDPMScheduler
        plain = make_pipe(pipe.scheduler.config.variance_type)
        drawn = [model(1, generator=generator(), num_inference_steps=5, output_type="np").images for model in (stock, plain)]
        assert abs(drawn[0] - drawn[1]).max() < 1e-3


def test_in_reports_and_cards(one):
    pipe, result = one
    report = make_report(pipe.evaluate_nll(digits(4).images, generator=generator()), dataset="digits", split="test")
    description = result.scheduler.calibration.description
    assert report["config"]["calibration"] == description and "digits (train), 64 images" in description
    pipe.check_report(report)
    with pytest.raises(ValueError, match="`report` must be of this pipeline, got"):
        make_pipe().check_report(report)
    assert f"| calibrated on | {description} |" in str(model_card(report, repository="me/tiny"))
    # Hundreds of timesteps are shown by their ends.
    long = VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(100, num_pixel_levels=17))
    long = make_report(long.evaluate_nll(digits(1).images, inference_timesteps=range(99, 0, -1)), dataset="digits")
    card = str(model_card(long, repository="me/tiny"))
    check_card(card, long)
    assert "| the sub-sequence scored | 99, 98, 97, ..., 3, 2, 1 (99 in report.json) |" in card
    command = reproducing_command(report.with_settings(max_images=4), "me/tiny")
    assert f"--num-inference-steps {len(result.timesteps)}" in command
    # Reports from before there were calibrations are still of uncalibrated pipelines.
    old = make_report(make_pipe().evaluate_nll(digits(4).images, generator=generator()), dataset="digits")
    del old["config"]["calibration"]
    make_pipe().check_report(old)
    with pytest.raises(ValueError, match="`report` must be of this pipeline"):
        pipe.check_report(old)


def test_the_command(tmp_path, capsys):
    make_pipe().save_pretrained(tmp_path / "plain")
    command = ["calibrate", str(tmp_path / "plain"), "--dataset", "digits", "--evaluations", "960"]
    assert main([*command, "--output", str(tmp_path / "new"), "--plot", str(tmp_path / "k.png")]) == 0
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "new" / "calibration.json").read_text())
    assert found["split"] == "train" and len(found["bits_per_dim"]) == 30 and (tmp_path / "k.png").stat().st_size > 10000
    assert f"{found['bits_per_dim'][9]:.4f}" in text
    evaluation = ["evaluate", str(tmp_path / "new"), "--dataset", "digits", "--max-images", "8", "--method", "full"]
    assert main([*evaluation, "--output", str(tmp_path / "a.json")]) == 0
    assert "calibrated on digits (train)" in capsys.readouterr().out
    assert main([*evaluation, "--no-calibration", "--output", str(tmp_path / "b.json")]) == 0
    after, before = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert after["bits_per_dim"] < before["bits_per_dim"] and before["config"]["calibration"] is None
    assert after["config"]["inference_timesteps"] == found["inference_timesteps"]
    samples = ["sample", str(tmp_path / "new"), "--num-images", "2", "--num-inference-steps", "5"]
    assert main([*samples, "--output", str(tmp_path / "mean.png")]) == 0
    assert main([*samples, "--output", str(tmp_path / "drawn.png"), "--draw-from-decoder"]) == 0
    assert (tmp_path / "mean.png").read_bytes() != (tmp_path / "drawn.png").read_bytes()
    capsys.readouterr()
    assert main([*command, "--output", str(tmp_path / "new")]) == 2
    assert "`output` must be a folder that does not exist yet" in capsys.readouterr().err


@pytest.mark.parametrize("size, reason", [("12k", "The weights could not be written"), ("64k", "No space left")])
def test_a_full_disk_is_said_in_one_line(tmp_path, small_disk, capsys, size, reason):
    make_pipe().save_pretrained(tmp_path / "plain")
    disk = small_disk(size)  # for some of the weights; for all of them, and not for what comes after
    command = ["calibrate", str(tmp_path / "plain"), "--dataset", "digits", "--evaluations", "64", "--num-timesteps", "4"]
    assert main([*command, "--max-images", "24", "--output", str(disk / "new")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"ddpm-vlb calibrate: [Errno 28] {reason}") and "No space left on device" in line
    assert line.endswith(repr(str(disk / "new")))
    assert not list(disk.iterdir())


def test_what_is_said_of_it(one):
    _, result = one
    lines = format_calibration(result).split("\n")
    best = result.scheduler.calibration.num_inference_steps
    assert any(line.split()[0] == str(best) and line.endswith("best") for line in lines)
    said = json.loads(json.dumps(describe(result)))
    assert said["kinds"] == result.kinds and len(said["decoder_costs_standard_error"]) == len(said["timesteps"])


def test_what_was_measured_has_true_errors():
    results = [calibrate(make_pipe(steps=8), digits(), evaluations=512, seed=seed, quiet=True) for seed in range(12)]
    for name in ("mean_squared_errors", "decoder_costs"):
        values = np.stack([getattr(result, name) for result in results])
        claimed = np.stack([getattr(result, f"{name}_standard_error") for result in results])
        # The same 64 images each time: what is left is the noise's part, and of 12 repetitions a spread is known to 20 %.
        assert (values.std(axis=0, ddof=1) < 2 * claimed.mean(axis=0)).all() and (claimed > 0).all()


# What is refused.


@pytest.mark.parametrize(
    "options, message",
    [
        ({"evaluations": 100}, "`evaluations` must be at least 480, 16 at each of 30 timesteps, got 100"),
        ({"num_timesteps": 1}, "`num_timesteps` must be at least 2, got 1"),
        ({"target_se": 0.0}, "`target_se` must be a positive number of bits/dim, got 0.0"),
        ({"target_se": 1e-4}, "`images` must be about [0-9]+, and `evaluations` [0-9]+, for a standard error of 0.0001"),
        ({"max_images": 15}, "`images` must be at least 16 for a calibration, got 15"),
        ({"seed": -1}, "`seed` must lie in"),
        ({"dataset": ["digits"]}, r"`dataset` must be a name, got \['digits'\]"),
        ({"split": 1}, "`split` must be a name, got 1"),
        ({"class_labels": 3}, "`class_labels` must be left out"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        calibrate(make_pipe(), digits(), quiet=True, **({"evaluations": 960} | options))


def test_another_models_calibration_is_refused(one):
    _, result = one
    config = result.scheduler.config.calibration
    images = digits(2).images

    def scheduler(steps=30, **options):
        return VLBDDPMScheduler(steps, 0.002, 0.3, num_pixel_levels=17, **({"calibration": config} | options))

    cases = [
        (scheduler(beta_schedule="squaredcos_cap_v2"), "of another schedule"),
        (scheduler(variance_type="fixed_large"), "one for variance_type = 'fixed_small', not 'fixed_large'"),
        (scheduler(prediction_type="sample"), "one for prediction_type = 'epsilon', not 'sample'"),
        (scheduler(20), "`calibration.timesteps` must reach from 0 to 19|must lie in"),
        (scheduler(calibration={"format": 2}), "must be a dictionary of `ddpm-vlb calibrate`"),
        (scheduler(calibration=config | {"timesteps": [0, 0, 29]}), "strictly descending"),
        (scheduler(calibration=config | {"offsets": [math.nan] * 30}), "`calibration.offsets` must be finite"),
        (scheduler(calibration=config | {"gains": [-1.0] * 30}), "`gains` must be finite and not negative"),
        (scheduler(calibration=config | {"gains": ["a"] * 30}), "`calibration.gains` must be numbers"),
        (scheduler(calibration=config | {"step_costs": [[1.0]]}), "`calibration.step_costs` must be finite and of shape"),
        (scheduler(calibration=config | {"deltas": config["deltas"][::-1]}), "`calibration.deltas` must be ascending"),
        (scheduler(calibration=config | {"deltas": 5}), "`calibration.deltas` must be a list of at least one length, got 5"),
        (scheduler(calibration=config | {"num_inference_steps": 31}), r"must lie in \[1, 30\], got 31"),
        (scheduler(calibration=config | {"mean_square": None}), "`calibration.mean_square` must be a number"),
    ]
    for other, message in cases:
        pipe = quiet(VLBDDPMPipeline(tiny_unet(), other))
        with pytest.raises(ValueError, match=message):
            pipe.evaluate_nll(images)
    late = quiet(VLBDDPMPipeline(tiny_unet(), scheduler()))
    late(1), late.evaluate_nll(images)  # it has been checked by now
    late.scheduler.config.variance_type = "fixed_large"
    wide = quiet(VLBDDPMPipeline(tiny_unet(block_out_channels=(8,)), scheduler()))
    for use in (late.evaluate_nll, lambda images: late(1)):
        with pytest.raises(ValueError, match="one for variance_type = 'fixed_small', not 'fixed_large'"):
            use(images)
    for use in (wide.evaluate_nll, lambda images: wide(1)):
        with pytest.raises(ValueError, match="`calibration` must be of a network like this one, got one on digits"):
            use(images)
    # A calibration can be left out, and a network calibrated anew.
    wide.scheduler = VLBDDPMScheduler.from_config(wide.scheduler.config, calibration=None)
    assert wide.evaluate_nll(images).config["calibration"] is None


def test_as_many_images_as_there_are_evaluations_for():
    pipe = make_pipe(steps=2)
    result = calibrate(pipe, digits(700), evaluations=1200, quiet=True)
    assert result.scheduler.config.calibration["num_images"] == 600
    few = calibrate(pipe, digits(20), evaluations=1200, quiet=True)
    assert few.scheduler.config.calibration["num_images"] == 20 and few.num_network_evaluations == 1200


def test_a_network_that_breaks():
    pipe = make_pipe()
    pipe.unet.conv_out.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="`unet` must give finite outputs, got others at timestep 0"):
        calibrate(pipe, digits(), evaluations=960, quiet=True)


@pytest.mark.parametrize(
    "schedule", [{"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, {"steps": 1}, {"steps": 2}]
)
def test_odd_chains(schedule):
    pipe, result = calibrated(**schedule)
    out = pipe.evaluate_nll(digits(8).images, generator=generator())
    assert torch.isfinite(out.bits_per_dim).all() and np.isfinite(result.bits_per_dim).all()
    assert len(result.bits_per_dim) == schedule.get("steps", 30)
