import json

import pytest
import torch
from tiny import generator, quiet, sweeps, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.cli import main
from ddpm_vlb.evaluation import compare, format_comparison


def make_pipe(seed=0, steps=20, **overrides):
    return quiet(VLBDDPMPipeline(tiny_unet(seed=seed, **overrides), VLBDDPMScheduler(steps, num_pixel_levels=17)))


@pytest.fixture
def images():
    return torch.randint(17, (12, 1, 8, 8), generator=generator(1)).to(torch.uint8)


def means(pipe, images, **options):
    r"""Means over the images of some full sweeps, (30,)."""
    return sweeps(pipe, images, 30, **options).mean(dim=1)


def of_runs(pipes, images, count=25, **options):
    options |= {"max_evaluations": 1200, "batch_size": 256, "quiet": True}
    runs = [compare(pipes, images, seed=seed, **options) for seed in range(count)]
    values = torch.tensor([run["difference"] for run in runs], dtype=torch.float64)
    return runs, values


@pytest.mark.parametrize("steps", [(None, None), (None, 7), (4, 20)], ids=["one grid", "a sub-sequence", "the other"])
def test_the_difference_is_that_of_the_bounds(images, steps):
    pipes = make_pipe(0), make_pipe(3)
    first, second = (means(pipe, images, num_inference_steps=k) for pipe, k in zip(pipes, steps))
    runs, values = of_runs(pipes, images, num_inference_steps=steps)
    truth = first.mean() - second.mean()
    error = ((first.var() + second.var()) / 30 + values.var() / 25).sqrt()
    assert abs(values.mean() - truth) < 4 * error
    claimed = torch.tensor([run["monte_carlo_error"] for run in runs]).square().mean().sqrt()
    # 25 repetitions tell a standard deviation to 14 %.
    assert 0.55 < claimed / values.std() < 1.8
    assert all(run["num_network_evaluations"] <= 1200 for run in runs)


def test_a_comparison_says_when_its_error_is_not_to_be_trusted(images):
    pipes = make_pipe(0), make_pipe(3)
    few, many = (compare(pipes, images, max_evaluations=count, quiet=True) for count in (160, 2400))
    assert few["reliable"] is False and "too few" in few["doubt"]
    assert f"NOT RELIABLE: {few['doubt']}" in format_comparison(few, ("a", "b"))
    assert many["reliable"] is True and many["doubt"] is None
    assert "NOT RELIABLE" not in format_comparison(many, ("a", "b"))


def test_common_noise_is_worth_it(images):
    # The same network but for a little of its last layer: almost all of its errors are shared.
    pipes = make_pipe(), make_pipe()
    with torch.no_grad():
        pipes[1].unet.conv_out.weight *= 1.01
    _, together = of_runs(pipes, images, count=10)
    apart = [means(pipe, images).std() for pipe in pipes]
    # A sweep takes 240 evaluations, these 1200: apart, five sweeps of each would have a fifth of the variance.
    assert together.std() < 0.2 * torch.stack(apart).square().sum().sqrt() / 5**0.5


@pytest.mark.parametrize("steps", [(None, None), (None, 7), (4, 20)])
def test_swapped_models_change_the_sign(images, steps):
    pipes = make_pipe(0), make_pipe(3)
    options = {"max_evaluations": 600, "quiet": True}
    one = compare(pipes, images, num_inference_steps=steps, **options)
    other = compare(pipes[::-1], images, num_inference_steps=steps[::-1], **options)
    assert one["difference"] == pytest.approx(-other["difference"], rel=1e-6)
    assert one["monte_carlo_error"] == pytest.approx(other["monte_carlo_error"], rel=1e-6)
    assert one["models"] == other["models"][::-1]
    assert one["models"][0]["network_sha256"] != one["models"][1]["network_sha256"]


def test_a_model_is_no_better_than_itself(images):
    pipe = make_pipe()
    result = compare([pipe, pipe], images, quiet=True)
    assert result["difference"] == 0 and result["monte_carlo_error"] == 0 and result["data_error"] == 0
    assert "+0.00000" in format_comparison(result, ("A", "B"))


def test_classes(images):
    pipe = make_pipe(num_class_embeds=10)
    labels = torch.arange(12) % 10
    bounds = [means(pipe, images, class_labels=label) for label in (labels, 3)]
    _, values = of_runs([pipe, pipe], images, class_labels=(labels, 3))
    error = (sum(bound.var() for bound in bounds) / 30 + values.var() / 25).sqrt()
    assert abs(values.mean() - (bounds[0].mean() - bounds[1].mean())) < 4 * error


@pytest.mark.parametrize(
    "other, options, message",
    [
        (make_pipe(sample_size=16), {}, r"`pipes` must agree in image size to be compared, got \(8, 8\) and \(16, 16\)"),
        (make_pipe(), {"target_se": -1.0}, "`target_se` must be a positive number"),
        (make_pipe(), {"class_labels": (None, 3)}, "`class_labels` must be left out: the network is unconditional"),
        (make_pipe(), {"max_evaluations": 400.0}, r"`max_evaluations` must be an integer, got 400\.0"),
        (make_pipe(), {"max_evaluations": 10}, "leave room for a pilot of [0-9]*[02468] and a round of 8, got 10"),
        (make_pipe(), {"max_images": 0}, "`max_images` must be a positive integer, got 0"),
        (make_pipe(), {"seed": -1}, r"`seed` must lie in \[0, 2\^63\), got -1"),
        (make_pipe(), {"batch_size": 0}, "`batch_size` must be a positive integer"),
        (make_pipe(), {"num_inference_steps": (None, 21)}, "`num_inference_steps` must lie"),
    ],
)
def test_what_cannot_be_compared(images, other, options, message):
    with pytest.raises(ValueError, match=message):
        compare([make_pipe(), other], images, quiet=True, **options)


def test_half_precision_says_what_it_costs(images):
    exact = make_pipe(0), make_pipe(3)
    half = [VLBDDPMPipeline(tiny_unet(seed=seed).to(torch.bfloat16), pipe.scheduler) for seed, pipe in zip((0, 3), exact)]
    unets = [pipe.unet for pipe in exact]
    result = compare(half, images, max_evaluations=4000, float32_unets=unets, quiet=True)
    bias = result["half_precision_bias"]
    assert bias["includes_rounding_of_weights"] and bias["num_network_evaluations"] <= 2 * 2 * 512
    truth = [torch.stack([means(a, images) - means(b, images)]).mean().item() for a, b in zip(half, exact)]
    # Under the same noise, sweep by sweep: what is left over is far below the bias's own error.
    assert abs(truth[0] - truth[1] - bias["bits_per_dim"]) < 4 * bias["monte_carlo_error"]
    assert f"half precision instead of float32: {bias['bits_per_dim']:+.5f}" in format_comparison(result, ("A", "B"))
    one = compare([half[0], exact[1]], images, max_evaluations=1000, quiet=True)["half_precision_bias"]
    assert not one["includes_rounding_of_weights"] and one["num_network_evaluations"] <= 2 * 512


def test_another_buffer_is_another_comparison(tmp_path):
    many = torch.randint(17, (600, 1, 8, 8), generator=generator(1)).to(torch.uint8)
    pipes = make_pipe(0), make_pipe(3)
    options = {"max_evaluations": 600, "quiet": True, "journal": tmp_path / "journal"}
    whole = compare(pipes, many, **options)
    assert whole["config"]["num_images_in_memory"] == 600
    with pytest.raises(ValueError, match="which differs in num_images_in_memory"):
        compare(pipes, many, buffer_bytes=300 * 64, **options)
    again = compare(pipes, many, buffer_bytes=700 * 64, **options)  # all of them, as before
    assert again["difference"] == whole["difference"]


def test_the_command(tmp_path, capsys):
    for seed, name in enumerate("ab"):
        make_pipe(seed).save_pretrained(tmp_path / name)
    command = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--dataset", "digits", "--max-images", "20"]
    command += ["--output", str(tmp_path / "c.json")]
    assert main([*command, "--max-evaluations", "1000", "--num-inference-steps-b", "5"]) == 0
    result = json.loads((tmp_path / "c.json").read_text())
    assert f"{result['difference']:+.5f} bits/dim" in capsys.readouterr().out and result["num_images"] == 20
    assert [model["num_steps"] for model in result["models"]] == [20, 5] and result["config"]["dataset"] == "digits"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c.json"]
    assert main([*command, "--max-evaluations", "1000", "--num-pixel-levels", "9"]) == 2
    assert "`dataset` must hold levels below" in (error := capsys.readouterr().err) or "`images` must hold levels" in error
    assert main([*command, "--max-evaluations", "1000", "--num-pixel-levels", "9", "--quantize", "--dtype", "bf16"]) == 0
    result = json.loads((tmp_path / "c.json").read_text())
    assert result["models"][0]["num_pixel_levels"] == 9 and result["config"]["quantized"]
    assert result["half_precision_bias"]["includes_rounding_of_weights"]
