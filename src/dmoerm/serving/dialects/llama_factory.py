"""LLaMA-Factory's API for PPO (`reward_model_type: api`), `/v1/score/evaluation`.

    {"model", "messages": [prompt and response as one text], "max_length"?}
    {"id", "object": "score.evaluation", "model", "scores": [r]}

Source: the API of LLaMA-Factory.
"""

import uuid
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from dmoerm.serving.schemas import Body, Text
from dmoerm.serving.service import Service

__all__ = ["router"]


class EvaluationRequest(Body):
    """Texts; LLaMA-Factory calls them messages."""

    model: str | None = Field(None, description="Not read: one model is served.")
    messages: list[Text]
    max_length: int | None = Field(None, description="Not read: the model's own budget holds.")


def router(service: Service) -> APIRouter:
    """POST /v1/score/evaluation."""
    routes = APIRouter(tags=["LLaMA-Factory"])

    @routes.post("/v1/score/evaluation")
    async def evaluation(body: EvaluationRequest) -> dict[str, Any]:
        """Rewards as scores."""
        found = await service.score_splits(service.split(body.messages), "llama_factory")
        return {
            "id": f"scoreval-{uuid.uuid4().hex}",
            "object": "score.evaluation",
            "model": service.settings.name,
            "scores": [one.reward for one in found],
        }

    return routes
