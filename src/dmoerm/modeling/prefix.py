"""Prefix sharing: rows of a decoder that begin with the same tokens, with that beginning computed once.

The rows of a batch are laid end to end in one flat row: for each group its shared tokens, then what each row has of its own. Every
token keeps the position it has in its row, and sees what it would see there: the shared tokens before it and its own row's, never a
sibling's. So embeddings, norms, projections and MLPs meet each shared token once, and the staged layers treat the flat row as a batch
of B = 1: below the fan-out layer it is computed once, from there on once for each expert. Nothing is padded, and no cache outlives a
layer, so the tokens of the flat row bound the memory.

Only attention has to know about rows. The model's own attention modules call `flat_attention` in place of sdpa for the length of one
pass; it cuts the flat row into pieces and runs sdpa on each. Responses of a group are taken together up to `CHUNK_TOKENS`, so that the
mask grows with the tokens and not with their square.

Encoders cannot share: their attention is bidirectional, so the hidden states of the prompt depend on the response. Nor can what reads
hidden states across the whole row (recurrent layers, pooling over all tokens), nor, without more code, sliding windows.
`shares_prefixes` knows; everything else takes the plain path.

Shapes: L tokens of the flat row, S rows in it, Q tokens of a chunk, P shared tokens, K experts, H heads, E head width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from dmoerm.modeling.batching import PromptGroup
from dmoerm.modeling.pooled_layer import supports_pooled_layer

__all__ = ["FlatRow", "attending_flat", "flat_row", "shares_prefixes"]

FLAT_ATTENTION = "dmoerm_flat_row"
"""Name of `flat_attention` among the attention functions of transformers."""

CHUNK_TOKENS = 256
"""Own tokens of a group that attend in one call, unless a single row has more: more calls below, more scores that are masked above."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One group in the flat row.

    Attributes:
        shared: where its shared tokens stand.
        whole: where it stands, shared tokens and all.
        rows: which of the S rows it holds.
        chunks: place of some rows' own tokens, and what these see of shared and own tokens, True for seen, shape (1, 1, Q, P + Q).
        last_mask: what the last token of each of its rows sees of the group, shape (1, 1, rows, tokens of the group).
    """

    shared: slice
    whole: slice
    rows: slice
    chunks: tuple[tuple[slice, Tensor], ...]
    last_mask: Tensor


@dataclass(frozen=True, slots=True)
class FlatRow:
    """Groups of rows laid end to end.

    Attributes:
        rows: index of each of the S rows, in the order of `last_1S`.
        input_ids_1L: the tokens.
        position_ids_1L: the position of each in its own row.
        last_1S: where the last token of each row stands.
        segments: the groups.
    """

    rows: tuple[int, ...]
    input_ids_1L: Tensor
    position_ids_1L: Tensor
    last_1S: Tensor
    segments: tuple[Segment, ...]

    def to(self, device: torch.device) -> "FlatRow":
        """The same on another device."""
        segments = tuple(
            replace(
                segment,
                chunks=tuple((place, mask.to(device)) for place, mask in segment.chunks),
                last_mask=segment.last_mask.to(device),
            )
            for segment in self.segments
        )
        return replace(
            self,
            input_ids_1L=self.input_ids_1L.to(device),
            position_ids_1L=self.position_ids_1L.to(device),
            last_1S=self.last_1S.to(device),
            segments=segments,
        )


def flat_row(ids: Sequence[Sequence[int]], groups: Sequence[PromptGroup]) -> FlatRow:
    """Lay groups end to end.

    Args:
        ids: tokens of all rows.
        groups: which of them go in, with what they share: at least one token, and not all of any row.
    """
    tokens: list[int] = []
    positions: list[int] = []
    last: list[int] = []
    segments = []
    for group in groups:
        assert 0 < group.shared < min(len(ids[row]) for row in group.rows)
        begin, first = len(tokens), len(last)
        tokens += ids[group.rows[0]][: group.shared]
        positions += range(group.shared)
        for row in group.rows:
            tokens += ids[row][group.shared :]
            positions += range(group.shared, len(ids[row]))
            last.append(len(tokens) - 1)
        own = [len(ids[row]) - group.shared for row in group.rows]
        segments.append(_segment(begin, group.shared, own, first))
    return FlatRow(
        rows=tuple(row for group in groups for row in group.rows),
        input_ids_1L=torch.tensor([tokens]),
        position_ids_1L=torch.tensor([positions]),
        last_1S=torch.tensor([last]),
        segments=tuple(segments),
    )


def _segment(begin: int, shared: int, own: Sequence[int], first_row: int) -> Segment:
    chunks, at = [], begin + shared
    for part in _chunks(own):
        length = sum(part)
        chunks.append((slice(at, at + length), _mask(shared, part)))
        at += length
    last = torch.tensor(own).cumsum(0) - 1
    row_Q = torch.arange(len(own)).repeat_interleave(torch.tensor(own))
    sees = torch.cat([torch.ones(len(own), shared, dtype=torch.bool), row_Q[last, None] == row_Q], dim=1)
    return Segment(
        shared=slice(begin, begin + shared),
        whole=slice(begin, at),
        rows=slice(first_row, first_row + len(own)),
        chunks=tuple(chunks),
        last_mask=sees[None, None],
    )


def _chunks(own: Sequence[int]) -> Iterator[list[int]]:
    """Lengths of rows, in turn, gathered up to `CHUNK_TOKENS`; a longer row stands alone."""
    chunk: list[int] = []
    for length in own:
        if chunk and sum(chunk) + length > CHUNK_TOKENS:
            yield chunk
            chunk = []
        chunk.append(length)
    yield chunk


def _mask(shared: int, own: Sequence[int]) -> Tensor:
    row_Q = torch.arange(len(own)).repeat_interleave(torch.tensor(own))
    place_Q = torch.arange(len(row_Q))
    sees_QQ = (row_Q[:, None] == row_Q) & (place_Q[:, None] >= place_Q)
    return torch.cat([torch.ones(len(row_Q), shared, dtype=torch.bool), sees_QQ], dim=1)[None, None]


def flat_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, flat: FlatRow, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of a flat row, in the form that transformers asks of an attention function.

    Args:
        module: the attention module that calls.
        query: (K, H, L, E), or (K, H, S, E) where the top layer is computed at the last token of each row alone.
        key: (K, key heads, L, E).
        value: as `key`.
        attention_mask: not read: the flat row says who sees whom.
        flat: the flat row.
        **kwargs: further arguments of the call, handed on to sdpa.

    Returns:
        (K, L or S, H, E), and None in place of the weights.
    """
    sdpa = AttentionInterface()["sdpa"]
    outputs = []
    for segment in flat.segments:
        if query.shape[2] < key.shape[2]:
            whole, rows = segment.whole, segment.rows
            outputs.append(sdpa(module, query[:, :, rows], key[:, :, whole], value[:, :, whole], segment.last_mask, **kwargs)[0])
            continue
        shared = segment.shared
        outputs.append(sdpa(module, query[:, :, shared], key[:, :, shared], value[:, :, shared], None, **kwargs)[0])  # causal
        for chunk, mask in segment.chunks:
            keys, values = (torch.cat([x[:, :, shared], x[:, :, chunk]], dim=2) for x in (key, value))
            outputs.append(sdpa(module, query[:, :, chunk], keys, values, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


@contextmanager
def attending_flat(model: PreTrainedModel) -> Iterator[None]:
    """Within, the attention modules of `model` call `flat_attention`, and the model makes no mask: that name has none."""
    AttentionInterface.register(FLAT_ATTENTION, flat_attention)
    usual = model.config._attn_implementation
    model.config._attn_implementation = FLAT_ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = usual


def shares_prefixes(model: PreTrainedModel, layers: Sequence[nn.Module], attention: str | None) -> bool:
    """True for decoders whose every layer is causal, sees the whole row, and is known to `pooled_layer`.

    Refused are also scores with a soft cap, which sdpa lacks, and rotary frequencies that depend on the length of the batch.

    Args:
        model: the model.
        layers: its transformer layers, as it made them.
        attention: its usual attention implementation.
    """
    config: Any = model.config
    known = all(supports_pooled_layer(layer, attention) for layer in layers)
    causal = getattr(config, "is_causal", True) and all(getattr(getattr(layer, "self_attn", None), "is_causal", False) for layer in layers)
    kinds = getattr(config, "layer_types", None)
    full = getattr(config, "sliding_window", None) is None if kinds is None else set(kinds) == {"full_attention"}
    plain = getattr(config, "attn_logit_softcapping", None) is None
    rotary = getattr(getattr(model, "rotary_emb", None), "rope_type", None)
    types = rotary.values() if isinstance(rotary, dict) else [rotary]
    fixed = all(isinstance(kind, str) and "dynamic" not in kind and kind != "longrope" for kind in types)
    return bool(known and causal and full and plain and fixed)
