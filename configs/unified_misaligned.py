"""The effect of misaligned pairs on the unified regime, as a table for launch/sweep.py, on the embedded tomosynthesis.

  python launch/sweep.py --config=configs/unified.py --list=configs/unified_misaligned.py --seeds=5 \\
      --models_against=capacity,sm --workdir=runs/misaligned
The mammogram is randomly shifted by up to SHIFTS pixels of an image 1024 pixels high, and scaled by up to 5 % at the
largest shift, as if compressed differently; the synthetic mammogram is unchanged. The similarity compares cell by cell
(mse), with the best of the neighbouring cells (tolerance), or images as a whole (contrastive). The page plots every
metric over the shift: for unified, the whole regime, which joins A and B; for B (borrowed) and C (ffdm), applied to SM;
and for the bounds. The gain of the regime is unified - capacity; shifts do not change capacity itself.
For another variant, write a file with: ROWS = rows(partial(phantom_volumes, "small", SEED)). With evaluated=() the
configuration selects the evaluated models, for example to measure the loss of B alone, without the later stages.
For real pairs use data_prep/paired_images.py --shift=PX --zoom=SHARE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from configs.sources import phantom_volumes
from configs.unified_scarce import EVALUATED
from elk_jax.sweeps.settings import Row

SHIFTS = (0, 8, 16, 32, 64)
MOST_ZOOM = 0.05
"""The zoom at the largest shift; proportional at others."""
SEED = 7
"""The seed of the phantom in configs/unified.py."""
AXIS = "shift of the mammogram, pixels of 1024"

LOSSES: dict[str, dict[str, Any]] = {
    "mse": {},
    "tolerance of one cell": {"borrow.tolerance": 1},
    "contrastive": {"borrow.mode": "contrastive"},
}


QUICK = partial(phantom_volumes, "quick", SEED)


def rows(volumes: Callable[[str], str] = QUICK, evaluated: Sequence[str] = EVALUATED) -> tuple[Row, ...]:
    """Every loss at every shift of the mammograms. volumes: modality -> source. evaluated: models; (): those of the
    configuration."""
    models = {"stages.evaluate.models": tuple(evaluated)} if evaluated else {}
    return tuple(
        Row(f"{loss}, {shift}", {**misplaced(volumes, shift), **changes, **models}, at=shift, axis=AXIS, line=loss)
        for loss, changes in LOSSES.items()
        for shift in SHIFTS
    )


def misplaced(volumes: Callable[[str], str], shift: int) -> dict[str, Any]:
    """The sources with a misaligned mammogram."""
    zoom = MOST_ZOOM * shift / max(SHIFTS)
    ending = f",shift={shift},zoom={zoom:g}" if shift else ""
    return {
        "data.pairs.spec": volumes("synthetic_2d") + ending,
        "data.ffdm.spec": volumes("mammogram") + ending,
    }


ROWS = rows()
