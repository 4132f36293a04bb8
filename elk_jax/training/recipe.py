"""Settings of every training run; the recipe of a task inherits them and adds model and data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from elk_jax.errors import UserError
from elk_jax.fields import BELOW_ONE, AtLeast, Between
from elk_jax.privacy.settings import Privacy
from elk_jax.training import schedules
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.schedules import Schedule, WarmupCosine

ADAMW = OptimizerConfig(name="adamw", weight_decay=0.05, clip_norm=1.0)
COSINE = WarmupCosine(base=4e-4, warmup_steps=30)
MOST_FOLDS = 50


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """steps: updates of the whole training run. accumulate: micro-batches per batch.
    A loss that divides by a count over the batch (positive anchors, regions) counts in each micro-batch; other means
    are those of the whole batch.

    ema_decay: of the averaged parameters, which are then the ones evaluated and kept; 0: no averaging.
    checkpoint_every, eval_every: in steps; 0: only at the end. folds: of a cross-validation over the patients of the
    training and validation splits, which selects the number of steps and the thresholds before the model is trained on
    all of them; 0: the validation split selects them. refit: if False, the folds together are the model, an ensemble,
    and nothing is trained after them. privacy: of the training data; None: no protection.
    """

    steps: Annotated[int, AtLeast(1)] = 300
    accumulate: Annotated[int, AtLeast(1)] = 1
    optimizer: OptimizerConfig = ADAMW
    schedule: Schedule = COSINE
    ema_decay: Annotated[float, BELOW_ONE] = 0.0
    log_every: Annotated[int, AtLeast(1)] = 10
    checkpoint_every: Annotated[int, AtLeast(0)] = 100
    eval_every: Annotated[int, AtLeast(0)] = 100
    folds: Annotated[int, Between(0, MOST_FOLDS)] = 0
    refit: bool = True
    privacy: Privacy | None = None

    def __post_init__(self) -> None:
        if self.folds == 1:
            raise UserError("one fold leaves no patient to train on", where="folds", todo="give at least 2, or 0")
        if not self.refit and not self.folds:
            what = "refit is False, but there are no folds for an ensemble"
            raise UserError(what, where="refit", todo="set folds, or refit=True")
        if self.privacy is not None and self.folds:
            what = f"folds is {self.folds} in private training, whose budget covers no selection on protected patients"
            raise UserError(what, where="folds", todo="set it to 0, and select on data of other patients")
        if self.privacy is not None and self.accumulate > 1:
            todo = "set privacy.micro_batch (units on a device at once) instead, and leave accumulate at 1"
            raise UserError(f"accumulate is {self.accumulate} in private training", where="accumulate", todo=todo)
        schedules.build(self.schedule, self.steps)  # checks milestones whose order depends on the number of steps

    @property
    def releases(self) -> int:
        """Noisy gradients per private step, each from a separate batch."""
        return 1

    def warnings(self) -> list[str]:
        """What the settings name but the training never reaches (`schedules.warnings`)."""
        return schedules.warnings(self.schedule, self.steps)


@dataclass(frozen=True, kw_only=True)
class AdversarialRecipe(TrainingRecipe):
    """Settings for training two players: `optimizer`, `schedule`, `steps` and `ema_decay` are the generator's.

    ratio: updates of the discriminator per update of the generator, each on its own part of the batch.
    discriminator_optimizer, discriminator_schedule: for its updates, `ratio * steps` in total. privacy: of the
    discriminator's data; only the discriminator sees data.
    """

    ratio: Annotated[int, AtLeast(1)] = 1
    discriminator_optimizer: OptimizerConfig = ADAMW
    discriminator_schedule: Schedule = COSINE

    def __post_init__(self) -> None:
        super().__post_init__()
        schedules.build(self.discriminator_schedule, self.steps * self.ratio)
        if self.accumulate > 1:
            what = f"accumulate is {self.accumulate} in training with two players"
            raise UserError(what, where="accumulate", todo="leave it at 1, and reduce the batch size")

    @property
    def releases(self) -> int:
        return self.ratio

    def warnings(self) -> list[str]:
        of_discriminator = schedules.warnings(self.discriminator_schedule, self.steps * self.ratio)
        return [*super().warnings(), *(f"of the discriminator: {warning}" for warning in of_discriminator)]
