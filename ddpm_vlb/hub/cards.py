r"""Model cards: made from a report and from nothing else, and checked against it.

A card is refused where its report is not what `ddpm_vlb.evaluation` writes: numbers that are not finite or not numbers, keys
that are missing, terms that do not sum to the total, a total that is not the mean of its images. A card that is there already
is checked by making it again: nothing but the pictures that it shows is its own.
"""

import re
import shlex
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..reports.schema import SETTINGS, check_plain, check_report, public_report
from .standalone import card_template

# diffusers' own scheduler samples NaN, or something else, with these.
NOT_FOR_STOCK = {"variance_type": ("learned", "fixed_large_log"), "timestep_spacing": ("trailing",)}
LONGEST_LIST = 32
METADATA_KEYS = ("license", "library_name", "pipeline_tag", "tags", "model-index")
TASK = "unconditional-image-generation"
METRIC = "bits_per_dim"
TAGS = ("diffusers", "ddpm", "likelihood", "bits-per-dim")


def model_card(
    report: dict[str, Any] | None,
    *,
    repository: str,
    settings: dict[str, Any] | None = None,
    pictures: Sequence[tuple[str, str]] = (),
) -> ModelCard:
    r"""The card of a checkpoint.

    Args:
        report: of the checkpoint, as `ddpm_vlb.evaluation` makes it: every number of the card is from here. Its `config` may
            have a `description`, `limits` and the `command` that made it; `None` makes a card that says that nothing was
            scored.
        repository: what the checkpoint is loaded by.
        settings: of the scheduler, and the network's `num_class_embeds`, where there is no report to say them.
        pictures: pairs of a caption and a file name beside the card.

    Raises:
        ValueError: a report that `check_report` refuses.
    """
    if report is not None:
        check_report(report)
        report = public_report(report, repository)
    config = settings or {} if report is None else report["config"]
    name = repository.rpartition("/")[2]
    steps = config.get("num_train_timesteps") or 1000
    not_for_stock = [f"{key}: {config[key]}" for key, values in NOT_FOR_STOCK.items() if config.get(key) in values]
    return ModelCard.from_template(
        _card_data(report, name),
        template_str=card_template(),
        report=report,
        name=name,
        repository=repository,
        description=config.get("description") or f"A DDPM of {steps} steps for diffusers.",
        limits=config.get("limits"),
        dataset=_dataset_and_split(config),
        error="" if report is None else _error(report),
        terms="" if report is None else "\n".join(_term_rows(report)),
        settings="" if report is None else "\n".join(_setting_rows(report)),
        command=None if report is None else reproducing_command(report, repository),
        pictures=list(pictures),
        num_inference_steps=min(1000, steps),
        not_for_stock=" and ".join(not_for_stock),
        conditional=config.get("num_class_embeds") is not None,
    )


def _card_data(report: dict[str, Any] | None, name: str) -> ModelCardData:
    data = dict(license="apache-2.0", library_name="diffusers", pipeline_tag=TASK, tags=list(TAGS))
    if report is None:
        return ModelCardData(**data)
    config = report["config"]
    result = EvalResult(
        task_type=TASK,
        dataset_type=config["dataset"],
        dataset_name=config["dataset"],
        dataset_split=config.get("split"),
        metric_type=METRIC,
        metric_name="bits/dim (variational bound)",
        metric_value=report["bits_per_dim"],
        metric_args=_metric_arguments(report),
    )
    return ModelCardData(**data, datasets=[config["dataset"]], model_name=name, eval_results=[result])


def _metric_arguments(report: dict[str, Any]) -> dict[str, Any]:
    arguments = {key: report[key] for key in ("standard_error", "num_images", "num_network_evaluations", "method")}
    config = report["config"]
    return arguments | {key: _shortened(config[key]) for key in SETTINGS if config.get(key) is not None}


def _error(report: dict[str, Any]) -> str:
    if report["standard_error"] is None:
        return ""
    if report["method"].startswith("full"):
        return f" ({report['standard_error']:.4f} standard error)"
    low, high = report["monte_carlo_interval"]
    level = f"{report['confidence_level']:.0%}"
    return f" ({report['standard_error']:.4f} standard error; of these very images {low:.4f} to {high:.4f}, {level})"


def _dataset_and_split(config: dict[str, Any]) -> str:
    return f"{config.get('dataset')} ({config['split']} split)" if config.get("split") else f"{config.get('dataset')}"


def _term_rows(report: dict[str, Any]) -> list[str]:
    rows = {"L_T (prior)": "prior", "sum of L_t (KL terms)": "transitions_total", "L_0 (decoder)": "decoder"}
    lines = [f"| {text} | {report[key]:.4f} |" for text, key in rows.items()]
    return ["| term | bits/dim |", "|---|---|", *lines, f"| **bound** | **{report['bits_per_dim']:.4f}** |"]


def _setting_rows(report: dict[str, Any]) -> list[str]:
    config = report["config"]
    rows = [f"| {text} | {_cell(config[key])} |" for key, text in SETTINGS.items() if config.get(key) is not None]
    method = f"| method | {report['method']}: {report['num_network_evaluations']} network evaluations |"
    versions = " ".join(f"{name} {version}" for name, version in config.get("versions", {}).items())
    return ["| setting | value |", "|---|---|", *rows, method, *([f"| versions | {versions} |"] if versions else [])]


def _shortened(value: Any) -> Any:
    # Hundreds of timesteps are no reading; the report has them all.
    if isinstance(value, list) and len(value) > LONGEST_LIST:
        return f"{', '.join(map(str, value[:3]))}, ..., {', '.join(map(str, value[-3:]))} ({len(value)} in report.json)"
    return value


def _cell(value: Any) -> str:
    # One line, and no column more.
    value = _shortened(value)
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def reproducing_command(report: dict[str, Any], repository: str) -> str | None:
    r"""The command line that makes the report of a checkpoint again: its own `command`, or `ddpm-vlb evaluate` with all that
    its config says; `None` where no command line can say it."""
    config = report["config"]
    if config.get("command"):
        return config["command"]
    shard = config.get("shard") or {"of": 1, "indices": [0]}
    by_command = "max_images" in config and type(config["seed"]) is int and "thresholding" not in config.get("overridden", ())
    by_command = by_command and len(shard["indices"]) == 1
    if not by_command or (config["inference_timesteps"] is not None and config["num_inference_steps"] is None):
        return None
    in_memory = config.get("num_images_in_memory", report["num_images"])
    words = ["ddpm-vlb", "evaluate", repository, "--dataset", config["dataset"]]
    optional = {
        "--revision": config.get("revision") if config.get("checkpoint") == repository else None,
        "--split": config.get("split"),
        "--max-images": config["max_images"],
        "--shard": None if shard["of"] == 1 else f"{shard['indices'][0]}/{shard['of']}",
        "--method": report["method"].partition(",")[0],
        "--target-se": config.get("target_se"),
        "--max-evaluations": config.get("max_evaluations"),
        "--per-image": config.get("evaluations_per_image"),
        "--buffer-mb": None if in_memory == report["num_images"] else config["buffer_bytes"] / 2**20,
        "--num-inference-steps": config["num_inference_steps"],
        "--num-pixel-levels": config["num_pixel_levels"],
        "--batch-size": config.get("batch_size"),
        "--dtype": config["dtype"],
        "--seed": config["seed"],
    }
    words += [str(word) for flag, value in optional.items() if value is not None for word in (flag, value)]
    words += ["--clip-sample" if config["clip_sample"] else "--no-clip-sample"]
    words += ["--quantize"] if config.get("quantized") else []
    return shlex.join(words)


def check_card(text: str, report: dict[str, Any]) -> None:
    r"""Raise `ValueError` unless a card has the metadata of ours, in plain and finite values, and says what its report says."""
    check_report(report)
    parts = re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE)
    if len(parts) != 3 or parts[0].strip():
        raise ValueError("`card` must begin with its metadata between two lines `---`.")
    try:
        metadata = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise ValueError(f"`card` must have metadata of plain YAML values, got: {' '.join(str(error).split())}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"`card` must have metadata of keys and values, got {type(metadata).__name__}.")
    check_plain(metadata, "card")
    missing = [key for key in METADATA_KEYS if not metadata.get(key)]
    if missing:
        raise ValueError(f"`card` must have the metadata {', '.join(METADATA_KEYS)}, got none of {', '.join(missing)}.")
    match = re.search(r'VLBDDPMPipeline\.from_pretrained\("([^"\n]+)"\)', parts[2])
    if match is None:
        raise ValueError("`card` must say how the checkpoint is loaded, got no VLBDDPMPipeline.from_pretrained(...).")
    # The pictures that are shown are the only thing that the report does not tell.
    pictures = re.findall(r"^!\[([^\]\n]*)\]\(([\w-]+\.png)\)$", parts[2], flags=re.MULTILINE)
    expected = str(model_card(report, repository=match[1], pictures=pictures))
    for got, line in zip_longest(text.strip().split("\n"), expected.strip().split("\n"), fillvalue="nothing"):
        if got != line:
            raise ValueError(f"`card` must agree with its report, got the line {got!r} for {line!r}.")
