"""A comparison of two sets as a page."""

from __future__ import annotations

from collections.abc import Sequence

from elk_jax.distances.compare import Comparison, Measure, Spread
from elk_jax.distances.sets import ImageSet
from elk_jax.distances.tables import ends, headline, told_apart, written
from elk_jax.reporting import html
from elk_jax.reporting.figures import interval_bar
from elk_jax.reporting.marks import Bar, Cloud, cloud_chart, paired_bars
from elk_jax.reporting.pictures import Closeup, Strip, strips
from elk_jax.reporting.report import Report, Section
from elk_jax.spread import spread

PICTURES = 12
"""Number of images shown of each kind."""

LONGEST = 30
"""Longest name of an image, in characters; longer ones are cut in the middle."""

NAMES = ("synthetic from real", "real from real")


def page(found: Comparison) -> Report:
    """The comparison as a page."""
    sections = [_distances(found)]
    if found.of_classes:
        blocks = [f"<h3>{html.text(name)}</h3>{_table(measures)}" for name, measures in found.of_classes.items()]
        sections.append(Section("Each class separately", "".join(blocks)))
    sections += [_cloud(found), _features(found), _pictures(found)]
    real, synthetic = found.real, found.synthetic
    return Report(
        title="Synthetic against real images",
        kicker="elk_jax comparison of sets",
        summary=f"{headline(found)} {told_apart(found)}".strip(),
        facts={"Real": _counted(real), "Synthetic": _counted(synthetic), "Seed": str(found.settings.seed)},
        sections=sections,
        footer="Distances depend on the number of images: compare them only for equal numbers.",
    )


def _counted(one: ImageSet) -> str:
    return f"{one.name}: {len(one)} images" + (f", {len(one.skipped)} skipped" if one.skipped else "")


def _distances(found: Comparison) -> Section:
    rows = [
        (measure.name, [Bar(length, _says(spread, measure)) for length, spread in zip(measure.squared, _pair(measure))])
        for measure in found.measures
    ]
    parts = [_cards(found), _table(found.measures), f"<h3>Side by side</h3>{html.legend(NAMES)}"]
    parts.append(paired_bars(rows, title="Distances of synthetic images and of real images from real ones"))
    parts.append(
        html.paragraph("Bars are squared distances or shares of power; each pair has its own scale.", "soft small")
    )
    parts += [html.paragraph(f"Note: {note}.", "soft small") for note in found.notes]
    note = (
        "Means over ten random draws, with the smallest and the largest value. Each draw compares half of the real "
        "images (split by patient) with as many synthetic ones, and with the other half."
    )
    return Section("Distances", "".join(parts), note)


def _pair(measure: Measure) -> tuple[Spread, Spread]:
    return measure.synthetic, measure.real


def _says(spread: Spread, measure: Measure) -> str:
    return html.ABSENT if spread.mean is None else f"{written(spread.mean)} {measure.unit}"


def _cards(found: Comparison) -> str:
    cards = [
        _card(index, measure.name, written(measure.synthetic.mean), "", f"{measure.unit}; real from real {reference}")
        for index, measure in enumerate(found.measures[: len(found.settings.frd)])
        for reference in [written(measure.real.mean)]
    ]
    if found.told_apart is not None:
        estimate = {"value": found.told_apart["auc"], "low": found.told_apart["low"], "high": found.told_apart["high"]}
        bounds = html.interval(estimate, 2) or "no interval"
        value = html.number(estimate["value"], 2)
        cards.append(_card(len(cards), "Told apart", value, interval_bar(estimate, len(cards)), f"AUC, {bounds}"))
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(index: int, name: str, big: str, bar: str, what: str) -> str:
    return (
        f'<div class="card {html.colour(index)}"><div class="name">{html.text(name)}</div>'
        f'<div class="big">{html.text(big)}</div>{bar}<div class="what">{html.text(what)}</div></div>'
    )


def _table(measures: Sequence[Measure]) -> str:
    head = ["Measure", "Synthetic from real", "Real from real", "Ratio", "Images", "Features"]
    rows = [
        html.row(
            [
                f'{html.text(one.name)}<br><span class="soft small">{html.text(one.unit)}</span>',
                *(_cell(spread) for spread in _pair(one)),
                html.text(written(one.ratio)),
                str(one.images),
                str(one.features),
            ]
        )
        for one in measures
    ]
    return html.table(head, rows)


def _cell(spread: Spread) -> str:
    bounds = ends(spread)
    beneath = f'<br><span class="range">{html.text(bounds)}</span>' if bounds else ""
    return f"<b>{html.text(written(spread.mean))}</b>{beneath}"


def _cloud(found: Comparison) -> Section:
    clouds = [Cloud("real", found.map.real, index=1), Cloud("synthetic", found.map.synthetic, index=0)]
    axes = [f"component {k + 1}, {share:.0%} of the variance" for k, share in enumerate(found.map.shares)]
    chart = cloud_chart(clouds, title="Map of the images", x_label=axes[0], y_label=axes[1])
    note = (
        "Each point is an image. Axes: the first two principal components of the features of both sets, in standard "
        "deviations of the real images, clipped at six."
    )
    return Section("Map", html.legend(("synthetic", "real")) + chart, note)


def _features(found: Comparison) -> Section:
    reach = max([1.0, *(abs(one.difference) for one in found.different)])
    rows = [
        html.row(
            [
                html.text(one.name),
                html.text(written(one.real, 4)),
                html.text(written(one.synthetic, 4)),
                f"<b>{html.signed(one.difference, 2)}</b>",
                interval_bar(
                    {"value": one.difference, "low": min(0, one.difference), "high": max(0, one.difference)},
                    0,
                    (-reach, reach),
                    180,
                ),
            ]
        )
        for one in found.different
    ]
    note = "Means of both sets, and their difference in standard deviations of the real images."
    return Section(
        "Most different features", html.table(["Feature", "Real", "Synthetic", "Difference", ""], rows), note
    )


def _pictures(found: Comparison) -> Section:
    real, synthetic = found.real, found.synthetic
    near = tuple(reversed(found.far))
    blocks = []
    for title, one, places in (
        ("Real", real, spread(len(real), PICTURES).tolist()),
        ("Synthetic", synthetic, spread(len(synthetic), PICTURES).tolist()),
        ("Synthetic images farthest from the mean of the real ones", synthetic, list(found.far[:PICTURES])),
        ("Synthetic images closest to the mean of the real ones", synthetic, list(near[:PICTURES])),
    ):
        shown = [Strip([Closeup(one.images[k])], _short(one.titles[k]), one.classes[k]) for k in places]
        blocks.append(f"<h3>{html.text(title)}</h3>{strips(shown)}")
    return Section("Pictures", "".join(blocks), "Click a picture to enlarge it.")


def _short(name: str) -> str:
    if len(name) <= LONGEST:
        return name
    half = (LONGEST - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
