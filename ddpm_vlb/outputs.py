r"""What scoring returns, and how it is shown: as a line, as a table, as a data frame.

A result holds a number for every image, or for every step. Printed, all of them are pages: what is shown is their mean, its
error, of how many images, and what it took.
"""

import html
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.utils import BaseOutput


class Shown:
    r"""A result of scoring: a dataclass of `repr=False`, whose `_head`, `_details` and `_columns` say what is shown."""

    def _head(self) -> dict[str, Any]:
        r"""What a line says, by its name: texts, or numbers."""
        raise NotImplementedError

    def _details(self) -> dict[str, Any]:
        r"""What a table says besides."""
        return {}

    def _columns(self) -> dict[str, Any]:
        r"""Of the data frame: vectors of one length, whose first names the rows."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name} {_text(value)}' for name, value in self._head().items())})"

    def summary(self) -> str:
        r"""The result in a few lines, one for each number."""
        rows = self._head() | self._details()
        width = max(map(len, rows))
        return "\n".join(f"{name:{width}}  {_text(value)}" for name, value in rows.items())

    def _repr_html_(self) -> str:
        r"""The result as a table, for notebooks."""
        rows = (self._head() | self._details()).items()
        cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(_text(value))}</td></tr>" for name, value in rows)
        return f"<table>{''.join(cells)}</table>"

    def to_pandas(self):
        r"""The numbers of every image, or of every step, as a `pandas.DataFrame`, a row each.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("`to_pandas` needs pandas, which is not installed: pip install pandas.") from error
        columns = {name: torch.as_tensor(values).numpy() for name, values in self._columns().items()}
        return pandas.DataFrame(columns).set_index(next(iter(columns)))


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def mean_of_images(bits_per_dim: torch.Tensor, num_network_evaluations: int) -> dict[str, Any]:
    r"""The mean of images' numbers `(N,)`, its standard error over them, N, and what it took: a head."""
    count = len(bits_per_dim)
    error = {"standard error": bits_per_dim.std().item() / count**0.5} if count > 1 else {}
    return {
        "bits/dim": bits_per_dim.mean().item(),
        **error,
        "images": count,
        "network evaluations": num_network_evaluations,
    }


@dataclass(repr=False)
class VLBOutput(Shown, BaseOutput):
    r"""The variational bound of N images.

    Args:
        bits_per_dim (`torch.Tensor` of shape `(N,)`): The bound on the negative log-likelihood, in bits per dimension:
            `prior + transitions_total + decoder`.
        prior (`torch.Tensor` of shape `(N,)`): :math:`L_T`, in bits/dim.
        transitions (`torch.Tensor` of shape `(N, K - 1)`): The KL terms :math:`L_t`, ascending in t, in bits/dim; `None` where
            they were sampled.
        transitions_total (`torch.Tensor` of shape `(N,)`): The sum of the KL terms, in bits/dim.
        decoder (`torch.Tensor` of shape `(N,)`): :math:`L_0`, in bits/dim.
        timesteps (`torch.Tensor` of shape `(K - 1,)`): The timesteps of the columns of `transitions`.
        num_network_evaluations (`int`): Network evaluations, each of one image at one timestep.
        config (`dict`): What was scored, and with what.
        monte_carlo_error, degrees_of_freedom (`torch.Tensor` of shape `(N,)`): Standard error of each image's `bits_per_dim`,
            given the image, and its degrees of freedom, for Student's distribution; `None` for a full sweep.
    """

    bits_per_dim: torch.Tensor
    prior: torch.Tensor
    transitions: torch.Tensor | None
    transitions_total: torch.Tensor
    decoder: torch.Tensor
    timesteps: torch.Tensor
    num_network_evaluations: int
    config: dict[str, Any]
    monte_carlo_error: torch.Tensor | None = None
    degrees_of_freedom: torch.Tensor | None = None

    def _head(self) -> dict[str, Any]:
        head = mean_of_images(self.bits_per_dim, self.num_network_evaluations)
        if self.monte_carlo_error is not None:
            # Of an image, not of the mean: the images' estimates have the fits of the pilot in common.
            head["Monte Carlo error of an image"] = self.monte_carlo_error.square().mean().sqrt().item()
        return head

    def _details(self) -> dict[str, Any]:
        names = ("num_steps", "num_train_timesteps", "num_pixel_levels", "variance_type", "clip_sample", "dtype", "seed")
        return {
            "L_T prior": self.prior.mean().item(),
            "L_t KL terms": self.transitions_total.mean().item(),
            "L_0 decoder": self.decoder.mean().item(),
            **{name: self.config[name] for name in names if name in self.config},
        }

    def _columns(self) -> dict[str, Any]:
        columns = {"image": range(len(self.bits_per_dim))}
        columns |= {name: self[name] for name in ("bits_per_dim", "prior", "transitions_total", "decoder")}
        errors = {name: self.get(name) for name in ("monte_carlo_error", "degrees_of_freedom") if self.get(name) is not None}
        return columns | errors


@dataclass
class VLBDDPMSchedulerOutput(DDPMSchedulerOutput):
    r"""
    What `step` returns with `return_log_prob=True`.

    Args:
        prev_sample, pred_original_sample (`torch.Tensor` of shape `(B, C, H, W)`): As in `DDPMSchedulerOutput`.
        log_prob (`torch.Tensor` of shape `(B,)`): :math:`\log p(x_s | x_t)` at `prev_sample`, in nats per image, float64.
    """

    log_prob: torch.Tensor | None = None
