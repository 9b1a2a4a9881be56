r"""When a sampled estimate is good enough: what may be asked for. Without torch, so that the command line can read it."""

import math


def check_rules(target_se: float | None, max_evaluations: int | None, evaluations_per_image: int | None) -> None:
    r"""Raise `ValueError` unless the rules to stop by can be followed."""
    if target_se is None and max_evaluations is None and evaluations_per_image is None:
        raise ValueError("One of `target_se`, `max_evaluations` and `evaluations_per_image` must be given, got none.")
    if target_se is not None and not (0 < target_se < math.inf):
        raise ValueError(f"`target_se` must be a positive number of bits/dim, got {target_se!r}.")
    if max_evaluations is not None and max_evaluations < 1:
        raise ValueError(f"`max_evaluations` must be at least 1, got {max_evaluations!r}.")
    if evaluations_per_image is not None:
        if target_se is not None or max_evaluations is not None:
            raise ValueError("`evaluations_per_image` says when to stop: leave out `target_se` and `max_evaluations`.")
        if evaluations_per_image < 2 or evaluations_per_image % 2:
            raise ValueError(f"`evaluations_per_image` must be an even number from 2 on, got {evaluations_per_image!r}.")
