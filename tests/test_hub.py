import math
from pathlib import Path

import pytest
import yaml
from conftest import generator

from ddpm_vlb.evaluation import make_report
from ddpm_vlb.hub import model_card

TEMPLATE = Path(__file__).parents[1] / "model_cards" / "template.md"
WORDS = {
    "name": "tiny",
    "description": "A tiny model.",
    "command": "make it",
    "limits": "Many.",
}


@pytest.fixture
def report(pipe, images):
    return make_report(pipe.evaluate_nll(images, generator=generator()), dataset="digits", split="test", checkpoint="tiny")


def test_the_card_says_what_the_report_says(report):
    text = str(model_card(report, TEMPLATE, pictures={"Samples": "s.png"}, **WORDS))
    _, front, body = text.split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["library_name"] == "diffusers" and data["license"] == "apache-2.0"
    (result,) = data["model-index"][0]["results"]
    (metric,) = result["metrics"]
    assert metric["value"] == report["bits_per_dim"] and math.isfinite(metric["value"])
    assert metric["args"]["num_train_timesteps"] == 20 and metric["args"]["standard_error"] == report["standard_error"]
    for key in ("bits_per_dim", "prior", "transitions_total", "decoder", "standard_error"):
        assert f"{report[key]:.4f}" in body
    assert "![Samples](s.png)" in body and "make it" in body and report["config"]["decoder_variance"] in body
    assert "{{" not in text


def test_terms_that_do_not_add_up_are_refused(report):
    with pytest.raises(ValueError, match="`report` must have terms that sum to its total"):
        model_card({**report, "decoder": report["decoder"] + 1e-3}, TEMPLATE, **WORDS)
    with pytest.raises(ValueError, match="`report` must have terms that sum to its total"):
        model_card({**report, "bits_per_dim": math.nan}, TEMPLATE, **WORDS)
