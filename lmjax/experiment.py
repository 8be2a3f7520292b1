"""Composition root: a Config becomes objects, and after this nobody reads its choices.

`System` is what every mode needs: tokenizer, model, objective, mesh. `Run` is what
training adds: the length of everything in steps, the optimizer, the compiled step.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from lmjax.assembly import build_objective, build_sampler
from lmjax.config.schema import (
    SAMPLE_CORPUS,
    AutoregressiveConfig,
    Config,
    DataConfig,
    GenerateConfig,
    MaskedDiffusionConfig,
    Packing,
    Parameterization,
    Precision,
)
from lmjax.core import durations
from lmjax.core.errors import ConfigError
from lmjax.data import pipeline
from lmjax.data.batch import Batch
from lmjax.data.mixing import Mixture
from lmjax.data.preparation.manifest import Prepared
from lmjax.data.preparation.prepare import prepare
from lmjax.data.preparation.statistics import token_counts
from lmjax.data.reading import hub
from lmjax.data.reading.sources import Source, find_sources
from lmjax.data.sample import corpus as sample_corpus
from lmjax.data.sample import grammar as sample_grammar
from lmjax.data.tokenization.tokenizers import SpecialIds, Tokenizer
from lmjax.models import stack
from lmjax.models.attention_kernels import AttentionChoice, choose_attention
from lmjax.models.build import Model, build_model, padded_vocab_size
from lmjax.models.transformer import Setting
from lmjax.objectives.base import Objective
from lmjax.optim.learning_rates import learning_rate
from lmjax.optim.optimizers import build_optimizer
from lmjax.parallel.mesh import build_mesh
from lmjax.sampling.prompts import Generator
from lmjax.train.loop import Intervals
from lmjax.train.state import StateMaker
from lmjax.train.step import TrainStep


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """A model with its objective on this machine's devices."""

    tokenizer: Tokenizer
    mesh: Mesh
    dtype: jnp.dtype
    attention: AttentionChoice
    model: Model
    objective: Objective
    num_predictable: int  # ids a model can predict: ln of it is the first loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: its lengths in steps, its optimizer and its step."""

    scale: durations.RunScale
    intervals: Intervals
    warmup_steps: int
    num_microbatches: int
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    step: TrainStep
    state_maker: StateMaker


def prepare_corpus(config: Config, *, repair: bool = False) -> Prepared:
    """The prepared corpus of a config: from the cache, or made now.

    Args:
      repair: whether shards that are wrong are written again, rather than an error.
    """
    data = config.data
    fetch = functools.partial(
        hub.fetch_dataset,
        cache_dir=pathlib.Path(data.cache_dir).expanduser(),
        prompt_field=data.prompt_field,
    )
    if data.train == (SAMPLE_CORPUS,):
        sample = _sample_file(data)
        train: Sequence[Source] = [Source(sample.name, (sample,))]
    else:
        train = find_sources(data.train, "train", "data.train", fetch=fetch)
    valid: Sequence[Source] = ()
    if data.valid:
        valid = find_sources(data.valid, "valid", "data.valid", fetch=fetch)
    names = sorted(source.name for source in train)
    Mixture.parse(data.weights, data.max_epochs, names)  # a slip is told at once
    return prepare(
        data,
        config.tokenizer,
        config.cleaning,
        seed=config.seed,
        train=train,
        valid=valid,
        repair=repair,
    )


def build_system(
    config: Config,
    tokenizer: Tokenizer,
    devices: Sequence[jax.Device] | None = None,
    *,
    prepared: Prepared | None = None,
) -> System:
    """Model and objective of a config; allocates nothing on the devices.

    Args:
      prepared: the training text, for objectives that ask how rare a token is; None
        where nothing is trained.
    """
    mesh = build_mesh(config.parallel, devices)
    device = mesh.devices.flat[0]
    dtype = _compute_dtype(config.train.precision, device)
    causal = isinstance(config.objective, AutoregressiveConfig)
    attention = choose_attention(
        config.model.attention,
        device=device,
        causal=causal,
        head_width=config.model.width // config.model.num_heads,
        length=config.data.sequence_length,
        dtype=dtype,
        segments=config.data.document_mask,
    )
    rows = padded_vocab_size(tokenizer.vocab_size)
    never = {*tokenizer.unpredictable, *range(tokenizer.vocab_size, rows)}
    predictable = np.setdiff1d(np.arange(rows, dtype=np.int32), list(never))
    if _predicts_mask(config):
        never.discard(tokenizer.special.mask)
    setting = Setting(
        vocab_size=rows,
        unpredictable=tuple(sorted(never)),
        causal=causal,
        attend=attention.function,
        scan=stack.use_scan(
            config.model.layers, config.model.num_layers, device.platform
        ),
        remat=config.train.remat,
        dtype=dtype,
    )
    return System(
        tokenizer=tokenizer,
        mesh=mesh,
        dtype=dtype,
        attention=attention,
        model=build_model(config.model, setting),
        objective=build_objective(
            config,
            bos_id=tokenizer.special.bos,
            mask_id=tokenizer.special.mask,
            predictable=predictable,
            token_counts=_token_counts(config, prepared, rows),
        ),
        num_predictable=rows - len(never),
    )


def build_run(config: Config, system: System, prepared: Prepared) -> Run:
    """Lengths, optimizer and step of a training run."""
    scale = run_scale(config, prepared)
    total = scale.total_steps

    def steps(duration: str) -> int:
        return durations.to_steps(duration, scale)

    warmup_steps = steps(config.optim.warmup)
    if warmup_steps >= total:
        logging.warning(
            "the warm-up (%d steps) is as long as the run (%d): the learning rate "
            "never reaches its peak; lower optim.warmup",
            warmup_steps,
            total,
        )
    schedule = learning_rate(
        config.optim,
        total_steps=total,
        warmup_steps=warmup_steps,
        decay_steps=max(1, steps(config.optim.decay)),
    )
    optimizer = build_optimizer(config.optim, schedule)
    batch_size = config.train.batch_size
    num_microbatches = batch_size // (config.train.microbatch_size or batch_size)
    return Run(
        scale=scale,
        intervals=Intervals(
            total=total,
            log=max(1, steps(config.log.every)),
            evaluate=steps(config.evaluate.every),
            generate=steps(config.generate.every),
            save=steps(config.checkpoint.every),
        ),
        warmup_steps=warmup_steps,
        num_microbatches=num_microbatches,
        schedule=schedule,
        optimizer=optimizer,
        step=TrainStep(
            bind=system.model.bind,
            objective=system.objective,
            optimizer=optimizer,
            schedule=schedule,
            ema_decay=config.optim.ema_decay,
            num_microbatches=num_microbatches,
            use_dropout=config.model.dropout > 0,
            seed=config.seed,
            total_steps=total,
        ),
        state_maker=StateMaker(
            init=system.model.init,
            names=system.model.names,
            optimizer=optimizer,
            use_ema=config.optim.ema_decay > 0,
            mesh=system.mesh,
        ),
    )


def run_scale(config: Config, prepared: Prepared) -> durations.RunScale:
    """What a step and an epoch of this corpus are worth, and the run's length."""
    batch_size = config.train.batch_size
    counts = [records.counts for records in prepared.train.records]
    windows = np.array([count.windows for count in counts])
    mix = mixture(config, prepared)
    drawn = batch_size * mix.shares(windows) / windows  # of each source, per step
    drawn *= pipeline.kept_share(config.data.sequence_length, config.data.random_length)
    scale = durations.RunScale(
        steps_per_epoch=windows[mix.weights > 0].sum() / batch_size,
        tokens_per_step=float(drawn @ [count.tokens for count in counts]),
        words_per_step=float(drawn @ [count.words for count in counts]),
    )
    total = durations.to_steps(config.train.budget, scale)
    most = mix.num_windows(windows) // batch_size
    if total > most:
        raise ConfigError(
            f"the run takes {total:,} steps, but data.max_epochs leaves text for "
            f"{most:,.0f}",
            where=f"train.budget={config.train.budget!r}",
            remedy=f'--config.train.budget="{most:.0f} steps", or allow more passes in '
            "data.max_epochs"
            if most
            else "lower train.batch_size, or allow more passes in data.max_epochs",
        )
    return dataclasses.replace(scale, total_steps=total)


def mixture(config: Config, prepared: Prepared) -> Mixture:
    """How training draws from the sources of the training split."""
    sources = [records.source for records in prepared.train.records]
    return Mixture.parse(config.data.weights, config.data.max_epochs, sources)


def build_generator(
    config: GenerateConfig, data: DataConfig, system: System, *, max_length: int
) -> Generator:
    """Writes texts with the sampler that goes with the objective."""
    special = system.tokenizer.special
    opening, first = document_opening(data, special), special.bos
    if data.document_mask and data.packing is not Packing.DOCUMENTS:
        # Then a document sees nothing of the one before: not its end, but for a causal
        # model, which reads that as the document's first input.
        opening, first = opening[1:], special.eos
    sampler = build_sampler(
        config,
        system.objective,
        system.model.bind,
        first_id=first,
        eos_id=special.eos,
    )
    return Generator(
        sampler,
        system.tokenizer,
        max_length=max_length,
        opening=opening,
        stride=config.stride,
        show_steps=config.show_steps,
    )


def document_opening(data: DataConfig, special: SpecialIds) -> tuple[int, ...]:
    """What stands before a document's text: the end of another, and its own BOS.

    Where each has windows of its own, nothing of another stands before it.
    """
    end = () if data.packing is Packing.DOCUMENTS else (special.eos,)
    return (*end, special.bos) if data.bos else end


def train_batches(
    config: Config, prepared: Prepared, start_step: int
) -> Iterator[Batch]:
    """This host's training batches from `start_step` on."""
    return pipeline.train_batches(
        prepared,
        batch_size=config.train.batch_size,
        seed=config.seed,
        mixture=mixture(config, prepared),
        document_mask=config.data.document_mask,
        random_length=config.data.random_length,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def eval_batches(
    config: Config, prepared: Prepared, num_batches: int
) -> Iterator[Batch]:
    """This host's held-out batches; 0 means all."""
    return pipeline.eval_batches(
        prepared,
        batch_size=config.evaluate.batch_size or config.train.batch_size,
        num_batches=num_batches,
        document_mask=config.data.document_mask,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _sample_file(data: DataConfig) -> pathlib.Path:
    """The built-in corpus as a file in the cache, written if it is not there."""
    sources = [module.__file__ for module in (sample_corpus, sample_grammar)]
    text = b"".join(pathlib.Path(source).read_bytes() for source in sources)
    version = hashlib.sha256(text).hexdigest()[:12]
    folder = pathlib.Path(data.cache_dir).expanduser() / "sample"
    path = folder / f"sample-{data.sample_words}-{version}.train"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        sample_corpus.write_corpus(path, seed=0, num_words=data.sample_words)
    return path


def _predicts_mask(config: Config) -> bool:
    section = config.objective
    return (
        isinstance(section, MaskedDiffusionConfig)
        and section.parameterization is Parameterization.D3PM
    )


def _token_counts(
    config: Config, prepared: Prepared | None, rows: int
) -> np.ndarray | None:
    """How often each id stands in the training text, where the objective asks."""
    section = config.objective
    if prepared is None or not isinstance(section, MaskedDiffusionConfig):
        return None
    if not section.frequency_masking:
        return None
    counts = token_counts(prepared)
    return np.pad(counts, (0, rows - len(counts)))


def _compute_dtype(precision: Precision, device: jax.Device) -> jnp.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32."""
    capable = device.platform == "tpu" or (
        device.platform == "gpu"
        and float(getattr(device, "compute_capability", 0)) >= 8.0
    )
    match precision:
        case Precision.AUTO:
            return jnp.dtype("bfloat16" if capable else "float32")
        case Precision.BFLOAT16 if device.platform == "gpu" and not capable:
            raise ConfigError(
                f"{device.device_kind} does not multiply bfloat16",
                where="train.precision=bfloat16",
                remedy="--config.train.precision=auto, or float32",
            )
        case _:
            return jnp.dtype(precision.value)
