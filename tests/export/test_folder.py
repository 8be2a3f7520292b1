"""Exports against transformers on the same weights, and what becomes of a folder."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lmjax import experiment
from lmjax.config.schema import (
    Architecture,
    AutoregressiveConfig,
    Backbone,
    Config,
    ExportDtype,
    FirstInput,
    MaskedDiffusionConfig,
)
from lmjax.core.errors import ConfigError, UserError
from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer
from lmjax.export import folder as folder_module
from lmjax.export.check import Check
from lmjax.export.folder import export_model
from lmjax.export.importing import import_model
from lmjax.models.build import Model
from tests.export.exports import (
    BOS,
    EOS,
    FIELDS,
    assert_same,
    build,
    logits,
    random_params,
    tokenizer,
    torch_logits,
)

MakeModel = Callable[..., Model]

pytest.importorskip("safetensors")
UNCHECKED = mock.patch.object(
    folder_module, "check_export", lambda *_: Check("weights", 0.0, 0.0, None)
)


@pytest.fixture
def model(make_model: MakeModel) -> Model:
    return build(make_model)


def _export(model: Model, params: Any, folder: Path, **options: Any) -> Any:
    return export_model(
        model,
        options.pop("objective", AutoregressiveConfig()),
        params,
        tokenizer(model.setting.num_ids),
        folder,
        opening_id=options.pop("opening_id", BOS),
        **options,
    )


@st.composite
def _models(draw: st.DrawFn, kind: Architecture) -> dict[str, Any]:
    """Fields of models that a class holds."""
    gpt2 = kind is Architecture.GPT2
    groups, heads_of_a_group = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    num_heads = groups * heads_of_a_group
    width = num_heads * draw(st.sampled_from([4, 6]))
    fields = dict(
        num_layers=draw(st.integers(1, 2)),
        num_heads=num_heads,
        width=width,
        mlp_width=draw(st.integers(5, 40)),
        norm_epsilon=draw(st.sampled_from([1e-6, 1e-2])),
        tied_embeddings=draw(st.booleans()),
        max_length=draw(st.sampled_from([9, 16])),
        condition_width=128,  # of a DiT: the default
    )
    if not gpt2:
        fields |= dict(
            num_kv_heads=draw(st.sampled_from([0, groups])),
            head_width=draw(st.sampled_from([0, 2, 8])),
            rope_theta=draw(st.sampled_from([100.0, 10_000.0])),
            attention_bias=draw(st.booleans()),
        )
    if kind in (Architecture.LLAMA, Architecture.ARCEE):
        fields["mlp_bias"] = draw(st.booleans())
    return FIELDS[kind] | fields | dict(vocab_size=draw(st.integers(5, 140)))


@pytest.mark.parametrize("kind", list(FIELDS))
@given(data=st.data())
@settings(
    derandomize=True,
    deadline=None,
    max_examples=3,
    phases=[Phase.generate],  # shrinking would take minutes
)
def test_transformers_computes_the_same_logits_and_importing_gives_the_same_model(
    make_model: MakeModel,
    tmp_path_factory: pytest.TempPathFactory,
    kind: Architecture,
    data: st.DataObject,
) -> None:
    pytest.importorskip("torch")
    model = build(make_model, **data.draw(_models(kind)))
    params = random_params(model)
    folder = tmp_path_factory.mktemp("export") / "model"
    with UNCHECKED:
        exported = _export(model, params, folder)
    assert exported.architecture is kind
    tokens = np.random.default_rng(1).integers(0, model.setting.num_ids, (2, 9))
    expected = logits(model, params, tokens)
    found = torch_logits(folder, tokens)
    predicted = np.isfinite(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found[predicted], expected[predicted], atol=1e-4, rtol=0)
    again = import_model(folder, tokenizer(model.setting.num_ids))
    assert_same(again.params, params)
    explicit = dataclasses.replace(model.config, vocab_size=model.setting.num_ids)
    if explicit.num_kv_heads == explicit.num_heads:
        explicit.num_kv_heads = 0
    if explicit.head_width * explicit.num_heads == explicit.width:
        explicit.head_width = 0
    assert again.model == explicit


@pytest.mark.parametrize("kind", list(FIELDS))
def test_greedy_texts_are_those_of_transformers(
    tmp_path: Path, kind: Architecture
) -> None:
    """Its generation_config.json makes it leave out what lmjax never writes."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = Config(objective=AutoregressiveConfig(first_input=FirstInput.EOS))
    for field, value in dict(
        num_layers=2, width=16, num_heads=4, mlp_width=24, max_length=80, dropout=0.0
    ).items():
        setattr(config.model, field, value)
    for field, value in FIELDS[kind].items():
        setattr(config.model, field, value)
    config.data.sequence_length, config.generate.temperature = 64, 0.0
    ids = ByteTokenizer()
    system = experiment.build_system(config, ids, jax.devices()[:1])
    params = random_params(system.model)
    # What lmjax never writes would be the first choice at many places.
    params["vocabulary"]["head"][ids.special.mask] *= 10.0
    with UNCHECKED:
        export_model(
            system.model,
            config.objective,
            params,
            ids,
            tmp_path / "model",
            opening_id=ids.special.eos,
        )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))
    inputs = torch.tensor([[ids.special.eos, *ids.encode("Once upon")]])
    written = loaded.eval().generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=64
    )
    write = experiment.build_generator(
        config.generate, config.data, system, max_length=config.model.max_length
    )
    key = jax.random.key(0)
    (sample,) = write(params, key, ["Once upon"], num_samples=1, max_new_tokens=64)
    assert written.shape == (1, 1 + len("Once upon") + 64), "none of them is EOS"
    assert sample.text == ids.decode(written[0].tolist())


def test_an_export_says_how_it_was_checked(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    exported = _export(model, random_params(model), tmp_path / "model")
    assert exported.check.what == "logits"
    assert 0 < exported.check.difference < 1e-4 <= exported.check.tolerance
    assert exported.check.rounding == 0.0
    shapes = jax.tree.map(lambda leaf: leaf.size, model.shapes)
    padding = 2 * (128 - 37) * 16
    assert exported.num_params == sum(jax.tree.leaves(shapes)) - padding
    assert exported.num_bytes == 4 * exported.num_params


def test_a_folder_is_whole_and_nothing_else_is_left_beside_it(
    model: Model, tmp_path: Path
) -> None:
    with UNCHECKED:
        _export(
            model, random_params(model), tmp_path / "a" / "b", files={"note": b"text"}
        )
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    files = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert files == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "note",
    }
    generation = json.loads((tmp_path / "a/b/generation_config.json").read_text())
    assert generation == {
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": 3,
        "suppress_tokens": [1, 3, 4],
    }


def test_what_is_not_the_model_is_no_export(model: Model, tmp_path: Path) -> None:
    """A wrong number in config.json, such as a bug would write there."""
    pytest.importorskip("torch")
    params = random_params(model)
    stock = folder_module.BY_KIND[Architecture.LLAMA]
    wrong = dataclasses.replace(stock, computes={"hidden_act": ("gelu",)})
    kinds = {Architecture.LLAMA: wrong}
    with (
        mock.patch.object(folder_module, "BY_KIND", kinds),
        pytest.raises(UserError, match=r"not the model.*logits that are"),
    ):
        _export(model, params, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_stays_unless_it_may_be_replaced(
    model: Model, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    with UNCHECKED:
        _export(model, random_params(model, 0), folder)
        before = (folder / "model.safetensors").read_bytes()
        with pytest.raises(ConfigError, match="overwrite=true"):
            _export(model, random_params(model, 1), folder)
        assert (folder / "model.safetensors").read_bytes() == before
        (folder / "more").write_text("of an older export")
        _export(model, random_params(model, 1), folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != before
    assert not (folder / "more").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_export_leaves_the_one_before(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with UNCHECKED:
        _export(model, random_params(model, 0), folder)
    before = (folder / "model.safetensors").read_bytes()
    params = random_params(model, 1)
    params["final_norm"]["scale"][3] = np.nan
    with pytest.raises(UserError, match=r"not finite: model\.norm\.weight"):
        _export(model, params, folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_replacement_puts_back_the_one_before(
    model: Model, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    with UNCHECKED:
        _export(model, random_params(model, 0), folder)
        before = (folder / "model.safetensors").read_bytes()
        replace = os.replace

        def fails(source: Path, target: Path) -> None:
            if source.name.startswith("unfinished"):
                raise PermissionError("no")
            replace(source, target)

        with (
            mock.patch.object(os, "replace", fails),
            pytest.raises(PermissionError),
        ):
            _export(model, random_params(model, 1), folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_only_an_export_may_be_replaced(model: Model, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with UNCHECKED, pytest.raises(ConfigError, match="no exported model"):
        _export(model, random_params(model), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("below", ["checkpoints", "milestones", "chck_1M/config.json"])
def test_an_export_that_holds_more_stays(
    model: Model, tmp_path: Path, below: str
) -> None:
    folder = tmp_path / "model"
    with UNCHECKED:
        _export(model, random_params(model), folder)
        inside = folder / below
        inside.parent.mkdir(exist_ok=True)
        inside.write_text("{}") if inside.suffix else inside.mkdir()
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="no exported model") as error:
                _export(model, random_params(model), folder, overwrite=overwrite)
            assert "overwrite" not in str(error.value)
    assert (folder / below).exists()
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize(
    "content", ['{"model_type": "llama"}', '{"seed": 0, "model": {}}', "[", '["lmjax"]']
)
def test_a_model_or_run_of_another_stays(
    model: Model, tmp_path: Path, content: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with UNCHECKED, pytest.raises(ConfigError, match="no exported model"):
        _export(model, random_params(model), tmp_path, overwrite=True)
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"


def test_no_export_is_written_into_another(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with UNCHECKED:
        _export(model, random_params(model), folder)
        with pytest.raises(ConfigError, match="folder above is an exported model"):
            _export(model, random_params(model), folder / "chck_1M")
    assert not (folder / "chck_1M").exists()


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_weights_may_be_read_by_whom_the_umask_lets(
    model: Model, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        with UNCHECKED:
            _export(model, random_params(model), tmp_path / "model", shard_bytes=4000)
    finally:
        os.umask(before)
    files = list((tmp_path / "model").iterdir())
    assert len(files) > 4
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~umask}


@pytest.mark.parametrize("dtype", [ExportDtype.BFLOAT16, ExportDtype.FLOAT16])
def test_a_smaller_dtype_rounds_to_nearest_and_says_what_that_does(
    model: Model, tmp_path: Path, dtype: ExportDtype
) -> None:
    torch = pytest.importorskip("torch")
    params = random_params(model)
    exported = _export(model, params, tmp_path / "model", dtype=dtype)
    assert exported.check.difference < 1e-4 < exported.check.rounding < 0.1
    assert exported.num_bytes == 2 * exported.num_params
    again = import_model(tmp_path / "model", tokenizer(37))
    expected = jax.tree.map(
        lambda leaf: torch.tensor(leaf).to(getattr(torch, dtype.value)).float().numpy(),
        params,
    )
    assert_same(again.params, expected)


def test_a_number_beyond_float16_is_refused(model: Model, tmp_path: Path) -> None:
    params = random_params(model)
    params["final_norm"]["scale"][3] = 70_000.0
    with UNCHECKED, pytest.raises(UserError, match="7e\\+04, which float16 cannot"):
        _export(model, params, tmp_path / "model", dtype=ExportDtype.FLOAT16)


def test_many_bytes_go_to_several_files_with_an_index(
    model: Model, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    params = random_params(model)
    _export(model, params, tmp_path / "model", shard_bytes=4000)
    index = json.loads((tmp_path / "model/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "model" / file).stat().st_size < 6000 for file in files)
    assert not (tmp_path / "model/model.safetensors").exists()
    assert_same(import_model(tmp_path / "model", tokenizer(37)).params, params)


@pytest.mark.parametrize("timed", [False, True])
def test_models_of_diffusion_and_all_others_carry_their_code(
    make_model: MakeModel, tmp_path: Path, timed: bool
) -> None:
    pytest.importorskip("torch")
    fields = dict(backbone=Backbone.DIT, time_conditioning=True) if timed else {}
    model = build(make_model, causal=False, head_bias=True, **fields)
    params = random_params(model)
    objective = MaskedDiffusionConfig()
    exported = _export(model, params, tmp_path / "model", objective=objective)
    assert exported.architecture is Architecture.REMOTE
    assert exported.check.what == "logits"
    again = import_model(tmp_path / "model", tokenizer(37))
    assert_same(again.params, params)
    assert again.objective == objective
    assert again.model == dataclasses.replace(model.config, vocab_size=37)
