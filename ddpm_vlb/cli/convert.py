r"""`ddpm-vlb convert-openai`."""

import argparse
from pathlib import Path

from ..files import new_folder
from .common import check_new_folder, hold
from .options import DEFAULT, check_positive, new_command

# The options, which are the arguments of `convert_openai`.
OPTIONS = ("diffusion_steps", "noise_schedule", "rescale_timesteps", "num_heads", "image_size", "dropout")
OPTIONS += ("sigma_small", "predict_xstart")


def add(commands) -> argparse.ArgumentParser:
    r"""The command's parser."""
    parser = new_command(
        commands,
        "convert-openai",
        help="a checkpoint of openai/improved-diffusion as a pipeline's folder",
        description="Make a pipeline's folder from a checkpoint of openai/improved-diffusion, exactly or not at all. Its"
        " weights do not tell how they were trained: the options do.",
        examples=(
            "cifar10_uncond_vlb_50M_500K.pt cifar10-vlb",
            "ema_0.9999_500000.pt pipeline --diffusion-steps 1000 --noise-schedule linear --no-rescale-timesteps",
        ),
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT.pt", help="model*.pt or ema_*.pt: the weights of a UNetModel")
    parser.add_argument("output", metavar="OUTPUT", help="folder to make")
    parser.add_argument("--diffusion-steps", type=int, default=4000, help=f"as trained {DEFAULT}")
    parser.add_argument("--noise-schedule", choices=("cosine", "linear"), default="cosine", help=f"as trained {DEFAULT}")
    parser.add_argument("--rescale-timesteps", action=argparse.BooleanOptionalAction, default=True, help="as trained")
    parser.add_argument("--num-heads", type=int, default=4, help=f"as trained {DEFAULT}")
    parser.add_argument("--image-size", type=int, help="default: of the published model with these channel multipliers")
    parser.add_argument("--sigma-small", action="store_true", help="as trained, where variances were not learned")
    parser.add_argument("--predict-xstart", action="store_true", help="as trained")
    parser.add_argument("--dropout", type=float, default=0.0, help=f"of further training {DEFAULT}")
    return parser


def run(arguments: argparse.Namespace) -> None:
    r"""Refuse what cannot be, then `convert`."""
    for name in ("diffusion_steps", "num_heads", "image_size"):
        check_positive(name, getattr(arguments, name))
    if not 0 <= arguments.dropout < 1:
        raise ValueError(f"`dropout` must lie in [0, 1), got {arguments.dropout}.")
    output = check_new_folder(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with hold(output):
        convert(arguments, output)


def convert(arguments: argparse.Namespace, output: Path) -> None:
    r"""Convert, save, print, once nobody else writes there."""
    from ..checkpoints.openai import convert_openai, load_openai_checkpoint
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

    options = {name: getattr(arguments, name) for name in OPTIONS}
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
