"""What every route works with: the queue, the splitter of the loaded model, and rewards as the plain numbers that other tools expect."""

import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmoerm.errors import ConfigError
from dmoerm.records import Message, Reward, ScoreFailure
from dmoerm.serving.metrics import Metrics
from dmoerm.serving.problems import Problem
from dmoerm.serving.queue import ScoringQueue, estimated_tokens
from dmoerm.serving.settings import ServerSettings
from dmoerm.serving.splitting import Split, Splitter
from dmoerm.taxonomy import GENERAL

if TYPE_CHECKING:
    from dmoerm.modeling.inner import Aggregation

__all__ = ["ScoredText", "Service", "as_list", "envelope", "sigmoid", "usage"]


@dataclass(frozen=True, slots=True)
class ScoredText:
    """What a dialect learns of one text.

    Attributes:
        reward: raw, or the operator's `failed_reward`.
        result: all that is known; None where it could not be scored.
        split: False where prompt and response could not be told apart.
    """

    reward: float
    result: Reward | None
    split: bool


class Service:
    """Scoring for routes.

    Args:
        queue: the line before the model.
        settings: of the server.
        metrics: where it counts.
    """

    def __init__(self, queue: ScoringQueue, settings: ServerSettings, metrics: Metrics) -> None:
        self.queue = queue
        self.settings = settings
        self.metrics = metrics
        self._splitter: Splitter | None = None

    @property
    def splitter(self) -> Splitter:
        """Of the loaded model's tokenizer."""
        if self._splitter is None:
            self._splitter = Splitter(self.queue.model.renderer.tokenizer, self.settings.delimiter)
        return self._splitter

    def aggregation(self, name: str | None) -> "Aggregation":
        """The aggregation that is asked for, else the server's, else the model's.

        Raises:
            Problem: the model has no such aggregation.
        """
        from dmoerm.modeling.inner import AGGREGATIONS
        from dmoerm.scoring.bulk import require_aggregation

        model = self.queue.model
        chosen = AGGREGATIONS[AGGREGATIONS.index(name or self.settings.aggregation or model.aggregation)]
        try:
            require_aggregation(model, chosen)
        except ConfigError as error:
            raise Problem(422, str(error), field="aggregation") from None
        return chosen

    def category(self, name: str | None) -> str | None:
        """The category that is named, if the model has it.

        Raises:
            Problem: it has not.
        """
        known = (*sorted({*self.queue.model.inner, *(c.name for c in self.queue.model.taxonomy.categories)}),)
        if name is not None and name not in known:
            raise Problem(422, f"no such category; expected one of {', '.join(known)}, or none to let the router decide", field="category")
        return name

    async def score_one(
        self, prompt: tuple[Message, ...], responses: Sequence[str], *, category: str | None = None, aggregation: str | None = None
    ) -> list[Reward | ScoreFailure]:
        """Rewards of the responses to one prompt, scored together."""
        from dmoerm.modeling.reward_model import ScoreRequest

        self._room(len(responses), "responses")
        if not any(message.content.strip() for message in prompt):
            raise Problem(422, "the prompt is empty", field="prompt")
        chosen = self.aggregation(aggregation)
        request = ScoreRequest(prompt, tuple(responses), self.category(category))
        return (await self.queue.score([request], chosen))[0]

    async def score_splits(self, splits: Sequence[Split], dialect: str) -> list[ScoredText]:
        """Rewards of split texts, each scored by itself.

        Raises:
            Problem: a text cannot be scored, and the operator has not said what it gets (422).
        """
        from dmoerm.modeling.reward_model import ScoreRequest

        self._room(len(splits), "texts")
        requests = [ScoreRequest(split.prompt, (split.response,), GENERAL if split.whole else None) for split in splits]
        for split in splits:
            if split.whole:
                self.metrics.add("dmoerm_unsplit_total", dialect)
        results = await self.queue.score(requests, self.aggregation(None))
        return [self._scored(result[0], split, place) for place, (result, split) in enumerate(zip(results, splits, strict=True))]

    async def score_pairs(self, prompts: Sequence[str], documents: Sequence[str], dialect: str) -> list[ScoredText]:
        """Rewards of prompts with their responses; those to equal prompts are scored together."""
        from dmoerm.modeling.reward_model import ScoreRequest

        self._room(len(documents), "texts")
        places: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            places.setdefault(prompt, []).append(place)
        requests = [ScoreRequest((Message("user", p),), tuple(documents[i] for i in rows), None) for p, rows in places.items()]
        results = await self.queue.score(requests, self.aggregation(None))
        found: dict[int, ScoredText] = {}
        for rows, answers in zip(places.values(), results, strict=True):
            for place, answer in zip(rows, answers, strict=True):
                found[place] = self._scored(answer, Split((), documents[place]), place)
        return [found[place] for place in range(len(documents))]

    def split(self, texts: Sequence[str], prompts: Sequence[str | None] | None = None) -> list[Split]:
        """Texts as prompts and responses."""
        given = prompts or [None] * len(texts)
        self._room(len(texts), "texts")
        return [self.splitter.split(text, prompt) for text, prompt in zip(texts, given, strict=True)]

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids of the model's own tokenizer as text, control tokens kept.

        Raises:
            Problem: an id that the tokenizer does not have.
        """
        tokenizer = self.queue.model.renderer.tokenizer
        if any(not 0 <= one < len(tokenizer) for one in ids):
            raise Problem(422, f"a token id is out of range; this model's tokenizer has {len(tokenizer)} tokens", field="input")
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _room(self, count: int, field: str) -> None:
        limit = self.settings.limits.request_responses
        if count > limit:
            raise Problem(422, f"{count} {field} in one request; at most {limit} are taken", field=field, limit=limit)

    def _scored(self, result: Reward | ScoreFailure, split: Split, place: int) -> ScoredText:
        if isinstance(result, Reward):
            return ScoredText(result.reward, result, not split.whole)
        if self.settings.failed_reward is None:
            raise Problem(
                422,
                f"text {place + 1} cannot be scored: {result.message} Start the server with --failed-reward X to answer X instead.",
                field=f"{place}",
            )
        return ScoredText(self.settings.failed_reward, None, not split.whole)


def sigmoid(value: float) -> float:
    """1 / (1 + e^-x), for numbers of any size."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value)) if value > -700 else 0.0


def as_list(value: Any) -> list[Any]:
    """One item or several as a list."""
    return list(value) if isinstance(value, list) else [value]


def usage(texts: Sequence[str]) -> dict[str, int]:
    """Token counts as OpenAI's API has them; estimated, as the limits are."""
    tokens = sum(map(estimated_tokens, texts))
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


def envelope(kind: str, model: str, data: list[dict[str, Any]], texts: Sequence[str]) -> dict[str, Any]:
    """The outer object of vLLM's answers."""
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": usage(texts),
    }
