"""Anything that rewards responses, behind one method: our models, published reward models, simple rules.

A study (best-of-n, benchmarks, probes) asks a `Scorer` for the rewards of candidates and does not care what stands behind it.
`open_scorer` turns what a user names into one: a folder that `dmoerm train` wrote, a folder or Hub id of an
`AutoModelForSequenceClassification` with one label, or `longest`.

A published classifier is scored as TRL scores it: the chat template of its own tokenizer, no special tokens beyond those of the
template, right padding, the single logit as it is (trl, GRPO trainer). A tokenizer without a chat template gets prompt and response
as a pair, which is how such encoders are usually trained.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dmoerm.errors import ArtifactError
from dmoerm.records import Message

if TYPE_CHECKING:
    from dmoerm.modeling.inner import Aggregation
    from dmoerm.modeling.reward_model import RewardModel

__all__ = ["Candidates", "ClassifierScorer", "Longest", "ModelScorer", "Rewards", "Scorer", "open_scorer"]

Rewards = list[float | None]
"""One a response, higher is better; None where it could not be scored."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """One prompt and the responses to reward."""

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]


class Scorer(Protocol):
    """What a study needs of a reward model."""

    name: str

    def score(self, candidates: Sequence[Candidates]) -> list[Rewards]:
        """The rewards of every response, in the given order."""
        ...


class ModelScorer:
    """A double-layer model under one aggregation; a `category` judges every prompt in place of its own."""

    def __init__(
        self, model: "RewardModel", aggregation: "Aggregation | None" = None, name: str = "model", category: str | None = None
    ) -> None:
        self.name = name
        self._model = model
        self._aggregation: Aggregation = aggregation or model.aggregation
        self._category = category

    def score(self, candidates: Sequence[Candidates]) -> list[Rewards]:
        """Rewards as the router and its inner models give them."""
        from dmoerm.modeling.reward_model import ScoreRequest
        from dmoerm.records import Reward

        requests = [ScoreRequest(one.prompt, one.responses, self._category) for one in candidates]
        found = self._model.score_by_aggregation(requests, [self._aggregation])[0]
        return [[_finite(reward.reward) if isinstance(reward, Reward) else None for reward in rewards] for rewards in found]


class ClassifierScorer:
    """A published reward model: `AutoModelForSequenceClassification` with one label."""

    def __init__(self, source: str, *, device: str = "auto", max_length_tokens: int = 2048, batch_tokens: int = 8192) -> None:
        """Load model and tokenizer.

        Args:
            source: folder or Hub id.
            device: auto, cpu, cuda …
            max_length_tokens: longer texts are cut at the side where the tokenizer truncates; at most what the model takes.
            batch_tokens: token budget of a batch, padding counted.

        Raises:
            ArtifactError: it has another number of labels, a head that was not trained, or cannot be loaded.
        """
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        from dmoerm.modeling.artifact import pick_device

        self.name = Path(source).name
        try:
            labels = AutoConfig.from_pretrained(source).num_labels
            if labels != 1:
                raise ArtifactError(f"{source}: {labels} labels; expected a reward model with one (num_labels=1)")
            self._tokenizer = AutoTokenizer.from_pretrained(source)
            model, loading = AutoModelForSequenceClassification.from_pretrained(source, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{source}: no sequence-classification model ({str(error).splitlines()[0]})") from error
        if loading["missing_keys"]:
            listed = ", ".join(sorted(loading["missing_keys"])[:4])
            raise ArtifactError(f"{source}: weights are missing ({listed}) and would be random. Name a trained reward model")
        if self._tokenizer.pad_token_id is None:
            raise ArtifactError(f"{source}: its tokenizer has no padding token, so batches cannot be scored. Set pad_token in it")
        self._tokenizer.padding_side = "right"
        self._device = pick_device(device)
        self._model = model.to(self._device).eval()
        self._torch = torch
        limit = min(max_length_tokens, self._tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 10**9)
        self._max_length_tokens, self._batch_tokens = int(limit), batch_tokens

    def score(self, candidates: Sequence[Candidates]) -> list[Rewards]:
        """The logit of every response."""
        from dmoerm.modeling.batching import token_batches

        encoded = [self._encoded(one.prompt, response) for one in candidates for response in one.responses]
        logits: Rewards = [None] * len(encoded)
        for picked in token_batches([len(row["input_ids"]) for row in encoded], self._batch_tokens):
            batch = self._tokenizer.pad([encoded[index] for index in picked], return_tensors="pt").to(self._device)
            with self._torch.no_grad():
                values = self._model(**batch).logits[:, 0].float().tolist()
            for index, value in zip(picked, values, strict=True):
                logits[index] = _finite(value)
        rewards, first = [], 0
        for one in candidates:
            rewards.append(logits[first : first + len(one.responses)])
            first += len(one.responses)
        return rewards

    def _encoded(self, prompt: tuple[Message, ...], response: str) -> dict[str, Any]:
        cut = {"truncation": True, "max_length": self._max_length_tokens}
        if self._tokenizer.chat_template is None:
            return dict(self._tokenizer("\n\n".join(message.content for message in prompt), response, **cut))
        turns = [{"role": message.role, "content": message.content} for message in prompt]
        text = self._tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": response}], tokenize=False)
        return dict(self._tokenizer(text, add_special_tokens=False, **cut))


class Longest:
    """The longer response wins, counted in characters."""

    name = "longest"

    def score(self, candidates: Sequence[Candidates]) -> list[Rewards]:
        """Characters."""
        return [[float(len(response)) for response in one.responses] for one in candidates]


def open_scorer(source: str, *, device: str = "auto", aggregation: "Aggregation | None" = None, backbone: str | None = None) -> Scorer:
    """A scorer from what a user names; see the top of this file.

    Raises:
        ArtifactError: there is no such model.
    """
    if source == "longest":
        return Longest()
    folder = Path(source)
    if folder.is_dir() and not (folder / "dmoerm.json").is_file() and (folder / "config.json").is_file():
        return ClassifierScorer(source, device=device)
    from dmoerm.modeling.reward_model import RewardModel

    if not folder.is_dir() and _is_classifier_on_hub(source):
        return ClassifierScorer(source, device=device)
    return ModelScorer(RewardModel.from_pretrained(source, device=device, backbone=backbone), aggregation, name=folder.name)


def _is_classifier_on_hub(source: str) -> bool:
    """Whether a Hub id is that of a classifier: one of our models has its own manifest instead of a config."""
    from transformers import AutoConfig

    try:
        architectures = AutoConfig.from_pretrained(source).architectures or ()
    except (OSError, ValueError):
        return False
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
