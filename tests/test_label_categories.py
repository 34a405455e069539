"""The judge names the category of a prompt: asked in both orders, kept where both agree, and used from then on."""

import json

import pytest
from fake_judge import ASKED, ScriptedJudge, Verdict, last_user_text
from fake_openai import FakeOpenAI
from label_project import KEY, KEY_NAME, comparisons, project

from dmoerm.cli.main import main
from dmoerm.data.doctor.examine import examine_recipe
from dmoerm.data.sources import load_run_data
from dmoerm.labeling.categories import NO_FIT, named_categories, plan_categories
from dmoerm.labeling.labels import labelled_comparisons
from dmoerm.labeling.plan import plan_labels
from dmoerm.labeling.replies import Outcome, read_reply
from dmoerm.labeling.store import Store
from dmoerm.recipe import load_recipe


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(KEY_NAME, KEY)


class Sorter:
    """Sorts by the number in the prompt, and compares as a scripted judge does. `odd` answers about odd numbers, from the listed names."""

    def __init__(self, odd=lambda listed: "chitchat"):
        self.odd = odd
        self.compare = ScriptedJudge()

    def verdicts(self, body, key):
        text = last_user_text(body)
        if "Which kind of task" not in text:
            return self.compare.verdicts(body, key)
        number = int(text.partition("Question ")[2].partition("?")[0])
        return {"category": Verdict("objective_qa" if number % 2 == 0 else self.odd(ASKED.findall(text)), 1.0)}


def without_category(count):
    return [{name: value for name, value in row.items() if name != "category"} for row in comparisons(count)]


def plan_of(labelled):
    recipe = load_recipe(labelled.recipe)
    return plan_categories(recipe, load_run_data(recipe, named=False))


def written(labelled):
    rows = [json.loads(line) for line in (labelled.folder / "categories.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["prompt"][0]["content"]: row["category"] for row in rows}


def test_named_categories_bring_the_questions_about_capabilities(tmp_path, capsys):
    with FakeOpenAI(Sorter()) as server:
        labelled = project(tmp_path / "p", server.base_url, without_category(6))
        assert labelled.label("--dry-run") == 0
        said = capsys.readouterr()
        assert "6 comparisons asked for the overall preference only, having no category: dmoerm label categories" in said.err
        assert "6 pairs, 12 calls" in said.out

        assert labelled.label(action="categories") == 0
        assert "6 of 6 prompts have a category (chitchat 3, objective_qa 3)" in capsys.readouterr().out
        assert server.count == 12
        assert written(labelled) == {f"Question {n}?": "chitchat" if n % 2 else "objective_qa" for n in range(6)}

        assert labelled.label() == 0
        assert "having no category" not in capsys.readouterr().err
    # Overall and two capabilities of objective_qa, or one of chitchat, in both orders.
    assert server.count == 12 + 3 * 2 * 3 + 3 * 2 * 2
    assert {(name, capability) for name, capability, _, _ in labelled.labels()} == {
        *((f"c{n}", capability) for n in (0, 2, 4) for capability in ("correctness", "logic", "overall")),
        *((f"c{n}", capability) for n in (1, 3, 5) for capability in ("empathy", "overall")),
    }


def test_the_training_data_and_the_router_take_the_named_categories(tmp_path):
    with FakeOpenAI(Sorter()) as server:
        labelled = project(tmp_path / "p", server.base_url, [*without_category(3), *comparisons(4)[3:]])
        assert labelled.label(action="categories") == 0
    data = load_run_data(load_recipe(labelled.recipe))
    assert [c.category for c in data.comparisons] == ["objective_qa", "chitchat", "objective_qa", "objective_qa"]
    assert len(data.prompts) == 3, "the fourth has one of its own and was not asked about"


def test_check_tells_of_comparisons_without_a_category_until_they_are_named(tmp_path, capsys):
    with FakeOpenAI(Sorter()) as server:
        labelled = project(tmp_path / "p", server.base_url, without_category(6))
        assert main(["check", str(labelled.recipe)]) == 0
        said = capsys.readouterr().out
        assert "6 comparisons asked for the overall preference only, having no category: dmoerm label categories" in said
        assert "categories" in {one.check for one in examine_recipe(load_recipe(labelled.recipe)).not_checked}
        assert labelled.label(action="categories") == 0
        capsys.readouterr()
        assert main(["check", str(labelled.recipe)]) == 0
        assert "having no category" not in capsys.readouterr().out
    assert "categories" not in {one.check for one in examine_recipe(load_recipe(labelled.recipe)).not_checked}


def test_the_category_of_a_row_goes_before_that_of_its_prompt(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Question 0?", "category": "chitchat"}\n', encoding="utf-8")
    labelled = project(tmp_path, "http://127.0.0.1:1/v1", [*comparisons(1), {**without_category(1)[0], "id": "other", "ranks": [2, 1]}])
    data = load_run_data(load_recipe(labelled.recipe, ['data.prompts=["prompts.jsonl"]']))
    assert [(c.id, c.category) for c in data.comparisons] == [("c0", "objective_qa"), ("other", "chitchat")]


def test_an_answer_that_follows_the_order_of_the_list_names_nothing(tmp_path, capsys):
    with FakeOpenAI(Sorter(odd=lambda listed: listed[0])) as server:
        labelled = project(tmp_path / "p", server.base_url, without_category(4))
        assert labelled.label("--json", action="categories") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["named"], found["disagreeing"], found["no_fit"], found["unanswered"]) == (2, 2, 0, 0)
    assert set(written(labelled)) == {"Question 0?", "Question 2?"}


def test_a_prompt_that_fits_none_stays_without_one(tmp_path, capsys):
    with FakeOpenAI(Sorter(odd=lambda listed: NO_FIT.name)) as server:
        labelled = project(tmp_path / "p", server.base_url, without_category(4))
        assert labelled.label(action="categories") == 0
        assert "2 of 4 prompts have a category (objective_qa 2)" in (said := capsys.readouterr().out)
        assert "without one: 2 fit none" in said
        assert labelled.label("--dry-run") == 0
    assert "2 comparisons asked for the overall preference only" in capsys.readouterr().err


def test_a_second_run_asks_nothing_and_a_stopped_one_goes_on(tmp_path, capsys):
    with FakeOpenAI(Sorter()) as server:
        labelled = project(tmp_path / "p", server.base_url, without_category(6), max_in_flight=1)
        assert labelled.label("--max-requests", "5", action="categories") == 3
        assert "2 of 6 prompts have a category" in (said := capsys.readouterr().out)
        assert "without one: 4 not answered" in said
        assert labelled.label("--dry-run", action="categories") == 0
        assert "6 prompts without a category, 7 calls to fake-judge" in capsys.readouterr().out
        assert labelled.label(action="categories") == 0
        assert server.count == 12
        before = (labelled.folder / "categories.jsonl").read_bytes()
        assert labelled.label(action="categories") == 0
        assert server.count == 12
    assert (labelled.folder / "categories.jsonl").read_bytes() == before


def test_a_limit_of_nothing_is_refused_in_a_dry_run_too(tmp_path, capsys):
    labelled = project(tmp_path / "p", "http://127.0.0.1:1/v1", without_category(1))
    assert labelled.label("--dry-run", "--max-cost", "0", action="categories") == 1
    assert "--max-cost 0: expected US dollars above 0" in capsys.readouterr().err


def test_nothing_is_asked_where_every_comparison_has_a_category(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(KEY_NAME)
    labelled = project(tmp_path / "p", "http://127.0.0.1:1/v1", comparisons(2))
    assert labelled.label(action="categories") == 0
    assert capsys.readouterr().out == "every comparison has a category: nothing to ask\n"
    assert not labelled.store.exists()


def test_a_changed_taxonomy_asks_anew(tmp_path):
    with FakeOpenAI(Sorter()) as server:
        labelled = project(tmp_path / "p", server.base_url, without_category(2))
        assert labelled.label(action="categories") == 0
        taxonomy = labelled.folder / "taxonomy.yaml"
        taxonomy.write_text(taxonomy.read_text(encoding="utf-8").replace("description: Facts.", "description: Facts of nature."))
        assert labelled.label(action="categories") == 0
    assert server.count == 8


@pytest.mark.parametrize("action", ["reparse", "run"])
def test_stored_answers_are_read_again_with_the_categories_they_were_offered(tmp_path, action):
    with FakeOpenAI(Sorter()) as server:
        labelled = project(tmp_path / "p", server.base_url, without_category(3))
        assert labelled.label(action="categories") == 0
        with Store(labelled.store, write=True) as store:
            if action == "reparse":
                store._writer.put(lambda connection: connection.execute("DELETE FROM verdicts"), None)
            else:  # as after a kill between storing and reading
                store._writer.put(lambda connection: connection.execute("UPDATE attempts SET outcome = 'unread'"), None)
                store._writer.put(lambda connection: connection.execute("DELETE FROM verdicts"), None)
        assert labelled.label(action="reparse" if action == "reparse" else "categories") == 0
        plan = plan_of(labelled)
        with Store(labelled.store, write=False) as store:
            named = named_categories(plan, store.answers(plan.settings.fingerprint))
        assert named.counts == {"objective_qa": 2, "chitchat": 1}
    assert server.count == 6


def test_a_reply_must_name_one_of_the_listed():
    def read(content):
        body = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
        return read_reply(json.dumps(body).encode(), ("category",), ("chitchat", "objective_qa", NO_FIT.name))

    assert read('{"category": "none of these"}').verdicts == {"category": "none of these"}
    wrong = read('{"category": "A"}')
    assert (wrong.outcome, wrong.detail) == (Outcome.UNPARSED, 'category is "A"; expected chitchat, objective_qa or none of these')


def test_answers_about_prompts_and_about_comparisons_share_a_store_and_do_not_mix(tmp_path, capsys):
    with FakeOpenAI(Sorter()) as server:
        labelled = project(tmp_path / "p", server.base_url, without_category(4))
        assert labelled.label(action="categories") == 0
        assert labelled.label() == 0
    recipe = load_recipe(labelled.recipe)
    plan = plan_labels(recipe, load_run_data(recipe))
    with Store(labelled.store, write=False) as store:
        answers = store.answers(plan.settings.fingerprint)
        assert all("category" not in said for said in answers.values())
        assert len(list(labelled_comparisons(plan.pairs, plan.settings.fingerprint, answers))) == 4
    capsys.readouterr()
    assert labelled.label(action="status") == 0
    said = capsys.readouterr().out
    assert "20 of 20 questions answered" in said
    assert "does not count" not in said


def test_the_words_name_every_category_once_and_fence_the_conversation(tmp_path):
    labelled = project(tmp_path / "p", "http://127.0.0.1:1/v1", without_category(1))
    plan = plan_of(labelled)
    forwards, backwards = (plan.template.messages(question, b"secret")[1]["content"] for question in plan.questions())
    assert ASKED.findall(forwards) == ["objective_qa", "chitchat"]
    assert ASKED.findall(backwards) == ["chitchat", "objective_qa"]
    for text in (forwards, backwards):
        assert text.index("- none of these: No other line fits.") > text.index("- chitchat: Talk.")
        assert '{"category": "' in text
        opened, closed = text.index("conversation begins]"), text.index("conversation ends]")
        assert "Question 0?" in text[opened:closed]
