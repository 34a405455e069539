"""What is asked, in which order, under which key, and in which words."""

import dataclasses

import pytest
from label_project import comparisons, project

from dmoerm.data.sources import load_run_data
from dmoerm.errors import ConfigError
from dmoerm.labeling.plan import plan_labels
from dmoerm.labeling.prompts import fence, load_template
from dmoerm.labeling.questions import AskedPair, Criterion, Question, conversation_text, digest, informative_pairs, questions_of
from dmoerm.recipe import load_recipe
from dmoerm.records import Comparison, Message

# Pairs.


@pytest.mark.parametrize(
    ("ranks", "most", "pairs"),
    [
        ([1, 2], 3, [(0, 1)]),
        ([2, 1], 3, [(0, 1)]),
        ([1, 2, 3], 1, [(0, 1)]),
        ([1, 2, 3], 2, [(0, 1), (1, 2)]),
        ([1, 2, 3], 3, [(0, 1), (1, 2), (0, 2)]),
        ([1, 2, 3], 99, [(0, 1), (1, 2), (0, 2)]),
        ([1, 2, 3, 4], 2, [(0, 1), (2, 3)]),  # every response is seen
        ([1, 2, 3, 4], 3, [(0, 1), (2, 3), (1, 2)]),  # all neighbours
        # Neighbours, then gaps of 2 (0-2 before 1-3), then the whole way.
        ([1, 2, 3, 4], 6, [(0, 1), (2, 3), (1, 2), (0, 2), (1, 3), (0, 3)]),
        # Ranked from the last to the first: the best is index 3.
        ([4, 3, 2, 1], 2, [(2, 3), (0, 1)]),
        ([3, 1, 2], 2, [(1, 2), (0, 2)]),
    ],
)
def test_neighbours_by_rank_come_first_and_every_response_is_seen(ranks, most, pairs):
    assert informative_pairs(ranks, most, "salt") == pairs


def test_among_equal_ranks_the_salt_draws_who_stand_side_by_side():
    drawn = {tuple(informative_pairs([1, 2, 2, 2], 1, str(salt))) for salt in range(50)}
    assert drawn == {((0, 1),), ((0, 2),), ((0, 3),)}
    assert informative_pairs([1, 1, 1], 2, "x") == informative_pairs([1, 1, 1], 2, "x")
    assert len(set(informative_pairs([1, 1, 1, 1], 6, "x"))) == 6


# Keys.

CONVERSATION = (Message("user", "Why?"),)
POINTS = (Criterion("logic", "Each step follows."),)


def question(prompt=CONVERSATION, responses=("one", "two"), asked=POINTS, swapped=False, settings="s", ids="c"):
    pair = AskedPair(Comparison(ids, prompt, responses, (1, 2)), 0, 1, (asked,))
    return Question(pair, asked, swapped, settings)


def test_everything_that_changes_the_answer_is_in_the_key():
    others = [
        question(prompt=(Message("user", "Why not?"),)),
        question(prompt=(Message("system", "Why?"),)),
        question(prompt=(Message("user", "Why?"), Message("assistant", ""), Message("user", ""))),
        question(responses=("one", "two ")),
        question(responses=("on", "etwo")),
        question(swapped=True),
        question(settings="t"),
        question(asked=(Criterion("logic", "No step is missing."),)),
        question(asked=(Criterion("logics", "Each step follows."),)),
        question(asked=(*POINTS, Criterion("style", "It reads well."))),
        question(asked=(Criterion("style", "It reads well."), *POINTS)),
    ]
    keys = [other.key for other in [question(), *others]]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 for key in keys)


def test_what_does_not_change_the_answer_is_not_in_the_key():
    assert question(ids="another").key == question().key
    # The same two responses the other way round are the same two questions.
    assert question(responses=("two", "one"), swapped=True).key == question().key
    assert question(responses=("two", "one")).key == question(swapped=True).key


def test_the_item_of_a_question_is_found_under_other_settings_and_descriptions():
    assert question(settings="t").item == question().item
    assert question(asked=(Criterion("logic", "Something else."),)).item == question().item
    assert question(swapped=True).item != question().item
    assert question(asked=(Criterion("style", "Each step follows."),)).item != question().item


def test_texts_are_hashed_with_their_lengths():
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert digest("", "a") != digest("a", "")


def test_both_orders_of_a_point_follow_each_other():
    asked = (*POINTS, Criterion("style", "It reads well."))
    pair = AskedPair(question().pair.comparison, 0, 1, tuple((point,) for point in asked))
    found = [(q.names, q.swapped, (q.shown()["response_a"], q.shown()["response_b"])) for q in questions_of([pair], "s")]
    assert found == [
        (("logic",), False, ("one", "two")),
        (("logic",), True, ("two", "one")),
        (("style",), False, ("one", "two")),
        (("style",), True, ("two", "one")),
    ]


# The plan.


def rows_of_both():
    rows = [*comparisons(12), *comparisons(12, category="chitchat"), *comparisons(2, category=None)]
    for number, row in enumerate(rows):
        row |= {"id": f"c{number}", "prompt": f"Question {number}?"}
    return rows


def planned(plan):
    return [pair.comparison.id for pair in plan.pairs]


def test_a_smaller_plan_is_a_part_of_a_larger_one_and_both_are_in_the_same_order(tmp_path):
    labelled = project(tmp_path / "p", "http://127.0.0.1:9/v1", rows_of_both())
    everything = planned(labelled.plan())
    assert sorted(everything) == sorted(f"c{number}" for number in range(26))
    before = None
    for count in (1, 3, 8):
        plan = labelled.plan(f"labeling.comparisons_per_category={count}")
        now = planned(plan)
        assert len(now) == 2 * count + min(count, 2)
        assert now == [name for name in everything if name in now]
        assert before is None or set(before) <= set(now)
        assert plan.left_out["beyond labeling.comparisons_per_category"] == 26 - len(now)
        before = now
    assert plan.left_out["asked for the overall preference only, having no category"] == 2


def test_the_order_mixes_the_categories_and_does_not_depend_on_the_files(tmp_path):
    rows = rows_of_both()
    forward = planned(project(tmp_path / "p", "http://127.0.0.1:9/v1", rows).plan())
    backward = planned(project(tmp_path / "q", "http://127.0.0.1:9/v1", rows[::-1]).plan())
    assert forward == backward
    first_half = [int(name[1:]) < 12 for name in forward[:13]]
    assert 2 <= sum(first_half) <= 11


def test_what_is_asked_of_a_category_follows_the_way_of_calling(tmp_path):
    labelled = project(tmp_path / "p", "http://127.0.0.1:9/v1", rows_of_both()[10:13])  # two of objective_qa, one of chitchat
    assert len(list(labelled.plan().questions())) == 2 * (2 * 3 + 2)
    assert len(list(labelled.plan("labeling.calls=all_capabilities").questions())) == 2 * 3
    assert len(list(labelled.plan("labeling.overall=false").questions())) == 2 * (2 * 2 + 1)
    without = project(tmp_path / "q", "http://127.0.0.1:9/v1", rows_of_both()[22:]).plan("labeling.overall=false")
    assert without.left_out == {"without a category": 2}
    assert len(list(labelled.plan("labeling.canaries=true").questions())) == 24 + 16


# The words.


@pytest.mark.faults("F10")
def test_the_fence_is_in_none_of_the_texts_even_where_they_hold_the_first_choices():
    first = fence(b"secret", "key", ("text",))
    assert fence(b"secret", "key", ("text",)) == first
    second = fence(b"secret", "key", (f"so {first} it is",))
    assert second != first
    third = fence(b"secret", "key", (f"{first}{second}", "text"))
    assert third not in (first, second)
    assert fence(b"another", "key", ("text",)) != first != fence(b"secret", "yek", ("text",))


def test_a_conversation_of_several_turns_names_the_roles():
    assert conversation_text(CONVERSATION) == "Why?"
    turns = (Message("system", "Be brief."), Message("user", "Why?"), Message("assistant", "So."), Message("user", "And?"))
    assert conversation_text(turns) == "System: Be brief.\n\nUser: Why?\n\nAssistant: So.\n\nUser: And?"


@pytest.mark.faults("F10")
def test_braces_in_a_text_stay_what_they_are():
    template = load_template(None)
    asked = dataclasses.replace(question(responses=("{{response_b}} {{fence}} {x}", "two")))
    user = template.messages(asked, b"secret")[1]["content"]
    assert user.count("{{response_b}} {{fence}} {x}") == 1
    assert user.count("\ntwo\n") == 1


def test_the_reply_that_is_asked_for_has_the_points_and_the_reason_first():
    user = load_template(None, reason=True).messages(question(), b"secret")[1]["content"]
    assert user.endswith('{"reason": "one sentence", "logic": "A or B or tie"}')
    assert "- logic: Each step follows." in user
    assert load_template(None).fingerprint != load_template(None, reason=True).fingerprint


USER = "{{fence}} {{conversation}} {{response_a}} {{response_b}} {{criteria}} {{reply}}"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            f"system: x\nuser: '{USER} {{{{respons_a}}}}'",
            r"mine\.yaml: unknown place \{\{respons_a\}\}; known: conversation, criteria, fence",
        ),
        ("system: x\nuser: '" + USER.replace("{{reply}}", "") + "'", r"mine\.yaml: the place \{\{reply\}\} is missing from `user`"),
        ("system: '{{fence}}'\nuser: '" + USER.replace("{{fence}}", "") + "'", r"the place \{\{fence\}\} is missing from `user`"),
        (f"user: '{USER}'", r"mine\.yaml.*system"),
        (f"system: ''\nuser: '{USER}'", r"mine\.yaml.*system"),
        (f"system: x\nuser: '{USER}'\nassistant: x", r"mine\.yaml.*assistant"),
    ],
)
def test_a_template_that_cannot_ask_is_refused_with_the_place(tmp_path, texts, message):
    path = tmp_path / "mine.yaml"
    path.write_text(texts, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_template(path)


@pytest.mark.parametrize("name", ["model", "messages", "stream", "max_completion_tokens", "logprobs"])
def test_a_field_of_the_request_that_has_its_own_key_is_refused(tmp_path, name):
    labelled = project(tmp_path / "p", "http://127.0.0.1:9/v1", comparisons(1))
    with pytest.raises(ConfigError, match=rf'labeling\.request has "{name}", which dmoerm sets itself'):
        labelled.plan(f"labeling.request={{{name}: 1}}")


def test_a_capability_called_reason_is_refused_where_reasons_are_asked(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "chosen": "y", "rejected": "z", "category": "math"}\n', encoding="utf-8")
    (tmp_path / "taxonomy.yaml").write_text(
        "categories: [{name: math, description: d, capabilities: [{name: reason, description: d}]}]\n", encoding="utf-8"
    )
    recipe = "taxonomy: taxonomy.yaml\ndata: {comparisons: [a.jsonl], test_fraction: 0.0}\nlabeling: {model: judge, reason: true}\n"
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    loaded = load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(ConfigError, match='uses the key "reason" of the reply, which is also a capability'):
        plan_labels(loaded, load_run_data(loaded))
