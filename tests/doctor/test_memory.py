"""What the compiler says of a program's memory."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from lmjax.doctor.memory import device_bytes, format_bytes, program_bytes


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
