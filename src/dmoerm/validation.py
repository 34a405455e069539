"""A YAML document becomes a pydantic model, or one error that says where, what came, what was expected and what to do.

All problems of a document are reported together, one line each. What was expected is worded from the field's own annotation, so the
error messages, the commented template and the reference page cannot disagree.
Validation is strict (text "5" is not the number 5) with the conversions that a file needs: text to path, list to tuple, whole number to
number. Pydantic offers exactly that for JSON, which is why the value takes a detour through it.
"""

import difflib
import json
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dmoerm.errors import ConfigError
from dmoerm.yaml_strict import KeyPath, YamlDocument, inline_yaml

__all__ = ["Section", "changed_fields", "did_you_mean", "expected_values", "section_of", "validate"]

_Model = TypeVar("_Model", bound=BaseModel)


class Section(BaseModel):
    """Base of every model that is read from a file: frozen, unknown keys and not-a-number refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def changed_fields(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By name, the values of the fields that differ; None where a side lacks one.

    >>> changed_fields({"seed": 0, "rank": 8}, {"seed": 1, "rank": 8})
    {'seed': (0, 1)}
    """
    return {name: (then.get(name), now.get(name)) for name in sorted({*then, *now}) if then.get(name) != now.get(name)}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean "learning_rate"?` for the nearest of the known names, or the list of them when none is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f', did you mean "{near[0]}"?' if near else f"; known: {', '.join(names)}"


def validate(model: type[_Model], document: YamlDocument) -> _Model:
    """Build `model` from a document; a section with nothing below it counts as empty.

    Raises:
        ConfigError: one line for each problem, in the order of the file.
    """
    values = {} if document.value is None else document.value
    if not isinstance(values, dict):
        raise ConfigError(f'{document.where(())}: expected lines of the form "key: value", got {_show(values)}')
    try:
        return model.model_validate_json(json.dumps(_fill_empty_sections(model, values)), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_messages(model, document, error))) from None


def expected_values(field: FieldInfo) -> str:
    """What a field takes, in words: "a whole number of at least 1, "all" or "third"."""
    return _describe(field.annotation, list(field.metadata))


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that holds a group of keys, else None."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _fill_empty_sections(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    sections = {key for key, field in model.model_fields.items() if section_of(field) is not None}
    return {key: {} if value is None and key in sections else value for key, value in values.items()}


def _messages(model: type[BaseModel], document: YamlDocument, error: ValidationError) -> Iterator[str]:
    located: dict[KeyPath, tuple[ErrorDetails, type[BaseModel], FieldInfo | None]] = {}
    for problem in error.errors(include_url=False):
        path, owner, field = _locate(model, problem["loc"])
        located.setdefault(path, (problem, owner, field))  # each member of a union complains by itself: once is enough
    for path, (problem, owner, field) in sorted(located.items(), key=lambda item: document.order(item[0])):
        where, kind = document.where(path), problem["type"]
        if kind == "extra_forbidden":
            yield f"{where}: {_unknown_key(model, owner, path)}"
        elif kind == "value_error":
            yield f"{where}: {_dotted(path)}{problem['ctx']['error']}"
        elif field is None:
            yield f"{where}: {_dotted(path)}{problem['msg']}"
        elif kind == "missing":
            yield f"{where}: {_dotted(path)}is missing; expected {expected_values(field)} ({field.description})"
        else:
            came = problem["input"]
            entry = isinstance(path[-1], int)
            expected = f"an entry of {expected_values(field)}" if entry else f"{expected_values(field)}{_advice(field, came)}"
            yield f"{where}: {_dotted(path)}is {_show(came)}; expected {expected}"


def _locate(model: type[BaseModel], location: KeyPath) -> tuple[KeyPath, type[BaseModel], FieldInfo | None]:
    """The part of pydantic's location that names keys, the model that owns the last key, and its field (None for an unknown key)."""
    owner, field, path = model, None, ()  # type: type[BaseModel], FieldInfo | None, KeyPath
    annotation: Any = model
    for part in location:
        if isinstance(part, str) and isinstance(annotation, type) and issubclass(annotation, BaseModel):
            owner, field = annotation, annotation.model_fields.get(part)
            annotation = None if field is None else field.annotation
        elif isinstance(part, int) and get_origin(annotation) is tuple:
            annotation = get_args(annotation)[0]
        elif isinstance(part, str) and get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:  # the name of a union's member, not a key
            break
        path = (*path, part)
    return path, owner, field


def _dotted(path: KeyPath) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return f"{text} " if text else ""


def _unknown_key(root: type[BaseModel], owner: type[BaseModel], path: KeyPath) -> str:
    key = str(path[-1])
    section = _dotted(path[:-1]).strip()
    message = f'unknown key "{key}"' + (f" in {section}" if section else "")
    homes = [name for name, field in root.model_fields.items() if (home := section_of(field)) is not None and key in home.model_fields]
    if homes:
        return f"{message}; it belongs under {' or '.join(homes)}"
    return message + did_you_mean(key, owner.model_fields)


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "a group of keys"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else inline_yaml(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _advice(field: FieldInfo, came: Any) -> str:
    words = expected_values(field)
    if isinstance(came, str) and "list of" in words:
        return f". Put it in brackets: [{came}]"
    if isinstance(came, str) and "number" in words and _is_number(came):
        return ". Take away the quotes"
    if isinstance(came, int | float) and ("text" in words or "path" in words):
        return ". Put it in quotes"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_WORDS: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
    type(None): ("null", "null"),
    Any: ("of any kind", "of any kind"),
}
_BOUNDS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}


def _describe(annotation: Any, metadata: list[Any], *, plural: bool = False) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe(arguments[0], [*metadata, *arguments[1:]], plural=plural)
    if origin is Literal:
        return _alternatives([json.dumps(value) for value in arguments])
    if origin in (Union, types.UnionType):
        return _alternatives([_describe(argument, metadata) for argument in arguments])
    if origin is tuple:
        least = " with at least one entry" if any(getattr(rule, "min_length", None) for rule in _rules(metadata)) else ""
        return f"a list of {_describe(arguments[0], [], plural=True)}{least}"
    if origin is dict:
        return f"lines of the form NAME: VALUE, each value {_describe(arguments[1], [])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        keys = ", ".join(annotation.model_fields)
        return f"groups with the keys {keys}" if plural else f"a group with the keys {keys}"
    return " ".join([_WORDS[annotation][plural], " and ".join(_bounds(metadata))]).strip()


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for rule in _rules(metadata):
        yield from (f"{word} {getattr(rule, name)}" for name, word in _BOUNDS.items() if getattr(rule, name, None) is not None)


def _rules(metadata: list[Any]) -> list[Any]:
    """The constraints, those inside a Field included."""
    return [rule for item in metadata for rule in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _alternatives(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
