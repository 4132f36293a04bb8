"""The grey-scale pipeline of DICOM (PS3.4 Annex N.2): stored values of one frame -> grey values of a workstation.

Shapes: H, W image size in pixels; N entries of a look-up table.

Stored values -> modality LUT or rescale -> VOI LUT or window -> presentation LUT or inversion. docs/dicom.md lists
every attribute. Errors are UserErrors without a place: `dicom.decode` adds the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID

from elk_jax.data.sources.dark import warn_if_dark
from elk_jax.errors import UserError

_MODALITY = ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept")
_EDGES = tuple(f"Shutter{end}Edge" for end in ("LeftVertical", "RightVertical", "UpperHorizontal", "LowerHorizontal"))
_CIRCLE, _CORNERS = ("CenterOfCircularShutter", "RadiusOfCircularShutter"), "VerticesOfThePolygonalShutter"
_VOI = ("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")
_ALONE = """
    ImagerPixelSpacing PixelSpacing EstimatedRadiographicMagnificationFactor FrameLaterality ImageLaterality Laterality
    ViewPosition ViewCodeSequence BitsAllocated BitsStored PixelRepresentation PhotometricInterpretation
    SmallestImagePixelValue LargestImagePixelValue PixelAspectRatio PresentationLUTSequence
    ImagePositionPatient ImageOrientationPatient SliceLocation SliceThickness
"""
_UNITS = {
    unit: frozenset(map(tag_for_keyword, unit))
    for unit in (
        _MODALITY,
        _VOI,
        ("PixelPaddingValue", "PixelPaddingRangeLimit"),
        ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
        ("ShutterShape", *_EDGES, *_CIRCLE, _CORNERS),
        *((key,) for key in _ALONE.split()),
    )
}
"""The attributes that are read, with their tags. Those of one tuple come from one place: the window of a frame is not
mixed with the function or the table of another."""
_FAR = 1 << 15
"""Largest coordinate, in pixels, that OpenCV can draw."""
_HEADER = "repair the DICOM header, or export the image again"


class Table(NamedTuple):
    """A look-up table: values below `first` map to the first entry, those beyond the last to the last.

    entries: [N] int64. first: the value that maps to the first entry. white: the entry value that means white.
    """

    entries: np.ndarray
    first: int
    white: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        inside = np.clip(values.astype(np.float64), self.first, self.first + len(self.entries) - 1)
        return self.entries[np.rint(inside).astype(np.int64) - self.first]


def attributes_of_frame(dataset: Dataset, frame: int) -> Dataset:
    """One flat dataset from the frame's own functional groups, else the shared ones, else the top level.

    An empty value or item counts as missing. UserError if the file has no functional groups for this frame.
    """
    return next(attributes_of_frames(dataset, [frame]))


def attributes_of_frames(dataset: Dataset, frames: Iterable[int]) -> Iterator[Dataset]:
    """`attributes_of_frame` for each frame; what all frames share is looked up once."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for_all = [*_macros(shared[:1]), dataset]
    common: dict[tuple[str, ...], list[DataElement]] = {}
    for frame in frames:
        if own and frame >= len(own):
            raise UserError(f"functional groups for {len(own)} frames, none for frame {frame}", todo=_HEADER)
        macros = list(_macros(own[frame : frame + 1]))
        said = frozenset().union(*(place.keys() for place in macros))
        flat = Dataset()
        flat.file_meta = dataset.file_meta  # holds the byte order of the look-up tables
        for unit, tags in _UNITS.items():
            found = None if said.isdisjoint(tags) else _elements(macros, unit)
            if found is None:
                if unit not in common:
                    common[unit] = _elements(for_all, unit) or []
                found = common[unit]
            for element in found:
                flat.add(element)
        yield flat


def presented(
    stored: np.ndarray, words: np.ndarray, attributes: Dataset, bit_depth: int | None, name: object
) -> tuple[np.ndarray, str, str]:
    """Stored values [H, W] -> grey values [H, W] in [0, 1], 1 is white; which of "lut", "window", "full" was applied;
    and "black" or "white" if that makes differing values all black or all white, else "".

    words: the values with the bits beyond BitsStored, which may encode padding. attributes: from
    `attributes_of_frame`. bit_depth: significant bits of 16-bit values without a window. name: of the file, for the
    warning about values that use little of their range.
    """
    hidden = _padding(stored, words, attributes) | _behind_shutter(attributes, stored.shape)
    seen = ~hidden if hidden.any() else np.s_[:]
    ends = _range_of_bits(attributes, stored)
    values = _after_modality(stored, attributes, ends)
    if tables := attributes.get("VOILUTSequence"):
        table = _table(tables[0], attributes, *_ends_after_modality(attributes, ends))
        image, voi = table(values) / table.white, "lut"
    elif _has(attributes, "WindowCenter"):
        center, width = first_number(attributes, "WindowCenter"), first_number(attributes, "WindowWidth")
        function = str(attributes.get("VOILUTFunction") or "LINEAR").strip().upper()
        image, voi = window(values, center or 0.0, width or 0.0, function), "window"
    else:
        black_and_white = _range_of_values(stored[seen], attributes, bit_depth, name)
        low, high = _ends_after_modality(attributes, black_and_white)
        image, voi = np.clip((values.astype(np.float64) - low) / ((high - low) or 1.0), 0, 1), "full"
    image = _presentation(image, attributes)
    is_flat = voi != "full" and image[seen].size and image[seen].min() == image[seen].max() and np.ptp(stored[seen])
    shade = ("white" if image[seen].flat[0] > 0.5 else "black") if is_flat else ""
    image[hidden] = 0
    return image, voi, shade


def grey_scale(attributes: Dataset) -> tuple[Any, ...] | None:
    """The parameters that map the stored values of a frame to grey values, for comparing frames; None without a window
    or table, since the grey values then depend on the pixels."""

    def table(key: str) -> tuple[Any, ...] | None:
        items = attributes.get(key)
        found = _table(items[0], attributes, -np.inf, np.inf) if items else None
        return found and (found.entries.tobytes(), found.first, found.white)

    voi = table("VOILUTSequence")
    if voi is None and _has(attributes, "WindowCenter"):
        function = str(attributes.get("VOILUTFunction") or "LINEAR").strip().upper()
        voi = first_number(attributes, "WindowCenter"), first_number(attributes, "WindowWidth"), function
    if voi is None:
        return None
    modality = table("ModalityLUTSequence") or _rescale(attributes)
    return modality, voi, table("PresentationLUTSequence"), attributes.get("PixelRepresentation")


def window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """VOI window to [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3); function LINEAR, LINEAR_EXACT or SIGMOID."""
    values = values.astype(np.float64)
    if function == "SIGMOID" and width > 0:
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -500, 500)))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - center) / width + 0.5, 0, 1)
    if function == "LINEAR" and width == 1:
        return (values > center - 0.5).astype(np.float64)
    if function == "LINEAR" and width > 1:
        return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    raise UserError(f"window function {function} with width {width} is not defined", todo=_HEADER)


def significant(raw: np.ndarray, dataset: Dataset) -> np.ndarray:
    """The BitsStored bits up to HighBit of every value [H, W]; the others may hold overlays (PS3.5 8.1.1)."""
    bits, allocated = int(dataset.BitsStored), 8 * raw.dtype.itemsize
    shift = high_bit(dataset) - (bits - 1)
    if bits == allocated or dataset.BitsAllocated == 1:
        return raw
    unsigned = raw.astype(raw.dtype.newbyteorder("=")).view(f"u{raw.dtype.itemsize}")
    up = unsigned << (allocated - bits - shift)
    return (up.view(f"i{raw.dtype.itemsize}") if raw.dtype.kind == "i" else up) >> (allocated - bits)


def high_bit(dataset: Dataset) -> Any:
    """HighBit, by default that of values in the lowest bits."""
    high = dataset.get("HighBit")
    return dataset.BitsStored - 1 if high is None else high


def first_number(attributes: Dataset, key: str) -> float | None:
    """The first value of a multi-valued number, or None; UserError unless it is finite."""
    value = attributes.get(key)
    value = (value[0] if len(value) else None) if isinstance(value, list | tuple | MultiValue) else value
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key} is {str(value)[:40]!r}", todo=_HEADER) from error
    if not np.isfinite(number):
        raise UserError(f"{key} is {number}", todo=_HEADER)
    return number


def _macros(groups: Any) -> Iterator[Dataset]:
    """The functional groups of a frame, or of all frames: the first item of every sequence."""
    for group in groups:
        public = (element for element in group if not element.tag.is_private)
        yield from (element.value[0] for element in public if element.VR == "SQ" and element.value)


def _has(place: Dataset, key: str) -> bool:
    """Whether a value is present: an empty value, an empty sequence and an empty item do not count."""
    value = place.get(key)
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        return _is(value)
    first = value[0] if len(value) else None
    return any(_has(first, element.keyword) for element in first) if isinstance(first, Dataset) else _is(first)


def _is(value: Any) -> bool:
    return value is not None and value != ""


def _elements(places: Iterable[Dataset], unit: tuple[str, ...]) -> list[DataElement] | None:
    """The attributes of a unit from the first place that has all it needs; None if no place does."""
    place = next((place for place in places if _says(place, unit)), None)
    return None if place is None else [place[key] for key in unit if _has(place, key)]


def _says(place: Dataset, unit: tuple[str, ...]) -> bool:
    """Whether a place has what a unit needs: a window is a centre and a width."""
    if unit == _VOI:
        return _has(place, "VOILUTSequence") or (_has(place, "WindowCenter") and _has(place, "WindowWidth"))
    if unit == _MODALITY:
        return any(_has(place, key) for key in unit)
    return _has(place, unit[0])


def _range_of_bits(attributes: Dataset, stored: np.ndarray, bits: int = 0) -> tuple[float, float]:
    """Smallest and largest value that can be stored; for floats, those that occur."""
    if stored.dtype.kind == "f":
        return (float(stored.min()), float(stored.max())) if stored.size else (0.0, 1.0)
    bits = bits or int(attributes.BitsStored)
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if stored.dtype.kind == "i" else (0.0, 2.0**bits - 1)


def _range_of_values(
    stored: np.ndarray, attributes: Dataset, bit_depth: int | None, name: object
) -> tuple[float, float]:
    """The values that become black and white if there is no window. stored: without padding."""
    low, high = _range_of_bits(attributes, stored)
    if stored.dtype.kind == "f" or not stored.size or _has(attributes, "ModalityLUTSequence"):
        return low, high
    darkest, brightest, bits = int(stored.min()), int(stored.max()), int(attributes.BitsStored)
    if bit_depth and bits == 16:
        low, high = _range_of_bits(attributes, stored, bit_depth)
        if not low <= darkest <= brightest <= high:
            what = f"pixel value {brightest if brightest > high else darkest} does not fit in {bit_depth} bits"
            raise UserError(what, todo="correct the bit depth, or leave it out")
        return low, high
    smallest, largest = (_stored_number(attributes, f"{end}ImagePixelValue") for end in ("Smallest", "Largest"))
    smallest = int(low) if smallest is None and low == 0 else smallest
    if smallest is not None and largest is not None and smallest <= darkest < brightest <= largest:
        needed = (largest - smallest).bit_length()
        low, high = (float(smallest), float(largest)) if needed < bits else (low, high)
        bits = min(bits, needed)
    warn_if_dark(brightest - (darkest if stored.dtype.kind == "i" else 0), bits, name)
    return low, high


def _stored_number(attributes: Dataset, key: str) -> int | None:
    """A pixel value in a header; files write it signed or unsigned, whatever their pixels are."""
    value = attributes.get(key)
    value = value[0] if isinstance(value, MultiValue | list) and value else value
    if not isinstance(value, int):
        return None
    allocated = int(attributes.BitsAllocated)
    value &= 2**allocated - 1
    signed = attributes.get("PixelRepresentation") == 1 and value >> (allocated - 1)
    return value - 2**allocated if signed else value


def _padding(stored: np.ndarray, words: np.ndarray, attributes: Dataset) -> np.ndarray:
    """[H, W] bool: padding pixels (PS3.3 C.7.5.1.1.2), which are displayed black."""
    if stored.dtype.kind == "f":
        value = first_number(attributes, "FloatPixelPaddingValue")
        limit = first_number(attributes, "FloatPixelPaddingRangeLimit")
    else:
        value = _stored_number(attributes, "PixelPaddingValue")
        limit = _stored_number(attributes, "PixelPaddingRangeLimit")
    if value is None:
        return np.zeros(stored.shape, bool)
    first, last = sorted((value, value if limit is None else limit))
    low, high = _range_of_bits(attributes, stored)
    values = stored if stored.dtype.kind == "f" or low <= first <= last <= high else words
    return (values >= first) & (values <= last)


def _behind_shutter(attributes: Dataset, shape: tuple[int, ...]) -> np.ndarray:
    """[H, W] bool: pixels outside the display shutter (PS3.3 C.7.6.11), which are not displayed."""
    hidden = np.zeros(shape, bool)
    rows, columns = np.ogrid[1 : shape[0] + 1, 1 : shape[1] + 1]
    for kind in map(str.upper, map(str, _list(attributes.get("ShutterShape")))):
        if kind == "RECTANGULAR":
            left, right, top, bottom = (_numbers(attributes, key, 1)[0] for key in _EDGES)
            hidden |= (columns < left) | (columns > right) | (rows < top) | (rows > bottom)
        elif kind == "CIRCULAR":
            (row, column), (radius,) = (_numbers(attributes, key, count) for key, count in zip(_CIRCLE, (2, 1)))
            hidden |= (rows - row) ** 2 + (columns - column) ** 2 > radius**2
        elif kind == "POLYGONAL":
            corners = np.array(_numbers(attributes, _CORNERS)).reshape(-1, 2)[:, ::-1] - 1
            polygon = np.rint(corners.clip(-_FAR, _FAR)).astype(np.int32)
            hidden |= cv2.fillPoly(np.zeros(shape, np.uint8), [polygon], 1) == 0
        else:
            todo = "export the image with the shutter applied, or without it"
            raise UserError(f"a display shutter of shape {kind}", todo=todo)
    if hidden.size and hidden.all():
        raise UserError("the display shutter hides the whole image", todo=_HEADER)
    return hidden


def _numbers(attributes: Dataset, key: str, count: int = 0) -> list[float]:
    """The finite numbers of an attribute; UserError unless there are `count`, or (0) at least three pairs."""
    values = _list(attributes.get(key))
    fits = len(values) == count if count else len(values) >= 6 and len(values) % 2 == 0
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        fits = False
    if not fits or not np.isfinite(numbers).all():
        raise UserError(f"{key} is {str(attributes.get(key))[:40]!r}", todo=_HEADER)
    return numbers


def _list(value: Any) -> list[Any]:
    """The values of an attribute that has any number of them."""
    values = list(value) if isinstance(value, list | tuple | MultiValue) else [value]
    return [one for one in values if _is(one)]


def _after_modality(stored: np.ndarray, attributes: Dataset, ends: tuple[float, float]) -> np.ndarray:
    """Values after the modality step, for stored values between `ends`."""
    if tables := attributes.get("ModalityLUTSequence"):
        return _table(tables[0], attributes, *ends)(stored)
    slope, intercept = _rescale(attributes)
    return stored if (slope, intercept) == (1, 0) else stored.astype(np.float64) * slope + intercept


def _ends_after_modality(attributes: Dataset, ends: tuple[float, float]) -> tuple[float, float]:
    """Smallest and largest result of the modality step for stored values between `ends`."""
    if tables := attributes.get("ModalityLUTSequence"):
        return 0.0, float(_table(tables[0], attributes, *ends).white)
    slope, intercept = _rescale(attributes)
    low, high = sorted(end * slope + intercept for end in ends)
    return low, high


def _rescale(attributes: Dataset) -> tuple[float, float]:
    slope, intercept = first_number(attributes, "RescaleSlope"), first_number(attributes, "RescaleIntercept")
    if slope == 0:
        raise UserError("RescaleSlope is 0, which makes all pixels equal", todo=_HEADER)
    return 1.0 if slope is None else slope, intercept or 0.0


def _table(item: Dataset, attributes: Dataset, low: float, high: float) -> Table:
    """A look-up table of a header (PS3.3 C.11.1.1). low, high: range of the values that it is applied to.

    White is the largest number with the declared bits, unless the entries need fewer or more: many files declare the
    size of their words instead, and viewers then take the largest entry.
    """
    descriptor = item.get("LUTDescriptor")
    if not isinstance(descriptor, MultiValue | list) or len(descriptor) != 3 or not _has(item, "LUTData"):
        raise UserError("a look-up table without LUTDescriptor or LUTData", todo=_HEADER)
    count, bits = int(descriptor[0]) & 0xFFFF or 65536, int(descriptor[2]) & 0xFFFF
    entries = _entries(item["LUTData"].value, count, bits, attributes)
    first = int(descriptor[1])  # US or SS, but writers confuse them: if no value reaches the table, it is the other
    other = first + 65536 if first < 0 else first - 65536
    reached = lambda start: start <= high and start + count > low
    first = other if reached(other) and not reached(first) else first
    top = int(entries.max())
    return Table(entries, first, 2**bits - 1 if top.bit_length() == bits else max(top, 1))


def _entries(data: Any, count: int, bits: int, attributes: Dataset) -> np.ndarray:
    """[N] int64 of a table written as numbers or as bytes, with 8 or 16 bits per entry."""
    order = "<" if UID(attributes.file_meta.TransferSyntaxUID).is_little_endian else ">"
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2")
    else:
        words = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
    if len(words) == count:
        return words.astype(np.int64)
    if bits <= 8 and len(words) == -(-count // 2):  # two in a word, the first in its lower half
        return words.astype("<u2").view(np.uint8)[:count].astype(np.int64)
    what = f"LUTDescriptor declares {count} entries of {bits} bits, but LUTData has {len(words)} words"
    raise UserError(what, todo=_HEADER)


def _presentation(image: np.ndarray, attributes: Dataset) -> np.ndarray:
    """The last step: MONOCHROME1 is inverted. PresentationLUTShape expresses the same (PS3.3 C.11.6)."""
    inverted = str(attributes.PhotometricInterpretation).strip().upper() == "MONOCHROME1"
    if tables := attributes.get("PresentationLUTSequence"):
        table = _table(tables[0], attributes, 0.0, 1.0)
        return table(image * (len(table.entries) - 1) + table.first) / table.white
    return 1 - image if inverted else image
