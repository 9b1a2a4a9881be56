import copy
import csv
import json
import math
import pickle
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import generator, sweeps, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.data.image_sets import ImageSet, quantize_images
from ddpm_vlb.data.sources import Source, open_images
from ddpm_vlb.evaluation import compare, evaluate, make_report
from ddpm_vlb.hub.cards import check_card, model_card, reproducing_command
from ddpm_vlb.likelihoods.method import Columns, Method, Option
from ddpm_vlb.likelihoods.methods import METHODS, add_method
from ddpm_vlb.parametrizations import VARIANCES, decoder_rule
from ddpm_vlb.reports.checks import freedom_of_sum
from ddpm_vlb.reports.make import student_quantile, with_intervals
from ddpm_vlb.reports.merge import merge_reports
from ddpm_vlb.reports.schema import (
    FIELDS,
    IN_MEMORY,
    SETTINGS,
    Report,
    all_settings,
    check_context,
    public_report,
    read_report,
    settings_that_are,
)
from ddpm_vlb.reports.show import DECODERS, format_report, plot_terms, write_report, write_scores

# Written, with their cards, by the commit before reports were a type.
BEFORE = Path(__file__).parent / "reports"
# Each method in each of its ways.
EACH = {
    "sampled": {"max_evaluations": 600},
    "per image": {"evaluations_per_image": 4},
    "full": {"method": "full"},
    "iw": {"method": "iw", "k": 2},
    "ode": {"method": "ode", "trace": "hutchinson", "rtol": 1e-2, "atol": 1e-2},
}


@pytest.fixture
def images():
    return torch.randint(17, (23, 1, 8, 8), generator=generator(1)).to(torch.uint8)


def score(pipe, images, **options):
    options = {"max_evaluations": 3000, "quiet": True} | options
    if options.get("method") == "full":
        del options["max_evaluations"]
    return evaluate(pipe, images, context={"dataset": "random", "split": None, "quantized": False}, **options)


def test_a_sampled_report_agrees_with_itself(pipe, images):
    report = score(pipe, images)
    assert isinstance(report, Report) and report["method"] == "sampled" and report["num_network_evaluations"] <= 3000
    counts = report["evaluations_per_timestep"]
    assert sum(counts) + report["config"]["num_pilot_evaluations"] == report["num_network_evaluations"]
    assert sum(s["num_network_evaluations"] for s in report["strata"]) == sum(counts)
    assert [s["timesteps"][0] for s in report["strata"]] == sorted({s["timesteps"][0] for s in report["strata"]})
    # Of all timesteps, one after the other, the decoder alone first.
    ends = [t for s in report["strata"] for t in s["timesteps"]]
    assert ends[:2] == [0, 0] and ends[-1] == 19 and all(b == a + 1 for a, b in zip(ends[1::2], ends[2::2]))
    low, high = report["monte_carlo_interval"]
    half = student_quantile(report["degrees_of_freedom"]) * report["monte_carlo_error"]
    assert high - low == pytest.approx(2 * half) and student_quantile(1e9) == pytest.approx(1.959964, abs=1e-6)
    assert report["standard_error"] == pytest.approx(math.hypot(report["monte_carlo_error"], report["data_error"]))


def test_a_sampled_report_has_a_card_and_a_command(pipe, images, tmp_path):
    report = score(pipe, images, target_se=10.0, seed=3, max_images=20, shard=(1, 2))
    report = report.with_settings(checkpoint="me/tiny", revision=None)
    card = str(model_card(report, repository="me/tiny"))
    check_card(card, report)
    low, high = report["monte_carlo_interval"]
    assert f"of these very images {low:.4f} to {high:.4f}, 95%" in card
    command = reproducing_command(report, "me/tiny")
    for words in ("--method sampled", "--target-se 10.0", "--max-evaluations 3000", "--shard 1/2", "--max-images 20"):
        assert words in command
    plot_terms(report, tmp_path / "terms.png")
    with Image.open(tmp_path / "terms.png") as plot:
        assert plot.size == (960, 504)
    table = format_report(report)
    assert "shard 1 of 2" in table and f"(a full sweep: {10 * 20}, which --method full makes for less)" in table
    assert f"Monte Carlo error {report['monte_carlo_error']:.4f}" in table
    # A line on each kind of error that is named, and on no other.
    for name in ("standard error", "Monte Carlo error", "images' own error"):
        assert table.count(f"\n  {name}: of ") == (name in table.replace(f"\n  {name}: of ", "")), table
    assert "\nL_0 decodes with the posterior variance of the step above the lowest one\n" in table
    old = report.with_settings(decoder_variance="as it was said once")
    assert "\ndecoder variance: as it was said once\n" in format_report(old)


def test_every_decoder_is_said_plainly():
    rules = {decoder_rule(name, steps, calibrated) for name in VARIANCES for steps in (1, 9) for calibrated in (False, True)}
    assert rules == set(DECODERS) and all(sentence.startswith("L_0 decodes with ") for sentence in DECODERS.values())


def changed(report, **changes):
    return copy.deepcopy(dict(report)) | changes


def test_sampled_reports_that_do_not_agree_with_themselves_are_refused(pipe, images):
    report = score(pipe, images, evaluations_per_image=40, max_evaluations=None)
    low, high = report["monte_carlo_interval"]
    strata = copy.deepcopy(report["strata"])
    strata[0]["bits_per_dim"] += 1e-3
    counts = report["evaluations_per_timestep"]
    cases = [
        (changed(report, monte_carlo_error=report["monte_carlo_error"] / 2), "a standard error of both its errors"),
        (changed(report, data_error=-1.0), "not negative for 'data_error'"),
        (changed(report, monte_carlo_interval=[low + 1e-3, high]), "a monte_carlo_interval about its total"),
        (changed(report, monte_carlo_interval=[(3 * low + high) / 4, (low + 3 * high) / 4]), "as wide as its error"),
        (changed(report, monte_carlo_interval=[low]), "two numbers for 'monte_carlo_interval'"),
        (changed(report, strata=strata), "a decoder that is its first stratum"),
        (changed(report, strata=report["strata"][:-1]), "strata that sum to its transitions"),
        (changed(report, strata=[]), "the bits per dimension of each of its strata"),
        (changed(report, evaluations_per_timestep=counts[:-1]), "count the evaluations at each of its 20 timesteps"),
        (changed(report, evaluations_per_timestep=[10**6, *counts[1:]]), "as many network evaluations as it counts"),
        (changed(report, transitions=[None] * 19), "a term where it made evaluations"),
        (changed(report, per_image=[0.0] * 23), "images whose mean is its total"),
        ({key: value for key, value in report.items() if key != "strata"}, "must have the key 'strata'"),
    ]
    for bad, message in cases:
        with pytest.raises(ValueError, match=message):
            Report(bad)


def plus(amount):
    return lambda value: None if value is None else value + amount


def each(change):
    return lambda values: [change(value) for value in values]


# Of a true report of before one entry is changed: what must be refused then, and why.
CONTRADICTIONS = [
    ("sampled", "degrees_of_freedom", 1.0, "a monte_carlo_interval as wide as its error and its degrees of freedom say"),
    ("sampled", "degrees_of_freedom", 0.5, "a number from 1 on for 'degrees_of_freedom'"),
    ("sampled", "degrees_of_freedom", plus(1e6), "a monte_carlo_interval as wide as"),
    ("sampled", "confidence_level", 0.9, "a monte_carlo_interval as wide as"),
    ("sampled", "confidence_level", 1.0, "a confidence level between 0 and 1"),
    ("sampled", "confidence_interval", None, "two numbers for 'confidence_interval', got None"),
    ("sampled", "confidence_interval", each(plus(1e-3)), "a confidence_interval about its total"),
    ("sampled", "confidence_interval.0", plus(-0.1), "a confidence_interval about its total"),
    ("sampled", "monte_carlo_interval.1", plus(0.1), "a monte_carlo_interval about its total"),
    ("sampled", "data_error", None, "the images' own error where it has several"),
    ("sampled", "data_error", plus(0.1), "a standard error of both its errors"),
    ("sampled", "standard_error", plus(0.1), "a standard error of both its errors"),
    ("sampled", "standard_error", None, "a float for 'standard_error'"),
    ("sampled", "prior", plus(-3.0), "terms that are not negative"),
    ("sampled", "prior", plus(0.1), "terms that sum to its total"),
    ("sampled", "decoder", plus(0.1), "terms that sum to its total"),
    ("sampled", "bits_per_dim", plus(0.1), "terms that sum to its total"),
    ("sampled", "transitions", each(plus(100.0)), "strata that are about the sum of their terms, at [1, 1]"),
    ("sampled", "transitions.7", plus(100.0), "strata that are about the sum of their terms, at [7, 8]"),
    ("sampled", "transitions.2", None, "a term where it made evaluations, and only there"),
    ("sampled", "transitions.12", 0.1, "a term where it made evaluations, and only there"),
    ("sampled", "timesteps", each(lambda t: 7), "the timesteps that were scored, ascending"),
    ("sampled", "timesteps", lambda values: values[::-1], "the timesteps that were scored, ascending"),
    ("sampled", "strata.3.monte_carlo_error", -5.0, "an error and a count that are not negative"),
    ("sampled", "strata.3.num_network_evaluations", -3, "an error and a count that are not negative"),
    ("sampled", "strata.3.num_network_evaluations", plus(1), "strata that count the evaluations at their timesteps"),
    ("sampled", "strata.3.bits_per_dim", plus(0.1), "strata that sum to its transitions"),
    ("sampled", "strata.3.timesteps", [2, 4], "strata of all its timesteps, one after the other"),
    ("sampled", "strata.0.timesteps", [0, 1], "strata of all its timesteps, one after the other"),
    ("sampled", "strata.3.timesteps", None, "`report.strata[3]` must have timesteps, bits per dimension"),
    ("sampled", "evaluations_per_timestep.3", plus(5), "as many network evaluations as it counts, and its pilot's"),
    ("sampled", "num_network_evaluations", 10**9, "as many network evaluations as it counts, and its pilot's"),
    ("sampled", "config.num_pilot_evaluations", plus(1), "as many network evaluations as it counts, and its pilot's"),
    ("sampled", "config.max_evaluations", 300, "at most 300 network evaluations"),
    ("sampled", "config.num_images_in_memory", 5, "at most all images in memory"),
    ("sampled", "config.num_images_in_memory", 3, "all where each has a number"),
    ("sampled", "per_image.1", plus(1.0), "images whose mean is its total"),
    ("sampled", "per_image_monte_carlo_error", None, "an error for each of the images that have a number"),
    ("sampled", "per_image_monte_carlo_error.0", plus(1.0), "a Monte Carlo error of all its images'"),
    ("sampled", "per_image_monte_carlo_error.0", -1.0, "a number from 0 on"),
    ("sampled", "per_image_monte_carlo_error", lambda values: values[1:], "an error for each of the images"),
    ("sampled", "num_images", 5, "one number per image, got 4 for 5 images"),
    ("sampled", "method", "sampled twice", "the method 'sampled', got sampled twice"),
    ("per_image", "config.evaluations_per_image", 6, "6 evaluations of each image"),
    ("per_image", "timesteps", [4, 8, 12, 15], "the timesteps that were scored, ascending"),
    ("merged", "num_network_evaluations", 10**9, "as many network evaluations as it counts"),
    ("merged", "degrees_of_freedom", 1.0, "a monte_carlo_interval as wide as"),
    ("merged", "transitions", each(plus(100.0)), "strata that are about the sum of their terms"),
    ("half", "half_precision_bias.monte_carlo_error", -1.0, "none of the last three negative"),
    ("half", "half_precision_bias.num_network_evaluations", 0, "none of the last three negative"),
    ("half", "half_precision_bias", {}, "`report.half_precision_bias` must have bits_per_dim"),
    ("half", "config.dtype", "float64", "a bias of half precision only where there is one"),
    ("full", "transitions.3", plus(0.1), "transitions that sum to their total"),
    ("full", "transitions", lambda values: [values[0] + values[1] + 1, -1.0, *values[2:]], "terms that are not negative"),
    ("full", "transitions.3", None, "a number for every timestep of a full sweep"),
    ("full", "timesteps.3", 3, "the timesteps that were scored, ascending"),
    ("full", "standard_error", plus(0.1), "a standard error that its images have"),
    ("full", "monte_carlo_error", plus(1.0), "no larger than its standard error"),
    ("full", "monte_carlo_error", -1.0, "a Monte Carlo error that is not negative"),
    ("full", "monte_carlo_error", None, "a Monte Carlo error where it has several images"),
    ("full", "num_network_evaluations", 160, "evaluated each image at every step, got 160"),
    ("full", "method", "full, mean of 2 sweeps", "evaluated each image at every step"),
    ("full", "method", "full and more", "of one sweep or the mean of several"),
    ("full", "config.seed", [0, 1], "evaluated each image at every step"),
    (
        "full",
        "per_image",
        lambda values: [values[0] + values[1] + 1, -1.0, *values[2:]],
        "a standard error that its images have",
    ),
    ("iw", "config.k", 3, "the method 'iw, k = ' and its k"),
    ("iw", "method", "iw, k = 4", "the method 'iw, k = ' and its k"),
    ("iw", "effective_sample_size", 3.0, "from one to k trajectories that count"),
    ("iw", "effective_sample_size", 0.5, "from one to k trajectories that count"),
    ("iw", "vlb", plus(-100.0), "no larger bound than that of each trajectory by itself"),
    ("iw", "num_network_evaluations", plus(1), "evaluated each trajectory of each image at every step"),
    ("iw", "bits_per_dim", plus(1.0), "images whose mean is its total"),
    ("iw", "standard_error", plus(1.0), "a standard error that its images have"),
    ("iw", "config.inference_timesteps", [0, 6, 12], "timesteps that descend within [0, 20)"),
    ("ode", "density", plus(0.1), "parts that sum to its total"),
    ("ode", "dequantisation", plus(0.1), "parts that sum to its total"),
    ("ode", "config.trace", "hutchinson", "the method 'ode' with the trace that was asked for"),
    ("ode", "num_network_evaluations", 1, "evaluated each image along its path"),
    ("full", "config.inference_timesteps", [*range(20)], "timesteps that descend within [0, 20)"),
    ("full", "config.inference_timesteps", [*range(20, 0, -1)], "timesteps that descend within [0, 20)"),
    ("full", "config.num_steps", 19, "name the sub-sequence it is of, and only then"),
    ("full", "config.num_train_timesteps", 21, "name the sub-sequence it is of, and only then"),
    ("full", "config.num_inference_steps", 7, "as many steps as were asked for"),
    ("full", "config.trained_betas", [0.1] * 19, "a beta for each of its 20 steps"),
    ("full", "config.seed", [0], "several seeds, each once"),
    ("full", "config.seed", [1, 1], "several seeds, each once"),
    ("full", "config.max_images", 3, "at most as many images as were to be taken"),
    ("full", "config.batch_size", 0, "`report.config.batch_size` must be a positive integer"),
    ("full", "config.shard", {"of": 2}, "`report.config.shard` must say how many shards there are"),
    ("full", "config.shard.indices", [1], "shards of those that there are, each once"),
    ("full", "config.shard.indices", [0, 0], "shards of those that there are, each once"),
    ("full", "config.data_sha256", [], "a SHA-256 of its images for each of its shards"),
    ("merged", "config.data_sha256", lambda values: [values[0]] * 2, "other images in each"),
    ("full", "config.image_shape", [8, 8], "images of the shape (C, H, W)"),
    ("full", "config.image_shape", [1, 8, 0], "a number from 1 on, got 0"),
    ("full", "image_numbers", [0, 1, 2], "image_numbers of the images in 'per_image', and one for each"),
    ("full", "image_numbers", [0, 1, 1, 2], "images of its shards, in their order"),
    ("full", "image_names", ["a.png"], "image_names of the images in 'per_image', and one for each"),
    ("iw", "image_numbers", [0, 2], "images of its shards, in their order"),
    ("merged", "image_numbers", [0, 1, 2, -3], "a number from 0 on"),
]


@pytest.fixture(scope="module")
def before():
    reports = {path.stem: json.loads(path.read_text()) for path in BEFORE.glob("*.json")}
    both = {name: dict(merge_reports([reports[f"{name}_0"], reports[f"{name}_1"]])) for name in ("iw", "ode")}
    return reports | both


@pytest.mark.parametrize(("name", "place", "change", "message"), CONTRADICTIONS)
def test_a_report_with_one_entry_changed_is_refused(before, name, place, change, message):
    report = copy.deepcopy(before[name])
    assert Report(report)
    inside, *path = report, *place.split(".")
    for word in path[:-1]:
        inside = inside[int(word) if isinstance(inside, list) else word]
    last = int(path[-1]) if isinstance(inside, list) else path[-1]
    inside[last] = change(inside[last]) if callable(change) else change
    with pytest.raises(ValueError, match=re.escape(message)):
        Report(report)


def test_one_image_has_no_interval_for_more_such_images(pipe, images):
    report = score(pipe, images[:1], evaluations_per_image=40, max_evaluations=None)
    assert report["standard_error"] is None and report["confidence_interval"] is None
    with pytest.raises(ValueError, match="must have no 'confidence_interval' where there is no error, got"):
        Report(changed(report, confidence_interval=report["monte_carlo_interval"]))


def test_scores_as_tables(pipe, images, tmp_path):
    report = score(pipe, images, evaluations_per_image=4, max_evaluations=None, shard=(1, 3))
    for name, load in (("s.csv", datasets.Dataset.from_csv), ("s.parquet", datasets.Dataset.from_parquet)):
        write_scores(report, tmp_path / name)
        table = load(str(tmp_path / name), cache_dir=str(tmp_path / "cache"))
        assert table["image"][:] == list(range(1, 23, 3))
        assert table["bits_per_dim"][:] == report["per_image"]
        assert table["monte_carlo_error"][:] == report["per_image_monte_carlo_error"]
        assert table["degrees_of_freedom"][:] == report["per_image_degrees_of_freedom"]
    with pytest.raises(ValueError, match=r"`scores` must end in .csv or .parquet, got .*s.xlsx"):
        write_scores(report, tmp_path / "s.xlsx")
    with pytest.raises(ValueError, match="`report` must have scores of its images"):
        write_scores(score(pipe, images, max_evaluations=400), tmp_path / "s.csv")


def test_full_shards_are_the_full_sweep(pipe, images):
    whole = score(pipe, images, method="full")
    shards = [score(pipe, images, method="full", shard=(index, 3), batch_size=4) for index in range(3)]
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = merge_reports([shards[index] for index in order])
        assert Report.of(merged) is merged
        # Noise and images are the same; float32 sums of other batches differ.
        assert merged["per_image"] == pytest.approx(whole["per_image"], rel=1e-5)
        for key in ("bits_per_dim", "standard_error", "transitions_total", "num_images", "num_network_evaluations"):
            assert merged[key] == pytest.approx(whole[key], rel=1e-5)
        assert merged["transitions"] == pytest.approx(whole["transitions"], rel=1e-5)
        assert merged["config"]["shard"] == {"of": 3, "indices": [0, 1, 2]} and len(set(merged["config"]["data_sha256"])) == 3
    alone = make_report(pipe.evaluate_nll(images, generator=generator(0)))
    assert whole["bits_per_dim"] == pytest.approx(alone["bits_per_dim"], rel=1e-5)
    assert whole["monte_carlo_error"] == pytest.approx(alone["monte_carlo_error"], rel=1e-4)


def test_sampled_shards_and_seeds_add_up(pipe, images):
    shards = [score(pipe, images, shard=(index, 2)) for index in range(2)]
    merged = merge_reports(shards)
    assert Report.of(merged) is merged
    weights = [12 / 23, 11 / 23]
    mean = sum(w * s["bits_per_dim"] for w, s in zip(weights, shards))
    error = math.hypot(*(w * s["monte_carlo_error"] for w, s in zip(weights, shards)))
    assert merged["bits_per_dim"] == pytest.approx(mean) and merged["monte_carlo_error"] == pytest.approx(error)
    assert merged["num_network_evaluations"] == sum(s["num_network_evaluations"] for s in shards)
    again = merge_reports([score(pipe, images, shard=(index, 2), seed=1) for index in range(2)])
    both = merge_reports([merged, again])
    assert Report.of(both) is both
    assert both["config"]["seed"] == [0, 1] and both["monte_carlo_error"] < 0.85 * merged["monte_carlo_error"]
    assert "shard" not in format_report(both)
    # Of 23 images the spread is known to 15 %, by either way.
    whole = score(pipe, images, max_evaluations=20000)
    assert merged["data_error"] == pytest.approx(whole["data_error"], rel=0.6)


def test_a_report_says_when_its_error_is_not_to_be_trusted(pipe, images, tmp_path):
    few, many = score(pipe, images, max_evaluations=80), score(pipe, images, seed=1)
    assert few["reliable"] is False and few["doubt"].endswith("evaluations are too few to know their own error")
    assert many["reliable"] is True and many["doubt"] is None
    said = f"NOT RELIABLE: {few['doubt']}"
    assert said in format_report(few) and "NOT RELIABLE" not in format_report(many)
    # A card shows no error then, neither for people nor for programs, and passes its check.
    card = str(model_card(few, repository="me/tiny"))
    assert few["doubt"] in card and f"{few['standard_error']:.4f} standard error" not in card
    assert f"standard_error: {few['standard_error']}" not in card
    check_card(card, few)
    assert f"standard_error: {many['standard_error']}" in str(model_card(many, repository="me/tiny"))
    # What is put together is as reliable as the least of its parts, in any order.
    for reports in ((few, many), (many, few)):
        merged = merge_reports(reports)
        assert merged["doubt"] == few["doubt"] and merged["reliable"] is False and Report.of(merged) is merged
    # Reports of before do not say; nor does what is merged with them.
    old = Report(with_intervals({key: value for key, value in many.items() if key not in ("reliable", "doubt")}))
    assert not {"reliable", "doubt"} & set(merge_reports([few, old]))
    for changes in ({"reliable": True}, {"doubt": None}):
        with pytest.raises(ValueError, match="a 'doubt' where it is not reliable, and nowhere else"):
            Report.of(changed(few, **changes))


def test_of_few_images_no_more_is_known_than_they_tell(pipe, images):
    report = score(pipe, images[:3], max_evaluations=4000)
    low, high = report["confidence_interval"]
    # Two degrees of freedom at the most, though the noise has more.
    assert report["degrees_of_freedom"] > 2 * 2
    assert high - low >= 2 * student_quantile(2) * report["standard_error"] * (1 - 1e-9)
    # Before, those of the noise counted where it was most of the error; such reports are taken as they are.
    noise, images_error = 1.0, 0.1
    assert freedom_of_sum(noise, images_error, 50.0, {"num_images": 3, "reliable": True}) == 2
    assert freedom_of_sum(noise, images_error, 50.0, {"num_images": 3}) > 40


def test_errors_of_single_images_are_merged(pipe, images):
    errors, freedom = "per_image_monte_carlo_error", "per_image_degrees_of_freedom"
    shards = [score(pipe, images, evaluations_per_image=8, max_evaluations=None, shard=(index, 2)) for index in range(2)]
    whole = merge_reports(shards)
    assert whole[freedom][::2] == shards[0][freedom] and whole[freedom][1::2] == shards[1][freedom]
    one, other = (score(pipe, images, evaluations_per_image=8, max_evaluations=None, seed=seed) for seed in range(2))
    both = merge_reports([one, other])
    # Satterthwaite's, of two means that count alike; in any case no less than the fewer, and no more than both together.
    for a, b, m, n, got in zip(one[errors], other[errors], one[freedom], other[freedom], both[freedom]):
        assert got == pytest.approx((a**2 + b**2) ** 2 / (a**4 / m + b**4 / n))
        assert min(m, n) * (1 - 1e-12) <= got <= (m + n) * (1 + 1e-12)
    # A report of before says nothing of it: then the merged one does not either.
    before = Report({key: value for key, value in other.items() if key != freedom})
    assert merge_reports([one, before])[freedom] is merge_reports([before, one])[freedom] is None


def test_shards_and_seeds_in_any_order(pipe, images):
    reports = [score(pipe, images, shard=(index, 2), seed=seed) for seed in range(2) for index in range(2)]
    first = merge_reports(reports)
    for order in ((2, 1, 0, 3), (0, 2, 1, 3)):
        again = merge_reports([reports[index] for index in order])
        assert again["config"]["seed"] == [0, 1] and again["config"]["shard"]["indices"] == [0, 1]
        for key in ("bits_per_dim", "monte_carlo_error", "data_error", "num_network_evaluations"):
            assert again[key] == pytest.approx(first[key], rel=1e-12)
    fulls = [score(pipe, images, method="full", shard=(index, 3)) for index in range(3)]
    apart = merge_reports([fulls[2], merge_reports(fulls[:2])])
    for key in ("bits_per_dim", "monte_carlo_error", "standard_error"):
        assert apart[key] == pytest.approx(merge_reports(fulls)[key], rel=1e-12)


def test_images_taken_at_random_are_merged_with_the_same(pipe, images):
    options = {"method": "full", "max_images": 7, "image_seed": 3}
    whole = score(pipe, images, **options)
    assert whole["config"]["image_seed"] == 3 and whole["num_images"] == 7
    merged = merge_reports([score(pipe, images, shard=(index, 2), **options) for index in range(2)])
    assert merged["per_image"] == pytest.approx(whole["per_image"], rel=1e-5)
    assert merge_reports([whole, score(pipe, images, seed=1, **options)])["num_images"] == 7
    for other in ({"image_seed": 4}, {"image_seed": None}):
        with pytest.raises(ValueError, match="`reports` must agree in config.image_seed to be merged"):
            merge_reports([whole, score(pipe, images, seed=1, **{**options, **other})])


def test_single_images_are_merged(pipe, images):
    reports = [score(pipe, images[:2], method="full", shard=(index, 2)) for index in range(2)]
    assert [report["monte_carlo_error"] for report in reports] == [None, None]
    merged = merge_reports(reports)
    assert Report.of(merged) is merged
    # Of single images nothing tells the noise from the images: the error of both bounds it.
    assert merged["monte_carlo_error"] == merged["standard_error"] > 0
    again = merge_reports([score(pipe, images[:1], method="full", seed=seed) for seed in range(2)])
    assert again["standard_error"] is None and again["num_network_evaluations"] == 40


def test_what_is_merged_of_half_precision_and_versions(pipe, images):
    pipe.unet.to(torch.bfloat16)
    reports = [score(pipe, images, shard=(index, 2)) for index in range(2)]
    reports[1]["config"]["versions"] = reports[1]["config"]["versions"] | {"torch": "3.0"}
    merged = merge_reports(reports)
    assert Report.of(merged) is merged
    biases = [report["half_precision_bias"] for report in reports]
    got = merged["half_precision_bias"]
    assert got["bits_per_dim"] == pytest.approx((12 * biases[0]["bits_per_dim"] + 11 * biases[1]["bits_per_dim"]) / 23)
    errors = 12 * biases[0]["monte_carlo_error"], 11 * biases[1]["monte_carlo_error"]
    assert got["monte_carlo_error"] == pytest.approx(math.hypot(*errors) / 23)
    assert got["num_network_evaluations"] == sum(bias["num_network_evaluations"] for bias in biases)
    assert merged["config"]["versions"]["torch"] == ", ".join(sorted([torch.__version__, "3.0"]))
    reports[1]["config"]["versions"] = reports[1]["config"]["versions"] | {"ddpm_vlb": "9.9"}
    with pytest.raises(ValueError, match="must agree in config.versions.ddpm_vlb to be merged, got '.*' and '9.9'"):
        merge_reports(reports)


def test_a_sampled_output_has_no_report_of_its_timesteps(pipe, images):
    with pytest.raises(ValueError, match="`output` must be of method='full', got a sampled one"):
        make_report(pipe.evaluate_nll(images, method="sampled", evaluations_per_image=4))


def test_merged_estimates_are_unbiased_and_their_errors_true(pipe, images):
    pipe.scheduler = VLBDDPMScheduler(6, num_pixel_levels=17)
    truth = sweeps(pipe, images, 100).mean(dim=1)
    merged = []
    for run in range(60):
        shards = [score(pipe, images, max_evaluations=160, seed=run, shard=(index, 2)) for index in range(2)]
        merged.append(merge_reports(shards))
    values = torch.tensor([report["bits_per_dim"] for report in merged], dtype=torch.float64)
    claimed = torch.tensor([report["monte_carlo_error"] for report in merged], dtype=torch.float64).square().mean().sqrt()
    error = math.hypot(values.std() / 60**0.5, truth.std() / 10)
    assert abs(values.mean() - truth.mean()) < 4 * error
    # 60 repetitions tell a standard deviation to 9 %.
    assert 0.65 < claimed / values.std() < 1.5


def test_reports_that_do_not_belong_together_are_refused(pipe, images):
    one, two = (score(pipe, images, shard=(index, 2)) for index in range(2))
    other_model = score(VLBDDPMPipeline(tiny_unet(seed=1), pipe.scheduler), images, shard=(1, 2))
    others = images.clone()
    others[0, 0, 0, 0] = 16 - others[0, 0, 0, 0]
    cases = [
        ([one], "must be at least two, got 1"),
        ([one, one], r"must have seeds of their own, got \[0\] in both"),
        ([one, other_model], "must agree in config.network_sha256"),
        ([one, score(pipe, images, shard=(1, 2), num_inference_steps=5)], "must agree in config.inference_timesteps"),
        ([one, score(pipe, images, shard=(1, 2), clip_sample=False)], "must agree in config.clip_sample"),
        ([one, score(pipe, images, shard=(1, 2), method="full")], "must agree in method"),
        ([one, score(pipe, images, shard=(1, 3))], "must cut the data set alike, got 2 and 3 shards"),
        ([one, score(pipe, images, shard=(1, 2), seed=1)], "must have the same seed, got 0 and 1"),
        ([merge_reports([one, two]), two], r"disjoint shards, or of the same, got shard \[1\] in both"),
        ([one, score(pipe, others, shard=(0, 2), seed=1)], r"got others in shard \[0\]"),
        ([one, {**two, "prior": 7.0}], "must have terms that sum to its total"),
        (
            [one, score(pipe, images, shard=(1, 2), max_images=10, max_evaluations=200)],
            "must agree in config.max_images to be merged, got None and 10",
        ),
        (
            [one, score(pipe, images[:10], shard=(1, 2), max_evaluations=200)],
            r"one data set, got 12 images in shard \[0\] and 5 in shard \[1\] of 2",
        ),
        (
            [one, two.with_settings(data_sha256=one.config["data_sha256"])],
            "the same ones, with the SHA-256 .*, as the shards 0 and 1",
        ),
    ]
    for reports, message in cases:
        with pytest.raises(ValueError, match=message):
            merge_reports(reports)


@pytest.mark.parametrize("options", [EACH[name] for name in ("per image", "full", "iw", "ode")])
def test_each_images_score_goes_by_its_number_name_and_label(pipe, tmp_path, options):
    pixels = torch.randint(17, (5, 8, 8), generator=generator(1)).to(torch.uint8).numpy()
    for number, array in enumerate(pixels):
        (tmp_path / f"class-{number % 2}").mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / f"class-{number % 2}" / f"{number}.png")
    folder = open_images(tmp_path)
    names = [f"class-{number % 2}/{number}.png" for number in (0, 2, 4, 1, 3)]
    options = {"quiet": True, "num_inference_steps": 3, **options}
    parts = [evaluate(pipe, folder, shard=(index, 2), **options) for index in range(2)]
    score_of = {name: score for report in parts for name, score in zip(report["image_names"], report["per_image"])}
    for report in (*parts, merge_reports(parts[::-1])):
        assert report["image_names"] == [names[number] for number in report["image_numbers"]]
        write_scores(report, tmp_path / "scores.csv")
        rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
        assert [int(row["image"]) for row in rows] == report.image_numbers == report["image_numbers"]
        assert [row["name"] for row in rows] == report["image_names"]
        assert [float(row["bits_per_dim"]) for row in rows] == [score_of[row["name"]] for row in rows]
        check_card(str(model_card(report, repository="me/tiny")), report)
        # Names may tell of people: they stay at home.
        assert "image_names" not in public_report(report, "me/tiny")
    labels = [3, 1, 4, 1, 5]
    labelled = ImageSet(torch.as_tensor(pixels)[:, None], 17, "arrays", labels=torch.tensor(labels))
    for images in (labelled, quantize_images(labelled, 17)):
        report = evaluate(pipe, images, method="iw", k=1, shard=(1, 2), quiet=True, num_inference_steps=3)
        assert report["image_labels"] == [1, 1] and "image_names" not in report
        write_scores(report, tmp_path / "scores.csv")
        assert (tmp_path / "scores.csv").read_text().split()[:2] == [
            '"image","label","bits_per_dim"',
            f"1,1,{report['per_image'][0]}",
        ]


def test_a_written_report_is_read_back_by_merge(pipe, images, tmp_path):
    from ddpm_vlb.cli import main

    for seed in range(2):
        write_report(score(pipe, images, seed=seed, max_evaluations=100), tmp_path / f"{seed}.json")
    paths = [str(tmp_path / f"{seed}.json") for seed in range(2)]
    assert main(["merge", *paths, "--output", str(tmp_path / "both.json")]) == 0
    assert (tmp_path / "both.json").exists()
    write_report(score(pipe, images, evaluations_per_image=4, max_evaluations=None, seed=2), tmp_path / "2.json")
    write_report(score(pipe, images, evaluations_per_image=8, max_evaluations=None, seed=3), tmp_path / "3.json")
    paths = [str(tmp_path / f"{seed}.json") for seed in range(4)]
    outputs = ["--scores", str(tmp_path / "s.csv"), "--plot", str(tmp_path / "p.png")]
    assert main(["merge", *paths[2:], "--output", str(tmp_path / "scored.json"), *outputs]) == 0
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 24 and (tmp_path / "p.png").exists()
    assert main(["merge", *paths[:2], "--output", str(tmp_path / "none.json"), "--scores", str(tmp_path / "none.csv")]) == 2
    assert main(["merge", paths[0], paths[0], "--output", str(tmp_path / "none.json")]) == 2
    assert not (tmp_path / "none.json").exists()


# The type, and its rows.


def test_a_report_is_read_only_and_a_dictionary(pipe, images):
    report = score(pipe, images[:3], max_evaluations=400)
    for change in (
        lambda: report.update(prior=0.0),
        lambda: report.__setitem__("prior", 0.0),
        lambda: report.__delitem__("prior"),
        lambda: report.pop("prior"),
        lambda: report.popitem(),
        lambda: report.setdefault("prior", 0.0),
        lambda: report.clear(),
    ):
        with pytest.raises(TypeError, match=re.escape("A report is read-only: make another, `report | {...}`")):
            change()
    for same in (copy.copy(report), copy.deepcopy(report), pickle.loads(pickle.dumps(report)), report | {}):
        assert type(same) is Report and same is not report and same == report
    assert json.loads(json.dumps(report)) == report == dict(report)
    assert Report.of(report) is report and type(Report.of(dict(report))) is Report
    other = report.with_settings(split="test")
    assert other.config == report.config | {"split": "test"} and report.config["split"] is None
    with pytest.raises(ValueError, match="must have terms that sum to its total"):
        report | {"prior": 7.0}
    kept = report
    report |= {"note": "mine"}
    assert type(report) is Report and "note" not in kept


@pytest.mark.parametrize("options", EACH.values(), ids=EACH)
def test_all_that_evaluate_writes_has_a_row_and_a_card(pipe, images, options):
    if options.get("method") != "ode":
        pipe.unet.to(torch.bfloat16)
    context = {"checkpoint": "me/tiny", "revision": None}
    report = evaluate(pipe, images[:4], quiet=True, context=context, **options)
    fields = {row.name for row in FIELDS} | set(report.method.columns or ())
    assert set(report) <= fields and set(report.config) <= {row.name for row in all_settings()}
    card = str(model_card(report, repository="me/tiny"))
    check_card(card, report)
    assert f"name: {report.method.metric}" in card and f"**{report['bits_per_dim']:.4f} bits/dim**" in card
    for name, words in (report.method.columns or {}).items():
        assert f"{words}" in card and f"{report[name]:.4f}" in card
    assert (report.method.note or "A bound is not the likelihood")[1:] in card and report["method"] in card
    assert f"{report['bits_per_dim']:.4f}" in format_report(report)


def test_rows_agree_with_each_other():
    names = [row.name for row in all_settings()]
    assert len(set(names)) == len(names) and len({row.name for row in FIELDS}) == len(FIELDS)
    # Of another model no report can be merged, and nobody can say of a model what it is.
    assert not set(settings_that_are("identity")) & {*settings_that_are("free"), *settings_that_are("context")}
    assert set(settings_that_are("overridable")) <= set(settings_that_are("identity"))
    assert all(row.public for row in SETTINGS if row.shown or row.flag)
    assert Source.name == IN_MEMORY


@pytest.mark.parametrize("path", sorted(BEFORE.glob("*.json")), ids=lambda path: path.stem)
def test_reports_and_cards_of_before_are_still_good(path):
    report = read_report(path)
    assert report == json.loads(path.read_text()) and list(report) == list(json.loads(path.read_text()))
    assert f"{report['bits_per_dim']:.4f}" in format_report(report) and model_card(report, repository="tiny")
    if path.with_suffix(".md").exists():
        check_card(path.with_suffix(".md").read_text(), report)
    if path.stem.endswith("_0"):
        merged = merge_reports([report, read_report(path.with_stem(path.stem.replace("_0", "_1")))])
        assert merged["num_images"] == 2 and merged["standard_error"] > 0


def test_a_setting_that_nobody_knows_is_refused_with_those_like_it(pipe, images):
    output = pipe.evaluate_nll(images[:2])
    report = make_report(output, split="test", training_steps=5)
    assert (report.config["dataset"], report.config["training_steps"]) == ("images in memory", 5)
    cases = (
        ({"datset": "digits"}, "got 'datset'. Did you mean `dataset`?"),
        ({"num_inference_step": 5}, "must have settings that a report knows, got 'num_inference_step'"),
        ({"seed": 5}, "must have settings that a report knows, got 'seed'"),
        ({"split": 5}, "`context.split` must be a text or null, got 5"),
        ({"quantized": "no"}, "`context.quantized` must be true or false or null, got 'no'"),
    )
    for context, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            check_context(context)
        with pytest.raises(ValueError, match=re.escape(message)):
            make_report(output, **context)
        # Before any work.
        pipe.unet.forward = None
        for refused in (
            lambda context=context: evaluate(pipe, images, quiet=True, context=context),
            lambda context=context: compare([pipe, pipe], images, quiet=True, context=context),
        ):
            with pytest.raises(ValueError, match=re.escape(message)):
                refused()


def test_numbers_of_numpy_are_plain_in_a_report(pipe, images):
    report = score(pipe, images[:3], target_se=np.float64(5.0), max_evaluations=np.int64(400))
    assert type(report.config["target_se"]) is float and type(report.config["max_evaluations"]) is int


@pytest.fixture
def toy():
    r"""A method from outside, whose reports cannot be merged."""

    def begin(scorer, trained, num_dimensions, batch_size, options):
        def score(levels, seeds, labels):
            values = levels.flatten(1).double().mean(dim=1)
            return {
                "bits_per_dim": (values + options["lift"]).tolist(),
                "mean_level": values.tolist(),
                "num_network_evaluations": len(levels),
            }

        return Columns(f"toy, lift {options['lift']}", batch_size, 1, score)

    add_method(
        Method(
            name="toy",
            help="the mean level",
            metric="levels",
            options=(Option("lift", int, "what is added", default=1),),
            columns={"bits_per_dim": "lifted level", "mean_level": "level as it is"},
            merges=False,
            note="no likelihood",
            begin=begin,
        )
    )
    yield
    del METHODS["toy"]


def test_a_method_from_outside_is_reported_carded_and_not_merged(pipe, images, toy, tmp_path):
    report = evaluate(pipe, images, method="toy", lift=3, quiet=True, context={"dataset": "random", "checkpoint": "me/tiny"})
    mean = images.double().mean().item()
    assert report["mean_level"] == pytest.approx(mean) and report["bits_per_dim"] == pytest.approx(mean + 3)
    assert report.config["lift"] == 3 and not report.has_terms
    lines = format_report(report).split("\n")
    assert lines[0].endswith("(standard error over images): toy, lift 3")
    assert lines[1:] == [f"level as it is {mean:.4f}", "no likelihood", "23 images, 23 network evaluations"]
    card = str(model_card(report, repository="me/tiny"))
    check_card(card, report)
    assert "name: levels" in card and f"| level as it is | {mean:.4f} |" in card and "- No likelihood." in card
    assert "--method toy" in card and "--lift 3" in card
    write_report(report, tmp_path / "toy.json")
    assert read_report(tmp_path / "toy.json") == report
    write_scores(report, tmp_path / "toy.csv")
    with pytest.raises(ValueError, match="`report` must have a term for every timestep to be drawn, got none of 'toy, lift 3'"):
        plot_terms(report, tmp_path / "toy.png")
    with pytest.raises(ValueError, match="must be of a method whose reports can be merged, got 'toy, lift 3'"):
        merge_reports([report, report])
    with pytest.raises(ValueError, match="`shard` must be left out with method='toy'"):
        evaluate(pipe, images, method="toy", shard=(0, 2), quiet=True)
    for bad, message in (
        ({key: value for key, value in report.items() if key != "mean_level"}, "must have the key 'mean_level'"),
        (dict(report) | {"mean_level": "high"}, "must have a float for 'mean_level', got str"),
        (dict(report) | {"mean_level": math.nan}, "`report.mean_level` must be finite"),
        (dict(report) | {"bits_per_dim": mean}, "images whose mean is its total"),
        (dict(report) | {"standard_error": 1.0}, "a standard error that its images have"),
        (dict(report) | {"per_image": report["per_image"][1:]}, "one number per image"),
        (dict(report) | {"standard_error": None}, "must have a float for 'standard_error', got NoneType"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            Report(bad)
