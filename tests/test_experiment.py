"""What the composition root decides: ids, their rows, and what stands before a text."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lmjax import experiment
from lmjax.config.schema import (
    AutoregressiveConfig,
    Config,
    DataConfig,
    FirstInput,
    MaskedDiffusionConfig,
    Packing,
    Precision,
)
from lmjax.core.errors import ConfigError
from lmjax.data.tokenization.byte_tokenizer import ByteTokenizer

IDS = ByteTokenizer()
BOS, EOS = IDS.special.bos, IDS.special.eos


def _system(config: Config) -> experiment.System:
    config.model.num_layers, config.model.width, config.model.num_heads = 1, 16, 2
    return experiment.build_system(config, IDS, jax.devices()[:1])


def test_a_model_may_have_more_rows_than_its_tokenizer_has_ids() -> None:
    """They are as unpredictable as what pads them to a multiple of 128."""
    plain = _system(Config()).model.setting
    assert (plain.num_ids, plain.vocab_size) == (IDS.vocab_size, 384)
    config = Config()
    config.model.vocab_size = 390
    wide = _system(config)
    setting = wide.model.setting
    assert (setting.num_ids, setting.vocab_size) == (390, 512)
    beyond = range(IDS.vocab_size, 512)
    assert setting.unpredictable == (*IDS.unpredictable, *beyond)
    assert wide.num_predictable == _system(Config()).num_predictable
    config.model.vocab_size = 7  # fewer do not take ids from the tokenizer
    assert _system(config).model.setting == plain


@pytest.mark.parametrize(
    ("objective", "first"),
    [
        (AutoregressiveConfig(), BOS),
        (AutoregressiveConfig(first_input=FirstInput.EOS), EOS),
        (MaskedDiffusionConfig(), BOS),
    ],
)
def test_a_causal_model_reads_its_first_input_before_a_window(
    objective: Any, first: int
) -> None:
    assert experiment.first_input(objective, IDS.special) == first
    config = Config(objective=objective)
    system = _system(config)
    assert getattr(system.objective, "bos_id", first) == first


@pytest.mark.parametrize(
    ("data", "first", "opening"),
    [
        (DataConfig(), BOS, (EOS,)),
        (DataConfig(bos=True), BOS, (EOS, BOS)),
        (DataConfig(packing=Packing.DOCUMENTS), BOS, ()),
        (DataConfig(packing=Packing.DOCUMENTS, bos=True), BOS, (BOS,)),
        (DataConfig(), EOS, ()),  # the first input is the end of another document
        (DataConfig(bos=True), EOS, (BOS,)),
    ],
)
def test_a_text_opens_as_documents_do_in_training(
    data: DataConfig, first: int, opening: tuple[int, ...]
) -> None:
    assert experiment.document_opening(data, IDS.special, first) == opening


def test_a_text_is_written_behind_the_first_input_of_its_model() -> None:
    config = Config(objective=AutoregressiveConfig(first_input=FirstInput.EOS))
    read = []
    for first, masked in ((FirstInput.EOS, False), (FirstInput.BOS, True)):
        config.objective.first_input, config.data.document_mask = first, masked
        generator = experiment.build_generator(
            config.generate, config.data, _system(config), max_length=64
        )
        read.append(generator.opening)
    assert read == [(), ()]


CPU = SimpleNamespace(platform="cpu", device_kind="cpu")
TPU = SimpleNamespace(platform="tpu", device_kind="TPU v4")
V100, A100, B200 = (
    SimpleNamespace(platform="gpu", device_kind=kind, compute_capability=capability)
    for kind, capability in (("V100", "7.0"), ("A100", "8.0"), ("B200", "10.0"))
)


@pytest.mark.parametrize(
    ("device", "precision", "dtype"),
    [
        (CPU, Precision.AUTO, "float32"),
        (V100, Precision.AUTO, "float16"),
        (A100, Precision.AUTO, "bfloat16"),
        (B200, Precision.AUTO, "bfloat16"),
        (TPU, Precision.AUTO, "bfloat16"),
        (CPU, Precision.FLOAT16, "float16"),
        (A100, Precision.FLOAT16, "float16"),
        (V100, Precision.FLOAT32, "float32"),
        (CPU, Precision.BFLOAT16, "bfloat16"),
    ],
)
def test_the_dtype_is_one_that_the_device_multiplies(
    device: Any, precision: Precision, dtype: str
) -> None:
    assert experiment._compute_dtype(precision, device) == jnp.dtype(dtype)


@pytest.mark.parametrize(
    ("device", "precision", "auto"),
    [(TPU, Precision.FLOAT16, "bfloat16"), (V100, Precision.BFLOAT16, "float16")],
)
def test_a_dtype_that_it_does_not_multiply_is_refused(
    device: Any, precision: Precision, auto: str
) -> None:
    with pytest.raises(ConfigError) as error:
        experiment._compute_dtype(precision, device)
    assert f"does not multiply {precision.value}" in str(error.value)
    assert auto in str(error.value)
