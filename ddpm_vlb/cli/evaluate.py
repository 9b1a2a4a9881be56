r"""`ddpm-vlb evaluate`."""

import argparse
import math

from .common import check_outputs, data_settings, load_pipeline, on_grid, open_data, parse_shard, set_levels, write_outputs


def run_evaluate(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb evaluate`."""
    from ..evaluation.evaluate import evaluate
    from ..reports.show import format_images, format_report
    from ..scheduling_vlb_ddpm import VLBDDPMScheduler

    output = check_outputs(arguments.output, arguments.plot, arguments.scores)
    if arguments.scores is not None and arguments.method == "sampled" and arguments.per_image is None:
        raise ValueError("`scores` needs a score for each image: give --per-image K, or another method.")
    if arguments.plot is not None and arguments.method in ("iw", "ode"):
        raise ValueError(f"`plot` draws the terms of the bound, and there are none with --method {arguments.method}.")
    shard = parse_shard(arguments.shard)
    workers, data = open_data(arguments)
    pipe, float32_unet = load_pipeline(arguments, revision=arguments.revision, device=workers.device)
    overridden = set_levels(pipe, arguments.num_pixel_levels)
    if arguments.no_calibration and pipe.scheduler.config.calibration is not None:
        overridden.append("calibration")
        pipe.scheduler = VLBDDPMScheduler.from_config(pipe.scheduler.config, calibration=None)
    levels = pipe.scheduler.config.num_pixel_levels
    images = on_grid(data, pipe, arguments.quantize)
    conditional = pipe.network.num_classes is not None
    if conditional and getattr(data, "labels", None) is None:
        raise ValueError(f"`dataset` must have class labels for a class-conditional network, got none in {data.name!r}.")
    journal = output.with_name(f"{output.name}.journal")
    report = evaluate(
        pipe,
        images,
        method=arguments.method,
        target_se=arguments.target_se,
        max_evaluations=arguments.max_evaluations,
        evaluations_per_image=arguments.per_image,
        k=arguments.k,
        trace=arguments.trace,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        num_inference_steps=arguments.num_inference_steps,
        class_labels=data.labels if conditional else None,
        clip_sample=arguments.clip_sample,
        max_images=arguments.max_images,
        shard=shard,
        buffer_bytes=int(arguments.buffer_mb * 2**20),
        float32_unet=float32_unet,
        journal=journal,
        workers=workers,
        context={
            "checkpoint": arguments.checkpoint,
            "revision": arguments.revision,
            "quantized": arguments.quantize,
            **data_settings(data),
        },
        overridden=overridden,
    )
    if workers.rank:
        return
    write_outputs(report, output, arguments.plot, arguments.scores)
    journal.unlink(missing_ok=True)
    uniform = {"uniform over the levels": math.log2(levels)}
    print(format_images(report) if arguments.method in ("iw", "ode") else format_report(report, uniform))
    if workers.count > 1:
        print(f"{workers.count} processes")
    print(f"report: {output}")
