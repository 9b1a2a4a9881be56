r"""The network that is scored: all that is asked of one, whatever class it is of.

A `Network` stands for a module in scoring, sampling and training: how many channels and which size its images have, of how many
classes, in which dtype it computes, and what it says of noisy samples. Nothing outside this folder asks a module itself, but
for what every torch module can do. The kinds of networks are in `kinds.py`.
"""

import copy
import inspect
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from threading import Lock
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from accelerate.hooks import remove_hook_from_module
from diffusers.utils import logging

from ..checks import nan_unless_finite
from ..noise import to_device
from ..words import counted
from .conditions import Conditions
from .digests import architecture_digest, network_digest, tensors_digest
from .memory import compiled_size, filled, out_of_memory, smaller

logger = logging.get_logger(__name__)

HALF = (torch.float16, torch.bfloat16)
_LOCK = Lock()


class _Held:
    r"""What parts of networks were before the first of those who hold them changed them, for the last one to put back: networks
    have parts in common, and threads networks. To be asked under `_LOCK`."""

    def __init__(self):
        self._entries: WeakKeyDictionary[torch.nn.Module, tuple[int, Any]] = WeakKeyDictionary()

    def __contains__(self, part: torch.nn.Module) -> bool:
        return part in self._entries

    def enter(self, part: torch.nn.Module, before: Any) -> None:
        r"""One more holds a part."""
        count, before = self._entries.get(part, (0, before))
        self._entries[part] = count + 1, before

    def leave(self, part: torch.nn.Module) -> Any:
        r"""What to put back, `None` where others still hold it."""
        count, before = self._entries.pop(part)
        if count == 1:
            return before
        self._entries[part] = count - 1, before
        return None


_TRAINING, _FORWARD = _Held(), _Held()


class Network:
    r"""A module as scoring sees it; the base class of the kinds of networks.

    A kind says in `__init__`, from the module's configuration, what its images are, and in `output` how it is called.

    Args:
        module: the network.
        device: where it computes; by default where its weights are.

    Attributes:
        channels: of its images.
        size: their (height, width), `None` where it takes any.
        out_channels: of its output, `None` where nothing tells.
        num_classes: of a class-conditional network, else `None`.
        takes_fractions: whether it can be asked between timesteps, and `why_no_fractions` what it is, if not.
        conditions: what it is given besides, tensors of P rows by the names of its arguments (`with_conditions`).
        needs: names without which it cannot be asked, and what each is, in words.
        takes: further names that it makes use of; `None` for all arguments of the module that a call does not give itself.
        halves, most: whether calls that do not fit into memory are made in halves, and of how many images they are then.
        autocast: of `torch.autocast` around each call of the module, whose weights keep their own dtype; `None` for none.
    """

    channels: int
    size: tuple[int, int] | None = None
    out_channels: int | None = None
    num_classes: int | None = None
    takes_fractions: bool = True
    why_no_fractions: str = "one with a learned table of them"
    needs: Mapping[str, str] = {}
    takes: Sequence[str] | None = None
    halves: bool = False
    most: int | None = None
    autocast: torch.dtype | None = None
    _largest: int = 0  # of the calls of a compiled module

    def __init__(self, module: torch.nn.Module, device: torch.device | None = None):
        self.module = module
        self._device = device
        self.conditions = Conditions({})

    def output(self, samples: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        r"""What the module says of samples `(B, C, H, W)` in its dtype, at timesteps `()` or `(B,)`, all on its device."""
        raise NotImplementedError

    def __call__(
        self, noisy_samples: torch.Tensor, timesteps: int | float | torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        r"""The network's output, all NaN for an image where some of it is not finite; arguments as `ask`."""
        return nan_unless_finite(self.ask(noisy_samples, timesteps, class_labels))

    def ask(
        self, noisy_samples: torch.Tensor, timesteps: int | float | torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        r"""The network's output as it is; `ValueError` of half precision from a network in another.

        Args:
            noisy_samples: latents on the device, `(B, C, H, W)`; formed in the working dtype, and only here brought to the
                network's.
            timesteps: one for all, or one each, `(B,)`.
            class_labels: of a class-conditional network, `(B,)`.
        """
        device = self.device
        labels = None if class_labels is None else to_device(class_labels, device)
        on_device = to_device(torch.as_tensor(timesteps), device)
        while True:
            size = min(len(noisy_samples), self.most or len(noisy_samples))
            try:
                return self._in_parts(noisy_samples, on_device, labels, size)
            except (RuntimeError, TypeError) as error:
                reason = out_of_memory(error)
                if reason is None and self.conditions:
                    shapes = ", ".join(f"{name} {tuple(rows.shape)}" for name, rows in self.conditions.items())
                    said = str(error).strip().split("\n")[0]
                    raise ValueError(f"`network_kwargs` must fit the network, got {shapes}: {said}") from error
                if reason is None:
                    raise
            # Here, where the error and all that it holds in memory are gone.
            self.most = self._largest = smaller(size, self, reason)
            logger.warning(f"{size} images do not fit into the memory of {device}: going on with batches of {self.most}.")

    def _in_parts(self, noisy_samples, timesteps, class_labels, size: int) -> torch.Tensor:
        if size == len(noisy_samples):
            return self._of_one_size(noisy_samples, timesteps, class_labels)
        parts = []
        for first in range(0, len(noisy_samples), size):
            rows = slice(first, first + size)
            at = timesteps[rows] if timesteps.ndim and len(timesteps) > 1 else timesteps
            labels = None if class_labels is None else class_labels[rows]
            parts.append(self._of_one_size(noisy_samples[rows], at, labels))
        return torch.cat(parts)

    def _of_one_size(self, noisy_samples, timesteps, class_labels) -> torch.Tensor:
        if not self._is_compiled:
            return self.answer(noisy_samples, timesteps, class_labels)
        size = len(noisy_samples)
        self._largest = max(self._largest, size)
        full = compiled_size(size, self._largest)
        labels = None if class_labels is None else filled(class_labels, size, full)
        return self.answer(filled(noisy_samples, size, full), filled(timesteps, size, full), labels)[:size]

    def answer(self, noisy_samples: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        r"""As `ask`, of what is on the device, in one call."""
        with self.mixed_precision():
            return self.checked(self.output(noisy_samples.to(self.dtype), timesteps, class_labels))

    def with_autocast(self, dtype: torch.dtype | None) -> "Network":
        r"""Itself, computing within `torch.autocast` of a dtype; `ValueError` for what is none of half precision, weights that
        are of it themselves, or a device without."""
        if dtype is not None:
            if dtype not in HALF:
                raise ValueError(f"`autocast` must be torch.bfloat16, torch.float16 or None, got {dtype!r}.")
            if self.dtype in HALF:
                raise ValueError(f"`autocast` must be None for a network with weights in {self.dtype}, got {dtype}.")
            if not torch.amp.is_autocast_available(self.device.type):
                raise ValueError(f"`autocast` must be None on {self.device}, where torch has none, got {dtype}.")
        self.autocast = dtype
        return self

    def mixed_precision(self) -> AbstractContextManager:
        r"""What the module is called in: the network's own `torch.autocast`, if there is one."""
        # Within `evaluating` it keeps the weights that it has brought to its dtype from one call to the next.
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, dtype=self.autocast)

    def checked(self, output: torch.Tensor) -> torch.Tensor:
        r"""An output of the module; `ValueError` of half precision from a network in another."""
        if output.dtype in HALF and self.dtype not in HALF and not torch.is_autocast_enabled(output.device.type):
            # A `torch.autocast` within it, say: reports would name another precision. Sampling alone has one around it.
            raise ValueError(
                f"`unet` must compute in its own dtype, {self.dtype}, got an output in {output.dtype}. For half precision give"
                " it weights of that dtype, or set `pipe.autocast`; then reports say so, and what it changes."
            )
        # Of a network on several devices the output is where its last part is.
        return output if output.device == self.device else output.to(self.device)

    def with_module(self, module: torch.nn.Module) -> "Network":
        r"""The same of another module of its kind, without autocast: a copy in another dtype, say."""
        network = type(self)(module, self._device).with_conditions(self.conditions)
        network.halves, network.most = self.halves, self.most
        return network

    def with_conditions(self, conditions: Mapping[str, torch.Tensor] | None) -> "Network":
        r"""Itself, given the same tensors whenever it is asked: a prompt's embeddings, say.

        Args:
            conditions: by the names of the module's arguments, `(P, ...)` each. With P = 1 all images have the one condition;
                with more, an image's class is the number of its row. The likelihood is p(x | condition).

        Raises:
            ValueError: an argument that the module has not or that it needs and is not given, tensors that do not fit.
        """
        conditions = conditions if isinstance(conditions, Conditions) else Conditions(conditions or {})
        takes = self.takes
        if takes is None:
            takes = [name for name in list(inspect.signature(self.module.forward).parameters)[2:] if name != "return_dict"]
        # Classes of its own come with the images.
        takes = [name for name in takes if name != "class_labels" or self.num_classes is None]
        count = conditions.check(type(self.module).__name__, self.needs, takes)
        if count > 1 and self.num_classes is not None:
            raise ValueError(f"`network_kwargs` must have one row for a network with classes of its own, got {count}.")
        self.conditions = conditions
        self.num_classes = count if count > 1 else self.num_classes
        return self

    def given(self, samples: torch.Tensor, class_labels: torch.Tensor | None) -> dict[str, Any]:
        r"""What the module is given besides samples and timesteps, on its device."""
        if not self.conditions:
            return {} if class_labels is None else {"class_labels": class_labels}
        arguments: dict[str, torch.Tensor] = {}
        for name, rows in self.conditions.items():
            rows = rows.to(samples.device, self.dtype if rows.is_floating_point() else None)
            arguments[name] = rows.expand(len(samples), *rows.shape[1:]) if len(rows) == 1 else rows[class_labels]
        if class_labels is not None and all(len(rows) == 1 for rows in self.conditions.values()):
            arguments["class_labels"] = class_labels
        return arguments

    @property
    def prompt(self) -> list[str] | None:
        r"""The texts that what it is given was made of, where that is known."""
        return self.conditions.prompt

    @property
    def condition_sha256(self) -> str | None:
        r"""SHA-256 of what it is given, `None` of nothing."""
        return tensors_digest("", self.conditions) if self.conditions else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        r"""(C, H, W) of its images; `ValueError` where its configuration leaves their size open."""
        if self.size is None:
            raise ValueError("`unet` must have a `sample_size` in its configuration to be sampled from, got None.")
        return (self.channels, *self.size)

    @property
    def device(self) -> torch.device:
        r"""Where it computes."""
        if self._device is None:
            return next((weight.device for weight in self.module.parameters()), torch.device("cpu"))
        return self._device

    @cached_property
    def dtype(self) -> torch.dtype:
        r"""In which it computes; asked for once, since diffusers walks through all parts of a module for it."""
        weights = (weight.dtype for weight in self.module.parameters() if weight.is_floating_point())
        return getattr(self.module, "dtype", None) or next(weights, torch.float32)

    @property
    def _is_compiled(self) -> bool:
        return hasattr(self.module, "_orig_mod") or getattr(self.module, "_compiled_call_impl", None) is not None

    @property
    def arithmetic(self) -> torch.dtype:
        r"""In which most of it is computed: its own dtype, or autocast's."""
        return self.autocast or self.dtype

    @property
    def precision(self) -> str:
        r"""What reports call it: a dtype's name, `"autocast-bfloat16"`."""
        return ("" if self.autocast is None else "autocast-") + str(self.arithmetic).removeprefix("torch.")

    @property
    def is_half(self) -> bool:
        r"""Whether it computes in half precision."""
        return self.arithmetic in HALF

    @cached_property
    def is_cast_by_layer(self) -> bool:
        r"""Whether diffusers' `enable_layerwise_casting` keeps its weights in another dtype than it computes in."""
        hooks = (getattr(part, "_diffusers_hook", None) for part in self.module.modules())
        return any(hook is not None and hook.get_hook("layerwise_casting") is not None for hook in hooks)

    @property
    def is_rounded(self) -> bool:
        r"""Whether its arithmetic, or the weights that it keeps, are of half precision or less."""
        return self.is_half or self.is_cast_by_layer

    def in_float32(self) -> torch.nn.Module:
        r"""A copy of the module, with its weights as they are, that computes in float32.

        Raises:
            ValueError: weights that are not at hand.
        """
        module: Any = getattr(self.module, "_orig_mod", self.module)
        if any(weight.is_meta for weight in module.parameters()) and self.device.type != "meta":
            raise ValueError(
                "`unet` must have its weights at hand for a copy of it in float32, got offloaded ones: load it without, or give"
                " `float32_unet`."
            )
        hooks = [part for part in module.modules() if hasattr(part, "_diffusers_hook")]
        if not hooks:
            return remove_hook_from_module(copy.deepcopy(module), recurse=True).float().to(self.device)
        # Hooks of diffusers are the network's own, and some cannot be copied.
        plain = type(module).from_config(module.config).float()
        plain.load_state_dict(module.state_dict())
        return plain.eval().to(self.device)

    def exact(self, float32_module: torch.nn.Module | None = None) -> tuple["Network", bool]:
        r"""The same in float32, and whether what differs includes the rounding of the weights.

        Args:
            float32_module: what it was made from; `None` takes its own weights, as they are.

        Raises:
            ValueError: weights that are not at hand; a module in half precision.
        """
        own = self.module if self.autocast is not None and not self.is_cast_by_layer else None
        module = own if float32_module is None else float32_module
        network = self.with_module(self.in_float32() if module is None else module)
        if network.is_rounded:
            raise ValueError(f"`float32_unet` must not be in half precision, got {network.dtype}.")
        return network, float32_module is not None or own is not None

    def check_devices(self) -> None:
        r"""Raise `ValueError` for weights on several devices that nothing brings together."""
        devices = sorted({str(weight.device) for weight in self.module.parameters()})
        hooked = any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in self.module.modules())
        if len(devices) > 1 and not hooked:
            raise ValueError(
                f"`unet` must have its weights on one device, or hooks that bring its inputs to them (accelerate's"
                f" `dispatch_model`), got {', '.join(devices)}."
            )

    @property
    def architecture_sha256(self) -> str:
        r"""SHA-256 of its configuration."""
        return architecture_digest(self.module)

    def sha256(self, dtype: torch.dtype | None = None) -> str | None:
        r"""SHA-256 of its configuration and weights; see `network_digest`."""
        # Of those that are kept in fewer digits than they are used in, as they are used: where they were saved, and loaded into
        # that dtype, it is the same network.
        return network_digest(self.module, self.dtype if dtype is None and self.is_cast_by_layer else dtype)

    @contextmanager
    def evaluating(self, autocast: bool = False) -> Iterator[None]:
        r"""Dropout off, and every part of it back as it was when the last of the threads that share it is done.

        Args:
            autocast: whether the caller's `torch.autocast`, or accelerate's around the network, has its way. Without, the
                network computes in its own dtype, which is what reports say.
        """
        parts = list(self.module.modules())
        with _LOCK:
            mixed = [] if autocast else [part for part in parts if part in _FORWARD or _is_autocast_by_accelerate(part)]
            for part in parts:
                _TRAINING.enter(part, part.training)
            for part in mixed:
                _FORWARD.enter(part, part.forward)
                cast(Any, part).forward = part._original_forward
            self.module.eval()
        off = not autocast and torch.amp.is_autocast_available(self.device.type)
        try:
            with torch.autocast(self.device.type, enabled=False) if off else nullcontext():
                yield
        finally:
            with _LOCK:
                for part in parts:
                    # What somebody has put into training meanwhile stays there.
                    part.training |= bool(_TRAINING.leave(part))
                for part in mixed:
                    part.forward = _FORWARD.leave(part) or part.forward

    def check(self, timesteps: Sequence[float], size: Sequence[int] | None) -> None:
        r"""Raise `ValueError` where it cannot be asked at one of these timesteps, or about images of this (height, width)."""

    def check_inputs(self) -> None:
        r"""Raise `ValueError` for a network of more channels in than out, which is conditional on another picture."""
        if self.out_channels is not None and self.out_channels < self.channels:
            raise ValueError(
                "`unet` must say as many channels as it is given, got"
                f" {counted(self.channels, 'input channel')} and {counted(self.out_channels, 'output channel')}: it is"
                " conditional on another picture, in its further inputs, and such networks cannot be scored."
            )

    def check_out_channels(self, learns_variance: bool, variance_type: str) -> None:
        r"""Raise `ValueError` for a number of output channels that does not fit the variance type."""
        expected = self.channels * (2 if learns_variance else 1)
        if self.out_channels not in (None, expected):
            as_many = learns_variance and self.out_channels == self.channels  # DeepFloyd IF's, of larger pictures
            hint = " It learns no variances, or is conditional on another picture." if as_many else ""
            raise ValueError(
                f"`unet` must have {counted(expected, 'output channel')} for {counted(self.channels, 'input channel')} and"
                f" variance_type={variance_type!r}, got {self.out_channels}.{hint}"
            )

    def check_class_labels(self, class_labels: Any, count: int) -> torch.Tensor | None:
        r"""Class labels as `(count,)` integers, `None` for an unconditional network; `ValueError` where they do not fit."""
        num_classes = self.num_classes
        if (class_labels is None) != (num_classes is None):
            rule = "be left out: the network is unconditional" if num_classes is None else f"be given: {num_classes} classes"
            raise ValueError(f"`class_labels` must {rule}, got {class_labels!r}.")
        if class_labels is None or num_classes is None:
            return None
        try:
            labels = torch.as_tensor(class_labels).cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"`class_labels` must be {count} integers, got {reprlib.repr(class_labels)}.") from error
        labels = labels.expand(count) if labels.ndim == 0 else labels
        if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"`class_labels` must be {count} integers, got {labels.dtype} of shape {tuple(labels.shape)}.")
        labels = labels.long()  # of NumPy's unsigned integers torch knows no least
        if count and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"`class_labels` must lie in [0, {num_classes}), got values from {int(labels.min())} to {int(labels.max())}."
            )
        return labels


def _is_autocast_by_accelerate(part: torch.nn.Module) -> bool:
    r"""Whether `accelerator.prepare` has put mixed precision around a module; `unwrap_model` leaves it there."""
    return type(getattr(part.forward, "__wrapped__", None)).__name__ == "ConvertOutputsToFp32"


def unwrapped(module: Any) -> Any:
    r"""The module in the wrappers of parallel training, which have no configuration and change no output."""
    while isinstance(module, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        module = module.module
    return module
