r"""`ddpm-vlb compare`."""

import argparse

from .common import data_settings, labels_for, load_pipeline, on_grid, open_data, set_levels


def run_compare(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb compare`."""
    import json

    from ..evaluation.compare import compare, format_comparison
    from ..files import check_output_path, write_atomically
    from ..reports.schema import public_name

    output = check_output_path(arguments.output)
    workers, data = open_data(arguments)
    names = arguments.checkpoint, arguments.other
    pipes, float32_unets = zip(
        *(
            load_pipeline(arguments, name, revision, workers.device)
            for name, revision in zip(names, (arguments.revision_a, arguments.revision_b))
        )
    )
    for pipe in pipes:
        set_levels(pipe, arguments.num_pixel_levels)
        images = on_grid(data, pipe, arguments.quantize)
    journal = output.with_name(f"{output.name}.journal")
    comparison = compare(
        pipes,
        images,
        target_se=arguments.target_se,
        max_evaluations=arguments.max_evaluations,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        num_inference_steps=(arguments.num_inference_steps_a, arguments.num_inference_steps_b),
        class_labels=[
            labels_for(pipe, data, label) for pipe, label in zip(pipes, (arguments.class_label_a, arguments.class_label_b))
        ],
        max_images=arguments.max_images,
        buffer_bytes=int(arguments.buffer_mb * 2**20),
        float32_unets=float32_unets,
        journal=journal,
        workers=workers,
        context={
            "checkpoints": [public_name(name) for name in names],
            "quantized": arguments.quantize,
            **data_settings(data),
        },
    )
    if workers.rank:
        return
    write_atomically(output, (json.dumps(comparison, indent=2, allow_nan=False) + "\n").encode())
    journal.unlink(missing_ok=True)
    print(format_comparison(comparison, names if names[0] != names[1] else ("A", "B")))
    print(f"comparison: {output}")
