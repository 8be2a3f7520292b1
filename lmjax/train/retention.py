"""Which checkpoints stay: the newest, those at fixed steps, and the best."""

import math
from collections.abc import Mapping


def to_keep(
    scores: Mapping[int, float | None], *, newest: int, every: int, best: int
) -> set[int]:
    """The steps that stay.

    Args:
      scores: of all steps there are; lower is better, None where nothing was measured.
      newest: how many of the last steps stay.
      every: those at its multiples stay; 0: none for that.
      best: how many of the lowest scores stay, of equal ones the later.
    """
    kept = set(sorted(scores)[-newest:])
    if every:
        kept.update(step for step in scores if step % every == 0)
    ranked = sorted(
        (score, -step)
        for step, score in scores.items()
        if score is not None and math.isfinite(score)
    )
    return kept | {-step for _, step in ranked[:best]}
