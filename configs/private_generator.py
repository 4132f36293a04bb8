"""Private patches by class: public patches, weighted by a single noisy release of statistics of private ones.

  python launch/train.py --config=configs/private_generator.py                generated patches, minutes on 2 CPU cores
  python launch/train.py --config=configs/private_generator.py:small \\
      --config.data.patches.spec=folders:/data/patches "--config.data.patches.patient_pattern=P_(\\d+)" \\
      --config.data.public.spec=coco:/data/mammograms/lesions.json --config.data.labelled.spec=folders:/data/other
The patches are DIR/SPLIT/CLASS/FILE, or any source whose images have one class each. `public` are images of other
people with boxes, which need no protection: the drawn patches are cut from them, and their classes are not read.
Features of a frozen network are optional: pool.features.lite0.weights and head.features.lite0.weights. Each generator
is evaluated with a head on frozen features that is fitted only on its drawn patches. `public_only` is the same without
private data: a head on `labelled`, patches whose classes are public; `real` is the same on the private patches
themselves, without privacy. `NAME_looks` compare each set, and `labelled`, with the validation split, also by
radiomics; `NAME_fidelity` check with `real` whether the classes are recognisable. None of them reads a training patch,
but `real` is not private: leave out `real` and the stages that use it (--stages) if its scores would reveal too much.
Variants: tiny (tests), quick (default), small (the published crops: 128 px, lesions off centre); and means or votes,
which release mean features, or votes for the most similar public patches, instead of a linear classifier.
"""

from dataclasses import replace

from configs import private_head, variants
from configs.private_head import PHANTOMS
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.tasks.classification.recipe import EvaluateClassifiersStage, FitHeadStage, HeadRecipe
from elk_jax.tasks.generation.recipe import EvaluateSamplesStage, FitPoolStage, Means, PoolRecipe, SampleStage, Votes
from elk_jax.tasks.stages import Stage

BUDGETS = {"without_privacy": 0.0, "epsilon_10": 10.0, "epsilon_1": 1.0}
"""Generator -> its epsilon; 0: the same without noise."""
PER_CLASS = {"tiny": 20, "quick": 500, "small": 500, "paper": 1500}
"""Variant -> drawn patches of a class."""
RELEASES = {"means": Means(), "votes": Votes()}
"""Words of a variant -> the kind of release, instead of a classifier."""
COMPONENTS = {"tiny": 8, "quick": 16}
"""Variant -> components of the features; others use the default of the recipe."""


def get_config(variant=None):
    size, extras = variants.parse(variant, tuple(RELEASES), rivals=(tuple(RELEASES),))
    recipe, head = pool(size), private_head.head(size)
    spec = phantoms(size, head)
    for word in extras:
        recipe = replace(recipe, release=RELEASES[word])
    stages: dict[str, Stage] = {}
    judged = {}
    for name, epsilon in BUDGETS.items():
        stages[name] = FitPoolStage(
            train_on=("patches",), validate_on="patches", public=("public", "labelled"), epsilon=epsilon
        )
        stages[f"{name}_samples"] = SampleStage(model=name, per_class=PER_CLASS[size])
        judged[f"{name}_head"] = f"{name}_samples"
    fits = {"public_only": "labelled", **judged, "real": "patches"}
    for name, source in fits.items():
        stages[name] = FitHeadStage(train_on=(source,), validate_on="patches", public=("public", "labelled"))
    resamples = 200 if size == "tiny" else 2000
    sets = {name.removesuffix("_head"): source for name, source in fits.items() if name != "real"}
    for name, source in sets.items():
        stages[f"{name}_looks"] = EvaluateSamplesStage(on="patches", split="val", synthetic=source, frd=("v0", "v1"))
        stages[f"{name}_fidelity"] = EvaluateClassifiersStage(
            models=("real",), on=source, split="", bootstrap=resamples
        )
    return variants.experiment(
        "private_generator",
        data={
            "on_error": "stop",
            "patches": SourceSpec(f"{spec},seed=5"),
            "public": SourceSpec(f"{spec},seed=6"),
            "labelled": SourceSpec(f"{spec},seed=7"),
            **{samples: SourceSpec(f"stage:{samples}") for samples in judged.values()},
        },
        pool=recipe,
        head=head,
        stages={
            **stages,
            "evaluate": EvaluateClassifiersStage(models=tuple(fits), on="patches", bootstrap=resamples),
        },
    )


def phantoms(size, head):
    """Embedded patches, with the lesion at the position used by the recipe."""
    pixels, count = PHANTOMS[size]
    spec = f"phantom_patches:size={pixels},count={count},healthy_fraction=0.1"
    if head.centre == HeadRecipe().centre:
        return spec
    (row, column), cutting = head.centre, head.cutting
    return f"{spec},side={head.size},margin={cutting.margin},least={cutting.least},row={row},column={column}"


def pool(size):
    """The recipe of a weighted pool of public patches, at the size of a variant."""
    head = private_head.head(size)
    return PoolRecipe(
        size=head.size,
        centre=head.centre,
        cutting=head.cutting,
        features=head.features,
        components=COMPONENTS.get(size, PoolRecipe().components),
    )
