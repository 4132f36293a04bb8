"""The unified regime with boxes on few synthetic mammograms, as a table for launch/sweep.py.

  python launch/sweep.py --config=configs/unified.py:scarce --list=configs/unified_scarce.py --seeds=5 \\
      --workdir=runs/scarce
A (sm) and the layers after the trunks are trained on the boxes of a share of the SM patients, drawn by the seed. C
(ffdm) uses the boxes of all of its images, and B (borrowed) the pairs of all patients, without boxes, so B transfers
the knowledge from the boxes of the FFDM to the SM. The bound (base_ub) and dropout see both images of the few patients.
Lines, by the trunks of unified; the first trunk provides the initial heads:
  A, B          as joined in the paper, at the learning rate for trained detectors
  A, B, faster  at the learning rate of A, which has learned little and so has little to lose
  B, A          starts as B with the heads of C, which have learned more than those of A
  C, A          C itself, applied to SM, instead of B: the effect of its weights without the similarity
Compare unified with capacity, whose second trunk has seen only the few. B and C are also evaluated alone, on SM. The
page plots every metric over the share. scarce: A has its own recipe (--config.few.steps=200).
For real pairs, write a file with: from configs.unified_scarce import rows; ROWS = rows("partner", rate=3e-4)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elk_jax.sweeps.settings import Row

SHARES = (0.05, 0.1, 0.25, 1.0)
AXIS = "share of the SM patients with boxes"
EVALUATED = ("sm", "unified", "base_ub", "capacity", "dropout", "borrowed", "ffdm")

RATE = 1.2e-3
"""The rate at which A is trained in configs/unified.py, size quick."""
FASTER = "A, B, faster"
TRUNKS: dict[str, tuple[str, str]] = {
    "A, B": ("sm", "borrowed"),
    FASTER: ("sm", "borrowed"),
    "B, A": ("borrowed", "sm"),
    "C, A": ("ffdm", "sm"),
}
"""Line -> the two models whose trunks are joined."""


def rows(partner: str = "mammogram", rate: float = RATE, shares: Sequence[float] = SHARES) -> tuple[Row, ...]:
    """Every line with every share. partner: the field or modality that names the FFDM of an SM. rate: of FASTER."""
    found = []
    for line, (own, other) in TRUNKS.items():
        changes: dict[str, Any] = {"stages.unified.own": own, "stages.unified.other": other}
        if line == FASTER:
            changes |= {f"{recipe}.schedule.base": rate for recipe in ("fused", "bound")}
        found += [
            Row(f"{line}, {share:g}", {**scarce(partner, share), **changes}, at=share, axis=AXIS, line=line)
            for share in shares
        ]
    return tuple(found)


def scarce(partner: str, share: float) -> dict[str, Any]:
    """Boxes of few patients, only in the SM. B starts from C, as A has learned little."""
    few = ("sm",)
    return {
        "data.sm.partner": partner,
        "data.sm.train_share": share,
        "stages.borrowed.init_from": "",
        "stages.base_ub.train_on": few,
        "stages.dropout.train_on": few,
        "stages.evaluate.models": EVALUATED,
    }


ROWS = rows()
