r"""What a Hub repository of ours contains, and how it gets there.

One layout serves three users:

- `model_index.json`, `unet/`, `scheduler/` name the stock classes: diffusers alone loads and samples them, `VLBDDPMPipeline`
  upgrades what it loads;
- `text_encoder/` and `tokenizer/` are there where the network takes prompts;
- `pipeline.py` is the package in one file, for `custom_pipeline=` and those who trust it;
- `README.md` is a card made from `report.json`, with `terms.png` and `samples.png` beside it;
- `.eval_results/ddpm-vlb.yaml` has the report's number where the Hub looks for results.

Nothing else is sent: no optimizer, no logs, no path of the machine that made it. A push is one commit, so that a repository is
at every moment what it was before or what it is after; files of an earlier push that would contradict the new ones (other
weights, a report of other weights) leave in that commit.
"""

import errno
import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError

from ..files import fill_folder, naming
from ..parametrizations import KEPT_UNDER
from ..reports.schema import Report, public_report
from .cards import model_card
from .eval_results import EVAL_RESULTS, eval_results_file
from .standalone import standalone_source

WEIGHTS = "diffusion_pytorch_model"
# Weights in one file or in shards, with or without a variant, and the index of shards.
WEIGHT_NAME = re.compile(
    rf"unet/{WEIGHTS}(?:\.(?P<variant>[\w-]+?))??(?:-\d+-of-\d+)?\.(?:safetensors|bin)(?:\.index(?:\.(?P<of_index>[\w-]+))?\.json)?"
)
PIPELINE_FILES = ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json")
# A text encoder and its tokenizer, which a network of prompts is nothing without.
TEXT_NAME = re.compile(r"(text_encoder|tokenizer)/[\w.-]+\.(json|safetensors|bin|txt|model)")
PICTURES = {"terms.png": "The terms of the bound over t", "samples.png": "Samples"}


def strip_paths(config: dict[str, Any]) -> dict[str, Any]:
    r"""A configuration without the place it was loaded from, which is a path of this machine."""
    return {key: value for key, value in config.items() if key != "_name_or_path"}


def json_config(config: dict[str, Any]) -> dict[str, Any]:
    r"""A configuration as it is published: without paths, and as JSON can hold it.

    DPM-Solver's schedulers have `lambda_min_clipped = -inf`, for which JSON has no number. Where an infinite number is the
    default of its class, or of another class than the configuration's, it is left out: what is loaded is the same.

    Raises:
        ValueError: another value that JSON has nothing for.
    """
    import diffusers  # and torch, without which a name is refused

    cls = getattr(diffusers, stock_name(config), None) if "_class_name" in config else None
    defaults = {n: p.default for n, p in inspect.signature(cls.__init__).parameters.items()} if isinstance(cls, type) else None
    public = {}
    for key, value in strip_paths(config).items():
        infinite = isinstance(value, float) and math.isinf(value)
        if infinite and defaults is not None and defaults.get(key, value) == value:
            continue
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError(f"`{key}` must be a value that JSON can hold, got {value!r}.") from None
        public[key] = value
    return public


def check_savable(**parts: Any) -> None:
    r"""Raise `ValueError` unless the parts of a pipeline can be saved and read again; meant to be asked before the work."""
    for name, part in parts.items():
        try:
            json_config(json.loads(part.to_json_string()))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"`{name}` must have a configuration that can be saved, got {type(part).__name__}: {error}"
            ) from error


def pipeline_files(folder: str | Path) -> dict[str, Path | bytes]:
    r"""The files of a saved pipeline that belong into a repository, by their names there: paths of weights, and the content of
    configurations.

    Raises:
        ValueError: a folder that is not a whole pipeline, or links that lead out of it.
    """
    folder = Path(folder)
    missing = [name for name in PIPELINE_FILES if not (folder / name).is_file()]
    if missing:
        hint = f" Did you mean {str(folder / 'pipeline')!r}?" if (folder / "pipeline" / PIPELINE_FILES[0]).is_file() else ""
        raise ValueError(f"`folder` must hold a saved pipeline, got {str(folder)!r} without {', '.join(missing)}.{hint}")
    files: dict[str, Path | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_text = TEXT_NAME.fullmatch(name) is not None
        if name not in PIPELINE_FILES and not WEIGHT_NAME.fullmatch(name) and not is_text:
            continue
        check_no_link(path, folder)
        files[name] = path
        if path.suffix == ".json" and not name.endswith(".index.json") and (not is_text or path.name == "config.json"):
            files[name] = json_bytes(json_config(json.loads(path.read_text(encoding="utf-8"))))
    return files


def check_no_link(path: Path, folder: Path) -> None:
    r"""Raise `ValueError` for a link that leads out of a folder, since what it names was not meant to leave, and for a pipe,
    whose reader waits for ever."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"`folder` must hold its files itself, got {path.name!r}, a link to {str(path.resolve())!r}.")
    if path.exists() and not path.is_file():
        raise ValueError(f"`folder` must hold plain files, got {path.name!r}, which is none.")


def repository_files(
    files: Mapping[str, Path | bytes],
    repository: str,
    report: Mapping[str, Any] | None = None,
    pictures: Mapping[str, bytes] | None = None,
) -> dict[str, Path | bytes]:
    r"""Everything that a repository of ours contains: `pipeline_files`, the remote code, card, report and pictures.

    Args:
        files: what `pipeline_files` says of the pipeline.
        repository: its full name.
        report: what the card is made from, or `None`.
        pictures: PNG files by their names, of those in `PICTURES`.

    Raises:
        ValueError: anything that is no `Report`.
    """
    scheduler, unet = (json.loads(cast(bytes, files[name])) for name in PIPELINE_FILES[1:])
    # The scheduler is the one that is there, whatever it was when the report was made.
    report = None if report is None else Report.of(report).with_settings(scheduler=stock_name(scheduler))
    pictures = pictures or {}
    card = model_card(
        report,
        repository=repository,
        settings=card_settings(scheduler) | {"num_class_embeds": unet.get("num_class_embeds")},
        pictures=[(caption, name) for name, caption in PICTURES.items() if name in pictures],
    )
    files = {**files, "pipeline.py": standalone_source().encode(), "README.md": str(card).encode(), **pictures}
    if report is not None:
        files["report.json"] = json_bytes(public_report(report, repository))
        results = eval_results_file(report, repository)
        if results is not None:
            files[EVAL_RESULTS] = results
    return files


def card_settings(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    r"""What a card is told of the saved configuration of a scheduler."""
    return {**scheduler, **scheduler.get(KEPT_UNDER, {}), "scheduler": stock_name(scheduler)}


def stock_name(scheduler: Mapping[str, Any]) -> str:
    r"""The class of diffusers that loads a saved configuration of a scheduler."""
    return str(scheduler.get("_class_name", "DDPMScheduler")).removeprefix("VLB")


def json_bytes(content: Any) -> bytes:
    r"""A JSON file."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def is_stale(name: str, variant: str | None = None) -> bool:
    r"""Whether a file that a push does not replace contradicts what it brings: other weights of the same variant, or what was
    measured of the model that was there."""
    if name in ("report.json", EVAL_RESULTS, *PICTURES):
        return True
    match = WEIGHT_NAME.fullmatch(name)
    return match is not None and (match["variant"] or match["of_index"]) == variant


@contextmanager
def saving(folder: Path, variant: str | None, **parts: Any) -> Iterator[Path]:
    r"""A folder for diffusers to save the parts of a pipeline to. When the block ends without an error, its files take the
    places of those of `folder`, with what a folder needs besides: no path of this machine, the package in one file, and no
    weights of an earlier save under another name, which would be loaded in place of these. Until then `folder` is as it was.

    Raises:
        ValueError: parts that cannot be saved; before anything is written.
        OSError: the weights cannot be written.
    """
    check_savable(**parts)
    with naming(folder), fill_folder(folder) as fresh:
        try:
            yield fresh
        except SafetensorError as error:  # of a disk that is full
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, f"The weights could not be written: {error}") from error
        for name, content in pipeline_files(fresh).items():
            if isinstance(content, bytes):
                (fresh / name).write_bytes(content)
        (fresh / "pipeline.py").write_bytes(standalone_source().encode())
        # By its name: a file's time says nothing where two saves fall into one tick of the clock.
        written = {path.name for path in (fresh / "unet").iterdir()}
    for path in list((folder / "unet").iterdir()):
        if path.name not in written and is_stale(f"unet/{path.name}", variant):
            path.unlink()
