r"""Compressed files that are damaged, their checksums of bytes right all the same, so that decoding itself must refuse them."""

import random

from ddpm_vlb.codec import codec
from ddpm_vlb.codec.container import CRC_BYTES, crc_of, end, frame


def parts(data: bytes) -> list[bytes]:
    r"""A file without its checksums: its header, and the bodies of its blocks."""
    header, reader, crc = codec.read_header(data)
    return [header.to_bytes(), *(block.to_bytes() for _, _, block, _ in codec.read_blocks(reader, crc))]


def sealed(header: bytes, *bodies: bytes) -> bytes:
    r"""A file of such parts, with the checksums of what they are now."""
    data, crc = header, crc_of(header)
    for body in bodies:
        data += frame(body, crc)
        crc = data[-CRC_BYTES:]
    return data + end(crc)


def damaged(data: bytes, chance: random.Random) -> bytes:
    r"""A file one of whose parts has some bits or bytes changed, left out, doubled or moved."""
    found = parts(data)
    # The header now and then: what is damaged there is soon refused.
    which = 0 if chance.random() < 0.05 else chance.randrange(1, len(found))
    body = bytearray(found[which])
    for _ in range(chance.randint(1, 3)):
        place, length = chance.randrange(len(body)), chance.randint(1, 9)
        # Half of them at the front, where the numbers are.
        place = place % 24 if chance.random() < 0.5 else place
        how = chance.randrange(5)
        if how == 0:
            body[place] ^= 1 << chance.randrange(8)
        elif how == 1 and len(body) > length:
            del body[place : place + length]
        elif how == 2:
            body[place:place] = body[place : place + length]
        elif how == 3:
            body[place : place + length] = chance.randbytes(length)
        else:
            body[place:] = body[place:][::-1]
        body = body or bytearray(1)
    found[which] = bytes(body)
    return sealed(*found)
