"""What a student learns from: the responses to a prompt with what its teacher says of them."""

from dataclasses import dataclass, replace

__all__ = ["Lesson"]

MOST_RESPONSES = 8
"""Responses of a prompt that are compared in one batch; a prompt with more becomes several lessons."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """The responses to one prompt.

    Attributes:
        rows: ids of each row.
        rewards: the teacher's, of each row.
        by_route: its reward of each row under each category that a routed student tells apart; empty for other students.
        route: which of them the teacher chose.
        logits: of the teacher's router; empty where it has one category.
    """

    rows: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...]
    by_route: tuple[tuple[float, ...], ...] = ()
    route: int = 0
    logits: tuple[float, ...] = ()

    def parts(self) -> "list[Lesson]":
        """Itself, or lessons of at most `MOST_RESPONSES`, about equally many each."""
        count = -(-len(self.rows) // MOST_RESPONSES)
        taken = [slice(part, None, count) for part in range(count)]
        return [replace(self, rows=self.rows[t], rewards=self.rewards[t], by_route=self.by_route[t]) for t in taken]
