"""Plans for devices that are not there: what they say, and whether it fits."""

import math
import re
from pathlib import Path

import jax
import pytest
from jax.experimental import topologies

from lmjax import footprint
from lmjax.config.presets import babylm
from lmjax.config.schema import AttentionKind, Config, OptimizerKind, Remat
from lmjax.core.errors import ConfigError, UserError
from lmjax.data.preparation.assumed import assume_corpus
from lmjax.doctor.hardware import parse_target
from lmjax.doctor.targets import target_devices
from lmjax.footprint import Built
from lmjax.modes.planning import DoesNotFit, plan_only


def _config(target: str, *, variants: str = "ar", **train: object) -> Config:
    """Two layers of 256 with heads of 64, 1024 ids, 8 windows of 128, AdamW."""
    config = babylm([*variants.split(","), "nano"])
    config.optim.kind = OptimizerKind.ADAMW
    config.model.num_layers, config.model.width = 2, 256
    config.tokenizer.vocab_size = 1024
    config.train.batch_size = 8
    for name, value in train.items():
        setattr(config.train, name, value)
    config.plan.target = target
    return config


def _build(config: Config) -> Built:
    devices = target_devices(parse_target(config.plan.target))
    prepared = assume_corpus(config.data, config.tokenizer)
    return footprint.build(config, prepared, devices)


def test_a_plan_for_a_gpu_needs_neither_text_nor_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config("a100-40gb")
    config.data.train = (str(tmp_path / "nowhere"),)
    config.data.max_words = 1_000_000
    plan_only(config, tmp_path / "run")
    told = capsys.readouterr().out
    assert "1,000,000 words of text" in told
    assert "bfloat16" in told and "cudnn (fused kernel for GPU)" in told
    params = int(re.search(r"parameters +([\d,]+) =", told)[1].replace(",", ""))
    assert f"moments          {8 * params / 1e6:.1f} MB" in told
    assert f"gradients        {4 * params / 1e6:.1f} MB" in told
    assert "10.00 epochs" in told and "an epoch has 1,000,000)" in told
    assert "fits: " in told
    assert not list(tmp_path.iterdir())


def test_a_t4_computes_in_float16_and_without_a_fused_kernel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_only(_config("t4"), tmp_path)
    told = capsys.readouterr().out
    assert "float16" in told and "bfloat16" not in told
    assert "attention   xla (it needs compute capability 8.0 or newer)" in told


def test_a_pass_that_is_too_large_is_refused_and_the_largest_that_fits_taken(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.005")
    config = _config("l4", batch_size=64, remat=Remat.FULL)
    plan_only(config, tmp_path)
    told = capsys.readouterr().out
    taken = re.search(r"pass\(es\) of (\d+), the most that fits", told)[1]
    config.train.microbatch_size = 2 * int(taken)
    with pytest.raises(DoesNotFit, match="does not fit") as caught:
        plan_only(config, tmp_path)
    assert caught.value.status == 3
    found = re.search(r"microbatch_size=(\d+) \(([\d.]+) MB\)", caught.value.remedy)
    assert found[1] == taken
    granted = 0.005 * 23034 * 2**20
    assert float(found[2]) * 1e6 < 0.95 * granted


def test_state_and_collectives_of_a_mesh_are_counted() -> None:
    """All parameters of the fields below are divided by what splits them."""
    config = _config("h100-80gb:8", microbatch_size=4)
    config.parallel.fsdp = config.parallel.tensor = 2
    built = _build(config)
    estimated = footprint.estimate(built)
    needs, sent = estimated.needs, estimated.sent
    state = built.state
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)]
    parameters = sum(
        4 * size // leaf.sharding.num_devices * _copies(leaf)
        for size, leaf in zip(sizes, jax.tree.leaves(state.params), strict=True)
    )
    assert needs.parameters == needs.average == parameters
    assert needs.moments == 2 * parameters + 4 * 2  # and the optimizer's counters
    assert needs.gradients == 2 * parameters  # two passes
    found = {each.kind: each for each in sent}
    whole = 4 * sum(sizes) / 2  # gathered over fsdp, not over tensor
    assert found["all-gather"].num_bytes == 2 * 2 * whole
    assert found["reduce-scatter"].num_bytes == 2 * whole
    # One sequence of 128 in each pass, 4 sums in each layer, in bfloat16.
    layers = 2 * 4 * 2 * (1 * 128 * 256 * 2)
    assert found["all-reduce"].num_bytes == parameters + layers


def _copies(leaf: jax.ShapeDtypeStruct) -> int:
    shard = leaf.sharding.shard_shape(leaf.shape)
    return leaf.sharding.num_devices * math.prod(shard) // math.prod(leaf.shape)


def test_without_libtpu_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(**_: object) -> None:
        raise RuntimeError("Unknown platform tpu")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match=r"lmjax\[plan\]"):
        target_devices(parse_target("v5e:2x2"))


@pytest.fixture
def libtpu() -> None:
    pytest.importorskip("libtpu", reason="the compiler for TPU (extra plan)")


def test_a_tpu_that_does_not_come_so_is_told(libtpu: None) -> None:
    with pytest.raises(ConfigError, match="3x5"):
        target_devices(parse_target("v5e:3x5"))


def test_the_step_is_compiled_for_tpus_with_splash_attention(
    libtpu: None, tmp_path: Path
) -> None:
    config = _config("v5e:2x2")
    config.parallel.tensor = 2
    built = _build(config)
    assert built.system.attention.kind is AttentionKind.SPLASH
    found = footprint.measure(built)
    assert "as compiled for TPU v5 lite" in found.needs.how
    assert found.needs.peak > found.needs.state
    assert "all-reduce" in {each.kind for each in found.sent}
    kernels = " ".join(found.kernels)
    for part in ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"):
        assert part in kernels
