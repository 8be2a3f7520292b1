"""Models that transformers made, read and held against it; and what is refused."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from lmjax.config.schema import (
    AutoregressiveConfig,
    FirstInput,
    PositionKind,
    TokenizerKind,
)
from lmjax.core.errors import UserError
from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.export import folder as folder_module
from lmjax.export import tokenizer_files
from lmjax.export.check import Check
from lmjax.export.folder import export_model
from lmjax.export.importing import import_model
from lmjax.models.attention_kernels import library_attention
from lmjax.models.build import Model, build_model
from lmjax.models.transformer import Setting
from tests.export.exports import BOS, EOS, build, logits, random_params, tokenizer

MakeModel = Callable[..., Model]
pytest.importorskip("safetensors")

IDS = 41
LLAMA = dict(
    vocab_size=IDS,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=16,
    initializer_range=0.3,
    bos_token_id=BOS,
    eos_token_id=EOS,
)
# Class, its config, and what is found in the config that is imported.
MADE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": (
        "Llama",
        LLAMA | dict(attention_bias=True, mlp_bias=True, rms_norm_eps=1e-3),
        dict(norm_epsilon=1e-3, num_kv_heads=2, head_width=0),
    ),
    # Shaped as SmolLM2: tied, and BOS is EOS.
    "smollm2": (
        "Llama",
        LLAMA
        | dict(
            bos_token_id=EOS,
            tie_word_embeddings=True,
            rope_parameters=dict(rope_type="default", rope_theta=500.0),
        ),
        dict(rope_theta=500.0, tied_embeddings=True),
    ),
    "qwen3": (
        "Qwen3",
        LLAMA | dict(head_dim=6, attention_bias=True, num_key_value_heads=6),
        dict(head_width=6, num_kv_heads=0, qk_norm=True),
    ),
    "arcee": ("Arcee", LLAMA | dict(hidden_act="gelu_new", mlp_bias=True), {}),
    "gpt2": (
        "GPT2",
        dict(
            vocab_size=IDS,
            n_embd=24,
            n_layer=2,
            n_head=3,
            n_positions=16,
            initializer_range=0.3,
            bos_token_id=EOS,
            eos_token_id=EOS,
        ),
        dict(mlp_width=96, positions=PositionKind.LEARNED, dropout=0.1),
    ),
}


def _made(name: str, folder: Path) -> Path:
    """Saves a random model with nothing at zero or one."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family, fields, _ = MADE[name]
    heads = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    config = getattr(transformers, f"{family}Config")(**fields)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}{heads}")(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", MADE)
def test_an_imported_model_computes_what_transformers_does(
    name: str, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    _made(name, tmp_path)
    imported = import_model(tmp_path, tokenizer(IDS))
    for field, value in MADE[name][2].items():
        assert getattr(imported.model, field) == value, field
    first = FirstInput.EOS if MADE[name][1]["bos_token_id"] == EOS else FirstInput.BOS
    assert imported.objective == AutoregressiveConfig(first_input=first)
    model = build_model(
        imported.model,
        Setting(
            vocab_size=128,
            num_ids=IDS,
            unpredictable=(),
            causal=True,
            attend=library_attention,
        ),
    )
    tokens = np.random.default_rng(0).integers(0, IDS, (2, 16))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = loaded(torch.tensor(tokens)).logits.numpy()
    found = logits(model, imported.params, tokens)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(imported.params["vocabulary"]["table"][IDS:], 0.0)


@pytest.fixture
def folder(make_model: MakeModel, tmp_path: Path) -> Path:
    """A Llama that lmjax exported; its check is not what is tested here."""
    model, target = build(make_model, IDS), tmp_path / "model"
    check = lambda *_: Check("weights", 0.0, 0.0, None)  # noqa: E731
    with mock.patch.object(folder_module, "check_export", check):
        export_model(
            model,
            AutoregressiveConfig(),
            random_params(model),
            tokenizer(IDS),
            target,
            opening_id=EOS,
        )
    return target


def _change(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not ...}
    file.write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(model_type="bert"), "no models of the type 'bert'"),
        (dict(model_type=...), "no models of the type None"),
        (dict(hidden_act="relu"), r"hidden_act='relu' \(only silu or swish\)"),
        (dict(rope_scaling=dict(factor=2.0)), r"rope_scaling=\{'factor': 2.0\}"),
        (
            dict(rope_parameters=dict(rope_type="llama3", rope_theta=1e4, factor=8.0)),
            r"rope_parameters.factor=8.0; rope_parameters.rope_type='llama3'",
        ),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
        (dict(sliding_window=128), "sliding_window=128"),
        (dict(layer_types=["full_attention", "odd"]), "layer_types odd"),
        (dict(quantization_config=dict(bits=4)), "quantization_config"),
        (dict(hidden_size=...), "lacks hidden_size"),
        (dict(vocab_size=...), "lacks vocab_size"),
        (dict(intermediate_size=25), r"is \(24, 16\), must be \(25, 16\)"),
        (dict(num_hidden_layers=3), r"model\.layers\.2\..* is missing"),
        (dict(num_hidden_layers=1), r"model\.layers\.1\..* has no place"),
        (dict(attention_bias=True), r"q_proj\.bias is missing"),
        (dict(tie_word_embeddings=True), r"lm_head\.weight has no place"),
    ],
)
def test_what_lmjax_does_not_compute_or_does_not_fit_is_told_by_name(
    folder: Path, changes: dict[str, Any], named: str
) -> None:
    _change(folder, **changes)
    with pytest.raises(UserError, match=named) as caught:
        import_model(folder, tokenizer(IDS))
    assert str(folder) in caught.value.where
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(scale_attn_weights=False), "scale_attn_weights=False"),
        (dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse"),
        (dict(activation_function="relu"), "activation_function='relu'"),
        (dict(add_cross_attention=True), "add_cross_attention=True"),
    ],
)
def test_variants_of_gpt2_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(dict(model_type="gpt2", vocab_size=IDS) | changes)
    )
    with pytest.raises(UserError, match=named):
        import_model(tmp_path, tokenizer(IDS))


def test_a_folder_that_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json is there"):
        import_model(tmp_path, tokenizer(IDS))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        import_model(tmp_path, tokenizer(IDS))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="holds a list"):
        import_model(tmp_path, tokenizer(IDS))


def test_weights_that_are_missing_pickled_or_damaged_are_told(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        import_model(folder, tokenizer(IDS))
    file.unlink()
    with pytest.raises(UserError, match=r"there is no model\.safetensors"):
        import_model(folder, tokenizer(IDS))
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin alone") as caught:
        import_model(folder, tokenizer(IDS))
    assert "safe_serialization" in caught.value.remedy


def test_an_index_that_does_not_fit_its_files_is_told(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    index.write_text(json.dumps(dict(weight_map={})))
    with pytest.raises(UserError, match="names no tensors"):
        import_model(folder, tokenizer(IDS))
    index.write_text(json.dumps(dict(weight_map={"a": "one.safetensors"})))
    with pytest.raises(UserError, match=r"one\.safetensors has no tensor a"):
        import_model(folder, tokenizer(IDS))
    index.write_text(json.dumps(dict(weight_map={"a": "two.safetensors"})))
    with pytest.raises(UserError, match=r"is missing: two\.safetensors"):
        import_model(folder, tokenizer(IDS))


def test_a_tokenizer_may_have_more_ids_only_if_they_are_special(folder: Path) -> None:
    """Of a model with 41 rows: 42 ids, of which the last is appended or not."""
    appended = tokenizer(IDS + 1)
    appended.special = appended.special.__class__(unk=0, bos=1, eos=2, pad=3, mask=IDS)
    imported = import_model(folder, appended)
    assert imported.model.vocab_size == IDS
    with pytest.raises(UserError, match="the tokenizer has 42 ids"):
        import_model(folder, tokenizer(IDS + 1))


def test_our_own_export_says_what_comes_first(folder: Path) -> None:
    """Its BOS is what opens a text, EOS here, and yet it reads BOS before a window."""
    found = import_model(folder, tokenizer(IDS)).objective
    assert found == AutoregressiveConfig(first_input=FirstInput.BOS)
    _change(folder, lmjax=...)
    found = import_model(folder, tokenizer(IDS)).objective
    assert found == AutoregressiveConfig(first_input=FirstInput.EOS)


def test_a_bos_that_the_tokenizer_does_not_know_is_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _change(folder, lmjax=..., bos_token_id=17)
    with caplog.at_level(logging.WARNING):
        found = import_model(folder, tokenizer(IDS)).objective
    assert found == AutoregressiveConfig(first_input=FirstInput.EOS)
    assert "BOS is id 17" in caplog.text


def test_the_tokenizer_of_a_folder_is_found(
    make_model: MakeModel, tmp_path: Path
) -> None:
    pytest.importorskip("tokenizers")
    ids = ByteTokenizer()
    model = build(make_model, ids.vocab_size)
    check = lambda *_: Check("weights", 0.0, 0.0, None)  # noqa: E731
    files = tokenizer_files.tokenizer_files(
        ids, opening_id=ids.special.bos, max_length=16
    )
    with mock.patch.object(folder_module, "check_export", check):
        export_model(
            model,
            AutoregressiveConfig(),
            random_params(model),
            ids,
            tmp_path / "model",
            opening_id=ids.special.bos,
            files=files,
        )
    found = import_model(tmp_path / "model").tokenizer
    assert found.kind is TokenizerKind.HUGGINGFACE
    assert found.path == str(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="comes without a tokenizer"):
        import_model(tmp_path / "model")
