r"""What goes to the Hub with a checkpoint: a model card made from its report, and from nothing else."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

# Settings of a report's `config` that a reader of its number needs.
SETTINGS = {
    "num_train_timesteps": "number of steps T",
    "num_steps": "steps scored",
    "beta_schedule": "forward variances",
    "prediction_type": "prediction type",
    "variance_type": "reverse variances",
    "decoder_variance": "decoder variance (t = 0)",
    "num_pixel_levels": "pixel levels",
    "clip_sample": "clip_sample",
    "thresholding": "thresholding",
    "dtype": "dtype",
    "seed": "seed",
}


def model_card(
    report: dict[str, Any],
    template: str | Path,
    *,
    name: str,
    description: str,
    command: str,
    limits: str,
    pictures: dict[str, str] | None = None,
    tags: tuple[str, ...] = (),
) -> ModelCard:
    r"""The card of a checkpoint.

    Args:
        report: of the checkpoint, as `ddpm_vlb.evaluation` makes it; every number of the card is from here.
        template: path of a Jinja template.
        name, description, limits: what only its maker knows.
        command: what reproduces the number.
        pictures: captions and file names, relative to the card.
        tags: further tags.

    Raises:
        ValueError: terms of the report that do not sum to its total.
    """
    total = report["prior"] + report["transitions_total"] + report["decoder"]
    if not abs(total - report["bits_per_dim"]) <= 1e-9 * max(1.0, abs(total)):
        raise ValueError(f"`report` must have terms that sum to its total, got {total} and {report['bits_per_dim']}.")
    config = report["config"]
    split = config.get("split")
    metric = {
        "task_type": "unconditional-image-generation",
        "dataset_type": config["dataset"],
        "dataset_name": config["dataset"],
        "dataset_split": split or "test",
        "metric_type": "bits_per_dim",
        "metric_name": "bits/dim (variational bound)",
        "metric_value": float(report["bits_per_dim"]),
        "metric_args": {"standard_error": float(report["standard_error"]), **{k: config[k] for k in SETTINGS if k in config}},
    }
    data = ModelCardData(
        license="apache-2.0",
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["diffusers", "ddpm", "likelihood", "bits-per-dim", *tags],
        datasets=[config["dataset"]],
        model_name=name,
        eval_results=[EvalResult(**metric)],
    )
    rows = [f"| {text} | {config[key]} |" for key, text in SETTINGS.items() if key in config]
    rows.append(f"| method | {report['method']}, {report['num_network_evaluations']} network evaluations |")
    return ModelCard.from_template(
        data,
        template_path=str(template),
        name=name,
        description=description,
        command=command,
        limits=limits,
        dataset=config["dataset"],
        split=f" ({split} split)" if split else "",
        num_images=report["num_images"],
        checkpoint=config["checkpoint"],
        settings="\n".join(rows),
        pictures="\n".join(f"![{caption}]({file})" for caption, file in (pictures or {}).items()),
        standard_error=f"{report['standard_error']:.4f}",
        **{key: f"{report[key]:.4f}" for key in ("bits_per_dim", "prior", "transitions_total", "decoder")},
    )
