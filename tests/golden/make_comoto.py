"""Makes comoto.npz: what the code of CoMoTo computes of maps, boxes and slices.

Runs under a Python that has torch and MONAI 1.3.0, with a copy of github.com/Muhammad-Al-Barbary/CoMoTo (904ecfb):

    python tests/golden/make_comoto.py CoMoTo

A map has a cell of 16 px; its first channel is the number of the cell, by which the cells beside lesions are known. The
versions are stored in the file under `versions`.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch

OUTPUT = Path(__file__).with_name("comoto.npz")
CELLS, CANVAS, CHANNELS = (6, 4), (96, 64), 5
SLICES, DETECTIONS = 14, 5
random = np.random.default_rng(22)


def module(folder: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, folder / "comoto" / "engine" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def maps_and_boxes() -> tuple[np.ndarray, np.ndarray]:
    """[3, C, h, w] features and [3, 2, 4] boxes in whole px, of which some reach the borders."""
    features = random.normal(size=(3, CHANNELS, *CELLS)).astype(np.float32)
    features[:, 0] = np.arange(CELLS[0] * CELLS[1]).reshape(CELLS)
    low = random.integers(0, 60, (3, 2, 2)) % [50, 80]
    boxes = np.concatenate([low, np.minimum(low + random.integers(3, 60, (3, 2, 2)), [64, 96])], axis=-1)
    boxes[0, 0], boxes[1, 1] = [20, 40, 64, 96], [5, 30, 9, 34]
    return features, boxes


def main() -> None:
    folder = Path(sys.argv[1])
    utils, losses = module(folder, "utils"), module(folder, "losses")
    sides = {side: maps_and_boxes() for side in ("teacher", "student")}
    found, picked = {}, {}
    for side, (features, boxes) in sides.items():
        found |= {f"{side}_features": features, f"{side}_boxes": boxes}
        given = torch.from_numpy(features), list(torch.from_numpy(boxes).float()), (1, *CANVAS)
        for count in (1, 4, 5, 9):
            points = utils.extract_critical_features(*given, count)
            picked[side, count] = points
            found[f"{side}_points{count}"] = points.numpy()
        everywhere = CELLS[0] * CELLS[1]
        outside = np.zeros((3, everywhere), bool)
        for image in range(3):
            one = given[0][image : image + 1], given[1][image : image + 1], given[2]
            free = utils.extract_noncritical_features(*one, everywhere)[0, 0]
            outside[image, free.numpy().astype(int)] = True
        found[f"{side}_outside"] = outside.reshape(3, *CELLS)

    learned = torch.nn.Linear(9, 9)
    learned.weight.data, learned.bias.data = (torch.from_numpy(random.normal(size=x.shape).astype(np.float32) / 3)
                                              for x in (learned.weight, learned.bias))  # fmt: skip
    student, teacher = (picked[side, 9].mean(0) for side in ("student", "teacher"))
    found |= {"weight": learned.weight.detach().numpy(), "bias": learned.bias.detach().numpy()}
    found["lskd"] = losses.KD_loss(learned(student), teacher, 2, 4).item()
    beside = torch.from_numpy(random.normal(size=(3, CHANNELS, 9)).astype(np.float32))
    found |= {"beside": beside.numpy(), "impa": losses.ImPA_loss(picked["teacher", 9], beside, 2).item()}

    corners = random.integers(0, 12, (SLICES, DETECTIONS, 2))
    slices = np.concatenate([corners, corners + random.integers(14, 22, (SLICES, DETECTIONS, 2))], -1).astype(
        np.float32
    )
    scores = random.permutation(np.linspace(0.06, 0.9, SLICES * DETECTIONS)).reshape(SLICES, DETECTIONS)
    counts = random.integers(0, DETECTIONS + 1, SLICES)
    counts[3] = 0
    given = [utils.Boxes(torch.from_numpy(one[:count])) for one, count in zip(slices, counts)]
    kept, marks, at = utils.NMS_volume(given, [torch.from_numpy(one[:count]) for one, count in zip(scores, counts)])
    found |= {"slice_boxes": slices, "slice_scores": scores, "slice_counts": counts}
    found |= {
        "kept_boxes": torch.stack(kept).numpy(),
        "kept_scores": torch.stack(marks).numpy(),
        "kept_at": np.array(at),
    }
    np.savez_compressed(OUTPUT, versions=np.array(json.dumps({"torch": torch.__version__})), **found)


if __name__ == "__main__":
    main()
