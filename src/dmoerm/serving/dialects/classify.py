"""`/classify`, which vLLM and SGLang both have: `text` is SGLang's, `input` or `messages` vLLM's."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Discriminator, Tag

from dmoerm.serving.dialects import sglang, vllm
from dmoerm.serving.service import Service

__all__ = ["router"]


def _kind(body: Any) -> str:
    return "text" if isinstance(body, sglang.TextRequest) or (isinstance(body, dict) and "text" in body) else "input"


Classify = Annotated[
    Annotated[sglang.TextRequest, Tag("text")] | Annotated[vllm.ClassifyRequest, Tag("input")],
    Discriminator(_kind),
]


def router(service: Service) -> APIRouter:
    """POST /classify."""
    routes = APIRouter(tags=["vLLM", "SGLang"])

    @routes.post("/classify")
    async def classify(body: Classify) -> Any:
        """Rewards as probabilities of one label (`input`, `messages`), or as embeddings (`text`)."""
        if isinstance(body, sglang.TextRequest):
            return await sglang.classify(service, body)
        return await vllm.classify(service, body)

    return routes
