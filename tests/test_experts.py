"""Experts on a shared trunk against each expert alone: a plain copy of the model with one expert's weights merged in.

The reference knows nothing of our layers: `torch.func.functional_call` runs the untouched transformers model with W + scaling · B A
in place of W, one row at a time and without padding. One exception: BERT counts positions from the first column, padding or not, so its
left-padded rows keep their padding in the reference.
"""

import contextlib
import copy
import functools

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    ElectraConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from dmoerm.modeling import backbone as backbone_module
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.experts import adapted_linears
from dmoerm.modeling.pooled_layer import supports_pooled_layer

TOLERANCE = 1e-5
CATEGORY, OTHER = "qa", "chat"
K = 3
DEPTHS = (1, 2, "all")
ROWS = ((5, 17, 80, 33, 9, 41, 22, 60, 7, 13, 94), (8, 71, 26, 90, 15, 52, 38), (64, 29, 11, 87))

_ENCODER = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 2}
FAMILIES = {
    "qwen3": lambda: Qwen3Config(**_DECODER, head_dim=16),
    "llama": lambda: LlamaConfig(**_DECODER),
    "gemma": lambda: GemmaConfig(**_DECODER, head_dim=16),
    "gemma2": lambda: Gemma2Config(**_DECODER, head_dim=16, sliding_window=4),
    "gemma3": lambda: Gemma3TextConfig(
        **_DECODER,
        head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", *["full_attention"] * 2, "sliding_attention"],
    ),
    "bert": lambda: BertConfig(**_ENCODER),
    "modernbert": lambda: ModernBertConfig(**_ENCODER, local_attention=8, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2),
}
MORE_SHORTCUT_FAMILIES = {
    "mistral": lambda: MistralConfig(**_DECODER, sliding_window=4),
    "qwen2": lambda: Qwen2Config(**_DECODER),
    "roberta": lambda: RobertaConfig(**_ENCODER),
    "xlm-roberta": lambda: XLMRobertaConfig(**_ENCODER),
    "electra": lambda: ElectraConfig(**_ENCODER, embedding_size=32),
}
ENCODERS = ("bert", "modernbert")
CASES = [(family, attention) for family in FAMILIES for attention in ("eager", "sdpa") if (family, attention) != ("gemma2", "sdpa")]
"""Gemma 2 caps its attention scores, which sdpa cannot do."""


@functools.cache
def plain_model(family, attention="eager"):
    """The untouched transformers model; shared between tests, so never changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModel.from_config({**FAMILIES, **MORE_SHORTCUT_FAMILIES}[family](), attn_implementation=attention).eval()


def staged(model, **options):
    """A backbone around a copy of `model`, in evaluation mode."""
    return Backbone(copy.deepcopy(model), name="tiny", **options).eval()


def disturb(backbone, seed=1):
    """Every low-rank update away from its zero start, the same way every time."""
    generator = torch.Generator().manual_seed(seed)
    for _, linear in adapted_linears(backbone.model):
        for update in (*linear.task.values(), *linear.experts.values()):
            update.a_KRD.data.uniform_(-0.2, 0.2, generator=generator)
            update.b_KOR.data.normal_(std=0.3, generator=generator)


def with_adapters(model, depth, *, copies=K, task=True, **options):
    backbone = staged(model, **options)
    if task:
        backbone.add_task_adapter(CATEGORY, depth="all", rank=4, alpha=8, dropout=0.0)
    backbone.add_experts(CATEGORY, copies, depth=depth, rank=4, alpha=4, dropout=0.0)
    disturb(backbone)
    return backbone


def padded(side, rows=ROWS):
    """input_ids and attention_mask of `rows`, each (B, L)."""
    length = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[index, place], mask[index, place] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def merged(backbone, plain, expert=None, *, task=CATEGORY):
    """Weights of the plain model with the task adapter and, unless None, one expert added; differentiable in both."""
    weights = dict(plain.named_parameters())
    chosen = ([] if task is None else [("task", 0)]) + ([] if expert is None else [("experts", expert)])
    for kind, place in chosen:
        for path, update in backbone.adapters(kind, CATEGORY).items():
            name = f"{path}.weight"
            weights[name] = weights[name] + update.scaling * update.b_KOR[place] @ update.a_KRD[place]
    return weights


def alone(plain, weights, row, *, left_padding=0):
    """Final hidden states of one row, (its tokens, D)."""
    ids = torch.tensor([(0,) * left_padding + tuple(row)])
    inputs = {"input_ids": ids}
    if left_padding:
        inputs["attention_mask"] = torch.tensor([(0,) * left_padding + (1,) * len(row)])
    out = torch.func.functional_call(plain, weights, kwargs=inputs).last_hidden_state
    return out[0, left_padding:]


def parameters_of(backbone, category, *kinds):
    return [parameter for kind in kinds for update in backbone.adapters(kind, category).values() for parameter in update.parameters()]


POOL = {
    "mean": lambda hidden_LD: hidden_LD.mean(0),
    "spread": lambda hidden_LD: hidden_LD.mean(0),  # up to 32 tokens, all of them
    "last": lambda hidden_LD: hidden_LD[-1],
    "first": lambda hidden_LD: hidden_LD[0],
}


@functools.cache
def reference(family, depth, absolute_left):
    """{pooling: (B, K, D)} of the plain model, expert by expert and row by row."""
    plain = plain_model(family)
    backbone = with_adapters(plain, depth)
    longest = max(map(len, ROWS))
    with torch.no_grad():
        weights = [merged(backbone, plain, expert) for expert in range(K)]
        hidden = [[alone(plain, w, row, left_padding=longest - len(row) if absolute_left else 0) for w in weights] for row in ROWS]
    return {name: torch.stack([torch.stack([pool(one) for one in row]) for row in hidden]) for name, pool in POOL.items()}


def assert_same(got, expected, tolerance=TOLERANCE):
    assert got.shape == expected.shape
    assert (got - expected).abs().max().item() <= tolerance


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("family", "attention"), CASES)
def test_experts_on_a_shared_trunk_equal_each_expert_alone(family, attention, depth, side):
    backbone = with_adapters(plain_model(family, attention), depth)
    expected = reference(family, depth, family == "bert" and side == "left")
    batch = padded(side)
    start = backbone.first_layer(depth)
    with torch.no_grad():
        stored = {"start": start, "hidden_BLD": backbone.trunk(batch, start, task=CATEGORY)}
        for pooling in ("mean", "spread", "last", "first") if family in ENCODERS else ("mean", "spread", "last"):
            asked = {"task": CATEGORY, "experts": CATEGORY, "pooling": pooling}
            assert_same(backbone.pooled(batch, **asked), expected[pooling])
            assert_same(backbone.pooled(batch, **asked, shortcut=False), expected[pooling])
            assert_same(backbone.pooled(batch, **asked, **stored), expected[pooling])


def test_the_experts_of_the_equality_tests_differ_from_each_other():
    vectors_BKD = reference("qwen3", 1, False)["last"]
    assert (vectors_BKD[:, 0] - vectors_BKD[:, 1]).abs().max() > 0.01


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [*MORE_SHORTCUT_FAMILIES, "qwen3", "llama", "gemma", "gemma3", "bert"])
def test_the_pooled_position_shortcut_serves_its_family_and_changes_nothing(family, attention):
    backbone = with_adapters(plain_model(family, attention), 2)
    assert supports_pooled_layer(backbone.layers[-1].layer, attention)
    for side in ("right", "left"):
        batch = padded(side)
        with torch.no_grad():
            for experts in (CATEGORY, None):
                for pooling in ("last", "spread"):
                    asked = {"task": CATEGORY, "experts": experts, "pooling": pooling}
                    assert_same(backbone.pooled(batch, **asked), backbone.pooled(batch, **asked, shortcut=False))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["qwen3", "gemma", "bert"])
@pytest.mark.parametrize("pooling", ["last", "first", "spread"])
def test_the_shortcut_looks_at_no_later_token_where_models_drop_the_mask(family, attention, pooling, monkeypatch):
    monkeypatch.setattr(backbone_module, "SPREAD_POSITIONS", 4)
    backbone = with_adapters(plain_model(family, attention), 1)
    batch = padded("right", [ROWS[0], ROWS[0][::-1]])
    asked = {"experts": CATEGORY, "pooling": pooling}
    with torch.no_grad():
        expected = backbone.pooled(batch, **asked, shortcut=False)
        assert_same(backbone.pooled(batch, **asked), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert (backbone.pooled(batch, **asked) - expected).abs().mean() < 0.03


@pytest.mark.parametrize("family", ["qwen3", "bert", "modernbert"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_spread_pooling_averages_evenly_spaced_tokens(family, side, monkeypatch):
    monkeypatch.setattr(backbone_module, "SPREAD_POSITIONS", 4)
    chosen = ([0, 3, 6, 10], [0, 2, 4, 6], [0, 1, 2, 3])  # rows of 11, 7 and 4 tokens: i·(n − 1) // 3
    plain = plain_model(family)
    backbone = with_adapters(plain, 2)
    longest = max(map(len, ROWS))
    with torch.no_grad():
        got = backbone.pooled(padded(side), task=CATEGORY, experts=CATEGORY, pooling="spread")
        for expert in range(K):
            weights = merged(backbone, plain, expert)
            for index, row in enumerate(ROWS):
                left = longest - len(row) if (family, side) == ("bert", "left") else 0
                assert_same(got[index, expert], alone(plain, weights, row, left_padding=left)[chosen[index]].mean(0))


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "modernbert", "bert"])
def test_as_many_rows_as_tokens_confuse_no_mask_or_position(family):
    rows = [ROWS[0][:4], ROWS[1][:3], ROWS[2][:4], ROWS[0][5:7]]  # B = L = 4, which is also the number of heads
    plain = plain_model(family)
    backbone = with_adapters(plain, 2)
    with torch.no_grad():
        got = backbone.pooled(padded("right", rows), task=CATEGORY, experts=CATEGORY, pooling="last")
        for expert in range(K):
            weights = merged(backbone, plain, expert)
            assert_same(got[:, expert], torch.stack([alone(plain, weights, row)[-1] for row in rows]))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["qwen3", "bert", "modernbert"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("shortcut", [True, False])
def test_a_batch_of_one_row_fans_out_like_any_other(family, attention, depth, shortcut):
    backbone = with_adapters(plain_model(family, attention), depth)
    batch = padded("right")
    with torch.no_grad():
        for pooling in ("last", "spread", "mean"):
            asked = {"task": CATEGORY, "experts": CATEGORY, "pooling": pooling}
            together = backbone.pooled(batch, **asked, shortcut=False)
            for index in (0, 1):  # the second stays padded: a mask of one row must broadcast over the experts
                one = {key: value[index : index + 1] for key, value in batch.items()}
                assert_same(backbone.pooled(one, **asked, shortcut=shortcut)[0], together[index])


@pytest.mark.parametrize("family", ["qwen3", "modernbert"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_single_expert_equals_the_merged_model(family, pooling):
    plain = plain_model(family)
    backbone = with_adapters(plain, 2, copies=1)
    with torch.no_grad():
        got = backbone.pooled(padded("right"), task=CATEGORY, experts=CATEGORY, pooling=pooling)
        weights = merged(backbone, plain, 0)
        assert_same(got, torch.stack([POOL[pooling](alone(plain, weights, row)) for row in ROWS]).unsqueeze(1))


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("qwen3", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("qwen3", ["down_proj"]),
        ("bert", ["query", "dense"]),
    ],
)
def test_experts_may_sit_on_any_linear_layer(family, targets):
    plain = plain_model(family)
    backbone = with_adapters(plain, 2, target_modules=targets)
    with torch.no_grad():
        expected = torch.stack(
            [
                torch.stack([alone(plain, weights, row)[-1] for weights in [merged(backbone, plain, expert) for expert in range(K)]])
                for row in ROWS
            ]
        )
        for shortcut in (True, False):
            got = backbone.pooled(padded("right"), task=CATEGORY, experts=CATEGORY, pooling="last", shortcut=shortcut)
            assert_same(got, expected)


def test_trunk_states_taken_in_two_steps_equal_those_of_one_pass():
    backbone = with_adapters(plain_model("qwen3"), 1)
    batch = padded("right")
    with torch.no_grad():
        whole = backbone.trunk(batch, 3, task=CATEGORY)
        in_steps = backbone.trunk(batch, 3, task=CATEGORY, start=1, hidden_BLD=backbone.trunk(batch, 1, task=CATEGORY))
    assert torch.equal(whole, in_steps)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("family", ["qwen3", "bert"])
def test_a_pass_cut_into_rows_equals_the_whole_one(family, depth, side, monkeypatch):
    backbone = with_adapters(plain_model(family), depth)
    batch, start = padded(side), backbone.first_layer(depth)
    monkeypatch.setattr("dmoerm.modeling.backbone.CPU_ARRAY_BYTES", 1)  # each row by itself
    rows = []
    real = backbone._run
    monkeypatch.setattr(backbone, "_run", lambda part, run: rows.append(part["input_ids"].shape[0]) or real(part, run))
    with torch.no_grad():
        for pooling in ("mean", "last"):
            asked = {"task": CATEGORY, "experts": CATEGORY, "pooling": pooling}
            expected = reference(family, depth, family == "bert" and side == "left")[pooling]
            assert_same(backbone.pooled(batch, **asked), expected)
            assert_same(backbone.pooled(batch, **asked, start=start, hidden_BLD=backbone.trunk(batch, start, task=CATEGORY)), expected)
    assert set(rows) == {1}
    assert backbone.pooled(batch, experts=CATEGORY).requires_grad  # with gradients a batch stays whole
    assert rows[-1] == len(ROWS)


@pytest.mark.parametrize("half", [False, True])
def test_a_pass_is_cut_evenly_where_its_widest_array_would_be_too_large(half, monkeypatch):
    backbone = with_adapters(plain_model("bert"), 1)
    batch = {"attention_mask": torch.ones(7, 10, dtype=torch.long)}
    a_row = 10 * K * backbone.model.config.intermediate_size * 4
    monkeypatch.setattr("dmoerm.modeling.backbone.CPU_ARRAY_BYTES", 3 * a_row - 1)  # two rows in float32, five in bfloat16
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        cut = backbone._pieces(batch, K)
    expected = [slice(0, 3), slice(3, 7)] if half else [slice(0, 1), slice(1, 3), slice(3, 5), slice(5, 7)]
    assert cut == expected


def test_copies_do_not_count_where_they_meet_the_pooled_positions_alone(monkeypatch):
    backbone, batch = with_adapters(plain_model("qwen3"), 1), padded("right")
    monkeypatch.setattr(
        "dmoerm.modeling.backbone.CPU_ARRAY_BYTES", batch["input_ids"].numel() * backbone.model.config.intermediate_size * 4
    )  # the whole batch once, and no more
    rows = []
    real = backbone._run
    monkeypatch.setattr(backbone, "_run", lambda part, run: rows.append(part["input_ids"].shape[0]) or real(part, run))
    with torch.no_grad():
        backbone.pooled(batch, experts=CATEGORY, pooling="last")
        assert rows == [len(ROWS)]
        backbone.pooled(batch, experts=CATEGORY, pooling="mean")
    assert len(rows) > 2  # the trunk whole, its K copies in parts


def test_trunk_states_above_the_lowest_expert_are_refused():
    backbone = with_adapters(plain_model("qwen3"), 2)
    batch = padded("right")
    hidden_BLD = backbone.trunk(batch, 3)
    with pytest.raises(ValueError, match=r"layer 3, above the experts of 'qa', which start at 2"):
        backbone.pooled(batch, experts=CATEGORY, start=3, hidden_BLD=hidden_BLD)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("family", ["qwen3", "gemma3", "bert"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_gradients_of_the_shared_pass_equal_those_of_experts_alone(family, pooling, depth):
    plain = plain_model(family)
    backbone = with_adapters(plain, depth)
    learning = parameters_of(backbone, CATEGORY, "experts", "task")
    weights_BKD = torch.randn(len(ROWS), K, 32, generator=torch.Generator().manual_seed(3)) / 10
    pooled_BKD = backbone.pooled(padded("right"), task=CATEGORY, experts=CATEGORY, pooling=pooling)
    shared = torch.autograd.grad((pooled_BKD * weights_BKD).sum(), learning)
    one_by_one = [torch.zeros_like(parameter) for parameter in learning]
    for expert in range(K):
        merged_weights = merged(backbone, plain, expert)
        loss = sum((POOL[pooling](alone(plain, merged_weights, row)) * weights_BKD[b, expert]).sum() for b, row in enumerate(ROWS))
        for total, gradient in zip(one_by_one, torch.autograd.grad(loss, learning), strict=True):
            total += gradient
    for ours, theirs in zip(shared, one_by_one, strict=True):
        assert theirs.abs().max() > 1e-4
        assert_same(ours, theirs, 3 * TOLERANCE)  # sums over rows, taken in another order


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_gradients_from_stored_trunk_states_equal_those_of_the_whole_pass(pooling):
    backbone = with_adapters(plain_model("qwen3"), 2)
    batch = padded("right")
    learning = parameters_of(backbone, CATEGORY, "experts")
    with torch.no_grad():
        stored = {"start": 2, "hidden_BLD": backbone.trunk(batch, 2, task=CATEGORY)}
    whole, from_states = (
        torch.autograd.grad(backbone.pooled(batch, task=CATEGORY, experts=CATEGORY, pooling=pooling, **extra).square().sum(), learning)
        for extra in ({}, stored)
    )
    for one, other in zip(whole, from_states, strict=True):
        assert_same(other, one)


def test_the_loss_of_one_expert_leaves_the_others_without_gradient():
    backbone = with_adapters(plain_model("qwen3"), 2)
    learning = parameters_of(backbone, CATEGORY, "experts")
    gradients = torch.autograd.grad(backbone.pooled(padded("right"), task=CATEGORY, experts=CATEGORY)[:, 1].square().sum(), learning)
    for gradient in gradients:
        assert torch.count_nonzero(gradient[[0, 2]]) == 0
        assert gradient[1].abs().max() > 0


@pytest.mark.parametrize("family", ["qwen3", "bert", "modernbert"])
def test_fresh_experts_and_a_fresh_task_adapter_change_nothing(family):
    backbone = staged(plain_model(family))
    batch = padded("right")
    with torch.no_grad():
        bare = backbone.pooled(batch)
        backbone.add_task_adapter(CATEGORY, depth="all", rank=4, alpha=8, dropout=0.05)
        backbone.add_experts(CATEGORY, K, depth=2, rank=4, alpha=4, dropout=0.05)
        fresh = backbone.pooled(batch, task=CATEGORY, experts=CATEGORY)
    for expert in range(K):
        assert_same(fresh[:, expert], bare[:, 0], tolerance=1e-6)


def test_a_backbone_without_active_adapters_is_the_plain_model():
    plain = plain_model("qwen3")
    backbone = with_adapters(plain, 2)
    batch = padded("right")
    with torch.no_grad():
        assert torch.equal(backbone.model(**batch).last_hidden_state, plain(**batch).last_hidden_state)
        got = backbone.pooled(batch, pooling="mean")[:, 0]
        assert_same(got, torch.stack([alone(plain, dict(plain.named_parameters()), row).mean(0) for row in ROWS]))


def test_adapters_of_two_categories_do_not_disturb_each_other():
    backbone = with_adapters(plain_model("qwen3"), 2)
    batch = padded("right")
    asked = {"task": CATEGORY, "experts": CATEGORY}
    with torch.no_grad():
        before = backbone.pooled(batch, **asked)
        backbone.add_task_adapter(OTHER, depth="all", rank=2, alpha=2, dropout=0.0)
        backbone.add_experts(OTHER, 2, depth=1, rank=8, alpha=8, dropout=0.0)
        kept = {path: update.b_KOR.clone() for path, update in backbone.adapters("task", CATEGORY).items()}
        for kind in ("task", "experts"):
            for update in backbone.adapters(kind, OTHER).values():
                update.b_KOR.normal_(std=0.3)
        assert torch.equal(backbone.pooled(batch, **asked), before)
        of_other = backbone.pooled(batch, task=OTHER, experts=OTHER)
        assert of_other.shape == (3, 2, 32)
        assert (of_other[:, :1] - before).abs().max() > 0.01
        backbone.remove("task", OTHER)
        backbone.remove("experts", OTHER)
        assert torch.equal(backbone.pooled(batch, **asked), before)
    assert all(torch.equal(update.b_KOR, kept[path]) for path, update in backbone.adapters("task", CATEGORY).items())
    assert set(backbone.adapter_config) == {f"task/{CATEGORY}", f"experts/{CATEGORY}"}


def test_training_one_category_gives_the_other_no_gradient():
    backbone = with_adapters(plain_model("qwen3"), 2)
    backbone.add_task_adapter(OTHER, depth="all", rank=2, alpha=2, dropout=0.0)
    backbone.add_experts(OTHER, 2, depth=1, rank=2, alpha=2, dropout=0.0)
    backbone.pooled(padded("right"), task=CATEGORY, experts=CATEGORY).square().sum().backward()
    assert all(parameter.grad is None for parameter in parameters_of(backbone, OTHER, "experts", "task"))
    assert all(parameter.grad is None for parameter in backbone.base_parameters())
    assert all(u.a_KRD.grad is not None for u in backbone.adapters("experts", CATEGORY).values())


def test_an_adapter_added_again_starts_afresh():
    backbone = with_adapters(plain_model("qwen3"), "all", copies=2, task=False)
    backbone.add_experts(CATEGORY, K, depth=1, rank=2, alpha=2, dropout=0.0)
    updates = backbone.adapters("experts", CATEGORY)
    assert sorted(updates) == ["layers.3.self_attn.q_proj", "layers.3.self_attn.v_proj"]
    assert all(u.b_KOR.shape[0] == K and torch.count_nonzero(u.b_KOR) == 0 for u in updates.values())


def test_dropout_acts_in_training_on_learning_experts_alone():
    backbone = staged(plain_model("bert"))  # BERT's own dropout is 0.1: a frozen base must not use it
    backbone.add_experts(CATEGORY, K, depth=1, rank=4, alpha=4, dropout=0.5)
    disturb(backbone)
    backbone.eval()
    batch = padded("right")
    asked = {"experts": CATEGORY}
    with torch.no_grad():
        at_rest = backbone.pooled(batch, **asked)
        backbone.train()
        assert (backbone.pooled(batch, **asked) - at_rest).abs().max() > 1e-3
        for update in backbone.adapters("experts", CATEGORY).values():
            update.requires_grad_(False)
        assert_same(backbone.pooled(batch, **asked), at_rest, tolerance=1e-6)


def test_dropout_draws_a_new_mask_for_every_expert():
    backbone = staged(plain_model("qwen3"))
    backbone.add_experts(CATEGORY, K, depth=1, rank=4, alpha=4, dropout=0.5)
    disturb(backbone)
    for update in backbone.adapters("experts", CATEGORY).values():  # equal experts, so that only dropout can tell them apart
        update.a_KRD.data[:], update.b_KOR.data[:] = update.a_KRD.data[:1].clone(), update.b_KOR.data[:1].clone()
    backbone.train()
    vectors_BKD = backbone.pooled(padded("right"), experts=CATEGORY)
    assert (vectors_BKD[:, 0] - vectors_BKD[:, 1]).abs().max() > 1e-3


def test_autocast_in_bf16_stays_near_fp32():
    backbone = with_adapters(plain_model("qwen3"), 2)
    batch = padded("right")
    with torch.no_grad():
        exact = backbone.pooled(batch, task=CATEGORY, experts=CATEGORY)
        with torch.autocast("cpu", torch.bfloat16):
            rough = backbone.pooled(batch, task=CATEGORY, experts=CATEGORY)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().mean() < 0.03  # bf16 keeps 8 bits: 2^-8 of values near 1, over four layers


def test_a_failed_pass_leaves_the_next_one_intact():
    backbone = with_adapters(plain_model("qwen3"), 2)
    batch = padded("right")
    with torch.no_grad():
        before = backbone.pooled(batch, task=CATEGORY, experts=CATEGORY)
        with contextlib.suppress(IndexError):
            backbone.pooled({**batch, "input_ids": batch["input_ids"] + 1000}, task=CATEGORY, experts=CATEGORY)
        assert torch.equal(backbone.pooled(batch, task=CATEGORY, experts=CATEGORY), before)


def test_the_shortcut_stands_back_where_activations_are_checkpointed():
    backbone = staged(plain_model("qwen3"))
    batch = padded("right")
    expected = backbone.pooled(batch)
    for parameter in backbone.base_parameters():
        parameter.requires_grad_(True)
    backbone.model.activation_checkpointing_enable()
    backbone.train()
    assert_same(backbone.pooled(batch), expected)


def test_adapters_work_on_weights_loaded_in_bf16():
    backbone = with_adapters(plain_model("qwen3"), 2)
    backbone.model.to(torch.bfloat16)
    backbone.add_task_adapter(OTHER, depth="all", rank=2, alpha=2, dropout=0.0)
    backbone.add_experts(OTHER, K, depth=1, rank=2, alpha=2, dropout=0.0)
    assert backbone.pooled(padded("right"), task=OTHER, experts=OTHER).shape == (3, K, 32)


@pytest.mark.parametrize("category", ["training", "values", "update"])
def test_a_category_may_have_any_name_of_a_taxonomy(category):
    backbone = staged(plain_model("qwen3"))
    backbone.add_task_adapter(category, depth=1, rank=2, alpha=2, dropout=0.0)
    assert backbone.adapters("task", category)


def test_an_adapter_added_in_evaluation_mode_does_not_drop_features():
    backbone = staged(plain_model("qwen3"))
    backbone.add_experts(CATEGORY, K, depth=1, rank=4, alpha=4, dropout=0.5)
    disturb(backbone)
    batch = padded("right")
    with torch.no_grad():
        assert torch.equal(backbone.pooled(batch, experts=CATEGORY), backbone.pooled(batch, experts=CATEGORY))
