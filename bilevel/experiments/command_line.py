"""Configuration files and absl flags: from a command line to a checked configuration.

    python examples/x.py --config=configs/x.py --cfg.inner.learning_rate=0.05

`--config` names a Python file that defines `get_config()`. Every value of what it
returns becomes a flag `--cfg.<path>` of its own type, with help, bounds and default, so
the file has to be loaded before the flags can be parsed (`config_argument` finds it).
"""

import difflib
import os
import sys
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from absl import flags

from bilevel.datasets import files
from bilevel.experiments import config, config_leaf, folders, modules

DATA_VARIABLE = "BILEVEL_DATA"
_PREFIX = "cfg."


class Loaded(NamedTuple):
    """A configuration with the file that it came from."""

    config: Any
    path: Path
    source: str


def load_config(path: str | Path) -> Loaded:
    """Runs a configuration file and checks what its `get_config()` returns.

    Args:
      path: a Python file that defines `get_config()`.

    Returns:
      The configuration, every value checked and of its declared type, and the text of
      the file.

    Raises:
      ConfigError: no such file, a syntax error, no `get_config`, not an instance of a
        frozen dataclass, or a value that does not fit its type or bounds. What else
        the code of the file raises is passed on as it is.

    Example:
      `load_config("configs/x.py").config`
    """
    try:
        path = files.local(path)
    except ValueError as error:
        raise config.ConfigError(str(error)) from error
    if not path.is_file():
        beside = _config_files(path.parent)
        close = difflib.get_close_matches(str(path), beside, n=1)
        meant = f"Did you mean {close[0]}? " if close else ""
        raise config.ConfigError(
            f"there is no configuration file {path}. {meant}{_listed(beside)}"
        )
    source = path.read_text()
    # Executed from the text that the run folder keeps: the import system may take
    # stale bytecode. dataclasses and get_type_hints look up names in annotations in
    # the module of that name, so it is entered, and stays when a file is loaded twice.
    name = f"{modules.CONFIG_PREFIX}{path.stem}"
    while name in sys.modules:
        name += "_"
    module = types.ModuleType(name)
    module.__file__ = str(path.absolute())
    sys.modules[name] = module
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        text = f"\n  {error.text.rstrip()}" if error.text else ""
        raise config.ConfigError(f"{where}: {error.msg}{text}") from error
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise config.ConfigError(f"{path} defines no function get_config()")
    try:
        return Loaded(config.checked(get_config()), path, source)
    except config.ConfigError as error:
        raise config.ConfigError(f"get_config() of {path}: {error}") from None


def config_argument(argv: Sequence[str]) -> str | None:
    """Returns the value of the last `--config` on a command line, or None.

    Args:
      argv: the command line, program name first.
    """
    found = None
    for position, argument in enumerate(argv[1:], start=1):
        if argument == "--":
            break
        name, is_assigned, value = argument.partition("=")
        if name in ("--config", "-config"):
            following = argv[position + 1 : position + 2]
            found = value if is_assigned else next(iter(following), None)
    return found


def no_config_message() -> str:
    """Says that `--config` is missing, and which files there are."""
    return f"pass --config=<file>. {_listed(_config_files(Path('configs')))}"


class Options(NamedTuple):
    """The flags that every program has.

    Attributes:
      workdir: folder of the run, or None for a new one.
      data_dir: folder of the data sets, or None.
      deterministic: compute with one thread.
      strict_env: refuse an environment that is not that of the lock file.
      save_every: steps between checkpoints.
      save_seconds: at most so many seconds between checkpoints.
      restore_step: resume from this step, not from the last one.
      stop_after: the last step to make.
      save_steps: save at these steps and no others.
      profile: steps to profile, 0 for none.
    """

    workdir: Path | None = None
    data_dir: Path | None = None
    deterministic: bool = False
    strict_env: bool = False
    save_every: int = 1000
    save_seconds: float = 20.0
    restore_step: int | None = None
    stop_after: int | None = None
    save_steps: tuple[int, ...] | None = None
    profile: int = 0

    def recorded(self) -> dict[str, Any]:
        """The flags that make the run what it is, in JSON."""
        names = ("deterministic", "save_every", "save_seconds")
        return {name: getattr(self, name) for name in names}


_HELP = {
    "workdir": "folder of the run: a new one, or one to resume (default: a new folder"
    " runs/<config>-<time>)",
    "data_dir": f"folder of the data sets (default: environment variable"
    f" {DATA_VARIABLE})",
    "deterministic": "compute with one thread: the same bits on any number of cores",
    "strict_env": "refuse to run with other package versions than requirements.lock",
    "save_every": "steps between checkpoints; a killed run resumes from the last one",
    "save_seconds": "at most so many seconds between checkpoints",
    "restore_step": "resume from this step; later checkpoints are set aside",
    "stop_after": "stop after this step; the same command without it goes on",
    "save_steps": "save at these steps and no others (for python -m bilevel reproduce)",
    "profile": "steps to profile once the first chunk is done, 0 for none",
}


def define_launch_flags(flag_values: flags.FlagValues, module_name: str) -> None:
    """Defines the flags that every program has.

    Args:
      flag_values: where to define them (`absl.flags.FLAGS`, or a fresh one).
      module_name: the program, so that `--help` shows them.
    """
    where: Any = {"flag_values": flag_values, "module_name": module_name}
    config_help = (
        "Python file that defines get_config(); with it --help lists its values"
    )
    flags.DEFINE_string("config", None, config_help, **where)
    defaults = Options()._asdict() | {"data_dir": os.environ.get(DATA_VARIABLE)}
    bounds: dict[str, Any] = {"lower_bound": 0}
    for name, default in defaults.items():
        text = _HELP[name]
        if name in ("workdir", "data_dir"):
            flags.DEFINE_string(name, default, text, **where)
        elif name in ("deterministic", "strict_env"):
            flags.DEFINE_boolean(name, default, text, **where)
        elif name == "save_seconds":
            flags.DEFINE_float(name, default, text, **bounds, **where)
        elif name == "save_steps":
            flags.DEFINE_list(name, None, text, **where)
        elif name == "save_every":
            flags.DEFINE_integer(name, default, text, lower_bound=1, **where)
        else:
            flags.DEFINE_integer(name, default, text, **bounds, **where)


def read_options(flag_values: flags.FlagValues) -> Options:
    """Returns the flags that every program has, parsed.

    Raises:
      ConfigError: a value does not fit.
      FolderError: a folder is a remote one.
    """
    given: dict[str, Any] = {name: flag_values[name].value for name in Options._fields}
    for name in ("workdir", "data_dir"):
        given[name] = folders.local(given[name]) if given[name] else None
    steps = given["save_steps"]
    if steps is not None:
        leaf = config.Leaf(tuple[int, ...])
        given["save_steps"] = from_text(leaf, ",".join(steps))
    return Options(**given)


def define_config_flags(
    cfg: Any, flag_values: flags.FlagValues, module_name: str
) -> None:
    """Defines one flag `--cfg.<path>` for every value of a configuration.

    Args:
      cfg: the configuration; its values are the defaults.
      flag_values: where to define them.
      module_name: the program, so that `--help` shows them.
    """
    leaves, values = config.leaves(type(cfg)), config.flat(cfg)
    for path, leaf in leaves.items():
        name, text = f"{_PREFIX}{path}", leaf.help or path
        if leaf.annotation is bool:  # the native kind: --cfg.x and --nocfg.x
            flags.DEFINE_boolean(
                name,
                values[path],
                text,
                flag_values=flag_values,
                module_name=module_name,
            )
            continue
        is_tuple = get_origin(leaf.annotation) is tuple
        flags.DEFINE(
            _LeafParser(leaf),
            name,
            values[path],
            text,
            flag_values=flag_values,
            serializer=flags.ListSerializer(",")
            if is_tuple
            else flags.ArgumentSerializer(),
            module_name=module_name,
        )


def parse(argv: Sequence[str], flag_values: flags.FlagValues) -> list[str]:
    """Parses a command line.

    Args:
      argv: the command line, program name first.
      flag_values: the flags.

    Returns:
      The program name alone, in a list, as `absl.app.run` wants it.

    Raises:
      ConfigError: an unknown flag (the message suggests one), an argument that is no
        flag, or a value that does not fit.
    """
    try:
        rest = flag_values(list(argv))
    except flags.UnrecognizedFlagError as error:
        known = list(flag_values)
        raise config.ConfigError(
            f"unknown flag --{error.flagname}.{did_you_mean(error.flagname, known)}"
        ) from None
    except flags.Error as error:
        raise config.ConfigError(str(error)) from None
    if rest[1:]:
        close = did_you_mean(rest[1].partition("=")[0], list(flag_values))
        raise config.ConfigError(f"unexpected argument {rest[1]!r}.{close}")
    return rest


def read_config(cfg: Any, flag_values: flags.FlagValues) -> Any:
    """Returns the configuration with the values given on the command line.

    Raises:
      ConfigError: values that the configuration class refuses together.
    """
    # Only those that were given: None is a value here, and absl's sign for 'not set'.
    paths = [path for path in config.leaves(type(cfg))]
    given = [path for path in paths if flag_values[f"{_PREFIX}{path}"].present]
    return config.replace(
        cfg, {path: flag_values[f"{_PREFIX}{path}"].value for path in given}
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean --cfg.inner.learning_rate?', or '' where nothing is close.

    Args:
      name: the flag that was given, without dashes.
      known: the flags that exist.
    """
    known = list(known)
    group = [f"--{one}" for one in known if one.startswith(f"{name}.")]
    if group:
        return f" It is a group: {', '.join(group)}"
    # The right name in the wrong group is more likely than a close path.
    last, by_name = name.rpartition(".")[2], {}
    for one in known:
        by_name.setdefault(one.rpartition(".")[2], one)
    close = (
        [by_name[last]]
        if last in by_name
        else difflib.get_close_matches(name, known, n=1)
        or [by_name[one] for one in difflib.get_close_matches(last, by_name, n=1)]
    )
    return f" Did you mean --{close[0]}?" if close else ""


def from_text(leaf: config.Leaf, text: str) -> Any:
    """Reads a value as it is written in a flag: `none`, `0.1`, `1,2,3`, `cg`.

    Raises:
      ConfigError: the text does not fit the type or the bounds.
    """
    annotation = leaf.annotation
    entry = config_leaf.inner_type(annotation)
    if entry is None:
        return config_leaf.check(leaf, _read(annotation, text))
    if get_origin(annotation) is tuple:
        texts = text.split(",") if text else []
        inner = leaf._replace(annotation=entry)
        return tuple(from_text(inner, one.strip()) for one in texts)
    is_none = text.lower() == "none"
    return None if is_none else from_text(leaf._replace(annotation=entry), text)


class _LeafParser(flags.ArgumentParser):
    """What absl needs to parse and describe one value of a configuration."""

    def __init__(self, leaf: config.Leaf) -> None:
        self.leaf = leaf
        bounds = [("at least", leaf.minimum), ("at most", leaf.maximum)]
        words = [f"{word} {bound}" for word, bound in bounds if bound is not None]
        is_tuple = get_origin(leaf.annotation) is tuple
        comma = ["comma-separated"] if is_tuple else []
        words = [config_leaf.type_words(leaf.annotation), *comma, *words]
        self.syntactic_help = ", ".join(words)  # absl puts it in brackets

    def parse(self, argument: Any) -> Any:
        is_text = isinstance(argument, str)  # absl passes defaults as they are
        return from_text(self.leaf, argument) if is_text else argument

    def flag_type(self) -> str:
        return config_leaf.type_words(self.leaf.annotation)


def _read(annotation: Any, text: str) -> Any:
    """Converts a text as far as it can be; `config_leaf.check` says what is wrong."""
    if get_origin(annotation) is Literal:
        return {str(choice): choice for choice in get_args(annotation)}.get(text, text)
    if annotation is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return annotation(text)
    except ValueError:
        return text


def _config_files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.py") if path.name[0] != "_")


def _listed(files: list[str]) -> str:
    return f"There are: {', '.join(files)}" if files else "There are none beside it."
