"""Rules about values and across fields, all reported at once.

`_RANGES`, `_DURATIONS` and `_RULES` say what must hold. A field of the wrong type is
told as such and left alone, and so are rules across fields while one of them is wrong.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Iterator
from typing import Any

from lmjax.config import fields
from lmjax.config.fields import Problem
from lmjax.config.schema import (
    Config,
    LearningRateKind,
    MaskedDiffusionConfig,
    Packing,
    TokenizerKind,
)
from lmjax.core import durations

# Ids of a trained tokenizer: 5 special ones, 256 bytes, and one to learn.
MIN_VOCAB_SIZE = 5 + 256 + 1

_TRAINED_KINDS = (TokenizerKind.SENTENCEPIECE, TokenizerKind.HUGGINGFACE)
_LOADED_KINDS = (TokenizerKind.GPT2, TokenizerKind.HUB)

# Intervals of every field that is a number: "[" and "]" include the end.
_RANGES = {
    "seed": "[0, 4294967295]",
    "tokenizer.vocab_size": "[1, inf)",
    "tokenizer.min_frequency": "[1, inf)",
    "tokenizer.reserved": "[0, 1000]",
    "data.sample_words": "[1, inf)",
    "data.valid_fraction": "(0, 0.5]",
    "data.valid_words": "[0, inf)",
    "data.sequence_length": "[2, inf)",
    "data.stride": "[0, inf)",
    "data.shard_bytes": "[1, inf)",
    "data.workers": "[0, inf)",
    "cleaning.min_words": "[0, inf)",
    "cleaning.near_duplicates": "[0, 1]",
    "model.num_layers": "[1, inf)",
    "model.width": "[1, inf)",
    "model.num_heads": "[1, inf)",
    "model.num_kv_heads": "[0, inf)",
    "model.mlp_width": "[1, inf)",
    "model.max_length": "[1, inf)",
    "model.rope_theta": "(0, inf)",
    "model.norm_epsilon": "(0, inf)",
    "model.dropout": "[0, 1)",
    "model.condition_width": "[1, inf)",
    "optim.learning_rate": "(0, inf)",
    "optim.min_learning_rate": "[0, inf)",
    "optim.weight_decay": "[0, inf)",
    "optim.beta1": "[0, 1)",
    "optim.beta2": "[0, 1)",
    "optim.epsilon": "(0, inf)",
    "optim.clip_norm": "[0, inf)",
    "optim.ema_decay": "[0, 1)",
    "train.batch_size": "[1, inf)",
    "train.microbatch_size": "[0, inf)",
    "train.loss_chunk_tokens": "[1, inf)",
    "checkpoint.keep": "[1, inf)",
    "evaluate.batches": "[0, inf)",
    "evaluate.batch_size": "[0, inf)",
    "evaluate.draws": "[1, inf)",
    "evaluate.minimal_pairs": "[0, inf)",
    "generate.num_samples": "[0, inf)",
    "generate.max_new_tokens": "[1, inf)",
    "generate.temperature": "[0, inf)",
    "generate.top_k": "[0, inf)",
    "generate.top_p": "(0, 1]",
    "generate.steps": "[1, inf)",
    "parallel.data": "[0, inf)",
    "parallel.fsdp": "[1, inf)",
    "parallel.tensor": "[1, inf)",
}


class _Amount(enum.Flag):
    """What a duration may be besides a positive amount with a unit."""

    POSITIVE = 0
    ZERO = enum.auto()
    SHARE = enum.auto()
    ANY = ZERO | SHARE


_DURATIONS = {
    "optim.warmup": _Amount.ANY,
    "optim.decay": _Amount.ANY,
    "train.budget": _Amount.POSITIVE,
    "checkpoint.every": _Amount.ANY,
    "evaluate.every": _Amount.ANY,
    "generate.every": _Amount.ANY,
    "log.every": _Amount.ANY,
}

_NOT_EMPTY = (
    "data.default_folder",
    "data.text_field",
    "data.cache_dir",
    "log.wandb_project",
)
_NO_BLANKS = (
    "data.train",
    "data.valid",
    "data.weights",
    "data.max_epochs",
    "data.beam",
)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """What must hold among several fields.

    Attributes:
      names: the fields; a problem is reported at the first.
      holds: tells from their values, in this order.
      rule, remedy: in words; {0}, {1}, ... stand for the values.
    """

    names: tuple[str, ...]
    holds: Callable[..., bool]
    rule: str
    remedy: str


_RULES = (
    _Rule(
        ("model.width", "model.num_heads"),
        lambda width, heads: width % heads == 0,
        "must be a multiple of model.num_heads={1}",
        "change either; heads of 64 are usual",
    ),
    _Rule(
        ("model.width", "model.num_heads"),
        lambda width, heads: width % heads != 0 or width // heads % 2 == 0,
        "must be an even multiple of model.num_heads={1}, for rotary positions turn "
        "pairs of numbers in each head",
        "change either; heads of 64 are usual",
    ),
    _Rule(
        ("model.num_kv_heads", "model.num_heads"),
        lambda kv_heads, heads: kv_heads == 0 or heads % kv_heads == 0,
        "must divide model.num_heads={1}",
        "take a divisor, or 0 for as many as model.num_heads",
    ),
    _Rule(
        ("data.sequence_length", "model.max_length"),
        lambda length, longest: length <= longest,
        "must be at most model.max_length={1}",
        "set --config.model.max_length={0}, or use shorter windows",
    ),
    _Rule(
        ("data.stride", "data.sequence_length"),
        lambda stride, length: stride <= length,
        "must be at most data.sequence_length={1}: what lies between would be lost",
        "half of it is usual; 0 means no overlap",
    ),
    _Rule(
        ("data.stride", "data.packing"),
        lambda stride, packing: stride == 0 or packing is Packing.DOCUMENTS,
        "is for windows of one document",
        "set --config.data.packing=documents, or data.stride to 0",
    ),
    _Rule(
        ("generate.max_new_tokens", "model.max_length"),
        lambda tokens, longest: tokens <= longest,
        "must be at most model.max_length={1}",
        "write at most {1} tokens, or set --config.model.max_length={0}",
    ),
    _Rule(
        ("tokenizer.vocab_size", "tokenizer.path", "tokenizer.kind"),
        lambda size, path, kind: (
            bool(path) or kind not in _TRAINED_KINDS or size >= MIN_VOCAB_SIZE
        ),
        f"must be at least {MIN_VOCAB_SIZE} for a tokenizer that is to be trained: 5 "
        "special ids, 256 bytes and one to learn",
        "1000 and more are useful; or give a tokenizer.path",
    ),
    _Rule(
        (
            "tokenizer.vocab_size",
            "tokenizer.path",
            "tokenizer.kind",
            "tokenizer.reserved",
        ),
        lambda size, path, kind, reserved: (
            bool(path)
            or kind is not TokenizerKind.HUGGINGFACE
            or not MIN_VOCAB_SIZE <= size < MIN_VOCAB_SIZE + reserved
        ),
        f"must be at least {MIN_VOCAB_SIZE} and tokenizer.reserved={{3}} more for a "
        "Hugging Face tokenizer that is to be trained",
        "1000 and more are useful; or reserve fewer ids",
    ),
    _Rule(
        ("tokenizer.path", "tokenizer.kind"),
        lambda path, kind: bool(path.strip()) or kind not in _LOADED_KINDS,
        "must be given for tokenizer.kind={1.value}",
        "name the folder with vocab.json and merges.txt (gpt2), or owner/name on the "
        "Hugging Face hub (hub)",
    ),
    _Rule(
        ("train.microbatch_size", "train.batch_size"),
        lambda micro, batch: micro == 0 or batch % micro == 0,
        "must divide train.batch_size={1}",
        "take a divisor, or 0 for train.batch_size",
    ),
    _Rule(
        ("optim.min_learning_rate", "optim.learning_rate"),
        lambda least, peak: least <= peak,
        "must be at most optim.learning_rate={1}",
        "lower it; a tenth of the peak, or 0, is usual",
    ),
    _Rule(
        ("optim.warmup", "optim.decay", "optim.schedule"),
        lambda warmup, decay, schedule: (
            schedule is not LearningRateKind.WARMUP_STABLE_DECAY
            or _percent(warmup) + _percent(decay) <= 100
        ),
        "must leave room for optim.decay={1} in a warmup_stable_decay run",
        "shorten one of them: together they are at most 100%",
    ),
    _Rule(
        ("checkpoint.resume",),
        lambda resume: resume in ("latest", "none") or resume.isdecimal(),
        "must be latest, none or the number of a step",
        "latest goes on where the run stopped",
    ),
    _Rule(
        ("model.time_conditioning", "objective"),
        lambda timed, objective: (
            not timed or isinstance(objective, MaskedDiffusionConfig)
        ),
        "must be False unless the objective is masked_diffusion: no other has a time",
        "set --config.model.time_conditioning=false, or train the variant diffusion",
    ),
)


def check(config: Config, *, num_devices: int = 1) -> None:
    """Raises when any rule is broken.

    Args:
      config: the whole config; it isn't changed.
      num_devices: devices of all hosts that the run will use.

    Raises:
      ConfigError: one line per broken rule, with field, value, rule and remedy.
    """
    problems = list(_check_types(config))
    wrong = {problem.field for problem in problems}
    values = fields.values(config)
    right = {name: value for name, value in values.items() if name not in wrong}
    for check_each in (_check_ranges, _check_durations, _check_text):
        problems += check_each(right)
    wrong = {problem.field for problem in problems}
    values["objective"] = config.objective
    problems += _check_rules(values, wrong)
    problems += _check_devices(values, wrong, num_devices)
    fields.raise_problems(problems)


def _check_types(config: Config) -> Iterator[Problem]:
    """For values that a config file or a notebook set."""
    types = fields.types(config)
    for name, value in fields.values(config).items():
        remedy = f"the default is {_default(name)}"
        try:
            fitting = type(fields.coerce(value, types[name]))
        except ValueError as error:
            yield Problem(name, value, str(error), remedy)
            continue
        if type(value) not in (fitting, int if fitting is float else fitting):
            rule = f"is of type {type(value).__name__}, must be {fitting.__name__}"
            yield Problem(name, value, rule, remedy)


def _check_ranges(values: dict[str, Any]) -> Iterator[Problem]:
    for name, interval in _RANGES.items():
        if name not in values:
            continue
        value = values[name]
        low, high = map(float, interval[1:-1].split(","))
        above = low < value if interval[0] == "(" else low <= value
        below = value < high if interval[-1] == ")" else value <= high
        if above and below:
            continue
        if high < math.inf:
            rule = f"must lie in {interval}"
        elif interval[0] == "(":
            rule = f"must be above {low:g}"
        else:
            rule = f"must be at least {low:g}"
        yield Problem(name, value, rule, f"the default is {_default(name)}")


def _check_durations(values: dict[str, Any]) -> Iterator[Problem]:
    for name, allowed in _DURATIONS.items():
        if name not in values:
            continue
        text = values[name]
        remedy = f"the default is {_default(name)}"
        try:
            duration = durations.parse(text)
        except ValueError:
            units = 'such as "500 steps", "2 epochs", "10M tokens", "10M words"'
            if _Amount.SHARE in allowed:
                units += ', "5%"'
            if _Amount.ZERO in allowed:
                units += ' or "0" for never'
            yield Problem(name, text, "must be a number and a unit", f"write {units}")
            continue
        if duration.amount == 0 and _Amount.ZERO not in allowed:
            yield Problem(name, text, "must be above 0", remedy)
        if duration.unit == "%" and _Amount.SHARE not in allowed:
            yield Problem(name, text, "must not be a share: it is the whole", remedy)
        elif duration.unit == "%" and duration.amount > 100:
            yield Problem(name, text, "must be at most 100%", remedy)


def _check_text(values: dict[str, Any]) -> Iterator[Problem]:
    for name in _NOT_EMPTY:
        if name in values and not values[name].strip():
            remedy = f"the default is {_default(name)}"
            yield Problem(name, values[name], "must not be empty", remedy)
    for name in _NO_BLANKS:
        if not all(path.strip() for path in values.get(name, ())):
            rule, remedy = "holds an empty entry", "leave it out; () is the default"
            yield Problem(name, values[name], rule, remedy)


def _check_rules(values: dict[str, Any], wrong: set[str]) -> Iterator[Problem]:
    for rule in _RULES:
        if wrong.intersection(rule.names):
            continue
        arguments = [values[name] for name in rule.names]
        if not rule.holds(*arguments):
            yield Problem(
                rule.names[0],
                arguments[0],
                rule.rule.format(*arguments),
                rule.remedy.format(*arguments),
            )


def _check_devices(
    values: dict[str, Any], wrong: set[str], num_devices: int
) -> Iterator[Problem]:
    """The mesh takes all devices, and its axes data and fsdp split every batch."""
    names = ("parallel.data", "parallel.fsdp", "parallel.tensor")
    if wrong.intersection(names):
        return
    data, fsdp, tensor = (values[name] for name in names)
    data = data or max(1, num_devices // (fsdp * tensor))
    if data * fsdp * tensor != num_devices:
        yield Problem(
            names[0],
            values[names[0]],
            f"data={data}, fsdp={fsdp} and tensor={tensor} must multiply to the number "
            f"of devices, {num_devices}",
            "change one of parallel.data, parallel.fsdp and parallel.tensor; "
            "parallel.data=0 takes what is left over",
        )
        return
    shards = data * fsdp
    for name in ("train.batch_size", "train.microbatch_size", "evaluate.batch_size"):
        size = values[name]
        if name not in wrong and size % shards:
            yield Problem(
                name,
                size,
                f"must be a multiple of {shards}, the devices that split a batch "
                f"(data={data} times fsdp={fsdp})",
                f"take {math.ceil(size / shards) * shards}, or use fewer devices",
            )


def _percent(text: str) -> float:
    """Size of a share; 0 in any other unit, for its share isn't known yet."""
    duration = durations.parse(text)
    return duration.amount if duration.unit == "%" else 0.0


def _default(name: str) -> str:
    return fields.spell(fields.values(Config())[name])
