"""Text Embeddings Inference, `/predict`.

    {"inputs": str, "raw_scores"?, "truncate"?}                [{"score", "label"}]
    {"inputs": [str, str]}                                     one pair: prompt and response; the same answer
    {"inputs": [[str], [str, str] …]}                          [[{"score", "label"}] …]

A stock server puts one label through a sigmoid unless `raw_scores` is true; here rewards are raw unless it is false.
Source: router/src/http/types.rs of text-embeddings-inference.
"""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from dmoerm.records import Message
from dmoerm.serving.schemas import Body, Text
from dmoerm.serving.service import ScoredText, Service, sigmoid
from dmoerm.serving.splitting import Split

__all__ = ["router"]

Sequence = Annotated[list[Text], Field(min_length=1, max_length=2)]


class PredictRequest(Body):
    """One text, one pair, or a batch of texts and pairs."""

    inputs: Text | Sequence | list[Sequence]
    raw_scores: bool = Field(True, description="False asks for a sigmoid.")
    truncate: bool = Field(False, description="Not read: a text that is too long is always cut, as in training.")
    truncation_direction: str | None = Field(None, description="Not read.")


def router(service: Service) -> APIRouter:
    """POST /predict."""
    routes = APIRouter(tags=["Text Embeddings Inference"])

    @routes.post("/predict")
    async def predict(body: PredictRequest) -> Any:
        """Rewards as scores of one label."""
        batch = isinstance(body.inputs, list) and all(isinstance(item, list) for item in body.inputs)
        items: list[Any] = body.inputs if batch else [body.inputs]  # type: ignore[assignment]
        found = await service.score_splits([_split(service, item) for item in items], "tei")
        answers = [[{"score": _score(one, body.raw_scores), "label": "LABEL_0"}] for one in found]
        return answers if batch else answers[0]

    return routes


def _split(service: Service, item: str | list[str]) -> Split:
    texts = [item] if isinstance(item, str) else item
    if len(texts) == 2:
        return Split((Message("user", texts[0]),), texts[1])
    return service.split(texts)[0]


def _score(one: ScoredText, raw: bool) -> float:
    return one.reward if raw else sigmoid(one.reward)
