r"""The importance-weighted bound, on a model whose bound and likelihood are known."""

import math

import pytest
import torch
from analytic import GaussianDenoiser, gaussian_bound_and_nll
from tiny import generator, quiet, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.likelihoods.importance_weighted import importance_weighted_nll, summarize_weights

STEPS, LEVEL, PIXELS = 8, 150, 16


@pytest.fixture(scope="module")
def gaussian():
    r"""The optimal denoiser with reverse variances that are not optimal, and an image's bound and likelihood in bits/dim."""
    scheduler = VLBDDPMScheduler(STEPS, 0.02, 0.7, clip_sample=False)
    betas = scheduler.betas.double().numpy()
    pipe = quiet(VLBDDPMPipeline(GaussianDenoiser(scheduler.forward_process().alphas_cumprod.tolist()), scheduler))
    terms, prior, nll = gaussian_bound_and_nll(2 * LEVEL / 255 - 1, betas, range(STEPS))
    return pipe, (terms.sum() + prior) / math.log(2), nll / math.log(2)


def repeated(count):
    return torch.full((count, 1, 4, 4), LEVEL, dtype=torch.uint8)


def mean_and_error(values):
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def test_it_goes_from_the_bound_to_the_likelihood(gaussian):
    pipe, bound, nll = gaussian
    assert bound > nll + 0.05  # there is something to gain
    means, errors = [], []
    for k, count in ((1, 4000), (4, 1000), (16, 400), (64, 200), (256, 100)):
        result = importance_weighted_nll(pipe, repeated(count), k, batch_size=8192, seed=k)
        mean, error = mean_and_error(result.bits_per_dim)
        assert mean > nll - 4 * error
        means.append(mean), errors.append(error)
        # By itself, each trajectory gives the bound.
        vlb, vlb_error = mean_and_error(result.vlb)
        assert abs(vlb - bound) < 4 * vlb_error
        assert result.num_network_evaluations == k * count * STEPS
    assert abs(means[0] - bound) < 4 * errors[0]
    for (a, b), (e, f) in zip(zip(means, means[1:]), zip(errors, errors[1:])):
        assert b < a + 3 * math.hypot(e, f)
    assert means[-1] - nll < 0.3 * (bound - nll)


def test_an_image_depends_on_no_batch(gaussian):
    pipe, _, _ = gaussian
    images = torch.randint(256, (5, 1, 4, 4), generator=generator()).to(torch.uint8)
    whole = importance_weighted_nll(pipe, images, 6)
    again = importance_weighted_nll(pipe, images, 6, batch_size=4)
    assert torch.allclose(whole.bits_per_dim, again.bits_per_dim, rtol=1e-12)
    assert torch.allclose(whole.bits_per_dim[:2], importance_weighted_nll(pipe, images[:2], 6).bits_per_dim, rtol=1e-12)
    assert (importance_weighted_nll(pipe, images, 6, seed=1).bits_per_dim != whole.bits_per_dim).all()


def test_it_is_of_the_model_that_is_scored(images):
    r"""With learned variances, clipping, classes and a sub-sequence, one trajectory is the bound in expectation."""
    scheduler = VLBDDPMScheduler(20, 0.002, 0.3, variance_type="learned_range", num_pixel_levels=17)
    pipe = quiet(VLBDDPMPipeline(tiny_unet(out_channels=2, num_class_embeds=3), scheduler))
    options = {"num_inference_steps": 5, "class_labels": 2}
    few = images[:2].repeat(150, 1, 1, 1)
    once = importance_weighted_nll(pipe, few, 1, **options).bits_per_dim
    swept = pipe.evaluate_nll(few, generator=generator(), **options).bits_per_dim
    difference = once - swept
    assert abs(difference.mean()) < 4 * difference.std() / 300**0.5


def test_weights_are_put_together():
    weights = torch.log(torch.tensor([[1.0, 3.0], [2.0, 2.0], [1.0, 0.0]], dtype=torch.float64))
    result = summarize_weights(weights, 1, 6)
    expected = -torch.tensor([2.0, 2.0, 0.5], dtype=torch.float64).log2()
    assert torch.allclose(result.bits_per_dim, expected)
    assert torch.allclose(result.effective_sample_size, torch.tensor([1.6, 2.0, 1.0], dtype=torch.float64))
    # Weights of thousands of nats.
    far = summarize_weights(weights[:2] - 5000, 1, 4)
    assert torch.allclose(far.bits_per_dim - 5000 / math.log(2), expected[:2], atol=1e-9)
    assert torch.allclose(far.effective_sample_size, result.effective_sample_size[:2])


def test_what_is_refused(pipe, images):
    with pytest.raises(ValueError, match="`k` must be a positive integer, got 0"):
        importance_weighted_nll(pipe, images, 0)
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer, got 1.5"):
        importance_weighted_nll(pipe, images, 2, batch_size=1.5)
    with pytest.raises(ValueError, match="`class_labels` must be left out"):
        importance_weighted_nll(pipe, images, 2, class_labels=1)
    pipe.unet.conv_out.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="`unet` must give finite outputs, got a weight that is not for image 0"):
        importance_weighted_nll(pipe, images, 2)
