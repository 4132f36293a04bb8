"""Times diffusers' inpainting U-Net on request, in a separate Python with torch and diffusers.

    python diffusers_side.py FOLDER      FOLDER/settings.json, FOLDER/batch.npz -> FOLDER/weights.safetensors

diffusion.py starts it. The protocol is that of `torch_side.serve` (`infer` samples), with `image` for the path of the
sampled latents. It requires only torch, diffusers, safetensors and numpy.
"""

import copy
import os
import shutil

import torch_side  # isort: skip  corrects the path before the library is imported
import diffusers
import numpy as np
import torch
from safetensors.torch import save_file


def load_batch(path, device):
    stored = np.load(path)
    return {
        name: torch.tensor(stored[name].transpose(0, 3, 1, 2) if stored[name].ndim == 4 else stored[name]).to(device)
        for name in stored.files
    }


class Side(torch_side.Side):
    def __init__(self, settings, folder, device):
        super().__init__(settings, device)
        torch.manual_seed(0)
        self.model = diffusers.UNet2DConditionModel(**settings["unet"])
        save_file(
            {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()},
            folder / "weights.safetensors",
        )
        self.model.to(device).train()
        if settings["remat"]:
            self.model.enable_gradient_checkpointing()
        self.light = copy.deepcopy(self.model).eval().requires_grad_(False)
        if self.bfloat16:
            self.light.to(torch.bfloat16)
        if settings["channels_last"]:
            for model in (self.model, self.light):
                model.to(memory_format=torch.channels_last)
        self.batch = load_batch(folder / "batch.npz", device)
        rate = settings["optimizer"]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=rate["rate"],
            betas=(rate["b1"], rate["b2"]),
            eps=rate["eps"],
            weight_decay=rate["weight_decay"],
            fused=device == "cuda",
        )
        noise = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        self.noise = diffusers.DDPMScheduler(**noise)
        self.sampler = diffusers.DPMSolverMultistepScheduler(**noise)
        self.training_model, self.sampling_model = self.model, self.light
        if settings["compile"]:
            self.training_model = torch.compile(self.model)
            self.sampling_model = torch.compile(self.light)

    def train(self):
        batch = self.batch
        self.optimizer.zero_grad(set_to_none=True)
        noisy = self.noise.add_noise(batch["latents"], batch["noise"], batch["t"].long())
        with self.precision():
            seen = torch.cat([noisy, batch["mask"], batch["masked"]], 1)
            found = self.training_model(seen, batch["t"], batch["text"], return_dict=False)[0]
            loss = torch.nn.functional.mse_loss(found.float(), batch["noise"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings["optimizer"]["clip_norm"])
        self.optimizer.step()
        return loss

    @torch.inference_mode()
    def infer(self):
        batch, scale = self.batch, self.settings["guidance"]
        kind = torch.bfloat16 if self.bfloat16 else torch.float32
        times = 1 if scale == 1 else 2
        text = batch["text"] if scale == 1 else torch.cat([batch["negative"], batch["text"]])
        rest = torch.cat([batch["mask"], batch["masked"]], 1).to(kind).repeat(times, 1, 1, 1)
        text = text.to(kind)
        self.sampler.set_timesteps(self.settings["steps"], device=self.device)
        x = batch["noise"].to(kind)
        for t in self.sampler.timesteps:
            seen = torch.cat([x.repeat(times, 1, 1, 1), rest], 1)
            found = self.sampling_model(seen, t, text, return_dict=False)[0]
            if times == 2:
                without, wanted = found.chunk(2)
                found = without + scale * (wanted - without)
            x = self.sampler.step(found, t, x, return_dict=False)[0]
        return x


def main():
    folder, settings, device = torch_side.begin()
    if settings["compile"] is None:  # on a CPU torch.compile needs a C++ compiler
        settings["compile"] = device == "cuda" or bool(shutil.which(os.environ.get("CXX", "g++")))
    side = Side(settings, folder, device)
    precision = "bfloat16 autocast in training, bfloat16 weights in sampling" if side.bfloat16 else "float32"

    def image():
        path = folder / "image.npy"
        np.save(path, side.infer().float().cpu().numpy().transpose(0, 2, 3, 1))
        return {"path": str(path)}

    about = {"precision": precision, "compiled": settings["compile"]}
    torch_side.serve(side, {"diffusers": diffusers.__version__}, about, {"image": image})


if __name__ == "__main__":
    main()
