"""Ways to damage a file: its bytes, the values of its JSON, or a part of it within a form that stays valid."""

from __future__ import annotations

import copy
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom

Random = np.random.Generator

NUMBERS = [0, -1, 1, 7, 255, 2**31, 2**32, 2**63, 2**64, 10**30, -(10**30), 0.5, 1e-320, 1e300, math.nan, math.inf]
TEXTS = ["", " ", "0", "NaN", "a\0b", "\ud800", "../../x", "/dev/zero", "x" * 5000, "[/b]", "\x1b[31m", "é", "None"]
OTHERS = [None, True, False, [], {}, [[]], [None], {"": None}, [[[[[[[[1]]]]]]]], [0] * 1000, {"name": "x"}]
VALUES = [*NUMBERS, *TEXTS, *OTHERS]


def damaged(content: bytes, random: Random, other: bytes) -> bytes:
    """Some bytes changed, removed, repeated, or taken from another file."""
    data = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        at = int(random.integers(0, len(data) + 1))
        length = int(random.choice([1, 2, 4, 8, 60, 1000]))
        kind = random.integers(0, 10)
        if kind > 5 and data:
            for place in random.integers(0, len(data), random.choice([1, 1, 2, 8])):
                data[place] ^= 1 << int(random.integers(0, 8))
        elif kind == 0:
            data[at : at + 4] = int(random.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 1])).to_bytes(4, "little")
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[max(0, at - length) : at] * int(random.integers(1, 5))
        elif kind == 4:
            start = int(random.integers(0, len(other) + 1))
            data[at : at + length] = other[start : start + length]
        elif kind == 5:
            data[at : at + length] = bytes([random.choice([0, 1, 127, 128, 255])]) * length
        else:
            data[at:at] = random.bytes(length)
    return bytes(data)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything within nested lists and objects."""
    for key, child in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
        yield node, key
        if isinstance(child, dict | list):
            yield from places(child)


def changed(content: Any, random: Random) -> Any:
    """JSON with values of other types, extreme, removed, repeated or moved."""
    content = copy.deepcopy(content)
    for _ in range(random.choice([1, 1, 2, 3])):
        found = list(places(content))
        if not found:
            return content
        node, key = found[random.integers(0, len(found))]
        kind = random.integers(0, 6)
        if kind == 0:
            del node[key]
        elif kind == 1:
            source, name = found[random.integers(0, len(found))]
            node[key] = copy.deepcopy(source[name]) if name in source or isinstance(source, list) else None
        elif kind == 2 and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        elif kind == 3 and isinstance(node, dict):
            node[str(random.choice(TEXTS[:6]))] = node.pop(key)
        else:
            node[key] = copy.deepcopy(VALUES[random.integers(0, len(VALUES))])
    return content


def as_text(content: Any, random: Random) -> bytes:
    """JSON, sometimes with what Python itself would not write."""
    text = json.dumps(content)
    extra = random.integers(0, 12)
    if extra == 0:
        text = "\ufeff" + text
    elif extra == 1:
        text = text.replace("1", "1" * int(random.choice([30, 400, 5000])), 1)
    elif extra == 2:
        depth = int(random.choice([90, 900, 100_000]))
        text = text.replace("[", "[" * depth, 1)
    elif extra == 3:
        depth = 90
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    return text.encode("utf-8", "surrogatepass")


def repacked(content: bytes, random: Random) -> bytes:
    """A zip archive with one damaged member, and checksums that fit."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {member: archive.read(member) for member in archive.infolist()}
    chosen = list(members)[random.integers(0, len(members))]
    if random.integers(0, 2):
        chosen = max(members, key=lambda member: (member.filename.endswith((".pkl", ".xml")), member.file_size))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, inner in members.items():
            new = damaged(inner, random, content) if member is chosen else inner
            archive.writestr(member.filename, new, member.compress_type)
    return buffer.getvalue()


def with_chunk(content: bytes, random: Random) -> bytes:
    """A PNG with one damaged chunk, and a checksum that fits."""
    chunks, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append(content[at + 4 : at + 8 + length])
        at += 12 + length
    chosen = random.integers(0, len(chunks))
    kind, inner = chunks[chosen][:4], chunks[chosen][4:]
    if kind == b"IDAT" and random.integers(0, 2):
        inner = zlib.compress(damaged(zlib.decompress(inner), random, content))
    else:
        inner = damaged(inner, random, content)
    chunks[chosen] = kind + inner
    whole = (len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in chunks)
    return content[:8] + b"".join(whole)


DICOM_VALUES = ["", "0", "-1", "1", "65535", "1e400", "1\\2\\3", "x" * 70, "MONOCHROME1", "é", "1.2.840.10008.1.2"]


def with_attribute(content: bytes, random: Random) -> bytes:
    """A DICOM file with an attribute of another value, or without it; damaged bytes where none can be written."""
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    element = list(dataset.iterall())[random.integers(0, len(list(dataset.iterall())))]
    numbers = [0, 1, 2, 8, 15, 16, 17, 32, 255, 65535, [1, 2], [0, 0, 0]]
    if element.tag == 0x7FE00010:
        element.value = damaged(element.value, random, content)
    elif not random.integers(0, 6) and element.tag in dataset:
        del dataset[element.tag]
    elif element.VR in ("US", "SS", "UL", "SL"):
        element.value = numbers[random.integers(0, len(numbers))]
    elif element.VR in ("OB", "OW"):
        element.value = damaged(element.value, random, content)
    elif element.VR != "SQ":
        element.value = DICOM_VALUES[random.integers(0, len(DICOM_VALUES))]
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


INSIDE = {b"PK": repacked, b"\x89P": with_chunk, bytes(2): with_attribute}
"""Changes that keep the form of a file, by its first bytes."""
