"""Counts of a run survive a restart to the last bit."""

import json
import math

import numpy as np
import pytest

from lmjax.train.progress import Progress

STEPS = [
    {"loss_sum": 10.1, "weight": 3.0, "bytes": 7.0, "words": 2.0, "learning_rate": 0.1},
    {"loss_sum": 0.3, "weight": 5.0, "bytes": 9.0, "words": 3.0, "learning_rate": 0.2},
    {
        "loss_sum": 7 / 3,
        "weight": 4.0,
        "bytes": 4.0,
        "words": 1.0,
        "learning_rate": 0.3,
    },
]


def test_a_resumed_run_counts_as_one_that_was_never_interrupted() -> None:
    whole, first = Progress(), Progress()
    for metrics in STEPS:
        whole.add(metrics)
    for metrics in STEPS[:2]:
        first.add(metrics)
    first.seconds = whole.seconds = 0.1 + 0.2
    resumed = Progress(**json.loads(json.dumps(first.to_json())))
    assert resumed == first
    resumed.add(STEPS[2])
    assert resumed == whole
    assert resumed.take_means() == whole.take_means()


def test_every_step_counts_its_tokens_and_words() -> None:
    progress = Progress()
    for metrics in STEPS:
        progress.add(metrics)
    assert (progress.step, progress.tokens, progress.words) == (3, 12, 6)


def test_means_are_per_counted_token_and_start_anew() -> None:
    progress = Progress()
    progress.add({**STEPS[0], "mask_rate_sum": 1.5})
    means = progress.take_means()
    assert means["loss"] == pytest.approx(10.1 / 3)
    assert means["mask_rate"] == pytest.approx(0.5)
    assert means["perplexity"] == pytest.approx(math.exp(10.1 / 3))
    assert means["bits_per_byte"] == pytest.approx(10.1 / math.log(2) / 7)
    assert set(means) == {"loss", "mask_rate", "perplexity", "bits_per_byte"}
    progress.add(STEPS[1])
    assert progress.take_means()["loss"] == pytest.approx(0.3 / 5)


def test_a_sum_over_many_steps_loses_no_small_ones() -> None:
    """Sums are float64 on the host, whatever the device computes in."""
    progress = Progress()
    progress.add({"loss_sum": 1e9, "weight": 1.0, "bytes": 1.0, "words": 0.0})
    for _ in range(100):
        progress.add(
            {"loss_sum": float(np.float32(0.5)), "weight": 0, "bytes": 0, "words": 0}
        )
    assert progress.sums["loss_sum"] == 1e9 + 50


def test_a_diverged_loss_has_a_perplexity_that_is_a_number() -> None:
    progress = Progress()
    progress.add({"loss_sum": 1e6, "weight": 1.0, "bytes": 1.0, "words": 0.0})
    assert math.isfinite(progress.take_means()["perplexity"])
