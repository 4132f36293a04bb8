import json
import os
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from elk_jax.training import checkpoint, mesh, state
from tests.refusals import refused

TX = optax.adam(0.1)


def make(value=1.0, ema=False, **extra):
    params = {"a": {"kernel": jnp.full((4, 3), value)}, "b": jnp.arange(3.0) * value} | extra
    return state.create(params, TX, ema)


def abstract(tree):
    shardings = mesh.tree_shardings(tree, mesh.make_mesh())
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def save_all(folder, scores, keep=2, mode="max"):
    saver = checkpoint.Checkpoints(folder, keep=keep, best_mode=mode)
    for step, score in scores.items():
        saver.save(step, make(float(step)), {"next": step}, {"clock": 0.5 * step}, score)
    saver.wait()
    return saver


def test_everything_comes_back(tmp_path):
    saver = checkpoint.Checkpoints(tmp_path)
    saved = make(0.1, ema=True)
    saver.save(7, saved, {"place": [1, 2]}, {"clock": 1 / 3, "best": {"score": 0.1}})
    restored, data_state, meta = saver.restore(abstract(saved))
    jax.tree.map(np.testing.assert_array_equal, restored, saved._replace(step=jnp.array(7)))
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    assert restored.step.dtype == jnp.int32
    assert data_state == {"place": [1, 2]} and meta == {"clock": 1 / 3, "best": {"score": 0.1}}
    saver.close()


@pytest.mark.parametrize("data_state", [None, {"n": 1}, [1, "x"]])
def test_state_of_any_data_iterator_comes_back(tmp_path, data_state):
    saver = checkpoint.Checkpoints(tmp_path)
    saver.save(1, make(), data_state, {})
    assert saver.restore(abstract(make()))[1] == data_state
    saver.close()


@pytest.mark.parametrize(
    "scores, mode, kept",
    [
        ({1: 0.2, 2: 0.9, 3: 0.1, 4: 0.3, 5: 0.2}, "max", [2, 4, 5]),
        ({1: 0.2, 2: 0.9, 3: 0.1, 4: 0.3, 5: 0.2}, "min", [3, 4, 5]),
        ({1: 0.2, 2: None, 3: None, 4: None}, "max", [1, 3, 4]),
        ({1: None, 2: None, 3: None}, "max", [2, 3]),
        ({1: 0.5, 2: 0.5, 3: None, 4: None}, "max", [2, 3, 4]),
        ({1: 0.5, 2: float("nan"), 3: None, 4: None}, "max", [1, 3, 4]),
    ],
)
def test_the_last_ones_and_the_best_one_are_kept(tmp_path, scores, mode, kept):
    saver = save_all(tmp_path, scores, mode=mode)
    assert saver.latest() == max(scores)
    saver.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == kept
    for step in kept:
        assert checkpoint.load_state(tmp_path, step).params["b"][1] == step


def test_a_loaded_state_is_on_the_host_and_has_no_optimiser(tmp_path):
    saver = checkpoint.Checkpoints(tmp_path)
    saver.save(1, make(), None, {})
    saver.save(2, make(ema=True)._replace(ema_params=make(5.0).params), None, {})
    saver.close()
    plain, smoothed = (checkpoint.load_state(tmp_path, step) for step in (1, 2))
    assert (int(plain.step), plain.opt_state, plain.ema_params) == (1, None, None)
    assert type(smoothed.params) is dict and type(smoothed.params["a"]["kernel"]) is np.ndarray
    np.testing.assert_array_equal(smoothed.params["a"]["kernel"], np.full((4, 3), 1.0, np.float32))
    np.testing.assert_array_equal(smoothed.ema_params["a"]["kernel"], np.full((4, 3), 5.0, np.float32))


def test_a_state_may_hold_the_trees_of_several_players(tmp_path):
    params = {"painter": {"w": jnp.arange(3.0)}, "critic": {"w": jnp.arange(5.0)}}
    optimizers = {"painter": TX.init(params["painter"]), "critic": optax.sgd(0.1, 0.9).init(params["critic"])}
    saved = state.TrainState(jnp.asarray(4, jnp.int32), params, optimizers, params["painter"])
    saver = checkpoint.Checkpoints(tmp_path)
    saver.save(4, saved, None, {})
    restored, *_ = saver.restore(abstract(saved))
    saver.close()
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)


@pytest.mark.parametrize(
    "other, words",
    [
        (make(b=jnp.zeros(4)), ["(params)", "b", "float32[3]", "float32[4]"]),
        (make(c=jnp.zeros(2)), ["(params)", "c", "float32[2]"]),
        (state.create({"b": jnp.zeros(3)}, TX, False), ["(params)", "a/kernel", "float32[4, 3]"]),
        (make(ema=True), ["(ema_params)"]),
        (state.create(make().params, optax.sgd(0.1, 0.9), False), ["(optimizer)", "0/"]),
        (jax.tree.map(lambda x: x.astype(jnp.bfloat16), make()), ["a/kernel", "float32[4, 3]", "bfloat16"]),
    ],
)
def test_another_model_is_refused_naming_the_first_difference(tmp_path, other, words):
    saver = save_all(tmp_path, {1: None})
    with refused(*words, where=tmp_path / "1"):
        saver.restore(abstract(other))
    saver.close()


def test_an_unfinished_write_is_not_a_checkpoint(tmp_path):
    save_all(tmp_path, {1: None}).close()
    partial = tmp_path / "2.orbax-checkpoint-tmp-1"
    (partial / "params").mkdir(parents=True)
    assert checkpoint.load_state(tmp_path, 1).params["b"][1] == 1
    saver = checkpoint.Checkpoints(tmp_path)
    assert saver.latest() == 1
    saver.save(2, make(2.0), None, {})
    saver.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_kill_while_a_checkpoint_is_deleted_leaves_no_half_of_it(tmp_path, monkeypatch):
    deleted = []

    def killed(path, *_, **__):
        """Delete half of it: one item of the checkpoint."""
        deleted.append(Path(path))
        for folder in Path(path).glob("*/params"):
            folder.rename(tmp_path / f"gone{len(deleted)}")

    with monkeypatch.context() as change:
        change.setattr(shutil, "rmtree", killed)
        save_all(tmp_path / "checkpoints", {1: None, 2: None, 3: None, 4: None}).close()
    removed = tmp_path / "checkpoints" / checkpoint.REMOVED
    assert set(deleted) == {removed} and any(tmp_path.glob("gone*"))
    assert sorted(path.name for path in removed.iterdir()) == ["1", "2"]
    saver = checkpoint.Checkpoints(tmp_path / "checkpoints")
    assert not saver.damaged and saver.latest() == 4
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]
    saver.close()


def emptied(path):
    path.write_bytes(b"")


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    save_all(folder, {1: None, 2: None}).close()
    return folder


@pytest.mark.parametrize(
    "name, harm",
    [
        ("params/**/d/*", flipped),
        ("params/**/d/*", halved),
        ("optimizer/manifest.ocdbt", emptied),
        ("optimizer/_METADATA", Path.unlink),
        ("meta/metadata", flipped),
        ("metrics/metrics", emptied),
        ("sha256.json", halved),
        ("sha256.json", Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(two, tmp_path, name, harm):
    folder = shutil.copytree(two, tmp_path / "checkpoints")
    path = max((folder / "2").glob(name), key=lambda path: path.stat().st_size)
    harm(path)
    saver = checkpoint.Checkpoints(folder)
    assert saver.latest() == 1 and list(saver.damaged) == [2] and path.name in saver.damaged[2]
    assert saver.restore(abstract(make()))[2] == {"clock": 0.5}
    saver.check_kept(1)
    with refused("best", 2, where="2.damaged"):
        saver.check_kept(2)
    saver.save(2, make(2.0), None, {})
    saver.close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "2.damaged"]
    assert checkpoint.load_state(folder, 2).params["b"][1] == 2


def test_a_checkpoint_of_an_earlier_version_is_read(two, tmp_path):
    folder = shutil.copytree(two, tmp_path / "checkpoints")
    for step in "12":
        (folder / step / "sha256.json").unlink()
        path = folder / step / "meta" / "metadata"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != checkpoint.MARK}))
    saver = checkpoint.Checkpoints(folder)
    assert saver.latest() == 2 and not saver.damaged and saver.restore(abstract(make()))[0].step == 2
    saver.close()


def test_a_damaged_checkpoint_without_another_is_a_users_error(tmp_path):
    save_all(tmp_path / "checkpoints", {1: None}).close()
    assert checkpoint.find_damage(tmp_path / "checkpoints" / "1") == ""
    flipped(max((tmp_path / "checkpoints" / "1" / "params").rglob("d/*"), key=lambda path: path.stat().st_size))
    for read in (checkpoint.Checkpoints, lambda folder: checkpoint.load_state(folder, 1)):
        with refused("params/", f"remove {tmp_path}", where=tmp_path / "checkpoints" / "1"):
            read(tmp_path / "checkpoints")


def test_nothing_to_load_is_a_users_error(tmp_path):
    with refused(where=tmp_path / "absent"):
        checkpoint.load_state(tmp_path / "absent", 1)
    save_all(tmp_path, {3: None}).close()
    with refused(4, where=tmp_path):
        checkpoint.load_state(tmp_path, 4)


def test_a_process_alone_may_be_paused_while_it_writes(monkeypatch):
    """As by SIGSTOP or a suspended machine. Orbax gave the write up after 20 minutes, and the training ended."""
    limit = lambda: checkpoint._async_options(lambda: None).timeout_secs
    assert limit() > 365 * 24 * 3600
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert limit() == ocp.AsyncOptions().timeout_secs, "another process may hang"


def test_a_write_that_is_given_up_says_how_to_resume(tmp_path):
    with refused("too long", "resume", where=tmp_path), checkpoint._user_errors(tmp_path):
        raise RuntimeError("in a thread") from TimeoutError("after 1200 s")


def test_a_file_in_the_way_is_a_users_error(tmp_path):
    (tmp_path / "run").write_text("")
    with refused(where=tmp_path / "run" / "checkpoints"):
        checkpoint.Checkpoints(tmp_path / "run" / "checkpoints")


def test_a_full_disk_is_a_users_error_and_the_last_checkpoint_stays(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        saver = checkpoint.Checkpoints(disk / "checkpoints")
        saver.save(1, make(), None, {})
        saver.wait()
        large = make(c=jax.random.normal(jax.random.key(0), (1 << 20,)))
        with refused("full", where=disk / "checkpoints"):
            saver.save(2, large, None, {})
            saver.wait()
        assert checkpoint.load_state(disk / "checkpoints", 1).params["b"][1] == 1
        del saver
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_a_users_error(tmp_path):
    tmp_path.chmod(0o500)
    with refused("permission", where=tmp_path / "checkpoints"):
        checkpoint.Checkpoints(tmp_path / "checkpoints")


def test_disk_errors_of_the_storage_library_are_translated(tmp_path):
    text = "RESOURCE_EXHAUSTED: Error writing 'x': No space left on device"
    with refused("full", where=tmp_path), checkpoint._user_errors(tmp_path):
        raise ValueError(text)
    with refused("permission", where=tmp_path), checkpoint._user_errors(tmp_path):
        try:
            raise OSError(13, "Permission denied")
        except OSError as error:
            raise RuntimeError("writer thread") from error


def test_meta_is_json_that_people_can_read(tmp_path):
    saver = checkpoint.Checkpoints(tmp_path)
    saver.save(1, make(), {"next": 3}, {"identity": {"config": "abc"}})
    saver.close()
    content = json.loads((Path(tmp_path) / "1" / "meta" / "metadata").read_text())
    assert content["identity"] == {"config": "abc"}


def test_a_lost_process_is_not_told_as_a_broken_checkpoint(tmp_path):
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNAVAILABLE"), checkpoint._user_errors(tmp_path):
        try:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: a peer is gone")
        except jax.errors.JaxRuntimeError as error:
            raise ValueError("saving failed") from error
