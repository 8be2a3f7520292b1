"""Mesh sizes are taken as given, filled up, or refused with a remedy."""

import jax
import pytest

from lmjax.config.schema import ParallelConfig
from lmjax.core.errors import ConfigError
from lmjax.parallel.mesh import AXES, build_mesh, mesh_shape


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
