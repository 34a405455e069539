"""The top layer of a backbone, computed for the pooled positions alone.

When few positions of the top layer feed the head (the last token of a decoder, the first token of an encoder, some evenly spaced
ones), that layer needs keys and values at all positions but its query, output projection and MLP at those. We compute the keys and
values ourselves and let the layer's own forward run on the few positions, handing it the rest through the cache interface. So norms,
gates, soft caps and residuals stay the model's own code. This depends on how a family computes its keys, hence the list of families;
others take the general path.

Shapes: B rows (K·B where the rows have fanned out before), L tokens, P pooled positions, D hidden, H key heads, E head width.
"""

import inspect
import sys
from typing import Any, cast

import torch
from torch import Tensor, nn

from dmoerm.modeling.experts import Pass, repeat_rows

__all__ = ["pooled_layer", "supports_pooled_layer"]

ROTARY_DECODERS = frozenset(
    {"LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention", "GemmaAttention", "Gemma2Attention", "Gemma3Attention"}
)
"""Decoder attentions with q_proj, k_proj, v_proj, optional k_norm by head, rotary positions and the cache interface."""

BERT_ENCODERS = frozenset({"BertSelfAttention", "RobertaSelfAttention", "XLMRobertaSelfAttention", "ElectraSelfAttention"})
"""Encoder attentions with query, key, value, absolute positions and the cache interface; no norm before them."""


class _GivenKeysValues:
    """Stands in for a cache: whatever the layer computed for its few positions, hands back the keys and values of all positions."""

    is_compileable = False

    def __init__(self, keys_BHLE: Tensor, values_BHLE: Tensor) -> None:
        self._keys_values = (keys_BHLE, values_BHLE)

    def update(self, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._keys_values


def _attention(layer: nn.Module) -> nn.Module | None:
    if hasattr(layer, "self_attn"):
        return cast(nn.Module, layer.self_attn)
    inner = getattr(getattr(layer, "attention", None), "self", None)
    return inner if isinstance(inner, nn.Module) else None


def supports_pooled_layer(layer: nn.Module, attention_implementation: str | None) -> bool:
    """True when `pooled_layer` knows how this layer makes its keys and values."""
    name = type(_attention(layer)).__name__
    return name in ROTARY_DECODERS | BERT_ENCODERS and attention_implementation in {"eager", "sdpa"}


def pooled_layer(layer: nn.Module, hidden_BLD: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], run: Pass) -> Tensor:
    """Output of `layer` at `run.pooled_index_BP` only, shape (rows, P, D); rows is K·B when the experts are active.

    Args:
        layer: a layer for which `supports_pooled_layer` holds.
        hidden_BLD: its input: B rows, or K·B rows where they have fanned out before.
        args: further positional arguments of the model's own call (BERT passes its mask so).
        kwargs: keyword arguments of the model's own call.
        run: the current pass.
    """
    assert run.pooled_index_BP is not None
    kwargs = dict(kwargs)
    mask = kwargs.pop("attention_mask", args[0] if args else None)
    fans_out_here = run.fan_out_at == run.layer and run.copies > 1
    has_fanned_out = hidden_BLD.shape[0] != run.rows
    index_BP = run.pooled_index_BP
    if run.flat is not None:
        row_mask: Tensor | None = None  # the flat row says itself who sees whom
    elif mask is not None:
        row_mask = _at_positions(mask, index_BP, dim=2)
    else:
        row_mask = _causal_rows(layer, hidden_BLD, index_BP)
    positions = kwargs.pop("position_embeddings", None)
    row_positions = None if positions is None else tuple(_at_positions(part, index_BP, dim=1) for part in positions)
    if has_fanned_out:
        positions = run.repeat(positions)
    keys_values = _keys_values(layer, hidden_BLD, positions)
    pooled_BPD = _at_positions(hidden_BLD, run.repeat(index_BP) if has_fanned_out else index_BP, dim=1)
    if fans_out_here:
        pooled_BPD = repeat_rows(pooled_BPD, run.copies)
    if fans_out_here or has_fanned_out:
        row_mask, row_positions = run.repeat(row_mask), run.repeat(row_positions)
    if row_positions is not None:
        kwargs["position_embeddings"] = row_positions
    kwargs[_cache_keyword(type(layer))] = keys_values
    kwargs.pop("position_ids", None)
    kwargs.pop("use_cache", None)
    return layer(pooled_BPD, attention_mask=row_mask, **kwargs)  # type: ignore[no-any-return]


def _cache_keyword(layer_class: type[nn.Module]) -> str:
    # transformers 5.24 renamed it, and of two given names drops the old one with no more than a warning: the layer would see one token.
    return "cache" if "cache" in inspect.signature(layer_class.forward).parameters else "past_key_values"


def _keys_values(layer: Any, hidden_BLD: Tensor, positions: tuple[Tensor, Tensor] | None) -> _GivenKeysValues:
    attention: Any = _attention(layer)  # its parts differ by family, so no type says more
    assert attention is not None
    if type(attention).__name__ in BERT_ENCODERS:
        width = attention.attention_head_size
        key, value = attention.key(hidden_BLD), attention.value(hidden_BLD)
        return _GivenKeysValues(*(x.view(*x.shape[:-1], -1, width).transpose(1, 2) for x in (key, value)))
    normed = layer.input_layernorm(hidden_BLD)
    key, value = attention.k_proj(normed), attention.v_proj(normed)
    key = key.view(*key.shape[:-1], -1, attention.head_dim)
    if hasattr(attention, "k_norm"):
        key = attention.k_norm(key)
    assert positions is not None
    cos, sin = positions
    if key.shape[0] != cos.shape[0] and cos.shape[0] != 1:
        cos, sin = (repeat_rows(part, key.shape[0] // part.shape[0]) for part in (cos, sin))
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    key = rotate(key.transpose(1, 2), key.transpose(1, 2), cos, sin)[1]
    return _GivenKeysValues(key, value.view(*value.shape[:-1], -1, attention.head_dim).transpose(1, 2))


def _causal_rows(layer: Any, hidden_BLD: Tensor, index_BP: Tensor) -> Tensor | None:
    """What a causal layer means by no mask at all, written out for the pooled positions: shape (B, 1, P, L), additive."""
    if not getattr(_attention(layer), "is_causal", False):
        return None
    later_BPL = torch.arange(hidden_BLD.shape[1], device=index_BP.device) > index_BP[:, :, None]
    return torch.zeros(later_BPL.shape, dtype=hidden_BLD.dtype, device=hidden_BLD.device).masked_fill(
        later_BPL, torch.finfo(hidden_BLD.dtype).min
    )[:, None]


def _at_positions(x: Tensor, index_BP: Tensor, dim: int) -> Tensor:
    """Entries `index_BP[b]` of row b along `dim`; a dim or batch of size 1 broadcasts."""
    if x.shape[dim] == 1:
        return x
    rows_B1 = torch.arange(x.shape[0], device=x.device)[:, None] if x.shape[0] > 1 else torch.zeros_like(index_BP[:, :1])
    return x.transpose(1, dim)[rows_B1, index_BP].transpose(1, dim)
