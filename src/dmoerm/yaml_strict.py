"""YAML read strictly: what a recipe says is what it means, and every error names file and line.

Plain scalars follow the core schema of YAML 1.2 (section 10.3.2): `1e-5` is a number, `no`, `on` and `2024-01-01` are text, `010` is ten.
Refused: duplicate keys, keys that are not text, anchors and aliases, tags of other types, several documents in one file, deep nesting.
PyYAML supplies scanner and parser; its own resolver follows YAML 1.1, where `1e-5` is text and `no` is a boolean.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dmoerm.errors import ConfigError

__all__ = ["KeyPath", "YamlDocument", "dump_yaml", "inline_yaml", "parse_yaml", "read_yaml"]

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the root to a value, for example ("data", "comparisons", 0)."""

_TAG = "tag:yaml.org,2002:"
_DEEPEST = 40
# Order matters: the float pattern also matches whole numbers, so int is tried before it.
_PATTERNS: tuple[tuple[str, str, str], ...] = (
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN"),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
)


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """The value of a YAML text and where each part of it was written.

    Attributes:
        name: the file's name as the user gave it, or what stands for it in messages.
        value: None, bool, int, float, str, list or dict with text keys.
        places: for the path of each value, "file:line".
    """

    name: str
    value: Any
    places: Mapping[KeyPath, str]

    def where(self, path: KeyPath) -> str:
        """Tell "file:line" of the value at `path`, or of the nearest value around it that was written."""
        written = self._written(path)
        return self.places[written] if written else self.name

    def order(self, path: KeyPath) -> int:
        """Rank of that place among all places, for messages in the order of the file."""
        written = self._written(path)
        return list(self.places).index(written) if written else -1

    def _written(self, path: KeyPath) -> KeyPath:
        return next((path[:length] for length in range(len(path), 0, -1) if path[:length] in self.places), ())


class _StrictLoader(yaml.SafeLoader):
    # An own table, so that the YAML 1.1 resolvers of the parent are not inherited.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own class attribute


class _StrictDumper(yaml.SafeDumper):
    # The same table decides which texts need quotes: a text "1e-5" must come back as text.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = _StrictLoader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _StrictDumper, text: str) -> yaml.ScalarNode:
    # Line breaks beyond \n that YAML 1.1 knows: between single quotes they are folded to a space, between double ones escaped.
    style = '"' if _OTHER_BREAKS.search(text) else None
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_OTHER_BREAKS = re.compile("[\x85\u2028\u2029]")
_StrictDumper.add_representer(str, _represent_text)

for _name, _pattern, _first in _PATTERNS:
    _StrictLoader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), [*_first, *([""] if _name == "null" else [])])


def read_yaml(path: Path) -> YamlDocument:
    """Read one YAML file.

    Raises:
        ConfigError: the file is missing, not UTF-8, or not YAML as this module understands it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Check the path, or write a commented start with: dmoerm init FOLDER") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> YamlDocument:
    """Parse one YAML document.

    Args:
        text: the document; an empty one has the value None.
        name: stands for the file in messages.

    Raises:
        ConfigError: with "name:line", for anything listed at the top of this file.
    """
    try:
        _refuse_aliases_and_depth(text, name)
        root = yaml.compose(text, Loader=_StrictLoader)
        places: dict[KeyPath, str] = {}
        value = None if root is None else _value(root, (), name, places)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{name}:{_line_at(text, error.position)}: character {error.character!r} is not allowed in YAML") from None
    return YamlDocument(name, value, places)


def dump_yaml(value: Any) -> str:
    """Block-style YAML that `parse_yaml` reads back to the same value; keys keep their order."""
    return yaml.dump(value, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)


def inline_yaml(value: Any) -> str:
    """One line of YAML for a scalar or a list, as it would stand behind a key."""
    text = yaml.dump(value, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _refuse_aliases_and_depth(text: str, name: str) -> None:
    """Aliases put a value far from where it is read, and let a short file grow to gigabytes; depth costs time and stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_StrictLoader):
        assert event.start_mark is not None
        place = f"{name}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ConfigError(f"{place}: anchors and aliases (& and *) are not read here. Write the value out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ConfigError(f"{place}: nested more than {_DEEPEST} levels deep")


def _value(node: yaml.Node, path: KeyPath, name: str, places: dict[KeyPath, str]) -> Any:
    line = node.start_mark.line + 1
    places.setdefault(path, f"{name}:{line}")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, name, places)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, index), name, places) for index, item in enumerate(node.value)]
    return _scalar(node, name)


def _mapping(node: yaml.MappingNode, path: KeyPath, name: str, places: dict[KeyPath, str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = f"{name}:{key_node.start_mark.line + 1}"
        key = _scalar(key_node, name) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise ConfigError(f"{place}: a key must be text, got {key_node.value!r}. Put it in quotes if it is meant as text.")
        if key in result:
            raise ConfigError(f'{place}: "{key}" is given twice, first at {places[*path, key]}. Keep one.')
        places[*path, key] = place
        result[key] = _value(value_node, (*path, key), name, places)
    return result


def _scalar(node: yaml.Node, name: str) -> Any:
    place = f"{name}:{node.start_mark.line + 1}"
    convert = _CONVERTERS.get(node.tag.removeprefix(_TAG))
    if convert is None:
        raise ConfigError(f"{place}: the tag {node.tag!r} is not read here; expected a plain number, text, true, false or null")
    try:
        return convert(node.value)
    except ValueError:
        raise ConfigError(f"{place}: {node.value[:40]!r} cannot be read as {node.tag.removeprefix(_TAG)}") from None


def _integer(text: str) -> int:
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text, 10)


def _float(text: str) -> float:
    # Python writes inf and nan without the dot of YAML.
    return float(re.sub(r"\.(?=[in])", "", text.lower()))


def _text(text: str) -> str:
    text.encode("utf-8")  # a lone surrogate ("\ud800") is no text; UnicodeEncodeError is a ValueError
    return text


_CONVERTERS: Mapping[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _integer,
    "float": _float,
    "str": _text,
}
