"""The `compute_score` of verl.

    # my_reward.py
    from dmoerm.integrations.verl import compute_score

    reward.custom_reward_function.path=my_reward.py reward.custom_reward_function.name=compute_score

with DMOERM_MODEL in the environment (older versions of verl: custom_reward_function.path …). verl passes the response but not the prompt,
so the data set must carry it in `extra_info`, as a text or as messages, under `prompt`, `raw_prompt` or `question`, or under the key that
`prompt_key` names.

Source: verl/experimental/reward_loop/reward_manager/naive.py, which calls it from threads, one response at a time, and logs every key of
the answer besides `score`. The keys are the same for every sample, since verl collects them by the first one's.
"""

import math
from collections.abc import Mapping
from typing import Any

from dmoerm.errors import DataError
from dmoerm.integrations.loaded import failure_reward, score_groups
from dmoerm.records import Message, Reward

__all__ = ["PROMPT_KEYS", "compute_score"]

PROMPT_KEYS = ("prompt", "raw_prompt", "question")


def compute_score(
    data_source: Any,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    aggregation: str | None = None,
    prompt_key: str | None = None,
    failure_score: float | None = None,
    **others: Any,
) -> dict[str, float]:
    """The reward of one response.

    Args:
        data_source: not read.
        solution_str: the response.
        ground_truth: not read.
        extra_info: must hold the prompt.
        model: folder or Hub id, loaded once a process; None is DMOERM_MODEL.
        aggregation: None is DMOERM_AGGREGATION.
        prompt_key: where the prompt is; None looks for those of `PROMPT_KEYS`.
        failure_score: what a response gets that cannot be scored; None is DMOERM_FAILURE_REWARD.
        others: what else is passed. Not read.

    Returns:
        `score`, the raw reward, and what verl may log: uncertainty, the router's probability, whether the text was cut, whether it failed;
        NaN where there is none.

    Raises:
        DataError: there is no prompt, or the response cannot be scored and nobody has said what that is worth.
        ConfigError: no model is named.
        ArtifactError: there is no such model.
    """
    (found,) = score_groups([_prompt(extra_info or {}, prompt_key)], [solution_str], model=model, aggregation=aggregation)
    if isinstance(found, Reward):
        return _answer(found.reward, found.uncertainty, found.category_probability, truncated=found.truncated, failed=False)
    return _answer(failure_reward(failure_score, found), math.nan, math.nan, truncated=False, failed=True)


def _answer(score: float, uncertainty: float, probability: float, *, truncated: bool, failed: bool) -> dict[str, float]:
    return {
        "score": score,
        "dmoerm_uncertainty": uncertainty,
        "dmoerm_category_probability": probability,
        "dmoerm_truncated": float(truncated),
        "dmoerm_failed": float(failed),
    }


def _prompt(extra_info: Mapping[str, Any], key: str | None) -> tuple[Message, ...]:
    from dmoerm.modeling.reward_model import as_messages

    for name in PROMPT_KEYS if key is None else (key,):
        value = extra_info.get(name)
        if isinstance(value, str):
            return as_messages(value)
        if value is not None:
            return as_messages([*value])  # a list, or the array that it became in a Parquet file
    held = ", ".join(map(str, extra_info)) or "nothing"
    expected = " or ".join(PROMPT_KEYS) if key is None else key
    raise DataError(
        f"verl gives no prompt to a reward function, and extra_info holds {held}; expected {expected}. "
        "Put the prompt into extra_info when the data set is made"
    )
