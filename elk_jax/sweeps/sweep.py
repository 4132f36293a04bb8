"""Run a sweep: its runs in parallel processes, then its table and its page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from elk_jax import files
from elk_jax.errors import UserError
from elk_jax.experiments.experiment import run_experiment
from elk_jax.experiments.parse import plain
from elk_jax.progress import progress_bar
from elk_jax.reporting import html
from elk_jax.reporting.report import write_report
from elk_jax.sweeps import page
from elk_jax.sweeps import plan as plans
from elk_jax.sweeps.plan import Plan, PlannedRun
from elk_jax.sweeps.results import collect
from elk_jax.sweeps.workers import Ended, Job, end_with_starter, run_all
from elk_jax.tasks.run import new_console

PLACE = "--run"
"""The flag for one run of a sweep, given by the folders of its setting and its seed."""


def run_sweep(
    plan: Plan,
    baselines: Mapping[str, str],
    *,
    jobs: int,
    resamples: int,
    metrics: Sequence[str] = (),
    references: Sequence[str] = (),
    command: Sequence[str],
) -> None:
    """Run all unfinished runs, `jobs` at once, and write the table and the page.

    baselines: row -> the row that it is compared with. metrics: shown first; () for the first of each evaluation.
    references: models with which others of their evaluation are compared, within each run; () for its first. command:
    starts this sweep; with PLACE it executes one run (`run_one`). UserError at the end if a run failed.
    """
    if jobs < 1:
        raise UserError(f"{jobs} jobs", where="--jobs", todo="give 1 or more")
    console = new_console()
    files.make_folder(plan.folder)
    with files.locked(plan.folder):
        plans.start(plan)
        left = [run for run in plan.runs if not run.is_finished]
        before = len(plan.runs) - len(left)
        console.print(f"{plan.base.name}: {len(plan.runs)} runs, {before} already finished; folder {plan.folder}")
        ended = run_all(_jobs(plan, left, command), jobs, lambda at, end: console.print(_told(left[at], end)))
        errors = {run: end.error for run, end in zip(left, ended) if end.error}
        results = collect(plan, baselines, resamples, references, progress_bar)
        shown = page.chosen_metrics(results, metrics)
        files.write_json(plan.folder / "table.json", page.records(results))
        files.write_text(plan.folder / "table.csv", page.csv_text(results))
        states = [_state(plan, run, errors.get(run, "")) for run in plan.runs]
        path = plan.folder / plans.REPORT
        write_report(path, page.report(plan.base.name, results, shown, states, plain(plan.base), _seconds(plan)))
    console.print(page.terminal_table(results, shown, ""))
    for note in (*page.row_notes(plan.rows), *results.notes):
        console.print(f"note: {note}")
    for run, error in errors.items():
        console.print(f"failed: {run.name}: {error} ({run.log})")
    console.print(f"report: {path}")
    if errors:
        todo = "fix the cause and rerun the same command; finished runs are not repeated"
        raise UserError(f"{len(errors)} of {len(plan.runs)} runs failed", where=plan.folder, todo=todo)


def run_one(plan: Plan, place: str) -> None:
    """Execute one run of a sweep in this process. place: folders of its setting and its seed, such as "lr=0.1/seed-42".

    A stage that another run has finished with the same settings and inputs is copied from it.
    """
    end_with_starter()
    known = {_place(plan, run): run for run in plan.runs}
    if place not in known:
        raise UserError("no such run", where=f"{PLACE}={place}", todo=f"name one of {', '.join(known)}")
    run = known[place]
    files.make_folder(run.folder)
    with files.locked(run.folder):
        taken = plans.take_finished(plan, run)
        plans.take_features(plan, run)
        (run.folder / plans.REPORT).unlink(missing_ok=True)  # with fewer stages
    if taken:
        new_console().print(f"copied from another run of the sweep: stage {', '.join(taken)}")
    every = len(run.stages) == len(run.experiment.stages)
    run_experiment(run.config, run.folder, None if every else [stage.name for stage in run.stages], repeat=False)


def _jobs(plan: Plan, left: Sequence[PlannedRun], command: Sequence[str]) -> list[Job]:
    position = {run: number for number, run in enumerate(left)}
    return [
        Job(
            run.name,
            (*command, f"{PLACE}={_place(plan, run)}"),
            run.log,
            tuple(position[plan.runs[n]] for n in plan.before(run) if plan.runs[n] in position),
        )
        for run in left
    ]


def _place(plan: Plan, run: PlannedRun) -> str:
    return str(run.folder.relative_to(plan.folder / "runs"))


def _told(run: PlannedRun, end: Ended | None) -> str:
    if end is None:
        return f"started {run.name} (log: {run.log})"
    time = html.duration(end.seconds)
    return f"failed {run.name} after {time}: {end.error}" if end.error else f"finished {run.name} in {time}"


def _state(plan: Plan, run: PlannedRun, error: str) -> page.RunState:
    seconds = _stage_seconds(run)
    report, log = run.folder / plans.REPORT, run.log
    return page.RunState(
        run.name,
        sum(seconds.values()) if seconds else None,
        error,
        str(report.relative_to(plan.folder)),
        str(log.relative_to(plan.folder)),
    )


def _seconds(plan: Plan) -> float:
    """The seconds of all finished stages; a stage shared by several runs counts once."""
    return sum({run.identities[name]: time for run in plan.runs for name, time in _stage_seconds(run).items()}.values())


def _stage_seconds(run: PlannedRun) -> dict[str, float]:
    return {stage: files.read_object(end, "seconds")["seconds"] for stage, end in run.finished.items()}


def own_command() -> tuple[str, ...]:
    """The command that started this process."""
    return (sys.executable, *sys.orig_argv[1:])
