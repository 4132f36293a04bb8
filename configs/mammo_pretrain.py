"""ELK's transfer: a detector on low-energy mammograms, whose weights then start the fine-tuning on enhanced ones.

  python launch/train.py --config=configs/mammo_pretrain.py --workdir=runs/mammo
  python launch/train.py --config=configs/cem_real.py --config.stages.real.init_from=runs/mammo/mammo/model
With your own images: --config.data.mammo.spec=coco:/data/mammo/low_energy.json
"""

from configs import base


def get_config(variant=None):
    size, extras = base.parse(variant)
    spec = base.phantom(size, "realistic", seed=3, modality="low_energy")
    return base.experiment(
        "mammo_pretrain",
        data={"on_error": "stop", "mammo": base.source(spec, patients=base.few(size, extras))},
        detector=base.detector(size, extras),
        stages={
            "mammo": base.train_detector("mammo"),
            "evaluate": base.evaluate_detectors("mammo", on="mammo"),
        },
    )
