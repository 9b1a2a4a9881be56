r"""The numbers of the READMEs' Python, by the names that they are told by there; for `same_numbers.py`, in either commit.

    python readme_numbers.py OUTPUT.json [REPOSITORY]

From `runs/quickstart/pipeline`, or from a repository of the Hub.
"""

import json
import sys

import torch
from ddpm_vlb.importance_weighted import importance_weighted_nll
from ddpm_vlb.probability_flow import ode_nll
from ddpm_vlb.rate_distortion import progressive_decoding, rate_distortion

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.calibration import calibrate
from ddpm_vlb.data import load_images, open_images
from ddpm_vlb.evaluation import estimate_nll, evaluate, format_report, make_report, merge_reports
from ddpm_vlb.gaussians import levels_to_samples

OUTPUT, NAME = [*sys.argv[1:], "runs/quickstart/pipeline"][:2]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def listed(out) -> dict:
    r"""The fields of an output, and what was scored."""
    fields = out._asdict() if isinstance(out, tuple) else vars(out)
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in fields.items()}


numbers = {}
pipe = VLBDDPMPipeline.from_pretrained(NAME)
pipe.set_progress_bar_config(disable=True)
images = load_images("digits", split="test", max_images=4).images
scheduler = pipe.scheduler
out = pipe.evaluate_nll(images, generator=generator())
numbers["full"] = listed(out)
report = make_report(out)
numbers["report"], numbers["printed"] = report, format_report(report)
numbers["sampled"] = listed(pipe.evaluate_nll(images, method="sampled", evaluations_per_image=16, generator=generator(1)))
numbers["a grid"] = listed(pipe.evaluate_nll(images, inference_timesteps=[90, 50, 20, 4, 0], generator=generator(2)))

data = open_images("digits", split="test")
first, second = (evaluate(pipe, data, target_se=0.2, max_evaluations=1500, seed=seed, quiet=True) for seed in (0, 1))
numbers["evaluate"], numbers["merged"] = first, merge_reports([first, second])
numbers["estimate_nll"] = listed(estimate_nll(pipe, images, seeds=[1, 2, 3, 4], evaluations_per_image=8))
numbers["importance weighted"] = listed(importance_weighted_nll(pipe, images[:2], k=2, num_inference_steps=10))
numbers["ode"] = listed(ode_nll(pipe, images[:1], trace="hutchinson"))
numbers["rates"] = listed(rate_distortion(pipe, images, num_inference_steps=10))
numbers["shown"] = progressive_decoding(pipe, images, [19, 10, 5, 1]).tolist()

train = open_images("digits", split="train")
result = calibrate(pipe, train, evaluations=256, num_timesteps=6, max_images=32, dataset="digits", split="train")
numbers["calibrated"] = [result.bits_per_dim.tolist(), dict(result.scheduler.config)]
better = VLBDDPMPipeline(pipe.unet, result.scheduler)
better.set_progress_bar_config(disable=True)
numbers["scored, calibrated"] = listed(better.evaluate_nll(images, num_inference_steps=7, generator=generator()))
drawn = better(batch_size=2, generator=generator(), num_inference_steps=9, draw_from_decoder=True, output_type="np").images
numbers["drawn, calibrated"] = drawn.tolist()
numbers["drawn"] = pipe(batch_size=2, generator=generator(), num_inference_steps=11, output_type="np").images.tolist()

# The primer: every term, and the gradient of every objective, by prediction and variance.
x = levels_to_samples(images, 17)
noise = torch.randn(x.shape, generator=generator(3))
output = torch.randn(len(x), 2, *x.shape[2:], generator=generator(4))
for prediction in ("epsilon", "sample", "v_prediction"):
    for variance in (
        *("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
        *("learned", "learned_range"),
    ):
        config = {"prediction_type": prediction, "variance_type": variance, "num_pixel_levels": 17}
        scheduler = VLBDDPMScheduler(50, 0.002, 0.2, **config)
        parts = []
        for timesteps in (0, 7, torch.tensor([0, 1, 30, 49])):
            x_t = scheduler.add_noise(x.float(), noise, torch.as_tensor(timesteps).expand(len(x)))
            out = output[:, : 2 if "learned" in variance else 1].clone().requires_grad_()
            parts += [scheduler.vlb_terms(out, x, x_t, timesteps).tolist(), scheduler.prior_kl(x).tolist()]
            parts += [
                getattr(scheduler.p_mean_variance(out, x_t, timesteps), name).tolist() for name in ("mean", "log_variance")
            ]
            parts += [
                getattr(scheduler.q_posterior_mean_variance(x, x_t, timesteps), n).tolist() for n in ("mean", "log_variance")
            ]
            for loss_type in ("simple", "vlb", "hybrid"):
                loss = scheduler.training_loss(out, x.float(), noise, x_t, timesteps, loss_type=loss_type).sum()
                parts += [loss.item(), torch.autograd.grad(loss, out)[0].tolist()]
        scheduler.set_timesteps(10)
        for timestep in (45, 20, 0):
            parts.append(scheduler.step(out.detach(), timestep, x_t, generator=generator(5)).prev_sample.tolist())
        numbers[f"{prediction}, {variance}"] = parts
with open(OUTPUT, "w") as file:
    json.dump(numbers, file)
