r"""The bytes of a `.vlb` file, version 2. The page beside this file has them in a table.

Integers are LEB128: seven bits a byte, the lowest first, the highest bit set where more follow. Checksums of bytes are CRC-32,
little-endian, each begun with the one before it, so that a block is right in its place alone, and behind its header.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from .stack import DamagedFile

VERSION = 2  # the first had a checksum of the header by itself
MAGIC = b"\x89VLB" + bytes([VERSION])
DIGEST_BYTES, CHECK_BYTES, CRC_BYTES = 6, 8, 4
CODED_BLOCK, END = b"B", b"E"
MAX_STEPS = 65_536
MAX_BLOCK_IMAGES = 65_536
MAX_BLOCK_BYTES = 2**31
MAX_DIMENSIONS = 2**26
MAX_BLOCK_VALUES = 2**28  # a small file can stand for many images that are all alike
MAX_LABEL = 2**62
MAX_NAME_BYTES = 4096
RUN_BASE = 32
HAS_TIMESTEPS, HAS_CLASSES = 1, 2


def write_integer(value: int) -> bytes:
    r"""LEB128."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


class Reader:
    r"""Reads a file, or some bytes, from front to back; `DamagedFile` where they end too early.

    Args:
        source: a binary file, or bytes.
    """

    def __init__(self, source: BinaryIO | bytes):
        self._file = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source
        self.seen = bytearray()

    def take(self, count: int) -> bytes:
        r"""The next bytes, whole."""
        found = bytearray()
        while len(found) < count:  # no memory for what a damaged length says, before it is there
            some = self._file.read(min(count - len(found), 2**20))
            if not some:
                raise DamagedFile(f"`data` must hold all of its bytes, got an end where {count - len(found)} more belong.")
            found += some
        self.seen += found
        return bytes(found)

    def integer(self, name: str, least: int, most: int) -> int:
        r"""The next integer, from `least` to `most`."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128 or shift > 63:
                break
        if byte > 127 or not least <= value <= most:
            raise DamagedFile(f"`data` must have a number of {name} from {least} to {most}, got {value}.")
        return value

    def rest(self) -> bytes:
        r"""All that follows."""
        return self._file.read()


@dataclass(frozen=True)
class Header:
    r"""What a file says of its images and its model.

    Args:
        shape: (C, H, W).
        num_pixel_levels: of their grid.
        digest: the first bytes of the model's.
        num_steps: K.
        band: -log2 of the guard band.
        inference_timesteps: where the grid was named, ascending.
        has_classes: whether the network was told the classes.
    """

    shape: tuple[int, int, int]
    num_pixel_levels: int
    digest: bytes
    num_steps: int
    band: int
    inference_timesteps: tuple[int, ...] | None = None
    has_classes: bool = False

    def to_bytes(self) -> bytes:
        r"""As it begins the file; the checksum of the first block, or of the end, is of it, too."""
        flags = (HAS_TIMESTEPS if self.inference_timesteps is not None else 0) | (HAS_CLASSES if self.has_classes else 0)
        numbers = [flags, *self.shape, self.num_pixel_levels - 2, self.num_steps, self.band]
        below = -1
        for timestep in self.inference_timesteps or ():
            numbers.append(timestep - below - 1)
            below = timestep
        return MAGIC + b"".join(map(write_integer, numbers)) + self.digest

    @classmethod
    def read(cls, reader: Reader) -> "Header":
        r"""Read one, or `DamagedFile`."""
        if reader.take(4) != MAGIC[:4]:
            raise DamagedFile("`data` must begin as a .vlb file does, got other bytes.")
        version = reader.take(1)[0]
        if version != VERSION:
            raise DamagedFile(f"`data` must be of version {VERSION} of the format, got {version}. Another ddpm_vlb wrote it.")
        flags = reader.integer("flags", 0, HAS_TIMESTEPS | HAS_CLASSES)
        shape = (
            reader.integer("channels", 1, 65_536),
            reader.integer("rows", 1, 65_536),
            reader.integer("columns", 1, 65_536),
        )
        levels = reader.integer("levels beyond two", 0, 65_534) + 2
        steps = reader.integer("steps", 1, MAX_STEPS)
        band = reader.integer("bits of the guard band", 1, 60)
        timesteps, below = [], -1
        for _ in range(steps if flags & HAS_TIMESTEPS else 0):
            below += reader.integer("timesteps between", 0, 1_000_000) + 1
            timesteps.append(below)
        digest = reader.take(DIGEST_BYTES)
        if shape[0] * shape[1] * shape[2] > MAX_DIMENSIONS:
            raise DamagedFile(f"`data` must hold images of at most {MAX_DIMENSIONS} values, got {shape}.")
        named = tuple(timesteps) if flags & HAS_TIMESTEPS else None
        return cls(shape, levels, digest, steps, band, named, bool(flags & HAS_CLASSES))


class CodedBlock(NamedTuple):
    r"""Images that are decoded together.

    Args:
        num_images: in all.
        num_plain: of them, those that begin the block and are coded without the network.
        is_counted: whether by `plain.py`'s small model, not by another tool.
        runs: (images to a batch, a power of two; batches) of the others, in the order in which they were pushed.
        labels: classes, or `None`.
        names: of the images, or `None`.
        check: of the images, by `image_check`.
        payload: the stack of bits.
    """

    num_images: int
    num_plain: int
    is_counted: bool
    runs: list[tuple[int, int]]
    labels: list[int] | None
    names: list[str] | None
    check: bytes
    payload: bytes

    def to_bytes(self) -> bytes:
        r"""Without its frame."""
        labels = b"" if self.labels is None else zlib.compress(b"".join(map(write_integer, self.labels)), 9)
        names = b"" if self.names is None else zlib.compress(names_to_bytes(self.names), 9)
        runs = [batches * RUN_BASE + size.bit_length() - 1 for size, batches in self.runs]
        numbers = [self.num_images, 2 * self.num_plain + self.is_counted, len(runs), *runs]
        sizes = [len(labels), len(names)]
        return b"".join(map(write_integer, [*numbers, *sizes])) + labels + names + self.check + self.payload

    @classmethod
    def parse(cls, body: bytes) -> "CodedBlock":
        r"""Read one, or `DamagedFile`."""
        reader = Reader(body)
        count = reader.integer("images", 1, MAX_BLOCK_IMAGES)
        plain, is_counted = divmod(reader.integer("plain images", 0, 2 * count + 1), 2)
        most = RUN_BASE * (count + 1)
        told = [divmod(reader.integer("batches", RUN_BASE, most), RUN_BASE) for _ in range(reader.integer("runs", 0, count))]
        runs = [(1 << exponent, batches) for batches, exponent in told]
        if plain + sum(size * batches for size, batches in runs) != count:
            raise DamagedFile(f"`data` must have the batches of its {count} images, got others.")
        sizes = [reader.integer("bytes", 0, MAX_BLOCK_BYTES) for _ in range(2)]
        labels, names = (reader.take(size) for size in sizes)
        described = _labels(labels, count), _names(names, count)
        return cls(count, plain, bool(is_counted), runs, *described, reader.take(CHECK_BYTES), reader.rest())


def names_to_bytes(names: list[str]) -> bytes:
    r"""A JSON list. Names of files may hold what is no character."""
    return json.dumps(names, ensure_ascii=False).encode(errors="surrogatepass")


def image_check(digest: bytes, index: int, levels: bytes) -> bytes:
    r"""Which images these are, at which block of which model: a few bytes of SHA-256."""
    return hashlib.sha256(digest + write_integer(index) + levels).digest()[:CHECK_BYTES]


def frame(body: bytes, crc: bytes) -> bytes:
    r"""A block as it stands in the file, after what ended with `crc`."""
    start = CODED_BLOCK + write_integer(len(body))
    return start + body + crc_of(start + body, crc)


def end(crc: bytes) -> bytes:
    r"""The end of a file, after what ended with `crc`."""
    return END + crc_of(END, crc)


def read_blocks(reader: Reader, crc: bytes) -> Iterator[tuple[int, int, CodedBlock, bytes]]:
    r"""Blocks of a file after its header, one at a time: index, first image, block and checksum.

    Raises:
        DamagedFile: a block that is not as it was written or not in its place, and an end that is missing, too early or not the
            end of the file; when the reader comes to it.
    """
    index = first = 0
    described = None
    while True:
        reader.seen.clear()
        kind = reader.take(1)
        if kind == END:
            _check_crc(reader, bytes(reader.seen), crc, "end")
            if not first:
                raise DamagedFile("`data` must hold an image, got none.")
            if reader.rest()[:1]:
                raise DamagedFile("`data` must end where its images do, got further bytes.")
            return
        if kind != CODED_BLOCK:
            raise DamagedFile(f"`data` must go on with a block or end, got the byte {kind[0]}.")
        body = reader.take(reader.integer("bytes", 1, MAX_BLOCK_BYTES))
        crc = _check_crc(reader, bytes(reader.seen), crc, f"block {index}")
        block = CodedBlock.parse(body)
        kinds = block.labels is not None, block.names is not None
        if described not in (None, kinds):
            raise DamagedFile("`data` must have labels, and names, in all of its blocks or in none, got a part.")
        described = kinds
        yield index, first, block, crc
        first += block.num_images
        index += 1


def crc_of(body: bytes, before: bytes = bytes(CRC_BYTES)) -> bytes:
    r"""CRC-32 of bytes, after what ended with another."""
    return zlib.crc32(body, int.from_bytes(before, "little")).to_bytes(CRC_BYTES, "little")


def _check_crc(reader: Reader, body: bytes, before: bytes, what: str) -> bytes:
    expected, found = crc_of(body, before), reader.take(CRC_BYTES)
    if expected != found:
        raise DamagedFile(f"`data` must be as it was written, got another checksum in the {what}, or before it.")
    return found


def _inflate(body: bytes, most: int, what: str) -> bytes:
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(body, most + 1)
    except zlib.error as error:
        raise DamagedFile(f"`data` must hold {what}, got bytes that are none: {error}") from error
    if len(found) > most or not inflater.eof:
        raise DamagedFile(f"`data` must hold at most {most} bytes of {what}, got more, or a part.")
    return found


def _labels(body: bytes, count: int) -> list[int] | None:
    if not body:
        return None
    reader = Reader(_inflate(body, 10 * count, "labels"))
    labels = [reader.integer("class", 0, MAX_LABEL) for _ in range(count)]
    if reader.rest():
        raise DamagedFile(f"`data` must hold a label for each of {count} images, got more.")
    return labels


def _names(body: bytes, count: int) -> list[str] | None:
    if not body:
        return None
    try:
        names = json.loads(_inflate(body, MAX_NAME_BYTES * count, "names"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"`data` must hold names, got others: {error}") from error
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise DamagedFile(f"`data` must hold a name for each of {count} images, got others.")
    return names
