"""Command lines as typed dataclasses, parsed by tyro; every value is checked, and errors are one line.

`from_json` builds the same dataclasses from JSON, with the same types and checks. Imports no torch: `--help` is quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import json
import math
import os
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from fastgan.errors import UserError, nearest, readable

try:  # only command lines need them
    import docstring_parser
    import tyro
except ModuleNotFoundError:
    tyro = None

Kind = TypeVar("Kind")

LARGEST_SEED = 2**64 - 1  # limit of torch's random number generators
LARGEST_NUMPY_SEED = 2**32 - 1  # limit of numpy's RandomState
SeedFormat = Literal["torch", "numpy"]  # library whose random number generator takes the seed
LARGEST_FLOAT = 3.4e38  # limit of fp32
_COLOUR = re.compile(r"\x1b\[[\d;]*m")  # ANSI codes
_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6}


def parse_count(text: str) -> int:
    """Parse a whole number, also like 10k or 2.5M. Raises ValueError."""
    match = re.fullmatch(r"(-?\d{1,30})(?:\.(\d{1,6}))?([kKmM]?)", text.replace("_", ""))
    if not match:
        raise ValueError(f"{text!r} is no whole number")
    whole, fraction, suffix = match[1], match[2] or "", match[3].lower()
    value, rest = divmod(int(whole + fraction) * _SUFFIXES[suffix], 10 ** len(fraction))
    if rest:
        raise ValueError(f"{text!r} is no whole number")
    return value


class _IsPath:
    """Marks an option that names a file or folder: a leading `~` is the home folder, also in `--out=~/x`."""


class _IsCount:
    """Marks a number of images: a command line also takes 10k or 2.5M."""


def argument(**settings: Any) -> Any:
    """Metadata of an option, the settings of `tyro.conf.arg`; None where tyro is missing."""
    return tyro and tyro.conf.arg(**settings)


PathText = Annotated[str, _IsPath()]
Count = Annotated[
    int,
    _IsCount(),
    tyro
    and tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda texts: parse_count(texts[0]),
        is_instance=lambda value: type(value) is int,
        str_from_instance=lambda value: [str(value)],
    ),
]


HalfLife = Annotated[
    float | None, argument(metavar="HALFLIFE", help_behavior_hint="(default: the first of --ema-halflife)")
]


# Command lines -----------------------------------------------------------------------------------------------------


def parse_options(kind: type[Kind], prog: str, argv: Sequence[str] | None = None, default: Kind | None = None) -> Kind:
    """Parse the command line `argv` (None: this process's own) into the dataclass `kind`.

    Fields that are dataclasses themselves are groups of options; their names are not part of option names.
    default: values of options that are not given; None: the defaults of `kind`.
    For --help, prints it and raises SystemExit. Raises UserError, naming the option, for a mistake.
    """
    importlib.import_module("tyro")  # raises if it is missing
    argv = list(sys.argv[1:] if argv is None else argv)
    known = _options_of(kind)
    _require_known(argv, known, prog)
    page: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if {"-h", "--help"} & {*argv}:
        _set_help(kind)
        page = _wrapped_lines()
    errors = io.StringIO()
    defaults = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors), page:
            options = tyro.cli(tyro.conf.OmitArgPrefixes[kind], prog=prog, args=argv, **defaults)
    except SystemExit as error:
        if not error.code:
            raise
        raise UserError(_one_line(errors.getvalue(), argv, known, prog)) from None
    return check(options, lambda path: _spelling(path[-1], known))


def print_commands(commands: dict[str, type], prog: str, default: Any, description: str) -> NoReturn:
    """Print the help of a program with sub-commands and raise SystemExit.

    commands: name of a sub-command to the dataclass of its options, whose docstring begins with the line to show.
    default: instance of the dataclass of the sub-command that may be left out.
    """
    summaries = {name: _flowing(inspect.getdoc(kind).partition("\n\n")[0]) for name, kind in commands.items()}
    kinds = tuple(
        Annotated[kind, tyro.conf.subcommand(name, description=summaries[name])] for name, kind in commands.items()
    )
    with _wrapped_lines():
        tyro.cli(Union[kinds], default=default, prog=prog, description=description, args=["--help"])  # noqa: UP007


def _set_help(kind: type) -> None:
    """Give every field its docstring as help, without the line breaks of the source, which tyro would show."""
    docstrings = {
        each.arg_name: each.description
        for base in reversed(kind.__mro__[:-1])
        for each in docstring_parser.parse_from_object(base).params
    }
    for each in dataclasses.fields(kind):
        if text := docstrings.get(each.name):
            each.metadata = types.MappingProxyType({**each.metadata, "help": _flowing(text)})
    for hint in _fields(kind).values():
        if dataclasses.is_dataclass(_bare(hint)[0]):
            _set_help(_bare(hint)[0])


def _flowing(text: str) -> str:
    """Join the lines of a text, except those that begin with "- ", the items of a list."""
    return re.sub(r"\s*\n\s*(- )?", lambda found: "\n- " if found[1] else " ", text.strip())


class _LikeStdout(io.StringIO):
    """A buffer that tyro takes for stdout: colours on a terminal, box characters in UTF-8."""

    encoding = property(lambda self: sys.__stdout__.encoding)

    def isatty(self) -> bool:
        return sys.__stdout__.isatty()


@contextlib.contextmanager
def _wrapped_lines() -> Iterator[None]:
    """Wrap printed lines at the width of the terminal; tyro wraps only those in boxes, not a program's description."""
    page = _LikeStdout()
    try:
        with contextlib.redirect_stdout(page):
            yield
    finally:
        width = shutil.get_terminal_size().columns
        for line in page.getvalue().splitlines():
            fits = len(_COLOUR.sub("", line)) <= width
            print(line if fits else textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False))


class _Option(NamedTuple):
    """An option: its flags, its type, and whether it is positional."""

    flags: tuple[str, ...]
    kind: Any
    positional: bool


def _options_of(kind: type) -> dict[str, _Option]:
    """Options of `kind`, by field name."""
    found = {}
    for field, hint in _fields(kind).items():
        bare, metadata = _bare(hint)
        if dataclasses.is_dataclass(bare):
            found |= _options_of(bare)
        elif tyro.conf.Suppress not in metadata:
            name = next((given for part in metadata if (given := getattr(part, "name", None))), field)
            flags = ["--" + name.replace("_", "-")]
            for part in metadata:
                flags += getattr(part, "aliases", None) or ()
            found[field] = _Option(tuple(flags), bare, tyro.conf.Positional in metadata)
    return found


def _spelling(name: str, known: dict[str, _Option]) -> str:
    """Command-line spelling of a field's option."""
    option = known.get(name)
    if option is None:
        return name
    return name.upper() if option.positional else option.flags[0]


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its `Annotated` metadata, and the metadata."""
    if get_origin(hint) is Annotated:
        bare, *metadata = get_args(hint)
        inner, more = _bare(bare)
        return inner, (*more, *metadata)
    return hint, ()


def _require_known(argv: Sequence[str], known: dict[str, _Option], prog: str) -> None:
    """Raise UserError for an unknown flag, suggesting the most similar one."""
    flags = ["--help"]
    for option in (option for option in known.values() if not option.positional):
        flags += option.flags
        if option.kind is bool:
            flags += ["--no-" + each.removeprefix("--") for each in option.flags]
    for token in argv:
        name = token.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in flags and not name.startswith("--tyro-"):
            raise UserError(f"{readable(token)}: no such option; {nearest(name, flags)}{prog} --help lists all")


def _one_line(output: str, argv: Sequence[str], known: dict[str, _Option], prog: str) -> str:
    """The error that tyro prints in a box, as one line."""
    plain = _COLOUR.sub("", output)
    lines = [re.sub(r"^[│|+╭╰]\s|\s[│|+╮╯]$", "", line).strip() for line in plain.splitlines()]
    lines = [line for line in lines if line.strip("─-+╭╮╰╯ ")]
    text = " ".join(line for line in lines if line)
    by_flag = {each: option for option in known.values() for each in option.flags}
    by_flag |= {name.upper(): option for name, option in known.items() if option.positional}
    if missing := re.search(r"Missing from .*?: (.*?\(required\))", text):
        names = [each for each in by_flag if re.search(rf"(^|\s){re.escape(each)}\s", missing[1])]
        needed = names or [missing[1].partition(" ")[0]]
        return f"{needed[0]} is missing; {prog} --help explains it"
    if stray := re.search(r"Unrecognized options:(.*?)(For full|Perhaps|$)", text):
        return f"{readable(stray[1].strip())}: belongs to no option; {prog} --help lists all"
    if found := re.search(r"(?:Error parsing|argument) '?(--[\w-]+|[A-Z|]{2,})\b", text):
        option = by_flag.get(found[1].partition("/")[0])
        if option is not None:
            given = _given(argv, option)
            needed = f" {readable(given)}: must be" if given else ": needs a value,"
            return f"{option.flags[0]}{needed} {words(option.kind)}"
    return readable(text.partition("For full")[0].strip(), 300)


def _given(argv: Sequence[str], option: _Option) -> str:
    """Values given to an option on the command line."""
    values: list[str] = []
    for place, token in enumerate(argv):
        name, _, value = token.partition("=")
        if name.replace("_", "-") in option.flags:
            rest = argv[place + 1 :]
            end = next((n for n, each in enumerate(rest) if each.startswith("--")), len(rest))
            values = [value] if value else list(rest[:end])
    return " ".join(values)


# Values ------------------------------------------------------------------------------------------------------------


def check(options: Kind, named: Callable[[tuple[str, ...]], str]) -> Kind:
    """Check every value of a dataclass, and return it with `~` in paths expanded.

    Numbers must be finite in fp32 and below 2^64, texts UTF-8 without null bytes, and paths not empty.
    named: maps the field names that lead to a value to its name in messages.
    Raises UserError for any other value.
    """
    return _checked(options, type(options), (), named)


def _checked(value: Any, hint: Any, path: tuple[str, ...], named: Callable[[tuple[str, ...]], str]) -> Any:
    if dataclasses.is_dataclass(value):
        new = {
            name: _checked(getattr(value, name), each, (*path, name), named)
            for name, each in _fields(type(value)).items()
        }
        changed = {name: each for name, each in new.items() if each is not getattr(value, name)}
        return dataclasses.replace(value, **changed) if changed else value
    for each in value if isinstance(value, tuple) else (value,):
        if problem := _problem(each):
            raise UserError(f"{named(path)} {readable(value)}: {problem}")
    if value == "" and _has_path(hint):  # would be the current folder; usually from an unset variable
        raise UserError(f"{named(path)}: the name is empty; give one, like . for the current folder")
    if isinstance(value, str) and value.startswith("~") and _has_path(hint):
        expanded = os.path.expanduser(value)
        if expanded.startswith("~"):
            raise UserError(f"{named(path)} {readable(value)}: there is no such user's folder; give the whole path")
        return expanded
    return value


def _problem(value: Any) -> str | None:
    """The requirement that `value` violates, or None."""
    if isinstance(value, float) and not (math.isfinite(value) and abs(value) <= LARGEST_FLOAT):
        return f"must be a finite number of at most {LARGEST_FLOAT:g}"
    if isinstance(value, int) and abs(value) > LARGEST_SEED:
        return "must be smaller than 2^64"
    if isinstance(value, str):
        if "\0" in value:
            return "must not have a null byte"
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            return "must be UTF-8"
    return None


def _has_path(hint: Any) -> bool:
    """Whether a type is `PathText` or a union with it."""
    bare, metadata = _bare(hint)
    return any(isinstance(part, _IsPath) for part in metadata) or any(
        _has_path(part) for part in get_args(bare) if _is_union(bare)
    )


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}


def words(hint: Any) -> str:
    """Description of a type's values, for messages."""
    *others, last = _alternatives(hint)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(hint: Any) -> list[str]:
    bare, metadata = _bare(hint)
    if any(isinstance(part, _IsCount) for part in metadata):
        return ["a whole number, like 5000, 10k or 2M"]
    if get_origin(bare) is Literal:
        return [str(part) for part in get_args(bare)]
    if _is_union(bare):
        return [each for part in get_args(bare) for each in _alternatives(part)]
    if get_origin(bare) is tuple:
        first, *others = get_args(bare)
        each = words(first).removeprefix("a ") + "s"
        return [each if others == [...] else f"{1 + len(others)} {each}"]
    return [_WORDS.get(bare, getattr(bare, "__name__", str(bare)))]


# Files -------------------------------------------------------------------------------------------------------------


def from_json(kind: type[Kind], content: Any, where: str) -> Kind:
    """Build the dataclass `kind` from JSON content, which must have all of its fields and no others.

    Types are validated, and each value by `check`. where: name of `content` in messages.
    Raises UserError, naming the first wrong field.
    """
    import pydantic

    _require_fields(kind, content, where)
    try:
        (value,) = _adapter(kind).validate_json(json.dumps([content]))
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)[0]
        if found["type"] == "json_invalid":  # a lone surrogate
            raise UserError(f"{where}: {found['msg']}") from None
        place = found["loc"][1:]
        name, hint = where, kind
        for part in place:
            fields = _fields(hint)
            if part not in fields:
                break
            name, hint, content = f"{name}.{part}", fields[part], content[part]
        needed = "an object of its fields" if _fields(hint) else words(hint)
        raise UserError(f"{name} is {readable(json.dumps(content))}, must be {needed}") from None
    return check(value, lambda path: ".".join([where, *path]))


@functools.cache
def _adapter(kind: type):
    """pydantic adapter of a list of `kind`: an adapter of a dataclass itself takes no configuration."""
    import pydantic

    return pydantic.TypeAdapter(list[kind], config=pydantic.ConfigDict(extra="forbid", strict=True))


@functools.cache
def _fields(hint: Any) -> dict[str, Any]:
    """Fields of a dataclass or TypedDict, name to type; empty for any other type."""
    bare, _ = _bare(hint)
    if dataclasses.is_dataclass(bare):
        hints = get_type_hints(bare, include_extras=True)
        return {each.name: hints[each.name] for each in dataclasses.fields(bare)}
    return get_type_hints(bare, include_extras=True) if hasattr(bare, "__total__") else {}


def _require_fields(hint: Any, content: Any, where: str) -> None:
    """Raise UserError if a field is missing or unknown; defaults are for command lines only."""
    fields = _fields(hint)
    if not fields or not isinstance(content, dict):
        return
    if missing := [name for name in fields if name not in content]:
        raise UserError(f"{where}.{missing[0]} is missing")
    if unknown := [name for name in content if name not in fields]:
        raise UserError(f"{where}.{readable(unknown[0])} is not known to this version")
    for name, each in fields.items():
        _require_fields(each, content[name], f"{where}.{name}")
