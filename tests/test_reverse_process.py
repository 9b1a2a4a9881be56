import math

import pytest
import torch
from diffusers import DDPMScheduler
from tiny import generator

from ddpm_vlb.forward_process import ForwardProcess
from ddpm_vlb.noise_schedules import make_betas
from ddpm_vlb.parametrizations import PREDICTION_TYPES, VARIANCE_TYPES
from ddpm_vlb.reverse_process import ReverseProcess

BETAS = make_betas("linear", 1000)
FULL = ForwardProcess.from_betas(BETAS)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("grid", [None, [990, 500, 30, 2]])
def test_a_perfect_prediction_gives_the_posterior(prediction_type, grid):
    forward = ForwardProcess.from_betas(BETAS, grid)
    reverse = ReverseProcess(forward, prediction_type=prediction_type, clip_sample=False)
    x, epsilon = draw(2, 1, 4, 4), draw(2, 1, 4, 4, seed=1)
    for t in (30, 2, 500, 990):
        x_t = forward.q_sample(x, epsilon, t)
        output = {"epsilon": epsilon, "sample": x, "v_prediction": forward.velocity(x, epsilon, t)}[prediction_type]
        p, q = reverse.p_mean_variance(output, x_t, t), forward.q_posterior_mean_variance(x, x_t, t)
        # x comes back from epsilon divided by sqrt(alphas_cumprod), 0.0065 at t = 990.
        assert torch.allclose(p.pred_original_sample, x, atol=1e-12) and torch.allclose(p.mean, q.mean, atol=1e-12)
        if t > int(forward.timesteps[0]):
            assert torch.allclose(p.log_variance, q.log_variance, rtol=1e-13)


def expected_log_variance(variance_type, v, forward, row):
    beta, posterior = forward.betas, forward.posterior_variance
    small = math.log(posterior[max(row, 1)]) if len(forward) > 1 else math.log(beta[0])
    large = math.log(beta[row])
    if variance_type == "learned":
        return v
    if variance_type == "learned_range":
        return (v + 1) / 2 * large + (1 - v) / 2 * small
    return large if variance_type.startswith("fixed_large") and row > 0 else small


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
@pytest.mark.parametrize("grid", [None, [800, 300, 7], [400]])
def test_log_variances_and_the_rule_of_the_lowest_step(variance_type, grid):
    forward = ForwardProcess.from_betas(BETAS, grid)
    reverse = ReverseProcess(forward, variance_type=variance_type)
    output = draw(1, 2 if reverse.learns_variance else 1, 2, 2)
    for row, t in enumerate(forward.timesteps.tolist()[:3]):
        p = reverse.p_mean_variance(output, draw(1, 1, 2, 2, seed=1), t)
        expected = expected_log_variance(variance_type, output[:, 1:] if reverse.learns_variance else 0, forward, row)
        assert torch.allclose(p.log_variance, torch.as_tensor(expected, dtype=torch.float64).expand(1, 1, 2, 2), rtol=1e-12)
        assert torch.allclose(p.variance, p.log_variance.exp())


def test_improved_ddpm_decoder_log_variance():
    # Nichol & Dhariwal's code clips the log-variance at its first step to that of the second: -9.82 for linear-1000.
    reverse = ReverseProcess(FULL, variance_type="learned_range")
    output = torch.cat([torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), -1.0)], dim=1)
    assert reverse.p_mean_variance(output, torch.zeros(1, 1, 2, 2), 0).log_variance.mean().item() == pytest.approx(
        -9.82, abs=5e-3
    )


@pytest.mark.parametrize("sample_max_value", [0.5, 1.0, 2.0])
def test_dynamic_thresholding_is_diffusers_own(sample_max_value):
    stock = DDPMScheduler(thresholding=True, sample_max_value=sample_max_value)
    reverse = ReverseProcess(FULL, prediction_type="sample", thresholding=True, sample_max_value=sample_max_value)
    x = 2 * draw(3, 2, 4, 4)
    got = reverse.p_mean_variance(x, torch.zeros_like(x), 5).pred_original_sample
    assert torch.allclose(got, stock._threshold_sample(x), atol=1e-14)


def test_clipping():
    x = torch.tensor([-3.0, -0.4, 0.4, 3.0]).reshape(1, 1, 2, 2)
    for clip, expected in ((True, [-0.5, -0.4, 0.4, 0.5]), (False, [-3.0, -0.4, 0.4, 3.0])):
        reverse = ReverseProcess(FULL, prediction_type="sample", clip_sample=clip, clip_sample_range=0.5)
        got = reverse.p_mean_variance(x, torch.zeros_like(x), 5).pred_original_sample
        assert torch.allclose(got.flatten().float(), torch.tensor(expected))


def test_batched_timesteps_agree_with_scalar_ones():
    for variance_type in VARIANCE_TYPES:
        reverse = ReverseProcess(FULL, variance_type=variance_type)
        output, x_t = draw(3, 2 if reverse.learns_variance else 1, 2, 2), draw(3, 1, 2, 2, seed=1)
        steps = torch.tensor([0, 7, 999])
        batched = reverse.p_mean_variance(output, x_t, steps)
        for i, t in enumerate(steps.tolist()):
            for a, b in zip(batched, reverse.p_mean_variance(output[i : i + 1], x_t[i : i + 1], t)):
                assert torch.equal(a[i : i + 1], b)


def test_refusals():
    with pytest.raises(ValueError, match="`prediction_type` must be one of .* got 'noise'"):
        ReverseProcess(FULL, prediction_type="noise")
    with pytest.raises(ValueError, match="`variance_type` must be one of .* got 'other'"):
        ReverseProcess(FULL, variance_type="other")
    for variance_type, channels in (("fixed_small", 2), ("learned_range", 1), ("learned", 3)):
        with pytest.raises(ValueError, match="`model_output` must have . channels? for"):
            ReverseProcess(FULL, variance_type=variance_type).p_mean_variance(draw(1, channels, 2, 2), draw(1, 1, 2, 2), 3)
    with pytest.raises(ValueError, match="batch and image size"):
        ReverseProcess(FULL).p_mean_variance(draw(1, 1, 2, 2), draw(2, 1, 2, 2), 3)


def test_zero_terminal_snr_is_refused_for_epsilon_only_where_it_is_scored():
    betas = make_betas("linear", 1000, rescale_betas_zero_snr=True)
    forward = ForwardProcess.from_betas(betas)
    with pytest.raises(ValueError, match="v_prediction"):
        ReverseProcess(forward)
    reverse = ReverseProcess(forward, prediction_type="v_prediction")
    p = reverse.p_mean_variance(draw(1, 1, 2, 2), draw(1, 1, 2, 2, seed=1), 999)
    assert all(torch.isfinite(part).all() for part in p)
    ReverseProcess(ForwardProcess.from_betas(betas, [998, 0]))


def test_what_is_asked_of_a_calibrated_chain_alone():
    reverse = ReverseProcess(FULL, variance_type="learned_range")
    with pytest.raises(ValueError, match="`trained` must be given where the chain of all steps is asked for, got None"):
        reverse.learned_errors(draw(1, 1, 2, 2), 3)
    with pytest.raises(ValueError, match="`error_model` must be given where its numbers are asked for, got None"):
        _ = reverse.error_tables
