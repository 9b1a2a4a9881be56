r"""The parts of a checkpoint: which are scored, which lie beside them, and which make it another model.

===========================================  ===============================================================================
`unet` or `transformer`, `scheduler`         what is scored
`text_encoder`, `tokenizer`                  what a prompt is read with (`prompts.py`)
`safety_checker`, `feature_extractor`,       look at finished images alone
`watermarker`
`vae`, `vqvae`, `movq`                       the network sees latents, whose bits/dim are not those of an image: refused
===========================================  ===============================================================================

Whatever else there is may change what the network sees, and is refused, too.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import diffusers
from diffusers import DDPMPipeline, DDPMScheduler, SchedulerMixin
from huggingface_hub import snapshot_download

from ..checks import shown
from ..model.configuration import SCHEDULER_RULES, UNET_NAMES, is_of_ddpms, parameters_of
from ..model.kinds import DEFAULT_MODULE, known_module_class, known_names
from ..noise_processes import NoiseProcess, process_named

NETWORKS = ("unet", "transformer")
TEXT_PARTS = ("text_encoder", "tokenizer")
BESIDE = ("safety_checker", "feature_extractor", "watermarker")
DECODERS = ("vae", "vqvae", "movq")
# What an index may take its parts from; the package's own modules are what earlier pipelines were saved under.
SAFE_LIBRARIES = ("diffusers", "ddpm_vlb", "ddpm_vlb.scheduling_vlb_ddpm")
DEPRECATED = "deprecated"
# Of `from_pretrained`'s arguments, those that say which files of a repository are meant and how they come.
DOWNLOAD_ARGUMENTS = ("revision", "token", "cache_dir", "force_download", "local_files_only", "proxies")


class CheckpointError(OSError, ValueError):
    r"""A checkpoint that is missing, damaged or incomplete.

    Also an `OSError`, the type that diffusers raises for most such files.
    """


def download_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    r"""Those of `from_pretrained`'s arguments that are in `DOWNLOAD_ARGUMENTS` and given."""
    return {name: kwargs[name] for name in DOWNLOAD_ARGUMENTS if kwargs.get(name) is not None}


def download_parts(repository: str, kwargs: dict[str, Any], with_text: bool = False) -> Path:
    r"""The folder of a repository, with its network, its scheduler and an index, where there is one; the weights of a text
    encoder, if wanted."""
    options, patterns = download_options(kwargs), ["*config.json", "diffusion_pytorch_model*"]
    allowed = [f"{prefix}{pattern}" for prefix in ("", "unet/", "transformer/", "scheduler/") for pattern in patterns]
    allowed += ["*/config.json", DDPMPipeline.config_name, *(f"{part}/*" for part in TEXT_PARTS if with_text)]
    unwanted = [] if kwargs.get("variant") else ["*.fp16.*", "*.bf16.*"]
    return Path(snapshot_download(repository, allow_patterns=allowed, ignore_patterns=unwanted, **options))


def parts_of(index: Mapping[str, Any]) -> dict[str, Any]:
    r"""The parts that an index names, each with its library and class."""
    found = {key.removeprefix("_"): value for key, value in index.items() if isinstance(value, (list, tuple)) and any(value)}
    found.pop("class_name", None)
    return found


def indexed_folder(name: str, kwargs: dict[str, Any], with_text: bool) -> Path | None:
    r"""The folder of a checkpoint whose index names parts that a `VLBDDPMPipeline` does not have, downloaded where need be;
    `None` where diffusers loads it.

    Raises:
        CheckpointError: as `check_index`.
    """
    index = check_index(name, kwargs)
    # diffusers saves deprecated schedulers under a library that it does not find again.
    by_diffusers = set(parts_of(index)) <= {"unet", "scheduler"} and parts_of(index).get("scheduler", [""])[0] != DEPRECATED
    if kwargs.get("custom_pipeline") is not None or by_diffusers:
        return None
    folder = Path(name)
    return folder if folder.is_dir() else download_parts(name, kwargs, with_text)


def check_index(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    r"""The index of a checkpoint; refused with more parts than are known, or where it names anything but classes of diffusers
    for what is scored: loading would import whatever module it names."""
    index = cast(dict[str, Any], DDPMPipeline.load_config(name, **download_options(kwargs)))
    if kwargs.get("custom_pipeline") is None:
        check_parts(index, name, (*TEXT_PARTS, *BESIDE))
    if kwargs.get("custom_pipeline") is not None or kwargs.get("trust_remote_code"):
        return index  # as the user asked for
    named = ("unet", "transformer", "scheduler")
    for part, value in [("_class_name", index.get("_class_name")), *((key, index[key]) for key in named if index.get(key))]:
        if part == "_class_name":
            safe = isinstance(value, str)
        else:
            safe = isinstance(value, (list, tuple)) and len(value) == 2
            known = known_module_class if part in NETWORKS else deprecated_process
            safe = safe and (value[0] in SAFE_LIBRARIES or known(*value) is not None)
        if not safe and part not in kwargs:
            raise CheckpointError(
                "`pretrained_model_name_or_path` must name classes of diffusers in its index,"
                f" got {part} = {shown(value)} in {name!r}."
            )
    return index


def deprecated_process(library: Any, name: Any) -> NoiseProcess | None:
    r"""The noise process of a deprecated scheduler of diffusers."""
    return process_named(name) if library == DEPRECATED else None


def check_parts(index: Mapping[str, Any], name: str, allowed: tuple[str, ...] = ()) -> None:
    r"""Raise `CheckpointError` for a pipeline with more parts than a network, a scheduler and those that are `allowed`.

    With a decoder what the network sees are latents: their bits/dim are not those of an image. And whatever a part is for, a
    `VLBDDPMPipeline` would leave it out when it is saved.
    """
    parts = parts_of(index)
    more = [part for part in parts if part not in ("scheduler", *NETWORKS, *allowed)]
    if more or set(NETWORKS) <= set(parts):
        latent = " Latent diffusion models cannot be scored." if set(more) & set(DECODERS) else ""
        raise CheckpointError(
            "`pretrained_model_name_or_path` must be a DDPM of pixels, with a unet and a scheduler and no other part,"
            f" got {', '.join(sorted(more or NETWORKS))} in {name!r}.{latent}"
        )


def load_parts(folder: Path, **kwargs) -> dict[str, Any]:
    r"""Network and scheduler of a folder, each as the class that its configuration names."""
    told = {path.parent.name: describe_part(path) for path in sorted(folder.glob("*/config.json"))}
    check_parts(told, str(folder), (*TEXT_PARTS, *BESIDE))
    parts = {name: kwargs.pop(name) for name in ("unet", "scheduler") if name in kwargs}
    for name, file in (("unet", "config.json"), ("scheduler", "scheduler_config.json")):
        if name in parts:
            continue
        places = NETWORKS if name == "unet" else (name,)
        subfolder = next((place for place in places if (folder / place / file).exists()), None)
        if subfolder is None and not (folder / file).exists():
            hint = f" Did you mean {str(folder / 'pipeline')!r}?" if (folder / "pipeline" / "model_index.json").exists() else ""
            raise CheckpointError(
                "`pretrained_model_name_or_path` must be a folder with a model_index.json, or with config.json and"
                f" scheduler_config.json, got {str(folder)!r} without {file}.{hint}"
            )
        named = json.loads((folder / (subfolder or "") / file).read_text(encoding="utf-8")).get("_class_name")
        if name == "unet":
            cls = network_class(named, str(folder))
        else:
            cls = scheduler_class(named, str(folder))
        options = {key: value for key, value in kwargs.items() if key not in DOWNLOAD_ARGUMENTS} if name == "unet" else {}
        parts[name] = cast(Any, cls).from_pretrained(folder, subfolder=subfolder, **options)
    return parts


def network_class(name: Any, folder: str) -> type:
    r"""The class of networks that a configuration names, or `CheckpointError`; one that says nothing is a `UNet2DModel`'s."""
    cls = DEFAULT_MODULE if name in UNET_NAMES else known_module_class("diffusers", str(name))
    if cls is None:
        raise not_a_network(folder, str(name))
    return cls


def scheduler_class(name: Any, folder: str) -> type:
    r"""The class of schedulers that a configuration names, or `CheckpointError`: what it is decides whether it can be scored.
    One that says nothing, or is ours, is a DDPM's."""
    cls = DDPMScheduler if name in (None, "VLBDDPMScheduler") else getattr(diffusers, str(name), None)
    # Of what needs a library that is not here diffusers has a placeholder, which is no scheduler.
    if not isinstance(cls, type) or not issubclass(cls, SchedulerMixin):
        raise CheckpointError(
            "`pretrained_model_name_or_path` must have a scheduler that diffusers has here, got"
            f" _class_name = {shown(name)} in the scheduler_config.json of {folder!r}."
        )
    return cls


def check_one_scheduler(index: Mapping[str, Any], config: Mapping[str, Any], folder: str) -> None:
    r"""Raise `CheckpointError` where index and configuration name schedulers for networks of different kinds: one of them is
    wrong, and which, nothing tells. Those of DDPMs stand for each other."""
    entry = index.get("scheduler")
    named = [entry[1] if isinstance(entry, (list, tuple)) and len(entry) == 2 else None, config.get("_class_name")]
    if named[0] == "VLBDDPMScheduler":
        return  # which reads whatever its file says
    if None not in named and len({"a DDPM's" if is_of_ddpms(name) else name for name in named}) > 1:
        raise CheckpointError(
            "`pretrained_model_name_or_path` must name one scheduler in its index and in its scheduler_config.json, got"
            f" {shown(named[0])} and {shown(named[1])} in {folder!r}."
        )
    loaded, said = (parameters_of(name) or {} for name in named)
    both = [key for key in SCHEDULER_RULES if key in loaded and key in said]
    unsaid = [key for key in both if key not in config and loaded[key] != said[key]]
    if unsaid:
        raise CheckpointError(
            f"`pretrained_model_name_or_path` must say the {unsaid[0]} of its scheduler, which {shown(named[0])} in the index"
            f" and {shown(named[1])} in scheduler_config.json have different by default, in {folder!r}."
        )


def not_a_network(folder: str, name: str) -> CheckpointError:
    r"""The error for a network of a class that is not known."""
    return CheckpointError(
        f"`pretrained_model_name_or_path` must hold a {' or a '.join(known_names())}, got {folder!r} with a {name}."
    )


def describe_part(config: Path) -> tuple[str | None, str | None]:
    r"""Library and class of a part by its configuration, as an index names them; nothing for a network that can be scored,
    under whatever name (an average of weights, say), and for what is no part."""
    told = json.loads(config.read_text(encoding="utf-8"))
    name = told.get("_class_name") or told.get("model_type") if isinstance(told, dict) else None
    return (None, None) if name is None or known_module_class("diffusers", name) else ("diffusers", str(name))
