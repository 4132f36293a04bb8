"""Adapters in files: diffusers' names and layouts, older names, strengths, damaged files."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from elk_jax.diffusion import lora
from elk_jax.errors import UserError
from elk_jax.weights import lora_files

RANDOM = np.random.RandomState(0)
BLOCK = "down_blocks_0/attentions_1/transformer_blocks_0/attn1"


def array(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


PARAMS = {
    "unet": {
        "down_blocks_0": {
            "attentions_1": {"transformer_blocks_0": {"attn1": {"to_out_0": {"kernel": array(6, 4)}}}},
            "resnets_0": {"conv1": {"kernel": array(3, 3, 5, 4)}},
        },
        "time_embedding": {"linear_1": {"kernel": array(3, 3)}},
    },
    "text_encoder": {"encoder": {"layers_0": {"self_attn": {"q_proj": {"kernel": array(4, 4)}}}}},
}
ADAPTERS = {
    "unet": {
        f"{BLOCK}/to_out_0": {"a": array(6, 2), "b": array(2, 4)},
        "down_blocks_0/resnets_0/conv1": {"a": array(45, 2), "b": array(2, 4)},
        "time_embedding/linear_1": {"a": array(3, 2), "b": array(2, 3)},
    },
    "text_encoder": {"encoder/layers_0/self_attn/q_proj": {"a": array(4, 2), "b": array(2, 4)}},
}
OUT = "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1"


def test_names_and_layouts_are_diffusers(tmp_path):
    lora_files.write_lora(tmp_path / "a.safetensors", ADAPTERS, PARAMS)
    tensors = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items() if "lora_A" in name} == {
        f"{OUT}.to_out.0.lora_A.weight": (2, 6),
        "unet.down_blocks.0.resnets.0.conv1.lora_A.weight": (2, 5, 3, 3),
        "unet.time_embedding.linear_1.lora_A.weight": (2, 3),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": (2, 4),
    }
    # peft's sum for a convolution: the kernel's share is B (1x1) after A, here as one kernel [out, in, h, w]
    name = "unet.down_blocks.0.resnets.0.conv1.lora"
    delta = np.einsum("or,rihw->oihw", tensors[f"{name}_B.weight"][:, :, 0, 0], tensors[f"{name}_A.weight"])
    ours = lora.merge(PARAMS["unet"], ADAPTERS["unet"])["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]
    before = PARAMS["unet"]["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]
    np.testing.assert_allclose(ours - before, delta.transpose(2, 3, 1, 0), atol=1e-5)


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_what_is_read_applies_as_what_was_written(tmp_path, alpha):
    lora_files.write_lora(tmp_path / "a.safetensors", ADAPTERS, PARAMS, alpha)
    again = lora_files.read_lora(tmp_path / "a.safetensors")
    for part, layers in ADAPTERS.items():
        assert set(again[part]) == set(layers)
        wanted, found = lora.merge(PARAMS[part], layers, alpha), lora.merge(PARAMS[part], again[part])
        for name in layers:
            a, b = wanted, found
            for word in [*name.split("/"), "kernel"]:
                a, b = a[word], b[word]
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_older_names_and_alphas_are_understood(tmp_path):
    down, up = array(2, 6), array(4, 2)
    names = {
        f"{OUT}.processor.to_out_lora": f"{BLOCK}/to_out_0",
        f"{OUT}.processor.to_q_lora": f"{BLOCK}/to_q",
        f"{OUT}.to_k.lora": f"{BLOCK}/to_k",
    }
    tensors = {f"{name}.{end}.weight": t for name in names for end, t in (("down", down), ("up", up))}
    tensors[f"{OUT}.to_k.alpha"] = np.array(1.0, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "old.safetensors")
    found = lora_files.read_lora(tmp_path / "old.safetensors")["unet"]
    assert set(found) == set(names.values())
    np.testing.assert_array_equal(found[f"{BLOCK}/to_q"]["a"], down.T)
    np.testing.assert_array_equal(found[f"{BLOCK}/to_k"]["b"], up.T / 2)


@pytest.mark.parametrize(
    "tensors, words",
    [
        ({f"{OUT}.to_q.lora_A.weight": (2, 6)}, "has no B"),
        ({"lora_unet_down_blocks_0_to_q.lora_down.weight": (2, 6)}, "called lora_unet"),
        ({"vae.to_q.lora_A.weight": (2, 6)}, "adapter of 'vae'"),
        ({f"{OUT}.to_q.lora_A.weight": (2, 6), f"{OUT}.to_q.lora_B.weight": (4, 3)}, r"\(2, 6\) and \(4, 3\)"),
        ({}, "no adapters"),
    ],
)
def test_files_that_are_no_adapters_are_refused(tmp_path, tensors, words):
    path = tmp_path / "broken.safetensors"
    safetensors.numpy.save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, path)
    with pytest.raises(UserError, match=words):
        lora_files.read_lora(path)
