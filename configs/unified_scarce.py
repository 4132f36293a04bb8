"""The unified regime where few synthetic mammograms have boxes, as a table for launch/sweep.py.

  python launch/sweep.py --config=configs/unified.py --list=configs/unified_scarce.py --seeds=5 --workdir=runs/scarce
A (sm) and everything that follows the trunks learn from the boxes of a share of the SM patients, drawn by the seed. C
(ffdm) has the boxes of all of its images, and B (borrowed) the pairs of all patients, without boxes: so B carries into
the SM what the boxes of the FFDM taught. The bound (base_ub) and dropout are shown both images of the few patients.
Compare unified with capacity, whose second trunk knows those few alone. The line "C, untaught" has C itself, shown SM,
in the place of B: what its weights bring without the similarity. The page draws every metric over the share.
For real pairs, a file with: from configs.unified_scarce import rows; ROWS = rows("partner")
"""

from __future__ import annotations

from typing import Any

from elk_jax.sweeps.settings import Row

SHARES = (0.1, 0.25, 0.5, 1.0)
AXIS = "share of the SM patients with boxes"

SECOND: dict[str, dict[str, Any]] = {"B": {}, "C, untaught": {"stages.unified.other": "ffdm"}}
"""The second trunk of unified."""


def rows(partner: str = "mammogram") -> tuple[Row, ...]:
    """Every second trunk with every share. partner: the field or modality that names the FFDM of an SM."""
    return tuple(
        Row(f"{trunk}, {share:g}", {**scarce(partner, share), **changes}, at=share, axis=AXIS, line=trunk)
        for trunk, changes in SECOND.items()
        for share in SHARES
    )


def scarce(partner: str, share: float) -> dict[str, Any]:
    """Boxes of few patients in the SM alone. B starts from C, as A knows little."""
    few = ("sm",)
    return {
        "data.sm.partner": partner,
        "data.sm.train_share": share,
        "stages.borrowed.init_from": "",
        "stages.base_ub.train_on": few,
        "stages.dropout.train_on": few,
    }


ROWS = rows()
