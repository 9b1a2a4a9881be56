r"""Score a trained pipeline, and lay it out with its report, pictures and model card for others to load.

    python training/shipped/ship_checkpoint.py runs/digits/pipeline spaces_demo/checkpoints/ddpm-vlb-digits \
        --dataset digits --split test --sweeps 8

Scores by `--sweeps` full sweeps over the data set, or, where those take too long, by a sampled evaluation down to a Monte Carlo
error of `--target_se`. Every number of the card comes from the report of this run. The card is also put into `model_cards/`.
"""

import argparse
import dataclasses
import io
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import open_images
from ddpm_vlb.evaluation import evaluate, format_report, image_grid, make_report, plot_terms, write_report
from ddpm_vlb.files import new_folder, write_atomically
from ddpm_vlb.hub.cards import model_card
from ddpm_vlb.hub.repository import PICTURES
from ddpm_vlb.reports.classes import with_classes
from ddpm_vlb.reports.schema import Report

CARDS = Path(__file__).parents[2] / "model_cards"


def score_by_sweeps(pipe: VLBDDPMPipeline, images: torch.Tensor, labels: Any, arguments: argparse.Namespace) -> Report:
    r"""The report of several full sweeps' mean, with each image's own Monte Carlo error from how the sweeps differ; given the
    images' classes, where the network has any."""
    sweeps = []
    for sweep in range(arguments.sweeps):
        generator = torch.Generator().manual_seed(arguments.seed + sweep)
        sweeps.append(pipe.evaluate_nll(images, batch_size=arguments.batch_size, generator=generator, class_labels=labels))
    names = ("bits_per_dim", "prior", "transitions", "transitions_total", "decoder")
    means = {name: torch.stack([sweep[name] for sweep in sweeps]).mean(dim=0) for name in names}
    evaluations = sum(sweep.num_network_evaluations for sweep in sweeps)
    report = make_report(dataclasses.replace(sweeps[0], **means, num_network_evaluations=evaluations))
    fields = {"method": f"full, mean of {len(sweeps)} sweeps"}
    if len(sweeps) > 1:
        spread = torch.stack([sweep.bits_per_dim for sweep in sweeps]).std(dim=0) / len(sweeps) ** 0.5
        fields["per_image_monte_carlo_error"] = spread.tolist()
        fields["monte_carlo_error"] = (spread.square().sum().sqrt() / len(spread)).item()
    return report | fields


def main() -> None:
    r"""Score, then write the folder and the card."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--dataset_name", help="what the card calls it (default: --dataset)")
    parser.add_argument("--split")
    parser.add_argument("--split_name", help="what the card calls it (default: --split)")
    parser.add_argument("--sweeps", type=int, default=1)
    parser.add_argument("--target_se", type=float, help="instead of sweeps: the Monte Carlo error to stop at, in bits/dim")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--num_sample_images", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--classes", type=Path, help="what `ddpm-vlb classify` wrote of this pipeline, for the card")
    parser.add_argument("--description", default="A DDPM trained on the variational bound.")
    arguments = parser.parse_args()

    pipe = VLBDDPMPipeline.from_pretrained(arguments.pipeline)
    pipe.set_progress_bar_config(mininterval=5.0)
    source = open_images(arguments.dataset, arguments.split)
    classes = pipe.network.num_classes
    labels = None if classes is None else torch.as_tensor(source.labels)
    if arguments.target_se is not None:
        report = evaluate(
            pipe,
            source,
            target_se=arguments.target_se,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            class_labels=labels,
            quiet=True,
        )
    else:
        report = score_by_sweeps(pipe, torch.stack([source[row] for row in range(len(source))]), labels, arguments)
    name = arguments.output.name
    dataset = arguments.dataset_name or arguments.dataset
    what = [f"{arguments.output}" if word == str(arguments.pipeline) else word for word in sys.argv[1:]]
    report = report.with_settings(
        checkpoint=name,
        dataset=dataset,
        split=arguments.split_name or arguments.split or source.split,
        description=arguments.description,
        command="python training/shipped/ship_checkpoint.py " + shlex.join(what),
    )

    if arguments.classes is not None:
        report = with_classes(report, json.loads(arguments.classes.read_text(encoding="utf-8")))

    with new_folder(arguments.output) as folder:
        pipe.save_pretrained(folder)
        write_report(report, folder / "report.json")
        buffer = io.BytesIO()
        drawn = None if classes is None else torch.arange(arguments.num_sample_images) % classes
        generator = torch.Generator().manual_seed(arguments.seed)
        samples = pipe(arguments.num_sample_images, generator=generator, class_labels=drawn).images
        image_grid(samples).save(buffer, format="png")
        write_atomically(folder / "samples.png", buffer.getvalue())
        plot_terms(report, folder / "terms.png")
        pictures = [(caption, name) for name, caption in PICTURES.items() if (folder / name).exists()]
        card = model_card(report, repository=f"your-name/{name}", pictures=pictures)
        write_atomically(folder / "README.md", str(card).encode())
    CARDS.mkdir(exist_ok=True)
    write_atomically(CARDS / f"{name}.md", str(card).encode())
    print(format_report(report))


if __name__ == "__main__":
    main()
