r"""What a run starts from where it does not start anew: the network of a checkpoint, of whichever kind and noise process.

A network of flow matching, EDM or a variance-exploding process is trained as the DDPM that it amounts to
(`ddpm_vlb/noise_processes.py`), on T noise levels: `vlb` is the bound that is reported, and `simple` the mean squared error of
what the network itself says, of a score times its sigma as Song et al. have it. It stays a network of its process for whoever
loads it. `--parametrization flow` is a new network of that kind.
"""

import argparse
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from ddpm_vlb import VLBDDPMPipeline, upgrade_scheduler

# What the process says already, and the flag's value where nobody says it again.
SAID_BY_PROCESS = {
    "prediction_type": "epsilon",
    "beta_schedule": "linear",
    "rescale_betas_zero_snr": False,
    "learn_betas": False,
}


def load_pretrained(arguments: argparse.Namespace) -> VLBDDPMPipeline | None:
    r"""The pipeline of `--pretrained_model_name_or_path`, in a folder or on the Hub, `None` where there is none.

    Raises:
        ValueError: what is no pipeline that can be scored, one whose output means something else than the run's, a prompt or
            tensors that it has no use for.
    """
    from ddpm_vlb.cli.common import given_to_network

    name = arguments.pretrained_model_name_or_path
    if not name:
        for flag in ("prompt", "network_kwargs"):
            if getattr(arguments, flag) is not None:
                raise ValueError(
                    f"`{flag}` must go with `pretrained_model_name_or_path`, got {getattr(arguments, flag)!r} alone."
                )
        return None
    given = given_to_network(arguments)
    try:
        pipe = VLBDDPMPipeline.from_pretrained(name, **given)
    except Exception as error:  # of diffusers, of the Hub, of a damaged file
        raise ValueError(f"`pretrained_model_name_or_path` must be a DDPM pipeline, got {name!r}: {error}") from error
    process, trained_for = pipe.scheduler.config.get("noise_process"), pipe.scheduler.config.prediction_type
    if process is None and trained_for != arguments.prediction_type:
        raise ValueError(
            f"`prediction_type` must be what {name!r} was trained for, {trained_for!r}, got {arguments.prediction_type!r}."
        )
    known = "ddpm" if process is None else "flow" if process["_class_name"].startswith("FlowMatch") else None
    if arguments.parametrization not in (None, known):
        raise ValueError(
            f"`parametrization` must be left out, or what {name!r} was trained for, got {arguments.parametrization!r} for a"
            f" network of {'a DDPM' if process is None else process['_class_name']}."
        )
    return pipe


def noise_process(arguments: argparse.Namespace, pretrained: VLBDDPMPipeline | None) -> dict[str, Any] | None:
    r"""The `noise_process` of the scheduler that is trained with, `None` of a DDPM's.

    Raises:
        ValueError: flags that contradict it.
    """
    if pretrained is not None:
        process = pretrained.scheduler.config.get("noise_process")
    elif arguments.parametrization == "flow":
        process = upgrade_scheduler(FlowMatchEulerDiscreteScheduler()).config["noise_process"]
    else:
        process = None
    if process is None:
        return None
    for name, default in SAID_BY_PROCESS.items():
        if getattr(arguments, name) != default:
            raise ValueError(
                f"`{name}` must be left out for a network of {process['_class_name']}, which says it, got"
                f" {getattr(arguments, name)!r}."
            )
    if arguments.loss_type == "hybrid" or arguments.variance_type not in ("fixed_small", "fixed_large"):
        raise ValueError(
            f"`loss_type` must be 'simple' or 'vlb', and `variance_type` fixed, for a network of {process['_class_name']}, got"
            f" {arguments.loss_type!r} and {arguments.variance_type!r}."
        )
    return process
