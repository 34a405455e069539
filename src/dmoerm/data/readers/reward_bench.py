"""RewardBench, the core set: TRL rows that name their authors and their subset.

    {"prompt", "chosen", "rejected", "chosen_model", "rejected_model", "subset", "id"?}

The generic forms of its command line (two conversations, or texts with a prompt) are TRL rows.
"""

import dataclasses
from pathlib import Path

from dmoerm.data.jsonl import Row
from dmoerm.data.readers import trl
from dmoerm.data.readers.fields import check_fields, name_field
from dmoerm.records import Comparison

__all__ = ["REQUIRED", "read_row"]

REQUIRED = ("prompt", "chosen", "rejected", "chosen_model", "rejected_model", "subset")


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison, the chosen response first.

    Raises:
        DataError: a field is missing, misspelt or of the wrong type.
    """
    check_fields(row.data, REQUIRED, ("id", "category"))
    return dataclasses.replace(trl.read_row(row, path), subset=name_field(row.data, "subset"))
