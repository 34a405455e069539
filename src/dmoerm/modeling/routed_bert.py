"""A double-layer model of a BERT backbone as one stock BERT: its layers are computed with, not only trained.

One linear head on a BERT cannot do what heads by category do, and a stock classifier reads a row with less than its teacher has: no
segments, and no closing [SEP] where a tokenizer cuts a row. So the stock class gets weights by which its layers compute these things:

    embeddings      of the words; position vectors as the teacher has them
    1 layer         segments: a token asks whether it stands behind [response]; what the segment vectors differ by is added then
    N layers        the body, number for number
    1 layer         reads: mean over the row → a reward for each route; means over prompt and row → a gate for each route
    1 layer         mixes: a softmax of the gates over the first tokens, one token a route, weighs the rewards
    pooler, head    the mixed reward, in the teacher's unit

Beside the D numbers of the body a token carries *channels* for what the body does not know: a one, its position, marks. Each is a pair
of numbers, +v and −v, and what reads a channel takes half their difference: so layer norms, which shift and scale all numbers of a token
alike, move no mark that is zero away from zero and scale the others all alike. Channels are small beside the body (`UNIT`), and each
head has a few dimensions more than the body's, by which it can be told not to see a token.

A row is `[CLS] [cut] prompt [response] response [SEP]`. [response] has the vector of [SEP], whose place it takes. [cut] is the closing
[SEP] of a row that has lost its own to a tokenizer that cuts on the right; in rows that end with [SEP] nothing sees it.

What is not exact: the mean that a layer norm takes over more numbers than the body's (a few thousandths of a number). Nothing large is
computed that has to cancel, so sixteen bits do as well, but for the edge of the segments.
tests/test_routed_bert.py compares with the body and with the formula.

Shapes: D width of the body, W width of the student, C routes, B rows, L tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AddedToken, BertForSequenceClassification, PreTrainedConfig, PreTrainedTokenizerBase

from dmoerm.errors import ConfigError

__all__ = ["CUT", "RESPONSE", "Readouts", "RoutedBert", "routed_config", "routed_tokens"]

CUT, RESPONSE = "[dmoerm-cut]", "[dmoerm-response]"
"""Tokens of the student's own."""

UNIT = 0.15
"""A one in a channel, beside numbers of the body with a variance of 1."""

ALIVE = 0.6
"""Factor of channels in layer norms of the body until `RoutedBert.settle` has seen rows."""

SHARP = 40.0
"""Logits between a position and the next one, where a token asks whether it stands behind another."""

FAR = 200.0
"""Logits by which what must not be seen is out of sight."""

STEP = 80.0
"""Slope of units that turn a mark into on or off."""

HEIGHT = 10.0
"""What such a unit gives when on, in its activation's linear part."""

RENEWING = 1e4
"""Slope of the units that renew the mark of the first token."""

FILLED = 20.0
"""By what the layer norm of the layer that reads divides: a filler beside which the body's numbers vanish makes it a constant."""

APART = 40.0
"""Logits between the tokens that speak for routes and the others."""

SMALL = 0.1
"""Scale of rewards and gates, from −1 to 1, beside the filler in the layer that mixes."""

UNITS_OF_ROUTE = 5

OUT, POOLED = 0.3, 0.3
"""Scale of the mixed reward in its channel, and before the pooler's tanh: small enough for it to be near linear."""

ACTIVATIONS = frozenset({"gelu", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "quick_gelu", "relu"})

TABLES = ("word", "position", "token_type")

BODY_CHANNELS = (
    *("one", "place", "start", "first", "cut", "response", "closing"),  # of a word or a position
    *("behind", "closed", "hidden", "later"),  # found by the first layer
    *("filler", "slot", "key", "value", "mixed"),  # of the top
)


@dataclass(frozen=True, slots=True)
class Readouts:
    """What the top layers compute of the body's last vectors.

    The reward of a row is Σ_c softmax(gates)_c · reward_c with reward_c = reward_CD · pooled row + reward_bias_C, and
    gates = gate_prompt_CD · mean over the prompt's tokens + gate_row_CD · pooled row + gate_bias_C.

    Attributes:
        reward_CD, reward_bias_C: a reward for each route, in the teacher's unit.
        gate_prompt_CD, gate_row_CD, gate_bias_C: log-odds of the routes.
        reward_range: lowest and highest reward of a route, for scale; the pooler's tanh bends what lies several times as far out.
        gate_range: likewise of the gates.
    """

    reward_CD: Tensor
    reward_bias_C: Tensor
    gate_prompt_CD: Tensor
    gate_row_CD: Tensor
    gate_bias_C: Tensor
    reward_range: tuple[float, float]
    gate_range: tuple[float, float]


def routed_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the student's own tokens to a tokenizer."""
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in (CUT, RESPONSE)], special_tokens=True)


def routed_config(config: PreTrainedConfig, routes: int, vocabulary: int) -> PreTrainedConfig:
    """A body's config, made wide and deep enough; changed in place and returned.

    Args:
        config: of a `BertModel`.
        routes: C.
        vocabulary: entries of the tokenizer with its added tokens.

    Raises:
        ConfigError: the body has one head, which cannot look at prompt and row apart, or another activation than those known to be the
            identity far above zero and nothing far below.
    """
    heads, width = config.num_attention_heads, config.hidden_size
    if heads < 2 or config.hidden_act not in ACTIVATIONS:
        raise ConfigError(
            f"a student of a BERT with {heads} attention heads and the activation {config.hidden_act!r} is not made; expected at least 2 "
            f"heads and one of {', '.join(sorted(ACTIVATIONS))}. Name another --student-backbone"
        )
    head, channels = width // heads, len(BODY_CHANNELS) + 3 * routes
    wide = next(w for w in range(8 * (head // 8 + 1), 10**6, 8) if (w - head) * heads >= 2 * channels and w >= 2 * routes)
    config.hidden_size = heads * wide
    config.num_hidden_layers += 3
    config.intermediate_size = max(-(-(config.intermediate_size + 2) // 8) * 8, UNITS_OF_ROUTE * routes)
    config.vocab_size = max(config.vocab_size, vocabulary)
    config.dmoerm_body_size, config.dmoerm_routes = width, routes
    return config


class RoutedBert:
    """The weights of a stock BERT classifier, written for a body and its readouts.

    Args:
        model: new, of `routed_config`; its weights are overwritten.
        state: of the body, float32.
        ids: of [CLS], [SEP], `CUT` and `RESPONSE`, in this order.
        budget: tokens of a row.
        first_token: the body pools its first token instead of the mean over the row.
    """

    def __init__(
        self, model: BertForSequenceClassification, state: Mapping[str, Tensor], ids: Sequence[int], *, budget: int, first_token: bool
    ) -> None:
        config = model.config
        self.model = model
        self._body, self._width, self._routes = int(config.dmoerm_body_size), int(config.hidden_size), int(config.dmoerm_routes)
        self._heads, self._first_token = int(config.num_attention_heads), first_token
        self._head, self._wide = self._body // self._heads, self._width // self._heads
        _, self._closing, self._cut, self._response = ids
        self._budget = budget
        names = [*BODY_CHANNELS, *(f"{what} {route}" for what in ("slot", "reward", "gate") for route in range(self._routes))]
        self._place = {name: self._body + 2 * index for index, name in enumerate(names)}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            self._embeddings(state)
            shift = self._segment_layer(state)
            for index, layer in enumerate(self._layers[1:-2]):
                prefix = f"encoder.layer.{index}."
                parts = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
                shift = self._body_layer(layer, parts, shift)
            for layer in self._layers[-2:]:
                for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm):
                    norm.weight.fill_(1.0)

    @property
    def body_size(self) -> int:
        """D."""
        return self._body

    # --- what the body sees ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def settle(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        """Keep ones near `UNIT` in every layer: a layer norm of the body multiplies channels by what it divides tokens by, on average.

        Args:
            input_ids: some rows as the student will see them, shape (B, L).
            attention_mask: 0 where they are padded.
        """
        norms = [norm for layer in self._layers[1:-2] for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm)]
        counted_BL = attention_mask.bool().clone()
        counted_BL[:, 0] = False  # whose numbers are beyond all others in some bodies

        def measure(norm: Any, inputs: tuple[Tensor, ...]) -> None:
            norm.weight[self._body :] = inputs[0].std(-1, correction=0)[counted_BL].mean()

        handles = [norm.register_forward_pre_hook(measure) for norm in norms]
        try:
            self.model.bert(input_ids=input_ids, attention_mask=attention_mask)
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def features(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over the prompt's tokens and pooled row, as the readouts see them, shape (B, D) each."""
        hidden = self.model.bert(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
        vectors_BLD = hidden[len(self._layers) - 2][..., : self._body].float()
        is_response_BL = input_ids == self._response
        behind_BL = is_response_BL.cumsum(1) - is_response_BL.long() > 0
        cut_BL, alive_BL = input_ids == self._cut, attention_mask.bool()
        closed_B1 = (input_ids == self._closing).any(1, keepdim=True)
        prompt_BD = _mean(vectors_BLD, alive_BL & ~behind_BL & ~cut_BL)
        row_BD = vectors_BLD[:, 0] if self._first_token else _mean(vectors_BLD, alive_BL & ~(cut_BL & closed_B1))
        return prompt_BD, row_BD

    # --- the top --------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def write(self, readouts: Readouts) -> None:
        """Set the two top layers, the pooler and the head."""
        rewards, gates = _Scale(readouts.reward_range), _Scale(readouts.gate_range)
        reader, mixer = self._layers[-2:]
        for layer in (reader, mixer):
            for linear in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value, layer.attention.output.dense,
                           layer.intermediate.dense, layer.output.dense):  # fmt: skip
                linear.weight.zero_()
                linear.bias.zero_()
        attention, out = reader.attention.self, reader.attention.output.dense
        hide = FAR * self._root / UNIT
        self._ask(attention, 0, -hide * (self._read("later") + self._read("cut")))
        self._ask(attention, 1, -hide * (self._read("one") - self._read("start") if self._first_token else self._read("hidden")))
        out.bias[:] = FILLED * math.sqrt(self._width / 2) * self._write("filler")
        inner, outer = reader.intermediate.dense, reader.output.dense
        for route in range(self._routes):
            prompt, reward, gate = route, self._wide + route, self._wide + self._routes + route
            attention.value.weight[prompt, : self._body] = readouts.gate_prompt_CD[route] / gates.half
            attention.value.weight[gate, : self._body] = readouts.gate_row_CD[route] / gates.half
            attention.value.weight[reward, : self._body] = readouts.reward_CD[route] / rewards.half
            # Biases go to values and not to their mean: so nothing large is rounded before it cancels.
            attention.value.bias[gate] = gates.within(float(readouts.gate_bias_C[route]))
            attention.value.bias[reward] = rewards.within(float(readouts.reward_bias_C[route]))
            out.weight[:, prompt] = out.weight[:, gate] = self._write(f"gate {route}")
            out.weight[:, reward] = self._write(f"reward {route}")
            # 0 at the route's own token, far below at all others; [CLS], where ones may have been scaled away, says itself who it is.
            elsewhere = 2 * FAR * FILLED / UNIT * (self._read(f"slot {route}") - self._read("one") - 2 * self._read("first"))
            for unit, source, target in ((0, "reward", "value"), (2, "gate", "key")):
                first, second = UNITS_OF_ROUTE * route + unit, UNITS_OF_ROUTE * route + unit + 1
                asked, told = HEIGHT * FILLED * self._read(f"{source} {route}"), SMALL / HEIGHT * self._write(target)
                inner.weight[first], inner.weight[second] = elsewhere + asked, elsewhere - asked  # gelu(x) − gelu(−x) = x
                outer.weight[:, first], outer.weight[:, second] = told, -told
            last = UNITS_OF_ROUTE * route + 4
            inner.weight[last], inner.bias[last] = elsewhere, HEIGHT
            outer.weight[:, last] = SMALL / HEIGHT * self._write("slot")
        # Of the first tokens each speaks for its route, and no other speaks.
        self._ask(
            mixer.attention.self, 0, self._root / SMALL * APART * self._read("slot"), gates.half * self._root / SMALL * self._read("key")
        )
        mixer.attention.self.value.weight[0] = self._read("value") / SMALL
        mixer.attention.output.dense.weight[:, 0] = OUT * self._write("mixed")
        pooler, head = self.model.bert.pooler.dense, self.model.classifier
        pooler.weight[0] = POOLED * self._read("mixed")
        head.weight[0, 0] = rewards.half / (OUT * POOLED)
        head.bias.fill_(rewards.middle)

    def only_the_body_learns(self) -> None:
        """Keep gradients from everything that training would break: what is not a weight of the body or of a route's reward.

        From then on the other weights require none, and hooks clear what reaches channels and added dimensions.
        """
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        body, units = slice(0, self._body), slice(0, self._units)
        own_W = torch.arange(self._width) % self._wide < self._head  # dimensions of heads that are the body's
        for layer in self._layers[1:-2]:
            attention = layer.attention
            for linear, rows, columns in (
                (attention.self.query, own_W, body),
                (attention.self.key, own_W, body),
                (attention.self.value, own_W, body),
                (attention.output.dense, body, own_W),
                (layer.intermediate.dense, units, body),
                (layer.output.dense, body, units),
            ):
                _learns(linear.weight, rows, columns)
                _learns(linear.bias, rows)
            for norm in (attention.output.LayerNorm, layer.output.LayerNorm):
                _learns(norm.weight, body)
                _learns(norm.bias, body)
        _learns(self._layers[-2].attention.self.value.weight, slice(self._wide, self._wide + self._routes), body)

    # --- inside ---------------------------------------------------------------------------------------------------------------------

    @property
    def _layers(self) -> Any:
        return self.model.bert.encoder.layer

    @property
    def _root(self) -> float:
        return math.sqrt(self._wide)

    def _read(self, channel: str) -> Tensor:
        vector = torch.zeros(self._width)
        vector[self._place[channel]], vector[self._place[channel] + 1] = 0.5, -0.5
        return vector

    def _write(self, channel: str) -> Tensor:
        return 2 * self._read(channel)

    def _ask(self, attention: Any, head: int, *keys: Tensor) -> None:
        """Let every token of a head ask for tokens by a score that is a reading of theirs alone, times the root of the head's width.

        Several readings are added, each from a dimension of its own, so that a large one does not round a small one.
        """
        for place, key in enumerate(keys, head * self._wide):
            attention.query.bias[place] = 1.0
            attention.key.weight[place] = key

    def _embeddings(self, state: Mapping[str, Tensor]) -> None:
        """Words, positions, and the channels that a token's word or position decides. All vectors are centred: a layer norm follows."""
        target = self.model.bert.embeddings
        words_VD, places_TD, kinds_KD = (_centred(state[f"embeddings.{name}_embeddings.weight"]) for name in TABLES)
        words, places = target.word_embeddings.weight, target.position_embeddings.weight
        typed_D = _typed(state)
        words[: len(words_VD), : self._body] = words_VD + kinds_KD[0]
        words[self._response, : self._body] = words_VD[self._closing] + kinds_KD[0]
        words[self._cut, : self._body] = words_VD[self._closing] + kinds_KD[0] + typed_D
        # [cut] stands at 1 and is the end of a full row; what follows it stands one place further on than in the teacher's row.
        places[:, : self._body] = places_TD[[0, self._budget - 1, *range(1, len(places) - 1)]]
        self._one = UNIT * self._deviation(words[: len(words_VD)])
        words += self._one * self._write("one")
        for token, channel in ((self._cut, "cut"), (self._response, "response"), (self._closing, "closing")):
            words[token] += self._one * self._write(channel)
        places += self._one * torch.arange(len(places))[:, None] / self._budget * self._write("place")
        for place, channels in enumerate((("start", "first"), *((f"slot {route}",) for route in range(self._routes)))):
            places[place] += self._one * sum(map(self._write, channels))
        target.LayerNorm.weight.fill_(1.0)

    def _deviation(self, words_VW: Tensor) -> float:
        """Standard deviation that the layer norm after the embeddings finds at these words, on average over them and positions."""
        places_TW = self.model.bert.embeddings.position_embeddings.weight[: self._budget]
        # Words and positions are near orthogonal, so their variances add, but for what all positions have in common.
        common_W = places_TW.mean(0)
        variance = (words_VW + common_W).square().mean() + (places_TW - common_W).square().mean()
        return float(variance.sqrt())

    def _segment_layer(self, state: Mapping[str, Tensor]) -> float:
        """The layer that finds segments; returns the shift of what it gives (see `_body_layer`)."""
        layer, words = self._layers[0], self.model.bert.embeddings.word_embeddings.weight
        attention, out = layer.attention.self, layer.attention.output.dense
        elsewhere = FAR * self._root / UNIT
        # Head 0: [response] at q is asked for by a token at p with SHARP · (p − q − ½) and [CLS] with 0; all others lie below.
        steep = math.sqrt(SHARP * self._root * self._budget) / UNIT
        attention.query.weight[0] = steep * self._read("place")
        attention.key.weight[0] = steep * self._read("response")
        attention.query.weight[1] = steep * self._read("one")
        attention.key.weight[1] = -steep * (self._read("place") + 0.5 / self._budget * self._read("response"))
        attention.query.bias[2] = 1.0
        attention.key.weight[2] = elsewhere * (self._read("response") + self._read("start") - self._read("one"))
        # Head 1: a closing [SEP] where there is one, else [CLS].
        self._ask(attention, 1, elsewhere * (2 * self._read("closing") + self._read("start") - self._read("one")))
        for head, token, found, told in ((0, self._response, "response", "behind"), (1, self._closing, "closing", "closed")):
            attention.value.weight[head * self._wide] = self._deviation(words[token : token + 1]) / self._one * self._read(found)
            out.weight[:, head * self._wide] = UNIT * self._write(told)
        # On or off: two units, both in their linear part when on, differ by as many ones of the token as `height` says.
        inner, outer = layer.intermediate.dense, layer.output.dense
        height = HEIGHT / UNIT
        later, only_cut = self._write("later"), 4 * STEP / UNIT * (self._read("cut") - self._read("one"))
        later[: self._body] += _typed(state) / self._one
        for unit, asked, written in (
            (0, STEP / UNIT * self._read("behind"), later),
            (2, STEP / UNIT * self._read("closed") + only_cut, self._write("hidden")),
        ):
            inner.weight[unit], inner.weight[unit + 1] = asked, asked - height * self._read("one")
            inner.bias[unit : unit + 2] = -STEP / 2
            outer.weight[:, unit], outer.weight[:, unit + 1] = written / height, -written / height
        layer.attention.output.LayerNorm.weight.fill_(1.0)
        return self._norm(layer.output.LayerNorm, state, "embeddings.LayerNorm", channels=1.0)

    def _body_layer(self, layer: Any, state: Mapping[str, Tensor], shift: float) -> float:
        """One layer of the body.

        A layer norm takes its mean over all numbers of a token, and channels come in pairs that add to nothing. So what enters one is
        centred, as far as constants go: output weights are, and biases of norms, whose mean the next layer's weights are told (`shift`:
        what its input lacks in every number). What is left, a mean that differs between tokens, is small.
        """
        attention, out = layer.attention, layer.attention.output.dense
        sizes = (self._heads, self._head, self._wide)
        for name, factor in (("query", (self._wide / self._head) ** 0.5), ("key", 1.0), ("value", 1.0)):
            target = getattr(attention.self, name)
            weight_DD, bias_D = state[f"attention.self.{name}.weight"], state[f"attention.self.{name}.bias"]
            target.weight[:, : self._body] = factor * _spread(weight_DD, *sizes)
            target.bias.copy_(factor * _spread((bias_D + shift * weight_DD.sum(1))[:, None], *sizes)[:, 0])
        # The first dimension that a head has more than the body's: a score far below all others for what is hidden.
        extra = slice(self._head, None, self._wide)
        attention.self.query.bias[extra] = 1.0
        attention.self.key.weight[extra] = -FAR * self._root / UNIT * self._read("hidden")
        out.weight[: self._body] = _spread(_centred(state["attention.output.dense.weight"].T), *sizes).T
        out.bias[: self._body] = _centred(state["attention.output.dense.bias"])
        shift = self._norm(attention.output.LayerNorm, state, "attention.output.LayerNorm", channels=ALIVE)
        inner, outer = layer.intermediate.dense, layer.output.dense
        weight_FD = state["intermediate.dense.weight"]
        units = self._units = len(weight_FD)
        inner.weight[:units, : self._body] = weight_FD
        inner.bias[:units] = state["intermediate.dense.bias"] + shift * weight_FD.sum(1)
        outer.weight[: self._body, :units] = _centred(state["output.dense.weight"].T).T
        outer.bias[: self._body] = _centred(state["output.dense.bias"])
        # Some bodies let the numbers of [CLS] grow until a layer norm scales its channels away, so the mark that it is first is renewed.
        inner.weight[units], inner.weight[units + 1] = RENEWING * self._read("first"), RENEWING * self._read("first")
        inner.bias[units], inner.bias[units + 1] = -2 * HEIGHT, -3 * HEIGHT
        outer.weight[:, units], outer.weight[:, units + 1] = self._write("first") / HEIGHT, -self._write("first") / HEIGHT
        return self._norm(layer.output.LayerNorm, state, "output.LayerNorm", channels=ALIVE)

    def _norm(self, norm: Any, state: Mapping[str, Tensor], name: str, *, channels: float) -> float:
        """Set a layer norm; returns the mean of its bias, which it lacks now."""
        bias_D = state[f"{name}.bias"]
        norm.weight.fill_(channels)
        norm.weight[: self._body] = (self._body / self._width) ** 0.5 * state[f"{name}.weight"]
        norm.bias[: self._body] = _centred(bias_D)
        return float(bias_D.mean())


class _Scale:
    """A range, mapped to −1 to 1."""

    def __init__(self, bounds: tuple[float, float]) -> None:
        low, high = bounds
        self.middle, self.half = (low + high) / 2, max((high - low) / 2, 1e-6)

    def within(self, value: float) -> float:
        return (value - self.middle) / self.half


def _learns(parameter: nn.Parameter, rows: slice | Tensor, columns: slice | Tensor | None = None) -> None:
    """Let these entries of a parameter learn, and no others."""
    mask = torch.zeros_like(parameter)
    mask[rows] = 1.0
    if columns is not None:
        chosen = torch.zeros_like(parameter)
        chosen[:, columns] = 1.0
        mask = mask * chosen
    parameter.requires_grad_(True)
    parameter.register_hook(lambda gradient: gradient * mask.to(gradient))  # type: ignore[no-untyped-call]


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _typed(state: Mapping[str, Tensor]) -> Tensor:
    """What the vectors of the two segments differ by, centred, shape (D,)."""
    kinds_KD = _centred(state["embeddings.token_type_embeddings.weight"])
    return kinds_KD[1] - kinds_KD[0] if len(kinds_KD) > 1 else torch.zeros_like(kinds_KD[0])


def _spread(weight_DN: Tensor, heads: int, head: int, wide: int) -> Tensor:
    """Rows of narrow heads as rows of wide ones, zeros between, shape (heads · wide, N)."""
    return nn.functional.pad(weight_DN.view(heads, head, -1), (0, 0, 0, wide - head)).flatten(0, 1)


def _mean(vectors_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    weight_BL = mask_BL.float()
    return torch.einsum("bld,bl->bd", vectors_BLD, weight_BL) / weight_BL.sum(1, keepdim=True).clamp_min(1)
