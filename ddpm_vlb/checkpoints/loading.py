r"""Checkpoints as others left them: with an index or without, flat or in sub-folders, older than some of their keys.

What a repository says is not trusted further than its weights and numbers. Of which parts it may consist: `parts.py`.
"""

import inspect
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.utils import logging
from huggingface_hub import _CACHED_NO_EXIST, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..checks import shown
from ..model.configuration import (
    MAX_KEY_LENGTH,
    check_network_config,
    check_scheduler_config,
    is_of_ddpms,
    not_of_ddpms,
    with_sampler,
)
from ..model.kinds import DEFAULT_MODULE, known_module_class
from ..model.network import Network
from ..model.stepping import variance_of
from ..noise_processes import as_ddpm, check_levels, process_named
from ..parametrizations import KEPT_UNDER
from ..progress import can_be_redrawn
from ..scheduling_vlb_ddpm import VLBDDPMScheduler
from .parts import CheckpointError, check_one_scheduler, download_options, download_parts, indexed_folder, not_a_network

logger = logging.get_logger(__name__)

# The configurations of a checkpoint, and what is asked of each.
CONFIGURATIONS = {
    "unet/config.json": check_network_config,
    "transformer/config.json": check_network_config,
    "config.json": check_network_config,
    "scheduler/scheduler_config.json": check_scheduler_config,
    "scheduler_config.json": check_scheduler_config,
    "model_index.json": None,
}
MAX_CONFIGURATION_BYTES = 32 * 2**20  # a million betas have two thirds of it
MAX_REASON_LENGTH = 1000


def check_name(name: Any, kwargs: dict[str, Any]) -> str:
    r"""The folder or repository that `from_pretrained` is asked for; `kwargs` are its arguments, set as they must be.

    Raises:
        ValueError: no name, or a `subfolder`.
        CheckpointError: a folder that does not exist.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ValueError(f"`pretrained_model_name_or_path` must be a folder or a repository, got {name!r}.")
    if kwargs.get("subfolder"):
        raise ValueError(f"`subfolder` must be left out: a pipeline is a whole repository, got {kwargs['subfolder']!r}.")
    name, folder = os.fspath(name), Path(name)
    # Otherwise diffusers makes up the weights that a file lacks, with no more than a warning.
    kwargs["low_cpu_mem_usage"] = True
    if name and folder.is_dir():
        check_files(folder)
    elif not name or folder.exists() or not is_repository_name(name):
        raise CheckpointError(f"`pretrained_model_name_or_path` must be a folder that exists, got {name!r}.")
    return name


def is_repository_name(name: str) -> bool:
    r"""Whether a repository of the Hub can have this name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def check_files(folder: Path) -> None:
    r"""Raise `CheckpointError` for a file of a checkpoint that is none: a pipe, whose reader waits for ever."""
    places = (folder, *(folder / name for name in ("unet", "transformer", "scheduler")))
    for path in [path for place in places for path in place.glob("*")]:
        if path.suffix in (".json", ".safetensors", ".bin") and path.exists() and not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"`pretrained_model_name_or_path` must hold plain files, got {str(path)!r}, which is none.")


_READING: ContextVar[bool] = ContextVar("reading", default=False)  # whether this thread reads a checkpoint of ours


@contextmanager
def reading(name: str) -> Iterator[None]:
    r"""Whatever a damaged file makes the libraries underneath stumble over is a `CheckpointError`."""
    # The index names the stock scheduler, which warns that it will ignore our key; it keeps it, and the upgrade reads it.
    configuration_logger = logging.get_logger("diffusers.configuration_utils")
    configuration_logger.addFilter(is_not_about_num_pixel_levels)
    weights_logger = logging.get_logger("diffusers.models.modeling_utils")
    # Left there: the logger is all threads', which load at once. It is told of all, and the filter knows what is to be printed.
    weights_logger.addFilter(refuse_unused_weights)
    weights_logger.setLevel(logging.DEBUG)
    token = _READING.set(True)
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error)
        raise CheckpointError(
            f"`pretrained_model_name_or_path` must be a complete and readable DDPM checkpoint, got {name!r}:"
            f" {reason[:MAX_REASON_LENGTH]}{' ...' if len(reason) > MAX_REASON_LENGTH else ''}"
        ) from error
    finally:
        configuration_logger.removeFilter(is_not_about_num_pixel_levels)
        _READING.reset(token)


@contextmanager
def without_loading_bar() -> Iterator[None]:
    r"""No bar of diffusers' where it could not be drawn over; loading takes seconds."""
    if can_be_redrawn() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def parts_folder(name: str, kwargs: dict[str, Any], with_text: bool = False) -> Path | None:
    r"""The folder of a network and a scheduler without an index, or with one that names more (`indexed_folder`), downloaded
    where need be, a text encoder only where it is wanted; `None` where there is an index of these two alone."""
    folder = Path(name)
    if not folder.is_dir() and not has_index(name, kwargs):
        folder = download_parts(name, kwargs, with_text)
    check_configurations(folder, kwargs)
    if folder.is_dir() and not (folder / DDPMPipeline.config_name).exists():
        return folder
    folder = indexed_folder(name, kwargs, with_text)
    return folder if folder is None else check_configurations(folder, kwargs)


def check_configurations(folder: Any, kwargs: dict[str, Any]) -> Any:
    r"""`folder`, once the configurations in it have been looked at, before anything is made of them.

    Args:
        folder: with an index or without; one that does not exist has none.
        kwargs: of `from_pretrained`: the part that is given there is not looked at here.

    Raises:
        ValueError: a file that is too large or no mapping, a key longer than any that is known, a value that cannot be meant.
    """
    read: dict[str, dict] = {}
    for file, check in CONFIGURATIONS.items():
        path = Path(folder, file)
        given = "unet" if check is check_network_config else "scheduler"
        if not path.is_file() or check is not None and given in kwargs:
            continue
        if path.stat().st_size > MAX_CONFIGURATION_BYTES:
            raise ValueError(
                f"`{file}` must have at most {MAX_CONFIGURATION_BYTES} bytes, as no configuration has more,"
                f" got {path.stat().st_size}."
            )
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"`{file}` must hold a mapping of names to values, got {shown(config)}.")
        long = next((key for key in config if len(key) > MAX_KEY_LENGTH), None)
        if long is not None:
            raise ValueError(f"`{file}` must have keys of at most {MAX_KEY_LENGTH} characters, got {shown(long)}.")
        if check is not None:
            check(config)
        if check is check_scheduler_config:
            check_levels(config)
            read["scheduler"] = config
        elif check is None:
            read["index"] = config
    if len(read) == 2:
        check_one_scheduler(read["index"], read["scheduler"], str(folder))
    return folder


def check_network(unet: Any, name: str) -> Any:
    r"""The network that was loaded, as it was trained.

    Raises:
        CheckpointError: weights that are missing, or a network of diffusers that cannot be scored.
    """
    missing = [key for key, weight in unet.state_dict().items() if weight.is_meta]
    if missing:
        raise CheckpointError(
            "`pretrained_model_name_or_path` must hold all weights of its network,"
            f" got {name!r} without {', '.join(missing[:3])}"
            f"{' ...' if len(missing) > 3 else ''} ({len(missing)} missing)."
        )
    known = known_module_class(type(unet).__module__, type(unet).__name__)
    if type(unet).__module__.startswith("diffusers.") and known is None:
        raise not_a_network(name, type(unet).__name__)
    unet = restore_single_head(unet)
    if "_name_or_path" in getattr(unet, "config", {}):
        # A folder of this machine, which the network would take along wherever it is pushed by itself.
        unet.register_to_config(_name_or_path="")
    return unet


def has_index(repository: str, kwargs: dict[str, Any]) -> bool:
    r"""Whether a repository has an index of a pipeline, as the Hub says or, where it is not to be reached, the cache.

    Where the cache must do, `kwargs` say so afterwards.

    Raises:
        CheckpointError: no such repository, or none in the cache and a Hub that cannot be reached. It is asked once.
    """
    options, index = download_options(kwargs), DDPMPipeline.config_name
    cached = try_to_load_from_cache(repository, index, options.get("cache_dir"), options.get("revision"))
    if not options.get("local_files_only"):
        try:
            # The client would ask six times whether there is a Hub.
            get_hf_file_metadata(hf_hub_url(repository, index, revision=options.get("revision")), token=options.get("token"))
        except RepositoryNotFoundError as error:
            raise not_here(repository, error) from error
        except HfHubHTTPError:
            pass  # what it means, and whether it is worth another try, the client knows
        except Exception as error:  # of the network; offline on purpose
            if cached is None:
                raise not_here(repository, error) from error
            kwargs["local_files_only"] = options["local_files_only"] = True
    if options.get("local_files_only") and cached is _CACHED_NO_EXIST:
        return False
    try:
        hf_hub_download(repository, index, **options)
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):  # the Hub was not reached, which says nothing of the index
            raise
        return False
    return True


def not_here(name: str, error: Exception) -> CheckpointError:
    r"""The error for a name that is no folder's, and that the Hub does not know."""
    reason = str(error).strip().split("\n")[0]
    return CheckpointError(
        f"`pretrained_model_name_or_path` must be a folder that exists or a repository of the Hub, got {name!r}: {reason}"
    )


def restore_single_head(unet: Any) -> Any:
    r"""Attention as it was trained, for configurations older than `attention_head_dim`.

    diffusers 0.0.x knew one head only and did not write the key; today's default of 8 channels per head would load the same
    weights without a word and compute something else.
    """
    config = unet.config
    unset = "attention_head_dim" in config.get("_use_default_values", ())
    if not (unset and isinstance(unet, DEFAULT_MODULE) and str(config.get("_diffusers_version", "")).startswith("0.0.")):
        return unet
    logger.warning("The network's configuration is older than `attention_head_dim`: loading it with one attention head.")
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    restored = cast(DEFAULT_MODULE, DEFAULT_MODULE.from_config({**values, "attention_head_dim": None}))
    restored.load_state_dict(unet.state_dict())
    return restored.to(device=unet.device, dtype=unet.dtype).eval()  # pyright: ignore[reportCallIssue]  # `to` is wrapped


def refuse_unused_weights(record) -> bool:
    r"""A filter of log records: weights of which the configuration knows nothing, which diffusers only warns of, are those of
    another network, whose number would look right."""
    text = record.getMessage()
    if _READING.get() and "were not used when initializing" in text:
        raise CheckpointError(
            "`pretrained_model_name_or_path` must hold the weights of the network that its configuration describes, got others"
            f" besides: {text.rpartition(': ')[2].strip()[:MAX_REASON_LENGTH]}"
        )
    return record.levelno >= logging.get_verbosity()


def is_not_about_num_pixel_levels(record) -> bool:
    r"""A filter of log records: the stock scheduler says that it ignores our key, which it keeps, and which we read."""
    return not any(key in record.getMessage() for key in ("num_pixel_levels", "unlabelled_class", KEPT_UNDER))


# Whose networks are consistency models, or distilled from others.
DISTILLED = (
    *("CMStochasticIterativeScheduler", "SCMScheduler"),
    *("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler"),
)
WHY_NOT_DISTILLED = (
    "What a consistency model or another distilled network says is an image where a sampler's path ends, and not the mean of"
    " all that a denoiser predicts: no bound is known of it."
)


def upgrade_scheduler(scheduler: Any, num_levels: int | None = None) -> VLBDDPMScheduler:
    r"""The `VLBDDPMScheduler` of a DDPM scheduler, or of another whose network is a DDPM's: the same forward process and
    prediction, with DDPM's defaults for what the other one does not know, as `DDPMScheduler.from_config` has it. Of flow
    matching, EDM and variance-exploding ones: the DDPM that their network amounts to (`noise_processes.py`), of `num_levels`
    noise levels, by default `NUM_LEVELS` or what an earlier save had.

    Raises:
        ValueError: a scheduler of another family (a consistency model's, say): what it samples has no bound that is known.
    """
    if isinstance(scheduler, VLBDDPMScheduler):
        return scheduler
    # Values, not the record of which were defaults: `from_config` would drop what was passed by position. Attributes: where one
    # was assigned, the scheduler computes with it, and its item is still the old one. And none that only the other scheduler
    # knows, such as DPM-Solver's infinite `lambda_min_clipped`: they would be saved, and mean nothing.
    stock = getattr(scheduler, "config", {})
    config = {key: getattr(stock, key, value) for key, value in stock.items()}
    if (process := process_named(type(scheduler).__name__)) is not None:
        if "shift" in config:
            # `set_shift` leaves the configuration as it was.
            config["shift"] = vars(scheduler).get("_shift", config["shift"])
        own = as_ddpm({**config, "_class_name": type(scheduler).__name__}, num_levels)
        read = cast(VLBDDPMScheduler, VLBDDPMScheduler.from_config(dict(own)))
        logger.warning(
            f"The {type(scheduler).__name__} becomes a VLBDDPMScheduler: what is scored, and sampled, is the DDPM of"
            f" {read.config.num_train_timesteps} noise levels that a network of {process.name} amounts to."
        )
        return read
    if not isinstance(scheduler, DDPMScheduler):
        compatible = is_of_ddpms(type(scheduler).__name__)
        others = not_of_ddpms(config) if compatible else {}
        if not compatible or "beta_schedule" not in config or others:
            distilled = type(scheduler).__name__ in DISTILLED
            raise ValueError(
                "`scheduler` must be a DDPMScheduler, or one of diffusers' schedulers for the networks of DDPMs, to be scored,"
                f" got {type(scheduler).__name__}{f' with {others}' if others else ''}.{f' {WHY_NOT_DISTILLED}' * distilled}"
            )
        own = own_keys(with_sampler({**config, "_class_name": type(scheduler).__name__}, "VLBDDPMScheduler"))
        upgraded = cast(VLBDDPMScheduler, VLBDDPMScheduler.from_config(own))
        logger.warning(
            f"The {type(scheduler).__name__} becomes a VLBDDPMScheduler: what is scored, and sampled, is the DDPM of the"
            f" network, with variance_type={upgraded.config.variance_type!r} and clip_sample={upgraded.config.clip_sample}."
        )
        return upgraded
    own = own_keys(with_sampler({**config, "_class_name": "DDPMScheduler"}, "VLBDDPMScheduler"))
    return cast(VLBDDPMScheduler, VLBDDPMScheduler.from_config(own))


def own_keys(config: dict[str, Any]) -> dict[str, Any]:
    r"""Of a scheduler's configuration, what a `VLBDDPMScheduler` knows."""
    own = inspect.signature(VLBDDPMScheduler.__init__).parameters
    return {key: value for key, value in config.items() if key in own}


def check_sampler(scheduler: Any, network: Network, **own: Any) -> None:
    r"""Raise `ValueError` unless the pipeline can sample with its scheduler: the network says the variances that it asks for;
    or, put in the place of its own, its steps are taken as a DDPM's are (DDIM, DPM-Solver), for a network without variances,
    and nothing asked for that only a `VLBDDPMScheduler` knows (`own`, the arguments by their names)."""
    if isinstance(scheduler, VLBDDPMScheduler):
        variance_type = scheduler.config.variance_type
        if variance_of(variance_type).is_learned and network.out_channels == network.channels:
            network.check_out_channels(True, variance_type)
        return
    name = type(scheduler).__name__
    for argument, given in own.items():
        if given not in (None, False):
            raise ValueError(
                f"`{argument}` must be left out unless `scheduler` is a VLBDDPMScheduler, got {given!r} with {name}."
            )
    scaled = float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0
    if scaled or "generator" not in inspect.signature(scheduler.step).parameters or network.out_channels != network.channels:
        raise ValueError(
            f"`scheduler` must be a VLBDDPMScheduler for this network to be sampled from here, got {name}."
            " `VLBDDPMScheduler.from_config(pipe.scheduler.config)` makes one of it."
        )
