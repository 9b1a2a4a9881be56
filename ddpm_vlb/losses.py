r"""Training objectives (Section 3.4, Ho et al. 2020; Section 3.1, Nichol & Dhariwal 2021), one number per image.

`simple` is the mean squared error of the network's own target. `vlb` is the bound itself: with t uniform over the K steps
of the grid, :math:`K L_t` is an unbiased estimate of :math:`\sum_t L_t`, here in bits per dimension. `hybrid` adds a
little of it to `simple`, so that the network learns its variances from the bound and its mean from the squared error; the
prediction is detached in the second term.
"""

import torch

from .bound import prior_kl, vlb_terms
from .checks import to_working
from .gaussians import nats_to_bits_per_dim
from .pixel_grid import samples_to_levels
from .reverse_process import ReverseProcess

LOSS_TYPES = ("simple", "vlb", "hybrid")
HYBRID_WEIGHT = 1e-3


def simple_loss(
    reverse: ReverseProcess,
    model_output: torch.Tensor,
    original_samples: torch.Tensor,
    noise: torch.Tensor,
    timesteps: int | torch.Tensor,
) -> torch.Tensor:
    r"""Mean squared error per element between the network's prediction and its target (eq. 14, Ho et al. 2020).

    Args:
        reverse: tells what the network predicts.
        model_output: `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned (the second half is left out).
        original_samples, noise: what :math:`x_t` was made of, `(B, C, H, W)`.
        timesteps: an integer, or an integer tensor `(B,)`.

    Returns:
        Shape `(B,)`.
    """
    original_samples, noise = to_working(original_samples=original_samples, noise=noise)
    reverse.forward.rows(timesteps, len(original_samples))
    prediction, _ = reverse.split(model_output, original_samples.shape[1])
    target = reverse.prediction.target(reverse.forward, original_samples, noise, timesteps)
    if prediction.shape != target.shape:
        raise ValueError(
            f"`model_output` must be of the batch and image size of `noise`, {tuple(target.shape)},"
            f" got {tuple(model_output.shape)}."
        )
    # At least float32, whatever the network's dtype.
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return ((prediction.to(dtype) - target.to(dtype)) ** 2).flatten(1).mean(dim=1)


def vlb_loss(
    reverse: ReverseProcess,
    model_output: torch.Tensor,
    original_samples: torch.Tensor,
    noisy_samples: torch.Tensor,
    timesteps: int | torch.Tensor,
    num_pixel_levels: int = 256,
    validate_args: bool = True,
) -> torch.Tensor:
    r""":math:`K L_t` in bits/dim, K the number of steps of the grid (T for the full one).

    Arguments as `ddpm_vlb.bound.vlb_terms`, with all `original_samples` on the pixel grid, whatever t is. The average over
    uniform t is the bound less :math:`L_T`, which no network can change; where the forward process is learnable, :math:`L_T` is
    added, and the average is the bound. Without `validate_args` nobody asks whether images lie on the grid, which waits for the
    device that they are on.

    Returns:
        Bits/dim, shape `(B,)`.

    Raises:
        ValueError: `original_samples` off the grid, and so those in half precision.
    """
    to_working(original_samples=original_samples, noisy_samples=noisy_samples)
    reverse.forward.rows(timesteps, len(original_samples))
    # Asked at every t, and not at t = 0 alone: a training loop that has them wrong is told so by its first batch.
    if original_samples.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            "`original_samples` must be float32 or float64 for the bound, which is of images on the pixel grid, got"
            f" {str(original_samples.dtype)[6:]}. Cast the latents that the network gets, not the images."
        )
    if validate_args:
        samples_to_levels(original_samples, num_pixel_levels, "original_samples")
    terms = vlb_terms(reverse, model_output, original_samples, noisy_samples, timesteps, num_pixel_levels, validate_args=False)
    nats = len(reverse.forward) * terms
    if reverse.forward.is_learnable:
        nats = nats + prior_kl(reverse.forward, original_samples)
    return nats_to_bits_per_dim(nats, original_samples.shape[1:].numel())


def hybrid_loss(
    reverse: ReverseProcess,
    model_output: torch.Tensor,
    original_samples: torch.Tensor,
    noise: torch.Tensor,
    noisy_samples: torch.Tensor,
    timesteps: int | torch.Tensor,
    num_pixel_levels: int = 256,
    validate_args: bool = True,
) -> torch.Tensor:
    r"""`simple_loss + 1e-3 * vlb_loss`, the prediction detached in the second term (eq. 16, Nichol & Dhariwal 2021).

    Arguments and errors as the two losses. Returns shape `(B,)`.
    """
    prediction, variance = reverse.split(model_output, original_samples.shape[1])
    detached = prediction.detach() if variance is None else torch.cat([prediction.detach(), variance], dim=1)
    simple = simple_loss(reverse, model_output, original_samples, noise, timesteps)
    vlb = vlb_loss(reverse, detached, original_samples, noisy_samples, timesteps, num_pixel_levels, validate_args)
    return simple + HYBRID_WEIGHT * vlb
