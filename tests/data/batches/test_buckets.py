"""Canvases: which holds which image."""

import pytest

from elk_jax.data.augment import NO_AUGMENTATION as PLAIN
from elk_jax.data.augment import Augmentation, Resize
from elk_jax.data.batches.buckets import assign_buckets, choose_buckets
from elk_jax.data.batches.detection import LoaderConfig
from tests.refusals import refused


@pytest.fixture
def infos(make_info):
    """17 portrait images, then 4 landscape ones."""
    return [make_info(n, [], 48, 64) for n in range(17)] + [make_info(n, [], 64, 48) for n in range(17, 21)]


def test_buckets(infos):
    canvases = [(128, 128), (96, 128), (128, 96)]
    resize = Resize((60, 90), 120)
    chosen = assign_buckets(infos, canvases, resize, PLAIN)
    assert [canvases[b] for b in chosen] == [(128, 96)] * 17 + [(96, 128)] * 4
    turned = assign_buckets(infos, canvases, resize, Augmentation(rotate90=0.5))
    assert {canvases[b] for b in turned} == {(128, 128)}
    assert choose_buckets(infos, resize, PLAIN) == ((128, 128),)
    assert choose_buckets(infos[:17], resize, PLAIN) == ((128, 96),)
    with refused("canvas", where="buckets"):
        LoaderConfig(buckets=(), resize=Resize(jitter=(0.5, 2.0)))
    with refused("image 17", 90, 120, where="17.png"):
        assign_buckets(infos, [(128, 96)], resize, PLAIN)


def test_buckets_with_jitter_go_by_form(infos):
    canvases = [(64, 64), (64, 48), (48, 64)]
    chosen = assign_buckets(infos, canvases, Resize(jitter=(0.5, 2.0)), PLAIN)
    assert [canvases[b] for b in chosen] == [(64, 48)] * 17 + [(48, 64)] * 4
