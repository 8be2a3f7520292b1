"""What must hold of numbers, and among several fields: tables, applied by `checks`."""

import dataclasses
import re
from collections.abc import Callable

from lmjax.config.schema import (
    Backbone,
    DataFormat,
    DiffusionConfig,
    LearningRateKind,
    NormKind,
    Packing,
    PositionKind,
    Push,
    TokenizerKind,
)
from lmjax.core import durations

# Ids of a trained tokenizer: 5 special ones, 256 bytes, and one to learn.
MIN_VOCAB_SIZE = 5 + 256 + 1

_TRAINED_KINDS = (TokenizerKind.SENTENCEPIECE, TokenizerKind.HUGGINGFACE)
_LOADED_KINDS = (TokenizerKind.GPT2, TokenizerKind.HUB)
_RECORDS = (DataFormat.AUTO, DataFormat.JSON_LINES, DataFormat.PARQUET)

# Intervals of every field that is a number: "[" and "]" include the end.
RANGES = {
    "seed": "[0, 4294967295]",
    "tokenizer.vocab_size": "[1, inf)",
    "tokenizer.min_frequency": "[1, inf)",
    "tokenizer.reserved": "[0, 1000]",
    "data.sample_words": "[1, inf)",
    "data.valid_fraction": "(0, 0.5]",
    "data.valid_words": "[0, inf)",
    "data.max_words": "[0, inf)",
    "data.sequence_length": "[2, inf)",
    "data.stride": "[0, inf)",
    "data.random_length": "[0, 1]",
    "data.shard_bytes": "[1, inf)",
    "data.workers": "[0, inf)",
    "cleaning.min_words": "[0, inf)",
    "cleaning.near_duplicates": "[0, 1]",
    "model.num_layers": "[1, inf)",
    "model.width": "[1, inf)",
    "model.num_heads": "[1, inf)",
    "model.num_kv_heads": "[0, inf)",
    "model.head_width": "[0, inf)",
    "model.mlp_width": "[1, inf)",
    "model.max_length": "[1, inf)",
    "model.rope_theta": "(0, inf)",
    "model.norm_epsilon": "(0, inf)",
    "model.dropout": "[0, 1)",
    "model.vocab_size": "[0, inf)",
    "model.condition_width": "[1, inf)",
    "objective.schedule_power": "(0, inf)",
    "objective.sigma_min": "(0, inf)",
    "objective.sigma_max": "(0, inf)",
    "objective.low_mean": "[0, 1]",
    "objective.low_std": "(0, inf)",
    "objective.low_share": "[0, 1]",
    "objective.high_mean_start": "[0, 1]",
    "objective.high_mean_end": "[0, 1]",
    "objective.high_std": "(0, inf)",
    "objective.uniform_share": "(0, 1]",
    "objective.steps": "[0, inf)",
    "objective.softening": "[0, inf)",
    "objective.frequency_masking": "[0, inf)",
    "optim.learning_rate": "(0, inf)",
    "optim.min_learning_rate": "[0, inf)",
    "optim.weight_decay": "[0, inf)",
    "optim.beta1": "[0, 1)",
    "optim.beta2": "[0, 1)",
    "optim.epsilon": "(0, inf)",
    "optim.momentum": "[0, 1)",
    "optim.clip_norm": "[0, inf)",
    "optim.ema_decay": "[0, 1)",
    "train.max_words": "[0, inf)",
    "train.batch_size": "[1, inf)",
    "train.microbatch_size": "[0, inf)",
    "train.loss_chunk_tokens": "[0, inf)",
    "train.max_bad_steps": "[1, inf)",
    "train.spike_deviations": "[0, inf)",
    "train.spike_window": "[2, inf)",
    "checkpoint.keep": "[1, inf)",
    "checkpoint.keep_best": "[0, inf)",
    "evaluate.batches": "[0, inf)",
    "evaluate.batch_size": "[0, inf)",
    "evaluate.draws": "[1, inf)",
    "evaluate.steps": "[1, inf)",
    "evaluate.judge_samples": "[2, inf)",
    "evaluate.minimal_pairs": "[0, inf)",
    "evaluate.elbo_draws": "[1, inf)",
    "evaluate.bootstrap": "[1, inf)",
    "generate.num_samples": "[0, inf)",
    "generate.max_new_tokens": "[1, inf)",
    "generate.temperature": "[0, inf)",
    "generate.top_k": "[0, inf)",
    "generate.top_p": "(0, 1]",
    "generate.min_p": "[0, 1]",
    "generate.repetition_penalty": "(0, inf)",
    "generate.batch_size": "[0, inf)",
    "generate.steps": "[1, inf)",
    "generate.tokens_per_call": "[1, inf)",
    "generate.block_length": "[0, inf)",
    "generate.remask_strength": "[0, 1]",
    "generate.guidance": "[0, inf)",
    "generate.stride": "[0, inf)",
    "generate.show_steps": "[0, inf)",
    "parallel.data": "[0, inf)",
    "parallel.fsdp": "[1, inf)",
    "parallel.tensor": "[1, inf)",
    "parallel.num_processes": "[0, inf)",
    "parallel.process_index": "[-1, inf)",
}


@dataclasses.dataclass(frozen=True)
class Rule:
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


RULES = (
    Rule(
        ("model.width", "model.num_heads", "model.head_width"),
        lambda width, heads, head: head > 0 or width % heads == 0,
        "must be a multiple of model.num_heads={1}",
        "change either; heads of 64 are usual; or set model.head_width",
    ),
    Rule(
        ("model.width", "model.num_heads", "model.head_width", "model.positions"),
        lambda width, heads, head, positions: (
            head > 0
            or positions is not PositionKind.ROPE
            or width % heads != 0
            or width // heads % 2 == 0
        ),
        "must be an even multiple of model.num_heads={1}, for rotary positions turn "
        "pairs of numbers in each head",
        "change either; heads of 64 are usual",
    ),
    Rule(
        ("model.head_width", "model.positions"),
        lambda head, positions: positions is not PositionKind.ROPE or head % 2 == 0,
        "must be even, for rotary positions turn pairs of numbers in each head",
        "64 is usual; 0 takes model.width / model.num_heads",
    ),
    Rule(
        ("model.norm_bias", "model.norm"),
        lambda bias, norm: not bias or norm is NormKind.LAYER,
        "is for layer normalisation, but model.norm={1.value}",
        "set --config.model.norm_bias=false, or --config.model.norm=layer",
    ),
    Rule(
        ("model.num_kv_heads", "model.num_heads"),
        lambda kv_heads, heads: kv_heads == 0 or heads % kv_heads == 0,
        "must divide model.num_heads={1}",
        "take a divisor, or 0 for as many as model.num_heads",
    ),
    Rule(
        ("data.sequence_length", "model.max_length"),
        lambda length, longest: length <= longest,
        "must be at most model.max_length={1}",
        "set --config.model.max_length={0}, or use shorter windows",
    ),
    Rule(
        ("data.stride", "data.sequence_length"),
        lambda stride, length: stride <= length,
        "must be at most data.sequence_length={1}: what lies between would be lost",
        "half of it is usual; 0 means no overlap",
    ),
    Rule(
        ("data.stride", "data.packing"),
        lambda stride, packing: stride == 0 or packing is Packing.DOCUMENTS,
        "is for windows of one document",
        "set --config.data.packing=documents, or data.stride to 0",
    ),
    Rule(
        ("data.prompt_field", "data.packing", "data.text_field", "data.format"),
        lambda prompt, packing, text, kind: (
            not prompt
            or (packing is Packing.DOCUMENTS and prompt != text and kind in _RECORDS)
        ),
        "needs data.packing=documents (it is {1.value}), a field other than "
        "data.text_field={2!r}, and files of records (data.format={3.value})",
        "set --config.data.packing=documents and --config.data.format=auto",
    ),
    Rule(
        ("generate.max_new_tokens", "model.max_length", "generate.stride"),
        lambda tokens, longest, stride: stride > 0 or tokens <= longest,
        "must be at most model.max_length={1}",
        "write at most {1} tokens, or go on window by window with "
        "--config.generate.stride, or set --config.model.max_length={0}",
    ),
    Rule(
        ("tokenizer.vocab_size", "tokenizer.path", "tokenizer.kind"),
        lambda size, path, kind: (
            bool(path) or kind not in _TRAINED_KINDS or size >= MIN_VOCAB_SIZE
        ),
        f"must be at least {MIN_VOCAB_SIZE} for a tokenizer that is to be trained: 5 "
        "special ids, 256 bytes and one to learn",
        "1000 and more are useful; or give a tokenizer.path",
    ),
    Rule(
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
    Rule(
        ("tokenizer.path", "tokenizer.kind"),
        lambda path, kind: bool(path.strip()) or kind not in _LOADED_KINDS,
        "must be given for tokenizer.kind={1.value}",
        "name the folder with vocab.json and merges.txt (gpt2), or owner/name on the "
        "Hugging Face hub (hub)",
    ),
    Rule(
        ("train.microbatch_size", "train.batch_size"),
        lambda micro, batch: micro == 0 or batch % micro == 0,
        "must divide train.batch_size={1}",
        "take a divisor, or 0 for train.batch_size",
    ),
    Rule(
        ("optim.min_learning_rate", "optim.learning_rate"),
        lambda least, peak: least <= peak,
        "must be at most optim.learning_rate={1}",
        "lower it; a tenth of the peak, or 0, is usual",
    ),
    Rule(
        ("optim.warmup", "optim.decay", "optim.schedule"),
        lambda warmup, decay, schedule: (
            schedule is not LearningRateKind.WARMUP_STABLE_DECAY
            or _percent(warmup) + _percent(decay) <= 100
        ),
        "must leave room for optim.decay={1} in a warmup_stable_decay run",
        "shorten one of them: together they are at most 100%",
    ),
    Rule(
        ("checkpoint.resume",),
        lambda resume: (
            resume in ("latest", "none", "imported")
            or resume.isdecimal()
            or resume.startswith("chck_")
        ),
        "must be latest, none, the number of a step or the name of a milestone",
        "latest goes on where the run stopped",
    ),
    Rule(
        ("checkpoint.keep_best", "evaluate.every"),
        lambda best, every: best == 0 or durations.parse(every).amount > 0,
        "needs figures of held-out text, but evaluate.every={1!r}",
        'set --config.evaluate.every="5%", or checkpoint.keep_best to 0',
    ),
    Rule(
        ("parallel.coordinator", "parallel.num_processes", "parallel.process_index"),
        lambda address, count, index: (
            (address in ("", "auto") and count == 0 and index == -1)
            or (
                re.fullmatch(r".+:\d+", address) is not None
                and (count, index) != (0, -1)
                and 0 <= index < count
            )
        ),
        "goes with parallel.num_processes={1} and parallel.process_index={2} as one: "
        "either all three say who takes part, or none",
        "give host:port of the first process, the number of processes and the index "
        "of this one, from 0; or coordinator=auto and neither of the others",
    ),
    Rule(
        ("export.push", "export.hub_repo"),
        lambda push, repo: (
            push is Push.OFF or re.fullmatch(r"[\w.-]+/[\w.-]+", repo) is not None
        ),
        "needs a repository, but export.hub_repo={1!r} is no owner/name",
        "set --config.export.hub_repo=OWNER/NAME, or export.push=off",
    ),
    Rule(
        ("evaluate.data", "evaluate.tasks"),
        lambda data, tasks: bool(data.strip()) or not tasks,
        "must be the folder that holds the items of evaluate.tasks",
        "--config.evaluate.data=FOLDER; it holds a folder for each task",
    ),
    Rule(
        ("model.time_conditioning", "model.backbone"),
        lambda timed, backbone: not timed or backbone is Backbone.DIT,
        "must be False for model.backbone={1.value}: only a DiT is told the time",
        "set --config.model.time_conditioning=false, or --config.model.backbone=dit",
    ),
    Rule(
        ("model.backbone", "objective"),
        lambda backbone, objective: (
            backbone is Backbone.TRANSFORMER or isinstance(objective, DiffusionConfig)
        ),
        "needs a diffusion objective: no other has a time",
        "set --config.model.backbone=transformer, or train the variant diffusion",
    ),
)


def _percent(text: str) -> float:
    """Size of a share; 0 in any other unit, for its share isn't known yet."""
    duration = durations.parse(text)
    return duration.amount if duration.unit == "%" else 0.0
