"""Files to records, one format a file. A new format is one module here and one row in `comparisons.FORMATS`."""

from dmoerm.data.readers.comparisons import FORMATS, ReadResult, read_comparisons
from dmoerm.data.readers.native import to_native
from dmoerm.data.readers.prompts import map_prompts, read_prompts

__all__ = ["FORMATS", "ReadResult", "map_prompts", "read_comparisons", "read_prompts", "to_native"]
