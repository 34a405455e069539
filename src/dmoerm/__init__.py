"""Reward models that route by task and judge by capability.

The public names, loaded on first use: `import dmoerm` alone loads no torch.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmoerm.errors import DmoermError as DmoermError
    from dmoerm.modeling.reward_model import RewardModel as RewardModel
    from dmoerm.recipe import Recipe as Recipe
    from dmoerm.recipe import load_recipe as load_recipe
    from dmoerm.records import CapabilityLabel as CapabilityLabel
    from dmoerm.records import Comparison as Comparison
    from dmoerm.records import Message as Message
    from dmoerm.records import Reward as Reward
    from dmoerm.taxonomy import Taxonomy as Taxonomy

    __version__: str

__all__ = [
    "CapabilityLabel",
    "Comparison",
    "DmoermError",
    "Message",
    "Recipe",
    "Reward",
    "RewardModel",
    "Taxonomy",
    "__version__",
    "load_recipe",
]

_HOMES = {
    "CapabilityLabel": "dmoerm.records",
    "Comparison": "dmoerm.records",
    "DmoermError": "dmoerm.errors",
    "Message": "dmoerm.records",
    "Recipe": "dmoerm.recipe",
    "Reward": "dmoerm.records",
    "RewardModel": "dmoerm.modeling.reward_model",
    "Taxonomy": "dmoerm.taxonomy",
    "load_recipe": "dmoerm.recipe",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("dmoerm")
    if name not in _HOMES:
        raise AttributeError(f"module 'dmoerm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
