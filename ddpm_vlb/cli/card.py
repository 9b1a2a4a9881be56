r"""`ddpm-vlb card`."""

import argparse
from pathlib import Path

from .common import SAMPLES, card_pictures, load_folder, save_samples


def run_card(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb card`."""
    from ..files import write_atomically
    from ..hub.cards import check_card, model_card
    from ..hub.repository import PICTURES
    from ..reports.schema import read_report
    from ..reports.show import write_report

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
    pipe = load_folder(folder)
    pipe.check_report(report)
    if arguments.num_images:
        num_classes = pipe.network.num_classes
        labels = None if num_classes is None else [index % num_classes for index in range(arguments.num_images)]
        save_samples(pipe, arguments.num_images, 0, folder / SAMPLES, class_labels=labels)
    pictures = card_pictures(folder, report, with_samples=bool(arguments.num_images))
    for name, content in pictures.items():
        write_atomically(folder / name, content)
    write_report(report, folder / "report.json")
    card = model_card(report, repository=repository, pictures=[(PICTURES[name], name) for name in PICTURES if name in pictures])
    write_atomically(folder / "README.md", str(card).encode())
    print(f"card: {folder / 'README.md'}")
