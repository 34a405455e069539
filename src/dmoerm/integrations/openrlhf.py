"""The `reward_func` of OpenRLHF.

    # my_reward.py
    from dmoerm.integrations.openrlhf import reward_func

    DMOERM_MODEL=my-rm/model … --reward.remote_url my_reward.py

The environment says which model: see `loaded`. It is loaded once a process; current versions call with one sample at a time, from threads,
so a response does not share its cut of a long prompt with its competitors (docs/rl.md).

Source: openrlhf/utils/agent.py (`SingleTurnAgentExecutor`) and the example function in OpenRLHF's documentation.
"""

import logging
from collections.abc import Sequence
from typing import Any

from dmoerm.integrations.loaded import failure_reward, score_groups
from dmoerm.integrations.templated import read_prompt, read_response
from dmoerm.records import Reward

__all__ = ["reward_func"]

_LOG = logging.getLogger(__name__)


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any] | None = None, **others: Any) -> dict[str, Any]:
    """Rewards of a batch.

    Args:
        queries: prompt and response joined, with the control tokens of the policy's chat template.
        prompts: the same without the response, templated or plain.
        labels: not read.
        others: what else is passed. Not read.

    Returns:
        `rewards`, tensor (B,): raw rewards. `scores`, tensor (B,), 0 to 1, for OpenRLHF's dynamic filtering: how probably the response is
        preferred to one of reward 0. `extra_logs`: tensors (B,), NaN where a response failed.

    Raises:
        DataError: a query does not hold its prompt, or a response cannot be scored and DMOERM_FAILURE_REWARD is not set. OpenRLHF logs
            it and goes on with no reward for the sample.
        ConfigError: no model is named.
        ArtifactError: there is no such model.
    """
    import torch

    responses = [read_response(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    found = score_groups([read_prompt(prompt) for prompt in prompts], responses)
    rewards = torch.tensor([one.reward if isinstance(one, Reward) else failure_reward(None, one) for one in found], dtype=torch.float32)
    failures = [one.message for one in found if not isinstance(one, Reward)]
    if failures:
        _LOG.warning("%d of %d responses could not be scored and get DMOERM_FAILURE_REWARD: %s", len(failures), len(found), failures[0])
    known = [one if isinstance(one, Reward) else None for one in found]
    return {
        "rewards": rewards,
        "scores": torch.sigmoid(rewards),
        "extra_logs": {
            "dmoerm_uncertainty": torch.tensor([float("nan") if one is None else one.uncertainty for one in known]),
            "dmoerm_category_probability": torch.tensor([float("nan") if one is None else one.category_probability for one in known]),
            "dmoerm_failed": torch.tensor([float(one is None) for one in known]),
        },
    }
