"""What is told apart: the categories among which the router chooses, and the capabilities on which experts judge.

The default is the paper's five categories with 27 capability points (arXiv 2403.01197); the descriptions in `taxonomy.yaml` are ours.
A user's taxonomy is a file of the same shape. The names `general` (the fallback inner model) and `overall` (a judge's verdict on the
whole response) are taken.
"""

import functools
import importlib.resources
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from dmoerm.errors import ConfigError
from dmoerm.records import OVERALL
from dmoerm.validation import Section, did_you_mean, validate
from dmoerm.yaml_strict import YamlDocument, parse_yaml, read_yaml

__all__ = ["GENERAL", "TASK_MEMBER", "Capability", "Category", "Taxonomy", "load_taxonomy", "paper_taxonomy", "paper_taxonomy_text"]

GENERAL = "general"
"""Reserved category name: the inner model that judges where the router is unsure."""

TASK_MEMBER = "task_model"
"""Reserved capability name: the task model itself where it is a member beside its experts, without an expert on top."""


def _snake_case(name: str) -> str:
    # A name becomes a folder of the saved model, a column and a JSON key.
    if re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name) is None:
        raise ValueError(f'is "{name}"; expected lower snake case, at most 64 characters, for example "depth_of_knowledge"')
    return name


def _unique(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f'names the {what} "{name}" twice; expected each name once')
        seen.add(name)


Name = Annotated[str, AfterValidator(_snake_case)]
Sentence = Annotated[str, Field(min_length=1)]


class Capability(Section):
    """One point on which a response is judged."""

    name: Name = Field(description="Lower snake case, unique within the category. Equal names in several categories mean the same thing.")
    chinese: str | None = Field(None, description="The name in Chinese, where there is one.")
    description: Sentence = Field(description="One sentence on what is judged; shown to a judge that labels.")

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name == OVERALL:
            raise ValueError(f'is "{OVERALL}", which is the verdict on the whole response; expected another name')
        if name == TASK_MEMBER:
            raise ValueError(f'is "{TASK_MEMBER}", which names the task model where it sits beside its experts; expected another name')
        return name


class Category(Section):
    """One kind of task and the capabilities that matter there."""

    name: Name = Field(description="Lower snake case, unique in the taxonomy.")
    chinese: str | None = Field(None, description="The name in Chinese, where there is one.")
    description: Sentence = Field(description="One sentence on which prompts belong here.")
    capabilities: tuple[Capability, ...] = Field(min_length=1, description="What responses are judged on in this category.")

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name == GENERAL:
            raise ValueError(f'is "{GENERAL}", which is the fallback for prompts that fit nowhere; expected another name')
        return name

    @field_validator("capabilities")
    @classmethod
    def _capabilities_are_unique(cls, capabilities: tuple[Capability, ...]) -> tuple[Capability, ...]:
        _unique((capability.name for capability in capabilities), "capability")
        return capabilities

    @property
    def capability_names(self) -> tuple[str, ...]:
        """The names of the capabilities, in the order of the file: the order of the experts."""
        return tuple(capability.name for capability in self.capabilities)


class Taxonomy(Section):
    """All categories, in the order of the file: the order of the router's classes."""

    categories: tuple[Category, ...] = Field(min_length=1, description="The kinds of task among which the router chooses.")

    @field_validator("categories")
    @classmethod
    def _categories_are_unique(cls, categories: tuple[Category, ...]) -> tuple[Category, ...]:
        _unique((category.name for category in categories), "category")
        return categories

    @property
    def category_names(self) -> tuple[str, ...]:
        """The names of the categories, without `general`."""
        return tuple(category.name for category in self.categories)

    @property
    def capability_names(self) -> tuple[str, ...]:
        """Every capability name once, in order of first mention: the experts of the `general` inner model."""
        return tuple(dict.fromkeys(name for category in self.categories for name in category.capability_names))

    def category(self, name: str) -> Category:
        """The category of that name.

        Raises:
            ConfigError: there is none; the message has the nearest name.
        """
        for category in self.categories:
            if category.name == name:
                return category
        raise ConfigError(f'unknown category "{name}"{did_you_mean(name, self.category_names)}')


def load_taxonomy(path: Path) -> Taxonomy:
    """Read a taxonomy file.

    Raises:
        ConfigError: with file and line, when the file is missing, has unknown or missing keys, or a name is reserved, doubled or malformed.
    """
    return _taxonomy(read_yaml(path))


@functools.cache
def paper_taxonomy() -> Taxonomy:
    """The five categories and 27 capability points of arXiv 2403.01197."""
    return _taxonomy(parse_yaml(paper_taxonomy_text(), "dmoerm/taxonomy.yaml"))


def paper_taxonomy_text() -> str:
    """The packaged `taxonomy.yaml`, comments included: the start for a taxonomy of one's own."""
    return importlib.resources.files("dmoerm").joinpath("taxonomy.yaml").read_text(encoding="utf-8")


def _taxonomy(document: YamlDocument) -> Taxonomy:
    return validate(Taxonomy, document)
