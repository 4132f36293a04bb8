"""The settings of every training; the recipe of a task inherits them and adds model and data."""

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
    """steps: updates of the whole training. accumulate: micro-batches that a batch is split into.

    ema_decay: of the smoothed parameters, which are then the ones that are evaluated and kept; 0 for none.
    checkpoint_every, eval_every: in steps; 0: only at the end. folds: of a cross-validation over the patients of the
    training and validation splits, by which the steps and thresholds are chosen before the model is trained on all of
    them; 0: the validation split alone chooses. refit: False: the folds together are the model, an ensemble, and
    nothing is trained after them. privacy: of the training data; None: they are not protected.
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
            raise UserError("one fold leaves no patient to train on", where="folds", todo="give 2 at least, or 0")
        if not self.refit and not self.folds:
            what = "refit is False with no folds to make an ensemble of"
            raise UserError(what, where="refit", todo="set folds, or refit=True")
        if self.privacy is not None and self.folds:
            what = f"folds is {self.folds} in a private training, whose promise counts no choice on protected patients"
            raise UserError(what, where="folds", todo="set it to 0, and choose on other people's data")
        if self.privacy is not None and self.accumulate > 1:
            todo = "set privacy.micro_batch, the units of a device at once, and leave accumulate at 1"
            raise UserError(f"accumulate is {self.accumulate} in a private training", where="accumulate", todo=todo)
        schedules.build(self.schedule, self.steps)  # milestones in an order that only the number of steps shows

    @property
    def releases(self) -> int:
        """Noisy gradients of a private step, each of a separate batch."""
        return 1


@dataclass(frozen=True, kw_only=True)
class AdversarialRecipe(TrainingRecipe):
    """The settings of a training of two players: `optimizer`, `schedule`, `steps` and `ema_decay` are the generator's.

    ratio: updates of the discriminator for each of the generator, each on its own part of the batch.
    discriminator_optimizer, discriminator_schedule: of its updates, `ratio * steps` in all. privacy: of the data of the
    discriminator, which alone sees them.
    """

    ratio: Annotated[int, AtLeast(1)] = 1
    discriminator_optimizer: OptimizerConfig = ADAMW
    discriminator_schedule: Schedule = COSINE

    def __post_init__(self) -> None:
        super().__post_init__()
        schedules.build(self.discriminator_schedule, self.steps * self.ratio)
        if self.accumulate > 1:
            what = f"accumulate is {self.accumulate} in a training of two players"
            raise UserError(what, where="accumulate", todo="leave it at 1, and make the batch smaller")

    @property
    def releases(self) -> int:
        return self.ratio
