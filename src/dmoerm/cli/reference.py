"""Writes docs/cli.md from the parsers and docs/recipe.md from the models: `python -m dmoerm.cli.reference docs` (or `make docs`).

The pages are committed; a test fails when they are not what this file would write.
"""

import argparse
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dmoerm.cli.main import DONE, VERBS, build_parser
from dmoerm.recipe import PAPER_SCHEDULE, Recipe
from dmoerm.taxonomy import Capability, Category, Taxonomy
from dmoerm.validation import expected_values, section_of
from dmoerm.yaml_strict import inline_yaml

__all__ = ["COMMAND", "built_verbs", "cli_page", "main", "pages", "recipe_page"]

COMMAND = "python -m dmoerm.cli.reference docs"
_NOTE = f"<!-- Written by `{COMMAND}`; changes made here are lost. -->"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages into a folder."""
    parser = argparse.ArgumentParser(prog="python -m dmoerm.cli.reference", description="Write the generated reference pages.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where the pages go, usually docs")
    folder: Path = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
        print(f"wrote {folder / name}")
    return DONE


def pages() -> dict[str, str]:
    """File name to text of every generated page."""
    return {"cli.md": cli_page(), "recipe.md": recipe_page()}


def built_verbs() -> list[str]:
    """The verbs whose module is there."""
    return [verb for verb, (module, _) in VERBS.items() if importlib.util.find_spec(module) is not None]


def cli_page() -> str:
    """The verbs with their arguments. Built from the parsers' actions: the layout of `--help` differs between Python versions."""
    parser = build_parser(built_verbs())
    lines = [
        _NOTE,
        "# The command line",
        "",
        "Results go to stdout, progress and messages to stderr.",
        parser.epilog or "",
        "",
        "`dmoerm --version` prints the version. The flags `--debug` and `-q` may stand before or after every verb.",
    ]
    commands = _commands(parser)
    for verb in built_verbs():
        command = commands[verb]
        own = [action for action in command._actions if action.dest not in {"help", "debug", "quiet"}]
        lines += ["", f"## dmoerm {verb}", "", command.description or "", ""]
        lines += ["    " + " ".join(["dmoerm", verb, *map(_usage, sorted(own, key=lambda action: bool(action.option_strings)))])]
        if own:
            lines += ["", *_table(("argument", "meaning"), ((_argument(action), _meaning(action)) for action in own))]
    common = [action for action in parser._actions if action.dest in {"debug", "quiet"}]
    lines += ["", "## Every verb", "", *_table(("argument", "meaning"), ((_argument(action), _meaning(action)) for action in common))]
    return "\n".join(lines) + "\n"


def recipe_page() -> str:
    """All keys of the recipe and of the taxonomy file, what `schedule: paper` sets, and the rules of reading."""
    lines = [
        _NOTE,
        "# The recipe",
        "",
        "One YAML file a run; `dmoerm init FOLDER` writes a commented one. Only `data.comparisons` has no default.",
        "`--set experts.learning_rate=5e-5` replaces a value for one run.",
        "YAML is read strictly: `1e-5` is a number, `no` is text, a key given twice is refused, and so is a key that is not listed here.",
        "",
        *_fields(field for field in Recipe.model_fields.items() if section_of(field[1]) is None),
    ]
    for key, field in Recipe.model_fields.items():
        section = section_of(field)
        if section is not None:
            lines += ["", f"## {key}", "", section.__doc__ or "", "", *_fields(section.model_fields.items())]
    paper = ((f"`{section}.{key}`", f"`{inline_yaml(value)}`") for section, keys in PAPER_SCHEDULE.items() for key, value in keys.items())
    lines += [
        "",
        "## What `schedule: paper` sets",
        "",
        "Another value for one of these keys is refused.",
        "",
        *_table(("key", "value"), paper),
    ]
    lines += ["", "## The taxonomy file", "", "`dmoerm init` writes the paper's."]
    levels: tuple[tuple[str, type[BaseModel]], ...] = (("Top", Taxonomy), ("A category", Category), ("A capability", Capability))
    for title, model in levels:
        lines += ["", f"### {title}", "", model.__doc__ or "", "", *_fields(model.model_fields.items())]
    return "\n".join(lines) + "\n"


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the parser has verbs")


def _usage(action: argparse.Action) -> str:
    word = " ".join([*action.option_strings[-1:], _values(action)]).strip()
    return word if action.required and action.nargs not in ("*", "?") else f"[{word}]"


def _argument(action: argparse.Action) -> str:
    names = ", ".join(f"`{option}`" for option in action.option_strings)
    values = _values(action)
    return f"{names} `{values}`".strip() if values else names


def _values(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    name = "|".join(map(str, action.choices)) if action.choices is not None else metavar
    return f"{name} …" if action.nargs in ("*", "+") else name


def _meaning(action: argparse.Action) -> str:
    default = "" if action.default in (None, False, argparse.SUPPRESS, []) or not action.option_strings else f" (default {action.default})"
    return ((action.help or "") % {**vars(action), "prog": "dmoerm"}) + ("" if "default" in (action.help or "") else default)


def _fields(fields: Iterable[tuple[str, FieldInfo]]) -> list[str]:
    rows = ((f"`{key}`", _default(field), field.description or "", expected_values(field)) for key, field in fields)
    return _table(("key", "default", "meaning", "takes"), rows)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{inline_yaml(str(value) if isinstance(value, Path) else value)}`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return list(_table_lines(head, rows))


def _table_lines(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


if __name__ == "__main__":
    sys.exit(main())
