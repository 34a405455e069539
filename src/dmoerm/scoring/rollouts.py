"""What RL trainers hand to a reward function, as requests that can be scored: completions gathered by their prompt.

A trainer gives one prompt and one completion a row, plain or conversational, and the completions of one prompt stand in several rows. They
are competitors, so they are scored in one request: one route, one cut of a long prompt. A row that cannot be read is a failure of that row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmoerm.errors import DataError
from dmoerm.modeling.reward_model import Prompt, ScoreRequest, as_messages
from dmoerm.records import Message

__all__ = ["Rollouts", "completion_text", "group_rollouts"]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The rows of a batch, by prompt.

    Attributes:
        requests: one a prompt, in the order in which prompts first appear.
        places: for each request, the rows that its responses came from.
        failures: row to the reason why it is in no request.
        rows: of the batch.
    """

    requests: tuple[ScoreRequest, ...]
    places: tuple[tuple[int, ...], ...]
    failures: Mapping[int, str]
    rows: int


def group_rollouts(prompts: Sequence[Prompt], completions: Sequence[str | Sequence[Mapping[str, Any]]]) -> Rollouts:
    """Gather completions by their prompt.

    Args:
        prompts: a text or a conversation a row.
        completions: a text or a list with one assistant message a row.

    Raises:
        DataError: the two differ in length.
    """
    if len(prompts) != len(completions):
        raise DataError(f"{len(prompts)} prompts and {len(completions)} completions; expected a prompt for each completion.")
    members: dict[tuple[Message, ...], list[tuple[int, str]]] = {}
    failures: dict[int, str] = {}
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        try:
            members.setdefault(as_messages(prompt), []).append((row, completion_text(completion)))
        except DataError as error:
            failures[row] = str(error)
    members = {prompt: found for prompt, found in members.items() if found}  # a row that failed may have been the only one
    requests = tuple(ScoreRequest(prompt, tuple(text for _, text in found)) for prompt, found in members.items())
    return Rollouts(requests, tuple(tuple(row for row, _ in found) for found in members.values()), failures, len(prompts))


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The response of a row.

    Raises:
        DataError: several messages, as of a conversation with tools, another role than assistant, or no text.
    """
    if isinstance(completion, str):
        return completion
    if len(completion) != 1:
        raise DataError(f"the completion has {len(completion)} messages; expected one: conversations with tools are not judged")
    role, content = completion[0].get("role"), completion[0].get("content")
    if role != "assistant" or not isinstance(content, str):
        raise DataError(f'the completion is a message of role {role!r} with {type(content).__name__}; expected "assistant" and a string')
    return content
