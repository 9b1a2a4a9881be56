r"""The command `ddpm-vlb`: score a checkpoint on a data set, sample from it, describe it, push it to the Hub."""

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from .calibrate import run_calibrate
from .card import run_card
from .common import add_data_arguments, add_model_arguments, add_network_arguments, add_push_arguments
from .compare import run_compare
from .convert import run_convert_openai
from .evaluate import run_evaluate
from .merge import run_merge
from .push import run_push, run_push_space
from .sample import run_sample


def build_parser() -> argparse.ArgumentParser:
    r"""The command line and its options."""
    parser = argparse.ArgumentParser(prog="ddpm-vlb", description="Likelihoods of DDPM checkpoints, in bits/dim.")
    parser.add_argument("--version", action="version", version=f"ddpm-vlb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    evaluate = commands.add_parser("evaluate", help="the variational bound of a data set under a checkpoint")
    add_model_arguments(evaluate)
    add_data_arguments(evaluate)
    evaluate.add_argument(
        "--method",
        choices=("sampled", "full", "iw", "ode"),
        default="sampled",
        help="an unbiased estimate with its error; every image at every step; importance-weighted; of the probability-flow ODE"
        " (default: sampled)",
    )
    evaluate.add_argument("--k", type=int, help="trajectories of an image, with --method iw (default: 16)")
    evaluate.add_argument("--trace", choices=("exact", "hutchinson"), help="with --method ode (default: exact where D <= 256)")
    evaluate.add_argument("--target-se", type=float, help="Monte Carlo error at which to stop (default: 0.005 bits/dim)")
    evaluate.add_argument("--max-evaluations", type=int, help="network evaluations at which to stop (default: 100,000)")
    evaluate.add_argument("--per-image", type=int, metavar="K", help="K evaluations of every image, and a score for each")
    evaluate.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th image from image I on (see `merge`)")
    evaluate.add_argument("--output", default="report.json", help="where the report goes (default: report.json)")
    evaluate.add_argument("--plot", help="where a plot of the terms goes, a PNG file")
    evaluate.add_argument("--scores", help="where the images' scores go, a .csv or .parquet file")
    evaluate.add_argument("--no-calibration", action="store_true", help="leave the checkpoint's calibration aside")
    evaluate.add_argument("--clip-sample", action=argparse.BooleanOptionalAction, help="override the scheduler's clip_sample")

    compare = commands.add_parser("compare", help="the difference of two checkpoints' bounds, from the same images and noise")
    compare.add_argument("checkpoint", metavar="A", help="a pipeline's folder, or its name on the Hub")
    compare.add_argument("other", metavar="B", help="the one to subtract; may be A, with other settings")
    add_data_arguments(compare)
    compare.add_argument("--target-se", type=float, help="Monte Carlo error at which to stop (default: 0.005 bits/dim)")
    compare.add_argument("--max-evaluations", type=int, help="network evaluations at which to stop (default: 100,000)")
    for name in ("a", "b"):
        of = name.upper()
        compare.add_argument(f"--num-inference-steps-{name}", type=int, metavar="K", help=f"of {of} (default: all steps)")
        compare.add_argument(f"--class-label-{name}", type=int, metavar="CLASS", help=f"of all images, for {of}")
        compare.add_argument(f"--revision-{name}", help=f"branch, tag or commit of {of} on the Hub")
    add_network_arguments(compare)
    compare.add_argument("--output", default="comparison.json", help="where the result goes (default: comparison.json)")

    calibrate = commands.add_parser("calibrate", help="better variances, decoder and sub-schedules for the same weights")
    calibrate.add_argument("checkpoint", metavar="FOLDER_OR_REPO", help="a pipeline's folder, or its name on the Hub")
    calibrate.add_argument("--revision", help="branch, tag or commit of a Hub checkpoint")
    add_data_arguments(calibrate, "train")
    calibrate.add_argument("--evaluations", type=int, default=8192, help="of the network (default: 8192)")
    calibrate.add_argument("--num-timesteps", type=int, default=32, help="timesteps to look at (default: 32)")
    calibrate.add_argument("--target-se", type=float, help="refuse a larger standard error of the best bound, in bits/dim")
    add_network_arguments(calibrate)
    calibrate.add_argument("--output", required=True, help="folder to make: the pipeline with its calibration")
    calibrate.add_argument("--plot", help="where a plot of bits/dim over the number of steps goes, a PNG file")

    merge = commands.add_parser("merge", help="one report of several: shards of a data set, or more seeds")
    merge.add_argument("reports", metavar="REPORT", nargs="+", help="at least two of the same model and settings")
    merge.add_argument("--output", default="report.json", help="where the report goes (default: report.json)")
    merge.add_argument("--plot", help="where a plot of the terms goes, a PNG file")
    merge.add_argument("--scores", help="where the images' scores go, a .csv or .parquet file")

    sample = commands.add_parser("sample", help="images from a checkpoint, as one grid")
    add_model_arguments(sample)
    sample.add_argument("--num-images", type=int, default=16)
    sample.add_argument("--class-label", type=int, help="class, for a class-conditional network")
    sample.add_argument("--draw-from-decoder", action="store_true", help="draw the last image too (default: its mean)")
    sample.add_argument("--output", default="samples.png", help="where the grid goes (default: samples.png)")

    card = commands.add_parser("card", help="the model card of a scored checkpoint, made from its report")
    card.add_argument("folder", metavar="FOLDER", help="a pipeline's folder; with --check, one with README.md and report.json")
    card.add_argument("--report", help="what `ddpm-vlb evaluate` wrote (default: FOLDER/report.json)")
    card.add_argument("--repository", metavar="REPO", help="name on the Hub (default: your-name/FOLDER)")
    card.add_argument("--description", help="what only you know; kept in the report")
    card.add_argument("--num-images", type=int, default=16, help="samples to draw for it (default: 16; 0: none)")
    card.add_argument("--check", action="store_true", help="check the card that is there against its report; writes nothing")

    push = commands.add_parser("push", help="a pipeline's folder to the Hub, with its card and the package in one file")
    push.add_argument("folder", metavar="FOLDER", help="a pipeline's folder, with its report.json if it has been scored")
    push.add_argument("repository", metavar="REPO", help="owner/name; made where it does not exist")
    add_push_arguments(push, "Upload VLBDDPMPipeline")

    space = commands.add_parser("push-space", help="the demo to the Hub, as a Space")
    space.add_argument("repository", metavar="REPO", help="owner/name; made where it does not exist")
    space.add_argument("--folder", default="spaces_demo", help="the demo's (default: spaces_demo, as in a clone)")
    add_push_arguments(space, "Upload the demo")

    convert = commands.add_parser("convert-openai", help="a checkpoint of openai/improved-diffusion as a pipeline's folder")
    convert.add_argument("checkpoint", metavar="CHECKPOINT.pt", help="model*.pt or ema_*.pt: the weights of a UNetModel")
    convert.add_argument("output", metavar="OUTPUT", help="folder to make")
    convert.add_argument("--diffusion-steps", type=int, default=4000, help="as trained (default: 4000)")
    convert.add_argument(
        "--noise-schedule", choices=("cosine", "linear"), default="cosine", help="as trained (default: cosine)"
    )
    convert.add_argument("--rescale-timesteps", action=argparse.BooleanOptionalAction, default=True, help="as trained")
    convert.add_argument("--num-heads", type=int, default=4, help="as trained (default: 4)")
    convert.add_argument("--image-size", type=int, help="default: of the published model with these channel multipliers")
    convert.add_argument("--sigma-small", action="store_true", help="as trained, where variances were not learned")
    convert.add_argument("--predict-xstart", action="store_true", help="as trained")
    convert.add_argument("--dropout", type=float, default=0.0, help="of further training")
    return parser


COMMANDS = {
    "evaluate": run_evaluate,
    "compare": run_compare,
    "calibrate": run_calibrate,
    "merge": run_merge,
    "sample": run_sample,
    "card": run_card,
    "push": run_push,
    "push-space": run_push_space,
    "convert-openai": run_convert_openai,
}


def main(argv: Sequence[str] | None = None) -> int:
    r"""Run a command line; returns the exit status: 2, with one line on stderr, for anything that the user can mend."""
    arguments = build_parser().parse_args(argv)
    try:
        COMMANDS[arguments.command](arguments)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"ddpm-vlb {arguments.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
