"""Collectives are found in the text of a program, wherever they stand in it."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.doctor.collectives import Collective, collectives, shape_bytes

HEAD = """HloModule jit_f, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}
"""
SIMPLE = """
ENTRY %main (p: f32[6,2], q: bf16[4]) -> f32[24,2] {
  %p = f32[6,2]{1,0:T(8,128)} parameter(0)
  %q = bf16[4]{0} parameter(1)
  %b = (f32[6,2]{1,0:T(8,128)}, /*index=1*/bf16[4]{0}) all-reduce(%p, %q), to_apply=%add
  %part = f32[3,2]{1,0} reduce-scatter(%p), dimensions={0}, to_apply=%add
  %moved = bf16[4]{0} collective-permute(%q), source_target_pairs={{0,1},{1,0}}
  ROOT %all = f32[24,2]{1,0} all-gather(%p), dimensions={0}
}
"""
STARTED = """
%wrapped (w: f32[8]) -> f32[2] {
  %w = f32[8]{0} parameter(0)
  ROOT %inner = f32[2]{0} reduce-scatter(%w), dimensions={0}, to_apply=%add
}

ENTRY %main (p: f32[8], q: s8[3]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  %q = s8[3]{0} parameter(1)
  %a = f32[8]{0} all-reduce-start(%p), to_apply=%add
  %a.done = f32[8]{0} all-reduce-done(%a)
  %g = ((f32[8]{0}, s8[3]{0}), (f32[32]{0}, s8[12]{0})) all-gather-start(%p, %q)
  %g.done = (f32[32]{0}, s8[12]{0}) all-gather-done(%g)
  %c = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p)
  %c.done = f32[8]{0} collective-permute-done(%c)
  %s = ((f32[8]{0}), f32[2]{0}) reduce-scatter-start(%p), calls=%wrapped
  %s.done = f32[2]{0} reduce-scatter-done(%s), calls=%wrapped
  ROOT %out = f32[32]{0} get-tuple-element(%g.done), index=0
}
"""
LOOPS = """
%inner (i: (s32[], f32[5])) -> (s32[], f32[5]) {
  %i = (s32[], f32[5]{0}) parameter(0)
  %v = f32[5]{0} get-tuple-element(%i), index=1
  %r = f32[5]{0} all-reduce(%v), to_apply=%add
  ROOT %t = (s32[], f32[5]{0}) tuple(%v, %r)
}

%outer (o: (s32[], f32[5])) -> (s32[], f32[5]) {
  %o = (s32[], f32[5]{0}) parameter(0)
  ROOT %w = (s32[], f32[5]{0}) while(%o), body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}

ENTRY %main (p: (s32[], f32[5])) -> (s32[], f32[5]) {
  %p = (s32[], f32[5]{0}) parameter(0)
  %once = (s32[], f32[5]{0}) while(%p), body=%inner
  ROOT %w2 = (s32[], f32[5]{0}) while(%once), body=%outer, backend_config={"known_trip_count":{"n":"2"}}
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ("f32[6,2]{1,0:T(8,128)}", 48),
        ("(bf16[4]{0}, /*index=1*/pred[3]{0}, u32[])", 8 + 3 + 4),
        ("s4[3]{0}", 2),
        ("f8e4m3fn[5]", 5),
        ("c64[2]", 16),
        ("f32[<=4,2]", 32),
        ("token[]", 0),
    ],
)
def test_shapes_have_the_bytes_of_their_elements(shape: str, count: int) -> None:
    assert shape_bytes(shape) == count


def test_each_kind_is_counted_with_the_bytes_of_the_whole() -> None:
    assert collectives(HEAD + SIMPLE) == (
        Collective("all-reduce", 1, 48 + 8),
        Collective("all-gather", 1, 4 * 48),
        Collective("reduce-scatter", 1, 48),
        Collective("collective-permute", 1, 8),
    )


def test_asynchronous_collectives_count_once() -> None:
    assert collectives(HEAD + STARTED) == (
        Collective("all-reduce", 1, 32),
        Collective("all-gather", 1, 4 * 32 + 12),
        Collective("reduce-scatter", 1, 32),
        Collective("collective-permute", 1, 32),
    )


def test_what_stands_in_a_loop_counts_as_often_as_it_turns() -> None:
    """Once in the loop of unknown length, and 2 * 3 times in the nested ones."""
    assert collectives(HEAD + LOOPS) == (Collective("all-reduce", 7, 7 * 20),)


def test_a_loop_that_counts_to_a_constant_turns_so_often() -> None:
    """As compiled for TPU: no line says how often, but its condition does."""
    condition = """
%below (b: (s32[], f32[5])) -> pred[] {
  %limit = s32[]{:T(128)} constant(4)
  %b = (s32[], f32[5]{0}) parameter(0)
  %index = s32[]{:T(128)} get-tuple-element(%b), index=0
  ROOT %lt = pred[]{:T(512)} compare(%index, %limit), direction=LT
}
"""
    known = 'body=%outer, backend_config={"known_trip_count":{"n":"2"}}'
    assert known in LOOPS
    loops = LOOPS.replace(known, "condition=%below, body=%outer")
    found = collectives(HEAD + condition + loops)
    assert found == (Collective("all-reduce", 1 + 4 * 3, 13 * 20),)


def test_a_text_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("module @jit_f { }")


def test_a_program_of_this_compiler_is_understood() -> None:
    """Five sums over devices in a loop, and the gathering of its result."""
    mesh = Mesh(jax.devices()[:4], ("x",))
    spec = PartitionSpec("x")

    def turn(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return x + jax.lax.psum(jnp.sin(x), "x"), None

    def program(x: jax.Array) -> jax.Array:
        return jax.lax.scan(turn, x, length=5)[0]

    mapped = jax.shard_map(program, mesh=mesh, in_specs=spec, out_specs=spec)
    whole = NamedSharding(mesh, PartitionSpec())
    compiled = jax.jit(mapped, out_shardings=whole).lower(jnp.zeros((12, 2))).compile()
    assert collectives(compiled.as_text()) == (
        Collective("all-reduce", 5, 5 * 3 * 2 * 4),
        Collective("all-gather", 1, 12 * 2 * 4),
    )


TPU_PROGRAM = """HloModule step

%begin (param.1: f32[64]) -> f32[256] {
  %param.1 = f32[64]{0} parameter(0)
  ROOT %gather.1 = f32[256]{0} all-gather(%param.1), channel_id=7, dimensions={0}
}

%finish (param.2: f32[64]) -> f32[256] {
  %param.2 = f32[64]{0} parameter(0)
  ROOT %gather.2 = f32[256]{0} all-gather(%param.2), channel_id=7, dimensions={0}
}

%below (param.3: (s32[], f32[64])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(5)
  %param.3 = (s32[], f32[64]{0}) parameter(0)
  %turn = s32[] get-tuple-element(%param.3), index=0
  ROOT %compare.1 = pred[] compare(%turn, %constant.1), direction=LT
}

%layer (param.4: (s32[], f32[64])) -> (s32[], f32[64]) {
  %param.4 = (s32[], f32[64]{0}) parameter(0)
  %shard = f32[64]{0} get-tuple-element(%param.4), index=1
  %fusion.1 = f32[256]{0} fusion(%shard), kind=kCustom, calls=%begin
  %fusion.2 = f32[256]{0} fusion(%shard), kind=kCustom, calls=%finish
}

ENTRY %main (param.5: (s32[], f32[64])) -> (s32[], f32[64]) {
  %param.5 = (s32[], f32[64]{0}) parameter(0)
  ROOT %while.1 = (s32[], f32[64]{0}) while(%param.5), condition=%below, body=%layer
}
"""


def test_a_tpu_spreads_one_collective_over_fusions_and_counts_turns_to_a_constant() -> (
    None
):
    assert collectives(TPU_PROGRAM) == (Collective("all-gather", 5, 5 * 256 * 4),)
