r"""Which class a picture is of: a class-conditional model's bounds for all classes race, and the bars narrow while they do."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from . import pictures
from .models import Model
from .running import Watch, watched
from .texts import Refusal, both

MIN_EVALUATIONS, MAX_EVALUATIONS = 20, 2000  # of a picture, besides the pilot's
EVALUATIONS, CONFIDENCE = 600, 0.95
PILOT = 400  # of one picture, about


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
    model.check_time(evaluations + PILOT)
    count, looks = model.network.num_classes, []
    watch = Watch()
    pipe = model.pipe(unet=watch.network(model.unet))

    def show(done: int) -> tuple[dict[str, Any], str]:
        probabilities = looks[-1].probabilities[0] if looks else np.full(count, 1 / count)
        racing = looks[-1].racing[0] if looks else np.ones(count, dtype=bool)
        numbers = {"model": model.name, "evaluations_done": done}
        return numbers, bars(probabilities, racing) + pictures.note(both("classes_race", evaluations=done))

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
        "bits_per_dim": out.bits_per_dim[0].tolist(),
        "monte_carlo_error": out.monte_carlo_error[0].tolist(),
        "num_network_evaluations": out.num_network_evaluations,
    }
    gaps = [
        (gap, error)
        for gap, error in zip((out.bits_per_dim[0] - out.bits_per_dim[0, label]).tolist(), numbers["monte_carlo_error"])
    ]
    yield numbers, bars(out.probabilities[0].numpy(), looks[-1].racing[0], gaps) + pictures.note(words)


def bars(probabilities: np.ndarray, racing: np.ndarray, gaps: list[tuple[float, float]] | None = None) -> str:
    r"""A bar a class; those that have been dropped are faint. `gaps` are bits/dim to the label's, with their errors."""
    best, lines = int(probabilities.argmax()), []
    for label, (probability, still) in enumerate(zip(probabilities.tolist(), racing.tolist())):
        kind = ' class="vlb-best"' if label == best else "" if still else ' class="vlb-out"'
        said = f"{probability:.3f}"
        if gaps is not None and label != best:
            said += f" <small>+{gaps[label][0]:.3f} ± {gaps[label][1]:.3f} bits/dim</small>"
        bar = f'<i style="width:{100 * probability:.1f}%"></i>'
        lines.append(f'<tr{kind}><th scope="row">{label}</th><td class="vlb-classbar">{bar}</td><td>{said}</td></tr>')
    return f'<table class="vlb-classes">{"".join(lines)}</table>'
