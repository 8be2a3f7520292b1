"""What zero-shot tasks are made of: items, whose candidates a model ranks."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A completion after its prefix, which is given: `prefix + completion` is a text.

    Attributes:
      stored: what predictions call it, the completion or the whole sentence.
    """

    prefix: str
    completion: str
    stored: str

    @property
    def text(self) -> str:
        """The prefix and the completion, with nothing between."""
        return self.prefix + self.completion


@dataclasses.dataclass(frozen=True)
class Item:
    """Candidates of which one is right.

    Attributes:
      label: index of the right candidate.
      groups: what the item belongs to, by kind, in the order of reports; "UID" is one.
      where: file and line that it was read from.
      per_token: whether scores are means over tokens rather than sums.
    """

    candidates: tuple[Candidate, ...]
    label: int
    groups: Mapping[str, str]
    where: str
    per_token: bool = False

    @property
    def uid(self) -> str:
        """The smallest group that accuracy is averaged over."""
        return self.groups["UID"]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """The items of one folder.

    Attributes:
      name: as BabyLM's pipeline calls what is done with them, such as "blimp".
      dataset: the folder, such as "supplement_fast".
      items: in the order of the files and their lines.
      splits: first parts of UIDs that are averaged before their averages are; empty
        averages all UIDs alike.
      rule: which of several definitions that were in use is this one; may be empty.
    """

    name: str
    dataset: str
    items: tuple[Item, ...]
    splits: tuple[str, ...] = ()
    rule: str = ""

    def ids(self) -> list[str]:
        """Name of each item in predictions: its UID, and its number under this UID."""
        seen: collections.Counter[str] = collections.Counter()
        names = []
        for item in self.items:
            names.append(f"{item.uid}_{seen[item.uid]}")
            seen[item.uid] += 1
        return names

    def members(self, kind: str) -> dict[str, list[int]]:
        """Items of each group of a kind, by index; in order of appearance."""
        found: dict[str, list[int]] = {}
        for i, item in enumerate(self.items):
            if kind in item.groups:
                found.setdefault(item.groups[kind], []).append(i)
        return found

    def kinds(self) -> list[str]:
        """Kinds of groups, in order of appearance."""
        return list(dict.fromkeys(kind for item in self.items for kind in item.groups))

    def weights(self) -> dict[str, float]:
        """Share of each UID in the average of the task; they sum to 1."""
        uids = list(self.members("UID"))
        splits = [
            alike
            for split in self.splits
            if (alike := [uid for uid in uids if uid.startswith(split)])
        ]
        return {
            uid: 1 / len(alike) / len(splits or [uids])
            for alike in splits or [uids]
            for uid in alike
        }

    def chance(self) -> float:
        """What a draw among the candidates gets on average, in [0, 1]."""
        members, weights = self.members("UID"), self.weights()
        return sum(
            weights[uid]
            * sum(1 / len(self.items[i].candidates) for i in members[uid])
            / len(members[uid])
            for uid in weights
        )


def completions(prefixes: Sequence[str], ends: Sequence[str]) -> tuple[Candidate, ...]:
    """Candidates that predictions call by their completions."""
    return tuple(
        Candidate(prefix, end, end) for prefix, end in zip(prefixes, ends, strict=True)
    )


def sentences(prefixes: Sequence[str], ends: Sequence[str]) -> tuple[Candidate, ...]:
    """Candidates that predictions call by their whole texts."""
    return tuple(
        Candidate(prefix, end, prefix + end)
        for prefix, end in zip(prefixes, ends, strict=True)
    )
