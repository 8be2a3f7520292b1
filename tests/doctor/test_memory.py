"""What the compiler says of a program's memory, and what helps if it is too much."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lmjax.core.errors import UserError
from lmjax.doctor.memory import (
    advice,
    device_bytes,
    format_bytes,
    is_out_of_memory,
    program_bytes,
)


def test_arguments_and_results_count_and_what_is_donated_counts_once() -> None:
    argument = jax.ShapeDtypeStruct((1000,), jnp.float32)

    def double(x: jax.Array) -> jax.Array:
        return 2 * x

    kept = jax.jit(double).lower(argument).compile()
    assert program_bytes(kept) == pytest.approx(8000, abs=200)
    donated = jax.jit(double, donate_argnums=0).lower(argument).compile()
    assert program_bytes(donated) == pytest.approx(4000, abs=200)


def test_temporaries_count() -> None:
    argument = jax.ShapeDtypeStruct((1000,), jnp.float32)

    def outer(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sort(jnp.sin(x[:, None] * x[None]), axis=0))

    assert program_bytes(jax.jit(outer).lower(argument).compile()) > 4_000_000


@dataclasses.dataclass(frozen=True)
class Silent:
    process_index = 0

    def memory_analysis(self) -> None: ...

    def memory_stats(self) -> None: ...


def test_a_compiler_or_device_that_does_not_tell_gives_0() -> None:
    assert program_bytes(Silent()) == 0
    assert device_bytes(Silent()) == 0


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (3400, "3.4 kB"),
        (3_400_000, "3.4 MB"),
        (1_234_000_000, "1.2 GB"),
        (1_234_500_000_000, "1,234.5 GB"),
    ],
)
def test_bytes_are_told_in_powers_of_ten(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: Out of memory allocating 70368744177664 bytes.",  # CPU
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8192 bytes.",  # GPU
        "INTERNAL: Failed to load a module: CUDA_ERROR_OUT_OF_MEMORY",
        "INTERNAL: cublas error: CUBLAS_STATUS_ALLOC_FAILED",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
        "memory space hbm. Used 21.95G of 15.48G hbm.",
        "RESOURCE_EXHAUSTED: Attempting to allocate 15.65G. That was not possible.",
    ],
)
def test_the_words_of_each_backend_are_known(text: str) -> None:
    assert is_out_of_memory(jax.errors.JaxRuntimeError(text))


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed to compile"),
        jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 73728"
        ),
        jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem."
        ),
        ValueError("RESOURCE_EXHAUSTED: No space left on device"),  # a full disk
    ],
)
def test_what_a_smaller_batch_does_not_mend_is_another_error(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_what_this_machine_says_is_known() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jnp.zeros((1 << 46,), jnp.int8).block_until_ready()
    assert is_out_of_memory(raised.value)
    outer = RuntimeError("the step failed")
    outer.__cause__ = raised.value
    assert is_out_of_memory(outer)
    assert is_out_of_memory(MemoryError("std::bad_alloc"))


GB = 10**9


def _advise(measure: Callable[[int], int], **changes: Any) -> UserError:
    given = dict(batch_size=64, microbatch_size=0, limit_bytes=16 * GB)
    return advice("compiling the training step", measure, **given | changes)


def _one_gb_each(size: int) -> int:
    return size * GB


def test_the_largest_microbatch_that_fits_is_named() -> None:
    error = _advise(_one_gb_each, where="TPU v5 lite")
    assert error.what == (
        "out of memory while compiling the training step, which needs 64.0 GB of "
        "16.0 GB per device"
    )
    # 16 would take every byte, and evaluation wants some.
    assert error.remedy == "add --config.train.microbatch_size=8 (8.0 GB)"
    assert error.where == "TPU v5 lite"


def test_a_microbatch_divides_the_batch_and_is_divided_by_the_devices() -> None:
    # 50, 25, and not 12.
    assert "microbatch_size=10 " in _advise(_one_gb_each, batch_size=50).remedy
    error = _advise(_one_gb_each, batch_size=48, microbatch_size=12, multiple=2)
    assert "microbatch_size=6 " in error.remedy
    tried: list[int] = []

    def never(size: int) -> int:
        tried.append(size)
        return 100 * GB

    _advise(never, batch_size=48, multiple=2)
    assert tried == [48, 24, 12, 6, 2]


def test_no_more_is_compiled_than_is_told() -> None:
    tried: list[int] = []

    def measure(size: int) -> int:
        tried.append(size)
        return size * GB

    _advise(measure)
    assert tried == [64, 32, 16, 8]


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory"),
        MemoryError("std::bad_alloc"),
    ],
)
def test_a_program_that_the_compiler_refuses_does_not_fit(error: Exception) -> None:
    def measure(size: int) -> int:
        if size > 4:
            raise error
        return size * GB

    told = _advise(measure)
    assert told.remedy == "add --config.train.microbatch_size=4 (4.0 GB)"
    assert told.what == "out of memory while compiling the training step"


def test_another_error_of_the_compiler_is_not_hidden() -> None:
    def measure(size: int) -> int:
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        _advise(measure)


OTHERS = {
    "--config.train.remat=dots": lambda size: size * GB // 2,
    "--config.train.remat=full": lambda size: size * GB // 8,
    "--config.data.sequence_length=512": lambda size: size * GB // 4,
}


def test_other_ways_are_named_where_they_fit() -> None:
    error = _advise(_one_gb_each, batch_size=32, others=OTHERS)
    assert error.remedy == (
        "add --config.train.microbatch_size=8 (8.0 GB), or "
        "--config.train.remat=full (4.0 GB), or "
        "--config.data.sequence_length=512 (8.0 GB)"
    )


def test_ways_are_joined_where_none_is_enough() -> None:
    error = _advise(lambda size: (20 + size) * GB, batch_size=256, others=OTHERS)
    assert error.remedy == (
        "add --config.train.microbatch_size=1 --config.train.remat=dots (500.0 MB)"
    )
    error = _advise(lambda size: 20 * GB)
    assert error.remedy.startswith("no smaller step fits: choose a smaller model")


def test_a_step_that_would_fit_points_at_what_else_is_there() -> None:
    error = _advise(lambda size: size * GB // 8)
    assert "--config.train.microbatch_size=32 (4.0 GB)" in error.remedy
    assert "see first what else holds memory of the device" in error.remedy
    assert "what else" not in _advise(_one_gb_each).remedy


def test_a_device_that_does_not_tell_gets_the_figures_of_the_halves() -> None:
    error = _advise(_one_gb_each, limit_bytes=0, others={"--x=1": lambda size: GB})
    assert error.what.endswith("which needs 64.0 GB per device")
    assert error.remedy == (
        "add what fits the device: "
        "--config.train.microbatch_size=32 (32.0 GB), or "
        "--config.train.microbatch_size=16 (16.0 GB), or "
        "--config.train.microbatch_size=8 (8.0 GB), or "
        "--config.train.microbatch_size=4 (4.0 GB), or --x=1 (1.0 GB)"
    )


def test_where_there_is_no_smaller_step_the_model_is_too_large() -> None:
    error = _advise(_one_gb_each, microbatch_size=1, limit_bytes=0)
    assert error.remedy.startswith("no smaller step fits: choose a smaller model")


def test_a_compiler_that_does_not_tell_leaves_the_next_half_to_try() -> None:
    error = _advise(lambda size: 0)
    assert error.what == "out of memory while compiling the training step"
    assert error.remedy == "add --config.train.microbatch_size=32"
