r"""A report's number where the Hub looks for results: `.eval_results/*.yaml`, by huggingface_hub's own classes.

The card's `model-index` says the same and is what the Hub calls legacy. The entry names the data set and the task of its
benchmark (`eval.yaml` of the data set's repository), the number, and, in `notes`, its error and all that is needed to make it
again.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlunsplit

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml, parse_eval_result_entries
from huggingface_hub.utils import validate_repo_id

from ..reports.schema import Report, public_report
from .cards import METRIC, reproducing_command

EVAL_RESULTS = ".eval_results/ddpm-vlb.yaml"


def eval_result_entries(report: Mapping[str, Any], repository: str) -> list[EvalResultEntry]:
    r"""The entries of a report, none where its images are of no data set that could be on the Hub.

    Args:
        report: as `ddpm_vlb.evaluation` makes it.
        repository: of the checkpoint.

    Raises:
        ValueError: anything that is no `Report`.
    """
    report = Report.of(report)
    shown = public_report(report, repository)
    config = shown["config"]
    dataset = str(config["dataset"]).partition(":")[0]  # without the configuration
    try:
        validate_repo_id(dataset)
    except ValueError:
        return []
    entries = [
        EvalResultEntry(
            dataset_id=dataset,
            # The bound is the metric by that name; of another method's number its name says so.
            task_id=METRIC if report.method.columns is None else f"{METRIC}_{report.method.name}",
            value=shown["bits_per_dim"],
            source_url=urlunsplit(("https", "huggingface.co", f"{repository}/blob/main/report.json", "", "")),
            source_name="report.json",
            notes=_notes(shown, report.method.metric, repository),
        )
    ]
    found = report.get("classification")
    if found is not None and found["config"]["dataset"] == dataset:
        low, high = found["accuracy_interval"]
        notes = f"95% interval {low!r} to {high!r}; {found['num_images']} images; confidence {found['config']['confidence']!r}"
        where = {"source_url": entries[0].source_url, "source_name": entries[0].source_name, "notes": notes}
        entries.append(EvalResultEntry(dataset_id=dataset, task_id="accuracy", value=found["accuracy"], **where))
    return entries


def eval_results_file(report: Mapping[str, Any], repository: str) -> bytes | None:
    r"""The file `EVAL_RESULTS` of a report, or `None` where there is no entry."""
    entries = eval_result_entries(report, repository)
    if not entries:
        return None
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=10**6).encode()


def check_eval_results(content: bytes, report: Mapping[str, Any], repository: str) -> None:
    r"""Raise `ValueError` unless the file says what the report says, and nothing else."""
    try:
        found = parse_eval_result_entries(yaml.safe_load(content))
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`{EVAL_RESULTS}` must be a list of results, got {type(error).__name__}: {' '.join(str(error).split())}."
        ) from error
    expected = eval_result_entries(report, repository)
    if len(found) != len(expected):
        raise ValueError(f"`{EVAL_RESULTS}` must have the {len(expected)} results of its report, got {len(found)}.")
    for own, entry in zip(expected, found):
        for name, value in vars(own).items():
            got = getattr(entry, name)
            if got != value or type(got) is not type(value):
                raise ValueError(f"`{EVAL_RESULTS}` must agree with its report, got {name} {got!r} for {value!r}.")


def _notes(shown: dict[str, Any], metric: str, repository: str) -> str:
    config, error = shown["config"], shown["standard_error"]
    parts = [
        f"{metric}, lower is better",
        None if error is None else f"standard error {error!r}",
        f"{shown['num_images']} images" + (f" of split {config['split']}" if config.get("split") else ""),
        f"{config['num_pixel_levels']} pixel levels",
        f"{config['num_steps']} of {config['num_train_timesteps']} steps",
        f"method {shown['method']}, {shown['num_network_evaluations']} network evaluations",
        f"network sha256 {config['network_sha256']}" if config.get("network_sha256") else None,
        f"images sha256 {', '.join(config['data_sha256'])}" if config.get("data_sha256") else None,
        f"ddpm_vlb {config['versions']['ddpm_vlb']}" if "ddpm_vlb" in (config.get("versions") or {}) else None,
        reproducing_command(shown, repository),
    ]
    return "; ".join(part for part in parts if part is not None)
