r"""The fourth tab: the bound, term by term, and what closed forms save."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr
import numpy as np
import torch

from ddpm_vlb.bound import sampled_transition, vlb_terms
from ddpm_vlb.gaussians import nats_to_bits_per_dim
from ddpm_vlb.noise import draw_seeds, keyed_noise, mix

from .. import pictures
from ..layout import Tab
from ..models import Models
from ..running import Pace, gpu
from ..texts import Refusal, T, both, lettering

ENDPOINT = "bound"
MAX_STEPS, MAX_DRAWS, MAX_EVALUATIONS = 1000, 64, 20_000
ESTIMATORS = ("closed-form KL", "naive Monte Carlo")
LOOKS = 10  # pictures on the way, and more where they take long

CODE = """\
import torch
from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images

pipe = VLBDDPMPipeline.from_pretrained({source!r})
{image}
images = image.expand({draws}, -1, -1, -1)  # the same image, with noise of its own each time
out = pipe.evaluate_nll(images, generator=torch.Generator().manual_seed({seed}), num_inference_steps={steps})

bits_per_dim = out.bits_per_dim.mean().item()
monte_carlo_error = out.bits_per_dim.std().item() / {draws} ** 0.5
print(bits_per_dim, monte_carlo_error)
print(out.prior.mean(), out.transitions_total.mean(), out.decoder.mean())  # L_T, the sum of the KL terms, L_0
"""

NAIVE = """
# In place of each KL: log q(x_s | x_t, x_0) - log p(x_s | x_t), at an x_s drawn from q.
from ddpm_vlb.bound import sampled_transition
from ddpm_vlb.gaussians import nats_to_bits_per_dim
from ddpm_vlb.noise import draw_seeds, keyed_noise, mix
from ddpm_vlb.pixel_grid import levels_to_samples

reverse = pipe.scheduler.reverse_process(pipe.scheduler.inference_grid({steps}))
grid = out.timesteps.flip(0).tolist()
x = levels_to_samples(images, pipe.scheduler.config.num_pixel_levels)
seeds = draw_seeds({draws}, torch.Generator().manual_seed({seed}))
others = [mix(seed, 1) for seed in seeds]
ratios = 0
for t, noise, other in zip(grid, keyed_noise(seeds, grid, x.shape[1:]), keyed_noise(others, grid, x.shape[1:])):
    x_t = reverse.forward.q_sample(x, noise, t)
    with torch.no_grad():
        output = pipe.unet(x_t.float(), t).sample
    ratios = ratios + sampled_transition(reverse, output, x, x_t, t, other)
naive = out.prior + nats_to_bits_per_dim(ratios, x[0].numel()) + out.decoder
print(naive.mean().item(), naive.std().item() / {draws} ** 0.5)
"""


@gpu
def compute(
    models: Models, model: str, number: int, steps: int, draws: int, estimator: str, seed: int, looks: int = LOOKS
) -> Iterator[tuple[dict[str, Any], str, str]]:
    r"""The bound of an image, term by term, from above: first the prior's, then term after term down to the decoder's.

    Args:
        model: its name.
        number: of the image.
        steps: K of the model that is scored.
        draws: of the noise; the error is that of their mean.
        estimator: "closed-form KL", or "naive Monte Carlo" for sampled log-ratios in place of the KL terms. The network is
            asked the same for both, and the numbers of both are in the answer.
        seed: of the noise.
        looks: about how many pictures on the way, 0 where nobody sees them; no input of the page.
    """
    chosen, steps, draws, number = models[model], int(steps), int(draws), int(number)
    most = min(MAX_STEPS, chosen.num_train_timesteps)
    if not 2 <= steps <= most:
        raise Refusal("steps_range", last=most, got=steps)
    if not (2 <= draws <= MAX_DRAWS and steps * draws <= MAX_EVALUATIONS):
        raise Refusal("draws_range", last=min(MAX_DRAWS, MAX_EVALUATIONS // steps), got=draws)
    if estimator not in ESTIMATORS:
        raise Refusal("choice", got=str(estimator)[:60])
    chosen.check_time(steps * draws)
    levels = chosen.image(number)
    scorer = chosen.pipe().scorer(num_inference_steps=steps)
    reverse, forward = scorer.reverse, scorer.reverse.forward
    samples = scorer.samples(levels).expand(draws, -1, -1, -1)
    dimensions = levels[0].numel()
    seeds = draw_seeds(draws, torch.Generator().manual_seed(int(seed)))
    grid = forward.timesteps.flip(0).tolist()
    # Noise of x_s, which only the naive estimate needs.
    others = keyed_noise([mix(key, 1) for key in seeds], grid, samples.shape[1:])
    code = CODE.format(source=chosen.source, image=chosen.image_code(number), draws=draws, seed=int(seed), steps=steps)
    if estimator != ESTIMATORS[0]:
        code += NAIVE.format(draws=draws, seed=int(seed), steps=steps)
    prior = nats_to_bits_per_dim(scorer.prior(samples).cpu().double(), dimensions)
    closed, naive, pace = [], [], Pace(len(grid), max(looks, 1))
    for done, (t, noise, other) in enumerate(zip(grid, keyed_noise(seeds, grid, samples.shape[1:]), others), start=1):
        with torch.no_grad():
            x_t = forward.q_sample(samples, noise.to(samples), t)
            output = scorer.network(x_t, t)
            term = vlb_terms(reverse, output, samples, x_t, t, chosen.num_pixel_levels, validate_args=False)
            ratio = term
            if t != grid[-1]:
                ratio = sampled_transition(reverse, output, samples, x_t, t, other.to(samples))
        closed.append(nats_to_bits_per_dim(term.cpu().double(), dimensions))
        naive.append(nats_to_bits_per_dim(ratio.cpu().double(), dimensions))
        if looks and pace.due(done):
            shown = np.stack([part.numpy() for part in (closed if estimator == ESTIMATORS[0] else naive)])
            picture = _curve(grid[:done], shown, prior.mean().item(), grid, None)
            yield {"steps_done": done, "steps": len(grid)}, pictures.progress(done, len(grid)) + picture, code
    if not all(bool(torch.isfinite(term).all()) for term in closed):
        raise ValueError("`unet` must give finite outputs, got others.")
    estimates = {name: torch.stack(terms).numpy() for name, terms in zip(("closed_form", "naive"), (closed, naive))}
    numbers, picture = _result(chosen, estimates, prior, grid, estimator)
    yield numbers, picture, code


def _result(chosen, estimates: dict[str, np.ndarray], prior: torch.Tensor, grid: list[int], estimator: str):
    first = prior.numpy()
    totals = {name: first + terms.sum(axis=0) for name, terms in estimates.items()}
    count = len(first)
    summary = {
        name: {
            "bits_per_dim": float(total.mean()),
            "monte_carlo_error": float(total.std(ddof=1) / count**0.5),
            "prior": float(first.mean()),
            "transitions_total": float(estimates[name][:-1].sum(axis=0).mean()),
            "decoder": float(estimates[name][-1].mean()),
        }
        for name, total in totals.items()
    }
    key = "closed_form" if estimator == ESTIMATORS[0] else "naive"
    chosen_numbers, terms = summary[key], estimates[key]
    of_terms = [estimates[name][:-1].var(axis=1, ddof=1) for name in ("naive", "closed_form")]
    # Terms without any variance to speak of say nothing.
    ratios = of_terms[0] / np.maximum(of_terms[1], 1e-300)
    of_totals = totals["naive"].var(ddof=1) / totals["closed_form"].var(ddof=1)
    numbers = {
        "model": chosen.name,
        "estimator": estimator,
        **chosen_numbers,
        "draws": count,
        "num_network_evaluations": len(grid) * count,
        "timesteps": grid,
        "terms": terms.mean(axis=1).tolist(),
        **summary,
        "variance_ratio_of_the_sum": float(of_totals),
        "median_variance_ratio_of_the_terms": float(np.median(ratios)),
    }

    head = pictures.table(
        [
            (both("prior"), f"{chosen_numbers['prior']:.4f}"),
            (both("kl_terms", count=len(grid) - 1), f"{chosen_numbers['transitions_total']:.4f}"),
            (both("decoder"), f"{chosen_numbers['decoder']:.4f}"),
            ("bits/dim", f"{chosen_numbers['bits_per_dim']:.4f} ± {chosen_numbers['monte_carlo_error']:.4f}"),
        ],
        strong=(3,),
    )
    comparison = both(
        "rao_blackwell",
        closed=f"{summary['closed_form']['monte_carlo_error']:.4f}",
        naive=f"{summary['naive']['monte_carlo_error']:.4f}",
        ratio=f"{of_totals:.1f}",
        median=f"{np.median(ratios):.0f}",
    )
    curve = _curve(grid, terms, chosen_numbers["prior"], grid, chosen_numbers)
    return numbers, head + curve + pictures.note(comparison)


def _curve(reached: list[int], terms: np.ndarray, prior: float, grid: list[int], numbers: dict | None) -> str:
    r"""L_t over t, as far as it is known, with the running sum from above; and the three parts as bars, once they are."""
    means = terms.mean(axis=1)
    errors = terms.std(axis=1, ddof=1) / terms.shape[1] ** 0.5
    running = prior + np.cumsum(means)

    # The decoder's term, the last one, is of another kind and size.
    whole = len(reached) == len(grid)
    times, middle, error = (values[: len(values) - whole] for values in (reached, means, errors))

    # The three parts in the colours of the page's sign.
    def draw(axes, bars) -> None:
        if (middle <= 0).any():
            # Log-ratios can be negative, as no KL divergence can.
            pictures.log_axis(axes, lowest=float(10 ** np.floor(np.log10(max(np.median(np.abs(middle)), 1e-9)))))
            lower = middle - 2 * error
        else:
            pictures.log_axis(axes)
            lower = np.maximum(middle - 2 * error, 0.05 * middle)
        axes.fill_between(times, lower, middle + 2 * error, color=pictures.BLUE, alpha=0.25, linewidth=0)
        axes.plot(times, middle, ".-", color=pictures.BLUE, markersize=3, label=lettering("terms"))
        axes.plot(grid[:1], [prior], "D", color=pictures.PURPLE, markersize=5, label="L_T")
        if whole:
            axes.plot(grid[-1:], means[-1:], "s", color=pictures.ORANGE, markersize=5, label="L₀")
        total = axes.twinx()
        total.spines["right"].set_visible(True)
        total.grid(False)
        total.plot(reached, running, "--", color=pictures.INK, alpha=0.6, label=lettering("running_sum"))
        total.set_ylim(bottom=0)
        axes.set(xlabel=lettering("timestep"), title=lettering("each_term"))
        axes.set_xlim(1.02 * grid[0] + 1, -0.02 * grid[0] - 1)
        total.legend(handles=[*axes.get_lines(), *total.get_lines()], loc="upper left")
        if numbers is None:
            pictures.no_axes(bars)
            return
        left = 0.0
        for name, key, color in (
            ("L_T", "prior", pictures.PURPLE),
            ("Σ Lₜ", "transitions_total", pictures.BLUE),
            ("L₀", "decoder", pictures.ORANGE),
        ):
            bars.barh(name, numbers[key], left=left, color=color, height=0.55)
            bars.text(left + numbers[key], name, f" {numbers[key]:.4f}", va="center", fontsize=9)
            left += numbers[key]
        bars.barh(lettering("bound"), left, color=pictures.INK, alpha=0.5, height=0.55)
        bars.text(left, lettering("bound"), f" {left:.4f}", va="center", fontsize=9, fontweight="bold")
        bars.invert_yaxis()
        bars.grid(False)  # it would strike the numbers out
        bars.set(title=lettering("three_parts"), xlim=(min(0.0, left), max(left, 0.0) * 1.25))

    label = "Terms of the bound over t with their running sum, and its three parts as bars"
    return pictures.plot(draw, 2, label, height=3.2)


DEFAULTS = (0, 100, 16, ESTIMATORS[0], 0)


def build(tab: Tab, models: Models, model: gr.Dropdown) -> None:
    r"""Lay the tab out."""
    number_, steps, draws, estimator, seed = DEFAULTS
    with tab.controls():
        number = tab.number(models[model.value], number_)
        inputs = [
            model,
            number,
            gr.Slider(2, MAX_STEPS, steps, step=1, label=T("steps"), elem_id="bound-steps"),
            gr.Slider(2, MAX_DRAWS, draws, step=1, label=T("draws")),
            gr.Radio(
                list(zip((T("closed_form"), T("naive")), ESTIMATORS)),
                value=estimator,
                label=T("estimator"),
                elem_id="bound-estimator",
            ),
            tab.seed(seed),
        ]
    *_, last = compute(models, model.value, *DEFAULTS, looks=0)
    tab.show(last)
    tab.long(partial(compute, models), inputs)
