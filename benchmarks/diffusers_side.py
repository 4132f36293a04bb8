"""diffusers' inpainting U-Net, timed on request. Runs in a Python of its own that has torch and diffusers.

    python diffusers_side.py FOLDER      FOLDER/settings.json, FOLDER/batch.npz -> FOLDER/weights.safetensors

Started by diffusion.py; speaks as torchvision_side.py does: one JSON line about itself, then one for every line
`train N`, `infer N` (sampling), `loss`, `image`, `memory` on its standard input. It needs nothing but torch, diffusers,
safetensors and numpy.
"""

import contextlib
import copy
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != HERE]  # kernels.py is not the library

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def load_batch(path, device):
    stored = np.load(path)
    return {
        name: torch.tensor(stored[name].transpose(0, 3, 1, 2) if stored[name].ndim == 4 else stored[name]).to(device)
        for name in stored.files
    }


class Side:
    def __init__(self, settings, folder, device):
        self.device, self.settings = device, settings
        self.now = {"wall": time.perf_counter, "cpu": time.process_time}[settings["clock"]]
        torch.manual_seed(0)
        self.model = diffusers.UNet2DConditionModel(**settings["unet"])
        save_file(
            {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()},
            folder / "weights.safetensors",
        )
        self.model.to(device).train()
        if settings["remat"]:
            self.model.enable_gradient_checkpointing()
        self.bfloat16 = settings["dtype"] == "bfloat16"
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

    def precision(self):
        return torch.autocast(self.device, torch.bfloat16) if self.bfloat16 else contextlib.nullcontext()

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

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call, count):
        self.wait()
        start = self.now()
        for _ in range(count):
            call()
        self.wait()
        return (self.now() - start) / count

    def peak_bytes(self):
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main():
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text())
    device = "cuda" if settings["accelerator"] and torch.cuda.is_available() else "cpu"
    if device == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(cores)
    if settings["compile"] is None:  # on a CPU torch.compile needs a C++ compiler
        settings["compile"] = device == "cuda" or bool(shutil.which(os.environ.get("CXX", "g++")))
    torch.backends.cudnn.benchmark = True  # the shapes are fixed
    side = Side(settings, folder, device)
    say(
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        versions={"torch": torch.__version__, "diffusers": diffusers.__version__},
        threads=torch.get_num_threads(),
        memory_format="channels_last" if settings["channels_last"] else "contiguous",
        precision="bfloat16 autocast in training, bfloat16 weights in sampling" if side.bfloat16 else "float32",
        compiled=settings["compile"],
    )
    for line in sys.stdin:
        what, _, count = line.strip().partition(" ")
        if what == "memory":
            say(bytes=side.peak_bytes())
        elif what == "loss":
            say(loss=float(side.train()))
        elif what == "image":
            np.save(folder / "image.npy", side.infer().float().cpu().numpy().transpose(0, 2, 3, 1))
            say(path=str(folder / "image.npy"))
        else:
            say(seconds=side.seconds({"train": side.train, "infer": side.infer}[what], int(count)))


def say(**values):
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
