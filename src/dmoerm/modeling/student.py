"""The student of an export: one stock sequence classifier with one label, its first weights, and a tokenizer that needs no code of ours.

The student starts as the body of the teacher's `general` task model (its adapter added into the weights), or as another backbone. On top
stands what the family's stock class has there, so that `AutoModelForSequenceClassification` loads it:

- a decoder: a linear head without bias at the last token that is not padding;
- BERT: layers that route as the teacher does, see routed_bert.py;
- ModernBERT: the mean, which its class offers;
- other encoders: their own head, new.

A stock tokenizer cuts a row on one side only, so `reading_of` finds the side on which more of what the teacher sees is left.

Nothing here trains: `training/distillation.py` does.
"""

import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from dmoerm.data.frames import equal_template, frame_kind
from dmoerm.data.rendering import Renderer
from dmoerm.errors import ConfigError, DataError
from dmoerm.modeling.artifact import save_tokenizer
from dmoerm.modeling.backbone import Backbone, load_tokenizer
from dmoerm.modeling.peft_export import classifier_padding, plain_state
from dmoerm.modeling.reward_model import RewardModel
from dmoerm.modeling.routed_bert import CUT, RESPONSE, RoutedBert, routed_config, routed_tokens
from dmoerm.records import Message
from dmoerm.taxonomy import GENERAL

__all__ = [
    "LABEL",
    "Reading",
    "Student",
    "build_student",
    "encode",
    "final_linear",
    "reading_of",
    "save_student",
    "stock_tokenizer",
    "student_renderer",
]

LABEL = "reward"
"""Name of the one label, as `pipeline("text-classification")` prints it."""

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a student has to know of how its teacher reads the rows it learns from.

    Attributes:
        truncation_side: where a stock tokenizer has to cut so that more of what the teacher sees is left.
        characters_per_token: of prompts, above all of long ones; a template that cuts long prompts as the teacher does counts characters.
    """

    truncation_side: Side = "right"
    characters_per_token: float = 4.0


@dataclass(frozen=True, slots=True)
class Student:
    """A stock classifier with its tokenizer.

    Attributes:
        model: num_labels 1, float32.
        tokenizer: its chat template writes the whole row; it adds nothing by itself.
        backbone: name of what it was made from.
        from_teacher: it starts from the teacher's `general` task model, not from the bare backbone.
        routed: the model as what writes its readouts; None for families that have one head.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    backbone: str
    from_teacher: bool
    routed: RoutedBert | None

    @property
    def max_length_tokens(self) -> int:
        """Tokens of a row; longer ones lose the tokenizer's truncation side where the caller lets it cut."""
        return int(self.tokenizer.model_max_length)


def student_renderer(teacher: RewardModel, backbone: str | None = None) -> Renderer:
    """The teacher's renderer, or one of another backbone with the teacher's token budget."""
    return teacher.renderer if backbone is None else Renderer(load_tokenizer(backbone), teacher.renderer.max_length_tokens)


def reading_of(renderer: Renderer, rows: Sequence[tuple[tuple[Message, ...], Sequence[str]]]) -> Reading:
    """How a renderer reads prompts with their responses.

    Args:
        renderer: of the student's tokenizer, with the teacher's rules.
        rows: each prompt with its responses; prompts that cannot be rendered with all of them are passed over.
    """
    stock = stock_tokenizer(renderer.tokenizer, renderer.max_length_tokens, "right")
    kept = {"right": 0, "left": 0}
    characters = {"long": 0, "all": 0}
    tokens = {"long": 0, "all": 0}
    for prompt, responses in rows:
        text = "".join(message.content for message in prompt)
        length = len(stock(text, verbose=False)["input_ids"])
        for kind in ("long", "all") if length > renderer.max_length_tokens / 2 else ("all",):
            characters[kind] += len(text)
            tokens[kind] += length
        try:
            found = renderer.render(prompt, responses)
        except DataError:
            continue
        for row, response in zip(found, responses, strict=True):
            if row.truncated_prompt or row.truncated_response:
                whole, seen = _whole(stock, prompt, response), Counter(row.input_ids)
                kept["right"] += (Counter(whole[: renderer.max_length_tokens]) & seen).total()
                kept["left"] += (Counter(whole[-renderer.max_length_tokens :]) & seen).total()
    kind = "long" if tokens["long"] else "all"
    return Reading("left" if kept["left"] > kept["right"] else "right", characters[kind] / max(tokens[kind], 1) or 4.0)


def build_student(
    teacher: RewardModel, *, backbone: str | None = None, reading: Reading | None = None, routes: int = 1, seed: int = 0
) -> Student:
    """A student that has not learned yet.

    Args:
        teacher: gives the token budget and, unless `backbone` is named, the body and its weights.
        backbone: folder or Hub id of another pretrained model.
        reading: how the teacher reads the rows to learn from.
        routes: categories that a routed student tells apart.
        seed: of weights that no checkpoint has.

    Raises:
        ConfigError: transformers has no such classifier for the family, or the tokenizer cannot serve one.
    """
    renderer = student_renderer(teacher, backbone)
    if backbone is None:
        own = teacher.own_backbones.get(GENERAL)
        body = own or teacher.backbone
        state = _merged(body, None if own else GENERAL)
    else:
        body = Backbone.load(backbone)
        state = _merged(body, None)
    config = _config(body, renderer)
    is_bert = config.model_type == "bert"
    positions = getattr(config, "max_position_embeddings", None) or renderer.max_length_tokens
    budget = min(renderer.max_length_tokens, int(positions))
    reading = reading or Reading()
    # A routed student's template cuts long prompts itself, so that what is still too long is the end of a response.
    side: Side = "right" if is_bert else reading.truncation_side
    tokenizer = stock_tokenizer(renderer.tokenizer, budget, side, routed_characters=reading.characters_per_token if is_bert else None)
    if is_bert:
        routed_config(config, routes, len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _classifier(config, body.name).eval()
    routed = None
    if isinstance(model, BertForSequenceClassification):
        special = [tokenizer.cls_token, tokenizer.sep_token, CUT, RESPONSE]
        ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in special]
        routed = RoutedBert(model, state, ids, budget=budget, first_token=body.pooling == "first")
    else:
        _load_body(model, state, body)
    return Student(model, tokenizer, body.name, backbone is None, routed)


def stock_tokenizer(
    tokenizer: PreTrainedTokenizerBase, max_length_tokens: int, truncation_side: Side, *, routed_characters: float | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer of the same vocabulary whose chat template writes every special token, and that adds none of its own.

    So a text gets the same ids whether a tool asks for special tokens or not (`pipeline` does, TRL does not). It pads on the right. For a
    routed student the template also writes the student's own tokens, and takes the middle out of long prompts as the teacher does.

    Args:
        tokenizer: of the backbone.
        max_length_tokens: of a row.
        truncation_side: where a caller that truncates loses tokens.
        routed_characters: it is for a routed student, whose prompts have so many characters a token.

    Raises:
        ConfigError: it is for a routed student and has a chat template of its own, which does not say where the response begins.
    """
    core = json.loads(tokenizer.backend_tokenizer.to_str())  # a Renderer takes fast tokenizers only
    stock = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps({**core, "post_processor": None, "truncation": None, "padding": None})),
        **tokenizer.special_tokens_map,
        model_max_length=max_length_tokens,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        truncation_side=truncation_side,
    )
    if routed_characters is not None:
        if frame_kind(tokenizer) != "encoder":
            raise ConfigError("a BERT with a chat template of its own cannot be made a student. Name another --student-backbone")
        routed_tokens(stock)
        stock.chat_template = equal_template(
            tokenizer, start=CUT, separator=RESPONSE, room=round((max_length_tokens - 4) * routed_characters)
        )
    else:
        stock.chat_template = equal_template(tokenizer)
    return stock


def encode(tokenizer: PreTrainedTokenizerBase, prompt: tuple[Message, ...], response: str) -> tuple[list[int], bool]:
    """The ids of a row as any tool of transformers makes them, cut to the budget, and whether something was cut."""
    ids, limit = _whole(tokenizer, prompt, response), int(tokenizer.model_max_length)
    return ids[-limit:] if tokenizer.truncation_side == "left" else ids[:limit], len(ids) > limit


def _whole(tokenizer: PreTrainedTokenizerBase, prompt: tuple[Message, ...], response: str) -> list[int]:
    turns = [{"role": message.role, "content": message.content} for message in prompt]
    text = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": response}], tokenize=False)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def save_student(student: Student, folder: Path) -> None:
    """Config, weights and tokenizer, as `from_pretrained` of transformers reads them."""
    student.model.save_pretrained(folder)
    save_tokenizer(student.tokenizer, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that older versions know, too
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def final_linear(model: nn.Module) -> nn.Linear:
    """The last linear layer with one output: where the reward comes out.

    Raises:
        ConfigError: there is none.
    """
    found = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
    if not found:
        raise ConfigError(f"{type(model).__name__} has no linear layer with one output; name another --student-backbone")
    return found[-1]


# --- from backbone to classifier ----------------------------------------------------------------------------------------------------


def _merged(body: Backbone, task: str | None) -> dict[str, Tensor]:
    """The weights of a backbone with one task adapter added into them."""
    state = {name: value.detach().cpu().float() for name, value in plain_state(body).items()}
    if task is not None and f"task/{task}" in body.adapter_config:
        for path, update in body.adapters("task", task).items():
            product_OD = update.scaling * (update.b_KOR[0] @ update.a_KRD[0])
            state[f"{path}.weight"] = state[f"{path}.weight"] + product_OD.detach().cpu()
    return state


def _config(body: Backbone, renderer: Renderer) -> PreTrainedConfig:
    config = copy.deepcopy(body.model.config)
    config.num_labels, config.problem_type = 1, "regression"  # keeps pipelines and vLLM from a sigmoid
    config.id2label, config.label2id = {0: LABEL}, {LABEL: 0}
    config.pad_token_id = renderer.tokenizer.pad_token_id
    if _is_decoder(body):
        config.pad_token_id = classifier_padding(renderer, config.vocab_size)
    if config.model_type == "modernbert":
        config.classifier_pooling = "mean"
    return config


def _is_decoder(body: Backbone) -> bool:
    return any(getattr(module, "is_causal", False) for module in body.model.modules())


def _classifier(config: PreTrainedConfig, name: str) -> PreTrainedModel:
    try:
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise ConfigError(
            f"backbone {name}: transformers has no sequence classifier for {config.model_type!r}. Name another --student-backbone"
        ) from error
    final_linear(model)
    model.config.architectures = [type(model).__name__]
    return model.float()


def _load_body(model: PreTrainedModel, state: dict[str, Tensor], body: Backbone) -> None:
    base: Any = getattr(model, model.base_model_prefix)
    try:
        missing, foreign = base.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a shape
        raise ConfigError(f"backbone {body.name}: {str(error).splitlines()[-1].strip()}. Name another --student-backbone") from error
    left = [name for name in missing if not name.startswith("pooler.")]
    if left or foreign:
        raise ConfigError(
            f"backbone {body.name}: {type(model).__name__} is not this backbone with a head (differing: {[*left, *foreign][:3]}). "
            "Name another --student-backbone"
        )
