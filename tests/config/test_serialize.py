"""Config <-> JSON without loss, and differences between two configs."""

import json
from pathlib import Path

import pytest

from lmjax.config import presets, serialize
from lmjax.config.schema import (
    AutoregressiveConfig,
    Config,
    MaskedDiffusionConfig,
    Precision,
    ScheduleKind,
)
from lmjax.core.errors import ConfigError


def _unusual() -> Config:
    config = Config(seed=3, objective=MaskedDiffusionConfig(ScheduleKind.LINEAR))
    config.data.train = ("a b.txt", "über/*.txt")
    config.optim.learning_rate = 0.1 + 0.2
    config.train.precision = Precision.BFLOAT16
    config.log.wandb = True
    return config


@pytest.mark.parametrize(
    "config",
    [Config(), Config(objective=AutoregressiveConfig()), _unusual()],
    ids=["default", "autoregressive", "unusual"],
)
def test_json_keeps_every_value_and_type(config: Config) -> None:
    again = serialize.from_json(serialize.to_json(config))
    assert again == config
    assert repr(again) == repr(config)  # 1 == 1.0 == True, but their texts differ


def test_json_holds_plain_values() -> None:
    text = serialize.to_json(_unusual())
    assert "über" in text  # readable, not escaped
    data = json.loads(text)
    assert data["objective"]["kind"] == "masked_diffusion"
    assert data["objective"]["schedule"] == "linear"
    assert data["train"]["precision"] == "bfloat16"
    assert data["data"]["train"] == ["a b.txt", "über/*.txt"]
    assert "kind" not in data["model"]


def test_fields_left_out_keep_their_defaults() -> None:
    config = serialize.from_dict({"seed": 5, "model": {"width": 64}})
    assert config.seed == 5
    assert config.model.width == 64
    assert config.model.num_layers == Config().model.num_layers


def test_unknown_fields_are_named_with_the_nearest() -> None:
    data = serialize.to_dict(Config())
    data["train"]["batchsize"] = 3
    data["modle"] = {"width": 3}
    with pytest.raises(ConfigError) as caught:
        serialize.from_dict(data)
    message = str(caught.value)
    assert (
        "train.batchsize: there is no such field; did you mean train.batch_size?"
        in (message)
    )
    assert "modle.width: there is no such field; did you mean model.width?" in message


@pytest.mark.parametrize("objective", [{}, {"kind": "masked_difusion"}, {"kind": []}])
def test_a_section_of_several_kinds_must_say_which(objective: dict) -> None:
    with pytest.raises(
        ConfigError,
        match="must be one of masked_diffusion, uniform_diffusion, autoregress",
    ):
        serialize.from_dict({"objective": objective})


def test_values_of_a_wrong_type_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"train\.batch_size=2\.5: must be a whole number"
    ):
        serialize.from_dict({"train": {"batch_size": 2.5}})


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_text_that_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        serialize.from_json(text)


def test_save_and_load_give_the_config_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "config.json"
    serialize.save(_unusual(), path)
    assert serialize.load(path) == _unusual()
    assert [file.name for file in path.parent.iterdir()] == ["config.json"]


def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    serialize.save(Config(), path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        serialize.save(_unusual(), path)
    assert serialize.load(path) == Config()
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_load_names_the_file_that_is_missing_or_wrong(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match="no such config") as caught:
        serialize.load(path)
    assert caught.value.where == str(path)
    path.write_text("{}}")
    with pytest.raises(ConfigError, match="not JSON") as caught:
        serialize.load(path)
    assert caught.value.where == str(path)


def test_equal_configs_have_no_differences() -> None:
    assert serialize.differences(_unusual(), _unusual()) == []


def test_differences_are_named_by_dotted_field() -> None:
    new = presets.babylm(["nano", "ar"])
    new.train.batch_size = 8
    new.data.train = ("a.txt",)
    found = serialize.differences(presets.babylm(["nano"]), new)
    assert {(each.field, str(each.old), str(each.new)) for each in found} == {
        ("objective.kind", "masked_diffusion", "autoregressive"),
        ("train.batch_size", "32", "8"),
        ("data.train", "[]", "['a.txt']"),
    }


def test_of_a_section_of_another_kind_the_kind_alone_is_a_difference() -> None:
    old, new = presets.babylm(["nano", "ar"]), presets.babylm(["nano"])
    new.objective.schedule_power = 3.0
    assert serialize.differences(old, new) == [
        serialize.Difference("objective.kind", "autoregressive", "masked_diffusion")
    ]
    again = presets.babylm(["nano"])
    assert serialize.differences(again, new) == [
        serialize.Difference("objective.schedule_power", 2.0, 3.0)
    ]


def test_a_difference_is_described_in_one_line() -> None:
    new = Config(objective=AutoregressiveConfig())
    new.train.batch_size = 8
    lines = [each.describe() for each in serialize.differences(Config(), new)]
    assert lines == [
        'objective.kind: "masked_diffusion" -> "autoregressive"',
        "train.batch_size: 256 -> 8",
    ]
