"""What is compared before an export is called one, with torch and without."""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from lmjax.config.schema import AutoregressiveConfig
from lmjax.core.errors import UserError
from lmjax.export import check, weights
from lmjax.export import folder as folder_module
from lmjax.export.check import Check
from lmjax.export.folder import ExportedModel, export_model
from lmjax.models.build import Model
from tests.export.exports import BOS, build, random_params, tokenizer

pytest.importorskip("safetensors")
WITHOUT_TORCH = mock.patch.object(check, "_is_here", lambda _: False)


@pytest.fixture
def export(
    make_model: Callable[..., Model], tmp_path: Path
) -> Callable[[], ExportedModel]:
    model = build(make_model)

    def run() -> ExportedModel:
        return export_model(
            model,
            AutoregressiveConfig(),
            random_params(model),
            tokenizer(37),
            tmp_path / "model",
            opening_id=BOS,
        )

    return run


def test_without_torch_the_files_are_read_again(
    export: Callable[[], ExportedModel],
) -> None:
    with WITHOUT_TORCH:
        found = export().check
    assert found == Check("weights", 0.0, 0.0, None)
    assert "the logits were not compared" in found.describe()


def test_a_file_with_other_numbers_is_no_export(
    export: Callable[[], ExportedModel], tmp_path: Path
) -> None:
    """One number of one tensor, the smallest step away."""
    original = weights.convert

    def wrong(name: str, array: np.ndarray, dtype: object) -> np.ndarray:
        converted = np.array(original(name, array, dtype))
        if name == "model.layers.1.mlp.up_proj.weight":
            converted[3, 2] = np.nextafter(converted[3, 2], np.float32(9))
        return converted

    with (
        WITHOUT_TORCH,
        mock.patch.object(weights, "convert", wrong),
        pytest.raises(UserError, match="others than those written"),
    ):
        export()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_transformers_cannot_load_is_no_export(
    export: Callable[[], ExportedModel], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    kinds = {
        kind: mock.Mock(
            wraps=stock,
            table=stock.table,
            config_json=lambda *_, **__: {"model_type": "no such type"},
        )
        for kind, stock in folder_module.BY_KIND.items()
    }
    with (
        mock.patch.object(folder_module, "BY_KIND", kinds),
        pytest.raises(UserError, match="a folder that does not load"),
    ):
        export()
    assert not list(tmp_path.iterdir())


def test_a_check_tells_its_figures() -> None:
    line = Check("logits", 2e-6, 1e-4, 0.0).describe()
    assert line == (
        "logits of transformers and lmjax differ by 2.0e-06 at most (tolerance 1.0e-04)"
    )
    rounded = Check("logits", 2e-6, 1e-4, 0.03).describe()
    assert rounded == f"{line}; rounding of the weights moved them by 3.0e-02"
