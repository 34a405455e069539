"""The bodies of our own API, as pydantic models: what FastAPI checks, and what /openapi.json shows.

Strict: "5" is no number, an unknown key is refused, so a misspelt option cannot be overlooked.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dmoerm.records import Message, Reward, Role, ScoreFailure

__all__ = ["Body", "CompareReply", "CompareRequest", "Conversation", "RewardReply", "RewardRequest", "Text", "Turn", "conversation"]

Text = Annotated[str, Field(max_length=2**22)]
AggregationName = Literal["mlp", "mean", "wco", "uwo", "task"]


class Body(BaseModel):
    """Base of every body that is read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


class Turn(Body):
    """One message of a conversation."""

    role: Role
    content: Text


Conversation = Annotated[list[Turn], Field(min_length=1, max_length=256)]


class RewardRequest(Body):
    """One prompt and the responses to judge; they are scored together, so that they compete on equal terms."""

    prompt: Text | Conversation = Field(description="The user's text, or the conversation up to the response.")
    responses: list[Text] = Field(min_length=1, description="The answers to judge.")
    category: str | None = Field(None, max_length=64, description="Judge by this category and skip the router; see /v1/info.")
    aggregation: AggregationName | None = Field(None, description="How experts become one reward; null is the model's own way.")


class CompareRequest(RewardRequest):
    """As for /v1/reward, with at least two responses."""

    responses: list[Text] = Field(min_length=2, description="The answers to compare.")


class ScoredResponse(BaseModel):
    """One response. Either all of the numbers are there, or `error` says why it could not be scored."""

    reward: float | None = Field(None, description="Higher is better; compares responses to one prompt.")
    category: str | None = Field(None, description="The inner model that judged; general where the router was unsure.")
    category_probability: float | None = Field(None, description="The router's probability of its first choice; 1 where it was named.")
    capabilities: dict[str, float] | None = Field(None, description="Each expert's standardised score; 0 is the category's average.")
    capability_spread: float | None = Field(None, description="Standard deviation over the capabilities.")
    uncertainty: float | None = Field(None, description="Standard deviation of the reward over bootstrapped aggregators.")
    truncated: bool | None = Field(None, description="Prompt or response was cut to the model's budget.")
    error: str | None = Field(None, description="Why there is no reward.")


class RewardReply(BaseModel):
    """Rewards in the order of the responses."""

    model: str
    aggregation: str
    results: list[ScoredResponse]


class CompareReply(BaseModel):
    """Who wins; `results` in the order of the responses."""

    model: str
    aggregation: str
    winner: int = Field(description="Index of the best response.")
    second: int | None = Field(description="Index of the next one.")
    margin: float = Field(description="Reward of the winner less that of the next.")
    margin_uncertainty: float = Field(description="Root of the sum of their squared uncertainties.")
    probability: float = Field(description="Of the winner being preferred to the next, by the model's own odds.")
    clear: bool = Field(description="The margin is larger than its uncertainty.")
    results: list[ScoredResponse]


def conversation(prompt: "str | list[Turn]") -> tuple[Message, ...]:
    """A prompt of a body as messages."""
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    return tuple(Message(turn.role, turn.content) for turn in prompt)


def scored(result: Reward | ScoreFailure) -> Mapping[str, Any]:
    """A result as the keys of `ScoredResponse`."""
    if isinstance(result, ScoreFailure):
        return {"error": result.message}
    return {
        "reward": result.reward,
        "category": result.category,
        "category_probability": result.category_probability,
        "capabilities": dict(result.capabilities),
        "capability_spread": result.capability_spread,
        "uncertainty": result.uncertainty,
        "truncated": result.truncated,
    }
