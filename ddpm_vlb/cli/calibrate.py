r"""`ddpm-vlb calibrate`."""

import argparse

from .common import check_new_folder, data_settings, labels_for, load_pipeline, on_grid, open_data, set_levels


def run_calibrate(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb calibrate`."""
    import json

    from ..calibration.measure import calibrate
    from ..calibration.show import describe, format_calibration, plot_calibration
    from ..files import check_output_path, new_folder, write_atomically

    output = check_new_folder(arguments.output)
    if arguments.plot is not None:
        check_output_path(arguments.plot)
    workers, data = open_data(arguments)
    if workers.count > 1:
        raise ValueError(f"`calibrate` must run in one process, got {workers.count}.")
    pipe, _ = load_pipeline(arguments, revision=arguments.revision)
    set_levels(pipe, arguments.num_pixel_levels)
    result = calibrate(
        pipe,
        on_grid(data, pipe, arguments.quantize),
        num_timesteps=arguments.num_timesteps,
        evaluations=arguments.evaluations,
        target_se=arguments.target_se,
        max_images=arguments.max_images,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        class_labels=labels_for(pipe, data, None),
        **data_settings(data),
    )
    pipe.unet.float()  # what was loaded; half precision is for the evaluations alone
    pipe.scheduler = result.scheduler
    with new_folder(output) as folder:
        pipe.save_pretrained(folder)
        write_atomically(folder / "calibration.json", (json.dumps(describe(result), indent=2) + "\n").encode())
    print(format_calibration(result))
    if arguments.plot is not None:
        plot_calibration(result, arguments.plot)
    print(f"calibrated: {output}")
