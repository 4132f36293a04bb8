"""Tomosynthesis volumes: slices of one breast, in order, read one by one.

Shapes: H, W size of a slice in pixels; S slices of a volume. Slices are [H, W, 1] float32 in [0, 1] under one window
for the whole volume. `dicom_volume`, `dicom_series` and `slice_folder` make a volume from files; `volumes_of` finds
those of a source.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from elk_jax import files
from elk_jax.data.sources import dicom
from elk_jax.data.sources.decode import DICOM_SUFFIXES, SUFFIXES, decode_as, image_size, slice_reader
from elk_jax.data.sources.dicom_grey import attributes_of_frame, first_number
from elk_jax.data.sources.dicom_series import SliceFile, series_of, slice_file
from elk_jax.data.sources.dicom_volumes import BESIDE, OrientedFrames, check_volume, described, lies_beside
from elk_jax.data.sources.folder import AS_STORED, check_no_source, find_images
from elk_jax.data.sources.source import ImageSource, Read, read_at, read_part
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.images import boxes as box_ops
from elk_jax.images.names import natural_keys
from elk_jax.images.schema import ImageInfo


@dataclass(frozen=True)
class Volume:
    """The available slices of a volume, by position. `read(k)` is the image of `infos[k]`.

    instance: the UID of its DICOM file (for a series, of the first slice); "" for others.
    """

    infos: tuple[ImageInfo, ...]
    read: Read
    instance: str = ""

    def __len__(self) -> int:
        return len(self.infos)

    @property
    def name(self) -> str:
        """The id of the volume."""
        return volume_id(self.infos[0])

    @property
    def patient_id(self) -> str:
        """The patient of its slices."""
        return self.infos[0].patient_id

    @property
    def study(self) -> str:
        """Its study; its own id if it has none."""
        return str(self.infos[0].meta.get("study_uid") or self.name)

    @property
    def view(self) -> str:
        """`lcc`, `rmlo`, `lcc2`, ... or ""."""
        return str(self.infos[0].meta.get("view") or "").lower()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of its slices."""
        return self.infos[0].width, self.infos[0].height

    @property
    def slices(self) -> int:
        """Number of slices of the whole volume, some of which may be left out here."""
        return int(self.infos[0].meta.get("volume_slices") or max(info.slice for info in self.infos) + 1)

    def lesions(self) -> tuple[np.ndarray, np.ndarray]:
        """([N, 4] boxes, [N] slices): a lesion counts once, in its own slice.

        If images have a list `lesion_slices` (the own slice of each box's lesion), boxes in other slices do not count;
        otherwise every box that is not ignored is a lesion. If they have a list `lesion_boxes`, these are the lesions
        as annotated, which may leave the slice; its boxes are the parts inside. A lesion annotated completely outside
        counts as well: its slice is ignored, since its position is unknown.
        """
        boxes, at = [np.zeros((0, 4))], []
        for info in self.infos:
            own = np.asarray(info.meta.get("lesion_slices", [info.slice] * len(info.boxes))) == info.slice
            marked = np.asarray(info.meta.get("lesion_boxes", info.boxes), float).reshape(-1, 4)
            unseen = box_ops.area(box_ops.clipped(marked, info.width, info.height)) == 0
            chosen = marked[own & (unseen | ~info.ignore)]
            boxes.append(chosen)
            at += [info.slice] * len(chosen)
        return np.concatenate(boxes), np.array(at, int)


def volume_id(info: ImageInfo) -> str:
    """The volume of which an image is a slice, by name or by study and view; "" if none."""
    if info.slice < 0:
        return ""
    study, view = info.meta.get("study_uid"), info.meta.get("view")
    return info.volume or (f"{study} {view}".lower() if study and view else "")


def volumes_of(source: ImageSource) -> tuple[Volume, ...]:
    """The volumes of a source of slices, in the order of their first images.

    UserError for an image that is not a slice of a volume, a duplicate slice (two files for one volume), and slices
    that differ in size, patient or number of slices.
    """
    positions: dict[str, list[int]] = defaultdict(list)
    for position, info in enumerate(source.infos):
        if not (name := volume_id(info)):
            what = f"the image {info.image_id} is not a slice of a volume"
            todo = "add the fields `volume` and `slice` to the images, or choose a source of volumes"
            raise UserError(what, where=source.name, todo=todo)
        positions[name].append(position)
    return tuple(_volume(source, name, chosen) for name, chosen in positions.items())


def _volume(source: ImageSource, name: str, positions: Sequence[int]) -> Volume:
    ordered = tuple(sorted(positions, key=lambda position: source.infos[position].slice))
    infos = tuple(source.infos[position] for position in ordered)
    for one, other in itertools.pairwise(infos):
        if one.slice == other.slice:
            what = f"slice {one.slice} of the volume {name} occurs twice: {one.file_name} and {other.file_name}"
            raise UserError(what, where=source.name, todo="keep one file per volume")
    alike = lambda info: (info.width, info.height, info.patient_id, info.meta.get("volume_slices"))
    for info in infos:
        if alike(info) != alike(infos[0]):
            what = f"slices {infos[0].slice} and {info.slice} of the volume {name} differ in size, patient or volume"
            raise UserError(what, where=source.name, todo="correct the fields of the images")
    return Volume(infos, partial(read_at, source.read, ordered))


def as_source(volumes: Sequence[Volume], classes: tuple[str, ...], name: str = "volumes") -> ImageSource:
    """All slices of volumes as one source."""
    places = tuple((part, k) for part, volume in enumerate(volumes) for k in range(len(volume)))
    infos = tuple(info for volume in volumes for info in volume.infos)
    return ImageSource(name, classes, infos, partial(read_part, tuple(volume.read for volume in volumes), places))


# ---- Volumes from files ----------------------------------------------------------------------------------------------


def dicom_volume(path: Path, spec: SourceSpec = AS_STORED, *, view: str = "", name: str = "") -> Volume:
    """A multi-frame DICOM file. Its header is read now, frames when they are requested.

    spec: how files are decoded.
    view: "lcc", "rmlo", ...; the volume is then rotated by 180 degrees if its pixels show the other side
        (`dicom_volumes`). "" leaves it as stored, and takes the view from the header.
    name: of the volume; default: its path. UserError as in `check_volume` and `dicom.volume_header`.
    """
    with files.open_regular(path) as file:
        header = dicom.volume_header(file, path)
    check_volume(header, path)
    own = described(header)
    patient = own.pop("patient_id") or name or str(path)
    meta: dict[str, Any] = {**own, "view": view.lower() or own["view"], "volume_slices": int(header.NumberOfFrames)}
    infos = blank_slices(name or str(path), patient, (int(header.Columns), int(header.Rows)), str(path), meta)
    instance = str(header.get("SOPInstanceUID") or "").strip()
    return Volume(infos, OrientedFrames(path, spec, len(infos), view[:1].upper()), instance)


def blank_slices(
    name: str, patient_id: str, size: tuple[int, int], file_name: str, meta: dict[str, Any]
) -> tuple[ImageInfo, ...]:
    """All slices of a single-file volume, without lesions. size: (width, height). meta: has `volume_slices`."""
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    return tuple(
        ImageInfo(f"{name}, slice {k}", patient_id, *size, *none, file_name=file_name, meta=meta, volume=name, slice=k)
        for k in range(meta["volume_slices"])
    )


def slice_folder(folder: Path, spec: SourceSpec, paths: Sequence[Path]) -> Volume:
    """A folder of image files, one per slice, sorted by the numbers in their names (`names.natural_keys`).

    paths: of at least two slices, in any order. UserError for two files of one name, which may be one slice, for names
    whose order is not clear, and for files that differ in size, or in bits per pixel (found when a slice is read): the
    volume needs a common window.
    """
    paths = sorted(paths, key=lambda path: path.name)
    keys = dict(zip(paths, natural_keys([path.stem for path in paths], folder)))
    paths.sort(key=keys.__getitem__)
    for one, other in itertools.pairwise(paths):
        if keys[one] == keys[other]:
            what = f"{one.name} and {other.name} may be one slice: their names differ only in case, zeros or ending"
            raise UserError(what, where=folder, todo="keep one of them, or give them different names")
    sizes = [image_size(path) for path in paths]
    if odd := next((path for path, size in zip(paths, sizes) if size != sizes[0]), None):
        what = f"slices of different sizes: {paths[0].name} and {odd.name}"
        raise UserError(what, where=folder, todo="put each volume into its own folder")
    bits = decode_as(spec, paths[0])[1]["bits"]
    read = _slices_of(paths, spec, bits)
    read(len(paths) - 1)
    infos = blank_slices(str(folder), str(folder), sizes[0], "", {"volume_slices": len(paths)})
    infos = tuple(replace(info, file_name=str(path)) for info, path in zip(infos, paths))
    return Volume(infos, read)


def dicom_series(slices: Sequence[SliceFile], spec: SourceSpec) -> Volume:
    """The slices of a series from `series_of`. The volume is named after the path of its first slice; it is read as
    stored."""
    first = slices[0]
    meta: dict[str, Any] = {**first.meta, "volume_slices": len(slices)}
    patient = meta.pop("patient_id") or str(first.path)
    paths = tuple(one.path for one in slices)
    infos = blank_slices(str(first.path), patient, first.alike["size"], "", meta)
    infos = tuple(replace(info, file_name=str(path)) for info, path in zip(infos, paths))
    return Volume(infos, _slices_of(paths, spec, first.alike["bits"]), first.instance)


def find_volumes(entry: Path, spec: SourceSpec) -> tuple[tuple[Volume, ...], tuple[tuple[Path, str], ...]]:
    """(volumes, skipped files with the reason) of a multi-frame DICOM file, a folder of slices, or a folder of such
    files and folders. Slices are images, or the DICOM files of a series.

    UserError if there is no volume, and for damaged files: a volume may lack a slice.
    """
    if not entry.is_dir():
        check_no_source(entry)
        if entry.suffix.lower() in SUFFIXES and not _is_dicom(entry):
            raise UserError("an image, not a volume", where=entry, todo="give a folder with one file per slice")
        return (dicom_volume(entry, spec),), ()
    paths, others = find_images([entry])
    skipped = [(path, "not an image") for path in others]
    volumes, folders = [], defaultdict(list)
    single = []
    for path in paths:
        if not _is_dicom(path):
            folders[path.parent].append(path)
            continue
        with files.open_regular(path) as file:
            header = dicom.header(file, path)
        with dicom.errors_of(path):
            frames = first_number(header, "NumberOfFrames") or 1
            hidden, _ = dicom.problem(header, attributes_of_frame(header, 0)) if frames > 1 else ("", "")
        if frames > 1 and (hidden or lies_beside(header)):
            skipped.append((path, hidden or BESIDE))
        elif frames > 1:
            volumes.append(dicom_volume(path, spec))
        else:
            single.append(slice_file(header, path))
    series, alone = series_of(single)
    volumes += [dicom_series(slices, spec) for slices in series]
    skipped += alone
    for folder, images in folders.items():
        if len(images) > 1:
            volumes.append(slice_folder(folder, spec, images))
        else:
            skipped += [(path, "one image, not a volume") for path in images]
    if not volumes:
        what, todo = "no volume in the folder", "give multi-frame DICOM files, or folders of slices"
        if skipped:
            path, reason = next((one for one in skipped if one[0] not in others), skipped[0])
            what += f": {len(skipped)} files are skipped, such as {path.name}: {reason}"
        raise UserError(what, where=entry, todo=todo)
    return tuple(volumes), tuple(skipped)


def _is_dicom(path: Path) -> bool:
    with files.open_regular(path) as file:
        return path.suffix.lower() in DICOM_SUFFIXES or dicom.looks_like_dicom(file.read(dicom.PREFIX))


def _slices_of(paths: Sequence[Path], spec: SourceSpec, bits: int) -> Read:
    """The slices in single-frame files. bits: per pixel, the same for all files."""
    return partial(_read_slice, tuple(paths), bits, slice_reader(spec, [(path, None) for path in paths]))


def _read_slice(
    paths: tuple[Path, ...], bits: int, decoded: Callable[[int], tuple[np.ndarray, dict[str, Any]]], position: int
) -> np.ndarray:
    path, (image, meta) = paths[position], decoded(position)
    if meta["bits"] != bits:
        what = f"{paths[0].name} has {bits} bits per pixel, but {path.name} has {meta['bits']}"
        raise UserError(what, where=path.parent, todo="export all slices of a volume in the same way")
    return image
