"""A model's experts for tools that know LoRA and sequence classifiers but not dmoerm: one PEFT folder a capability.

An expert is a LoRA on top of its category's task adapter. Here the two become one adapter of the summed rank: A stacked, B side by side
with the scaling folded in, zeros where only one of them reaches a layer, so every layer has the same rank (vLLM wants that). Its head is
`score.weight`, shape (1, D). What comes out is r = head · z, unstandardised, for the standardised value needs a bias that `score` has not.
The router, the aggregator, calibration and uncertainty stay behind: this exports judges of single capabilities, not the reward.

Only a decoder pooled at its last token is such a classifier; anything else is refused. Source of the layout: PEFT's LoRA of task type
SEQ_CLS with `modules_to_save: ["score"]`, which vLLM serves since its pull request 53555.
"""

import copy
import importlib.util
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from dmoerm.data.frames import equal_template
from dmoerm.data.rendering import Rendered, Renderer, collate
from dmoerm.errors import ArtifactError, ConfigError
from dmoerm.modeling.adapter_files import adapter_config, weight_name, write_adapter, write_tensors
from dmoerm.modeling.artifact import save_tokenizer
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.canaries import CANARIES, CANARY_TOLERANCE
from dmoerm.modeling.embedded import resolve_source
from dmoerm.modeling.model_folder import refuse_taken, written_whole
from dmoerm.modeling.peft_readme import export_readme
from dmoerm.modeling.reward_model import RewardModel, as_messages
from dmoerm.records import Message
from dmoerm.taxonomy import TASK_MEMBER

__all__ = ["EXPORT_MARKER", "ExportedAdapter", "PeftExport", "classifier_padding", "export_peft", "plain_state"]

EXPORT_MARKER = "dmoerm_export.json"

INSTEAD = (
    "Use it through RewardModel, `dmoerm score` or `dmoerm compare`, which need no export; to export, train on a decoder "
    "with backbone.pooling: last."
)


@dataclass(frozen=True, slots=True)
class ExportedAdapter:
    """One judge.

    Attributes:
        category: whose inner model it is part of.
        capability: what it judges; `task_model` is the whole response as phase 1 learned it.
        folder: adapter, relative to the export; None where the base itself is the judge (a fully fine-tuned task model).
        base: folder of the base's config and tokenizer, relative to the export.
        rank: of every layer.
        mean: of its r over the training rows; (r - mean) / std is what `RewardModel` reports. None for a task model that is no member.
        std: likewise.
    """

    category: str
    capability: str
    folder: str | None
    base: str
    rank: int
    mean: float | None
    std: float | None


@dataclass(frozen=True, slots=True)
class PeftExport:
    """What was written.

    Attributes:
        folder: the export.
        backbone: the shared base that is not copied: name and revision; its weights are in `base/` when `has_weights`.
        has_weights: the shared base was written with its weights.
        max_length_tokens: budget the model was trained with; longer texts are cut by RewardModel and not by others.
        adapters: the judges.
        texts: conversations compared in tokens, and `texts_differing` of them are tokenised otherwise by the exported chat template.
        largest_difference: between stock PEFT and this model over `texts` texts and all adapters; None when not compared.
    """

    folder: Path
    backbone: str
    revision: str | None
    has_weights: bool
    max_length_tokens: int
    adapters: tuple[ExportedAdapter, ...]
    texts: int
    texts_differing: int
    largest_difference: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": "peft", "dmoerm_version": version("dmoerm"), **{k: v for k, v in asdict(self).items() if k != "folder"}}


def export_peft(
    model: RewardModel,
    out: Path,
    *,
    categories: Sequence[str] = (),
    with_base: bool = False,
    check: bool = True,
    overwrite: bool = False,
) -> PeftExport:
    """Write the experts and task models of a decoder as PEFT adapters.

    Args:
        model: the model.
        out: the folder to write.
        categories: whose judges to write; none named means all.
        with_base: also write the backbone's weights as a sequence classifier with a head of zeros (vLLM needs one; PEFT does not).
        check: where `peft` is installed, load every adapter with it and compare with this model.
        overwrite: replace an earlier export.

    Raises:
        ConfigError: the model is no decoder pooled at its last token, or a category is unknown.
        ArtifactError: the folder is taken, or PEFT gives another value than this model.
    """
    refuse_taken(out, marker=EXPORT_MARKER, what="export", overwrite=overwrite)
    chosen = _chosen(model, categories)
    pad = classifier_padding(model.renderer, model.backbone.model.config.vocab_size)
    config = classifier_config(model.backbone, pad)
    tokenizer = copy.deepcopy(model.renderer.tokenizer)
    tokenizer.chat_template = equal_template(tokenizer)
    tokenizer.model_max_length = model.renderer.max_length_tokens
    tokenizer.padding_side = "right"
    with written_whole(out) as folder:
        _write_base(folder / "base", config, tokenizer, model.backbone if with_base else None, None)
        adapters: list[ExportedAdapter] = []
        for category in chosen:
            adapters += _write_category(model, category, folder, config, tokenizer)
        rendered = _canary_rows(model)
        differing = sum(not _same_tokens(tokenizer, *pair) for pair in rendered)
        largest = None
        if check and rendered and importlib.util.find_spec("peft") is not None:
            largest = _compare(model, folder, adapters, [row for _, row in rendered])
        result = PeftExport(
            folder=out,
            backbone=model.backbone.name,
            revision=model.backbone.revision,
            has_weights=with_base,
            max_length_tokens=model.renderer.max_length_tokens,
            adapters=tuple(adapters),
            texts=len(rendered),
            texts_differing=differing,
            largest_difference=largest,
        )
        (folder / EXPORT_MARKER).write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(export_readme(result), encoding="utf-8")
    return result


# --- what can be exported -----------------------------------------------------------------------------------------------------------


def classifier_config(backbone: Backbone, pad_token_id: int) -> PreTrainedConfig:
    """The backbone's config as that of a sequence classifier with one output.

    Raises:
        ConfigError: the family has no such classifier, or one that reads something else than the last token with a bare linear head.
    """
    where = f"backbone {backbone.name}"
    if backbone.pooling != "last":
        raise ConfigError(f"{where} pools by {backbone.pooling!r}; a sequence classifier in PEFT and vLLM reads the last token. {INSTEAD}")
    config = copy.deepcopy(backbone.model.config)
    config.num_labels = 1
    config.problem_type = "regression"  # keeps vLLM from a sigmoid
    config.pad_token_id = pad_token_id
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise ConfigError(f"{where}: transformers has no sequence classifier for {config.model_type!r}. {INSTEAD}") from error
    score = getattr(classifier, "score", None)
    body = getattr(classifier, backbone.model.base_model_prefix, None)
    fits = isinstance(score, nn.Linear) and score.bias is None and isinstance(body, nn.Module)
    if not fits or set(body.state_dict()) != set(plain_state(backbone)):  # type: ignore[union-attr]
        raise ConfigError(f"{where}: {type(classifier).__name__} is not this backbone with a linear head without bias. {INSTEAD}")
    config.architectures = [type(classifier).__name__]
    return config


def plain_state(backbone: Backbone) -> dict[str, Tensor]:
    """The pretrained model's weights under its own names, adapters left out."""
    from dmoerm.modeling.backbone import plain_path

    state = backbone.model.state_dict()
    return {plain_path(name): value for name, value in state.items() if ".task." not in name and ".experts." not in name}


def _chosen(model: RewardModel, categories: Sequence[str]) -> list[str]:
    if unknown := sorted(set(categories) - set(model.inner)):
        raise ConfigError(f"category {unknown[0]!r} has no inner model here; choose from {', '.join(model.inner)}")
    return [name for name in model.inner if not categories or name in categories]


def classifier_padding(renderer: Renderer, vocabulary: int) -> int:
    """The id by which a classifier finds the end of a row: it takes the last token that is not this one.

    Args:
        renderer: with the tokenizer.
        vocabulary: entries of the embedding.

    Raises:
        ConfigError: the tokenizer has no padding token of its own with an embedding.
    """
    tokenizer = renderer.tokenizer
    pad = tokenizer.pad_token_id
    if pad is None or pad == tokenizer.eos_token_id or pad >= vocabulary:
        raise ConfigError(
            f"the padding token has id {pad}, the end token {tokenizer.eos_token_id}, the vocabulary {vocabulary} entries; a sequence "
            "classifier needs a padding token of its own with an embedding, or it cuts the end token off. Train with one that has it."
        )
    last = renderer.render((Message("user", "a"),), ["a"])[0].input_ids[-1]
    if last == pad:
        raise ConfigError("a rendered response ends with the padding token, so a sequence classifier would read the token before it. "
                          "Give the tokenizer another pad_token, and train again.")  # fmt: skip
    return int(pad)


# --- writing ------------------------------------------------------------------------------------------------------------------------


def _write_base(
    folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, backbone: Backbone | None, head_D: Tensor | None
) -> None:
    """Config and tokenizer, and with a backbone its weights; a head of zeros makes a forgotten adapter show as 0."""
    config.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    if backbone is not None:
        prefix = backbone.model.base_model_prefix
        head_1D = torch.zeros(1, backbone.hidden_size) if head_D is None else head_D.unsqueeze(0)
        tensors = {f"{prefix}.{name}": value for name, value in plain_state(backbone).items()}
        write_tensors({**tensors, "score.weight": head_1D.float()}, folder / "model.safetensors")


def _write_category(
    model: RewardModel, category: str, folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> Iterator[ExportedAdapter]:
    inner, own = model.inner[category], model.own_backbones.get(category)
    backbone = own or model.backbone
    base = "base" if own is None else f"own_bases/{category}"
    if own is not None:
        _write_base(folder / base, config, tokenizer, own, inner.task_head_D)
    for capability in (TASK_MEMBER, *inner.capabilities):
        member = inner.members.index(capability) if capability in inner.members else None
        is_task = capability == TASK_MEMBER
        mean, std = (None, None) if member is None else (float(inner.scalar_mean_K[member]), float(inner.scalar_std_K[member]))
        target, rank = f"adapters/{category}/{capability}", 0
        if own is None or not is_task:
            tensors, rank, layers = _combined(backbone, category, None if is_task else member)
            head_D = inner.task_head_D if is_task else inner.heads_KD[member]
            written = adapter_config(
                base=base if own is not None else backbone.name,
                revision=None if own is not None else backbone.revision,
                rank=rank,
                alpha=rank,
                dropout=0.0,
                targets=backbone.target_modules,
                layers=layers,
                head=True,
            )
            write_adapter(folder / target, tensors, written, head=head_D)
        yield ExportedAdapter(category, capability, target if rank else None, base, rank, mean, std)


def _combined(backbone: Backbone, category: str, member: int | None) -> tuple[dict[str, Tensor], int, set[int]]:
    """PEFT's tensors of the task adapter and, with a member, its expert, as one adapter; its rank; the layers it touches."""
    parts = [(backbone.adapters("task", category), 0)] if f"task/{category}" in backbone.adapter_config else []
    parts += [] if member is None else [(backbone.adapters("experts", category), member)]
    ranks = [next(iter(updates.values())).rank for updates, _ in parts]
    tensors: dict[str, Tensor] = {}
    paths = sorted({path for updates, _ in parts for path in updates})
    for path in paths:
        known = next(updates[path] for updates, _ in parts if path in updates)
        down, up = [], []
        for (updates, index), rank in zip(parts, ranks, strict=True):
            update = updates.get(path)
            down.append(known.a_KRD.new_zeros(rank, known.a_KRD.shape[2]) if update is None else update.a_KRD[index])
            up.append(known.b_KOR.new_zeros(known.b_KOR.shape[1], rank) if update is None else update.scaling * update.b_KOR[index])
        tensors[weight_name(backbone, path, "A")] = torch.cat(down, 0)
        tensors[weight_name(backbone, path, "B")] = torch.cat(up, 1)
    return tensors, sum(ranks), {next(int(part) for part in path.split(".") if part.isdigit()) for path in paths}


# --- comparing with what others compute ---------------------------------------------------------------------------------------------


def _canary_rows(model: RewardModel) -> list[tuple[list[dict[str, str]], Rendered]]:
    """Conversations that fit the budget, and how this model renders them."""
    rows = []
    for prompt, response in CANARIES:
        row = model.renderer.render(as_messages(prompt), [response])[0]
        if not (row.truncated_prompt or row.truncated_response):
            rows.append(([{"role": "user", "content": prompt}, {"role": "assistant", "content": response}], row))
    return rows


def _same_tokens(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]], row: Rendered) -> bool:
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False)
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) == row.input_ids


def _compare(model: RewardModel, folder: Path, adapters: Sequence[ExportedAdapter], rows: Sequence[Rendered]) -> float:
    """Largest difference between stock PEFT and this model, each r relative to max(1, its size).

    Raises:
        ArtifactError: it is more than rounding.
    """
    with _quiet():
        return _largest_difference(model, folder, adapters, rows)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of two libraries about a head that the adapter is about to bring, and about each other."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)


def _largest_difference(model: RewardModel, folder: Path, adapters: Sequence[ExportedAdapter], rows: Sequence[Rendered]) -> float:
    from peft import PeftModel

    batch = {key: value.to(model.device) for key, value in collate(rows, model.renderer.tokenizer.pad_token_id).items()}
    largest = 0.0
    for base in dict.fromkeys(adapter.base for adapter in adapters):
        own = base != "base"
        source = str(folder / base) if own else resolve_source(model.backbone.name)
        classifier: Any = AutoModelForSequenceClassification.from_pretrained(
            source,
            revision=None if own else model.backbone.revision,
            config=_read_config(folder / base, model.backbone),
            dtype=torch.float32,
            trust_remote_code=False,
        )
        classifier = classifier.to(model.device).eval()
        for adapter in (a for a in adapters if a.base == base):
            judge = classifier
            if adapter.folder is not None:
                judge = PeftModel.from_pretrained(classifier, folder / adapter.folder).eval()
            with torch.no_grad():
                theirs_B = judge(**batch).logits[:, 0]
            if adapter.folder is not None:
                classifier = judge.unload()
            ours_B = _ours(model, adapter, batch)
            difference = float(((theirs_B - ours_B).abs() / ours_B.abs().clamp(min=1.0)).max())
            if not difference <= CANARY_TOLERANCE:
                raise ArtifactError(
                    f"{adapter.folder or adapter.base}: PEFT gives {difference:.2g} more or less than this model, so nothing was written. "
                    "Please report the model's family; check=False (--no-check) writes it all the same."
                )
            largest = max(largest, difference)
    return largest


def _read_config(folder: Path, backbone: Backbone) -> PreTrainedConfig:
    config = type(backbone.model.config).from_pretrained(folder)
    config._attn_implementation = backbone.model.config._attn_implementation
    return config


def _ours(model: RewardModel, adapter: ExportedAdapter, batch: Mapping[str, Tensor]) -> Tensor:
    inner, own = model.inner[adapter.category], model.own_backbones.get(adapter.category)
    backbone = own or model.backbone
    is_task = adapter.capability == TASK_MEMBER
    with torch.no_grad():
        vectors_BKD = backbone.pooled(batch, task=None if own else adapter.category, experts=None if is_task else adapter.category)
        if is_task:
            return vectors_BKD[:, 0] @ inner.task_head_D
        return inner.scalars(vectors_BKD)[:, inner.members.index(adapter.capability)]
