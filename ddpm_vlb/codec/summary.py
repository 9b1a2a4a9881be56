r"""Where the bits of a file went: every one of them, and what the bound asked for."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Account:
    r"""Where bits went, summed over images.

    Args:
        images: that were coded.
        bound: bits that the model asks for: the log-ratios of the trajectories.
        net: bits by which stacks grew.
        notes: of these, bits that tell where values near the middle between two went.
        num_notes: how many there were.
    """

    images: int = 0
    bound: float = 0.0
    net: float = 0.0
    notes: float = 0.0
    num_notes: int = 0


@dataclass
class Summary:
    r"""What a file took, and for what.

    Args:
        num_images, num_dimensions: of the file, and of an image.
        num_blocks, num_plain: blocks, and images without the network.
        file_bytes: all of it.
        described_bytes: of it, labels and names.
        stack_bits, plain_bits: of it, the stacks, and what of these was there before the first image was pushed.
        account: of the images that were pushed.
    """

    num_images: int
    num_dimensions: int
    num_blocks: int
    num_plain: int
    file_bytes: int
    described_bytes: int
    stack_bits: int
    plain_bits: int
    account: Account

    def as_dict(self) -> dict[str, Any]:
        r"""Bits per dimension, all bits of the file over all values of its images, and what the bound leaves to explain.

        `bound` is that of the trajectories that were coded, `None` where no image was. The parts of `overhead` sum to
        `bits_per_dim - bound`.
        """
        values, account = self.num_images * self.num_dimensions, self.account
        coded = account.images * self.num_dimensions
        bound = account.bound / coded if coded else None
        container = 8 * (self.file_bytes - self.described_bytes) - self.stack_bits
        parts = {
            "container": container,
            "labels and names": 8 * self.described_bytes,
            "initial bits": self.plain_bits - (bound or 0.0) * self.num_plain * self.num_dimensions,
            "guard band": account.notes,
            "quantisation": account.net - account.notes - account.bound,
        }
        return {
            "num_images": self.num_images,
            "num_blocks": self.num_blocks,
            "num_plain": self.num_plain,
            "num_notes": account.num_notes,
            "file_bytes": self.file_bytes,
            "bits_per_dim": 8 * self.file_bytes / values,
            "net_bits_per_dim": account.net / coded if coded else None,
            "bound": bound,
            "overhead": {name: bits / values for name, bits in parts.items()},
        }
