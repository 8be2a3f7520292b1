"""Targets are read as they are meant, and devices are known by their kinds."""

import pytest

from lmjax.core.errors import ConfigError
from lmjax.doctor.hardware import (
    HARDWARE,
    device_hardware,
    granted_bytes,
    parse_target,
)
from lmjax.doctor.targets import AbsentDevice, target_devices


@pytest.mark.parametrize(
    ("text", "name", "topology", "count"),
    [
        ("v5e:4x4", "v5e", "4x4", 16),
        ("v4:4x4x4", "v4", "4x4x4", 64),
        ("v5p:2x2x2", "v5p", "2x2x2", 8),
        (" V6E:16x16", "v6e", "16x16", 256),
        ("a100-40gb", "a100-40gb", "", 1),
        ("h100-80gb:8", "h100-80gb", "", 8),
    ],
)
def test_a_target_is_a_kind_and_how_many(
    text: str, name: str, topology: str, count: int
) -> None:
    target = parse_target(text)
    assert (target.hardware.name, target.topology, target.count) == (
        name,
        topology,
        count,
    )


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("h100", "did you mean h100-80gb"),
        ("a100_40gb", "did you mean a100-40gb"),
        ("v7x:2x2", "there are v4, v5e"),
        ("v5e", "write v5e:2x2"),
        ("v4:4x4", "write v4:2x2x2"),
        ("t4:2x2", "write t4:8"),
        ("t4:0", "write t4:8"),
        ("v5e:4x", "there are v4, v5e"),
    ],
)
def test_what_is_no_target_is_told_with_what_was_meant(text: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_target(text)
    assert remedy in caught.value.remedy
    assert text in caught.value.where


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("Tesla T4", "t4"),
    ],
)
def test_a_device_is_known_by_its_kind(kind: str, name: str) -> None:
    assert device_hardware(AbsentDevice(0, kind, "")).name == name


def test_devices_of_a_gpu_target_are_known_as_such() -> None:
    for hardware in HARDWARE:
        if hardware.platform == "gpu":
            devices = target_devices(parse_target(f"{hardware.name}:2"))
            assert [device_hardware(device) for device in devices] == [hardware] * 2


def test_jax_takes_three_quarters_of_a_gpu_unless_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hardware = parse_target("t4").hardware
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert granted_bytes(hardware) == 0.75 * 15360 * 2**20
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert granted_bytes(hardware) == 0.9 * 15360 * 2**20
    hardware = parse_target("v5e:2x2").hardware
    assert granted_bytes(hardware) == 15.75 * 2**30
