"""The loop drives a toy of two parameters: no model, no data room.

The parameters go down a slope at a rate that each batch's tokens give, so that every
state is known in advance: after n steps w is the sum of the numbers of the batches.
"""

import dataclasses
import io
import json
import math
import signal
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import LogConfig, ParallelConfig
from lmjax.core.errors import UserError
from lmjax.data.batch import Batch, synthetic
from lmjax.parallel.mesh import build_mesh
from lmjax.train import loop
from lmjax.train.clock import Clock
from lmjax.train.loggers import RunLogger
from lmjax.train.loop import Hooks, Intervals
from lmjax.train.progress import Progress
from lmjax.train.state import TrainState
from lmjax.train.stopping import StopSignal

Calls = list[tuple[Any, ...]]


def _state(step: int = 0) -> TrainState:
    total = float(sum(range(1, step + 1)))
    return TrainState(
        step=jnp.int32(step),
        params={"w": jnp.float32(total), "b": jnp.float32(-total)},
        opt_state={},
        ema={},
        guard={"bad_in_a_row": jnp.int32(0)},
    )


@jax.jit
def _toy(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    number = jnp.mean(batch.tokens.astype(jnp.float32))
    bad = number >= 90
    change = jnp.where(bad, 0.0, number)
    params = {"w": state.params["w"] + change, "b": state.params["b"] - change}
    tokens = jnp.sum(batch.weights)
    in_a_row = jnp.where(bad, state.guard["bad_in_a_row"] + 1, 0)
    return TrainState(state.step + 1, params, {}, {}, {"bad_in_a_row": in_a_row}), {
        "skipped": bad.astype(jnp.int32),
        "bad_in_a_row": in_a_row,
        "leaves": jnp.zeros(3, bool),  # read only where a step was skipped
        "loss_sum": tokens * jnp.where(bad, jnp.nan, number),
        "weight": tokens,
        "words": jnp.sum(batch.words),
        "bytes": 2 * tokens,
        "gradient_norm": number,
        "learning_rate": jnp.float32(0.5),
    }


@dataclasses.dataclass
class Figure:
    """A figure on the device that tells when the host reads it."""

    value: jax.Array
    told: Callable[[], None]
    ndim: int = 0

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        self.told()
        return np.asarray(self.value)


class Toy:
    """Runs the loop and writes down what it does, in order."""

    def __init__(self, workdir: Path):
        self.workdir, self.calls, self.saved = workdir, [], {}
        self.mesh = build_mesh(ParallelConfig())
        self.numbers: Callable[[int], int] = lambda step: step
        self.before_step: Callable[[int], None] = lambda step: None
        self.during: dict[str, Callable[[], None]] = {}
        self.ended: list[str] = []
        self.told = io.StringIO()

    def batches(self, start: int) -> Iterator[Batch]:
        step = start
        while True:
            step += 1
            self.calls.append(("fetch", step))
            self.during.get(f"fetch {step}", lambda: None)()
            batch = synthetic(8, 4, token=self.numbers(step))
            yield dataclasses.replace(batch, words=np.ones((8, 4), np.int32))

    def step(self, state: TrainState, batch: Batch) -> Any:
        number = int(state.step) + 1
        self.calls.append(("step", number))
        self.before_step(number)
        state, metrics = _toy(state, batch)
        told = Figure(metrics["loss_sum"], lambda: self.calls.append(("read", number)))
        return state, metrics | {"loss_sum": told}

    def train(
        self,
        start: int = 0,
        progress: Progress | None = None,
        stop: StopSignal | None = None,
        **intervals: Any,
    ) -> tuple[TrainState, Progress]:
        never = dict(total=6, log=1, evaluate=0, generate=0, save=0)
        lengths = Intervals(**never | intervals)
        progress = progress or Progress()

        stop = stop if stop is not None else StopSignal()

        def evaluate(state: TrainState, step: int) -> dict[str, float]:
            with stop.interruptible("evaluating"):
                self.during.get("evaluate", lambda: None)()
            self.calls.append(("evaluate", step, float(state.params["w"])))
            return {"nll_per_token": float(step)}

        def generate(state: TrainState, step: int) -> None:
            with stop.interruptible("sampling"):
                self.during.get("generate", lambda: None)()
            self.calls.append(("generate", step, float(state.params["w"])))

        def save(state: TrainState, progress: Progress) -> None:
            self.calls.append(("save", progress.step, float(state.params["w"])))
            self.saved[progress.step] = json.dumps(progress.to_json())

        def milestone(
            state: TrainState, reached: tuple[int, ...], progress: Progress
        ) -> None:
            w, step = float(state.params["w"]), progress.step
            self.calls.append(("milestone", step, w, reached, progress.words))

        def explain(metrics: Mapping[str, Any]) -> str:
            return f"the loss is {float(metrics['gradient_norm']):g} too high"

        config = LogConfig(tensorboard=False)
        with RunLogger(
            self.workdir,
            config,
            total_steps=lengths.total,
            start_step=start,
            done=progress.done if start else (),
            stream=self.told,
        ) as logger:
            state, self.finished = loop.train(
                state=_state(start),
                progress=progress,
                step=self.step,
                batches=self.batches(start),
                mesh=self.mesh,
                intervals=lengths,
                hooks=Hooks(
                    evaluate=evaluate,
                    generate=generate,
                    save=save,
                    milestone=milestone,
                    explain=explain,
                    ended=self.ended.append,
                ),
                logger=logger,
                clock=Clock(lengths.total, flops_per_token=1.0, peak_flops=0.0),
                steps_per_epoch=4.0,
                stop=stop,
            )
        return state, progress

    def lines(self, split: str) -> list[dict[str, Any]]:
        lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["split"] == split]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "run")


def test_figures_are_read_one_step_late(toy: Toy) -> None:
    """Step n is dispatched before the figures of n-1 are read."""
    toy.train(total=3)
    assert toy.calls == [
        ("fetch", 1),
        ("step", 1),
        ("fetch", 2),
        ("step", 2),
        ("read", 1),
        ("fetch", 3),
        ("step", 3),
        ("read", 2),
        ("read", 3),
    ]


def test_the_order_is_evaluate_generate_save_fetch_step(toy: Toy) -> None:
    """The figures of the last step are read first; all see the state after it."""
    toy.train(total=4, evaluate=2, generate=2, save=2)
    middle = toy.calls.index(("step", 2)) + 1
    assert toy.calls[middle:] == [
        ("read", 1),
        ("read", 2),
        ("evaluate", 2, 3.0),
        ("generate", 2, 3.0),
        ("save", 2, 3.0),
        ("fetch", 3),
        ("step", 3),
        ("fetch", 4),
        ("step", 4),
        ("read", 3),
        ("read", 4),
    ]


def test_intervals_count_from_the_first_step_and_leave_out_the_end(toy: Toy) -> None:
    toy.train(total=8, evaluate=3, generate=4, save=2)
    assert [c[1] for c in toy.calls if c[0] == "evaluate"] == [3, 6]
    assert [c[1] for c in toy.calls if c[0] == "generate"] == [4]
    assert [c[1] for c in toy.calls if c[0] == "save"] == [2, 4, 6]
    toy.calls.clear()
    done = Progress(step=4, done=["evaluate", "generate"])
    toy.train(start=4, progress=done, total=8, evaluate=2, save=4)
    assert [c[:2] for c in toy.calls if c[0] in ("evaluate", "save")] == [
        ("evaluate", 6)
    ], "what was done at the step it goes on from is not done again"


def test_nothing_is_due_at_either_end_nor_when_it_is_never() -> None:
    lengths = Intervals(total=6, log=1, evaluate=3, generate=0, save=1)
    assert [step for step in range(8) if lengths.due("evaluate", step)] == [3]
    assert [step for step in range(8) if lengths.due("save", step)] == [1, 2, 3, 4, 5]
    assert not any(lengths.due("generate", step) for step in range(8))


def test_the_state_and_the_counts_are_those_of_all_steps(toy: Toy) -> None:
    state, progress = toy.train(total=5)
    assert int(state.step) == progress.step == 5
    assert float(state.params["w"]) == 15.0
    assert (progress.tokens, progress.words) == (5 * 32, 5 * 32)


def test_a_line_of_the_log_holds_the_means_since_the_last_one(toy: Toy) -> None:
    """Losses are 1, 2, ..., 7; the last line comes with the last step."""
    toy.train(total=7, log=3, evaluate=3)
    lines = toy.lines("train")
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert [line["loss"] for line in lines] == [2.0, 5.0, 7.0]
    assert lines[0]["perplexity"] == pytest.approx(math.exp(2))
    assert lines[0]["bits_per_byte"] == pytest.approx(1 / math.log(2))
    assert [line["gradient_norm"] for line in lines] == [3.0, 6.0, 7.0]
    assert [line["tokens_seen"] for line in lines] == [96, 192, 224]
    assert [line["words_seen"] for line in lines] == [96, 192, 224]
    assert [line["epoch"] for line in lines] == [0.75, 1.5, 1.75]
    assert lines[0]["learning_rate"] == 0.5
    assert [line["nll_per_token"] for line in toy.lines("valid")] == [3.0, 6.0]
    speeds = toy.lines("speed")
    assert [line["step"] for line in speeds] == [3, 6, 7]
    assert all(line["tokens_per_second"] > 0 for line in speeds)
    assert speeds[-1]["eta_seconds"] == 0.0


def test_a_window_of_the_log_survives_a_save_in_its_middle(
    toy: Toy, tmp_path: Path
) -> None:
    """Resumed after step 4 or 5, the line of step 6 is the same, to the last digit."""
    toy.numbers = lambda step: 7 * step % 5 + 1
    toy.train(total=7, log=3, save=1)
    whole = toy.lines("train")
    for stop in (4, 5):
        resumed = Toy(tmp_path / f"resumed-{stop}")
        resumed.numbers = toy.numbers
        progress = Progress(**json.loads(toy.saved[stop]))
        assert progress.step == stop and progress.sums
        resumed.train(start=stop, progress=progress, total=7, log=3)
        assert resumed.calls[0] == ("fetch", stop + 1)
        assert resumed.lines("train") == whole[1:]


def test_an_update_that_is_skipped_is_told_and_counts_no_loss(toy: Toy) -> None:
    toy.numbers = lambda step: 99 if step == 3 else step
    state, progress = toy.train(log=3)
    assert float(state.params["w"]) == 21 - 3
    assert (progress.step, progress.skipped) == (6, 1)
    assert (progress.tokens, progress.words) == (6 * 32, 6 * 32), "its text was seen"
    assert "step 3 skipped (batch 2): the loss is 99 too high" in toy.told.getvalue()
    first, second = toy.lines("train")
    assert first["loss"] == 1.5, "of steps 1 and 2"
    assert first["skipped_steps"] == second["skipped_steps"] == 1
    assert second["loss"] == 5.0


def test_a_line_whose_updates_were_all_skipped_has_no_loss(toy: Toy) -> None:
    toy.numbers = lambda step: 99 if step < 3 else step
    toy.train(total=3, log=2)
    first, second = toy.lines("train")
    assert "loss" not in first and second["loss"] == 3.0
    assert "all updates skipped" in toy.told.getvalue()


def test_too_many_bad_updates_in_a_row_end_the_run(toy: Toy) -> None:
    """Two bad ones, a good one, and three: the third of these is one too many."""
    toy.numbers = lambda step: 99 if step in (2, 3, 5, 6, 7) else step
    with pytest.raises(UserError) as error:
        toy.train(total=9, save=1, max_bad_steps=3)
    assert "3 updates in a row were skipped; at step 7 the loss is 99" in str(
        error.value
    )
    assert "batches 4 to 6" in error.value.where
    assert "optim.learning_rate" in error.value.remedy
    assert toy.saved and max(toy.saved) == 6
    toy.train(total=7, max_bad_steps=4)


def test_a_signal_ends_the_loop_after_the_step_that_runs(toy: Toy) -> None:
    def interrupt(step: int) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGTERM)

    toy.before_step = interrupt
    with StopSignal() as stop:
        state, progress = toy.train(total=9, log=2, evaluate=3, save=3, stop=stop)
    assert stop.name == "SIGTERM"
    assert toy.calls[-2:] == [("read", 2), ("read", 3)]
    assert int(state.step) == progress.step == 3
    assert float(state.params["w"]) == 6.0
    assert progress.sums["loss_sum"] == 3 * 32, "the third step waits for its line"


WORK = {"evaluate": "evaluate", "generate": "generate", "fetch 5": "wait for data"}


@pytest.mark.parametrize("work", WORK, ids=WORK.get)
def test_a_signal_interrupts_what_can_be_done_again(
    toy: Toy, work: str, tmp_path: Path
) -> None:
    """And whoever goes on does it: the same figures and texts, none of them twice."""
    intervals = dict(total=6, log=2, evaluate=4, generate=4)
    whole = Toy(tmp_path / "whole")
    whole.train(**intervals)
    toy.during[work] = lambda: signal.raise_signal(signal.SIGTERM)
    with StopSignal() as stop:
        state, progress = toy.train(**intervals, stop=stop)
    assert not toy.finished
    assert int(state.step) == progress.step == 4, "the step under way was counted"
    done = {"evaluate": [], "generate": ["evaluate"]}
    assert progress.done == done.get(work, ["evaluate", "generate"])
    toy.during.clear()
    saved = Progress(**json.loads(json.dumps(progress.to_json())))
    toy.train(start=4, progress=saved, **intervals)
    assert toy.finished
    for split in ("train", "valid"):
        assert toy.lines(split) == whole.lines(split)
    for name in ("evaluate", "generate"):
        assert [c for c in toy.calls if c[0] == name] == [
            c for c in whole.calls if c[0] == name
        ]


def test_a_run_that_is_stopped_before_it_evaluates_does_so_later(toy: Toy) -> None:
    def interrupt(step: int) -> None:
        if step == 4:
            signal.raise_signal(signal.SIGINT)

    toy.before_step = interrupt
    with StopSignal() as stop:
        _, progress = toy.train(evaluate=4, stop=stop)
    assert (progress.step, progress.done) == (4, [])
    assert not toy.lines("valid")
    toy.train(start=4, progress=progress, evaluate=4)
    assert [line["step"] for line in toy.lines("valid")] == [4]


def test_time_that_passes_makes_a_save_due(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds pass whenever it looks; a clock that can be set back isn't asked."""
    seconds = iter(range(0, 1000, 10))
    clock = types.SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr(loop, "time", clock)
    toy.train(total=9, save_after=25.0)
    assert sorted(toy.saved) == [2, 5, 8], (
        "looks: start, 0, 1, 2 | saved, 3, 4, 5 | ..."
    )
    toy.saved.clear()
    toy.train(total=9)
    assert not toy.saved


def test_what_is_evaluated_is_saved_where_the_best_is_kept(toy: Toy) -> None:
    toy.train(evaluate=2, save=3, save_evaluated=True)
    assert sorted(toy.saved) == [2, 3, 4]
    scores = {step: json.loads(saved)["score"] for step, saved in toy.saved.items()}
    assert scores == {2: 2.0, 3: -1.0, 4: 4.0}


def test_whatever_ends_is_told_to_the_watchdog(toy: Toy) -> None:
    toy.train(total=3)
    assert toy.ended == ["step 1", "step 2", "step 3"]


def test_a_finished_run_is_left_as_it_is(toy: Toy) -> None:
    state, progress = toy.train(start=6, progress=Progress(step=6), total=6)
    assert toy.calls == []
    assert int(state.step) == progress.step == 6


def test_a_milestone_gets_the_state_of_the_step_that_reaches_it(toy: Toy) -> None:
    """Each step has 32 words: 64 are reached exactly, 65 and 95 by the third."""
    toy.train(milestones=(64, 65, 95))
    assert [call for call in toy.calls if call[0] == "milestone"] == [
        ("milestone", 2, 3.0, (64,), 64),
        ("milestone", 3, 6.0, (65, 95), 96),
    ]
    # Before the next step takes the state's place.
    assert toy.calls.index(("milestone", 2, 3.0, (64,), 64)) < toy.calls.index(
        ("step", 3)
    )


def test_a_milestone_behind_the_start_is_not_reached_again(toy: Toy) -> None:
    toy.train(start=2, progress=Progress(step=2, words=64), milestones=(64, 96))
    reached = [call[3] for call in toy.calls if call[0] == "milestone"]
    assert reached == [(96,)]


@pytest.mark.parametrize(("most", "steps"), [(95, 2), (96, 3), (127, 3), (0, 6)])
def test_no_step_is_taken_that_would_exceed_the_words(
    toy: Toy, most: int, steps: int
) -> None:
    state, progress = toy.train(max_words=most)
    assert toy.finished
    assert int(state.step) == progress.step == steps
    assert progress.words == 32 * steps


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (48, "48 s"), (200, "3:20"), (59.9, "1:00"), (18_200, "5:03:20")],
)
def test_times_are_told_in_the_units_of_a_clock(seconds: float, text: str) -> None:
    assert loop.format_seconds(seconds) == text


def test_the_line_of_the_log_names_its_figures() -> None:
    values = dict(
        epoch=1.5,
        loss=2.0,
        perplexity=7.389,
        bits_per_byte=1.25,
        learning_rate=3e-4,
        gradient_norm=0.5,
        tokens_per_second=12_345.6,
        eta_seconds=200.0,
        mfu=0.42,
    )
    line = loop.format_line(1000, 2000, values)
    assert line == (
        "step 1,000/2,000 | epoch 1.50 | loss 2.0000 | ppl 7.39 | bpb 1.250 | "
        "lr 3.0e-04 | grad 0.50 | 12,346 tok/s | mfu 42% | eta 3:20"
    )
    del values["mfu"]
    assert "mfu" not in loop.format_line(1000, 2000, values)
