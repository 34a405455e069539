"""SGLang with `--is-embedding`: the reward is the embedding. `/v1/embeddings` here, `/classify` with `text` in classify.py.

    /classify        {"model", "text": str | [str]}     [{"embedding": [r], "meta_info": {…}}]
    /v1/embeddings   {"model", "input": str | [str]}    {"data": [{"embedding": [r], "index", "object"}]}

Source: the HTTP server of SGLang; verl's reward loop reads `data[-1].embedding[-1]`.
"""

import base64
import struct
import uuid
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field

from dmoerm.serving.dialects.vllm import Input, splits_of
from dmoerm.serving.schemas import Body, Text
from dmoerm.serving.service import Service, as_list, usage

__all__ = ["TextRequest", "classify", "router"]


class TextRequest(Body):
    """SGLang's own form."""

    model: str | None = Field(None, description="Not read: one model is served.")
    text: Text | list[Text]
    rid: str | list[str] | None = Field(None, description="Names of the requests, given back.")


class EmbeddingsRequest(Body):
    """OpenAI's form."""

    model: str | None = Field(None, description="Not read: one model is served.")
    input: Input
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = Field(None, description="Not read.")


def router(service: Service) -> APIRouter:
    """POST /v1/embeddings."""
    routes = APIRouter(tags=["SGLang"])

    @routes.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsRequest) -> dict[str, Any]:
        """Rewards as embeddings of one number."""
        splits, texts = splits_of(service, body.input, None)
        found = await service.score_splits(splits, "sglang")
        packed = body.encoding_format == "base64"
        data = [
            {"object": "embedding", "embedding": _packed(one.reward) if packed else [one.reward], "index": index}
            for index, one in enumerate(found)
        ]
        return {"object": "list", "data": data, "model": service.settings.name, "usage": usage(texts)}

    return routes


async def classify(service: Service, body: TextRequest) -> list[dict[str, Any]]:
    """The answer of SGLang's /classify."""
    texts = as_list(body.text)
    names = as_list(body.rid) if body.rid is not None else []
    found = await service.score_splits(service.split(texts), "sglang")
    return [
        {
            "embedding": [one.reward],
            "meta_info": {"id": names[index] if index < len(names) else uuid.uuid4().hex, "prompt_tokens": usage([text])["prompt_tokens"]},
        }
        for index, (one, text) in enumerate(zip(found, texts, strict=True))
    ]


def _packed(value: float) -> str:
    """One number as the little-endian 32-bit float that OpenAI's clients unpack."""
    return base64.b64encode(struct.pack("<f", max(-3.4e38, min(3.4e38, value)))).decode()
