"""docs/figures/painted.png: the first painted lesions of a run, each in the middle of 96 px of its breast.

python -m docs.figures.make_painted_figure --lesions=runs/quickstart/lesions
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from elk_jax import files
from elk_jax.images.windows import cut

ROWS, COLUMNS, SIDE = 2, 8, 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lesions", type=Path, required=True, help="folder of a synthesis stage")
    folder = parser.parse_args().lesions
    crops = []
    for record in sorted((folder / "provenance").glob("*.json"))[: ROWS * COLUMNS]:
        image = cv2.imread(str(folder / "images" / f"{record.stem}.png"), cv2.IMREAD_GRAYSCALE)
        x0, y0, x1, y1 = files.read_json(record)["box"]
        left, top = (x0 + x1 - SIDE) // 2, (y0 + y1 - SIDE) // 2
        crops.append(cut(image, (left, top, left + SIDE, top + SIDE)))
    rows = [np.concatenate(crops[row * COLUMNS : (row + 1) * COLUMNS], axis=1) for row in range(ROWS)]
    cv2.imwrite(str(Path(__file__).with_name("painted.png")), np.concatenate(rows, axis=0))


if __name__ == "__main__":
    main()
