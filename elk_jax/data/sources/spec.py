"""Description of a data source in configurations and launch flags. Nothing is opened here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from elk_jax.errors import UserError
from elk_jax.fields import ABOVE_ZERO, SHARE, AtLeast, Between, check

CENTRAL = "central"
"""The slices of a volume in which its lesions are annotated; the middle slice if it has none."""

OnError = Literal["stop", "skip"]
"""What to do with an unreadable image."""

BitDepth = Annotated[int, Between(0, 16)]
"""Significant bits of the values in 16-bit files; 0: as declared by the file."""


def _field(default: Any, text: str, of_files: bool = False) -> Any:
    """of_files: the setting controls how image files are decoded, with or without annotations."""
    return field(default=default, metadata={"help": text, "of_files": of_files})


@dataclass(frozen=True)
class SourceSpec:
    """A collection of images: its location, which of its images are used, and how their boxes are treated.

    In an experiment, `spec` may also be stage:NAME (the output of an earlier stage), or "" (not set). The help of a
    field is also that of its launch flag. UserError for a value outside its range and for conditions that cannot be
    parsed; its `where` is the field's name.
    """

    spec: str = _field(
        "", "coco:FILE.json, folders:DIR, tfds:DIR, phantom:KEY=VALUE,... or phantom_volumes:KEY=VALUE,..."
    )
    where: str = _field("", "Only images whose fields have these values: is_mass=true,view=MLO|CC")
    train_where: str = _field("", "Conditions as in `where`, for the training split only.")
    clean_boxes: bool = _field(False, "Drop boxes inside others, and the smaller of two that overlap, as ELK does.")
    ignore_over: Annotated[float, SHARE] = field(
        default=0.0,
        metadata={"help": "Boxes that cover more than this share of the image are ignored; 0: none."},
    )
    patients: Annotated[int, AtLeast(0)] = _field(0, "Use only this many training patients, drawn by the seed; 0: all.")
    train_share: Annotated[float, ABOVE_ZERO] = _field(
        1.0, "Use only this share of the training split, drawn by the seed, at least one patient; 1: all."
    )
    train_share_of: Literal["patients", "images"] = _field(
        "patients", "Unit of `train_share`; with images, most patients remain with fewer images, as CoMoTo draws."
    )
    patient_pattern: str = _field(
        "",
        r"Regular expression with one group, the patient in a file name: P_(\d+); empty: the data's own.",
    )
    split_shares: tuple[Annotated[float, ABOVE_ZERO], ...] = _field(
        (), "Draw train, val and test by patient, for images without a split: 0.7,0.15,0.15."
    )
    bit_depth: BitDepth = _field(  # noqa: RUF009
        0, "Significant bits of 16-bit files that have fewer, such as 12; 0: as declared by the file.", of_files=True
    )

    partner: str = _field(
        "",
        "A second image of every breast, pixel-aligned with the first: the field of COCO images with its file name, "
        "or the modality of a phantom; empty: none.",
    )
    shuffled_partners: bool = _field(
        False,
        "A control: each image gets the partner of another patient, drawn by the seed and resized to its size.",
    )

    slices: str = _field(
        CENTRAL,
        "Slices of volumes (bcs_dbt:, phantom_volumes:): central, near:K (within K slices of a lesion's own) or all.",
    )

    made_from: tuple[str, ...] = _field(
        (),
        "For generated images without a record of the patients seen by the generator: the data sources whose training "
        "patients it has learned from, without privacy. Images without a split then become training images.",
    )

    def __post_init__(self) -> None:
        check(self)
        if not re.fullmatch("central|all|near:[0-9]{1,3}", self.slices):
            raise UserError(f"slices is {self.slices!r}", where="slices", todo="write central, near:2 or all")
        if len(self.split_shares) not in (0, 3):
            todo = "give three numbers, for train, val and test: 0.7,0.15,0.15"
            raise UserError(f"split_shares has {len(self.split_shares)} numbers", where="split_shares", todo=todo)
        if self.train_share > 1:
            todo = "give a share above 0, such as 0.1; 1 for all"
            raise UserError(f"train_share is {self.train_share:g}", where="train_share", todo=todo)
        if self.patients and self.train_share < 1:
            what = f"patients is {self.patients} and train_share {self.train_share:g}"
            raise UserError(what, where="train_share", todo="set one of the two: patients=0 or train_share=1")
        if self.shuffled_partners and not self.partner:
            todo = "also set partner: the field with the file of the second image, or a modality"
            raise UserError("set without partner, so there are no pairs", where="shuffled_partners", todo=todo)
        _check_pattern(self.patient_pattern)
        parse_where(self.where, "where")
        self.conditions("train")

    @property
    def kind(self) -> str:
        """`coco` of `coco:FILE.json`."""
        return self.spec.partition(":")[0]

    @property
    def place(self) -> str:
        """`FILE.json` of `coco:FILE.json`."""
        return self.spec.partition(":")[2]

    def conditions(self, split: str) -> dict[str, Any]:
        """Field -> wanted value, or a tuple of such values, for the images of a split ("": of all splits)."""
        if split == "train":
            return parse_where(f"{self.where},{self.train_where}", "train_where")
        return parse_where(self.where, "where")


def parse_where(text: str, where: str = "where") -> dict[str, Any]:
    """'is_mass=true,view=MLO|CC' -> {'is_mass': True, 'view': ('MLO', 'CC')}: values are parsed as JSON, else text.

    where: the name of the setting, for the UserError.
    """
    found: dict[str, Any] = {}
    for condition in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = condition.partition("=")
        if not equals or not key:
            raise UserError(f"'{condition}' is not a condition", where=where, todo="write field=value,field=value")
        if key in found:
            raise UserError(f"the field '{key}' occurs twice", where=where, todo="write field=value|value")
        values = tuple(_json_or_text(v) for v in value.split("|"))
        found[key] = values if len(values) > 1 else values[0]
    return found


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        what = f"not a regular expression: {pattern!r}, {error}"
        raise UserError(what, where="patient_pattern", todo="repair it") from error
    if pattern and groups != 1:
        todo = r"put only the patient's part in parentheses: P_(\d+); write (?:...) for other groups"
        raise UserError(f"{pattern!r} has {groups} groups, not one", where="patient_pattern", todo=todo)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
