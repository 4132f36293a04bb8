"""Opening a data source: from a `SourceSpec` to an `ImageSource`.

`list_source` reads the annotations and applies the whole spec; `check_readable` checks the image files; `open_source`
does both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from elk_jax.data.sources import checks, class_folders, coco, patients, phantom, phantom_sets, phantom_volumes
from elk_jax.data.sources.bcs_dbt import open_bcs_dbt
from elk_jax.data.sources.cleaning import clean_info, ignore_large
from elk_jax.data.sources.phantom_patches import open_phantom_patches
from elk_jax.data.sources.shuffled_partners import shuffle_partners
from elk_jax.data.sources.source import (
    CACHE_BYTES,
    ImageSource,
    cached,
    fewshot,
    share_of,
    subset,
    with_images,
    without_unreadable,
)
from elk_jax.data.sources.spec import CENTRAL, OnError, SourceSpec
from elk_jax.data.sources.splits import SPLITS, draw_splits
from elk_jax.data.sources.tfds import open_tfds
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.threads import ProgressBar, no_bar


@dataclass(frozen=True)
class Drawn:
    """What is known about a drawn source before it is drawn. patients: (place, split) -> patient -> split."""

    classes: tuple[str, ...]
    patients: Callable[[str, str], dict[str, str]]


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    open: (spec, split, progress) -> its images. Other splits may be left out if they would cost time.
    reads_all: opening any split reads all of them, so that one reading serves all.
    image_folder: place -> the folder with a file for every image; None if images are not files.
    in_memory: the source keeps its decoded images in memory, so they need no cache.
    of_volumes: place -> whether it has whole volumes, from which `SourceSpec.slices` selects.
    of_slices: its images may declare which volume they are slices of.
    check_partner: UserError for a `SourceSpec.partner` that its images cannot have, as far as this is known without its
        annotations; None if they cannot have partners.
    drawn: what is known about a source without drawing it; None if opening it draws nothing.
    """

    open: Callable[[SourceSpec, str, ProgressBar], ImageSource]
    image_folder: Callable[[str], Path] | None = None
    reads_all: bool = False
    in_memory: bool = False
    of_volumes: Callable[[str], bool] = lambda place: False
    of_slices: bool = False
    check_partner: Callable[[SourceSpec], None] | None = None
    drawn: Drawn | None = None


KINDS = {
    "coco": Kind(
        coco.open_coco,
        image_folder=coco.image_folder,
        reads_all=True,
        of_slices=True,
        check_partner=lambda spec: None,
    ),
    "bcs_dbt": Kind(open_bcs_dbt, of_volumes=lambda place: True),
    "folders": Kind(class_folders.open_class_folders, image_folder=Path),
    "tfds": Kind(open_tfds, reads_all=True, of_slices=True),
    "phantom": Kind(
        phantom.open_phantom,
        in_memory=True,
        check_partner=phantom.check_partner,
        drawn=Drawn(phantom_sets.CLASSES, phantom.patients),
    ),
    "phantom_volumes": Kind(
        phantom_volumes.open_phantom_volumes,
        in_memory=True,
        of_volumes=phantom_volumes.has_slices,
        check_partner=phantom_volumes.check_partner,
        drawn=Drawn(phantom_sets.CLASSES, phantom_volumes.patients),
    ),
    "phantom_patches": Kind(open_phantom_patches, in_memory=True),
}
"""The kinds by the word before the colon in `SourceSpec.spec`. A new kind of source is a line here."""


def drawn(spec: SourceSpec) -> Drawn | None:
    """What is known about a source that would be drawn; None for any other."""
    return KINDS[spec.kind].drawn if spec.kind in KINDS else None


def has_volumes(spec: SourceSpec) -> bool:
    """Whether a source reads whole volumes and selects their slices. A COCO file of slices does not."""
    return spec.kind in KINDS and KINDS[spec.kind].of_volumes(spec.place)


def may_be_slices(spec: SourceSpec) -> bool:
    """Whether a source may contain slices of volumes, as far as this is known without its annotations."""
    return has_volumes(spec) or (spec.kind in KINDS and KINDS[spec.kind].of_slices)


def check_partner(spec: SourceSpec) -> None:
    """UserError for a partner that the images of a source cannot have. Opens nothing."""
    if not spec.partner or spec.kind not in KINDS:
        return
    check = KINDS[spec.kind].check_partner
    if check is None:
        known = ", ".join(f"{name}:" for name, one in KINDS.items() if one.check_partner is not None)
        what = f"partner={spec.partner}, but the source has no pairs"
        raise UserError(what, where=spec.spec, todo=f"leave it out, or give one of {known}")
    check(spec)


def list_source(
    spec: SourceSpec,
    split: str = "",
    *,
    name: str = "",
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
    progress: ProgressBar = no_bar,
) -> ImageSource:
    """The images of a split ("": all splits) selected by `spec`. No image is decoded.

    In this order: patients are read from file names (`patient_pattern`), generated images without a split become
    training images (`made_from`), splits are drawn (`split_shares`), the split and the conditions are applied, large
    boxes are ignored (`ignore_over`) and boxes cleaned, `patients` or a `train_share` are drawn by `seed` (for the
    split "train" only), and partners are exchanged among the remaining images (`shuffled_partners`). Patients are drawn
    before unreadable images are known: with on_error="skip", a patient without any readable image still counts.

    name: of the source in the configuration; it becomes the source's name. Default: the place of the data.
    cache_bytes: memory for decoded images that are read again (`cached`); 0: none.
    progress: shows the reading of annotations, and the drawing of phantoms.

    A line is logged, once, for images whose split is none of train, val, test and unused, if one of these is read.

    UserError: an empty spec, an unknown kind of source, split or field; no image left; a patient in two splits; some
    images without a split although others have the requested one; a misspelt split; any bad annotation.
    """
    source = read_source(spec, split, name=name, progress=progress)
    return select(source, spec, split, name=name, seed=seed, cache_bytes=cache_bytes)


SELECTED_BY = (
    *("where", "train_where", "clean_boxes", "ignore_over"),
    *("patients", "train_share", "train_share_of", "shuffled_partners"),
)
"""The settings of a source that only `select` reads."""


def reading(spec: SourceSpec, split: str) -> tuple[SourceSpec, str]:
    """(spec, split) for `read_source`, the same for all sources and splits that one reading serves."""
    all_splits = spec.split_shares or (spec.kind in KINDS and KINDS[spec.kind].reads_all)
    unselected = {name: getattr(SourceSpec(), name) for name in SELECTED_BY}
    return replace(spec, **unselected), "" if all_splits else split


def read_source(spec: SourceSpec, split: str = "", *, name: str = "", progress: ProgressBar = no_bar) -> ImageSource:
    """The images of a source with their patients and splits, before any are selected: at least those of `split`.

    The arguments and errors are those of `list_source`.
    """
    setting = f"config.data.{name}.spec" if name else ""
    if not spec.spec:
        what = f"data source '{name}' is not set" if name else "no data source given"
        raise UserError(what, where=setting, todo="give coco:FILE.json or folders:DIR")
    if spec.kind not in KINDS:
        known = "coco:FILE.json, folders:DIR, tfds:DIR or phantom:"
        raise UserError(f"unknown data source '{spec.spec}'", where=setting, todo=f"write {known}")
    kind = KINDS[spec.kind]
    if spec.slices != CENTRAL and not has_volumes(spec):
        todo = "leave it out: `slices` applies to bcs_dbt: and phantom_volumes:"
        what = f"slices={spec.slices}, but {spec.spec} has no slices"
        raise UserError(what, where=spec.spec, todo=todo)
    check_partner(spec)
    source = kind.open(*reading(spec, split), progress)
    if spec.patient_pattern:
        source = replace(source, infos=patients.from_file_names(source.infos, spec.patient_pattern, source.name))
    if spec.made_from:
        source = replace(source, infos=tuple(replace(info, split=info.split or "train") for info in source.infos))
    if spec.split_shares:
        source = replace(source, infos=draw_splits(source.infos, spec.split_shares, where=source.name))
    checks.check_no_patient_in_two_splits(source.infos, where=source.name)
    return source


def select(
    source: ImageSource,
    spec: SourceSpec,
    split: str = "",
    *,
    name: str = "",
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
) -> ImageSource:
    """The images of a split selected by `spec`, from those of `read_source`; see `list_source`."""
    conditions = spec.conditions(split)
    if split:
        chosen = [info for info in source.infos if _fulfils(info, conditions)]
        checks.check_split_names(chosen, source.name, split)
        if split in SPLITS and (line := checks.other_splits(chosen)):
            checks.note(f"{source.name}: {line}")
    source = _fulfilling(_in_split(source, split), conditions)
    if spec.ignore_over:
        source = replace(source, infos=tuple(ignore_large(info, spec.ignore_over) for info in source.infos))
    if spec.clean_boxes:
        source = replace(source, infos=tuple(clean_info(info) for info in source.infos))
    if spec.patients and split == "train":
        source = fewshot(source, spec.patients, seed)
    if spec.train_share < 1 and split == "train":
        source = share_of(source, spec.train_share, spec.train_share_of, seed)
    if spec.shuffled_partners:
        source = shuffle_partners(source, seed, f"config.data.{name}.shuffled_partners" if name else "")
    if cache_bytes and not KINDS[spec.kind].in_memory:
        source = cached(source, cache_bytes)
    return replace(source, name=name) if name else source


def open_source(
    spec: SourceSpec,
    split: str = "",
    *,
    seed: int = 0,
    on_error: OnError = "stop",
    cache_bytes: int = CACHE_BYTES,
    progress: ProgressBar = no_bar,
    images: int | None = None,
) -> ImageSource:
    """`list_source`, then `check_readable`; see there for the arguments. images: images wanted per record; None: as
    many as there are."""
    source = list_source(spec, split, seed=seed, cache_bytes=cache_bytes, progress=progress)
    wanted = source if images is None else with_images(source, images)
    return check_readable(wanted, spec, on_error, progress)


def check_readable(
    source: ImageSource, spec: SourceSpec, on_error: OnError = "stop", progress: ProgressBar = no_bar
) -> ImageSource:
    """A listed source in which every image is readable, as far as this is known. For pairs, both images; if only the
    first is wanted (`with_images`), its partner may be missing.

    on_error: "stop" raises UserError if an image file is missing, or has no size since its header cannot be read;
        other damage is found when it is read. "skip" decodes every image once now and lists the unreadable ones in
        `.skipped`, so that all later steps stay deterministic. UserError if none can be read.
    progress: shows the decoding of "skip".
    """
    if on_error not in get_args(OnError):
        raise UserError(f"on_error is '{on_error}'", where="on_error", todo=f"use {' or '.join(get_args(OnError))}")
    if on_error == "skip":
        return without_unreadable(source, progress)
    image_folder = KINDS[spec.kind].image_folder
    if image_folder is not None:
        checks.check_files(source.infos, image_folder(spec.place), source.name)
        if source.images > 1:
            named = coco.partners(source.infos, spec.partner, source.name)
            checks.check_files(named, image_folder(spec.place), source.name)
    for position, info in enumerate(source.infos):
        if not info.width:
            source[position]  # its header could not be read: this says why
    return source


def _in_split(source: ImageSource, split: str) -> ImageSource:
    if not source.infos:
        what = f"the source has no image in split '{split}'" if split else "the source has no image"
        raise UserError(what, where=source.name, todo="check the source and the names of its splits")
    if not split:
        return source
    counts = Counter(info.split for info in source.infos)
    if not counts[split]:
        named = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()) if name)
        deal = "add a field `split` to the images, or set split_shares=0.7,0.15,0.15 to draw splits"
        todo = f"choose one of: {named}" if named else deal
        raise UserError(f"no image in split '{split}'", where=source.name, todo=todo)
    return subset(source, [i for i, info in enumerate(source.infos) if info.split == split])


def _fulfilling(source: ImageSource, conditions: Mapping[str, Any]) -> ImageSource:
    """The images whose fields have the wanted values."""
    if not conditions:
        return source
    for key in conditions:
        if not any(key in info.meta for info in source.infos):
            known = ", ".join(sorted({name for info in source.infos for name in info.meta}))
            todo = f"use one of: {known}" if known else "leave the condition out: the images have no such fields"
            raise UserError(f"no image has the field '{key}'", where=source.name, todo=todo)
    positions = [i for i, info in enumerate(source.infos) if _fulfils(info, conditions)]
    if not positions:
        values = {key: sorted({str(info.meta.get(key)) for info in source.infos})[:8] for key in conditions}
        raise UserError(f"no image matches {dict(conditions)}", where=source.name, todo=f"values present: {values}")
    return subset(source, positions)


def _fulfils(info: ImageInfo, conditions: Mapping[str, Any]) -> bool:
    return all(_equals(info.meta.get(key), wanted) for key, wanted in conditions.items())


def _equals(value: Any, wanted: Any) -> bool:
    """Whether a field has the wanted value, or the same spelling without blanks around it; one entry of a list or tuple
    is enough."""
    if isinstance(wanted, tuple | list):
        return any(_equals(value, one) for one in wanted)
    return value == wanted or str(value).strip().lower() == str(wanted).strip().lower()
