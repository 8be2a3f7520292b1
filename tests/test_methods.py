"""Every objective with every estimator and sampler that fits it, run as a user does."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lmjax import modes
from lmjax.config import checks, fields, load
from lmjax.config.method_rules import _ESTIMATORS, _SAMPLERS
from lmjax.config.presets import OBJECTIVES
from lmjax.config.schema import (
    Config,
    DataConfig,
    EvaluateConfig,
    GenerateConfig,
    LogConfig,
    ModelConfig,
    Parameterization,
    TokenizerConfig,
    TrainConfig,
)
from lmjax.core.errors import ConfigError
from lmjax.data.sample import corpus as sample_corpus
from lmjax.train.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("one_device")

RUNS = {
    "autoregressive": ("ar", {}),
    "uniform": (
        "uniform",
        {
            "model.backbone": "dit",
            "model.time_conditioning": True,
            "objective.schedule": "cosine_heavy",
        },
    ),
    Parameterization.SUBS: ("diffusion", {}),
    Parameterization.SEDD: (
        "diffusion",
        {"objective.parameterization": "sedd", "objective.schedule": "geometric"},
    ),
    Parameterization.D3PM: (
        "diffusion",
        {"objective.parameterization": "d3pm", "objective.steps": 8},
    ),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.train"
    sample_corpus.write_corpus(path, seed=0, num_words=900)
    return path


def _method(corpus: Path, method: object, **further: object) -> Config:
    """The config of a run of a method; two steps long."""
    objective, changes = RUNS[method]
    config = Config(
        tokenizer=TokenizerConfig(vocab_size=300),
        data=DataConfig(
            train=(str(corpus),),
            valid_fraction=0.2,
            sequence_length=16,
            cache_dir=str(corpus.parent / "cache"),
        ),
        model=ModelConfig(
            num_layers=1, width=16, num_heads=2, mlp_width=32, max_length=32
        ),
        objective=OBJECTIVES[objective](),
        train=TrainConfig(budget="2 steps", batch_size=16),
        evaluate=EvaluateConfig(every="0", draws=2, minimal_pairs=0),
        generate=GenerateConfig(every="0", max_new_tokens=6, steps=4),
        log=LogConfig(tensorboard=False),
    )
    fields.assign(config, changes | _dotted(further))
    checks.check(config, num_devices=1)
    return config


def _dotted(changes: dict[str, object]) -> dict[str, object]:
    return {name.replace("__", "."): value for name, value in changes.items()}


@pytest.fixture(scope="module")
def train(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[object], Path]:
    """Trains a run of a method, once; gives its folder."""

    @functools.cache
    def run(method: object) -> Path:
        folder = tmp_path_factory.mktemp("trained") / "run"
        modes.train(_method(corpus, method), folder)
        return folder

    return run


def _config(run: Path, **changes: object) -> Config:
    """The run's config with fields set; "__" stands for the dot."""
    config = load.load_config(str(run / "config.json"), _dotted(changes))
    checks.check(config, num_devices=1)
    return config


@pytest.mark.parametrize("method", RUNS, ids=str)
def test_every_estimator_prints_and_writes_what_its_figure_is_worth(
    train: Callable[[object], Path],
    method: object,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = train(method)
    found = {}
    names = {"auto", *(kind.value for kind in _ESTIMATORS[method])}
    for name in sorted(names):
        file = tmp_path / f"{name}.json"
        config = _config(
            run,
            evaluate__estimator=name,
            evaluate__json=str(file),
            evaluate__steps=20,
        )
        modes.evaluate(config, run)
        figures = {figure["name"]: figure for figure in json.loads(file.read_text())}
        figure = figures["held-out/nll_per_token"]
        assert figure.keys() == {"name", "kind", "value", "standard_error", "draws"}
        assert figure["standard_error"] > 0
        exact = method == "autoregressive"
        assert figure["draws"] == (1 if exact else 2)
        assert figure["kind"].startswith("exact" if exact else "upper bound")
        told = capsys.readouterr().out
        assert f"{figure['value']:.4f}" in told
        assert str(file) in told
        assert {"held-out/bits_per_byte", "held-out/bits_per_word"} <= figures.keys()
        found[name] = (figure["value"], figure["standard_error"], figure["kind"])
    assert len({kind for _, _, kind in found.values()}) == max(1, len(names) - 1)
    for value, error, _ in found.values():  # a fresh model: near ln(297) nats
        assert abs(value - found["auto"][0]) < 4 * (error + found["auto"][1]) + 0.3


@pytest.mark.parametrize("method", RUNS, ids=str)
def test_every_sampler_writes(
    train: Callable[[object], Path],
    method: object,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = train(method)
    for kind in sorted({"auto", *(kind.value for kind in _SAMPLERS[method])}):
        shown = 0 if method == "autoregressive" else 2
        config = _config(
            run,
            generate__sampler=kind,
            generate__prompts=("the dog",),
            generate__num_samples=1,
            generate__show_steps=shown,
        )
        modes.generate(config, run)
        told = capsys.readouterr().out
        assert f"\n[{shown}/{shown}]" in f"\n{told}" or not shown
        assert told.count("the dog") == 1 + shown


def test_what_a_model_cannot_do_is_refused_with_the_remedy(
    corpus: Path, train: Callable[[object], Path]
) -> None:
    with pytest.raises(ConfigError, match=r"generate\.sampler=auto"):
        _method(corpus, Parameterization.D3PM, generate__sampler="first_hitting")
    with pytest.raises(ConfigError, match=r"evaluate\.estimator=auto"):
        _method(corpus, "autoregressive", evaluate__estimator="discrete")
    run = train(Parameterization.SUBS)
    with pytest.raises(ConfigError, match=r"evaluate\.steps=0: must be at least 1"):
        _config(run, evaluate__steps=0, evaluate__estimator="discrete")
    with pytest.raises(ConfigError, match="of another run"):
        modes.generate(_config(run, objective__parameterization="sedd"), run)
    with pytest.raises(ConfigError, match=r"nothing to fill|no room|do not fit"):
        modes.generate(_config(run, generate__prompts=("dog " * 40,)), run)


def test_a_checkpoint_of_another_mask_id_is_refused(
    train: Callable[[object], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, meta = train(Parameterization.SUBS), Checkpoints.meta

    def other(checkpoints: Checkpoints, step: int) -> dict:
        return meta(checkpoints, step) | {"mask_id": 17}

    monkeypatch.setattr(Checkpoints, "meta", other)
    for mode in (modes.generate, modes.evaluate):
        with pytest.raises(ConfigError, match="trained with mask id 17"):
            mode(_config(run), run)


def test_an_autoregressive_run_reads_what_another_writes(
    train: Callable[[object], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Generative perplexity comes with what qualifies it; a bound cannot judge."""
    run, file = train(Parameterization.SUBS), tmp_path / "figures.json"
    config = _config(
        run,
        evaluate__judge=str(train("autoregressive")),
        evaluate__judge_samples=8,
        evaluate__json=str(file),
    )
    modes.evaluate(config, run)
    figures = {figure["name"]: figure for figure in json.loads(file.read_text())}
    assert figures["generative_perplexity"]["value"] > 1
    assert {"entropy", "distinct_1", "mean_tokens", "repeating"} <= figures.keys()
    assert "generative_perplexity" in capsys.readouterr().out
    config = _config(run, evaluate__judge=str(run))
    with pytest.raises(ConfigError, match="must be an autoregressive run"):
        modes.evaluate(config, run)
