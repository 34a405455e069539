"""vLLM's pooling endpoints, as verl and others call them: `/pooling` and `/score` here, `/classify` in classify.py.

    /classify  {"model", "input": str | [str] | [ids] | [[ids]]} or {"model", "messages"}   {"data": [{"index", "label", "probs": [r]}]}
    /pooling   the same, with "task": "classify"                                            {"data": [{"index", "object", "data": [r]}]}
    /score     {"model", "queries", "documents"} (older: "text_1", "text_2")                {"data": [{"index", "object", "score"}]}

A stock server puts one label through a sigmoid unless told otherwise; here rewards are raw unless `use_activation` (older: `activation`,
`softmax`) is true. Token ids are those of the model's own tokenizer. Source: the protocol files of vLLM.
"""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import ConfigDict, Field, model_validator

from dmoerm.records import Message
from dmoerm.serving.problems import Problem
from dmoerm.serving.schemas import Body, Conversation, Text
from dmoerm.serving.service import ScoredText, Service, as_list, envelope, sigmoid
from dmoerm.serving.splitting import Split

__all__ = ["ClassifyRequest", "Input", "activated", "classify", "router", "splits_of"]

Input = Text | list[Text] | list[int] | list[list[int]]


class _Activated(Body):
    model: str | None = Field(None, description="Not read: one model is served.")
    use_activation: bool | None = Field(None, description="True asks for a sigmoid.")
    activation: bool | None = Field(None, description="Older name of use_activation.")
    softmax: bool | None = Field(None, description="Older still.")
    user: str | None = Field(None, description="Not read.")
    priority: int = Field(0, description="Not read.")
    request_id: str | None = Field(None, description="Not read.")


class ClassifyRequest(_Activated):
    """Texts, token ids, or one conversation that ends with the response."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["input"]}, {"required": ["messages"]}]})

    input: Input | None = None
    messages: Conversation | None = None
    add_special_tokens: bool | None = Field(None, description="Not read: the model's own rendering adds what training had.")

    @model_validator(mode="after")
    def _one_of_them(self) -> "ClassifyRequest":
        if (self.input is None) == (self.messages is None):
            raise ValueError("expected either input or messages")
        return self


class PoolingRequest(ClassifyRequest):
    """As for /classify."""

    task: Literal["classify"] | None = Field(None, description="Only classify gives a reward.")
    encoding_format: Literal["float"] = "float"


class ScoreRequest(_Activated):
    """Prompts and responses apart, so nothing has to be split."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["queries", "documents"]}, {"required": ["text_1", "text_2"]}]},
    )

    queries: Text | list[Text] | None = None
    documents: Text | list[Text] | None = None
    text_1: Text | list[Text] | None = Field(None, description="Older name of queries.")
    text_2: Text | list[Text] | None = Field(None, description="Older name of documents.")

    @model_validator(mode="after")
    def _one_of_them(self) -> "ScoreRequest":
        if (self.queries is None) == (self.text_1 is None) or (self.documents is None) == (self.text_2 is None):
            raise ValueError("expected queries with documents, or text_1 with text_2")
        return self


def router(service: Service) -> APIRouter:
    """POST /pooling and /score."""
    routes = APIRouter(tags=["vLLM"])

    @routes.post("/pooling")
    async def pooling(body: PoolingRequest) -> dict[str, Any]:
        """Rewards as pooled data."""
        splits, texts = splits_of(service, body.input, body.messages)
        found = await service.score_splits(splits, "vllm")
        data = [{"index": index, "object": "pooling", "data": [activated(body, one)]} for index, one in enumerate(found)]
        return envelope("pool", service.settings.name, data, texts)

    @routes.post("/score")
    async def score(body: ScoreRequest) -> dict[str, Any]:
        """Rewards of pairs; one query goes with all documents."""
        queries = as_list(body.queries if body.text_1 is None else body.text_1)
        documents = as_list(body.documents if body.text_2 is None else body.text_2)
        if len(queries) not in (1, len(documents)):
            raise Problem(422, f"{len(queries)} queries for {len(documents)} documents; expected one, or as many", field="queries")
        prompts = queries * len(documents) if len(queries) == 1 else queries
        found = await service.score_pairs(prompts, documents, "vllm")
        data = [{"index": index, "object": "score", "score": activated(body, one)} for index, one in enumerate(found)]
        return envelope("score", service.settings.name, data, [*queries, *documents])

    return routes


async def classify(service: Service, body: ClassifyRequest) -> dict[str, Any]:
    """The answer of vLLM's /classify."""
    splits, texts = splits_of(service, body.input, body.messages)
    found = await service.score_splits(splits, "vllm")
    data = [{"index": i, "label": "LABEL_0", "probs": [activated(body, one)], "num_classes": 1} for i, one in enumerate(found)]
    return envelope("classify", service.settings.name, data, texts)


def activated(body: _Activated, one: ScoredText) -> float:
    """The raw reward, or its sigmoid where the client asks for one; the newest name counts."""
    asked = next((flag for flag in (body.use_activation, body.activation, body.softmax) if flag is not None), False)
    return sigmoid(one.reward) if asked else one.reward


def splits_of(service: Service, given: "Input | None", messages: "Conversation | None") -> tuple[list[Split], list[str]]:
    """Prompts and responses out of `input` or `messages`, and the texts that were sent."""
    if messages is not None:
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise Problem(422, "the last of at least two messages has to be the assistant's: it is what is judged", field="messages")
        turns = tuple(Message(turn.role, turn.content) for turn in messages)
        return [Split(turns[:-1], turns[-1].content)], [turn.content for turn in turns]
    items = as_list(given)
    if items and isinstance(items[0], int):
        items = [items]
    texts = [item if isinstance(item, str) else service.decode(item) for item in items]
    return service.split(texts), texts
