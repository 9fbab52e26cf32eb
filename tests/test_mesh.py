"""Which device stands where: what is close together shares the axis `data`."""

import contextlib
import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from filip_jax.errors import UserError
from filip_jax.mesh import arrange, make_mesh


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What the arrangement asks of a device."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "H100"


def gpus(hosts, each, processes_each=1):
    """The GPUs of so many hosts, as JAX lists them."""
    numbers = range(hosts * each)
    return [Gpu(n, n // each, n * processes_each // each if processes_each > 1 else n // each) for n in numbers]


@pytest.mark.parametrize("each", [1, 2, 4, 6])
@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 8])
def test_every_device_stands_once_and_hosts_go_to_replica_first(hosts, each):
    count = hosts * each
    for processes, replica in itertools.product({1, each}, range(1, count + 1)):
        if count % replica:
            continue
        with pytest.warns(UserWarning) if replica % hosts else contextlib.nullcontext():
            found = arrange(gpus(hosts, each, processes), replica, count // replica)
        assert found.shape == (replica, count // replica)
        assert sorted(device.id for device in found.flat) == list(range(count))
        for row in found:
            assert len({device.slice_index for device in row}) == hosts // math.gcd(hosts, replica)


def test_hosts_of_different_sizes_are_refused():
    uneven = [*gpus(1, 4), Gpu(4, 1, 1), Gpu(5, 1, 1)]
    with pytest.raises(UserError, match=r"different numbers of devices: \[2, 4\]"):
        arrange(uneven, 2, 3)


def test_a_warning_names_the_replica_that_keeps_gathers_inside():
    with pytest.warns(UserWarning, match=r"data=16 reaches over 2 slices or hosts.*mesh.replica=2 keeps"):
        make_mesh(1, -1, gpus(2, 8))


@pytest.mark.parametrize("topology, slices, replica", [("v5e:4x4", 1, 1), ("v5e:4x4", 2, 2), ("v5p:2x2x2", 2, 4)])
def test_tpu_slices_are_rows_of_the_mesh(topology, slices, replica):
    topologies = pytest.importorskip("jax.experimental.topologies")
    pytest.importorskip("libtpu")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, num_slices=slices).devices
    mesh = make_mesh(replica, -1, devices)
    assert mesh.shape["replica"] == replica and mesh.size == len(devices)
    assert all(len({getattr(device, "slice_index", 0) for device in row}) == 1 for row in mesh.devices)


def test_this_machine_is_one_domain():
    assert make_mesh(2, -1).devices.shape == (2, jax.device_count() // 2)
    assert [d.id for d in np.ravel(make_mesh(1, -1).devices)] == [d.id for d in jax.devices()]
