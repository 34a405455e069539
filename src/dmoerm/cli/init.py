"""`dmoerm init FOLDER`: a commented recipe.yaml and taxonomy.yaml to start from.

The recipe's comments and defaults are read from the models in `dmoerm.recipe`; nothing is said twice.
"""

import argparse
import itertools
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from dmoerm.cli.main import DONE

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = ["add_arguments", "recipe_template", "run"]

_HEAD = """\
# A recipe for dmoerm: what to learn from and how. Next: dmoerm check recipe.yaml
#
# A key behind "#" without a space shows its default: take the "#" away and change the value.
# Relative paths start at the folder of this file.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmoerm init`."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where to write recipe.yaml and taxonomy.yaml; made when missing")
    parser.add_argument("--overwrite", action="store_true", help="replace the two files where they exist")


def run(args: argparse.Namespace) -> int:
    """Write the two files."""
    from dmoerm.errors import ConfigError
    from dmoerm.taxonomy import paper_taxonomy_text

    files = {args.folder / "recipe.yaml": recipe_template(), args.folder / "taxonomy.yaml": paper_taxonomy_text()}
    existing = [str(path) for path in files if path.exists()]
    if existing and not args.overwrite:
        raise ConfigError(f"{' and '.join(existing)} exist already. Name another folder, or pass --overwrite to replace them")
    args.folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    print(f"Name your files under data in the recipe, then: dmoerm check {args.folder / 'recipe.yaml'}")
    return DONE


def recipe_template() -> str:
    """A recipe with a comment above every key; keys with a default are commented out."""
    from dmoerm.recipe import Recipe
    from dmoerm.validation import section_of

    lines = [_HEAD]
    for key, field in Recipe.model_fields.items():
        section = section_of(field)
        if section is None:
            lines += _key(key, field, "")
        else:
            lines += ["", *_comment(section.__doc__ or "", ""), f"{key}:"]
            lines += itertools.chain.from_iterable(_key(inner, inner_field, "  ") for inner, inner_field in section.model_fields.items())
    return "\n".join(lines) + "\n"


def _key(key: str, field: "FieldInfo", indent: str) -> list[str]:
    from dmoerm.validation import expected_values
    from dmoerm.yaml_strict import inline_yaml

    comment = _comment(f"{field.description} ({expected_values(field)})", indent)
    if field.examples:  # a key that everybody has to fill in, or that init itself fills in
        return [*comment, f"{indent}{key}: {inline_yaml(field.examples[0])}"]
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return [*comment, f"{indent}#{key}: {inline_yaml(str(default) if isinstance(default, Path) else default)}"]


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, width=110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
