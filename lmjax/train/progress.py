"""What a run has seen, counted on the host and saved with every checkpoint."""

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass
class Progress:
    """Exact counts, and the sums of the log line that is being filled.

    All of it is saved, so that the figures of a resumed run are those of one that was
    never interrupted. The data position is `step`: the stream is a pure function of
    it.

    Attributes:
      step: optimizer steps done, and batches taken.
      tokens: counted tokens seen.
      words: whitespace words seen.
      seconds: seconds spent training, over all starts.
      sums: metric sums since the last log line.
    """

    step: int = 0
    tokens: int = 0
    words: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, tokens: int, words: int, metrics: dict[str, Any]) -> None:
        """Counts one finished step."""
        self.step += 1
        self.tokens += tokens
        self.words += words
        for name, value in metrics.items():
            if name.endswith("_sum") or name == "weight":
                self.sums[name] = self.sums.get(name, 0.0) + float(np.asarray(value))

    def take_means(self) -> dict[str, float]:
        """Means per counted token since the last call; loss in nats, and perplexity."""
        weight = max(self.sums.pop("weight", 0.0), 1.0)
        means = {
            name.removesuffix("_sum"): total / weight
            for name, total in self.sums.items()
        }
        self.sums = {}
        means["perplexity"] = math.exp(min(means["loss"], 700.0))
        return means

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dataclasses.asdict(self)
