"""The measured program: an inpainting U-Net with its compiled training step and sampling, on random latents.

Shapes: B batch, h w size of the latents (pixels / 8), T tokens, D channels of the text.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks import measure
from elk_jax.diffusion import text_encoder, unet
from elk_jax.diffusion.attention import Implementation
from elk_jax.diffusion.losses import denoising_loss
from elk_jax.diffusion.samplers import SamplerConfig, classifier_free, sample
from elk_jax.diffusion.schedule import Schedule, add_noise, make_schedule, target
from elk_jax.diffusion.text_encoder import CLIPTextEncoder, TextConfig
from elk_jax.diffusion.unet import WITH_ATTENTION, WITHOUT, UNet2DCondition, UNetConfig
from elk_jax.errors import UserError
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Model
from elk_jax.training.optimizer import OptimizerConfig
from elk_jax.training.recipe import TrainingRecipe
from elk_jax.training.schedules import Constant
from elk_jax.training.step.gradient import gradient
from elk_jax.training.step.step import Program, on_mesh

FACTOR = 8
"""Pixels per latent."""
TOKENS = 77
PROGRAMS = ("train", "sampling")
RECIPE = TrainingRecipe(
    optimizer=OptimizerConfig(name="adamw", weight_decay=1e-2, clip_norm=1.0), schedule=Constant(base=1e-6)
)
"""As ELK fine-tunes Stable Diffusion."""
MODELS = {
    "sd15": (UNetConfig(in_channels=9), TextConfig()),
    "small": (
        UNetConfig(
            in_channels=9,
            down_block_types=(WITH_ATTENTION, WITH_ATTENTION, WITHOUT),
            block_out_channels=(64, 128, 128),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=128,
        ),
        TextConfig(hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4),
    ),
    "tiny": (  # for tests
        UNetConfig(
            in_channels=9,
            down_block_types=(WITH_ATTENTION,),
            block_out_channels=(8,),
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=8,
            norm_num_groups=4,
        ),
        TextConfig(vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2),
    ),
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """size: of the images, in pixels. steps, guidance: of sampling. with_text: the text encoder is trained as well."""

    model: str = "sd15"
    size: int = 512
    batch: int = 1
    dtype: str = "float32"
    remat: bool = False
    attention: Implementation = "auto"
    steps: int = 50
    guidance: float = 2.0
    with_text: bool = False

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UserError(f"unknown model '{self.model}'", where="--model", todo=f"give one of {', '.join(MODELS)}")
        halvings = 2 ** (len(MODELS[self.model][0].block_out_channels) - 1)
        if self.size < FACTOR * halvings or self.size % (FACTOR * halvings):
            raise UserError(f"size is {self.size}", where="--size", todo=f"give a multiple of {FACTOR * halvings}")

    @property
    def unet(self) -> UNetConfig:
        return dataclasses.replace(MODELS[self.model][0], dtype=self.dtype, remat=self.remat, attention=self.attention)

    @property
    def text(self) -> TextConfig:
        return dataclasses.replace(MODELS[self.model][1], dtype=self.dtype, remat=self.remat, attention=self.attention)

    @property
    def noise(self) -> Schedule:
        return make_schedule()


def random_batch(work: Workload, seed: int = 0) -> dict[str, np.ndarray]:
    """Latents, masks, noise, time steps and text for one step, the same for both sides."""
    random, side = np.random.RandomState(seed), work.size // FACTOR
    latents = (work.batch, side, side, 4)
    mask = np.zeros((*latents[:3], 1), np.float32)
    mask[:, side // 4 : side // 2, side // 4 : side // 2] = 1
    batch: dict[str, np.ndarray] = {
        **{name: random.standard_normal(latents).astype(np.float32) for name in ("latents", "masked", "noise")},
        "mask": mask,
        "t": random.randint(0, 1000, work.batch).astype(np.int32),
    }
    text = (work.batch, TOKENS, work.unet.cross_attention_dim or 0)
    batch |= {name: random.standard_normal(text).astype(np.float32) for name in ("text", "negative")}
    if work.with_text:
        batch["tokens"] = random.randint(0, work.text.vocab_size, (work.batch, TOKENS)).astype(np.int32)
    return batch


def init(work: Workload, rng: jax.Array) -> dict[str, Any]:
    params = {"unet": unet.init(work.unet, rng)}
    return {**params, "text_encoder": text_encoder.init(work.text, rng)} if work.with_text else params


def loss(work: Workload, params: Any, batch: Mapping[str, jax.Array], rng: Any = None) -> tuple[jax.Array, dict]:
    """Squared error of the predicted noise, as in fine-tuning; noise and time steps are given."""
    text = batch["text"]
    if work.with_text:
        text = _apply(CLIPTextEncoder(work.text), params["text_encoder"], batch["tokens"])
    noisy = add_noise(work.noise, batch["latents"], batch["noise"], batch["t"])
    seen = jnp.concatenate([noisy, batch["mask"].astype(noisy.dtype), batch["masked"]], -1)
    found = _apply(UNet2DCondition(work.unet), params["unet"], seen, batch["t"], text)
    value, _ = denoising_loss(found, target(work.noise, batch["latents"], batch["noise"], batch["t"]))
    return value, {}


def paint(work: Workload, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Latents [B, h, w, 4] by DPM-Solver++ 2M with guidance, starting from the batch's noise."""

    def denoise(x: jax.Array, t: jax.Array, condition: Any) -> jax.Array:
        seen = jnp.concatenate([x, condition["mask"].astype(x.dtype), condition["masked"]], -1)
        return _apply(UNet2DCondition(work.unet), params, seen, t, condition["text"])

    wanted = {name: batch[name] for name in ("mask", "masked", "text")}
    guided = classifier_free(denoise, wanted, {**wanted, "text": batch["negative"]}, work.guidance)
    return sample(guided, work.noise, SamplerConfig(steps=work.steps), batch["noise"])


def _apply(model: nn.Module, params: Any, *inputs: jax.Array) -> Any:
    return model.apply({"params": params}, *inputs)


def training(work: Workload, mesh: Mesh | None = None) -> Program:
    """The training of the loop on a mesh, by default of one device; nothing is computed."""
    mesh = meshes.make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    model = Model(
        init=lambda rng: init(work, rng),
        loss=lambda params, _, batch, rng, map_images: loss(work, params, batch, rng),
        predict=lambda params, _, batch, map_images: {"latents": paint(work, params["unet"], batch)},
        per_example=True,
    )
    return on_mesh(gradient(model, RECIPE, mesh), mesh)


def fine_tuning_memory(work: Workload) -> dict[str, Any]:
    """The memory of one update, estimated by the compiler for this kind of device; nothing is run or allocated."""
    program = training(work)
    batch = jax.eval_shape(lambda: {name: jnp.asarray(x) for name, x in random_batch(work).items()})
    start = time.perf_counter()
    # the CPU compiler schedules for parallelism by default, the GPU compiler for little memory
    frugal = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    lowered = program.update.lower(program.state, {}, batch)
    compiled = lowered.compile(frugal if jax.default_backend() == "cpu" else None)
    sizes = compiled.memory_analysis()
    parts = program.state.params.items()
    count = {name: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(part)) for name, part in parts}
    return {
        "parameters": count,
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.state)),
        "temporary_bytes": None if sizes is None else int(sizes.temp_size_in_bytes),
        "total_bytes": measure.program_bytes(compiled),
        "compiled_for": jax.devices()[0].device_kind,
        "compile_seconds": time.perf_counter() - start,
    }


class Subject:
    """A U-Net to time: `step()` is one update, `infer()` one batch of sampled latents; both return without waiting.

    Parameters are float32 in training, and have the compute dtype in sampling, as a pipeline loads them.
    programs: those of PROGRAMS that are compiled; the others cannot be called.
    """

    def __init__(
        self,
        work: Workload,
        batch: Mapping[str, np.ndarray],
        params: Any = None,
        programs: Sequence[str] = PROGRAMS,
    ):
        self.work = work
        self.batch = {name: jnp.asarray(x) for name, x in batch.items()}
        made = init(work, jax.random.key(0)) if params is None else jax.tree.map(jnp.asarray, params)
        program = training(work)
        self.light = jax.tree.map(lambda leaf: leaf.astype(work.dtype), made["unet"])
        if work.dtype == "float32":  # the update donates its buffers
            self.light = jax.tree.map(jnp.copy, self.light)
        self.state = program.init(made)
        self.compile_seconds: dict[str, float] = {}
        self.memory: dict[str, int | None] = {}
        if "train" in programs:
            self.compiled_update = self._compiled("train", program.update, self.state, {}, self.batch)
        if "sampling" in programs:
            mesh = meshes.make_mesh(devices=jax.devices()[:1])
            painting = jax.jit(meshes.traced_on(mesh, lambda params, batch: paint(work, params, batch)))
            self.compiled_paint = self._compiled("sampling", painting, self.light, self.batch)
        self.metrics: dict[str, jax.Array] = {}

    def _compiled(self, name: str, program: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        compiled = program.lower(*arguments).compile()
        self.compile_seconds[name] = time.perf_counter() - start
        self.memory[name] = measure.program_bytes(compiled)
        return compiled

    def step(self) -> Any:
        self.state, self.metrics = self.compiled_update(self.state, {}, self.batch)
        return self.state, self.metrics

    def infer(self) -> Any:
        return self.compiled_paint(self.light, self.batch)


def model_flops(work: Workload, batch: Mapping[str, Any], name: str) -> float | None:
    """FLOPs of the model in one of PROGRAMS, without recomputation by remat, with all of attention.

    They come from XLA's cost analysis of the gradient or the forward pass; nothing is compiled.
    """
    plain = dataclasses.replace(work, remat=False, attention="xla")
    params = jax.eval_shape(lambda key: init(plain, key), jax.random.key(0))
    shapes = jax.eval_shape(lambda: {name: jnp.asarray(x) for name, x in batch.items()})
    if name == "train":
        gradient = jax.jit(jax.grad(lambda params, batch: loss(plain, params, batch)[0]))
        return measure.flops(gradient.lower(params, shapes).cost_analysis())
    forward = jax.jit(lambda params, batch: loss(dataclasses.replace(plain, with_text=False), params, batch)[0])
    once = measure.flops(forward.lower(params, shapes).cost_analysis())
    return None if once is None else once * (1 if work.guidance == 1 else 2) * work.steps
