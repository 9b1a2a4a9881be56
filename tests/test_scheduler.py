import copy

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from tiny import generator, quiet, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.checkpoints.loading import upgrade_scheduler
from ddpm_vlb.pixel_grid import levels_to_samples


def fake_network(sample, t, learned):
    output = torch.tanh(1.3 * sample + 0.1 * t / 1000)
    return torch.cat([output, output.sin()], dim=1) if learned else output


def trajectory(scheduler, learned=False, dtype=torch.float32):
    g = generator()
    sample = torch.randn(2, 3, 8, 8, generator=g, dtype=dtype)
    for t in scheduler.timesteps:
        sample = scheduler.step(fake_network(sample, float(t), learned), t, sample, generator=g).prev_sample
    return sample


STOCK_IS_RIGHT = {
    "default": {},
    "fixed_large": {"variance_type": "fixed_large"},
    "fixed_small_log": {"variance_type": "fixed_small_log", "beta_schedule": "laplace"},
    "learned_range": {"variance_type": "learned_range", "beta_schedule": "squaredcos_cap_v2"},
    "v_prediction": {"prediction_type": "v_prediction", "clip_sample": False, "rescale_betas_zero_snr": True},
    "sample": {"prediction_type": "sample", "thresholding": True, "sample_max_value": 1.5, "beta_schedule": "sigmoid"},
    "trained_betas": {"trained_betas": np.linspace(1e-3, 0.05, 1000).tolist(), "clip_sample_range": 2.0},
}


@pytest.mark.parametrize("steps", [None, 50, 1000])
@pytest.mark.parametrize("name", STOCK_IS_RIGHT)
def test_a_seed_gives_the_stock_trajectory(name, steps):
    config = STOCK_IS_RIGHT[name]
    schedulers = DDPMScheduler(**config), VLBDDPMScheduler(**config)
    for scheduler in schedulers:
        if steps is not None:
            scheduler.set_timesteps(steps)
    stock, ours = (trajectory(scheduler, name == "learned_range") for scheduler in schedulers)
    assert (stock - ours).abs().max() <= 1e-3 and not stock.isnan().any()


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_step_draws_from_p_mean_variance(variance_type):
    scheduler = VLBDDPMScheduler(variance_type=variance_type)
    learned = variance_type.startswith("learned")
    grid = [900, 500, 20, 3]
    scheduler.set_timesteps(timesteps=grid)
    x_t = torch.randn(2, 1, 8, 8, generator=generator(), dtype=torch.float64)
    for t in grid:
        output = fake_network(x_t, t, learned)
        p = scheduler.p_mean_variance(output, x_t, t, inference_timesteps=grid)
        got = scheduler.step(output, t, x_t, generator=generator(5))
        noise = torch.randn(x_t.shape, generator=generator(5), dtype=torch.float64) if t > 3 else 0.0
        expected = p.mean + p.variance.sqrt() * noise
        # The coefficients of `step` are the stock scheduler's float32 ones, off by up to 1e-4 near t = 0.
        assert torch.allclose(got.prev_sample, expected, atol=3e-4)
        assert torch.allclose(got.pred_original_sample, p.pred_original_sample, atol=1e-4)


def test_fixed_large_log_is_fixed_large_where_stock_gives_nan():
    config = {"variance_type": "fixed_large_log"}
    assert trajectory(DDPMScheduler(**config)).isnan().any()
    assert torch.equal(trajectory(VLBDDPMScheduler(**config)), trajectory(VLBDDPMScheduler(variance_type="fixed_large")))


def test_learned_is_a_log_variance_where_stock_takes_a_root():
    x = torch.randn(1, 1, 16, 16, generator=generator())
    output = torch.cat([x, torch.full_like(x, -3.0)], dim=1)
    assert DDPMScheduler(variance_type="learned").step(output, 500, x, generator=generator()).prev_sample.isnan().any()
    scheduler = VLBDDPMScheduler(variance_type="learned")
    samples = torch.cat([scheduler.step(output, 500, x, generator=generator(i)).prev_sample for i in range(200)])
    assert samples.std(dim=0).mean().item() == pytest.approx(np.exp(-1.5), rel=0.01)


@pytest.mark.parametrize("grid", [[900, 10, 2], [7]])
def test_the_last_step_of_any_grid_has_no_noise(grid):
    x = torch.randn(1, 1, 4, 4, generator=generator())
    stock, ours = DDPMScheduler(variance_type="fixed_large"), VLBDDPMScheduler(variance_type="fixed_large")
    for scheduler in (stock, ours):
        scheduler.set_timesteps(timesteps=grid)
    result = ours.step(x, grid[-1], x)
    assert torch.equal(result.prev_sample, result.pred_original_sample)
    result = stock.step(x, grid[-1], x)
    assert (result.prev_sample - result.pred_original_sample).abs().max() > 1e-3


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_grids_are_stock_ones_but_for_timestep_minus_one(spacing):
    stock, ours = DDPMScheduler(timestep_spacing=spacing), VLBDDPMScheduler(timestep_spacing=spacing)
    wrong = 0
    for steps in range(1, 1001):
        stock.set_timesteps(steps)
        grid = [t for t in stock.timesteps.tolist() if t >= 0]
        is_wrong = len(grid) < len(stock.timesteps)
        wrong += is_wrong
        assert grid == ours.inference_grid(steps) and len(grid) == steps
        if is_wrong or steps % 10 == 0:  # `set_timesteps` makes coefficients besides
            ours.set_timesteps(steps)
            assert ours.timesteps.tolist() == grid
    assert wrong == (62 if spacing == "trailing" else 0)


@pytest.mark.parametrize(("dtype", "last_silent_step"), [(torch.float16, 1), (torch.bfloat16, 9)])
def test_half_precision_noise_is_not_lost(dtype, last_silent_step):
    x, noise = torch.zeros(1, 1, 8, 8, dtype=dtype), torch.ones(1, 1, 8, 8, dtype=dtype)
    silent = [t for t in range(1000) if DDPMScheduler().add_noise(x, noise, torch.tensor([t])).abs().max() == 0]
    assert silent == list(range(last_silent_step + 1))
    got = VLBDDPMScheduler().add_noise(x, noise, torch.tensor([0]))
    assert got.dtype == dtype and got.float().mean().item() == pytest.approx(0.01, rel=0.01)


def test_float64_tables_where_stock_ones_have_three_digits():
    config = {"num_train_timesteps": 4000, "beta_schedule": "squaredcos_cap_v2"}
    stock, forward = DDPMScheduler(**config), VLBDDPMScheduler(**config).forward_process()
    effective = 1 - stock.alphas_cumprod[1:] / stock.alphas_cumprod[:-1]
    error = (effective.double() / forward.betas[1:] - 1).abs().max().item()
    assert 4e-3 < error < 6e-3


def test_add_noise_leaves_the_scheduler_alone_and_equals_stock_in_float32():
    stock, ours = DDPMScheduler(), VLBDDPMScheduler()
    before = ours.alphas_cumprod
    x, noise, steps = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.tensor([0, 500, 999])
    assert torch.allclose(ours.add_noise(x, noise, steps), stock.add_noise(x, noise, steps), atol=1e-5)
    assert torch.allclose(ours.get_velocity(x, noise, steps), stock.get_velocity(x, noise, steps), atol=1e-5)
    assert ours.alphas_cumprod is before
    for bad in (torch.tensor([1000]), torch.tensor([-1])):
        with pytest.raises(ValueError, match=r"`timesteps` must lie in \[0, 1000\)"):
            ours.add_noise(x, noise, bad)


def test_step_in_half_precision_keeps_the_dtype():
    for dtype in (torch.float16, torch.bfloat16):
        half = trajectory(VLBDDPMScheduler(num_train_timesteps=50), dtype=dtype)
        assert half.dtype == dtype and torch.isfinite(half).all()


def test_gradients_flow_through_step():
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    VLBDDPMScheduler(clip_sample=False).step(2 * x, 500, x).prev_sample.sum().backward()
    assert (x.grad != 0).all()


def test_set_timesteps_does_not_change_a_bound():
    scheduler = VLBDDPMScheduler(num_pixel_levels=17)
    x = levels_to_samples(torch.randint(17, (3, 1, 4, 4), generator=generator()), 17)
    x_t, steps = torch.randn(3, 1, 4, 4, generator=generator(1)), torch.tensor([0, 500, 999])
    before = scheduler.vlb_terms(x_t, x, x_t, steps), scheduler.prior_kl(x)
    scheduler.set_timesteps(7)
    scheduler.step(x_t, int(scheduler.timesteps[0]), x_t)
    assert torch.equal(before[0], scheduler.vlb_terms(x_t, x, x_t, steps)) and torch.equal(before[1], scheduler.prior_kl(x))


def test_timesteps_assigned_from_outside_are_the_grid():
    scheduler = VLBDDPMScheduler()
    scheduler.set_timesteps(10)
    scheduler.timesteps = scheduler.timesteps[5:]
    assert scheduler.step(torch.zeros(1, 1, 2, 2), 0, torch.zeros(1, 1, 2, 2)).prev_sample.abs().max() == 0
    with pytest.raises(ValueError, match="`timestep` must be one of the scheduler's"):
        scheduler.step(torch.zeros(1, 1, 2, 2), 900, torch.zeros(1, 1, 2, 2))


def test_from_config_keeps_what_was_passed_by_position():
    scheduler = VLBDDPMScheduler.from_config(VLBDDPMScheduler(100, 0.01).config, num_pixel_levels=17)
    assert (scheduler.config.num_train_timesteps, scheduler.config.beta_start) == (100, 0.01)


def test_a_configuration_changed_afterwards_is_not_scored_with_the_old_tables():
    for change in ({"beta_end": 0.5}, {"num_train_timesteps": 50}, {"trained_betas": [0.1] * 1000}):
        scheduler = VLBDDPMScheduler()
        scheduler.register_to_config(**change)
        with pytest.raises(ValueError, match="must be what the scheduler was built from"):
            scheduler.prior_kl(torch.zeros(1, 1, 2, 2))


SETTINGS = {
    "variance_type": "fixed_large",
    "clip_sample": False,
    "clip_sample_range": 0.5,
    "thresholding": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "num_pixel_levels": 17,
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("assign", [setattr, lambda config, *entry: config.__setitem__(*entry)], ids=["attribute", "item"])
def test_what_is_assigned_to_the_configuration_holds_everywhere(name, assign, tmp_path):
    def use(scheduler):
        pipe = quiet(VLBDDPMPipeline(tiny_unet(), scheduler))
        image = pipe(generator=generator(), num_inference_steps=3, output_type="pt").images
        out = pipe.evaluate_nll(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), generator=generator(), num_inference_steps=3)
        return image, out.bits_per_dim, out.config

    image, bits, said = use(VLBDDPMScheduler(8, **{name: SETTINGS[name]}))
    scheduler = VLBDDPMScheduler(8)
    use(scheduler)  # what is kept of it is of the old configuration
    assign(scheduler.config, name, SETTINGS[name])
    scheduler.save_pretrained(tmp_path)
    anew, read = VLBDDPMScheduler.from_config(scheduler.config), VLBDDPMScheduler.from_pretrained(tmp_path)
    for ours in (scheduler, copy.deepcopy(scheduler), anew, read):
        new_image, new_bits, new_said = use(ours)
        assert torch.equal(new_image, image) and torch.equal(new_bits, bits) and new_said == said
        assert ours.config[name] == getattr(ours.config, name) == SETTINGS[name]


def test_an_attribute_that_was_assigned_to_a_stock_configuration_is_taken_over():
    stock = DDPMScheduler(8)
    stock.config.variance_type = "fixed_large"
    config = upgrade_scheduler(stock).config
    assert config.variance_type == config["variance_type"] == "fixed_large"


def test_other_betas_are_refused_by_all_that_would_use_the_old_ones():
    x = torch.zeros(1, 1, 2, 2)
    for name, value in {"beta_end": 0.5, "num_train_timesteps": 50, "rescale_betas_zero_snr": True}.items():
        scheduler = VLBDDPMScheduler(8)
        setattr(scheduler.config, name, value)
        for use in (
            lambda scheduler: scheduler.set_timesteps(4),
            lambda scheduler: scheduler.step(x, 3, x),
            lambda scheduler: scheduler.add_noise(x, x, torch.tensor([3])),
            lambda scheduler: scheduler.vlb_terms(x, x, x, 3),
        ):
            with pytest.raises(ValueError, match=rf"`{name}` must be what .*, got {value}.*from_config\(\.\.\., {name}="):
                use(scheduler)
    changed_in_place = VLBDDPMScheduler(8, trained_betas=[0.1] * 8)
    changed_in_place.config.trained_betas[3] = 0.2
    with pytest.raises(ValueError, match="`trained_betas` must be what the scheduler was built from"):
        changed_in_place.prior_kl(x)
    other_tables = VLBDDPMScheduler(8)
    other_tables.alphas_cumprod = other_tables.alphas_cumprod.flip(0)
    with pytest.raises(ValueError, match="`alphas_cumprod` must be the scheduler's own"):
        other_tables.prior_kl(x)


def test_timesteps_assigned_from_outside_are_checked():
    scheduler, x = VLBDDPMScheduler(100), torch.zeros(1, 1, 2, 2)
    for bad in ([10, 50, 90], [90, 90], [90.5, 3.0]):
        scheduler.timesteps = torch.tensor(bad)
        with pytest.raises(ValueError, match="`inference_timesteps` must be"):
            scheduler.step(x, 90, x)


def test_coefficients_are_made_once_per_grid():
    scheduler, x = VLBDDPMScheduler(), torch.zeros(1, 1, 2, 2)
    scheduler.set_timesteps(10)
    made = scheduler._coefficients(900)
    scheduler.set_timesteps(10)
    assert scheduler._coefficients(900) is made
    scheduler.set_timesteps(20)
    assert scheduler._coefficients(900) is not made
    before = scheduler.step(x + 1, 900, x, generator=generator()).prev_sample
    scheduler.register_to_config(variance_type="fixed_large")
    assert not torch.equal(scheduler.step(x + 1, 900, x, generator=generator()).prev_sample, before)


def test_set_timesteps_refuses():
    scheduler = VLBDDPMScheduler(steps_offset=2)
    for arguments in ({}, {"num_inference_steps": 3, "timesteps": [1]}):
        with pytest.raises(ValueError, match="Exactly one of"):
            scheduler.set_timesteps(**arguments)
    for steps in (0, -1, 1001, 2.5, "5", True):
        with pytest.raises(ValueError, match="`num_inference_steps` must"):
            scheduler.set_timesteps(steps)
    with pytest.raises(ValueError, match=r"`steps_offset` must leave timesteps in \[0, 1000\), got 2 for 999 steps"):
        scheduler.set_timesteps(999)
    for grid in ([], [1000], [3, 3], [1, 2], [4, -1]):
        with pytest.raises(ValueError, match="`inference_timesteps` must"):
            scheduler.set_timesteps(timesteps=grid)


def test_configurations_go_round_through_disk_and_stock(tmp_path):
    scheduler = VLBDDPMScheduler(500, 0.001, variance_type="learned_range", num_pixel_levels=17)
    scheduler.save_pretrained(tmp_path)
    again = VLBDDPMScheduler.from_pretrained(tmp_path)
    through_stock = upgrade_scheduler(DDPMScheduler.from_pretrained(tmp_path))
    for other in (again, through_stock, copy.deepcopy(scheduler)):
        assert {k: v for k, v in other.config.items() if k[0] != "_"} == {
            k: v for k, v in scheduler.config.items() if k[0] != "_"
        }
        assert other.variance_type == other.config.variance_type


def test_defaults_are_the_parents():
    stock = {k: v for k, v in DDPMScheduler().config.items() if k[0] != "_"}
    ours = {k: v for k, v in VLBDDPMScheduler().config.items() if k[0] != "_"}
    own = dict.fromkeys(("calibration", "noise_process", "unlabelled_class", "sampler"))
    assert ours == {**stock, "num_pixel_levels": 256, **own}


def test_upgrade():
    by_position = DDPMScheduler(100, 0.002, 0.03, "scaled_linear")
    assert upgrade_scheduler(by_position).config.num_train_timesteps == 100
    assert upgrade_scheduler(by_position).config.beta_schedule == "scaled_linear"
    assert upgrade_scheduler(DDIMScheduler(num_train_timesteps=30)).config.num_train_timesteps == 30
    old = DDPMScheduler.from_config({"num_train_timesteps": 10, "predict_epsilon": False, "tensor_format": "pt"})
    assert upgrade_scheduler(old).config.prediction_type == "sample"
    learned = upgrade_scheduler(DPMSolverMultistepScheduler(50, variance_type="learned_range", prediction_type="v_prediction"))
    assert (learned.config.variance_type, learned.config.prediction_type) == ("learned_range", "v_prediction")
    assert upgrade_scheduler(DPMSolverMultistepScheduler(50, beta_end=0.1)).config.variance_type == "fixed_small"
    assert upgrade_scheduler(EulerDiscreteScheduler(50, beta_end=0.1)).config.beta_end == 0.1
    for other in (LCMScheduler(), DPMSolverMultistepScheduler(use_flow_sigmas=True)):
        with pytest.raises(ValueError, match=f"`scheduler` must be a DDPMScheduler, or.*got {type(other).__name__}"):
            upgrade_scheduler(other)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"variance_type": "other"}, "`variance_type` must be one of"),
        ({"prediction_type": "flow"}, "`prediction_type` must be one of"),
        # Names that cannot be looked up at all.
        ({"variance_type": ["fixed_small"]}, r"`variance_type` must be one of .*got \['fixed_small'\]"),
        ({"prediction_type": ["epsilon"]}, r"`prediction_type` must be one of .*got \['epsilon'\]"),
        ({"trained_betas": [0.1, 0.3]}, "`trained_betas` must have num_train_timesteps = 1000 entries.*got 2"),
        ({"beta_end": 2.0}, r"`betas` must lie in \(0, 1\)"),
        ({"rescale_betas_zero_snr": True}, "Use prediction_type='v_prediction'"),
        ({"num_pixel_levels": 1}, "`num_pixel_levels` must be an integer from 2"),
        ({"thresholding": True, "sample_max_value": -1.0}, "`sample_max_value` must be positive"),
        ({"clip_sample": "no"}, "`clip_sample` must be True or False"),
        ({"num_pixel_levels": 16.0}, "`num_pixel_levels` must be an integer from 2"),
    ],
)
def test_construction_is_as_permissive_as_stock_and_scoring_refuses(config, message):
    scheduler = VLBDDPMScheduler(**config)
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match=message):
        scheduler.vlb_terms(x, x, x, 5)


def test_odd_configurations_still_step_as_stock():
    x = torch.randn(1, 1, 4, 4, generator=generator())
    for config, t in (
        ({"variance_type": "other"}, 5),
        ({"trained_betas": [0.1, 0.3]}, 1),
        ({"rescale_betas_zero_snr": True}, 999),
    ):
        stock, ours = (cls(**config).step(2 * x, t, x, generator=generator()) for cls in (DDPMScheduler, VLBDDPMScheduler))
        assert torch.allclose(stock.prev_sample, ours.prev_sample, atol=1e-6)


def test_timesteps_of_wrong_kinds_are_refused():
    scheduler, x = VLBDDPMScheduler(), torch.zeros(2, 1, 2, 2)
    for t in (1.5, None, "3", torch.tensor([3, 4])):
        with pytest.raises(ValueError, match="`timestep` must be"):
            scheduler.step(x, t, x)
    for t in (torch.tensor([1.5]), torch.tensor([1, 2, 3])):
        with pytest.raises(ValueError, match="`timesteps` must be"):
            scheduler.add_noise(x, x, t)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(
            scheduler.add_noise(x, x + 1, torch.tensor([3, 4], dtype=dtype)),
            scheduler.add_noise(x, x + 1, torch.tensor([3, 4])),
        )


def test_wrong_shapes_and_dtypes_are_refused():
    scheduler, x = VLBDDPMScheduler(), torch.zeros(2, 3, 8, 8)
    for bad in (x[:1], x[:, :1], x[..., :1], x[0], x.to(torch.uint8)):
        with pytest.raises(ValueError, match="must (have the shape|be floating-point)"):
            scheduler.vlb_terms(x, bad, x, 5)
    with pytest.raises(ValueError, match="must be floating-point"):
        scheduler.prior_kl(x.to(torch.uint8))
    with pytest.raises(ValueError, match=r"must have the shape \(2,\)"):
        scheduler.vlb_terms(x, x, x, torch.tensor([0, 1, 2]))
    for output in (torch.cat([x, x]), x[:1], x[..., :1]):
        with pytest.raises(ValueError, match="batch and image size"):
            scheduler.vlb_terms(output, x, x, torch.tensor([0, 1]))
        with pytest.raises(ValueError, match="batch and image size"):
            scheduler.step(output, 5, x)
    for arguments in ((x.to(torch.uint8), x), (x, x[:1])):
        with pytest.raises(ValueError, match="floating-point"):
            scheduler.add_noise(*arguments, torch.tensor([5]))


def test_step_refuses_channels_that_do_not_fit():
    x = torch.zeros(1, 1, 2, 2)
    for variance_type, channels in (("fixed_small", 2), ("learned_range", 1), ("learned", 3)):
        with pytest.raises(ValueError, match="`model_output` must have . channels? for"):
            VLBDDPMScheduler(variance_type=variance_type).step(torch.zeros(1, channels, 2, 2), 5, x)
