"""What a run exports is what it is: same scores, same texts, and back again."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax import experiment, modes
from lmjax.config import checks, load
from lmjax.config.presets import OBJECTIVES
from lmjax.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    GenerateConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    TokenizerConfig,
    TrainConfig,
)
from lmjax.core.errors import ConfigError, UserError
from lmjax.data.sample import corpus as sample_corpus
from lmjax.data.tokenization.tokenizers import tokenizer_from_bytes
from lmjax.evaluate.zero_shot.files import read_predictions
from lmjax.evaluate.zero_shot.readers import load_tasks
from lmjax.modes.checkpoints import exact_system
from lmjax.run_folder import RunFolder

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "eval"
PAIRS = [
    ("the cats sleep .", "the cats sleeps ."),
    ("does the dog eat ?", "does the dog eats ?"),
    ("she saw herself in the garden .", "she saw himself in the garden ."),
    ("who is in the kitchen ?\nmum is .", "who is in the kitchen ?\nmum are ."),
    ("the caf\u00e9 is \U0001f600 small .", "the caf\u00e9 are \U0001f600 small ."),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    sample_corpus.write_corpus(folder / "text.train", seed=0, num_words=2000)
    return folder


@pytest.fixture(scope="module", params=["ar", "diffusion"])
def run(
    request: pytest.FixtureRequest,
    corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    config = Config(
        tokenizer=TokenizerConfig(vocab_size=400),
        data=DataConfig(
            train=(str(corpus),),
            sequence_length=32,
            valid_fraction=0.1,
            cache_dir=str(corpus.parent / "cache"),
        ),
        model=ModelConfig(
            num_layers=2,
            width=32,
            num_heads=4,
            num_kv_heads=2,
            mlp_width=64,
            max_length=128,
            qk_norm=request.param == "diffusion",
        ),
        objective=OBJECTIVES[request.param](),
        optim=OptimConfig(learning_rate=2e-2, ema_decay=0.0),
        train=TrainConfig(budget="20 steps", batch_size=16),
        checkpoint=CheckpointConfig(every="0", milestones=("every 2000 words",)),
        evaluate=EvaluateConfig(every="0", batches=1, draws=1),
        generate=GenerateConfig(every="0"),
        log=LogConfig(tensorboard=False),
    )
    folder = tmp_path_factory.mktemp(request.param) / "run"
    modes.train(config, folder)
    return folder


@pytest.fixture
def items(tmp_path: Path) -> Path:
    lines = [
        json.dumps({"sentence_good": good, "sentence_bad": bad}) for good, bad in PAIRS
    ]
    folder = tmp_path / "supplement_fast"
    folder.mkdir()
    (folder / "own.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def _again(run: Path, **changes: Any) -> Config:
    names = {name.replace("__", "."): value for name, value in changes.items()}
    return load.load_config(str(run / "config.json"), names)


def _export(run: Path, folder: Path, **changes: Any) -> None:
    modes.export(_again(run, export__folder=str(folder), **changes), run)


def _is_causal(run: Path) -> bool:
    return run.parent.name.startswith("ar")


def _scores(run: Path, texts: list[tuple[str, str]]) -> list[float]:
    """As lmjax scores them: one task of one item for each pair."""
    from lmjax.evaluate.zero_shot.items import Candidate, Item, Task
    from lmjax.modes.zero_shot import _Evaluation

    item = Item(
        tuple(Candidate(prefix, text, text) for prefix, text in texts),
        label=0,
        groups={"UID": "all"},
        where="",
    )
    config = _again(run)
    with RunFolder.read(run, config) as folder:
        evaluation = _Evaluation(config, run, folder, [])
        params = folder.restore_params(evaluation.system, on_mesh=True)
        with jax.default_matmul_precision("highest"):
            (scores,) = evaluation.zero_shot.scores(params, Task("own", "own", (item,)))
    return scores.tolist()


def test_scores_are_those_of_torch_by_the_official_rules(
    run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.official_scores import Official

    _export(run, tmp_path / "out")
    texts = [("", text) for pair in PAIRS for text in pair]
    texts += [("the dog likes", " the cat"), ("the do", "g likes the cat")]
    official = Official(tmp_path / "out", "causal" if _is_causal(run) else "mlm", 4)
    np.testing.assert_allclose(_scores(run, texts), official.scores(texts), atol=2e-4)


def test_real_items_are_chosen_alike(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    if not DATA.is_dir():
        pytest.skip(f"real evaluation items are not at {DATA}")
    from tests.official_scores import Official, pairs

    items = tmp_path / "items" / "blimp_fast"
    items.mkdir(parents=True)
    names = ("adjunct_island", "anaphor_gender_agreement", "wh_vs_that_no_gap")
    for name in names:
        lines = (DATA / "blimp_fast" / f"{name}.jsonl").read_text().splitlines()[:20]
        (items / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    _export(run, tmp_path / "out")
    config = _again(
        run, evaluate__tasks=("blimp",), evaluate__data=str(tmp_path / "items")
    )
    modes.evaluate(config, run)
    backend = "causal" if _is_causal(run) else "mlm"
    folder = run / "results" / run.name / "main" / "zero_shot" / backend / "blimp"
    found = json.loads((folder / "blimp_fast" / "predictions.json").read_text())
    official = Official(tmp_path / "out", backend)
    for name in names:
        texts = pairs(items / f"{name}.jsonl")
        scores = np.array(official.scores(texts)).reshape(-1, 2)
        clear = np.abs(scores[:, 0] - scores[:, 1]) > 1e-3
        wanted = [texts[2 * i + int(s[1] > s[0])][1] for i, s in enumerate(scores)]
        chosen = [each["pred"] for each in found[name]["predictions"]]
        assert clear.sum() >= 15
        for i in np.flatnonzero(clear):
            assert chosen[i] == wanted[i]


def test_evaluate_writes_what_its_reader_reads(
    run: Path, items: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All milestones, then the end, in one process and one table."""
    config = _again(
        run,
        evaluate__tasks=("supplement_fast",),
        evaluate__data=str(items),
        evaluate__checkpoints="all",
    )
    modes.evaluate(config, run)
    told = capsys.readouterr().out
    results = json.loads((run / "results" / "results.json").read_text())
    results = [each for each in results if each["dataset"] == "supplement_fast"]
    revisions = [entry["revision"] for entry in results]
    assert revisions[-1] == "main" and len(revisions) >= 3
    assert all(name.startswith("chck_") and name in told for name in revisions[:-1])
    backend = "causal" if _is_causal(run) else "mlm"
    (task,) = load_tasks(["supplement_fast"], str(items))
    folder = run / "results" / run.name / "main" / "zero_shot" / backend
    (file,) = (folder / "blimp").glob(f"{task.dataset}/predictions.json")
    again = read_predictions(file, task, stamp=None)
    assert 100 * again.average().value == pytest.approx(results[-1]["accuracy"])


def test_every_milestone_is_exported(run: Path, tmp_path: Path) -> None:
    _export(run, tmp_path / "out", export__checkpoints="all")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    kept = sorted(path.name for path in (run / "milestones").glob("chck_*"))
    assert len(kept) >= 2 and names == sorted([*kept, "main"])
    for name in names:
        assert (tmp_path / "out" / name / "model.safetensors").exists()
        assert (tmp_path / "out" / name / "tokenizer.json").exists()
    with pytest.raises(ConfigError) as error:
        _export(run, tmp_path / "out", export__checkpoints=names[0])
    assert "export.overwrite" in str(error.value)


def test_what_was_exported_is_imported_bit_for_bit(run: Path, tmp_path: Path) -> None:
    """The run folder made of it is evaluated, sampled, and trained on."""
    _export(run, tmp_path / "out")
    config = Config(checkpoint=CheckpointConfig(init_from=str(tmp_path / "out")))
    modes.import_model(config, tmp_path / "new")
    with RunFolder.read(run, _again(run)) as folder:
        system = exact_system(_again(run), folder, one_device=True)
        expected = folder.restore_params(system)
        tokenizer = system.tokenizer
    again = _again(tmp_path / "new")
    assert type(again.objective) is type(_again(run).objective)
    with RunFolder.read(tmp_path / "new", again) as folder:
        new = exact_system(again, folder, one_device=True)
        jax.tree.map(
            np.testing.assert_array_equal, folder.restore_params(new), expected
        )
        imported = tokenizer_from_bytes(folder.tokenizer_model())
    for text in (text for pair in PAIRS for text in pair):
        assert imported.encode(text) == tokenizer.encode(text)


def test_an_imported_model_is_trained_on(
    run: Path, corpus: Path, tmp_path: Path
) -> None:
    _export(run, tmp_path / "out")
    begin = Config(
        checkpoint=CheckpointConfig(init_from=str(tmp_path / "out"), every="0"),
        data=DataConfig(sequence_length=32, cache_dir=str(corpus.parent / "cache")),
        train=TrainConfig(budget="2 steps", batch_size=8),
        evaluate=EvaluateConfig(every="0", batches=1, draws=1),
        generate=GenerateConfig(every="0", max_new_tokens=8),
        log=LogConfig(tensorboard=False, every="1 steps"),
    )
    modes.import_model(begin, tmp_path / "new")
    modes.train(_again(tmp_path / "new", data__train=(str(corpus),)), tmp_path / "new")
    lines = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
    first = next(line for line in map(json.loads, lines) if line["split"] == "train")
    untrained = np.log(
        experiment.build_system(
            _again(run),
            tokenizer_from_bytes((tmp_path / "out" / "tokenizer.json").read_bytes()),
        ).num_predictable
    )
    assert first["loss"] < 0.9 * untrained, "it begins with what was learned"


def test_bad_input_is_told(run: Path, items: Path, tmp_path: Path) -> None:
    for changes, told in (
        ({"evaluate__tasks": ("blimp",)}, r"evaluate\.data"),
        ({"export__push": "upload"}, r"owner/name"),
        ({"export__checkpoints": " "}, r"must not be empty"),
        ({"checkpoint__milestones": ("", "1M words")}, r"empty entry"),
    ):
        with pytest.raises(ConfigError, match=told):
            checks.check(_again(run, **changes), num_devices=1)
    with pytest.raises(ConfigError, match="chck_7"):
        _export(run, tmp_path / "out", export__checkpoints="chck_7")
    with pytest.raises(ConfigError, match="no model is named"):
        modes.import_model(Config(), tmp_path / "new")
    (tmp_path / "empty").mkdir()
    empty = Config(checkpoint=CheckpointConfig(init_from=str(tmp_path / "empty")))
    with pytest.raises(UserError, match=r"config\.json"):
        modes.import_model(empty, tmp_path / "new")
    bad = items / "supplement_fast" / "own.jsonl"
    bad.write_text('{"sentence_good": "a"}\n')
    tasks = {"evaluate__tasks": ("supplement_fast",), "evaluate__data": str(items)}
    with pytest.raises(UserError, match=r"own\.jsonl.*1") as error:
        modes.evaluate(_again(run, **tasks), run)
    assert "sentence_bad" in str(error.value)
