r"""Reports as they are made: what was scored, what came out, and how sure it is.

**Errors.** The N images are a sample of more such images (`data_error`), and each image's bound is an average over noise of
which few draws were taken (`monte_carlo_error`, given these images). A sampled evaluation measures both
(`sampled_bound/estimate.py`); `standard_error` is the root of the sum of their squares. After a full sweep the standard
deviation of the per-image numbers over :math:`\sqrt N` covers both (`standard_error`), and the noise's part is bounded: the
draws at different timesteps are independent, and at each timestep the variance over images is at least the noise's (law of
total variance), so that

.. math:: \mathrm{Var}_\mathrm{noise}\left[\bar L\right] \le \frac{1}{N} \sum_t \mathrm{Var}_\mathrm{images}[L_t],

of which the smaller of this bound and `standard_error` is reported, and no `data_error`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..sampled_bound.draws import BoundEstimate
from .checks import freedom_of_sum, student_quantile, to_plain
from .schema import IN_MEMORY, Report, check_context

CONFIDENCE = 0.95


def report_of_estimate(
    estimate: BoundEstimate,
    timesteps: Sequence[int],
    num_images: int,
    config: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> Report:
    r"""The report of a sampled evaluation.

    Args:
        estimate: of the N images.
        timesteps: of the grid that was scored, ascending, K.
        num_images: N.
        config: what was scored, and with what.
        more: further fields.

    Returns:
        As `make_report`, and what `estimate_fields` says.
    """
    rounds = {"num_rounds": estimate.num_rounds, "num_pilot_evaluations": estimate.num_pilot_evaluations}
    fields = _of_estimate(estimate, timesteps, num_images) | {"config": to_plain(config) | rounds}
    return Report(with_intervals(fields) | to_plain(more or {}))


def estimate_fields(estimate: BoundEstimate, timesteps: Sequence[int], num_images: int) -> dict[str, Any]:
    r"""What a report says of an estimate, in bits/dim: no report yet, and not checked. Arguments as `report_of_estimate`.

    Returns:
        Of the number `bits_per_dim`, its `standard_error`, of which `monte_carlo_error` is the noise's part and `data_error`
        the images' own, `degrees_of_freedom`; whether these errors are `reliable`, and if not, the `doubt`, a sentence;
        `monte_carlo_interval`, for the bound of these images, and
        `confidence_interval`, for that of more such images (`None` for a single one), of `confidence_level`; `strata`, the
        sums over groups of timesteps; `evaluations_per_timestep` (K, the pilot's apart). A term of `transitions` is `None`
        where no evaluation fell. `per_image`, `per_image_monte_carlo_error` and its
        `per_image_degrees_of_freedom` are `None` unless all images were evaluated alike.
    """
    return with_intervals(_of_estimate(estimate, timesteps, num_images))


def _of_estimate(estimate: BoundEstimate, timesteps: Sequence[int], num_images: int) -> dict[str, Any]:
    decoder, total = estimate.bins[0].bits_per_dim, sum(one.bits_per_dim for one in estimate.bins[1:])
    return {
        "bits_per_dim": estimate.prior + decoder + total,
        "standard_error": None,
        "monte_carlo_error": estimate.monte_carlo_error,
        "data_error": estimate.data_error,
        "degrees_of_freedom": estimate.degrees_of_freedom,
        "reliable": estimate.doubt is None,
        "doubt": estimate.doubt,
        "prior": estimate.prior,
        "transitions": [value if math.isfinite(value) else None for value in estimate.terms[1:].tolist()],
        "transitions_total": total,
        "decoder": decoder,
        "timesteps": list(timesteps[1:]),
        "strata": [
            {
                "timesteps": [timesteps[one.first], timesteps[one.last]],
                "bits_per_dim": one.bits_per_dim,
                "monte_carlo_error": one.monte_carlo_error,
                "num_network_evaluations": one.num_evaluations,
            }
            for one in estimate.bins
        ],
        "evaluations_per_timestep": estimate.term_evaluations.tolist(),
        "method": "sampled",
        "num_images": num_images,
        "num_network_evaluations": estimate.num_evaluations,
        "per_image": None if estimate.per_image is None else estimate.per_image.tolist(),
        "per_image_monte_carlo_error": None if estimate.per_image_error is None else estimate.per_image_error.tolist(),
        "per_image_degrees_of_freedom": (
            None if estimate.per_image_degrees_of_freedom is None else estimate.per_image_degrees_of_freedom.tolist()
        ),
    }


def with_intervals(report: dict[str, Any]) -> dict[str, Any]:
    r"""Fields with the errors and intervals that follow from `monte_carlo_error` and `data_error`."""
    value, freedom = report["bits_per_dim"], report["degrees_of_freedom"]
    noise, images = report["monte_carlo_error"], report["data_error"]

    def interval(error: float, freedom: float) -> list[float]:
        half = student_quantile(freedom, CONFIDENCE) * error
        return [value - half, value + half]

    total = None if images is None else math.hypot(noise, images)
    both = None
    if images is not None and total:
        both = interval(total, freedom_of_sum(noise, images, freedom, report))
    return report | {
        "standard_error": total,
        "confidence_level": CONFIDENCE,
        "monte_carlo_interval": interval(noise, freedom),
        "confidence_interval": both,
    }


def make_report(output, **context: Any) -> Report:
    r"""The report of a `VLBOutput`.

    Args:
        output: what `VLBDDPMPipeline.evaluate_nll` returned for N images.
        context: further settings for `config`, such as `dataset`, `split` and `checkpoint`; `schema.py` says which there are.
            The data set that nobody names is "images in memory".

    Returns:
        A dictionary of plain Python values: means over images in bits/dim (`bits_per_dim`, `prior`, `transitions`, ascending
        in t as `timesteps` says, `transitions_total`, `decoder`), `standard_error` and `monte_carlo_error` (bits/dim, `None`
        for a single image), `method`, `num_images`, `num_network_evaluations`, `per_image` (bits/dim of each image) and
        `config`.

    Raises:
        ValueError: a sampled output, which lacks what a report says of its timesteps; `evaluate` reports on those. A setting
            that reports do not know.
    """
    if output.transitions is None:
        raise ValueError(
            "`output` must be of method='full', got a sampled one: `ddpm_vlb.evaluation.evaluate` makes reports of those."
        )
    terms = torch.cat([output.decoder[:, None], output.transitions], dim=1)
    squares = (terms - terms.mean(dim=0)).square().sum().item()
    config = {**output.config, **check_context(context)}
    config.setdefault("dataset", IN_MEMORY)
    means, timesteps = output.transitions.mean(dim=0), output.timesteps.tolist()
    fields = _of_sweep(output.prior, output.decoder, output.transitions_total, means, squares, timesteps, config)
    return Report(fields | {"num_network_evaluations": output.num_network_evaluations})


def full_report(
    prior: torch.Tensor,
    decoder: torch.Tensor,
    transitions_total: torch.Tensor,
    transitions: torch.Tensor,
    squares: float,
    timesteps: list[int],
    config: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> Report:
    r"""As `make_report`, from sums.

    Args:
        prior, decoder, transitions_total: of each image in bits/dim, `(N,)`.
        transitions: means over images, ascending in t, `(K - 1,)`.
        squares: the sums of squares of decoder and transitions about their means over images, summed over all steps.
        timesteps: of `transitions`.
        config: what was scored, and with what.
        more: further fields.
    """
    fields = _of_sweep(prior, decoder, transitions_total, transitions, squares, timesteps, config)
    return Report(fields | to_plain(more or {}))


def _of_sweep(prior, decoder, transitions_total, transitions, squares, timesteps, config) -> dict[str, Any]:
    values = prior + decoder + transitions_total
    count = len(values)
    standard_error = monte_carlo_error = None
    if count > 1:
        standard_error = (values.var() / count).sqrt().item()
        monte_carlo_error = min(standard_error, math.sqrt(squares / (count - 1) / count))
    return {
        "bits_per_dim": values.mean().item(),
        "standard_error": standard_error,
        "monte_carlo_error": monte_carlo_error,
        "prior": prior.mean().item(),
        "transitions": transitions.tolist(),
        "transitions_total": transitions_total.mean().item(),
        "decoder": decoder.mean().item(),
        "timesteps": timesteps,
        "method": "full",
        "num_images": count,
        "num_network_evaluations": count * (len(transitions) + 1),
        "per_image": values.tolist(),
        "config": to_plain(config),
    }


def report_of_images(
    method: str,
    results: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> Report:
    r"""The report of all images' columns: means, the standard error over images of the number that counts, and each image's.

    Args:
        method: its name and what of its options tells numbers apart, "iw, k = 16".
        results: of batches: columns, and `num_network_evaluations` of all.
        config: what was scored, and with what.
        more: further fields.
    """
    names = [name for name in results[0] if name != "num_network_evaluations"]
    columns = {name: [value for result in results for value in result[name]] for name in names}
    values = torch.tensor(columns["bits_per_dim"], dtype=torch.float64)
    count = len(values)
    return Report(
        {
            **{name: math.fsum(column) / count for name, column in columns.items()},
            "standard_error": (values.std() / count**0.5).item() if count > 1 else None,
            "method": method,
            "num_images": count,
            "num_network_evaluations": sum(result["num_network_evaluations"] for result in results),
            "per_image": columns["bits_per_dim"],
            "config": to_plain(config),
            **to_plain(more or {}),
        }
    )
