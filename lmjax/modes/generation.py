"""Mode generate: texts from a checkpoint."""

import pathlib

from lmjax import experiment
from lmjax.config.schema import Config
from lmjax.core import rng
from lmjax.data.tokenization.tokenizers import tokenizer_from_bytes
from lmjax.experiment import System
from lmjax.run_folder import RunFolder
from lmjax.sampling.prompts import Generator


def generate(config: Config, workdir: pathlib.Path) -> None:
    """Writes texts with the newest (or chosen) checkpoint; needs no corpus."""
    with RunFolder.read(workdir, config) as folder:
        tokenizer = tokenizer_from_bytes(folder.tokenizer_model())
        system = experiment.build_system(config, tokenizer)
        generator = build_generator(config, system)
        params = folder.restore_params(system)
        samples = generator(
            params,
            rng.stream(config.seed, "generate"),
            config.generate.prompts,
            num_samples=config.generate.num_samples,
            max_new_tokens=config.generate.max_new_tokens,
        )
    for sample in samples:
        for number, state in enumerate(sample.states, 1):
            print(f"[{number}/{len(sample.states)}] {state}")
        print(sample.text)
        print("-" * 40)


def build_generator(config: Config, system: System) -> Generator:
    return experiment.build_generator(
        config.generate, config.data, system, max_length=config.model.max_length
    )


def check_prompts(config: Config, system: System) -> None:
    """Says now, rather than when the first text is written, what is wrong with one."""
    build_generator(config, system).check(
        config.generate.prompts, config.generate.max_new_tokens
    )
