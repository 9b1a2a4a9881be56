import json
import math

import pytest
import torch
from conftest import generator, tiny_unet
from PIL import Image

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.evaluation import estimate_nll, format_report, make_report, plot_terms, write_report


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


def test_the_estimate_is_unbiased_and_exact_where_it_sees_everything(pipe, images):
    full = torch.stack([pipe.evaluate_nll(images, generator=generator(seed)).bits_per_dim for seed in range(40)])
    for evaluations in (2, 7, 20):
        few = [estimate_nll(pipe, images, [100 * run + i for i in range(5)], evaluations) for run in range(300)]
        totals = torch.stack([estimate.bits_per_dim for estimate in few])
        error = (totals.var(dim=0) / len(totals) + full.var(dim=0) / len(full)).sqrt()
        assert (abs(totals.mean(dim=0) - full.mean(dim=0)) < 4.5 * error).all()
        one = few[0]
        assert torch.allclose(one.bits_per_dim, one.prior + one.transitions + one.decoder, rtol=1e-12)
        assert one.num_network_evaluations == 5 * evaluations
    # With all timesteps nothing is left to the choice of t: the spread over runs is that of full sweeps.
    assert torch.allclose(totals.std(dim=0), full.std(dim=0), rtol=0.4)


def test_the_estimate_is_a_function_of_the_seeds_alone(pipe, images):
    whole = estimate_nll(pipe, images, range(5), 6)
    parts = [estimate_nll(pipe, images[rows], range(5)[rows], 6, batch_size=4) for rows in (slice(0, 2), slice(2, 5))]
    # float32 sums in the network, batched otherwise
    assert torch.allclose(whole.bits_per_dim, torch.cat([part.bits_per_dim for part in parts]), rtol=1e-5)
    assert estimate_nll(pipe, images, range(5), 99).num_network_evaluations == 5 * 20
    pipe.unet.train()
    assert torch.equal(estimate_nll(pipe, images, range(5), 6).bits_per_dim, whole.bits_per_dim) and pipe.unet.training


def test_what_the_estimate_refuses(pipe, images):
    with pytest.raises(ValueError, match=r"`seeds` must be one per image \(5\), got 4"):
        estimate_nll(pipe, images, range(4))
    with pytest.raises(ValueError, match="`evaluations_per_image` must be at least 2, got 1"):
        estimate_nll(pipe, images, range(5), 1)
    with pytest.raises(ValueError, match="`images` must hold levels below num_pixel_levels = 17, got 17"):
        estimate_nll(pipe, images + 1, range(5))
    pipe.unet.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="`unet` must give finite outputs, got a term of nan bits/dim for image 0"):
        estimate_nll(pipe, images, range(5))
    one = VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(1, 0.5, num_pixel_levels=17))
    estimate = estimate_nll(one, images, range(5), 1)
    assert (estimate.transitions == 0).all() and estimate.num_network_evaluations == 5
