r"""What a calibration leaves in a scheduler's configuration: plain numbers at some timesteps, and the model that they make.

Between these timesteps numbers are taken as straight lines over :math:`\log \mathrm{SNR}`. Whatever they are, the bound stays a
bound: a bad calibration makes a worse model, never a wrong number.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..error_model import ErrorModel
from ..forward_process import ForwardProcess, check_inference_timesteps
from .sub_schedules import SubSchedules, best_sub_schedules, table_of_steps

FORMAT = 1
# Zero terminal SNR has a place too.
LOG_SNR_LIMIT = 30.0
NUMBERS = ("offsets", "gains", "learned_gains", "decoder_offsets", "decoder_gains", "decoder_learned_gains")
# What must be as it was when the calibration was made.
MADE_FOR = ("num_train_timesteps", "prediction_type", "variance_type", "num_pixel_levels")


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""A calibration of the model with a forward process.

    Args:
        config: as `calibration.calibrate` makes it.
        trained: the forward process on all T steps.

    Raises:
        ValueError: a configuration that is not one, or not of this forward process.
    """

    config: dict[str, Any]
    trained: ForwardProcess
    # The best chains found so far: the same for any number of steps up to theirs.
    _table: list[SubSchedules] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self):
        config = self.config
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise ValueError(f"`calibration` must be a dictionary of `ddpm-vlb calibrate` (format {FORMAT}), got another.")
        steps = config.get("timesteps")
        total = len(self.trained)
        if not isinstance(steps, (list, tuple)) or len(steps) < min(2, total):
            raise ValueError(f"`calibration.timesteps` must be a list of at least two timesteps, got {steps!r}.")
        steps = check_inference_timesteps(list(steps)[::-1], total)[::-1]
        if (steps[0], steps[-1]) != (0, total - 1):
            raise ValueError(f"`calibration.timesteps` must reach from 0 to {total - 1}, got {steps[0]} to {steps[-1]}.")
        lengths = config.get("deltas")
        if not isinstance(lengths, (list, tuple)) or not lengths:
            raise ValueError(f"`calibration.deltas` must be a list of at least one length, got {lengths!r}.")
        shapes = {name: (len(steps),) for name in (*NUMBERS, "log_snr", "decoder_costs")}
        shapes |= {"deltas": (len(lengths),), "step_costs": (len(steps), len(lengths))}
        for name, shape in shapes.items():
            try:
                values = np.asarray(config[name], dtype=np.float64)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"`calibration.{name}` must be numbers of shape {shape}, got {error!r}.") from error
            if values.shape != shape or not np.isfinite(values).all():
                raise ValueError(f"`calibration.{name}` must be finite and of shape {shape}, got shape {values.shape}.")
        for name in ("deltas", "step_costs", "decoder_offsets"):
            if not (np.asarray(config[name]) > 0).all():
                raise ValueError(f"`calibration.{name}` must be positive.")
        if (np.diff(lengths) <= 0).any():
            raise ValueError("`calibration.deltas` must be ascending.")
        mean_square, best = config.get("mean_square"), config.get("num_inference_steps")
        if not (type(mean_square) is int or type(mean_square) is float) or not 0 <= mean_square < math.inf:
            raise ValueError(f"`calibration.mean_square` must be a number that is not negative, got {mean_square!r}.")
        if type(best) is not int or not 1 <= best <= total:
            raise ValueError(f"`calibration.num_inference_steps` must lie in [1, {total}], got {best!r}.")
        expected, got = self._positions[steps], np.asarray(config["log_snr"], dtype=np.float64)
        if np.abs(expected - got).max() > 1e-3:
            raise ValueError(
                "`calibration` must be of this forward process, got one of another schedule:"
                f" log SNR {got[0]:.4f} to {got[-1]:.4f} for {expected[0]:.4f} to {expected[-1]:.4f}. Calibrate anew."
            )

    @property
    def num_inference_steps(self) -> int:
        r"""The best number of steps."""
        return self.config["num_inference_steps"]

    @property
    def sha256(self) -> str:
        r"""SHA-256 of the calibration."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _positions(self) -> np.ndarray:
        return log_snr(self.trained)

    def _spread(self, values) -> np.ndarray:
        r"""Values at the calibration's timesteps, `(J,)` or `(J, R)`, at all timesteps."""
        values, knots = np.asarray(values, dtype=np.float64), self._positions[list(self.config["timesteps"])]
        order = np.argsort(knots)
        if values.ndim == 1:
            return np.interp(self._positions, knots[order], values[order])
        return np.stack([np.interp(self._positions, knots[order], column[order]) for column in values.T], axis=1)

    @cached_property
    def error_model(self) -> ErrorModel:
        r"""The numbers of the variances at all T timesteps."""
        return ErrorModel(*(torch.from_numpy(self._spread(self.config[name])) for name in NUMBERS))

    @cached_property
    def costs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r"""What `best_sub_schedules` takes, in nats per dimension: of decoding `(T,)`, of steps `(T, T)`, of ending `(T,)`."""
        forward, config = self.trained, self.config
        alphas = forward.alphas_cumprod.numpy()
        prior = 0.5 * (alphas * (config["mean_square"] - 1) - forward.log_one_minus_alphas_cumprod.numpy())
        per_step = np.exp(self._spread(np.log(config["step_costs"])))
        steps = table_of_steps(forward.snr.numpy(), np.asarray(config["deltas"], dtype=np.float64), per_step)
        return self._spread(config["decoder_costs"]), steps, prior

    def sub_schedules(self, max_steps: int) -> SubSchedules:
        r"""The best chains of up to so many steps."""
        known = self._table[0] if self._table else None
        if known is None or len(known.costs) < max_steps:
            known = best_sub_schedules(*self.costs, max_steps)
            self._table[:] = [known]
        return known  # not what lies there: another thread may have put a shorter one

    def timesteps(self, num_inference_steps: int) -> list[int]:
        r"""The best chain of so many steps, strictly descending."""
        return self.sub_schedules(num_inference_steps).timesteps(num_inference_steps)

    @property
    def description(self) -> str:
        r"""On what it was made, and which one it is."""
        split = f" ({self.config['split']})" if self.config.get("split") else ""
        return f"{self.config.get('dataset')}{split}, {self.config.get('num_images')} images, {self.sha256[:16]}"


def log_snr(forward: ForwardProcess) -> np.ndarray:
    r""":math:`\log \mathrm{SNR}_t` within limits, descending, `(K,)`."""
    values = forward.log_alphas_cumprod - forward.log_one_minus_alphas_cumprod
    return values.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).numpy()
