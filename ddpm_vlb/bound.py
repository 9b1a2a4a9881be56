r"""The variational bound on the negative log-likelihood, term by term (eq. 5, Ho et al. 2020).

.. math::
    -\log p(x) \le L &= E_q\left[ -\log p(x_T) - \sum_{t} \log \frac{p(x_s | x_t)}{q(x_t | x_s)} \right] & \text{(eq. 3)} \\
    &= \underbrace{D_{KL}(q(x_T | x) \| p(x_T))}_{L_T}
     + \sum_{t > 0} E_q \underbrace{D_{KL}(q(x_s | x_t, x) \| p(x_s | x_t))}_{L_t}
       \underbrace{- \; E_q \log p(x | x_0)}_{L_0}                                              & \text{(eq. 5)}

with zero-based t: :math:`L_0` is the decoder's term, at the lowest step of the grid. The first line compares densities along
one sampled trajectory (`trajectory_bound`). The second puts a closed-form KL in place of each sampled log-ratio
:math:`\log q(x_s | x_t, x) - \log p(x_s | x_t)`: its expectation given :math:`(x_t, x)`. That is Rao-Blackwellisation: the same
mean and, term by term, never more variance. (Of the sums no such thing holds for every model. The errors of a trajectory's
log-ratios can cancel; under a perfect model they do to the last digit, and the first form is :math:`-\log p(x)` each time.)

Both Gaussians of :math:`L_t` have means :math:`\tilde\mu_t` at the true and the predicted image, so that with
:math:`c_t` the coefficient of the image in :math:`\tilde\mu_t`,

.. math::
    L_t = \sum_{\text{dims}} \tfrac12 \left[ e^{d} - 1 - d + c_t^2 e^{-\log\sigma_t^2} (x - \hat x)^2 \right],
    \qquad d = \log\tilde\beta_t - \log\sigma_t^2 .

The difference of the two means is never formed. With :math:`\sigma_t^2 = \tilde\beta_t` it is
:math:`\tfrac12 (\mathrm{SNR}(s) - \mathrm{SNR}(t)) \|x - \hat x\|^2` (Section 4, Kingma et al. 2021).

A draw in place of the expectation, at :math:`x_s = \tilde\mu_t + \tilde\beta_t^{1/2} \epsilon`, adds terms of mean zero to that
(`sampled_transition`). With :math:`\delta = c_t (x - \hat x) / \sigma_t`, the difference of the means in units of
:math:`\sigma_t`,

.. math::
    \log \frac{q(x_s | x_t, x)}{p(x_s | x_t)}
    = \sum_{\text{dims}} \tfrac12 \left[ (\delta + e^{d/2} \epsilon)^2 - \epsilon^2 - d \right]
    = L_t + \sum_{\text{dims}} \left[ \tfrac12 (e^d - 1) (\epsilon^2 - 1) + \delta e^{d/2} \epsilon \right] .

Every function returns nats per image, shape `(B,)`, in the working dtype (float64).
"""

from collections.abc import Callable, Iterable

import torch

from .checks import to_working
from .forward_process import ForwardProcess, Rows
from .gaussians import discretized_gaussian_log_likelihood, normal_log_density, variance_gap
from .noise import to_device
from .reverse_process import ReverseProcess

# What `ReverseProcess.predict` says: the image, and the log-variance that broadcasts with it.
Predicted = tuple[torch.Tensor, torch.Tensor]


def prior_kl(forward: ForwardProcess, original_samples: torch.Tensor) -> torch.Tensor:
    r""":math:`L_T = D_{KL}(q(x_T | x) \| N(0, I))`, with T the highest timestep of the grid.

    Args:
        forward: the forward process that is scored.
        original_samples: images, `(B, C, H, W)`.

    Returns:
        Nats, shape `(B,)`.
    """
    (x,) = to_working(original_samples=original_samples)
    # Scalars on the CPU take part in arithmetic on any device, and carry the gradients of a learnable process.
    alpha_bar, log_variance = forward.alphas_cumprod[-1], forward.log_one_minus_alphas_cumprod[-1]
    # normal_kl(mean, log(1 - a), 0, 0) = (-log(1 - a) - a + mean^2) / 2, with the a's of 1 - a and of mean^2 = a x^2.
    return _sum_dims(0.5 * ((-log_variance - alpha_bar).clamp(min=0.0) + alpha_bar * x**2))


def transition_kl(
    reverse: ReverseProcess,
    model_output: torch.Tensor,
    original_samples: torch.Tensor,
    noisy_samples: torch.Tensor,
    timesteps: int | torch.Tensor | Rows,
) -> torch.Tensor:
    r""":math:`L_t = D_{KL}(q(x_s | x_t, x) \| p(x_s | x_t))` for timesteps above the lowest one.

    Args:
        reverse: the reverse process that is scored.
        model_output: the network's output at `noisy_samples`, `(B, C, H, W)` or `(B, 2C, H, W)`.
        original_samples, noisy_samples: images and latents, `(B, C, H, W)`.
        timesteps: an integer, or an integer tensor `(B,)`.

    Returns:
        Nats, shape `(B,)`; never negative.
    """
    x, _ = to_working(original_samples=original_samples, noisy_samples=noisy_samples)
    return _transition_kl(reverse.forward, reverse.predict(model_output, noisy_samples, timesteps), x, timesteps)


def _transition_kl(forward: ForwardProcess, predicted: Predicted, x: torch.Tensor, timesteps) -> torch.Tensor:
    _, gap, weight, error = _compare(forward, predicted, x, timesteps)
    if gap.numel() in (1, len(error)):
        # Of one variance for an image, the sum over its pixels first.
        return 0.5 * (gap.reshape(-1) * error[0].numel() + weight.reshape(-1) * _sum_dims(error.square()))
    return _sum_dims(0.5 * (gap + weight * error.square()))


def sampled_transition(
    reverse: ReverseProcess,
    model_output: torch.Tensor,
    original_samples: torch.Tensor,
    noisy_samples: torch.Tensor,
    timesteps: int | torch.Tensor | Rows,
    noise: torch.Tensor,
) -> torch.Tensor:
    r""":math:`\log q(x_s | x_t, x) - \log p(x_s | x_t)` at an :math:`x_s` drawn from q: what `transition_kl` is the mean of.

    Arguments as `transition_kl`, and:
        noise: standard normal, of the shape of `original_samples`: the draw is the posterior's mean and so many of its
            standard deviations.

    Returns:
        Nats, shape `(B,)`; it may be negative.

    Raises:
        ValueError: `noise` of another shape.
    """
    x, _, noise = to_working(original_samples=original_samples, noisy_samples=noisy_samples, noise=noise)
    predicted = reverse.predict(model_output, noisy_samples, timesteps)
    log_ratio, gap, weight, error = _compare(reverse.forward, predicted, x, timesteps)
    closed_form = 0.5 * (gap + weight * error**2)
    added = 0.5 * torch.expm1(log_ratio) * (noise**2 - 1) + weight.sqrt() * error * torch.exp(0.5 * log_ratio) * noise
    return _sum_dims(closed_form + added)


def _compare(
    forward: ForwardProcess, predicted: Predicted, x: torch.Tensor, timesteps: int | torch.Tensor | Rows
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""By what the Gaussians of :math:`L_t` differ: :math:`d, e^d - 1 - d, c_t^2 / \sigma_t^2` and :math:`x - \hat x`."""
    pred_original_sample, log_variance = predicted
    posterior_log_variance = forward.gather(forward.posterior_log_variance, timesteps, pred_original_sample)
    log_ratio = posterior_log_variance - log_variance
    gap = variance_gap(log_ratio)
    weight = forward.gather(forward.posterior_mean_coef1, timesteps, pred_original_sample) ** 2 * torch.exp(-log_variance)
    return log_ratio, gap, weight, x - pred_original_sample


def decoder_nll(
    reverse: ReverseProcess,
    model_output: torch.Tensor,
    original_samples: torch.Tensor,
    noisy_samples: torch.Tensor,
    timesteps: int | torch.Tensor | Rows,
    num_pixel_levels: int = 256,
    validate_args: bool = True,
) -> torch.Tensor:
    r""":math:`L_0 = -\log p(x | x_0)`, the discretised Gaussian decoder at the lowest timestep of the grid.

    Arguments as `transition_kl`, and:
        num_pixel_levels: number of levels of the grid on which `original_samples` lie.
        validate_args: check that they do; this reads them back from an accelerator.

    Returns:
        Nats, shape `(B,)`; not negative.

    Raises:
        ValueError: `original_samples` off the grid.
    """
    x, _ = to_working(original_samples=original_samples, noisy_samples=noisy_samples)
    predicted = reverse.predict(model_output, noisy_samples, timesteps)
    return _decoder_nll(predicted, x, num_pixel_levels, validate_args)


def _decoder_nll(predicted: Predicted, x: torch.Tensor, num_pixel_levels: int, validate_args: bool) -> torch.Tensor:
    mean, log_variance = predicted  # the posterior mean at the lowest step is the predicted image itself
    log_likelihood = discretized_gaussian_log_likelihood(
        x,
        mean=mean,
        log_variance=log_variance,
        num_pixel_levels=num_pixel_levels,
        validate_args=validate_args,
    )
    return -_sum_dims(log_likelihood)


def vlb_terms(
    reverse: ReverseProcess,
    model_output: torch.Tensor,
    original_samples: torch.Tensor,
    noisy_samples: torch.Tensor,
    timesteps: int | torch.Tensor | Rows,
    num_pixel_levels: int = 256,
    validate_args: bool = True,
) -> torch.Tensor:
    r"""`decoder_nll` for the images at the lowest timestep, `transition_kl` for the others.

    Arguments and errors as `decoder_nll`. Returns nats, shape `(B,)`.
    """
    forward = reverse.forward
    timesteps = forward.look_up(timesteps, len(noisy_samples))
    rows = torch.as_tensor(forward.rows(timesteps, len(noisy_samples))).reshape(-1)
    index = (rows == 0).nonzero().flatten()
    x, _ = to_working(original_samples=original_samples, noisy_samples=noisy_samples)
    predicted = reverse.predict(model_output, noisy_samples, timesteps)
    if not len(index):
        return _transition_kl(forward, predicted, x, timesteps)
    if len(index) == rows.numel():
        return _decoder_nll(predicted, x, num_pixel_levels, validate_args)
    # All as transitions, those of the lowest step to what they would be of the next; then the decoder's own in their place.
    terms = _transition_kl(forward, predicted, x, Rows(forward, rows.clamp(min=1)))
    on_device = to_device(index, noisy_samples.device)
    mean, log_variance, x = (part.index_select(0, on_device) for part in (*predicted, x))
    decoded = _decoder_nll((mean, log_variance), x, num_pixel_levels, validate_args)
    return terms.index_copy(0, on_device, decoded)


def step_log_prob(
    reverse: ReverseProcess,
    prev_samples: torch.Tensor,
    model_output: torch.Tensor,
    noisy_samples: torch.Tensor,
    timesteps: int | torch.Tensor | Rows,
    num_pixel_levels: int | None = None,
) -> torch.Tensor:
    r""":math:`\log p(x_s | x_t)` of a step that was taken: what the first form of the bound sums, and a policy gradient weighs.

    Args:
        reverse, model_output, noisy_samples, timesteps: as `transition_kl`.
        prev_samples: the latents :math:`x_s` one step of the grid below `timesteps` (the image at the lowest one).
        num_pixel_levels: at the lowest timestep the log-probability of the discretised decoder, for images on the grid of so
            many levels; `None` for the density of its Gaussian, for any images.

    Returns:
        Nats, shape `(B,)`; finite for finite arguments. A density may be positive.

    Raises:
        ValueError: `prev_samples` of another shape, or off the grid where they are to be on it.
    """
    x_s, x_t = to_working(prev_samples=prev_samples, noisy_samples=noisy_samples)
    pred_original_sample, log_variance = reverse.predict(model_output, noisy_samples, timesteps)
    mean = reverse.forward.posterior_mean(pred_original_sample, x_t, timesteps)
    log_prob = normal_log_density(x_s, mean, log_variance)
    lowest = torch.as_tensor(reverse.forward.rows(timesteps, len(x_t))) == 0
    if num_pixel_levels is not None and lowest.any():
        index = lowest.expand(len(x_t)).nonzero().squeeze(1).to(x_t.device)
        decoded = discretized_gaussian_log_likelihood(
            x_s[index],
            mean=mean[index],
            log_variance=log_variance.expand_as(mean)[index],
            num_pixel_levels=num_pixel_levels,
        )
        log_prob = log_prob.index_copy(0, index, decoded)
    return _sum_dims(log_prob)


def trajectory_bound(
    reverse: ReverseProcess,
    predict: Callable[[torch.Tensor, int], torch.Tensor],
    original_samples: torch.Tensor,
    num_pixel_levels: int = 256,
    generator: torch.Generator | None = None,
    noises: Iterable[torch.Tensor] | None = None,
) -> torch.Tensor:
    r"""The bound in its first form (eq. 3): log-densities along one sampled trajectory :math:`x_0, \dots, x_T \sim q`.

    The same expectation as the sum of the three terms; see the head of this module for the variance.

    Args:
        reverse: the reverse process that is scored.
        predict: the network, called as `predict(noisy_samples, timestep)`.
        original_samples: images on the pixel grid, `(B, C, H, W)`.
        num_pixel_levels: number of levels of that grid.
        generator: source of the trajectory's noise.
        noises: the noise itself in place of it, standard normal, one `(B, C, H, W)` for each timestep of the grid, ascending.

    Returns:
        One unbiased sample of the bound per image, nats, shape `(B,)`; it may be negative.
    """
    forward = reverse.forward
    (x_s,) = to_working(original_samples=original_samples)
    total = torch.zeros(len(x_s), dtype=x_s.dtype, device=x_s.device)
    if noises is None:
        noises = (torch.randn(x_s.shape, generator=generator, dtype=x_s.dtype, device=x_s.device) for _ in range(len(forward)))
    for row, (timestep, noise) in enumerate(zip(forward.timesteps.tolist(), noises)):
        q = forward.q_step_mean_variance(x_s, timestep)
        x_t = q.mean + q.variance.sqrt() * noise.to(x_s)
        model_output = predict(x_t, timestep)
        if row == 0:
            total += decoder_nll(reverse, model_output, original_samples, x_t, timestep, num_pixel_levels)
        else:
            total -= step_log_prob(reverse, x_s, model_output, x_t, timestep)
        total += _sum_dims(normal_log_density(x_t, q.mean, q.log_variance))
        x_s = x_t
    return total - _sum_dims(normal_log_density(x_s, 0.0, 0.0))


def _sum_dims(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).sum(dim=1)
