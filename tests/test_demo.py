r"""What the demo computes, without a page: against the package, and against the lines of Python that it shows."""

import base64
import dataclasses
import html
import importlib
import json
import math
import os
import re
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import numpy as np
import pytest
import space_server
import torch
from PIL import Image
from tiny import generator, quiet, tiny_unet
from vlb_demo import classes, codec, drawing, pictures, tabs, texts, uploads
from vlb_demo import models as models_module
from vlb_demo.models import Models
from vlb_demo.running import Stopped, Watch, watched
from vlb_demo.tabs import bound, choose, forward, gaussian, rates, reverse, score
from vlb_demo.texts import Refusal
from vlb_demo.tools import Tools

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation.conformal import conformal_p_values
from ddpm_vlb.hub.standalone import standalone_source
from ddpm_vlb.likelihoods.rate_distortion import rate_distortion

DIGITS = "ddpm-vlb-digits"
MNIST = "ddpm-vlb-mnist"


@pytest.fixture(scope="module")
def models():
    return Models()


def last(results):
    *_, numbers_picture_code = results
    return numbers_picture_code


def run(code, monkeypatch):
    r"""What a snippet leaves behind, run in the demo's folder."""
    monkeypatch.chdir(space_server.SPACE)
    namespace = {}
    exec(compile(code, "code", "exec"), namespace)
    return namespace


# The tabs.


def test_gaussian(monkeypatch):
    numbers, picture, code = gaussian.compute(0.5, -1.0, 2.0, 0.7, -0.4, 500, 3, "0.1, 0.5, 0.2, 0.4", 1)
    assert numbers["likelihood_float32"] == pytest.approx(0.004) and numbers["product_fails_at_point"] is None
    assert numbers["log_likelihood"] == pytest.approx(math.log(0.004)) == -numbers["negative_log_likelihood"]
    # h(N) = log(2 pi e) + log |Sigma| / 2; the samples' NLL is that, but for chance: its variance is D/2 = 1.
    entropy = math.log(2 * math.pi * math.e) + math.log(2.0 * 0.7 * math.sqrt(1 - 0.16))
    assert numbers["entropy"] == pytest.approx(entropy)
    assert abs(numbers["sample_negative_log_likelihood"] - entropy) < 5 / 500**0.5
    ran = run(code, monkeypatch)
    assert ran["log_likelihood"] == pytest.approx(numbers["log_likelihood"])
    assert -ran["log_density"].mean().item() == pytest.approx(numbers["sample_negative_log_likelihood"])
    assert_is_page(picture)


def test_a_product_underflows_and_a_sum_does_not():
    # Each round multiplies by 0.004: float32's smallest number is 2^-149, and below half of it is 0.
    numbers, _, _ = gaussian.compute(0, 0, 1, 1, 0, 10, 0, "0.1、0.5 0.2,0.4", 25)
    rounds = 149 * math.log(2) / -math.log(0.004)
    assert numbers["likelihood_float32"] == 0 and 4 * (rounds - 1) < numbers["product_fails_at_point"] < 4 * (rounds + 1)
    assert numbers["log_likelihood"] == pytest.approx(25 * math.log(0.004))
    # And a product of densities above 1 overflows.
    numbers, _, _ = gaussian.compute(0, 0, 1, 1, 0, 10, 0, "1e30", 3)
    assert numbers["likelihood_float32"] is None and numbers["product_fails_at_point"] == 2


@pytest.mark.parametrize("model", [DIGITS, MNIST])
def test_forward(models, model, monkeypatch):
    numbers, picture, code = forward.compute(models, model, 3, 321, 5)
    process = models[model].pipe().scheduler.forward_process()
    assert numbers["alphas_cumprod"] == process.alphas_cumprod[321].item() and numbers["snr"] == process.snr[321].item()
    walk, count = numbers["walk"], 2048 // math.prod(models[model].shape) * math.prod(models[model].shape)
    assert walk["steps"] == 322
    # Standard normal numbers, if many small steps are one leap.
    assert abs(walk["residual_mean"]) < 5 / count**0.5
    assert abs(walk["residual_standard_deviation"] - 1) < 5 / (2 * count) ** 0.5
    ran = run(code, monkeypatch)
    assert (ran["alphas_cumprod"], ran["snr"]) == (numbers["alphas_cumprod"], numbers["snr"])
    assert ran["residual"].mean().item() == pytest.approx(walk["residual_mean"], abs=1e-6)
    assert torch.equal(ran["image"], models[model].image(3))
    assert_is_page(picture)


def test_large_images_are_walked_in_fewer_steps():
    process = VLBDDPMScheduler().forward_process()
    walked, hops = forward._walk(process, torch.zeros(1, 3, 256, 256, dtype=torch.float64), 999, generator())
    assert hops == 10 and walked.shape == (1, 3, 256, 256)
    variance = 1 - process.alphas_cumprod[999].item()
    assert walked.var().item() == pytest.approx(variance, abs=5 * (2 / walked.numel()) ** 0.5)


@pytest.mark.parametrize(("spacing", "variance"), [("leading", "as trained"), ("trailing", "fixed_small")])
def test_reverse(models, spacing, variance, monkeypatch):
    numbers, picture, code = last(reverse.compute(models, DIGITS, 3, 20, spacing, variance, 7))
    if variance == "as trained":
        images = models[DIGITS].pipe(timestep_spacing=spacing)(3, generator(7), 20, output_type="pt").images
        assert torch.equal((images * 16).round().int(), torch.tensor(numbers["levels"]))
    assert torch.equal(run(code, monkeypatch)["levels"], torch.tensor(numbers["levels"]))
    assert_is_page(picture)


def test_reverse_shows_every_stage(models):
    stages = [numbers for numbers, _, _ in reverse.compute(models, DIGITS, 1, 100, "leading", "as trained", 0)]
    assert {*range(4, 101, 4)} <= {stage["step"] for stage in stages} and stages[-1]["step"] == 100
    assert [stage["timestep"] for stage in stages] == sorted((stage["timestep"] for stage in stages), reverse=True)


@pytest.mark.parametrize("estimator", bound.ESTIMATORS)
def test_bound_is_that_of_evaluate_nll(models, estimator, monkeypatch):
    numbers, picture, code = last(bound.compute(models, DIGITS, 11, 20, 12, estimator, 5, looks=0))
    images = models[DIGITS].image(11).expand(12, -1, -1, -1)
    out = models[DIGITS].pipe().evaluate_nll(images, generator=generator(5), num_inference_steps=20)
    closed, naive = numbers["closed_form"], numbers["naive"]
    # The same numbers in batches that are put together otherwise.
    assert closed["bits_per_dim"] == pytest.approx(out.bits_per_dim.mean().item(), rel=1e-5)
    assert closed["prior"] == pytest.approx(out.prior.mean().item())
    assert closed["transitions_total"] == pytest.approx(out.transitions_total.mean().item(), rel=1e-5)
    assert closed["decoder"] == pytest.approx(out.decoder.mean().item(), rel=1e-5)
    for part in (closed, naive):
        assert part["prior"] + part["transitions_total"] + part["decoder"] == pytest.approx(part["bits_per_dim"])
    assert (
        numbers["bits_per_dim"] == numbers["prior"] + sum(numbers["terms"])
        or abs(numbers["bits_per_dim"] - numbers["prior"] - sum(numbers["terms"])) < 1e-9
    )
    # The same mean, with more variance.
    error = math.hypot(closed["monte_carlo_error"], naive["monte_carlo_error"])
    assert abs(closed["bits_per_dim"] - naive["bits_per_dim"]) < 5 * error
    assert numbers["variance_ratio_of_the_sum"] > 1 and numbers["median_variance_ratio_of_the_terms"] > 1
    ran = run(code, monkeypatch)
    assert ran["bits_per_dim"] == pytest.approx(closed["bits_per_dim"], rel=1e-5)
    if estimator == bound.ESTIMATORS[1]:
        assert numbers["bits_per_dim"] == naive["bits_per_dim"]
        assert ran["naive"].mean().item() == pytest.approx(naive["bits_per_dim"], rel=1e-4)
    assert_is_page(picture)


@pytest.mark.parametrize("change", score.CHANGES)
@pytest.mark.parametrize("model", [DIGITS, MNIST])
def test_a_picture_is_changed(models, model, change, monkeypatch):
    levels, _, imports, code = score.prepare(models[model], "pick", 4, None, None, change, 9)
    image, top = models[model].image(4), models[model].num_pixel_levels - 1
    if change == "as it is":
        assert torch.equal(levels, image)
    elif change == "inverted":
        assert torch.equal(levels + image, torch.full_like(levels, top))
    elif change == "constant":
        assert levels.unique().tolist() == [0]
    else:
        assert levels.double().std().item() == pytest.approx(((top + 1) ** 2 - 1) ** 0.5 / 12**0.5, rel=0.2)
    ran = run(f"import torch\n{imports}\nlevels = {top + 1}\n{code}", monkeypatch)
    assert torch.equal(ran["image"].long(), levels.long())


@pytest.mark.parametrize(("model", "change"), [*((DIGITS, change) for change in score.CHANGES), (MNIST, "as it is")])
def test_score(models, model, change, monkeypatch):
    numbers, picture, code = last(score.compute(models, model, "pick", 4, change, 64, 9))
    levels = torch.tensor(numbers["levels"])
    assert torch.equal(levels, score.prepare(models[model], "pick", 4, None, None, change, 9)[0][0].long())
    # An example stands beside all others, anything else beside all.
    held_out = np.delete(models[model].scores, 4) if change == "as it is" else models[model].scores
    value = numbers["bits_per_dim"]
    assert numbers["better_than_share_of_held_out"] == (held_out > value).mean() and numbers["num_held_out"] == len(held_out)
    nearby = value + numbers["monte_carlo_error"] * np.array([2, 0, -2])
    low, p_value, high = conformal_p_values(held_out, nearby).tolist()
    assert numbers["p_value"] == p_value and numbers["p_value_range"] == [low, high]
    # What it shows is a call of `evaluate_nll`.
    ran = run(code, monkeypatch)
    assert 'pipe.evaluate_nll(image, generator=generator, method="sampled", evaluations_per_image=64)' in code
    assert torch.equal(ran["image"][0].long(), levels) and ran["generator"].initial_seed() == 9
    assert ran["bits_per_dim"] == pytest.approx(numbers["bits_per_dim"], rel=1e-9)
    assert ran["monte_carlo_error"] == pytest.approx(numbers["monte_carlo_error"], rel=1e-6)
    assert_is_page(picture)
    assert ("vlb-warning" in picture) == (change != "as it is")


def test_simple_pictures_score_better_until_their_size_is_taken_off(models):
    r"""What the tab warns of, on the shipped model: black is likelier than nearly all digits, and is found out."""
    numbers, _, _ = last(score.compute(models, MNIST, "pick", 0, "constant", 128, 0))
    assert numbers["better_than_share_of_held_out"] > 0.95 and numbers["complexity"] == 0
    assert numbers["complexity_corrected"] > np.quantile(models[MNIST].corrected_scores, 0.95)


@pytest.mark.parametrize("model", [DIGITS, MNIST])
def test_uploads_and_drawings(models, model, tmp_path, monkeypatch):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    picture.save(tmp_path / "a picture.png")
    chosen = models[model]
    width, height = chosen.shape[2], chosen.shape[1]
    drawn = drawing.blank(chosen.shape)
    drawn["cells"] = [255 if index % width == width // 2 else 0 for index in range(width * height)]
    uploaded = ("upload", 0, str(tmp_path / "a picture.png"), None, "as it is", 0)
    for prepared in (score.prepare(chosen, *uploaded), score.prepare(chosen, "draw", 0, None, drawn, "as it is", 0)):
        levels, before, imports, code = prepared
        monkeypatch.chdir(tmp_path)
        exec(f"import torch\n{imports}\nlevels = {chosen.num_pixel_levels}\n{code}", ran := {})
        assert torch.equal(ran["image"].long(), levels.long()) and before.size in ((90, 50), (width, height))
    assert (levels[0, 0, :, width // 2] == chosen.num_pixel_levels - 1).all() and levels.count_nonzero() == height


def test_an_upload_is_scored(models, tmp_path, monkeypatch):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(tmp_path / "a picture.png")
    numbers, page, code = last(score.compute(models, DIGITS, "upload", 0, "as it is", 64, 0, str(tmp_path / "a picture.png")))
    assert "90 × 50" in page
    monkeypatch.chdir(tmp_path)
    exec(code.replace(repr(models[DIGITS].source), repr(str(space_server.SPACE / models[DIGITS].source))), ran := {})
    assert ran["bits_per_dim"] == pytest.approx(numbers["bits_per_dim"], rel=1e-9)


@pytest.mark.parametrize(
    "drawn",
    [
        {"width": 2, "height": 2, "cells": [0, 0, 0, 256]},
        {"width": 2, "height": 2, "cells": [0, 0, 0, -1]},
        {"width": 2, "height": 2, "cells": [0, 0, 0]},
        {"width": 2, "height": 2, "cells": [0, 0, 0, 1.5]},
        {"width": 2, "height": 2, "cells": "abcd"},
        {"width": 1000, "height": 1000, "cells": [1] * 10**6},
        {"width": 2},
        [1, 2],
        "<b>",
    ],
)
def test_bad_drawings_are_refused(drawn):
    with pytest.raises(Refusal, match="as many grey values"):
        drawing.to_picture(drawn)


def test_a_shown_digit_comes_back_exactly(models):
    r"""The PNG files of the examples are the digits: quantisation undoes the grey that they are shown in."""
    for number in range(8):
        picture = uploads.open_picture(space_server.SPACE / "examples" / "pictures" / f"digit-{number}.png")
        assert torch.equal(uploads.fit(picture, (1, 8, 8), 17), models[DIGITS].image(number))


def test_rate_distortion(models, monkeypatch):
    numbers, picture, code = last(rates.compute(models, DIGITS, 5, 6, 20, 2))
    images = models[DIGITS].examples[5:11]
    curve = rate_distortion(models[DIGITS].pipe(), images, num_inference_steps=20, seed=2)
    assert numbers["rate"] == curve.rate.tolist() and numbers["distortion"] == curve.distortion.tolist()
    assert numbers["bits_per_dim"] == numbers["rate"][-1] and numbers["distortion"][-1] == 0
    ran = run(code, monkeypatch)
    assert ran["curve"].rate.tolist() == numbers["rate"] and len(ran["decoded"]) == rates.MOMENTS
    assert_is_page(picture)


def test_choosing_a_model(models, monkeypatch):
    for name in models.names:
        numbers, picture, code = choose.compute(models, name)
        assert numbers["num_parameters"] == run(code, monkeypatch)["pipe"].unet.num_parameters()
        assert numbers["bits_per_dim"] == models[name].report["bits_per_dim"]
        assert_is_page(picture)


def test_examples_are_held_out_and_scored(models):
    assert torch.equal(models[DIGITS].examples, load_images("digits", "test").images)
    assert models[DIGITS].scores.tolist() == models[DIGITS].report["per_image"]
    assert len(models[MNIST].scores) == len(models[MNIST].examples) == 200
    # Another sample of images, and of noise.
    report = models[MNIST].report
    error = math.hypot(report["standard_error"], models[MNIST].scores.std(ddof=1) / 200**0.5)
    assert abs(models[MNIST].scores.mean() - report["bits_per_dim"]) < 4 * error


# Classes.


def test_the_class_of_a_picture_is_that_of_classify(models):
    model, image = models.classifier(DIGITS), models[DIGITS].image(5)
    pages = list(classes.race(model, image, 60, 3))
    numbers, page = pages[-1]
    pipe = quiet(VLBDDPMPipeline.from_pretrained(space_server.SPACE / "checkpoints" / "ddpm-vlb-digits-class"))
    out = pipe.classify(image, generator=generator(3), max_evaluations_per_image=60)
    assert numbers["label"] == int(out.labels) and numbers["decided"] == bool(out.decided)
    assert numbers["probabilities"] == pytest.approx(out.probabilities[0].tolist(), abs=1e-6)
    assert numbers["num_network_evaluations"] == out.num_network_evaluations
    # Bars that were alike at first; those of the classes that are out are faint.
    assert pages[0][1].count("width:10.0%") == 10 and page.count("vlb-best") == 1
    # They narrow, around the probabilities.
    assert pages[0][1].count("margin-left:0.0%;width:100.0%") == 10
    low, high = np.array(numbers["probability_ranges"]).T
    assert (low <= numbers["probabilities"]).all() and (numbers["probabilities"] <= high).all() and (high - low).max() < 1
    assert page.count("vlb-out") == 9 if numbers["decided"] else page.count("vlb-out") < 9
    assert_is_page(page)
    assert list(score.which_class(models, DIGITS, "pick", 5, "as it is", 3))[-1].count("<tr") == 10
    for change, message in (((MNIST, "pick", 5), "No class-conditional model"), ((DIGITS, "pick", -1), "0 to 359")):
        with pytest.raises(Refusal, match=message):
            list(score.which_class(models, *change, "as it is", 3))


# Files.


def test_what_tools_compress_they_give_back(models):
    pytest.importorskip("constriction")
    tools = Tools(models)
    files = [
        base64.b64encode((space_server.SPACE / "examples" / "pictures" / f"digit-{number}.png").read_bytes()).decode()
        for number in range(4)
    ]
    packed = json.loads(tools.compress_images(files))
    data = base64.b64decode(packed["file"])
    assert packed["file_bytes"] == len(data) < packed["png_bytes"]
    assert packed["bits_per_dim"] == 8 * len(data) / (4 * 64)
    unpacked = json.loads(tools.decompress_file(packed["file"]))
    assert torch.equal(torch.tensor(unpacked["levels"]), models[DIGITS].examples[:4].long())
    # What it gives is what it takes.
    assert json.loads(tools.compress_images(unpacked["images"]))["file"] == packed["file"]
    damaged = base64.b64encode(data[:-9] + b"x" + data[-8:]).decode()
    with pytest.raises(ValueError, match="^`data` must "):
        tools.decompress_file(damaged)
    with pytest.raises(ValueError, match="must be the model that the file was made with"):
        tools.decompress_file(packed["file"], MNIST)


def test_a_file_is_not_believed_before_it_is_read(models):
    r"""Neither more images nor more steps than a visitor may ask for."""
    pytest.importorskip("constriction")
    pipe, images = models[DIGITS].pipe(), models[DIGITS].examples[:1]
    with pytest.raises(Refusal, match="no more than 100"):
        codec.decode(models[DIGITS], codec.compress(pipe, images, num_inference_steps=101))
    with pytest.raises(Refusal, match="no more than 64"):
        codec.decode(models[DIGITS], codec.compress(pipe, images.expand(65, -1, -1, -1), num_inference_steps=1))
    with pytest.raises(Refusal, match="at most 1 MiB"):
        codec.decode(models[DIGITS], bytes(2**20 + 1))


def test_a_picture_shares_a_file_with_others(models):
    pytest.importorskip("constriction")
    data, page = score.pack(models, DIGITS, "pick", 2, "inverted", 0)
    levels = codec.decode(models[DIGITS], data)
    assert torch.equal(levels[0], 16 - models[DIGITS].examples[2]) and len(levels) == 1 + score.COMPANY
    assert not (levels[1:] == models[DIGITS].examples[2]).flatten(1).all(1).any()
    assert f".vlb {len(data)} · PNG " in page and page.count(" · WebP ") == 2
    assert_is_page(page)
    assert_is_page(score.unpack(models, DIGITS, data))
    with pytest.raises(Refusal, match="Upload a file first"):
        score.unpack(models, DIGITS, None)


def test_scores_of_another_network_are_not_shown(models):
    report = models[DIGITS].report
    assert models_module._scores(360, report["config"]["network_sha256"], report).tolist() == report["per_image"]
    assert models_module._scores(360, "0" * 64, report, None) is None


# What is refused.


def saved(tmp_path, name, image, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda d: saved(d, "a.png", Image.fromarray(np.zeros((8, 8), np.uint16))), "not_8_bit"),
        (lambda d: saved(d, "a.tif", Image.fromarray(np.zeros((8, 8), np.float32))), "no_picture"),
        (lambda d: saved(d, "a.png", Image.new("RGBA", (8, 8))), "transparent"),
        (lambda d: saved(d, "a.png", Image.new("LA", (8, 8))), "transparent"),
        (lambda d: saved(d, "a.png", Image.new("P", (8, 8)), transparency=0), "transparent"),
        (lambda d: saved(d, "a.jpg", Image.new("CMYK", (8, 8))), "not_grey_or_rgb"),
        (lambda d: animated(d, "a.gif"), "animated"),
        (lambda d: animated(d, "a.webp"), "animated"),
        (lambda d: cut(saved(d, "a.png", noise(64))), "damaged"),
        (lambda d: cut(saved(d, "a.jpg", noise(64))), "damaged"),
        (lambda d: text(d, "a.png", "not a picture"), "no_picture"),
        (lambda d: text(d, "a.png", ""), "no_picture"),
        (lambda d: text(d, "a.svg", "<svg xmlns='http://www.w3.org/2000/svg'/>"), "no_picture"),
        (lambda d: saved(d, "a.png", Image.new("L", (5000, 5000))), "too_many_pixels"),
        (lambda d: saved(d, "a.png", Image.new("1", (20000, 20000))), "too_many_pixels"),
        (lambda d: text(d, "a.png", "x" * (uploads.MAX_BYTES + 1)), "too_many_bytes"),
    ],
)
def test_bad_pictures_are_refused_in_both_languages(make, key, tmp_path):
    with pytest.raises(Refusal) as refusal:
        uploads.open_picture(make(tmp_path))
    assert refusal.value.key == key and str(refusal.value) == refusal.value.text()
    assert texts.WORDS["ja"]["said"][key].format(**refusal.value.values)


def noise(size):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def animated(tmp_path, name):
    return saved(tmp_path, name, noise(8), save_all=True, append_images=[Image.new("RGB", (8, 8))])


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def text(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    return tmp_path / name


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.new("L", (3, 40), 77), {"format": "PNG"}),
        (Image.new("1", (9, 9), 1), {"format": "PNG"}),
        (Image.new("P", (9, 9), 1), {"format": "GIF"}),
        (Image.new("RGB", (100, 9), (1, 2, 3)), {"format": "JPEG"}),
        (Image.new("RGB", (10, 90), (9, 2, 3)), {"format": "BMP"}),
        (Image.new("RGB", (1, 1), (9, 2, 3)), {"format": "WEBP", "lossless": True}),
    ],
)
def test_good_pictures_are_taken(image, options, tmp_path):
    image.save(tmp_path / "picture", **options)
    picture = uploads.open_picture(tmp_path / "picture")
    for shape, levels in (((1, 8, 8), 17), ((3, 4, 6), 256), ((1, 2, 2), 2)):
        fitted = uploads.fit(picture, shape, levels)
        assert fitted.shape == (1, *shape) and int(fitted.max()) < levels


@pytest.mark.parametrize(
    ("compute", "arguments", "message"),
    [
        (gaussian.compute, (0, 0, 1, 1, 0, 10, 0, "0.1, -2", 1), "positive numbers"),
        (gaussian.compute, (0, 0, 1, 1, 0, 10, 0, "nan", 1), "positive numbers"),
        (gaussian.compute, (0, 0, 1, 1, 1, 10, 0, "1", 1), "between -1 and 1"),
        (gaussian.compute, (0, 0, 1, 1, 0, 10, 0, "1 " * 100, 11), "At most 1000"),
        (gaussian.compute, (0, 0, 1, 1, 0, 10**9, 0, "1", 1), "1 to 500"),
        (forward.compute, (DIGITS, 0, 1000, 0), "0 to 999, got 1000"),
        (forward.compute, (DIGITS, 360, 0, 0), "0 to 359, got 360"),
        (forward.compute, ("google/ddpm-cifar10-32", 0, 0, 0), "must be one of ddpm-vlb-digits, ddpm-vlb-mnist"),
        (reverse.compute, (DIGITS, 17, 10, "leading", "as trained", 0), "no more than 16"),
        (reverse.compute, (DIGITS, 1, 251, "leading", "as trained", 0), "no more than 250"),
        (reverse.compute, (DIGITS, 1, 10, "leading", "learned", 0), "Not one of the choices"),
        (bound.compute, (DIGITS, 0, 1000, 21, bound.ESTIMATORS[0], 0), "2 to 20 draws"),
        (bound.compute, (DIGITS, 0, 10, 4, "exact", 0), "Not one of the choices"),
        (score.compute, (DIGITS, "pick", 0, "as it is", 65, 0), "even number in 64 to 2048"),
        (score.compute, (DIGITS, "upload", 0, "as it is", 64, 0), "Upload a picture first"),
        (score.compute, (DIGITS, "draw", 0, "as it is", 64, 0, None, drawing.blank((1, 8, 8))), "Draw something"),
        (rates.compute, (DIGITS, 359, 8, 10, 0), "0 to 358"),
        (rates.compute, (DIGITS, 0, 33, 10, 0), "no more than 32"),
        (rates.compute, (DIGITS, 0, 8, 6, 0), "got 6"),
        (choose.compute, ("../../etc",), "must be one of"),
    ],
)
def test_bad_values_are_refused(models, compute, arguments, message):
    arguments = arguments if compute is gaussian.compute else (models, *arguments)
    with pytest.raises(Refusal, match=message):
        result = compute(*arguments)
        last(result) if not isinstance(result, tuple) else None


# What it stands on.


def test_another_model(tmp_path):
    r"""One that the operator names: with pictures that were made to fit, RGB, an odd number of levels, not scored yet."""
    scheduler = VLBDDPMScheduler(num_train_timesteps=30, beta_end=0.3, num_pixel_levels=9)
    quiet(VLBDDPMPipeline(tiny_unet(3), scheduler)).save_pretrained(tmp_path / "mine")
    models = Models((str(tmp_path / "mine"),))
    assert models.names == [DIGITS, MNIST, "mine"] and models["mine"].shape == (3, 8, 8)
    numbers, _, _ = forward.compute(models, "mine", 0, 29, 0)
    assert numbers["timestep"] == 29
    numbers, picture, _ = last(score.compute(models, "mine", "pick", 1, "noise", 64, 0))
    assert numbers["better_than_share_of_held_out"] is None and math.isfinite(numbers["bits_per_dim"])
    last(bound.compute(models, "mine", 0, 10, 4, bound.ESTIMATORS[1], 0))
    last(rates.compute(models, "mine", 0, 4, 10, 0))
    last(reverse.compute(models, "mine", 2, 10, "linspace", "fixed_large", 0))
    choose.compute(models, "mine")
    with pytest.raises(ValueError, match="name of its own"):
        Models((str(tmp_path / "mine"), str(tmp_path / "mine")))
    with pytest.raises(ValueError, match="must be a complete and readable DDPM checkpoint|must be a folder"):
        Models((str(tmp_path),))
    VLBDDPMPipeline(tiny_unet(num_class_embeds=3), scheduler).save_pretrained(tmp_path / "classes")
    with pytest.raises(ValueError, match="must be an unconditional model"):
        Models((str(tmp_path / "classes"),))


def test_nobody_waits_long_for_one_visitor(models):
    r"""A network so slow that the default settings would take too long; how slow it is was measured when it was loaded."""
    assert 0 < models[DIGITS].seconds < models[MNIST].seconds < 1

    class Slow:
        names, device = models.names, "cpu"

        def __getitem__(self, name):
            return dataclasses.replace(models[name], seconds=10.0)

    for tab in (bound, reverse, rates, score):
        with pytest.raises(Refusal, match="At most 600 seconds .* which are 60 evaluations"):
            last(tab.compute(Slow(), DIGITS, *tab.DEFAULTS))


def test_a_watched_network_is_the_network(models):
    unet, watch = models[DIGITS].unet, Watch()
    twin = watch.network(unet)
    x = torch.randn(5, 1, 8, 8, generator=generator())
    with torch.no_grad():
        assert torch.equal(twin(x, 3).sample, unet(x, 3).sample)
    assert watch.evaluations == 5 and all(a is b for a, b in zip(twin.parameters(), unet.parameters()))
    watch.stop.set()
    with pytest.raises(Stopped):
        twin(x, 3)
    unet(x, 3)


def test_what_nobody_waits_for_ends(models):
    r"""A generator that is left stops the thread at its next call of the network."""
    watch = Watch()
    pipe = models[DIGITS].pipe(unet=watch.network(models[DIGITS].unet))
    running = watched(lambda: pipe.evaluate_nll(models[DIGITS].examples[:64]), watch, lambda done: done)
    done = [next(running), next(running)]
    assert 0 < done[1] < 64_000
    running.close()
    after = watch.evaluations
    assert watch.stop.is_set()
    with pytest.raises(Stopped):
        pipe.evaluate_nll(models[DIGITS].examples[:1])
    assert watch.evaluations - after <= 64  # the call that was going on
    with pytest.raises(ZeroDivisionError):
        list(watched(lambda: 1 / 0, Watch(), lambda done: done))


def test_pictures_keep_every_value():
    import io

    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    page = pictures.picture(image, 'a "caption" <b>')
    data = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert pictures.to_bytes(torch.tensor([[[[-1.5, -1.0, 0.0, 1.0]]]]))[0, 0, :, 0].tolist() == [0, 0, 128, 255]
    assert pictures.to_bytes(torch.tensor([[[[0, 8, 16]]]]), 17)[0, 0, :, 0].tolist() == [0, 128, 255]


def assert_is_page(page):
    r"""Well-formed, in the page's own colours, and asking for nothing from elsewhere."""
    closed = re.sub(r"(<img [^>]*)>", r"\1/>", page).replace("<tr class=strong>", "<tr>")
    ElementTree.fromstring(f"<div>{closed}</div>")
    assert pictures.INK not in page and pictures.PAPER not in page and ("currentColor" in page) == ("<svg" in page)
    assert not re.search(r"(?:href|src)=\"(?!data:|#)", page)
    # Words in English alone are names: of this code, and of the quantities.
    words = re.findall(r"<(?:text|th|figcaption)\b[^>]*>([^<]+)<", page)
    names = {"linear", "scaled_linear", "squaredcos_cap_v2", "alphas_cumprod", "SNR", "T", "prediction_type", "variance_type"}
    names |= {"bits/dim", "SNR = alphas_cumprod / (1 − alphas_cumprod)", "√alphas_cumprod · x_0 + √(1 − alphas_cumprod) · ε"}
    assert not [text for text in words if re.search(r"[A-Za-z]{3}", text) and html.unescape(text) not in names], words


def test_both_languages_say_the_same():
    english, japanese = texts.WORDS["en"], texts.WORDS["ja"]
    for part in ("page", "said", "plot"):
        assert list(english[part]) == list(japanese[part])
        for key, sentence in english[part].items():
            fields = re.findall(r"{(\w+)", sentence) if part != "page" else re.findall(r"`[^`]*`", sentence)
            others = (
                re.findall(r"{(\w+)", japanese[part][key]) if part != "page" else re.findall(r"`[^`]*`", japanese[part][key])
            )
            assert sorted(fields) == sorted(others), key
    source = "".join(path.read_text() for path in space_server.SPACE.rglob("*.py") if path.name != "pipeline.py")
    for key in english["said"] | english["plot"]:
        assert f'"{key}"' in source, key


def test_letterings_of_plots_are_in_both_languages():
    drawn = texts.lettering("held_out", count=360)
    svg = pictures.plot(lambda axes: axes.set(title=drawn, xlabel="squaredcos_cap_v2", ylabel="x < 3 & y"), label="a plot")
    assert drawn == "360 held-out images"
    assert '<tspan class="vlb-en" lang="en">360 held-out images</tspan>' in svg
    assert '<tspan class="vlb-ja" lang="ja">学習外の画像 360 枚</tspan>' in svg
    assert ">squaredcos_cap_v2</text>" in svg and ">x &lt; 3 &amp; y</text>" in svg


TOY = '''
import gradio as gr

from vlb_demo.texts import T

ENDPOINT = "toy"


def compute(steps: int):
    """The number that is given.

    Args:
        steps: the number.
    """
    return {"steps": steps}, f"<p>{steps}</p>", f"steps = {steps}"


def build(tab, models, model):
    with tab.controls():
        steps = gr.Slider(0, models[model.value].num_train_timesteps, label=T("steps"), elem_id="toy-steps")
    tab.follows(steps, lambda chosen: gr.update(maximum=chosen.num_train_timesteps))
    tab.show(compute(0))
    tab.live(compute, [steps])
'''


def test_a_tab_is_a_module_and_its_words(tmp_path, models, monkeypatch):
    import app

    folder = tmp_path / "tabs"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY)
    monkeypatch.setattr(tabs, "__path__", [*tabs.__path__, str(folder)])
    with pytest.raises(ValueError, match="`tabs` of words.toml must name the modules of tabs/"):
        app.build(models)
    monkeypatch.setitem(texts.WORDS, "tabs", ["toy", *texts.WORDS["tabs"]])
    # Smaller first pictures than a visitor's.
    monkeypatch.setattr(bound, "DEFAULTS", (0, 5, 2, *bound.DEFAULTS[3:]))
    monkeypatch.setattr(rates, "DEFAULTS", (0, 2, 10, 0))
    config = app.build(models).config
    named = [component["props"]["id"] for component in config["components"] if component["type"] == "tabitem"]
    assert [name for name in named if name in texts.WORDS["tabs"]] == texts.WORDS["tabs"]
    (endpoint,) = (event for event in config["dependencies"] if event["api_name"] == "toy")
    assert len(endpoint["outputs"]) == 3 and "The number that is given." in endpoint["api_description"]
    # What follows the model: of every tab what it said, the toy's slider among it.
    ids = {component["props"].get("elem_id"): component["id"] for component in config["components"]}
    (follow, *_) = (
        event
        for event in config["dependencies"]
        if event["targets"] == [(ids["model"], "change")] and len(event["outputs"]) > 3
    )
    expected = ["toy-steps", "forward-number", "forward-t", "score-drawing", "score-classes"]
    expected += [f"{name}-number" for name in ("bound", "score", "rates")] + [
        f"{name}-picture" for name in ("reverse", "bound", "score", "rates")
    ]
    assert sorted(follow["outputs"]) == sorted(ids[name] for name in expected)


def test_visitors_are_forgotten_before_they_fill_the_memory():
    r"""What Gradio keeps of a visitor stays until there are too many: the launched server's own limit is the app's."""
    import app
    import gradio as gr

    with gr.Blocks() as demo:
        gr.Markdown("a page")
    app.launch(demo, prevent_thread_lock=True, quiet=True)
    try:
        sessions = demo.app.get_blocks().state_holder
        for visitor in range(2 * app.MAX_SESSIONS):
            sessions[str(visitor)]
        assert len(sessions.session_data) == app.MAX_SESSIONS and str(2 * app.MAX_SESSIONS - 1) in sessions
    finally:
        demo.close(verbose=False)


def test_without_the_package_its_modules_are_the_carried_file(tmp_path):
    python = space_server.environment_without_the_package(tmp_path / "venv")
    code = """
import sys, vlb_demo
import ddpm_vlb.bound, ddpm_vlb.likelihoods.rate_distortion
from ddpm_vlb.data.levels import images_to_levels
from ddpm_vlb.likelihoods.rate_distortion import rate_distortion
from ddpm_vlb.no.place.yet import VLBDDPMPipeline
from ddpm_vlb import VLBDDPMScheduler
names = [name for name in sys.modules if name.split(".")[0] == "ddpm_vlb"]
assert {"ddpm_vlb.likelihoods", "ddpm_vlb.data.levels", "ddpm_vlb.no.place"} <= set(names), names
assert all(sys.modules[name] is sys.modules["ddpm_vlb"] for name in names)
assert callable(rate_distortion) and ddpm_vlb.__file__ == str(vlb_demo.CARRIED) == ddpm_vlb.__spec__.origin
"""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean |= {"SOCKETS": str(tmp_path / "sockets.txt")}
    done = subprocess.run([python, "-c", code], cwd=space_server.SPACE, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_carried_file_is_the_package():
    path = space_server.SPACE / "checkpoints" / DIGITS / "pipeline.py"
    assert path.read_text() == standalone_source(), f"make {path.relative_to(space_server.SPACE.parent)}"


def test_zero_gpu_is_asked_for_where_it_is(monkeypatch):
    r"""`spaces` is on Spaces alone; what stands for it here notes what it was put around."""
    asked = []
    spaces = types.ModuleType("spaces")
    spaces.GPU = lambda function: asked.append(function.__module__) or function
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    # The demo's modules once more, beside those that are there.
    for name in [name for name in sys.modules if name.partition(".")[0] == "vlb_demo"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module("vlb_demo.tabs").find_tabs()
    assert sorted(asked) == [f"vlb_demo.tabs.{name}" for name in ("bound", "rates", "reverse", "score")]


def test_a_wrong_model_ends_the_start_with_a_line(tmp_path, monkeypatch):
    import app

    monkeypatch.setattr(sys, "argv", ["app.py", "--model", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code.startswith("app.py: `pretrained_model") and "\n" not in ended.value.code
