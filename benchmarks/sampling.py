"""Speed of every sampler, and that rare tokens survive many steps.

    python benchmarks/sampling.py [--size nano] [--vocab 4096] [--length 128]
        [--batch 1 16] [--steps 8 32 128 512] [--rounds 3] [--out FILE.md]
    python benchmarks/sampling.py --entropy [--steps 8 64 1024] [--out FILE.md]

The first form fills empty canvases with random parameters, which cost what trained ones
do, with every sampler and number of steps, beside an autoregressive model of the same
size with its key-value cache. Programs are compiled first; then all of them take turns,
`--rounds` times, and the table shows medians, as ratios to the autoregressive run of
the same batch. The second form draws from fixed logits over a Zipf vocabulary of
50,257 ids and compares the mean surprisal of the samples with the true entropy.
"""

import argparse
import datetime
import functools
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.assembly import build_sampler
from lmjax.config import presets
from lmjax.config.schema import GenerateConfig, ModelConfig, SamplerKind
from lmjax.core import trees
from lmjax.diffusion.process import MaskProcess
from lmjax.diffusion.schedules import LinearSchedule
from lmjax.models.attention_kernels import library_attention
from lmjax.models.build import Model, build_model
from lmjax.models.transformer import Setting
from lmjax.objectives.autoregressive import Autoregressive
from lmjax.objectives.masked_diffusion import MaskedDiffusion

PAD, BOS, MASK, EOS, FIRST = 0, 1, 2, 3, 4
STEPPED = (
    SamplerKind.ANCESTRAL,
    SamplerKind.CACHED,
    SamplerKind.ANALYTIC,
    SamplerKind.CONFIDENCE,
    SamplerKind.REMASK,
)


def model_of(size: str, vocab: int, length: int, *, causal: bool) -> Model:
    """A plain transformer of a preset, on this machine's first device."""
    config: ModelConfig = presets.SIZES[size]()
    config.max_length = length
    device = jax.devices()[0]
    capable = device.platform == "tpu" or device.platform == "gpu"
    setting = Setting(
        vocab_size=vocab,
        unpredictable=(PAD, BOS, MASK),
        causal=causal,
        attend=library_attention,
        dtype=jnp.dtype("bfloat16" if capable else "float32"),
    )
    return build_model(config, setting)


def random_params(model: Model) -> Any:
    """Small random numbers everywhere, also in the head, which begins at zero."""
    params = jax.jit(model.init)(jax.random.key(0))
    key = jax.random.key(1)

    def fill(name: str, leaf: jax.Array) -> jax.Array:
        if "head" not in name:
            return leaf
        return 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)

    return trees.map_named(fill, params)


def programs(
    arguments: argparse.Namespace, batch: int
) -> dict[tuple[str, int], Callable[[jax.Array], tuple[Any, int]]]:
    """(sampler, steps) -> a compiled run that returns its tokens and network calls."""
    length, vocab = arguments.length, arguments.vocab
    found: dict[tuple[str, int], Callable[[jax.Array], tuple[Any, int]]] = {}
    causal = model_of(arguments.size, vocab, length, causal=True)
    canvas = np.full((batch, length), PAD, np.int32)
    empty = np.zeros(canvas.shape, bool)
    sampler = build_sampler(
        GenerateConfig(),
        Autoregressive(bos_id=BOS, chunk_tokens=8192),
        causal.bind,
        first_id=BOS,
        eos_id=-1,  # never drawn: every run has the same length
    )
    fill = jax.jit(sampler)
    params = random_params(causal)
    found["left_to_right", length] = functools.partial(
        _run, fill, params, canvas, np.zeros(batch, np.int32), length
    )
    both = model_of(arguments.size, vocab, length, causal=False)
    params = random_params(both)
    process = MaskProcess(
        mask_id=MASK,
        schedule=LinearSchedule(),
        predictable=np.arange(EOS, vocab, dtype=np.int32),
    )
    objective = MaskedDiffusion(process=process, chunk_tokens=8192)
    for kind in (*STEPPED, SamplerKind.FIRST_HITTING):
        stepped = kind in STEPPED
        for steps in arguments.steps if stepped else (length,):
            config = GenerateConfig(sampler=kind, steps=steps, stop_at_eos=False)
            sampler = build_sampler(
                config, objective, both.bind, first_id=BOS, eos_id=EOS
            )
            found[kind.value, steps] = functools.partial(
                _run, jax.jit(sampler), params, canvas, empty, None
            )
    return found


def _run(
    fill: Callable[..., Any],
    params: Any,
    canvas: np.ndarray,
    start: np.ndarray,
    calls: int | None,
    key: jax.Array,
) -> tuple[Any, int]:
    filled = fill(params, key, canvas, start)
    if calls is not None:
        return jax.block_until_ready(filled), calls
    return jax.block_until_ready(filled.tokens_BL), int(filled.calls)


def speed(arguments: argparse.Namespace) -> list[str]:
    """The table of speeds."""
    lines = [
        "| batch | sampler | steps | network calls | tokens/s | beside left to right |",
        "|---|---|---|---|---|---|",
    ]
    for batch in arguments.batch:
        runs = programs(arguments, batch)
        calls: dict[tuple[str, int], int] = {}
        seconds: dict[tuple[str, int], list[float]] = {name: [] for name in runs}
        for name, run in runs.items():
            calls[name] = run(jax.random.key(0))[1]  # compiles
        for number in range(arguments.rounds):
            for name, run in runs.items():
                began = time.perf_counter()
                run(jax.random.key(number + 1))
                seconds[name].append(time.perf_counter() - began)
        reference = next(iter(runs))
        for (kind, steps), measured in seconds.items():
            ratio = statistics.median(
                a / b for a, b in zip(seconds[reference], measured, strict=True)
            )
            rate = batch * arguments.length / statistics.median(measured)
            lines.append(
                f"| {batch} | {kind} | {steps} | {calls[kind, steps]} | {rate:,.0f} | "
                f"{ratio:.2f}x |"
            )
    return lines


class FixedModel:
    """The same logits whatever it sees."""

    def __init__(self, logits_V: jax.Array):
        self.logits_V = logits_V

    def __call__(self, tokens_BL: jax.Array, **_: object) -> jax.Array:
        return jnp.zeros((*tokens_BL.shape, 1))

    def logits(self, hidden: jax.Array) -> jax.Array:
        return jnp.broadcast_to(self.logits_V, (*hidden.shape[:-1], len(self.logits_V)))


def entropy(arguments: argparse.Namespace) -> list[str]:
    """The table of surprisals: 16,384 tokens for each sampler and number of steps."""
    ids, shape = 50_257, (32, 512)
    law = 1 / np.arange(1, ids + 1)
    law /= law.sum()
    truth = float(-np.sum(law * np.log(law)))
    logits_V = jnp.append(jnp.log(jnp.asarray(law, jnp.float32)), -jnp.inf)
    process = MaskProcess(
        mask_id=ids, schedule=LinearSchedule(), predictable=np.arange(ids)
    )
    objective = MaskedDiffusion(process=process, chunk_tokens=8192)
    lines = [
        f"True entropy {truth:.4f} nats.",
        "",
        "| sampler | steps | mean surprisal, nats | s.e. | beside the truth |",
        "|---|---|---|---|---|",
    ]
    for kind in (SamplerKind.ANCESTRAL, SamplerKind.CACHED, SamplerKind.ANALYTIC):
        for steps in arguments.steps:
            config = GenerateConfig(sampler=kind, steps=steps, stop_at_eos=False)
            sampler = build_sampler(
                config, objective, FixedModel, first_id=ids, eos_id=ids
            )
            canvas = np.zeros(shape, np.int32)
            filled = jax.jit(sampler)(
                logits_V, jax.random.key(steps), canvas, np.zeros(shape, bool)
            )
            surprisal = -np.log(law[np.asarray(filled.tokens_BL)])
            error = surprisal.std() / np.sqrt(surprisal.size)
            lines.append(
                f"| {kind.value} | {steps} | {surprisal.mean():.4f} | {error:.4f} | "
                f"{surprisal.mean() / truth - 1:+.2%} |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="nano", choices=presets.SIZES)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 32, 128, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--entropy", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    device = jax.devices()[0]
    lines = [
        f"{datetime.date.today()}, {device.device_kind} ({device.platform}), "
        f"Python {platform.python_version()}, JAX {jax.__version__}.",
        "",
        *(entropy(arguments) if arguments.entropy else speed(arguments)),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
