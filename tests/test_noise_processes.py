r"""Networks of other noise processes, and of other classes: the same network read in each way has the same bound."""

import json
import math

import numpy as np
import pytest
import torch
from analytic import gaussian_bound_and_nll
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    DiffusionPipeline,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LCMScheduler,
    ScoreSdeVeScheduler,
)
from diffusers.schedulers.deprecated import KarrasVeScheduler
from safetensors.torch import save_file
from tiny import generator, quiet, tiny_condition, tiny_dit, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler, calibrate, compare, upgrade_scheduler
from ddpm_vlb.cli import main
from ddpm_vlb.hub.cards import model_card
from ddpm_vlb.model.function import FunctionModel
from ddpm_vlb.noise_processes import level_betas
from ddpm_vlb.reports.schema import read_report

BETAS = level_betas(0.02, 40.0, 12)


class Base(torch.nn.Module):
    r"""The noise in a DDPM's latents as a smooth function of them and of sigma, in float64."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.6, 0.3, -0.2], dtype=torch.float64))

    def noise(self, x_t, sigma):
        a, b, c = self.weight
        level = torch.log(sigma).reshape(-1, 1, 1, 1)
        return a * x_t + b * torch.tanh(x_t.roll(1, dims=3) + c * level)

    def image(self, x_t, sigma):
        wide = sigma.reshape(-1, 1, 1, 1)
        return x_t * torch.sqrt(1 + wide**2) - wide * self.noise(x_t, sigma)


class AsDDPM(Base):
    def __init__(self, what):
        super().__init__()
        self.what, alphas = what, np.cumprod(1 - BETAS)
        self.sigmas = torch.tensor(np.sqrt((1 - alphas) / alphas))

    def forward(self, x_t, t):
        sigma = self.sigmas[t]
        noise, image = self.noise(x_t, sigma), self.image(x_t, sigma)
        root = 1 / torch.sqrt(1 + sigma**2).reshape(-1, 1, 1, 1)
        return {"epsilon": noise, "sample": image, "v_prediction": root * noise - sigma.reshape(-1, 1, 1, 1) * root * image}[
            self.what
        ]


class AsFlow(Base):
    def forward(self, y, t):
        s = t.double().reshape(-1, 1, 1, 1) / 1000
        x_t, sigma = y / torch.sqrt((1 - s) ** 2 + s**2), (s / (1 - s)).flatten()
        return self.noise(x_t, sigma) - self.image(x_t, sigma)


class AsEDM(Base):
    data, sign = 0.5, 1.0

    def forward(self, scaled, t):
        sigma = torch.exp(4 * t.double())
        wide = sigma.reshape(-1, 1, 1, 1)
        total = wide**2 + self.data**2
        y = scaled * total.sqrt()
        image = self.image(y / torch.sqrt(1 + wide**2), sigma)
        return self.sign * (image - self.data**2 / total * y) * total.sqrt() / (wide * self.data)


class AsEDMVelocity(AsEDM):
    sign = -1.0


class AsExploding(Base):
    def forward(self, y01, sigma01):
        sigma = 2 * sigma01.double()
        x_t = (2 * y01 - 1) / torch.sqrt(1 + sigma.reshape(-1, 1, 1, 1) ** 2)
        return -self.noise(x_t, sigma) / sigma01.reshape(-1, 1, 1, 1)


PROCESSES = [
    (AsFlow, FlowMatchEulerDiscreteScheduler(shift=3.0)),
    (AsFlow, FlowMatchHeunDiscreteScheduler()),
    (AsEDM, EDMEulerScheduler()),
    (AsEDMVelocity, EDMDPMSolverMultistepScheduler(prediction_type="v_prediction")),
    (AsExploding, ScoreSdeVeScheduler()),
    (AsExploding, KarrasVeScheduler()),
]
IDS = [f"{type(scheduler).__name__}-{kind.__name__}" for kind, scheduler in PROCESSES]


@pytest.fixture(scope="module")
def levels():
    return torch.randint(256, (3, 2, 4, 4), generator=generator()).to(torch.uint8)


def ddpm(what):
    scheduler = VLBDDPMScheduler(12, trained_betas=BETAS.tolist(), prediction_type=what, clip_sample=False)
    return quiet(VLBDDPMPipeline(FunctionModel(AsDDPM(what), (2, 4, 4)), scheduler))


def other(kind, scheduler):
    own = upgrade_scheduler(scheduler)
    matched = VLBDDPMScheduler.from_config(own.config, num_train_timesteps=12, trained_betas=BETAS.tolist())
    return quiet(VLBDDPMPipeline(FunctionModel(kind(), (2, 4, 4), takes_fractions=True), matched))


@pytest.mark.parametrize("what", ["sample", "v_prediction"])
def test_predictions_of_a_ddpm_have_one_bound(what, levels):
    expected, got = (ddpm(each).evaluate_nll(levels, generator=generator()) for each in ("epsilon", what))
    assert torch.allclose(got.bits_per_dim, expected.bits_per_dim, rtol=1e-9)


@pytest.mark.parametrize(("kind", "scheduler"), PROCESSES, ids=IDS)
def test_on_the_same_levels_a_network_has_one_bound(kind, scheduler, levels):
    expected = ddpm("epsilon").evaluate_nll(levels, generator=generator())
    pipe = other(kind, scheduler)
    got = pipe.evaluate_nll(levels, generator=generator())
    for name in ("prior", "transitions", "decoder", "bits_per_dim"):
        # The image is formed from latents sigma = 40 wide, the noise from the image: 40 times the rounding of float64.
        assert torch.allclose(got[name], expected[name], rtol=1e-9), name
    assert type(scheduler).__name__ in got.config["noise_process"]
    # And on a sub-sequence, with images at timesteps of their own.
    sampled = [
        each.evaluate_nll(
            levels, generator=generator(), method="sampled", evaluations_per_image=8, inference_timesteps=[11, 7, 4, 0]
        )
        for each in (ddpm("epsilon"), pipe)
    ]
    assert torch.allclose(sampled[0].bits_per_dim, sampled[1].bits_per_dim, rtol=1e-8)


class Optimal:
    r"""The best denoiser of pixels x ~ N(0.2, 0.5^2), in place of `Base`'s: what y = x + sigma eps says of x."""

    def image(self, x_t, sigma):
        wide = sigma.reshape(-1, 1, 1, 1)
        y = x_t * torch.sqrt(1 + wide**2)
        return 0.2 + 0.25 / (0.25 + wide**2) * (y - 0.2)

    def noise(self, x_t, sigma):
        wide = sigma.reshape(-1, 1, 1, 1)
        return (x_t * torch.sqrt(1 + wide**2) - self.image(x_t, sigma)) / wide


@pytest.mark.parametrize(("kind", "scheduler"), PROCESSES, ids=IDS)
def test_gaussian_data_has_the_known_bound(kind, scheduler):
    level = 180
    terms, prior, nll = gaussian_bound_and_nll(2 * level / 255 - 1, BETAS, range(12))
    pipe = other(type(f"Optimal{kind.__name__}", (Optimal, kind), {}), scheduler)
    out = pipe.evaluate_nll(torch.full((200, 2, 4, 4), level, dtype=torch.uint8), batch_size=200, generator=generator())
    bits = 1 / math.log(2)
    assert torch.allclose(out.prior, torch.tensor(prior * bits, dtype=torch.float64), rtol=1e-9)
    for got, expected in zip([out.decoder, *out.transitions.unbind(1)], terms * bits):
        assert abs(got.mean().item() - expected) < 5 * got.std().item() / 200**0.5 + 1e-9
    error = out.bits_per_dim.std().item() / 200**0.5
    assert abs(out.bits_per_dim.mean().item() - (terms.sum() + prior) * bits) < 5 * error
    assert out.bits_per_dim.mean().item() > nll * bits - 5 * error


@pytest.mark.parametrize(("kind", "scheduler"), PROCESSES[::2], ids=IDS[::2])
def test_other_likelihoods_are_those_of_the_ddpm_too(kind, scheduler, levels):
    from ddpm_vlb import importance_weighted_nll, ode_nll

    own, stock = other(kind, scheduler), ddpm("epsilon")
    stock.unet.takes_fractions = False
    weighted = [importance_weighted_nll(each, levels, k=3, seed=1).bits_per_dim for each in (own, stock)]
    assert torch.allclose(*weighted, rtol=1e-8)
    # Between the levels log sigma is a straight line in both.
    stock.unet = FunctionModel(Between(), (2, 4, 4), takes_fractions=True)
    densities = [ode_nll(each, levels[:1], rtol=1e-3, atol=1e-3).bits_per_dim for each in (own, stock)]
    assert torch.allclose(*densities, rtol=1e-6)


class Between(AsDDPM):
    r"""`AsDDPM` at fractions of a timestep."""

    def __init__(self):
        super().__init__("epsilon")

    def forward(self, x_t, t):
        at = np.interp(t.double().numpy(), np.arange(len(self.sigmas)), self.sigmas.log().numpy())
        return self.noise(x_t, torch.as_tensor(np.exp(at)))


@pytest.mark.parametrize(("kind", "scheduler"), PROCESSES, ids=IDS)
def test_levels_are_a_line_in_log_snr_between_the_schedulers_ends(kind, scheduler):
    forward = upgrade_scheduler(scheduler).forward_process()
    sigmas = torch.exp(-0.5 * forward.log_snr) if hasattr(forward, "log_snr") else forward.snr**-0.5
    ends = {
        "FlowMatchEulerDiscreteScheduler": (0.003 / (1.002 - 0.003), 2.997 / 2.998 / (1 - 2.997 / 2.998)),
        "FlowMatchHeunDiscreteScheduler": (1 / 999, 999),
        "EDMEulerScheduler": (0.002, 80),
        "EDMDPMSolverMultistepScheduler": (0.002, 80),
        "ScoreSdeVeScheduler": (0.02, 2696),
        "KarrasVeScheduler": (0.02, 100),
    }[type(scheduler).__name__]
    assert sigmas[[0, -1]].tolist() == pytest.approx(ends, rel=1e-6)
    steps = torch.diff(sigmas.log())
    assert steps[0].item() == pytest.approx(0.5 * math.log(2), rel=1e-6)
    assert torch.allclose(steps[1:], steps[1:].mean(), rtol=1e-6)


@pytest.mark.parametrize("scheduler", [scheduler for _, scheduler in PROCESSES], ids=lambda s: type(s).__name__)
def test_a_folder_of_diffusers_is_scored_sampled_and_saved(scheduler, tmp_path):
    unet, images = tiny_unet(1), torch.randint(256, (2, 1, 8, 8), generator=generator()).to(torch.uint8)
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "stock")
    pipe = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "stock"))
    out = pipe.evaluate_nll(images, generator=generator(), num_inference_steps=6)
    pipe.save_pretrained(tmp_path / "own")
    again = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "own"))
    assert torch.equal(again.evaluate_nll(images, generator=generator(), num_inference_steps=6).bits_per_dim, out.bits_per_dim)
    # For diffusers it is what it was.
    stock = DiffusionPipeline.from_pretrained(tmp_path / "own")
    own = {"ScoreSdeVeScheduler": "ScoreSdeVePipeline", "KarrasVeScheduler": "KarrasVePipeline"}
    assert type(stock).__name__ == own.get(type(scheduler).__name__, "DDPMPipeline")
    assert type(stock.scheduler) is type(scheduler)
    kept = json.loads((tmp_path / "own" / "scheduler" / "scheduler_config.json").read_text())
    for name, value in json.loads((tmp_path / "stock" / "scheduler" / "scheduler_config.json").read_text()).items():
        assert kept[name] == value
    assert "trained_betas" not in kept["vlb_ddpm"]
    # The chain that is scored is the chain that is sampled: images are near those that the last prediction says.
    assert torch.isfinite(pipe(2, generator(), num_inference_steps=6, output_type="pt").images).all()


def test_a_model_of_other_levels_keeps_them(tmp_path):
    scheduler = upgrade_scheduler(EDMEulerScheduler(), num_levels=40)
    assert scheduler.config.num_train_timesteps == 40
    VLBDDPMPipeline(tiny_unet(1), scheduler).save_pretrained(tmp_path / "line")
    again = VLBDDPMPipeline.from_pretrained(tmp_path / "line").scheduler.config
    assert all(again[name] == scheduler.config[name] for name in ("num_train_timesteps", "trained_betas", "noise_process"))
    own = VLBDDPMScheduler.from_config(scheduler.config, num_train_timesteps=12, trained_betas=BETAS.tolist())
    VLBDDPMPipeline(tiny_unet(1), own).save_pretrained(tmp_path / "own")
    assert VLBDDPMPipeline.from_pretrained(tmp_path / "own").scheduler.config.trained_betas == BETAS.tolist()
    assert VLBDDPMScheduler.from_pretrained(tmp_path / "own", subfolder="scheduler").config.trained_betas == BETAS.tolist()


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (EDMEulerScheduler(sigma_min=80.0, sigma_max=0.002), "noise levels of EDMEulerScheduler must ascend"),
        (EDMEulerScheduler(sigma_data=0.0), "`sigma_data` must be a positive number, got 0.0"),
        (ScoreSdeVeScheduler(sigma_min=1.0, sigma_max=1.1), "between noise levels at least twice as high"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "`invert_sigmas` must be False"),
        (FlowMatchEulerDiscreteScheduler(2), "`num_train_timesteps` must be an integer from 3"),
        (LCMScheduler(), "`scheduler` must be a DDPMScheduler"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_levels_is_refused(scheduler, message):
    with pytest.raises(ValueError, match=message):
        VLBDDPMPipeline(tiny_unet(1), scheduler)


@pytest.mark.parametrize("scheduler", [type(kind) for _, kind in PROCESSES], ids=IDS)
def test_a_configuration_without_a_name_is_not_taken_for_a_ddpms(scheduler):
    scheduler = scheduler()
    with pytest.raises(ValueError, match="`config` must say of which class it is, in `_class_name`"):
        VLBDDPMScheduler.from_config(scheduler.config)
    named = {**scheduler.config, "_class_name": type(scheduler).__name__}
    assert VLBDDPMScheduler.from_config(named).config.noise_process["_class_name"] == type(scheduler).__name__


def test_what_is_no_denoiser_is_refused(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    DDPMPipeline(vae, EDMEulerScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must hold a UNet2DModel or a DiT.* or a UNet2DCond.*, got .* with a AutoencoderKL"):
        VLBDDPMPipeline.from_pretrained(tmp_path)


def test_a_learned_table_of_timesteps_is_refused():
    unet = tiny_unet(1, time_embedding_type="learned", num_train_timesteps=1000)
    pipe = VLBDDPMPipeline(unet, FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="must take fractions of a timestep for flow_matching"):
        pipe.evaluate_nll(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_a_calibration_fits_and_stays_with_the_process(tmp_path):
    images = torch.randint(256, (24, 1, 8, 8), generator=generator(4)).to(torch.uint8)
    pipe = quiet(VLBDDPMPipeline(tiny_unet(1), upgrade_scheduler(FlowMatchEulerDiscreteScheduler(), num_levels=30)))
    result = calibrate(pipe, images, evaluations=300, num_timesteps=5, quiet=True)
    better = quiet(VLBDDPMPipeline(pipe.unet, result.scheduler))
    before, after = (one.evaluate_nll(images, generator=generator()).bits_per_dim.mean() for one in (pipe, better))
    # Of an untrained network the variances were far too small.
    assert after < before - 1
    better.save_pretrained(tmp_path)
    again = quiet(VLBDDPMPipeline.from_pretrained(tmp_path))
    assert again.evaluate_nll(images, generator=generator()).bits_per_dim.mean() == after
    assert type(DDPMPipeline.from_pretrained(tmp_path).scheduler) is FlowMatchEulerDiscreteScheduler


def test_models_of_two_processes_are_compared(levels):
    # The same network in two readings: every difference is rounding.
    pair = [other(*PROCESSES[0]), other(*PROCESSES[2])]
    result = compare(pair, levels, max_evaluations=400, quiet=True)
    assert abs(result["difference"]) < 1e-9 and result["monte_carlo_error"] < 1e-9


def test_the_command_line_serves_both(tmp_path, capsys):
    images = np.random.default_rng(0).integers(256, size=(6, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.array([0, 1, 0, 1, 1, 0]))
    save_file({"encoder_hidden_states": torch.randn(2, 5, 6, generator=generator(3))}, tmp_path / "prompts.safetensors")
    DDPMPipeline(tiny_condition(), EDMEulerScheduler()).save_pretrained(tmp_path / "stock")
    command = ["evaluate", str(tmp_path / "stock"), "--dataset", str(tmp_path / "data.npz"), "--max-evaluations", "300"]
    report = tmp_path / "report.json"
    main([*command, "--network-kwargs", str(tmp_path / "prompts.safetensors"), "--output", str(report)])
    printed = capsys.readouterr()
    assert "edm (EDMEulerScheduler" in printed.out and "Expected types" not in printed.err
    read = read_report(report)
    config = read["config"]
    assert config["noise_process"].startswith("edm (EDMEulerScheduler") and config["beta_schedule"] == "log_snr_line"
    assert config["num_class_embeds"] == 2 and config["condition_sha256"]
    card = str(model_card(read, repository="me/edm"))
    assert "edm (EDMEulerScheduler" in card and "--network-kwargs prompts.safetensors" in card and str(tmp_path) not in card
    for given, message in (([], "`network_kwargs` must hold"), (["--network-kwargs", str(report)], "must be a file of safe")):
        assert main([*command, *given, "--output", str(tmp_path / "other.json")]) == 2
        assert message in capsys.readouterr().err


# Other networks.


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(256, (3, 1, 8, 8), generator=generator(2)).to(torch.uint8)


def test_a_dit_is_scored_class_by_class(pictures, tmp_path):
    scheduler = VLBDDPMScheduler(6, variance_type="learned_range")
    pipe = quiet(VLBDDPMPipeline(tiny_dit(), scheduler))
    labels = [2, 0, 1]
    out = pipe.evaluate_nll(pictures, generator=generator(), class_labels=labels)
    wanted = []
    for number, label in enumerate(labels):
        alone = pipe.evaluate_nll(pictures[number : number + 1], generator=generator(), class_labels=label)
        wanted.append(alone.prior)
    assert torch.allclose(out.prior, torch.cat(wanted))
    # The terms, from the network called by hand on the same draws.
    x = pictures.double() / 127.5 - 1
    noise = torch.randn(x.shape, generator=generator(5), dtype=torch.float64)
    t = torch.tensor([3, 1, 5])
    noisy = pipe.scheduler.forward_process().q_sample(x, noise, t)
    said = pipe.unet(noisy.float(), t, class_labels=torch.tensor(labels)).sample
    scorer = pipe.scorer()
    assert torch.allclose(
        scorer.terms(x, noise, t, torch.tensor(labels)), pipe.scheduler.vlb_terms(said, x, noisy, t), rtol=1e-6
    )
    pipe.save_pretrained(tmp_path)
    again = quiet(VLBDDPMPipeline.from_pretrained(tmp_path))
    assert torch.equal(again.evaluate_nll(pictures, generator=generator(), class_labels=labels).bits_per_dim, out.bits_per_dim)
    assert pipe(2, generator(), class_labels=[0, 1], output_type="pt").images.shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="`class_labels` must be given: 3 classes"):
        pipe.evaluate_nll(pictures)


def test_a_prompt_is_given_to_a_conditional_unet(pictures):
    states = torch.randn(2, 5, 6, generator=generator(3))
    scheduler = VLBDDPMScheduler(6)
    unet = tiny_condition()
    both = quiet(VLBDDPMPipeline(unet, scheduler, network_kwargs={"encoder_hidden_states": states}))
    out = both.evaluate_nll(pictures, generator=generator(), class_labels=[0, 1, 1])
    # With one row, all have it; with more, a class is the number of a row.
    for row in (0, 1):
        one = quiet(VLBDDPMPipeline(unet, scheduler, network_kwargs={"encoder_hidden_states": states[row : row + 1]}))
        alone = one.evaluate_nll(pictures, generator=generator())
        own = torch.tensor([0, 1, 1]) == row
        assert torch.allclose(alone.bits_per_dim[own], out.bits_per_dim[own], rtol=1e-6)
        assert not torch.allclose(alone.bits_per_dim[~own], out.bits_per_dim[~own], rtol=1e-6)
        assert alone.config["condition_sha256"] not in (None, out.config["condition_sha256"])


@pytest.mark.parametrize(
    ("network_kwargs", "message"),
    [
        (None, r"`network_kwargs` must hold 'encoder_hidden_states' for this network, a prompt's embeddings \(P, length, 6\)"),
        ({"encoder_hidden_states": torch.zeros(1, 5, 7)}, r"got encoder_hidden_states of shape \(1, 5, 7\)"),
        (
            {"encoder_hidden_state": torch.zeros(1, 5, 6)},
            "must name what this UNet2DConditionModel is given.*'encoder_hidden_st",
        ),
        ({"encoder_hidden_states": "a cat"}, "must be tensors with a row for each condition"),
        ({"encoder_hidden_states": torch.zeros(2, 5, 6), "encoder_attention_mask": torch.ones(3, 5)}, "as many rows each"),
        ({"encoder_hidden_states": torch.zeros(1, 5, 6, dtype=torch.int64)}, r"of shape \(1, 5, 6\) and torch.int64"),
        ({"encoder_hidden_states": torch.full((1, 5, 6), torch.nan)}, "must be finite numbers, got others in encoder_hidden"),
        # Of these it would make no use: other numbers in the report, and the same bound.
        *(
            ({"encoder_hidden_states": torch.zeros(1, 5, 6), name: torch.zeros(1, 4)}, f"mask, got '{name}'")
            for name in ("class_labels", "added_cond_kwargs", "mid_block_additional_residual", "timestep", "return_dict")
        ),
        # What only a call of the network tells.
        (
            {"encoder_hidden_states": torch.zeros(1, 5, 6), "encoder_attention_mask": torch.ones(1, 4)},
            r"must fit the network, got encoder_hidden_states \(1, 5, 6\), encoder_attention_mask \(1, 4\): ",
        ),
    ],
)
def test_conditions_that_do_not_fit_are_refused(pictures, network_kwargs, message):
    pipe = VLBDDPMPipeline(tiny_condition(), VLBDDPMScheduler(6), network_kwargs=network_kwargs)
    with pytest.raises(ValueError, match=message):
        pipe.evaluate_nll(pictures)


def test_conditions_that_are_given_in_a_dictionary(pictures):
    how = dict(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=14)
    unet, states = tiny_condition(**how), torch.randn(1, 5, 6, generator=generator(3))
    added = {"text_embeds": torch.randn(1, 6, generator=generator(4)), "time_ids": torch.tensor([[8.0, 8.0]])}
    pipe = quiet(VLBDDPMPipeline(unet, VLBDDPMScheduler(6), network_kwargs={"encoder_hidden_states": states, **added}))
    assert torch.isfinite(pipe.evaluate_nll(pictures, generator=generator()).bits_per_dim).all()
    x = torch.randn(3, 1, 8, 8, generator=generator(5))
    with torch.no_grad():
        rows = {name: value.expand(3, -1) for name, value in added.items()}
        said = unet(x, 2, states.expand(3, -1, -1), added_cond_kwargs=rows).sample
        assert torch.equal(pipe.network(x, 2), said)
    for name in added:
        less = {key: value for key, value in added.items() if key != name} | {"encoder_hidden_states": states}
        with pytest.raises(ValueError, match=f"`network_kwargs` must hold '{name}' .* addition_embed_type='text_time'"):
            VLBDDPMPipeline(unet, VLBDDPMScheduler(6), network_kwargs=less).evaluate_nll(pictures)


def test_classes_that_are_embedded_from_numbers_or_vectors(pictures):
    for kind, rows in (("timestep", torch.tensor([3.0])), ("identity", torch.randn(1, 16, generator=generator(1)))):
        unet = tiny_unet(1, class_embed_type=kind)
        pipe = quiet(VLBDDPMPipeline(unet, VLBDDPMScheduler(6), network_kwargs={"class_labels": rows}))
        out = pipe.evaluate_nll(pictures, generator=generator())
        other_rows = VLBDDPMPipeline(unet, VLBDDPMScheduler(6), network_kwargs={"class_labels": rows + 1})
        assert not torch.equal(quiet(other_rows).evaluate_nll(pictures, generator=generator()).bits_per_dim, out.bits_per_dim)
        with pytest.raises(ValueError, match=f"`network_kwargs` must hold 'class_labels' .* class_embed_type='{kind}'"):
            VLBDDPMPipeline(unet, VLBDDPMScheduler(6)).evaluate_nll(pictures)


def test_what_is_no_shape_or_no_prediction_is_refused(pictures):
    for shape in ((8, 8), (1, 8, 8.5), "1x8x8", (0, 8, 8)):
        with pytest.raises(ValueError, match="`shape` must be"):
            FunctionModel(lambda x, t: x, shape)
    with pytest.raises(ValueError, match="`function` must be callable"):
        FunctionModel(3, (1, 8, 8))
    pipe = VLBDDPMPipeline(FunctionModel(lambda x, t: x[:, :, :4], (1, 8, 8)), VLBDDPMScheduler(6))
    with pytest.raises(ValueError, match=r"`function` must return a tensor of shape \(3, 1, 8, 8\), got \(3, 1, 4, 8\)"):
        pipe.evaluate_nll(pictures)
