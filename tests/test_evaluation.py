import json
import math

import pytest
import torch
from conftest import generator
from PIL import Image

from ddpm_vlb.evaluation import format_report, make_report, plot_terms, write_report


@pytest.fixture
def report(pipe, images):
    return make_report(pipe.evaluate_nll(images, generator=generator()), dataset="test")


def test_report_adds_up_and_is_plain(report, pipe, images):
    out = pipe.evaluate_nll(images, generator=generator())
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["bits_per_dim"] == pytest.approx(report["prior"] + report["transitions_total"] + report["decoder"], rel=1e-13)
    assert report["transitions_total"] == pytest.approx(sum(report["transitions"]), rel=1e-12)
    assert len(report["transitions"]) == len(report["timesteps"]) == 19
    assert report["per_image"] == out.bits_per_dim.tolist() and report["num_images"] == 5
    assert report["standard_error"] == pytest.approx(out.bits_per_dim.std().item() / math.sqrt(5))
    assert report["num_network_evaluations"] == 100 and report["method"] == "full" and report["config"]["dataset"] == "test"


def test_a_single_image_has_no_standard_error(pipe, images):
    report = make_report(pipe.evaluate_nll(images[:1]))
    assert report["standard_error"] is None and report["monte_carlo_error"] is None and "+-" not in format_report(report)


def test_monte_carlo_error_bounds_the_spread_over_repetitions(pipe, images):
    reports = [make_report(pipe.evaluate_nll(images, generator=generator(seed))) for seed in range(40)]
    spread = torch.tensor([report["bits_per_dim"] for report in reports], dtype=torch.float64).std().item()
    bound = sum(report["monte_carlo_error"] for report in reports) / len(reports)
    # 40 repetitions tell a standard deviation to 11 %.
    assert spread <= bound * 1.4 and all(r["monte_carlo_error"] <= r["standard_error"] for r in reports)


def test_table_and_plot(report, tmp_path):
    table = format_report(report, {"uniform": 4.0875})
    assert "L_T   prior" in table and "baseline: uniform" in table and "5 images, 100 network evaluations" in table
    plot_terms(report, tmp_path / "terms.png")
    with Image.open(tmp_path / "terms.png") as plot:
        assert plot.size == (960, 504)


def test_reports_with_numbers_json_does_not_know_are_refused(report, tmp_path):
    write_report(report, tmp_path / "report.json")
    with pytest.raises(ValueError):
        write_report({**report, "bits_per_dim": float("nan")}, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
