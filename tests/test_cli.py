import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import generator, quiet, tiny_unet
from PIL import Image

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.cli import main
from ddpm_vlb.data import load_images

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkpoint(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def run(*arguments, cwd):
    command = [str(Path(sys.executable).with_name("ddpm-vlb")), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_evaluate_in_a_process_of_its_own(checkpoint, pipe, tmp_path):
    result = run(
        "evaluate",
        checkpoint,
        "--dataset",
        "digits",
        "--max-images",
        6,
        "--method",
        "full",
        "--batch-size",
        4,
        "--seed",
        3,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    images = load_images("digits", "test", 6).images
    expected = quiet(pipe).evaluate_nll(images, generator=generator(3)).bits_per_dim
    assert np.allclose(report["per_image"], expected.numpy(), atol=2e-5)
    assert f"{report['bits_per_dim']:.4f}" in result.stdout and report["config"]["split"] == "test"
    assert "ignored" not in result.stderr and "Warning" not in result.stderr


def test_sample(checkpoint, tmp_path):
    result = run("sample", checkpoint, "--num-images", 4, "--num-inference-steps", 5, "--output", "grid.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (136, 136) and len(grid.getcolors(100000)) > 4


def test_options(checkpoint, tmp_path):
    def report(*options):
        output = tmp_path / "out.json"
        assert (
            main(["evaluate", str(checkpoint), "--max-images", "3", "--method", "full", "--output", str(output), *options]) == 0
        )
        return json.loads(output.read_text())

    assert report("--dataset", "digits", "--num-inference-steps", "4")["num_network_evaluations"] == 12
    assert report("--dataset", "digits", "--dtype", "bf16")["config"]["dtype"] == "bfloat16"
    assert report("--dataset", "digits", "--no-clip-sample")["config"]["clip_sample"] is False
    assert report("--dataset", "digits", "--split", "train")["config"]["split"] == "train"
    np.savez(tmp_path / "eight_bit.npz", images=np.full((3, 8, 8), 255, dtype=np.uint8))
    assert report("--dataset", str(tmp_path / "eight_bit.npz"), "--quantize")["config"]["quantized"] is True
    assert (
        report("--dataset", str(tmp_path / "eight_bit.npz"), "--num-pixel-levels", "256")["config"]["num_pixel_levels"] == 256
    )


def test_class_conditional_checkpoints_take_the_labels_of_the_data(tmp_path):
    pipe = VLBDDPMPipeline(tiny_unet(num_class_embeds=10), VLBDDPMScheduler(4, num_pixel_levels=17))
    pipe.save_pretrained(tmp_path / "pipeline")
    output = ["--output", str(tmp_path / "r.json")]
    assert (
        main(["evaluate", str(tmp_path / "pipeline"), "--dataset", "digits", "--max-images", "3", "--method", "full", *output])
        == 0
    )
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 8, 8), dtype=np.uint8))
    assert main(["evaluate", str(tmp_path / "pipeline"), "--dataset", str(tmp_path / "a.npz"), *output]) == 2
    samples = ["sample", str(tmp_path / "pipeline"), "--num-images", "2", "--output", str(tmp_path / "s.png")]
    assert main(samples) == 2 and main([*samples, "--class-label", "3"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "{}", "--dataset", "missing.npz"], "`dataset` must be a file or folder"),
        (["evaluate", "{}", "--dataset", "digits", "--split", "valid"], "`split` must be"),
        (["evaluate", "{}", "--dataset", "digits", "--max-images", "0"], "`max_images` must be at least 1"),
        (["evaluate", "{}", "--dataset", "digits", "--batch-size", "0"], "`batch_size` must be"),
        (["evaluate", "{}", "--dataset", "digits", "--num-inference-steps", "21"], "`num_inference_steps` must lie"),
        (["evaluate", "{}", "--dataset", "digits", "--output", "nowhere/r.json"], "`output` must be a file"),
        (["evaluate", "{}", "--dataset", "digits", "--output", "/proc/r.json"], "`output` must be a file"),
        (["evaluate", "{}", "--dataset", "digits", "--plot", "report.json"], "`output`, `plot` and `scores` must be different"),
        (["evaluate", "{}", "--dataset", "digits", "--buffer-mb", "0"], "`buffer_mb` must be a positive number, got 0"),
        (["evaluate", "{}", "--dataset", "digits", "--scores", "s.csv"], "`scores` needs a score for each image"),
        (["evaluate", "{}", "--dataset", "digits", "--shard", "2/2"], "`shard` must be I/N with 0 <= I < N, got '2/2'"),
        (["evaluate", "{}", "--dataset", "digits", "--num-pixel-levels", "256"], "Give --num-pixel-levels 17"),
        (["evaluate", "{}-not", "--dataset", "digits"], "`pretrained_model_name_or_path` must"),
        (["sample", "{}", "--num-images", "0"], "`num_images` must be at least 1"),
        (["sample", "{}", "--class-label", "1"], "`class_labels` must be left out"),
        (["evaluate", "{}", "--dataset", "digits", "--device", "nonsense"], "`device` must be"),
    ],
)
def test_mistakes_are_one_line_on_stderr(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(checkpoint) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and not (tmp_path / "report.json").exists()


def test_the_quickstart_script(tmp_path):
    script = [sys.executable, str(ROOT / "training" / "quickstart.py"), "--output", "runs/quickstart"]
    for _ in range(2):  # the second run replaces what the first one made
        result = subprocess.run(
            [*script, "--train-steps", "3", "--num-images", "4"], cwd=tmp_path, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
    made = sorted(path.name for path in (tmp_path / "runs" / "quickstart").iterdir())
    assert made == ["pipeline", "report.json", "samples.png", "terms.png", "trajectories.png"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["quickstart"]
    report = json.loads((tmp_path / "runs" / "quickstart" / "report.json").read_text())
    assert report["num_images"] == 4 and "per-pixel marginal" in result.stdout
    pipe = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "runs" / "quickstart" / "pipeline"))
    again = pipe.evaluate_nll(load_images("digits", "test", 4).images, generator=generator()).bits_per_dim
    assert np.allclose(again.numpy(), report["per_image"], atol=2e-5)
