r"""Damaged compressed files, their checksums made right again, so that decoding itself is tried: each must be refused, or give
the images that were coded.

    python tests/benchmarks/codec_damage.py [--files 1000]

Prints how far it is every 100 files; how many were refused, the slowest, and by how much the process grew.
"""

import argparse
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from damage import damaged

from ddpm_vlb import VLBDDPMPipeline, compress, decompress, load_images

SHIPPED = Path(__file__).parents[2] / "spaces_demo" / "checkpoints" / "ddpm-vlb-digits"


def memory() -> float:
    r"""MiB that the process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    arguments = parser.parse_args()
    pipe, images = VLBDDPMPipeline.from_pretrained(SHIPPED), load_images("digits").images[:12]
    data = compress(pipe, images, num_inference_steps=3)
    start = time.perf_counter()
    if not torch.equal(decompress(pipe, data), images):
        raise SystemExit("decoded images differ")
    whole, before = time.perf_counter() - start, memory()
    chance, refusals, right, slowest = random.Random(0), Counter(), 0, 0.0
    for number in range(arguments.files):
        file = damaged(data, chance)
        start = time.perf_counter()
        try:
            found = decompress(pipe, file)
        except ValueError as error:
            refusals[" ".join(str(error).split(",")[0].split()[:9])] += 1
        else:
            if not torch.equal(found, images):
                raise SystemExit(f"file {number} gave other images, {tuple(found.shape)}")
            right += 1
        slowest = max(slowest, time.perf_counter() - start)
        if (number + 1) % 100 == 0:
            print(
                f"{number + 1} files: {sum(refusals.values())} refused, {right} gave their images", file=sys.stderr, flush=True
            )
    print(f"{arguments.files} damaged files: {sum(refusals.values())} refused, {right} gave their images")
    print(f"slowest {slowest:.2f} s (whole: {whole:.2f} s); {memory() - before:.0f} MiB more than one that is whole")
    for words, count in refusals.most_common():
        print(f"{count:6} {words}")


if __name__ == "__main__":
    main()
