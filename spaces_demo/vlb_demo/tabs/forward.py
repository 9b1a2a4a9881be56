r"""The second tab: the forward process, in one leap and step by step."""

import math
from functools import cache, partial
from typing import Any

import gradio as gr
import numpy as np
import torch

from ddpm_vlb.forward_process import ForwardProcess
from ddpm_vlb.noise_schedules import make_betas
from ddpm_vlb.pixel_grid import levels_to_samples

from .. import pictures
from ..layout import Tab
from ..models import Model, Models
from ..texts import Refusal, T, both, lettering

ENDPOINT = "forward"
# Random numbers of a walk: every step for small images, fewer and longer steps for large ones.
MAX_NORMALS = 2**21
SCHEDULES = {"linear": pictures.ORANGE, "scaled_linear": pictures.GREEN, "squaredcos_cap_v2": pictures.PURPLE}

CODE = """\
import torch
from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images
from ddpm_vlb.pixel_grid import levels_to_samples

pipe = VLBDDPMPipeline.from_pretrained({source!r})
scheduler, t = pipe.scheduler, {t}
{image}
x_0 = levels_to_samples(image, scheduler.config.num_pixel_levels)

forward = scheduler.forward_process()
alphas_cumprod, snr = forward.alphas_cumprod[t].item(), forward.snr[t].item()
print(alphas_cumprod, snr)

# In one leap: q(x_t | x_0).
generator = torch.Generator().manual_seed({seed})
noise = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
x_t = forward.q_sample(x_0, noise, t)
q = scheduler.q_mean_variance(x_0, t)  # the same Gaussian: mean and variance
print(q.mean.mean().item(), q.variance.mean().item())

# Step by step: q(x_t | x_s), again and again, {walks} walks at once.
grid = torch.linspace(0, t, {hops}).round().int().unique().tolist()
x = x_0.expand({walks}, -1, -1, -1)
for step in grid:
    q = scheduler.q_step_mean_variance(x, step, inference_timesteps=grid[::-1])
    x = q.mean + q.variance.sqrt() * torch.randn(x.shape, generator=generator)
residual = (x - alphas_cumprod**0.5 * x_0) / (1 - alphas_cumprod) ** 0.5
print(residual.mean().item(), residual.std().item())  # 0 and 1, but for chance
"""


def compute(models: Models, model: str, number: int, t: int, seed: int) -> tuple[dict[str, Any], str, str]:
    r"""Numbers, picture and code of q(x_t | x_0) for an image of the model.

    Args:
        model: its name.
        number: of the image.
        t: timestep, zero-based.
        seed: of the noise.
    """
    chosen, t = models[model], int(t)
    steps = chosen.num_train_timesteps
    if not 0 <= t < steps:
        raise Refusal("timestep_range", last=steps - 1, got=t)
    levels = chosen.image(int(number))
    x = levels_to_samples(levels, chosen.num_pixel_levels)
    process = chosen.pipe().scheduler.forward_process()
    generator = torch.Generator().manual_seed(int(seed))
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    leap = process.q_sample(x, noise, t)
    walked, hops = _walk(process, x, t, generator)
    alpha_bar, snr = process.alphas_cumprod[t].item(), process.snr[t].item()
    # What is not signal, in units of what closed form says it should be: mean 0, standard deviation 1.
    residual = (walked - alpha_bar**0.5 * x) / (1 - alpha_bar) ** 0.5
    others = {name: _alphas_cumprod(name, steps) for name in SCHEDULES}
    numbers = {
        "timestep": t,
        "alphas_cumprod": alpha_bar,
        "signal": alpha_bar**0.5,
        "noise": (1 - alpha_bar) ** 0.5,
        "snr": snr,
        "log10_snr": math.log10(snr) if snr > 0 else None,
        "walk": {
            "steps": hops,
            "walks": len(walked),
            "residual_mean": residual.mean().item(),
            "residual_standard_deviation": residual.std().item(),
        },
        "alphas_cumprod_of_other_schedules": {name: curve[t].item() for name, curve in others.items()},
    }
    images = [pictures.to_bytes(image) for image in (x, leap, walked[:1])]
    captions = ("x_0", both("one_leap", t=t), both("walk", t=t, hops=hops))
    labels = ("x_0", f"x_{t}, one leap", f"x_{t}, {hops} steps")
    shown = pictures.film([pictures.picture(image[0], *words) for image, *words in zip(images, captions, [240] * 3, labels)])

    if snr > 0:
        curves = _curves(models, model).html((t, alpha_bar), (t, snr))
    else:  # no place on a logarithmic axis
        curves = _curves(models, model).html()
    rows = [
        ("alphas_cumprod", f"{alpha_bar:.6g}"),
        ("SNR", f"{snr:.6g}"),
        ("√alphas_cumprod · x_0 + √(1 − alphas_cumprod) · ε", f"{alpha_bar**0.5:.4f} · x_0 + {(1 - alpha_bar) ** 0.5:.4f} · ε"),
        (
            both("residual", walks=len(walked), hops=hops),
            f"{residual.mean().item():+.3f}, {residual.std().item():.3f}",
        ),
    ]
    image = chosen.image_code(int(number))
    code = CODE.format(source=chosen.source, t=t, seed=int(seed), image=image, hops=hops, walks=len(walked))
    return numbers, shown + pictures.table(rows) + curves, code


def _walk(process: ForwardProcess, x: torch.Tensor, t: int, generator: torch.Generator) -> tuple[torch.Tensor, int]:
    r"""Some walks of the forward process from an image up to t, and the number of their steps."""
    dimensions = x.numel()
    walks = max(1, 2048 // dimensions)
    hops = min(t + 1, max(10, MAX_NORMALS // (walks * dimensions)))
    grid = torch.linspace(0, t, hops).round().int().unique().tolist()
    alpha_bars = torch.cat([torch.ones(1, dtype=torch.float64), process.alphas_cumprod[grid]])
    ratios = alpha_bars[1:] / alpha_bars[:-1]
    walked = x.expand(walks, -1, -1, -1)
    for keep, add in zip(ratios.sqrt().tolist(), (1 - ratios).sqrt().tolist()):
        walked = keep * walked + add * torch.randn(walked.shape, generator=generator)
    return walked, len(grid)


@cache
def _curves(models: Models, model: str) -> pictures.Plot:
    r"""Schedules side by side: what is the same for every t."""
    steps, process = models[model].num_train_timesteps, models[model].pipe().scheduler.forward_process()
    times = np.unique(np.linspace(0, steps - 1, 200).round().astype(int))
    lines = [(name, color, 1.1, _alphas_cumprod(name, steps)) for name, color in SCHEDULES.items()]
    lines.append((lettering("this_model"), pictures.BLUE, 2.2, process.alphas_cumprod))

    def draw(curve, ratio) -> None:
        for name, color, width, alphas_cumprod in lines:
            left = alphas_cumprod[times]
            curve.plot(times, left, color=color, linewidth=width, label=name)
            ratio.plot(times, left / (1 - left), color=color, linewidth=width)
        curve.set(xlabel=lettering("timestep"), title=lettering("signal_left"))
        curve.legend()
        pictures.log_axis(ratio)
        ratio.set(xlabel=lettering("timestep"), title="SNR = alphas_cumprod / (1 − alphas_cumprod)")

    return pictures.Plot(draw, 2, "alphas_cumprod and signal-to-noise ratio over t, of several schedules")


@cache
def _alphas_cumprod(schedule: str, steps: int) -> torch.Tensor:
    return (1 - make_betas(schedule, steps)).cumprod(0)


def _timesteps(chosen: Model) -> dict[str, Any]:
    r"""The slider of timesteps, for another model."""
    last = chosen.num_train_timesteps - 1
    return gr.update(maximum=last, value=round(0.3 * last))


def build(tab: Tab, models: Models, model: gr.Dropdown) -> None:
    r"""Lay the tab out."""
    chosen = models[model.value]
    with tab.controls():
        number = tab.number(chosen)
        t = gr.Slider(0, chosen.num_train_timesteps - 1, 300, step=1, label=T("timestep"), elem_id="forward-t")
        seed = tab.seed()
    tab.show(compute(models, model.value, 0, 300, 0))
    tab.follows(t, _timesteps)
    tab.live(partial(compute, models), [number, t, seed], model)
