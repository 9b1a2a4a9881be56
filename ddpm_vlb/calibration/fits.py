r"""The numbers of an `ErrorModel`, fitted at one timestep to predictions of images that are known.

Of the reverse steps they minimise the expected KL, eq. (2) of `error_model.py`, at a length of step that is given; of the
decoder, its own negative log-likelihood.
"""

import math
from collections.abc import Callable

import torch

from ..gaussians import discretized_gaussian_log_likelihood

SMALLEST, LARGEST = 1e-12, 4.0  # the square of the distance from black to white


def fit_errors(features: torch.Tensor, squared_errors: torch.Tensor, delta: float) -> torch.Tensor:
    r"""The numbers of (3) that minimise (2) for steps of length `delta`.

    Args:
        features: `(F, N, D)`, not negative.
        squared_errors: `(N, D)`.
        delta: positive.

    Returns:
        Not negative, `(F,)`.
    """
    features, squares = features.flatten(1), squared_errors.flatten()
    start = torch.full((len(features),), squares.mean().item() / len(features), dtype=torch.float64)

    def cost(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # (2) but for what no number changes.
        v = 1 + delta * (numbers @ features)
        ratio = (1 + delta * squares) / v
        return 0.5 * (v.log() + ratio).mean(), 0.5 * delta / len(v) * (features @ ((1 - ratio) / v))

    return _minimize(cost, features, start, torch.full_like(start, SMALLEST))


def fit_decoder(
    features: torch.Tensor,
    samples: torch.Tensor,
    pred_original_sample: torch.Tensor,
    num_pixel_levels: int,
    start: torch.Tensor,
) -> torch.Tensor:
    r"""The numbers of (3) that minimise the decoder's :math:`-\log p(x | x_t)`.

    Args:
        features: `(F, N)`, of as many pixels as shall count.
        samples, pred_original_sample: those pixels and their predictions, `(N,)`.
        num_pixel_levels: of the images' grid.
        start: where to begin, `(F,)`.

    Returns:
        `(F,)`, the first positive.
    """
    # Where the next level is five standard deviations away nothing is gained by more, and a pixel that is off by one after
    # all, as none of these were, would cost hundreds of nats.
    floor = torch.full_like(start, SMALLEST)
    floor[0] = (0.2 / (num_pixel_levels - 1)) ** 2

    @torch.enable_grad()
    def cost(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = numbers.requires_grad_()
        likelihood = discretized_gaussian_log_likelihood(
            samples,
            mean=pred_original_sample,
            log_variance=torch.log(numbers @ features),
            num_pixel_levels=num_pixel_levels,
            validate_args=False,
        )
        value = -likelihood.mean()
        return value.detach(), torch.autograd.grad(value, numbers)[0]

    return _minimize(cost, features, start, floor)


def _minimize(
    cost: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    features: torch.Tensor,
    start: torch.Tensor,
    floor: torch.Tensor,
) -> torch.Tensor:
    r"""The numbers of least cost, which comes with its gradient, none below `floor`; those of features that are nowhere but
    zero, and those that reach the smallest number there is, are zero."""
    from scipy.optimize import minimize

    def of_logs(logs):
        numbers = torch.from_numpy(logs).exp()
        value, gradient = cost(numbers)
        return value.item(), (gradient * numbers).detach().numpy()

    bounds = list(zip(floor.log().tolist(), [math.log(LARGEST)] * len(floor)))
    first = torch.maximum(start, floor).clamp(max=LARGEST).log()
    best = minimize(of_logs, first.numpy(), jac=True, method="L-BFGS-B", bounds=bounds)
    numbers = torch.tensor(best.x, dtype=torch.float64).exp()
    return torch.where((features.amax(dim=1) > 0) & (numbers > 2 * SMALLEST), numbers, 0.0)
