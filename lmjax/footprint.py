"""What a training step needs of its devices: as compiled, or estimated from shapes."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from lmjax import experiment, plan, training_run
from lmjax.config.schema import AttentionKind, Config, ModelConfig, Remat
from lmjax.core import trees
from lmjax.data.batch import synthetic
from lmjax.data.preparation.manifest import Prepared
from lmjax.doctor.activations import fused_shapes, saved_bytes
from lmjax.doctor.collectives import Collective, collectives
from lmjax.doctor.hardware import Hardware
from lmjax.doctor.memory import program_bytes
from lmjax.doctor.needs import Needs, device_bytes_of, make_needs
from lmjax.doctor.roofline import Roofline, Traffic, roofline
from lmjax.doctor.targets import AbsentDevice, compiling_for
from lmjax.experiment import System
from lmjax.models.build import build_model
from lmjax.models.transformer import head_width
from lmjax.training_run import Run

# Calls of Pallas' kernels and of cuDNN's attention: the name of each, without numbers.
_KERNEL = re.compile(
    r'%([a-zA-Z_]\w*)[\w.\-]* = .*custom_call_target="(tpu_custom_call|__cudnn\$fmha)'
)


@dataclasses.dataclass(frozen=True)
class Built:
    """A config with what it becomes on some devices."""

    config: Config
    system: System
    run: Run

    @property
    def device(self) -> Any:
        """One of the devices, which are all alike."""
        return self.system.mesh.devices.flat[0]

    @property
    def shards(self) -> int:
        """Devices that split a batch."""
        shape = self.system.mesh.shape
        return shape["data"] * shape["fsdp"]

    @property
    def rows(self) -> int:
        """Sequences that a device has in one pass."""
        per_pass = self.config.train.batch_size // self.run.num_microbatches
        return max(1, per_pass // self.shards)

    @property
    def state(self) -> Any:
        """Shapes and shardings of the training state."""
        return self.run.state_maker.abstract()

    @property
    def logits(self) -> float:
        """Bytes of the logits that a device has at once, with their gradients."""
        tokens = self.rows * self.config.data.sequence_length
        chunk = math.ceil(self.system.objective.chunk_tokens / self.shards)
        ids = self.system.model.setting.vocab_size / self.system.mesh.shape["tensor"]
        return 2 * 4 * ids * min(tokens, chunk)

    def in_passes_of(self, size: int, why: str) -> "Built":
        """The same with another microbatch; the plan says `why`."""
        count = self.config.train.batch_size // size
        return dataclasses.replace(self, run=self.run.with_microbatches(count, why))

    @property
    def can_compile(self) -> bool:
        """Whether there is a compiler for the devices."""
        return not isinstance(self.device, AbsentDevice)


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What a step takes of each device.

    Attributes:
      sent: what it sends to others.
      kernels: names of the fused kernels in the program; empty where none was compiled.
    """

    needs: Needs
    sent: tuple[Collective, ...]
    kernels: tuple[str, ...] = ()


def build(config: Config, prepared: Prepared, devices: Sequence[Any] | None) -> Built:
    """What a config becomes on `devices` (None: those of the machine).

    Of an assumed corpus no counts of tokens are known, so none are asked for.
    """
    read = prepared if devices is None else None
    system = experiment.build_system(config, prepared.tokenizer, devices, prepared=read)
    return Built(config, system, training_run.build_run(config, system, prepared))


def measure(built: Built) -> Footprint:
    """That of the step that runs, by the compiler of its devices.

    Raises:
      jax.errors.JaxRuntimeError: the compiler refuses it, for want of memory above all.
    """
    batch = synthetic(
        built.config.train.batch_size,
        built.config.data.sequence_length,
        document_mask=built.config.data.document_mask,
    )
    state, mesh = built.state, built.system.mesh
    device = built.device
    with compiling_for(device):
        compiled = built.run.step.compile(state, batch, mesh)
    needs = make_needs(
        state,
        passes=built.run.num_microbatches,
        logits=built.logits,
        peak=program_bytes(compiled),
        how=f"as compiled for {device.device_kind}",
    )
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        # A program of a libtpu that is newer than jaxlib may have what it cannot read.
        logging.warning("the compiled program cannot be read: %s", error)
        return Footprint(needs, _collectives(built))
    kernels = dict.fromkeys(name for name, _ in _KERNEL.findall(text))
    return Footprint(needs, collectives(text), tuple(kernels))


def estimate(built: Built) -> Footprint:
    """The same without a compiler: state exactly, the rest from shapes."""
    needs = make_needs(
        built.state,
        passes=built.run.num_microbatches,
        logits=built.logits,
        activations=_activations(built),
        how="estimated from shapes",
    )
    return Footprint(needs, _collectives(built))


def least_time(built: Built, hardware: Hardware, found: Footprint) -> Roofline:
    """The roofline of a step on one device."""
    train, mesh = built.config.train, built.system.mesh
    tokens = train.batch_size * built.config.data.sequence_length
    flops = plan.training_flops_per_token(built.config, built.system) * tokens
    params = trees.count(built.system.model.shapes) / mesh.shape["tensor"]
    traffic = Traffic(
        state=found.needs.state,
        weights=params * built.system.dtype.itemsize,
        gradients=found.needs.parameters,
        activations=found.needs.activations - found.needs.logits,
        passes=built.run.num_microbatches,
    )
    return roofline(
        hardware, flops=flops / mesh.size, traffic=traffic, collectives=found.sent
    )


def _activations(built: Built) -> float:
    """What a device keeps between the forward and the backward pass.

    Where layers are computed again, one layer at a time has all its own besides.
    """
    saved = _saved(built, built.config.train.remat)
    if built.config.train.remat is Remat.NONE:
        return saved
    every = _saved(built, Remat.NONE)
    return min(every, saved + every / built.config.model.num_layers)


def _saved(built: Built, remat: Remat) -> float:
    system, length = built.system, built.config.data.sequence_length
    setting = dataclasses.replace(
        system.model.setting,
        remat=remat,
        scan=True,  # saves the same, and is traced once for all layers
        # Of the same size; what attention does in float16 depends on the backend.
        dtype=jnp.dtype("bfloat16" if system.dtype == np.float16 else system.dtype),
    )
    if system.attention.kind in (AttentionKind.CUDNN, AttentionKind.SPLASH):
        setting = dataclasses.replace(setting, attend=fused_shapes)
    share = _share(built.config.model, system.mesh.shape["tensor"])
    model, objective = build_model(share, setting), system.objective
    dropout = share.dropout > 0

    def loss(params: Any, batch: Any) -> jax.Array:
        key = jax.random.key(0)
        draws = objective.draw(batch, key, jnp.zeros(()))
        dropout_key = key if dropout else None
        return objective.loss(model.bind(params), batch, draws, dropout_key).total

    def inputs(rows: int) -> Any:
        mask = built.config.data.document_mask
        return jax.eval_shape(lambda: synthetic(rows, length, document_mask=mask))

    return saved_bytes(loss, model.shapes, inputs, built.rows)


def _share(config: ModelConfig, shards: int) -> ModelConfig:
    """The part of a model that each device of the tensor axis computes."""
    if shards == 1:
        return config
    kv_heads = config.num_kv_heads or config.num_heads
    heads = config.num_heads // shards if config.num_heads % shards == 0 else 0
    return dataclasses.replace(
        config,
        head_width=head_width(config),
        num_heads=heads or config.num_heads,
        num_kv_heads=max(1, kv_heads // shards) if heads else kv_heads,
        mlp_width=math.ceil(config.mlp_width / shards),
    )


def _collectives(built: Built) -> tuple[Collective, ...]:
    """What a mesh sends: once for each pass, or each layer of it."""
    shape, model = built.system.mesh.shape, built.config.model
    passes, length = built.run.num_microbatches, built.config.data.sequence_length
    whole = 4 * trees.count(built.system.model.shapes) / shape["tensor"]
    found = []
    reduced, count = 0.0, 0
    if shape["fsdp"] > 1:
        gathered = Collective("all-gather", 2 * passes, round(2 * passes * whole))
        scattered = Collective("reduce-scatter", passes, round(passes * whole))
        found += [gathered, scattered]
    if shape["data"] > 1:
        reduced, count = device_bytes_of(built.state.params), 1
    if shape["tensor"] > 1:
        each = built.rows * length * model.width * built.system.dtype.itemsize
        layers = 4 * model.num_layers * passes
        reduced, count = reduced + layers * each, count + layers
    if count:
        found.insert(0, Collective("all-reduce", count, round(reduced)))
    return tuple(found)
