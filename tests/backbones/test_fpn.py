"""Feature pyramid: sizes, the top-down path by hand, and enlargement like torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elk_jax.backbones.fpn import FPN, upsample_to
from elk_jax.backbones.norms import norm_from_name


def torch_nearest(x, height, width):
    """interpolate(mode="nearest", size=...): pixel i reads floor(i * size_in / size_out)."""
    rows = np.floor(np.arange(height) * (x.shape[1] / height)).astype(int)
    columns = np.floor(np.arange(width) * (x.shape[2] / width)).astype(int)
    return x[:, rows][:, :, columns]


@pytest.mark.parametrize("height", [1, 2, 5, 12, 13, 49, 50])
@pytest.mark.parametrize("width", [3, 8, 25])
def test_enlargement_is_nearest_neighbour_to_the_exact_size(height, width):
    x = np.random.default_rng(0).normal(size=(2, -(-height // 2), -(-width // 2), 2)).astype(np.float32)
    np.testing.assert_array_equal(upsample_to(x, height, width), torch_nearest(x, height, width))


@pytest.mark.parametrize("norm", ["none", "frozen_bn"])
def test_pyramid_by_hand_on_odd_sizes(norm):
    """Laterals that pass one channel on and outputs that copy: P_l is the sum of all coarser stages."""
    rng = np.random.default_rng(1)
    stages = [rng.normal(size=(2, *size, 1)).astype(np.float32) for size in ((13, 9), (7, 5), (4, 3), (2, 2))]
    pyramid = FPN(channels=1, norm=norm_from_name(norm, eps=0.0))
    params = pyramid.init(jax.random.key(0), stages)["params"]
    assert set(params) == {f"{kind}{level}" for kind in ("lateral", "output") for level in (2, 3, 4, 5)}
    assert ("bias" in params["lateral2"]) == (norm == "none")
    for level in (2, 3, 4, 5):
        params[f"lateral{level}"]["kernel"] = jnp.ones((1, 1, 1, 1))
        params[f"output{level}"]["kernel"] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    levels = pyramid.apply({"params": params}, stages)

    merged = [stages[3]]
    for stage in stages[2::-1]:
        merged.insert(0, stage + torch_nearest(merged[0], *stage.shape[1:3]))
    assert len(levels) == 5
    for found, expected in zip(levels, [*merged, merged[-1][:, ::2, ::2]]):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_all_levels_have_the_same_width():
    stages = [jnp.zeros((1, size, size, 8 * 2**i)) for i, size in enumerate((16, 8, 4, 2))]
    levels = jax.eval_shape(lambda key: FPN(channels=6).init_with_output(key, stages)[0], jax.random.key(0))
    assert [level.shape for level in levels] == [(1, size, size, 6) for size in (16, 8, 4, 2, 1)]
