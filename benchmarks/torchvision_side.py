"""Times torchvision's Faster R-CNN or RetinaNet on request, in a separate Python with torch and torchvision.

    python torchvision_side.py FOLDER      FOLDER/settings.json, FOLDER/batch.npz -> FOLDER/weights.pth

detector.py starts it. The protocol is that of `torch_side.serve`, with `detections` for the number per image. Only one
side runs at a time, so both can use the whole machine. It requires only torch, torchvision and numpy.
"""

from functools import partial

import torch_side  # isort: skip  corrects the path before the library is imported
import numpy as np
import torch
import torchvision
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

RESIDUAL_GAIN = 0.25
"""Scale of the last norm of each residual branch, without which features of random weights grow with depth."""


def build(settings, device):
    """fasterrcnn_resnet*_fpn, retinanet_resnet*_fpn or retinanet_resnet*_fpn_v2 with random weights, two classes, and
    no resizing. Batch norms are frozen; of v2, scales and biases are trained."""
    torch.manual_seed(0)
    name = f"resnet{settings['depth']}"
    second = settings["version"] == 2
    kind, pyramid, parts = FasterRCNN, {}, {}
    if settings["name"] == "retinanet":
        top = 256 if not second else 512 if settings["depth"] < 50 else 2048
        kind, pyramid = RetinaNet, {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(top, 256)}
    if second:
        parts["head"] = RetinaNetHead(256, 9, 2, norm_layer=partial(torch.nn.GroupNorm, 32))
        parts["head"].regression_head._loss_type = "giou"
    backbone = resnet_fpn_backbone(
        backbone_name=name,
        weights=None,
        norm_layer=torch.nn.BatchNorm2d if second else torchvision.ops.misc.FrozenBatchNorm2d,
        trainable_layers=settings["trainable_layers"],
        **pyramid,
    )
    last = "bn3.weight" if settings["depth"] >= 50 else "bn2.weight"
    for key, value in backbone.state_dict().items():
        if key.endswith(last):
            value.fill_(RESIDUAL_GAIN)
    model = kind(backbone, num_classes=2, **parts, **settings["detector"])
    model.transform.resize = lambda image, target: (image, target)  # the images already have the final size
    return model.to(device)


def load_batch(path, device):
    stored = np.load(path)
    images, targets = [], []
    for image, size, boxes, valid in zip(*(stored[k] for k in ("image", "image_size", "gt_boxes", "gt_valid"))):
        height, width = size.astype(int)
        grey = torch.tensor(image[:height, :width, 0])
        images.append(grey.expand(3, -1, -1).contiguous().to(device))
        found = torch.tensor(boxes[valid]).to(device)
        targets.append({"boxes": found, "labels": torch.ones(len(found), dtype=torch.int64, device=device)})
    return images, targets


class Side(torch_side.Side):
    def __init__(self, settings, folder, device):
        super().__init__(settings, device)
        self.model = build(settings, device)
        torch.save(self.model.state_dict(), folder / "weights.pth")
        if settings["channels_last"]:
            self.model.to(memory_format=torch.channels_last)
            self.model.backbone.register_forward_pre_hook(
                lambda _, inputs: (inputs[0].to(memory_format=torch.channels_last),)
            )
        self.images, self.targets = load_batch(folder / "batch.npz", device)
        self.optimizer = torch_side.sgd(self.model, settings["optimizer"])

    def train(self):
        torch_side.train_without_statistics(self.model)
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            loss = sum(self.model(self.images, self.targets).values())
        loss.backward()
        self.optimizer.step()
        return loss

    def infer(self):
        self.model.eval()
        with torch.inference_mode(), self.precision():
            return self.model(self.images)


def main():
    folder, settings, device = torch_side.begin()
    side = Side(settings, folder, device)
    about = {
        "precision": "bfloat16 autocast" if side.bfloat16 else "float32",
        "matmul_flops_per_second": torch_side.matmul_rate(device),
        "compiled": False,  # torch.compile cannot compile a whole detector of torchvision
    }
    count = lambda: {"detections": [len(found["boxes"]) for found in side.infer()]}
    torch_side.serve(side, {"torchvision": torchvision.__version__}, about, {"detections": count})


if __name__ == "__main__":
    main()
