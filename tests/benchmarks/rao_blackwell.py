r"""How much variance the closed-form KL saves, on a trained checkpoint: python tests/benchmarks/rao_blackwell.py [PIPELINE]

The same held-out digit again and again, each time with new noise: one number per repetition from (a) sampled log-ratios in
place of the KL terms, (b) the closed-form KL terms, (c) the bound's first form along one trajectory.
"""

import argparse
import math

import torch

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.bound import prior_kl, sampled_transition, trajectory_bound, vlb_terms
from ddpm_vlb.data import load_images
from ddpm_vlb.pixel_grid import levels_to_samples


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", nargs="?", default="runs/quickstart/pipeline")
    parser.add_argument("--repetitions", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe = VLBDDPMPipeline.from_pretrained(arguments.pipeline)
    levels = pipe.scheduler.config.num_pixel_levels
    reverse = pipe.scheduler.reverse_process()
    x = levels_to_samples(load_images("digits", "test", 1).images, levels).expand(arguments.repetitions, -1, -1, -1)
    scale = 1 / (x[0].numel() * math.log(2))
    generator = torch.Generator().manual_seed(0)

    def network(x_t, t):
        return pipe.unet(x_t.float(), t).sample

    closed, sampled = prior_kl(reverse.forward, x), prior_kl(reverse.forward, x)
    ratios = []
    for t in reverse.forward.timesteps.tolist():
        x_t = reverse.forward.q_sample(x, torch.randn(x.shape, generator=generator), t)
        output = network(x_t, t)
        term = vlb_terms(reverse, output, x, x_t, t, levels)
        closed = closed + term
        if t > 0:
            kl = term
            term = sampled_transition(reverse, output, x, x_t, t, torch.randn(x.shape, generator=generator))
            ratios.append((term.var() / kl.var()).item())
        sampled = sampled + term
    first = trajectory_bound(reverse, network, x, levels, generator)

    print(f"one digit, {arguments.repetitions} repetitions; bits/dim: mean, standard deviation of one repetition")
    for name, values in (
        ("closed-form KL terms", closed),
        ("sampled log-ratios instead", sampled),
        ("first form, one trajectory", first),
    ):
        print(f"{name:28} {(values * scale).mean():8.4f}  {(values * scale).std():8.4f}")
    ratios = torch.tensor(ratios)
    print(f"variance of a log-ratio over that of its KL, per timestep: {ratios.min():.1f} to {ratios.max():.0f}", end="")
    print(f" (median {ratios.median():.1f}); of the sums: {(sampled.var() / closed.var()):.1f}")


if __name__ == "__main__":
    main()
