"""The model card: numbers of the run, a header for the hub, code that runs."""

import dataclasses
import math
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmjax.config.schema import (
    Architecture,
    AutoregressiveConfig,
    MaskedDiffusionConfig,
    MLPKind,
    ModelConfig,
)
from lmjax.data.preparation.shards import Counts
from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.export.card import (
    CardFacts,
    Source,
    ZeroShotScore,
    model_card,
    training_sources,
)
from lmjax.export.folder import export_model
from lmjax.export.tokenizer_files import tokenizer_files
from lmjax.models.attention_kernels import library_attention
from lmjax.models.build import build_model
from lmjax.models.transformer import Setting

FACTS = CardFacts(
    name="someone/model-1",
    objective="masked diffusion",
    causal=False,
    own_code=True,
    samples=True,
    num_params=1_234_567,
    max_length=512,
    steps=6_500,
    tokens=6_655_352,
    words=5_146_141,
    changed={"optim.learning_rate": 1e-3, "data.train": ["a|b", "c"]},
    sources=(
        Source(name="childes.train", documents=308, words=717_009, tokens=1_526_111),
        Source(name="wiki", documents=2, words=1_000, tokens=2_000),
    ),
    corpus_sha256="ab12",
    tokenizer_sha256="cd34",
    figures=(
        {
            "name": "held-out/nll_per_token",
            "kind": "upper bound (exact-count)",
            "value": 2.7616,
            "standard_error": 0.0144,
            "draws": 8,
        },
        {"name": "nothing", "kind": "exact", "value": None, "standard_error": None},
        {"name": "alone", "kind": "exact", "value": 3.5, "standard_error": None},
    ),
    zero_shot=(
        ZeroShotScore(
            task="BLiMP, filtered",
            percent=68.25,
            standard_error=0.4,
            scorer="mlm, ties wrong, scorer 1",
        ),
    ),
    revisions={"chck_1M": 1_000_448, "chck_10M": 10_000_900},
)
BARE = CardFacts(
    name="bare",
    objective="next-token prediction",
    causal=True,
    own_code=False,
    samples=False,
    num_params=10,
    max_length=8,
)


def test_the_card_tells_the_numbers_of_the_run() -> None:
    card = model_card(FACTS)
    for told in (
        "1,234,567 parameters",
        "512 tokens",
        "| optimizer steps | 6,500 |",
        "| words seen | 5,146,141 |",
        "| childes.train | 308 | 717,009 | 1,526,111 |",
        "| all | 310 | 718,009 | 1,528,111 |",
        "prepared corpus: `ab12`",
        "tokenizer: `cd34`",
        "| held-out/nll_per_token | 2.7616 | 0.0144 | upper bound (exact-count) |",
        "| alone | 3.5000 | - | exact |",
        "| BLiMP, filtered | 68.2 | 0.4 | mlm, ties wrong, scorer 1 |",
        "| `chck_1M` | 1,000,448 |",
        "| `optim.learning_rate` | `0.001` |",
        r'| `data.train` | `["a\|b", "c"]` |',
    ):
        assert told in card, told
    assert "nothing" not in card.replace("nothing behind it", "")


def test_sources_are_those_of_the_corpus_that_was_trained_on() -> None:
    counts = Counts(documents=3, words=20, bytes=100, tokens=30, windows=2)
    records = types.SimpleNamespace(source="wiki", counts=counts)
    split = types.SimpleNamespace(records=(records,))
    (found,) = training_sources(types.SimpleNamespace(train=split))
    assert found == Source(name="wiki", documents=3, words=20, tokens=30)


def test_what_the_run_does_not_know_is_left_out() -> None:
    card = model_card(BARE)
    assert re.findall(r"^## .*", card, re.M) == ["## How to use it"]
    assert not re.findall(r"\|", card)
    numbers = set(re.findall(r"\d+", card.split("```")[0])) - set(
        re.findall(r"\d+", _version())
    )
    assert numbers <= {"10", "8", "2", "0"}  # those of BARE, and "apache-2.0"


def _version() -> str:
    import lmjax

    return lmjax.__version__


@pytest.mark.parametrize("facts", [FACTS, BARE], ids=["full", "bare"])
def test_the_header_is_yaml_that_leaves_the_licence_open(facts: CardFacts) -> None:
    yaml = pytest.importorskip("yaml")
    _, header, _ = model_card(facts).split("---\n", 2)
    found = yaml.safe_load(header)
    assert "license" not in found
    assert found["library_name"] == "transformers"
    assert found["language"] == ["en"]
    assert found["tags"][0] == "lmjax"
    expected = "text-generation" if facts.causal else "fill-mask"
    assert found["pipeline_tag"] == expected
    strange = dataclasses.replace(facts, languages=("no", "zh"), objective="a: b # c")
    _, header, _ = model_card(strange).split("---\n", 2)
    assert yaml.safe_load(header)["language"] == ["no", "zh"]


def test_no_number_of_a_table_is_not_finite() -> None:
    score = ZeroShotScore(task="t", percent=50.0, standard_error=math.nan, scorer="s")
    card = model_card(dataclasses.replace(BARE, zero_shot=(score,)))
    assert "| t | 50.0 | - | s |" in card and "nan" not in card


@pytest.mark.parametrize("kind", ["stock", "own causal", "diffusion"])
def test_the_code_of_the_card_runs_on_what_was_exported(
    kind: str,
    tmp_path: Path,
    random_params: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    modules = str(tmp_path / "modules")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", modules)
    transformers.utils.logging.disable_progress_bar()
    tokenizer, causal = ByteTokenizer(), kind != "diffusion"
    special, size = tokenizer.special, tokenizer.vocab_size
    mlp = MLPKind.SWIGLU if kind == "stock" else MLPKind.GELU
    model = build_model(
        ModelConfig(num_layers=1, width=16, num_heads=2, mlp=mlp, mlp_width=16),
        Setting(
            vocab_size=384,
            num_ids=size,
            unpredictable=(*tokenizer.unpredictable, *range(size, 384)),
            causal=causal,
            attend=library_attention,
        ),
    )
    objective = AutoregressiveConfig() if causal else MaskedDiffusionConfig()
    exported = export_model(
        model,
        objective,
        random_params(model),
        tokenizer,
        tmp_path / "model",
        opening_id=special.bos,
        architecture=Architecture.AUTO if kind == "stock" else Architecture.REMOTE,
        files=tokenizer_files(tokenizer, opening_id=special.bos, max_length=64),
    )
    own_code = exported.architecture is Architecture.REMOTE
    facts = dataclasses.replace(
        FACTS,
        name=str(tmp_path / "model"),
        causal=causal,
        own_code=own_code,
        samples=not causal,
    )
    code = re.search(r"```python\n(.*?)```", model_card(facts), re.S)[1]
    assert ("trust_remote_code=True" in code) == own_code == (kind != "stock")
    assert ("generate_diffusion" in code) == (not causal)
    capsys.readouterr()
    names: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), names)
    told = capsys.readouterr().out
    assert "The" in told
    assert names["output"].shape[1] > names["inputs"].input_ids.shape[1]
    assert names["model"].config.vocab_size == size
