r"""Model cards: made from a report and from nothing else, and checked against it.

A card is refused where its report is not what `ddpm_vlb.evaluation` writes: numbers that are not finite or not numbers, keys
that are missing, terms that do not sum to the total, a total that is not the mean of its images. A card that is there already
is checked by making it again: nothing but the pictures that it shows is its own.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..likelihoods.method import Method
from ..likelihoods.methods import method_named
from ..parametrizations import PIPELINES, SAMPLED_BY_STOCK, VARIANCES
from ..reports.checks import check_plain
from ..reports.classes import SHARED_SETTINGS, check_classification
from ..reports.schema import FIELDS, IN_MEMORY, SETTINGS, Report, Setting, all_settings, public_report
from .standalone import card_template

LONGEST_LIST = 32
METADATA_KEYS = ("license", "library_name", "pipeline_tag", "tags", "model-index")
TASK, CLASS_TASK = "unconditional-image-generation", "image-classification"
METRIC = "bits_per_dim"
TAGS = ("diffusers", "ddpm", "likelihood", "bits-per-dim")
BOUND = "an upper bound on the\nnegative log-likelihood"
# The order of a command's words; further ones follow. Cards are checked by making them again, old ones too.
FLAG_ORDER = (
    "--dataset",
    "--revision",
    "--split",
    "--image-column",
    "--label-column",
    "--convert",
    "--resize",
    "--center-crop",
    "--max-images",
    "--image-seed",
    "--shard",
    "--method",
    "--target-se",
    "--max-evaluations",
    "--per-image",
    "--buffer-mb",
    "--num-inference-steps",
    "--num-pixel-levels",
    "--batch-size",
    "--dtype",
    "--seed",
    "--clip-sample",
    "--no-clip-sample",
    "--quantize",
)


def model_card(
    report: Mapping[str, Any] | None,
    *,
    repository: str,
    settings: Mapping[str, Any] | None = None,
    pictures: Sequence[tuple[str, str]] = (),
) -> ModelCard:
    r"""The card of a checkpoint.

    Args:
        report: of the checkpoint, as `ddpm_vlb.evaluation` makes it: every number of the card is from here. Its `config` may
            have a `description`, `limits` and the `command` that made it; `None` makes a card that says that nothing was
            scored.
        repository: what the checkpoint is loaded by.
        settings: of the scheduler, with its class in diffusers as `scheduler`, and the network's `num_class_embeds`, where
            there is no report to say them.
        pictures: pairs of a caption and a file name beside the card.

    Raises:
        ValueError: anything that is no `Report`.
    """
    scored = {} if report is None else _scored(Report.of(report), repository)
    config = settings or {} if report is None else scored["report"]["config"]
    name = repository.rpartition("/")[2]
    steps = config.get("num_train_timesteps") or 1000
    scheduler = scheduler_of(config)
    not_for_stock = settings_not_for_stock(config)
    return ModelCard.from_template(
        _card_data(name, **scored),
        template_str=card_template(),
        name=name,
        repository=repository,
        description=config.get("description") or f"A DDPM of {steps} steps for diffusers.",
        limits=config.get("limits"),
        pictures=list(pictures),
        num_inference_steps=min(1000, steps) if scheduler.startswith("DDPM") else min(50, steps // 2 or 1),
        not_for_stock=" and ".join(not_for_stock),
        scheduler=scheduler,
        pipeline=PIPELINES.get(scheduler, "DDPMPipeline") if scheduler in SAMPLED_BY_STOCK else None,
        conditional=config.get("num_class_embeds") is not None,
        **scored,
    )


def _scored(report: Report, repository: str) -> dict[str, Any]:
    r"""What a card says of a number, and of what was scored."""
    method, shown = report.method, public_report(report, repository)
    config = shown["config"]
    return {
        "report": shown,
        "metric": method.metric,
        "dataset": f"{config['dataset']} ({config['split']} split)" if config.get("split") else config["dataset"],
        "error": _error(shown),
        "what": BOUND if method.columns is None else f"the {method.columns['bits_per_dim']} ({shown['method']})",
        "columns": method.columns is not None,
        "note": method.note,
        "terms": "\n".join(_term_rows(shown, method)),
        "settings": "\n".join(_setting_rows(shown)),
        "command": reproducing_command(shown, repository),
        "classes": _classes(report, repository),
    }


def _classes(report: Report, repository: str) -> dict[str, Any] | None:
    r"""What a card says of the model as a classifier, `None` where nothing is known."""
    if "classification" not in report:
        return None
    found = check_classification(report["classification"])
    config = found["config"]
    split = f" ({config['split']} split)" if config.get("split") else ""
    of = {name: config[name] for name in ("dataset", "confidence", "score")}
    of |= {"split": config.get("split"), "of": config["dataset"] + split, "num_classes": len(config["classes"])}
    return found | of | {"command": _classifying_command(config, report.config["num_class_embeds"], repository)}


def _classifying_command(config: dict[str, Any], num_classes: int | None, repository: str) -> str | None:
    r"""The command line that classifies again as this config says; `None` where no command line can say it."""
    if config["dataset"] == IN_MEMORY or len(set(config["class_prior"])) > 1:
        return None
    rows, words = {row.name: row for row in all_settings()}, []
    for name in SHARED_SETTINGS:
        own = _words(rows[name], {"config": config}, repository)
        if own is None:
            return None
        words += own
    if config["classes"] != list(range(num_classes or 0)):
        words += ["--classes", ",".join(map(str, config["classes"]))]
    for name in ("confidence", "max_evaluations_per_image", "score"):
        words += [f"--{name.replace('_', '-')}", str(config[name])]
    return shlex.join(["ddpm-vlb", "classify", repository, *words])


def scheduler_of(config: Mapping[str, Any]) -> str:
    r"""The class of diffusers that a checkpoint is saved with; old reports say nothing of it."""
    return config.get("scheduler") or "DDPMScheduler"


def settings_not_for_stock(config: Mapping[str, Any]) -> list[str]:
    r"""Settings with which diffusers' own scheduler samples NaN, or something else."""
    variance, is_ddpm = VARIANCES.get(str(config.get("variance_type"))), scheduler_of(config).startswith("DDPM")
    # Others have no variance of a step, and know of no network that says one.
    wrong = {"variance_type": variance is not None and (not variance.for_stock if is_ddpm else variance.is_learned)}
    wrong["timestep_spacing"] = is_ddpm and config.get("timestep_spacing") == "trailing"
    return [f"{name}: {config[name]}" for name, is_wrong in wrong.items() if is_wrong]


def _card_data(
    name: str, report: dict[str, Any] | None = None, metric: str = "", classes: dict[str, Any] | None = None, **_: Any
) -> ModelCardData:
    data: dict[str, Any] = dict(license="apache-2.0", library_name="diffusers", pipeline_tag=TASK, tags=list(TAGS))
    if report is None:
        return ModelCardData(**data)
    config = report["config"]
    result = EvalResult(
        task_type=TASK,
        dataset_type=config["dataset"],
        dataset_name=config["dataset"],
        dataset_split=config.get("split"),
        metric_type=METRIC,
        metric_name=metric,
        metric_value=report["bits_per_dim"],
        metric_args=_metric_arguments(report),
    )
    results = [result]
    if classes is not None:
        of = {f"dataset_{key}": classes[name] for key, name in (("type", "dataset"), ("name", "dataset"), ("split", "split"))}
        arguments = {key: classes[key] for key in ("accuracy_interval", "num_images", "num_network_evaluations", "confidence")}
        value = {"metric_type": "accuracy", "metric_name": "accuracy", "metric_value": classes["accuracy"]}
        results.append(EvalResult(task_type=CLASS_TASK, **of, **value, metric_args=arguments))
    return ModelCardData(**data, datasets=[config["dataset"]], model_name=name, eval_results=results)


def _metric_arguments(report: dict[str, Any]) -> dict[str, Any]:
    arguments = {key: report[key] for key in ("standard_error", "num_images", "num_network_evaluations", "method")}
    if report.get("doubt"):
        arguments["standard_error"] = None
    return arguments | {row.name: _shortened(report["config"][row.name]) for row in _shown_settings(report)}


def _error(report: dict[str, Any]) -> str:
    if report["standard_error"] is None:
        return ""
    if report.get("doubt"):
        return f" (an estimate whose error is not known: {report['doubt']})"
    if "monte_carlo_interval" not in report:
        return f" ({report['standard_error']:.4f} standard error)"
    low, high = report["monte_carlo_interval"]
    level = f"{report['confidence_level']:.0%}"
    return f" ({report['standard_error']:.4f} standard error; of these very images {low:.4f} to {high:.4f}, {level})"


def _term_rows(report: dict[str, Any], method: Method) -> list[str]:
    r"""What the number is made of: the terms of the bound, or a method's columns."""
    if method.columns is None:
        head, total = "| term | bits/dim |", "bound"
        rows = {row.name: row.shown for row in FIELDS if row.shown is not None}
    else:
        head, rows = "| number | mean over images |", dict(method.columns)
        total = rows.pop("bits_per_dim")
    lines = [f"| {words} | {report[name]:.4f} |" for name, words in rows.items()]
    if "solver_error" in report:
        lines.append(f"| solver's error, at most | {report['solver_error']:.2g} |")
    return [head, "|---|---|", *lines, f"| **{total}** | **{report['bits_per_dim']:.4f}** |"]


def _shown_settings(report: dict[str, Any]) -> list[Setting]:
    return [row for row in SETTINGS if row.shown is not None and report["config"].get(row.name) is not None]


def _setting_rows(report: dict[str, Any]) -> list[str]:
    config = report["config"]
    rows = [f"| {row.shown} | {_cell(config[row.name])} |" for row in _shown_settings(report)]
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


def reproducing_command(report: Mapping[str, Any], repository: str) -> str | None:
    r"""The command line that makes the report of a checkpoint again: its own `command`, or `ddpm-vlb evaluate` with all that
    its config says; `None` where no command line can say it."""
    config = report["config"]
    if config.get("command"):
        return config["command"]
    method, said = method_named(report["method"]), {}
    rows = {row.name: row for row in all_settings() if row.flag is not None}
    overridden = config.get("overridden") or ()
    of_evaluate = "max_images" in config and config["dataset"] != IN_MEMORY
    # A number of several sweeps has more to its method than its name; a grid that was named has no flag.
    by_name = method.columns is not None or report["method"] == method.name
    on_named_grid = config["inference_timesteps"] is not None and config["num_inference_steps"] is None
    if not (of_evaluate and by_name) or on_named_grid or any(name not in rows for name in overridden):
        return None
    for row in rows.values():
        words = _words(row, report, repository)
        if words is None:
            return None
        said |= {words[0]: words} if words else {}
    said["--method"] = ["--method", method.name]
    order = [flag for flag in FLAG_ORDER if flag in said] + [flag for flag in said if flag not in FLAG_ORDER]
    return shlex.join(["ddpm-vlb", "evaluate", repository, *(word for flag in order for word in said[flag])])


def _words(row: Setting, report: Mapping[str, Any], repository: str) -> list[str] | None:
    r"""A setting as words of a command line: none where there is nothing to say, `None` where they cannot say it."""
    config = report["config"]
    value, flag = config.get(row.name), row.flag
    if row.name == "calibration" and "calibration" not in (config.get("overridden") or ()):
        return []
    if row.name == "revision" and config.get("checkpoint") != repository:
        return []
    if row.name == "seed" and type(config.get("seed")) is not int:
        return None
    if isinstance(flag, Mapping):
        # By equality: a value may be a list.
        said = next((words for known, words in flag.items() if known == value), None)
        return shlex.split(said) if said is not None else [] if value is None else None
    if row.name == "buffer_bytes" and value is not None:
        all_in_memory = config.get("num_images_in_memory", report["num_images"]) == report["num_images"]
        value = None if all_in_memory else value / 2**20
    elif row.name == "shard" and value is not None:
        if len(value["indices"]) > 1:
            return None
        value = None if value["of"] == 1 else f"{value['indices'][0]}/{value['of']}"
    if value is None or flag is None:
        return []
    return [word for one in (value if isinstance(value, list) else [value]) for word in (flag, str(one))]


def check_card(text: str, report: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless a card has the metadata of ours, in plain and finite values, and says what its report says."""
    report = Report.of(report)
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
    repository = repository_of_card(parts[2])
    # The pictures that are shown are the only thing that the report does not tell.
    pictures = re.findall(r"^!\[([^\]\n]*)\]\(([\w-]+\.png)\)$", parts[2], flags=re.MULTILINE)
    expected = str(model_card(report, repository=repository, pictures=pictures))
    for got, line in zip_longest(text.strip().split("\n"), expected.strip().split("\n"), fillvalue="nothing"):
        if got != line:
            raise ValueError(f"`card` must agree with its report, got the line {got!r} for {line!r}.")


def repository_of_card(text: str) -> str:
    r"""What a card says that its checkpoint is loaded by, or `ValueError`."""
    match = re.search(r'VLBDDPMPipeline\.from_pretrained\("([^"\n]+)"\)', text)
    if match is None:
        raise ValueError("`card` must say how the checkpoint is loaded, got no VLBDDPMPipeline.from_pretrained(...).")
    return match[1]
