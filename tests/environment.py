"""Imported before JAX: eight CPU devices in every test process, quick compilation, one cache of compiled programs."""

import atexit
import ctypes
import os
import shutil
import sys
import tempfile
from importlib.metadata import version

# Tests compile longer than they compute. Without the emitters of fusions, which later versions always use, JAX 0.10 takes
# a third of the time for a loss on eight devices.
QUICKLY = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    QUICKLY += " --xla_cpu_opt_preset=FAST_COMPILE --xla_cpu_use_fusion_emitters=false"
EIGHT = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{EIGHT} {QUICKLY}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # two workers compile for TPUs at a time
# Each of the hundreds of processes that tests start would compile the package anew, for half a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Programs that several tests, workers or the processes they start compile alike are compiled once. FILIP_TEST_CACHE
# names a folder that keeps them for the next session; without it, the first process makes one, which its workers
# inherit, and removes it.
if "FILIP_TEST_CACHE" not in os.environ:
    os.environ["FILIP_TEST_CACHE"] = tempfile.mkdtemp(prefix="filip_jax_compiled_")
    atexit.register(shutil.rmtree, os.environ["FILIP_TEST_CACHE"], ignore_errors=True)
# Each of the compiler's threads would keep freed memory of its own, a gigabyte of all together.
if hasattr(libc := ctypes.CDLL(None), "mallopt"):
    libc.mallopt(-8, 2)  # M_ARENA_MAX
CACHE = os.path.abspath(os.path.expanduser(os.environ["FILIP_TEST_CACHE"]))
os.makedirs(CACHE, mode=0o700, exist_ok=True)  # whoever may write to it decides what runs
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
