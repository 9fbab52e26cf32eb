"""Imported before JAX: eight CPU devices in every test process, quick compilation, one cache of compiled programs."""

import atexit
import os
import shutil
import tempfile

QUICKLY = "--xla_backend_optimization_level=0"  # tests compile longer than they compute
EIGHT = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{EIGHT} {QUICKLY}"
os.environ["JAX_PLATFORMS"] = "cpu"
# Programs that several tests, or the processes they start, compile alike are compiled once.
compiled = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="filip_jax_compiled_")
atexit.register(shutil.rmtree, compiled, ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
