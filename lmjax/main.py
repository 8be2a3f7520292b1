"""The command line: flags to a checked Config, and one mode out.

    python -m lmjax.main --config configs/babylm.py:ar,nano --config.seed=1
    python -m lmjax.main --workdir runs/babylm-ar-nano --mode generate

This is the only file with flags. It is kept short: everything it calls can be called
from a notebook, see `lmjax.config.load.load_config`.
"""

import errno
import functools
import logging as python_logging
import os
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from lmjax.config import checks
from lmjax.config.load import (
    check_arguments,
    config_argument,
    load_config,
    normalize_arguments,
)
from lmjax.config.schema import Config
from lmjax.core import allocator
from lmjax.core.errors import ConfigError, UserError
from lmjax.train.stopping import Stopped

DEFAULT_CONFIG = "configs/babylm.py"
MODES = (
    "train",
    "prepare",
    "evaluate",
    "generate",
    "export",
    "import",
    "plan",
    "check",
)
READING_MODES = ("evaluate", "generate", "export")  # of a run that is there

_WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "Run folder: config, checkpoints, figures. Default: runs/ and the config's name. "
    "A folder that holds a run is gone on with, or read by evaluate and generate; "
    "then --config may be left out.",
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train: prepare, train, evaluate, sample (goes on where the run folder stands). "
    "prepare: the corpus alone, with statistics; writes damaged shards again. "
    "evaluate: the newest checkpoint on held-out text, or what evaluate.tasks names. "
    "generate: texts from the newest checkpoint. export: folders for Hugging Face's "
    "transformers. import: a run folder from such a folder (checkpoint.init_from). "
    "plan: what train would do here, or on the devices that plan.target names; ends "
    "with 3 where it does not fit. check: whether the prepared corpus is as it was "
    "written.",
)
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "~/.cache/lmjax/compiled",
    "Where compiled programs are kept for the next start; empty keeps none.",
)


def main() -> None:
    """Runs the command line; ends with 1 or 2 and a message on a user's error."""
    try:
        argv = normalize_arguments(sys.argv)
        source = _config_source(argv)
        config = load_config(source)
        check_arguments(argv, config)
        config_flags.DEFINE_config_dataclass(
            "config",
            config,
            "A config file and its variants, such as configs/babylm.py:ar,nano, or a "
            "config.json. Fields: --config.section.field=value",
            parse_fn=load_config,
            sys_argv=argv,
        )
        app.run(functools.partial(_run, source), argv=argv, flags_parser=_parse_flags)
    except UserError as error:
        print(f"lmjax: {error}", file=sys.stderr)
        sys.exit(error.status)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"lmjax: {error.strerror}{where}\n"
            "  to do: free space or choose other folders with --workdir and "
            "--config.data.cache_dir; the last whole checkpoint stands",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt as stopped:
        if not isinstance(stopped, Stopped):
            print(
                "lmjax: stopped at once; finished shards and checkpoints stand",
                file=sys.stderr,
                flush=True,
            )
            # At once: not after threads that write have been waited for.
            os._exit(130)
        print(
            f"lmjax: stopped by {stopped}; what is finished stands; resume with: "
            f"python -m lmjax.main {shlex.join(sys.argv[1:])}",
            file=sys.stderr,
        )


def _config_source(argv: Sequence[str]) -> str:
    """What --config names, else the config of the run folder, else the main one."""
    source, folder = config_argument(argv), _argument(argv, "workdir")
    saved = pathlib.Path(folder) / "config.json"
    if source or (folder and saved.exists()):
        return source or str(saved)
    mode = _argument(argv, "mode")
    if mode in READING_MODES:
        raise ConfigError(
            f"--mode {mode} needs a trained run",
            where=f"--workdir {folder}" if folder else "--workdir is not given",
            remedy="name the folder of a run with --workdir",
        )
    return DEFAULT_CONFIG


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parsing, whose errors become ours."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise ConfigError(
            str(error), where="the command line", remedy="--helpshort lists the flags"
        ) from error


def _argument(argv: Sequence[str], name: str) -> str:
    """Value of a plain flag, before flags are parsed; empty when it is not given."""
    value = ""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word in (f"--{name}", f"-{name}"):
            value = following
        elif word.startswith((f"--{name}=", f"-{name}=")):
            value = word.split("=", 1)[1]
    return value


def _run(source: str, argv: Sequence[str]) -> None:
    """Resolves the config, checks it, and hands it to the mode."""
    if len(argv) > 1:
        raise ConfigError(
            f"arguments that belong to no flag: {' '.join(argv[1:])}",
            where="the command line",
            remedy="flags start with --; a value with spaces needs quotes",
        )
    _set_up_logging()
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    source, config = _with_corpus(source, flags.FLAGS["config"].value, overrides)
    workdir = pathlib.Path(_WORKDIR.value or pathlib.Path("runs", _run_name(source)))
    # Imported late: a wrong flag should not wait for JAX.
    import jax

    from lmjax import modes
    from lmjax.parallel import processes

    if _CACHE.value:
        cache = pathlib.Path(_CACHE.value).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    run_mode = getattr(modes, modes.MODES[_MODE.value])
    command = f"python -m lmjax.main {shlex.join(sys.argv[1:])}"
    with processes.together(config.parallel, command=command):
        checks.check(config, num_devices=_num_devices(config))
        run_mode(config, workdir)


def _num_devices(config: Config) -> int:
    """Devices of the machine, or of the one that a plan is made for."""
    import jax

    from lmjax.doctor import hardware

    if _MODE.value == "plan" and config.plan.target:
        return hardware.parse_target(config.plan.target).count
    return jax.device_count()


def _with_corpus(
    source: str, config: Config, overrides: Mapping[str, Any]
) -> tuple[str, Config]:
    """Settles the corpus: what is configured, the default folder, or the sample."""
    folder = pathlib.Path(config.data.default_folder)
    file, _, variants = source.partition(":")
    planned = _MODE.value == "plan" and config.plan.target  # which needs no text
    given = config.data.train or file.endswith(".json")
    if given or planned or _MODE.value == "import":
        return source, config
    if folder.is_dir():
        config.data.train = (str(folder),)
        return source, config
    print(
        f"""
*** No corpus is configured and {folder}/ does not exist: training on the built-in
*** sample, a small English grammar, to show that everything works. For a real run:
***   1. put text files (BabyLM's *.train, or *.txt) into {folder}/, or
***   2. name any file, folder or glob: --config.data.train=PATH
""",
        file=sys.stderr,
    )
    source = f"{file}:{variants},sample" if variants else f"{file}:sample"
    return source, load_config(source, overrides)


def _run_name(source: str) -> str:
    """A config source such as "configs/babylm.py:ar,tiny" as "babylm-ar-tiny"."""
    file, _, variants = source.partition(":")
    names = [name.strip() for name in variants.split(",")]
    return "-".join([pathlib.Path(file).stem, *filter(None, names)])


def _set_up_logging() -> None:
    """Our own log lines as plain lines; libraries speak from warnings on."""
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("%(message)s"))
    handler.addFilter(_is_told)
    logging.set_verbosity(logging.INFO)


def _is_told(record: python_logging.LogRecord) -> bool:
    file = pathlib.Path(record.pathname)
    if pathlib.Path(__file__).parent in file.parents:
        return True
    # Orbax logs the traceback of an error that it raises too, and that we explain.
    return record.levelno >= python_logging.WARNING and "orbax" not in file.parts


if __name__ == "__main__":
    allocator.restart_for_large_arrays()
    main()
