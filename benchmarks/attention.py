"""Speed of every implementation of attention that this machine has.

    python benchmarks/attention.py [--lengths 256 512 ... 8192] [--head-widths 64 128]
        [--width 768] [--tokens 16384] [--dtype bfloat16] [--rounds 5] [--quick]
        [--json FILE] [--out benchmarks/results/attention.md]

Masks: `causal`, `bidirectional`, and `documents`, which is causal with four documents
of equal length in a row. A batch has as many rows as make up --tokens, at least one.
`forward` is the output alone; `step` is the output and the gradients of queries, keys
and values. In each round all implementations take turns, and the table shows medians
over rounds.

TFLOP/s count the products of pairs that the mask lets see each other, once forward and
twice backward: an implementation that multiplies what is masked, or twice, is slower
for it. The ratio is that to plain XLA within a round: above 1 is faster than XLA. What
cannot run is left out, and said.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from lmjax.config.schema import AttentionKind
from lmjax.core.errors import ConfigError
from lmjax.models.attention_choice import choose_attention
from lmjax.models.attention_kernels import AttentionFunction

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
MASKS = ("causal", "bidirectional", "documents")
PASSES = ("forward", "step")
DOCUMENTS = 4  # in a row of the mask of that name
MIN_SECONDS = 0.05  # of calls that are timed together

Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One shape and mask, forward alone or with gradients."""

    mask: str
    head_width: int
    length: int
    batch_size: int
    num_heads: int
    part: str

    @property
    def flops(self) -> float:
        """Of the products that the mask asks for."""
        spans = DOCUMENTS if self.mask == "documents" else 1
        pairs = self.length**2 / spans
        if self.mask != "bidirectional":
            pairs /= 2
        forward = 4.0 * self.batch_size * self.num_heads * self.head_width * pairs
        return forward * (3 if self.part == "step" else 1)


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    for mask in MASKS:
        for head_width in arguments.head_widths:
            for length in arguments.lengths:
                for part in PASSES:
                    yield Case(
                        mask=mask,
                        head_width=head_width,
                        length=length,
                        batch_size=max(1, arguments.tokens // length),
                        num_heads=arguments.width // head_width,
                        part=part,
                    )


def contenders(
    case: Case, dtype: jnp.dtype
) -> tuple[dict[str, AttentionFunction], dict[str, str]]:
    """Implementations by name, and why others cannot run."""
    found, reasons = {}, {}
    for kind in AttentionKind:
        if kind is AttentionKind.AUTO:
            continue
        try:
            found[kind.value] = choose_attention(
                kind,
                device=jax.devices()[0],
                causal=case.mask != "bidirectional",
                head_width=case.head_width,
                length=case.length,
                dtype=dtype,
                segments=case.mask == "documents",
            ).function
        except ConfigError as error:
            reasons[kind.value] = str(error).splitlines()[0]
    return found, reasons


def runner(attend: AttentionFunction, case: Case, dtype: jnp.dtype) -> Run:
    """A call of the compiled case; it has run once when this returns."""
    shape = (case.batch_size, case.length, case.num_heads, case.head_width)
    q, k, v, direction = (
        jax.random.normal(key, shape, dtype)
        for key in jax.random.split(jax.random.key(0), 4)
    )
    segments = None
    if case.mask == "documents":
        numbers = 1 + jnp.arange(case.length) * DOCUMENTS // case.length
        segments = jnp.broadcast_to(numbers, shape[:2]).astype(jnp.int32)
    call = functools.partial(
        attend, causal=case.mask != "bidirectional", segments_BL=segments
    )

    def step(q: jax.Array, k: jax.Array, v: jax.Array, direction: jax.Array) -> Any:
        y, backward = jax.vjp(call, q, k, v)
        return y, backward(direction)

    if case.part == "forward":
        compiled = jax.jit(call).lower(q, k, v).compile()
        run = functools.partial(compiled, q, k, v)
    else:
        compiled = jax.jit(step).lower(q, k, v, direction).compile()
        run = functools.partial(compiled, q, k, v, direction)
    jax.block_until_ready(run())
    return run


def seconds(run: Run, calls: int) -> float:
    """Of one call, of so many that are waited for together."""
    started = time.perf_counter()
    for _ in range(calls):
        result = run()
    jax.block_until_ready(result)
    return (time.perf_counter() - started) / calls


def measure(case: Case, dtype: jnp.dtype, rounds: int) -> list[dict[str, Any]]:
    """A row per implementation; one that cannot run says why."""
    found, reasons = contenders(case, dtype)
    runs: dict[str, Run] = {}
    for name, attend in found.items():
        try:
            runs[name] = runner(attend, case, dtype)
        except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
            reasons[name] = str(error).splitlines()[0][:120]
    calls = {
        name: min(100, max(1, round(MIN_SECONDS / seconds(run, 1))))
        for name, run in runs.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, calls[name]))
    shape = dataclasses.asdict(case)
    rows = [
        shape
        | {
            "implementation": name,
            "milliseconds": 1e3 * statistics.median(each),
            "tflops": case.flops / statistics.median(each) / 1e12,
            "beside_xla": statistics.median(
                xla / own for xla, own in zip(times["xla"], each, strict=True)
            )
            if "xla" in times
            else None,
        }
        for name, each in times.items()
    ]
    return rows + [
        shape | {"implementation": name, "cannot": reason}
        for name, reason in reasons.items()
    ]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The measured rows as Markdown, then what could not run."""
    lines = [
        "| mask | head width | length | rows | pass | implementation | ms | TFLOP/s "
        "| beside XLA |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    reasons: dict[str, None] = {}
    for row in rows:
        if "cannot" in row:
            reasons[f"- {row['implementation']}: {row['cannot']}"] = None
            continue
        ratio = row["beside_xla"]
        lines.append(
            f"| {row['mask']} | {row['head_width']} | {row['length']} "
            f"| {row['batch_size']} | {row['part']} | {row['implementation']} "
            f"| {row['milliseconds']:.2f} | {row['tflops']:.3g} "
            f"| {'' if ratio is None else f'{ratio:.2f}x'} |"
        )
    if reasons:
        lines += ["", "Left out:", "", *reasons]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--head-widths", type=int, nargs="+", default=(64, 128))
    parser.add_argument("--width", type=int, default=768, help="of all heads together")
    parser.add_argument("--tokens", type=int, default=16_384, help="of a batch")
    parser.add_argument("--dtype", help="default: bfloat16, on CPU float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two lengths, few tokens")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.lengths, arguments.tokens, arguments.rounds = (256, 1024), 1024, 3
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    dtype = jnp.dtype(arguments.dtype or ("float32" if on_cpu else "bfloat16"))
    rows = []
    for case in cases(arguments):
        rows += measure(case, dtype, arguments.rounds)
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    head = (
        f"{datetime.date.today()}; {device.device_kind}, {dtype.name}; Python "
        f"{platform.python_version()}, jax {jax.__version__}. Width {arguments.width}, "
        f"{arguments.tokens:,} tokens; {arguments.rounds} rounds."
    )
    lines = [head, "", *table(rows)]
    print("\n".join(lines))
    if arguments.out:
        command = f"`python benchmarks/attention.py {' '.join(sys.argv[1:])}`"
        text = ["# Attention", "", command, "", *lines, ""]
        arguments.out.write_text("\n".join(text))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
