"""Exported models with code of their own, held against lmjax on the same weights."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config.schema import (
    AutoregressiveConfig,
    Backbone,
    MaskedDiffusionConfig,
    MLPKind,
    NormKind,
    Parameterization,
    PositionKind,
    ScheduleKind,
    UniformDiffusionConfig,
)
from lmjax.core.errors import UserError
from lmjax.data.tokenization.vocabulary import SpecialIds
from lmjax.diffusion.schedules import sigma
from lmjax.export import names, remote
from lmjax.models.build import Model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.numpy")

BOS, MASK, EOS, PAD = 1, 2, 3, 0
SPECIAL = SpecialIds(unk=4, bos=BOS, eos=EOS, pad=PAD, mask=MASK)
NUM_IDS = 31  # of the 32 rows of the models
NEVER = (PAD, BOS, MASK)
TOLERANCE = 1e-4

DIT = dict(backbone=Backbone.DIT, condition_width=8)
CASES: dict[str, tuple[remote.Objective, dict[str, Any]]] = {
    "plain": (MaskedDiffusionConfig(), {}),
    "learned": (
        MaskedDiffusionConfig(),
        dict(positions=PositionKind.LEARNED, mlp=MLPKind.GELU, mlp_bias=True),
    ),
    "dit": (
        MaskedDiffusionConfig(),
        dict(**DIT, norm=NormKind.LAYER, mlp=MLPKind.GELU, tied_embeddings=True),
    ),
    "timed": (
        MaskedDiffusionConfig(),
        dict(**DIT, time_conditioning=True, qk_norm=True, head_bias=True),
    ),
    "uniform": (
        UniformDiffusionConfig(),
        dict(**DIT, time_conditioning=True, attention_bias=True),
    ),
    "causal": (
        AutoregressiveConfig(),
        dict(norm=NormKind.LAYER, norm_bias=True, head_width=6, head_bias=True),
    ),
    "causal_learned": (
        AutoregressiveConfig(),
        dict(positions=PositionKind.LEARNED, tied_embeddings=True, qk_norm=True),
    ),
}
CAUSAL = [name for name in CASES if name.startswith("causal")]


class Saved(NamedTuple):
    folder: Path
    model: Model
    params: Any

    def hidden(self, tokens: np.ndarray, **inputs: Any) -> jax.Array:
        return self.model.bind(self.params)(jnp.asarray(tokens, jnp.int32), **inputs)

    def logits(self, tokens: np.ndarray, **inputs: Any) -> np.ndarray:
        hidden = self.hidden(tokens, **inputs)
        return np.array(self.model.bind(self.params).logits(hidden))[..., :NUM_IDS]

    def load(self, *, headless: bool = False, **options: Any) -> Any:
        auto = transformers.AutoModelForMaskedLM
        if self.model.setting.causal:
            auto = transformers.AutoModelForCausalLM
        if headless:
            auto = transformers.AutoModel
        return auto.from_pretrained(self.folder, trust_remote_code=True, **options)


class InMemory:
    """Tensors as `names.from_tensors` reads them."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.read = tensors.__getitem__


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The code of the folders is copied to a place of this test, not to the home."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        transformers.utils.logging.disable_progress_bar()
        yield
        transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def saved(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., Model],
    random_params: Callable[..., Any],
) -> Callable[[str], Saved]:
    """Writes the folder of a case."""
    found: dict[str, Saved] = {}

    def save(case: str) -> Saved:
        if case in found:
            return found[case]
        objective, fields = CASES[case]
        causal = isinstance(objective, AutoregressiveConfig)
        model = make_model(causal=causal, unpredictable=(*NEVER, 31), **fields)
        params = random_params(model)
        folder = tmp_path_factory.mktemp(case)
        _write(folder, model, objective, params)
        found[case] = Saved(folder, model, params)
        return found[case]

    return save


def _write(folder: Path, model: Model, objective: Any, params: Any) -> None:
    config = remote.config_json(
        model.config,
        objective,
        special=SPECIAL,
        opening_id=BOS,
        vocab_size=NUM_IDS,
        unpredictable=model.setting.unpredictable,
    )
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    for name, content in remote.modeling_files().items():
        (folder / name).write_bytes(content)
    tensors = names.to_tensors(remote.TABLE, params, num_ids=NUM_IDS)
    safetensors.save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def _tokens(seed: int = 0, shape: tuple[int, int] = (3, 9)) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, NUM_IDS, shape)


def _ids(tokens: Any) -> Any:
    return torch.tensor(np.asarray(tokens), dtype=torch.long)


def _equal(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(
        found.detach().numpy(), np.asarray(expected), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("case", CASES)
def test_logits_and_hidden_states_are_those_of_lmjax(
    saved: Callable[[str], Saved], case: str
) -> None:
    folder, tokens = saved(case), _tokens()
    sigma_B = np.array([0.0, 0.7, 20.0], np.float32)
    loaded, report = folder.load(output_loading_info=True)
    assert not any(report.values())
    found = loaded(_ids(tokens), sigma=torch.tensor(sigma_B), output_hidden_states=True)
    expected = folder.logits(tokens, sigma_B=jnp.asarray(sigma_B))
    assert found.logits.shape == (3, 9, NUM_IDS)
    never = np.isneginf(expected[0, 0])
    assert np.flatnonzero(never).tolist() == sorted(NEVER)
    _equal(found.logits[..., ~never], expected[..., ~never])
    assert (found.logits[..., never] == torch.finfo(torch.float32).min).all()
    hidden = folder.hidden(tokens, sigma_B=jnp.asarray(sigma_B))
    assert len(found.hidden_states) == 3
    _equal(found.hidden_states[-1], hidden)
    headless, report = folder.load(headless=True, output_loading_info=True)
    assert not any(report.values())
    found = headless(_ids(tokens), sigma=torch.tensor(sigma_B))
    assert found.last_hidden_state.shape[-1] == headless.config.hidden_size
    _equal(found.last_hidden_state, hidden)


@pytest.mark.parametrize("case", CASES)
def test_padding_on_either_side_changes_nothing(
    saved: Callable[[str], Saved], case: str
) -> None:
    folder = saved(case)
    loaded, tokens = folder.load(), _tokens()[:1]
    sigma_B = torch.tensor([0.4])
    alone = loaded(_ids(tokens), sigma=sigma_B).logits
    padding = np.full((1, 4), PAD)
    for order in ((padding, tokens), (tokens, padding)):
        padded = np.concatenate(order, axis=1)
        mask = torch.tensor(padded != PAD).long()
        whole = loaded(
            _ids(padded),
            attention_mask=mask,
            token_type_ids=torch.zeros_like(mask),
            sigma=sigma_B,
        ).logits
        assert whole.isfinite().all()
        _equal(whole[:, padded[0] != PAD], alone.detach())
        each = mask[:, None, :].expand(-1, padded.shape[1], -1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        for cube in (each, each.bool(), each[:, None].bool()):
            same = loaded(
                _ids(padded), attention_mask=cube, position_ids=positions, sigma=sigma_B
            ).logits
            _equal(same[:, padded[0] != PAD], alone.detach())


def test_a_timed_model_that_is_told_no_noise_takes_its_share_of_masks(
    saved: Callable[[str], Saved],
) -> None:
    folder, tokens = saved("timed"), _tokens()
    tokens[0, :] = MASK  # infinite noise, which MAX_SIGMA stands for
    tokens[1, [2, 5]] = MASK
    tokens[2, 6:] = PAD
    tokens[2, 1] = MASK
    lengths = np.array([9, 9, 6])
    mask = torch.tensor(np.arange(9) < lengths[:, None]).long()
    found = folder.load()(_ids(tokens), attention_mask=mask).logits
    expected = folder.logits(
        tokens,
        lengths_B=jnp.asarray(lengths),
        sigma_B=sigma(jnp.array([1.0, 2 / 9, 1 / 6])),
    )
    real, finite = np.arange(9) < lengths[:, None], np.isfinite(expected[0, 0])
    _equal(found[torch.tensor(real)][:, finite], expected[real][:, finite])


@pytest.mark.parametrize("case", ["timed", "causal"])
def test_a_model_saved_by_transformers_loads_again_with_its_code(
    saved: Callable[[str], Saved], case: str, tmp_path: Path
) -> None:
    loaded = saved(case).load()
    loaded.save_pretrained(tmp_path)
    assert (tmp_path / "modeling_lmjax.py").read_bytes() == (
        remote.modeling_files()["modeling_lmjax.py"]
    )
    again = saved(case)._replace(folder=tmp_path).load()
    tokens = _ids(_tokens())
    assert torch.equal(again(tokens).logits, loaded(tokens).logits)
    config = json.loads((tmp_path / "config.json").read_text())
    section = remote.model_section(config, "config.json")
    assert section == dataclasses.replace(saved(case).model.config, vocab_size=NUM_IDS)


@pytest.mark.parametrize("case", CASES)
def test_config_and_tensors_come_back_as_the_model_they_were(
    saved: Callable[[str], Saved], case: str
) -> None:
    folder, model, params = saved(case)
    config = json.loads((folder / "config.json").read_text())
    expected = dataclasses.replace(model.config, vocab_size=NUM_IDS)
    assert remote.model_section(config, "config.json") == expected
    assert remote.objective_section(config, "config.json") == CASES[case][0]
    tensors = dict(names.to_tensors(remote.TABLE, params, num_ids=NUM_IDS))

    found = names.from_tensors(
        remote.TABLE, InMemory(tensors), model.shapes, num_ids=NUM_IDS, where="memory"
    )
    found["vocabulary"] = jax.tree.map(lambda x: x[:NUM_IDS], found["vocabulary"])
    kept = jax.tree.map(lambda x: x[:NUM_IDS], params["vocabulary"])
    jax.tree.map(np.testing.assert_array_equal, found, params | {"vocabulary": kept})


@pytest.mark.parametrize("kind", ScheduleKind)
@pytest.mark.parametrize("parameterization", Parameterization)
def test_an_objective_comes_back_with_its_schedule(
    make_model: Callable[..., Model],
    kind: ScheduleKind,
    parameterization: Parameterization,
) -> None:
    objective = MaskedDiffusionConfig(
        schedule=kind, parameterization=parameterization, steps=7
    )
    if kind is ScheduleKind.POLYNOMIAL:
        objective.schedule_power = 3.0
    config = remote.config_json(
        make_model(causal=False).config,
        objective,
        special=SPECIAL,
        opening_id=EOS,
        vocab_size=NUM_IDS,
        unpredictable=NEVER,
    )
    found = remote.objective_section(json.loads(json.dumps(config)), "config.json")
    assert found == objective
    predicts_mask = parameterization is Parameterization.D3PM
    assert (MASK in config["unpredictable_token_ids"]) != predicts_mask
    assert config["bos_token_id"] == EOS


@pytest.mark.parametrize(
    "change", [{"hidden_size": None}, {"backbone": "mamba"}, {"schedule": {"kind": 3}}]
)
def test_a_config_that_lmjax_did_not_write_is_refused(
    saved: Callable[[str], Saved], change: dict[str, Any]
) -> None:
    config = json.loads((saved("plain").folder / "config.json").read_text()) | change
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(UserError, match=r"hidden_size|mamba|kind"):
        remote.model_section(config, "config.json")
        remote.objective_section(config, "config.json")


@pytest.mark.parametrize("case", CAUSAL)
def test_greedy_texts_are_those_of_lmjax_with_and_without_a_cache(
    saved: Callable[[str], Saved], case: str
) -> None:
    folder = saved(case)
    loaded = folder.load()
    text = np.concatenate([[[BOS]], _tokens(3, (1, 4)), np.zeros((1, 7))], axis=1)
    padded = np.concatenate([np.full((1, 3), PAD), text[:, :5]], axis=1)
    other = np.concatenate([[[BOS]], _tokens(4, (1, 7))], axis=1)
    prompt, prompts = _ids(text[:, :5]), _ids(np.concatenate([padded, other]))
    for i in range(5, 12):
        text[:, i] = folder.logits(text)[:, i - 1].argmax(-1)
    greedy = dict(max_new_tokens=7, min_new_tokens=7, do_sample=False)
    greedy["eos_token_id"] = None
    for cached in (True, False):
        found = loaded.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            use_cache=cached,
            **greedy,
        )
        assert found.tolist() == text.tolist()
        mask = (prompts != PAD).long()
        beside = loaded.generate(
            prompts, attention_mask=mask, use_cache=cached, **greedy
        )
        assert beside[0, 3:].tolist() == text[0].tolist()


@pytest.mark.parametrize("case", ["plain", "timed", "causal"])
def test_a_headless_model_can_be_fine_tuned_with_checkpointing(
    saved: Callable[[str], Saved], case: str
) -> None:
    tokens = _ids(_tokens())
    tokens[:, 4] = MASK
    gradients = []
    for checkpointing in (False, True):
        model = saved(case).load(headless=True).train()
        if checkpointing:
            new = getattr(model, "activation_checkpointing_enable", None)
            (new or model.gradient_checkpointing_enable)()
        assert model.gradient_checkpointing == checkpointing
        model(tokens).last_hidden_state[:, 0].square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, plain in gradients[0].items():
        # A causal first position gives a softmax of one key: no gradient of that.
        assert plain is not None and plain.isfinite().all(), name
        assert plain.abs().sum() > 0 or (case == "causal" and "_proj" in name), name
        torch.testing.assert_close(plain, gradients[1][name])


@pytest.mark.parametrize("case", ["plain", "causal"])
def test_labels_give_the_mean_cost_of_those_that_count(
    saved: Callable[[str], Saved], case: str
) -> None:
    loaded, tokens = saved(case).load(), _ids(_tokens())
    labels = tokens.clone()
    labels[:, :3] = -100
    output = loaded(tokens, labels=labels)
    costs = -output.logits.log_softmax(-1)
    if case == "causal":  # position i predicts token i + 1
        costs, tokens = costs[:, 2:-1], tokens[:, 3:]
    else:
        costs, tokens = costs[:, 3:], tokens[:, 3:]
    mean = costs.gather(-1, tokens[..., None]).mean()
    torch.testing.assert_close(output.loss, mean)
    values = loaded(tokens, return_dict=False)
    assert isinstance(values, tuple) and torch.equal(values[0], loaded(tokens).logits)


def test_dropout_is_as_in_lmjax_active_in_training_alone(
    saved: Callable[[str], Saved],
) -> None:
    tokens = _ids(_tokens())
    loaded = saved("plain").load(headless=True, dropout=0.5)
    assert torch.equal(loaded(tokens)[0], loaded(tokens)[0])
    loaded.train()
    assert not torch.equal(loaded(tokens)[0], loaded(tokens)[0])


def test_attention_weights_are_given_where_they_are_asked_for(
    saved: Callable[[str], Saved],
) -> None:
    loaded, tokens = saved("causal").load(), _ids(_tokens())
    output = loaded(tokens, output_attentions=True)
    assert [weights.shape for weights in output.attentions] == [(3, 4, 9, 9)] * 2
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(3, 4, 9))
    _equal(output.logits, loaded(tokens).logits.detach())


@pytest.mark.parametrize("case", ["timed", "causal_learned"])
def test_half_precision_stays_near(saved: Callable[[str], Saved], case: str) -> None:
    tokens, sigma_B = _ids(_tokens()), torch.tensor([0.1, 0.7, 2.0])
    whole = saved(case).load()(tokens, sigma=sigma_B).logits
    half = saved(case).load().to(torch.bfloat16)(tokens, sigma=sigma_B).logits
    assert half.dtype == torch.bfloat16
    kept = whole > torch.finfo(torch.float32).min
    assert (half[~kept] == torch.finfo(torch.bfloat16).min).all()
    error = (half.float() - whole)[kept].square().mean().sqrt()
    assert error < 0.05 * whole[kept].std()
