"""What generate shows and writes, of a run folder that holds a tiny model."""

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from lmjax import experiment
from lmjax.config import checks
from lmjax.config.schema import (
    AutoregressiveConfig,
    Config,
    DataConfig,
    GenerateConfig,
    MaskedDiffusionConfig,
    ModelConfig,
)
from lmjax.core.errors import ConfigError, UserError
from lmjax.data.tokenization.byte_tokenizer import MODEL_BYTES, ByteTokenizer
from lmjax.modes import generation
from lmjax.modes.generation import Show, generate
from lmjax.train.progress import Progress

STEP = 7


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclasses.dataclass
class Folder:
    """Stands in for a run folder."""

    params: Any

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tokenizer_model(self) -> bytes:
        return MODEL_BYTES

    def counts(self) -> Progress:
        return Progress(step=STEP)

    def restore_params(self, system: Any) -> Any:
        del system
        return self.params


def _config(**changes: Any) -> Config:
    asked = {"prompts": ("the", "a cat"), "num_samples": 2, "max_new_tokens": 6}
    return Config(
        objective=changes.pop("objective", AutoregressiveConfig()),
        data=DataConfig(train=("nowhere",), sequence_length=16),
        model=ModelConfig(
            num_layers=1, width=16, num_heads=2, mlp_width=16, max_length=32
        ),
        generate=GenerateConfig(**(asked | {"steps": 3} | changes)),
    )


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, random_params: Callable[..., Any]
) -> Callable[..., str]:
    """Runs generate with fields of GenerateConfig; returns what it printed."""

    def runs(*, terminal: bool = False, **changes: Any) -> str:
        config = _config(**changes)
        checks.check(config, num_devices=jax.device_count())
        system = experiment.build_system(config, ByteTokenizer())
        folder = Folder(random_params(system.model))
        monkeypatch.setattr(generation.RunFolder, "read", lambda *_: folder)
        told = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr(sys, "stdout", told)
        generate(config, Path("run"))
        return told.getvalue()

    return runs


def test_a_terminal_shows_what_other_readers_get(run: Callable[..., str]) -> None:
    plain = run()
    texts = plain.split(f"\n{'-' * 40}\n")
    assert len(texts) == 5 and texts[4] == ""
    assert [text[:3] for text in texts[:4]] == ["the", "the", "a c", "a c"]
    assert run(terminal=True) == plain
    # Diffusion does not write from the left, and shows its texts when they are done.
    masked = {"objective": MaskedDiffusionConfig()}
    assert run(terminal=True, **masked) == run(**masked)


def test_records_tell_the_text_and_how_it_came_about(
    run: Callable[..., str], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "from\\na file"}\n')
    file = tmp_path / "texts.jsonl"
    fields = {"prompt_file": str(prompts), "stop": ("\x00",)}
    told = run(output=str(file), **fields)
    assert "6 texts" in told
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    assert run(output="-", **fields).split("\n")[:-1] == lines
    records = [json.loads(line) for line in lines]
    expected = ["the"] * 2 + ["a cat"] * 2 + ["from\na file"] * 2
    assert [record["prompt"] for record in records] == expected
    for number, record in enumerate(records):
        assert record["text"] == record["prompt"] + record["continuation"]
        assert record["finish_reason"] in ("eos", "stop", "length")
        assert record["tokens"] <= 6
        assert (record["finish_reason"] == "length") <= (record["tokens"] == 6)
        assert (record["sample"], record["seed"]) == (number % 2, 0)
        assert record["step"] == STEP


def test_what_cannot_work_is_told_before_the_work(
    run: Callable[..., str], tmp_path: Path
) -> None:
    for output in (tmp_path, tmp_path / "nowhere" / "texts.jsonl"):
        with pytest.raises(ConfigError, match=r"generate\.output"):
            run(output=str(output))
    with pytest.raises(UserError, match=r"generate\.prompt_file"):
        run(prompt_file=str(tmp_path / "nowhere.txt"))
    with pytest.raises(ConfigError, match=r"generate\.repetition_penalty"):
        run(objective=MaskedDiffusionConfig(), repetition_penalty=1.2)
    with pytest.raises(ConfigError, match=r"generate\.stop"):
        run(stop=("end", ""))
    for field, value in [("min_p", 1.5), ("repetition_penalty", 0.0)]:
        with pytest.raises(ConfigError, match=f"generate.{field}"):
            run(**{field: value})


def test_texts_that_grow_side_by_side_are_shown_one_after_another() -> None:
    stream = io.StringIO()
    show = Show(stream, ["A", "B"], 2)
    rule = f"\n{'-' * 40}\n"

    def shown() -> str:
        text = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        return text

    show(1, "one", False)
    assert shown() == ""
    show(0, "x", False)
    assert shown() == "Ax"
    show(1, "!", True)
    show(3, "three", True)
    assert shown() == "" and show.finished == 0
    show(0, "y", False)
    assert shown() == "y"
    show(0, "", True)
    assert shown() == f"{rule}Aone!{rule}" and show.finished == 2
    show(2, "", True)
    assert shown() == f"B{rule}Bthree{rule}" and show.finished == 4
