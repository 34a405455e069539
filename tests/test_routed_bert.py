"""A stock BERT whose layers compute segments, routing and mixing: compared number by number with the body and with the formula."""

import copy

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from dmoerm.errors import ConfigError
from dmoerm.modeling.routed_bert import Readouts, RoutedBert, routed_config
from dmoerm.training.readouts import mixed_rewards

CLS, SEP, CUT, RESPONSE = IDS = (2, 3, 120, 121)
BUDGET = 24
PROMPT, ANSWER = [10, 11, 12, 13], [20, 21, 22, 23, 24]


def body(layers=3, heads=4, kinds=2, seed=0):
    """A BERT in which nothing is small: segments, positions, biases and layer norms all matter."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=120, hidden_size=8 * heads, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=heads,
        max_position_embeddings=64, type_vocab_size=kinds, initializer_range=0.2, pad_token_id=0,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    for name, parameter in model.named_parameters():
        if "LayerNorm.weight" in name:
            parameter.data.uniform_(0.7, 1.1)
        elif name.endswith("bias"):
            parameter.data.normal_(0.0, 0.1)
    return model


def routed(model, routes=3, first_token=False):
    config = routed_config(copy.deepcopy(model.config), routes, 122)
    config.num_labels = 1
    student = RoutedBert(BertForSequenceClassification(config).eval(), model.state_dict(), IDS, budget=BUDGET, first_token=first_token)
    student.settle(*batch(stock(), stock([14], [25])))
    return student


def batch(*rows):
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])


def whole(prompt=PROMPT, answer=ANSWER):
    """A row as the teacher reads it: ids and segments."""
    return [CLS, *prompt, SEP, *answer, SEP], [0] * (len(prompt) + 2) + [1] * (len(answer) + 1)


def stock(prompt=PROMPT, answer=ANSWER):
    return [CLS, CUT, *prompt, RESPONSE, *answer, SEP]


def vectors(model, ids, kinds):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([kinds])).last_hidden_state[0]


def alike(found, wanted):
    """Relative distance, what all numbers have in common left out: a student's body lacks it."""
    found, wanted = (x - x.mean(-1, keepdim=True) for x in (found, wanted))
    return float((found - wanted).norm() / wanted.norm())


def some_readouts(width, routes, seed=1):
    torch.manual_seed(seed)
    return Readouts(
        torch.randn(routes, width), torch.randn(routes), 0.5 * torch.randn(routes, width), 0.2 * torch.randn(routes, width),
        torch.randn(routes), (-15.0, 15.0), (-15.0, 15.0),
    )  # fmt: skip


def test_the_body_gives_the_teachers_vectors_though_every_segment_is_given_as_0():
    model = body()
    ids, kinds = whole()
    expected = vectors(model, ids, kinds)
    prompt, row = routed(model).features(*batch(stock()))
    assert alike(row[0], expected.mean(0)) < 0.05
    assert alike(prompt[0], expected[:6].mean(0)) < 0.05
    without_segments = vectors(model, ids, [0] * len(ids)).mean(0)
    assert alike(without_segments, expected.mean(0)) > 0.2  # so segments matter here, and were found


def test_a_row_that_a_tokenizer_has_cut_is_read_with_its_closing_token():
    model, answer = body(), list(range(30, 60))
    kept = answer[: BUDGET - len(PROMPT) - 3]
    expected = vectors(model, *whole(answer=kept)).mean(0)
    cut = stock(answer=answer)[:BUDGET]
    _, row = routed(model).features(*batch(cut))
    assert alike(row[0], expected) < 0.05
    plain = vectors(model, *(part[:BUDGET] for part in whole(answer=answer))).mean(0)
    assert alike(plain, expected) > alike(row[0], expected)


def test_in_a_row_that_ends_by_itself_nothing_sees_the_token_that_stands_for_a_lost_end():
    student = routed(body())
    words = student.model.bert.embeddings.word_embeddings.weight
    before = student.features(*batch(stock()))
    with torch.no_grad():
        words[CUT, : student.body_size] += 0.3 * torch.randn(student.body_size)
    after = student.features(*batch(stock()))
    for old, new in zip(before, after, strict=True):
        assert torch.allclose(old, new, atol=1e-5)
    shifted = [CLS, CUT, *PROMPT, RESPONSE, *range(30, 60)][:BUDGET]
    assert not torch.allclose(student.features(*batch(shifted))[1], routed(body()).features(*batch(shifted))[1], atol=1e-2)


def test_rows_of_a_batch_do_not_touch_each_other():
    student = routed(body())
    student.write(some_readouts(student.body_size, 3))
    rows = [stock(), stock([14], [25]), stock(answer=list(range(30, 45)))]
    ids, mask = batch(*rows)
    with torch.no_grad():
        together = student.model(input_ids=ids, attention_mask=mask).logits[:, 0]
        alone = torch.stack([student.model(input_ids=torch.tensor([row])).logits[0, 0] for row in rows])
    assert torch.allclose(together, alone, atol=1e-3)


@pytest.mark.parametrize("routes", [1, 2, 4])
@pytest.mark.parametrize("first_token", [False, True])
def test_the_reward_is_the_formula_of_what_the_body_gives(routes, first_token):
    student = routed(body(), routes, first_token)
    readouts = some_readouts(student.body_size, routes)
    student.write(readouts)
    rows = [stock([10 + k, 11, 40 + k], [20 + k, 60, 61 + k, 90 - k][: 1 + k % 4]) for k in range(20)]
    ids, mask = batch(*rows)
    expected = mixed_rewards(readouts, *student.features(ids, mask))
    with torch.no_grad():
        found = student.model(input_ids=ids, attention_mask=mask).logits[:, 0]
    assert expected.std() > 0.5
    assert torch.allclose(found, expected, atol=0.05)


def test_sixteen_bits_move_rewards_little():
    student = routed(body())
    student.write(some_readouts(student.body_size, 3))
    ids, mask = batch(*(stock([10 + k, 11, 40 + k], [20 + k, 60, 61 + k]) for k in range(20)))
    with torch.no_grad():
        exact = student.model(input_ids=ids, attention_mask=mask).logits[:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = student.model(input_ids=ids, attention_mask=mask).logits[:, 0].float()
        half = copy.deepcopy(student.model).half()(input_ids=ids, attention_mask=mask).logits[:, 0].float()
    assert float((mixed - exact).std() / exact.std()) < 0.15
    assert float((half - exact).std() / exact.std()) < 0.02


def test_the_gates_choose_by_the_prompt_and_the_reward_is_that_of_the_chosen_route():
    """Two prompts with sharp gates: each response is worth what its prompt's route says, by hand from the features."""
    student = routed(body(), 2)
    rows = [stock(prompt, answer) for prompt in ([10, 11, 12], [50, 51]) for answer in ([20, 21], [22, 23, 24])]
    prompts, pooled = student.features(*batch(*rows))
    towards = prompts[2] - prompts[0]
    middle = (prompts[0] + prompts[2]) / 2 @ towards
    gates = 60.0 / (towards @ towards) * torch.stack([-towards, towards])
    bias = 60.0 / (towards @ towards) * torch.tensor([middle, -middle])
    rewards = torch.randn(2, student.body_size, generator=torch.Generator().manual_seed(3))
    readouts = Readouts(rewards, torch.tensor([0.5, -2.0]), gates, torch.zeros_like(gates), bias, (-15.0, 15.0), (-60.0, 60.0))
    student.write(readouts)
    with torch.no_grad():
        ids, mask = batch(*rows)
        found = student.model(input_ids=ids, attention_mask=mask).logits[:, 0]
    by_hand = [float(pooled[k] @ rewards[k // 2]) + (0.5, -2.0)[k // 2] for k in range(4)]
    assert found.tolist() == pytest.approx(by_hand, abs=0.05)


def test_deep_bodies_and_one_segment_are_read_as_well():
    deep = body(layers=12)
    expected = vectors(deep, *whole()).mean(0)
    assert alike(routed(deep).features(*batch(stock()))[1][0], expected) < 0.05
    single = body(kinds=1)
    ids, _ = whole()
    assert alike(routed(single).features(*batch(stock()))[1][0], vectors(single, ids, [0] * len(ids)).mean(0)) < 0.05


def test_a_body_of_large_numbers_loses_no_mark():
    """Where layer norms divide by far more than one, marks would fade from layer to layer, and routes with them."""
    model = body(layers=6)
    for name, parameter in model.named_parameters():
        if "output.dense" in name:
            parameter.data *= 8
    student, readouts = routed(model), some_readouts(32, 3)
    student.write(readouts)
    ids, mask = batch(*(stock([10 + k, 11, 40 + k], [20 + k, 60]) for k in range(8)))
    with torch.no_grad():
        found = student.model(input_ids=ids, attention_mask=mask).logits[:, 0]
    assert torch.allclose(found, mixed_rewards(readouts, *student.features(ids, mask)), atol=0.05)


def test_only_the_body_and_the_rewards_learn():
    student = routed(body())
    student.write(some_readouts(student.body_size, 3))
    student.only_the_body_learns()
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    optimiser = torch.optim.AdamW([p for p in student.model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    ids, mask = batch(stock(), stock([14], [25]))
    student.model(input_ids=ids, attention_mask=mask).logits[:, 0].square().sum().backward()
    optimiser.step()
    changed = {name for name, value in student.model.state_dict().items() if not torch.equal(value, before[name])}
    layers = {name.split(".")[3] for name in changed}
    assert layers == {"1", "2", "3", "4"}  # 0 finds segments, 4 reads, 5 mixes
    assert {name for name in changed if ".4." in name} == {"bert.encoder.layer.4.attention.self.value.weight"}
    key = "bert.encoder.layer.1.attention.self.key.weight"
    moved = (student.model.state_dict()[key] != before[key]).nonzero()
    assert int(moved[:, 1].max()) < student.body_size
    assert not (moved[:, 0] % (student.model.config.hidden_size // 4) >= 8).any()  # a head's dimensions beyond the body's 8


def test_bodies_that_cannot_be_computed_with_are_refused():
    with pytest.raises(ConfigError, match="1 attention heads and the activation 'gelu' is not made"):
        routed(body(heads=1))
    model = body()
    model.config.hidden_act = "tanh"
    with pytest.raises(ConfigError, match="activation 'tanh' is not made; expected at least 2 heads and one of gelu, "):
        routed(model)
