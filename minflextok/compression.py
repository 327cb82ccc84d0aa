"""Token ids in few bytes: entropy coding with the prior's probabilities, and the .ftk file.

An id costs -log2 p bits, where p is the prior's probability of it after the earlier ids of its
image (`exact.ExactPrior`, the same on every machine), or log2 V without a prior. The coder is the
range coder of `constriction` (Bamler, arXiv 2201.01741).

The file, version 1; integers are little-endian, a varint has 7 bits a byte, low ones first:

    "FTK" 1 | tokenizer (8 bytes) | prior (8 bytes, or zeros) | CRC-32 of the exact tables (4)
    n: varint | k: varint, or 0 and the k of each image: n varints
    for each segment its number of bytes: varint | CRC-32 of all before (4)
    for each segment: range-coded ids | CRC-32 of the segment's number and bytes (4)

Segment s has the ids of all images from position 2^(s-1) up to 2^s, exclusive: 1, 1, 2, 4, 8, ...
of them. So the start of a file gives shorter prefixes of all images. In a segment, images are coded
in groups of 256, in a group position by position.
"""

import copy
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from . import checks, codec_checks
from .codec_checks import Ids
from .exact import ExactPrior, checksum
from .prior import Prior
from .tokenizer import FlexTok
from .weights import fingerprint

MAGIC = b"FTK\x01"
GROUP = 256  # images that are coded together; part of the format
BITS = 24  # frequencies sum to 2^24, the precision of constriction's models


def compress(ids: Ids, tok: FlexTok, prior: Prior | None = None, batch_size: int = GROUP) -> bytes:
    """Ids of images, (n, k) or a list of rows (k_i,), as the bytes of a .ftk file.

    prior: its probabilities are used, unconditional; None: all ids are equally likely. batch_size:
    images that the prior takes at once, which changes nothing.
    """
    padded, lengths = codec_checks.check_ids(ids, checks.check_type(tok, FlexTok, "tok").config)
    identities(tok, prior)  # checks that they belong together
    exact = None if prior is None else ExactPrior(prior, BITS)
    keep_k = torch.tensor(lengths)
    spans = list(segments(max(lengths)))
    encoders = [coder().queue.RangeEncoder() for _ in spans]
    by_position = [encoder for span, encoder in zip(spans, encoders, strict=True) for _ in span]

    def encode(frequencies: Tensor, rows: Tensor, i: int) -> None:
        symbols = padded[rows, i].numpy().astype(np.int32)
        by_position[i].encode(symbols, model(), frequencies.numpy())

    walk(padded, keep_k, max(lengths), tok, exact, batch_size, encode)
    coded = [encoder.get_compressed().astype("<u4").tobytes() for encoder in encoders]
    head = header(lengths, coded, tok, prior)
    return head + b"".join(part + crc(part, s) for s, part in enumerate(coded))


def decompress(
    data: bytes, tok: FlexTok, prior: Prior | None = None, batch_size: int = GROUP
) -> list[Tensor]:
    """The ids of each image, (k_i,) int64, from the bytes of a .ftk file or from their beginning.

    Of a file that is cut off, the prefixes that its whole segments hold, with a warning. Raises
    ValueError for damaged bytes, and for another tokenizer or prior than those that encoded.
    """
    checks.check_type(tok, FlexTok, "tok")
    if not isinstance(data, bytes):
        raise TypeError(f"data is a {type(data).__name__}: give the bytes of a .ftk file")
    lengths, sizes, at = read_header(data, tok, prior)
    exact = None if prior is None else ExactPrior(prior, BITS)
    by_position: list = []  # of those that have been read whole, the decoder of their segment
    for s, (span, size) in enumerate(zip(segments(max(lengths)), sizes, strict=True)):
        part, check = data[at : at + size], data[at + size : at + size + 4]
        if len(part) + len(check) < size + 4:
            break
        if check != crc(part, s):
            raise ValueError(f"segment {s} of the ids is damaged: its checksum is wrong")
        decoder = coder().queue.RangeDecoder(np.frombuffer(part, "<u4").astype(np.uint32))
        by_position += [decoder] * len(span)
        at += size + 4
    whole = len(by_position)
    if whole == 0:
        raise ValueError("the file is cut off before the end of its first ids")
    found = torch.zeros(len(lengths), whole, dtype=torch.long)

    def decode(frequencies: Tensor, rows: Tensor, i: int) -> None:
        symbols = by_position[i].decode(model(), frequencies.numpy())
        found[rows, i] = torch.from_numpy(symbols.astype(np.int64))

    if whole < max(lengths):
        warnings.warn(
            f"the file is cut off: the first {whole} of up to {max(lengths)} ids of each image",
            stacklevel=2,
        )
    elif len(data) > at:
        raise ValueError(f"{len(data) - at} bytes follow the end of the ids: is it one file?")
    walk(found, torch.tensor(lengths), whole, tok, exact, batch_size, decode)
    return [row[: min(k, whole)] for row, k in zip(found, lengths, strict=True)]


def segments(longest: int) -> Iterator[range]:
    """The positions of each segment: 0; 1; 2, 3; 4, ..., 7; ..."""
    start = 0
    while start < longest:
        stop = min(max(1, 2 * start), longest)
        yield range(start, stop)
        start = stop


def walk(
    ids: Tensor,
    keep_k: Tensor,
    positions: int,
    tok: FlexTok,
    exact: ExactPrior | None,
    batch_size: int,
    code: Callable[[Tensor, Tensor, int], None],
) -> None:
    """Call code(frequencies (m, V), rows (m,), position) for each group and each of the first
    positions. Decoding fills ids (n, positions) on the way, which later positions depend on."""
    V = tok.config.vocab_size
    for group in torch.arange(len(ids)).split(GROUP):
        parts = group.split(checks.check_count(batch_size, "batch_size", 1))
        priors = [] if exact is None else [copy.copy(exact) for _ in parts]  # of equal weights
        for rows, part in zip(parts, priors, strict=False):
            part.start(len(rows))
        for i in range(positions):
            if priors:
                frequencies = torch.cat([part.frequencies().cpu() for part in priors])
            else:
                frequencies = torch.ones(len(group), V)
            kept = keep_k[group] > i
            if kept.any():
                code(frequencies[kept].double(), group[kept], i)
            for rows, part in zip(parts, priors, strict=False):
                if i + 1 < positions:
                    part.append(ids[rows, i])


# ---- the header ----------------------------------------------------------------------------------


def header(lengths: list[int], coded: list[bytes], tok: FlexTok, prior: Prior | None) -> bytes:
    same = len(set(lengths)) == 1
    counts = [len(lengths), *([lengths[0]] if same else [0, *lengths]), *map(len, coded)]
    found = MAGIC + identities(tok, prior) + b"".join(map(varint, counts))
    return found + struct.pack("<I", zlib.crc32(found))


def identities(tok: FlexTok, prior: Prior | None) -> bytes:
    """The fingerprints of tokenizer and prior, and the checksum of the exact tables."""
    if prior is None:
        return bytes.fromhex(tok.fingerprint()) + bytes(12)
    checks.check_type(prior, Prior, "prior").check_tokenizer(tok)
    found = tok.fingerprint() + fingerprint(prior.state_dict())
    return bytes.fromhex(found) + struct.pack("<I", checksum())


def tokenizer_of(data: bytes) -> str:
    """The fingerprint of the tokenizer that a .ftk file was compressed with."""
    if data[:4] != MAGIC:
        raise ValueError(f"it begins with {data[:4]!r}: it is no .ftk file of version 1")
    return data[4:12].hex()


def read_header(data: bytes, tok: FlexTok, prior: Prior | None) -> tuple[list[int], list[int], int]:
    """k of each image, the sizes of the segments in bytes, and where the first one begins."""
    tokenizer_of(data)  # checks the beginning
    at, counts = 24, []

    def take(n: int) -> list[int]:
        nonlocal at
        for _ in range(n):
            value, at = read_varint(data, at)
            counts.append(value)
        return counts[-n:] if n else []

    (n,) = take(1)
    if not 1 <= n <= len(data) * 1000:
        raise ValueError(f"{len(data)} bytes claim to hold {n} images")
    (k,) = take(1)
    if k == 0 and n > len(data):
        raise ValueError(f"{len(data)} bytes claim to hold {n} lengths")
    lengths = take(n) if k == 0 else [k] * n
    K = tok.config.num_registers
    sizes = take(len(list(segments(min(max(lengths), 2**16)))))
    if data[at : at + 4] != struct.pack("<I", zlib.crc32(data[:at])):
        raise ValueError("the header is damaged, or cut off: its checksum is wrong")
    check_identities(data[4:24], tok, prior)
    if not 1 <= min(lengths) <= max(lengths) <= K:
        raise ValueError(f"it has {min(lengths)} to {max(lengths)} ids an image, of {K}")
    return lengths, sizes, at + 4


def check_identities(stored: bytes, tok: FlexTok, prior: Prior | None) -> None:
    """ValueError unless the file was encoded with this tokenizer and this prior."""
    own = identities(tok, prior)
    if stored[:8] != own[:8]:
        raise ValueError(
            f"it holds ids of the tokenizer {stored[:8].hex()}, this is {own[:8].hex()}: give the "
            "tokenizer that encoded the images"
        )
    if stored[8:16] != own[8:16]:
        names = [x.hex() if any(x) else "none" for x in (stored[8:16], own[8:16])]
        raise ValueError(f"it was compressed with the prior {names[0]}, this is {names[1]}")
    if stored[16:] != own[16:]:
        raise ValueError(
            "this machine's exp differs from that of the machine that compressed it: its ids "
            "cannot be recovered here"
        )


def varint(n: int) -> bytes:
    found = bytearray()
    while n >= 128:
        found.append(n % 128 + 128)
        n //= 128
    return bytes([*found, n])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at this place, and the place after it."""
    value = 0
    for shift in range(0, 63, 7):
        if at >= len(data):
            raise ValueError("the file is cut off in its header")
        value += (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("the header is damaged: a number has too many digits")


def crc(part: bytes, segment: int) -> bytes:
    return struct.pack("<I", zlib.crc32(part, segment))


# ---- constriction --------------------------------------------------------------------------------


def coder():
    try:
        import constriction
    except ImportError:
        raise ImportError(
            "compression needs constriction: pip install 'minflextok[codec]'"
        ) from None
    return constriction.stream


def model():
    """A distribution for each symbol by its probabilities, rounded to 24 bits without a search."""
    return coder().model.Categorical(perfect=False)
