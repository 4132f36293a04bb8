"""A plan as a page, with a figure if there are several slices."""

from __future__ import annotations

import math
from collections.abc import Sequence

from elk_jax.planning.plan import Efficiency, Plan, efficiencies
from elk_jax.planning.tables import facts, headline, length, part_rows
from elk_jax.reporting import html
from elk_jax.reporting.figures import Series, line_chart
from elk_jax.reporting.report import Report, Section


def page(plan: Plan) -> Report:
    """The plan as a page."""
    first = plan.slices[0]
    sections = []
    found = efficiencies(plan)
    if len(plan.slices) > 1 and found:
        note = "Speed of a chip relative to one that exchanges no data, by the published speed of chips and links."
        sections.append(Section("Weak scaling", _scaling_chart(found) + _scaling_html(found), note))
    for one in plan.slices:
        blocks = [
            f"<h3>{html.text(p.what)}, {html.text(p.shape)}</h3>{html.key_values(facts(one, p))}" for p in one.programs
        ]
        blocks += [html.paragraph(f"{what} {shape}: {reason}") for what, shape, reason in one.refused]
        sections.append(Section(one.slice.name, "".join(blocks), headline(plan, one)))
    for program in first.programs:
        head = ("part", "bytes", "of bytes", "FLOP", "of arithmetic")
        rows = (html.row((html.text(name), *cells)) for name, cells in part_rows(program))
        title = f"Parts of the {program.what}, {program.shape}"
        sections.append(Section(title, html.table(head, rows), f"On {first.slice.name}, on each chip."))
    assumed = f" Assumed: {'; '.join(plan.assumed)}." if plan.assumed else ""
    trainings = f" {length(plan)}." if plan.steps else ""
    return Report(
        title=f"{plan.experiment}: {plan.stage}",
        kicker="elk_jax plan",
        summary=f"{headline(plan, first)}.{trainings}{assumed}",
        facts={"chip": first.slice.chip.name, "its speed": first.slice.chip.source},
        sections=sections,
        footer="Times are lower bounds: arithmetic, memory and links at their published speed.",
    )


def _scaling_chart(found: Sequence[Efficiency]) -> str:
    chips = [math.log2(one.chips) for one in found]
    return html.legend(("exchange between chips hidden", "not hidden")) + line_chart(
        [
            Series("hidden", chips, [one.hidden for one in found], 0, dots=(chips, [one.hidden for one in found])),
            Series(
                "not hidden", chips, [one.exposed for one in found], 1, dots=(chips, [one.exposed for one in found])
            ),
        ],
        x_label="chips, log2",
        y_label="efficiency",
        y_range=(0.0, 1.05),
        size=(820, 320),
    )


def _scaling_html(found: Sequence[Efficiency]) -> str:
    head = ("slice", "chips", "data hidden", "not hidden")
    rows = (html.row((html.text(f.topology), str(f.chips), f"{f.hidden:.1%}", f"{f.exposed:.1%}")) for f in found)
    return html.table(head, rows)
