r"""How many images go together where memory has the say, or a compiler.

With `batch_size="auto"` a call of the network that does not fit into the memory of its device is made again in halves, and all
calls after it are of no more images. What is drawn does not change, and no number beyond rounding.

A module that was compiled for batches of one size is compiled anew for every other, which takes minutes, and after eight of
them torch gives up. What is left at the end of a round is filled up, so that few sizes are met.
"""

from typing import TYPE_CHECKING, Any

import torch

from ..checks import check_count

if TYPE_CHECKING:
    from .network import Network

AUTO = "auto"
FIRST = 256
FIRST_ON_CPU = 64  # where memory that is not there is asked of the disk, and no error says so


def check_batch_size(batch_size: Any, network: "Network") -> int:
    r"""A positive integer; for `"auto"` where a network that may halve its calls from here on begins; or `ValueError`."""
    if isinstance(batch_size, str) and batch_size == AUTO:
        network.halves = True
        return FIRST_ON_CPU if network.device.type == "cpu" else FIRST
    return check_count("batch_size", batch_size)


def compiled_size(size: int, largest: int) -> int:
    r"""How many rows a compiled module is asked about for `size` of them: as many as the largest of its calls had, or, for half
    of these and less, a power of two."""
    return largest if 2 * size > largest else min(largest, 1 << (size - 1).bit_length())


def filled(rows: torch.Tensor, size: int, full: int) -> torch.Tensor:
    r"""Rows `(size, ...)` with the first one repeated up to `full`; anything else, which is the same for all, as it is."""
    if rows.ndim == 0 or len(rows) != size or size == full:
        return rows
    return torch.cat([rows, rows[:1].expand(full - size, *rows.shape[1:])])


def out_of_memory(error: Exception) -> str | None:
    r"""What an error says, in a sentence, if it is that memory does not suffice."""
    said = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in said or "out of memory" in said:
        said = said[max(0, said.find("DefaultCPUAllocator")) :]
        return said.strip().split("\n")[0].split(". ")[0].rstrip(".") + "."
    return None


def smaller(size: int, network: "Network", reason: str) -> int:
    r"""How many images to try after `size` of them did not fit.

    Raises:
        ValueError: nobody asked for it, or a single image does not fit.
    """
    where = f"the memory of {network.device}"
    if not network.halves:
        raise ValueError(f"`batch_size` must be of images that fit into {where}, got {size}: {reason} Give less, or 'auto'.")
    if size == 1:
        raise ValueError(f"`batch_size` cannot be less than one image, and one does not fit into {where}: {reason}")
    if network.device.type == "cuda":
        torch.cuda.empty_cache()
    return size // 2
