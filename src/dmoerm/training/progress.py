"""What a run tells: one line that changes while a phase runs, one line that stays when it ends, and `metrics.jsonl` always."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

__all__ = ["RunLog", "clock"]


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class RunLog:
    """Progress to `stream` (standard error), records to `folder/metrics.jsonl`.

    Args:
        folder: of the run; None keeps no file.
        quiet: nothing to the stream.
        append: keep the records of the run that is resumed; a last line that was cut off is ended.
        stream: where people read; the changing line only appears on a terminal.
    """

    def __init__(self, folder: Path | None, *, quiet: bool = False, append: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._live = not quiet and self._stream.isatty()
        self._file: TextIO | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "metrics.jsonl"
            cut = append and path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
            self._file = path.open("a" if append else "w", encoding="utf-8")
            if cut:
                self._file.write("\n")
        self._begin = time.monotonic()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")
        if self._file is not None:
            self._file.close()

    def record(self, **values: Any) -> None:
        """One JSON line with these values and the seconds since the run began."""
        if self._file is not None:
            self._file.write(
                json.dumps({"time_s": round(time.monotonic() - self._begin, 2), **values}, allow_nan=True, sort_keys=True) + "\n"
            )
            self._file.flush()

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self._stream.write(("\r\x1b[K" if self._live else "") + text + "\n")
            self._stream.flush()

    def stepper(self, name: str) -> Callable[[int, int], None]:
        """A callback (step, steps in all) that shows how far `name` is and how long it will still take."""
        begin = time.monotonic()

        def report(step: int, total: int) -> None:
            if self._live and step:
                left = (time.monotonic() - begin) / step * max(0, total - step)
                self._stream.write(f"\r\x1b[K{name}: step {step} of {total}, {clock(left)} left")
                self._stream.flush()

        return report
