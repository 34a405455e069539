"""The paper's taxonomy is complete, and a user's own is refused with the reason when it cannot be used."""

from pathlib import Path

import pytest

from dmoerm.errors import ConfigError
from dmoerm.taxonomy import Taxonomy, load_taxonomy, paper_taxonomy, paper_taxonomy_text


def write(tmp_path, text):
    path = tmp_path / "taxonomy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


ONE = """\
categories:
  - name: code
    description: The user asks for a program.
    capabilities:
      - {name: correctness, description: The program does what was asked.}
"""


def test_the_default_has_the_five_categories_and_27_capability_points_of_the_paper():
    sizes = {category.name: len(category.capabilities) for category in paper_taxonomy().categories}
    assert sizes == {"roleplay": 6, "chitchat": 5, "subjective_qa": 5, "objective_qa": 6, "text_creation": 5}
    assert sum(sizes.values()) == 27


def test_every_name_of_the_default_has_its_chinese_name_and_a_description_of_one_sentence():
    for category in paper_taxonomy().categories:
        for item in (category, *category.capabilities):
            assert item.chinese
            assert item.description.endswith(".")
            assert item.description.count(".") == 1


def test_a_capability_shared_by_categories_means_the_same_everywhere():
    meanings = {}
    for category in paper_taxonomy().categories:
        for capability in category.capabilities:
            assert meanings.setdefault(capability.name, capability) == capability


def test_pooled_capability_names_come_once_in_order_of_first_mention():
    names = paper_taxonomy().capability_names
    assert len(names) == len(set(names)) == 20
    assert names[:2] == ("character_setting_and_emotional_investment", "conversational_sense")


def test_the_packaged_file_loads_as_a_users_file(tmp_path):
    assert load_taxonomy(write(tmp_path, paper_taxonomy_text())) == paper_taxonomy()


def test_a_taxonomy_survives_the_way_through_a_manifest():
    assert Taxonomy.model_validate_json(paper_taxonomy().model_dump_json(), strict=True) == paper_taxonomy()


def test_a_taxonomy_of_one_category_without_chinese_names_is_enough(tmp_path):
    taxonomy = load_taxonomy(write(tmp_path, ONE))
    assert taxonomy.category_names == ("code",)
    assert taxonomy.category("code").capability_names == ("correctness",)
    assert taxonomy.category("code").chinese is None


def test_an_unknown_category_is_answered_with_the_nearest_name():
    with pytest.raises(ConfigError, match='unknown category "chit_chat", did you mean "chitchat"'):
        paper_taxonomy().category("chit_chat")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: code", "name: general", r'taxonomy\.yaml:2: categories\[0\]\.name is "general", which is the fallback'),
        ("name: correctness", "name: overall", r'taxonomy\.yaml:5: .*is "overall", which is the verdict on the whole response'),
        ("name: code", "name: Code Tasks", r'taxonomy\.yaml:2: .*is "Code Tasks"; expected lower snake case'),
        ("    description: The user asks for a program.\n", "", r"categories\[0\]\.description is missing; expected text \(One sentence"),
        ("description: The user", "descripton: The user", r'taxonomy\.yaml:3: unknown key "descripton" in categories\[0\], did you mean'),
        (
            "      - {name: correctness, description: The program does what was asked.}\n",
            "      []\n",
            r"taxonomy\.yaml:4: categories\[0\]\.capabilities is \[\]; expected a list of groups .* with at least one entry",
        ),
    ],
)
def test_a_taxonomy_that_cannot_be_used_is_refused_with_line_and_reason(tmp_path, old, new, message):
    path = write(tmp_path, ONE.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        load_taxonomy(path)


def test_a_name_given_twice_is_refused(tmp_path):
    category = ONE.removeprefix("categories:\n")
    with pytest.raises(ConfigError, match='names the category "code" twice'):
        load_taxonomy(write(tmp_path, ONE + category))
    with pytest.raises(ConfigError, match='names the capability "correctness" twice'):
        load_taxonomy(write(tmp_path, ONE + category.splitlines()[-1] + "\n"))


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_taxonomy(Path("nowhere.yaml"))
