r"""The metric of torchmetrics: against the estimator behind it, and two processes against one."""

import json
import os
from pathlib import Path

import pytest
import torch
from tiny import generator, quiet, tiny_unet
from torchmetrics import MetricCollection
from zygote import shared

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.evaluation import evaluate
from ddpm_vlb.metrics import BitsPerDim
from ddpm_vlb.pixel_grid import levels_to_samples

NAMES = ("bits_per_dim", "standard_error", "monte_carlo_error")
STOPS = {"evaluations_per_image": 4}

# Of the first metric the second process has no images; of the second each has some, in another order.
RANKS = """
import json, sys, torch
import torch.distributed as dist
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny import quiet, tiny_unet
from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.metrics import BitsPerDim

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
pipe = quiet(VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(num_train_timesteps=20, num_pixel_levels=17)))
images = torch.randint(17, (7, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
first, second = (BitsPerDim(pipe, evaluations_per_image=4) for _ in range(2))
if rank == 0:
    first.update(images)
for image in images[[5, 0, 3] if rank else [6, 1, 4, 2]]:
    second.update(image[None])
values = [{name: value.item() for name, value in metric.compute().items()} for metric in (first, second)]
Path(f"rank{rank}.json").write_text(json.dumps([*values, len(second.labels)]))
dist.destroy_process_group()
"""


def plain(values):
    return {name: value.item() for name, value in values.items()}


def many(count):
    return torch.randint(17, (count, 1, 8, 8), generator=generator()).to(torch.uint8)


@pytest.mark.parametrize("method", ["sampled", "full"])
def test_it_is_the_estimate_of_the_data_set(pipe, method):
    images, options = many(7), STOPS if method == "sampled" else {}
    metric = BitsPerDim(pipe, method=method, seed=3, **options)
    for batch in (images[:4], images[4:]):  # a short one last
        metric.update(levels_to_samples(batch, 17, torch.float32))
    values = plain(metric.compute())
    order = sorted(range(7), key=lambda i: images[i].numpy().tobytes())
    report = evaluate(pipe, images[order], method=method, seed=3, quiet=True, **options)
    assert values == {name: report[name] for name in NAMES} and all(error > 0 for error in list(values.values())[1:])
    again = BitsPerDim(pipe, method=method, seed=3, **options)
    for image in images.flip(0):
        again.update(image[None])
    assert plain(again.compute()) == values


def test_two_processes_give_the_numbers_of_one(pipe, tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    for done in shared().run_ranks(2, str(script), str(Path(__file__).parent / "helpers"), cwd=tmp_path, env=dict(os.environ)):
        assert done.returncode == 0, done.stderr
    metric = BitsPerDim(pipe, **STOPS)
    metric.update(many(7))
    one = plain(metric.compute())
    for rank, own in ((0, 4), (1, 3)):
        first, second, left = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert first == second == one and left == own  # after `compute` each has its own images again


def test_it_follows_the_network_and_reset_forgets(pipe):
    metric = BitsPerDim(pipe, **STOPS)
    metric.update(many(5))
    before = plain(metric.compute())
    collection = MetricCollection({"held_out": metric}).clone(prefix="val_")  # what copies a metric
    assert metric.clone().pipe is pipe
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight.mul_(0.5)
    pipe.unet.train()
    after = plain(metric.compute())
    assert after["bits_per_dim"] != before["bits_per_dim"] and pipe.unet.training
    assert collection.compute()["val_bits_per_dim"].item() == after["bits_per_dim"]
    metric.reset()
    with pytest.raises(ValueError, match="`update` must be given images before `compute`, got none"), pytest.warns(UserWarning):
        metric.compute()
    metric.update(many(1))
    assert metric.compute()["standard_error"].isnan()


def test_classes_go_along():
    unet = tiny_unet(num_class_embeds=3)
    pipe = quiet(VLBDDPMPipeline(unet, VLBDDPMScheduler(num_train_timesteps=20, num_pixel_levels=17)))
    images, labels = many(6), torch.tensor([2, 0, 1, 1, 0, 2])
    values = []
    for order in (torch.arange(6), torch.tensor([4, 1, 5, 0, 3, 2])):
        metric = BitsPerDim(pipe, method="full")
        metric.update(images[order], labels[order])
        values.append(plain(metric.compute()))
    metric = BitsPerDim(pipe, method="full")
    metric.update(images, labels.roll(1))
    assert values[0] == values[1] != plain(metric.compute())


def test_it_refuses(pipe):
    for options, message in (
        ({"method": "ode"}, "`method` must be 'sampled' or 'full', got 'ode'"),
        ({"method": "full", "target_se": 0.1}, "`target_se` must be left out unless method='sampled'"),
        ({"target_se": -1.0}, "`target_se` must be a positive number"),
        ({"evaluations_per_image": 3}, "`evaluations_per_image` must be an even number"),
        ({"seed": -1}, "`seed` must lie in"),
        ({"num_inference_steps": 21}, r"`num_inference_steps` must lie in \[1, 20\]"),
        ({"unknown": 1}, "Unexpected keyword arguments: `unknown`"),
    ):
        with pytest.raises(ValueError, match=message):
            BitsPerDim(pipe, **options)
    metric = BitsPerDim(pipe, **STOPS)
    with pytest.raises(ValueError, match="level"):
        metric.update(torch.full((1, 1, 8, 8), 17, dtype=torch.uint8))
    with pytest.raises(ValueError, match="grid"):
        metric.update(torch.full((1, 1, 8, 8), 0.51))
