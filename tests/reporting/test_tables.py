from rich.console import Console

from elk_jax.reporting.tables import results_table


def printed(table, width=160) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_models_side_by_side_with_intervals(detection_run):
    (evaluated,) = detection_run.evaluated
    text = printed(results_table(evaluated.evaluations, evaluated.comparisons, "cem_mixed"))
    lines = [line for line in text.splitlines() if "Mean sensitivity" in line]
    assert len(lines) == 1
    assert "0.600  0.50 – 0.70" in lines[0] and "0.700  0.60 – 0.80" in lines[0]
    assert "+0.100  −0.02 to +0.20" in lines[0]
    for expected in (
        "cem_mixed",
        "mixed - real",
        "synthetic - real",
        "Sensitivity at 0.5 FP per image",
        "AP at IoU 0.1",
    ):
        assert expected in text


def test_clear_differences_are_coloured(detection_run):
    (evaluated,) = detection_run.evaluated
    console = Console(width=200, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    console.print(results_table(evaluated.evaluations, evaluated.comparisons))
    markup = console.export_html()
    assert "#800000" in markup  # red: synthetic is clearly worse
    assert "#008000" not in markup  # mixed is not clearly better


def test_without_comparisons_or_models(detection_run):
    assert "–" in printed(results_table({"real": detection_run.evaluated[0].evaluations["real"]}))
    printed(results_table({}))
