r"""The held-out images that the demo shows, with the scores it draws as a histogram.

    python training/shipped/make_examples.py --mnist t10k-images-idx3-ubyte.gz

Writes into spaces_demo/examples/: the 360 digits of the test split (their scores are in the checkpoint's own report), the first
200 of MNIST's test images with a report of their own, and a few digits as PNG files, for uploads and for models without images.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import ImageSet, load_images
from ddpm_vlb.evaluation import evaluate, format_report, write_report
from ddpm_vlb.files import write_atomically

SPACE = Path(__file__).parents[2] / "spaces_demo"
EXAMPLES = SPACE / "examples"
NUM_MNIST, EVALUATIONS = 200, 128
NUM_PICTURES, SCALE = 8, 8


def write_images(path: Path, images: torch.Tensor) -> None:
    r"""Levels `(N, 1, H, W)` as an npz file that `load_images` reads."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images[:, 0].numpy())
    write_atomically(path, buffer.getvalue())


def main() -> None:
    r"""Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", help="MNIST's test images, an idx file; without it MNIST's examples stay as they are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    (EXAMPLES / "pictures").mkdir(parents=True, exist_ok=True)

    digits = load_images("digits", "test")
    write_images(EXAMPLES / "ddpm-vlb-digits.npz", digits.images)
    for number in range(NUM_PICTURES):
        # The grey that quantisation brings back to the level exactly.
        grey = (digits.images[number, 0].double() * 255 / (digits.num_pixel_levels - 1)).round().to(torch.uint8)
        enlarged = np.kron(grey.numpy(), np.ones((SCALE, SCALE), dtype=np.uint8))
        Image.fromarray(enlarged).save(EXAMPLES / "pictures" / f"digit-{number}.png")

    if arguments.mnist:
        images = load_images(arguments.mnist, max_images=NUM_MNIST).images
        write_images(EXAMPLES / "ddpm-vlb-mnist.npz", images)
        pipe = VLBDDPMPipeline.from_pretrained(SPACE / "checkpoints" / "ddpm-vlb-mnist")
        report = evaluate(
            pipe,
            ImageSet(images, 256, "mnist", "test"),
            evaluations_per_image=EVALUATIONS,
            dataset="mnist",
            split=f"test, the first {NUM_MNIST}",
            checkpoint="ddpm-vlb-mnist",
        )
        write_report(report, EXAMPLES / "ddpm-vlb-mnist.json")
        print(format_report(report))


if __name__ == "__main__":
    main()
