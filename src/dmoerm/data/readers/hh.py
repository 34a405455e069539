r"""Anthropic's hh-rlhf: {"chosen", "rejected"} as transcripts with "\n\nHuman: " and "\n\nAssistant: " before the turns.

`transcripts.py` takes them apart. Refused: transcripts that part before the last turn, and empty replies; the published files hold a few.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmoerm.data.jsonl import Row
from dmoerm.data.readers.fields import check_fields, text_field
from dmoerm.data.readers.outcome import comparison_of
from dmoerm.data.readers.transcripts import split_transcripts
from dmoerm.records import Comparison

__all__ = ["REQUIRED", "misfit", "read_row"]

REQUIRED = ("chosen", "rejected")
_OPTIONAL = ("id", "category")
_BEGIN = "\n\nHuman:"


def misfit(data: Mapping[str, Any]) -> str:
    """Why a row with the required keys is of another format; "" where it is not."""
    if data.get("prompt") is not None:
        return '"prompt" is there, which transcripts do not have'
    texts = [data[name] for name in REQUIRED]
    begins = all(isinstance(text, str) and text.startswith(_BEGIN) for text in texts)
    return "" if begins else '"chosen" and "rejected" do not both begin with "\\n\\nHuman:"'


def read_row(row: Row, path: Path) -> Comparison:
    """One comparison of two transcripts, the chosen one first.

    Raises:
        DataError: a field is missing or of the wrong type; the transcripts cannot be taken apart.
    """
    check_fields(row.data, REQUIRED, _OPTIONAL)
    prompt, chosen, rejected = split_transcripts(text_field(row.data, "chosen"), text_field(row.data, "rejected"))
    return comparison_of(row, path, prompt, (chosen, rejected), (1, 2))
