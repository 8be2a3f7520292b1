"""What a compiled program needs of a device's memory."""

from typing import Any

import jax


def program_bytes(compiled: Any) -> int:
    """Bytes per device that the compiler plans for a program; 0 if it does not say.

    Arguments and results, counted once where a result takes an argument's place, and
    temporaries.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    return int(
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def device_bytes(device: jax.Device) -> int:
    """Memory of a device; 0 where it does not say (as on CPU)."""
    stats = device.memory_stats() or {}
    return int(stats.get("bytes_limit", 0))


def format_bytes(count: float) -> str:
    """Bytes as "512 B", "3.4 MB" or "1.2 GB", in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
