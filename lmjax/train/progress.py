"""What a run has seen, counted on the host and saved with every checkpoint."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass
class Progress:
    """Exact counts, and the sums of the log line that is being filled.

    All of it is saved, so that the figures of a resumed run are those of one that was
    never interrupted. The data position is `step`: the stream is a pure function of
    it.

    Attributes:
      step: steps done, and batches taken.
      skipped: steps of these whose update was left out.
      tokens: counted tokens seen.
      words: whitespace words seen.
      seconds: seconds spent training, over all starts.
      spent: seconds over all starts by what they went to, see `clock.TimeSpent`.
      microbatch_size: sequences per forward pass that the first start chose; 0 where
        none has.
      lengths: lengths the run was given, in steps, as pairs: from which step on, and
        the length.
      sums: metric sums since the last log line.
      done: what was done after this step, of "evaluate" and "generate": a run that goes
        on from here does the rest.
      score: held-out nats per token after this very step; absent (-1) else.
    """

    step: int = 0
    skipped: int = 0
    tokens: int = 0
    words: int = 0
    seconds: float = 0.0
    spent: dict[str, float] = dataclasses.field(default_factory=dict)
    microbatch_size: int = 0
    lengths: list[list[int]] = dataclasses.field(default_factory=list)
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    done: list[str] = dataclasses.field(default_factory=list)
    score: float = -1.0

    def add(self, metrics: dict[str, float]) -> None:
        """Counts one finished step by its figures; those named "..._sum" are summed.

        A step that was skipped has seen its text too, but its loss does not count.
        """
        self.step += 1
        self.done, self.score = [], -1.0
        self.tokens += round(metrics["weight"])
        self.words += round(metrics["words"])
        if metrics.get("skipped"):
            self.skipped += 1
            return
        for name, value in metrics.items():
            if name.endswith("_sum") or name in ("weight", "bytes"):
                self.sums[name] = self.sums.get(name, 0.0) + value

    def set_length(self, total_steps: int) -> None:
        """Notes the length of the run from here on, where it is another."""
        if not self.lengths:
            self.lengths.append([0, total_steps])
        elif self.lengths[-1][1] != total_steps:
            self.lengths.append([self.step, total_steps])

    def take_means(self) -> dict[str, float]:
        """Means per counted token since the last call.

        The loss is in nats; perplexity and bits per byte follow from it. Empty where
        every step since then was skipped.
        """
        if not self.sums:
            return {}
        weight = max(self.sums.pop("weight"), 1.0)
        num_bytes = max(self.sums.pop("bytes"), 1.0)
        nats = self.sums["loss_sum"]
        means = {
            name.removesuffix("_sum"): total / weight
            for name, total in self.sums.items()
        }
        self.sums = {}
        means["perplexity"] = math.exp(min(means["loss"], 700.0))
        means["bits_per_byte"] = nats / math.log(2) / num_bytes
        return means

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dataclasses.asdict(self)
