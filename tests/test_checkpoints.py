r"""The checkpoints that are shipped: their numbers can be had again, their cards say what their reports say."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DDPMPipeline
from tiny import quiet

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation import evaluate

ROOT = Path(__file__).parents[1]
CHECKPOINTS = sorted((ROOT / "spaces_demo" / "checkpoints").iterdir())
LIMITS = {"ddpm-vlb-digits": 4_000_000, "ddpm-vlb-digits-class": 4_000_000, "ddpm-vlb-mnist": 10_000_000}


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_card_and_report_agree(folder):
    report = json.loads((folder / "report.json").read_text())
    card = (folder / "README.md").read_text()
    assert card == (ROOT / "model_cards" / f"{folder.name}.md").read_text()
    _, front, body = card.split("---\n", 2)
    (metric,) = yaml.safe_load(front)["model-index"][0]["results"][0]["metrics"]
    assert metric["value"] == report["bits_per_dim"] and f"**{report['bits_per_dim']:.4f} bits/dim**" in body
    total = report["prior"] + report["transitions_total"] + report["decoder"]
    assert total == pytest.approx(report["bits_per_dim"], rel=1e-12)
    if report["method"].startswith("full"):
        assert math.fsum(report["per_image"]) / report["num_images"] == pytest.approx(report["bits_per_dim"], rel=1e-12)
        assert len(report["per_image"]) == report["num_images"]
    else:
        # Sampled over the whole test set, with an error that means something.
        assert report["config"]["max_images"] is None and report["config"]["shard"] == {"of": 1, "indices": [0]}
        assert 0 < report["monte_carlo_error"] <= report["config"]["target_se"]
        low, high = report["monte_carlo_interval"]
        assert low < report["bits_per_dim"] < high and f"{low:.4f} to {high:.4f}" in body
    assert str(ROOT) not in card + json.dumps(report) and "/work" not in card


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_layout_and_stock_sampling(folder):
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert 0 < size < LIMITS[folder.name] and not list(folder.rglob("*.bin"))
    pipes = [quiet(cls.from_pretrained(folder)) for cls in (DDPMPipeline, VLBDDPMPipeline)]
    if pipes[1].network.num_classes is not None:
        # The stock pipeline has no argument for classes; the stock network has.
        sample, t, labels = torch.zeros(2, *pipes[1].network.image_shape), 5, torch.tensor([3, 7])
        outputs = [pipe.unet(sample, t, class_labels=labels).sample for pipe in pipes]
        assert torch.equal(*outputs) and len(pipes[1](2, num_inference_steps=5, class_labels=labels).images) == 2
        return
    arguments = {"batch_size": 2, "num_inference_steps": 5, "output_type": "np"}
    images = [pipe(generator=torch.Generator().manual_seed(0), **arguments).images for pipe in pipes]
    assert abs(images[0] - images[1]).max() < 1e-3


def test_the_digits_score_what_their_report_says():
    folder = ROOT / "spaces_demo" / "checkpoints" / "ddpm-vlb-digits"
    report = json.loads((folder / "report.json").read_text())
    pipe = quiet(VLBDDPMPipeline.from_pretrained(folder))
    count = 8
    images = load_images("digits", report["config"]["split"]).images[:count]
    # Other noise than the report's, by the estimator that needs a tenth of the evaluations for half of the error.
    fresh = evaluate(pipe, images, evaluations_per_image=500, seed=1000, quiet=True)
    errors = [torch.tensor(one["per_image_monte_carlo_error"], dtype=torch.float64) for one in (report, fresh)]
    # Few sweeps tell their own spread badly: that of all images together.
    variance = errors[0].square().mean() + errors[1].square()
    recorded = torch.tensor(report["per_image"][:count], dtype=torch.float64)
    difference = torch.tensor(fresh["per_image"], dtype=torch.float64) - recorded
    assert (abs(difference) < 4 * variance.sqrt()).all()
    assert abs(difference.mean()) < 4 * (variance.mean() / count).sqrt()
    # The check has teeth: the errors are small beside the differences between images.
    assert variance.sqrt().mean() < 0.3 * recorded.std()
