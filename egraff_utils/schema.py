"""Is this what a card or a campaign may hold? YAML is read by the types of the fields, not by guesses.

Plain scalars stay text until the type of their field is known (:class:`Plain`), so that a name ``007`` is
text and a temperature ``1e3`` is a number. Types are checked by pydantic; its errors become one line that
names the file, the line, the key and the remedy.
"""

import dataclasses
import operator
import re
import typing
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from ase.data import atomic_numbers
from pydantic import (
    AfterValidator,
    AllowInfNan,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

NAME = r"[A-Za-z0-9_-]+"
"""Pattern of names, which become parts of paths and words of the shell."""
BASE_60 = r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?"
"""Pattern of what YAML 1.1 takes for a number of base 60, such as 10:20."""
LARGEST_SEED = 2**32 - 1
CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True)

_T = TypeVar("_T")


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def checked(*, eq: bool = True) -> Callable[[type[_T]], type[_T]]:
    """Decorator of a frozen dataclass whose values are converted and checked when an instance is made."""
    return dataclass(frozen=True, config=CONFIG, eq=eq)  # type: ignore[return-value]  # the same class


def unknown(kind: str, name: object, known: Collection[str]) -> ValueError:
    """``ValueError`` for a name that is not among the known ones; it suggests the nearest.

    >>> unknown("model", "mase", ["mace", "nequip"])
    ValueError("unknown model 'mase'; did you mean 'mace'? Known: mace, nequip")
    """
    near = get_close_matches(str(name), list(known), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return ValueError(f"unknown {kind} '{name}'{hint} Known: {', '.join(sorted(known))}")


def check_name(name: str, kind: str = "name") -> str:
    """The name; ``ValueError`` if it does not match :data:`NAME`.

    >>> check_name("../../evil")
    Traceback (most recent call last):
    ValueError: '../../evil' is no name; use letters, digits, - and _
    """
    if not re.fullmatch(NAME, str(name)):
        raise ValueError(f"'{name}' is no {kind}; use letters, digits, - and _")
    return name


def check_model_name(name: str) -> str:
    """The name of a model, in which no ``-`` may stand: it follows that of the dataset in a record's name.

    Otherwise dataset ``a-b`` with model ``c`` and dataset ``a`` with model ``b-c`` would have one record.

    >>> check_model_name("my_emt")
    'my_emt'
    """
    if "-" in str(check_name(name, "name of a model")):
        raise ValueError(
            f"'{name}' is no name of a model, as names of records are divided at -; use _ for it"
        )
    return name


def check_device(text: str) -> str:
    """The name of a device; ``ValueError`` if it is neither ``cpu`` nor ``cuda``, nor one of several.

    >>> check_device("cuda:1")
    'cuda:1'
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", str(text)):
        raise ValueError(f"'{text}' is no device; write cpu, cuda or, of several, such as cuda:1")
    return text


# -- values ---------------------------------------------------------------------------------------------


class Plain(str):
    """A scalar that is written without quotes, whose type depends on where it stands."""


class Mapping(dict):
    """A mapping of a file; ``lines`` are the lines of its keys, counted from one."""

    lines: dict = {}


def guess(value: Any) -> Any:
    """The value with plain scalars read as YAML 1.2 reads them, where no type is known.

    >>> guess({"rate": Plain("1e-3"), "layers": [Plain("2")], "smooth": Plain("true"), "act": Plain("on")})
    {'rate': 0.001, 'layers': [2], 'smooth': True, 'act': 'on'}
    """
    if isinstance(value, dict):
        return {guess(key): guess(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(guess(item) for item in value)
    if not isinstance(value, Plain):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if re.fullmatch(r"[-+]?[0-9]+", value):
        return int(value)
    if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", value):
        return float(value)
    return str(value)


def _number(value):
    """A number from text, in quotes or not."""
    return guess(Plain(value)) if isinstance(value, str) else value


def _whole(value):
    value = _number(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return operator.index(value) if hasattr(value, "__index__") and not isinstance(value, bool) else value


def _atomic_number(value):
    value = _whole(value)
    if value in atomic_numbers:
        raise ValueError(f"'{value}' is a symbol; write its atomic number, {atomic_numbers[value]}")
    return value


Value = Annotated[Any, BeforeValidator(guess)]
Number = Annotated[StrictInt | Annotated[StrictFloat, AllowInfNan(False)], BeforeValidator(_number)]
"""A finite number; a whole one stays an ``int``, so that digests do not depend on its being read."""
Positive = Annotated[Number, Field(gt=0)]
Whole = Annotated[StrictInt, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=0)]
Seed = Annotated[Count, Field(le=LARGEST_SEED)]
AtLeastOne = Annotated[Whole, Field(ge=1)]
AtomicNumber = Annotated[StrictInt, BeforeValidator(_atomic_number), Field(ge=1, le=118)]
Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]


ModelName = Annotated[Name, AfterValidator(check_model_name)]
"""See :func:`check_model_name`."""


def _distinct(values):
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{twice[0]} is given twice")
    return values


Distinct = AfterValidator(_distinct)
"""Mark of a list in which nothing stands twice."""


def _slice_text(text):
    if not re.fullmatch(r"\s*(-?\d+)?\s*(:\s*(-?\d+)?\s*){1,2}", text) or re.search(r":.*:\s*-?0+\s*$", text):
        raise ValueError(f'\'{text}\' is no slice; write "start:stop" or "start:stop:step"')
    return text


Slice = Annotated[str, AfterValidator(_slice_text)]


# -- files ----------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Loader that leaves plain scalars as text and refuses keys that are given twice."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _scalar(loader, node):
    return node.value if node.style else Plain(node.value)


def _mapping(loader, node):
    lines = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _problem(key, "a key must be a word")
        if key.value in lines and key.value != "<<":
            raise _problem(key, f"the key {key.value} is given twice, first in line {lines[key.value]}")
        lines[key.value] = key.start_mark.line + 1
        if isinstance(value, yaml.ScalarNode) and not value.style and re.fullmatch(BASE_60, value.value):
            raise _problem(key, f'{key.value}: YAML reads {value.value} in base 60; write "{value.value}"')
    loader.flatten_mapping(node)
    found = Mapping(loader.construct_mapping(node, deep=True))
    found.lines = lines
    return found


def _problem(node, text):
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:str", _scalar)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str, *, where: str | Path = "the text") -> Any:
    """Content of a YAML text, whose plain scalars are :class:`Plain`.

    Raises
    ------
    ValueError
        If the text is not YAML, gives a key twice, or holds ``10:20`` without quotes, which YAML reads as a
        number of base 60. The message starts with ``where`` and the line.

    Examples
    --------
    >>> parse("slice: 10:20", where="water.yml")
    Traceback (most recent call last):
    ValueError: water.yml:1: slice: YAML reads 10:20 in base 60; write "10:20"
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark, said = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        raise ValueError(f"{where}:{mark.line + 1 if mark else 1}: {said or error}") from None


def read(path: str | Path) -> dict[str, Any]:
    """Content of a YAML file that holds a mapping, see :func:`parse`.

    Raises
    ------
    ValueError
        If there is no such file, or it is empty, is not text or not YAML, or holds something else; the
        message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise no_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8 ({error.reason})") from None
    content = parse(text, where=path)
    if content is None:
        raise ValueError(f"{path} is empty; it must hold lines of the form `key: value`")
    if not isinstance(content, dict):
        raise ValueError(f"{path}:1: must hold lines of the form `key: value`, not {_shown(content)}")
    return content


def no_file(path: Path | str) -> ValueError:
    """``ValueError`` for the path of a file that is not there; it suggests the nearest in its folder."""
    path = Path(path).absolute()
    if not path.parent.is_dir():
        return ValueError(f"there is no file {path}, as there is no folder {path.parent}; correct the path")
    near = get_close_matches(path.stem, [file.stem for file in path.parent.glob(f"*{path.suffix}")], n=1)
    hint = f"did you mean {path.with_stem(near[0])}?" if near else "correct its path"
    return ValueError(f"there is no file {path}; {hint}")


# -- checks ---------------------------------------------------------------------------------------------


@cache
def _adapter(cls: type[_T]) -> TypeAdapter[_T]:
    return TypeAdapter(cls)


def validated(cls: type[_T], values: Any, *, where: str | Path) -> _T:
    """Instance of a class decorated with :func:`checked` from a mapping.

    Raises
    ------
    ValueError
        If a key is not known, is missing, or has a value of another type. The message begins with ``where``
        and, if the mapping was read from a file, the line.
    """
    try:
        return _adapter(cls).validate_python(values)  # type: ignore[arg-type]  # classes are hashable
    except ValidationError as error:
        found = sorted(error.errors(), key=lambda e: e["type"] != "unexpected_keyword_argument")
        raise ValueError(_message(cls, values, found[0], where)) from None


@contextmanager
def at(*keys: str) -> Iterator[None]:
    """Context in which a ``ValueError`` is one of the value at these keys."""
    try:
        yield
    except ValueError as error:
        error.keys = keys  # type: ignore[attr-defined]  # _message reads them
        raise


def _message(cls, values, error, where):
    keys, line, current = [], None, values
    cause = error.get("ctx", {}).get("error")
    for part in (*error["loc"], *getattr(cause, "keys", ())):
        if isinstance(current, dict) and part in current:
            line = getattr(current, "lines", {}).get(part, line)
        elif not (isinstance(current, list) and isinstance(part, int) and part < len(current)):
            continue
        current = current[part]
        keys.append(str(part))
    kind, text = error["type"], str(cause or "")
    place = f"{where}:{line}" if line else f"{where}"
    if kind == "unexpected_keyword_argument":
        return f"{place}: {unknown('key', error['loc'][-1], _known(cls, error['loc'][:-1]))}"
    if kind == "missing":
        return f"{place}: {'.'.join([*keys, str(error['loc'][-1])])} is missing"
    return f"{place}: {'.'.join(keys)}{': ' if keys else ''}{text or _text(error)}"


def _text(error):
    given, kind = _shown(error["input"]), error["type"]
    if kind == "literal_error":
        return str(unknown("value", error["input"], re.findall(r"'([^']*)'", error["ctx"]["expected"])))
    if kind == "string_pattern_mismatch":
        return f"{given} is no name; use letters, digits, - and _"
    wanted = {
        "string_type": "text",
        "int_type": "a number" if "int" in error["loc"] else "a whole number",
        "float_type": "a number",
        "int_parsing": "a whole number",
        "bool_parsing": "true or false",
        "bool_type": "true or false",
        "finite_number": "a finite number",
        "too_short": "longer",
        "list_type": "a list, such as [a, b]",
        "tuple_type": "a list, such as [a, b]",
        "dict_type": "lines of the form `key: value`",
        "dataclass_type": "lines of the form `key: value`",
    }.get(kind)
    if wanted:
        return f"must be {wanted}, not {given}"
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, not {given}"


def _shown(value):
    if value is None:
        return "empty"
    text = f"'{value}'".replace("\n", "\\n") if isinstance(value, str) else str(guess(value))
    return text if len(text) < 60 else f"{text[:56]} ..."


def _known(cls, path):
    """Keys of the class at a path of keys."""
    for part in path:
        cls = next(_classes(_hints(cls).get(part)), cls)
    return [field.name for field in shown_fields(cls)]


def _hints(cls):
    return typing.get_type_hints(cls, include_extras=True)


def _classes(kind):
    """Classes decorated with :func:`checked` in a type, and in the types of their fields."""
    parts = typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        yield kind
        parts = _hints(kind).values()
    for part in parts:
        yield from _classes(part)


def shown_fields(cls: type) -> list[dataclasses.Field]:
    """Fields that a file may set."""
    return [field for field in dataclasses.fields(cls) if not field.metadata.get("internal")]


# -- the reference of all keys --------------------------------------------------------------------------


def reference(cls: type) -> str:
    """Tables of the keys of a class and of the classes of its fields, markdown.

    Columns: the key, its type, its default, and the description, which is the docstring of the field.
    """
    others = dict.fromkeys(found for kind in _hints(cls).values() for found in _classes(kind))
    tables = [f"`{found.__name__}`: {_prose(found.__doc__)}\n\n{_table(found)}" for found in others]
    return "\n\n".join([_table(cls), *tables]) + "\n"


def keys(cls: type) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and docstring of every key of a class that a file may set, as texts."""
    schema = _adapter(cls).json_schema()
    for field in shown_fields(cls):
        part = schema["properties"][field.name]
        default = "required" if field.name in schema.get("required", []) else _default(part.get("default"))
        yield field.name, _type(part), default, part.get("description", "")


def _table(cls):
    rows = [
        f"| `{name}` | {kind} | {default} | {_prose(meaning)} |" for name, kind, default, meaning in keys(cls)
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _default(value):
    if value in (None, "", [], {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(part):
    if "enum" in part or "const" in part:
        return " or ".join(f"`{value}`" for value in part.get("enum", [part.get("const")]))
    if "anyOf" in part:
        kinds = dict.fromkeys(_type(option) for option in part["anyOf"] if option.get("type") != "null")
        kinds = [kind for kind in kinds if kind != "whole number" or "number" not in kinds]
        return " or ".join(kinds)
    if "$ref" in part:
        return f"`{part['$ref'].rpartition('/')[2]}`"
    kind = part.get("type")
    if kind == "array":
        return f"list of {_type(part['items'])}" if part.get("items") else "list"
    if kind == "object":
        named = part.get("patternProperties", {"": part.get("additionalProperties")})
        inner = next(iter(named.values()))
        return f"name: {_type(inner)}" if isinstance(inner, dict) else "name: any"
    words = {"integer": "whole number", "string": "text", "boolean": "true or false"}
    return words.get(kind, kind or "any")


def _prose(text):
    """A docstring as one line of markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda found: f"`{found[1].rpartition('.')[2]}`", text)
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")
