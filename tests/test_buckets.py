"""Orbax saves to buckets and restores from them; they are emulated on this machine."""

import inspect
import os
import subprocess
import sys

import fsspec
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import free_port, make_devices_mesh, slow
from jax.sharding import NamedSharding, PartitionSpec

from filip_jax import buckets, storage
from filip_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::Warning")


def sharded(mesh):
    shardings = {"split": NamedSharding(mesh, PartitionSpec("data")), "whole": NamedSharding(mesh, PartitionSpec())}
    state = {"split": np.arange(1600.0, dtype=np.float32).reshape(16, 100), "whole": np.arange(5)}
    return jax.device_put(state, shardings), shardings


def restored(checkpointer, url, state, shardings):
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
    arguments = ocp.checkpoint_utils.construct_restore_args(target)
    return checkpointer.restore(url, args=ocp.args.PyTreeRestore(target, restore_args=arguments))


def save(checkpointer, url, state, **options):
    checkpointer.save(url, args=ocp.args.PyTreeSave(state), **options)
    checkpointer.wait_until_finished()


@pytest.mark.smoke
def test_a_state_comes_back_from_a_bucket_onto_another_mesh(bucket):
    url = f"{bucket}/run/checkpoints/5/state"
    checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), **buckets.prepare(url))
    state, _ = sharded(make_devices_mesh(1, 8))
    save(checkpointer, url, state)
    files = [file.path.removeprefix(f"{url}/") for file in storage.find_all(url)]
    assert "manifest.ocdbt" in files and "commit_success.txt" in files
    _, elsewhere = sharded(make_devices_mesh(1, 2))
    found = restored(checkpointer, url, state, elsewhere)
    assert all(np.array_equal(found[name], state[name]) for name in state)
    assert all(found[name].sharding == elsewhere[name] for name in state)
    assert checkpointer.metadata(url).item_metadata.tree["split"].shape == (16, 100)
    checkpointer.close()


def test_what_a_dead_save_left_gives_way(bucket):
    url = f"{bucket}/dead/checkpoints/5/state"
    checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), **buckets.prepare(url))
    state, shardings = sharded(make_devices_mesh(1, 8))
    save(checkpointer, url, jax.tree.map(lambda x: x + 1, state))
    system = fsspec.filesystem(url.split(":")[0])
    for name in ("commit_success.txt", "manifest.ocdbt"):
        system.rm(f"{url}/{name}")
    with pytest.raises(ValueError, match="already exists"):
        save(checkpointer, url, state)
    save(checkpointer, url, state, force=True)
    assert np.array_equal(restored(checkpointer, url, state, shardings)["split"], state["split"])
    checkpointer.close()


TWO = f"""
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from filip_jax import buckets

{inspect.getsource(save)}
{inspect.getsource(restored)}
url, mesh = sys.argv[3], jax.make_mesh((4,), ("data",))
checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), **buckets.prepare(url))
shardings = dict(split=NamedSharding(mesh, PartitionSpec("data")), whole=NamedSharding(mesh, PartitionSpec()))
make = lambda: dict(split=jnp.arange(1600.0).reshape(16, 100), whole=jnp.arange(5))
state = jax.jit(make, out_shardings=shardings)()
save(checkpointer, url, state)
found = restored(checkpointer, url, state, shardings)
for name in state:
    for one, other in zip(found[name].addressable_shards, state[name].addressable_shards, strict=True):
        assert np.array_equal(one.data, other.data)
checkpointer.close()
print("equal", jax.process_index())
"""


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["s3", slow("gs")], indirect=True)
def test_two_processes_save_one_state_to_a_bucket(bucket):
    url, address = f"{bucket}/two/checkpoints/5/state", f"127.0.0.1:{free_port()}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    processes = [subprocess.Popen([sys.executable, "-c", TWO, address, str(n), url], **pipes) for n in range(2)]
    try:
        for number, process in enumerate(processes):
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0 and f"equal {number}" in output, output
    finally:
        for process in processes:
            process.kill()
    files = [file.path.removeprefix(f"{url}/") for file in storage.find_all(url)]
    assert {f"ocdbt.process_{n}/manifest.ocdbt" for n in range(2)} <= set(files)
    checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), **buckets.prepare(url))
    state, shardings = sharded(make_devices_mesh(1, 8))
    assert np.array_equal(restored(checkpointer, url, state, shardings)["split"], state["split"])
    checkpointer.close()


def test_a_local_folder_needs_nothing(tmp_path):
    assert buckets.prepare(str(tmp_path)) == {}


def test_an_orbax_without_the_place_is_named(monkeypatch):
    monkeypatch.setattr(buckets, "BUILD", "a name that it lacks")
    with pytest.raises(
        UserError, match=r"s3://bucket/x: orbax-checkpoint .* keeps no checkpoints on s3://; 0.12.8 does"
    ):
        buckets.prepare("s3://bucket/x")


@pytest.mark.parametrize("host", ["localhost:9023", "http://localhost:9023"])
def test_one_variable_moves_gs_to_an_emulator(host, monkeypatch):
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "")  # restored after the test
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
    buckets.prepare("gs://bucket/x")
    assert os.environ["TENSORSTORE_GCS_HTTP_URL"] == "http://localhost:9023"


def test_s3_goes_to_the_endpoint_of_the_environment(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    buckets.prepare("s3://bucket/x")

    def base():
        return buckets.tensorstore_utils.build_kvstore_tspec("s3://bucket/x", use_ocdbt=True)["base"]

    assert base() == {"driver": "s3", "bucket": "bucket", "path": "x"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3:2")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    assert base()["endpoint"] == "http://s3:2" and base()["aws_credentials"] == {"type": "environment"}
    assert buckets.tensorstore_utils.build_kvstore_tspec("/x", use_ocdbt=True)["base"]["driver"] == "file"
