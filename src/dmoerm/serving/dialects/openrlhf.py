"""OpenRLHF's remote reward model, `--reward.remote_url http://host:8000/get_reward` (older: `--remote_rm_url`).

    {"query": [prompt and response], "prompts": [prompt], "labels": [anything]}
    {"rewards": [r], "scores": [r], "extra_logs": {name: [number]}}

With several URLs and one sample, the other servers get empty lists: `[]` is answered by `[]`.
Source: openrlhf/utils/agent.py and openrlhf/cli/serve_rm.py.
"""

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from dmoerm.serving.problems import Problem
from dmoerm.serving.schemas import Body, Text
from dmoerm.serving.service import ScoredText, Service

__all__ = ["router"]


class GetReward(Body):
    """What OpenRLHF sends."""

    query: list[Text] = Field(description="Prompt and response, one after the other, with the policy's control tokens.")
    prompts: list[Text] | None = Field(None, description="The prompts by themselves; then nothing has to be guessed.")
    labels: list[Any] | None = Field(None, description="Not read.")


def router(service: Service) -> APIRouter:
    """POST /get_reward."""
    routes = APIRouter(tags=["OpenRLHF"])

    @routes.post("/get_reward")
    async def get_reward(body: GetReward) -> dict[str, Any]:
        """Rewards as OpenRLHF reads them."""
        prompts = body.prompts or None
        if prompts is not None and len(prompts) != len(body.query):
            raise Problem(422, f"{len(prompts)} prompts for {len(body.query)} queries; expected as many, or none", field="prompts")
        found = await service.score_splits(service.split(body.query, prompts), "openrlhf")
        rewards = [one.reward for one in found]
        return {"rewards": rewards, "scores": rewards, "extra_logs": _logs(found)}

    return routes


def _logs(found: list[ScoredText]) -> dict[str, list[float]]:
    """The same names for every sample, which OpenRLHF needs; 0 stands for "unknown" beside `dmoerm_failed`."""
    known = [one.result for one in found]
    return {
        "dmoerm_uncertainty": [0.0 if one is None else one.uncertainty for one in known],
        "dmoerm_capability_spread": [0.0 if one is None else one.capability_spread for one in known],
        "dmoerm_category_probability": [0.0 if one is None else one.category_probability for one in known],
        "dmoerm_split": [float(one.split) for one in found],
        "dmoerm_failed": [float(one is None) for one in known],
    }
