"""Configs: a Python file gives a ConfigDict, flags change it.

Below the commands there are no configs, only functions with keyword arguments (see sections.py).
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from filip_jax.choices import FLAGS, KEYS, choice_of, is_choice, section_of, split_words
from filip_jax.config_files import begin_with, find_config, get_config, load_file, mistakes_of
from filip_jax.epochs import allow_epochs, apply_epochs
from filip_jax.errors import UserError
from filip_jax.names import make_name

BEGIN = "--config.init_from="
UNCHANGED = "unchanged"  # a sweep's point without values


def load_config(
    file: str, overrides: Sequence[str] = (), workdir: str = "", count: Callable[[Mapping[str, Any]], int] | None = None
) -> dict[str, Any]:
    """Return the config of `FILE.py[:variant]` with `--config.key=value` overrides, as plain nested dicts.

    Args:
        file: the ending .py may be left out. Where there is no such file it is the name of a shipped config.
        overrides: those that choose a kind of something, see choices.py, come first wherever they stand.
        workdir: of the run that is trained, see `begin_with`.
        count: the `source` section -> its records, for `epochs`, see epochs.py; without it total_steps stays as the file has it.

    Raises:
        UserError: no such file or variant, an unknown key (with the nearest match), a wrong type.
    """
    path, variant = find_config(file)
    config = get_config(path, variant)
    may_count = allow_epochs(config)
    overrides = _choose(config, [*_in_one_word(config, overrides)], workdir)
    _check_keys(config, overrides)
    values, argv = flags.FlagValues(), ["filip", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, lock_config=True, flag_values=values, sys_argv=argv)
        unread = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"unknown argument '--{error.flagname}'; {_right(config, error.flagname)}") from error
    except (AttributeError, KeyError, IndexError) as error:
        keys = (override.partition("=")[0] for override in overrides)
        raise UserError(f"unknown config key in {' '.join(keys)}: {error}") from error
    except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError, flags.Error) as error:
        raise UserError(f"wrong config value: {error}") from error
    if unread:
        raise UserError(f"unexpected argument {unread[0]!r}; {_right(config, unread[0].partition('=')[0])}")
    with mistakes_of(path):
        if may_count:
            apply_epochs(config, {_parted(override)[0] for override in overrides}, count)
        return config.to_dict()


def load_sweep(file: str) -> list[dict[str, Any]]:
    """The points that the function sweep() of `FILE.py[:variant]` yields: {config key: value}.

    Raises:
        UserError: there is no such function, or it yields something else.
    """
    path, _ = find_config(file)
    module = load_file(path)
    if not hasattr(module, "sweep"):
        raise UserError(f"--config={path}: the file has no function sweep, which yields {{config key: value}}")
    with mistakes_of(path):
        points = list(module.sweep())
    for point in points:
        if not isinstance(point, Mapping) or not all(isinstance(key, str) for key in point):
            raise UserError(f"--config={path}: sweep() yields {point!r}, which is not {{config key: value}}")
    return [dict(point) for point in points]


def load_evals(file: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the section `evals` of `FILE.py[:variant]`.

    Of a file of evaluations with a function sweep() those of all its points, each named after its evaluation and point:
    "val prompt=a {}".

    Raises:
        UserError: there is none, or as `load_config` and `load_sweep` do.
    """
    config = load_config(file, overrides)
    if "evals" not in config:
        raise UserError(f"--config={file} has no section `evals`")
    path, _ = find_config(file)
    if not is_eval_config(config) or not hasattr(load_file(path), "sweep"):
        return config["evals"]
    points, evals = load_sweep(file), dict[str, Any]()
    for name, point in zip(name_points(points), points):
        of_point = load_config(file, [*overrides, *settings(point)])["evals"]
        evals |= {make_name(f"{each} {name}"): section for each, section in of_point.items()}
    return evals


def is_eval_config(config: Mapping[str, Any]) -> bool:
    """Whether a config has evaluations alone, and trains nothing."""
    return "evals" in config and "total_steps" not in config


def settings(point: Mapping[str, Any]) -> list[str]:
    """The overrides --config.key=value of a point of a sweep."""
    return [f"--config.{key}={_text(value)}" for key, value in point.items()]


def name_points(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Their names, as "pooling=tokens,rate=0.001"; keys are as short as tells them apart."""
    alike = Counter(_last(key) for key in {key for values in points for key in values})
    return [
        ",".join(f"{_last(k) if alike[_last(k)] == 1 else k}={_text(v)}" for k, v in values.items()) or UNCHANGED
        for values in points
    ]


def _last(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _in_one_word(config: ConfigDict, overrides: Sequence[str]) -> Iterator[str]:
    """Yield the overrides, --config.key value as --config.key=value; a truth value's key may stand alone, as absl has it."""
    words = iter(overrides)
    for word in words:
        key, value = _parted(word)
        is_whole = value is not None or not word.startswith("--config.") or isinstance(_at(config, key), bool)
        yield word if is_whole or (following := next(words, None)) is None else f"{word}={following}"


def _right(config: ConfigDict, name: str) -> str:
    """Return how an argument of a name that is no option is written."""
    said, key = "overrides read --config.key=value", name.removeprefix("config.").replace("-", "_")
    known = _at(config, key) is not None or key.split(".")[0] in FLAGS
    if names := [key] if known else difflib.get_close_matches(key, [*config, *FLAGS], n=1):
        return f"{said}: did you mean --{'' if names[0] in FLAGS else 'config.'}{names[0]}?"
    return f"{said}, and options of a kind stand behind it: --{FLAGS[0]} KIND key=value …"


def _choose(config: ConfigDict, overrides: Sequence[str], workdir: str) -> list[str]:
    """Choose kinds, set options that a section leaves to its kind, and return the rest of the overrides."""
    rest = []
    for override in sorted(overrides, key=lambda each: not each.startswith(BEGIN)):  # which the others change
        key, value = _parted(override)
        parent, _, name = key.rpartition(".")
        present, choice = _at(config, key), choice_of(parent) if name in KEYS else None
        is_section = isinstance(present, ConfigDict) or "." not in key
        if value is None:
            rest.append(override)
        elif override.startswith(BEGIN):
            begin_with(config, value, workdir)
        elif is_section and value[:1] != "{" and is_choice(key):
            _set(config, key, section_of(key, split_words(value), _references(present)))
        elif choice and value in choice.kinds and value and name == choice.key and present not in (None, value):
            _set(config, parent, choice.section([value], _references(_at(config, parent))))
        else:
            rest.append(override)
    return [override for override in rest if not _set_option(config, *_parted(override))]


def _parted(override: str) -> tuple[str, str | None]:
    """Return the key and the value of --config.key=value; no value of anything else."""
    key, equals, value = override.removeprefix("--config.").partition("=")
    return key, value if equals and override.startswith("--config.") else None


def _at(config: ConfigDict, key: str) -> Any:
    """Return the value of a key such as "model.image.depth"; None where there is none."""
    value: Any = config
    for name in key.split("."):
        value = value[name] if isinstance(value, ConfigDict) and name in value else None
    return value


def _references(section: Any) -> dict[str, Any]:
    """Return the values of a section, which still depend on each other as they do in the config."""
    if not isinstance(section, ConfigDict):
        return {}
    return {
        name: _references(value) if isinstance(value, ConfigDict) else section.get_ref(name)
        for name, value in section.items()
    }


def _set(config: ConfigDict, key: str, value: Any) -> None:
    parent, _, name = key.rpartition(".")
    try:
        with config.unlocked():
            (_at(config, parent) if parent else config)[name] = ConfigDict(value) if isinstance(value, dict) else value
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"wrong config value of {key}: {error}") from error


def _set_option(config: ConfigDict, key: str, value: str | None) -> bool:
    """Set an option of the kind that the section does not state, or that takes values of any type; return whether it is one."""
    parent, _, name = key.rpartition(".")
    section = _at(config, parent)
    if value is None or not isinstance(section, ConfigDict) or not (choice := choice_of(parent)):
        return False
    kind = section.get(choice.key)
    option = choice.options(kind).get(name)
    if option is None or (name in section and option.annotation is not Any):
        return False
    with section.ignore_type():
        _set(config, key, choice.value(kind, name, value))
    return True


def _check_keys(config: ConfigDict, overrides: Sequence[str]) -> None:
    for override in overrides:
        key, section = re.split(r"[=\[]", override.removeprefix("--config."))[0], config
        for name in key.split(".") if override.startswith("--config.") else ():
            if not isinstance(section, ConfigDict) or name not in section:
                keys = list(section) if isinstance(section, ConfigDict) else []
                parent = key.rpartition(".")[0]
                if keys and section is _at(config, parent) and (choice := choice_of(parent)):
                    keys += [option for option in choice.options(section.get(choice.key)) if option not in keys]
                near = difflib.get_close_matches(name, keys)
                legal = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(keys) or 'none below'}"
                other = f"; --{parent} KIND key=value … chooses another" if parent in FLAGS else ""
                raise UserError(f"unknown config key {key}: no {name}; {legal}{other}")
            section = section[name]
