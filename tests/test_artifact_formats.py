"""Every format that was ever written is still read, and a newer one is refused by name."""

import json
import shutil

import pytest
from make_artifact_fixture import FIXTURES

from dmoerm.errors import ArtifactError
from dmoerm.modeling.manifest import CARD, FORMAT_VERSION, MANIFEST, MIGRATIONS, read_manifest
from dmoerm.modeling.reward_model import RewardModel
from dmoerm.modeling.verification import verify_artifact

pytestmark = pytest.mark.faults("F27")
FORMATS = range(1, FORMAT_VERSION + 1)


def fixture(number):
    return FIXTURES / f"artifact_v{number}"


@pytest.fixture
def copy(tmp_path):
    def of(number, **changes):
        target = tmp_path / f"v{number}"
        shutil.copytree(fixture(number) / "model", target)
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        (target / MANIFEST).write_text(json.dumps({**manifest, **changes}), encoding="utf-8")
        return target

    return of


def test_every_format_has_its_fixture_and_every_older_one_a_migration():
    assert sorted(path.name for path in FIXTURES.glob("artifact_v*")) == [f"artifact_v{number}" for number in FORMATS]
    assert sorted(MIGRATIONS) == list(range(1, FORMAT_VERSION))


@pytest.mark.parametrize("number", FORMATS)
def test_a_model_of_every_format_gives_the_rewards_it_gave_when_it_was_made(number):
    model = RewardModel.from_pretrained(fixture(number) / "model", backbone=fixture(number) / "backbone")
    expected = json.loads((fixture(number) / "rewards.json").read_text(encoding="utf-8"))
    assert len(expected) == 36
    for row in expected:
        found = model.score(row["prompt"], row["response"], category=row["category"])[0]
        assert found.category == row["judged_by"]
        assert found.reward == pytest.approx(row["reward"], abs=1e-4, rel=1e-4)
        assert found.capabilities == pytest.approx(row["capabilities"], abs=1e-4, rel=1e-4)
        assert found.uncertainty == pytest.approx(row["uncertainty"], abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("number", FORMATS)
def test_a_model_of_every_format_is_verified_whole(number):
    result = verify_artifact(fixture(number) / "model", backbone=fixture(number) / "backbone")
    assert result.problems == []
    assert f"format {number}, made by dmoerm" in result.as_text()
    assert [check.name for check in result.checks] == ["manifest", "files", "configs", "weights", "loading", "canaries"]


def test_saving_an_older_model_writes_todays_format(tmp_path):
    model = RewardModel.from_pretrained(fixture(1) / "model", backbone=fixture(1) / "backbone")
    model.save_pretrained(tmp_path / "new")
    stored = json.loads((tmp_path / "new" / MANIFEST).read_text(encoding="utf-8"))
    assert stored["format_version"] == FORMAT_VERSION
    assert "created" not in stored
    assert CARD not in stored["files"]
    assert verify_artifact(tmp_path / "new").problems == []


def test_migrating_format_1_drops_the_time_and_the_hash_of_the_card_and_nothing_else():
    stored = json.loads((fixture(1) / "model" / MANIFEST).read_text(encoding="utf-8"))
    migrated = MIGRATIONS[1](stored)
    assert stored.keys() - migrated.keys() == {"created"}
    assert stored["files"].keys() - migrated["files"].keys() == {CARD}
    assert {key: migrated[key] for key in migrated if key != "files"} == {k: stored[k] for k in stored if k not in ("files", "created")}


def test_a_newer_format_names_both_versions_and_what_to_do(copy):
    folder = copy(FORMAT_VERSION, format_version=4, dmoerm_version="2.1")
    with pytest.raises(ArtifactError, match=r"json: made by dmoerm 2\.1, format 4; this is dmoerm .*, format <= 2\. Install a newer"):
        read_manifest(folder)


@pytest.mark.parametrize("version", [0, -1, "2", 2.0, None, True])
def test_a_format_that_never_was_is_no_manifest(copy, version):
    with pytest.raises(ArtifactError, match=r"dmoerm\.json: not a manifest .*format_version is"):
        read_manifest(copy(FORMAT_VERSION, format_version=version))


def test_an_unknown_key_of_todays_format_is_refused_by_name(copy):
    with pytest.raises(ArtifactError, match=r"format 2, but not as that format is: rotuer: Extra inputs are not permitted"):
        read_manifest(copy(2, rotuer={}))


def test_a_damaged_manifest_of_an_older_format_is_refused_and_not_a_crash(copy):
    with pytest.raises(ArtifactError, match=r"made by dmoerm 0\.1\.0, format 1, but not as that format is \(AttributeError"):
        read_manifest(copy(1, files=[]))
