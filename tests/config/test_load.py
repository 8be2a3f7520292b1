"""Loading a config with overrides, alone and in front of the real config flags."""

import copy
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from lmjax.config import load
from lmjax.config.schema import (
    AutoregressiveConfig,
    Config,
    LearningRateKind,
    ScheduleKind,
)
from lmjax.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
BABYLM = str(ROOT / "configs" / "babylm.py")


def _message(call, *arguments: object) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return str(caught.value)


# ---- from a notebook


def test_variants_follow_the_colon() -> None:
    config = load.load_config(f"{BABYLM}:ar,tiny")
    assert isinstance(config.objective, AutoregressiveConfig)
    assert config.model.num_layers == 8


def test_overrides_are_read_in_the_type_of_their_field() -> None:
    config = load.load_config(
        f"{BABYLM}:nano",
        {
            "train.batch_size": "8",
            "optim.learning_rate": 1,
            "optim.schedule": "linear",
            "objective.schedule": "LINEAR",
            "log.wandb": "True",
            "generate.prompts": ["Once", "Two, three"],
            "seed": 4,
        },
    )
    assert config.train.batch_size == 8
    assert isinstance(config.optim.learning_rate, float)
    assert config.optim.schedule is LearningRateKind.LINEAR
    assert config.objective.schedule is ScheduleKind.LINEAR
    assert config.log.wandb is True
    assert config.generate.prompts == ("Once", "Two, three")
    assert config.seed == 4


def test_overrides_may_be_nested_and_spelled_with_hyphens() -> None:
    config = Config()
    load.apply_overrides(config, {"train": {"batch-size": 8}, "data.cache-dir": "x"})
    assert config.train.batch_size == 8
    assert config.data.cache_dir == "x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("a b.txt", ("a b.txt",)),
        ("one, two", ("one, two",)),
        ("('one', 'two')", ("one", "two")),
        ("['one']", ("one",)),
        ("'one, two'", ("one, two",)),
        ("1", ("1",)),
        ("It's (odd", ("It's (odd",)),
    ],
)
def test_a_string_is_one_value_unless_it_is_a_literal(
    text: str, expected: tuple[str, ...]
) -> None:
    config = Config()
    load.apply_overrides(config, {"generate.prompts": text})
    assert config.generate.prompts == expected


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("train.batch_size", "abc", "must be a whole number"),
        ("train.batch_size", 8.0, "must be a whole number"),
        ("train.batch_size", True, "must be a whole number"),
        ("optim.beta1", "high", "must be a number"),
        ("optim.beta1", False, "must be a number"),
        ("log.wandb", "maybe", "must be true or false"),
        ("log.wandb", 1, "must be true or false"),
        ("train.budget", 500, "must be a string"),
        ("train.budget", None, "must be a string"),
        ("optim.schedule", "lin", "must be one of cosine, linear, constant, warmup_s"),
        ("data.train", ("a", 1), "must be a tuple of strings"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused(
    name: str, value: object, rule: str
) -> None:
    message = _message(load.apply_overrides, Config(), {name: value})
    assert f"{name}" in message
    assert rule in message


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("modle.width", "model.width"),
        ("model.widht", "model.width"),
        ("batch_size", "train.batch_size"),
        ("batchsize", "train.batch_size"),
        ("train.learning_rate", "optim.learning_rate"),
        ("objective.scheduel", "objective.schedule"),
        ("sead", "seed"),
    ],
)
def test_an_unknown_field_names_the_nearest(name: str, guess: str) -> None:
    message = _message(load.apply_overrides, Config(), {name: 1})
    assert f"{name}: there is no such field; did you mean {guess}?" in message


def test_an_unknown_field_like_no_other_lists_what_there_is() -> None:
    assert "known: train.budget" in _message(
        load.apply_overrides, Config(), {"train.xyzzy": 1}
    )
    assert "known: seed, tokenizer, data" in _message(
        load.apply_overrides, Config(), {"qqq": 1}
    )


def test_a_section_cannot_be_set_as_a_whole() -> None:
    message = _message(load.apply_overrides, Config(), {"log": 1})
    assert "log: this is a section, not a field; set its fields: log.every" in message


def test_a_field_of_another_objective_says_so() -> None:
    config = Config(objective=AutoregressiveConfig())
    message = _message(load.apply_overrides, config, {"objective.schedule": "linear"})
    assert "no such field while objective is autoregressive" in message
    message = _message(load.apply_overrides, config, {"objective.scheduel": "linear"})
    assert "did you mean objective.schedule?" in message


def test_all_mistakes_are_told_at_once_and_nothing_is_set() -> None:
    config = Config()
    overrides = {"seed": 9, "modle.width": 1, "train.batch_size": "x", "log.evry": "0"}
    message = _message(load.apply_overrides, config, overrides)
    assert message.startswith("3 settings are wrong:")
    for name in ("modle.width", "train.batch_size", "log.evry"):
        assert name in message
    assert config == Config()


def test_a_missing_file_lists_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    message = _message(load.load_config, "configs/bablym.py:ar")
    assert "where: configs/bablym.py" in message
    assert "did you mean configs/babylm.py?" in message
    assert "configs/babylm.py" in _message(load.load_config, "nothing.py")


def test_a_file_without_a_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("")
    assert "no function get_config" in _message(load.load_config, str(path))
    path = tmp_path / "other.py"
    path.write_text("def get_config():\n    return {}\n")
    assert "returned a dict" in _message(load.load_config, str(path))
    path = tmp_path / "config.yaml"
    path.write_text("")
    assert "Python file or a config.json" in _message(load.load_config, str(path))


def test_a_config_json_of_a_run_loads_too(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"seed": 3}')
    assert load.load_config(str(path), {"train.batch_size": 8}).seed == 3
    assert "no variants" in _message(load.load_config, f"{path}:ar")


def test_nearest_finds_what_is_spelled_alike_and_nothing_else() -> None:
    assert load.nearest("tniy", ["tiny", "small"]) == "tiny"
    assert load.nearest("TINY", ["tiny", "small"]) == "tiny"
    assert load.nearest("qqqq", ["tiny", "small"]) == ""


# ---- in front of the flags


def test_hyphens_in_flag_names_become_underscores_and_values_stay() -> None:
    argv = ["my-main", "--config=a-b.py:x-y", "--config.train.batch-size=1-2"]
    argv += ["--config.data.cache-dir", "c-d", "--work-dir=e-f", "--mode", "-1"]
    assert load.normalize_arguments(argv) == [
        *("my-main", "--config=a-b.py:x-y", "--config.train.batch_size=1-2"),
        *("--config.data.cache_dir", "c-d", "--work_dir=e-f", "--mode", "-1"),
    ]


def test_what_follows_a_bare_double_hyphen_is_left_alone() -> None:
    argv = ["main", "--", "--config.train.batch-size=1"]
    assert load.normalize_arguments(argv) == argv
    load.check_arguments(argv, Config())


def test_normalizing_twice_changes_nothing_more() -> None:
    argv = ["main", "--config.generate.prompts", "It's, odd", "--config.log.wandb", "x"]
    once = load.normalize_arguments(argv)
    assert load.normalize_arguments(once) == once


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["main", "--config=a.py:ar"], "a.py:ar"),
        (["main", "--config", "a.py"], "a.py"),
        (["main", "-config=a.py", "--config=b.py"], "b.py"),
        (["main", "--config.seed=1"], ""),
        (["main"], ""),
    ],
)
def test_the_config_file_is_found_among_arguments(
    argv: list[str], expected: str
) -> None:
    assert load.config_argument(argv) == expected


def test_right_arguments_pass_and_change_nothing() -> None:
    config = Config()
    argv = ["main", "--config=x", "--config.train.batch-size", "8", "--workdir=runs/a"]
    argv += ["--config.log.wandb", "--noconfig.log.tensorboard", "--config.seed=1"]
    argv += ["--config.generate.prompts=a", "--config.generate.prompts=b"]
    load.check_arguments(argv, config)
    assert config == Config()


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--config.modle.width=3", "modle.width: there is no such field; did you mean"),
        ("--config.train.batch-size=x", "train.batch_size='x': must be a whole number"),
        ("--config.objective.scheduel=linear", "did you mean objective.schedule?"),
        ("--config.objective=ar", "objective: this is a section"),
        ("--config.seed", "seed: the value is missing"),
        ("--noconfig.seed", "--noconfig.seed: --no switches a true-or-false field"),
        ("--model.width=3", "write --config.model.width"),
    ],
)
def test_wrong_arguments_are_told(argument: str, told: str) -> None:
    assert told in _message(load.check_arguments, ["main", argument], Config())


def test_all_wrong_arguments_are_told_at_once() -> None:
    argv = ["main", "--config.seed=a", "--config.seeed=1", "--config.log.wandb=2"]
    message = _message(load.check_arguments, argv, Config())
    assert message.startswith("3 settings are wrong:")


# ---- with the flags


def _parse(argv: list[str]) -> Config:
    """What main does: normalize, load, check, and leave the rest to config_flags."""
    argv = load.normalize_arguments(["main", *argv])
    name = load.config_argument(argv)
    config = load.load_config(name) if name else Config(seed=77)
    load.check_arguments(argv, config)
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_dataclass(
        "config",
        config,
        flag_values=values,
        parse_fn=load.load_config,
        sys_argv=argv,
    )
    assert values(argv) == ["main"]
    return holder.value


OVERRIDES = {
    "objective.schedule": "LINEAR",
    "optim.schedule": "Warmup_Stable_Decay",
    "train.batch-size": "8",
    "optim.learning_rate": "1e-3",
    "train.budget": "10M words",
    "generate.prompts": "Once upon a time, (there",
    "log.wandb": "true",
}


@pytest.mark.parametrize("separate", [False, True])
def test_flags_mean_what_overrides_mean(separate: bool) -> None:
    argv = [f"--config={BABYLM}:tiny"]
    for name, value in OVERRIDES.items():
        if separate and value != "true":
            argv += [f"--config.{name}", value]
        else:
            argv.append(f"--config.{name}={value}")
    assert _parse(argv) == load.load_config(f"{BABYLM}:tiny", OVERRIDES)


def test_a_flag_of_several_strings_may_be_repeated_or_a_literal() -> None:
    argv = ["--config.data.train=a b.txt", "--config.data.train=('c', 'd')"]
    assert _parse(argv).data.train == ("a b.txt", "c", "d")


def test_a_true_or_false_flag_needs_no_value() -> None:
    config = _parse(["--config.log.wandb", "--noconfig.log.tensorboard"])
    assert (config.log.wandb, config.log.tensorboard) == (True, False)


def test_without_a_file_the_overrides_go_to_the_config_at_hand() -> None:
    config = _parse(["--config.train.batch_size=8"])
    assert (config.seed, config.train.batch_size) == (77, 8)


def test_every_field_can_be_set_by_its_flag() -> None:
    config = load.load_config(BABYLM)
    argv = [f"--config={BABYLM}"]
    for name, value in load.fields.values(config).items():
        argv.append(f"--config.{name}={load.fields.spell(value).strip(chr(39))}")
    assert _parse(argv) == config


@pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")
def test_the_file_loads_through_define_config_file_too() -> None:
    argv = ["main", f"--config={BABYLM}:ar,nano", "--config.optim.schedule=linear"]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file(
        "config", flag_values=values, sys_argv=argv
    )
    values(argv)
    assert holder.value == load.load_config(
        f"{BABYLM}:ar,nano", {"optim.schedule": "linear"}
    )


def test_flags_do_not_leak_into_the_next_config() -> None:
    before = copy.deepcopy(load.load_config(BABYLM))
    _parse([f"--config={BABYLM}", "--config.train.batch_size=8"])
    assert load.load_config(BABYLM) == before
