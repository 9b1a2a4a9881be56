r"""`compress` and `decompress`: images to a file and back, block by block.

A block is a stack of bits of its own (`chain.py`). It begins with a few images without the network, as many as the first pops
need; then one image at a time is pushed, and, as the stack grows, batches of them, as far as there are bits for: the network
is asked about a batch at once, and all images of a batch need their bits at once.
"""

import copy
import io
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from ..checks import check_count
from ..data.levels import check_grid, images_to_levels
from .arguments import check_image_numbers, check_labels, check_names, check_sizes
from .chain import BAND, Chain
from .container import (
    CRC_BYTES,
    DIGEST_BYTES,
    MAX_BLOCK_VALUES,
    CodedBlock,
    Header,
    Reader,
    crc_of,
    end,
    frame,
    image_check,
    read_blocks,
)
from .network import in_float64
from .plain import begin, finish
from .stack import DamagedFile, Stack, load_coder, words_of_bytes, words_to_bytes
from .summary import Summary

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

BATCH_SIZE, BLOCK_SIZE = 16, 1024
SPARE_BITS = 32  # that the stack keeps below what a batch needs


def compress(
    pipe: "VLBDDPMPipeline",
    images: Any,
    *,
    num_inference_steps: int | None = None,
    inference_timesteps: Sequence[int] | None = None,
    class_labels: int | Sequence[int] | torch.Tensor | None = None,
    labels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
    block_size: int = BLOCK_SIZE,
    file: BinaryIO | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Any:
    r"""Images as a file that `decompress` gives back to the last bit, nearly as short as the variational bound.

    Args:
        pipe: a `VLBDDPMPipeline`; left as it is. Its network is evaluated in float64, whatever its dtype.
        images: as `VLBDDPMPipeline.evaluate_nll`; of a set that `open_images` returns no more than a block is in memory.
        num_inference_steps, inference_timesteps: the chain, as `evaluate_nll`: fewer steps are faster and longer.
        class_labels: of a class-conditional network, as `evaluate_nll`; kept in the file.
        labels, names: of the images, integers and words to be kept in the file beside them.
        batch_size: images per network call, at most.
        block_size: images per block: what has to be decoded for one of them, and what shares the cost of beginning.
        file: a binary file to write to, in place of memory. One that can be read, too, and holds the beginning of the same file
            goes on where it stopped.
        progress: called with the number of images, each time some are done.

    Returns:
        `bytes`; with `file`, a `Summary` of what was written (in this call).

    Raises:
        ValueError: images that do not fit the model or are none; a model that cannot be scored; labels or names that are not
            one for each image; another beginning in `file`; constriction is not installed.
    """
    batch_size, block_size = check_count("batch_size", batch_size), check_count("block_size", block_size)
    load_coder()
    if inference_timesteps is None:
        steps = pipe.scorer(num_inference_steps).timesteps
        chain, named = chain_of(pipe, len(steps)), None
        if [step.timestep for step in chain.steps] != steps:
            chain, named = chain_of(pipe, timesteps=steps), tuple(steps)
    else:
        chain = chain_of(pipe, timesteps=sorted(inference_timesteps))
        named = tuple(pipe.scorer(inference_timesteps=inference_timesteps).timesteps)
    read, count, shape = _source(chain, images)
    classes = chain.scorer.network.check_class_labels(class_labels, count)
    if classes is not None and labels is not None:
        raise ValueError("`labels` must be left out where there are `class_labels`, which are kept, got both.")
    kept = check_labels(labels if classes is None else classes.tolist(), count)
    named_images = check_names(names, count)
    check_sizes(shape, count, block_size)

    def described(first: int, last: int) -> dict[str, Any]:
        return {
            "labels": None if kept is None else kept[first:last],
            "names": None if named_images is None else named_images[first:last],
        }

    band = round(-torch.tensor(chain.band, dtype=torch.float64).log2().item())
    levels = chain.scorer.num_pixel_levels
    header = Header(shape, levels, chain.digest[:DIGEST_BYTES], len(chain.steps), band, named, classes is not None)
    target = io.BytesIO() if file is None else file
    start, crc, index = _resume(target, header, chain, read, described, count, block_size)
    summary = Summary(0, math.prod(shape), 0, 0, 0, 0, 0, 0, chain.account)
    summary.file_bytes = len(header.to_bytes())
    if progress is not None and start:
        progress(start)
    for first in range(start, count, block_size):
        last = min(first + block_size, count)
        block_classes = None if classes is None else classes[first:last]
        block = encode_block(chain, read(first, last), index, block_classes, batch_size, summary, progress)
        block = block._replace(**described(first, last))
        body = block.to_bytes()
        framed = frame(body, crc)
        crc, index = framed[-CRC_BYTES:], index + 1
        summary.described_bytes += len(body) - len(block._replace(labels=None, names=None).to_bytes())
        summary.file_bytes += len(framed)
        target.write(framed)
        target.flush()
    closing = end(crc)
    summary.file_bytes += len(closing)
    target.write(closing)
    return target.getvalue() if isinstance(target, io.BytesIO) and file is None else summary


def encode_block(
    chain: Chain,
    levels: torch.Tensor,
    index: int,
    class_labels: torch.Tensor | None,
    batch_size: int,
    summary: Summary,
    progress: Callable[[int], Any] | None = None,
) -> CodedBlock:
    r"""A block of images, levels `(N, C, H, W)`; what it took is added to `summary`."""
    count, dimensions = len(levels), levels[0].numel()
    num_levels, key = chain.scorer.num_pixel_levels, chain.digest
    need = chain.start_bits * dimensions
    plain, before = 0, copy.copy(chain.account)
    with chain.scorer.network.evaluating():
        while True:
            plain, (stack, is_counted) = _enough_plain(levels, plain + 1, need, num_levels, key)
            place, batches = plain, []
            plain_bits = stack.num_bits
            while place < count:
                # Powers of two, so that they are soon told.
                size = 1 << (
                    int(min(batch_size, count - place, max((stack.num_bits - SPARE_BITS) // need, 1))).bit_length() - 1
                )
                chosen, there = slice(place, place + size), stack.num_bits
                low = chain.push(stack, levels[chosen], None if class_labels is None else class_labels[chosen])
                if low + 32 > there:
                    break  # popped from an empty stack: right, but long
                need = low / size if not batches else max(need, low / size)
                place += size
                batches.append(size)
                if progress is not None:
                    progress(size)
            if place >= count:
                break
            need *= 1.1
            vars(chain.account).update(vars(before))
            if progress is not None:
                progress(-sum(batches))
    whole, whole_counted = begin(levels, num_levels, key)
    if whole.num_bits <= stack.num_bits:
        stack, is_counted, plain, batches, plain_bits = whole, whole_counted, count, [], whole.num_bits
        vars(chain.account).update(vars(before))
    payload = words_to_bytes(stack.words()).rstrip(b"\0")
    summary.num_images += count
    summary.num_plain += plain
    summary.num_blocks += 1
    summary.plain_bits += plain_bits + (8 * len(payload) - stack.num_bits)
    summary.stack_bits += 8 * len(payload)
    runs = [(size, len(list(group))) for size, group in groupby(batches)]
    check = image_check(chain.digest, index, levels.numpy().tobytes())
    if progress is not None:
        progress(count - sum(batches))
    return CodedBlock(count, plain, is_counted, runs, None, None, check, payload)


def decompress(
    pipe: "VLBDDPMPipeline",
    data: bytes | BinaryIO,
    images: Sequence[int] | slice | int | None = None,
    *,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    r"""The images of a file that `compress` made.

    Args:
        pipe: the model that it was made with: the same network, scheduler and calibration, on any machine.
        data: the file's bytes, or a binary file.
        images: which ones, by their numbers or as a slice; only their blocks are decoded. By default all.
        batch_size: images per network call, at most; need not be that of `compress`.

    Returns:
        Levels `(N, C, H, W)`, as `images_to_levels` gives them.

    Raises:
        DamagedFile: a file that is not as it was written, or a machine whose network differs by more than the guard band; never
            wrong images. It is a `ValueError`.
        ValueError: another model; numbers that are not those of images; constriction is not installed.
    """
    if images is None:
        return torch.cat([levels for _, levels, _ in decompress_blocks(pipe, data, batch_size=batch_size)])
    with _seekable(data) as file:  # looked at twice
        start = file.tell()
        wanted = check_image_numbers(images, sum(block.num_images for _, block in read_info(file)[1]))
        file.seek(start)
        blocks = {first: levels for first, levels, _ in decompress_blocks(pipe, file, set(wanted), batch_size=batch_size)}
    picked = []
    for number in wanted:
        first = max(start for start in blocks if start <= number)
        picked.append(blocks[first][number - first])
    return torch.stack(picked)


@contextmanager
def _seekable(data: bytes | BinaryIO) -> Iterator[BinaryIO]:
    r"""The file, or one on the disk with what a stream holds that cannot be read twice: never more than a block in memory."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        yield io.BytesIO(data)
    elif data.seekable():
        yield data
    else:
        with tempfile.TemporaryFile() as file:
            shutil.copyfileobj(data, file)
            file.seek(0)
            yield file


def decompress_blocks(
    pipe: "VLBDDPMPipeline",
    data: bytes | BinaryIO,
    wanted: set[int] | None = None,
    progress: Callable[[int], Any] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[int, torch.Tensor, CodedBlock]]:
    r"""The blocks of a file one at a time, in bounded memory: the number of their first image, their levels, and the rest.

    Args:
        pipe, data: as `decompress`.
        wanted: numbers of images; blocks without any are passed over.
        progress: called with the number of images, each time some are decoded.
        batch_size: as `decompress`.

    Raises:
        ValueError: as `decompress`.
    """
    batch_size = check_count("batch_size", batch_size)
    load_coder()
    header, reader, crc = read_header(data)
    chain = None
    for index, first, block, _ in read_blocks(reader, crc):
        if wanted is not None and not any(first <= number < first + block.num_images for number in wanted):
            continue
        if chain is None:
            chain = replace(_chain_of_header(pipe, header), batch_size=batch_size)
        yield first, decode_block(chain, header, block, index, progress), block


def decode_block(
    chain: Chain, header: Header, block: CodedBlock, index: int, progress: Callable[[int], Any] | None = None
) -> torch.Tensor:
    r"""The images of a block, levels `(N, C, H, W)`; `DamagedFile` where they are not those that were coded."""
    if block.num_images * math.prod(header.shape) > MAX_BLOCK_VALUES:
        raise DamagedFile(f"`data` must hold at most {MAX_BLOCK_VALUES} values in a block, got {block.num_images} images.")
    labels = None
    if header.has_classes:
        if block.labels is None:
            raise DamagedFile("`data` must hold the classes of its images, got none.")
        labels = chain.scorer.network.check_class_labels(block.labels, block.num_images)
    found, place = [], block.num_images
    with _as_damage(), chain.scorer.network.evaluating():
        stack = Stack(words_of_bytes(block.payload), True)
        for size, count in reversed(block.runs):
            for _ in range(count):
                classes = None if labels is None else labels[place - size : place]
                found.append(chain.pop(stack, (size, *header.shape), classes))
                place -= size
                if progress is not None:
                    progress(size)
        shape = (block.num_plain, *header.shape)
        if block.num_plain:
            found.append(finish(stack, block.is_counted, shape, header.num_pixel_levels, chain.digest))
    levels = torch.cat(found[::-1])
    if image_check(chain.digest, index, levels.numpy().tobytes()) != block.check:
        raise DamagedFile(
            f"`data` must give the images that were coded, got others in block {index}: this machine computes the network too"
            " differently."
        )
    if progress is not None:
        progress(block.num_plain)
    return levels


def read_header(data: bytes | BinaryIO) -> tuple[Header, Reader, bytes]:
    r"""The header, the reader behind it, and its checksum, which is not in the file."""
    reader = Reader(data)
    header = Header.read(reader)
    return header, reader, crc_of(bytes(reader.seen))


def read_info(data: bytes | BinaryIO) -> tuple[Header, list[tuple[int, CodedBlock]]]:
    r"""What is in a file, without its model: the header, and (first image, block) of every block, their payloads left out.

    Raises:
        DamagedFile: a file that is not as it was written.
    """
    header, reader, crc = read_header(data)
    return header, [(first, block._replace(payload=b"")) for _, first, block, _ in read_blocks(reader, crc)]


def chain_of(pipe: "VLBDDPMPipeline", num_steps: int | None = None, timesteps: Sequence[int] | None = None, band: float = BAND):
    r"""The codec of a pipeline's model on the chain of so many steps, or on a named one, ascending."""
    if timesteps is None and num_steps == pipe.scheduler.config.num_train_timesteps:
        timesteps = range(pipe.scheduler.config.num_train_timesteps)
    scorer = pipe.scorer(num_steps) if timesteps is None else pipe.scorer(inference_timesteps=list(timesteps)[::-1])
    network = scorer.network
    return Chain(replace(scorer, network=in_float64(network)), network.sha256(torch.float32), band)


def _chain_of_header(pipe: "VLBDDPMPipeline", header: Header) -> Chain:
    refusal = "`pipe` must be the model that the file was made with, got"
    try:
        chain = chain_of(pipe, header.num_steps, header.inference_timesteps, 2.0**-header.band)
        digest = chain.digest
        chain.scorer.network.check((), header.shape[1:])
    except ValueError as error:
        raise ValueError(f"{refusal} one that cannot decode it: {error}") from error
    network, levels = chain.scorer.network, chain.scorer.num_pixel_levels
    if (network.channels, levels) != (header.shape[0], header.num_pixel_levels):
        raise ValueError(f"{refusal} one of {network.channels} channels and {levels} levels.")
    if (network.num_classes is not None) != header.has_classes:
        raise ValueError(f"{refusal} one with{'out' * header.has_classes} classes.")
    if digest[:DIGEST_BYTES] != header.digest:
        raise ValueError(f"{refusal} another network, scheduler or calibration: {digest[:DIGEST_BYTES].hex()}.")
    return chain


def _source(chain: Chain, images: Any) -> tuple[Callable[[int, int], torch.Tensor], int, tuple[int, int, int]]:
    r"""What reads images from one number to another, how many there are, and their (C, H, W)."""
    scorer = chain.scorer
    if hasattr(images, "num_pixel_levels") and hasattr(images, "__len__"):
        check_grid(images, scorer.num_pixel_levels)
        how = {"channels": scorer.network.channels, "size": scorer.network.size}

        def read(first: int, last: int) -> torch.Tensor:
            return images_to_levels([images[i] for i in range(first, last)], scorer.num_pixel_levels, **how)

        count, one = len(images), read(0, min(1, len(images)))
    else:
        levels = images_to_levels(images, scorer.num_pixel_levels, channels=scorer.network.channels, size=scorer.network.size)
        count, one = len(levels), levels

        def read(first: int, last: int) -> torch.Tensor:
            return levels[first:last]

    scorer.network.check((), one.shape[2:])
    channels, height, width = one.shape[1:]
    return read, count, (channels, height, width)


def _resume(
    file: BinaryIO, header: Header, chain: Chain, read, described, count: int, block_size: int
) -> tuple[int, bytes, int]:
    r"""Write the header, or pass over what is there already; the next image, the last checksum, the next block."""
    start = header.to_bytes()
    crc, first, index = crc_of(start), 0, 0
    if not (file.seekable() and file.readable()) or not file.seek(0, io.SEEK_END):
        file.write(start)
        return first, crc, index
    file.seek(0)
    refusal = "`file` must be empty or hold the beginning of the same file, got"
    found = file.read(len(start))
    if not start.startswith(found):
        raise ValueError(f"{refusal} another.")
    if found != start:  # not even the header was written
        file.seek(0)
        file.write(start)
        return first, crc, index
    position = len(start)
    try:
        for _, at, block, block_crc in read_blocks(Reader(file), crc):
            last = min(at + block_size, count)
            if block.num_images != last - at:
                raise ValueError(f"{refusal} one of blocks of {block.num_images} images.")
            if block.check != image_check(chain.digest, index, read(at, last).numpy().tobytes()):
                raise ValueError(f"{refusal} one of other images.")
            if {"labels": block.labels, "names": block.names} != described(at, last):
                raise ValueError(f"{refusal} one of other labels or names.")
            crc, first, index, position = block_crc, last, index + 1, file.tell()
    except DamagedFile:
        pass  # the block that was being written
    file.seek(position)
    file.truncate()
    return first, crc, index


def _enough_plain(levels, least: int, need: float, num_levels: int, key: bytes) -> tuple[int, tuple[Stack, bool]]:
    r"""How many images without the network give the bits for one with it, at least so many; and the block's beginning."""
    plain = min(least, len(levels))
    while True:
        begun = begin(levels[:plain], num_levels, key)
        if plain == len(levels) or begun[0].num_bits >= need + SPARE_BITS:
            return plain, begun
        plain += 1


@contextmanager
def _as_damage() -> Iterator[None]:
    r"""What a coder says to bits that are none of its own, as `DamagedFile`."""
    refusal = "`data` must hold bits that this model and this machine can decode, got others"
    try:
        yield
    except DamagedFile:
        raise
    except (ValueError, AssertionError, OverflowError, IndexError, FloatingPointError) as error:
        raise DamagedFile(f"{refusal}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the coder
            raise
        raise DamagedFile(f"{refusal}.") from error
