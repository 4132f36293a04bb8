"""Times effdet's EfficientDet on request, in a separate Python with torch and effdet.

    python effdet_side.py FOLDER      FOLDER/settings.json, FOLDER/batch.npz -> FOLDER/weights.pth

detector.py starts it. The protocol is that of `torch_side.serve`, with `detections` for the number per image. It
requires only torch, effdet and numpy.
"""

from importlib.metadata import version

import torch_side  # isort: skip  corrects the path before the library is imported
import effdet
import numpy as np
import torch


def build(settings, images, device):
    """The detector `settings["name"]` with random weights and one class. Its batch norms are constant: the statistics
    are those of one pass over the images, so that maps of random weights neither grow nor vanish with depth.
    """
    torch.manual_seed(0)
    config = effdet.get_efficientdet_config(settings["name"])
    config.image_size, config.num_classes = tuple(images.shape[-2:]), 1
    config.aspect_ratios = settings["aspect_ratios"]
    config.backbone_args = {**config.backbone_args, "drop_path_rate": 0.0}
    for name, value in settings["detector"].items():
        config[name] = value
    model = effdet.EfficientDet(config, pretrained_backbone=False).to(device).train()
    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(images)
    for norm, momentum in zip(norms, before):
        norm.momentum = momentum
    return model


def load_batch(path, settings, device):
    """(images [B, 3, H, W], normalised; the lesions as effdet has them: yxyx, classes from 1)"""
    stored = np.load(path)
    grey = torch.tensor(stored["image"][..., 0])[:, None].expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(settings[name])[:, None, None] for name in ("pixel_mean", "pixel_std"))
    found = [torch.tensor(boxes[valid]) for boxes, valid in zip(stored["gt_boxes"], stored["gt_valid"])]
    target = {
        "bbox": [boxes[:, [1, 0, 3, 2]].to(device) for boxes in found],
        "cls": [torch.ones(len(boxes), dtype=torch.int64, device=device) for boxes in found],
    }
    info = {
        "img_scale": torch.ones(len(grey), device=device),
        "img_size": torch.tensor(stored["image_size"][:, ::-1].copy(), dtype=torch.float32, device=device),
    }
    return ((grey - mean) / std).contiguous().to(device), target, info


class Side(torch_side.Side):
    def __init__(self, settings, folder, device):
        super().__init__(settings, device)
        self.images, self.target, self.info = load_batch(folder / "batch.npz", settings, device)
        model = build(settings, self.images, device)
        torch.save(model.state_dict(), folder / "weights.pth")
        if settings["channels_last"]:
            model.to(memory_format=torch.channels_last)
            self.images = self.images.to(memory_format=torch.channels_last)
        self.trained = effdet.DetBenchTrain(model).to(device)
        self.predicting = effdet.DetBenchPredict(model).to(device)
        self.model = model
        self.optimizer = torch_side.sgd(model, settings["optimizer"])

    def train(self):
        torch_side.train_without_statistics(self.trained)
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            loss = self.trained(self.images, self.target)["loss"]
        loss.backward()
        self.optimizer.step()
        return loss

    def infer(self):
        self.predicting.eval()
        with torch.inference_mode(), self.precision():
            return self.predicting(self.images, self.info)


def main():
    folder, settings, device = torch_side.begin()
    side = Side(settings, folder, device)
    about = {
        "precision": "bfloat16 autocast" if side.bfloat16 else "float32",
        "matmul_flops_per_second": torch_side.matmul_rate(device),
        "compiled": False,  # as in torchvision's detectors
    }
    count = lambda: {"detections": [int((found[:, 4] > 0).sum()) for found in side.infer()]}
    versions = {"effdet": version("effdet"), "timm": version("timm")}
    torch_side.serve(side, versions, about, {"detections": count})


if __name__ == "__main__":
    main()
