r"""The flags of `train_vlb_ddpm.py`, on the command line and in YAML files, and their checks.

Nothing here imports torch, so that help and refusals are quick: what the package knows by a name is named again, and a test
holds the names to the package's.
"""

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .config_file import parse_mapping, parse_step_rules, read_flags

LOSS_TYPES = ("simple", "vlb", "hybrid")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")
TIMESTEP_SAMPLERS = ("uniform", "stratified", "importance")
LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
LR_SCHEDULERS += ("piecewise_constant",)
PARAMETRIZATIONS = ("ddpm", "flow")
MAX_TIMESTEPS = 1_000_000
MAX_TRAIN_STEPS = 10_000  # where nothing is said
SWITCH = argparse.BooleanOptionalAction


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    r"""The command line over the YAML file over the defaults."""
    parser = argparse.ArgumentParser(
        description="Train a UNet2DModel for likelihood.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, help="YAML file of these flags")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    for name, add_flags in FLAGS.items():
        add_flags(parser.add_argument_group(name).add_argument)

    argv = list(sys.argv[1:] if argv is None else argv)
    config, _ = _config_parser().parse_known_args(argv)
    if config.config is not None:
        names, switches = _flag_names(parser)
        argv = [*read_flags(config.config, names, switches), *argv]
    arguments = parser.parse_args(argv)
    _check_arguments(arguments)
    return arguments


def _add_data(add: Callable[..., Any]) -> None:
    add(
        "--dataset",
        *("--dataset_name", "--train_data_dir"),
        required=True,
        help="digits, a folder of images, an idx or npz file, or a data set of the Hub",
    )
    add("--dataset_config_name", help="configuration of a data set of the Hub that has several")
    add("--cache_dir", type=Path, help="where data sets of the Hub are kept (default: the datasets library's place)")
    add("--class_conditional", action=SWITCH, default=False, help="give the network the labels of the data set")
    add("--class_dropout", type=float, default=0.0, help="share of examples whose label is kept from the network")
    add("--resolution", type=int, help="bring images to squares of this side; changes the data (default: as they are)")
    add("--center_crop", action=SWITCH, default=False, help="with --resolution, cut out the middle, not a place at random")
    add("--split", help="part to train on; the first of it is kept out for validation (default: train, where there are parts)")
    add("--streaming", action=SWITCH, default=False, help="read a folder or Hub data set in its order, with bounded memory")
    add("--shuffle_buffer_size", type=int, default=1000, help="images among which a stream's next one is drawn")
    add("--num_pixel_levels", type=int, help="levels of the pixel grid (default: as the data set has)")
    add("--random_flip", action=SWITCH, default=False, help="mirror half of the examples")
    add("--random_shift", type=float, default=0.0, help="share of examples moved by one pixel to the left or the right")
    add("--random_symmetry", type=float, default=0.0, help="share of examples under one of the square's 8 symmetries")
    add("--augment_above_log_snr", type=float, help="flip, shift and turn only examples with less noise than this")
    add("--dataloader_num_workers", type=int, default=0)


def _add_network(add: Callable[..., Any]) -> None:
    add("--pretrained_model_name_or_path", help="a pipeline in a folder or on the Hub whose network to start from")
    add("--prompt", action="append", help="what the images show, through its text encoder; once for each class")
    add("--network_kwargs", metavar="FILE", help="or safetensors with what it is given besides; a row for each class")
    add("--model_config_name_or_path", help="a UNet2DModel's config.json, or a folder or repository with one")
    add(
        "--unet",
        type=_text(parse_mapping),
        action=_Merge,
        default={},
        metavar="YAML",
        help="arguments of UNet2DModel, {name: value}",
    )
    add("--gradient_checkpointing", action=SWITCH, default=False)


def _add_diffusion(add: Callable[..., Any]) -> None:
    add(
        "--parametrization",
        choices=PARAMETRIZATIONS,
        help="of a new network: a DDPM's (the default), or the velocity of flow matching; of a pretrained one its own",
    )
    add("--ddpm_num_steps", type=int, default=1000, help="number of steps T")
    add("--beta_schedule", "--ddpm_beta_schedule", choices=(*BETA_SCHEDULES, "linear_log_snr"), default="linear")
    add("--beta_start", type=float, default=0.0001)
    add("--beta_end", type=float, default=0.02)
    add("--log_snr_max", type=float, default=6.0, help="first log-SNR of linear_log_snr")
    add("--log_snr_min", type=float, default=-6.0, help="last log-SNR of linear_log_snr")
    add("--rescale_betas_zero_snr", action=SWITCH, default=False)
    add("--prediction_type", choices=PREDICTION_TYPES, default="epsilon")
    add("--variance_type", choices=VARIANCE_TYPES, default="fixed_small")
    add("--learn_betas", action=SWITCH, default=False, help="train the forward variances too, on the bound")
    add("--learn_betas_after", type=int, default=0, help="first step that changes them")
    add("--learning_rate_betas", type=float, default=1e-3)


def _add_objective(add: Callable[..., Any]) -> None:
    add("--loss_type", choices=LOSS_TYPES, default="simple")
    add("--timestep_sampler", choices=tuple(TIMESTEP_SAMPLERS), default="stratified")


def _add_optimisation(add: Callable[..., Any]) -> None:
    add("--max_train_steps", type=int, help=f"updates of the weights (default: {MAX_TRAIN_STEPS})")
    add("--num_epochs", type=int, help="passes over the images, in place of --max_train_steps")
    add("--train_batch_size", type=int, default=16, help="per process and accumulated part")
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--learning_rate", type=float, default=1e-4)
    add("--lr_scheduler", choices=LR_SCHEDULERS, default="cosine")
    add("--lr_warmup_steps", type=int, default=500)
    add("--lr_step_rules", type=_text(parse_step_rules), help="of piecewise_constant: 1:1000,0.1:2000,0.01 (factor:up to)")
    add("--adam_beta1", type=float, default=0.95)
    add("--adam_beta2", type=float, default=0.999)
    add("--adam_weight_decay", type=float, default=1e-6)
    add("--adam_epsilon", type=float, default=1e-8)
    add("--adam_fused", action=SWITCH, default=False, help="one kernel for all weights: faster, with other rounding")
    add("--max_grad_norm", type=float, default=1.0)
    add("--use_ema", action=SWITCH, default=False, help="score, sample and save averaged weights")
    add("--ema_inv_gamma", type=float, default=1.0)
    add("--ema_power", type=float, default=0.75)
    add("--ema_max_decay", type=float, default=0.9999)
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no")
    add(
        "--compile", action=SWITCH, default=False, help="compile the network (torch.compile), for a minute or more at the start"
    )


def _add_scoring(add: Callable[..., Any]) -> None:
    add("--eval_nll_every", type=int, default=0, help="updates between scorings (default: never)")
    add(
        "--num_validation_images",
        type=int,
        help="images of the training split, kept out of it, that choose the best weights (default: a tenth, at most 128)",
    )
    add("--eval_dataset", help="held-out data, scored but never chosen by (default: --dataset, if --eval_split is given)")
    add("--eval_split", help="held-out part of it")
    add("--num_eval_images", type=int, default=128)
    add("--evaluations_per_image", type=int, default=32, help="network evaluations per image scored; T makes a full sweep")
    add("--eval_batch_size", type=int, default=256)
    add("--num_sample_images", type=int, default=16, help="images in the grid made at each scoring")
    add("--save_images_epochs", type=int, help="passes over the images between grids of samples, without any scoring")
    add("--ddpm_num_inference_steps", type=int, default=100)


def _add_bookkeeping(add: Callable[..., Any]) -> None:
    add("--logging_steps", type=int, default=10)
    add("--report_to", "--logger", choices=("none", "tensorboard", "wandb", "trackio"), default="none")
    add("--logging_dir", type=Path, default=Path("logs"), help="of trackers, in the output folder")
    add("--save_model_epochs", type=int, help="passes over the images between pipelines, besides those of checkpoints")
    add("--checkpointing_steps", type=int, default=500)
    add("--checkpoints_total_limit", type=int, help="newest checkpoints to keep (default: all)")
    add("--resume_from_checkpoint", help="a checkpoint's folder, or latest")
    add("--expected_processes", type=int, help="fail where the launcher started another number of processes")
    add("--push_to_hub", action=SWITCH, default=False)
    add("--hub_model_id", help="repository to push to (default: the output folder's name)")
    add("--hub_private_repo", action=SWITCH, default=None)
    add("--hub_token")


# Group by group, as `--help` shows them.
FLAGS = {
    "data": _add_data,
    "network": _add_network,
    "diffusion": _add_diffusion,
    "objective": _add_objective,
    "optimisation": _add_optimisation,
    "scoring and sampling": _add_scoring,
    "bookkeeping": _add_bookkeeping,
}


def _config_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    return parser


def _text(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    # argparse keeps to itself what a ValueError says.
    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


class _Merge(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), **values})


def _flag_names(parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    r"""The names that a file may have, without dashes, and of them those of switches."""
    names, switches = [], []
    for action in parser._actions:
        if action.dest not in ("help", "config"):
            found = [option[2:] for option in action.option_strings if not option.startswith("--no-")]
            names += found
            switches += found if isinstance(action, argparse.BooleanOptionalAction) else []
    return names, switches


# The least and the most that a count may be: beyond, a step would not end, or its images would fit nowhere.
COUNTS = {
    "seed": (0, 2**63 - 1),
    "max_train_steps": (1, 10**12),
    "num_epochs": (1, 10**9),
    "train_batch_size": (1, 10**6),
    "gradient_accumulation_steps": (1, 10**6),
    "dataloader_num_workers": (0, 1000),
    "shuffle_buffer_size": (1, 10**9),
    "num_pixel_levels": (2, 65_536),
    "resolution": (1, 65_536),
    "ddpm_num_steps": (1, MAX_TIMESTEPS),
    "ddpm_num_inference_steps": (1, MAX_TIMESTEPS),
    "learn_betas_after": (0, 10**12),
    "lr_warmup_steps": (0, 10**12),
    "eval_nll_every": (0, 10**12),
    "num_validation_images": (0, 10**9),
    "num_eval_images": (1, 10**9),
    "evaluations_per_image": (1, MAX_TIMESTEPS),
    "eval_batch_size": (1, 10**6),
    "num_sample_images": (0, 10_000),
    "save_images_epochs": (1, 10**9),
    "save_model_epochs": (1, 10**9),
    "logging_steps": (1, 10**12),
    "checkpointing_steps": (1, 10**12),
    "checkpoints_total_limit": (1, 10**9),
}
SHARES = ("ema_max_decay", "random_shift", "random_symmetry", "class_dropout", "adam_beta1", "adam_beta2")
POSITIVE = ("learning_rate", "learning_rate_betas", "max_grad_norm", "ema_inv_gamma", "ema_power", "adam_epsilon")
NUMBERS = ("adam_weight_decay", "beta_start", "beta_end", "log_snr_max", "log_snr_min", "augment_above_log_snr")


def _check_numbers(a: argparse.Namespace) -> None:
    for name, (least, most) in COUNTS.items():
        value = getattr(a, name)
        if value is not None and value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        if value is not None and value > most:
            raise ValueError(f"`{name}` must be at most {most}, got {value}.")
    for name in SHARES:
        if not 0 <= getattr(a, name) <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(a, name)}.")
    for name in POSITIVE:
        if not 0 < getattr(a, name) < math.inf:
            raise ValueError(f"`{name}` must be positive, got {getattr(a, name)}.")
    for name in NUMBERS:
        if getattr(a, name) is not None and not math.isfinite(getattr(a, name)):
            raise ValueError(f"`{name}` must be finite, got {getattr(a, name)}.")
    if a.adam_weight_decay < 0:
        raise ValueError(f"`adam_weight_decay` must be at least 0, got {a.adam_weight_decay}.")


def _check_arguments(arguments: argparse.Namespace) -> None:
    a = arguments
    _check_numbers(a)
    if a.num_epochs is not None and a.max_train_steps is not None:
        raise ValueError(
            f"Only one of `num_epochs` and `max_train_steps` may be given, got {a.num_epochs} and {a.max_train_steps}."
        )
    if a.num_epochs is None and a.max_train_steps is None:
        a.max_train_steps = MAX_TRAIN_STEPS
    for name in ("num_epochs", "save_images_epochs", "save_model_epochs", "resolution"):
        if a.streaming and getattr(a, name) is not None:
            raise ValueError(f"`{name}` must be left out for a stream, got {getattr(a, name)}.")
    if a.class_dropout and not a.class_conditional:
        raise ValueError(f"`class_dropout` must go with `class_conditional`, got {a.class_dropout} without.")
    if a.center_crop and a.resolution is None:
        raise ValueError("`center_crop` must go with a `resolution`, got none.")
    if (a.lr_step_rules is not None) != (a.lr_scheduler == "piecewise_constant"):
        raise ValueError(
            "`lr_step_rules` must be given for lr_scheduler='piecewise_constant', and for no other,"
            f" got {a.lr_step_rules!r} for {a.lr_scheduler!r}."
        )
    if a.evaluations_per_image < min(2, a.ddpm_num_steps):
        raise ValueError(f"`evaluations_per_image` must be at least 2, got {a.evaluations_per_image}.")
    if a.pretrained_model_name_or_path and a.model_config_name_or_path:
        raise ValueError(
            "`model_config_name_or_path` must not be given beside `pretrained_model_name_or_path`, which has a configuration of"
            f" its own, got {a.model_config_name_or_path!r}."
        )
    if a.streaming and a.dataloader_num_workers:
        raise ValueError(f"`dataloader_num_workers` must be 0 for a stream, got {a.dataloader_num_workers}.")
    if a.learn_betas and a.loss_type != "vlb":
        raise ValueError(
            f"`learn_betas` must go with loss_type='vlb', got {a.loss_type!r}: the squared error is no bound, and the betas"
            " that make it small make a bad model."
        )
    if a.report_to != "none" and importlib.util.find_spec(a.report_to) is None:
        raise ValueError(f"`report_to` must be a tracker that is installed, got {a.report_to!r}: pip install {a.report_to}.")
