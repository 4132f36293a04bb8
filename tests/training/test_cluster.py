"""What an environment says of the other processes of a run: of SLURM, Kubernetes, TPU VMs and by hand."""

from __future__ import annotations

import http.server
import threading

import pytest

from elk_jax.training import cluster
from tests.processes import free_port
from tests.refusals import refused

STEP = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2"}
"""Of the second of two machines under `srun`, a task each."""
FOUR = STEP | {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
"""Two tasks on each of them; the last one."""
BY_HAND = {"ELK_COORDINATOR": "host:1", "ELK_NUM_PROCESSES": "4", "ELK_PROCESS_ID": "3"}
BATCH = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
"""Of a batch script, outside srun."""
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
CHIPS = {"TPU_ML_PLATFORM": "JAX"}
"""What JAX adds to the environment of a machine with libtpu and chips."""
NO_CHIPS = {"TPU_SKIP_MDS_QUERY": "1"}
"""What JAX adds on a machine without chips, with libtpu or without."""
WORKER = {"TPU_WORKER_HOSTNAMES": "w0,w1,w2,w3", "TPU_WORKER_ID": "2"}


@pytest.mark.parametrize(
    "environment, taken",
    [
        (STEP, []),
        (FOUR, [1]),
        (FOUR | {"SLURM_GPUS_PER_TASK": "2"}, []),  # each sees its own alone
        (FOUR | {"JAX_LOCAL_DEVICE_IDS": "2,3"}, None),
        (BY_HAND, []),
        (BY_HAND | STEP, []),
        (BY_HAND | FOUR, [1]),
        (BY_HAND | BATCH, []),
        (BY_HAND | POD, []),
        (BY_HAND | CHIPS | WORKER, []),
    ],
)
def test_one_process_of_a_machine_takes_all_its_gpus_and_several_one_each(environment, taken):
    by_hand = {"coordinator_address": "host:1", "num_processes": 4, "process_id": 3}
    other = by_hand if "ELK_COORDINATOR" in environment else {}
    method = "deactivate" if other else "slurm"
    assert cluster.find(environment) == {"local_device_ids": taken, "cluster_detection_method": method, **other}


@pytest.mark.parametrize(
    "environment, method",
    [
        (CHIPS | WORKER, "gketpu"),
        (CHIPS | POD | WORKER, "gketpu"),
        (CHIPS | {"TPU_PROCESS_ADDRESSES": "w0:8476,w1:8476", "TPU_WORKER_ID": "0"}, "gketpu"),
        (CHIPS | {"TPU_WORKER_HOSTNAMES": "w0", "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
        (CHIPS | WORKER | {"MEGASCALE_NUM_SLICES": ""}, "gketpu"),
        (CHIPS | {"TPU_WORKER_HOSTNAMES": "w0", "TPU_WORKER_ID": "0"}, None),
        (CHIPS | {"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "1"}, None),
        (CHIPS | {"TPU_PROCESS_ADDRESSES": "w0:8476,"}, None),
        (NO_CHIPS | {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}, None),  # compiles
        (NO_CHIPS | {"TPU_WORKER_HOSTNAMES": "localhost"} | STEP, "slurm"),
        (NO_CHIPS, None),
        (BATCH | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "4"}, None),  # an allocation, not a step
        ({}, None),
    ],
)
def test_several_workers_of_a_slice_are_joined_and_one_is_alone(environment, method):
    assert (cluster.find(environment) or {"cluster_detection_method": None})["cluster_detection_method"] == method


@pytest.fixture
def metadata():
    """(attributes, status) -> the environment of a machine whose metadata server has these attributes."""
    server = http.server.ThreadingHTTPServer(("localhost", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def serve(attributes: dict[str, str], status: int = 200) -> dict[str, str]:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                text = attributes.get(self.path.removeprefix("/computeMetadata/v1/instance/attributes/"))
                asked_rightly = self.headers["Metadata-Flavor"] == "Google"
                self.send_response(403 if not asked_rightly else 404 if text is None else status)
                self.end_headers()
                self.wfile.write((text or "").encode())

            def log_message(self, *_):
                pass

        server.RequestHandlerClass = Answer
        return CHIPS | {"GCE_METADATA_IP": f"localhost:{server.server_port}"}

    yield serve
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "attributes, method",
    [
        ({"worker-network-endpoints": "10.0.0.1,10.0.0.2"}, "gcetpu"),
        ({"worker-network-endpoints": "unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2"}, "gcetpu"),
        ({"worker-network-endpoints": "10.0.0.1", "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-4'\n"}, None),
        ({"worker-network-endpoints": "w", "tpu-env": "ZONE: 'a'\nMEGASCALE_NUM_SLICES: '2'\n"}, "gcetpu"),
        ({}, None),
    ],
)
def test_a_tpu_vm_asks_its_metadata_server_for_its_workers(metadata, attributes, method):
    found = cluster.find(metadata(attributes))
    assert found == (method and {"cluster_detection_method": method})


def test_a_tpu_vm_without_chips_or_server_is_alone_and_one_that_fails_is_an_error(metadata):
    workers = {"worker-network-endpoints": "a,b"}
    assert cluster.find(metadata(workers) | NO_CHIPS) is None
    assert cluster.find(CHIPS | {"GCE_METADATA_IP": f"localhost:{free_port()}"}) is None
    with refused(503, "TPU_WORKER_HOSTNAMES", where="worker-network-endpoints"):
        cluster.find(metadata(workers, status=503))


def test_a_metadata_server_that_does_not_answer_is_an_error(monkeypatch):
    monkeypatch.setattr(cluster, "METADATA_SECONDS", 0.05)
    with (
        http.server.HTTPServer(("localhost", 0), http.server.BaseHTTPRequestHandler) as silent,
        refused("no answer", where="worker-network-endpoints"),
    ):
        cluster.find(CHIPS | {"GCE_METADATA_IP": f"localhost:{silent.server_port}"})


@pytest.mark.parametrize(
    "environment, words, where",
    [
        ({"ELK_COORDINATOR": "host:1"}, [], "ELK_COORDINATOR, ELK_NUM_PROCESSES, ELK_PROCESS_ID"),
        ({"ELK_NUM_PROCESSES": "2"}, [], "ELK_COORDINATOR, ELK_NUM_PROCESSES, ELK_PROCESS_ID"),
        ({"ELK_NUM_PROCESSES": "two"}, ["'two'"], "ELK_NUM_PROCESSES"),
        ({"ELK_NUM_PROCESSES": "2", "ELK_PROCESS_ID": "last"}, ["'last'"], "ELK_PROCESS_ID"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, [2], "TPU_WORKER_ID"),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "first"}, ["'first'"], "TPU_WORKER_ID"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "x"}, ["'x'"], "MEGASCALE_NUM_SLICES"),
        ({"SLURM_NTASKS": "x", "SLURM_PROCID": "0"}, ["'x'"], "SLURM_NTASKS"),
    ],
)
def test_half_a_description_of_the_processes_is_refused(environment, words, where):
    with refused(*words, where=where):
        cluster.find(environment)
