r"""Which network a number is of: SHA-256 of a configuration and of weights."""

import hashlib
import json
from collections.abc import Mapping

import torch


def architecture_digest(network: torch.nn.Module) -> str:
    r"""SHA-256 of a network's configuration."""
    return hashlib.sha256(_public_config(network).encode()).hexdigest()


def _public_config(network: torch.nn.Module) -> str:
    config = getattr(network, "config", None)
    public = {key: value for key, value in config.items() if key[0] != "_"} if isinstance(config, dict) else {}
    return json.dumps(public, sort_keys=True, default=str)


def network_digest(network: torch.nn.Module, dtype: torch.dtype | None = None) -> str | None:
    r"""SHA-256 of a network's configuration and weights (in `dtype`, by default as they are): which network a number is of,
    whatever file it was loaded from. `None` where the weights are not at hand."""
    return tensors_digest(_public_config(network), network.state_dict(), dtype)


def tensors_digest(config: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> str | None:
    r"""SHA-256 of a text and of tensors by their names, as `network_digest`."""
    digest = hashlib.sha256(config.encode())
    for name, weight in sorted(tensors.items()):
        if weight.is_meta:
            return None
        weight = weight.detach().cpu()
        weight = weight.to(dtype) if dtype is not None and weight.is_floating_point() else weight
        digest.update(f"{name.removeprefix('_orig_mod.')} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
