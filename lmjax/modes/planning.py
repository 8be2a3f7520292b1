"""Mode plan: what training would take, here or on devices that are not there."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from lmjax import experiment, footprint, plan
from lmjax.config.schema import Config, Remat
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
        self._limit = memory.device_bytes(self._built.device)
        self._found: dict[tuple[int, Remat], Footprint] = {}
        self._usable = memory.USABLE * self._limit

    def show(self) -> None:
        """Prints plan, memory, collectives, time and verdict."""
        if self._built.can_compile:
            number, kind = self._built.system.mesh.size, self._built.device.device_kind
            print(f"compiling for {number} x {kind}", flush=True)
        built, refusal = self._choose(), None
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
        kind = built.device.device_kind
        _print_table(f"memory of one {kind}", found.needs.rows())
        _print_table("sent by one device in a step", _sent_rows(found.sent))
        if found.kernels:
            print("\nfused kernels in the program: " + ", ".join(found.kernels))
        if known := hardware.device_hardware(built.device):
            rows = self._time_rows(footprint.least_time(built, known, found))
            _print_table("time of a step at best", rows)
        peak = found.needs.peak
        if refusal or (self._limit and peak > self._usable):
            raise self._advise(built, peak, refusal)
        of = f" of {format_bytes(self._usable)} usable" if self._limit else ""
        print(f"\nfits: {format_bytes(peak)}{of} per device")

    def _choose(self) -> Built:
        """The step with as few passes as training would take, or as the config says."""
        train, built = self._config.train, self._built
        if train.microbatch_size or not self._limit:
            return built
        made = {}

        def measure(size: int) -> int:
            why = ""
            if size < train.batch_size:
                why = f" of {size}, the most that fits {format_bytes(self._usable)}"
            made[size] = built.in_passes_of(size, why)
            return self._peak(made[size])

        fitting = memory.largest_fitting(
            measure,
            batch_size=train.batch_size,
            size=train.batch_size,
            limit_bytes=self._limit,
            multiple=built.shards,
        )
        return made[fitting or min(made)]

    def _peak(self, built: Built) -> int:
        """Bytes that a step needs; one that is far too large isn't compiled for it."""
        guess = footprint.estimate(built).needs.peak
        if self._limit and guess > SURELY_TOO_MUCH * self._limit:
            return int(guess)
        return int(self._footprint(built).needs.peak)

    def _footprint(self, built: Built) -> Footprint:
        size = built.run.num_microbatches, built.config.train.remat
        if size not in self._found:
            way = footprint.measure if built.can_compile else footprint.estimate
            self._found[size] = way(built)
        return self._found[size]

    def _peak_flops(self) -> float:
        """Of all devices together; fake CPU devices share one machine."""
        mesh = self._built.system.mesh
        device = self._built.device
        count = 1 if device.platform == "cpu" else mesh.size
        return flops.peak_flops(device) * count

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

    def _advise(
        self, built: Built, peak: float, refusal: BaseException | None
    ) -> UserError:
        """What would fit, by the same figures.

        Args:
          built: what does not.
          peak: bytes that it needs.
          refusal: of the compiler to compile it.
        """
        print("\nlooking for what fits", flush=True)
        config, passes = self._config, built.run.num_microbatches

        def measure(remat: Remat, size: int) -> int:
            if remat is config.train.remat and size * passes == config.train.batch_size:
                if refusal:
                    raise refusal
                return int(peak)
            train = dataclasses.replace(config.train, remat=remat, microbatch_size=size)
            changed = dataclasses.replace(config, train=train)
            return self._peak(footprint.build(changed, self._prepared, self._devices))

        found = memory.advice(
            "planning",
            functools.partial(measure, config.train.remat),
            batch_size=config.train.batch_size,
            microbatch_size=config.train.batch_size // passes,
            limit_bytes=self._limit,
            multiple=built.shards,
            others={
                f"--config.train.remat={remat.value}": functools.partial(measure, remat)
                for remat in (Remat.DOTS, Remat.NAMED, Remat.FULL)
                if config.train.remat not in (remat, Remat.FULL)
            },
        )
        needed = memory.refusal(refusal) if refusal else format_bytes(peak)
        return DoesNotFit(
            f"the training step does not fit: it needs {needed} per device, and "
            f"{format_bytes(self._usable)} are usable",
            where=f"{built.device.device_kind}, {built.system.mesh.size} of them",
            remedy=found.remedy,
        )


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
