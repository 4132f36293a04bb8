"""Name maps on small detectors whose tensors are made here under each library's names."""

import dataclasses
import io
from functools import partial

import flax.linen as nn
import numpy as np
import pytest
from safetensors.numpy import save_file

from elk_jax.backbones.conv import ConvNorm
from elk_jax.backbones.norms import FrozenBatchNorm
from elk_jax.output import Console
from elk_jax.weights import classifiers, convert, detectors, detectron2, model_folder, resnet, torchvision
from tests.refusals import refused

WIDTH, FPN, CLASSES, FC = 4, 6, 2, 5


def backbone_shapes(stem, norm_of_stem, block, conv, norm, shortcut, shortcut_norm, stem_width=WIDTH):
    """Shapes of a ResNet-18 of width 4 under the names that these templates give; norms are marked by None."""
    shapes = {stem: (stem_width, 3, 7, 7), norm_of_stem: None}
    for stage in range(4):
        for i in range(2):
            out = WIDTH * 2**stage
            first = out if i else out // 2 if stage else stem_width
            at = block.format(stage=stage + 1, caffe=stage + 2, i=i)
            for n, inputs in ((1, first), (2, out)):
                shapes[at + conv.format(n=n)] = (out, inputs, 3, 3)
                shapes[at + norm.format(n=n)] = None
            if first != out:
                shapes[at + shortcut] = (out, first, 1, 1)
                shapes[at + shortcut_norm] = None
    return shapes


def fill(shapes, parts=("weight", "bias", "running_mean", "running_var")):
    """Random tensors; a norm (None) becomes its parts, as wide as the convolution before it."""
    random, tensors, width = np.random.default_rng(0), {}, 0
    for name, shape in shapes.items():
        if shape is not None:
            tensors[name], width = random.normal(size=shape).astype("f4"), shape[0]
            continue
        for part in parts:
            tensors[f"{name}.{part}"] = random.uniform(0.5, 1.5, width).astype("f4")
    return tensors


def heads(shapes):
    """Weights and biases of layers without norm."""
    return {f"{n}.{k}": s if k == "weight" else s[:1] for n, s in shapes.items() for k in ("weight", "bias")}


def torchvision_backbone(prefix="", stem_width=WIDTH):
    return backbone_shapes(
        f"{prefix}conv1.weight", f"{prefix}bn1", prefix + "layer{stage}.{i}.", "conv{n}.weight", "bn{n}",
        "downsample.0.weight", "downsample.1", stem_width,
    )  # fmt: skip


def detectron2_backbone(prefix="", stem_width=WIDTH):
    return backbone_shapes(
        f"{prefix}stem.conv1.weight", f"{prefix}stem.conv1.norm", prefix + "res{caffe}.{i}.", "conv{n}.weight",
        "conv{n}.norm", "shortcut.weight", "shortcut.norm", stem_width,
    )  # fmt: skip


def torchvision_detector(old=False):
    level = "" if old else ".0"
    shapes = {}
    for i in range(4):
        shapes[f"backbone.fpn.inner_blocks.{i}{level}"] = (FPN, WIDTH * 2**i, 1, 1)
        shapes[f"backbone.fpn.layer_blocks.{i}{level}"] = (FPN, FPN, 3, 3)
    shapes["rpn.head.conv" + ("" if old else ".0.0")] = (FPN, FPN, 3, 3)
    shapes |= {"rpn.head.cls_logits": (3, FPN, 1, 1), "rpn.head.bbox_pred": (12, FPN, 1, 1)}
    shapes |= {"roi_heads.box_head.fc6": (FC, FPN * 49), "roi_heads.box_head.fc7": (FC, FC)}
    shapes["roi_heads.box_predictor.cls_score"] = (CLASSES + 1, FC)
    shapes["roi_heads.box_predictor.bbox_pred"] = (4 * CLASSES + 4, FC)
    return fill({**torchvision_backbone("backbone.body."), **heads(shapes)})


def retinanet_detector(old=False, normed=False):
    """old: with the names before 0.13. normed: version 2, whose heads have group norms instead of biases."""
    level, shapes = "" if old else ".0", {}
    for i in range(3):
        shapes[f"backbone.fpn.inner_blocks.{i}{level}"] = (FPN, WIDTH * 2 ** (i + 1), 1, 1)
        shapes[f"backbone.fpn.layer_blocks.{i}{level}"] = (FPN, FPN, 3, 3)
    inputs = 8 * WIDTH if normed else FPN
    shapes |= {"backbone.fpn.extra_blocks.p6": (FPN, inputs, 3, 3), "backbone.fpn.extra_blocks.p7": (FPN, FPN, 3, 3)}
    head = "head.classification_head", "head.regression_head"
    for part in head:
        for i in range(4):
            shapes[f"{part}.conv.{2 * i}" if old else f"{part}.conv.{i}.0"] = (FPN, FPN, 3, 3)
    shapes |= {f"{head[0]}.cls_logits": (9 * (CLASSES + 1), FPN, 3, 3), f"{head[1]}.bbox_reg": (36, FPN, 3, 3)}
    tensors = fill({**torchvision_backbone("backbone.body."), **heads(shapes)})
    if not normed:
        return tensors
    biases = {name for name in tensors if ".conv." in name and name.endswith(".0.bias")}
    norms = {name.replace(".0.bias", ".1") for name in biases}
    scales = {f"{name}.{part}": np.ones(FPN, "f4") for name in norms for part in ("weight", "bias")}
    return {name: tensor for name, tensor in tensors.items() if name not in biases} | scales


def detectron2_detector():
    shapes = {}
    for i in range(4):
        shapes[f"backbone.fpn_lateral{i + 2}"] = (FPN, WIDTH * 2**i, 1, 1)
        shapes[f"backbone.fpn_output{i + 2}"] = (FPN, FPN, 3, 3)
    rpn = "proposal_generator.rpn_head."
    shapes |= {rpn + "conv": (FPN, FPN, 3, 3), rpn + "objectness_logits": (3, FPN, 1, 1)}
    shapes |= {rpn + "anchor_deltas": (12, FPN, 1, 1)}
    shapes |= {"roi_heads.box_head.fc1": (FC, FPN * 49), "roi_heads.box_head.fc2": (FC, FC)}
    shapes["roi_heads.box_predictor.cls_score"] = (CLASSES + 1, FC)
    shapes["roi_heads.box_predictor.bbox_pred"] = (4 * CLASSES, FC)
    tensors = fill({**detectron2_backbone("backbone.bottom_up."), **heads(shapes)})
    return tensors


def run(tensors, file_format, changes=None, drop=(), ignore=(), norm_eps=None):
    foreign = resnet.foreign(tensors, file_format, norm_eps)
    if foreign.backbone_only:
        return classifiers.convert_resnet(foreign, changes, ignore)
    return detectors.convert_foreign(foreign, changes, drop, ignore)


def assert_equal_trees(a, b):
    a, b = model_folder.flatten(a), model_folder.flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def from_torchvision():
    return run(torchvision_detector(), "torchvision")


@pytest.fixture(scope="module")
def from_detectron2():
    return run(detectron2_detector(), "detectron2")


def test_what_is_inferred(from_torchvision, from_detectron2):
    for imported in (from_torchvision, from_detectron2):
        model = imported.model
        assert (model.backbone.depth, model.backbone.width, model.backbone.norm) == (18, WIDTH, "frozen_bn")
        assert (model.fpn_channels, model.num_classes, model.backbone.num_classes) == (FPN, CLASSES, 0)
        assert (model.box_fc_width, model.box_fcs, model.box_convs) == (FC, 2, 0)
        assert imported.absent == ()
    assert (from_torchvision.model.background, from_torchvision.model.roi_aligned) == ("first", False)
    assert (from_detectron2.model.background, from_detectron2.model.roi_aligned) == ("last", True)
    assert from_detectron2.model.anchor_sizes == ((32,), (64,), (128,), (256,), (512,))
    assert from_detectron2.model.backbone.pixel_mean == (103.53, 116.28, 123.675)


def detectron2_buffers(anchors):
    """What older versions of detectron2 write beside the weights; anchors: of a cell, (width, height), per level."""
    half = [np.array(level, "f4") / 2 for level in anchors]
    cells = {f"{detectron2.CELLS}{i}": np.concatenate([-one, one], axis=1) for i, one in enumerate(half)}
    pixels = {"pixel_mean": np.full((3, 1, 1), 127.5, "f4"), "pixel_std": np.full((3, 1, 1), 57.12, "f4")}
    return pixels | cells


def test_settings_beside_the_weights_of_detectron2_are_read(from_detectron2):
    """A detector of other anchors and means has the same shapes: only these tensors tell."""
    root = np.sqrt(3)
    anchors = [[(8 * root * 2**i, 8 / root * 2**i), (8 * 2**i, 8 * 2**i), (8 / root * 2**i, 8 * root * 2**i)]
               for i in range(5)]  # fmt: skip
    buffers = detectron2_buffers(anchors)
    imported = run(detectron2_detector() | buffers, "detectron2")
    assert imported.model.anchor_sizes == ((8,), (16,), (32,), (64,), (128,))
    np.testing.assert_allclose(imported.model.anchor_ratios, (1 / 3, 1, 3), rtol=1e-5)
    assert imported.model.backbone.pixel_mean == (127.5,) * 3 and imported.model.backbone.pixel_std == (57.12,) * 3
    assert set(imported.name_map.ignored) == set(buffers)
    assert_equal_trees(imported.params, from_detectron2.params)
    chosen = {"anchor_sizes": [[1], [2], [3], [4], [5]], "backbone": {"pixel_std": [1, 1, 1]}}
    model = run(detectron2_detector() | buffers, "detectron2", chosen).model
    assert model.anchor_sizes[4] == (5,) and model.backbone.pixel_std == (1, 1, 1)


def test_several_anchor_sizes_of_a_level_are_read():
    cell = [(20, 10), (10, 20), (40, 20), (20, 40)]
    found = detectron2._anchor_settings(detectron2_buffers([cell]))
    np.testing.assert_allclose(found["anchor_sizes"], [(200**0.5, 800**0.5)], rtol=1e-5)
    assert found["anchor_ratios"] == (0.5, 2)


@pytest.mark.parametrize("level", [[(8, 8), (9, 9), (4, 16)], [(8, 8), (16, 4), (4, 16)], [(-8, 8), (16, 4), (4, 16)]])
def test_anchors_that_no_setting_gives_are_refused(level):
    with refused(f"{detectron2.CELLS}1"):
        run(detectron2_detector() | detectron2_buffers([[(8, 8), (16, 4), (2, 32)], level]), "detectron2")


@pytest.mark.parametrize(
    "backbone, file_format", [(torchvision_backbone, "torchvision"), (detectron2_backbone, "detectron2")]
)
def test_a_stem_may_have_a_width_of_its_own(backbone, file_format):
    """As half-width ResNets do, whose stem is whole."""
    imported = run(fill(backbone(stem_width=6)), file_format)
    assert (imported.model.width, imported.model.stem_width) == (WIDTH, 6)
    stem = imported.params["backbone"]["stem"]["conv"]["kernel"]
    assert stem.shape == (7, 7, 3, 6)


@pytest.mark.parametrize(
    "backbone, file_format, mean, std",
    [
        (torchvision_backbone, "torchvision", (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3),
        (detectron2_backbone, "detectron2", (103.53 + 116.28 + 123.675) / 3, 1.0),
    ],
)
def test_a_network_of_one_channel_has_the_mean_of_the_normalisations(backbone, file_format, mean, std):
    tensors = fill(backbone())
    stem = next(name for name, tensor in tensors.items() if tensor.shape[-1] == 7)
    tensors[stem] = tensors[stem][:, :1]
    model = run(tensors, file_format).model
    np.testing.assert_allclose((*model.pixel_mean, *model.pixel_std), (mean, std))
    assert run(tensors, file_format, {"pixel_mean": (0.2,)}).model.pixel_mean == (0.2,)


def test_older_torchvision_names_and_wrappers_of_trainings(from_torchvision):
    assert_equal_trees(run(torchvision_detector(old=True), "torchvision").params, from_torchvision.params)
    for wrapped in ("module.{}", "model.{}", "model._orig_mod.{}", "_orig_mod.module.{}"):
        prefixed = {wrapped.format(name): tensor for name, tensor in torchvision_detector().items()}
        prefixed["n_averaged"] = np.array(3)
        assert_equal_trees(run(prefixed, "torchvision").params, from_torchvision.params)
    parts = {name.replace("body.", "body._orig_mod."): tensor for name, tensor in torchvision_detector().items()}
    assert_equal_trees(run(parts, "torchvision").params, from_torchvision.params)


def test_ignored_tensors_beside_a_wrapped_model_hide_no_prefix(from_torchvision, tmp_path):
    """Checkpoints of Lightning have the weights of a loss beside the model."""
    beside = {"criterion.weight": np.ones(3, "f4")}
    save_file({f"model.{name}": x for name, x in torchvision_detector().items()} | beside, tmp_path / "a.safetensors")
    take = partial(detectors.import_file, tmp_path / "a.safetensors", "torchvision", tmp_path / "out")
    with refused("model.backbone"):
        take()
    imported = take(ignore=["^criterion"])
    assert imported.name_map.ignored == ("criterion.weight",)
    assert_equal_trees(imported.params, from_torchvision.params)
    assert list(convert.strip_wrappers({"model.a": 1, "b": 2, "n_averaged": 3}, ["^b"])) == ["a", "b"]
    with refused("one name"):
        convert.strip_wrappers({"model.a": 1, "a": 2}, ["^a"])


def test_what_no_tensor_shows_is_printed(tmp_path):
    """A file with other anchors or another normalisation is read without an error."""
    shown = []
    anchors = [[(16 * 2**i, 4 * 2**i), (8 * 2**i, 8 * 2**i), (4 * 2**i, 16 * 2**i)] for i in range(5)]
    buffers = detectron2_buffers(anchors)
    for name, more in (("plain", {}), ("told", buffers)):
        tensors = detectron2_detector() | more
        save_file(tensors, tmp_path / f"{name}.safetensors")
        printed = io.StringIO()
        console = Console(file=printed, width=1000)
        detectors.import_file(tmp_path / f"{name}.safetensors", "detectron2", tmp_path / name, console=console)
        shown.append(next(line for line in printed.getvalue().splitlines() if "not shown by the file" in line))
    for part in ("backbone.pixel_mean=(103.53, 116.28, 123.675)", "anchor_sizes=((32.0,)", "box_weights=(10.0"):
        assert part in shown[0]
    assert "box_weights" in shown[1] and "pixel_mean" not in shown[1] and "anchor_sizes" not in shown[1]


@pytest.mark.parametrize("flag", ["drop", "ignore"])
def test_a_pattern_that_is_found_nowhere_is_refused(flag):
    with refused("box_haed", where=f"--{flag}"):
        run(torchvision_detector(), "torchvision", **{flag: ["box_head", "box_haed"]})


@pytest.mark.parametrize("name", ["conv1.weight", "layer1.0.conv1.weight", "layer4.1.bn2.running_var"])
@pytest.mark.parametrize("shape", [(), (0,), (1,) * 9])
def test_tensors_of_other_axes_are_named(name, shape):
    with refused(name):
        run(fill(torchvision_backbone()) | {name: np.zeros(shape, "f4")}, "torchvision")


def test_layouts_mean_the_same_layer():
    random = np.random.default_rng(1)
    kernel = random.normal(size=(5, 3 * 2 * 2))
    region = random.normal(size=(2, 2, 3))  # h w C
    ours = region.reshape(-1) @ convert.chw_to_hwc(2)(kernel)
    np.testing.assert_allclose(ours, kernel @ region.transpose(2, 0, 1).reshape(-1), rtol=1e-12)
    assert convert.pooled_size({"fc": kernel}, "fc", 3) == 2
    for channels in (5, 13):
        with refused("fc", "square"):
            convert.pooled_size({"fc": kernel}, "fc", channels)
    kernel = random.normal(size=(4, 3, 5, 2))
    assert convert.oihw_to_hwio(kernel)[1, 0, 2, 3] == kernel[3, 2, 1, 0]
    assert convert.out_in_to_in_out(kernel[:, :, 0, 0])[2, 3] == kernel[3, 2, 0, 0]


def test_backbones_alone(from_detectron2, from_torchvision):
    for file_format, tensors, whole in (
        ("torchvision", fill(torchvision_backbone()), from_torchvision),
        ("detectron2", fill(detectron2_backbone()), from_detectron2),
    ):
        fc = {"fc.weight": np.ones((10, 32)), "fc.bias": np.zeros(10)}
        imported = run(tensors | fc | {"bn1.num_batches_tracked": np.array(3)}, file_format)
        assert_equal_trees(imported.params["backbone"], whole.params["backbone"])
        assert imported.model == dataclasses.replace(whole.model.backbone, num_classes=imported.model.num_classes)
        kept = file_format == "torchvision"  # detectron2 reads no classifier
        assert ("classifier" in imported.params, imported.model.num_classes) == (kept, 10 if kept else 0)
        assert len(imported.name_map.ignored) == (1 if kept else 3)


def caffe2_backbone():
    shapes = backbone_shapes(
        "conv1_w", "res_conv1_bn", "res{caffe}_{i}_", "branch2{n}_w", "branch2{n}_bn", "branch1_w", "branch1_bn"
    )
    letters = {"branch21": "branch2a", "branch22": "branch2b", ".scale": "_s", ".bias": "_b"}
    tensors = {}
    for name, tensor in fill(shapes, ("scale", "bias")).items():
        for old, new in letters.items():
            name = name.replace(old, new)
        tensors[name] = tensor
    return tensors | {"fc1000_w": np.zeros((10, 32)), "fc1000_b": np.zeros(10)}


def test_caffe2_backbone_with_folded_statistics():
    tensors = caffe2_backbone()
    imported = run(tensors, "detectron2")
    norms = [path for path, _ in imported.name_map.filled]
    assert len(norms) == 2 * 20 and all(path.endswith(("/mean", "/var")) for path in norms)
    layer = imported.params["backbone"]["res3_0"]["shortcut"]["norm"]
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 2 * WIDTH)).astype("f4")
    expected = x * tensors["res3_0_branch1_bn_s"] + tensors["res3_0_branch1_bn_b"]
    np.testing.assert_allclose(FrozenBatchNorm().apply({"params": layer}, x), expected, atol=1e-6)


def test_caffe2_bias_of_the_first_convolution_is_folded():
    tensors = caffe2_backbone()
    bias = np.arange(WIDTH, dtype="f4")
    stem = run(tensors | {"conv1_b": bias}, "detectron2").params["backbone"]["stem"]["conv"]
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype("f4")
    kernel = tensors["conv1_w"].transpose(2, 3, 1, 0)
    plain = nn.Conv(WIDTH, (7, 7), (2, 2), padding=3).apply({"params": {"kernel": kernel, "bias": bias}}, image)
    expected = plain * tensors["res_conv1_bn_s"] + tensors["res_conv1_bn_b"]
    ours = ConvNorm(WIDTH, 7, 2, norm=FrozenBatchNorm).apply({"params": stem}, image)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_other_epsilon_is_folded():
    tensors = {"a.weight": np.float32([2, 3]), "a.running_var": np.float32([0.5, 1e-4])}
    folded = torchvision.fold_eps(tensors, 0.0)
    ours = folded["a.weight"] / np.sqrt(tensors["a.running_var"].astype("f8") + torchvision.EPS)
    np.testing.assert_allclose(ours, tensors["a.weight"] / np.sqrt(tensors["a.running_var"].astype("f8")), rtol=1e-6)
    dead = torchvision_detector()
    dead["backbone.body.bn1.running_var"][0] = 0.0
    with refused("NaN", "backbone.body.bn1.weight"):
        run(dead, "torchvision", norm_eps=0.0)


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_float32_are_infinite_and_refused_in_one_line():
    tensors = torchvision_detector()
    tensors["backbone.body.bn1.weight"] = np.full(WIDTH, 1e300)
    with refused("infinity", "backbone.body.bn1.weight"):
        run(tensors, "torchvision")


def changed(remove=(), add=None, rename=None):
    tensors = {name: tensor for name, tensor in torchvision_detector().items() if name not in remove}
    tensors |= add or {}
    return {(rename or {}).get(name, name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "tensors, parts",
    [
        (changed(remove=["rpn.head.conv.0.0.bias"]), ["rpn/conv1/bias (6,)", "--drop"]),
        (changed(add={"mask.weight": np.zeros((2, 3))}), ["mask.weight (2, 3)", "--ignore"]),
        (
            changed(add={"rpn.head.cls_logits.bias": np.zeros(4, "f4")}),
            ["rpn.head.cls_logits.bias", "rpn/objectness/bias (4,)", "(3,)"],
        ),
        (changed(add={"rpn.head.cls_logits.weight": np.zeros(4, "f4")}), ["rpn/objectness/kernel (4,)"]),
        (
            changed(add={"rpn.head.conv.bias": np.zeros(FPN, "f4")}),
            ["rpn.head.conv.bias", "rpn.head.conv.0.0.bias", "rpn/conv1/bias"],
        ),
        (changed(add={"rpn.head.cls_logits.bias": np.float32([0, np.nan, 0])}), ["NaN", "rpn.head.cls_logits.bias"]),
        (changed(remove=["backbone.body.layer4.1.conv1.weight"]), ["ResNet", "[2, 2, 2, 1]"]),
        ({"a": np.zeros(3)}, ["backbone.body.layer1.0.conv1.weight", "a (3,)"]),
        ({}, ["backbone.body.layer1.0.conv1.weight"]),
    ],
)
def test_nothing_is_left_over_or_missing_silently(tensors, parts):
    with refused(*parts):
        run(tensors, "torchvision")


def test_wrong_format_is_said():
    with refused("backbone.bottom_up", "--format"):
        run(torchvision_detector(), "detectron2")
    with refused("backbone.body", "--format"):
        run(detectron2_detector(), "torchvision")
    with refused("--norm_eps", "torchvision"):
        run(detectron2_detector(), "detectron2", norm_eps=0.0)


def test_wrong_depth_is_said(from_torchvision):
    with refused("backbone/res2_2/conv1/kernel (3, 3, 4, 4)"):
        run(torchvision_detector(), "torchvision", {"backbone": {"depth": 34}})
    with refused("colour"):
        run(torchvision_detector(), "torchvision", {"colour": 3})


def test_drop_and_ignore(from_torchvision):
    tensors = torchvision_detector() | {"roi_heads.mask_head.weight": np.zeros(3)}
    drop, ignore = ["box_head/(class_logits|box_deltas)"], [r"^roi_heads\.mask_head"]
    imported = run(tensors, "torchvision", {"num_classes": 5}, drop, ignore)
    assert len(imported.name_map.dropped) == 4 and imported.absent == tuple(drop)
    assert "roi_heads.mask_head.weight" in imported.name_map.ignored
    assert set(imported.params["box_head"]) == {"fc1", "fc2"}
    assert_equal_trees(imported.params["backbone"], from_torchvision.params["backbone"])


def test_group_norm_and_convolutions_in_heads():
    whole = detectron2_detector()
    tensors = {name: t for name, t in whole.items() if "running_" not in name and "box_head" not in name}
    for i in (1, 2):
        tensors[f"roi_heads.box_head.conv{i}.weight"] = np.ones((FPN, FPN, 3, 3), "f4")
        tensors |= {f"roi_heads.box_head.conv{i}.norm.{k}": np.ones(FPN, "f4") for k in ("weight", "bias")}
    tensors["roi_heads.box_head.fc1.weight"] = np.ones((FC, FPN * 49), "f4")
    tensors["roi_heads.box_head.fc1.bias"] = np.ones(FC, "f4")
    model = run(tensors, "detectron2", {"norm_groups": 2, "backbone": {"norm_groups": 2}}).model
    assert (model.backbone.norm, model.box_norm, model.box_convs, model.box_fcs) == ("gn", "gn", 2, 1)


def test_retinanets_of_both_versions_and_older_names():
    first = run(retinanet_detector(), "torchvision", {"norm_groups": 2})
    assert (first.model.name, first.model.num_classes, first.model.fpn_top) == ("retinanet", CLASSES, "p5")
    assert (first.model.backbone.norm, first.model.head_norm, first.model.box_loss) == ("frozen_bn", "none", "l1")
    assert_equal_trees(run(retinanet_detector(old=True), "torchvision").params, first.params)
    second = run(retinanet_detector(normed=True), "torchvision", {"norm_groups": 2})
    assert (second.model.fpn_top, second.model.head_norm, second.model.box_loss) == ("c5", "gn", "giou")
    assert second.model.backbone.norm == "affine_bn"
    assert second.params["class_head"]["conv4"]["norm"]["bias"].shape == (FPN,)
    with refused("fpn/p6/kernel"):
        run(retinanet_detector(normed=True), "torchvision", {"norm_groups": 2, "fpn_top": "p5"})
    for normed, inputs, top in ((False, 8 * WIDTH, "c5"), (True, FPN, "p5")):
        p6 = {"backbone.fpn.extra_blocks.p6.weight": np.zeros((FPN, inputs, 3, 3), "f4")}
        assert run(retinanet_detector(normed=normed) | p6, "torchvision", {"norm_groups": 2}).model.fpn_top == top
    lacking = {name: tensor for name, tensor in retinanet_detector().items() if "extra_blocks.p7" not in name}
    with refused("fpn/p7/bias"):
        run(lacking, "torchvision")
    for outputs in (35, 0):
        odd = {"head.regression_head.bbox_reg.weight": np.zeros((outputs, FPN, 3, 3), "f4")}
        with refused(f"{outputs} for boxes"):
            run(retinanet_detector() | odd, "torchvision")
