import copy
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import generator, quiet, tiny_unet
from zygote import shared

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.calibration import calibrate
from ddpm_vlb.cli import build_parser, main
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation import make_report, write_report
from ddpm_vlb.hub.cards import METRIC, check_card, model_card, reproducing_command
from ddpm_vlb.hub.eval_results import EVAL_RESULTS, check_eval_results, eval_result_entries, eval_results_file
from ddpm_vlb.reports.schema import Report, public_report, read_report

PACKAGE = Path(__file__).parents[1] / "ddpm_vlb"
CHECKPOINTS = PACKAGE.parent / "spaces_demo" / "checkpoints"


@pytest.fixture
def report(pipe, images):
    output = pipe.evaluate_nll(images, generator=generator())
    report = make_report(output, dataset="digits", split="test", checkpoint="tiny", description="A tiny model.")
    return report.with_settings(max_images=5)


def test_the_card_says_what_the_report_says(report):
    text = str(model_card(report, repository="me/tiny", pictures=[("Samples", "s.png")]))
    _, front, body = text.split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["library_name"] == "diffusers" and data["license"] == "apache-2.0" and data["datasets"] == ["digits"]
    assert data["pipeline_tag"] == "unconditional-image-generation" and "likelihood" in data["tags"]
    (result,) = data["model-index"][0]["results"]
    (metric,) = result["metrics"]
    assert metric["value"] == report["bits_per_dim"] and math.isfinite(metric["value"])
    expected = {"num_train_timesteps": 20, "standard_error": report["standard_error"], "seed": 0, "clip_sample": True}
    expected |= {"num_pixel_levels": 17, "split": "test", "decoder_variance": report["config"]["decoder_variance"]}
    assert expected.items() <= metric["args"].items()
    for key in ("bits_per_dim", "prior", "transitions_total", "decoder", "standard_error"):
        assert f"{report[key]:.4f}" in body
    assert "![Samples](s.png)" in body and "A tiny model." in body and report["config"]["decoder_variance"] in body
    for way in ('VLBDDPMPipeline.from_pretrained("me/tiny"', ' DDPMPipeline.from_pretrained("me/tiny"', 'name = "me/tiny"'):
        assert way in body
    assert "ddpm-vlb evaluate me/tiny --dataset digits --split test" in body and "num_inference_steps=20" in body
    assert "{{" not in text and "{%" not in text
    check_card(text, report)


def test_without_a_report_there_is_no_number():
    text = str(model_card(None, repository="me/tiny", settings={"num_train_timesteps": 300}))
    assert "has not been scored" in text and "bits_per_dim" not in text and "num_inference_steps=300" in text


# What is asked of `ddpm-vlb evaluate`, and what its report's command says of it, and does not.
COMMANDS = {
    "full, another grid": (
        ["--method", "full", "--no-clip-sample", "--num-pixel-levels", "33", "--quantize"],
        ["--no-clip-sample", "--quantize"],
    ),
    "sampled": (["--max-evaluations", "300", "--target-se", "0.5"], ["--target-se 0.5", "--max-evaluations 300"]),
    "per image": (["--per-image", "4", "--batch-size", "7"], ["--per-image 4", "--batch-size 7"]),
    "iw": (["--method", "iw", "--k", "2"], ["--method iw", "--k 2"]),
    "ode": (
        "--method ode --trace hutchinson --num-probes 2 --num-draws 3 --rtol 0.1 --atol 0.2 --max-images 1".split(),
        ["--method ode", "--trace hutchinson", "--num-probes 2", "--num-draws 3", "--rtol 0.1", "--atol 0.2"],
    ),
    "a shard": (["--method", "full", "--shard", "1/2", "--split", "train"], ["--shard 1/2", "--split train"]),
    "random images": (["--image-seed", "3", "--method", "full"], ["--max-images 3 --image-seed 3"]),
    "pictures": (
        ["--dataset", "photos", "--convert", "L", "--resize", "9", "--center-crop", "8", "--quantize", "--method", "full"],
        ["--convert L --resize 9 --center-crop 8"],
    ),
    "columns": (
        ["--dataset", "rows", "--image-column", "image", "--label-column", "size", "--quantize", "--method", "full"],
        ["--image-column image --label-column size"],
    ),
    "half": (["--method", "full", "--dtype", "bf16"], ["--dtype bfloat16"]),
    "autocast": (["--method", "full", "--dtype", "autocast-bf16"], ["--dtype autocast-bfloat16"]),
    "some in memory": (["--max-images", "300", "--buffer-mb", "0.01", "--max-evaluations", "300"], ["--buffer-mb 0.00"]),
    "calibrated": (["--method", "full"], ["--num-inference-steps"]),
    "not calibrated": (["--method", "full", "--no-calibration"], ["--no-calibration"]),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    r"""A checkpoint with a calibration, and one without."""
    folder = tmp_path_factory.mktemp("checkpoints")
    pipe = quiet(VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(20, num_pixel_levels=17)))
    pipe.save_pretrained(folder / "plain")
    images = load_images("digits", "train", 32)
    pipe.scheduler = calibrate(pipe, images, num_timesteps=6, evaluations=480, quiet=True).scheduler
    pipe.save_pretrained(folder / "calibrated")
    (folder / "photos").mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (20 + index, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{index}.png")
    features = datasets.Features({"image": datasets.Image(), "size": datasets.Value("int64"), "mask": datasets.Image()})
    small = [Image.new("L", (8, 8), 20 * index) for index in range(3)]
    rows = datasets.Dataset.from_dict({"image": small, "size": [1, 2, 3], "mask": small[::-1]}, features=features)
    rows.to_parquet(folder / "rows" / "test.parquet")
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_of_a_card_gives_its_number_again(name, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(checkpoint)
    arguments, said = COMMANDS[name]
    folder = "calibrated" if "calibrated" in name else "plain"
    steps = [] if "calibrated" in name else ["--num-inference-steps", "4"]
    first, second = (str(tmp_path / f"{which}.json") for which in ("first", "second"))
    evaluate = ["evaluate", folder, "--dataset", "digits", "--max-images", "3", "--seed", "5", *steps, *arguments]
    assert main([*evaluate, "--output", first]) == 0
    report = read_report(first)
    text = str(model_card(report, repository=folder))
    line = reproducing_command(report, folder)
    check_card(text, report)
    assert f"\n{line}\n" in text and all(words in line for words in said)
    assert ("--no-calibration" in line) == ("--no-calibration" in arguments)
    words = shlex.split(line)
    assert words[:3] == ["ddpm-vlb", "evaluate", folder] and build_parser().parse_args(words[1:])
    assert main([*words[1:], "--output", second]) == 0
    # It says what the first left to the scheduler, too.
    again = read_report(second)
    assert again.with_settings(overridden=report.config["overridden"]) == report


def test_what_no_command_can_say_has_none(pipe, images):
    for arguments in ({"inference_timesteps": [19, 10, 3, 0]}, {"thresholding": True}, {}):
        output = pipe.evaluate_nll(images, generator=generator(), **arguments)
        report = make_report(output, dataset="digits", split="test", checkpoint="tiny")
        report = report.with_settings(max_images=None) if arguments else report
        text = str(model_card(report, repository="me/tiny"))
        assert "ddpm-vlb evaluate" not in text and "which no command line can say" in text
        check_card(text, report)
    report = report.with_settings(max_images=5)
    assert reproducing_command(report, "me/tiny")
    settings = [
        {"dtype": "float64"},
        {"rows": [1, 5]},
        {"overridden": ["something"]},
        {"dataset": "images in memory"},
        {"shard": {"of": 2, "indices": [0, 1]}},
        {"seed": [0, 1]},
        {"seed": None},
    ]
    # Not checked as reports, which most of them are not.
    for unsaid in (*({"config": report.config | these} for these in settings), {"method": "full, mean of 4 sweeps"}):
        assert reproducing_command(dict(report) | unsaid, "me/tiny") is None


def test_stock_diffusers_is_not_promised_what_it_cannot_do():
    for settings, reason in (
        ({"variance_type": "learned"}, "cannot sample from it (variance_type: learned)"),
        ({"timestep_spacing": "trailing"}, "cannot sample from it (timestep_spacing: trailing)"),
        ({"num_class_embeds": 10}, "knows no classes"),
    ):
        text = str(model_card(None, repository="me/tiny", settings={"num_train_timesteps": 20, **settings}))
        assert reason in text and "import DDPMPipeline" not in text
        assert ("class_labels=labels" in text) == ("num_class_embeds" in settings)


def test_paths_of_this_machine_are_not_shown(report, tmp_path):
    data = tmp_path / "images.npz"
    np.savez(data, images=load_images("digits", "test", 2).images.numpy())
    report = report.with_settings(checkpoint=str(tmp_path / "somewhere"), dataset=str(data), split=None)
    text = str(model_card(report, repository="me/tiny"))
    assert str(tmp_path) not in text + json.dumps(public_report(report, "me/tiny")) and "--dataset images.npz" in text
    check_card(text, report)
    report = report.with_settings(command=f"make it --data={data} --from {tmp_path} ../up", notes=str(tmp_path))
    text = str(model_card(report, repository="me/tiny")) + json.dumps(public_report(report, "me/tiny"))
    assert str(tmp_path) not in text and f"make it --data=images.npz --from {tmp_path.name} up\n" in text


def changed(report, **changes):
    report = copy.deepcopy(dict(report))
    for key, value in changes.items():
        place = report["config"] if key in report["config"] else report
        place[key] = value
    return report


def test_reports_that_are_none_are_refused(report):
    missing = {key: value for key, value in report.items() if key != "decoder"}
    lower = changed(report, per_image=[value - 1e-3 for value in report["per_image"]])
    cases = [
        ([], "must be a dictionary"),
        (missing, "must have the key 'decoder'"),
        (changed(report, config={}), "must say in its config what was scored, got none of network_sha256, num_train_timesteps"),
        (changed(report, decoder=report["decoder"] + 1e-3), "must have terms that sum to its total"),
        (changed(report, bits_per_dim=math.nan), "`report.bits_per_dim` must be finite"),
        (changed(report, bits_per_dim=np.float64(1.0)), "must have a float for 'bits_per_dim', got float64"),
        (changed(report, clip_sample=np.True_), "`report.config.clip_sample` must be a plain value"),
        (changed(report, bits_per_dim="1.0"), "must have a float for 'bits_per_dim', got str"),
        (changed(report, num_images=True), "must have a int for 'num_images', got bool"),
        (changed(report, transitions=report["transitions"][:-1]), "one transition and one timestep per step"),
        (changed(report, transitions=[0.0] * 19), "transitions that sum to their total"),
        (changed(report, transitions=[None] * 19), "a number for every timestep of a full sweep"),
        (changed(report, per_image=["1"] * 5), "`report.per_image[0]` must be a number, got '1'"),
        (changed(report, transitions=["1"] * 19), "`report.transitions[0]` must be a number"),
        (changed(report, num_steps="20"), "`report.config.num_steps` must be a positive integer"),
        (changed(report, num_images=0), "must have evaluated each image at every step"),
        (changed(report, num_network_evaluations=7), "must have evaluated each image at every step"),
        (changed(report, method="guessed"), "a method that begins with 'sampled' or 'full' or 'iw' or 'ode', got 'guessed'"),
        (changed(report, versions=[1]), "`report.config.versions` must be a dictionary"),
        (changed(report, num_train_timesteps=4000), "must name the sub-sequence it is of"),
        (changed(report, standard_error=-5.0), "a standard error that is not negative"),
        (changed(report, method="sampled"), "must have the key 'degrees_of_freedom'"),
        (lower, "images whose mean is its total"),
        (changed(report, standard_error=report["standard_error"] / 2), "a standard error that its images have"),
        (changed(report, prior=-1.0, decoder=report["decoder"] + report["prior"] + 1.0), "terms that are not negative"),
    ]
    for bad, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            Report(bad)
        with pytest.raises(ValueError):
            model_card(bad, repository="me/tiny")


def test_cards_that_say_something_else_are_refused(report):
    text = str(model_card(report, repository="me/tiny"))
    value, error = report["bits_per_dim"], report["standard_error"]
    decoder = f"| L_0 (decoder) | {report['decoder']:.4f} |"
    agrees = "`card` must agree with its report, got the line"
    cases = [
        (text.replace(f"value: {value!r}", f"value: {value - 0.5!r}"), f"{agrees} '      value: "),
        (text.replace(f"standard_error: {error!r}", "standard_error: .nan"), "must be finite"),
        (text.replace(f"standard_error: {error!r}", "standard_error: !!python/object/apply:numpy.float64 [1.0]"), "plain YAML"),
        (text.replace(f"value: {value!r}", "value: !!binary AAAA"), "must be a plain value of Python, got bytes"),
        (text.replace(f"**{value:.4f} bits/dim**", "**0.0001 bits/dim**"), agrees),
        (text.replace(f"({error:.4f} standard error)", "(0.0001 standard error)"), agrees),
        (text.replace("on 5 images of digits", "on 60000 images of CIFAR-10"), agrees),
        (text.replace(decoder, "| L_0 (decoder) | 0 |"), agrees),
        (text.replace(decoder, f"| L_0 (decoder) | 0.0001 |\n<!--\n{decoder}\n-->"), agrees),
        (text.replace("## Limits", "Exact NLL: 0.123 bits/dim.\n\n## Limits"), agrees),
        (text.replace("--split test", "--split train"), agrees),
        (text.replace("library_name: diffusers\n", ""), "got none of library_name"),
        (text.replace("license: apache-2.0", "license: mit"), agrees),
        (text.replace("- likelihood\n", ""), agrees),
        (text.replace("datasets:\n- digits", "datasets:\n- uoft-cs/cifar10"), agrees),
        (text.replace("seed: 0", "seed: 1"), agrees),
        (text.replace('name = "me/tiny"', 'name = "evil/other"'), agrees),
        (text.replace(' DDPMPipeline.from_pretrained("me/tiny")', ' DDPMPipeline.from_pretrained("evil/other")'), agrees),
        (text + "\nmore", agrees),
        (text[4:], "must begin with its metadata"),
        ("---\n- 1\n---\n", "metadata of keys and values"),
        ("---\n{\n---\n", "plain YAML"),
        (text.split("## Use")[0], "must say how the checkpoint is loaded"),
    ]
    for bad, message in cases:
        assert bad != text
        with pytest.raises(ValueError, match=re.escape(message)):
            check_card(bad, report)
    other = changed(report, seed=7)
    with pytest.raises(ValueError, match="must agree with its report"):
        check_card(text, other)


def test_the_command_line(pipe, images, tmp_path, capsys):
    folder = tmp_path / "tiny"
    pipe.save_pretrained(folder)
    output = tmp_path / "report.json"
    assert (
        main(["evaluate", str(folder), "--dataset", "digits", "--max-images", "3", "--method", "full", "--output", str(output)])
        == 0
    )
    arguments = ["card", str(folder), "--report", str(output), "--num-images", "4"]
    assert main([*arguments, "--repository", "me/tiny", "--description", "It is small."]) == 0
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {"model_index.json", "pipeline.py", "README.md", "report.json", "terms.png", "samples.png"}
    card = (folder / "README.md").read_text()
    assert "It is small." in card and "![Samples](samples.png)" in card and "ddpm-vlb evaluate me/tiny" in card
    assert main(["card", "--check", str(folder)]) == 0
    capsys.readouterr()
    results = folder / EVAL_RESULTS
    written = results.read_text()
    for bad, message in (
        (written.replace("value: ", "value: 1"), "`.eval_results/ddpm-vlb.yaml` must agree with its report, got value"),
        (written.replace("standard error", "error"), "must agree with its report, got notes"),
        (written + written, "must have the 1 results of its report, got 2"),
        ("{", "must be a list of results, got ParserError"),
        ("- value: 1", "must be a list of results, got KeyError"),
    ):
        assert bad != written
        results.write_text(bad)
        assert main(["card", "--check", str(folder)]) == 2 and message in capsys.readouterr().err
    results.write_text(written)
    assert main(["card", "--check", str(folder)]) == 0
    capsys.readouterr()
    (folder / "README.md").write_text(card.replace(" (decoder) |", " (decoder) | 1"))
    assert main(["card", "--check", str(folder)]) == 2 and "`card` must agree" in capsys.readouterr().err
    (folder / "README.md").unlink()
    assert main(["card", "--check", str(folder)]) == 2 and "must hold a card" in capsys.readouterr().err
    # NaN is no number of JSON, but Python reads it.
    (folder / "report.json").write_text(output.read_text().replace('"seed": 0', '"seed": NaN'))
    assert main(["card", str(folder)]) == 2 and "`report.config.seed` must be finite" in capsys.readouterr().err
    # A report of another scheduler, or of other weights.
    place = folder / "scheduler" / "scheduler_config.json"
    before = place.read_text()
    changes = [{"variance_type": "fixed_large"}, {"clip_sample_range": 0.3}, {"clip_sample": False}, {"beta_end": 0.1}]
    for change in changes:
        place.write_text(json.dumps(json.loads(before) | change))
        assert main(arguments) == 2 and f"of this pipeline, got {next(iter(change))}" in capsys.readouterr().err
    place.write_text(before)
    unet = folder / "unet" / "config.json"
    before = unet.read_text()
    unet.write_text(json.dumps(json.loads(before) | {"freq_shift": 1}))
    assert main(arguments) == 2 and "of this pipeline, got network_sha256" in capsys.readouterr().err
    unet.write_text(before)
    report = read_report(output)
    write_report(report.with_settings(network_sha256="0" * 64, overridden=["network_sha256"]), output)
    assert main(arguments) == 2 and "of this pipeline, got network_sha256" in capsys.readouterr().err
    assert not (folder / "README.md").exists()
    assert main(["card", str(tmp_path / "nothing")]) == 2 and "`report` must be a JSON file" in capsys.readouterr().err


def test_results_name_a_data_set_of_the_hub_or_are_not_there(pipe, images):
    out = pipe.evaluate_nll(images, generator=generator())
    assert eval_results_file(make_report(out), "me/tiny") is None  # images in memory are no data set
    for dataset, expected in (("digits", "digits"), ("ylecun/mnist", "ylecun/mnist"), ("owner/name:part", "owner/name")):
        report = make_report(out, dataset=dataset, split="test")
        (entry,) = eval_result_entries(report, "me/tiny")
        assert (entry.dataset_id, entry.task_id, entry.value) == (expected, "bits_per_dim", report["bits_per_dim"])
        check_eval_results(eval_results_file(report, "me/tiny"), report, "me/tiny")
    assert eval_result_entries(make_report(out, dataset="a b"), "me/tiny") == []


def test_the_benchmark_that_pages_show_has_our_task():
    for page in ("README.md", "README.ja.md"):
        (block,) = re.findall(r"```yaml\n(.*?)```", (PACKAGE / "hub" / page).read_text(), flags=re.DOTALL)
        benchmark = yaml.safe_load(block)
        assert [task["id"] for task in benchmark["tasks"]] == [METRIC] and benchmark["name"]


@pytest.mark.parametrize("name", ["ddpm-vlb-digits", "ddpm-vlb-mnist"])
def test_the_shipped_cards_pass_the_check_without_a_network(name, tmp_path):
    shutil.copytree(CHECKPOINTS / name, tmp_path / name)
    done = shared().run("-m", "ddpm_vlb", "card", "--check", tmp_path / name)
    assert done.returncode == 0, done.stderr
