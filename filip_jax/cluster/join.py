"""Joining the processes of a run, and the table of who they are."""

import hashlib
import ipaddress
import json
import os
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jaxlib
import numpy as np

from filip_jax import __version__, progress
from filip_jax.cluster import service
from filip_jax.cluster.watch import HUNG, Watch, check_signals
from filip_jax.errors import ProcessLost, UserError
from filip_jax.sections import at_least

LOST = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")  # the states of gRPC in which the other side cannot be reached
JAX_IS_LATER = 2  # times: it ends processes without naming the one that is gone, see pulse.py
SAME = ("python", "jax", "jaxlib", "numpy", "filip_jax", "config")  # what all processes must have alike


def check_processes(
    *, stop_signals: Sequence[str], heartbeat_seconds: int, start_seconds: int, hang_seconds: float
) -> None:
    """Raises a UserError for a config section `processes` that cannot be.

    Args:
        stop_signals: that ask a run to save and to end with exit code 42.
        heartbeat_seconds: without a sign of life after which a process counts as dead, and all end.
        start_seconds: that processes wait for each other when they start.
        hang_seconds: after which a step, or a wait for data, is taken for a hang; other phases have
            four times as long.
    """
    check_signals(stop_signals)
    at_least(10, "processes", heartbeat_seconds=heartbeat_seconds)
    at_least(1, "processes", start_seconds=start_seconds, hang_seconds=hang_seconds)


def join_processes(watch: Watch, heartbeat_seconds: int, start_seconds: int) -> None:
    """Makes this process one of several that train together.

    The cluster (Slurm, Kubernetes, TPU, Open MPI) tells who and how many they are; without one,
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do. If the others do not come in
    `start_seconds`, the watch ends the process: JAX itself would only abort. Progress is shown by the first process.

    Raises:
        UserError: neither does, the address cannot be, or this process is there already.
        ProcessLost: another process ended before all had met.
    """
    count, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    _check_environment(count, index, address)
    _claim(address, index)
    jax.config.update("jax_enable_preemption_service", False)  # signals are ours, see watch.py
    given: dict[str, Any] = {"num_processes": int(count), "process_id": int(index)} if count and index else {}
    who = f"this is process {index} of {count}, they meet at {address}" if given else "the cluster names them"
    hint = "; a loopback address is another one on each host" if is_loopback(address) else ""
    line = (
        f"filip: error: the other processes have not come in processes.start_seconds={start_seconds}: {who}{hint}. "
        f"Each of the ids 0 to number - 1 must be started once; exit {HUNG}"
    )
    try:
        with watch.within(start_seconds, line):
            jax.distributed.initialize(
                **given,
                initialization_timeout=start_seconds + 60,
                heartbeat_timeout_seconds=JAX_IS_LATER * heartbeat_seconds,
            )
    except (ValueError, RuntimeError) as error:
        _check_lost(error)
        first = " ".join(str(error).split())[:300]
        raise UserError(
            f"--distributed: {first}; outside of Slurm, Kubernetes, TPU and Open MPI set "
            "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID (0 to number - 1, each once)"
        ) from error
    try:
        index = jax.process_index()  # makes the backends, for which the processes tell each other their devices
    except RuntimeError as error:
        _check_lost(error)
        raise
    if index:
        progress.silence()


def _check_lost(error: Exception) -> None:
    """Raise ProcessLost if an error of JAX says that another process could not be reached: it may come back."""
    if any(status in str(error) for status in LOST):
        text = " ".join(str(error).split())[:300]
        raise ProcessLost(f"another process was lost while the processes met: {text}") from error


_claimed: list[socket.socket] = []  # held until the process ends


def _claim(address: str, index: str | None) -> None:
    """Notices a process of the same id on this host; of one elsewhere JAX ends the run, naming the id."""
    if address and index and sys.platform == "linux":
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0filip_jax/{address}/{index}")
        except OSError as error:
            raise UserError(
                f"JAX_PROCESS_ID={index}: this host has a process {index} of {address} already; "
                "the ids are 0 to JAX_NUM_PROCESSES - 1, each once"
            ) from error
        _claimed.append(claim)


def _check_environment(count: str | None, index: str | None, address: str) -> None:
    for name, value in (("JAX_NUM_PROCESSES", count), ("JAX_PROCESS_ID", index)):
        if value is not None and not value.isdigit():
            raise UserError(f"{name}={value} is not a whole number")
    if count and index and not int(index) < int(count):
        raise UserError(f"JAX_PROCESS_ID={index} must be below JAX_NUM_PROCESSES={count}")
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if address and is_loopback(address) and nodes.isdigit() and int(nodes) > 1:
        raise UserError(_loopback(address, f"{nodes} nodes (SLURM_JOB_NUM_NODES)"))


def is_loopback(address: str) -> bool:
    """Whether host:port means every machine itself."""
    host = address.rsplit(":", 1)[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _loopback(address: str, where: str) -> str:
    return (
        f"the coordinator's address {address} is a loopback address, which every host takes for itself, but the run "
        f"has {where}: give an address of process 0's host that the others reach"
    )


def describe_process(config: Mapping[str, Any]) -> dict[str, Any]:
    """Who this process is."""
    devices = jax.local_devices()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "devices": f"{len(devices)} {devices[0].device_kind}",
        "ids": [device.id for device in devices],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
        "filip_jax": __version__,
        "config": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12],
        "coordinator": service.address(),
    }


def preflight(config: Mapping[str, Any]) -> str:
    """The table of the processes, one row each.

    Raises:
        UserError: they are not one run: another version or config somewhere, device ids twice, or a
            coordinator that each host takes for itself.
    """
    processes = service.gather(describe_process(config))
    check_table(processes)
    columns = ("host", "pid", "devices", "python", "jax", "filip_jax", "config")
    rows = [("process", *columns), *((str(n), *(str(p[c]) for c in columns)) for n, p in enumerate(processes))]
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def check_table(processes: Sequence[Mapping[str, Any]]) -> None:
    """Raises a UserError unless these processes can be one run."""
    for name in SAME:
        found = {process[name]: number for number, process in reversed(list(enumerate(processes)))}
        if len(found) > 1:
            said = ", ".join(f"{value} on process {n} ({processes[n]['host']})" for value, n in found.items())
            raise UserError(f"the processes differ in {name}: {said}; start all of them alike")
    ids = [number for process in processes for number in process["ids"]]
    if len(set(ids)) < len(ids):
        raise UserError(f"the processes hold the same devices twice: ids {sorted(ids)}")
    hosts = sorted({process["host"] for process in processes})
    address = processes[0]["coordinator"]
    if len(hosts) > 1 and is_loopback(address):
        raise UserError(_loopback(address, f"{len(hosts)} hosts: {', '.join(hosts[:4])}"))
