"""Makes scattering.npz: what kymatio's numpy front end says about small random images.

    pip install kymatio==0.3.0 "numpy<2" "scipy<1.12"
    python tests/golden/make_scattering.py

Each case is named by height, width, scales and orientations. The version is stored under `version`.
"""

from pathlib import Path

import kymatio
import numpy as np
from kymatio.numpy import Scattering2D

CASES = ((64, 64, 5, 4), (22, 26, 2, 8), (34, 32, 3, 4))

if __name__ == "__main__":
    random = np.random.default_rng(2013)
    out = {"version": np.array(kymatio.__version__)}
    for height, width, scales, orientations in CASES:
        image = random.uniform(size=(1, height, width)).astype(np.float32)
        name = f"{height}_{width}_{scales}_{orientations}"
        out[f"{name}_image"] = image
        out[f"{name}_coefficients"] = Scattering2D(scales, (height, width), orientations)(image)
    np.savez_compressed(Path(__file__).with_name("scattering.npz"), **out)
