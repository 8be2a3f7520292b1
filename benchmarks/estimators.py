"""The estimators of one model's bound against each other, at equal cost.

    python benchmarks/estimators.py RUN [--seeds 20] [--batches 8] [--out FILE.md]

RUN is the folder of a masked diffusion run. Each estimator sees the same held-out
windows with one mask each, under `--seeds` seeds; the spread over the seeds is its
standard error, from masks alone. The bound in T steps is of another model than that in
continuous time, and converges to it as T grows.
"""

import argparse
import dataclasses
import datetime
import math
import pathlib
import platform

import jax
import numpy as np

from lmjax import experiment, training_run
from lmjax.config import serialize
from lmjax.evaluate.likelihood import Scorer
from lmjax.objectives.mask_draws import ContinuousMasks, CountMasks, DiscreteMasks
from lmjax.run_folder import RunFolder

ESTIMATORS = (
    CountMasks(),
    ContinuousMasks(stratified=True),
    ContinuousMasks(stratified=False),
    DiscreteMasks(1000),
    DiscreteMasks(64),
    DiscreteMasks(8),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    config = serialize.load(arguments.run / "config.json")
    prepared = experiment.prepare_corpus(config)
    system = experiment.build_system(config, prepared.tokenizer)
    with RunFolder.read(arguments.run, config) as folder:
        params = folder.restore_params(system)
    batches = list(training_run.eval_batches(config, prepared, arguments.batches))
    values = {}
    for masks in ESTIMATORS:
        objective = dataclasses.replace(system.objective, evaluation=masks)
        scorer = Scorer(system.model.bind, objective, system.mesh)
        values[masks.name] = np.array(
            [
                scorer.evaluate(params, batches, draws=1, seed=seed)[-1].nll_per_token
                for seed in range(arguments.seeds)
            ]
        )
        print(masks.name, values[masks.name].mean(), flush=True)
    first = values[CountMasks().name]
    plain = values[ContinuousMasks(stratified=False).name]
    lines = [
        f"{datetime.date.today()}, {jax.devices()[0].device_kind}, "
        f"Python {platform.python_version()}, JAX {jax.__version__}. "
        f"{sum(int((batch.weights.sum(axis=1) > 0).sum()) for batch in batches):,} "
        f"windows of {config.data.sequence_length} tokens, one mask each, "
        f"{arguments.seeds} seeds.",
        "",
        "| estimator | nats per token | s.e. of one seed | beside plain | "
        "difference from the first, in s.e. |",
        "|---|---|---|---|---|",
    ]
    for name, found in values.items():
        error = math.hypot(_error(found), _error(first))
        apart = (found.mean() - first.mean()) / error
        lines.append(
            f"| {name} | {found.mean():.4f} ± {_error(found):.4f} | "
            f"{found.std(ddof=1):.4f} | {found.std(ddof=1) / plain.std(ddof=1):.2f} | "
            f"{'' if found is first else f'{apart:+.1f}'} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


def _error(values: np.ndarray) -> float:
    """Standard error of the mean over seeds."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))


if __name__ == "__main__":
    main()
