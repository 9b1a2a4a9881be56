r"""What a report holds: a row for each of its fields, and for each setting in its `config`; and `Report`, which is checked.

Whatever reads reports goes by these rows: the check, `merge`, cards, what may be shown, the command that makes a number again,
the journal of an evaluation. A new field is a row here and a line where it is made. Of a method that gives each image numbers
of its own (`columns` in `likelihoods.methods.METHODS`) a report has the mean of each column under its name, and of a method's
options its settings: there is nothing to say here of either.
"""

import difflib
import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NoReturn, get_args

from ..likelihoods.method import Method
from ..likelihoods.methods import METHODS, method_named
from .checks import check_numbers, check_plain, is_of_kind, kind_words, to_plain

IN_MEMORY = "images in memory"  # the data set that nobody named
# Of a network; within autocast its weights are float32.
DTYPES = ("float32", "bfloat16", "float16", "autocast-bfloat16", "autocast-float16")
BOUNDS = ("sampled", "full")  # the methods whose reports hold the terms of the bound


@dataclass(frozen=True)
class Field:
    r"""An entry of a report.

    Args:
        name: of the entry.
        kind: of its value, a type or a union of types.
        needed_by: the methods whose reports must have it; `None` for all, `()` for none.
        or_null: says of a report whether it may have `None` here.
        shown: in words, among the terms on a card.
        public: whether it may be shown.
    """

    name: str
    kind: Any
    needed_by: tuple[str, ...] | None = None
    or_null: Callable[[Mapping[str, Any]], bool] | None = None
    shown: str | None = None
    public: bool = True


@dataclass(frozen=True)
class Setting:
    r"""An entry of a report's `config`.

    Args:
        name: of the entry.
        kind: of its value, a type or a union of types.
        required: a number is one of this setting, or it is none.
        shown: in words, among the settings on a card.
        public: whether it may be shown. What has no row stays at home.
        identity: whether it says which model was scored.
        overridable: of the model, whether a caller may score with another one than the checkpoint's; the report says so.
        free: whether reports that differ in it can be merged; they must agree in all else, what has no row among it.
        of_one_run: whether a merged report has none.
        who: whether it says who does the work, which may change before an evaluation is gone on with from its journal.
        context: whether a caller may say it beside a report.
        flag: of `ddpm-vlb evaluate`, in front of the value; or for each value that the command line can say its own words.
    """

    name: str
    kind: Any = str
    required: bool = False
    shown: str | None = None
    public: bool = True
    identity: bool = False
    overridable: bool = False
    free: bool = False
    of_one_run: bool = False
    who: bool = False
    context: bool = False
    flag: str | Mapping[Any, str] | None = None


def _of_one_image(report: Mapping[str, Any]) -> bool:
    return report["num_images"] == 1


def _of_draws(report: Mapping[str, Any]) -> bool:
    return method_named(report["method"]).name == "sampled"


FIELDS = (
    Field("bits_per_dim", float),
    Field("prior", float, BOUNDS, shown="L_T (prior)"),
    Field("transitions_total", float, BOUNDS, shown="sum of L_t (KL terms)"),
    Field("decoder", float, BOUNDS, shown="L_0 (decoder)"),
    Field("standard_error", float, or_null=_of_one_image),
    Field("transitions", list, BOUNDS),  # in a sampled report null where no evaluation fell
    Field("timesteps", list, BOUNDS),
    Field("per_image", list, or_null=_of_draws),  # not all images may have been evaluated, or alike
    # Of those images: their places in the data set, and what it calls them and says that they are, where it does.
    Field("image_numbers", list, ()),
    Field("image_names", list, (), public=False),
    Field("image_labels", list, ()),
    Field("method", str),
    Field("num_images", int),
    Field("num_network_evaluations", int),
    Field("config", dict),
    Field("monte_carlo_error", float | None, ("sampled",)),
    Field("degrees_of_freedom", float, ("sampled",)),
    Field("confidence_level", float, ("sampled",)),
    Field("monte_carlo_interval", list, ("sampled",)),
    Field("strata", list, ("sampled",)),
    Field("evaluations_per_timestep", list, ("sampled",)),
    Field("data_error", float | None, ()),
    # Whether the Monte Carlo error can be trusted, and why not; old reports do not say.
    Field("reliable", bool, ()),
    Field("doubt", str | None, ()),
    Field("confidence_interval", list | None, ()),
    Field("per_image_monte_carlo_error", list | None, ()),
    Field("per_image_degrees_of_freedom", list | None, ()),  # of these errors; old reports have none
    Field("solver_error", float, ()),  # of the ODE; old reports have none
    Field("half_precision_bias", dict, ()),
    Field("classification", dict, ()),  # the model as a classifier, `reports/classes.py`
)
LATER = ("calibration", "noise_process", "condition_sha256")  # settings of the model that the first reports did not have
# Cards show the settings in this order. The options of the methods follow.
SETTINGS = (
    Setting("network_sha256", str | None, required=True, identity=True),  # null where the weights were not at hand
    Setting("num_train_timesteps", int, required=True, identity=True, shown="number of steps T"),
    Setting("num_steps", int, required=True, identity=True, shown="steps scored"),
    Setting("inference_timesteps", list | None, required=True, identity=True, shown="the sub-sequence scored"),
    Setting("num_inference_steps", int | None, required=True, flag="--num-inference-steps"),
    Setting("timestep_spacing"),
    Setting("beta_schedule", str | None, identity=True, shown="forward variances"),
    Setting("trained_betas", list | None, identity=True),
    Setting("beta_start", float | None, identity=True),
    Setting("beta_end", float | None, identity=True),
    Setting("rescale_betas_zero_snr", bool | None, identity=True),
    Setting("prediction_type", required=True, identity=True, shown="prediction type"),
    Setting("variance_type", required=True, identity=True, shown="reverse variances"),
    Setting("decoder_variance", required=True, identity=True, shown="decoder variance (t = 0)"),
    # What the network was trained for where it is no DDPM's, and what it was given besides; old reports have neither.
    Setting("noise_process", str | None, identity=True, shown="noise process"),
    # The class of diffusers' that the checkpoint is saved with, which the number does not depend on.
    Setting("scheduler", free=True),
    Setting("condition_sha256", str | None, identity=True, shown="given to the network, SHA-256"),
    Setting("prompt", list | None, shown="prompt", flag="--prompt"),
    # Its flag counts where the report says that the checkpoint's own was left aside. Such a report is of another model than
    # the checkpoint, so it is not overridable.
    Setting("calibration", str | None, identity=True, shown="calibrated on", flag={None: "--no-calibration"}),
    Setting(
        "num_pixel_levels",
        int,
        required=True,
        identity=True,
        overridable=True,
        shown="pixel levels",
        flag="--num-pixel-levels",
    ),
    Setting(
        "quantized",
        bool | None,
        context=True,
        shown="images brought onto these levels first",
        flag={True: "--quantize", False: ""},
    ),
    Setting(
        "clip_sample",
        bool,
        required=True,
        identity=True,
        overridable=True,
        shown="clip_sample",
        flag={True: "--clip-sample", False: "--no-clip-sample"},
    ),
    Setting("clip_sample_range", float | None, identity=True),
    Setting("thresholding", bool, identity=True, overridable=True, shown="thresholding"),
    Setting("dynamic_thresholding_ratio", float | None, identity=True),
    Setting("sample_max_value", float | None, identity=True),
    Setting("dtype", required=True, shown="dtype", flag={name: f"--dtype {name}" for name in DTYPES}),
    # Of reports that were merged a list. None of a generator that nobody named, which no command makes again.
    Setting("seed", int | list | None, required=True, free=True, shown="seed", flag="--seed"),
    Setting("dataset", str | None, required=True, context=True, flag="--dataset"),  # null in old reports of a tensor
    Setting("split", str | None, context=True, shown="split", flag="--split"),
    # Of the images as they were read: there where they were said.
    Setting("image_column", str | None, context=True, flag="--image-column"),
    Setting("label_column", str | None, context=True, flag="--label-column"),
    Setting("convert", str | None, context=True, shown="images converted to", flag="--convert"),
    Setting("resize", int | None, context=True, shown="images resized, shorter side", flag="--resize"),
    Setting("center_crop", int | None, context=True, shown="images cropped to the middle", flag="--center-crop"),
    Setting("image_seed", int | None, shown="seed of the choice of images", flag="--image-seed"),
    Setting("checkpoint", str | None, free=True, context=True),
    Setting("revision", str | None, context=True, flag="--revision"),
    Setting("network_kwargs", str | None, context=True, flag="--network-kwargs"),
    Setting("overridden", list),
    Setting("num_class_embeds", int | None),
    Setting("image_shape", list),
    Setting("batch_size", int, free=True, flag="--batch-size"),
    Setting("device", free=True, who=True),
    Setting("versions", dict, free=True),  # but for this package's own
    Setting("max_images", int | None, flag="--max-images"),
    Setting("shard", dict, free=True, flag="--shard"),
    Setting("data_sha256", list, free=True),
    Setting("buffer_bytes", int, free=True, who=True, flag="--buffer-mb"),
    Setting("num_images_in_memory", int, free=True, of_one_run=True),
    Setting("num_pilot_evaluations", int, free=True),  # of reports that were merged the sum
    Setting("num_rounds", int, free=True, of_one_run=True),
    Setting("num_processes", int, free=True, who=True),
    Setting("rows", object, context=True, flag={None: ""}),  # of the data set, where not all were taken
    Setting("description", str | None, context=True),
    Setting("limits", str | None, context=True),
    Setting("command", str | None, free=True, of_one_run=True, context=True),
    Setting("training_steps", int, context=True, public=False),
    Setting("recipe", context=True, public=False),
    Setting("checkpoints", list, context=True, public=False),  # of a comparison
)
# Which must be positive.
COUNTS = (
    *("num_train_timesteps", "num_steps", "num_pixel_levels"),
    *("batch_size", "num_images_in_memory", "num_rounds", "num_processes"),
)


def all_settings() -> list[Setting]:
    r"""The rows of all settings, the options of the methods among them."""
    options = [option for method in METHODS.values() for option in method.options]
    return [*SETTINGS, *(Setting(o.name, o.kind | None, free=o.free, flag=o.argument) for o in options)]


def settings_that_are(attribute: str) -> tuple[str, ...]:
    r"""The names of the settings whose rows say so: `settings_that_are("free")`."""
    return tuple(row.name for row in all_settings() if getattr(row, attribute))


def check_context(context: Mapping[str, Any]) -> dict[str, Any]:
    r"""Further settings that a caller says, as plain values, without where things lie on this machine.

    Raises:
        ValueError: a setting that a caller cannot say, with those that have a name like it, or of another kind.
    """
    rows = {row.name: row for row in SETTINGS if row.context}
    context = dict(to_plain(context))
    for name, value in context.items():
        if name not in rows:
            near = difflib.get_close_matches(str(name), rows, n=2)
            hint = f" Did you mean {' or '.join(f'`{one}`' for one in near)}?" if near else f" There are {', '.join(rows)}."
            raise ValueError(f"`context` must have settings that a report knows, got {name!r}.{hint}")
        if not is_of_kind(value, rows[name].kind):
            raise ValueError(f"`context.{name}` must be {kind_words(rows[name].kind)}, got {value!r}.")
        check_plain(value, f"context.{name}")
    return without_places(context)


class Report(dict):
    r"""A report: complete, of finite plain numbers that agree with each other. Checked when it is made, and read-only then.

    It is a dictionary for all who read it. `report | {...}` is another report, and checked; `dict(report)` can be changed.

    Args:
        report: the entries.

    Raises:
        ValueError: anything that is no report, with the reason.
    """

    def __init__(self, report: Mapping[str, Any]):
        if not isinstance(report, Mapping):
            raise ValueError(f"`report` must be a dictionary, got {type(report).__name__}.")
        super().__init__(report)
        _check_fields(self)
        check_settings(self["config"])
        check_numbers(self, self.method)

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> "Report":
        r"""A report as it is, or any other dictionary as a report, checked."""
        return report if isinstance(report, cls) else cls(report)

    def __repr__(self) -> str:
        # Pages of numbers otherwise; `dict(report)` shows them all.
        error = "" if self["standard_error"] is None else f", standard error {self['standard_error']:.4f}"
        counts = f"images {self['num_images']}, network evaluations {self['num_network_evaluations']}"
        return f"Report(bits/dim {self['bits_per_dim']:.4f}{error}, {counts}, method {self['method']!r})"

    @property
    def method(self) -> Method:
        r"""The row of the likelihood method; `report["method"]` says with which options."""
        return method_named(self["method"])

    @property
    def config(self) -> dict[str, Any]:
        r"""What was scored, and with what."""
        return self["config"]

    @property
    def has_terms(self) -> bool:
        r"""Whether it has terms of the bound that can be drawn: all, or of groups of timesteps."""
        return self.method.columns is None and (None not in self["transitions"] or bool(self.get("strata")))

    @property
    def image_numbers(self) -> list[int]:
        r"""The places in the data set of the images in `per_image`, ascending."""
        return numbers_of_images(self)

    def with_settings(self, **settings: Any) -> "Report":
        r"""The report with further or other settings in its `config`; itself where it has them."""
        same = all(name in self.config and self.config[name] == value for name, value in settings.items())
        return self if same else self | {"config": self.config | settings}

    def check_model(self, settings: Mapping[str, Any]) -> None:
        r"""Raise `ValueError` unless the report is of the model with these settings, but for what it says was overridden."""
        said = self.config.get("overridden") or ()
        overridden = [name for name in settings_that_are("overridable") if name in said]
        for name in settings_that_are("identity"):
            # Reports from before there were such things have none.
            got, now = self.config.get(name, None if name in LATER else "nothing"), settings[name]
            if name not in overridden and got != now:
                got, now = (text if len(text := repr(x)) < 60 else f"{text[:60]}..." for x in (got, now))
                raise ValueError(f"`report` must be of this pipeline, got {name} = {got} for {now}.")

    # Less than a dictionary promises, on purpose.
    def __or__(self, other: Mapping[str, Any]) -> "Report":
        return type(self)({**self, **other}) if isinstance(other, Mapping) else NotImplemented

    __ior__ = __or__  # pyright: ignore[reportAssignmentType]

    def __reduce__(self):
        return type(self), (dict(self),)

    def _read_only(self, *_, **__) -> NoReturn:
        raise TypeError("A report is read-only: make another, `report | {...}`, or change `dict(report)`.")

    __setitem__ = __delitem__ = clear = pop = popitem = _read_only
    setdefault = update = _read_only  # pyright: ignore[reportAssignmentType]


def numbers_of_images(report: Mapping[str, Any]) -> list[int]:
    r"""`Report.image_numbers`. Reports of before do not say them: image i is in shard i modulo the number of shards, and the
    images of several shards take turns."""
    if report.get("image_numbers") is not None:
        return report["image_numbers"]
    count, shard = len(report["per_image"] or ()), report["config"].get("shard") or {"of": 1, "indices": [0]}
    of = shard["of"]
    return [base + index for base in range(0, of * count, of) for index in shard["indices"]][:count]


def _check_fields(report: Report) -> None:
    r"""Raise `ValueError` unless a report has all fields of its method, each of its kind, and nothing but plain values."""
    try:
        method = report.method
    except KeyError:
        method = None  # refused below
    except ValueError as error:
        names = " or ".join(map(repr, METHODS))
        raise ValueError(f"`report` must have a method that begins with {names}, got {report['method']!r}.") from error
    rows = [*FIELDS, *(Field(name, float) for name in (method and method.columns) or () if name != "bits_per_dim")]
    for row in rows:
        needed = row.needed_by is None or method is not None and method.name in row.needed_by
        if needed and row.name not in report:
            raise ValueError(f"`report` must have the key {row.name!r}, got {', '.join(sorted(map(str, report)))}.")
    for row in rows:
        value = report.get(row.name)
        if row.name not in report or value is None and row.or_null is not None and row.or_null(report):
            continue
        if not is_of_kind(value, row.kind):
            kinds = " or ".join(kind.__name__ for kind in get_args(row.kind) or (row.kind,))
            raise ValueError(f"`report` must have a {kinds} for {row.name!r}, got {type(value).__name__}.")
    check_plain(dict(report), "report")


def check_settings(config: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless the settings that a number is of are there, each of its kind."""
    missing = [row.name for row in SETTINGS if row.required and row.name not in config]
    if missing:
        raise ValueError(f"`report` must say in its config what was scored, got none of {', '.join(missing)}.")
    for name in COUNTS:
        value = config.get(name, 1)
        if type(value) is not int or value < 1:
            raise ValueError(f"`report.config.{name}` must be a positive integer, got {value!r}.")
    for row in all_settings():
        if row.name in config and not is_of_kind(config[row.name], row.kind):
            raise ValueError(f"`report.config.{row.name}` must be {kind_words(row.kind)}, got {config[row.name]!r}.")


def read_report(path: str | Path) -> Report:
    r"""A report from its file.

    Raises:
        ValueError: a file that is not there, or not such a report.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`report` must be a JSON file of `ddpm-vlb evaluate`, got {str(path)!r}: {error}") from error
    return Report(report)


def public_report(report: Report, repository: str) -> dict[str, Any]:
    r"""A report as it may be shown: the checkpoint under the name of its repository, no path of this machine, and nothing that
    has no row here."""
    known = {row.name for row in all_settings() if row.public}
    config = {key: value for key, value in report.config.items() if key in known}
    if config.get("checkpoint") != repository:
        config.pop("revision", None)  # of another repository
    config |= {"checkpoint": repository, "dataset": public_name(str(config["dataset"]))}
    if config.get("network_kwargs"):
        config["network_kwargs"] = public_name(config["network_kwargs"])
    if config.get("command"):
        config["command"] = shlex.join(public_name(word) for word in shlex.split(config["command"]))
    fields = {row.name for row in FIELDS if row.public} | set(report.method.columns or ())
    return {key: value for key, value in report.items() if key in fields} | {"config": config}


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    r"""Settings whose data set and checkpoints are named, but not where on this machine they lie."""
    config = dict(config)
    for key in ("dataset", "checkpoint", "checkpoints", "network_kwargs"):
        value = config.get(key)
        if isinstance(value, str):
            config[key] = placeless_name(value)
        elif isinstance(value, list):
            config[key] = [placeless_name(str(one)) for one in value]
    return config


def placeless_name(name: str) -> str:
    r"""The last part of what lies on this machine; else as `public_name`."""
    try:
        return Path(name).resolve().name if name and Path(name).exists() else public_name(name)
    except (OSError, ValueError):  # no name of a file
        return name


def public_name(name: str) -> str:
    r"""A name as it may be shown: of an absolute path, or one that leads out of a folder, the last part."""
    flag, equals, value = name.partition("=")
    if equals and flag.startswith("--"):
        return f"{flag}={public_name(value)}"
    local = name.startswith(("/", "~", "../", "./", "\\")) or re.match(r"[A-Za-z]:[\\/]", name)
    return PurePath(name.replace("\\", "/")).name if local else name
