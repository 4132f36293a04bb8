"""Translate whole image files in overlapping tiles, which are blended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from elk_jax import files
from elk_jax.data.batches.shuffle import filled_rows
from elk_jax.data.sources import folder
from elk_jax.data.sources import source as sources
from elk_jax.data.sources.decode import SUFFIXES, encode_png
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.data.tiles import black_share, tile_windows
from elk_jax.errors import UserError
from elk_jax.fields import AtLeast
from elk_jax.images.schema import ImageInfo
from elk_jax.images.windows import Window, cut
from elk_jax.progress import Progress, progress_bar
from elk_jax.randomness import Seed
from elk_jax.tasks import sampling
from elk_jax.tasks.run import new_console, report_skipped, write_skipped
from elk_jax.tasks.translation.model import load, trainable
from elk_jax.training import mesh as meshes
from elk_jax.weights import model_folder

LEAST_WEIGHT = 0.01
"""Weight at the border of a tile, relative to 1 in its middle."""

Translate = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(tiles [B, S, S, 1], their numbers [B]) -> translated tiles [B, S, S, 1]."""


@dataclass(frozen=True)
class TranslateSettings:
    """seed: each one gives another plausible result. batch_size: number of tiles translated at once."""

    seed: Seed = 0
    batch_size: Annotated[int, AtLeast(1)] = 8


def translate_files(
    *,
    model: Path,
    inputs: Sequence[str],
    decoding: SourceSpec,
    on_error: str,
    output: Path,
    settings: TranslateSettings,
) -> list[Path]:
    """Write a subtracted image NAME.png into `output` for every low-energy one, all at the end; returns them. See
    launch/translate.py.

    For a file of several frames, NAME_FRAME.png.

    The result for an 8-bit image has 8 bits, for others 16. UserError for two files with the same name.
    """
    paths, not_images = folder.find_images(inputs)
    _check_apart([_answer_name(path) for path in paths], paths)
    taken = [path for path in paths if (output / _answer_name(path)).resolve() == path.resolve()]
    if taken:
        raise UserError("the result would overwrite the image", where=taken[0], todo="give another --output")
    for path in paths:
        files.check_name(_answer_name(path))
    files.check_writable(output)
    parts, params, _ = load(model)
    model_folder.check_fits(params, model_folder.shapes_of(trainable(parts).init), model)
    source = folder.open_files(paths, (), decoding, on_error, progress=progress_bar("  decoding"))
    mesh = meshes.make_mesh()
    sample = sampling.compile_sampler(trainable(parts), mesh)
    placed = meshes.place(params, mesh)

    def translate(tiles: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return sample(placed, {"image": tiles, "seed": sampling.seeds(settings.seed, numbers)})

    names = _frame_names(source.infos)
    with (
        files.new_results(output, names[0], (), paths) as place,
        Progress("  translating", len(source), unit="image") as bar,
    ):
        for index, name in enumerate(names):
            image = source[index].image
            whole = translated(image, translate, parts.model.size, settings.batch_size)
            depth = sources.pack(image).dtype
            files.write_bytes(place / name, encode_png(np.round(whole[..., 0] * np.iinfo(depth).max).astype(depth)))
            bar.update(index + 1)
        write_skipped(output, source.skipped)
    report_skipped(not_images, source.skipped)
    new_console().print(f"{len(names)} translated images: {output}")
    return [output / name for name in names]


def translated(image: np.ndarray, translate: Translate, size: int, batch_size: int) -> np.ndarray:
    """[H, W, 1] -> [H, W, 1], both in [0, 1]: tiles that overlap by half, each fading into the next.

    Each tile is drawn from its own noise, so the mean of two overlapping tiles is smoother than either.

    Smaller images are padded with air. Tiles of air are not translated: the result is air, 0.
    """
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0)))
    windows = tile_windows(padded.shape[0], padded.shape[1], size, max(1, size // 2))
    fade = blending_weight(size)
    total, weights = np.zeros(padded.shape, np.float64), np.zeros(padded.shape, np.float64)
    for chosen in _in_batches([w for w in windows if black_share(cut(padded, w)) < 1], batch_size):
        tiles = np.stack([cut(padded, window) for _, window in chosen])
        fill = filled_rows(len(chosen), batch_size)  # one compilation
        found = translate(tiles[fill], np.array([chosen[i][0] for i in fill]))
        for (_, (x0, y0, x1, y1)), tile in zip(chosen, found):
            total[y0:y1, x0:x1] += fade * tile
            weights[y0:y1, x0:x1] += fade
    return (total / np.maximum(weights, LEAST_WEIGHT**2))[:height, :width].astype(np.float32).clip(0, 1)


def _answer_name(path: Path) -> str:
    """NAME.png; dots are kept in a name without a file extension, such as a DICOM UID."""
    return f"{path.stem if path.suffix.lower() in SUFFIXES else path.name}.png"


def _frame_names(infos: Sequence[ImageInfo]) -> list[str]:
    """The name of the result for each image, a file or one frame of it. UserError for a frame and a file, such as frame
    1 of a.dcm and a_1.png, whose results have one name."""
    names = []
    for info in infos:
        path = Path(_answer_name(Path(info.file_name)))
        names.append(f"{path.stem}_{info.slice}.png" if info.volume else path.name)
    _check_apart(names, [info.file_name for info in infos])
    return names


def _check_apart(names: Sequence[str], images: Sequence[object]) -> None:
    """UserError for results of two `images` with one name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        both = " and ".join([str(image) for name, image in zip(names, images) if name == twice[0]][:2])
        raise UserError(f"two files would be written to {twice[0]}", where=both, todo="translate them into two folders")


def blending_weight(size: int) -> np.ndarray:
    """[S, S, 1]: 1 in the middle of a tile, falling like a cosine to nearly 0 at its border."""
    line = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    line = LEAST_WEIGHT + (1 - LEAST_WEIGHT) * line
    return (line[:, None] * line[None])[..., None]


def _in_batches(windows: list[Window], size: int) -> Iterator[list[tuple[int, Window]]]:
    """Batches of numbered windows, at most `size` in each."""
    numbered = list(enumerate(windows))
    for first in range(0, len(numbered), size):
        yield numbered[first : first + size]
