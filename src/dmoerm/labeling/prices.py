"""What a token costs: the recipe's prices, or a small table of list prices. A price that nobody gave is unknown, never 0."""

import re
from dataclasses import dataclass
from importlib.resources import files

from dmoerm.labeling.replies import Usage
from dmoerm.recipe import LabelingOptions
from dmoerm.yaml_strict import parse_yaml

__all__ = ["Prices", "prices_of"]


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars a million tokens.

    Attributes:
        input: of tokens sent.
        output: of tokens received.
        source: where the figures come from, for people.
    """

    input: float
    output: float
    source: str

    def cost(self, usage: Usage) -> float:
        """US dollars."""
        return (usage.input_tokens * self.input + usage.output_tokens * self.output) / 1e6


def prices_of(options: LabelingOptions) -> Prices | None:
    """The recipe's prices, else those of the packaged table; None where neither knows the model."""
    if options.input_price is not None and options.output_price is not None:
        return Prices(options.input_price, options.output_price, "recipe")
    if options.model is None:
        return None
    table = parse_yaml(files("dmoerm.labeling").joinpath("prices.yaml").read_text(encoding="utf-8"), "prices.yaml").value
    # Gateways put the maker before the name: "openai/gpt-4o-mini-2024-07-18".
    name = options.model.rpartition("/")[2].lower()
    for known, (input_price, output_price) in table.items():
        if re.fullmatch(re.escape(known) + r"([-@:]?\d{6,8}|-\d{4}-\d{2}-\d{2}|-latest)?", name):
            own_input, own_output = options.input_price, options.output_price
            return Prices(
                float(input_price if own_input is None else own_input),
                float(output_price if own_output is None else own_output),
                f"packaged table, {known}, end of 2025",
            )
    return None
