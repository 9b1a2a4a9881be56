r"""A member is added to each family from outside, in a few lines, and taken through everything that members go through."""

import json

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from tiny import quiet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.cli import main
from ddpm_vlb.data import ImageSet, load_images, open_images, readers
from ddpm_vlb.data.readers import add_format, file_format
from ddpm_vlb.evaluation import evaluate, format_report, merge_reports
from ddpm_vlb.gaussians import nats_to_bits_per_dim
from ddpm_vlb.likelihoods import methods
from ddpm_vlb.likelihoods.method import Columns, Method, Option
from ddpm_vlb.likelihoods.methods import add_method
from ddpm_vlb.model import kinds
from ddpm_vlb.model.kinds import add_network, network_of
from ddpm_vlb.model.network import Network

# A likelihood: L_T alone, `times` times over.


def prior_alone(scorer, trained, num_dimensions, batch_size, options) -> Columns:
    def score(levels, seeds, labels):
        nats = options["times"] * scorer.prior(scorer.samples(levels)).cpu()
        return {
            "bits_per_dim": nats_to_bits_per_dim(nats, num_dimensions).tolist(),
            "brightness": levels.double().flatten(1).mean(dim=1).tolist(),
            "num_network_evaluations": len(levels),
        }

    return Columns(f"prior_alone, {options['times']} times", batch_size, 1, score)


PRIOR_ALONE = dict(
    name="prior_alone",
    help="the prior term alone",
    metric="bits/dim (prior term)",
    options=(Option("times", int, "how often, with --method prior_alone", default=1, positive=True),),
    columns={"bits_per_dim": "prior term", "brightness": "mean level"},
    begin=prior_alone,
)

# A network that is no UNet2DModel: it knows neither `in_channels` nor `sample_size`, and calls its arguments otherwise.


class Mixer(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, colours: int = 1, width: int = 8):
        super().__init__()
        self.layer = torch.nn.Conv2d(colours, colours, 3, padding=1)

    def forward(self, at: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        return self.layer(noisy) * (1 + at.reshape(-1, 1, 1, 1) / 1000)


class MixerNetwork(Network):
    def __init__(self, module, device=None):
        super().__init__(module, device)
        self.channels, self.size = module.config.colours, (module.config.width, module.config.width)

    def output(self, samples, timesteps, class_labels):
        return self.module(timesteps.to(samples.dtype), samples)


# A data format: a line of JSON for each image.


def read_lines(path) -> ImageSet:
    levels = np.array([json.loads(line) for line in path.read_text().splitlines()], dtype=np.uint8)
    return ImageSet(torch.from_numpy(levels)[:, None], 17, str(path))


@pytest.fixture
def families(monkeypatch):
    r"""The families as they are, whatever a test adds."""
    monkeypatch.setattr(methods, "METHODS", methods.METHODS)
    before = dict(methods.METHODS), list(kinds._KINDS), list(readers.FORMATS)
    yield
    for family, members in zip((methods.METHODS, kinds._KINDS, readers.FORMATS), before):
        family.clear()
        family.update(members) if isinstance(family, dict) else family.extend(members)


@pytest.fixture
def checkpoint(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_method(families, pipe, checkpoint, images, tmp_path, monkeypatch, capsys):
    add_method(Method(**PRIOR_ALONE))
    report = evaluate(pipe, images, method="prior_alone", times=2, quiet=True)
    prior = pipe.evaluate_nll(images).prior
    assert report["bits_per_dim"] == pytest.approx(2 * prior.mean().item(), rel=1e-12)
    assert report["per_image"] == pytest.approx((2 * prior).tolist(), rel=1e-12)
    assert report["method"] == "prior_alone, 2 times" and report["config"]["times"] == 2
    assert report["brightness"] == pytest.approx(images.double().mean().item())
    assert "prior_alone, 2 times" in format_report(report) and "mean level" in format_report(report)
    shards = [evaluate(pipe, images, method="prior_alone", times=2, quiet=True, shard=(index, 2)) for index in range(2)]
    merged = merge_reports(shards)
    assert merged["bits_per_dim"] == pytest.approx(report["bits_per_dim"], rel=1e-12)
    assert merged["per_image"] == pytest.approx(report["per_image"], rel=1e-12)

    # The command line, the card, and back.
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "tiny", "--dataset", "digits", "--max-images", "6", "--method", "prior_alone", "--times", "3"]
    assert main([*command, "--output", "tiny/report.json"]) == 0, capsys.readouterr().err
    assert "prior_alone, 3 times" in capsys.readouterr().out
    assert main(["card", "tiny", "--num-images", "0"]) == 0, capsys.readouterr().err
    card = (tmp_path / "tiny" / "README.md").read_text()
    assert "bits/dim (prior term)" in card and "--method prior_alone" in card and "--times 3" in card
    assert main(["card", "tiny", "--check"]) == 0
    # Another method's option, and another's name.
    assert main([*command[:-4], "--times", "3"]) == 2
    assert "`times` must be left out unless method='prior_alone'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a word that no other method has, got 'prior_alone'"):
        add_method(Method(**PRIOR_ALONE))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"name": "two words"}, "`method.name` must be a word"),
        ({"columns": None}, "`method.columns` must have 'bits_per_dim' among them, got None"),
        ({"columns": {"brightness": "mean level"}}, "`method.columns` must have 'bits_per_dim' among them"),
        ({"begin": None}, "`method.begin` must be given"),
    ],
)
def test_a_method_that_is_none(families, fault, message):
    before = dict(methods.METHODS)
    with pytest.raises(ValueError, match=message):
        add_method(Method(**PRIOR_ALONE | fault))
    assert before == methods.METHODS


def test_a_method_that_does_not_merge(families, pipe, images):
    add_method(Method(**PRIOR_ALONE | {"merges": False}))
    with pytest.raises(ValueError, match="`shard` must be left out with method='prior_alone', whose reports cannot be merged"):
        evaluate(pipe, images, method="prior_alone", quiet=True, shard=(0, 2))
    reports = [evaluate(pipe, images, method="prior_alone", quiet=True, seed=seed) for seed in range(2)]
    with pytest.raises(ValueError, match="prior_alone"):
        merge_reports(reports)


def test_a_network(families, images, tmp_path, monkeypatch, capsys):
    add_network(Mixer, MixerNetwork)
    torch.manual_seed(0)
    pipe = quiet(VLBDDPMPipeline(Mixer(), VLBDDPMScheduler(num_train_timesteps=20, num_pixel_levels=17)))
    assert isinstance(pipe.network, MixerNetwork) and network_of(pipe.unet).channels == 1 and pipe.network.size == (8, 8)
    full = evaluate(pipe, images, method="full", quiet=True)
    assert full["num_network_evaluations"] == 100 and full["config"]["num_class_embeds"] is None
    sampled = evaluate(pipe, images, evaluations_per_image=400, quiet=True)
    assert abs(sampled["bits_per_dim"] - full["bits_per_dim"]) < 5 * (sampled["monte_carlo_error"] + full["monte_carlo_error"])
    assert merge_reports([full, evaluate(pipe, images, method="full", seed=1, quiet=True)])["num_images"] == 5
    assert len(pipe(batch_size=2, num_inference_steps=3).images) == 2
    with pytest.raises(ValueError, match="`class_labels` must be left out: the network is unconditional"):
        evaluate(pipe, images, class_labels=0, quiet=True)

    # Saved, loaded under its own name, scored and carded by the command line.
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("mixer")
    again = VLBDDPMPipeline.from_pretrained("mixer")
    assert type(again.unet) is Mixer and again.evaluate_nll(images).bits_per_dim.shape == (5,)
    assert (
        main(
            [
                "evaluate",
                "mixer",
                "--dataset",
                "digits",
                "--max-images",
                "4",
                "--max-evaluations",
                "2000",
                "--output",
                "mixer/report.json",
            ]
        )
        == 0
    )
    assert main(["card", "mixer", "--num-images", "0"]) == 0 and main(["card", "mixer", "--check"]) == 0
    kinds._KINDS.pop()
    assert main(["evaluate", "mixer", "--dataset", "digits"]) == 2
    assert "must name classes of diffusers in its index" in capsys.readouterr().err


def test_a_data_format(families, pipe, checkpoint, tmp_path, monkeypatch, capsys):
    digits = load_images("digits", "test", 5)
    (tmp_path / "few.lines").write_text("".join(json.dumps(image[0].tolist()) + "\n" for image in digits.images))
    with pytest.raises(ValueError, match="must be 'digits', a folder, an image, an npz file, an idx file of uint8 images, or"):
        open_images(tmp_path / "few.lines")
    add_format(file_format("a file of lines", (".lines",), read_lines))
    assert torch.equal(open_images(tmp_path / "few.lines").images, digits.images)
    report = evaluate(pipe, open_images(tmp_path / "few.lines"), method="full", quiet=True)
    assert report["bits_per_dim"] == evaluate(pipe, digits, method="full", quiet=True)["bits_per_dim"]
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "tiny", "--dataset", "few.lines", "--method", "full"]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "report.json").read_text())["per_image"] == report["per_image"]
    assert main(["evaluate", "tiny", "--dataset", "few.lines", "--split", "test"]) == 2
    with pytest.raises(ValueError, match="must be a file of lines, 'digits', a folder, an image, an npz file"):
        (tmp_path / "other.txt").write_text("nothing of the kind")
        open_images(tmp_path / "other.txt")


def test_a_misspelt_argument_is_refused(pipe, images):
    with pytest.raises(ValueError, match="`num_inference_step` must be an argument .* Did you mean `num_inference_steps`"):
        evaluate(pipe, images, num_inference_step=5)
    with pytest.raises(
        ValueError, match="`context` must have settings that a report knows, got 'datset'. Did you mean `dataset`?"
    ):
        evaluate(pipe, images, context={"datset": "digits"})


def test_what_an_output_means_is_a_row():
    r"""A prediction type is added as a row, and scoring, sampling, losses and the flow follow it: the negative of the noise."""
    from dataclasses import replace

    from ddpm_vlb import parametrizations
    from ddpm_vlb.likelihoods.probability_flow import Flow
    from ddpm_vlb.model.scorer import make_scorer

    epsilon = parametrizations.PREDICTIONS["epsilon"]
    minus = replace(
        epsilon,
        name="minus_epsilon",
        original=lambda f, x_t, out, t: epsilon.original(f, x_t, -out, t),
        target=lambda f, x, eps, t: -eps,
        step=lambda x_t, out, c: epsilon.step(x_t, -out, c),
        flow=lambda u, x_t, out, sigma, root: epsilon.flow(u, x_t, -out, sigma, root),
    )
    parametrizations.PREDICTIONS["minus_epsilon"] = minus
    try:
        from tiny import tiny_unet

        unet, opposite = tiny_unet(), tiny_unet()
        with torch.no_grad():
            for weight in opposite.conv_out.parameters():
                weight.neg_()
        pipes = [
            quiet(VLBDDPMPipeline(net, VLBDDPMScheduler(20, num_pixel_levels=17, prediction_type=kind)))
            for net, kind in ((unet, "epsilon"), (opposite, "minus_epsilon"))
        ]
        levels = torch.randint(17, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        scores = [pipe.evaluate_nll(levels, generator=torch.Generator().manual_seed(1)).bits_per_dim for pipe in pipes]
        assert torch.equal(*scores)
        samples = [pipe(2, generator=torch.Generator().manual_seed(2), output_type="pt").images for pipe in pipes]
        assert torch.equal(*samples)
        x, noise = torch.rand(2, 3, 1, 8, 8)
        outputs = [pipe.network(x, 5) for pipe in pipes]
        losses = [p.scheduler.training_loss(out, x, noise, x, 5) for p, out in zip(pipes, outputs)]
        assert torch.allclose(*losses)
        scorers = [make_scorer(pipe.network, pipe.scheduler) for pipe in pipes]
        flows = [Flow(s, p.scheduler.forward_process()).predicted_noise(x.double(), -1.0) for s, p in zip(scorers, pipes)]
        assert torch.allclose(*flows)
    finally:
        del parametrizations.PREDICTIONS["minus_epsilon"]


def test_what_is_no_method_or_no_number_is_refused(pipe, images):
    for method in ("iw, k = 64", "full sweep", "", None, ["iw"]):
        with pytest.raises(ValueError, match="`method` must be one of sampled, full, iw, ode, got"):
            evaluate(pipe, images, method=method, quiet=True)
    for options in ({"buffer_bytes": 1e9}, {"max_evaluations": 400.0}, {"method": "iw", "k": 2.0}):
        name = [*options][-1]
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            evaluate(pipe, images, quiet=True, **options)


def test_only_whole_names_of_libraries_are_known():
    known = kinds.known_module_class
    assert known("diffusers", "UNet2DModel") is known("diffusers.models", "UNet2DModel") is not None
    assert not any(known(library, "UNet2DModel") for library in ("d", "", "diffusers.m", None, 3, "torch"))
