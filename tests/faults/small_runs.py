"""A real run that takes seconds: a corpus of the built-in text and the least model."""

from pathlib import Path

from lmjax.config.schema import (
    AutoregressiveConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    GenerateConfig,
    LogConfig,
    ModelConfig,
    TokenizerConfig,
    TrainConfig,
)


def small_config(text: Path, *, budget: str, batch_size: int = 8) -> Config:
    """The config of such a run on a file of text; its cache stands beside the file."""
    return Config(
        tokenizer=TokenizerConfig(vocab_size=300),
        data=DataConfig(
            train=(str(text),),
            sequence_length=16,
            valid_fraction=0.1,
            cache_dir=str(text.parent / "cache"),
            workers=1,
        ),
        model=ModelConfig(
            num_layers=1, width=16, num_heads=2, mlp_width=16, max_length=32
        ),
        objective=AutoregressiveConfig(),
        train=TrainConfig(budget=budget, batch_size=batch_size),
        evaluate=EvaluateConfig(every="0", batches=1),
        generate=GenerateConfig(every="0", max_new_tokens=4),
        log=LogConfig(every="1 steps", tensorboard=False),
    )
