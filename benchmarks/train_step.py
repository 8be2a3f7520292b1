"""Speed of the training step, beside the same model in torch.

    python benchmarks/train_step.py [--layers 6 --width 384 --heads 6 --vocab 16000
        --batch 8 --length 512] [--rounds 8] [--steps 2]
        [--only lmjax:ar:float32 torch:eager:float32 ...]
        [--json FILE] [--out benchmarks/results/train_step.md]

Contenders are lmjax (`ar` and `diffusion`) and a Llama of transformers in torch with
its fused attention and AdamW (`eager`, and `compiled` by torch.compile), each in
float32 and bfloat16. All take whole optimizer steps: forward, backward, clipping by
global norm and AdamW with float32 parameters, on random tokens, without dropout. Each
lives in a process of its own, and in each round all of them take turns, in any order:
what else the machine does meets all alike. A ratio is taken within a round, and the
table shows medians over rounds.

MFU is the model's FLOPs (6 per matmul parameter and token, and attention's products)
over the device's bfloat16 peak; on CPU over float32 products measured in the same round
(so that bfloat16 may exceed 1). Host overhead is how long a step's call takes to
return, with nothing waiting on the device. Torch's lines need the packages torch and
transformers; what is missing is left out, and said.
"""

import argparse
import datetime
import importlib.util
import json
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
PRECISIONS = ("float32", "bfloat16")
KINDS = ("lmjax:ar", "lmjax:diffusion", "torch:eager", "torch:compiled")
CONTENDERS = tuple(f"{kind}:{name}" for name in PRECISIONS for kind in KINDS)
REFERENCE = "torch:eager:float32"
MATMUL = "matmul"  # a contender that measures what the machine gives just now
SPECIAL = 5  # ids below are special: unknown, BOS, EOS, pad, mask


def random_tokens(arguments: argparse.Namespace, number: int) -> np.ndarray:
    """int32 [B, L]."""
    rng = np.random.default_rng(number)
    shape = (arguments.batch, arguments.length)
    return rng.integers(SPECIAL, arguments.vocab, shape).astype(np.int32)


def lmjax_stepper(
    arguments: argparse.Namespace, objective: str, precision: str
) -> tuple[Callable[[int], Any], dict[str, float]]:
    """(step number -> a value to wait for), and figures known before the first step."""
    import jax
    import jax.numpy as jnp

    from lmjax.assembly import build_objective
    from lmjax.config import schema
    from lmjax.core import trees
    from lmjax.data.batch import Batch
    from lmjax.doctor import flops, memory
    from lmjax.models.attention_choice import choose_attention
    from lmjax.models.build import build_model
    from lmjax.models.stack import use_scan
    from lmjax.models.transformer import Setting
    from lmjax.objectives.cross_entropy import default_chunk_tokens
    from lmjax.optim.learning_rates import learning_rate
    from lmjax.optim.optimizers import build_optimizer
    from lmjax.parallel import rules
    from lmjax.parallel.mesh import build_mesh
    from lmjax.train.state import StateMaker
    from lmjax.train.step import TrainStep

    causal = objective == "ar"
    config = schema.Config(
        model=schema.ModelConfig(
            num_layers=arguments.layers,
            width=arguments.width,
            num_heads=arguments.heads,
            mlp=schema.MLPKind.SWIGLU,
            mlp_width=mlp_width(arguments),
            max_length=arguments.length,
            dropout=0.0,
            tied_embeddings=True,
        ),
        objective=(
            schema.AutoregressiveConfig() if causal else schema.MaskedDiffusionConfig()
        ),
        optim=schema.OptimConfig(ema_decay=0.0),
    )
    config.data.sequence_length = arguments.length
    dtype = jnp.dtype(precision)
    device = jax.devices()[0]
    attention = choose_attention(
        schema.AttentionKind.AUTO,
        device=device,
        causal=causal,
        head_width=arguments.width // arguments.heads,
        length=arguments.length,
        dtype=dtype,
        segments=False,
    )
    setting = Setting(
        vocab_size=arguments.vocab,
        unpredictable=(0, 1, 3, 4),
        causal=causal,
        attend=attention.function,
        scan=use_scan(schema.LayerLayout.AUTO, arguments.layers, device.platform),
        dtype=dtype,
    )
    model = build_model(config.model, setting)
    schedule = learning_rate(
        config.optim, total_steps=10_000, warmup_steps=100, decay_steps=1
    )
    optimizer = build_optimizer(config.optim, schedule, model.names)
    mesh = build_mesh(config.parallel, [device])
    step = TrainStep(
        bind=model.bind,
        objective=build_objective(
            config,
            bos_id=1,
            mask_id=4,
            predictable=np.arange(SPECIAL, arguments.vocab, dtype=np.int32),
            chunk_tokens=default_chunk_tokens(device.platform),
        ),
        optimizer=optimizer,
        schedule=schedule,
        ema_decay=0.0,
        num_microbatches=1,
        use_dropout=False,
        seed=0,
        total_steps=10_000,
        names=model.names,
    )
    maker = StateMaker(
        init=model.init,
        names=model.names,
        optimizer=optimizer,
        use_ema=False,
        mesh=mesh,
    )

    def batch_of(number: int) -> Batch:
        tokens = random_tokens(arguments, number)
        return Batch(
            tokens=tokens,
            weights=np.ones(tokens.shape, np.float32),
            words=np.ones(tokens.shape, np.int32),
            bytes=np.ones(tokens.shape, np.int32),
            source=np.zeros(len(tokens), np.int32),
        )

    began = time.perf_counter()
    compiled = step.compile(maker.abstract(), batch_of(0), mesh)
    compile_seconds = time.perf_counter() - began
    state = [maker.make(jax.random.key(0))]
    params = trees.count(model.shapes)
    sharding = rules.batch_sharding(mesh)

    def take(number: int) -> Any:
        batch = jax.device_put(batch_of(number), sharding)
        state[0], metrics = compiled(state[0], batch)
        return metrics["loss_sum"]

    matmul = trees.count(model.shapes, r"(kernel|table)$")
    figures = {
        "params": params,
        "flops_per_token": flops.flops_per_token(
            config.model, matmul_params=matmul, length=arguments.length, causal=causal
        ),
        "peak_flops": 0.0 if device.platform == "cpu" else flops.peak_flops(device),
        "compile_seconds": compile_seconds,
        "planned_bytes": memory.program_bytes(compiled),
    }
    return take, figures


def mlp_width(arguments: argparse.Namespace) -> int:
    """Of Llama's kind: 8/3 of the width, in whole 64s."""
    return 64 * round(arguments.width * 8 / 3 / 64)


def torch_stepper(
    arguments: argparse.Namespace, how: str, precision: str
) -> tuple[Callable[[int], Any], dict[str, float]]:
    """The same for a Llama of transformers in torch."""
    import torch
    import transformers

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=arguments.vocab,
        hidden_size=arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.heads,
        intermediate_size=mlp_width(arguments),
        max_position_embeddings=arguments.length,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config).to(device).train()
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=3e-4, betas=(0.9, 0.98), weight_decay=0.1, fused=True
    )

    def loss_of(tokens: Any) -> Any:
        return model(input_ids=tokens, labels=tokens).loss

    forward = torch.compile(loss_of) if how == "compiled" else loss_of
    casts = precision == "bfloat16"

    def take(number: int) -> Any:
        tokens = torch.from_numpy(random_tokens(arguments, number)).long().to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=casts):
            loss = forward(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    began = time.perf_counter()
    float(take(0))
    figures = {
        "params": sum(p.numel() for p in model.parameters()),
        "compile_seconds": time.perf_counter() - began,
    }
    return take, figures


def matmul_stepper(
    arguments: argparse.Namespace,
) -> tuple[Callable[[int], Any], dict[str, float]]:
    """Products of float32 matrices, of which 2 * size^3 FLOPs are known."""
    import jax
    import jax.numpy as jnp

    size = 2048 if jax.devices()[0].platform == "cpu" else 8192
    matrix = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    return lambda _: product(matrix, matrix)[0, 0], {"flops": 2.0 * size**3}


def work(arguments: argparse.Namespace) -> None:
    """A contender: answers each line "steps" on standard input with its figures."""
    sys.path.insert(0, str(ROOT))
    name, _, rest = arguments.worker.partition(":")
    how, _, precision = rest.partition(":")
    if name == "lmjax":  # as its command does
        from lmjax.core.allocator import restart_for_large_arrays

        restart_for_large_arrays()
    if name == MATMUL:
        take, figures = matmul_stepper(arguments)
    else:
        make = lmjax_stepper if name == "lmjax" else torch_stepper
        take, figures = make(arguments, how, precision)
    number = 0
    for _ in range(2):
        number += 1
        float(take(number))
    answer = sys.stdout
    print(json.dumps(figures), file=answer, flush=True)
    for line in sys.stdin:
        seconds, overheads = [], []
        for _ in range(int(line)):
            number += 1
            began = time.perf_counter()
            value = take(number)
            overheads.append(time.perf_counter() - began)
            float(value)
            seconds.append(time.perf_counter() - began)
        told = {
            "seconds": statistics.median(seconds),
            "overhead": statistics.median(overheads),
            "peak_bytes": peak_bytes(name),
        }
        print(json.dumps(told), file=answer, flush=True)


def peak_bytes(name: str) -> int:
    """Most memory in use so far: of the GPU where there is one, else of the process."""
    if name == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    else:
        import jax

        stats = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Contender:
    """A process that takes steps when it is asked to."""

    def __init__(self, name: str, shape: list[str]):
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, *shape],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.figures = self._answer()
        self.rounds: list[dict[str, float]] = []

    def take(self, steps: int) -> None:
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        self.rounds.append(self._answer())

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def median(self, name: str) -> float:
        return statistics.median(each[name] for each in self.rounds)

    def _answer(self) -> dict[str, float]:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name} ended with {self._process.wait()}")


def available(names: list[str]) -> list[str]:
    """Those whose packages are installed; says which are left out."""
    lacking = [
        package
        for package in ("torch", "transformers")
        if importlib.util.find_spec(package) is None
    ]
    found = [name for name in names if not (lacking and name.startswith("torch"))]
    if len(found) < len(names):
        print(f"left out, for want of {', '.join(lacking)}: torch", file=sys.stderr)
    return found


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per contender."""
    fields = ("layers", "width", "heads", "vocab", "batch", "length")
    shape = [f"--{name}={getattr(arguments, name)}" for name in fields]
    contenders = []
    for name in [MATMUL, *available(arguments.only or list(CONTENDERS))]:
        print(f"starting {name}", file=sys.stderr, flush=True)
        contenders.append(Contender(name, shape))
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
        # In any order, so that nobody always comes after the same one.
        for index in np.random.default_rng(number).permutation(len(contenders)):
            contenders[index].take(arguments.steps)
    for contender in contenders:
        contender.end()
    matmul, *contenders = contenders
    return [row(each, contenders, matmul, arguments) for each in contenders]


def row(
    contender: Contender,
    contenders: list[Contender],
    matmul: Contender,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """The figures of one contender, as medians over the rounds."""
    tokens = arguments.batch * arguments.length

    def beside(name: str) -> float | None:
        others = [each for each in contenders if each.name == name]
        if not others:
            return None
        pairs = zip(others[0].rounds, contender.rounds, strict=True)
        return statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)

    known = next((c for c in contenders if c.name == "lmjax:ar:float32"), contender)
    own = contender if "flops_per_token" in contender.figures else known
    flops = own.figures.get("flops_per_token", 0.0) * tokens
    peak = own.figures.get("peak_flops", 0.0)
    rates = [
        flops / b["seconds"] / (peak or matmul.figures["flops"] / a["seconds"])
        for a, b in zip(matmul.rounds, contender.rounds, strict=True)
    ]
    return {
        "contender": contender.name,
        "params": contender.figures["params"],
        "tokens_per_second": tokens / contender.median("seconds"),
        "mfu": statistics.median(rates) if flops else None,
        "beside_reference": beside(REFERENCE),
        "beside_ar": beside(contender.name.replace("diffusion", "ar")),
        "first_step_or_compile_seconds": contender.figures["compile_seconds"],
        "peak_bytes": max(each["peak_bytes"] for each in contender.rounds),
        "host_overhead_seconds": contender.median("overhead"),
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows in Markdown."""
    lines = [
        "| contender | tokens/s | MFU | beside torch eager float32 | compile s | "
        "peak memory GB | call ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in rows:
        ratio, mfu = each["beside_reference"], each["mfu"]
        lines.append(
            f"| {each['contender'].replace(':', ' ')} "
            f"| {each['tokens_per_second']:,.0f} "
            f"| {'n/a' if mfu is None else f'{mfu:.0%}'} "
            f"| {'n/a' if ratio is None else f'{ratio:.2f}x'} "
            f"| {each['first_step_or_compile_seconds']:.1f} "
            f"| {each['peak_bytes'] / 1e9:.2f} "
            f"| {1e3 * each['host_overhead_seconds']:.1f} |"
        )
    return lines


def versions() -> str:
    """What was measured with."""
    names = ("jax", "jaxlib", "flax", "torch", "transformers")
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return f"Python {platform.python_version()}, {', '.join(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--vocab", type=int, default=16_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="per turn of a round")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    rows = measure(arguments)
    shape = (
        f"{arguments.layers} layers, width {arguments.width}, {arguments.heads} heads, "
        f"{arguments.vocab:,} ids, {arguments.batch} x {arguments.length} tokens; "
        f"{arguments.rounds} rounds of {arguments.steps} steps"
    )
    lines = [f"{datetime.date.today()}; {versions()}. {shape}.", "", *table(rows)]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(["# The training step", "", *lines, ""]))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
