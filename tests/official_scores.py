"""BabyLM's zero-shot scores by torch and transformers alone, from an exported folder.

An independent second opinion on what lmjax computes: nothing of lmjax is used here. The
rules are those of the official pipeline (see docs/babylm.md): the text of a candidate
is encoded as one string, with what the tokenizer puts before it; the tokens of the
completion are those that end behind its start; sums of float32 log-probabilities.

    python tests/official_scores.py EXPORT causal blimp_fast/*.jsonl > scores.jsonl
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers


class Official:
    """One model in a folder, asked as causal or as mlm."""

    def __init__(self, folder: Path, backend: str, batch_size: int = 64):
        kind = {
            "causal": transformers.AutoModelForCausalLM,
            "mlm": transformers.AutoModelForMaskedLM,
        }[backend]
        self.model = kind.from_pretrained(folder, trust_remote_code=True).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, padding_side="right", trust_remote_code=True
        )
        self.backend, self.batch_size = backend, batch_size

    @torch.no_grad()
    def scores(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """Score of each (prefix, completion)."""
        rows: list[tuple[int, list[int], list[int], list[int]]] = []
        for owner, (prefix, completion) in enumerate(texts):
            encoded = self.tokenizer(prefix + completion, return_offsets_mapping=True)
            ids = encoded["input_ids"]
            places = [
                i
                for i, (_, end) in enumerate(encoded["offset_mapping"])
                if end > len(prefix)
            ]
            rows += self._rows(owner, ids, places)
        totals = [0.0] * len(texts)
        rows.sort(key=lambda row: len(row[1]))
        for start in range(0, len(rows), self.batch_size):
            chunk = rows[start : start + self.batch_size]
            for row, values in zip(chunk, self._log_probs(chunk), strict=True):
                totals[row[0]] += float(values.sum())
        return totals

    def _rows(
        self, owner: int, ids: list[int], places: list[int]
    ) -> Iterator[tuple[int, list[int], list[int], list[int]]]:
        """Owner, ids as they are read, positions that are read, and their targets."""
        if self.backend == "causal":
            places = [place for place in places if place > 0]
            yield owner, ids, [p - 1 for p in places], [ids[p] for p in places]
            return
        for place in places:
            masked = list(ids)
            masked[place] = self.tokenizer.mask_token_id
            yield owner, masked, [place], [ids[place]]

    def _log_probs(self, rows: Sequence[tuple]) -> Iterator[torch.Tensor]:
        length = max(len(ids) for _, ids, _, _ in rows)
        tokens = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        attended = torch.zeros_like(tokens)
        for i, (_, ids, _, _) in enumerate(rows):
            tokens[i, : len(ids)] = torch.tensor(ids)
            attended[i, : len(ids)] = 1
        logits = self.model(input_ids=tokens, attention_mask=attended).logits
        for i, (_, _, places, targets) in enumerate(rows):
            log_probs = logits[i, places].float().log_softmax(-1)
            yield log_probs.gather(-1, torch.tensor(targets)[:, None])[:, 0]


def pairs(file: Path) -> list[tuple[str, str]]:
    """Good and bad sentences of a file of BLiMP or its supplement, in turn."""
    texts = []
    for line in file.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        texts += [("", item["sentence_good"]), ("", item["sentence_bad"])]
    return texts


def main() -> None:
    folder, backend, *files = sys.argv[1:]
    official = Official(Path(folder), backend)
    for file in map(Path, files):
        scores = official.scores(pairs(file))
        for number in range(0, len(scores), 2):
            good, bad = scores[number : number + 2]
            print(json.dumps({"uid": file.stem, "good": good, "bad": bad}), flush=True)


if __name__ == "__main__":
    main()
