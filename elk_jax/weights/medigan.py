"""A generator as a package for medigan 1.0: a folder in which medigan finds it without a download.

  OUTPUT/config/global.json                 medigan's configuration of its models
  OUTPUT/models/MODEL_ID/generator/         the package: __init__.py with `generate`, and generator.npz

Use in a Python started in OUTPUT: Generators().generate(model_id=MODEL_ID, num_samples=10, condition="malignant"). The
package needs only NumPy. Osuala et al. 2023, J. Med. Imaging 10(6):061403.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.gan.networks import GanConfig
from elk_jax.weights import medigan_package
from elk_jax.weights.model_folder import Params, Training, flatten

PACKAGE = "generator"
MODEL_ID = re.compile(r"\d{5}_\w{7,24}")
"""Ids that medigan accepts: five digits first, 13 to 30 characters in total."""


def export_folder(
    params: Params,
    config: GanConfig,
    classes: Sequence[str],
    output: Path,
    model_id: str,
    trained: Training | None = None,
) -> None:
    """Write a generator's package and medigan's configuration into a new or empty folder.

    trained: its training record; None: it was not trained with elk_jax.
    UserError for an id that medigan does not accept, and for a folder that is not empty.
    """
    if not MODEL_ID.fullmatch(model_id):
        todo = "give five digits and a name, 13 to 30 characters in total: 00101_MCGAN_MASSES"
        raise UserError(f"'{model_id}' is not a valid medigan id", where="model_id", todo=todo)
    flat = {name: np.asarray(value, np.float32) for name, value in flatten(params).items()}
    settings = {**asdict(config), "classes": list(classes)}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **flat, **{medigan_package.CONFIG: np.array(json.dumps(settings))})
    with files.whole_folder(output, last="config") as place:
        package = files.make_folder(place / "models" / model_id / PACKAGE)
        files.write_bytes(package / f"{PACKAGE}.npz", buffer.getvalue())
        files.write_text(package / "__init__.py", files.read_text(medigan_package.__file__))
        files.make_folder(place / "config")
        files.write_json(place / "config" / "global.json", {model_id: entry(config, classes, model_id, trained)})


def entry(config: GanConfig, classes: Sequence[str], model_id: str, trained: Training | None) -> dict[str, Any]:
    """The entry of a model in medigan's configuration, including the protection of its patients in words and, in
    addition to medigan's fields, the `seen_patients` and `promises` of a COCO file (`data.sources.coco`), if any."""
    seen = {"seen_patients": list(trained.patients)} if trained and trained.patients else {}
    promises = {"promises": [asdict(one) for one in trained.promises]} if trained and trained.promises else {}
    return {
        "execution": {
            "package_name": PACKAGE,
            "package_link": f"models/{model_id}/{PACKAGE}",
            "model_name": PACKAGE,
            "extension": ".npz",
            "image_size": [config.size, config.size],
            "dependencies": ["numpy"],
            "generate_method": {
                "name": "generate",
                "args": {
                    "base": ["model_file", "num_samples", "output_path", "save_images"],
                    "custom": {"condition": None, "seed": None},
                },
                "input_latent_vector_size": config.noise,
            },
        },
        "selection": {
            "performance": {},
            "use_cases": ["training data"],
            "organ": ["breast"],
            "modality": ["mammography"],
            "vendors": [],
            "centres": [],
            "function": ["noise to image", "image generation"],
            "condition": list(classes),
            "dataset": [],
            "augmentations": [],
            "generates": ["patches"],
            "height": config.size,
            "width": config.size,
            "depth": None,
            "type": "GAN",
            "license": "",
            "dataset_type": "",
            "privacy": protection(trained),
            "tags": ["mammography", "MCGAN", *classes],
            "year": "",
        },
        "description": {
            "title": f"Patches of {config.size} px by class: {', '.join(classes)}",
            "provided_date": "",
            "trained_date": "",
            "provided_after_epoch": None,
            "version": "1",
            "publication": "",
            "doi": [],
            "inspired_by": "Osuala et al. 2024, arXiv:2407.12669",
            "comment": "",
            **seen,
            **promises,
        },
    }


def protection(trained: Training | None) -> str:
    """The protection of the patients that a generator has seen, in words; never empty, which would suggest no risk."""
    if trained is None:
        return "Not private: nothing is known about its training."
    return trained.sentence() or "Not private: the patients whose images it was trained on are not protected."
