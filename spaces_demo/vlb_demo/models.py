r"""The models that a visitor may choose: those beside the app, and those that were named when it started. No others, ever."""

import json
import threading
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.model.kinds import network_of
from ddpm_vlb.model.network import Network

from . import SPACE
from .texts import Refusal
from .uploads import complexity, fit, open_picture

CHECKPOINTS = SPACE / "checkpoints"
EXAMPLES = SPACE / "examples"
DEFAULT = "ddpm-vlb-digits"
MAX_SECONDS = 600  # of one computation


@dataclass(frozen=True)
class Model:
    r"""A checkpoint, and the images to look at it with.

    Args:
        name: what visitors choose.
        source: folder or repository, for the snippets.
        unet, scheduler_config: what was loaded; neither is ever written to.
        examples: levels `(N, C, H, W)`, uint8 or int32.
        examples_file: where they come from, for the snippets; `None` where they were made to fit.
        report: what `ddpm-vlb evaluate` wrote of it, if it did.
        scores: bits/dim of the examples, float64, where they are known.
        seconds: that a network evaluation takes, about.
    """

    name: str
    source: str
    unet: torch.nn.Module
    scheduler_config: dict[str, Any] = field(repr=False)
    examples: torch.Tensor = field(repr=False)
    examples_file: str | None
    report: dict[str, Any] | None = field(repr=False)
    scores: np.ndarray | None = field(repr=False)
    seconds: float = 0.0

    @property
    def network(self) -> Network:
        r"""The network, to be asked."""
        return network_of(self.unet)

    @property
    def num_parameters(self) -> int:
        r"""Of the network."""
        return sum(parameter.numel() for parameter in self.unet.parameters())

    def check_time(self, evaluations: int) -> None:
        r"""Refuse what would keep others waiting for long."""
        if self.seconds * evaluations > MAX_SECONDS:
            asked = round(self.seconds * evaluations)
            raise Refusal("too_long", limit=MAX_SECONDS, most=int(MAX_SECONDS / self.seconds), got=evaluations, seconds=asked)

    def pipe(self, unet: torch.nn.Module | None = None, **settings: Any) -> VLBDDPMPipeline:
        r"""A pipeline of one's own: visitors share weights, never a scheduler."""
        scheduler = VLBDDPMScheduler.from_config(self.scheduler_config, **settings)
        pipe = VLBDDPMPipeline(self.unet if unet is None else unet, scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @property
    def num_pixel_levels(self) -> int:
        return self.scheduler_config["num_pixel_levels"]

    @property
    def num_train_timesteps(self) -> int:
        return self.scheduler_config["num_train_timesteps"]

    @property
    def shape(self) -> tuple[int, int, int]:
        r"""`(C, H, W)` of an image."""
        return tuple(self.examples.shape[1:])

    @cached_property
    def corrected_scores(self) -> np.ndarray | None:
        r"""Of the examples, less what a compressor needs for them; see `complexity`."""
        if self.scores is None or complexity(self.examples[0], self.num_pixel_levels) is None:
            return None
        return self.scores - [complexity(levels, self.num_pixel_levels) for levels in self.examples]

    def held_out(self, number: int | None = None) -> np.ndarray | None:
        r"""Scores to compare a picture's with: those of all examples, or, of an example, those of all others."""
        return self.scores if self.scores is None or number is None else np.delete(self.scores, number)

    def image(self, number: int) -> torch.Tensor:
        r"""Levels `(1, C, H, W)` of an example."""
        if not 0 <= number < len(self.examples):
            raise Refusal("number_range", last=len(self.examples) - 1, got=number)
        return self.examples[number][None]

    def image_code(self, number: int, stop: int | None = None) -> str:
        r"""Python that makes `image` an example, or those from `number` up to before `stop`."""
        stop = number + 1 if stop is None else stop
        if self.examples_file is not None:
            return f"image = load_images({self.examples_file!r}).images[{number}:{stop}]"
        images = self.examples[number:stop]
        return f"image = torch.tensor({images.flatten().tolist()}).view({', '.join(map(str, images.shape))})"


class Models:
    r"""Loaded when they are first asked for, once.

    Args:
        more: folders or repositories besides those beside the app, named by whoever starts it.

    Raises:
        ValueError: one of `more` that is no DDPM checkpoint.
    """

    def __init__(self, more: tuple[str, ...] = ()):
        self._sources = {path.parent.name: str(path.parent) for path in sorted(CHECKPOINTS.glob("*/model_index.json"))}
        # A classifier travels with the model of the same images, and is none for the tabs.
        self._classifiers = {
            name.removesuffix("-class"): self._sources.pop(name)
            for name, source in list(self._sources.items())
            if (_read_json(Path(source) / "unet" / "config.json") or {}).get("num_class_embeds") is not None
        }
        # Before anything is loaded: a name that is taken would show one model under the name of another.
        for source in more:
            name = Path(source).resolve().name if Path(source).exists() else source
            if name in self._sources:
                raise ValueError(f"`--model` must have a name of its own, got a second {name!r}.")
            self._sources[name] = source
        self._loaded: dict[str, Model] = {}
        self._loaded_classifiers: dict[str, Model] = {}
        self._lock = threading.Lock()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # Wrong ones are found at the start, not by a visitor.
        for source in more:
            self[next(name for name, path in self._sources.items() if path == source)]

    @property
    def names(self) -> list[str]:
        return sorted(self._sources, key=lambda name: (name != DEFAULT, name))

    def __getitem__(self, name: str) -> Model:
        if name not in self._sources:
            raise Refusal("no_such_model", names=", ".join(self.names), got=str(name)[:100])
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self._load(name)
            return self._loaded[name]

    def has_classes(self, name: str) -> bool:
        r"""Whether a class-conditional model of the same images travels with a model."""
        return name in self._classifiers

    def classifier(self, name: str) -> Model:
        r"""The class-conditional model of a model's images; `Refusal` where there is none."""
        model = self[name]
        if not self.has_classes(name):
            raise Refusal("no_classes", name=name)
        with self._lock:
            if name not in self._loaded_classifiers:
                source = self._classifiers[name]
                pipe = VLBDDPMPipeline.from_pretrained(source).to(self.device)
                self._loaded_classifiers[name] = replace(
                    model,
                    name=Path(source).name,
                    source=f"checkpoints/{Path(source).name}",
                    unet=pipe.unet.eval().requires_grad_(False),
                    scheduler_config=dict(pipe.scheduler.config),
                    report=_read_json(Path(source) / "report.json"),
                    scores=None,
                    seconds=_seconds(pipe.network, model.shape),
                )
            return self._loaded_classifiers[name]

    def _load(self, name: str) -> Model:
        source = self._sources[name]
        pipe = VLBDDPMPipeline.from_pretrained(source).to(self.device)
        pipe.scorer()  # refuses what cannot be scored
        network = pipe.network
        if network.num_classes is not None:
            raise ValueError(f"`--model` must be an unconditional model for this demo, got {source!r} with classes.")
        if network.size is None:
            raise ValueError(f"`--model` must say the size of its images (`sample_size`), got {source!r} without.")
        unet = pipe.unet.eval().requires_grad_(False)
        shape = (network.channels, *network.size)
        beside = Path(source).parent == CHECKPOINTS
        examples, scores, file = None, None, None
        report = _read_json(Path(source) / "report.json") if Path(source).is_dir() else None
        if beside and (EXAMPLES / f"{name}.npz").is_file():
            file = f"examples/{name}.npz"
            with np.load(EXAMPLES / f"{name}.npz", allow_pickle=False) as archive:
                examples = torch.from_numpy(archive["images"])
            examples = examples[:, None] if examples.ndim == 3 else examples.permute(0, 3, 1, 2).contiguous()
            reports = (report, _read_json(EXAMPLES / f"{name}.json"))
            scores = _scores(len(examples), network.sha256(), *reports)
        else:
            pictures = sorted((EXAMPLES / "pictures").glob("*.png"))
            examples = torch.cat([fit(open_picture(path), shape, pipe.scheduler.config.num_pixel_levels) for path in pictures])
        return Model(
            name=name,
            source=f"checkpoints/{name}" if beside else source,
            unet=unet,
            scheduler_config=dict(pipe.scheduler.config),
            examples=examples,
            examples_file=file,
            report=report,
            scores=scores,
            seconds=_seconds(network, shape),
        )


@torch.no_grad()
def _seconds(network: Network, shape: tuple[int, int, int], batch: int = 8) -> float:
    r"""That an evaluation takes in a small batch."""
    samples = torch.zeros(batch, *shape, device=network.device)
    labels = None if network.num_classes is None else torch.zeros(batch, dtype=torch.int64, device=network.device)
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        network(samples, 0, labels).cpu()
    return (time.perf_counter() - started) / batch


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _scores(count: int, sha256: str | None, *reports: dict[str, Any] | None) -> np.ndarray | None:
    r"""The images' scores, from the first report of this very network that has one for each."""
    for report in reports:
        if report is None or report["config"].get("network_sha256") != sha256:
            continue
        if report.get("per_image") and len(report["per_image"]) == count:
            return np.array(report["per_image"])
    return None
