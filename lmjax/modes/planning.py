"""Mode plan: what training would take, here or on devices that are not there."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from lmjax import experiment, footprint, plan
from lmjax.config.schema import Config, Remat, TrainConfig
from lmjax.core.errors import UserError
from lmjax.data.preparation.assumed import assume_corpus
from lmjax.data.preparation.manifest import Prepared
from lmjax.doctor import flops, hardware, memory, targets
from lmjax.doctor.collectives import Collective
from lmjax.doctor.memory import format_bytes
from lmjax.footprint import Built, Footprint

SURELY_TOO_MUCH = 1.25  # an estimate beyond this share of the memory is not compiled
REACHED = 0.5  # share of the roofline that well-tuned programs come to


class DoesNotFit(UserError):
    """The training step needs more memory than a device has."""

    status = 3


def plan_only(config: Config, workdir: pathlib.Path) -> None:
    """Shows what a training run would do, and need: compiled but not started.

    Raises:
      DoesNotFit: a device of the machine, or of `plan.target`, has less memory.
    """
    devices = None
    if config.plan.target:
        devices = targets.target_devices(hardware.parse_target(config.plan.target))
        # Sources have no names here.
        data = dataclasses.replace(config.data, weights=(), max_epochs=())
        config = dataclasses.replace(config, data=data)
        prepared = assume_corpus(config.data, config.tokenizer)
        counts = prepared.train.counts
        print(
            f"assumed     {counts.words:,} words of text (data.max_words), "
            f"{counts.tokens / counts.words:g} tokens each"
        )
    else:
        prepared = experiment.prepare_corpus(config)
    _Planner(config, prepared, devices).show()
    print(f"run folder: {workdir} (nothing was written)")


class _Planner:
    """Plans a config for devices, and what else would fit them.

    Args:
      devices: None are those of the machine.
    """

    def __init__(
        self, config: Config, prepared: Prepared, devices: Sequence[Any] | None
    ):
        self._config, self._prepared, self._devices = config, prepared, devices
        self._built = footprint.build(config, prepared, devices)
        self._device = self._built.system.mesh.devices.flat[0]
        self._limit = memory.device_bytes(self._device)

    def show(self) -> None:
        """Prints plan, memory, collectives, time and verdict."""
        built, refusal = self._built, None
        if built.can_compile:
            print(f"compiling for {built.system.mesh.size} devices", flush=True)
        try:
            found = self._footprint(built)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            refusal = error
            found = footprint.estimate(built)
        lines = plan.plan_lines(
            built.config,
            built.system,
            built.run,
            self._prepared,
            memory_bytes=int(found.needs.peak),
            peak_flops=self._peak_flops(),
            start_step=0,
        )
        print("\n".join(lines))
        kind = self._device.device_kind
        _print_table(f"memory of one {kind}", found.needs.rows())
        _print_table("sent by one device in a step", _sent_rows(found.sent))
        if found.kernels:
            print("\nfused kernels in the program: " + ", ".join(found.kernels))
        if known := hardware.device_hardware(self._device):
            rows = self._time_rows(footprint.least_time(built, known, found))
            _print_table("time of a step at best", rows)
        peak, usable = found.needs.peak, memory.USABLE * self._limit
        if refusal or (self._limit and peak > usable):
            raise self._advise(peak, refusal)
        of = f" of {format_bytes(usable)} usable" if self._limit else ""
        print(f"\nfits: {format_bytes(peak)}{of} per device")

    def _footprint(self, built: Built) -> Footprint:
        if built.can_compile:
            return footprint.measure(built)
        return footprint.estimate(built)

    def _peak_flops(self) -> float:
        """Of all devices together; fake CPU devices share one machine."""
        mesh = self._built.system.mesh
        count = 1 if self._device.platform == "cpu" else mesh.size
        return flops.peak_flops(self._device) * count

    def _time_rows(self, least: footprint.Roofline) -> list[tuple[str, str]]:
        run, steps = self._built.run, self._built.run.intervals.total
        tokens = self._config.train.batch_size * self._config.data.sequence_length
        words = round(steps * run.scale.words_per_step)
        per_token = plan.training_flops_per_token(self._config, self._built.system)
        at_best, likely = (
            plan.duration(steps * least.seconds / share) for share in (1.0, REACHED)
        )
        return [
            ("FLOPs per token", f"{per_token:.3g}"),
            ("matrix products", f"{1e3 * least.compute:.2f} ms"),
            ("memory", f"{1e3 * least.memory:.2f} ms"),
            ("links", f"{1e3 * least.links:.2f} ms"),
            (
                "roofline",
                f"{1e3 * least.seconds:.2f} ms, bound by {least.bound}: "
                f"{tokens / least.seconds:,.0f} tokens/s",
            ),
            (
                "whole run",
                f"{at_best} at best, {likely} at {REACHED:.0%} of it: {steps:,} "
                f"steps, {words:,} words",
            ),
        ]

    def _advise(self, peak: float, refusal: BaseException | None) -> UserError:
        """What would fit, by the same figures.

        Args:
          peak: of the step as configured.
          refusal: of the compiler to compile it.
        """
        config = self._config
        print("\nlooking for what fits", flush=True)

        def measure(remat: Remat, microbatch_size: int) -> int:
            train = dataclasses.replace(
                config.train, remat=remat, microbatch_size=microbatch_size
            )
            if _same_pass(train, config.train):
                if refusal:
                    raise refusal
                return int(peak)
            changed = dataclasses.replace(config, train=train)
            built = footprint.build(changed, self._prepared, self._devices)
            guess = footprint.estimate(built).needs.peak
            if guess > SURELY_TOO_MUCH * self._limit:
                return int(guess)
            return int(self._footprint(built).needs.peak)

        found = memory.advice(
            "planning",
            lambda size: measure(config.train.remat, size),
            batch_size=config.train.batch_size,
            microbatch_size=config.train.microbatch_size,
            limit_bytes=self._limit,
            multiple=self._built.shards,
            others={
                f"--config.train.remat={remat.value}": lambda size, remat=remat: (
                    measure(remat, size)
                )
                for remat in (Remat.DOTS, Remat.FULL)
                if config.train.remat not in (remat, Remat.FULL)
            },
        )
        needed = memory.refusal(refusal) if refusal else format_bytes(peak)
        return DoesNotFit(
            f"the training step does not fit: it needs {needed} per device, and "
            f"{format_bytes(memory.USABLE * self._limit)} are usable",
            where=f"{self._device.device_kind}, {self._built.system.mesh.size} of them",
            remedy=found.remedy,
        )


def _same_pass(one: TrainConfig, other: TrainConfig) -> bool:
    """Whether both have the same forward pass; a microbatch of 0 is a whole batch."""
    sizes = {each.microbatch_size or each.batch_size for each in (one, other)}
    return one.remat is other.remat and len(sizes) == 1


def _sent_rows(sent: Sequence[Collective]) -> list[tuple[str, str]]:
    if not sent:
        return [("nothing", "")]
    return [
        (each.kind, f"{format_bytes(each.num_bytes)} in {each.count:,}")
        for each in sent
    ]


def _print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    print(f"\n{title}")
    for name, value in rows:
        print(f"  {name:<{width}}  {value}".rstrip())
