"""What the diffusion tasks share, on a model of one number."""

from __future__ import annotations

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.tasks import sampling
from elk_jax.training import mesh as meshes
from elk_jax.training.model import Model


def noisy_loss(params, constants, batch, rng, map_images):
    """The mean over the valid examples of value + noise: the noise follows from `rng` alone."""
    values = params["value"] * batch["image"][:, 0, 0, 0] + constants["noise"] * jax.random.normal(rng)
    return (values * batch["valid"]).sum() / batch["valid"].sum(), {}


def predict(params, constants, batch, map_images):
    numbers = jax.vmap(jax.random.uniform)(sampling.keys_of(batch["seed"]))
    return {"image": batch["image"] * params["value"] + constants["noise"] * numbers[:, None, None, None]}


MODEL = Model(
    init=lambda rng: {"value": jnp.ones(())},
    loss=noisy_loss,
    predict=predict,
    per_example=True,
    constants={"noise": np.float32(0.5)},
)


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh()


def test_every_picture_has_a_seed_of_its_own():
    seeds = sampling.seeds(3, [0, 5])
    assert seeds.tolist() == [[3, 0], [3, 5]] and seeds.dtype == np.uint32
    keys = sampling.keys_of(jnp.asarray(seeds))
    expected = [jax.random.fold_in(jax.random.key(3), index) for index in (0, 5)]
    np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(jnp.stack(expected)))


def test_a_picture_does_not_depend_on_those_drawn_with_it(mesh):
    sample, params = sampling.compile_sampler(MODEL, mesh), {"value": np.float32(2)}
    image = np.arange(3, dtype=np.float32)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    whole = sample(params, {"image": image, "seed": sampling.seeds(7, [4, 5, 6])})
    alone = sample(params, {"image": image[1:2], "seed": sampling.seeds(7, [5])})
    assert whole.shape == (3, 4, 4, 1) and isinstance(whole, np.ndarray)
    np.testing.assert_array_equal(whole[1:2], alone)
    assert len({float(picture[0, 0, 0] - 2 * i) for i, picture in enumerate(whole)}) == 3, "each has its own noise"


def test_a_fixed_loss_weighs_batches_by_their_examples_and_repeats_its_noises(mesh):
    batch = lambda values, valid: {
        "image": np.array(values, np.float32)[:, None, None, None], "valid": np.array(valid, bool)
    }  # fmt: skip
    batches = [batch([1, 2], [1, 1]), batch([6, 100], [1, 0])]
    evaluate = sampling.fixed_loss(MODEL, batches, mesh)
    noise = [
        np.mean([jax.random.normal(jax.random.fold_in(jax.random.key(draw), number)) for draw in range(4)])
        for number in range(2)
    ]
    expected = (2 * (1.5 + 0.5 * noise[0]) + 1 * (6 + 0.5 * noise[1])) / 3
    first = evaluate({"value": np.float32(1)}, 1)
    assert first["loss"] == pytest.approx(expected, rel=1e-5) and first == evaluate({"value": np.float32(1)}, 2)


def test_a_grid_has_a_line_for_every_row_of_pictures():
    rows = [np.full((3, 2, 2, 1), value, np.float32) for value in (0.5, 1.7)]
    rows[0][2] = -1
    grid = sampling.grid(rows)
    assert grid.shape == (4, 6, 3) and grid.dtype == np.uint8
    assert grid[0, :, 0].tolist() == [128] * 4 + [0] * 2 and (grid[2:] == 255).all()


def test_saved_grids_are_the_first_the_last_and_some_between(tmp_path):
    (tmp_path / "pictures").mkdir()
    for step in (1, 2, 3, 200_000, 1_000_000):
        cv2.imwrite(str(tmp_path / "pictures" / f"painted-{step:06d}.png"), np.full((4, 4), step % 256, np.uint8))
    found = sampling.saved_grids(tmp_path, "painted", 3)
    assert [(step, int(picture[0, 0])) for step, picture in found] == [(1, 1), (3, 3), (1_000_000, 64)]
    (tmp_path / "pictures" / "painted-000003.png").write_bytes(b"damaged")
    assert [step for step, _ in sampling.saved_grids(tmp_path, "painted", 3)] == [1, 1_000_000]
    assert sampling.saved_grids(tmp_path, "translated", 3) == []
