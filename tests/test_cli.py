import inspect
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import generator, quiet, tiny_unet
from zygote import shared

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler, files
from ddpm_vlb.cli import build_parser, main
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation import compare, evaluate

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkpoint(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_evaluate_in_a_process_of_its_own(checkpoint, pipe, tmp_path):
    command = [
        Path(sys.executable).with_name("ddpm-vlb"),
        "evaluate",
        checkpoint,
        "--dataset",
        "digits",
        "--max-images=6",
        "--method",
        "full",
        "--batch-size=4",
        "--seed=3",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    images = load_images("digits", "test", 6).images
    expected = quiet(pipe).evaluate_nll(images, generator=generator(3)).bits_per_dim
    assert np.allclose(report["per_image"], expected.numpy(), atol=2e-5)
    assert f"{report['bits_per_dim']:.4f}" in result.stdout and report["config"]["split"] == "test"
    assert "ignored" not in result.stderr and "Warning" not in result.stderr


def test_sample(checkpoint, tmp_path):
    sample = ["-m", "ddpm_vlb", "sample", checkpoint, "--num-images", 4, "--num-inference-steps", 5, "--output", "grid.png"]
    result = shared().run(*sample, cwd=tmp_path)
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


def test_what_flags_alone_forbid_is_refused_before_torch_is_there(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    data = ["folder", "--dataset", "digits"]
    cases = [
        (["evaluate", *data, "--k", "4"], "`k` must be left out unless method='iw', got 4 with"),
        (
            ["evaluate", *data, "--method", "iw", "--trace", "exact"],
            "`trace` must be left out unless method='ode', got 'exact' with",
        ),
        (["evaluate", *data, "--method", "full", "--target-se", "0.1"], "`target_se` must be left out unless method='sampled'"),
        (["evaluate", *data, "--method", "ode", "--per-image", "2"], "`evaluations_per_image` must be left out unless"),
        (["evaluate", *data, "--method", "iw", "--plot", "a.png"], "`plot` draws the terms of the bound, and there are none"),
        (["evaluate", *data, "--scores", "a.csv"], "`scores` needs a score for each image: give --per-image K"),
        (["evaluate", *data, "--method", "full", "--scores", "a.txt"], "`scores` must end in .csv or .parquet, got 'a.txt'."),
        (["evaluate", *data, "--shard", "1"], "`shard` must be I/N with 0 <= I < N, got '1'."),
        (["evaluate", *data, "--seed", "-1"], "`seed` must lie in [0, 2^63), got -1."),
        (["evaluate", *data, "--batch-size", "0"], "`batch_size` must be a positive integer, got 0."),
        (
            ["evaluate", *data, "--revision", "main"],
            "`revision` must be left out for a folder, which has only one, got 'main'.",
        ),
        (["evaluate", *data, "--image-seed", "0"], "`image_seed` must be given with --max-images, got 0."),
        (["calibrate", *data, "--output", "new", "--resize", "0"], "`resize` must be a positive integer, got 0."),
        (["compare", "folder", *data, "--streaming", "--label-column", "a"], "`label_column` must be left out with --str"),
        (["compare", "folder", *data, "--max-images", "0"], "`max_images` must be at least 1, got 0."),
        (["compare", "folder", *data, "--revision-b", "main"], "`revision` must be left out for a folder"),
        (["calibrate", *data, "--output", "folder"], "`output` must be a folder that does not exist yet, or an empty one"),
        (["evaluate", *data, "--num-inference-steps", "0"], "`num_inference_steps` must be at least 1, got 0."),
        (["evaluate", *data, "--num-pixel-levels", "1"], "`num_pixel_levels` must be an integer from 2 to 65536, got 1."),
        (["evaluate", *data, "--expected-processes", "0"], "`expected_processes` must be at least 1, got 0."),
        (
            ["evaluate", *data, "--streaming"],
            "`dataset` must be a folder or a data set of the Hub to be streamed, got 'digits'.",
        ),
        (["evaluate", *data, "--target-se", "0"], "`target_se` must be a positive number of bits/dim, got 0.0."),
        (["evaluate", *data, "--max-evaluations", "0"], "`max_evaluations` must be at least 1, got 0."),
        (["evaluate", *data, "--per-image", "3"], "`evaluations_per_image` must be an even number from 2 on, got 3."),
        (["evaluate", *data, "--per-image", "4", "--target-se", "1"], "`evaluations_per_image` says when to stop: leave out"),
        (["evaluate", *data, "--method", "iw", "--k", "0"], "`k` must be at least 1, got 0."),
        (["evaluate", *data, "--method", "ode", "--dtype", "bf16"], "`dtype` must be float32 with --method ode, got 'bf16'."),
        (
            ["evaluate", *data, "--method", "ode", "--num-inference-steps", "1"],
            "`num_inference_steps` must be at least 2 with --method ode, got 1.",
        ),
        (["evaluate", *data, "--shard", "3/4", "--max-images", "3"], "`shard` must have one of the 3 images, got '3/4'."),
        (["compare", "folder", *data, "--target-se", "-1"], "`target_se` must be a positive number of bits/dim, got -1.0."),
        (["compare", "folder", *data, "--num-inference-steps-b", "0"], "`num_inference_steps_b` must be at least 1, got 0."),
        (["compare", "folder", *data, "--class-label-a", "-2"], "`class_label_a` must not be negative, got -2."),
        (["calibrate", *data, "--output", "new", "--num-timesteps", "1"], "`num_timesteps` must be at least 2, got 1."),
        (["calibrate", *data, "--output", "new", "--evaluations", "9"], "`evaluations` must be at least 32, got 9."),
        (["calibrate", *data, "--output", "new", "--max-images", "9"], "`max_images` must be at least 16, got 9."),
        (["calibrate", *data, "--output", "new", "--target-se", "0"], "`target_se` must be a positive number of bits/dim"),
        (["sample", "folder", "--num-inference-steps", "-1"], "`num_inference_steps` must be at least 1, got -1."),
        (["sample", "folder", "--class-label", "-1"], "`class_label` must not be negative, got -1."),
        (
            ["card", "--check", "folder", "--description", "x"],
            "`description` must be left out with --check, which writes nothing",
        ),
        (["convert-openai", "weights.pt", "new", "--num-heads", "0"], "`num_heads` must be at least 1, got 0."),
        (["convert-openai", "weights.pt", "new", "--dropout", "1"], "`dropout` must lie in [0, 1), got 1.0."),
        (["merge", "missing.json"], "`report` must be a JSON file"),
        (["sample", "folder", "--batch-size", "0"], "`batch_size` must be at least 1, got 0."),
        (["card", "folder", "--num-images", "-1"], "`num_images` must not be negative, got -1."),
        (["push", "folder", "a/b/c"], "`repository` must be"),
        (["convert-openai", "weights.pt", "folder"], "`output` must be a folder that does not exist yet, or an empty one"),
    ]
    code = f"""
import sys
from ddpm_vlb.cli import build_parser, main
for arguments in {[arguments for arguments, _ in cases]}:
    assert main(arguments) == 2 and "torch" not in sys.modules, arguments
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == len(cases)
    for line, (arguments, message) in zip(lines, cases):
        assert line.startswith(f"ddpm-vlb {arguments[0]}: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_every_command_keeps_off_what_another_process_writes(checkpoint, tmp_path, capsys, monkeypatch):
    out, folder = tmp_path / "out", str(checkpoint)
    commands = (
        ["evaluate", folder, "--dataset", "digits", "--output", str(out)],
        ["evaluate", folder, "--dataset", "digits", "--output", str(tmp_path / "report.json"), "--plot", str(out)],
        ["compare", folder, folder, "--dataset", "digits", "--output", str(out)],
        ["calibrate", folder, "--dataset", "digits", "--output", str(out)],
        ["calibrate", folder, "--dataset", "digits", "--output", str(tmp_path / "new"), "--plot", str(out)],
        ["sample", folder, "--output", str(out)],
        ["convert-openai", "weights.pt", str(out)],
    )
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(files, "SECONDS_BETWEEN_TRIES", 0.001)
    with files.locked(out):
        for command in commands:
            assert main(command) == 2
            said = f"ddpm-vlb {command[0]}: `output` must be written by one process at a time, got {str(out)!r}, which process"
            assert capsys.readouterr().err.startswith(f"{said} {os.getpid()} has")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plot_of_what_has_no_terms_is_refused_before_anything_is_written(checkpoint, tmp_path, capsys):
    shards = [str(tmp_path / f"{shard}.json") for shard in range(2)]
    for shard, output in enumerate(shards):
        options = ["--method", "iw", "--k", "2", "--max-images", "4", "--shard", f"{shard}/2", "--output", output]
        assert main(["evaluate", str(checkpoint), "--dataset", "digits", *options]) == 0
    merge = ["merge", *shards, "--output", str(tmp_path / "both.json")]
    assert main([*merge, "--plot", str(tmp_path / "terms.png")]) == 2 and not (tmp_path / "both.json").exists()
    assert "`plot` draws the terms of the bound, and there are none with 'iw" in capsys.readouterr().err
    assert main([*merge, "--scores", str(tmp_path / "scores.csv")]) == 0
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 5


def test_the_ode_says_what_it_costs_before_it_starts(checkpoint, tmp_path, capsys):
    arguments = ["evaluate", str(checkpoint), "--dataset", "digits", "--max-images", "1", "--num-inference-steps", "2"]
    arguments += ["--output", str(tmp_path / "report.json")]
    assert main([*arguments, "--method", "ode", "--trace", "hutchinson"]) == 0
    said, evaluations = capsys.readouterr().err, json.loads((tmp_path / "report.json").read_text())["num_network_evaluations"]
    assert "ode: the solver calls the network a hundred times and more for each image" in said and evaluations > 1
    assert "(the default up to D = 256) for D = 64 evaluations at a time" in said
    assert main([*arguments, "--method", "iw", "--k", "1"]) == 0
    assert "solver" not in capsys.readouterr().err


def test_help_has_examples_that_are_understood():
    (commands,) = (action for action in build_parser()._actions if action.dest == "command")
    for name, parser in commands.choices.items():
        title, *lines = parser.epilog.splitlines()
        assert title == "examples:" and 1 <= len(lines) <= 3 and parser.description
        for line in lines:
            assert shlex.split(line)[:2] == ["ddpm-vlb", name]
            build_parser().parse_args(shlex.split(line)[1:])  # exits where it is not


def test_help_says_the_defaults_of_the_code():
    import ddpm_vlb.calibration.measure as calibration
    from ddpm_vlb.cli import calibrate as command_calibrate
    from ddpm_vlb.cli import options
    from ddpm_vlb.data.frame import BUFFER_BYTES
    from ddpm_vlb.likelihoods.methods import MAX_EVALUATIONS, METHODS, TARGET_SE

    (commands,) = (action for action in build_parser()._actions if action.dest == "command")
    calibrate = commands.choices["calibrate"]
    assert calibrate.get_default("evaluations") == calibration.EVALUATIONS
    assert command_calibrate.MIN_IMAGES == calibration.MIN_IMAGES
    assert calibrate.get_default("num_timesteps") == calibration.NUM_TIMESTEPS
    assert options.BUFFER_MB * 2**20 == BUFFER_BYTES
    for function in (evaluate, compare, calibration.calibrate):
        assert inspect.signature(function).parameters["batch_size"].default == options.BATCH_SIZE
    for name in ("evaluate", "compare"):
        text = " ".join(commands.choices[name].format_help().split())
        assert f"(default: {TARGET_SE} bits/dim)" in text and f"(default: {MAX_EVALUATIONS:,}" in text
    text = " ".join(commands.choices["evaluate"].format_help().split())
    for method in METHODS.values():
        assert f"{method.name}: {method.help}" in text and (f"with --method {method.name}:" in text) == bool(method.options)
        for option in method.options:
            assert option.argument in text and (option.default is None or f"{option.help} (default: {option.default})" in text)


def test_batches_change_no_sample(checkpoint, tmp_path):
    def sample(count, *options):
        arguments = ["sample", str(checkpoint), "--num-images", str(count), "--num-inference-steps", "5", "--seed", "7"]
        assert main([*arguments, "--output", str(tmp_path / "grid.png"), *options]) == 0
        with Image.open(tmp_path / "grid.png") as grid:
            return np.array(grid).astype(int)

    whole = sample(6)  # 3 rows of 2
    assert abs(whole - sample(6, "--batch-size", "4")).max() <= 1 and abs(whole - sample(6, "--batch-size", "1")).max() <= 1
    assert abs(whole - sample(6, "--seed", "8")).max() > 1
    # The first ones of more are the same: here 4 rows of 2.
    assert abs(whole - sample(8, "--batch-size", "5")[: len(whole)]).max() <= 1


FAULTS = """
import sys, torch, torch._inductor.config
from ddpm_vlb.cli import main
from ddpm_vlb.likelihoods.method import Method, Option
from ddpm_vlb.likelihoods.methods import add_method

def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory.\\nTried to allocate 2 GiB.")

faults = {
    "device": out_of_memory,
    "memory": lambda: torch.empty(10**15),
    "library": lambda: __import__("no_such_library"),
    "value": lambda: int("x"),
    "bug": lambda: torch.zeros(2) + torch.zeros(3),
}

def begin(scorer, trained, num_dimensions, batch_size, options):
    faults[options["fault"]]()

fault = Option("fault", str, "which it has", choices=tuple(faults))
add_method(Method(name="toy", help="nothing", options=(fault,), columns={"bits_per_dim": "nothing"}, begin=begin))
evaluate = ["evaluate", sys.argv[1], "--dataset", "digits", "--max-images", "2"]

def status(*options):
    print("next", file=sys.stderr)
    return main([*evaluate, *options])

assert [status("--method", "toy", "--fault", fault) for fault in faults if fault != "bug"] == [2, 2, 2, 2]
assert status("--method", "toy", "--fault", "value", "--debug") == 2
torch._inductor.config.cpp.cxx = (None, "/nonexistent")  # as where there is no compiler
assert status("--method", "full", "--compile") == 2
status("--method", "toy", "--fault", "bug")
"""


def test_faults_have_a_traceback_and_what_can_be_mended_is_one_line(checkpoint, tmp_path):
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    result = shared().run("-c", FAULTS, checkpoint, cwd=tmp_path, env=environment)
    assert result.returncode == 1, result.stderr
    *mended, debugged, compiled, bug = result.stderr.split("next\n")[1:]
    device, memory, library, value = mended
    assert device.endswith("ddpm-vlb evaluate: CUDA out of memory. Tried to allocate 2 GiB.\n")
    assert "can't allocate memory: you tried to allocate 4000000000000000 bytes" in memory.splitlines()[-1]
    assert library.endswith("ddpm-vlb evaluate: No module named 'no_such_library'\n")
    assert value.endswith("ddpm-vlb evaluate: invalid literal for int() with base 10: 'x'\n")
    assert "`compile` must be left out where torch cannot compile: " in compiled.splitlines()[-1]
    assert not any("Traceback" in part for part in (*mended, compiled))
    assert "Traceback" in debugged and debugged.endswith(value.splitlines()[-1] + "\n")
    assert "Traceback" in bug and "ddpm-vlb evaluate:" not in bug and "must match" in bug.splitlines()[-1]
    assert not (tmp_path / "report.json").exists()


def test_the_quickstart_script(tmp_path):
    script = [str(ROOT / "training" / "quickstart.py"), "--output", "runs/quickstart"]
    script += ["--train-steps", "3", "--num-images", "4", "--num-samples", "4"]
    for _ in range(2):  # the second one replaces what the first one made
        result = shared().run(*script, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    made = sorted(path.name for path in (tmp_path / "runs" / "quickstart").iterdir())
    assert made == ["pipeline", "report.json", "samples.png", "terms.png", "trajectories.png"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["quickstart"]
    report = json.loads((tmp_path / "runs" / "quickstart" / "report.json").read_text())
    assert report["num_images"] == 4 and "per-pixel marginal" in result.stdout
    pipe = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "runs" / "quickstart" / "pipeline"))
    again = pipe.evaluate_nll(load_images("digits", "test", 4).images, generator=generator()).bits_per_dim
    assert np.allclose(again.numpy(), report["per_image"], atol=2e-5)
