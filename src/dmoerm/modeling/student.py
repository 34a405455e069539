"""The student of an export: one stock sequence classifier with one label, its first weights, and a tokenizer that needs no code of ours.

The student starts as the body of the teacher's `general` task model (its adapter added into the weights), or as another backbone. What
stands on top is what the family's stock class has there, so that `AutoModelForSequenceClassification` loads it:

- a decoder: a linear head without bias at the last token that is not padding;
- BERT: the stock class reads [CLS] through a dense layer and a tanh, while sentence encoders such as MiniLM keep what they know in the
  mean over all tokens. So one more layer is put on top that begins as that mean: its queries are zero (every token gets the same
  attention), its values and outputs are the identity, its feed-forward part adds nothing. All of it goes on learning;
- ModernBERT: the mean, which its class offers;
- other encoders: their own head, new.

A stock tokenizer reads a row a little otherwise than a teacher. It cuts on one side only, so `reading_of` finds the side on which more
of what the teacher sees is left. And it gives every token segment 0, where a BERT teacher reads responses as segment 1; as a response has
mostly begun after some tens of tokens, the difference of the two segment vectors goes into the position vectors, weighed by how often a
position lies in a response.

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
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from dmoerm.data.frames import equal_template
from dmoerm.data.rendering import Rendered, Renderer
from dmoerm.errors import ConfigError, DataError
from dmoerm.modeling.artifact import save_tokenizer
from dmoerm.modeling.backbone import Backbone, load_tokenizer
from dmoerm.modeling.peft_export import classifier_padding, plain_state
from dmoerm.modeling.reward_model import RewardModel
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

MEAN_WEIGHT = 4.0
"""Weight of the mean over tokens beside [CLS] itself, which the residual path of the added layer carries along."""

POOLER_GAIN = 0.25
"""Of BERT's pooler at the start: its tanh stays near linear for the values that come out of a layer norm."""


Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a student has to know of how its teacher reads the rows it learns from.

    Attributes:
        truncation_side: where a stock tokenizer has to cut so that more of what the teacher sees is left.
        response_share_T: by position, the share of rows of that length whose response has begun there, 0 to 1; empty where the teacher
            does not tell segments apart.
    """

    truncation_side: Side = "right"
    response_share_T: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Student:
    """A stock classifier with its tokenizer.

    Attributes:
        model: num_labels 1, float32.
        tokenizer: its chat template writes the whole row; it adds nothing by itself.
        backbone: name of what it was made from.
        from_teacher: it starts from the teacher's `general` task model, not from the bare backbone.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    backbone: str
    from_teacher: bool

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
    kept, rendered = {"right": 0, "left": 0}, []
    for prompt, responses in rows:
        try:
            found = renderer.render(prompt, responses)
        except DataError:
            continue
        rendered += found
        for row, response in zip(found, responses, strict=True):
            if row.truncated_prompt or row.truncated_response:
                whole, seen = _whole(stock, prompt, response), Counter(row.input_ids)
                kept["right"] += (Counter(whole[: renderer.max_length_tokens]) & seen).total()
                kept["left"] += (Counter(whole[-renderer.max_length_tokens :]) & seen).total()
    side: Side = "left" if kept["left"] > kept["right"] else "right"
    return Reading(side, _response_share(rendered))


def build_student(teacher: RewardModel, *, backbone: str | None = None, reading: Reading | None = None, seed: int = 0) -> Student:
    """A student that has not learned yet.

    Args:
        teacher: gives the token budget and, unless `backbone` is named, the body and its weights.
        backbone: folder or Hub id of another pretrained model.
        reading: how the teacher reads the rows to learn from; None: cut on the right, segments as the stock class has them.
        seed: of weights that no checkpoint has.

    Raises:
        ConfigError: transformers has no such classifier for the family, or the tokenizer cannot pad for one.
    """
    reading, renderer = reading or Reading(), student_renderer(teacher, backbone)
    budget = renderer.max_length_tokens
    if backbone is None:
        own = teacher.own_backbones.get(GENERAL)
        body = own or teacher.backbone
        state = _merged(body, None if own else GENERAL)
        _fold_segments(state, reading.response_share_T)
    else:
        body = Backbone.load(backbone)
        state = plain_state(body)
    config = _config(body, renderer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _classifier(config, body.name)
    _load_body(model, state, body)
    positions = getattr(config, "max_position_embeddings", None) or budget
    tokenizer = stock_tokenizer(renderer.tokenizer, min(budget, int(positions)), reading.truncation_side)
    return Student(model.eval(), tokenizer, body.name, backbone is None)


def stock_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length_tokens: int, truncation_side: Side) -> PreTrainedTokenizerFast:
    """A tokenizer of the same vocabulary whose chat template writes every special token, and that adds none of its own.

    So a text gets the same ids whether a tool asks for special tokens or not (`pipeline` does, TRL does not). It pads on the right.
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


def _response_share(rows: Sequence[Rendered]) -> tuple[float, ...]:
    if not rows or rows[0].token_type_ids is None:
        return ()
    kinds = [row.token_type_ids or () for row in rows]
    share, found = 0.0, []
    for position in range(max(map(len, kinds))):
        here = [kind[position] for kind in kinds if len(kind) > position]
        share = sum(here) / len(here)
        found.append(share)
    return tuple(found)


def _fold_segments(state: dict[str, Tensor], share_T: Sequence[float]) -> None:
    """Add to each position vector what segments add there on average in the rows of the teacher; past the longest row as at its end."""
    positions, segments = "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"
    if not share_T or positions not in state or state.get(segments, torch.zeros(1, 1)).shape[0] < 2:
        return
    count = state[positions].shape[0]
    weights_T = torch.tensor([*share_T, *[share_T[-1]] * count][:count])
    state[positions] = state[positions] + weights_T[:, None] * (state[segments][1] - state[segments][0])


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
    if config.model_type == "bert":
        config.num_hidden_layers += 1
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
    added = f"encoder.layer.{len(body.layers)}." if model.config.model_type == "bert" else "pooler."
    left = [name for name in missing if not name.startswith(("pooler.", added))]
    if left or foreign:
        raise ConfigError(
            f"backbone {body.name}: {type(model).__name__} is not this backbone with a head (differing: {[*left, *foreign][:3]}). "
            "Name another --student-backbone"
        )
    if model.config.model_type == "bert":
        _mean_layer(base)


@torch.no_grad()
def _mean_layer(base: Any) -> None:
    """Make the top layer of a BERT the mean over its tokens, read at [CLS], and its pooler nearly the identity."""
    top, below = base.encoder.layer[-1], base.encoder.layer[-2]
    attention, output = top.attention.self, top.attention.output
    eye_DD = torch.eye(base.config.hidden_size)
    attention.key.load_state_dict(below.attention.self.key.state_dict())  # not zero as well: nothing would learn then
    for linear, weight_DD in ((attention.query, 0 * eye_DD), (attention.value, eye_DD), (output.dense, MEAN_WEIGHT * eye_DD)):
        linear.weight.copy_(weight_DD)
        linear.bias.zero_()
    top.output.dense.weight.zero_()
    top.output.dense.bias.zero_()
    base.pooler.dense.weight.copy_(POOLER_GAIN * eye_DD)
    base.pooler.dense.bias.zero_()
