r"""What a network is given besides latents and timesteps: tensors by the names of its arguments."""

from collections.abc import Mapping, Sequence

import torch

from ..checks import shown


class Conditions(dict[str, torch.Tensor]):
    r"""Tensors of P rows each, by the names of a network's arguments.

    Args:
        tensors: `(P, ...)` each.
        prompt: what they were made of, P texts, where that is known.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], prompt: Sequence[str] | None = None):
        super().__init__(tensors)
        self.prompt = None if prompt is None else list(prompt)

    def check(self, network: str, needs: Mapping[str, str], takes: Sequence[str]) -> int:
        r"""P, 1 of nothing.

        Args:
            network: its class.
            needs: names without which it cannot be asked, and what each is, in words.
            takes: further ones that it makes use of.

        Raises:
            ValueError: one that it makes no use of, which would be in the report and in no number; one that it needs and is not
                given; what is no tensor of finite numbers with a row for each condition.
        """
        counts = set()
        for name, rows in self.items():
            if name not in (*needs, *takes):
                names = " or ".join((*needs, *takes)) or "nothing"
                raise ValueError(
                    f"`network_kwargs` must name what this {network} is given beside latents, timesteps and labels, {names},"
                    f" got {shown(name)}."
                )
            if not isinstance(rows, torch.Tensor) or rows.ndim < 1 or not len(rows):
                raise ValueError(f"`network_kwargs` must be tensors with a row for each condition, got {name} = {shown(rows)}.")
            # A mask that is added to what it masks has infinities.
            if not name.endswith("mask") and not rows.is_meta and not bool(torch.isfinite(rows).all()):
                raise ValueError(f"`network_kwargs` must be finite numbers, got others in {name}.")
            counts.add(len(rows))
        for name, words in needs.items():
            if name not in self:
                raise ValueError(f"`network_kwargs` must hold {name!r} for this network, {words}, got {sorted(self)}.")
        if len(counts) > 1:
            raise ValueError(f"`network_kwargs` must have as many rows each, got {sorted(counts)}.")
        return counts.pop() if counts else 1
