r"""How far a predicted image is expected to be off, pixel by pixel, and the variances of the reverse steps that follow.

A step from t to s that takes :math:`\hat x` for x is off by :math:`c (x - \hat x)`, c the coefficient of the image in the
posterior mean. With :math:`r^2 = (x - \hat x)^2` and :math:`\Delta = c^2 / \tilde\beta = \mathrm{SNR}(s) - \mathrm{SNR}(t)`,
its expected KL is least for

.. math:: \sigma^2 = \tilde\beta + c^2 e, \qquad e = E[r^2 | x_t],                                                   (1)

in every pixel, where it is

.. math:: L(\Delta) = \tfrac12 \left[ \log(1 + \Delta e) + \Delta \frac{r^2 - e}{1 + \Delta e} \right].              (2)

(With one number for all pixels this is the optimal variance of Analytic-DPM, Bao et al. 2022.) The step's length comes in by
:math:`\Delta` alone: a network that was looked at once at t is known for the steps from t to any s.

**The model of e**, with three numbers for each timestep, none of them negative:

.. math:: e = a_t + b_t\, (1 - \hat x^2)_+ + g_t\, \hat e .                                                          (3)

- :math:`1 - \hat x^2` is the most that the variance of a number in [-1, 1] with mean :math:`\hat x` can be (Bhatia & Davis
  2000). A pixel that is predicted black or white is nearly sure; a grey one may still become either.
- :math:`\hat e` is what a network with learned variances says: (1) solved for e at the step that it was trained for, from t to
  t - 1. It is carried to steps of any length that way, where interpolating between the bounds of that step says little.

What went before is in it: `fixed_small` is a = b = g = 0; `fixed_large` is :math:`a = 1 - \bar\alpha_t`, for all steps alike
(:math:`\beta - \tilde\beta = c^2 (1 - \bar\alpha_t)`); learned variances on the chain of all steps are g = 1.

**The decoder** spreads its mass over the grid of levels with the variance (3) too, with numbers of its own, so that decoding
may start at any noise level.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class ErrorModel:
    r"""The numbers of (3), float64 of shape `(T,)`, for the reverse steps and for the decoder.

    Args:
        offsets, gains, learned_gains: a, b and g.
        decoder_offsets, decoder_gains, decoder_learned_gains: those of the decoder's variance, where it starts at t.
    """

    offsets: torch.Tensor
    gains: torch.Tensor
    learned_gains: torch.Tensor
    decoder_offsets: torch.Tensor
    decoder_gains: torch.Tensor
    decoder_learned_gains: torch.Tensor

    def __post_init__(self):
        for name, values in vars(self).items():
            if not (bool(torch.isfinite(values).all()) and bool((values >= 0).all())):
                raise ValueError(f"`{name}` must be finite and not negative, got {values.tolist()}.")
            if values.shape != self.offsets.shape:
                raise ValueError(f"`{name}` must have the shape {tuple(self.offsets.shape)}, got {tuple(values.shape)}.")
        if not bool((self.decoder_offsets > 0).all()):
            raise ValueError("`decoder_offsets` must be positive: a decoder without spread calls some images impossible.")


def features_of(pred_original_sample: torch.Tensor, learned_errors: torch.Tensor | None) -> torch.Tensor:
    r"""What (3) is linear in: 1, :math:`(1 - \hat x^2)_+` and, where there is one, :math:`\hat e`; `(F, *)` for shape `*`."""
    x = pred_original_sample
    parts = [torch.ones_like(x), (1 - x.square()).clamp(min=0.0)]
    return torch.stack(parts if learned_errors is None else [*parts, learned_errors])


def step_costs(errors: torch.Tensor, squared_errors: torch.Tensor, deltas: torch.Tensor) -> torch.Tensor:
    r"""(2), the mean over pixels.

    Args:
        errors, squared_errors: e and :math:`r^2`, `(N, D)`.
        deltas: :math:`\Delta`, `(R,)`.

    Returns:
        Nats per dimension, `(N, R)`.
    """
    costs = []
    for delta in deltas:
        scaled = delta * errors
        costs.append(0.5 * (torch.log1p(scaled) + delta * (squared_errors - errors) / (1 + scaled)).mean(dim=1))
    return torch.stack(costs, dim=1)
