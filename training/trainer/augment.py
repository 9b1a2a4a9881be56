r"""Images moved, mirrored and turned: more to learn from, where the flags ask for it."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from ddpm_vlb.noise import keyed_uniform

from .data import FLIP, LABEL, SHIFT, SYMMETRY, example_keys


def drop_labels(labels: Any, unlabelled: int | None, arguments: argparse.Namespace, step: int, places: range) -> Any:
    r"""Classes `(B,)`, a share `--class_dropout` of them the `unlabelled` one; `None` of none."""
    if labels is None or unlabelled is None:
        return labels
    keys = example_keys(arguments.seed, LABEL, step, places)
    dropped = torch.tensor([keyed_uniform(key) < arguments.class_dropout for key in keys])
    return labels.masked_fill(dropped, unlabelled)


def augment_examples(
    levels: torch.Tensor, arguments: argparse.Namespace, step: int, places: range, log_snr: torch.Tensor
) -> torch.Tensor:
    r"""`augment` as the flags ask for.

    Args:
        levels: images `(B, C, H, W)`, the examples at `places` of the global batch of `step`.
        log_snr: of their timesteps, `(B,)`.
    """
    a = arguments
    kinds = {"flip": (FLIP, 0.5 * a.random_flip), "shift": (SHIFT, a.random_shift), "symmetry": (SYMMETRY, a.random_symmetry)}
    draws = {
        name: ([keyed_uniform(key) for key in example_keys(a.seed, stream, step, places)], share)
        for name, (stream, share) in kinds.items()
        if share
    }
    little_noise = a.augment_above_log_snr is None or log_snr > a.augment_above_log_snr
    return augment(levels, where=little_noise, **draws)


def augment(
    levels: torch.Tensor,
    *,
    flip: tuple[Sequence[float], float] | None = None,
    shift: tuple[Sequence[float], float] | None = None,
    symmetry: tuple[Sequence[float], float] | None = None,
    where: torch.Tensor | bool = True,
) -> torch.Tensor:
    r"""Change some of the images `(B, C, H, W)`: those whose number in [0, 1) is below the share that is given with it.

    It changes the data that the model learns, which costs likelihood, and teaches it from more images, which gains some. What
    is lost is the knowledge of the whole image's shape, which matters where noise is high; what is gained is knowledge of
    neighbouring pixels, where noise is low: `where` can choose the examples by their noise.

    Args:
        flip: mirror left to right.
        shift: move by one pixel, half of them to the left and half to the right; what comes in is level 0.
        symmetry: one of the square's 8 symmetries, each as often as any other.
        where: which images may be changed at all, `(B,)`.
    """

    def below(draws: Sequence[float], share: float) -> torch.Tensor:
        return ((torch.tensor(draws) < share) & where)[:, None, None, None]

    if flip is not None:
        levels = torch.where(below(*flip), levels.flip(-1), levels)
    if shift is not None:
        draws, share = shift
        wide = torch.nn.functional.pad(levels, (1, 1))
        levels = torch.where(below(draws, share / 2), wide[..., 2:], torch.where(below(draws, share), wide[..., :-2], levels))
    if symmetry is not None:
        draws, share = symmetry
        turned = [torch.rot90(image, quarter, (-2, -1)) for image in (levels, levels.flip(-1)) for quarter in range(4)]
        for index, image in enumerate(turned):
            chosen = below(draws, share * (index + 1) / 8) & ~below(draws, share * index / 8)
            levels = torch.where(chosen, image, levels)
    return levels
