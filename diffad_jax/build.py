"""From names in a config to the things they name, with errors that list what is allowed."""

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from diffad_jax.errors import InputError, check_choice, suggestion

KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a word", NoneType: "None"}


def build(key: str, choices: Mapping[str, Callable[..., Any]], spec: Mapping[str, Any], **given: Any) -> Any:
    """choices[spec["name"]](**given, **rest of spec); config keys equal the argument names of what they build.

    given: arguments that the program supplies; those that the choice does not take are left out.
    Raises InputError naming the config key (`key.name`, `key.argument`) on an unknown name or argument, a missing one, or a
    value that does not fit an annotation of int, float, bool, str, None, unions and sequences of these. Where a list of words
    is allowed, "a,b" is ("a", "b"), as flags have it.
    """
    if "name" not in spec:
        raise InputError(f"config.{key}: has no `name`; {suggestion('', choices)}")
    name = spec["name"]
    check_choice(f"config.{key}.name", name, choices)
    return _call(key, name, choices[name], {k: v for k, v in spec.items() if k != "name"}, given, choices)


def call(key: str, target: Callable[..., Any], section: Mapping[str, Any], **given: Any) -> Any:
    """target(**given, **section), where a section of the config can mean one thing alone; raises as `build` does."""
    return _call(key, target.__name__, target, section, given, {})


def _call(
    key: str,
    name: str,
    target: Callable[..., Any],
    spec: Mapping[str, Any],
    given: Mapping[str, Any],
    choices: Mapping[str, Callable[..., Any]],
) -> Any:
    """target(**given, **spec), with errors that call it `name` and point to those of `choices` that take what it does not."""
    parameters = inspect.signature(target).parameters
    arguments = {k: _listed(parameters.get(k), plain(v)) for k, v in spec.items()}
    settable = [p for p in parameters if p not in given and p not in ("parent", "name")]
    for argument in arguments:
        if argument not in settable:
            takers = [
                n for n, c in choices.items() if argument not in given and argument in inspect.signature(c).parameters
            ]
            whole = f"""--config.{key}="{{'name': '{name}'}}" replaces the section"""
            hint = f" ({', '.join(takers)} would; {whole})" if takers else ""
            raise InputError(
                f"config.{key}.{argument}: {name} takes no such argument{hint}; {suggestion(argument, settable)}"
            )
        kind = parameters[argument].annotation
        if not _fits(kind, arguments[argument]):
            raise InputError(f"config.{key}.{argument}: found {arguments[argument]!r}, allowed is {in_words(kind)}")
    arguments |= {k: v for k, v in given.items() if k in parameters}
    for argument, parameter in parameters.items():
        if parameter.default is parameter.empty and argument not in arguments and argument in settable:
            raise InputError(f"config.{key}.{argument}: {name} needs it")
    # What readers of data say begins with a path, whose first word may be an argument's name.
    with naming(key, settable if key != "data" else ()):
        return target(**arguments)


@contextmanager
def naming(key: str, arguments: Collection[str]) -> Iterator[None]:
    """An InputError raised inside whose words begin with one of the arguments is told by its config key, `key.argument`."""
    try:
        yield
    except InputError as error:
        words = re.match(r"(\w+)[:=]", str(error))
        if words and words[1] in arguments:
            raise InputError(f"config.{key}.{error}") from error
        raise


@contextmanager
def within(key: str) -> Iterator[None]:
    """An InputError raised inside that names no config key is told with this one."""
    try:
        yield
    except InputError as error:
        if str(error).startswith("config."):
            raise
        raise InputError(f"{key}: {error}") from error


def _listed(parameter: inspect.Parameter | None, value: Any) -> Any:
    """The words of a value that holds some joined by commas, where a list of words may stand; any other value as it is."""
    kind = parameter.annotation if parameter else None
    if Sequence[str] not in (kind, *get_args(kind)):
        return value
    parts = (value,) if isinstance(value, str) else value
    if not isinstance(parts, tuple) or not all(isinstance(part, str) for part in parts):
        return value
    return tuple(word.strip() for part in parts for word in part.split(",") if word.strip())


def _fits(kind: Any, value: Any) -> bool:
    """Whether a config's value can stand for the annotation: whole numbers are numbers too, True and False are not."""
    if get_origin(kind) is UnionType:
        return any(_fits(part, value) for part in get_args(kind))
    if get_origin(kind) is Sequence:
        return isinstance(value, tuple) and all(_fits(get_args(kind)[0], part) for part in value)
    if kind not in KINDS:
        return True
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def in_words(kind: Any) -> str:
    """What fits an annotation."""
    if get_origin(kind) is UnionType:
        return " or ".join(map(in_words, get_args(kind)))
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is Sequence:
        return f"a list ({in_words(get_args(kind)[0])} each)"
    return KINDS.get(kind, getattr(kind, "__name__", str(kind)))


def plain(value: Any) -> Any:
    """Lists, which JSON makes of tuples, become tuples again."""
    return tuple(plain(v) for v in value) if isinstance(value, list | tuple) else value
