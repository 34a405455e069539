"""Rows that share their beginning against the same rows each computed whole, and rewards that no batch may move.

The plain path is the reference here; tests/test_experts.py holds it against the untouched models.
"""

import contextlib
import copy
import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    BertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from dmoerm.data.rendering import Renderer
from dmoerm.modeling import batching, prefix
from dmoerm.modeling.backbone import Backbone, load_tokenizer
from dmoerm.modeling.batching import PromptGroup, group_batches, prompt_groups, sharing_pays
from dmoerm.modeling.experts import adapted_linears
from dmoerm.modeling.inner import InnerModel
from dmoerm.modeling.prefix import flat_row
from dmoerm.modeling.reward_model import RewardModel, ScoreRequest, as_messages
from dmoerm.modeling.router import Router
from dmoerm.taxonomy import GENERAL, paper_taxonomy

TOLERANCE = 1e-5
BF16_TOLERANCE = 0.05
"""Of rewards with standard deviation 0.55: bf16 keeps 8 bits, over four layers, and other shapes sum in another order."""

QA = "qa"
K = 3
_TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
SHARING = {
    "qwen3": lambda: Qwen3Config(**_TINY, head_dim=16),
    "qwen2": lambda: Qwen2Config(**_TINY),
    "llama": lambda: LlamaConfig(**_TINY),
    "mistral": lambda: MistralConfig(**_TINY, sliding_window=None),
    "gemma": lambda: GemmaConfig(**_TINY, head_dim=16),
    "gemma2, no soft cap": lambda: Gemma2Config(**_TINY, head_dim=16, layer_types=["full_attention"] * 4, attn_logit_softcapping=None),
    "gemma3": lambda: Gemma3TextConfig(**_TINY, head_dim=16, layer_types=["full_attention"] * 4),
}
PLAIN = {
    "encoder": lambda: BertConfig(**{key: value for key, value in _TINY.items() if key != "num_key_value_heads"}),
    "sliding window": lambda: MistralConfig(**_TINY, sliding_window=4),
    "sliding window in some layers": lambda: Gemma3TextConfig(
        **_TINY, head_dim=16, sliding_window=4, layer_types=["sliding_attention", *["full_attention"] * 3]
    ),
    "soft cap": lambda: Gemma2Config(**_TINY, head_dim=16, layer_types=["full_attention"] * 4),
    "bidirectional": lambda: GemmaConfig(**_TINY, head_dim=16, use_bidirectional_attention=True),
    "frequencies by length": lambda: LlamaConfig(**_TINY, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}),
    "unknown": lambda: Qwen3MoeConfig(**_TINY, head_dim=16, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16),
}

CASES = [(family, attention) for family in SHARING for attention in ("eager", "sdpa") if attention == "eager" or "gemma2" not in family]
"""transformers offers no sdpa for Gemma 2."""

LONG, SHORT = tuple(range(20, 33)), (61, 62)
ROWS = (
    (*LONG, 5, 17, 80, 33, 9),
    (*LONG, 5, 17, 41),
    (*LONG, 5, 17, 80, 33, 9, 22, 60, 7, 13),
    (*SHORT, 71),
    (*SHORT, 26, 90, 15, 52),
    (*LONG, 64),
)
GROUPS = (PromptGroup((0, 1, 2), len(LONG) + 2), PromptGroup((3, 4), len(SHORT)), PromptGroup((5,), len(LONG)))
"""Responses that begin alike, a second prompt, and a single response, all in one flat row."""


@functools.cache
def plain_model(family, attention="sdpa"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModel.from_config({**SHARING, **PLAIN}[family](), attn_implementation=attention)


def staged(family, depth=2, *, attention="sdpa", **options):
    """A backbone with a task adapter and K experts, none of them at its zero start."""

    backbone = Backbone(copy.deepcopy(plain_model(family, attention)), name="tiny", **options)
    backbone.add_task_adapter(QA, depth="all", rank=4, alpha=8, dropout=0.05)
    backbone.add_experts(QA, K, depth=depth, rank=4, alpha=4, dropout=0.05)
    generator = torch.Generator().manual_seed(1)
    for _, linear in adapted_linears(backbone.model):
        for update in (*linear.task.values(), *linear.experts.values()):
            update.a_KRD.data.uniform_(-0.2, 0.2, generator=generator)
            update.b_KOR.data.normal_(std=0.3, generator=generator)
    return backbone.eval()


def padded(rows):
    length = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[*row, *[0] * (length - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
    }


def assert_shared_equals_plain(backbone, rows=ROWS, groups=GROUPS, tolerance=TOLERANCE, **active):
    flat = flat_row(rows, groups)
    with torch.no_grad():
        shared = backbone.pooled_flat(flat, **active)
        for shortcut in (True, False):
            plain = backbone.pooled(padded([rows[row] for row in flat.rows]), **active, shortcut=shortcut)
            assert shared.shape == plain.shape
            assert (shared - plain).abs().max().item() <= tolerance


# --- vectors ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, "all"])
@pytest.mark.parametrize(("family", "attention"), CASES)
def test_rows_behind_a_shared_prompt_have_the_vectors_of_the_plain_path(family, attention, depth):
    backbone = staged(family, depth, attention=attention)
    assert_shared_equals_plain(backbone, task=QA, experts=QA)
    assert backbone.model.config._attn_implementation == attention


@pytest.mark.parametrize("active", [{}, {"task": QA}, {"experts": QA}, {"experts": QA, "members": torch.tensor([2, 0])}])
def test_sharing_takes_any_adapters_or_none(active):
    assert_shared_equals_plain(staged("qwen3"), **active)


def test_the_vectors_that_are_compared_differ_between_rows_and_between_experts():
    with torch.no_grad():
        vectors_BKD = staged("qwen3", 1).pooled_flat(flat_row(ROWS, GROUPS), task=QA, experts=QA)
    for one, other in itertools.combinations(vectors_BKD.flatten(0, 1), 2):
        assert (one - other).abs().max() > 0.01


@pytest.mark.parametrize("chunk_tokens", [1, 4, 9])
@pytest.mark.parametrize("depth", [1, "all"])
def test_where_chunks_end_changes_nothing(chunk_tokens, depth, monkeypatch):
    monkeypatch.setattr(prefix, "CHUNK_TOKENS", chunk_tokens)
    assert_shared_equals_plain(staged("qwen3", depth), task=QA, experts=QA)


@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], ["down_proj"]])
def test_experts_on_any_linear_layer_share_as_well(targets):
    for depth in (1, 2):
        assert_shared_equals_plain(staged("qwen3", depth, target_modules=targets), task=QA, experts=QA)


@pytest.mark.parametrize("shared", range(1, 5))
def test_how_much_of_the_common_beginning_is_shared_changes_nothing(shared):
    rows = [(7, 8, 9, 10, 11), (7, 8, 9, 10, 12)]
    assert_shared_equals_plain(staged("llama"), rows, [PromptGroup((0, 1), shared)], task=QA, experts=QA)


def test_equal_rows_share_all_but_their_last_token():
    assert_shared_equals_plain(staged("llama"), [(7, 8, 9)] * 4, [PromptGroup((0, 1, 2, 3), 2)], task=QA, experts=QA)


def test_no_row_sees_a_sibling_or_another_prompt():
    backbone = staged("qwen3")
    others = [(*LONG, 90, 91, 92, 93, 94), *ROWS[1:]]
    with torch.no_grad():
        before = backbone.pooled_flat(flat_row(ROWS, [PromptGroup((0, 1, 2), 13), GROUPS[1]]), task=QA, experts=QA)
        after = backbone.pooled_flat(flat_row(others, [PromptGroup((0, 1, 2), 13), GROUPS[1]]), task=QA, experts=QA)
    assert (after[0] - before[0]).abs().max() > 0.01
    assert torch.equal(after[1:], before[1:])


def test_autocast_in_bf16_stays_near_fp32():
    backbone, flat = staged("qwen3"), flat_row(ROWS, GROUPS)
    with torch.no_grad():
        exact = backbone.pooled_flat(flat, task=QA, experts=QA)
        with torch.autocast("cpu", torch.bfloat16):
            rough = backbone.pooled_flat(flat, task=QA, experts=QA)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().mean() < 0.03


def test_a_failed_shared_pass_leaves_the_next_one_intact():
    backbone = staged("qwen3", attention="eager")
    with torch.no_grad():
        before = backbone.pooled(padded(ROWS), task=QA, experts=QA)
        with contextlib.suppress(IndexError):
            backbone.pooled_flat(flat_row([[1000, 1001], [1000, 1002]], [PromptGroup((0, 1), 1)]), task=QA, experts=QA)
        assert torch.equal(backbone.pooled(padded(ROWS), task=QA, experts=QA), before)


def test_a_shared_and_a_plain_pass_may_be_asked_for_at_the_same_time():
    backbone, batch, flat = staged("qwen3"), padded(ROWS), flat_row(ROWS, GROUPS)

    def run(number):
        with torch.no_grad():
            return backbone.pooled(batch, task=QA, experts=QA) if number % 2 else backbone.pooled_flat(flat, task=QA, experts=QA)

    expected = run(1)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(run, range(40)):
            assert (found - expected).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize("family", SHARING)
def test_decoders_of_full_causal_attention_share(family):
    assert staged(family, attention="eager").shares_prefixes


@pytest.mark.parametrize("family", PLAIN)
def test_what_cannot_share_says_so(family):
    backbone = staged(family, attention="eager", pooling="last")
    assert not backbone.shares_prefixes
    with pytest.raises(AssertionError, match="tiny cannot share prefixes"):
        backbone.pooled_flat(flat_row(ROWS, GROUPS))


@pytest.mark.parametrize("pooling", ["mean", "spread", "first"])
def test_only_the_last_token_is_pooled_behind_a_shared_prompt(pooling):
    assert not staged("qwen3", pooling=pooling).shares_prefixes


# --- layout -----------------------------------------------------------------------------------------------------------------------------


def test_a_flat_row_holds_the_shared_tokens_once_at_the_positions_they_had():
    flat = flat_row([(1, 2, 3, 4), (1, 2, 5), (8, 9), (1, 2, 6)], [PromptGroup((1, 0), 2), PromptGroup((2,), 1)])
    assert flat.rows == (1, 0, 2)
    assert flat.input_ids_1L.tolist() == [[1, 2, 5, 3, 4, 8, 9]]
    assert flat.position_ids_1L.tolist() == [[0, 1, 2, 2, 3, 0, 1]]
    assert flat.last_1S.tolist() == [[2, 4, 6]]
    first, second = flat.segments
    assert (first.shared, first.whole, first.rows) == (slice(0, 2), slice(0, 5), slice(0, 2))
    assert (second.shared, second.whole, second.rows) == (slice(5, 6), slice(5, 7), slice(2, 3))
    ((place, sees),) = first.chunks
    assert place == slice(2, 5)
    assert sees[0, 0].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert first.last_mask[0, 0].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 1, 1]]


def test_rows_attend_together_up_to_so_many_tokens_and_a_longer_one_alone(monkeypatch):
    monkeypatch.setattr(prefix, "CHUNK_TOKENS", 4)
    rows = [(1, *[2] * length) for length in (2, 2, 1, 6, 1)]
    (segment,) = flat_row(rows, [PromptGroup((0, 1, 2, 3, 4), 1)]).segments
    assert [place for place, _ in segment.chunks] == [slice(1, 5), slice(5, 6), slice(6, 12), slice(12, 13)]


# --- planning ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def always_share(monkeypatch):
    """Groups of any size, for sequences short enough to read."""
    monkeypatch.setattr(batching, "MINIMUM_SAVED_TOKENS", 1)
    monkeypatch.setattr(batching, "MINIMUM_SAVED_SHARE", 0.0)


def test_rows_with_the_same_prompt_share_their_longest_common_beginning(always_share):
    ids = [(1, 2, 3, 4, 5), (1, 2, 7), (1, 2, 3, 4, 6), (9, 2, 3), (1, 2, 3, 4, 5, 8)]
    assert prompt_groups(ids, [3, 2, 3, 2, 3]) == ([PromptGroup((0, 2, 4), 4)], [1, 3])


def test_a_row_that_begins_another_keeps_its_last_token(always_share):
    assert prompt_groups([(1, 2, 3), (1, 2, 3, 4)], [1, 1]) == ([PromptGroup((0, 1), 2)], [])


@pytest.mark.parametrize(
    ("shared", "own", "rows", "pays"),
    [
        (128, 10, 2, True),
        (127, 10, 2, False),  # too few tokens saved
        (43, 10, 4, True),  # 3 · 43 = 129
        (512, 64, 1, False),  # nobody to share with
        (200, 1000, 2, False),  # 200 of 2400, under an eighth
        (200, 600, 2, True),  # an eighth
    ],
)
def test_sharing_pays_where_it_saves_enough_tokens(shared, own, rows, pays):
    assert sharing_pays(PromptGroup(tuple(range(rows)), shared), [shared + own] * rows) is pays


@given(
    groups=st.lists(st.tuples(st.integers(1, 60), st.lists(st.integers(1, 40), min_size=1, max_size=12)), max_size=8),
    max_tokens=st.integers(1, 300),
    max_rows=st.integers(1, 20),
)
def test_group_batches_hold_every_row_once_and_keep_their_budget(groups, max_tokens, max_rows):
    lengths, planned = [], []
    for shared, own in groups:
        planned.append(PromptGroup(tuple(range(len(lengths), len(lengths) + len(own))), shared))
        lengths += [shared + tokens for tokens in own]
    shared_of = {row: group.shared for group in planned for row in group.rows}
    batches = list(group_batches(planned, lengths, max_tokens, max_rows=max_rows))
    assert [row for batch in batches for group in batch for row in group.rows] == list(range(len(lengths)))
    for batch in batches:
        rows = [row for group in batch for row in group.rows]
        assert all(shared_of[row] == group.shared for group in batch for row in group.rows)
        assert len(rows) <= max_rows
        size = sum(group.shared for group in batch) + sum(lengths[row] - shared_of[row] for row in rows)
        assert len(rows) == 1 or size <= max_tokens


def test_a_group_goes_whole_into_the_next_batch_before_it_is_divided():
    groups = [PromptGroup((0, 1), 4), PromptGroup((2, 3), 4), PromptGroup((4, 5, 6), 4)]
    lengths = [7, 7, 7, 7, 8, 8, 8]  # 4 + 3 + 3, twice, then 4 + 4 + 4 + 4
    assert list(group_batches(groups, lengths, 15)) == [
        [groups[0]],
        [groups[1]],
        [PromptGroup((4, 5), 4)],
        [PromptGroup((6,), 4)],
    ]


# --- rewards ----------------------------------------------------------------------------------------------------------------------------

LONG_PROMPT = "tell me about the river and the bank and why the water of the sea is blue and cold in winter " * 2
REQUESTS = [
    ScoreRequest(as_messages(prompt), tuple(responses), category)
    for prompt, responses, category in [
        (LONG_PROMPT, [f"number {n} is a " + "clear " * n + "answer" for n in range(1, 10)], None),
        ("question", ["yes", "no"], None),
        (LONG_PROMPT, ["the sea is blue", "the sea is cold and deep"], None),
        ("why is the sky blue " * 8, ["because of the air", "because of the air and the light", "no", "ask your teacher"], "chitchat"),
        ("one response", ["to one prompt"], "chitchat"),
        (LONG_PROMPT, ["not a good answer", "a good answer"], "chitchat"),
    ]
]
"""A prompt that comes back in another request, prompts that are too short to share, and one judged by two categories."""


def reward_model(folder):
    """Two inner models and a router with random weights on a tiny backbone."""
    backbone = Backbone.load(str(folder))
    generator = torch.Generator().manual_seed(7)
    inner = {}
    for category, capabilities, depth in ((GENERAL, ("logic", "tone"), 2), ("chitchat", ("empathy",), 1)):
        backbone.add_task_adapter(category, depth="all", rank=2, alpha=2, dropout=0.0)
        backbone.add_experts(category, len(capabilities), depth=depth, rank=2, alpha=2, dropout=0.0)
        inner[category] = InnerModel(category, capabilities, 32, units=4, copies=3)
        for parameter in inner[category].parameters():
            parameter.data.normal_(std=0.2, generator=generator)
    for _, linear in adapted_linears(backbone.model):
        for update in (*linear.task.values(), *linear.experts.values()):
            update.a_KRD.data.uniform_(-0.2, 0.2, generator=generator)
            update.b_KOR.data.normal_(std=0.3, generator=generator)
    router = Router((GENERAL, "chitchat"), 32, general_below=0.0)
    router.bias_T[:] = torch.tensor([9.0, 0.0])
    return RewardModel(backbone, Renderer(load_tokenizer(str(folder)), 120), router, inner, taxonomy=paper_taxonomy())


@pytest.fixture(scope="module")
def decoder(tiny_decoder_folder):
    return reward_model(tiny_decoder_folder)


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder):
    return reward_model(tiny_encoder_folder)


def numbers(results):
    """Everything that a reward says, of every response, in order."""
    return torch.tensor(
        [[r.reward, r.uncertainty, r.capability_spread, *(list(r.capabilities.values()) * 2)[:2]] for result in results for r in result]
    )


@contextlib.contextmanager
def counting_tokens(model):
    """Tokens, padding too, that go through the backbone."""
    counts = []
    hook = model.backbone.model.get_input_embeddings().register_forward_hook(lambda _module, args, _out: counts.append(args[0].numel()))
    try:
        yield counts
    finally:
        hook.remove()


def in_every_way(model, share_prompts):
    """The same rewards by other batches: (what is different, rewards in the order of REQUESTS and of their responses)."""
    for max_tokens in (1, 200, 1000):
        yield f"batches of {max_tokens} tokens", model.score_many(REQUESTS, max_tokens=max_tokens, share_prompts=share_prompts)
    yield "last request first", model.score_many(REQUESTS[::-1], share_prompts=share_prompts)[::-1]
    turned = [ScoreRequest(request.prompt, request.responses[::-1], request.category) for request in REQUESTS]
    yield "last response first", [result[::-1] for result in model.score_many(turned, share_prompts=share_prompts)]
    company = [ScoreRequest(as_messages("a long road " * n), ("to the sea " * n, "no")) for n in (1, 30)]
    yield "longer rows beside them", model.score_many([*company, *REQUESTS], share_prompts=share_prompts)[len(company) :]
    with ThreadPoolExecutor(3) as pool:
        workers = list(pool.map(lambda worker: model.score_many(REQUESTS[worker::3], share_prompts=share_prompts), range(3)))
    yield "three workers at once", [workers[number % 3][number // 3] for number in range(len(REQUESTS))]
    alone = [[model.score_many([ScoreRequest(r.prompt, (text,), r.category)])[0][0] for text in r.responses] for r in REQUESTS]
    yield "each response alone", alone
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        yield "another number of threads", model.score_many(REQUESTS, share_prompts=share_prompts)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.faults("F30")
@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_batch_size_order_padding_and_workers_never_change_a_reward(kind, share_prompts, request):
    model = request.getfixturevalue(kind)
    expected = numbers(model.score_many(REQUESTS, share_prompts=share_prompts))
    assert not any(result.truncated for results in model.score_many(REQUESTS) for result in results)
    assert expected[:, 0].std() > 0.1
    for name, results in in_every_way(model, share_prompts):
        assert (numbers(results) - expected).abs().max().item() <= TOLERANCE, name


@pytest.mark.faults("F30")
@pytest.mark.parametrize("share_prompts", [True, False])
def test_bf16_moves_no_reward_by_more_than_its_tolerance_and_turns_no_clear_pair(share_prompts, tiny_decoder_folder):
    model = reward_model(tiny_decoder_folder)
    for parameter in model.backbone.base_parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    expected = numbers(model.score_many(REQUESTS, share_prompts=False))[:, 0]
    clear = (expected[:, None] - expected) > 2 * BF16_TOLERANCE  # each of the two may move
    assert clear.any()
    for name, results in in_every_way(model, share_prompts):
        got = numbers(results)[:, 0]
        assert (got - expected).abs().max().item() <= BF16_TOLERANCE, name
        assert ((got[:, None] - got)[clear] > 0).all(), name


@pytest.mark.faults("F30")
def test_sharing_prompts_moves_no_reward(decoder):
    shared, plain = (numbers(decoder.score_many(REQUESTS, share_prompts=share)) for share in (True, False))
    assert (shared - plain).abs().max().item() <= TOLERANCE
    for request in REQUESTS:
        one, other = (
            decoder.score(request.prompt, request.responses, category=request.category, share_prompts=share) for share in (True, False)
        )
        assert [r.reward for r in one] == pytest.approx([r.reward for r in other], abs=TOLERANCE)


def test_a_shared_prompt_goes_through_the_backbone_once(decoder):
    request = REQUESTS[0]
    rendered = decoder.renderer.render(request.prompt, request.responses)
    head = rendered[0].response_start + 1  # every response begins with "number"
    own = [len(item.input_ids) - head for item in rendered]
    named = ScoreRequest(request.prompt, request.responses, GENERAL)  # so that the router reads nothing
    with counting_tokens(decoder) as counts:
        decoder.score_many([named])
        decoder.score_many([named], share_prompts=False)
    assert counts == [head + sum(own), len(own) * (head + max(own))]


def test_equal_prompts_of_several_requests_are_shared_within_a_category(decoder):
    responses = [f"{word} answer" for word in ("good", "bad", "long", "short")]
    apart = [ScoreRequest(as_messages(LONG_PROMPT), (text,), GENERAL) for text in responses]
    with counting_tokens(decoder) as counts:
        rewards = [result[0].reward for result in decoder.score_many(apart)]
        together = decoder.score_many([ScoreRequest(as_messages(LONG_PROMPT), tuple(responses), GENERAL)])
    assert counts[0] == counts[1] < 2 * len(decoder.renderer.render(as_messages(LONG_PROMPT), responses)[0].input_ids)
    assert rewards == pytest.approx([result.reward for result in together[0]], abs=TOLERANCE)


def test_an_encoder_computes_every_row_whole(encoder):
    rendered = encoder.renderer.render(REQUESTS[0].prompt, REQUESTS[0].responses)
    with counting_tokens(encoder) as counts:
        encoder.score(REQUESTS[0].prompt, REQUESTS[0].responses, category=GENERAL)
    assert sum(counts) == len(rendered) * max(len(item.input_ids) for item in rendered)


def test_the_tokens_of_a_batch_stay_within_the_budget(decoder):
    for max_tokens in (150, 300, 1000):
        with counting_tokens(decoder) as counts:
            decoder.score_many([ScoreRequest(r.prompt, r.responses, r.category or GENERAL) for r in REQUESTS], max_tokens=max_tokens)
        assert max(counts) <= max_tokens
