r"""The flags of `train_vlb_ddpm.py`, on the command line and in YAML files, and their checks."""

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from diffusers.optimization import SchedulerType

from ddpm_vlb.losses import LOSS_TYPES
from ddpm_vlb.noise_schedules import BETA_SCHEDULES
from ddpm_vlb.parametrizations import PREDICTION_TYPES, VARIANCE_TYPES
from ddpm_vlb.timestep_samplers import TIMESTEP_SAMPLERS

# Of diffusers' schedules, those that need no rules of their own.
LR_SCHEDULERS = tuple(kind.value for kind in SchedulerType if kind != SchedulerType.PIECEWISE_CONSTANT)
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
    arguments = parser.parse_args([*(_config_to_argv(config.config, parser) if config.config else []), *argv])
    _check_arguments(arguments)
    return arguments


def _add_data(add: Callable[..., Any]) -> None:
    add("--dataset", required=True, help="digits, a folder of images, an idx or npz file, or a data set of the Hub")
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
    add("--model_config_name_or_path", help="a UNet2DModel's config.json, or a folder or repository with one")
    add("--unet", type=_mapping, action=_Merge, default={}, metavar="YAML", help="arguments of UNet2DModel, {name: value}")
    add("--gradient_checkpointing", action=SWITCH, default=False)


def _add_diffusion(add: Callable[..., Any]) -> None:
    add("--ddpm_num_steps", type=int, default=1000, help="number of steps T")
    add("--beta_schedule", choices=(*BETA_SCHEDULES, "linear_log_snr"), default="linear")
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
    add("--max_train_steps", type=int, default=10_000, help="updates of the weights")
    add("--train_batch_size", type=int, default=16, help="per process and accumulated part")
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--learning_rate", type=float, default=1e-4)
    add("--lr_scheduler", choices=LR_SCHEDULERS, default="cosine")
    add("--lr_warmup_steps", type=int, default=500)
    add("--adam_beta1", type=float, default=0.95)
    add("--adam_beta2", type=float, default=0.999)
    add("--adam_weight_decay", type=float, default=1e-6)
    add("--adam_epsilon", type=float, default=1e-8)
    add("--max_grad_norm", type=float, default=1.0)
    add("--use_ema", action=SWITCH, default=False, help="score, sample and save averaged weights")
    add("--ema_inv_gamma", type=float, default=1.0)
    add("--ema_power", type=float, default=0.75)
    add("--ema_max_decay", type=float, default=0.9999)
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no")


def _add_scoring(add: Callable[..., Any]) -> None:
    add("--eval_nll_every", type=int, default=0, help="updates between scorings (default: never)")
    add("--num_validation_images", type=int, default=128, help="images of the training split that choose the best weights")
    add("--eval_dataset", help="held-out data, scored but never chosen by (default: --dataset, if --eval_split is given)")
    add("--eval_split", help="held-out part of it")
    add("--num_eval_images", type=int, default=128)
    add("--evaluations_per_image", type=int, default=32, help="network evaluations per image scored; T makes a full sweep")
    add("--eval_batch_size", type=int, default=256)
    add("--num_sample_images", type=int, default=16, help="images in the grid made at each scoring")
    add("--ddpm_num_inference_steps", type=int, default=100)


def _add_bookkeeping(add: Callable[..., Any]) -> None:
    add("--logging_steps", type=int, default=10)
    add("--report_to", choices=("none", "tensorboard", "wandb", "trackio"), default="none")
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


def _mapping(text: str) -> dict:
    try:
        value = json.loads(text)  # YAML would take JSON's 1e-06 for a word
    except ValueError:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise argparse.ArgumentTypeError(f"must be YAML or JSON, got {text!r}: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a mapping of names to values, got {text!r}")
    return value


class _Merge(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), **values})


def _config_to_argv(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    # As flags, so that a file is checked like a command line.
    try:
        config = _mapping(path.read_text())
    except (OSError, yaml.YAMLError, argparse.ArgumentTypeError, UnicodeDecodeError) as error:
        raise ValueError(f"`config` must be a readable YAML file of flags, got {str(path)!r}: {error}") from error
    known = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    flags = []
    for name, value in config.items():
        if name not in known:
            raise ValueError(f"`config` must hold flags of this script only, got {name!r} in {str(path)!r}.")
        if isinstance(known[name], argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                raise ValueError(f"`{name}` must be true or false in {str(path)!r}, got {value!r}.")
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def _check_arguments(arguments: argparse.Namespace) -> None:
    a = arguments
    at_least_one = (
        "max_train_steps train_batch_size gradient_accumulation_steps ddpm_num_steps logging_steps shuffle_buffer_size"
        " checkpointing_steps num_eval_images evaluations_per_image eval_batch_size ddpm_num_inference_steps"
    )
    at_least_zero = (
        "seed eval_nll_every num_validation_images num_sample_images learn_betas_after lr_warmup_steps"
        " dataloader_num_workers adam_weight_decay"
    )
    for names, least in ((at_least_one, 1), (at_least_zero, 0)):
        for name in names.split():
            if getattr(a, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(a, name)}.")
    if a.evaluations_per_image < min(2, a.ddpm_num_steps):
        raise ValueError(f"`evaluations_per_image` must be at least 2, got {a.evaluations_per_image}.")
    if a.pretrained_model_name_or_path and a.model_config_name_or_path:
        raise ValueError(
            "`model_config_name_or_path` must not be given beside `pretrained_model_name_or_path`, which has a configuration of"
            f" its own, got {a.model_config_name_or_path!r}."
        )
    if a.streaming and a.dataloader_num_workers:
        raise ValueError(f"`dataloader_num_workers` must be 0 for a stream, got {a.dataloader_num_workers}.")
    for name in ("ema_max_decay", "random_shift", "random_symmetry"):
        if not 0 <= getattr(a, name) <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(a, name)}.")
    for name in ("learning_rate", "learning_rate_betas", "max_grad_norm", "ema_inv_gamma", "ema_power", "adam_epsilon"):
        if not 0 < getattr(a, name) < math.inf:
            raise ValueError(f"`{name}` must be positive, got {getattr(a, name)}.")
    if a.learn_betas and a.loss_type != "vlb":
        raise ValueError(
            f"`learn_betas` must go with loss_type='vlb', got {a.loss_type!r}: the squared error is no bound, and the betas"
            " that make it small make a bad model."
        )
    if a.checkpoints_total_limit is not None and a.checkpoints_total_limit < 1:
        raise ValueError(f"`checkpoints_total_limit` must be at least 1, got {a.checkpoints_total_limit}.")
    if a.report_to != "none" and importlib.util.find_spec(a.report_to) is None:
        raise ValueError(f"`report_to` must be a tracker that is installed, got {a.report_to!r}: pip install {a.report_to}.")
