"""Synthetic patches, then privacy: a generator, a network trained on its patches, private training on real ones.

  python launch/train.py --config=configs/private_swin.py                     generated patches, minutes on 2 CPU cores
  python launch/train.py --config=configs/private_swin.py:cpu,published \\
      --config.data.patches.spec=folders:/data/patches "--config.data.patches.patient_pattern=P_(\\d+)" \\
      --config.data.published.spec=folders:/data/synthetic \\
      --config.data.public.spec=coco:/data/mammograms/lesions.json \\
      --config.stages.first.init_from=weights/lite0                           EfficientNet-Lite0, minutes on 2 CPU cores
  python launch/train.py --config=configs/private_swin.py:paper \\
      --config.data.patches.spec=folders:/data/patches "--config.data.patches.patient_pattern=P_(\\d+)" \\
      --config.stages.first.init_from=weights/swin_t                          Swin-T, as published, a GPU
The chain: `gan` (or `denoiser`) is trained on the patches, `samples` are drawn from it, `first` is a network with all
layers trained on the samples, and the following stages train the class layer on the real patches, without privacy and
with one epsilon each. In `cpu` the class layer is a linear head on frozen features of `first`, whitened with `public`,
images of other people, and only the coarse stages of `first` are trained.

The generator has seen the protected patients, as has the published one, so no epsilon holds for the whole chain; the
private stages are `exposed`, and their models and reports say so. With a generator that protects the patients, or one
of other people's patches (--config.stages.samples.model=DIR), set exposed=False for these stages, which is then
checked. If generator and training protect the same unit, their promises have a joint epsilon. The unit here is an
image, as published; the generators of this project protect patients, and so do all stages of the variant `protected`.

Variants: tiny (tests), quick (default), cpu (real patches on 2 cores), paper; training data of `first`: synthetic
(default), real, mixed (both), nothing (there is no `first`; the last training starts from public weights: in `cpu`
those of head.features.lite0.weights, else init_from of its stages); training data of the last training besides real
patches: beside (synthetic ones too), alone (synthetic ones only; noise on them protects nobody); and the source of
synthetic patches instead of `gan`: denoiser (configs/patch_denoiser.py); published, for patches of another program;
drawn, for those of an earlier run (launch/synthesize.py, --config.data.drawn.spec=coco:DIR/synthetic.json); and
protected, for a generator that protects the patients: patches of `public`, weighted by a single release of the real
ones (`pool`, configs/private_generator.py).
Published (CBIS-DDSM test split, epsilon per image of the last training, delta 1e-4): AUROC 0.661, 0.677, 0.688, 0.697,
0.712 at epsilon 1, 6, 12, 20, 60, and 0.639 of `first`. The whole table: configs/private_table.py.
"""

from typing import Any

from configs import private_generator, variants
from configs.private_head import CROPS, PHANTOMS
from configs.recipes.denoiser import denoiser
from configs.recipes.drawn import PER_CLASS as DRAWN
from configs.recipes.gan import gan
from configs.recipes.network import FULL, HEAD_ONLY, network, published_steps
from elk_jax.data.sources.spec import SourceSpec
from elk_jax.privacy.accounting import Unit
from elk_jax.privacy.settings import Privacy
from elk_jax.tasks.classification.recipe import (
    EvaluateClassifiersStage,
    FitHeadStage,
    HeadRecipe,
    Search,
    TrainClassifierStage,
)
from elk_jax.tasks.denoising.recipe import TrainDenoiserStage
from elk_jax.tasks.frozen import NetworkFeatures, ScatteringFeatures
from elk_jax.tasks.generation.recipe import FitPoolStage, SampleStage, TrainGeneratorStage

SIZES = ("quick", "tiny", "cpu", "paper")
LEARNED = ("synthetic", "real", "mixed", "nothing")
"""Training data of the first network."""
LAST = ("beside", "alone")
"""Use of synthetic patches in the last training."""
OTHERS = ("published", "drawn", "denoiser", "protected")
"""Sources of synthetic patches instead of the GAN."""
READY = ("published", "drawn")
"""Those that are not made in the run."""
UNPROTECTED = ("real", "mixed", "nothing", *LAST)
"""Words with which another model has seen the patients, or no patches are made."""
RIVALS = (LEARNED, LAST, OTHERS, *(("protected", word) for word in UNPROTECTED))
EPSILONS = {"tiny": (6,), "quick": (1, 6, 60), "cpu": (1, 6, 12, 20, 60), "paper": (1, 6, 12, 20, 60)}
ALONE = (6, 60)
"""Published budgets of the last training on synthetic patches only, among those of a variant."""
OF_POOL = 1.0
"""Epsilon of the generator alone, if it protects the patients."""
DELTA = 1e-4
OPEN = "without_privacy"
PER_CLASS = {**DRAWN, "cpu": DRAWN["paper"]}
"""Variant -> drawn patches per class; the published number in variants for real patches."""
PUBLISHED = {1: 0.661, 6: 0.677, 12: 0.688, 20: 0.697, 60: 0.712}
WORK = "Osuala et al. 2024, of the last training alone"


def get_config(variant=None):
    size, extras = variants.parse(variant, (*LEARNED, *LAST, *OTHERS), SIZES, rivals=RIVALS)
    learned = next(iter(extras & set(LEARNED)), "synthetic")
    last = next(iter(extras & set(LAST)), "")
    made = next(iter(extras & set(READY)), "samples")
    unit: Unit = "patient" if "protected" in extras else "image"
    read = {"synthetic": (made,), "real": ("patches",), "mixed": ("patches", made), "nothing": ()}[learned]
    taught, drawn = bool(read), made == "samples" and (made in read or bool(last))
    data = {"patches": SourceSpec(patches(size, seed=5))}
    recipes: dict[str, Any] = {}
    stages: dict[str, Any] = {}
    if made in read or last:
        data[made] = {"published": stand_in(size), "drawn": ready()}.get(made, SourceSpec("stage:samples"))
    if size == "cpu" or unit == "patient":
        data["public"] = SourceSpec(patches(size, seed=6))
    if drawn:
        kind = {"denoiser": "denoiser", "protected": "pool"}.get(next(iter(extras & set(OTHERS)), ""), "gan")
        recipes[kind], stages[kind] = generator(size, kind)
        stages["samples"] = SampleStage(model=kind, per_class=PER_CLASS[size])
    if taught:
        recipes["first"] = first(size, read)
        stages["first"] = TrainClassifierStage(train_on=read, validate_on="patches", recipe="first")
    shown = {"beside": ("patches", made), "alone": (made,), "": ("patches",)}[last]
    common: dict[str, Any] = {"train_on": shown, "validate_on": "patches"}
    spent = [e for e in EPSILONS[size] if last != "alone" or e in ALONE]
    for name, epsilon in {OPEN: 0.0, **{f"epsilon_{e}": float(e) for e in spent}}.items():
        exposed = epsilon > 0 and (taught or bool(last)) and unit == "image"
        if size == "cpu":
            network = "first" if taught else ""
            stages[name] = FitHeadStage(
                **common, network=network, public=("public",), epsilon=epsilon, unit=unit, exposed=exposed
            )
        else:
            recipes[name] = last_layer(size, epsilon, taught, published_count(shown), unit)
            start = "first" if taught else ""
            stages[name] = TrainClassifierStage(**common, init_from=start, recipe=name, exposed=exposed)
    if size == "cpu":
        recipes["head"] = head(taught)
    stages["evaluate"] = EvaluateClassifiersStage(
        models=tuple(name for name in stages if name not in ("gan", "denoiser", "pool", "samples")),
        on="patches",
        published=tuple((WORK, float(e), auroc) for e, auroc in PUBLISHED.items()) if size in ("cpu", "paper") else (),
        bootstrap=200 if size == "tiny" else 2000,
    )
    return variants.experiment("private_swin", data={"on_error": "stop", **data}, **recipes, stages=stages)


# ---- Data ------------------------------------------------------------------------------------------------------------


def patches(size, seed):
    """The embedded patches at the size of a variant."""
    pixels, count = PHANTOMS["quick" if size == "cpu" else size]
    return f"phantom_patches:size={pixels},count={count},healthy_fraction=0.1,seed={seed}"


def stand_in(size):
    """A placeholder for patches that another program made from the training patients, until their path is given."""
    return SourceSpec(patches(size, seed=9), made_from=("patches",))


def ready():
    """Patches of an earlier run, which are assumed to be made from `patches` without protection. If their generator was
    private, or saw only other people, set made_from=()."""
    return SourceSpec("coco:drawn/synthetic.json", made_from=("patches",))


def published_count(names):
    """Published patches of the data sources: 1,104 real ones, 3,000 synthetic ones."""
    return (1104 if "patches" in names else 0) + (3000 if set(names) - {"patches"} else 0)


# ---- Recipes ---------------------------------------------------------------------------------------------------------


def generator(size, kind):
    """(recipe, stage) of the generator."""
    common: dict[str, Any] = {"train_on": ("patches",), "validate_on": "patches"}
    if kind == "pool":
        recipe = private_generator.pool("small" if size == "cpu" else size)
        return recipe, FitPoolStage(**common, public=("public",), epsilon=OF_POOL, delta=DELTA)
    of_kind, stage = {"gan": (gan, TrainGeneratorStage), "denoiser": (denoiser, TrainDenoiserStage)}[kind]
    found = of_kind("quick" if size == "cpu" else size)
    return variants.merge(found, {"steps": 600}) if size == "cpu" else found, stage(**common)


def first(size, read):
    """The recipe of the network that is trained on synthetic patches."""
    if size != "cpu":
        recipe = network(size)
        if size == "paper":
            recipe["steps"] = published_steps(published_count(read))
        return recipe
    changes = {
        "size": 128,
        "test_symmetries": False,
        "steps": 200,  # 60 are too few: the network is then at chance on real patches
        "images": {"batch_size": 32},
        "schedule": {"warmup_steps": 30},
        "eval_every": 100,
        "checkpoint_every": 200,
    }
    return variants.merge(network("small"), changes)


def last_layer(size, epsilon, frozen, count, unit):
    """The recipe of a last training by steps. frozen: whether only the class layer is trained. count: number of
    published training patches. unit: of protection."""
    recipe = network(size)
    recipe["model"]["drop_path"] = 0.0
    if frozen or size == "paper":
        recipe["optimizer"]["frozen"] = HEAD_ONLY
    if size == "quick" and frozen:  # the rate for all layers hardly changes a new one
        variants.merge(recipe, {"schedule": {"base": 3e-3}})
    if size == "paper":
        recipe["steps"] = published_steps(count)
        recipe["images"]["batch_size"] = round(count / -(-count // FULL))  # an epoch has 9, 24 or 33 batches
    if epsilon:
        accountant: Any = "rdp" if size == "paper" else "pld"
        recipe["privacy"] = variants.settings(Privacy(epsilon=epsilon, delta=DELTA, unit=unit, accountant=accountant))
    return recipe


def head(taught):
    """The recipe of a linear head on frozen features: of `first`, or of public weights and scattering."""
    settings = Search(features=("first",) if taught else ("lite0", "scattering"), components=(32, 96), draws=3)
    features = {"lite0": NetworkFeatures(size=128), "scattering": ScatteringFeatures()}
    own = {"first": NetworkFeatures(size=128)} if taught else {}
    return HeadRecipe(centre=CROPS, features=own | features, search=settings, draws=5)
