"""All dialects."""

from collections.abc import Callable, Mapping

from fastapi import APIRouter

from dmoerm.serving.dialects import classify, llama_factory, openrlhf, sglang, tei, vllm
from dmoerm.serving.service import Service

__all__ = ["ROUTERS"]

ROUTERS: Mapping[str, Callable[[Service], APIRouter]] = {
    "openrlhf": openrlhf.router,
    "vllm": vllm.router,
    "sglang": sglang.router,
    "classify": classify.router,
    "tei": tei.router,
    "llama_factory": llama_factory.router,
}
