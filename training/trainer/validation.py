r"""A look at the model on the way: the bound on some images, and samples. With averaged weights; see `Trainer.averaged`."""

import argparse
import io

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.checks import check_output_type
from ddpm_vlb.evaluation import estimate_nll, image_grid
from ddpm_vlb.evaluation.classify import classify_images
from ddpm_vlb.files import write_atomically
from ddpm_vlb.noise import mix

from .data import SAMPLING, SCORING

MOST_CLASSES = 100  # to find an image's class among, on the way
EVALUATIONS_OF_A_CLASS = 8


def bits_per_dim(
    pipe: VLBDDPMPipeline,
    levels: torch.Tensor,
    labels: torch.Tensor | None,
    arguments: argparse.Namespace,
    accelerator: Accelerator,
    split: str,
) -> dict[str, float]:
    r"""Means over the images `levels` `(N, C, H, W)` of a split, in bits/dim, each process scoring its share of them, given
    their classes `labels` `(N,)` where there are any.

    Raises:
        ValueError: a network whose output is not finite.
    """
    a = arguments
    share = range(accelerator.process_index, len(levels), accelerator.num_processes)
    terms = torch.zeros(4, len(levels), dtype=torch.float64)
    if share:
        seeds = [mix(mix(a.seed, SCORING), index) for index in share]
        total = len(share) * min(a.evaluations_per_image, a.ddpm_num_steps)
        hidden = not accelerator.is_main_process
        with tqdm(total=total, desc=f"scoring {split}", leave=False, mininterval=1.0, disable=hidden) as bar:
            options = (a.evaluations_per_image, a.eval_batch_size, bar.update)
            classes = None if labels is None else labels[list(share)]
            estimate = estimate_nll(pipe, levels[list(share)], seeds, *options, class_labels=classes)
        terms[:, list(share)] = torch.stack(estimate[:4])
    # Each column is filled by one process: the sum puts them together, and rounds nothing.
    terms = accelerator.reduce(terms.to(accelerator.device), "sum").cpu()
    names = ("bits_per_dim", "prior", "transitions", "decoder")
    values = dict(zip(names, terms.mean(dim=1).tolist()))
    if len(levels) > 1:
        values["standard_error"] = (terms[0].var() / len(levels)).sqrt().item()
    return values | {"num_images": len(levels)}


def accuracy(
    pipe: VLBDDPMPipeline,
    levels: torch.Tensor,
    labels: torch.Tensor,
    arguments: argparse.Namespace,
) -> float:
    r"""Share of the images `levels` `(N, C, H, W)` whose class `labels` `(N,)` `classify` finds, by all processes together; of
    few evaluations, hence a lower one than of many."""
    limits = {"confidence": 0.5, "max_evaluations_per_image": EVALUATIONS_OF_A_CLASS * (pipe.network.num_classes or 0)}
    seed = mix(arguments.seed, SCORING) % 2**63
    found = classify_images(pipe, levels, seed=seed, labels=labels.tolist(), batch_size=arguments.eval_batch_size, **limits)
    return found["accuracy"]


def why_no_pictures(channels: int) -> str | None:
    r"""Why no pictures can be made of samples, `None` where they can."""
    try:
        check_output_type("pil", channels)
    except ValueError as error:
        return str(error)
    return None


def draw_samples(pipe: VLBDDPMPipeline, step: int, arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    r"""A grid of samples, into `samples/` and to the trackers that take pictures."""
    a = arguments
    generator = torch.Generator().manual_seed(mix(a.seed, SAMPLING) % 2**63)
    steps = min(a.ddpm_num_inference_steps, a.ddpm_num_steps)
    classes = pipe.network.num_classes
    labels = None if classes is None else torch.arange(a.num_sample_images) % classes
    images = pipe(a.num_sample_images, generator=generator, num_inference_steps=steps, class_labels=labels).images
    buffer = io.BytesIO()
    image_grid(images).save(buffer, format="png")
    (a.output_dir / "samples").mkdir(exist_ok=True)
    write_atomically(a.output_dir / "samples" / f"step-{step:07d}.png", buffer.getvalue())
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": pixels}, step=step, **layout)
