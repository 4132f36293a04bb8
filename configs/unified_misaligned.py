"""What misaligned pairs cost the unified regime, as a table for launch/sweep.py, on the embedded tomosynthesis.

  python launch/sweep.py --config=configs/unified.py --list=configs/unified_misaligned.py --seeds=5 \\
      --models_against=capacity,sm --workdir=runs/misaligned
The mammogram is moved by up to SHIFTS pixels of an image 1024 high, and scaled by up to 5 % at the largest shift, at
random, as by another compression; the synthetic one stays. The similarity compares cell with cell (mse), the best of
the neighbouring cells (tolerance), or images as a whole (contrastive). The page draws every metric over the shift: of
unified, the whole regime, in which A is joined with B; of B (borrowed) and C (ffdm), shown SM; of the bounds. The gain
of the regime is unified - capacity; no shift changes capacity itself.
For another variant, a file with: ROWS = rows(partial(phantom_volumes, "small", SEED)). evaluated=() leaves the models
that are evaluated to the configuration: what B alone loses, without the stages after it, is measured so.
Real pairs are misplaced by data_prep/paired_images.py --shift=PX --zoom=SHARE.
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
"""Of the largest shift; others in proportion."""
SEED = 7
"""Of the phantom in configs/unified.py."""
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
    """The sources with a moved mammogram."""
    zoom = MOST_ZOOM * shift / max(SHIFTS)
    ending = f",shift={shift},zoom={zoom:g}" if shift else ""
    return {
        "data.pairs.spec": volumes("synthetic_2d") + ending,
        "data.ffdm.spec": volumes("mammogram") + ending,
    }


ROWS = rows()
