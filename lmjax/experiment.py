"""Composition root: a Config becomes objects, and after this nobody reads its choices.

`System` is what every mode needs: tokenizer, model, objective, mesh. What training adds
to it stands in `training_run`.
"""

import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmjax.assembly import build_objective, build_sampler
from lmjax.config.schema import (
    SAMPLE_CORPUS,
    AutoregressiveConfig,
    Config,
    DataConfig,
    FirstInput,
    GenerateConfig,
    MaskedDiffusionConfig,
    Packing,
    Parameterization,
    Precision,
    TrainConfig,
)
from lmjax.core.errors import ConfigError
from lmjax.data.mixing import Mixture
from lmjax.data.preparation.manifest import Prepared
from lmjax.data.preparation.prepare import prepare
from lmjax.data.preparation.statistics import token_counts
from lmjax.data.reading import hub
from lmjax.data.reading.sources import Source, find_sources
from lmjax.data.sample import corpus as sample_corpus
from lmjax.data.sample import grammar as sample_grammar
from lmjax.data.tokenization.tokenizers import SpecialIds, Tokenizer
from lmjax.doctor.attention_check import AttentionCheck
from lmjax.models import stack
from lmjax.models.attention_choice import AttentionChoice, choose_attention
from lmjax.models.build import Model, build_model, padded_vocab_size
from lmjax.models.transformer import Setting, head_width
from lmjax.objectives.autoregressive import Autoregressive
from lmjax.objectives.base import Objective
from lmjax.objectives.cross_entropy import default_chunk_tokens
from lmjax.parallel.mesh import build_mesh
from lmjax.parallel.rules import BATCH_AXES, Layout
from lmjax.sampling.prompts import Generator


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

    @functools.cached_property
    def on_mesh(self) -> Model:
        """The model for batches whose rows lie on the mesh."""
        return self.model.on(Layout(self.mesh))


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
    prepared = prepare(
        data,
        config.tokenizer,
        config.cleaning,
        seed=config.seed,
        train=train,
        valid=valid,
        repair=repair,
    )
    words = prepared.train.counts.words
    if 0 < data.max_words < words:
        raise ConfigError(
            f"the training text has {words:,} words, and {data.max_words:,} are "
            "allowed",
            where=f"data.train={data.train}, data.max_words",
            remedy="leave files out, hold out more (data.valid_fraction), or choose "
            "the recipe of a larger track",
        )
    return prepared


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
    check = AttentionCheck(
        causal=causal,
        head_width=head_width(config.model),
        dtype=dtype,
        segments=config.data.document_mask,
    )
    attention = choose_attention(
        config.model.attention,
        device=device,
        causal=causal,
        head_width=head_width(config.model),
        length=config.data.sequence_length,
        dtype=dtype,
        segments=config.data.document_mask,
        mesh=mesh,
        find_fault=check if device in jax.devices() else None,
    )
    num_ids = max(tokenizer.vocab_size, config.model.vocab_size)
    rows = padded_vocab_size(num_ids)
    never = {*tokenizer.unpredictable, *range(tokenizer.vocab_size, rows)}
    predictable = np.setdiff1d(np.arange(rows, dtype=np.int32), list(never))
    if _predicts_mask(config):
        never.discard(tokenizer.special.mask)
    setting = Setting(
        vocab_size=rows,
        num_ids=num_ids,
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
            bos_id=first_input(config.objective, tokenizer.special),
            mask_id=tokenizer.special.mask,
            predictable=predictable,
            chunk_tokens=_chunk_tokens(config.train, mesh),
            token_counts=_token_counts(config, prepared, rows),
        ),
        num_predictable=rows - len(never),
    )


def build_generator(
    config: GenerateConfig, data: DataConfig, system: System, *, max_length: int
) -> Generator:
    """Writes texts with the sampler that goes with the objective."""
    special = system.tokenizer.special
    causal = isinstance(system.objective, Autoregressive)
    first = system.objective.bos_id if causal else special.bos
    if data.document_mask and data.packing is not Packing.DOCUMENTS:
        # Then a document sees nothing of the one before: not its end, but for a causal
        # model, which reads that as the document's first input.
        first = special.eos
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
        opening=document_opening(data, special, first),
        stride=config.stride,
        show_steps=config.show_steps,
        stops=config.stop,
        batch_size=config.batch_size,
    )


def first_input(objective: object, special: SpecialIds) -> int:
    """What a causal model reads before every window; BOS of all others."""
    if not isinstance(objective, AutoregressiveConfig):
        return special.bos
    match objective.first_input:
        case FirstInput.BOS:
            return special.bos
        case FirstInput.EOS:
            return special.eos


def text_opening(config: Config, special: SpecialIds) -> int:
    """The one id before a text that is evaluated, or that an export reads.

    A causal model's first input; else BOS where documents open with it, and where the
    model never saw BOS, EOS: the end of another document.
    """
    if isinstance(config.objective, AutoregressiveConfig):
        return first_input(config.objective, special)
    return special.bos if config.data.bos else special.eos


def document_opening(
    data: DataConfig, special: SpecialIds, first_id: int
) -> tuple[int, ...]:
    """What stands before a document's text: the end of another, and its own BOS.

    Where each has windows of its own, nothing of another stands before it; where the
    first input of a window, `first_id`, is such an end, that is enough.
    """
    alone = data.packing is Packing.DOCUMENTS or first_id == special.eos
    end = () if alone else (special.eos,)
    return (*end, special.bos) if data.bos else end


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


def _chunk_tokens(config: TrainConfig, mesh: Mesh) -> int:
    """Tokens over all devices whose logits exist at once."""
    platform = mesh.devices.flat[0].platform
    chunk = config.loss_chunk_tokens or default_chunk_tokens(platform)
    return chunk * math.prod(mesh.shape[axis] for axis in BATCH_AXES)


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
    """The dtype a precision stands for on a device.

    Raises:
      ConfigError: when the device does not multiply it.
    """
    gpu = device.platform == "gpu"
    capable = device.platform == "tpu" or (
        gpu and float(getattr(device, "compute_capability", 0)) >= 8.0
    )
    match precision:
        case Precision.AUTO if capable:
            return jnp.dtype("bfloat16")
        case Precision.AUTO:
            return jnp.dtype("float16" if gpu else "float32")
        case Precision.BFLOAT16 if gpu and not capable:
            remedy = "--config.train.precision=auto, which takes float16 here"
        case Precision.FLOAT16 if device.platform == "tpu":
            remedy = "--config.train.precision=auto, which takes bfloat16 here"
        case _:
            return jnp.dtype(precision.value)
    raise ConfigError(
        f"{device.device_kind} does not multiply {precision.value}",
        where=f"train.precision={precision.value}",
        remedy=remedy,
    )
