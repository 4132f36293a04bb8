"""Private training of a stage: its secret, its mechanism, and batches of units instead of batches of examples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from elk_jax.data.batches import poisson
from elk_jax.data.batches.poisson import Example
from elk_jax.data.batches.stream import Reading, Stream
from elk_jax.data.sources import patients
from elk_jax.data.sources.open import drawn
from elk_jax.errors import UserError
from elk_jax.images.schema import ImageInfo
from elk_jax.privacy import accounting, mechanism, secret
from elk_jax.privacy.mechanism import Statement
from elk_jax.privacy.secret import Secret
from elk_jax.privacy.settings import Privacy
from elk_jax.tasks import origins
from elk_jax.tasks.run import Experiment, Opened, Run, is_main
from elk_jax.tasks.stages import Data, FitStage, PrivateTrainStage, Stage, TrainStage
from elk_jax.tasks.task import Workload
from elk_jax.training.checkpoint import kept_secret
from elk_jax.training.model import Model
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.step.separable import check_examples
from elk_jax.training.step.step import Protection
from elk_jax.weights import model_folder

PLANNED = 0.01
"""A noise multiplier for a plan, which has no data to derive it from."""


class Learned(NamedTuple):
    """What a model is trained on. counts: what the report may show about the data, by role ("train", "public").

    protection: of a private training. public: its public data, if any.
    """

    batches: Stream
    counts: dict[str, dict[str, int]]
    protection: Protection | None = None
    public: Opened | None = None


class Public(NamedTuple):
    """Additional data of a private training that need no protection. make: see `data.batches.poisson`.

    identity: what they depend on besides the settings of reading, for JSON.
    """

    data: Opened
    make: Callable[[int], Mapping[str, Any]]
    counts: dict[str, int]
    identity: Any


def openly(run: Run, stage: TrainStage, batches: Stream, counts: dict[str, int]) -> Learned:
    """Batches without protection. counts: of the training data, withheld where another stage protects them."""
    return Learned(batches, {} if is_withheld(run.experiment, stage) else {"train": counts})


def privately(
    run: Run,
    stage: TrainStage,
    recipe: TrainingRecipe,
    model: Model,
    example: Example,
    infos: Sequence[ImageInfo],
    batch_size: int,
    reading: Reading,
    public: Public | None,
    identity: Any,
) -> Learned:
    """Batches of the units of a private training, and its protection; prints its privacy promise.

    The recipe has `privacy`. example: see `data.batches.poisson`. infos: of all examples. batch_size: expected units of
    a noisy gradient. identity: what the examples depend on besides the settings of reading, for JSON. UserError for
    unsuitable data, models or budgets.
    """
    privacy = recipe.privacy
    assert privacy is not None
    units = poisson.members(infos, privacy.unit)
    plan = mechanism.plan(privacy, len(units), batch_size, recipe.steps, recipe.releases)
    protection = Protection(plan, _secret(run, stage, privacy))
    batches, blank = poisson.private_batches(
        example,
        units,
        protection.secret,
        plan.sampling_rate,
        reading,
        images=privacy.images,
        views=privacy.views,
        micro_batch=privacy.micro_batch,
        lanes=run.mesh.size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        public=public.make if public else None,
        releases=recipe.releases,
        identity=[identity, public.identity] if public else identity,
    )
    check_examples(model, {name: values[0] for name, values in blank.items()})
    if privacy.delta * len(units) >= 1:
        run.say(f"  warning: delta {privacy.delta:g} allows the data of one of {len(units)} units to be published")
    run.say(
        f"  private: {len(units)} {privacy.unit}s, expected batch size {batch_size}, noise multiplier "
        f"{plan.noise_multiplier:.4g}, {plan.steps} steps"
    )
    promised = plan.statement(plan.steps, not protection.secret.known, exposure(run, stage, recipe))
    run.say(f"  {mechanism.in_words([*promises_before(run, stage), promised])}")
    counts = {"train": {"units": len(units)}} | ({"public": public.counts} if public else {})
    return Learned(batches, counts, protection, public.data if public else None)


def is_withheld(experiment: Experiment, stage: Stage) -> bool:
    """Whether a report must not describe the training images that a stage reads, because this or another stage protects
    them."""
    return bool(_protected_data(experiment, stage))


def check_described(experiment: Experiment, stage: Stage, real: str, setting: str, todo: str) -> None:
    """UserError if the results of a stage describe all images that it reads and another stage protects some of them.

    real: the data source of real images, on which models are evaluated or with which generated images are compared; the
    generated ones are not checked. setting: of the stage, by which it reads training images. todo: as in a UserError.
    """
    if by := _protected_data(experiment, stage).get(real):
        what = f"the results would describe training images of '{real}', which stage {by} protects"
        raise UserError(what, where=f"config.stages.{stage.name}.{setting}", todo=todo)


def unprotected(experiment: Experiment, stage: Stage) -> str:
    """A note on a stage that reads training images protected by another one; "" for other stages."""
    protects = isinstance(stage, TrainStage) and stage.protects(experiment.recipe_of(stage))
    own = stage.train_on if isinstance(stage, TrainStage) and protects else ()
    for source, by in _protected_data(experiment, stage).items():
        if source in own:
            continue
        return f"Stage {stage.name} is not private: it reads training images of '{source}', which stage {by} protects."
    return ""


def _protected_data(experiment: Experiment, stage: Stage) -> dict[str, str]:
    """Data source whose training images a stage reads -> the first stage that protects them."""
    protected: dict[str, str] = {}
    for one in experiment.stages.values():
        if isinstance(one, TrainStage) and one.protects(experiment.recipe_of(one)):
            protected = dict.fromkeys(one.train_on, one.name) | protected
    read = [source for source, split in stage.data() if split in ("train", "")]
    return {source: protected[source] for source in read if source in protected}


def of_units(work: Workload, privacy: Privacy, devices: int, releases: int = 1) -> Workload:
    """The workload of a private training, from that of an ordinary one with the same settings.

    releases: as in a recipe; each has its share of the batch. Without data the number of units is unknown. A batch
    therefore has enough rows for any number of them, and the expected number of rows contains a unit.
    """
    expected = max(1, work.batch_size // releases)
    rows = poisson.expected_rows(expected, devices * privacy.micro_batch)
    lane, full = rows // devices, -(-expected // devices)
    unit = np.arange(rows, dtype=np.int32)
    unit[np.arange(rows) % lane >= full] = -1
    unit = unit.repeat(releases)  # rows of all take turns
    count = rows * releases, privacy.images * privacy.views

    def batch(blank: Mapping[str, Any]) -> dict[str, Any]:
        examples = {name: np.broadcast_to(x[:1, None], (*count, *x.shape[1:])) for name, x in blank.items()}
        examples["valid"] = np.broadcast_to(True, count)
        return {"examples": examples, "unit": unit, **({"public": blank} if privacy.public_weight else {})}

    any_noise = replace(privacy, epsilon=None, noise_multiplier=privacy.noise_multiplier or PLANNED)
    made = mechanism.plan(any_noise, rows, expected, steps=1, releases=releases)
    return replace(
        work,
        training={shape: batch(blank) for shape, blank in work.training.items()},
        protection=Protection(made, secret.known(0)),  # the program does not depend on these numbers
        assumed=(*work.assumed, f"{privacy.images} images per {privacy.unit}, whatever their number in the data"),
    )


def check_public(stage: PrivateTrainStage, recipe: TrainingRecipe) -> None:
    """UserError for public data without a weight in the loss, and for a weight without public data."""
    weight = recipe.privacy.public_weight if recipe.privacy else 0.0
    if bool(stage.public) != bool(weight):
        place, setting = f"stages.{stage.name}.public", f"{stage.recipe}.privacy.public_weight"
        if weight:
            todo = f"name data sources in {place}, or set {setting}=0"
            raise UserError(f"{setting} is {weight:g}, but no public data are given", where=place, todo=todo)
        todo = f"set {setting} above 0 in a private training, or leave {place} empty"
        raise UserError(f"the loss does not use the public data {', '.join(stage.public)}", where=place, todo=todo)


def check_start(run: Run, stage: TrainStage, recipe: Any) -> None:
    """UserError for a private training on pairs of different patients (`shuffled_partners`), and, unless `exposed` is
    set, for one whose patients are known to its initial weights, to its public data, or to the models that made its
    images. What these reveal about the patients is not accounted for.

    Phantoms are not drawn to find their patients.
    """
    for source in stage.train_on if stage.protects(recipe) else ():
        if run.experiment.data[source].shuffled_partners:
            what = "images are paired with those of another patient, so that a unit is not a single patient"
            raise UserError(what, where=f"config.data.{source}.shuffled_partners", todo="set it to False")
    if getattr(stage, "exposed", False):
        return
    for one in _exposures(run, stage, recipe):
        where, todo = f"config.stages.{stage.name}.{one.setting}", one.todo
        if hasattr(stage, "exposed"):
            todo += f"; or set config.stages.{stage.name}.exposed=True, but then no epsilon holds for the whole chain"
        raise UserError(one.what + one.proof, where=where, todo=todo)


def noise_of(stage: FitStage) -> float:
    """The noise multiplier with which one full batch spends the budget of a stage; 0 without privacy.

    UserError for a budget that needs almost no noise.
    """
    if not stage.is_private:
        return 0.0
    try:
        return accounting.noise_for(stage.epsilon, stage.delta, sampling_rate=1.0, steps=1)
    except UserError as error:
        raise error.within(f"config.stages.{stage.name}") from error


def say_promise(run: Run, stage: FitStage, promise: str, units: int) -> None:
    """Print the privacy promise of a fit in words, if it has one, and a warning of a delta that is too large. units: of
    its training data."""
    if not promise:
        return
    run.say(f"  {promise}")
    if stage.delta * units >= 1:
        run.say(f"  warning: delta {stage.delta:g} allows the data of one of {units} {stage.unit}s to be published")


def exposure(run: Run, stage: TrainStage, recipe: Any) -> str:
    """What has learned from the patients of a private training without protecting them, as half a sentence without
    names of patients; "" if nothing has."""
    return next((one.what for one in _exposures(run, stage, recipe)), "")


def promises_before(run: Run, stage: TrainStage, networks: Sequence[Path] = ()) -> tuple[Statement, ...]:
    """The promises of the private trainings behind the weights and the generated images of a stage, each once.

    The images are those of this run's stages, and of sets that state their origin. networks: further model folders.
    """
    named = [run.model_folder(name) for name in origins.models_behind(run.experiment, stage)]
    folders = dict.fromkeys([*named, *networks])
    sets = [run.list(*place).promises or () for place in _shown(run, stage)]
    return mechanism.once(promise for own in (*sets, *map(model_folder.promises, folders)) for promise in own)


def _shown(run: Run, stage: Stage) -> list[Data]:
    """The data that a stage learns from or paints into, including public data and the data behind images that a stage
    of the run makes, as far as their annotations exist."""
    sources, writers = {*stage.origin().sources, *getattr(stage, "public", ())}, run.experiment.writers
    found: list[Data] = []
    for place in stage.data():
        if place.source not in sources or place == stage.held_out():
            continue
        if place.source in writers:
            found += _shown(run, run.experiment.stages[writers[place.source]])
        elif run.is_listed(place.source):
            found.append(place)
    return found


def painters_saw(run: Run, sources: Sequence[str]) -> frozenset[str]:
    """Hashes of the patients behind images that a program made from theirs (`SourceSpec.made_from`)."""
    made = {other for name in sources for other in run.experiment.data[name].made_from if run.is_listed(other)}
    named = (patient for other in made for patient in patients.named(run.list(other, "train").infos))
    return frozenset(map(patients.patient_hash, named))


class _Exposure(NamedTuple):
    """what: half a sentence. proof: the evidence, with patients. setting: of the stage. todo: as in a UserError."""

    what: str
    proof: str
    setting: str
    todo: str


def _exposures(run: Run, stage: TrainStage, recipe: Any) -> Iterator[_Exposure]:
    """Everything besides a private training itself that knows its patients. What others have learned about them
    privately does not count: those promises are composed (`promises_before`)."""
    if not stage.protects(recipe):
        return
    experiment = run.experiment
    for place in _shown(run, stage):
        if run.list(*place).promises is None:
            what = f"the images '{place.source}' promise privacy in words, and do not say what is spent"
            setting = "train_on" if place.source in stage.train_on else "public"
            yield _Exposure(what, "", setting, "draw them again with launch/synthesize.py")
    own = {source: _by_key(run, source) for source in stage.train_on if source not in experiment.writers}
    elsewhere = "name it in public, if it was made only from other people's images"
    for source in stage.train_on:
        if source in experiment.writers:
            what = f"'{source}' is made by stage {experiment.writers[source]}: its images show more than their patients"
            yield _Exposure(what, "", "train_on", elsewhere)
            continue
        behind = origins.behind(experiment, source, bare=True)
        yield from _known(run, own, behind, f"the images '{source}'", "train_on", "leave it out")
        if whose := _made_of(run, source):
            yield _Exposure(f"the images '{source}' are made of {whose}", "", "train_on", elsewhere)
    for setting, name in stage.named_models().items():
        behind = origins.of_model(experiment, name, bare=True)
        todo = "start from weights of other people's images"
        yield from _known(run, own, behind, f"the weights of '{name}'", setting, todo)
    for source in getattr(stage, "public", ()):
        # `classification.fit` compares the images that whiten a head's features with its training images one by one
        of = origins.of_source if isinstance(stage, PrivateTrainStage) else origins.behind
        behind = of(experiment, source, bare=True)
        yield from _known(run, own, behind, f"the public data '{source}'", "public", "name data of other people")


def _known(
    run: Run,
    own: Mapping[str, Mapping[str, str]],
    behind: Sequence[tuple[str, bool]],
    what: str,
    setting: str,
    todo: str,
) -> Iterator[_Exposure]:
    """Exposures through the places `behind` (`tasks.origins`) that know a training patient. own: key -> ID, by data
    source."""
    for (origin, is_folder), (source, ids) in itertools.product(behind, own.items()):
        back = f"{what} go back to '{origin}'"
        if not is_folder and run.spec(origin).spec == run.spec(source).spec:
            yield _Exposure(f"{back}, the training data", "", setting, todo)
            continue
        if is_folder:
            both = patients.among(ids.values(), model_folder.seen_patients(Path(origin)))
        else:
            both = [ids[key] for key in sorted(ids.keys() & _by_key(run, origin))]
            both = both or patients.among(ids.values(), _painter_saw(run, origin))
        if both:
            yield _Exposure(back, f", which contains patient {both[0]} of the training data", setting, todo)


def check_classes(stage: PrivateTrainStage, own: Sequence[str], public: Sequence[str]) -> None:
    """UserError if the public data have other classes, or the same ones in another order."""
    if tuple(own) != tuple(public):
        raise UserError(
            f"the training data have the classes {', '.join(own)}, but the public data {', '.join(public)}",
            where=f"config.stages.{stage.name}.public",
            todo="name data with the same classes, in the same order",
        )


def _by_key(run: Run, source: str) -> dict[str, str]:
    """Key -> ID of the training patients of a source."""
    return {patients.patient_key(patient): patient for patient in _patients(run, source)}


def _patients(run: Run, source: str) -> Collection[str]:
    """The training patients of a source that other files know by the same name; none for a source that a stage
    writes."""
    spec = run.spec(source)
    phantom = drawn(spec)
    if phantom and not spec.patient_pattern:
        return phantom.patients(spec.place, "train")
    return patients.named(run.list(source, "train").infos) if run.is_listed(source) else ()


def _made_of(run: Run, source: str) -> str:
    """What the images of a source were made from without protection, in words; "" for original images and for those of
    a private generator."""
    named, seen = run.spec(source).made_from, _painter_saw(run, source)
    return " and ".join(f"'{name}'" for name in named) or ("those of patients whom their file names" if seen else "")


def _painter_saw(run: Run, source: str) -> frozenset[str]:
    """Hashes of the patients that generated images declare as their origin."""
    return run.list(source, "train").seen_patients if run.is_listed(source) else frozenset()


def _secret(run: Run, stage: TrainStage, privacy: Privacy) -> Secret:
    """That of the run's checkpoints, or a fresh one; the same on all processes."""
    if privacy.known_seed is not None:
        return secret.known(privacy.known_seed)
    found = kept_secret(run.folder / stage.name / "checkpoints") if is_main() else None
    own = secret.fresh() if found is None else secret.read(*found)
    if jax.process_count() == 1:
        return own
    words = multihost_utils.broadcast_one_to_all(np.asarray(own.words, np.uint32))
    return Secret(tuple(map(int, words)))
