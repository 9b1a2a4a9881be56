r"""Which class: the test that drops classes holds its level, and what comes out is the posterior of a model that is known."""

import json
import math
import os
import shlex

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import generator, quiet, tiny_unet
from zygote import shared

from ddpm_vlb import FunctionModel, VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.cli import main
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation.classify import classify_images
from ddpm_vlb.hub.cards import model_card
from ddpm_vlb.losses import simple_loss
from ddpm_vlb.noise_processes import level_betas
from ddpm_vlb.reports.classes import with_classes
from ddpm_vlb.reports.schema import read_report
from ddpm_vlb.sampled_bound.design import bin_edges
from ddpm_vlb.sampled_bound.elimination import Line, Proposal, Race, learn, looks

STEPS, LEVELS = 60, 256
BETAS = level_betas(0.02, 30.0, STEPS)
MEANS = torch.tensor([-0.35, -0.1, 0.2], dtype=torch.float64)
WIDTH = 0.3


class Gaussian(torch.nn.Module):
    r"""The best denoiser for images whose pixels are normal, with a mean for each class: eq. 10 of Ho et al. in closed form."""

    def __init__(self):
        super().__init__()
        self.means = torch.nn.Parameter(MEANS)
        self.alphas = torch.tensor(np.cumprod(1 - BETAS))

    def forward(self, x_t, t, labels):
        alpha = self.alphas[t].reshape(-1, 1, 1, 1)
        mean = self.means[labels].reshape(-1, 1, 1, 1)
        gain = alpha.sqrt() * WIDTH**2 / (alpha * WIDTH**2 + 1 - alpha)
        return mean + gain * (x_t - alpha.sqrt() * mean)


def gaussian_pipe(**overrides):
    scheduler = VLBDDPMScheduler(STEPS, trained_betas=BETAS.tolist(), prediction_type="sample", clip_sample=False, **overrides)
    return quiet(VLBDDPMPipeline(FunctionModel(Gaussian(), (1, 4, 4), num_classes=3), scheduler))


@pytest.fixture(scope="module")
def pictures():
    r"""Images of the three classes, on the grid, and the true posterior of each."""
    own = torch.arange(60) % 3
    noise = torch.randn(60, 1, 4, 4, generator=generator(3), dtype=torch.float64)
    x = MEANS[own].reshape(-1, 1, 1, 1) + WIDTH * noise
    levels = ((x + 1) * 127.5).round().clamp(0, 255)
    x = levels / 127.5 - 1
    log_density = torch.stack([-0.5 * ((x - mean) / WIDTH).square().flatten(1).sum(1) for mean in MEANS], dim=1)
    return levels.to(torch.uint8), log_density.softmax(dim=1), own


def test_the_posterior_of_a_known_model(pictures):
    levels, posterior, _ = pictures
    out = gaussian_pipe().classify(levels, generator=generator(), confidence=0.99, max_evaluations_per_image=6000)
    assert torch.allclose(out.probabilities.sum(dim=1), torch.ones(60, dtype=torch.float64))
    # The bound's gap to the likelihood is nearly that of all classes: where the posterior is clear the label is its own.
    clear = posterior.max(dim=1).values > 0.9
    assert clear.sum() > 25 and (out.labels == posterior.argmax(dim=1))[clear].all()
    # Of a full sweep nothing is left to chance but the noise: in logits, the difference to the true ones is below a few errors.
    ratio = posterior.log() - posterior.log().gather(1, out.labels[:, None])
    nats = out.bits_per_dim * 16 * math.log(2)
    got = nats.gather(1, out.labels[:, None]) - nats
    error = out.monte_carlo_error * 16 * math.log(2)
    others = error > 0
    z = ((got - ratio) / (error + 0.05 * ratio.abs() + 0.02))[others]
    assert z.abs().max() < 5 and z.square().mean() < 2.5


def test_decided_images_are_those_of_the_full_sweep(pictures):
    levels, _, _ = pictures
    pipe = gaussian_pipe()
    many = torch.stack(
        [
            pipe.evaluate_nll(levels.repeat(40, 1, 1, 1), 2400, generator(5), class_labels=label)
            .bits_per_dim.reshape(40, 60)
            .mean(dim=0)
            for label in range(3)
        ],
        dim=1,
    )
    best = many.argmin(dim=1)
    # Of those whose best class is known beyond doubt.
    gaps = many.sort(dim=1).values
    known = gaps[:, 1] - gaps[:, 0] > 0.002
    wrong = decided = 0
    for seed in range(12):
        out = pipe.classify(levels, generator=generator(seed), confidence=0.8)
        own = out.decided & known
        wrong, decided = wrong + int((out.labels != best)[own].sum()), decided + int(own.sum())
    assert decided > 400 and wrong <= stats.binom.ppf(1 - 1e-4, decided, 0.2)
    print(f"\n{wrong} of {decided} decided images have another label than the full sweep (at most 20 % may)")


@pytest.mark.parametrize("spread", ["normal", "skewed"])
def test_the_level_holds_over_all_looks_and_classes(spread):
    # Four classes, the best one better by next to nothing: whoever is dropped is dropped by chance.
    rng = np.random.default_rng(0)
    count, level = 2000, 0.1
    race = Race(np.zeros(4), Line(0.0, 0.0, 4.0), count, level)
    done = 0
    for number in looks(64):
        shape = (count, number - done, 4)
        noise = rng.normal(size=shape) if spread == "normal" else rng.exponential(size=shape) - 1
        race.add(noise + np.array([0.0, 1e-3, 1e-3, 1e-3]), rng.integers(1000, size=shape[:2]))
        done = number
    lost = ~race.active[:, 0]
    assert lost.mean() <= stats.binom.ppf(1 - 1e-4, count, level) / count


@pytest.mark.parametrize(
    "profile",
    [lambda u: u, lambda u: np.cos(2 * np.pi * u), lambda u: np.exp(-(((u - 0.3) / 0.1) ** 2))],
    ids=["line", "wave", "hump"],
)
def test_the_level_holds_where_rows_matter(profile):
    # Differences that are a function of the row, and little noise: evenly spread rows average it out, and the error says so.
    rng = np.random.default_rng(0)
    count, level, size = 2000, 0.1, 1000
    shape = profile((np.arange(size) + 0.5) / size)
    shape = (shape - shape.mean()) / shape.std()
    line = Line(math.log(1.02), 0.0, 4.0, 0.02 / 1.02)
    proposal = Proposal(np.full(size, 1 / size), line)
    keys, race, done = rng.integers(2**63, size=count).astype(np.uint64), Race(np.zeros(4), line, count, level), 0
    for number in looks(64):
        rows = proposal.rows(keys, done, number)
        values = 0.1 * rng.normal(size=(count, number - done, 4))
        values[:, :, 1:] += (shape + 1e-3)[rows][:, :, None]
        race.add(values, rows)
        done = number
    lost = ~race.active[:, 0]
    assert lost.mean() <= stats.binom.ppf(1 - 1e-4, count, level) / count
    # What is printed as an error is that of the mean: of unordered draws it would be several times as large.
    leader, nats, error = race.result()
    whole = race.active.all(axis=1)
    spread = (nats[:, 1] - nats[:, 0])[whole].std()
    assert spread < math.sqrt((error[whole].max(axis=1) ** 2).mean()) < 0.5 * math.sqrt(1.02 / 64)


def test_a_pilot_says_where_classes_differ():
    rng = np.random.default_rng(1)
    edges = np.array([0, 1, 3, 8, 20])
    # In the third bin alone, per row; means of 5 for each pair.
    values = np.zeros((200, 4, 3))
    values[:, 2, 1:] = 1 + 0.5 * rng.normal(size=(200, 2))
    proposal = learn(values, edges)
    assert proposal.probabilities.sum() == pytest.approx(1) and (proposal.probabilities > 0).all()
    assert proposal.probabilities[3:8].sum() > 0.85
    rows = proposal.rows(np.arange(1000, dtype=np.uint64), 0, 8)
    counts = np.bincount(rows.ravel(), minlength=20) / rows.size
    assert np.abs(counts - proposal.probabilities).max() < 0.02


def test_the_level_holds_for_one_image_whose_pilot_is_its_own():
    # Of images between two classes: what is decided is decided by chance, one image at a time.
    pipe = gaussian_pipe()
    levels = ((MEANS[:2].mean() + 1) * 127.5).round().to(torch.uint8).expand(1, 1, 4, 4)
    outs = [pipe.classify(levels, classes=[0, 1], confidence=0.8, generator=generator(seed)) for seed in range(60)]
    labels = torch.cat([out.labels for out in outs])[torch.cat([out.decided for out in outs])]
    # Both labels come about, the wrong one in at most a fifth of all.
    assert min((labels == 0).sum(), (labels == 1).sum()) <= stats.binom.ppf(1 - 1e-4, 60, 0.2)


def test_an_output_that_is_not_finite_names_image_class_and_timestep(pictures):
    levels, _, _ = pictures
    pipe = gaussian_pipe()
    forward = pipe.unet.function.forward
    pipe.unet.function.forward = lambda x, t, labels: torch.where(
        (labels == 2).reshape(-1, 1, 1, 1), torch.nan, forward(x, t, labels)
    )
    with pytest.raises(ValueError, match=r"finite outputs, got a term of nan nats for class 2 for image \d+ at timestep \d+"):
        pipe.classify(levels, generator=generator())


def test_the_result_is_the_seeds_whatever_the_batches(pictures):
    levels, _, _ = pictures
    pipe = gaussian_pipe()
    first = pipe.classify(levels, generator=generator(1), batch_size=7)
    second = pipe.classify(levels, generator=generator(1), batch_size=500)
    other = pipe.classify(levels, generator=generator(2))
    assert torch.equal(first.labels, second.labels) and torch.equal(first.evaluations, second.evaluations)
    assert torch.allclose(first.bits_per_dim, second.bits_per_dim, rtol=1e-9)
    assert not torch.equal(first.evaluations, other.evaluations)
    assert first.num_network_evaluations == second.num_network_evaluations > int(first.evaluations.sum())
    # Easy images end early.
    assert first.evaluations.min() < 0.3 * first.evaluations.max()


def test_priors_and_classes(pictures):
    levels, _, _ = pictures
    pipe = gaussian_pipe()
    two = pipe.classify(levels, classes=[2, 0], generator=generator())
    assert set(two.labels.tolist()) == {0, 2} and two.probabilities.shape == (60, 2)
    # So strong a prior that no image says otherwise.
    sure = pipe.classify(levels, class_prior=[1e-80, 1 - 2e-80, 1e-80], generator=generator())
    assert (sure.labels == 1).all() and sure.decided.all()
    assert sure.config["class_prior"] == pytest.approx([1e-80, 1.0, 1e-80]) and two.config["class_prior"] == pytest.approx(
        [0.5] * 2
    )


def test_a_network_of_diffusers_by_evaluations_and_by_sweep():
    unet = tiny_unet(1, num_class_embeds=3)
    with torch.no_grad():
        unet.class_embedding.weight.mul_(3)
    pipe = quiet(VLBDDPMPipeline(unet, VLBDDPMScheduler(20, 0.003, 0.3, num_pixel_levels=17)))
    levels = torch.randint(17, (6, 1, 8, 8), generator=generator(4)).to(torch.uint8)
    out = pipe.classify(levels, generator=generator(), max_evaluations_per_image=3000, confidence=0.999999)
    sweeps = [
        pipe.evaluate_nll(levels.repeat(30, 1, 1, 1), 180, generator(), class_labels=label).bits_per_dim.reshape(30, 6)
        for label in range(3)
    ]
    means = torch.stack([one.mean(dim=0) for one in sweeps], dim=1)
    errors = torch.stack([one.std(dim=0) / 30**0.5 for one in sweeps], dim=1)
    assert torch.allclose(out.bits_per_dim, means, atol=6 * (errors.max().item() + out.monte_carlo_error.max().item() + 0.02))
    assert "labels" in repr(out.to_pandas()) and "decided" in repr(out)


def test_a_card_says_how_well_it_tells_classes(tmp_path, capsys):
    folder, classes = tmp_path / "pipeline", tmp_path / "classes.json"
    VLBDDPMPipeline(tiny_unet(1, num_class_embeds=10), VLBDDPMScheduler(20, 0.003, 0.3, num_pixel_levels=17)).save_pretrained(
        folder
    )
    data = [str(folder), "--dataset", "digits", "--max-images", "12"]
    assert main(["evaluate", *data, "--max-evaluations", "200", "--output", str(folder / "report.json")]) == 0
    assert main(["classify", *data, "--max-evaluations-per-image", "40", "--output", str(classes)]) == 0
    result = json.loads(classes.read_text())
    command = ["card", str(folder), "--num-images", "0", "--repository", "me/classes"]
    assert main([*command, "--classes", str(classes)]) == 0
    card = (folder / "README.md").read_text()
    assert f"**accuracy {result['accuracy']:.4f}**" in card and "image-classification" in card
    assert main(["card", "--check", str(folder)]) == 0
    # The command of the card gives its number.
    said = next(line for line in card.splitlines() if line.startswith("ddpm-vlb classify"))
    words = shlex.split(said.replace("me/classes", str(folder)))[1:]
    assert main([*words, "--output", str(tmp_path / "again.json")]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["per_image"] == result["per_image"]
    assert str(tmp_path) not in (folder / "report.json").read_text().partition('"classification"')[2]
    # Of some of the classes only, the command says which; of a prior of its own there is none.
    part = result["config"] | {"classes": [3, 5], "class_prior": [0.5, 0.5], "quantized": True, "dtype": "bfloat16"}
    for more, words in (({}, "--classes 3,5 "), ({"class_prior": [0.9, 0.1]}, "or with a prior of its own")):
        other = with_classes(read_report(folder / "report.json"), result | {"config": part | more})
        text = str(model_card(other, repository="me/classes"))
        assert words in text and ("--quantize" in text and "--dtype bfloat16" in text) == (not more)
    # Another number is no report's, and another network's is refused.
    (folder / "README.md").write_text(card.replace(f"accuracy {result['accuracy']:.4f}", "accuracy 0.9999"))
    assert main(["card", "--check", str(folder)]) == 2
    classes.write_text(json.dumps(result | {"config": result["config"] | {"network_sha256": "0" * 64}}))
    assert main([*command, "--classes", str(classes)]) == 2
    assert "`classes` must be of the report's network" in capsys.readouterr().err
    classes.write_text("[]")
    assert main([*command, "--classes", str(classes)]) == 2
    report = read_report(folder / "report.json")
    for change, message in (({"accuracy": 2.0}, "inside its interval"), ({"accuracy": "1"}, "must have .* for 'accuracy'")):
        with pytest.raises(ValueError, match=message):
            model_card(report | {"classification": report["classification"] | change}, repository="me/classes")


@pytest.fixture
def in_small_parts(monkeypatch):
    r"""Every 8 images are told and kept."""
    monkeypatch.setattr("ddpm_vlb.evaluation.classify.PART", 8)
    monkeypatch.setattr("ddpm_vlb.evaluation.run.SECONDS_BETWEEN_EXCHANGES", 0.0)


def plain(result):
    r"""What does not depend on who does the work."""
    return result | {"config": {name: value for name, value in result["config"].items() if name != "num_processes"}}


def test_a_run_that_was_stopped_goes_on(pictures, tmp_path, in_small_parts):
    levels, _, own = pictures
    pipe, journal, done = gaussian_pipe(), tmp_path / "journal", []
    options = {"labels": own.tolist(), "max_evaluations_per_image": 90, "seed": 5}
    whole = classify_images(pipe, levels, **options)
    assert whole["num_network_evaluations"] == whole["num_pilot_evaluations"] + sum(whole["per_image"]["evaluations"])
    assert whole["accuracy"] > 0.4  # of three classes that overlap

    def stop(count, accuracy):
        done.append(count)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classify_images(pipe, levels, journal=journal, step=stop, **options)
    asked = []
    pipe.unet.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    again = classify_images(pipe, levels, journal=journal, **options)
    assert plain(again) == plain(whole)
    # The pilot and two parts at least were not asked again.
    assert (
        0
        < sum(asked)
        <= whole["num_network_evaluations"] - whole["num_pilot_evaluations"] - sum(whole["per_image"]["evaluations"][:16])
    )
    with pytest.raises(ValueError, match="`images` must be those of the journal"):
        classify_images(pipe, levels.flip(0), journal=journal, **options)
    with pytest.raises(ValueError, match="journal of another evaluation beside it.* differs in seed"):
        classify_images(pipe, levels, journal=journal, **options | {"seed": 6})


def test_two_processes_give_the_classes_of_one(tmp_path):
    unet = tiny_unet(1, num_class_embeds=3)
    folder = tmp_path / "pipeline"
    VLBDDPMPipeline(unet, VLBDDPMScheduler(20, 0.003, 0.3, num_pixel_levels=17)).save_pretrained(folder)
    images = torch.randint(17, (20, 8, 8), generator=generator(4)).to(torch.uint8)
    np.savez(tmp_path / "images.npz", images=images.numpy(), labels=(torch.arange(20) % 3).numpy())
    code = (
        "import sys, ddpm_vlb.evaluation.classify as c; c.PART = 4; from ddpm_vlb.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["-c", code, "classify", folder, "--dataset", tmp_path / "images.npz", "--max-evaluations-per-image", "12"]
    ranks = shared().run_ranks(2, *command, "--output", tmp_path / "two.json", env=os.environ | {"ACCELERATE_USE_CPU": "true"})
    assert [rank.returncode for rank in ranks] == [0, 0] and "accuracy" in ranks[0].stdout and not ranks[1].stdout
    assert main([*map(str, command[2:]), "--output", str(tmp_path / "one.json")]) == 0
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert (one["config"]["num_processes"], two["config"]["num_processes"]) == (1, 2)
    assert one["per_image"]["predictions"] == two["per_image"]["predictions"]
    assert one["num_network_evaluations"] == two["num_network_evaluations"]
    assert not list(tmp_path.glob("*.journal"))


def test_squared_errors_are_those_of_the_simple_loss():
    unet = tiny_unet(1, num_class_embeds=3)
    pipe = quiet(VLBDDPMPipeline(unet, VLBDDPMScheduler(20, 0.003, 0.3, num_pixel_levels=17, clip_sample=False)))
    scorer = pipe.scorer()
    x = torch.rand(5, 1, 8, 8, generator=generator(1)) * 2 - 1
    noise, t, labels = torch.randn(5, 1, 8, 8, generator=generator(2)), torch.tensor([0, 3, 7, 12, 19]), torch.arange(5) % 3
    with torch.no_grad():
        got = scorer.squared_errors(x.double(), noise, t, labels)
        noisy = scorer.reverse.forward.q_sample(x.double(), noise, t)
        loss = simple_loss(scorer.reverse, scorer.network(noisy, t, labels), x.double(), noise, t)
    assert torch.allclose(got, 64 * loss.double(), rtol=1e-5)


def test_by_squared_errors(pictures):
    levels, _, _ = pictures
    pipe = gaussian_pipe()
    out = pipe.classify(levels[:6], generator=generator(), score="simple", confidence=0.9999, max_evaluations_per_image=9000)
    assert out.bits_per_dim is None and out.monte_carlo_error is None and out.config["score"] == "simple"
    assert torch.allclose(out.probabilities.sum(dim=1), torch.ones(6, dtype=torch.float64))
    # The posterior mean is off by a share of the noise that is known, and by what the class's mean is off.
    alphas, x = torch.tensor(np.cumprod(1 - BETAS)), levels[:6].double().flatten(1) / 127.5 - 1
    gain = alphas * WIDTH**2 / (alphas * WIDTH**2 + 1 - alphas)
    off = torch.stack([(x - mean).square().sum(dim=1) for mean in MEANS], dim=1)
    expected = (off[:, :, None] * (1 - gain) ** 2 + 16 * gain**2 * (1 - alphas) / alphas) * alphas / (1 - alphas)
    logits = -expected.mean(dim=2)
    best = out.labels == logits.argmax(dim=1)
    gap = logits.sort(dim=1).values
    assert best[(gap[:, -1] - gap[:, -2]) > 1].all()
    pairs = (out.probabilities.log() - logits) - (out.probabilities.log() - logits).mean(dim=1, keepdim=True)
    assert pairs[out.probabilities > 0.05].abs().max() < 0.6


def test_no_label_is_no_class_to_choose(pictures):
    pipe = gaussian_pipe(unlabelled_class=1)
    assert pipe.classify(pictures[0], generator=generator()).config["classes"] == [0, 2]
    assert pipe.classify(pictures[0], classes=[0, 1], generator=generator()).config["classes"] == [0, 1]


@pytest.mark.parametrize("dtype", ["bfloat16", "autocast-bfloat16"])
def test_half_precision_says_what_it_moves(dtype, tmp_path, capsys):
    unet = tiny_unet(1, num_class_embeds=3)
    pipe = VLBDDPMPipeline(unet, VLBDDPMScheduler(20, 0.003, 0.3, num_pixel_levels=17))
    pipe.save_pretrained(tmp_path / "pipeline")
    images = torch.randint(17, (6, 8, 8), generator=generator(4)).to(torch.uint8)
    np.savez(tmp_path / "images.npz", images=images.numpy())
    command = ["classify", str(tmp_path / "pipeline"), "--dataset", str(tmp_path / "images.npz"), "--dtype", dtype]
    assert main([*command, "--output", str(tmp_path / "out.json"), "--max-evaluations-per-image", "12"]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    bias = result["half_precision_bias"]
    assert 0 < bias["largest_nats"] and abs(bias["nats"]) <= bias["largest_nats"] and bias["num_images"] == 6
    assert bias["includes_rounding_of_weights"] and "half precision moves differences" in capsys.readouterr().out
    # As the two pipelines say, asked the same at all rows.
    exact = pipe.classify(images[:, None], generator=generator(), max_evaluations_per_image=3000).bits_per_dim
    assert bias["largest_nats"] < 0.2 * (exact.max() - exact.min()) * 64 * math.log(2) + 2


def test_a_pilot_of_many_classes_asks_some(monkeypatch):
    unet = tiny_unet(1, num_class_embeds=40)
    pipe = quiet(VLBDDPMPipeline(unet, VLBDDPMScheduler(20, 0.003, 0.3, num_pixel_levels=17)))
    levels = torch.randint(17, (2, 1, 8, 8), generator=generator(4)).to(torch.uint8)
    out = pipe.classify(levels, generator=generator(), max_evaluations_per_image=160)
    pilot = out.num_network_evaluations - int(out.evaluations.sum())
    assert pilot == 2 * (len(bin_edges(20)) - 1) * 16 and out.probabilities.shape == (2, 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [0]}, r"`classes` must be at least two different ones in \[0, 3\), got \[0\]"),
        ({"classes": [0, 0]}, "`classes` must be at least two different ones"),
        ({"classes": [0, 1.5]}, "`classes` must be an integer, got 1.5"),
        ({"classes": [0, 3]}, "`classes` must be at least two different ones"),
        ({"class_prior": [0.5, 0.5]}, "`class_prior` must be 3 positive probabilities"),
        ({"class_prior": [0.5, 0.3, 0.1]}, "that sum to 1, got shape .* and sum 0.9"),
        ({"class_prior": [1.0, 0.0, 0.0]}, "`class_prior` must be 3 positive"),
        ({"confidence": 1.0}, r"`confidence` must lie in \(0, 1\)"),
        ({"max_evaluations_per_image": 5}, "must be at least two for each of the 3 classes, got 5"),
        ({"score": "mse"}, "`score` must be 'bound' or 'simple', got 'mse'"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
    ],
)
def test_what_is_no_choice_is_refused(pictures, options, message):
    pipe = gaussian_pipe()
    pipe.unet.function.forward = None  # nothing is asked
    with pytest.raises(ValueError, match=message):
        pipe.classify(pictures[0], **options)


def test_an_unconditional_network_is_refused(pipe, images):
    with pytest.raises(ValueError, match="`unet` must be class-conditional"):
        pipe.classify(images)


def test_the_command_line(tmp_path, capsys):
    unet = tiny_unet(1, num_class_embeds=10)
    VLBDDPMPipeline(unet, VLBDDPMScheduler(20, 0.003, 0.3, num_pixel_levels=17)).save_pretrained(tmp_path / "pipeline")
    command = ["classify", str(tmp_path / "pipeline"), "--dataset", "digits", "--max-images", "30", "--image-seed", "1"]
    output = tmp_path / "classes.json"
    paths = ["--output", str(output), "--predictions", str(tmp_path / "p.csv"), "--plot", str(tmp_path / "p.png")]
    assert main([*command, *paths, "--max-evaluations-per-image", "60"]) == 0
    result = json.loads(output.read_text())
    labels, predictions = (np.array(result["per_image"][name]) for name in ("image_labels", "predictions"))
    truth = load_images("digits", "test").labels.numpy()[result["per_image"]["image_numbers"]]
    assert (labels == truth).all() and result["accuracy"] == pytest.approx((labels == predictions).mean())
    assert np.trace(result["confusion"]) == (labels == predictions).sum() and np.sum(result["confusion"]) == 30
    low, high = result["accuracy_interval"]
    assert low <= result["accuracy"] <= high and 0 <= result["expected_calibration_error"] <= 1
    assert result["evaluations_per_image"]["max"] <= 60 and result["num_decided"] == sum(result["per_image"]["decided"])
    assert (tmp_path / "p.csv").read_text().count("\n") == 31 and (tmp_path / "p.png").stat().st_size > 10_000
    assert "accuracy" in capsys.readouterr().out
    # Two of the classes: of data that has others, too, there is no accuracy.
    for more, message in (
        (["--classes", "0,1"], "`labels` must be among the classes [0, 1], got [2, 3"),
        (["--classes", "0;1"], "`classes` must be integers with commas"),
        (["--class-prior", str(output)], "`class_prior` must be"),
        (["--confidence", "0"], "`confidence` must lie in (0, 1)"),
        (["--predictions", "p.txt"], "`predictions` must end in .csv or .parquet"),
    ):
        assert main([*command, "--output", str(output), *more]) == 2
        assert message in capsys.readouterr().err
