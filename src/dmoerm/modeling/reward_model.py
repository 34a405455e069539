"""The double-layer reward model: route a prompt to one category, judge each response by that category's experts.

One backbone serves every category (task adapters and experts are slots in it); a category that was fully fine-tuned brings its own.
`score` is the whole path of one comparison: render, route, batch, member vectors, judgement. Responses to one prompt share its computation
where the backbone can and it pays (prefix.py, batching.py); that moves no reward beyond rounding.

Shapes: B rows, K members, D hidden.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmoerm.data.rendering import Rendered, Renderer, collate
from dmoerm.errors import DataError
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.batching import group_batches, prompt_groups, token_batches
from dmoerm.modeling.inner import Aggregation, InnerModel, Judgement
from dmoerm.modeling.prefix import flat_row
from dmoerm.modeling.router import ROUTER, Router
from dmoerm.records import ROLES, Message, Reward, ScoreFailure, prompt_hash
from dmoerm.taxonomy import GENERAL, TASK_MEMBER, Taxonomy

__all__ = ["Prompt", "RewardModel", "ScoreRequest", "as_messages"]

Prompt = str | Sequence[Message] | Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One prompt and the responses to judge; a `category` skips the router."""

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    category: str | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """One response on its way through a batch."""

    request: int
    response: int
    rendered: Rendered


class RewardModel:
    """A trained model, ready to score.

    Args:
        backbone: shared by all categories, with their adapters in its slots.
        renderer: the tokenizer and token budget it was trained with.
        router: the outer layer.
        inner: inner model by category; must hold `general`, the fallback.
        own_backbones: backbone of each fully fine-tuned category.
        taxonomy: what the categories and capabilities mean.
        aggregation: how `score` aggregates unless asked otherwise.
        uwo_penalty: λ of "uwo".
        metadata: what training recorded: recipe, metrics, version.
    """

    def __init__(
        self,
        backbone: Backbone,
        renderer: Renderer,
        router: Router,
        inner: Mapping[str, InnerModel],
        *,
        taxonomy: Taxonomy,
        own_backbones: Mapping[str, Backbone] | None = None,
        aggregation: Aggregation = "mlp",
        uwo_penalty: float = 0.5,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        assert GENERAL in inner, "a reward model needs its fallback"
        self.backbone = backbone
        self.renderer = renderer
        self.router = router
        self.inner = dict(inner)
        self.own_backbones = dict(own_backbones or {})
        self.taxonomy = taxonomy
        self.aggregation: Aggregation = aggregation
        self.uwo_penalty = uwo_penalty
        self.metadata = dict(metadata or {})
        for module in (self.backbone, self.router, *self.inner.values(), *self.own_backbones.values()):
            module.eval()

    # --- loading and saving ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def from_pretrained(
        name: str | Path, *, revision: str | None = None, device: str = "auto", check: bool = True, backbone: str | Path | None = None
    ) -> "RewardModel":
        """A saved model from a folder or the Hub.

        Args:
            name: folder, or Hub id "owner/name".
            revision: branch, tag or commit on the Hub.
            device: "auto" (CUDA where there is one), "cpu", "cuda:1" …
            check: compare every file's hash and the canary rewards; False only to look inside a model that fails them.
            backbone: where the backbone lies now, folder or Hub id, when not where it lay in training. Its weights must hash to the same.

        Raises:
            ArtifactError: a file is missing, changed or foreign, the backbone is another one, or the canary rewards differ.
        """
        from dmoerm.modeling.artifact import load_model

        return load_model(name, revision=revision, device=device, check=check, backbone=backbone)

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the model as one folder (see docs/artifact.md); never leaves a half-written one under that name.

        Raises:
            ArtifactError: the folder holds something already and `overwrite` is False, or something that is no model of ours.
        """
        from dmoerm.modeling.artifact import save_model

        save_model(self, Path(folder), overwrite=overwrite)

    def push_to_hub(self, repository: str, *, private: bool = True, message: str | None = None) -> str:
        """Send the model to the Hugging Face Hub; returns the address of the commit. A new repository is private unless asked otherwise.

        Raises:
            ConfigError: no such name can exist.
            ArtifactError: the Hub refuses.
        """
        from dmoerm.modeling.hub_upload import push_model

        return push_model(self, repository, private=private, message=message).address

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def to(self, device: str | torch.device) -> "RewardModel":
        """Move everything to a device; returns self."""
        for module in (self.backbone, self.router, *self.inner.values(), *self.own_backbones.values()):
            module.to(device)
        return self

    # --- scoring --------------------------------------------------------------------------------------------------------------------

    def score(
        self,
        prompt: Prompt,
        responses: str | Sequence[str],
        *,
        category: str | None = None,
        aggregation: Aggregation | None = None,
        share_prompts: bool = True,
    ) -> list[Reward]:
        """Rewards of the responses to one prompt, in their order.

        Args:
            prompt: the user's text, or the conversation up to the response.
            responses: one response or several; several are rendered with the same prompt, so that they compete on equal terms.
            category: judge by this category's inner model and skip the router.
            aggregation: "mlp", "mean", "wco", "uwo" or, where the task model is a member, "task"; None is the model's own default.
            share_prompts: compute the prompt once for all responses, where the backbone can; equal up to rounding.

        Raises:
            DataError: an empty response, an empty prompt, or a role that is unknown.
        """
        texts = (responses,) if isinstance(responses, str) else tuple(responses)
        request = ScoreRequest(as_messages(prompt), texts, category)
        results = self.score_many([request], aggregation=aggregation, share_prompts=share_prompts)[0]
        for result in results:
            if isinstance(result, ScoreFailure):
                raise DataError(result.message)
        return [result for result in results if isinstance(result, Reward)]

    def score_many(
        self,
        requests: Sequence[ScoreRequest],
        *,
        aggregation: Aggregation | None = None,
        max_tokens: int = 16384,
        share_prompts: bool = True,
    ) -> list[list[Reward | ScoreFailure]]:
        """Rewards of many prompts' responses, in order; what cannot be scored is a `ScoreFailure` and moves nobody else's reward.

        Args:
            requests: prompts with their responses.
            aggregation: as for `score`.
            max_tokens: token budget of a batch, padding counted, shared tokens counted once.
            share_prompts: as for `score`; equal prompts of several requests are shared too.
        """
        return self.score_by_aggregation(requests, [aggregation or self.aggregation], max_tokens=max_tokens, share_prompts=share_prompts)[0]

    def score_by_aggregation(
        self,
        requests: Sequence[ScoreRequest],
        aggregations: Sequence[Aggregation],
        *,
        max_tokens: int = 16384,
        share_prompts: bool = True,
    ) -> list[list[list[Reward | ScoreFailure]]]:
        """As `score_many`, once for each aggregation; the texts go through the backbone only once."""
        results: list[list[Reward | ScoreFailure]] = [[] for _ in requests]
        rows: list[_Row] = []
        for number, request in enumerate(requests):
            try:
                self._known_category(request.category)
                for index, rendered in enumerate(self.renderer.render(request.prompt, request.responses)):
                    rows.append(_Row(number, index, rendered))
                    results[number].append(ScoreFailure("not scored"))
            except DataError as error:
                results[number] = self._one_by_one(number, request, rows, str(error))
        routes = self.route([request.prompt for request in requests], [request.category for request in requests])
        by_category: dict[str, list[_Row]] = {}
        for row in rows:
            by_category.setdefault(routes[row.request][0], []).append(row)
        answers = [[list(result) for result in results] for _ in aggregations]
        for category, members in by_category.items():
            for picked, vectors_BKD in self._batches(category, [row.rendered for row in members], max_tokens, share_prompts):
                chosen = [members[index] for index in picked]
                for answer, aggregation in zip(answers, aggregations, strict=True):
                    judgement = self.judge_vectors(category, vectors_BKD, aggregation)
                    for row, reward in zip(chosen, self._rewards(category, judgement), strict=True):
                        truncated = row.rendered.truncated_prompt or row.rendered.truncated_response
                        probability = routes[row.request][1]
                        answer[row.request][row.response] = replace(reward, category_probability=probability, truncated=truncated)
        return answers

    def route(self, prompts: Sequence[tuple[Message, ...]], given: Sequence[str | None] | None = None) -> list[tuple[str, float]]:
        """(category whose inner model judges, probability of the router's first choice) for each prompt.

        The category is `general` where the router is unsure or the category has no inner model of its own; equal prompts are routed once.
        """
        given = given or [None] * len(prompts)
        unknown = {prompt_hash(p): p for p, category in zip(prompts, given, strict=True) if category is None and p}
        routed: dict[str, tuple[str, float]] = {}
        if unknown and self.router.categories:
            vectors = self.prompt_vectors(list(unknown.values()))
            with torch.no_grad():
                routed = dict(zip(unknown, self.router.route(vectors), strict=True))
        answers = []
        for prompt, category in zip(prompts, given, strict=True):
            name, probability = (category, 1.0) if category is not None else routed.get(prompt_hash(prompt), (GENERAL, 1.0))
            answers.append((name if name in self.inner else GENERAL, probability))
        return answers

    def prompt_vectors(self, prompts: Sequence[tuple[Message, ...]], *, max_tokens: int = 16384) -> Tensor:
        """What the router sees of each prompt, shape (prompts, D)."""
        return prompt_vectors(self.backbone, self.renderer, prompts, finetuned=self.router.finetuned, max_tokens=max_tokens)

    def judge_vectors(self, category: str, vectors_BKD: Tensor, aggregation: Aggregation) -> Judgement:
        """Judge member vectors, shape (B, K, D), by one category's inner model."""
        with torch.no_grad():
            return self.inner[category].judge(vectors_BKD, aggregation=aggregation, uwo_penalty=self.uwo_penalty)

    def member_vectors(self, category: str, rendered: Sequence[Rendered]) -> Tensor:
        """Pooled vectors of the category's members, shape (B, K, D)."""
        backbone, task, experts = self._backbone(category)
        batch = {key: value.to(backbone.device) for key, value in self._collate(rendered).items()}
        with torch.no_grad():
            return backbone.pooled(batch, task=task, experts=experts)

    # --- inside -----------------------------------------------------------------------------------------------------------------------

    def _backbone(self, category: str) -> tuple[Backbone, str | None, str | None]:
        """The backbone of a category, and whose task adapter and experts are active on it."""
        own = self.own_backbones.get(category)
        return own or self.backbone, None if own else category, category if self.inner[category].capabilities else None

    def _batches(
        self, category: str, rendered: Sequence[Rendered], max_tokens: int, share_prompts: bool
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Indices of rows with their member vectors (B, K, D), batch by batch; every row once."""
        backbone, task, experts = self._backbone(category)
        ids = [item.input_ids for item in rendered]
        lengths, alone = list(map(len, ids)), list(range(len(ids)))
        if share_prompts and backbone.shares_prefixes:
            groups, alone = prompt_groups(ids, [item.response_start for item in rendered])
            for batch in group_batches(groups, lengths, max_tokens):
                flat = flat_row(ids, batch).to(backbone.device)
                with torch.no_grad():
                    vectors_BKD = backbone.pooled_flat(flat, task=task, experts=experts)
                yield flat.rows, vectors_BKD
        for picked in token_batches([lengths[row] for row in alone], max_tokens):
            rows = [alone[index] for index in picked]
            yield rows, self.member_vectors(category, [rendered[row] for row in rows])

    def _collate(self, rendered: Sequence[Rendered]) -> dict[str, Tensor]:
        return collate(rendered, self.renderer.tokenizer.pad_token_id)

    def _known_category(self, category: str | None) -> None:
        known = {GENERAL, *self.inner, *(c.name for c in self.taxonomy.categories)}
        if category is not None and category not in known:
            raise DataError(
                f"category {category!r} is not one of this model's: {', '.join(sorted(known))}. Leave it out to let the router decide."
            )

    def _one_by_one(self, number: int, request: ScoreRequest, rows: list[_Row], message: str) -> list[Reward | ScoreFailure]:
        """Some response of this request cannot be rendered: keep those that can."""
        results: list[Reward | ScoreFailure] = []
        del rows[len(rows) - sum(row.request == number for row in rows) :]
        good = [index for index, text in enumerate(request.responses) if text.strip()]
        try:
            self._known_category(request.category)
            rendered = (
                dict(zip(good, self.renderer.render(request.prompt, [request.responses[i] for i in good]), strict=True)) if good else {}
            )
        except DataError:
            rendered = {}
        for index in range(len(request.responses)):
            if index in rendered:
                rows.append(_Row(number, index, rendered[index]))
            results.append(ScoreFailure("not scored" if index in rendered else message))
        return results

    def _rewards(self, category: str, judgement: Judgement) -> list[Reward]:
        inner = self.inner[category]
        rewards = []
        for reward, members, uncertainty in zip(
            judgement.reward_B.tolist(), judgement.members_BK.tolist(), judgement.uncertainty_B.tolist(), strict=True
        ):
            capabilities = {name: value for name, value in zip(inner.members, members, strict=True) if name != TASK_MEMBER}
            rewards.append(
                Reward(
                    reward=reward,
                    category=category,
                    category_probability=1.0,
                    capabilities=capabilities,
                    capability_spread=_spread(list(capabilities.values())),
                    uncertainty=uncertainty,
                )
            )
        return rewards


def prompt_vectors(
    backbone: Backbone, renderer: Renderer, prompts: Sequence[tuple[Message, ...]], *, finetuned: bool = False, max_tokens: int = 16384
) -> Tensor:
    """Mean-pooled vector of each prompt, under the bare backbone or the router's own adapter, shape (prompts, D)."""
    rendered = [renderer.render_prompt(prompt) for prompt in prompts]
    vectors: list[Tensor | None] = [None] * len(rendered)
    backbone.eval()
    for picked in token_batches([len(item.input_ids) for item in rendered], max_tokens):
        batch = collate([rendered[index] for index in picked], renderer.tokenizer.pad_token_id)
        with torch.no_grad():
            pooled_BD = backbone.pooled(
                {key: value.to(backbone.device) for key, value in batch.items()}, task=ROUTER if finetuned else None, pooling="mean"
            )[:, 0]
        for index, vector_D in zip(picked, pooled_BD, strict=True):
            vectors[index] = vector_D
    return torch.stack([vector for vector in vectors if vector is not None])


def as_messages(prompt: Prompt) -> tuple[Message, ...]:
    """A prompt in any accepted form as messages.

    Raises:
        DataError: it is empty, or a message has no known role or no text.
    """
    if isinstance(prompt, str):
        messages: tuple[Message, ...] = (Message("user", prompt),)
    else:
        messages = tuple(item if isinstance(item, Message) else _message(item) for item in prompt)
    if not messages or not any(message.content.strip() for message in messages):
        raise DataError("the prompt is empty; expected a text or a list of messages with role and content")
    return messages


def _message(item: Mapping[str, str]) -> Message:
    role, content = item.get("role"), item.get("content")
    if role not in ROLES or not isinstance(content, str):
        raise DataError(
            f"a message of the prompt has role {role!r} and content of type {type(content).__name__}; "
            f"expected role {', '.join(ROLES)} and a string"
        )
    return Message(role, content)


def _spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5)
