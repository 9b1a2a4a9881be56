r"""Which class a picture is of: a class-conditional model's bounds for all classes race, and the bars narrow while they do.

A bar is as long as a class is probable, and its faint part lies where the probability does within two standard errors: of a
class other than the leader, of its own difference to the leader; of the leader, of all differences at once.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ddpm_vlb.sampled_bound.design import bin_edges

from . import pictures
from .models import Model
from .running import Watch, watched
from .texts import Refusal, both

MIN_EVALUATIONS, MAX_EVALUATIONS = 20, 2000  # of a picture, besides the pilot's
EVALUATIONS, CONFIDENCE = 600, 0.95


def race(model: Model, levels: torch.Tensor, evaluations: int, seed: int) -> Iterator[tuple[dict[str, Any], str]]:
    r"""Numbers and a page, again and again until the class of a picture is settled.

    Args:
        model: a class-conditional one.
        levels: the picture, `(1, C, H, W)`.
        evaluations: of the network at the most, besides the pilot's.
        seed: of the noise.
    """
    if not MIN_EVALUATIONS <= evaluations <= MAX_EVALUATIONS:
        raise Refusal("class_evaluations_range", first=MIN_EVALUATIONS, last=MAX_EVALUATIONS, got=evaluations)
    count, looks = model.network.num_classes, []
    model.check_time(evaluations + (len(bin_edges(model.num_train_timesteps)) - 1) * count)  # and the pilot's
    watch = Watch()
    pipe = model.pipe(unet=watch.network(model.unet))

    def known() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not looks:  # nothing
            return np.full(count, 1 / count), np.tile([0.0, 1.0], (count, 1)), np.ones(count, dtype=bool)
        last = looks[-1]
        return last.probabilities[0], ranges(last.nats[0], last.error[0]), last.racing[0]

    def show(done: int) -> tuple[dict[str, Any], str]:
        numbers = {"model": model.name, "evaluations_done": done}
        return numbers, bars(*known()) + pictures.note(both("classes_race", evaluations=done))

    def ask():
        return pipe.classify(
            levels,
            confidence=CONFIDENCE,
            max_evaluations_per_image=evaluations,
            generator=torch.Generator().manual_seed(seed),
            callback_on_look=looks.append,
        )

    yield show(0)
    out = yield from watched(ask, watch, show)
    label, decided = int(out.labels), bool(out.decided)
    told = {"label": label, "evaluations": out.num_network_evaluations, "confidence": round(100 * CONFIDENCE)}
    words = both("class_decided" if decided else "class_open", **told)
    numbers = {
        "model": model.name,
        "label": label,
        "decided": decided,
        "probabilities": out.probabilities[0].tolist(),
        "probability_ranges": known()[1].tolist(),
        "bits_per_dim": out.bits_per_dim[0].tolist(),
        "monte_carlo_error": out.monte_carlo_error[0].tolist(),
        "num_network_evaluations": out.num_network_evaluations,
    }
    gaps = [
        (gap, error)
        for gap, error in zip((out.bits_per_dim[0] - out.bits_per_dim[0, label]).tolist(), numbers["monte_carlo_error"])
    ]
    yield numbers, bars(*known(), gaps) + pictures.note(words)


def ranges(nats: np.ndarray, error: np.ndarray) -> np.ndarray:
    r"""Where the probabilities of C classes of equal prior lie, `(C, 2)`, from their bounds and the standard errors of the
    differences to the smallest, `(C,)` each."""
    leader = int(nats.argmin())
    low, middle, high = (np.exp(np.minimum(nats[leader] - nats + side * 2 * error, 700.0)) for side in (-1, 0, 1))
    others = middle.sum() - middle
    found = np.stack([low / (others + low), high / (others + high)], axis=1)
    found[leader] = 1 / high.sum(), 1 / low.sum()
    return found


def bars(
    probabilities: np.ndarray, limits: np.ndarray, racing: np.ndarray, gaps: list[tuple[float, float]] | None = None
) -> str:
    r"""A bar a class, as long as its probability, and its `limits` `(C, 2)`; classes that have been dropped are faint. `gaps`
    are bits/dim to the label's, with their errors."""
    best, lines = int(probabilities.argmax()), []
    for label, (probability, still) in enumerate(zip(probabilities.tolist(), racing.tolist())):
        kind = ' class="vlb-best"' if label == best else "" if still else ' class="vlb-out"'
        said = f"{probability:.3f}"
        if gaps is not None and label != best:
            said += f" <small>+{gaps[label][0]:.3f} ± {gaps[label][1]:.3f} bits/dim</small>"
        low, high = 100 * limits[label]
        bar = f'<b style="margin-left:{low:.1f}%;width:{high - low:.1f}%"></b>'
        bar += f'<i style="width:{100 * probability:.1f}%"></i>'
        lines.append(
            f'<tr{kind}><th scope="row">{label}</th><td class="vlb-classbar"><div>{bar}</div></td><td>{said}</td></tr>'
        )
    return f'<table class="vlb-classes">{"".join(lines)}</table>'
