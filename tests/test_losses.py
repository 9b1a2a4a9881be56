import math

import pytest
import torch
from tiny import generator

from ddpm_vlb import VLBDDPMScheduler
from ddpm_vlb.pixel_grid import levels_to_samples


def batch(scheduler, steps, seed=0):
    x = levels_to_samples(torch.randint(17, (len(steps), 1, 4, 4), generator=generator(seed)), 17, torch.float32)
    noise = torch.randn(x.shape, generator=generator(seed + 1))
    return x, noise, scheduler.add_noise(x, noise, steps)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_simple_is_the_mean_squared_error_of_the_networks_target(prediction_type):
    scheduler = VLBDDPMScheduler(prediction_type=prediction_type, num_pixel_levels=17)
    steps = torch.tensor([0, 10, 999])
    x, noise, latents = batch(scheduler, steps)
    target = {"epsilon": noise, "sample": x, "v_prediction": scheduler.get_velocity(x, noise, steps)}[prediction_type]
    assert (scheduler.training_loss(target, x, noise, latents, steps) < 1e-10).all()
    assert torch.allclose(scheduler.training_loss(target + 0.5, x, noise, latents, steps), torch.tensor(0.25), rtol=1e-5)


def test_vlb_is_t_times_the_term_in_bits_per_dim():
    scheduler = VLBDDPMScheduler(num_pixel_levels=17, clip_sample=False)
    steps = torch.tensor([0, 10, 999])
    x, noise, latents = batch(scheduler, steps)
    output = noise + 0.1
    terms = scheduler.vlb_terms(output, x, latents, steps)
    loss = scheduler.training_loss(output, x, noise, latents, steps, loss_type="vlb")
    assert torch.allclose(loss, 1000 * terms / (16 * math.log(2)), rtol=1e-12)
    grid = [999, 10, 0]
    terms = scheduler.vlb_terms(output, x, latents, steps, inference_timesteps=grid)
    loss = scheduler.training_loss(output, x, noise, latents, steps, loss_type="vlb", inference_timesteps=grid)
    assert torch.allclose(loss, 3 * terms / (16 * math.log(2)), rtol=1e-12)


def test_hybrid_teaches_the_mean_by_squared_error_and_the_variance_by_the_bound():
    scheduler = VLBDDPMScheduler(variance_type="learned_range", num_pixel_levels=17)
    steps = torch.tensor([0, 10, 999])
    x, noise, latents = batch(scheduler, steps)

    def gradient(loss_type):
        output = torch.cat([noise + 0.1, 0.3 * noise], dim=1).requires_grad_()
        loss = scheduler.training_loss(output, x, noise, latents, steps, loss_type=loss_type)
        loss.sum().backward()
        return loss.detach(), output.grad

    (simple, simple_grad), (vlb, vlb_grad), (hybrid, hybrid_grad) = map(gradient, ("simple", "vlb", "hybrid"))
    assert torch.allclose(hybrid, simple + 1e-3 * vlb)
    assert torch.allclose(hybrid_grad[:, :1], simple_grad[:, :1]) and (simple_grad[:, 1:] == 0).all()
    assert torch.allclose(hybrid_grad[:, 1:], 1e-3 * vlb_grad[:, 1:]) and (vlb_grad[:, 1:] != 0).any()


def test_clipping_is_honoured_as_configured_and_can_be_overridden():
    steps = torch.tensor([500])
    scheduler = VLBDDPMScheduler(prediction_type="sample", num_pixel_levels=17)
    x, noise, latents = batch(scheduler, steps)
    output = torch.full_like(x, 1.5).requires_grad_()
    for clip_sample in (None, True, False):
        loss = scheduler.training_loss(output, x, noise, latents, steps, loss_type="vlb", clip_sample=clip_sample)
        terms = scheduler.vlb_terms(output, x, latents, steps, clip_sample=clip_sample)
        assert torch.allclose(loss, 1000 * terms / (16 * math.log(2)), rtol=1e-12)
        (gradient,) = torch.autograd.grad(loss.sum(), output)
        assert (gradient != 0).all() == (clip_sample is False)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
def test_an_output_that_is_not_finite_has_no_terms_and_no_gradient(variance_type, value):
    scheduler = VLBDDPMScheduler(num_pixel_levels=17, variance_type=variance_type)
    steps = torch.tensor([0, 0, 500, 500])
    x, noise, latents = batch(scheduler, steps)
    output = torch.cat([noise, noise], dim=1) if variance_type == "learned_range" else noise.clone()
    broken = output.clone()
    broken[[1, 3], -1, 2, 3] = value  # which clipping would hide in the mean, and `simple` in the variance
    good = [True, False, True, False]

    def terms_of(output):
        yield scheduler.vlb_terms(output, x, latents, steps)
        for loss_type in ("simple", "vlb", "hybrid"):
            yield scheduler.training_loss(output, x, noise, latents, steps, loss_type)
        yield from scheduler.p_mean_variance(output, latents, steps)[::3]

    for whole, part in zip(terms_of(output), terms_of(broken)):
        assert torch.isfinite(part).reshape(4, -1).all(dim=1).tolist() == good
        assert torch.isnan(part[[1, 3]]).all() and torch.equal(part[[0, 2]], whole[[0, 2]])
    broken.requires_grad_()
    scheduler.training_loss(broken, x, noise, latents, steps).sum().backward()
    # A scaler of half-precision gradients leaves such a step out.
    assert torch.isnan(broken.grad[[1, 3], 0]).all() and torch.isfinite(broken.grad[[0, 2]]).all()


def test_refusals():
    scheduler = VLBDDPMScheduler()
    x = torch.zeros(2, 1, 4, 4)
    for timesteps in (-1, 1000, 1.0, None, "1", torch.tensor([1, 2, 3]), torch.tensor([0.5, 1.0])):
        for loss_type in ("simple", "vlb", "hybrid"):
            with pytest.raises(ValueError, match="`timesteps` must"):
                scheduler.training_loss(x, x, x, x, timesteps, loss_type=loss_type)
    three = torch.zeros(2, 3, 4, 4)
    for arguments in ((x, three, x, x), (x, x, x[:1], x), (x[:1], x, x, x), (three, x, x, x), (x, x.to(torch.uint8), x, x)):
        with pytest.raises(ValueError, match="must (have|be)"):
            scheduler.training_loss(*arguments, 5, loss_type="hybrid")


def test_half_precision_outputs_are_compared_in_float32():
    scheduler = VLBDDPMScheduler(num_pixel_levels=17)
    x, noise, latents = batch(scheduler, torch.tensor([5]))
    loss = scheduler.training_loss(noise.bfloat16(), x, noise, latents, torch.tensor([5]))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(((noise.bfloat16().float() - noise) ** 2).mean().item())


def test_unknown_loss_type():
    scheduler = VLBDDPMScheduler()
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="`loss_type` must be one of .* got 'mse'"):
        scheduler.training_loss(x, x, x, x, 3, loss_type="mse")


@pytest.mark.parametrize("loss_type", ["vlb", "hybrid"])
def test_images_off_the_grid_are_refused_at_every_timestep(loss_type):
    scheduler = VLBDDPMScheduler(num_pixel_levels=17, variance_type="learned_range")
    for t in (0, 1, 999):
        steps = torch.tensor([t, 500])
        x, noise, latents = batch(scheduler, steps)
        output = torch.cat([noise, noise], dim=1)
        for dtype in (torch.float16, torch.bfloat16):
            with pytest.raises(ValueError, match=f"`original_samples` must be float32 or float64.*got {str(dtype)[6:]}"):
                scheduler.training_loss(output, x.to(dtype), noise.to(dtype), latents.to(dtype), steps, loss_type)
        with pytest.raises(ValueError, match="`original_samples` must lie on the grid"):
            scheduler.training_loss(output, x + 0.01, noise, latents, steps, loss_type)
        # The network's own precision is its own affair.
        assert scheduler.training_loss(output.bfloat16(), x, noise, latents.bfloat16(), steps, loss_type).isfinite().all()


@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
@pytest.mark.parametrize("loss_type", ["simple", "vlb", "hybrid"])
def test_a_loss_of_images_made_of_levels_never_waits_for_the_device(loss_type, variance_type):
    r"""As `test_scoring_never_waits_for_the_device`, with gradients; and it is the loss of images that are looked at."""
    scheduler = VLBDDPMScheduler(num_pixel_levels=17, variance_type=variance_type)
    steps = torch.tensor([0, 10, 999])
    x, noise, latents = batch(scheduler, steps)
    output = torch.cat([noise, noise], dim=1) if variance_type == "learned_range" else noise
    looked_at = scheduler.training_loss(output, x, noise, latents, steps, loss_type)
    assert torch.equal(scheduler.training_loss(output, x, noise, latents, steps, loss_type, validate_args=False), looked_at)
    x, noise, latents = (tensor.to("meta") for tensor in (x, noise, latents))
    output = output.to("meta").requires_grad_()
    loss = scheduler.training_loss(output, x, noise, latents, steps, loss_type, validate_args=False)
    loss.mean().backward()
    assert output.grad.is_meta
    if loss_type != "simple":
        with pytest.raises(RuntimeError, match="meta"):
            scheduler.training_loss(output, x, noise, latents, steps, loss_type)
