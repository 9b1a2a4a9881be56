r"""What a network is given besides latents and timesteps: tensors by the names of its arguments."""

from collections.abc import Mapping, Sequence

import torch


class Conditions(dict[str, torch.Tensor]):
    r"""Tensors of P rows each, by the names of a network's arguments.

    Args:
        tensors: `(P, ...)` each.
        prompt: what they were made of, P texts, where that is known.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], prompt: Sequence[str] | None = None):
        super().__init__(tensors)
        self.prompt = None if prompt is None else list(prompt)
