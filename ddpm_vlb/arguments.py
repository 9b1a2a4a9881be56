r"""The options of the command `ddpm-vlb`."""

import argparse

from . import __version__

DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
DTYPES |= {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def build_parser() -> argparse.ArgumentParser:
    r"""The command line and its options."""
    parser = argparse.ArgumentParser(prog="ddpm-vlb", description="Likelihoods of DDPM checkpoints, in bits/dim.")
    parser.add_argument("--version", action="version", version=f"ddpm-vlb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    evaluate = commands.add_parser("evaluate", help="the variational bound of a data set under a checkpoint")
    _add_model_arguments(evaluate)
    _add_data_arguments(evaluate)
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
    _add_data_arguments(compare)
    compare.add_argument("--target-se", type=float, help="Monte Carlo error at which to stop (default: 0.005 bits/dim)")
    compare.add_argument("--max-evaluations", type=int, help="network evaluations at which to stop (default: 100,000)")
    for name in ("a", "b"):
        of = name.upper()
        compare.add_argument(f"--num-inference-steps-{name}", type=int, metavar="K", help=f"of {of} (default: all steps)")
        compare.add_argument(f"--class-label-{name}", type=int, metavar="CLASS", help=f"of all images, for {of}")
        compare.add_argument(f"--revision-{name}", help=f"branch, tag or commit of {of} on the Hub")
    _add_network_arguments(compare)
    compare.add_argument("--output", default="comparison.json", help="where the result goes (default: comparison.json)")

    calibrate = commands.add_parser("calibrate", help="better variances, decoder and sub-schedules for the same weights")
    calibrate.add_argument("checkpoint", metavar="FOLDER_OR_REPO", help="a pipeline's folder, or its name on the Hub")
    calibrate.add_argument("--revision", help="branch, tag or commit of a Hub checkpoint")
    _add_data_arguments(calibrate, "train")
    calibrate.add_argument("--evaluations", type=int, default=8192, help="of the network (default: 8192)")
    calibrate.add_argument("--num-timesteps", type=int, default=32, help="timesteps to look at (default: 32)")
    calibrate.add_argument("--target-se", type=float, help="refuse a larger standard error of the best bound, in bits/dim")
    _add_network_arguments(calibrate)
    calibrate.add_argument("--output", required=True, help="folder to make: the pipeline with its calibration")
    calibrate.add_argument("--plot", help="where a plot of bits/dim over the number of steps goes, a PNG file")

    merge = commands.add_parser("merge", help="one report of several: shards of a data set, or more seeds")
    merge.add_argument("reports", metavar="REPORT", nargs="+", help="at least two of the same model and settings")
    merge.add_argument("--output", default="report.json", help="where the report goes (default: report.json)")
    merge.add_argument("--plot", help="where a plot of the terms goes, a PNG file")
    merge.add_argument("--scores", help="where the images' scores go, a .csv or .parquet file")

    sample = commands.add_parser("sample", help="images from a checkpoint, as one grid")
    _add_model_arguments(sample)
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
    _add_push_arguments(push, "Upload VLBDDPMPipeline")

    space = commands.add_parser("push-space", help="the demo to the Hub, as a Space")
    space.add_argument("repository", metavar="REPO", help="owner/name; made where it does not exist")
    space.add_argument("--folder", default="spaces_demo", help="the demo's (default: spaces_demo, as in a clone)")
    _add_push_arguments(space, "Upload the demo")

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


def _add_data_arguments(parser: argparse.ArgumentParser, default_split: str = "test") -> None:
    parser.add_argument(
        "--dataset", required=True, help="digits, a folder of images, an idx or npz file, or a data set of the Hub"
    )
    parser.add_argument("--split", help=f"part of the data set (default: {default_split}, where there are parts)")
    parser.set_defaults(default_split=default_split)
    parser.add_argument("--max-images", type=int, help="the first MAX_IMAGES only")
    parser.add_argument("--streaming", action="store_true", help="read the data set as a stream; no class labels")
    parser.add_argument("--num-pixel-levels", type=int, help="levels of the model's grid (default: as its scheduler says)")
    parser.add_argument(
        "--quantize", action="store_true", help="bring the images onto the model's grid first; changes what is scored"
    )
    parser.add_argument(
        "--buffer-mb", type=float, default=1024, help="memory for images, of a sampled evaluation (default: 1024)"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--expected-processes", type=int, help="fail unless so many processes take part")


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="FOLDER_OR_REPO", help="a pipeline's folder, or its name on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub checkpoint")
    parser.add_argument("--num-inference-steps", type=int, metavar="K", help="the K-step model (default: all steps)")
    _add_network_arguments(parser)


def _add_network_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="a non-negative integer below 2^63")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the network")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--channels-last", action="store_true", help="another layout of the network's memory; can be faster")
    parser.add_argument("--compile", action="store_true", help="compile the network first (torch.compile); can be faster")


def _add_push_arguments(parser: argparse.ArgumentParser, message: str) -> None:
    parser.add_argument("--private", action=argparse.BooleanOptionalAction, help="refused where REPO exists and is not so")
    parser.add_argument("--revision", help="branch, made where it does not exist (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request")
    parser.add_argument("--message", default=message, help="of the commit")
    parser.add_argument("--token", help="default: the one that is logged in, or HF_TOKEN")
