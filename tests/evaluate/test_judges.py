"""Judges of texts against losses that are computed by hand."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.config.schema import ParallelConfig
from lmjax.core.errors import UserError
from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.evaluate.generated_text import evaluate_texts
from lmjax.evaluate.judges import HuggingFaceJudge, LmjaxJudge, Window, windows
from lmjax.evaluate.likelihood import Scorer
from lmjax.models.build import Model
from lmjax.objectives.autoregressive import Autoregressive
from lmjax.parallel.mesh import build_mesh

TEXTS = ("a b c d", "b", "", "d d d a b c", "c a")
LONG = "a b c d a c b d b a"
CONTEXT = 8
WORDS = ("<eos>", "<bos>", "a", "b", "c", "d")


@pytest.mark.parametrize(("length", "first"), [(1, 1), (8, 1), (9, 1), (30, 3), (7, 0)])
def test_windows_count_each_token_once_with_half_a_window_before_it(
    length: int, first: int
) -> None:
    seen: list[int] = []
    for window in windows(length, first, 8):
        assert window.stop - window.start <= 8
        assert window.start == 0 or window.counted - window.start >= 4
        seen.extend(range(window.counted, window.stop))
    assert seen == list(range(first, length))


def test_windows_of_a_known_text() -> None:
    assert list(windows(11, 1, 8)) == [Window(0, 1, 8), Window(4, 8, 11)]
    assert list(windows(3, 1, 2)) == [Window(0, 1, 2), Window(1, 2, 3)]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A random GPT-2 of 8 positions and 6 words; whether its tokenizer has a BOS."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS),
        n_positions=CONTEXT,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config)
    folders = {}
    for has_bos in (True, False):
        words = tokenizers.models.WordLevel(
            {word: i for i, word in enumerate(WORDS)}, unk_token="a"
        )
        inner = tokenizers.Tokenizer(words)
        inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        special = {"eos_token": "<eos>"} | ({"bos_token": "<bos>"} if has_bos else {})
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=inner, **special
        )
        folder = tmp_path_factory.mktemp("judge") / "tiny"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[has_bos] = folder
    return folders


def _by_hand(folder: Path, ids: list[int]) -> float:
    """Nats of all ids but the first, in float64 and one token after another."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()
    nats = 0.0
    with torch.inference_mode():
        for i in range(1, len(ids)):
            logits = model(torch.tensor([ids[:i]])).logits[0, -1]
            nats -= float(torch.log_softmax(logits, dim=-1)[ids[i]])
    return nats


@pytest.mark.parametrize("has_bos", [True, False])
def test_a_hugging_face_judge_gives_the_loss_by_hand(
    has_bos: bool, gpt2: dict[bool, Path]
) -> None:
    """Every token after BOS counts, without one all but the first."""
    judge = HuggingFaceJudge(str(gpt2[has_bos]), batch_size=2)
    found = judge.nll(TEXTS)
    for text, (nats, count) in zip(TEXTS, found, strict=True):
        ids = [WORDS.index(word) for word in text.split()]
        ids = [1, *ids] if has_bos else ids
        assert count == max(len(ids) - 1, 0)
        assert nats == pytest.approx(_by_hand(gpt2[has_bos], ids), rel=1e-5)
    assert ("all but the first" in judge.counted) is not has_bos
    one_by_one = [judge.nll([text])[0] for text in TEXTS]
    assert [pytest.approx(pair, rel=1e-5) for pair in found] == one_by_one


def test_what_follows_the_first_eos_is_ignored(gpt2: dict[bool, Path]) -> None:
    judge = HuggingFaceJudge(str(gpt2[True]))
    ends, more, opened = judge.nll(
        ["a b <eos>", "a b <eos> c d <eos> a", "<bos> a b <eos> d"]
    )
    assert ends[1] == 3
    assert more == pytest.approx(ends, rel=1e-5)
    assert opened == pytest.approx(ends, rel=1e-5)


def test_a_text_beyond_the_context_goes_by_windows(gpt2: dict[bool, Path]) -> None:
    """BOS and 10 words: 7 in the first window, 3 more after the 4 before them."""
    folder = gpt2[True]
    ids = [1, *(WORDS.index(word) for word in LONG.split())]
    expected = _by_hand(folder, ids[:8])
    expected += _by_hand(folder, ids[4:]) - _by_hand(folder, ids[4:8])
    ((nats, count),) = HuggingFaceJudge(str(folder)).nll([LONG])
    assert (nats, count) == (pytest.approx(expected, rel=1e-5), 10)
    ((short, _),) = HuggingFaceJudge(str(folder), context=4).nll([LONG])
    assert short != pytest.approx(nats, rel=1e-3)


def test_a_report_names_the_judge_and_what_it_counts(gpt2: dict[bool, Path]) -> None:
    judge = HuggingFaceJudge(str(gpt2[True]))
    ids = [[WORDS.index(word) for word in text.split()] for text in TEXTS]
    found = evaluate_texts(judge, TEXTS, ids)
    nats = sum(_by_hand(gpt2[True], [1, *row]) for row in ids)
    tokens = sum(map(len, ids))
    assert found.value == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert (found.tokens, found.unjudged) == (tokens, 1)
    assert found.kind == f"generative perplexity under {gpt2[True]}"
    assert "first after BOS" in found.counted
    json.dumps(found.to_json(), allow_nan=False)


def test_a_judge_that_is_not_there_is_told(
    gpt2: dict[bool, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="The judge can't be loaded"):
        HuggingFaceJudge(str(tmp_path / "nothing"))


@pytest.fixture(scope="module")
def model(make_model: Any) -> Model:
    """A causal model of bytes."""
    unpredictable = tuple(range(261, 384))
    return make_model(causal=True, vocab_size=384, unpredictable=unpredictable)


def _scorer(model: Model, objective: Any) -> Scorer:
    mesh = build_mesh(ParallelConfig(), jax.devices()[:1])
    return Scorer(model.bind, objective, mesh)


def test_an_lmjax_judge_gives_the_likelihood_of_its_scorer(
    model: Model, random_params: Any
) -> None:
    tokenizer = ByteTokenizer()
    special = tokenizer.special
    objective = Autoregressive(bos_id=special.bos, chunk_tokens=4096)
    params = random_params(model)
    judge = LmjaxJudge(
        _scorer(model, objective),
        params,
        tokenizer,
        name="run",
        opening=[special.eos],
        max_length=16,
    )
    texts = ["a cat", "", "the dog ran off", "b" * 16]
    found = judge.nll(texts)
    assert [count for _, count in found] == [5, 0, 15, 16]

    @jax.jit
    def run(params: Any, tokens: jax.Array) -> jax.Array:
        bound = model.bind(params)
        return bound.logits(bound(tokens))[0]

    def cost(ids: list[int], given: int) -> float:
        """-log p of the ids behind the given ones, which stand after BOS."""
        row = np.array([[special.bos, *ids] + [0] * (17 - len(ids))])
        logits = np.asarray(run(params, row), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return -sum(log_p[i, ids[i]] for i in range(given, len(ids)))

    rows = [[special.eos, *tokenizer.encode(text)] for text in texts]
    expected = [cost(row, 1) for row in rows[:3]]
    # The last is 17 tokens with the opening: the last one goes in a second window.
    expected.append(cost(rows[3][:16], 1) + cost(rows[3][8:], 8))
    assert [nats for nats, _ in found] == pytest.approx(expected, rel=1e-5)
    report = evaluate_texts(judge, texts, [tokenizer.encode(text) for text in texts])
    assert report.value == pytest.approx(math.exp(sum(expected) / 36), rel=1e-5)
    assert report.kind == "generative perplexity under run"


def test_a_bound_is_no_judge(model: Model, make_training: Any) -> None:
    scorer = _scorer(model, make_training("masked diffusion").step.objective)
    with pytest.raises(ValueError, match="'mdlm' gives an upper bound"):
        LmjaxJudge(
            scorer, None, ByteTokenizer(), name="mdlm", opening=[], max_length=16
        )
