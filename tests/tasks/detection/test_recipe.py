"""What can be set of detection: every field on the command line, and values that cannot be."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from configs.recipes.detector import detector, small_images
from configs.variants import experiment
from elk_jax import fields
from elk_jax.backbones.resnet import ResNetConfig
from elk_jax.data.augment import NO_AUGMENTATION, Augmentation, Resize
from elk_jax.data.batches.detection import LoaderConfig
from elk_jax.detection.faster_rcnn_config import FasterRCNNConfig
from elk_jax.privacy.settings import Privacy
from elk_jax.tasks.detection.recipe import FIT, DetectionRecipe, EvaluateDetectorsStage, TrainDetectorStage
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import ADAMW
from tests.refusals import refused


def build(**settings) -> DetectionRecipe:
    return fields.build(DetectionRecipe, settings, "config.detector")


@pytest.mark.parametrize("size", ["quick", "tiny", "small", "paper"])
def test_the_configuration_names_every_field(size):
    recipe = experiment("e", detector=detector(size)).detector.to_dict()
    names = lambda kind: {field.name for field in dataclasses.fields(kind)}
    assert set(recipe) == names(DetectionRecipe)
    assert set(recipe["model"]) == names(FasterRCNNConfig)
    assert set(recipe["model"]["backbone"]) == names(ResNetConfig)
    assert set(recipe["optimizer"]) == names(OptimizerConfig)
    assert set(recipe["loader"]) == names(LoaderConfig)
    assert set(recipe["loader"]["augmentation"]) == names(Augmentation)
    assert set(recipe["loader"]["resize"]) == names(Resize) == set(recipe["test_resize"])
    assert dataclasses.asdict(build(**recipe)) == recipe


def test_what_the_configuration_does_not_change_is_the_default():
    recipe, defaults = experiment("e", detector=detector("quick")).detector.to_dict(), OptimizerConfig()
    for name in ("momentum", "nesterov", "b1", "b2", "eps", "no_decay"):
        assert recipe["optimizer"][name] == getattr(defaults, name), name
    for name in ("crop_sides", "min_visible"):
        assert recipe["loader"]["augmentation"][name] == getattr(Augmentation(), name), name
    built, default, changed = build(**recipe), build(model=recipe["model"]), small_images()
    for one, other, names_changed in ((built, default, changed), (built.loader, default.loader, changed["loader"])):
        for field in dataclasses.fields(one):
            if field.name not in names_changed:
                assert getattr(one, field.name) == getattr(other, field.name), field.name


def test_settings_of_a_model_arrive():
    sizes = ((8,), (16,), (32,), (64,), (128,))
    backbone = {"name": "resnet", "depth": 18, "num_classes": 0}
    model = {"name": "faster_rcnn", "anchor_sizes": [list(level) for level in sizes], "backbone": backbone}
    expected = FasterRCNNConfig(anchor_sizes=sizes, backbone=ResNetConfig(depth=18, num_classes=0), num_classes=3)
    assert build(model=model | {"num_classes": 3}).model == expected
    with refused("'dept'", "depth", where="config.detector.model.backbone.dept"):
        build(model={"name": "faster_rcnn", "backbone": {"name": "resnet", "dept": 18}})
    with refused("'yolo'", "faster_rcnn", where="config.detector.model.name"):
        build(model={"name": "yolo"})


def test_a_recipe_serves_several_mixes():
    with refused("'weights'", where="config.detector.loader.weights"):
        build(loader={"weights": (0.5, 0.5)})


def test_testing_takes_nothing_random_from_the_training():
    loader = LoaderConfig(batch_size=4, buckets=((64, 32),), lesion_share=0.7, small_share=0.6, max_boxes=9)
    recipe = DetectionRecipe(loader=loader, optimizer=ADAMW)
    found = recipe.test_loader()
    assert (found.resize, found.augmentation) == (FIT, NO_AUGMENTATION)
    assert (found.batch_size, found.buckets, found.max_boxes) == (4, ((64, 32),), 0)
    assert found.lesion_share is None and found.small_share is None


def test_a_metric_to_choose_by_is_one_that_is_measured():
    with refused("aufroc3", "aufroc_3", where="config.detector.best_metric"):
        build(best_metric="aufroc3")


def test_weights_of_a_mix_are_one_a_source():
    TrainDetectorStage(train_on=("a", "b"), validate_on="a", weights=(3, 1))
    for weights in ((0.5,), (1.5, -0.5), (0.0, 0.0)):
        with refused(where="weights"):
            TrainDetectorStage(train_on=("a", "b"), validate_on="a", weights=weights)


def test_a_criterion_is_one_that_there_is():
    EvaluateDetectorsStage(models=("a",), on="real", criterion="centre_in_box")
    with refused("'iou:x'", where="criterion"):
        EvaluateDetectorsStage(models=("a",), on="real", criterion="iou:x")


PRIVATE = DetectionRecipe(
    plan_anchors=False, loader=LoaderConfig(max_boxes=16, lesion_share=None), privacy=Privacy(epsilon=8.0)
)


@pytest.mark.parametrize(
    "where, change",
    [
        ("plan_anchors", {"plan_anchors": True}),
        ("loader.buckets", {"buckets": (), "resize": Resize(short_sides=(64,))}),
        ("loader.buckets", {"buckets": ((64, 64), (64, 32))}),
        ("loader.max_boxes", {"max_boxes": 0}),
        ("loader.lesion_share", {"lesion_share": 0.5}),
        ("loader.small_share", {"small_share": 0.5}),
        ("loader.augmentation.copy_paste", {"augmentation": Augmentation(copy_paste=0.5)}),
        ("accumulate", {"accumulate": 2}),
    ],
)
def test_a_private_recipe_takes_nothing_from_its_training_data(where, change):
    change = change if hasattr(PRIVATE, next(iter(change))) else {"loader": replace(PRIVATE.loader, **change)}
    replace(PRIVATE, privacy=None, **change)
    with refused(where=where):
        replace(PRIVATE, **change)
