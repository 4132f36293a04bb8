"""The settings of classification: a head on frozen features, a network, and the stages that fit, train and evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from elk_jax.backbones import networks, swin
from elk_jax.data.batches.labelled import LabelledConfig
from elk_jax.data.patches import Cutting
from elk_jax.errors import UserError
from elk_jax.evaluation.bootstrap import Resamples
from elk_jax.evaluation.thresholds import rule_from_text
from elk_jax.fields import ABOVE_ZERO, BELOW_ONE, NOT_EMPTY, SHARE, SIDE, AtLeast, ByName, Checked, Range
from elk_jax.tasks.frozen import Features, NetworkFeatures, ScatteringFeatures
from elk_jax.tasks.stages import CombineStage, EvaluateModelsStage, FitStage, PrivateTrainStage
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Schedule, WarmupCosine


@dataclass(frozen=True)
class Search(Checked):
    """A linear head, private or not, on features whitened by public images: the settings to try. Those with the largest
    mean AUROC on the validation split are chosen.

    Every combination is tried, each with `draws` draws of the noise.
    features: names of `features`, several joined by + (scattering+lite0). components: of each kind of features after
    the whitening. learning_rates, steps, averaged: of the descent; averaged is the share of the last iterates that are
    averaged. l2: weight decay.
    """

    name: Literal["linear"] = "linear"
    features: Annotated[tuple[str, ...], NOT_EMPTY] = ("scattering",)
    components: Annotated[tuple[Annotated[int, AtLeast(1)], ...], NOT_EMPTY] = (24, 48, 96)
    learning_rates: Annotated[tuple[Annotated[float, ABOVE_ZERO], ...], NOT_EMPTY] = (20.0, 70.0, 200.0)
    steps: Annotated[tuple[Annotated[int, AtLeast(1)], ...], NOT_EMPTY] = (30,)
    averaged: Annotated[tuple[Annotated[float, BELOW_ONE], ...], NOT_EMPTY] = (0.5,)
    l2: Annotated[tuple[Annotated[float, AtLeast(0)], ...], NOT_EMPTY] = (0.0,)
    draws: Annotated[int, AtLeast(1)] = 5


@dataclass(frozen=True)
class KernelSearch(Checked):
    """A kernel head (`heads.kernel`), never private, on features scaled by the training images: the settings to try.
    Those with the largest mean of two AUROCs are chosen: on the validation split, and in cross-validation over the
    patients of the training split.

    features: as in `Search`. widths: of the Gaussian kernel; 0: the linear kernel. penalties: of the function's norm.
    folds: of the cross-validation.
    """

    name: Literal["kernel"] = "kernel"
    features: Annotated[tuple[str, ...], NOT_EMPTY] = ("scattering",)
    widths: Annotated[tuple[Annotated[float, AtLeast(0)], ...], NOT_EMPTY] = (0.7, 1.0, 1.5, 2.2)
    penalties: Annotated[tuple[Annotated[float, ABOVE_ZERO], ...], NOT_EMPTY] = (0.03, 0.1, 0.3, 1.0, 3.0)
    folds: Annotated[int, AtLeast(2)] = 5


def searches() -> Mapping[str, type]:
    """The kinds of heads that can be fitted, by name."""
    return {"linear": Search, "kernel": KernelSearch}


RULES = ("youden", "sensitivity:0.9", "specificity:0.9")
Mean = Literal["probabilities", "log_odds"]
"""The quantity that is averaged over classifiers."""


def check_rules(rules: Sequence[str]) -> None:
    """UserError for a string that is not a rule for thresholds."""
    for rule in rules:
        try:
            rule_from_text(rule)
        except UserError as error:
            raise UserError(error.what, where="rules", todo=error.todo) from error


@dataclass(frozen=True, kw_only=True)
class DecisionRecipe(Checked):
    """The use of scores. positive: the class that they predict. rules: for choosing thresholds on the validation split;
    the first one is used to classify."""

    positive: str = "malignant"
    rules: Annotated[tuple[str, ...], NOT_EMPTY] = RULES

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rules(self.rules)


@dataclass(frozen=True, kw_only=True)
class FrozenRecipe(Checked):
    """Patches and their frozen features.

    size: pixels of a patch; images of another size are scaled. centre: row and column of the lesion, as shares of the
    patch. cutting: patches out of whole public images. features: by user-defined names.
    """

    size: Annotated[int, SIDE] = 128
    centre: tuple[Annotated[float, SHARE], Annotated[float, SHARE]] = (0.5, 0.5)
    cutting: Cutting = field(default_factory=Cutting)
    features: Mapping[str, Features] = field(default_factory=lambda: {"scattering": ScatteringFeatures()})

    def used(self) -> dict[str, Any]:
        """The features to compute, by name, without those of networks that have no weights."""
        return {name: one for name, one in self.features.items() if is_there(one)}


@dataclass(frozen=True, kw_only=True)
class HeadRecipe(DecisionRecipe, FrozenRecipe):
    """Settings for fitting a head on frozen features.

    search: the kind of head and its tuned settings. All following settings are for a linear head.
    clip_norm: of a unit's gradient, for a private head; inputs have the norm 1. mean_clip: of the mean features of a
    unit, divided by the square root of their number, for their private mean. mean_share: share of the budget for this
    mean.
    draws: number of fitted heads, each with its own noise: the first is the model, the others show the effect of the
    noise.
    """

    search: Annotated[Any, ByName(searches)] = field(default_factory=Search)
    clip_norm: Annotated[float, ABOVE_ZERO] = 0.5
    mean_clip: Annotated[float, ABOVE_ZERO] = 1.2
    mean_share: Annotated[float, Range(0, 1, above=True, below=True)] = 0.1
    draws: Annotated[int, AtLeast(1)] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.search.features:
            for name in text.split("+"):
                if name not in self.features:
                    todo = f"choose from {', '.join(self.features)}, or join several with +"
                    raise UserError(f"no features '{name}'", where="search.features", todo=todo)

    def on(self, network: str) -> HeadRecipe:
        """The recipe with a model folder for the features of networks that name none."""
        filled = {n: one if is_there(one) else replace(one, weights=network) for n, one in self.features.items()}
        return replace(self, features=filled)

    def used(self) -> dict[str, Any]:
        """The features that the search tries, by name, without those of networks that have no weights."""
        wanted = {name for text in self.search.features for name in text.split("+")}
        return {name: one for name, one in super().used().items() if name in wanted}

    def combinations(self) -> list[tuple[str, ...]]:
        """Names of features that are tried together: the combinations whose features are all available."""
        used = self.used()
        split = [tuple(text.split("+")) for text in self.search.features]
        return [names for names in split if all(name in used for name in names)]


def is_there(features: Any) -> bool:
    """Whether features can be computed; a network needs weights."""
    return not isinstance(features, NetworkFeatures) or bool(features.weights)


@dataclass(frozen=True, kw_only=True)
class FitHeadStage(FitStage):
    """Fit a head on frozen features; a linear one may be private. Leaves RUN/STAGE/model.

    network: an earlier train stage of networks, or a model folder: the network for all features without their own
    weights; "": none.
    public: sources whose images whiten the features of a linear head. exposed: as for a private training
    (`PrivateTrainStage`).
    """

    task: Literal["classification"] = "classification"
    recipe: str = "head"
    network: str = ""
    exposed: bool = False

    def __post_init__(self) -> None:
        if self.name and self.init_from:
            raise UserError("a head has no initial weights", where="init_from", todo="leave it empty")
        for name in self.public:
            if self.is_private and name in self.train_on:
                what = f"'{name}' is the training data, so the whitening would publish its statistics"
                raise UserError(what, where="public", todo="name a data source of public images")

    def named_models(self) -> Mapping[str, str]:
        return {"network": self.network} if self.network else {}


ADAMW = OptimizerConfig(name="adamw", weight_decay=0.05, clip_norm=1.0)
COSINE = WarmupCosine(base=1e-4, warmup_steps=20)
NUM_CLASSES = 2


@dataclass(frozen=True, kw_only=True)
class NetworkRecipe(DecisionRecipe, TrainingRecipe):
    """Settings for training a network on images of two classes.

    model: the network (`backbones.networks`). size: side in pixels of its input; images of another size are scaled.
    label_smoothing: share of a label that is spread over both classes (Szegedy et al. 2016). test_symmetries: in
    testing, average the probabilities over the eight symmetries of the square, which takes eight times as long;
    checkpoints are chosen without. choose: the checkpoint to keep: the one with the best validation AUROC, or the last.
    """

    model: Annotated[Any, ByName(networks.kinds)] = field(default_factory=lambda: swin.SwinConfig(num_classes=2))
    size: Annotated[int, SIDE] = 224
    label_smoothing: Annotated[float, BELOW_ONE] = 0.0
    test_symmetries: bool = False
    images: LabelledConfig = field(default_factory=LabelledConfig)
    optimizer: OptimizerConfig = ADAMW
    schedule: Schedule = COSINE
    choose: Literal["last", "best"] = "best"

    def __post_init__(self) -> None:
        DecisionRecipe.__post_init__(self)
        TrainingRecipe.__post_init__(self)
        if self.model.num_classes != NUM_CLASSES:
            what = f"num_classes is {self.model.num_classes}, but there are two classes"
            raise UserError(what, where="model.num_classes", todo=f"set {NUM_CLASSES}")


@dataclass(frozen=True, kw_only=True)
class TrainClassifierStage(PrivateTrainStage):
    """Train a network on images of the training split.

    init_from: an earlier train stage of networks, or its model folder, for all weights; or a folder written by
    `launch/import_weights.py`, for all layers that do not depend on the classes.
    """

    task: Literal["classification"] = "classification"
    recipe: str = "network"


@dataclass(frozen=True, kw_only=True)
class CombineClassifiersStage(CombineStage):
    """Combine several classifiers into one: the mean of their predictions.

    mean: of their probabilities, or of their log odds. rules: for choosing thresholds, as in a recipe.
    """

    task: Literal["classification"] = "classification"
    mean: Mean = "log_odds"
    rules: Annotated[tuple[str, ...], NOT_EMPTY] = RULES

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rules(self.rules)


@dataclass(frozen=True, kw_only=True)
class EvaluateClassifiersStage(EvaluateModelsStage):
    """Evaluate classifiers on one split, and compare each with the first.

    bootstrap: resamples of patients. published: (name, epsilon, AUROC) of results to show together with those of this
    run; epsilon 0: without privacy.
    """

    task: Literal["classification"] = "classification"
    bootstrap: Resamples = 2000
    published: tuple[tuple[str, float, float], ...] = ()
