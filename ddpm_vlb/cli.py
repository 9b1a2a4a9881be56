r"""The command `ddpm-vlb`: score a checkpoint on a data set, sample from it, describe it, push it to the Hub."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .arguments import DTYPES, build_parser

# Imports of torch and diffusers wait until a command runs, so that `--help` is quick.

SAMPLES = "samples.png"


def _load(arguments: argparse.Namespace, checkpoint: str | None = None, revision: str | None = None, device=None):
    r"""The pipeline of a checkpoint, and, where its network is to be in half precision, the one in float32."""
    import copy

    import torch

    from .pipeline_vlb_ddpm import VLBDDPMPipeline

    checkpoint = arguments.checkpoint if checkpoint is None else checkpoint
    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"`seed` must lie in [0, 2^63), got {arguments.seed}.")
    if revision is not None and os.path.isdir(checkpoint):
        raise ValueError(f"`revision` must be left out for a folder, which has only one, got {revision!r}.")
    revision = {} if revision is None else {"revision": revision}
    dtype = getattr(torch, DTYPES[arguments.dtype])
    try:
        device = torch.device(arguments.device or device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"`device` must be one that torch has here, got {arguments.device!r}: {reason}") from error
    pipe, float32_unet = VLBDDPMPipeline.from_pretrained(checkpoint, dtype=torch.float32, **revision).to(device), None
    if dtype != torch.float32:
        # Not diffusers' own `to`, which warns of modules that are to stay in float32 though there are none.
        float32_unet, pipe.unet = pipe.unet, torch.nn.Module.to(copy.deepcopy(pipe.unet), dtype)
    if arguments.channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
    if arguments.compile:
        pipe.unet.compile(dynamic=False)
    return pipe, float32_unet


def run_evaluate(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb evaluate`."""
    from .evaluation import evaluate
    from .per_image import format_images
    from .reports import format_report
    from .scheduling_vlb_ddpm import VLBDDPMScheduler

    output = _check_outputs(arguments.output, arguments.plot, arguments.scores)
    if arguments.scores is not None and arguments.method == "sampled" and arguments.per_image is None:
        raise ValueError("`scores` needs a score for each image: give --per-image K, or another method.")
    if arguments.plot is not None and arguments.method in ("iw", "ode"):
        raise ValueError(f"`plot` draws the terms of the bound, and there are none with --method {arguments.method}.")
    shard = _shard(arguments.shard)
    workers, data = _open_data(arguments)
    pipe, float32_unet = _load(arguments, revision=arguments.revision, device=workers.device)
    overridden = _set_levels(pipe, arguments.num_pixel_levels)
    if arguments.no_calibration and pipe.scheduler.config.calibration is not None:
        overridden.append("calibration")
        pipe.scheduler = VLBDDPMScheduler.from_config(pipe.scheduler.config, calibration=None)
    levels = pipe.scheduler.config.num_pixel_levels
    images = _on_grid(data, pipe, arguments.quantize)
    conditional = getattr(pipe.unet.config, "num_class_embeds", None) is not None
    if conditional and getattr(data, "labels", None) is None:
        raise ValueError(f"`dataset` must have class labels for a class-conditional network, got none in {data.name!r}.")
    journal = output.with_name(f"{output.name}.journal")
    report = evaluate(
        pipe,
        images,
        method=arguments.method,
        target_se=arguments.target_se,
        max_evaluations=arguments.max_evaluations,
        evaluations_per_image=arguments.per_image,
        k=arguments.k,
        trace=arguments.trace,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        num_inference_steps=arguments.num_inference_steps,
        class_labels=data.labels if conditional else None,
        clip_sample=arguments.clip_sample,
        max_images=arguments.max_images,
        shard=shard,
        buffer_bytes=int(arguments.buffer_mb * 2**20),
        float32_unet=float32_unet,
        journal=journal,
        workers=workers,
        checkpoint=arguments.checkpoint,
        revision=arguments.revision,
        quantized=arguments.quantize,
        **_data_settings(data),
    )
    report["config"]["overridden"] += overridden
    if workers.rank:
        return
    _write_outputs(report, output, arguments.plot, arguments.scores)
    journal.unlink(missing_ok=True)
    uniform = {"uniform over the levels": math.log2(levels)}
    print(format_images(report) if arguments.method in ("iw", "ode") else format_report(report, uniform))
    if workers.count > 1:
        print(f"{workers.count} processes")
    print(f"report: {output}")


def _check_outputs(output: str, plot: str | None, scores: str | None) -> Path:
    from .files import check_output_path
    from .reports import check_scores_path

    paths = [check_output_path(path) for path in (output, plot, scores) if path is not None]
    if scores is not None:
        check_scores_path(scores)
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"`output`, `plot` and `scores` must be different files, got {', '.join(map(str, paths))}.")
    return paths[0]


def _write_outputs(report: dict, output: Path, plot: str | None, scores: str | None) -> None:
    from .reports import plot_terms, write_report, write_scores

    write_report(report, output)
    for path, write in ((plot, plot_terms), (scores, write_scores)):
        if path is not None:
            write(report, path)


def _set_levels(pipe, num_pixel_levels: int | None) -> list[str]:
    r"""Score on another grid than the scheduler's; what was overridden."""
    from .scheduling_vlb_ddpm import VLBDDPMScheduler

    if num_pixel_levels in (None, pipe.scheduler.config.num_pixel_levels):
        return []
    pipe.scheduler = VLBDDPMScheduler.from_config(pipe.scheduler.config, num_pixel_levels=num_pixel_levels)
    return ["num_pixel_levels"]


def _shard(text: str) -> tuple[int, int]:
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not int(parts[0]) < int(parts[1]):
        raise ValueError(f"`shard` must be I/N with 0 <= I < N, got {text!r}.")
    return int(parts[0]), int(parts[1])


def _open_data(arguments: argparse.Namespace):
    r"""The processes of this run, and the data set."""
    from .data import open_images, stream_images
    from .workers import Workers

    if arguments.max_images is not None and arguments.max_images < 1:
        raise ValueError(f"`max_images` must be at least 1, got {arguments.max_images}.")
    if not 0 < arguments.buffer_mb < math.inf:
        raise ValueError(f"`buffer_mb` must be a positive number, got {arguments.buffer_mb}.")
    workers = Workers()
    if arguments.expected_processes not in (None, workers.count):
        raise ValueError(
            f"`expected_processes` must be the {workers.count} that take part, got {arguments.expected_processes}."
        )
    if arguments.streaming:
        folder = Path(arguments.dataset)
        # A folder without a part of that name is one part, which datasets calls "train".
        default = arguments.default_split if not folder.is_dir() or (folder / arguments.default_split).is_dir() else "train"
        return workers, stream_images(arguments.dataset, arguments.split or default)
    return workers, open_images(arguments.dataset, arguments.split, arguments.default_split)


def _on_grid(data, pipe, quantized: bool):
    r"""The images of a data set on the grid of a model, or `ValueError`."""
    from .data import check_shape, quantize_images

    check_shape(data[0][None], pipe.unet.config.in_channels, pipe.image_size)
    levels = pipe.scheduler.config.num_pixel_levels
    if quantized:
        return quantize_images(data, levels)
    if data.num_pixel_levels < levels:
        raise ValueError(
            f"`dataset` must have the {levels} levels of the model's grid, got {data.num_pixel_levels} levels in"
            f" {data.name!r}. Give --num-pixel-levels {data.num_pixel_levels} if the model was trained on that grid, or"
            " --quantize to bring the images onto the model's."
        )
    return data


def _data_settings(data) -> dict:
    from .cards import public_name

    name = public_name(str(Path(data.name).resolve())) if Path(data.name).exists() else data.name
    return {"dataset": name, "split": data.split_name if hasattr(data, "split_name") else data.split}


def run_compare(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb compare`."""
    import json

    from .cards import public_name
    from .comparison import compare, format_comparison
    from .files import check_output_path, write_atomically

    output = check_output_path(arguments.output)
    workers, data = _open_data(arguments)
    names = arguments.checkpoint, arguments.other
    pipes, float32_unets = zip(
        *(
            _load(arguments, name, revision, workers.device)
            for name, revision in zip(names, (arguments.revision_a, arguments.revision_b))
        )
    )
    for pipe in pipes:
        _set_levels(pipe, arguments.num_pixel_levels)
        images = _on_grid(data, pipe, arguments.quantize)
    journal = output.with_name(f"{output.name}.journal")
    comparison = compare(
        pipes,
        images,
        target_se=arguments.target_se,
        max_evaluations=arguments.max_evaluations,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        num_inference_steps=(arguments.num_inference_steps_a, arguments.num_inference_steps_b),
        class_labels=[
            _labels(pipe, data, label) for pipe, label in zip(pipes, (arguments.class_label_a, arguments.class_label_b))
        ],
        max_images=arguments.max_images,
        buffer_bytes=int(arguments.buffer_mb * 2**20),
        float32_unets=float32_unets,
        journal=journal,
        workers=workers,
        checkpoints=[public_name(name) for name in names],
        quantized=arguments.quantize,
        **_data_settings(data),
    )
    if workers.rank:
        return
    write_atomically(output, (json.dumps(comparison, indent=2, allow_nan=False) + "\n").encode())
    journal.unlink(missing_ok=True)
    print(format_comparison(comparison, names if names[0] != names[1] else ("A", "B")))
    print(f"comparison: {output}")


def _labels(pipe, data, label: int | None):
    r"""The class that was asked for, or else the images' own for a class-conditional network."""
    if label is not None or getattr(pipe.unet.config, "num_class_embeds", None) is None:
        return label
    return getattr(data, "labels", None)


def run_calibrate(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb calibrate`."""
    import json

    from .calibration import calibrate, describe, format_calibration, plot_calibration
    from .files import check_output_path, new_folder, write_atomically

    output = _check_new_folder(arguments.output)
    if arguments.plot is not None:
        check_output_path(arguments.plot)
    workers, data = _open_data(arguments)
    if workers.count > 1:
        raise ValueError(f"`calibrate` must run in one process, got {workers.count}.")
    pipe, _ = _load(arguments, revision=arguments.revision)
    _set_levels(pipe, arguments.num_pixel_levels)
    result = calibrate(
        pipe,
        _on_grid(data, pipe, arguments.quantize),
        num_timesteps=arguments.num_timesteps,
        evaluations=arguments.evaluations,
        target_se=arguments.target_se,
        max_images=arguments.max_images,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        class_labels=_labels(pipe, data, None),
        **_data_settings(data),
    )
    pipe.unet.float()  # what was loaded; half precision is for the evaluations alone
    pipe.scheduler = result.scheduler
    with new_folder(output) as folder:
        pipe.save_pretrained(folder)
        write_atomically(folder / "calibration.json", (json.dumps(describe(result), indent=2) + "\n").encode())
    print(format_calibration(result))
    if arguments.plot is not None:
        plot_calibration(result, arguments.plot)
    print(f"calibrated: {output}")


def run_merge(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb merge`."""
    from .cards import read_report
    from .reports import format_report, merge_reports

    output = _check_outputs(arguments.output, arguments.plot, arguments.scores)
    report = merge_reports([read_report(path) for path in arguments.reports])
    if arguments.scores is not None and report["per_image"] is None:
        raise ValueError("`scores` needs a score for each image, got sampled reports without.")
    _write_outputs(report, output, arguments.plot, arguments.scores)
    print(format_report(report))
    print(f"report: {output}")


def run_sample(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb sample`."""
    from .files import check_output_path

    if arguments.num_images < 1:
        raise ValueError(f"`num_images` must be at least 1, got {arguments.num_images}.")
    output = check_output_path(arguments.output)
    options = {
        "num_inference_steps": arguments.num_inference_steps,
        "class_labels": arguments.class_label,
        "draw_from_decoder": arguments.draw_from_decoder,
    }
    _save_samples(_load(arguments, revision=arguments.revision)[0], arguments.num_images, arguments.seed, output, **options)
    print(f"{arguments.num_images} samples: {output}")


def _save_samples(pipe, num_images: int, seed: int, output: Path, **options) -> None:
    import io

    import torch

    from .evaluation import image_grid
    from .files import write_atomically

    images = pipe(batch_size=num_images, generator=torch.Generator().manual_seed(seed), **options).images
    buffer = io.BytesIO()
    image_grid(images).save(buffer, format="png")
    write_atomically(output, buffer.getvalue())


def run_card(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb card`."""
    from .cards import check_card, model_card, read_report
    from .evaluation import write_report
    from .files import write_atomically
    from .hub import PICTURES

    folder = Path(arguments.folder)
    report = read_report(arguments.report or folder / "report.json")
    if arguments.check:
        try:
            text = (folder / "README.md").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"`folder` must hold a card, README.md, got {str(folder)!r}: {error}") from error
        check_card(text, report)
        print(f"{folder / 'README.md'} agrees with its report: {report['bits_per_dim']:.4f} bits/dim")
        return
    repository = arguments.repository or f"your-name/{folder.resolve().name}"
    if arguments.num_images < 0:
        raise ValueError(f"`num_images` must not be negative, got {arguments.num_images}.")
    if arguments.description is not None:
        report["config"]["description"] = arguments.description
    model_card(report, repository=repository)  # refused, if it is, before the work
    pipe = _load_folder(folder)
    pipe.check_report(report)
    if arguments.num_images:
        num_classes = getattr(pipe.unet.config, "num_class_embeds", None)
        labels = None if num_classes is None else [index % num_classes for index in range(arguments.num_images)]
        _save_samples(pipe, arguments.num_images, 0, folder / SAMPLES, class_labels=labels)
    pictures = _pictures(folder, report, with_samples=bool(arguments.num_images))
    for name, content in pictures.items():
        write_atomically(folder / name, content)
    write_report(report, folder / "report.json")
    card = model_card(report, repository=repository, pictures=[(PICTURES[name], name) for name in PICTURES if name in pictures])
    write_atomically(folder / "README.md", str(card).encode())
    print(f"card: {folder / 'README.md'}")


def run_push(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb push`: the pipeline as it is loaded, saved anew, so that nothing else in the folder goes with it."""
    from .cards import check_card, read_report
    from .hub import check_no_link, check_repository, pipeline_files

    folder = Path(arguments.folder)
    check_repository(arguments.repository)
    pipeline_files(folder)
    for name in ("report.json", SAMPLES):
        check_no_link(folder / name, folder)
    report = read_report(folder / "report.json") if (folder / "report.json").exists() else None
    pipe = _load_folder(folder)
    # Samples are shown if a card beside them was made of the same report.
    with_samples = False
    if report is not None:
        pipe.check_report(report)
        if (folder / "README.md").is_file():
            text = (folder / "README.md").read_text(encoding="utf-8")
            check_card(text, report)
            with_samples = f"({SAMPLES})" in text
    commit = pipe.push_to_hub(
        arguments.repository,
        report=report,
        pictures=_pictures(folder, report, with_samples),
        private=arguments.private,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        commit_message=arguments.message,
        token=arguments.token,
    )
    print(f"pushed {folder} to {commit.pr_url or commit.commit_url}")
    if report is None:
        print("Its card says that it was not scored: `ddpm-vlb evaluate` writes the report.json that a card is made from.")


def run_push_space(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb push-space`."""
    from .demo_space import push_space

    commit = push_space(
        arguments.folder,
        arguments.repository,
        commit_message=arguments.message,
        private=arguments.private,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        token=arguments.token,
    )
    print(f"pushed {arguments.folder} to {commit.pr_url or commit.commit_url}")


def run_convert_openai(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb convert-openai`."""
    from .convert_openai import convert_openai, load_openai_checkpoint
    from .files import new_folder

    output = _check_new_folder(arguments.output)
    flags = ("diffusion_steps", "noise_schedule", "rescale_timesteps", "num_heads", "image_size", "dropout")
    options = {name: getattr(arguments, name) for name in (*flags, "sigma_small", "predict_xstart")}
    pipe = convert_openai(load_openai_checkpoint(arguments.checkpoint), **options)
    with new_folder(output) as folder:
        pipe.save_pretrained(folder)
    size, count = pipe.unet.config.sample_size, sum(weight.numel() for weight in pipe.unet.parameters())
    print(f"{output}: {size} x {size}, {count / 1e6:.1f} M parameters, {pipe.scheduler.config.variance_type}")
    scheduler = pipe.scheduler.config
    print(
        f"The weights do not tell how they were trained; taken for granted: {scheduler.num_train_timesteps} steps,"
        f" {scheduler.beta_schedule}, timesteps"
        f" {'rescaled to 1000' if pipe.unet.config.time_embedding_type == 'learned' else 'as they are'}."
    )


def _check_new_folder(path: str) -> Path:
    folder = Path(path)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"`output` must be a folder that does not exist yet, or an empty one, got {path!r}.")
    return folder


def _load_folder(folder: Path):
    from .pipeline_vlb_ddpm import VLBDDPMPipeline

    if not folder.is_dir():
        raise ValueError(f"`folder` must be a pipeline's folder, got {str(folder)!r}.")
    return VLBDDPMPipeline.from_pretrained(folder)


def _pictures(folder: Path, report: dict | None, with_samples: bool) -> dict[str, bytes]:
    r"""The pictures of a card: the terms as the report says, and the samples that are there."""
    import tempfile

    from .evaluation import plot_terms

    pictures = {}
    if report is not None and (None not in report["transitions"] or report.get("strata")):
        with tempfile.TemporaryDirectory() as temporary:
            try:
                plot_terms(report, Path(temporary) / "terms.png")
                pictures["terms.png"] = (Path(temporary) / "terms.png").read_bytes()
            except ImportError as error:
                print(f"The card has no plot of the terms: {error}", file=sys.stderr)
    if with_samples and (folder / SAMPLES).is_file():
        pictures[SAMPLES] = (folder / SAMPLES).read_bytes()
    return pictures


COMMANDS = {
    "evaluate": run_evaluate,
    "compare": run_compare,
    "calibrate": run_calibrate,
    "merge": run_merge,
    "sample": run_sample,
    "card": run_card,
    "push": run_push,
    "push-space": run_push_space,
    "convert-openai": run_convert_openai,
}


def main(argv: Sequence[str] | None = None) -> int:
    r"""Run a command line; returns the exit status: 2, with one line on stderr, for anything that the user can mend."""
    arguments = build_parser().parse_args(argv)
    try:
        COMMANDS[arguments.command](arguments)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"ddpm-vlb {arguments.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
