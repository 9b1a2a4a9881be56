import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import generator, quiet, sweeps, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler, calibrate, compare
from ddpm_vlb.calibration.show import describe
from ddpm_vlb.data import ImageSet, open_images
from ddpm_vlb.evaluation import estimate_nll, evaluate, format_report, make_report, merge_reports, plot_terms, write_report
from ddpm_vlb.hub.cards import reproducing_command
from ddpm_vlb.likelihoods.importance_weighted import importance_weighted_nll
from ddpm_vlb.likelihoods.methods import most_evaluations
from ddpm_vlb.likelihoods.probability_flow import ode_nll


@pytest.fixture
def report(pipe, images):
    return make_report(pipe.evaluate_nll(images, generator=generator()), dataset="test")


def test_report_adds_up_and_is_plain(report, pipe, images):
    out = pipe.evaluate_nll(images, generator=generator())
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["bits_per_dim"] == pytest.approx(report["prior"] + report["transitions_total"] + report["decoder"], rel=1e-13)
    assert report["transitions_total"] == pytest.approx(sum(report["transitions"]), rel=1e-12)
    assert len(report["transitions"]) == len(report["timesteps"]) == 19
    assert report["per_image"] == out.bits_per_dim.tolist() and report["num_images"] == 5
    assert report["standard_error"] == pytest.approx(out.bits_per_dim.std().item() / math.sqrt(5))
    assert report["num_network_evaluations"] == 100 and report["method"] == "full" and report["config"]["dataset"] == "test"


def test_a_single_image_has_no_standard_error(pipe, images):
    report = make_report(pipe.evaluate_nll(images[:1]))
    assert report["standard_error"] is None and report["monte_carlo_error"] is None and "+-" not in format_report(report)


def test_monte_carlo_error_bounds_the_spread_over_repetitions(pipe, images):
    reports = [make_report(pipe.evaluate_nll(images, generator=generator(seed))) for seed in range(40)]
    spread = torch.tensor([report["bits_per_dim"] for report in reports], dtype=torch.float64).std().item()
    bound = sum(report["monte_carlo_error"] for report in reports) / len(reports)
    # 40 repetitions tell a standard deviation to 11 %.
    assert spread <= bound * 1.4 and all(r["monte_carlo_error"] <= r["standard_error"] for r in reports)


def test_table_and_plot(report, tmp_path):
    table = format_report(report, {"uniform": 4.0875})
    assert "L_T   prior" in table and "baseline: uniform" in table and "5 images, 100 network evaluations" in table
    plot_terms(report, tmp_path / "terms.png")
    with Image.open(tmp_path / "terms.png") as plot:
        assert plot.size == (960, 504)


def test_reports_with_numbers_json_does_not_know_are_refused(report, tmp_path):
    write_report(report, tmp_path / "report.json")
    with pytest.raises(ValueError):
        write_report({**report, "bits_per_dim": float("nan")}, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_estimate_is_unbiased_and_exact_where_it_sees_everything(pipe, images):
    full = sweeps(pipe, images, 40)
    for evaluations in (2, 7, 20):
        seeds = [100 * run + i for run in range(300) for i in range(5)]
        totals = estimate_nll(pipe, images.repeat(300, 1, 1, 1), seeds, evaluations).bits_per_dim.reshape(300, 5)
        error = (totals.var(dim=0) / len(totals) + full.var(dim=0) / len(full)).sqrt()
        assert (abs(totals.mean(dim=0) - full.mean(dim=0)) < 4.5 * error).all()
        one = estimate_nll(pipe, images, seeds[:5], evaluations)
        assert torch.allclose(one.bits_per_dim, totals[0], rtol=1e-5)
        assert torch.allclose(one.bits_per_dim, one.prior + one.transitions + one.decoder, rtol=1e-12)
        assert one.num_network_evaluations == 5 * evaluations
    # With all timesteps nothing is left to the choice of t: the spread over runs is that of full sweeps.
    assert torch.allclose(totals.std(dim=0), full.std(dim=0), rtol=0.4)


def test_the_estimate_is_a_function_of_the_seeds_alone(pipe, images):
    whole = estimate_nll(pipe, images, range(5), 6)
    parts = [estimate_nll(pipe, images[rows], range(5)[rows], 6, batch_size=4) for rows in (slice(0, 2), slice(2, 5))]
    # float32 sums in the network, batched otherwise
    assert torch.allclose(whole.bits_per_dim, torch.cat([part.bits_per_dim for part in parts]), rtol=1e-5)
    assert estimate_nll(pipe, images, range(5), 99).num_network_evaluations == 5 * 20
    pipe.unet.train()
    assert torch.equal(estimate_nll(pipe, images, range(5), 6).bits_per_dim, whole.bits_per_dim) and pipe.unet.training


def test_what_the_estimate_refuses(pipe, images):
    with pytest.raises(ValueError, match=r"`seeds` must be one per image \(5\), got 4"):
        estimate_nll(pipe, images, range(4))
    with pytest.raises(ValueError, match="`evaluations_per_image` must be at least 2, got 1"):
        estimate_nll(pipe, images, range(5), 1)
    with pytest.raises(ValueError, match="`images` must hold levels below num_pixel_levels = 17, got 17"):
        estimate_nll(pipe, images + 1, range(5))
    pipe.unet.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="`unet` must give finite outputs, got a term of nan bits/dim for image 0"):
        estimate_nll(pipe, images, range(5))
    one = VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(1, 0.5, num_pixel_levels=17))
    estimate = estimate_nll(one, images, range(5), 1)
    assert (estimate.transitions == 0).all() and estimate.num_network_evaluations == 5


# Data sets.


def digits_of(count):
    from ddpm_vlb.data import load_images

    return load_images("digits", "test", count)


def test_a_sampled_evaluation_is_unbiased_and_its_error_true(pipe):
    images = digits_of(40)
    truth = sweeps(pipe, images.images, 40).mean(dim=1)
    options = {"max_evaluations": 800, "batch_size": 256, "quiet": True}
    reports = [evaluate(pipe, images, seed=seed, **options) for seed in range(60)]
    values = torch.tensor([report["bits_per_dim"] for report in reports], dtype=torch.float64)
    error = (values.var() / 60 + truth.var() / 40).sqrt()
    assert abs(values.mean() - truth.mean()) < 4 * error
    claimed = torch.tensor([report["monte_carlo_error"] for report in reports]).square().mean().sqrt()
    assert 0.65 < claimed / values.std() < 1.5  # 60 repetitions tell a standard deviation to 9 %
    low, high = torch.tensor([report["monte_carlo_interval"] for report in reports]).T
    # About the mean of all, whose error is an eighth of one's; that of the sweeps is more than half of one's.
    centre = values.mean()
    assert ((low < centre) & (centre < high)).sum() >= 50  # of 60 at 95 %: less has a chance of 1 in 10^4


def test_it_stops_where_it_is_told_to(pipe):
    images = digits_of(40)
    loose = evaluate(pipe, images, target_se=0.5, quiet=True)
    tight = evaluate(pipe, images, target_se=0.04, quiet=True)
    assert loose["monte_carlo_error"] <= 0.5 and tight["monte_carlo_error"] <= 0.04
    assert loose["num_network_evaluations"] < tight["num_network_evaluations"]
    both = evaluate(pipe, images, target_se=0.01, max_evaluations=1500, quiet=True)
    assert both["num_network_evaluations"] <= 1500 and both["monte_carlo_error"] > 0.01
    assert "stopped at 1500 evaluations, before a Monte Carlo error of 0.01" in format_report(both)
    default = evaluate(one_step(), images, quiet=True)["config"]
    # A hundred sweeps of 40 images at one step.
    assert (default["target_se"], default["max_evaluations"]) == (0.005, 4000)
    assert most_evaluations(10_000, 1000) == most_evaluations(None, 20) == 100_000


def one_step():
    return VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(1, 0.5, num_pixel_levels=17))


def test_the_numbers_depend_on_no_batch_size(pipe):
    images = digits_of(30)
    first, second = (evaluate(pipe, images, max_evaluations=700, batch_size=size, quiet=True) for size in (64, 7))
    for key in ("bits_per_dim", "monte_carlo_error", "data_error", "decoder"):
        assert first[key] == pytest.approx(second[key], rel=1e-5)
    first, second = (evaluate(pipe, images, method="full", batch_size=size, quiet=True) for size in (64, 7))
    assert first["per_image"] == pytest.approx(second["per_image"], rel=1e-5)
    assert first["config"]["data_sha256"] == second["config"]["data_sha256"]


def test_scores_of_images(pipe):
    images = digits_of(10)
    report = evaluate(pipe, images, evaluations_per_image=200, quiet=True)
    assert report["num_network_evaluations"] == 2000 + report["config"]["num_pilot_evaluations"]
    truth = sweeps(pipe, images.images, 60)
    error = torch.tensor(report["per_image_monte_carlo_error"]).square() + truth.var(dim=0) / 60
    assert (abs(torch.tensor(report["per_image"]) - truth.mean(dim=0)) < 4.5 * error.sqrt()).all()


@pytest.mark.parametrize(
    "options",
    [
        {"method": "iw", "k": 3},
        {"method": "ode", "inference_timesteps": [19, 9, 4], "trace": "hutchinson", "num_probes": 2, "num_draws": 2}
        | {"rtol": 0.2, "atol": 0.1},
    ],
    ids=["iw", "ode"],
)
def test_other_likelihoods_of_a_data_set(pipe, options, tmp_path):
    images = digits_of(3)
    report = evaluate(pipe, images, quiet=True, batch_size=6, seed=2, **options)
    if options["method"] == "iw":
        alone = importance_weighted_nll(pipe, images.images, 3, seed=2)
        assert report["effective_sample_size"] == pytest.approx(alone.effective_sample_size.mean().item(), rel=1e-3)
        assert report["vlb"] == pytest.approx(alone.vlb.mean().item(), rel=1e-5)
    else:
        alone = ode_nll(pipe, images.images, seed=2, **{key: options[key] for key in options if key != "method"})
        assert report["solver_error"] == pytest.approx(alone.solver_error.mean().item(), rel=1e-3)
        assert f"solver's error: within {report['solver_error']:.2g} bits/dim" in format_report(report)
        own = {name: report.config[name] for name in ("trace", "num_probes", "num_draws", "rtol", "atol")}
        assert own == {name: options[name] for name in own}
        parts = ("density", "dequantisation", "reconstruction")
        assert report["bits_per_dim"] == pytest.approx(sum(report[part] for part in parts), rel=1e-12)
    assert report["per_image"] == pytest.approx(alone.bits_per_dim.tolist(), rel=1e-5)
    assert report["num_network_evaluations"] == alone.num_network_evaluations
    assert report["standard_error"] == pytest.approx(alone.bits_per_dim.std().item() / 3**0.5, rel=1e-4)
    assert f"{report['bits_per_dim']:.4f} bits/dim" in format_report(report)
    # Shards are merged: of other images, each with a number of its own.
    shards = [evaluate(pipe, images, quiet=True, seed=2, shard=(index, 2), **options) for index in range(2)]
    assert shards[0]["per_image"] == pytest.approx(report["per_image"][::2], rel=1e-5)
    merged = merge_reports(shards[::-1])
    assert "a part of the data set" in format_report(shards[0]) and "a part of" not in format_report(merged)
    errors = ("solver_error",) if "solver_error" in report else ()
    for name in (*report.method.columns, *errors, "standard_error", "per_image", "num_images", "num_network_evaluations"):
        assert merged[name] == pytest.approx(report[name], rel=1e-4)
    again = evaluate(pipe, images, quiet=True, seed=3, **options)
    with pytest.raises(ValueError, match="must be of disjoint shards, got two of the same images: they do not tell"):
        merge_reports([report, again])


def test_autocast_says_what_it_costs(pipe):
    images, mixed = digits_of(20), VLBDDPMPipeline(pipe.unet, pipe.scheduler)
    mixed.autocast = torch.bfloat16
    gaps = sweeps(mixed, images.images, 8).mean(dim=1) - sweeps(pipe, images.images, 8).mean(dim=1)
    for options in ({"max_evaluations": 600}, {"method": "full"}):
        report = evaluate(mixed, images, quiet=True, **options)
        bias = report["half_precision_bias"]
        assert abs(gaps.mean() - bias["bits_per_dim"]) < 4 * math.hypot(bias["monte_carlo_error"], gaps.std() / 8**0.5)
        assert bias["includes_rounding_of_weights"] and "autocast-bfloat16 instead of float32" in format_report(report)
        # The weights are as they were: it is the same network, of which there is no second copy.
        plain = evaluate(pipe, images, quiet=True, **options)
        assert report["config"]["network_sha256"] == plain["config"]["network_sha256"]
        assert mixed.check_report(report) == report and report["bits_per_dim"] != plain["bits_per_dim"]
    assert mixed.network.exact()[0].module is pipe.unet


def test_half_precision_says_what_it_costs(pipe):
    images = digits_of(20)
    half = VLBDDPMPipeline(tiny_unet().to(torch.bfloat16), pipe.scheduler)
    rounded = VLBDDPMPipeline(tiny_unet().to(torch.bfloat16).float(), pipe.scheduler)
    # Under the same noise, sweep by sweep, against the network as it was and against its rounded weights.
    bounds = [sweeps(model, images.images, 8).mean(dim=1) for model in (half, pipe, rounded)]
    for unet, exact in ((pipe.unet, bounds[1]), (None, bounds[2])):
        gaps = bounds[0] - exact
        for options in ({"max_evaluations": 600}, {"method": "full"}):
            report = evaluate(half, images, float32_unet=unet, quiet=True, **options)
            bias = report["half_precision_bias"]
            error = math.hypot(bias["monte_carlo_error"], gaps.std() / 8**0.5)
            assert abs(gaps.mean() - bias["bits_per_dim"]) < 4 * error
            assert bias["num_network_evaluations"] <= 2 * 512 and bias["includes_rounding_of_weights"] is (unet is not None)
            assert "bfloat16 instead of float32" in format_report(report)
            assert ("weights were rounded before" in format_report(report)) is (unet is None)
    assert half.unet.dtype == torch.bfloat16 and pipe.unet.dtype == torch.float32
    assert "half_precision_bias" not in evaluate(pipe, images, max_evaluations=600, quiet=True)


@pytest.mark.parametrize("compute_dtype", [torch.bfloat16, torch.float32])
def test_layerwise_casting_is_noticed(pipe, images, compute_dtype):
    unet = tiny_unet()
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute_dtype)
    rounded = tiny_unet()
    rounded.load_state_dict(unet.state_dict())  # of the same weights, each in float32
    cast, exact = (quiet(VLBDDPMPipeline(network, pipe.scheduler)) for network in (unet, rounded))
    copied = cast.network.in_float32()
    x = torch.randn(2, 1, 8, 8, generator=generator())
    with torch.no_grad():
        assert torch.equal(copied(x, 3).sample, rounded(x, 3).sample)
    report = evaluate(cast, images, quiet=True, max_evaluations=300)
    bias = report["half_precision_bias"]
    assert report["config"]["dtype"] == str(compute_dtype)[6:] and not bias["includes_rounding_of_weights"]
    assert (abs(bias["bits_per_dim"]) < 1e-6) is (compute_dtype == torch.float32)
    assert cast.check_report(report) == report
    if compute_dtype == torch.float32:
        scores = (model.evaluate_nll(images, generator=generator()).bits_per_dim for model in (cast, exact))
        assert torch.equal(*scores)


def test_half_precision_is_measured_on_a_sample_that_no_batch_size_changes(pipe):
    images = ImageSet(torch.randint(17, (700, 1, 8, 8), generator=generator(1)).to(torch.uint8), 17, "random")
    half = VLBDDPMPipeline(tiny_unet().to(torch.bfloat16), pipe.scheduler)
    options = {"method": "full", "num_inference_steps": 2, "quiet": True}
    first, second = (evaluate(half, images, batch_size=size, **options)["half_precision_bias"] for size in (64, 100))
    # bfloat16 networks differ between batch shapes; the images and the noise are the same.
    assert abs(first["bits_per_dim"] - second["bits_per_dim"]) < 0.5 * first["monte_carlo_error"]
    sampled = evaluate(half, images, buffer_bytes=0, num_inference_steps=2, max_evaluations=600, quiet=True)
    assert sampled["half_precision_bias"]["bits_per_dim"] == pytest.approx(first["bits_per_dim"], rel=0.2)


def test_sixteen_bit_images_in_memory():
    pipe = VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(20, num_pixel_levels=1000))
    array = torch.randint(1000, (6, 8, 8), generator=generator(1)).numpy().astype("uint16")
    for options in ({"method": "full"}, {"max_evaluations": 500}):
        report = evaluate(pipe, array, quiet=True, **options)
        assert report["config"]["num_pixel_levels"] == 1000 and report["config"]["dataset"] == "images in memory"
    full = pipe.evaluate_nll(array, generator=generator()).bits_per_dim.tolist()
    assert evaluate(pipe, array, method="full", quiet=True)["per_image"] == pytest.approx(full, rel=1e-6)


def test_the_path_of_a_data_set_is_a_data_set(pipe, tmp_path):
    from torch.utils.data import DataLoader, TensorDataset

    from ddpm_vlb.data import Transform, open_images, quantize_images

    levels = digits_of(5).images
    np.savez(tmp_path / "digits.npz", images=levels.permute(0, 2, 3, 1).numpy())
    expected = evaluate(pipe, levels, method="full", quiet=True)["per_image"]
    for images in (tmp_path / "digits.npz", str(tmp_path / "digits.npz"), DataLoader(TensorDataset(levels), 2)):
        assert evaluate(pipe, images, method="full", quiet=True)["per_image"] == expected
    assert evaluate(pipe, "digits", method="full", max_images=5, quiet=True)["per_image"] == expected
    with pytest.raises(ValueError, match="`images` must be a path that exists, got 'uoft-cs/cifar10'"):
        evaluate(pipe, "uoft-cs/cifar10")
    # Levels of a coarser grid are not taken for dark ones, and what was done to the images is said.
    with pytest.raises(ValueError, match="`images` must have the 17 levels of the model's grid, got 5 levels"):
        evaluate(pipe, quantize_images(digits_of(5), 5))
    (tmp_path / "photos").mkdir()
    for index in range(3):
        Image.new("RGB", (20 + index, 30), (9 * index, 99, 199)).save(tmp_path / "photos" / f"{index}.png")
    photos = open_images(tmp_path / "photos", transform=Transform("L", 8, 8))
    images = quantize_images(photos, 17)
    report = evaluate(pipe, images, method="full", quiet=True)
    said = {"convert": "L", "resize": 8, "center_crop": 8}
    assert said.items() <= report["config"].items()
    assert report["per_image"] == evaluate(pipe, [*images], method="full", quiet=True)["per_image"]
    assert said.items() <= compare([pipe, pipe], images, max_evaluations=200, quiet=True)["config"].items()
    many = replace(digits_of(40), settings=said)
    result = calibrate(pipe, many, num_timesteps=2, evaluations=64, max_images=20, image_seed=3, quiet=True)
    said |= {"image_seed": 3, "max_images": 20, "num_images": 20}
    assert said.items() <= result.scheduler.config["calibration"].items() and said.items() <= describe(result).items()


def test_more_images_than_memory_holds(pipe):
    images = ImageSet(torch.randint(17, (700, 1, 8, 8), generator=generator(1)).to(torch.uint8), 17, "random")
    report = evaluate(pipe, images, buffer_bytes=300 * 64, max_evaluations=600, quiet=True)
    report = report.with_settings(split=None, quantized=False)
    assert report["config"]["num_images_in_memory"] == 300 and report["num_images"] == 700
    assert "a random 300 of these images, which the memory held" in format_report(report)
    words = reproducing_command(report, "me/tiny").split()
    assert int(float(words[words.index("--buffer-mb") + 1]) * 2**20) == 300 * 64
    pipe.unet.forward = None  # refused before the network is asked
    with pytest.raises(ValueError, match="`buffer_bytes` must hold all 700 images for each to be evaluated, got room for 300"):
        evaluate(pipe, images, buffer_bytes=300 * 64, evaluations_per_image=4, quiet=True)


def test_a_chain_of_one_step(pipe):
    images = digits_of(40)
    truth = sweeps(one_step(), images.images, 80).mean(dim=1)
    reports = [evaluate(one_step(), images, max_evaluations=60, seed=seed, quiet=True) for seed in range(100)]
    values = torch.tensor([report["bits_per_dim"] for report in reports], dtype=torch.float64)
    assert abs(values.mean() - truth.mean()) < 4 * (values.var() / 100 + truth.var() / 80).sqrt()
    low, high = torch.tensor([report["monte_carlo_interval"] for report in reports]).T
    # Of 100 at 95 %: less than 86 have a chance of 1 in 10^4.
    assert ((low < truth.mean()) & (truth.mean() < high)).sum() >= 86
    assert all(report["transitions"] == [] and len(report["strata"]) == 1 for report in reports)


def test_a_network_that_breaks_is_named(pipe, tmp_path):
    # From the third batch on, so that there is something in the journal.
    images = digits_of(40)
    forward, calls = pipe.unet.forward, []

    def breaks(*arguments, **options):
        calls.append(1)
        output = forward(*arguments, **options)
        return type(output)(output.sample * math.nan) if len(calls) > 60 else output

    for options in ({"max_evaluations": 2000}, {"method": "full"}):
        journal = tmp_path / "journal"
        pipe.unet.forward = breaks
        calls.clear()
        with pytest.raises(ValueError, match=r"`unet` must give finite outputs, got .* image \d+ at timestep \d+"):
            evaluate(pipe, images, batch_size=8, quiet=True, journal=journal, **options)
        # Its journal does not stand in the way of the next evaluation.
        pipe.unet.forward = forward
        assert len(calls) > 60 and not journal.exists()
        evaluate(pipe, images, batch_size=9, quiet=True, journal=journal, **options)
        journal.unlink()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "guess"}, "`method` must be one of sampled, full, iw, ode, got 'guess'"),
        ({"method": "iw", "target_se": 0.1}, "`target_se` must be left out unless method='sampled', got 0.1 with method='iw'"),
        ({"method": "iw", "k": 0}, "`k` must be a positive integer, got 0"),
        ({"method": "iw", "trace": "exact"}, "`trace` must be left out unless method='ode', got 'exact'"),
        ({"k": 3}, "`k` must be left out unless method='iw', got 3"),
        ({"method": "ode", "rtol": 1.5}, r"`rtol` must lie in \(0, 1\), got 1.5"),
        ({"method": "ode", "num_draws": 0}, "`num_draws` must be a positive integer, got 0"),
        ({"method": "ode", "num_probes": 2}, "`num_probes` must be left out with the exact trace, got 2"),
        ({"method": "ode", "trace": "guess"}, "`trace` must be 'exact' or 'hutchinson', got 'guess'"),
        (
            {"method": "full", "target_se": 0.1},
            "`target_se` must be left out unless method='sampled', got 0.1 with method='full'",
        ),
        ({"target_se": 0.0}, "`target_se` must be a positive number of bits/dim, got 0.0"),
        ({"target_se": float("nan")}, "`target_se` must be a positive number of bits/dim, got nan"),
        ({"max_evaluations": 5}, "`max_evaluations` must leave room for a pilot of"),
        ({"evaluations_per_image": 3}, "`evaluations_per_image` must be an even number from 2 on, got 3"),
        ({"evaluations_per_image": 4, "target_se": 0.1}, "leave out `target_se` and `max_evaluations`"),
        ({"shard": (2, 2)}, r"`shard` must be \(index, count\) with 0 <= index < count, got \(2, 2\)"),
        ({"shard": (0, 2.0)}, r"`shard` must be \(index, count\) with 0 <= index < count, got \(0, 2.0\)"),
        ({"shard": (0, 1, 2)}, r"`shard` must be \(index, count\) .* got \(0, 1, 2\)"),
        ({"shard": 2}, r"`shard` must be \(index, count\) .* got 2"),
        ({"seed": -1}, r"`seed` must lie in \[0, 2\^63\), got -1"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer, got 0"),
        ({"max_images": 0}, "`max_images` must be a positive integer, got 0"),
        ({"num_inference_steps": 21}, "`num_inference_steps` must lie"),
        ({"class_labels": 3}, "`class_labels` must be left out"),
    ],
)
def test_bad_arguments_of_an_evaluation(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(pipe, digits_of(5), quiet=True, **options)


def test_journals_of_before_are_refused_with_the_reason(pipe, images, tmp_path):
    r"""They have no checksums, and what they say could have been anything."""
    journal = tmp_path / "journal"
    arguments = dict(max_evaluations=600, batch_size=50, quiet=True, journal=journal, overridden=["num_pixel_levels"])
    whole = evaluate(pipe, images, **arguments)
    assert whole["config"]["overridden"] == ["num_pixel_levels"]
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert lines[0]["settings"]["overridden"] == []  # of the checkpoint itself: what the caller changed is said by its value
    assert dict(evaluate(pipe, images, **arguments)) == dict(whole)
    for line in lines:
        del line["sha256"]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=f"a journal of an earlier version beside it, {str(journal)!r}, without checksums"):
        evaluate(pipe, images, **arguments)


def test_a_report_and_its_journal_do_not_say_where_things_lay(pipe, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        pixels = torch.randint(17, (8, 8), generator=generator(number)).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "pictures" / f"{number}.png")
    images, journal = open_images(tmp_path / "pictures"), tmp_path / "journal"
    arguments = dict(method="iw", k=1, batch_size=1, num_inference_steps=3, quiet=True, journal=journal)
    checkpoint = tmp_path / "pipeline"
    checkpoint.mkdir()
    report = evaluate(pipe, images, context={"checkpoint": str(checkpoint)}, **arguments)
    assert (report.config["dataset"], report.config["checkpoint"]) == ("pictures", "pipeline")
    assert str(tmp_path) not in json.dumps(report) and str(tmp_path) not in journal.read_text()
