"""Folders of diffusers: every layout of them is read, one is written, and what does not fit is said."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from rich.console import Console

from elk_jax.weights import diffusers, diffusers_folder, model_folder, stable_diffusion
from elk_jax.weights.tokenizer import Tokenizer
from tests.refusals import refused

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("unet", "vae", "text_encoder")
STEM = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(scope="module")
def model(tiny_parts, vocabulary):
    """A small inpainter of random numbers, half of which float16 holds exactly."""
    tokenizer = Tokenizer(vocabulary["vocab"], tuple(map(tuple, vocabulary["merges"])))
    empty = stable_diffusion.StableDiffusion({}, tiny_parts, tokenizer)
    configs = {"unet": empty.unet, "vae": empty.autoencoder, "text_encoder": empty.text}
    random = np.random.RandomState(0)
    drawn = lambda shape: random.randint(-99, 99, shape) / np.float32(256)
    params = {
        part: model_folder.nest({path: drawn(shape) for path, shape in shapes.items()})
        for part, shapes in stable_diffusion.parameter_shapes(configs).items()
    }
    return stable_diffusion.StableDiffusion(params, tiny_parts, tokenizer)


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusers") / "sd"
    return diffusers_folder.write_pipeline(folder, model.params, model.parts, model.tokenizer)


@pytest.fixture
def folder(written, tmp_path):
    """A copy to change."""
    return shutil.copytree(written, tmp_path / "sd")


def read(path, **options):
    variant = options.pop("variant", None)
    return stable_diffusion.from_pipeline(diffusers_folder.read_pipeline(path, variant), where=path, **options)[0]


def equal(one, other):
    ours, theirs = model_folder.flatten(one), model_folder.flatten(other)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def weights_of(folder, part):
    return folder / part / f"{STEM[part]}.safetensors"


def change(folder, part, edit):
    """The part's tensors, edited in place by `edit(tensors)`."""
    path = weights_of(folder, part)
    tensors = safetensors.numpy.load_file(path)
    edit(tensors)
    safetensors.numpy.save_file(tensors, path)


def set_config(folder, part, **changes):
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip_is_exact(model, written, tmp_path):
    found = read(written)
    assert equal(found.params, model.params)
    assert found.parts == model.parts and found.tokenizer == model.tokenizer
    stable_diffusion.save(tmp_path / "ours", found)
    again = stable_diffusion.load(tmp_path / "ours")
    assert equal(again.params, model.params) and again.parts == model.parts and again.tokenizer == model.tokenizer
    exported = stable_diffusion.export_folder(tmp_path / "ours", tmp_path / "out", console=Console(quiet=True))
    for path in (p for p in written.rglob("*") if p.is_file()):
        assert (exported / path.relative_to(written)).read_bytes() == path.read_bytes()


def test_written_names_are_diffusers_names(written):
    names = {part: set(safetensors.numpy.load_file(weights_of(written, part))) for part in PARTS}
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0.weight" in names["unet"]
    assert {"time_embedding.linear_1.bias", "up_blocks.1.attentions.1.norm.weight"} < names["unet"]
    assert "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.bias" in names["unet"]
    assert {"encoder.mid_block.attentions.0.to_q.bias", "post_quant_conv.weight"} < names["vae"]
    assert "text_model.encoder.layers.0.self_attn.q_proj.weight" in names["text_encoder"]
    assert "text_model.embeddings.position_embedding.weight" in names["text_encoder"]


def command(script, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    line = [sys.executable, str(ROOT / "launch" / script), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False)


def test_commands(written, tmp_path):
    ours, out = tmp_path / "ours", tmp_path / "out"
    done = command("import_weights.py", "--format=diffusers", f"--input={written}", f"--output={ours}", "--names")
    assert done.returncode == 0, done.stderr
    for part in ("conv_in.weight", "8x9x3x3", "3x3x9x8", "StableDiffusionInpaintPipeline: 9 input channels"):
        assert part in done.stdout, part
    done = command("export_weights.py", f"--model={ours}", f"--output={out}")
    assert done.returncode == 0, done.stderr
    assert "load it with StableDiffusionInpaintPipeline.from_pretrained" in done.stdout
    assert weights_of(out, "unet").read_bytes() == weights_of(written, "unet").read_bytes()
    with refused("params", where=written):
        stable_diffusion.export_folder(written, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


# ---- Layouts of folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_convolutions", [False, True])
def test_older_names_of_the_autoencoder(model, folder, as_convolutions):
    def age(tensors):
        for name in [name for name in tensors if ".attentions." in name]:
            tensor = tensors.pop(name)
            if as_convolutions and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
            for new, old in OLD.items():
                name = name.replace(f".{new}.", f".{old}.")
            tensors[name] = tensor

    change(folder, "vae", age)
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in safetensors.numpy.load_file(weights_of(folder, "vae"))
    assert equal(read(folder).params, model.params)


def test_names_of_newer_transformers_and_numbers_of_places(model, folder):
    def rename(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("text_model.")] = tensors.pop(name)
        tensors["embeddings.position_ids"] = np.arange(77)[None]

    change(folder, "text_encoder", rename)
    assert equal(read(folder).params, model.params)


def shard(folder, part, index_name, shard_name):
    path = weights_of(folder, part)
    tensors = safetensors.numpy.load_file(path)
    path.unlink()
    where = {name: shard_name.format(i % 2 + 1) for i, name in enumerate(sorted(tensors))}
    for file in set(where.values()):
        mine = {name: tensor for name, tensor in tensors.items() if where[name] == file}
        safetensors.numpy.save_file(mine, folder / part / file)
    (folder / part / index_name).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_shards(model, folder):
    shard(
        folder, "unet", "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model-0000{}-of-00002.safetensors",
    )  # fmt: skip
    shard(folder, "text_encoder", "model.safetensors.index.fp16.json", "model.fp16-0000{}-of-00002.safetensors")
    assert equal(read(folder).params, model.params)
    (folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with refused(where="00002-of-00002.safetensors"):
        read(folder)


@pytest.mark.parametrize(
    "weight_map, word",
    [
        ({"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"}, "../vae"),
        ({"no.such.tensor": "part.safetensors"}, "no.such.tensor"),
        ({}, "weight_map"),
    ],
)
def test_broken_index_of_shards(folder, weight_map, word):
    weights_of(folder, "unet").rename(folder / "unet" / "part.safetensors")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with refused(word, where=index):
        read(folder)


def test_half_precision_variants(model, folder):
    for part in PARTS:
        path = weights_of(folder, part)
        half = {name: tensor.astype(np.float16) for name, tensor in safetensors.numpy.load_file(path).items()}
        safetensors.numpy.save_file(half, path.with_name(f"{STEM[part]}.fp16.safetensors"))
    pipeline = diffusers_folder.read_pipeline(folder)
    assert pipeline.files["unet"] == "unet/diffusion_pytorch_model.safetensors"  # full precision first
    assert diffusers_folder.read_pipeline(folder, "fp16").tensors["unet"]["conv_in.weight"].dtype == np.float16
    for part in PARTS:
        weights_of(folder, part).unlink()
    found = read(folder)
    assert equal(found.params, model.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {np.dtype(np.float32)}
    with refused("_model.ema.safetensors", "_model.fp16.safetensors", "--variant", where="unet"):
        read(folder, variant="ema")


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_the_number_format_of_transformers_is_not_that_of_the_computation(model, folder, tmp_path, stored):
    """It is what transformers loads the weights as, so an export states its own."""
    set_config(folder, "text_encoder", dtype=stored, torch_dtype=stored)
    found = read(folder)
    assert found.text == model.text and found.text.dtype == "float32"
    for dtype in ("float32", "float16"):
        out = diffusers_folder.write_pipeline(tmp_path / dtype, found.params, found.parts, found.tokenizer, dtype)
        written = json.loads((out / "text_encoder" / "config.json").read_text())
        assert (written["dtype"], written["torch_dtype"]) == (dtype, dtype)


def test_a_variant_of_one_part_is_read_beside_the_plain_others(folder):
    path = weights_of(folder, "unet")
    shutil.copy(path, path.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    found = diffusers_folder.read_pipeline(folder, "non_ema").files
    assert found["unet"].endswith(".non_ema.safetensors") and found["vae"] == "vae/diffusion_pytorch_model.safetensors"
    with refused("_model.fp16.safetensors is missing", where="unet"):
        diffusers_folder.read_pipeline(folder, "fp16")


def test_pickled_weights(model, folder, tmp_path):
    path = weights_of(folder, "text_encoder")
    tensors = safetensors.numpy.load_file(path)
    path.unlink()
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(pickle.dumps(tensors, 2))
    assert equal(read(folder).params, model.params)

    class Hostile:
        def __reduce__(self):
            return print, ("run",)

    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Hostile()}, 2))
    with refused("print", where="pytorch_model.bin"):
        read(folder)


def test_float16_export(model, tmp_path):
    out = diffusers_folder.write_pipeline(tmp_path / "half", model.params, model.parts, model.tokenizer, "float16")
    assert safetensors.numpy.load_file(weights_of(out, "vae"))["quant_conv.bias"].dtype == np.float16
    assert equal(read(out).params, model.params)
    text = model.params["text_encoder"]  # the last part that is written
    large = {**model.params, "text_encoder": jax.tree.map(lambda leaf: np.full(leaf.shape, 1e6), text)}
    with refused("float16", "--dtype=float32", where="text_encoder"):
        diffusers_folder.write_pipeline(tmp_path / "large", large, model.parts, model.tokenizer, "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half"]  # nothing half-written
    (tmp_path / "large" / ".partial" / "unet").mkdir(parents=True)  # as a killed export leaves it
    out = diffusers_folder.write_pipeline(tmp_path / "large", large, model.parts, model.tokenizer)
    assert (out / "model_index.json").is_file() and not (out / ".partial").exists()
    with refused("empty", where=out):
        diffusers_folder.write_pipeline(out, model.params, model.parts, model.tokenizer)


# ---- From text-to-image to inpainting -------------------------------------------------------------------------------


@pytest.fixture
def text_to_image(folder):
    def narrow(tensors):
        tensors["conv_in.weight"] = np.ascontiguousarray(tensors["conv_in.weight"][:, :4])

    change(folder, "unet", narrow)
    set_config(folder, "unet", in_channels=4)
    return folder


def test_new_input_channels_change_nothing(text_to_image):
    narrow, wide = read(text_to_image), read(text_to_image, inpainting=True)
    assert (narrow.unet.in_channels, wide.unet.in_channels) == (4, 9)
    kernel = wide.params["unet"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :, :4], narrow.params["unet"]["conv_in"]["kernel"])
    assert kernel.shape == (3, 3, 9, 8) and not kernel[:, :, 4:].any()
    for tree in (narrow.params, wide.params):
        del tree["unet"]["conv_in"]["kernel"]
    assert equal(narrow.params, wide.params)


def test_an_inpainter_stays_as_it_is(model, folder):
    assert equal(read(folder, inpainting=True).params, model.params)


def test_four_channels_called_nine(text_to_image):
    set_config(text_to_image, "unet", in_channels=9)
    with refused("conv_in.weight (8, 4, 3, 3)", 9, "--inpainting", where=text_to_image / "unet" / "config.json"):
        read(text_to_image)


def test_input_that_is_no_unets():
    with refused("conv_in.weight", where="unet"):
        diffusers.widen_input({"a": np.zeros(1)}, 9)
    with refused("conv_in.weight (8, 12, 3, 3)", 9, where="unet"):
        diffusers.widen_input({"conv_in.weight": np.zeros((8, 12, 3, 3))}, 9)


# ---- What does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part, changes, where, words",
    [
        ("unet", {"cross_attention_dim": 20}, "sd/unet", ["attn2.to_k.weight", "to_k/kernel (12, 8)", "(20, 8)"]),
        ("vae", {"layers_per_block": 2}, "sd/vae", ["up_blocks_0/resnets_2/"]),
        ("unet", {"use_linear_projection": True}, "sd/unet", ["proj_in/kernel (1, 1, 8, 8)", "(8, 8)"]),
        ("unet", {"block_out_channels": [8, 24]}, "sd/unet", ["(16,)"]),
        ("unet", {"addition_embed_type": "text_time"}, "sd/unet/config.json", ["addition_embed_type", "'text_time'"]),
        ("unet", {"addition_embed_type_num_heads": 32}, "sd/unet/config.json", ["addition_embed_type_num_heads", 32]),
        ("unet", {"flip_sin_to_cos": False}, "sd/unet/config.json", ["flip_sin_to_cos", "False"]),
        ("unet", {"mid_block_type": None}, "sd/unet/config.json", ["mid_block_type", "None"]),
        ("unet", {"up_block_types": None}, "sd/unet/config.json", ["up_block_types"]),
        ("unet", {"layers_per_block": 10**6}, "sd/unet/config.json", ["layers_per_block"]),
        ("unet", {"norm_eps": float("inf")}, "sd/unet/config.json", ["infinite"]),
        ("vae", {"down_block_types": 5}, "sd/vae/config.json", ["down_block_types"]),
        ("vae", {"norm_num_groups": 3}, "sd/vae/config.json.norm_num_groups", [3, 4]),
        ("unet", {"in_channels": "nine"}, "sd/unet/config.json", ["in_channels", "'nine'"]),
        ("unet", {"attention_head_dim": 3}, "sd/unet/config.json.attention_head_dim", [8, 3, "heads"]),
        ("unet", {"down_block_types": ["AttnDownBlock2D"] * 2}, "config.json.down_block_types", ["AttnDownBlock2D"]),
        ("unet", {"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "sd/unet/config.json", ["CrossAttnUpBlock2D"]),
        ("vae", {"latent_channels": 16}, "sd/vae", ["decoder.conv_in.weight", "(3, 3, 16, 8)"]),
        ("vae", {"use_quant_conv": False}, "sd/vae/config.json", ["use_quant_conv", "False"]),
        ("text_encoder", {"model_type": "t5"}, "sd/text_encoder/config.json", ["'t5'"]),
        ("text_encoder", {"hidden_act": "relu"}, "sd/text_encoder/config.json", ["hidden_act", "'relu'"]),
        ("text_encoder", {"num_hidden_layers": 0}, "sd/text_encoder", ["text_model.encoder.layers.0"]),
        ("text_encoder", {"vocab_size": 5}, "sd/text_encoder", ["token_embedding"]),
    ],
)
def test_weights_of_another_architecture(folder, part, changes, where, words):
    set_config(folder, part, **changes)
    with refused(*words, where=where):
        read(folder)


def test_parts_of_different_models(model, folder):
    vocab = dict(model.tokenizer.vocab) | {"another": len(model.tokenizer.vocab)}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocab))
    with refused(535, 534, where=folder / "tokenizer"):
        read(folder)


@pytest.mark.parametrize(
    "path, content, where, word",
    [
        ("model_index.json", None, "", "model_index.json"),
        ("model_index.json", "{", "model_index.json", "JSON"),
        ("model_index.json", "[]", "model_index.json", "object"),
        (
            "model_index.json",
            '{"_class_name": "StableDiffusionXLPipeline"}',
            "model_index.json",
            "StableDiffusionXLPipeline",
        ),
        ("vae/config.json", None, "vae/config.json", "no such file"),
        ("vae/config.json", '{"a": }', "vae/config.json", "JSON"),
        ("scheduler/scheduler_config.json", None, "scheduler/scheduler_config.json", "no such file"),
        ("scheduler/scheduler_config.json", '{"beta_schedule": "wave"}', "scheduler/scheduler_config.json", "'wave'"),
        (
            "scheduler/scheduler_config.json",
            '{"beta_end": 1.5}',
            "scheduler/scheduler_config.json.beta_end",
            1.5,
        ),
        (
            "scheduler/scheduler_config.json",
            '{"_class_name": "FlowMatchEulerDiscreteScheduler"}',
            "scheduler/scheduler_config.json",
            "FlowMatchEulerDiscreteScheduler",
        ),
        (
            "scheduler/scheduler_config.json",
            '{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}',
            "scheduler/scheduler_config.json",
            "algorithm_type",
        ),
        ("tokenizer/merges.txt", None, "tokenizer", "merges.txt"),
        ("vae/diffusion_pytorch_model.safetensors", None, "vae", "diffusion_pytorch_model.safetensors"),
        ("vae/diffusion_pytorch_model.safetensors", "x", "vae/diffusion_pytorch_model.safetensors", "safetensors"),
    ],
)
def test_missing_and_damaged_files(folder, path, content, where, word):
    (folder / path).unlink()
    if content is not None:
        (folder / path).write_text(content)
    with refused(word, where=folder / where):
        read(folder)


def test_import_writes_nothing_on_error(folder, tmp_path):
    change(folder, "vae", lambda tensors: tensors.pop("quant_conv.bias"))
    with refused("quant_conv/bias (8,)", where="sd/vae"):
        stable_diffusion.import_folder(folder, tmp_path / "out", console=Console(quiet=True))
    change(folder, "vae", lambda tensors: tensors.update({"quant_conv.bias": np.full(8, np.nan, "f4")}))
    with refused("NaN", "quant_conv.bias", where="sd/vae"):
        stable_diffusion.import_folder(folder, tmp_path / "out", console=Console(quiet=True))
    assert not (tmp_path / "out").exists()
    with refused("file", where="model_index.json"):
        diffusers_folder.read_pipeline(folder / "model_index.json")


def test_import_tells_what_became_of_every_tensor(folder, tmp_path):
    change(folder, "text_encoder", lambda tensors: tensors.update({"logit_scale": np.ones((), "f4")}))
    console = Console(width=200, record=True, quiet=True)
    with refused("logit_scale ()", "--ignore", where="sd/text_encoder"):
        stable_diffusion.import_folder(folder, tmp_path / "out", console=console)
    console = Console(width=200, record=True, file=io.StringIO())
    stable_diffusion.import_folder(folder, tmp_path / "out", ignore=["logit_scale"], console=console, names=True)
    text = console.export_text()
    for part in (
        "unet: unet/diffusion_pytorch_model.safetensors",
        "down_blocks.0.resnets.0.conv1.weight",
        "down_blocks_0/resnets_0/conv1/kernel",
        "logit_scale",
        "(ignored)",
        "no tensor unused or missing",
        "9 input channels, an inpainter; prediction epsilon",
    ):
        assert part in text, part
    with refused("resnet", where="other"):
        model_folder.save_params(tmp_path / "other", {"a": np.zeros(1)}, {"architecture": "resnet"})
        stable_diffusion.load(tmp_path / "other")
