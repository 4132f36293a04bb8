"""What needs several devices, or several processes: run as a program, it writes what it saw as JSON.

python -m tests.training.devices OUT              on 8 simulated devices
python -m tests.training.devices OUT I PORT       as process I of 2, with 2 devices each
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from elk_jax.privacy import secret as secrets
from elk_jax.training import mesh as meshes
from elk_jax.training.checkpoint import load_state
from elk_jax.training.writer import read_metrics
from tests.training import hlo, toy

STEPS = 5
HIDDEN = 8192  # large enough for the rule to split its parameters


def run(folder, mesh, dtype="float32", **data):
    """Train the toy on `mesh` from `dtype` numbers."""
    return toy.train(
        folder,
        toy.model(jnp.dtype(dtype), hidden=HIDDEN),
        toy.Batches(dtype=np.dtype(dtype), **data),
        mesh,
        steps=STEPS,
        log_every=1,
        checkpoint_every=3,
    )


def run_privately(folder, mesh, **share):
    """Train the toy by the private step, in float64. share: of this process."""
    secret = secrets.known(1)
    step = toy.private_step(toy.separable(jnp.float64, hidden=HIDDEN), secret, mesh, steps=STEPS)
    batches = toy.unit_batches(secret, np.float64, lanes=mesh.size, **share)
    return toy.train(folder, step, batches, mesh, steps=STEPS, log_every=1)


def published(folder, player=""):
    """Of a private training, by step: norm of the noisy gradient, and adaptive clip norm."""
    names = [f"train/{player}{name}" for name in ("grad_norm", "clip_norm")]
    return [[line[name] for name in names] for line in read_metrics(folder / "metrics.jsonl")]


def losses(folder):
    return [record["train/loss"] for record in read_metrics(Path(folder) / "metrics.jsonl")]


def largest_difference(a, b):
    """Relative to the largest entry of each leaf."""
    differences = jax.tree.map(lambda x, y: float(np.max(np.abs(x - y)) / (np.max(np.abs(y)) + 1e-30)), a, b)
    return max(jax.tree.leaves(differences))


def host(tree):
    return jax.tree.map(np.asarray, tree)


def split_share(tree):
    """For each leaf, the share of its bytes that one device holds."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.addressable_shards[0].data.nbytes / x.nbytes
        for path, x in flat
        if x.nbytes
    }


def eight_devices(out: Path) -> dict:
    layouts = {
        "one": meshes.make_mesh(devices=jax.devices()[:1]),
        "data": meshes.make_mesh(),
        "fsdp": meshes.make_mesh(fsdp=8),
    }
    seen: dict = {"losses": {}, "difference": {}, "share": {}}
    wanted = None
    for dtype, names in (("float32", ("one", "data")), ("float64", ("one", "data", "fsdp"))):
        jax.config.update("jax_enable_x64", dtype == "float64")
        for name in names:
            result = run(out / f"{dtype}-{name}", layouts[name], dtype)
            seen["losses"][f"{dtype}-{name}"] = losses(out / f"{dtype}-{name}")
            got = host(result.state)
            wanted = got if name == "one" else wanted
            seen["difference"][f"{dtype}-{name}"] = largest_difference(got, wanted)
            seen["share"][name] = split_share(result.state)
    # what 8 devices with split parameters began, one device finishes
    shutil.copytree(out / "float64-fsdp", out / "moved")
    shutil.rmtree(out / "moved" / "checkpoints" / str(STEPS))
    moved = run(out / "moved", layouts["one"], "float64")
    seen["difference"]["moved"] = largest_difference(host(moved.state), wanted)
    seen["private"] = {}
    for name, mesh in layouts.items():
        got = host(run_privately(out / f"private-{name}", mesh).state)
        wanted = got if name == "one" else wanted
        seen["private"][name] = {
            "published": published(out / f"private-{name}"),
            "difference": largest_difference(got, wanted),
        }
    seen["game"] = {}
    for name in ("one", "data"):
        got = host(toy.play_privately(out / f"game-{name}", mesh=layouts[name], dtype=np.float64).state)
        wanted = got if name == "one" else wanted
        seen["game"][name] = {
            "published": published(out / f"game-{name}", "discriminator_"),
            "difference": largest_difference(got, wanted),
        }
    jax.config.update("jax_enable_x64", False)
    seen["spread"] = spread(layouts["fsdp"])
    return seen | {"collectives": per_image_stages(meshes.make_mesh(fsdp=2))}


def spread(mesh) -> dict:
    """Eleven numbers, the last of which does not count, as they come back from the devices of `mesh`."""
    placed = meshes.spread_batch({"number": np.arange(11), "valid": np.arange(11) < 10}, mesh)
    back = jax.jit(lambda batch: batch, out_shardings=meshes.replicated(mesh))(placed)
    on_one = placed["number"].addressable_shards[0].data.size
    return {"on_one": on_one, **{name: np.asarray(values).tolist() for name, values in back.items()}}


def per_image_stages(mesh) -> dict:
    """The collectives of a per-image top_k in the gradient of a loss: mapped by shard, and left to the compiler."""
    scores = meshes.put_batch({"scores": np.random.default_rng(0).normal(size=(16, 300)).astype("float32")}, mesh)

    def loss(scores, map_images):
        def best(row, extra):
            values, places = jax.lax.top_k(row, 5)
            return {"sum": jnp.sum(values * extra["weight"]), "first": places[0]}

        picked = map_images(best)(scores, {"weight": jnp.ones((16, 5))})
        return jnp.mean(picked["sum"]), picked["first"]

    found = {}
    for name, map_images in (("shard", meshes.shard_map_images(mesh)), ("vmap", jax.vmap)):
        step = jax.jit(jax.value_and_grad(lambda s, m=map_images: loss(s, m), has_aux=True))
        text = step.lower(scores["scores"]).compile().as_text()
        (value, first), grads = step(scores["scores"])
        found[name] = {
            "gathers": [c.kind for c in hlo.gathers(text)],
            "value": float(value),
            "first": np.asarray(first).tolist(),
            "gradient": float(jnp.sum(jnp.abs(grads))),
        }
    return found


def two_processes(out: Path, index: int, port: str) -> dict:
    meshes.initialize_distributed(
        {"ELK_COORDINATOR": f"localhost:{port}", "ELK_NUM_PROCESSES": "2", "ELK_PROCESS_ID": str(index)}
    )
    rows = slice(8 * index, 8 * (index + 1))
    seen: dict = {"losses": {}}
    for dtype in ("float32", "float64"):
        jax.config.update("jax_enable_x64", dtype == "float64")
        run(out / dtype, meshes.make_mesh(), dtype, rows=rows)
        seen["losses"][dtype] = losses(out / dtype)
    jax.config.update("jax_enable_x64", True)
    run_privately(out / "private", meshes.make_mesh(), process_index=index, process_count=2)
    seen["private"] = published(out / "private")
    share = {"process_index": index, "process_count": 2}
    toy.play_privately(out / "game", mesh=meshes.make_mesh(), dtype=np.float64, **share)
    seen["game"] = published(out / "game", "discriminator_")
    jax.config.update("jax_enable_x64", False)

    mesh = meshes.make_mesh(fsdp=4)
    large = np.arange(2.0 * meshes.SMALL, dtype=np.float32)
    placed = meshes.place({"large": large, "small": large[:3]}, mesh)
    back = meshes.on_host(placed, mesh)
    seen["whole"] = {
        "split": not placed["large"].is_fully_replicated,
        "same": bool(np.array_equal(back["large"], large) and np.array_equal(back["small"], large[:3])),
    }

    by_process = np.array(jax.devices()).reshape(2, 2)
    seen["spread"] = spread(meshes.make_mesh(devices=by_process.T.ravel().tolist()))  # as on a TPU slice

    # SIGTERM reaches one process only; both stop at the same step, and the run resumes from there
    def terminate(number):
        if number == 4 and index == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    batches = toy.Batches(rows=rows, before=terminate)
    rare = {"steps": 400, "log_every": 1, "checkpoint_every": 1000}
    try:
        toy.train(out / "stop", toy.model(hidden=HIDDEN), batches, mesh, **rare)
        seen["stopped"] = "never"
    except KeyboardInterrupt as stop:
        seen["stopped"] = str(stop)
    steps = sorted(int(p.name) for p in (out / "stop" / "checkpoints").iterdir() if p.name.isdigit())
    seen["stop_steps"] = steps
    seen["saved_leaves"] = len(jax.tree.leaves(load_state(out / "stop" / "checkpoints", steps[-1]).ema_params))
    return seen


def main() -> None:
    out = Path(sys.argv[1])
    if len(sys.argv) == 2:
        seen = eight_devices(out)
    else:
        seen = two_processes(out, int(sys.argv[2]), sys.argv[3])
    if jax.process_index() == 0:
        (out / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
