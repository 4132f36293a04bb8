"""The report on a cross-validation, from folds.json of the stage (`tasks.folds`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elk_jax.reporting import html
from elk_jax.reporting.figures import Series, line_chart
from elk_jax.reporting.report import Section
from elk_jax.reporting.sections import plain_label


def validated_on(summary: Mapping[str, Any]) -> str:
    """What the checkpoint of a training was chosen on: "validation", or "5 folds". summary: of its stage."""
    found = summary.get("folds")
    return f"{len(found['curves'])} folds" if found else "validation"


def folds_section(name: str, found: Mapping[str, Any]) -> Section:
    """The curve of every fold and their mean, and the step that was chosen. name: of the stage."""
    metric, step, count = plain_label(found["metric"]), found["step"], len(found["curves"])
    series = [_series(f"fold {number}", curve, number) for number, curve in enumerate(found["curves"], start=1)]
    series.append(_series("mean", found["mean_curve"], 0, mark=step))
    chart = line_chart(series, x_label="step", y_label=metric)
    rows = [
        html.row([html.text(f"Fold {number}"), str(patients), html.number(curve.get(str(step))), html.number(best)])
        for number, (patients, curve) in enumerate(zip(found["patients"], found["curves"]), start=1)
        for best in [_best(curve, found["mode"])]
    ]
    rows.append(
        html.row(
            ["Mean", str(sum(found["patients"])), html.number(found["mean"]), html.number(found["own_best"])],
            style="main",
        )
    )
    head = ["", "Patients held out", f"{metric[:1].upper()}{metric[1:]} at step {step}", "At the fold's best step"]
    names = ["mean", *(f"fold {number}" for number in range(1, count + 1))]
    then = ". The model was then trained on all patients for as many steps."
    if not found.get("refit", True):  # missing in earlier versions
        then = (
            ". The models of the folds at this step are the members of the ensemble. Its thresholds were chosen for "
            "single members, each on patients that it had not seen. No patient is left to evaluate all members "
            "together, so the rates at the thresholds may differ: members that disagree give less extreme scores."
        )
    note = (
        f"The patients of training and validation form {count} folds; each validates a model trained on the others. "
        f"The dashed line marks the chosen number of steps, {step}{then} "
        "The last column is optimistic: it chooses the best step of each fold on that fold itself."
    )
    return Section(
        f"Cross-validation: {name}",
        f'<div class="wide">{chart}{html.legend(names)}</div>{html.table(head, rows)}',
        note,
    )


def _series(name: str, curve: Mapping[str, float | None], index: int, mark: int | None = None) -> Series:
    points = [(int(step), value) for step, value in curve.items() if value is not None]
    return Series(name, [x for x, _ in points], [y for _, y in points], index, mark=mark)


def _best(curve: Mapping[str, float | None], mode: str) -> float | None:
    values = [value for value in curve.values() if value is not None]
    return (max if mode == "max" else min)(values, default=None)
