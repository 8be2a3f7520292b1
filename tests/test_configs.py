"""Every config that comes with lmjax is sound, and every field does something."""

import ast
import dataclasses
import itertools
import types
from pathlib import Path

import jax
import pytest

from lmjax import experiment, training_run
from lmjax.config import checks, fields, load, presets, serialize
from lmjax.config.schema import Config, LayerLayout
from lmjax.data.batch import synthetic

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
_CHOICES = [["", *presets.OBJECTIVES], ["", *presets.SIZES], ["", presets.SAMPLE]]
VARIANTS = {
    "babylm": [",".join(filter(None, names)) for names in itertools.product(*_CHOICES)]
}


def _spellings() -> list[str]:
    """Every file in configs/, alone and with each combination of its variants."""
    return [
        f"{path.name}:{variants}" if variants else path.name
        for path in CONFIGS
        for variants in VARIANTS.get(path.stem, [""])
    ]


def test_there_are_configs_with_variants() -> None:
    assert set(VARIANTS) <= {path.stem for path in CONFIGS}
    assert "babylm.py:ar,tiny,sample" in _spellings()


@pytest.mark.parametrize("spelling", _spellings())
def test_config_loads_passes_its_checks_and_survives_json(spelling: str) -> None:
    config = load.load_config(str(ROOT / "configs" / spelling))
    checks.check(config)
    again = serialize.from_json(serialize.to_json(config))
    assert again == config
    assert repr(again) == repr(config)


def _steps() -> list[str]:
    """One spelling of each step: some variants are spelled in several ways."""
    found: dict[str, str] = {}
    for spelling in _spellings():
        config = load.load_config(str(ROOT / "configs" / spelling))
        step = [config.model, config.objective, config.optim, config.train]
        step += [config.parallel, config.tokenizer, config.data.sequence_length]
        found.setdefault(repr([*step, config.data.document_mask]), spelling)
    return list(found.values())


@pytest.mark.parametrize("spelling", _steps())
def test_one_step_of_the_config_fits_together(spelling: str) -> None:
    """Shapes alone: the whole model, the whole batch, one step, nothing allocated."""
    config = load.load_config(str(ROOT / "configs" / spelling))
    config.model.layers = LayerLayout.SCAN  # the same shapes, and traced once
    vocab_size = config.tokenizer.vocab_size
    tokenizer = types.SimpleNamespace(
        vocab_size=vocab_size,
        unpredictable=(1, 3, 4),
        special=types.SimpleNamespace(bos=1, eos=2, mask=4),
    )
    counts = types.SimpleNamespace(windows=1000, tokens=64_000, words=50_000)
    records = types.SimpleNamespace(source="text", counts=counts)
    prepared = types.SimpleNamespace(
        train=types.SimpleNamespace(counts=counts, records=[records])
    )
    system = experiment.build_system(config, tokenizer, jax.devices()[:1])
    run = training_run.build_run(config, system, prepared)
    state = run.state_maker.abstract()
    batch = synthetic(
        config.train.batch_size,
        config.data.sequence_length,
        document_mask=config.data.document_mask,
    )
    after, metrics = jax.eval_shape(run.step, state, batch)
    assert jax.tree.map(_shape, after) == jax.tree.map(_shape, state)
    assert metrics["loss_sum"].shape == ()
    assert system.num_predictable == vocab_size - 3
    assert config.data.sequence_length <= config.model.max_length


def _shape(leaf: jax.ShapeDtypeStruct) -> tuple[tuple[int, ...], str]:
    return leaf.shape, leaf.dtype.name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_header_gives_its_command(path: Path) -> None:
    header = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"python -m lmjax.main --config configs/{path.name}" in header


@dataclasses.dataclass(frozen=True)
class Reads:
    """What a file reads: attributes with the name they are read from, and names."""

    attributes: set[tuple[str, str]]
    names: set[str]

    @classmethod
    def of(cls, source: str) -> "Reads":
        nodes = list(ast.walk(ast.parse(source)))
        return cls(
            {
                (node.attr, getattr(node.value, "attr", getattr(node.value, "id", "")))
                for node in nodes
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
            },
            {node.id for node in nodes if isinstance(node, ast.Name)},
        )

    def has(self, section: str, classes: set[str], field: str) -> bool:
        """Whether it reads a field of this section, not only one of the same name.

        It does by `X.section.field`, by `section.field`, or by `X.field` where it names
        the section's class.
        """
        return any(
            attribute == field
            and ((section and holder == section) or self.names & classes)
            for attribute, holder in self.attributes
        )


def _unread(sources: list[str]) -> list[str]:
    unread, files = [], [Reads.of(source) for source in sources]
    classes = {
        section.name: fields.section_classes(section.type)
        for section in dataclasses.fields(Config)
    }
    for name in fields.schema_types():
        section, _, field = name.rpartition(".")
        names = {each.__name__ for each in classes.get(section, (Config,))}
        if not any(file.has(section, names, field) for file in files):
            unread.append(name)
    return unread


def test_every_field_is_read_outside_the_config_room() -> None:
    room = ROOT / "lmjax" / "config"
    sources = [
        path.read_text()
        for path in (ROOT / "lmjax").rglob("*.py")
        if not path.is_relative_to(room)
    ]
    unread = _unread(sources)
    assert not unread, f"nobody reads {', '.join(unread)}: use or delete them"


def test_a_field_counts_as_read_only_from_its_own_section() -> None:
    source = "def f(config):\n    return config.train.batch_size + config.seed\n"
    unread = _unread([source])
    assert "train.batch_size" not in unread
    assert {"evaluate.batch_size", "seed", "train.budget"} <= set(unread)
    source = (
        "def f(config: Config, optim: OptimConfig):\n    config.seed; optim.beta1\n"
    )
    assert {"seed", "optim.beta1"}.isdisjoint(_unread([source]))
    source = "def f(train: TrainConfig):\n    train.budget = 3\n"  # set, not read
    assert "train.budget" in _unread([source])
