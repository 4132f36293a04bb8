"""Classify patches into two classes with a network whose training protects the patients (DP-SGD).

  python launch/train.py --config=configs/swin_dp.py                          generated patches, minutes on 2 CPU cores
  python launch/train.py --config=configs/swin_dp.py:paper \\
      --config.network.privacy.epsilon=6 --config.network.privacy.unit=patient \\
      --config.data.patches.spec=folders:/data/patches "--config.data.patches.patient_pattern=P_(\\d+)" \\
      --config.stages.network.init_from=weights/swin_t                        Swin-T; the published head: paper,head
The initial weights are imported (launch/import_weights.py), or come from a run of swin_real.py on other people's
patches; weights that have seen the protected patients are refused. Data, weights and variants: see swin_real.py. In
private training `batch_size` is the expected number of units in a batch; privacy: elk_jax/privacy/settings.py.
Published (CBIS-DDSM test split, epsilon per image, delta 1e-4): AUROC 0.661, 0.677, 0.712 at epsilon 1, 6, 60.
"""

from configs import variants
from configs.private_head import PUBLISHED
from configs.swin_real import experiment
from elk_jax.privacy.settings import Privacy

EPSILON, DELTA = 6.0, 1e-4


def get_config(variant=None):
    size, extras = variants.parse(variant, ("head",))
    return experiment("swin_dp", size, PUBLISHED, "head" in extras, Privacy(epsilon=EPSILON, delta=DELTA))
