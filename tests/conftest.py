"""The small things that several test files share."""

import copy
import ctypes
import gc
import hashlib
import json
import multiprocessing
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import environment  # before anything imports JAX
import fsspec
import jax
import numpy as np
import pytest
import runs
from cost import (  # noqa: F401
    pytest_collection_modifyitems,
    pytest_runtest_protocol,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from filelock import FileLock
from hypothesis import settings
from jax.sharding import AxisType, Mesh

from filip_jax.config import load_config

ROOT = Path(__file__).resolve().parent.parent
MAX_GROWTH = 200  # MiB that a worker may take before it gives back what it can
HELPERS = ("multiprocessing.resource_tracker", "wandb-core")  # processes that a library keeps until this one ends

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in what a shell starts in the background; tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_default_matmul_precision", "highest")
assert jax.device_count() == 8  # JAX has read its flags: the processes that tests start compile as users' do
os.environ["XLA_FLAGS"] = environment.EIGHT
settings.register_profile("all", deadline=None, max_examples=20, derandomize=True)
settings.register_profile("fast", settings.get_profile("all"), max_examples=20 // 4)
settings.load_profile("fast")  # the other is asked for by --hypothesis-profile=all


def whole_tier() -> bool:
    """Return whether all tests run, with all their examples and cases."""
    return settings.get_current_profile_name() == "all"


def examples(count: int):
    """Return hypothesis settings for `count` examples, and a quarter of them in the fast tier."""
    return settings(max_examples=count if whole_tier() else max(count // 4, 2))


def slow(*values: object):
    """Return a row of pytest.mark.parametrize that is in the whole tier only."""
    return pytest.param(*values, marks=pytest.mark.slow)


def resident_memory() -> float:
    """Return the memory that this process holds, in MiB; nothing where there is no /proc."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    return 0.0


def trim() -> None:
    """Give back to the system what glibc keeps for later: compilers free hundreds of megabytes into it."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def forget_programs() -> None:
    """Empty JAX's caches of compiled programs, and give their memory back."""
    jax.clear_caches()
    gc.collect()
    trim()


@pytest.fixture(scope="session")
def kept() -> list[float]:
    """The memory, in MiB, that was left when a file or a test gave back the rest."""
    return [resident_memory()]


@pytest.fixture(scope="module", autouse=True)
def each_file_frees_its_memory(kept):
    """Compiled programs, which JAX's caches keep, too: a worker that ran many files held four gigabytes."""
    yield
    forget_programs()
    kept[0] = resident_memory()


@pytest.fixture(autouse=True)
def each_test_gives_back_much_memory(kept):
    yield
    if resident_memory() > kept[0] + MAX_GROWTH:
        trim()
        if resident_memory() > kept[0] + MAX_GROWTH:
            forget_programs()
        kept[0] = resident_memory()


def make_devices_mesh(replica: int, data: int) -> Mesh:
    """A mesh of the first replica x data devices; filip_jax's own make_mesh takes all of them."""
    devices = np.array(jax.devices()[: replica * data]).reshape(replica, data)
    return Mesh(devices, ("replica", "data"), axis_types=(AxisType.Auto,) * 2)


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors of length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def signed(manifest):
    """The manifest as text, with the hash of its own content."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps(content | {"sha256": own})


def free_port() -> int:
    """Return a TCP port that nobody listens on, below those that systems give to connections going out."""
    while True:
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", secrets.choice(range(20_000, 32_000))))
            return listener.getsockname()[1]


def until(condition: Callable[[], object], seconds: float = 120.0) -> bool:
    """Wait until something is true and return whether it is; the limit is for what would never be, not for a slow machine."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.005)
    return bool(holds)


def small(config: dict, **changes) -> dict:
    """A shipped config with towers of one narrow layer and what `changes` says, by dotted key."""
    config = copy.deepcopy(config)
    shrunk = {
        "batch_size": 16,
        "model.embed_dim": 16,
        "model.dtype": "float32",
        "model.scan": True,
        **{
            f"model.{tower}.{key}": value
            for tower in ("image", "text")
            for key, value in (("width", 32), ("depth", 2), ("heads", 2))
        },
        **changes,
    }
    for key, value in shrunk.items():
        *sections, name = key.split(".")
        section = config
        for part in sections:
            section = section[part]
        section[name] = value
    return config


def children() -> dict[int, str]:
    """Return {pid: command} of the processes that this one started and has not waited for; on Linux only."""
    pids, found = [], {}
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # of a thread that has ended since
            pids += file.read_text().split()
    for pid in pids:
        with suppress(OSError):  # of a process that somebody has waited for since
            name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            found[int(pid)] = name or "has no name: it begins, or has ended"
    return {pid: name for pid, name in found.items() if not any(helper in name for helper in HELPERS)}


@contextmanager
def no_process_left(seconds: float = 60.0) -> Iterator[None]:
    """Fail what leaves a process behind: its end, or Python's warning of it, would fail another test."""
    before, end = children(), 0.0
    yield
    while left := {pid: name for pid, name in children().items() if pid not in before}:
        end = end or time.monotonic() + seconds
        gc.collect()  # iterators end their workers when they are collected
        multiprocessing.active_children()  # which waits for those that have ended
        if time.monotonic() > end:
            for pid in left:
                os.kill(pid, signal.SIGKILL)  # of one that has ended, but not been waited for, the pid is still its own
            raise AssertionError(f"processes were left and are killed now: {left}")
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def each_test_ends_its_processes():
    with no_process_left():
        yield


@pytest.fixture(scope="session")
def demo_config() -> dict:
    """configs/demo.py:quick as it is shipped."""
    return load_config(str(ROOT / "configs/demo.py:quick"))


@pytest.fixture(scope="session")
def small_demo(demo_config) -> dict:
    """configs/demo.py:quick with small towers, few steps and small evaluations."""
    evals = copy.deepcopy(demo_config["evals"])
    evals["val"] |= {"examples": 32, "source": evals["val"]["source"] | {"scenes": 32}}
    evals["pointing"] |= {"examples": 16, "source": evals["val"]["source"]}
    evals["probe"] |= {
        "training": evals["probe"]["training"] | {"scenes": 50},
        "protocol": {"name": "lbfgs", "regularisation": (1.0,)},
    }
    evals["alignment"] |= {"examples": 2, "source": evals["val"]["source"]}
    for each in evals.values():
        if "neighbours" in each:
            each["neighbours"] = each["neighbours"] | {"examples": 50}
    return small(
        demo_config,
        **{
            "total_steps": 12, "optimizer.warmup_steps": 2, "log_every_steps": 1,
            "checkpoint.every_steps": 4, "eval_every_steps": 0, "evals": evals, "tokenizer.captions": 500,
        },
    )  # fmt: skip


@pytest.fixture(scope="session")
def finished_config(small_demo) -> dict:
    """The config of the finished run: saved at the steps 4, 8 and 12, evaluated at 8 and 12."""
    checkpoint = small_demo["checkpoint"] | {"keep_last": 3}
    return small_demo | {"eval_every_steps": 8, "log_keys": True, "checkpoint": checkpoint}


@pytest.fixture(scope="session")
def finished(finished_config, tmp_path_factory) -> tuple[Path, str]:
    """The one finished run of a session and what it printed: `filip train` on one device, started once for all workers.

    It is for reading: whoever writes to it takes a copy.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # the folder of all workers
    folder = shared / "finished"
    with FileLock(shared / "finished.lock"):
        if not (folder / "output.txt").exists():
            folder.mkdir()
            words = runs.command(folder / "run", finished_config)
            done = subprocess.run(words, env=runs.environment(), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (folder / "output.txt").write_text(done.stdout)
    return folder / "run", (folder / "output.txt").read_text()


@pytest.fixture(scope="session")
def s3():
    """A bucket on moto's server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    secrets = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (secrets | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(scope="session")
def gs():
    """A bucket on gcp-storage-emulator's server."""
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import create_server

    download = objects.download

    def with_generation(request, response, storage, *arguments, **options):
        """Google's servers say which generation they give; TensorStore's conditional writes need to know."""
        with suppress(NotFound):
            found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = found["generation"]
        return download(request, response, storage, *arguments, **options)

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # which asks for credentials
        patch.setattr(objects, "download", with_generation)
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        yield "gs://bucket"
    server.stop()


@pytest.fixture(params=["s3", "gs"])
def bucket(request):
    """The URL of an emulated bucket, once of each kind."""
    return request.getfixturevalue(request.param)
