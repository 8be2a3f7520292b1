"""Mesh sizes are taken as given, filled up, or refused with a remedy."""

import dataclasses
import itertools

import jax
import pytest

from lmjax.config.schema import ParallelConfig
from lmjax.core.errors import ConfigError
from lmjax.parallel.mesh import AXES, across_slices, build_mesh, mesh_shape, num_slices


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1)),
        ({"fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "tensor": 8}, (1, 1, 8)),
    ],
)
def test_the_data_axis_takes_what_is_left_over(
    fields: dict[str, int], shape: tuple[int, int, int]
) -> None:
    assert mesh_shape(ParallelConfig(**fields), 8) == shape


@pytest.mark.parametrize(
    "fields", [{"data": 4}, {"fsdp": 3}, {"tensor": 16}, {"data": 8, "fsdp": 2}]
)
def test_sizes_that_do_not_fit_the_devices_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="for 8 devices") as caught:
        mesh_shape(ParallelConfig(**fields), 8)
    assert "parallel.data" in caught.value.where
    assert "parallel.data=0" in caught.value.remedy


def test_the_mesh_covers_all_devices_under_the_named_axes() -> None:
    mesh = build_mesh(ParallelConfig(fsdp=2, tensor=2))
    assert mesh.axis_names == AXES
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.devices.flat) == set(jax.devices())


def test_a_mesh_may_take_some_of_the_devices() -> None:
    mesh = build_mesh(ParallelConfig(), jax.devices()[:2])
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 1}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU chip of a slice of 2 x 4 chips, two slices in all."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0


CHIPS = [
    Chip(8 * index + 4 * x + y, index, (x, y, 0), 2 * index + x)
    for index, x, y in itertools.product(range(2), range(2), range(4))
]


@pytest.mark.parametrize("shape", [(16, 1, 1), (4, 4, 1), (2, 2, 4), (2, 8, 1)])
def test_the_data_axis_alone_goes_between_slices(shape: tuple[int, int, int]) -> None:
    """Whatever order devices come in, the first half of its places is one slice."""
    found = across_slices(shape, CHIPS[::-1])
    assert found.shape == shape
    assert {chip.id for chip in found.flat} == set(range(16))
    half = shape[0] // 2
    for slice_index, part in enumerate((found[:half], found[half:])):
        assert {chip.slice_index for chip in part.flat} == {slice_index}


def test_slices_that_do_not_divide_the_data_axis_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 TPU slices do not divide") as caught:
        across_slices((1, 16, 1), CHIPS)
    assert "divides the 8 devices of a slice" in str(caught.value)


def test_only_tpus_come_in_slices() -> None:
    """Nodes of GPUs say they are slices too, and any axis may go between those."""
    assert num_slices(CHIPS) == 2
    assert num_slices(CHIPS[:8]) == 1
    nodes = [dataclasses.replace(chip, platform="gpu") for chip in CHIPS]
    assert num_slices(nodes) == 1
    assert num_slices(jax.devices()) == 1
