r"""`ddpm-vlb card`."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..reports.classes import with_classes
from ..reports.schema import Report, read_report
from ..reports.show import write_report
from .common import SAMPLES, card_pictures, draw_samples, load_folder, save_grid
from .options import DEFAULT, NUM_SAMPLES, add_network_kwargs_option, new_command


def add(commands) -> argparse.ArgumentParser:
    r"""The command's parser."""
    parser = new_command(
        commands,
        "card",
        help="the model card of a scored checkpoint, made from its report",
        description="Write a checkpoint's README.md, every number of which is from its report, with samples and a plot of the"
        " terms, and the number where the Hub looks for results; or check those that are there.",
        examples=(
            'runs/quickstart/pipeline --description "A small DDPM of handwritten digits."',
            "runs/digits-class/pipeline --classes classes.json",
            "--check runs/quickstart/pipeline",
        ),
    )
    folder = "a pipeline's folder; with --check, one with README.md and report.json"
    parser.add_argument("folder", metavar="FOLDER", help=folder)
    parser.add_argument("--report", help="what `ddpm-vlb evaluate` wrote (default: FOLDER/report.json)")
    parser.add_argument("--classes", help="what `ddpm-vlb classify` wrote, for the card to say too; kept in the report")
    parser.add_argument("--repository", metavar="REPO", help="name on the Hub (default: your-name/FOLDER)")
    parser.add_argument("--description", help="what only you know; kept in the report")
    parser.add_argument("--num-images", type=int, default=NUM_SAMPLES, help=f"samples to draw for it; 0: none {DEFAULT}")
    add_network_kwargs_option(parser)
    parser.add_argument("--check", action="store_true", help="check the card that is there against its report; writes nothing")
    return parser


def run(arguments: argparse.Namespace) -> None:
    r"""Check a card, or make one."""
    if arguments.num_images < 0:
        raise ValueError(f"`num_images` must not be negative, got {arguments.num_images}.")
    for name in ("repository", "description", "classes"):
        if arguments.check and getattr(arguments, name) is not None:
            raise ValueError(f"`{name}` must be left out with --check, which writes nothing, got {getattr(arguments, name)!r}.")
    folder = Path(arguments.folder)
    report = read_report(arguments.report or folder / "report.json")
    if arguments.check:
        check(folder, report)
    else:
        write(folder, report, arguments)


def read_classes(file: str) -> dict[str, Any]:
    r"""What `ddpm-vlb classify` wrote, or `ValueError`."""
    try:
        result = json.loads(Path(file).read_text(encoding="utf-8"))
        if "num_decided" not in result:
            raise ValueError("no such entries")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"`classes` must be a file that `ddpm-vlb classify` wrote, got {file!r}: {error}.") from error
    return result


def check(folder: Path, report: Report) -> None:
    r"""Raise `ValueError` unless the card that is there, and the Hub's results beside it, agree with the report."""
    from ..hub.cards import check_card

    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`folder` must hold a card, README.md, got {str(folder)!r}: {error}") from error
    check_card(text, report)
    check_results(folder, report, text)
    print(f"{folder / 'README.md'} agrees with its report: {report['bits_per_dim']:.4f} bits/dim")


def check_results(folder: Path, report: Report, card: str) -> None:
    r"""Raise `ValueError` for results beside a card that say something else; cards of before have none."""
    from ..hub.cards import repository_of_card
    from ..hub.eval_results import EVAL_RESULTS, check_eval_results

    results = folder / EVAL_RESULTS
    if results.exists():
        check_eval_results(results.read_bytes(), report, repository_of_card(card))


def write(folder: Path, report: Report, arguments: argparse.Namespace) -> None:
    r"""Draw samples and terms, and write the card, with the report beside it."""
    from ..hub.cards import model_card
    from ..hub.eval_results import EVAL_RESULTS, eval_results_file
    from ..hub.repository import PICTURES
    from ..noise_processes import stock_classes

    repository = arguments.repository or f"your-name/{folder.resolve().name}"
    if arguments.description is not None:
        report = report.with_settings(description=arguments.description)
    if arguments.classes is not None:
        report = with_classes(report, read_classes(arguments.classes))
    model_card(report, repository=repository)  # refused, if it is, before the work
    pipe = load_folder(folder, arguments)
    # The scheduler is the one that is there, whatever it was when the report was made.
    report = pipe.check_report(report).with_settings(scheduler=stock_classes(pipe.scheduler.config)[1])
    if arguments.num_images:
        num_classes = pipe.network.num_classes
        labels = None if num_classes is None else [index % num_classes for index in range(arguments.num_images)]
        save_grid(draw_samples(pipe, arguments.num_images, 0, class_labels=labels), folder / SAMPLES)
    pictures = card_pictures(folder, report, with_samples=bool(arguments.num_images))
    for name, content in pictures.items():
        write_atomically(folder / name, content)
    write_report(report, folder / "report.json")
    card = model_card(report, repository=repository, pictures=[(PICTURES[name], name) for name in PICTURES if name in pictures])
    results = eval_results_file(report, repository)
    if results is None:
        (folder / EVAL_RESULTS).unlink(missing_ok=True)
    else:
        (folder / EVAL_RESULTS).parent.mkdir(exist_ok=True)
        write_atomically(folder / EVAL_RESULTS, results)
    write_atomically(folder / "README.md", str(card).encode())
    print(f"card: {folder / 'README.md'}")
