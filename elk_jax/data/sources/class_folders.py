"""Image files in folders of classes: `folders:DIR`, with DIR/SPLIT/CLASS/FILE, or DIR/CLASS/FILE without splits.

The classes are the folder names, sorted. Every image has one box, the whole image, with the class of its folder, which
is also its field `class`. An image is its own patient, unless `SourceSpec.patient_pattern` finds one in its name.
Drawn images carry what is known about the models that made them (`coco.behind_folder`), also those behind links.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from elk_jax.data.sources.coco import IMAGES, Behind, behind_folder
from elk_jax.data.sources.decode import files_reader, image_size
from elk_jax.data.sources.folder import find_images
from elk_jax.data.sources.source import ImageSource
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.errors import UserError
from elk_jax.images.names import checked_text, look
from elk_jax.images.schema import ImageInfo
from elk_jax.privacy.mechanism import once
from elk_jax.threads import ProgressBar, map_in_threads, no_bar

LAYOUT = "put images into DIR/SPLIT/CLASS or DIR/CLASS"


def open_class_folders(spec: SourceSpec, split: str = "", progress: ProgressBar = no_bar) -> ImageSource:
    """All images below a folder, whatever their split. Their sizes are read from the headers of the files.

    A file whose header cannot be read has the size 0 x 0; reading the image reports what is wrong with it
    (`open.check_readable`). Files that are not images are skipped. UserError: no such folder, no image in it, images at
    a depth that fits no layout, and classes whose names look alike.
    """
    folder = Path(spec.place)
    if not spec.place or not folder.is_dir():
        raise UserError("no such folder", where=spec.spec, todo="give folders:DIR")
    found, others = find_images([folder])
    names = [path.relative_to(folder) for path in found]
    depth = _depth(names, folder)
    classes = _classes(names, folder)
    sizes = map_in_threads(lambda position: _size(found[position]), len(found), progress)
    infos = tuple(_info(name, size, classes) for name, size in zip(names, sizes))
    left = [path.relative_to(folder) for path in others]
    skipped = tuple((name.as_posix(), "not an image") for name in left if _is_beside(name, depth, split))
    behind = _behind(folder, found)
    return ImageSource(
        str(folder),
        classes,
        infos,
        files_reader(folder, infos, spec, where=folder),
        skipped,
        behind.seen_patients,
        behind.promises,
    )


def _behind(folder: Path, paths: Sequence[Path]) -> Behind:
    """What is known about the models behind a folder, and behind images in other folders to which links in it lead."""
    whole = folder.resolve()
    folders = {parent: parent.resolve() for parent in {path.parent for path in paths}}
    places = {path.resolve().parent if path.is_symlink() else folders[path.parent] for path in paths}
    elsewhere = {place for place in places if not place.is_relative_to(whole)}
    above = {place.parent for place in elsewhere if place.name != IMAGES}
    parts = [behind_folder(place) for place in dict.fromkeys((folder, *sorted(elsewhere | above)))]
    known = [part.promises for part in parts if part.promises is not None]
    promises = once(promise for own in known for promise in own) if len(known) == len(parts) else None
    return Behind(frozenset().union(*(part.seen_patients for part in parts)), promises)


def _depth(names: Sequence[Path], folder: Path) -> int:
    """Parts of the paths of all images: 3 with a split, else 2."""
    depth = Counter(len(name.parts) for name in names).most_common(1)[0][0]
    for name in names:
        if len(name.parts) != depth:
            what = f"the image is {len(name.parts) - 1} folders deep, most others {depth - 1}"
            raise UserError(what, where=folder / name, todo=LAYOUT)
    if depth not in (2, 3):
        raise UserError(f"the images are {depth - 1} folders deep", where=folder / names[0], todo=LAYOUT)
    return depth


def _is_beside(name: Path, depth: int, split: str) -> bool:
    """Whether a file that is not an image lies beside images of the split; hidden files do not count."""
    here = len(name.parts) == depth and (depth == 2 or split in ("", name.parts[0]))
    return here and not any(part.startswith(".") for part in name.parts)


def _classes(names: Sequence[Path], folder: Path) -> tuple[str, ...]:
    alike: dict[str, str] = {}
    for name in names:
        label = _named(name.parts[-2], folder / name)
        other = alike.setdefault(look(label), label)
        if other != label:
            what = f"the classes '{other}' and '{label}' differ only in case, blanks or invisible characters"
            raise UserError(what, where=folder, todo="write the name of each class in one way")
    return tuple(sorted(alike.values()))


def _named(part: str, where: object) -> str:
    name = checked_text(part, "the name of the folder", where)
    if not name:
        raise UserError(f"the folder is called '{part}'", where=where, todo="give the split or class another name")
    return name


def _size(path: Path) -> tuple[int, int]:
    try:
        return image_size(path)
    except UserError:
        return 0, 0


def _info(name: Path, size: tuple[int, int], classes: Sequence[str]) -> ImageInfo:
    *splits, label, _ = name.parts
    label, (width, height) = _named(label, name), size
    return ImageInfo(
        image_id=name.as_posix(),
        patient_id=name.as_posix(),
        width=width,
        height=height,
        boxes=np.array([[0, 0, width, height]], np.float32),
        labels=np.array([classes.index(label)], np.int32),
        ignore=np.zeros(1, bool),
        split=_named(splits[0], name) if splits else "",
        file_name=name.as_posix(),
        meta={"class": label},
    )
