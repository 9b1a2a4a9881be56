r"""What the schedulers of diffusers take for the image in their own steps is what is scored, on the same noise levels.

The network is any function: what is compared is how it is asked and what its output means. The stock schedulers compute in
float32, with u = 2^-24: an image `skip x_t + out F` has that rounding of both its terms, of what F was asked (F has Lipschitz
constants below 1 in the latents and 1/100 in the time), and of a table of alphas_cumprod that is a product of t + 1 factors.
"""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    ScoreSdeVeScheduler,
)
from diffusers.schedulers.deprecated import KarrasVeScheduler
from tiny import generator

from ddpm_vlb import FunctionModel, VLBDDPMPipeline, VLBDDPMScheduler, upgrade_scheduler

U = 2.0**-24
ROUNDINGS = 16  # of the operations between latents and image, in either reading


def probe(y, t):
    return 0.6 * y + 0.3 * torch.tanh(y.roll(1, dims=3)) + torch.sin(t.double() / 100).reshape(-1, 1, 1, 1)


def walk(scheduler, y):
    r"""(latents, their sigma, timestep, predicted image, amplified rounding) of each evaluation of a stock sampling run."""
    scheduler.set_timesteps(6)
    if isinstance(scheduler, (ScoreSdeVeScheduler, KarrasVeScheduler)):
        yield from (walk_exploding if isinstance(scheduler, ScoreSdeVeScheduler) else walk_karras)(scheduler, y)
        return
    flows = isinstance(scheduler, (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler))
    has_table = isinstance(scheduler, (DDPMScheduler, DDIMScheduler))
    for number, t in enumerate(scheduler.timesteps):
        asked = scheduler.scale_model_input(y, t) if hasattr(scheduler, "scale_model_input") else y
        said = probe(asked, t)
        level, below = (0, 0) if has_table else scheduler.sigmas[number : number + 2].tolist()
        first = getattr(scheduler, "state_in_first_order", True)
        out = scheduler.step(said, t, y)
        if flows:
            # A step goes along the straight line through the image; the second half of one of Heun's shows nothing.
            image = y + (out.prev_sample - y) * level / (level - below) if first else None
        elif hasattr(scheduler, "model_outputs"):
            image = scheduler.model_outputs[-1]
        else:
            image = out.pred_original_sample
        if image is not None and not (flows and level == 1):
            yield y, level, t, image, level / (level - below) if flows else 1.0
        y = out.prev_sample


def walk_exploding(scheduler, y):
    # The pipeline asks at `sigmas`, and takes its step between the `discrete_sigmas` 1e-4 beside them.
    scheduler.set_sigmas(6)
    y = (y + 1) / 2
    for number, t in enumerate(scheduler.timesteps):
        sigmas = [*scheduler.discrete_sigmas.tolist()[5 - number :: -1], 0]
        said = -probe(y, torch.tensor(sigmas[0])) / sigmas[0]
        out = scheduler.step_pred(said, t, y, generator=generator(number))
        # The mean is the posterior's: of the image it has the share 1 - (sigma_s / sigma_t)^2.
        share = 1 - (sigmas[1] / sigmas[0]) ** 2
        yield 2 * y - 1, 2 * sigmas[0], sigmas[0], 2 * (y + (out.prev_sample_mean - y) / share) - 1, 1 / share
        y = out.prev_sample


def walk_karras(scheduler, y):
    for t in scheduler.timesteps:
        sigma = scheduler.schedule[t].double().item()
        below = scheduler.schedule[t - 1].double().item() if t > 0 else 0
        # As KarrasVePipeline has it.
        said = sigma / 2 * exploding_probe((y + 1) / 2, torch.tensor(sigma / 2))
        out = scheduler.step(said, sigma, below, y)
        yield y, sigma, sigma / 2, out.pred_original_sample, 1.0
        y = out.prev_sample


def exploding_probe(y, sigma):
    return -probe(y, sigma) / sigma.double().reshape(-1, 1, 1, 1)


PLAIN = dict(clip_sample=False)
LEADING = dict(timestep_spacing="leading", beta_end=0.02, beta_start=0.0001)
DDPMS = [
    *(DDPMScheduler(prediction_type=kind, **PLAIN) for kind in ("epsilon", "sample", "v_prediction")),
    *(DDIMScheduler(prediction_type=kind, set_alpha_to_one=False, **PLAIN) for kind in ("epsilon", "v_prediction")),
    *(EulerDiscreteScheduler(prediction_type=kind, **LEADING) for kind in ("epsilon", "v_prediction")),
    *(HeunDiscreteScheduler(prediction_type=kind, **LEADING) for kind in ("epsilon", "v_prediction")),
    *(DPMSolverMultistepScheduler(prediction_type=kind, **LEADING) for kind in ("epsilon", "sample", "v_prediction")),
]
OTHERS = [
    FlowMatchEulerDiscreteScheduler(shift=3.0),
    FlowMatchHeunDiscreteScheduler(),
    EDMEulerScheduler(),
    EDMEulerScheduler(prediction_type="v_prediction", sigma_data=0.7),
    EDMDPMSolverMultistepScheduler(),
    ScoreSdeVeScheduler(),
    KarrasVeScheduler(),
]


def name(scheduler):
    return f"{type(scheduler).__name__}-{scheduler.config.get('prediction_type', '')}".rstrip("-")


def our_image(scheduler, function, x_t, t):
    pipe = VLBDDPMPipeline(FunctionModel(function, x_t.shape[1:], takes_fractions=True), scheduler)
    said = pipe.network(x_t, t)
    return pipe.scheduler.p_mean_variance(said, x_t, t, clip_sample=False).pred_original_sample, said


@pytest.fixture
def noise():
    return torch.randn(2, 2, 4, 4, generator=generator(), dtype=torch.float64)


@pytest.mark.parametrize("scheduler", DDPMS, ids=name)
def test_schedulers_of_ddpms_predict_our_image(scheduler, noise):
    own = upgrade_scheduler(scheduler)
    start = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    steps = 0
    for y, _, t, image, _ in walk(scheduler, start):
        t = int(t)
        alpha = own.forward_process().alphas_cumprod[t].item()
        sigma = ((1 - alpha) / alpha) ** 0.5
        # Euler's and Heun's latents are those of an exploding process.
        exploding = isinstance(scheduler, (EulerDiscreteScheduler, HeunDiscreteScheduler))
        x_t = y * alpha**0.5 if exploding else y
        got, said = our_image(own, probe, x_t, t)
        largest, output = x_t.abs().max().item(), said.abs().max().item()
        bound = ROUNDINGS * (largest / alpha**0.5 + (1 + sigma) * (output + largest + t / 100))
        # d(image) / d(log alphas_cumprod), whose table has the roundings of a product.
        bound += (t + 2) * (largest / alpha**0.5 + output / (alpha * sigma))
        assert (got - image).abs().max().item() < U * bound, t
        steps += 1
    assert steps >= 6


@pytest.mark.parametrize("scheduler", OTHERS, ids=name)
def test_schedulers_of_other_processes_predict_our_image(scheduler, noise):
    exploding = isinstance(scheduler, (ScoreSdeVeScheduler, KarrasVeScheduler))
    flows = isinstance(scheduler, (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler))
    start = noise * (20.0 if exploding else float(getattr(scheduler, "init_noise_sigma", 1.0)))
    steps = [*walk(scheduler, start)]
    if flows:
        steps = [(y / (1 - s), s / (1 - s), t, image, amplified) for y, s, t, image, amplified in steps]
    assert len(steps) >= 5
    # The DDPM of the very levels of the run.
    sigmas = np.array(sorted({sigma for _, sigma, _, _, _ in steps}))
    alphas = 1 / (1 + sigmas**2)
    betas = 1 - alphas / np.concatenate([[1], alphas[:-1]])
    own = VLBDDPMScheduler.from_config(
        upgrade_scheduler(scheduler).config, num_train_timesteps=len(betas), trained_betas=betas.tolist()
    )
    for y, sigma, t, image, amplified in steps:
        x_t = y / (1 + sigma**2) ** 0.5
        got, _ = our_image(own, exploding_probe if exploding else probe, x_t, int(np.searchsorted(sigmas, sigma)))
        largest, output = y.abs().max().item(), 2.0 + y.abs().max().item()
        bound = ROUNDINGS * amplified * (largest + (1 + sigma) * (output + abs(float(t)) / 100))
        assert (got - image).abs().max().item() < U * bound, sigma
