"""Makes kernel.npz: kernel ridge regression with a free intercept by scikit-learn, on small random features.

    pip install scikit-learn==1.5.2
    python tests/golden/make_kernel.py

A free intercept is the same as a centred kernel and centred targets. Features are of two kinds, 3 and 4 of them, which
have the same share of the squared norm. Each case is named by width (0: linear) and
penalty. The version is stored under `version`.
"""

from pathlib import Path

import numpy as np
import sklearn
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import linear_kernel, rbf_kernel
from sklearn.preprocessing import KernelCenterer, StandardScaler

CASES = ((0.0, 0.1), (0.7, 0.03), (2.0, 3.0))

if __name__ == "__main__":
    random = np.random.default_rng(1998)
    features, others = random.normal(2, 3, (30, 7)), random.normal(2, 3, (9, 7))
    truth = random.random(30) < 0.4
    scaler, targets = StandardScaler().fit(features), np.where(truth, 1.0, -1.0)
    out = {"version": np.array(sklearn.__version__), "features": features, "others": others, "truth": truth}
    shares = np.sqrt(2 * np.array([3] * 3 + [4] * 4))
    inputs, new = (scaler.transform(one) / shares for one in (features, others))
    for width, penalty in CASES:
        kernel = (lambda a, b, w=width: rbf_kernel(a, b, gamma=1 / (2 * w**2))) if width else linear_kernel
        centerer = KernelCenterer().fit(kernel(inputs, inputs))
        ridge = KernelRidge(alpha=penalty, kernel="precomputed")
        ridge.fit(centerer.transform(kernel(inputs, inputs)), targets - targets.mean())
        out[f"{width}_{penalty}"] = ridge.predict(centerer.transform(kernel(new, inputs))) + targets.mean()
    np.savez_compressed(Path(__file__).with_name("kernel.npz"), **out)
