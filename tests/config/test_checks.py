"""Every rule can fail, says what to do, and all are told at once."""

import dataclasses

import pytest

from lmjax.config import checks, fields, rules
from lmjax.config.method_rules import METHOD_RULES
from lmjax.config.schema import (
    AutoregressiveConfig,
    Backbone,
    Config,
    UniformDiffusionConfig,
)
from lmjax.core.errors import ConfigError
from lmjax.data.tokenization import training as tokenizer_training


def _message(config: Config, **arguments: int) -> str:
    with pytest.raises(ConfigError) as caught:
        checks.check(config, **arguments)
    return str(caught.value)


def _with(**changes: object) -> Config:
    """A default config with fields set; "__" stands for the dot."""
    config = Config()
    fields.assign(
        config, {name.replace("__", "."): value for name, value in changes.items()}
    )
    return config


def test_the_defaults_pass_and_stay_as_they_are() -> None:
    config = Config()
    checks.check(config)
    assert config == Config()


# One broken value per rule, and the field that must be named.
BROKEN = [
    {"seed": -1},
    {"seed": 2**32},
    {"tokenizer__vocab_size": 261},
    {"tokenizer__min_frequency": 0},
    {"tokenizer__reserved": 1001},
    {"data__sample_words": 0},
    {"data__valid_fraction": 0.0},
    {"data__valid_fraction": 0.51},
    {"data__sequence_length": 1},
    {"data__sequence_length": 1025},
    {"data__default_folder": ""},
    {"data__cache_dir": " "},
    {"data__train": ("a.txt", "")},
    {"model__num_layers": 0},
    {"model__width": 770},
    {"model__width": 12 * 63},
    {"model__num_heads": 0},
    {"model__num_kv_heads": 5},
    {"model__num_kv_heads": -1},
    {"model__head_width": -2},
    {"model__head_width": 7},
    {"model__norm_bias": True},
    {"model__vocab_size": -1},
    {"model__mlp_width": 0},
    {"model__rope_theta": 0.0},
    {"model__norm_epsilon": 0.0},
    {"model__dropout": 1.0},
    {"model__dropout": -0.1},
    {"model__condition_width": 0},
    {"optim__learning_rate": 0.0},
    {"optim__learning_rate": float("nan")},
    {"optim__learning_rate": float("inf")},
    {"optim__min_learning_rate": 1.0},
    {"optim__weight_decay": -0.1},
    {"optim__beta1": 1.0},
    {"optim__beta2": -0.1},
    {"optim__epsilon": 0.0},
    {"optim__clip_norm": -1.0},
    {"optim__ema_decay": 1.0},
    {"optim__warmup": "fast"},
    {"optim__warmup": "101%"},
    {"optim__decay": "20"},
    {"train__budget": "0"},
    {"train__budget": "0 epochs"},
    {"train__budget": "50%"},
    {"train__budget": "10 minutes"},
    {"train__batch_size": 0},
    {"train__microbatch_size": 100},
    {"train__loss_chunk_tokens": -1},
    {"checkpoint__every": ""},
    {"checkpoint__keep": 0},
    {"checkpoint__resume": "newest"},
    {"checkpoint__resume": "-3"},
    {"evaluate__every": "often"},
    {"evaluate__batches": -1},
    {"evaluate__batch_size": -1},
    {"evaluate__draws": 0},
    {"evaluate__minimal_pairs": -1},
    {"generate__every": "1 year"},
    {"generate__num_samples": -1},
    {"generate__max_new_tokens": 0},
    {"generate__max_new_tokens": 1025},
    {"generate__temperature": -0.5},
    {"generate__top_k": -1},
    {"generate__top_p": 0.0},
    {"generate__top_p": 1.5},
    {"generate__steps": 0},
    {"log__every": "x"},
    {"log__wandb_project": ""},
    {"export__checkpoints": " "},
    {"parallel__data": -1},
    {"parallel__data": 2},
    {"parallel__fsdp": 0},
    {"parallel__tensor": 0},
]


@pytest.mark.parametrize("change", BROKEN, ids=str)
def test_a_broken_rule_names_field_and_value_once(change: dict[str, object]) -> None:
    ((name, value),) = change.items()
    message = _message(_with(**change))
    assert message.startswith("A setting is wrong:\n"), message
    assert f"{name.replace('__', '.')}={value!r}: " in message
    assert "; " in message  # and a remedy follows the rule


@pytest.mark.parametrize(
    "change",
    [
        {"model__dropout": 0.0},
        {"model__num_kv_heads": 4},
        {"model__head_width": 2},
        {"data__sequence_length": 1024},
        {"data__valid_fraction": 0.5},
        {"generate__temperature": 0.0},
        {"generate__top_p": 1.0},
        {"optim__min_learning_rate": 3e-4},
        {"optim__warmup": "100%"},
        {"checkpoint__every": "0"},
        {"checkpoint__resume": "1200"},
        {"train__microbatch_size": 256},
        {"tokenizer__vocab_size": 262},
        {"seed": 2**32 - 1},
    ],
    ids=str,
)
def test_the_ends_of_the_ranges_are_allowed(change: dict[str, object]) -> None:
    checks.check(_with(**change))


def test_all_broken_rules_are_told_at_once() -> None:
    config = _with(
        model__width=770, train__budget="5%", model__dropout=1.0, generate__top_k=-1
    )
    message = _message(config)
    assert message.startswith("4 settings are wrong:")
    for name in ("model.width", "train.budget", "model.dropout", "generate.top_k"):
        assert message.count(name) == 1


def test_a_rule_across_fields_waits_until_each_is_right_by_itself() -> None:
    message = _message(_with(model__num_heads=0, train__microbatch_size=-1))
    assert "2 settings are wrong" in message
    assert "model.width" not in message


def test_values_of_a_wrong_type_are_told_with_the_rest() -> None:
    config = _with(model__dropout=1.0)
    config.train.batch_size = "8"
    config.optim.warmup = 500
    config.data.train = ["a.txt"]
    config.model.mlp = "gelu"
    message = _message(config)
    assert message.startswith("5 settings are wrong:")
    assert "train.batch_size='8': is of type str, must be int" in message
    assert "optim.warmup=500: must be a string" in message
    assert "data.train=['a.txt']: is of type list, must be tuple" in message
    assert "model.mlp='gelu': is of type str, must be MLPKind" in message


def test_a_whole_number_is_a_number() -> None:
    config = Config()
    config.optim.clip_norm = 1
    checks.check(config)


def test_time_conditioning_needs_a_dit() -> None:
    config = _with(model__time_conditioning=True, model__backbone="dit")
    checks.check(config)
    config.model.backbone = Backbone.TRANSFORMER
    message = _message(config)
    assert "model.time_conditioning=True: must be False" in message
    assert "for model.backbone=transformer" in message


def test_heads_of_their_own_width_leave_the_width_free() -> None:
    checks.check(_with(model__width=770, model__head_width=64))
    assert "model.width=770" in _message(_with(model__width=770))


def test_learned_positions_turn_no_pairs() -> None:
    odd = {"model__width": 12 * 63, "model__positions": "learned"}
    checks.check(_with(**odd))
    checks.check(_with(model__head_width=7, model__positions="learned"))


def test_a_bias_is_for_layer_normalisation() -> None:
    checks.check(_with(model__norm="layer", model__norm_bias=True))
    message = _message(_with(model__norm_bias=True))
    assert "model.norm_bias=True: is for layer normalisation" in message
    assert "model.norm=rms" in message


@pytest.mark.parametrize("repo", ["", "name", "a/b/c", "owner/na me"])
def test_what_is_pushed_needs_a_repository(repo: str) -> None:
    checks.check(_with(export__push="upload", export__hub_repo="owner/babylm-1.0"))
    checks.check(_with(export__hub_repo=repo))
    message = _message(_with(export__push="dry_run", export__hub_repo=repo))
    assert "export.push=dry_run: needs a repository" in message


def test_a_dit_needs_diffusion() -> None:
    config = _with(model__backbone="dit")
    checks.check(config)
    config.objective = AutoregressiveConfig()
    assert "model.backbone=dit: needs a diffusion objective" in _message(config)
    config.model.backbone = Backbone.TRANSFORMER
    checks.check(config)


def test_a_given_tokenizer_may_have_few_ids() -> None:
    checks.check(_with(tokenizer__vocab_size=100, tokenizer__path="bytes.model"))


def test_a_tokenizer_that_is_not_trained_has_to_be_named() -> None:
    for kind in ("gpt2", "hub"):
        message = _message(_with(tokenizer__kind=kind, tokenizer__path=" "))
        assert f"tokenizer.path=' ': must be given for tokenizer.kind={kind}" in message
        checks.check(_with(tokenizer__kind=kind, tokenizer__path="a/b"))
    checks.check(_with(tokenizer__kind="bytes", tokenizer__vocab_size=1))


def test_reserved_ids_need_room_where_they_are_trained() -> None:
    config = _with(tokenizer__vocab_size=272, tokenizer__kind="huggingface")
    assert "tokenizer.vocab_size=272: must be at least 262 and" in _message(config)
    fields.assign(config, {"tokenizer.vocab_size": 273})
    checks.check(config)
    checks.check(_with(tokenizer__vocab_size=262))  # SentencePiece reserves none


def test_smallest_vocabulary_is_that_of_the_tokenizer_trainer() -> None:
    assert rules.MIN_VOCAB_SIZE == tokenizer_training.MIN_VOCAB_SIZE


def test_warmup_and_decay_fit_into_one_run() -> None:
    config = _with(optim__warmup="90%", optim__decay="20%")
    checks.check(config)  # a cosine run has no decay
    fields.assign(config, {"optim.schedule": "warmup_stable_decay"})
    assert "optim.warmup='90%'" in _message(config)
    fields.assign(config, {"optim.decay": "10%"})
    checks.check(config)


def test_the_mesh_takes_all_devices() -> None:
    checks.check(_with(parallel__fsdp=2, parallel__tensor=2), num_devices=8)
    checks.check(_with(parallel__data=2, parallel__fsdp=4), num_devices=8)
    message = _message(_with(parallel__tensor=3), num_devices=8)
    assert "parallel.data=0: data=2, fsdp=1 and tensor=3 must multiply" in message


def test_more_axes_than_devices_are_told() -> None:
    assert "parallel.data=0: data=1, fsdp=4" in _message(_with(parallel__fsdp=4))


def test_batches_split_over_data_and_fsdp() -> None:
    config = _with(
        train__batch_size=12,
        train__microbatch_size=6,
        evaluate__batch_size=3,
        parallel__fsdp=2,
        parallel__tensor=2,
    )
    checks.check(_with(train__batch_size=12), num_devices=4)
    message = _message(config, num_devices=16)  # 4 of data times 2 of fsdp
    assert "train.batch_size=12: must be a multiple of 8" in message
    assert "train.microbatch_size=6: must be a multiple of 8" in message
    assert "evaluate.batch_size=3: must be a multiple of 8" in message
    assert "take 16" in message


def test_every_number_has_a_range_and_every_string_has_a_rule_or_needs_none() -> None:
    free = {
        "tokenizer.path",
        "checkpoint.init_from",
        "evaluate.data",  # but for tasks
        "evaluate.json",
        "evaluate.judge",
        "data.prompt_field",
        "export.folder",
        "export.hub_repo",  # but for what is pushed
        "plan.target",  # but for --mode plan
        "generate.prompt_file",
        "generate.output",
    }
    ruled = {"checkpoint.resume", "parallel.coordinator", "log.profile"}
    ruled |= {*checks._DURATIONS, *checks._NOT_EMPTY, *checks._CLOCK}
    for name, kind in fields.schema_types().items():
        if kind in (int, float):
            assert name in rules.RANGES
        if kind is str:
            assert name in ruled | free


def test_every_rule_names_real_fields() -> None:
    known = set(fields.schema_types()) | {"objective"}
    named = {name for rule in (*rules.RULES, *METHOD_RULES) for name in rule.names}
    tables = {*rules.RANGES, *checks._DURATIONS, *checks._NOT_EMPTY, *checks._CLOCK}
    assert named | tables <= known


def test_every_rule_across_fields_says_what_to_do() -> None:
    for rule in (*rules.RULES, *METHOD_RULES):
        assert all(getattr(rule, field.name) for field in dataclasses.fields(rule)), (
            rule
        )


METHOD_SLIPS = {
    "d3pm without steps": (dict(objective__parameterization="d3pm"), "steps"),
    "sedd with steps": (
        dict(objective__parameterization="sedd", objective__steps=8),
        "must be 0",
    ),
    "steps with another weighting": (
        dict(objective__steps=8, objective__weighting="flat"),
        "weigh as the bound says",
    ),
    "counts with another weighting": (
        dict(objective__time_density="count", objective__weighting="softened"),
        "no rate",
    ),
    "counts with masking by frequency": (
        dict(objective__time_density="count", objective__frequency_masking=0.5),
        "continuous time",
    ),
    "masking by frequency and a prior that is not all mask": (
        dict(objective__frequency_masking=0.5, objective__schedule="geometric"),
        "ends all masked",
    ),
    "a schedule that moves, in steps": (
        dict(objective__schedule="bimodal_gaussian", objective__steps=8),
        "moves in the course",
    ),
    "score ratios revealed in order of confidence": (
        dict(objective__parameterization="sedd", generate__sampler="confidence"),
        "model of another kind",
    ),
    "left to right with masks": (
        dict(generate__sampler="left_to_right"),
        "model of another kind",
    ),
    "discrete time of score ratios": (
        dict(objective__parameterization="sedd", evaluate__estimator="discrete"),
        "not an estimator",
    ),
    "guidance without a prompt": (dict(generate__guidance=1.5), "there is none"),
    "more blocks than steps": (
        dict(generate__block_length=4, generate__steps=8, generate__max_new_tokens=128),
        "more blocks",
    ),
    "windows that overlap too far": (dict(generate__stride=1024), "must be below"),
}


@pytest.mark.parametrize("slip", METHOD_SLIPS)
def test_methods_that_do_not_fit_are_refused(slip: str) -> None:
    changes, words = METHOD_SLIPS[slip]
    assert words in _message(_with(**changes))


def test_uniform_diffusion_needs_to_be_told_the_time_and_pure_noise() -> None:
    config = Config(objective=UniformDiffusionConfig())
    assert "model.time_conditioning=False: must be True" in _message(config)
    config.model.backbone, config.model.time_conditioning = Backbone.DIT, True
    checks.check(config)
    fields.assign(config, {"objective.schedule": "geometric"})
    assert "does not end in pure noise" in _message(config)
    fields.assign(config, {"objective.schedule": "linear", "objective.steps": 4})
    assert "must be 0 for uniform diffusion" in _message(config)


def test_an_autoregressive_model_has_one_way_to_write_and_to_be_scored() -> None:
    config = Config(objective=AutoregressiveConfig())
    checks.check(config)
    changes = {
        "generate.sampler": "ancestral",
        "generate.show_steps": 4,
        "generate.guidance": 1.0,
        "generate.prompts": ("a",),
        "evaluate.estimator": "count",
    }
    fields.assign(config, changes)
    message = _message(config)
    for name in changes:
        assert (f"{name}=" in message) == (name != "generate.prompts")


def test_longer_texts_than_the_context_need_a_stride() -> None:
    assert "generate.stride" in _message(_with(generate__max_new_tokens=3000))
    checks.check(_with(generate__max_new_tokens=3000, generate__stride=512))


@pytest.mark.parametrize("text", ["170", "3 steps", "5%", "ten days", "", "-1 hours"])
def test_times_of_the_clock_are_numbers_and_units(text: str) -> None:
    for field in checks._CLOCK:
        section, name = field.split(".")
        config = Config()
        setattr(getattr(config, section), name, text)
        with pytest.raises(ConfigError) as error:
            checks.check(config)
        assert field in str(error.value) and "170 minutes" in str(error.value)


def test_only_what_can_be_switched_off_may_be_zero() -> None:
    config = Config()
    config.train.stop_after = config.train.watchdog = config.checkpoint.save_after = "0"
    checks.check(config)
    config.parallel.peer_timeout = "0"
    with pytest.raises(ConfigError, match=r"parallel\.peer_timeout='0': must be above"):
        checks.check(config)


def test_the_best_checkpoints_need_figures_to_be_found_by() -> None:
    config = Config()
    config.checkpoint.keep_best, config.evaluate.every = 1, "0"
    with pytest.raises(ConfigError, match=r"checkpoint\.keep_best=1: needs figures"):
        checks.check(config)
    config.evaluate.every = "5%"
    checks.check(config)


def test_processes_are_named_as_a_whole_or_found_by_themselves() -> None:
    for address, count, index, right in (
        ("", 0, -1, True),
        ("auto", 0, -1, True),
        ("host:1234", 2, 1, True),
        ("host:1234", 2, 2, False),
        ("host:1234", 0, -1, False),
        ("host", 2, 0, False),
        ("", 2, 0, False),
        ("auto", 2, 0, False),
    ):
        config = Config()
        section = config.parallel
        section.coordinator, section.num_processes = address, count
        section.process_index = index
        if right:
            checks.check(config)
        else:
            with pytest.raises(ConfigError, match=r"parallel\.coordinator"):
                checks.check(config)


def test_a_profile_names_steps() -> None:
    checks.check(_with(log__profile="steps 20-25"))
    for text in ("20-25", "steps 25-20", "steps 0-2"):
        message = _message(_with(log__profile=text))
        assert "log.profile" in message and "the first and the last" in message
