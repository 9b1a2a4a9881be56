r"""Lossless files against the bound they are to meet: rate by cause and by the number of steps, time, and other tools' rates.

    python tests/benchmarks/codec.py [--mnist t10k-images-idx3-ubyte.gz --mnist-train train-images-idx3-ubyte.gz] \
        [--mnist-images 1000] [--mnist-curve-images 60] [--plot codec.png]

The shipped networks, calibrated on the training split first (seconds for the digits, two minutes for MNIST). "file" is all
bytes of the file over all values of its images; "bound" is the sum of the log-ratios of the trajectories that were coded. Every
file is decoded and compared. Times are of all that is done, each way, and in brackets over the network's own, in float64.
JPEG XL is in the table where `pillow-jxl-plugin` is installed.
"""

import argparse
import bz2
import contextlib
import io
import lzma
import time
import zlib
from pathlib import Path

import torch
from PIL import Image, features

from ddpm_vlb import VLBDDPMPipeline, calibrate, compress, decompress, load_images
from ddpm_vlb.codec import chain, codec, stack

with contextlib.suppress(ImportError):
    import pillow_jxl  # noqa: F401 (registers JPEG XL with Pillow)

SHIPPED = Path(__file__).parents[2] / "spaces_demo" / "checkpoints"


def others(levels: torch.Tensor) -> dict[str, float]:
    r"""Bits/dim of general tools on all images at once, and of picture formats on them one by one and as one picture."""
    body, values = levels.numpy().tobytes(), levels.numel()
    rates = {
        "xz": len(lzma.compress(body, preset=9 | lzma.PRESET_EXTREME)),
        "zlib": len(zlib.compress(body, 9)),
        "bz2": len(bz2.compress(body, 9)),
    }
    one_by_one = [Image.fromarray(image[0].numpy()) for image in levels]
    # As many beside each other as make a picture that every format can hold.
    beside = max(width for width in range(1, 33) if len(levels) % width == 0)
    rows = levels[:, 0].reshape(-1, beside, *levels.shape[2:]).permute(0, 2, 1, 3)
    together = Image.fromarray(rows.reshape(-1, beside * levels.shape[3]).contiguous().numpy())
    ways = {"PNG": ("PNG", {"optimize": True})}
    if features.check("webp"):
        ways["WebP"] = ("WEBP", {"lossless": True, "quality": 100, "method": 6, "exact": True})
    if "JXL" in Image.SAVE or ".jxl" in Image.registered_extensions():
        ways["JPEG XL"] = ("JXL", {"lossless": True, "effort": 9})
    for name, (kind, options) in ways.items():
        rates[f"{name}, one by one"] = sum(saved(picture, kind, options) for picture in one_by_one)
        rates[f"{name}, one sheet"] = saved(together, kind, options)
    return {name: 8 * size / values for name, size in rates.items()}


def saved(picture: Image.Image, kind: str, options: dict) -> int:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return len(buffer.getvalue())


class Timed:
    r"""Seconds that the network took."""

    def __init__(self, network):
        self.network, self.seconds = network, 0.0

    def __call__(self, *arguments):
        start = time.perf_counter()
        output = self.network(*arguments)
        self.seconds += time.perf_counter() - start
        return output

    def __getattr__(self, name):
        return getattr(self.network, name)


def timed(function):
    r"""What a function returns, its seconds, and those of them in the network."""
    made, plain = [], codec.in_float64

    def counting(network):
        made.append(Timed(plain(network)))
        return made[-1]

    codec.in_float64 = counting
    try:
        start = time.perf_counter()
        result = function()
        return result, time.perf_counter() - start, sum(network.seconds for network in made)
    finally:
        codec.in_float64 = plain


def row(pipe, levels: torch.Tensor, steps: int) -> dict:
    r"""One file, written and read back."""
    file = io.BytesIO()
    summary, there, there_network = timed(lambda: compress(pipe, levels, num_inference_steps=steps, file=file))
    found, back, back_network = timed(lambda: decompress(pipe, file.getvalue()))
    if not torch.equal(found, levels):
        raise SystemExit("decoded images differ")
    return summary.as_dict() | {
        "steps": steps,
        "encode": there / len(levels),
        "decode": back / len(levels),
        "encode_share": there / there_network,
        "decode_share": back / back_network,
    }


def show(name: str, levels: torch.Tensor, rows: list[dict]) -> None:
    print(f"\n{name}: {len(levels)} images, bits/dim; seconds an image, and over the network's own")
    causes = list(rows[0]["overhead"])
    print(
        f"{'K':>4} {'file':>7} {'bound':>7} {'ratio':>7} "
        + " ".join(f"{cause:>17}" for cause in causes)
        + "  encode      decode"
    )
    for r in rows:
        parts = " ".join(f"{r['overhead'][cause]:17.5f}" for cause in causes)
        print(
            f"{r['steps']:>4} {r['bits_per_dim']:7.4f} {r['bound']:7.4f} {r['bits_per_dim'] / r['bound']:7.4f} {parts}"
            f"  {r['encode']:.3f} ({r['encode_share']:.2f}x)  {r['decode']:.3f} ({r['decode_share']:.2f}x)",
            flush=True,
        )
    for tool, rate in sorted(others(levels).items(), key=lambda item: item[1]):
        print(f"     {rate:7.4f} {tool}")


def choose(pipe: VLBDDPMPipeline, levels: torch.Tensor, steps: int) -> None:
    r"""What files of other settings than the codec's own would take, for images that are not those that are measured."""
    print(f"\n{len(levels)} training images, {steps} steps: bins to a standard deviation (at least), window of latents, bytes")
    for bins, width in ((chain.BINS_PER_SCALE, stack.POP_WIDTH), (1, 5.0), (4, 5.0), (2, 4.0), (2, 6.0)):
        own = chain.BINS_PER_SCALE, stack.POP_WIDTH
        chain.BINS_PER_SCALE, stack.POP_WIDTH = bins, width
        try:
            data = compress(pipe, levels, num_inference_steps=steps)
        finally:
            chain.BINS_PER_SCALE, stack.POP_WIDTH = own
        print(f"  {bins} bins, {width:g} standard deviations: {len(data)}", flush=True)


def plot(tables: dict[str, list[dict]], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(tables), 3.5), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items()):
        steps = [r["steps"] for r in rows]
        axes.plot(steps, [r["bits_per_dim"] for r in rows], "o-", label="file, all bytes")
        axes.plot(steps, [r["bound"] for r in rows], "k--", label="bound of its trajectories")
        axes.set(title=name, xlabel="steps K", ylabel="bits/dim", xscale="log")
        axes.set_xticks(steps, [str(k) for k in steps])
        axes.minorticks_off()
        axes.legend()
    figure.savefig(path, dpi=120)


def calibrated(name: str, train, split: str | None) -> VLBDDPMPipeline:
    pipe = VLBDDPMPipeline.from_pretrained(SHIPPED / name)
    pipe.scheduler = calibrate(pipe, train, quiet=True, dataset=name, split=split).scheduler
    return pipe


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="t10k-images-idx3-ubyte.gz")
    parser.add_argument("--mnist-train", help="train-images-idx3-ubyte.gz")
    parser.add_argument("--mnist-images", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="*", default=[5, 10, 25, 50], help="of the digits")
    parser.add_argument("--mnist-steps", type=int, nargs="+", default=[25])
    parser.add_argument("--mnist-curve-images", type=int, default=0, help="of MNIST, for the rate by the number of steps")
    parser.add_argument("--mnist-curve-steps", type=int, nargs="+", default=[5, 10, 25])
    parser.add_argument("--choose", type=int, default=0, help="training images of the digits to try other settings on")
    parser.add_argument("--plot", help="a PNG file")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    tables = {}
    train, levels = load_images("digits", "train"), load_images("digits").images
    pipe = calibrated("ddpm-vlb-digits", train, "train")
    if arguments.choose:
        choose(pipe, train.images[: arguments.choose], 10)
    if arguments.steps:
        tables["digits"] = [row(pipe, levels, steps) for steps in arguments.steps]
        show("digits", levels, tables["digits"])
    if arguments.mnist:
        pipe = calibrated("ddpm-vlb-mnist", load_images(arguments.mnist_train), "train")
        for count, grid in (
            (arguments.mnist_curve_images, arguments.mnist_curve_steps),
            (arguments.mnist_images, arguments.mnist_steps),
        ):
            if count:
                levels = load_images(arguments.mnist, max_images=count).images
                name = f"MNIST, {count} images"
                tables[name] = [row(pipe, levels, steps) for steps in grid]
                show("MNIST", levels, tables[name])
    if arguments.plot:
        plot({name: rows for name, rows in tables.items() if len(rows) > 1}, arguments.plot)  # a point is no curve


if __name__ == "__main__":
    main()
