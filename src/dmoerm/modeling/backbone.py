"""The backbone: any `transformers` encoder or decoder, its layers staged so that a pass can start, stop or fan out at any of them.

`Backbone.load` takes real weights: a folder, a Hub id, or, for the embedded default, the package that carries the same file.
`trunk` runs the lower layers once for a batch; `pooled` runs the rest (or everything) and pools one vector a row and expert;
`pooled_flat` does so for rows that share their beginnings (prefix.py).
The model's own forward makes masks and positions in every case, so no family needs code of its own here.

Shapes: B rows, L tokens, D hidden, K experts.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dmoerm.errors import ConfigError
from dmoerm.modeling.embedded import resolve_source
from dmoerm.modeling.experts import INPUT_PROJECTIONS, AdaptedLinear, LowRank, Pass, PassHolder, adapted_linears, repeat_rows, slot
from dmoerm.modeling.pooled_layer import pooled_layer, supports_pooled_layer
from dmoerm.modeling.prefix import FlatRow, attending_flat, shares_prefixes
from dmoerm.recipe import top_layers

__all__ = ["Backbone", "Pooling", "load_tokenizer", "plain_path"]

Pooling = Literal["mean", "spread", "last", "first"]
"""Where a row's vector is read: the mask-weighted mean of all tokens, of `SPREAD_POSITIONS` evenly spaced ones, the last, or the first."""

SPREAD_POSITIONS = 32
"""Tokens that "spread" averages: nearly the mean of all, while the top layer runs at these positions alone."""

CPU_ARRAY_BYTES = 2**24
"""On the CPU, passes without gradient are cut into rows whose widest array stays below this (benchmarks/array_size.py). From 8 to 24 MiB
a pass takes about the same time; above 32 MiB the C library of Linux maps an array anew each time and the kernel clears its pages
(glibc's M_MMAP_THRESHOLD); below 8 MiB the matrix products become small, which bf16 feels first."""

QUERY_VALUE_NAMES = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("Wqkv",),
    ("qkv_proj",),
    ("query_key_value",),
)
"""Names of the query and value projections by family; families that fuse them are adapted as a whole."""


class TrunkReachedError(Exception):
    """Carries the hidden states out of a pass that stops before a layer. Never leaves this file."""

    def __init__(self, hidden_BLD: Tensor) -> None:
        super().__init__("the trunk has been computed")
        self.hidden_BLD = hidden_BLD


class StagedLayer(nn.Module):
    """One transformer layer that may be skipped, fed a stored input, stopped at, fanned out at, or computed at one position only."""

    def __init__(self, layer: nn.Module, index: int, holder: PassHolder, *, is_top: bool) -> None:
        super().__init__()
        self.layer = layer
        self.index = index
        self.is_top = is_top
        self._holder = holder

    def __getattr__(self, name: str) -> Any:
        """Attributes that a model reads from its layers (`attention_type` and the like) come from the wrapped layer."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        run = self._holder.current
        if run is None:
            return self.layer(hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
        if run.rows == 0:
            run.rows = hidden_states.shape[0]
        if self.index < run.start:
            return hidden_states
        if self.index == run.start and run.hidden_BLD is not None:
            hidden_states = run.hidden_BLD.to(hidden_states.dtype)
        if self.index == run.stop:
            raise TrunkReachedError(hidden_states)
        run.layer = self.index
        if run.flat is not None:
            kwargs["flat"] = run.flat  # the model's own layer hands it on to `flat_attention`
        if self.is_top and run.pooled_index_BP is not None:
            return pooled_layer(self.layer, hidden_states, args, kwargs, run)
        if run.fan_out_at == self.index:
            hidden_states = repeat_rows(hidden_states, run.copies)
        if run.fan_out_at is not None and self.index >= run.fan_out_at:
            args, kwargs = run.repeat(args), {key: run.repeat(value) for key, value in kwargs.items()}
        return self.layer(hidden_states, *args, **kwargs)  # type: ignore[no-any-return]


class Backbone(nn.Module):
    """A pretrained model with staged layers and room for task adapters and experts.

    Args:
        model: the pretrained model; its layers are wrapped in place.
        name: folder or Hub id it came from, for the manifest.
        pooling: how a row becomes one vector; "auto" is last token for causal models and mask-weighted mean for encoders.
        target_modules: names of the linear layers to adapt; "auto" is the query and value projections.
        keep_layers: how many layers to keep, from the embeddings up; None keeps all.

    Raises:
        ConfigError: the model has no list of layers or fewer than `keep_layers`, or `target_modules` match nothing.

    While it trains with mean pooling, `sampled_positions` (None: all) is how many positions of each row the top layer is computed at:
    drawn anew in every pass, they give the mean over all positions on average, at a fraction of its cost.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str,
        pooling: Pooling | Literal["auto"] = "auto",
        target_modules: Sequence[str] | Literal["auto"] = "auto",
        revision: str | None = None,
        keep_layers: int | None = None,
    ) -> None:
        super().__init__()
        self.name, self.revision = name, revision
        self.model = model
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # its output feeds nothing here
        self.pooling: Pooling = _default_pooling(model) if pooling == "auto" else pooling
        self._holder = PassHolder()
        layers = find_layers(model)
        if keep_layers is not None:
            cut_layers(model, layers, keep_layers, name)
        self.keep_layers = keep_layers
        self.sampled_positions: int | None = None
        self.target_modules = _targets(layers, target_modules)
        self._attention: str | None = model.config._attn_implementation  # a pass of another thread may be flat when we ask
        for index, layer in enumerate(layers):
            _wrap_linears(layer, self.target_modules, self._holder)
            layers[index] = StagedLayer(layer, index, self._holder, is_top=index == len(layers) - 1)
        self._layers = layers
        self.adapter_config: dict[str, dict[str, Any]] = {}
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    @staticmethod
    def load(
        name: str,
        *,
        revision: str | None = None,
        pooling: Pooling | Literal["auto"] = "auto",
        attention: str = "auto",
        target_modules: Sequence[str] | Literal["auto"] = "auto",
        keep_layers: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "Backbone":
        """Pretrained weights from a folder or the Hub; the embedded MiniLM from its package where the Hub cannot be reached.

        Raises:
            ConfigError: the name cannot be resolved, or weights are missing from the checkpoint.
            ArtifactError: the packaged MiniLM file is not the published one.
        """
        source = resolve_source(name)
        try:
            raw, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
            AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"backbone {name}: no model found there ({str(error).splitlines()[0]}). Name a folder or a Hub id."
            ) from error
        if "/" in str(raw.get("_attn_implementation_internal", "")):
            raise ConfigError(
                f"backbone {name}: its config.json sets _attn_implementation_internal to {raw['_attn_implementation_internal']!r}, "
                "which makes some versions of transformers run code from the Hub (CVE-2026-4372). "
                "Take the key out, or use another checkpoint."
            )
        implementation = "sdpa" if attention == "auto" else attention
        try:
            model, info = AutoModel.from_pretrained(
                source,
                revision=revision,
                dtype=dtype,
                attn_implementation=implementation,
                output_loading_info=True,
                trust_remote_code=False,
            )
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"backbone {name}: its weights cannot be read ({str(error).splitlines()[0]}). Copy or download them again."
            ) from error
        missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
        if missing or info["mismatched_keys"]:
            raise ConfigError(
                f"{name}: {len(missing)} weights are missing from the checkpoint (first: {missing[:3]}), "
                f"{len(info['mismatched_keys'])} have another shape. It would start with random values; "
                "use a checkpoint made for this architecture."
            )
        return Backbone(model, name=name, revision=revision, pooling=pooling, target_modules=target_modules, keep_layers=keep_layers)

    @property
    def layers(self) -> nn.ModuleList:
        return self._layers

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        return self.model.device  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> "Backbone":
        """Frozen base weights stay in evaluation mode (no dropout) whatever is trained on top of them; full fine-tuning switches all."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.base_parameters()):
            self.model.eval()
            for _, linear in adapted_linears(self.model):
                linear.task.train(mode)
                linear.experts.train(mode)
        return self

    def base_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters of the pretrained model, adapters left out."""
        adapters = {id(parameter) for _, low_rank in self._low_ranks() for parameter in low_rank.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in adapters]

    # --- adapters -----------------------------------------------------------------------------------------------------------------

    def first_layer(self, depth: int | str) -> int:
        """Index of the lowest of the top `depth` layers (`top_layers`)."""
        total = len(self.layers)
        count = top_layers(depth, total)
        if not 1 <= count <= total:
            raise ConfigError(
                f"depth {depth} does not fit {self.name}, which has {total} layers; use 1 to {total}, 'sixth', 'third' or 'all'"
            )
        return total - count

    def add_task_adapter(self, category: str, *, depth: int | str, rank: int, alpha: float, dropout: float) -> None:
        """A fresh task adapter for `category` in the top `depth` layers; one of that name is replaced."""
        self._add("task", category, copies=1, depth=depth, rank=rank, alpha=alpha, dropout=dropout)

    def add_experts(self, category: str, copies: int, *, depth: int | str, rank: int, alpha: float, dropout: float) -> None:
        """A fresh stack of `copies` experts for `category` in the top `depth` layers; one of that name is replaced."""
        self._add("experts", category, copies=copies, depth=depth, rank=rank, alpha=alpha, dropout=dropout)

    def _add(self, kind: str, category: str, *, copies: int, depth: int | str, rank: int, alpha: float, dropout: float) -> None:
        first = self.first_layer(depth)
        for index, layer in enumerate(self.layers):
            for path, linear in adapted_linears(layer):
                slots: nn.ModuleDict = getattr(linear, kind)
                if slot(category) in slots:
                    del slots[slot(category)]
                if index >= first and path.rsplit(".", 1)[-1] in self.target_modules:
                    update = LowRank(copies, linear.in_features, linear.out_features, rank=rank, alpha=alpha, dropout=dropout)
                    slots[slot(category)] = update.to(linear.weight.device).train(linear.training)
        self.adapter_config[f"{kind}/{category}"] = {
            "first_layer": first, "copies": copies, "rank": rank, "alpha": alpha, "dropout": dropout,
        }  # fmt: skip

    def remove(self, kind: Literal["task", "experts"], category: str) -> None:
        """Forget one adapter."""
        for _, linear in adapted_linears(self.model):
            slots: nn.ModuleDict = getattr(linear, kind)
            if slot(category) in slots:
                del slots[slot(category)]
        self.adapter_config.pop(f"{kind}/{category}", None)

    def adapters(self, kind: Literal["task", "experts"], category: str) -> dict[str, LowRank]:
        """The updates of one category by the path of their linear layer in the pretrained model, as PEFT would name it."""
        found = {}
        for path, linear in adapted_linears(self.model):
            slots: nn.ModuleDict = getattr(linear, kind)
            if slot(category) in slots:
                found[plain_path(path)] = slots[slot(category)]
        return found  # type: ignore[return-value]

    def _low_ranks(self) -> Iterable[tuple[str, LowRank]]:
        return [(path, module) for path, module in self.model.named_modules() if isinstance(module, LowRank)]

    # --- passes -------------------------------------------------------------------------------------------------------------------

    def trunk(
        self, batch: Mapping[str, Tensor], stop: int, *, task: str | None = None, start: int = 0, hidden_BLD: Tensor | None = None
    ) -> Tensor:
        """Hidden states that enter layer `stop`, shape (B, L, D).

        Args:
            batch: input_ids, attention_mask (right- or left-padded) and token_type_ids where the model has them, each (B, L).
            stop: index of the layer before which the pass ends, 0 (the embeddings) to layers − 1.
            task: category whose task adapter is active, or None for the bare backbone.
            start: with `hidden_BLD`, the layer it enters; the layers below are skipped.
            hidden_BLD: what an earlier call gave for `start`.
        """
        pieces = self._pieces(batch, 1)
        if len(pieces) > 1:
            return torch.cat(
                [
                    self.trunk(
                        {key: value[piece] for key, value in batch.items()}, stop, task=task, start=start,
                        hidden_BLD=None if hidden_BLD is None else hidden_BLD[piece],
                    )
                    for piece in pieces
                ]
            )  # fmt: skip
        try:
            self._run(batch, Pass(start=start, hidden_BLD=hidden_BLD, stop=stop, task=task))
        except TrunkReachedError as reached:
            return reached.hidden_BLD
        raise AssertionError(f"layer {stop} was never reached")

    def pooled(
        self,
        batch: Mapping[str, Tensor],
        *,
        start: int = 0,
        hidden_BLD: Tensor | None = None,
        task: str | None = None,
        experts: str | None = None,
        members: Tensor | None = None,
        pooling: Pooling | None = None,
        shortcut: bool = True,
    ) -> Tensor:
        """Pooled final hidden states, float32, shape (B, K, D); K is 1 unless a stack of experts is active.

        Args:
            batch: as for `trunk`.
            start: with `hidden_BLD`, the layer it enters; the layers below are skipped.
            hidden_BLD: what `trunk(batch, start)` gave, or None to run everything.
            task: category whose task adapter is active.
            experts: category whose experts are active; rows fan out at their lowest layer.
            members: indices of the experts to run, K of them; None means the whole stack.
            pooling: another pooling than the backbone's own.
            shortcut: compute the top layer at the pooled position alone where the family allows it; equal up to rounding.
        """
        assert start == 0 or hidden_BLD is not None, "a pass that starts above the embeddings needs hidden states"
        pooling = pooling or self.pooling
        run = self._pass(task, experts, members, start=start, hidden_BLD=hidden_BLD)
        top: Any = self.layers[-1].layer
        checkpoints = self.training and _is_checkpointing(self.model)  # drops the cache the shortcut hands over
        shortcut = shortcut and not checkpoints and supports_pooled_layer(top, self._attention)
        sampled = shortcut and self.training and pooling == "mean" and self.sampled_positions is not None
        all_positions = pooling == "mean" and not sampled
        at_the_top = run.fan_out_at == len(self.layers) - 1 and shortcut and not all_positions  # copies meet pooled positions alone
        pieces = self._pieces(batch, 1 if at_the_top else run.copies)
        if len(pieces) > 1:
            if experts is not None and (above := self.adapter_config[f"experts/{experts}"]["first_layer"]) > start:
                start, hidden_BLD = above, self.trunk(batch, above, task=task, start=start, hidden_BLD=hidden_BLD)
            return torch.cat(
                [
                    self.pooled(
                        {key: value[piece] for key, value in batch.items()}, start=start,
                        hidden_BLD=None if hidden_BLD is None else hidden_BLD[piece],
                        task=task, experts=experts, members=members, pooling=pooling, shortcut=shortcut,
                    )
                    for piece in pieces
                ]
            )  # fmt: skip
        mask_BL = batch["attention_mask"].long()
        positions_BP, weights_BP = sampled_positions(mask_BL, self.sampled_positions) if sampled else pooled_positions(mask_BL, pooling)
        if shortcut and not all_positions:
            run.pooled_index_BP = positions_BP
        hidden = self._run(batch, run).float()
        hidden_KBLD = hidden.view(run.copies, mask_BL.shape[0], *hidden.shape[1:])
        if run.pooled_index_BP is None and not all_positions:
            rows_B1 = torch.arange(mask_BL.shape[0], device=mask_BL.device)[:, None]
            hidden_KBLD = hidden_KBLD[:, rows_B1, positions_BP]
        weights_BP1 = weights_BP.to(hidden.dtype).unsqueeze(-1)
        pooled_KBD = (hidden_KBLD * weights_BP1).sum(2) / weights_BP1.sum(1)
        return pooled_KBD.transpose(0, 1)

    def _pieces(self, batch: Mapping[str, Tensor], copies: int) -> list[slice]:
        """The rows of a batch, cut where its widest array would be too large for the CPU; one piece where gradients are wanted."""
        rows, length = batch["attention_mask"].shape
        if self.device.type != "cpu" or torch.is_grad_enabled():
            return [slice(0, rows)]
        config = self.model.config
        half = torch.is_autocast_enabled("cpu") or self.model.dtype.itemsize == 2
        token_bytes = copies * getattr(config, "intermediate_size", 4 * self.hidden_size) * (2 if half else 4)
        most = max(1, CPU_ARRAY_BYTES // (length * token_bytes))
        count = -(-rows // most)
        return [slice(rows * piece // count, rows * (piece + 1) // count) for piece in range(count)]

    @property
    def shares_prefixes(self) -> bool:
        """Whether `pooled_flat` can do what `pooled` does: a decoder of full causal attention, pooled at the last token."""
        plain: list[Any] = [staged.layer for staged in self.layers]
        return self.pooling == "last" and shares_prefixes(self.model, plain, self._attention)

    def pooled_flat(self, flat: FlatRow, *, task: str | None = None, experts: str | None = None, members: Tensor | None = None) -> Tensor:
        """As `pooled` at the last token of each row, for rows that share their beginnings; equal up to rounding, shape (S, K, D).

        Args:
            flat: the S rows, laid end to end.
            task: category whose task adapter is active.
            experts: category whose experts are active.
            members: indices of the experts to run, K of them; None means the whole stack.
        """
        assert self.shares_prefixes, f"{self.name} cannot share prefixes"
        run = self._pass(task, experts, members)
        run.flat, run.pooled_index_BP = flat, flat.last_1S
        hidden_KSD = self._run({"input_ids": flat.input_ids_1L, "position_ids": flat.position_ids_1L}, run).float()
        return hidden_KSD.transpose(0, 1)

    def _pass(
        self, task: str | None, experts: str | None, members: Tensor | None, *, start: int = 0, hidden_BLD: Tensor | None = None
    ) -> Pass:
        run = Pass(start=start, hidden_BLD=hidden_BLD, task=task, experts=experts)
        if experts is not None:
            config = self.adapter_config[f"experts/{experts}"]
            run.copies = config["copies"] if members is None else len(members)
            run.members, run.fan_out_at = members, config["first_layer"]
            if start > config["first_layer"]:
                raise ValueError(
                    f"hidden states enter layer {start}, above the experts of {experts!r}, which start at {config['first_layer']}"
                )
        return run

    def _run(self, batch: Mapping[str, Tensor], run: Pass) -> Tensor:
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids", "position_ids") if key in batch}
        if self.model.config.model_type not in _NO_CACHE_ARGUMENT:
            inputs["use_cache"] = False  # type: ignore[assignment]
        with self._holder.lock, nullcontext() if run.flat is None else attending_flat(self.model):
            self._holder.current = run
            try:
                return self.model(**inputs).last_hidden_state  # type: ignore[no-any-return]
            finally:
                self._holder.current = None

    def fingerprint(self) -> str:
        """Hex SHA-256 over the names, shapes and bytes of the pretrained weights, adapters left out."""
        digest = hashlib.sha256()
        adapters = {id(parameter) for _, low_rank in self._low_ranks() for parameter in low_rank.parameters()}
        for path, parameter in sorted(self.model.named_parameters()):
            if id(parameter) not in adapters:
                digest.update(f"{plain_path(path)} {tuple(parameter.shape)} {parameter.dtype}".encode())
                digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


_NO_CACHE_ARGUMENT = frozenset({"modernbert", "distilbert", "mpnet", "deberta-v2"})


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a backbone; one without a padding token gets its own, never the end token.

    Raises:
        ConfigError: there is neither a padding token nor another unused special token to pad with.
    """
    tokenizer = AutoTokenizer.from_pretrained(resolve_source(name), revision=revision, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        spare = [token for token in (tokenizer.unk_token, tokenizer.bos_token) if token]
        chosen = next((token for token in spare if token != tokenizer.eos_token), None)
        if chosen is None:
            raise ConfigError(f"{name}: its tokenizer has no padding token. Add one (not the end token) and save it beside the weights.")
        tokenizer.pad_token = chosen  # masked everywhere, so only the id must exist and not be the end token
    return tokenizer


def _is_checkpointing(model: PreTrainedModel) -> bool:
    name = "is_activation_checkpointing" if hasattr(type(model), "is_activation_checkpointing") else "is_gradient_checkpointing"
    return bool(getattr(model, name))


def find_layers(model: nn.Module) -> nn.ModuleList:
    """The list of transformer layers: the longest ModuleList of the model.

    Raises:
        ConfigError: there is none.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    if not lists:
        raise ConfigError(f"{type(model).__name__} has no list of layers; dmoerm works with transformer encoders and decoders.")
    return max(lists, key=len)


def cut_layers(model: PreTrainedModel, layers: nn.ModuleList, keep: int, name: str) -> None:
    """Drop all layers above the lowest `keep`, in place; what follows the last layer (a final norm) stays.

    Raises:
        ConfigError: the model has fewer layers.
    """
    if not 1 <= keep <= len(layers):
        raise ConfigError(f"backbone.layers is {keep}, but {name} has {len(layers)} layers; use 1 to {len(layers)}, or all")
    del layers[keep:]
    model.config.num_hidden_layers = keep
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:keep]


def _wrap_linears(layer: nn.Module, targets: Sequence[str], holder: PassHolder) -> None:
    for parent in list(layer.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and (name in targets or name in INPUT_PROJECTIONS):
                setattr(parent, name, AdaptedLinear(child, holder, reads_layer_input=name in INPUT_PROJECTIONS))


def _targets(layers: nn.ModuleList, wanted: Sequence[str] | Literal["auto"]) -> tuple[str, ...]:
    available = {path.rsplit(".", 1)[-1] for path, module in layers[0].named_modules() if isinstance(module, nn.Linear)}
    if wanted == "auto":
        found: tuple[str, ...] = next((names for names in QUERY_VALUE_NAMES if set(names) <= available), ())
    else:
        found = tuple(name for name in wanted if name in available)
    if not found or (wanted != "auto" and len(found) < len(wanted)):
        asked = "the query and value projections" if wanted == "auto" else ", ".join(sorted(set(wanted) - set(found)))
        raise ConfigError(
            f"0 modules matched {asked}; this model's layers have: {', '.join(sorted(available))}. Name some of these in target_modules."
        )
    return tuple(found)


def plain_path(path: str) -> str:
    """A module path as the unwrapped model has it: without the staged layer's and the adapted linear's own level."""
    parts = path.split(".")
    for position, part in enumerate(parts[:-1]):
        if part.isdigit() and parts[position + 1] == "layer":
            del parts[position + 1]
            break
    return ".".join(part for part in parts if part != "base")


def _default_pooling(model: PreTrainedModel) -> Pooling:
    causal = any(getattr(module, "is_causal", False) for module in model.modules())
    return "last" if causal else "mean"


def cpu_computes_bf16() -> bool:
    """Whether this CPU has instructions for bf16. One without emulates it, many times slower than float32, though torch claims support."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def sampled_positions(mask_BL: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
    """As `pooled_positions`: `count` positions of each row at equal distance from a random start, or all of a shorter row.

    Each position is as likely as any other, so their mean is the row's mean in expectation (systematic sampling).
    """
    places_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    first_B1 = (mask_BL * (mask_BL.shape[1] - places_L)).argmax(1, keepdim=True)
    length_B1 = mask_BL.sum(1, keepdim=True)
    count = mask_BL.shape[1] if count is None else min(count, mask_BL.shape[1])
    steps_P = torch.arange(count, device=mask_BL.device)
    start_B1 = torch.rand(length_B1.shape).to(mask_BL.device)  # from the CPU's generator: the same on every device
    many_BP = ((steps_P + start_B1) * (length_B1 / count)).long()
    offsets_BP = torch.where(length_B1 <= count, steps_P.expand_as(many_BP), many_BP).minimum(length_B1 - 1)
    return first_B1 + offsets_BP, (steps_P < length_B1).long()


def pooled_positions(mask_BL: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """Positions that are averaged into a row's vector and their weights (0 or 1), both (B, P).

    "spread" takes all n tokens of a row with n <= `SPREAD_POSITIONS`, else that many, first and last included, at equal distance. What it
    takes depends on the row alone, never on the padding or on the rows beside it.
    """
    places_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    if pooling == "mean":
        return places_L.expand_as(mask_BL), mask_BL
    first_B1 = (mask_BL * (mask_BL.shape[1] - places_L)).argmax(1, keepdim=True)
    last_B1 = (mask_BL * (places_L + 1)).argmax(1, keepdim=True)
    if pooling != "spread":
        chosen_B1 = last_B1 if pooling == "last" else first_B1
        return chosen_B1, torch.ones_like(chosen_B1)
    length_B1 = last_B1 - first_B1 + 1
    count = min(SPREAD_POSITIONS, mask_BL.shape[1])
    steps_P = torch.arange(count, device=mask_BL.device)
    few_BP = torch.minimum(steps_P, length_B1 - 1)
    many_BP = steps_P * (length_B1 - 1) // max(1, count - 1)
    offsets_BP = torch.where(length_B1 <= count, few_BP, many_BP)
    return first_B1 + offsets_BP, (steps_P < length_B1).long()
