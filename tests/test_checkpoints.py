r"""The checkpoints that are shipped: their numbers can be had again, their cards say what their reports say."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from conftest import quiet
from diffusers import DDPMPipeline

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images

ROOT = Path(__file__).parents[1]
CHECKPOINTS = sorted((ROOT / "spaces_demo" / "checkpoints").iterdir())
LIMITS = {"ddpm-vlb-digits": 4_000_000, "ddpm-vlb-mnist": 10_000_000}


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
    per_image = torch.tensor(report["per_image"], dtype=torch.float64)
    assert per_image.mean().item() == pytest.approx(report["bits_per_dim"], rel=1e-12)
    assert len(per_image) == report["num_images"] == len(report["config"]["rows"])
    assert str(ROOT) not in card + json.dumps(report) and "/work" not in card


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_layout_and_stock_sampling(folder):
    size = sum(path.stat().st_size for path in folder.rglob("*"))
    assert size < LIMITS[folder.name] and not list(folder.rglob("*.bin"))
    pipes = [quiet(cls.from_pretrained(folder)) for cls in (DDPMPipeline, VLBDDPMPipeline)]
    arguments = {"batch_size": 2, "num_inference_steps": 5, "output_type": "np"}
    images = [pipe(generator=torch.Generator().manual_seed(0), **arguments).images for pipe in pipes]
    assert abs(images[0] - images[1]).max() < 1e-3


def test_the_digits_score_what_their_report_says():
    folder = ROOT / "spaces_demo" / "checkpoints" / "ddpm-vlb-digits"
    report = json.loads((folder / "report.json").read_text())
    pipe = quiet(VLBDDPMPipeline.from_pretrained(folder))
    images = load_images("digits", report["config"]["split"]).images[:16]
    # Other noise than the report's.
    sweeps = [pipe.evaluate_nll(images, generator=torch.Generator().manual_seed(1000 + i)).bits_per_dim for i in range(3)]
    recorded = torch.tensor(report["per_image"][:16], dtype=torch.float64)
    error = torch.tensor(report["per_image_monte_carlo_error"][:16], dtype=torch.float64)
    num_sweeps = report["num_network_evaluations"] / report["num_images"] / report["config"]["num_steps"]
    combined = error * math.sqrt(1 + num_sweeps / len(sweeps))
    assert (abs(torch.stack(sweeps).mean(dim=0) - recorded) < 4 * combined).all()
    # The check has teeth: the errors are small beside the differences between images.
    assert error.mean() < 0.3 * recorded.std()
