"""Volumes, a detector that finds what is bright, and one that nothing has trained."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pytest

from elk_jax.data.batches.detection import LoaderConfig
from elk_jax.data.slice_greys import SliceGreys
from elk_jax.detection import detectors
from elk_jax.evaluation.detections import Detections, join
from elk_jax.evaluation.operating import Choice, ChosenOn, OperatingPoint
from elk_jax.tasks.detection import predict, volumes
from elk_jax.tasks.detection.model import Trained, describe
from tests.data.sources import dbt_files
from tests.detection import toy_detector


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return dbt_files.write(tmp_path_factory.mktemp("dbt"))


@pytest.fixture
def model(monkeypatch, tmp_path):
    description = SimpleNamespace(classes=("lesion",), operating_points=(OperatingPoint(1.0, 0.5),), learned_maps="")
    monkeypatch.setattr(volumes, "load", lambda folder: Trained(None, None, description))
    monkeypatch.setattr(volumes, "patients_seen", lambda *arguments: ["a note"])

    def detect_with(trained, source, mesh, score_floor=0.0, whole_volumes=False):
        assert whole_volumes
        found = {}
        for position, info in enumerate(source.infos):
            assert not len(info.boxes)
            bright = (source.read(position)[..., 0] > 0.85).astype(np.uint8)
            boxes = cv2.connectedComponentsWithStats(bright)[2][1:, :4].astype(float)
            boxes[:, 2:] += boxes[:, :2]
            found[info.image_id] = Detections(boxes, np.full(len(boxes), 0.9), np.zeros(len(boxes), int))
        return join(source.infos, found)

    monkeypatch.setattr(predict, "detect_with", detect_with)
    return tmp_path / "model"


@pytest.fixture
def trained(monkeypatch):
    """slice_greys -> a detector that nothing has trained, with them."""
    monkeypatch.setitem(detectors.DETECTORS, "toy", toy_detector.KIND)
    one = toy_detector.detector(toy_detector.ToyConfig(width=4))
    params, loader = one.init(jax.random.key(0)), LoaderConfig(buckets=((64, 64),))

    def of(slice_greys: SliceGreys, white: int = 0) -> Trained:
        choice = Choice((OperatingPoint(1.0, 0.5),), ChosenOn())
        tested = replace(loader, resize=replace(loader.resize, float16_white=white))
        return Trained(one, params, describe(one, ("lesion",), tested, False, (), choice, slice_greys=slice_greys))

    return of
