r"""The bound, the importance-weighted bound and the ODE's likelihood of the same images, side by side; rate and distortion.

python tests/benchmarks/likelihoods.py
"""

from pathlib import Path

import torch

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images
from ddpm_vlb.likelihoods.importance_weighted import importance_weighted_nll
from ddpm_vlb.likelihoods.probability_flow import ode_nll
from ddpm_vlb.likelihoods.rate_distortion import rate_distortion

CHECKPOINT = Path(__file__).parents[2] / "spaces_demo" / "checkpoints" / "ddpm-vlb-digits"
IMAGES, STEPS, SWEEPS = 16, 100, 8


def row(name: str, values: torch.Tensor, reference: torch.Tensor, evaluations: int, note: str = "") -> None:
    difference = values - reference
    gap = f"{difference.mean():+.4f} +- {difference.std() / len(values) ** 0.5:.4f}"
    print(f"{name:28} {values.mean():8.4f}   {gap:>18}   {evaluations:>9,}  {note}".rstrip(), flush=True)


def main() -> None:
    torch.set_num_threads(1)
    pipe = VLBDDPMPipeline.from_pretrained(CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    images = load_images("digits", "test", IMAGES).images
    print(
        f"{IMAGES} held-out digits, ddpm-vlb-digits; bits/dim, and the difference to the bound of {STEPS} steps, image by image"
    )
    print(f"{'':28} {'bits/dim':>8}   {'difference':>18}   evaluations")

    def swept(**options) -> tuple[torch.Tensor, int]:
        runs = [pipe.evaluate_nll(images, generator=torch.Generator().manual_seed(s), **options) for s in range(SWEEPS)]
        return torch.stack([run.bits_per_dim for run in runs]).mean(dim=0), sum(run.num_network_evaluations for run in runs)

    bound, evaluations = swept(num_inference_steps=STEPS)
    row(f"bound, {STEPS} steps", bound, bound, evaluations)
    whole, evaluations = swept()
    row("bound, 1000 steps", whole, bound, evaluations)
    for k in (1, 4, 16, 64):
        result = importance_weighted_nll(pipe, images, k, num_inference_steps=STEPS)
        size = result.effective_sample_size.mean()
        row(f"iw, k = {k}, {STEPS} steps", result.bits_per_dim, bound, result.num_network_evaluations, f"{size:.1f} count")
    for trace in ("exact", "hutchinson"):
        result = ode_nll(pipe, images, trace=trace)
        note = f"another model; solver within {result.solver_error.mean():.4f}"
        row(f"ODE, {trace} trace", result.bits_per_dim, bound, result.num_network_evaluations, note)
    curve = rate_distortion(pipe, images, num_inference_steps=STEPS)
    print("rate and distortion (bits/dim received; root mean squared error of 255)")
    places = [0, 20, 40, 60, 80, 90, len(curve.rate) - 2, len(curve.rate) - 1]
    names = [f"t = {curve.timesteps[place]}" for place in places[:-1]] + ["image"]
    for name, values in (("", names), ("rate", curve.rate), ("distortion", curve.distortion)):
        cells = values if values is names else [f"{values[place]:.3f}" for place in places]
        print(f"  {name:12}" + "".join(f"{cell:>10}" for cell in cells))


if __name__ == "__main__":
    main()
