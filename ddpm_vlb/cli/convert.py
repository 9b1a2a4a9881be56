r"""`ddpm-vlb convert-openai`."""

import argparse

from .common import check_new_folder


def run_convert_openai(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb convert-openai`."""
    from ..checkpoints.openai import convert_openai, load_openai_checkpoint
    from ..files import new_folder
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

    output = check_new_folder(arguments.output)
    flags = ("diffusion_steps", "noise_schedule", "rescale_timesteps", "num_heads", "image_size", "dropout")
    options = {name: getattr(arguments, name) for name in (*flags, "sigma_small", "predict_xstart")}
    pipe = VLBDDPMPipeline(*convert_openai(load_openai_checkpoint(arguments.checkpoint), **options))
    with new_folder(output) as folder:
        pipe.save_pretrained(folder)
    size, count = pipe.unet.config.sample_size, sum(weight.numel() for weight in pipe.unet.parameters())
    print(f"{output}: {size} x {size}, {count / 1e6:.1f} M parameters, {pipe.scheduler.config.variance_type}")
    scheduler = pipe.scheduler.config
    print(
        f"The weights do not tell how they were trained; taken for granted: {scheduler.num_train_timesteps} steps,"
        f" {scheduler.beta_schedule}, timesteps"
        f" {'rescaled to 1000' if pipe.unet.config.time_embedding_type == 'learned' else 'as they are'}."
    )
