"""Data sets in the layout of the Hub: which files a name stands for, and that their text is kept. No test reaches the network."""

import json

import pytest

from dmoerm.data.hub import hub_files
from dmoerm.data.readers import read_comparisons
from dmoerm.errors import ConfigError, DataError, DmoermError
from dmoerm.locations import absolute_location, is_hub, parse_hub

ODD = "2024-01-02T03:04:05"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def rows(count, start=0):
    # Every text of the file looks like a date: `datasets` itself would rewrite all of them.
    return [{"prompt": ODD, "chosen": f"2024-01-02T03:04:{start + n:02d}", "rejected": ODD} for n in range(count)]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")


@pytest.fixture
def dataset(tmp_path):
    """A folder with two configurations; the first has two shards in its split."""
    folder = tmp_path / "set"
    write(folder / "easy" / "train-0.jsonl", rows(2, 10))
    write(folder / "easy" / "train-1.jsonl", rows(3, 20))
    write(folder / "easy" / "test.jsonl", rows(1, 30))
    write(folder / "hard.jsonl", rows(4, 40))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: easy\n  default: true\n  data_files:\n  - {split: train, path: 'easy/train-*.jsonl'}\n"
        "  - {split: test, path: easy/test.jsonl}\n- config_name: hard\n  data_files: [{split: only, path: hard.jsonl}]\n---\n"
    )
    return folder


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    hub_files.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))


@pytest.fixture
def _datasets():
    pytest.importorskip("datasets")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hub:org/name", ("org/name", False, None, None, None, None)),
        ("hub:org/name:easy", ("org/name", False, None, "easy", None, None)),
        ("hub:org/name@v1.0:easy:test", ("org/name", False, "v1.0", "easy", "test", None)),
        (f"hub:org/name@{COMMIT}::test", ("org/name", False, COMMIT, None, "test", None)),
        ("hub:org/name:harmless-base/train.jsonl.gz", ("org/name", False, None, None, None, "harmless-base/train.jsonl.gz")),
        ("hub:./set@home:hard:only", ("./set@home", True, None, "hard", "only", None)),
        ("hub:/data/set:x.parquet", ("/data/set", True, None, None, None, "x.parquet")),
    ],
)
def test_a_name_is_taken_apart(name, parts):
    found = parse_hub(name)
    assert (found.repository, found.local, found.revision, found.config, found.split, found.file) == parts
    assert is_hub(name)


@pytest.mark.parametrize("name", ["hub:", "hub:name", "hub:org/name/more", "hub:org/na me", "hub:org/name@", "hub:org/name:a:b:c"])
def test_a_name_that_is_none_is_refused_with_the_forms(name):
    with pytest.raises(ConfigError, match="names no data set; expected hub:ORG/NAME, hub:ORG/NAME@REVISION:CONFIG:SPLIT"):
        parse_hub(name)


def test_only_folders_start_at_the_recipe(tmp_path):
    from pathlib import Path

    assert str(absolute_location(Path("hub:./a/../b:hard:only"), tmp_path)) == f"hub:{tmp_path}/b:hard:only"
    assert str(absolute_location(Path("hub:org/name:hard"), tmp_path)) == "hub:org/name:hard"
    assert absolute_location(Path("x/../a.jsonl"), tmp_path) == tmp_path / "a.jsonl"


@pytest.mark.faults("F03")
@pytest.mark.usefixtures("_datasets")
def test_the_files_of_a_split_are_read_as_one_and_dates_stay_text(dataset):
    result = read_comparisons(f"hub:{dataset}")
    assert [one.responses[0][-2:] for one in result.comparisons] == ["10", "11", "20", "21", "22"]
    assert all(one.prompt[0].content == ODD and one.responses[1] == ODD for one in result.comparisons)
    assert [one.source for one in result.comparisons[1:3]] == [
        f"hub:{dataset}:easy/train-0.jsonl line 2",
        f"hub:{dataset}:easy/train-1.jsonl line 1",
    ]
    assert len({one.id for one in result.comparisons}) == 5


@pytest.mark.usefixtures("_datasets")
def test_config_and_split_are_chosen_by_name(dataset):
    assert len(read_comparisons(f"hub:{dataset}:easy:test").comparisons) == 1
    assert len(read_comparisons(f"hub:{dataset}::test").comparisons) == 1
    assert len(read_comparisons(f"hub:{dataset}:hard").comparisons) == 4  # its only split
    with pytest.raises(DataError, match='there is no split "tst", did you mean "test"'):
        read_comparisons(f"hub:{dataset}:easy:tst")
    with pytest.raises(DataError, match=r"the data set cannot be opened .*hardly"):
        read_comparisons(f"hub:{dataset}:hardly")


def test_one_file_of_a_folder_needs_no_other_library(dataset, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert len(read_comparisons(f"hub:{dataset}:easy/train-1.jsonl").comparisons) == 3
    with pytest.raises(DataError, match=r"there is no file .*easy/none\.jsonl"):
        read_comparisons(f"hub:{dataset}:easy/none.jsonl")
    with pytest.raises(DmoermError, match=r"^'datasets' is not installed\. Install it with: pip install 'dmoerm\[hub\]'$"):
        read_comparisons(f"hub:{dataset}")


@pytest.mark.usefixtures("_datasets")
def test_a_bad_row_is_named_by_file_and_line(dataset):
    path = dataset / "easy" / "train-1.jsonl"
    path.write_text(path.read_text().replace("2024-01-02T03:04:21", "  "))
    with pytest.raises(DataError, match=rf'^hub:{dataset}:easy/train-1\.jsonl line 2: "chosen" is empty'):
        read_comparisons(f"hub:{dataset}")


@pytest.mark.usefixtures("_datasets")
def test_a_split_of_parquet_is_read_by_pyarrow(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "set" / "data").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(2)), tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    (one, two) = read_comparisons(f"hub:{tmp_path / 'set'}").comparisons
    assert one.prompt[0].content == ODD
    assert two.source == f"hub:{tmp_path / 'set'}:data/train-00000-of-00001.parquet row 2"


@pytest.mark.usefixtures("_datasets")
def test_a_kind_of_file_that_is_not_read_here_is_named(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.txt").write_text("x\n")
    with pytest.raises(DataError, match=r"train\.txt cannot be read here; expected one of \.jsonl"):
        read_comparisons(f"hub:{tmp_path / 'set'}")


def test_a_file_of_the_hub_is_found_in_the_cache_and_its_commit_is_told(tmp_path):
    cached = tmp_path / "hub-cache" / "datasets--org--name"
    write(cached / "snapshots" / COMMIT / "easy" / "train.jsonl", rows(2))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    for name in ("hub:org/name:easy/train.jsonl", f"hub:org/name@{COMMIT}:easy/train.jsonl"):
        assert len(read_comparisons(name).comparisons) == 2
        assert hub_files.__wrapped__(name).commit == COMMIT


def test_what_cannot_be_reached_says_what_to_do_without_a_network(tmp_path):
    with pytest.raises(DataError, match=r"hub:org/none:train\.jsonl: train\.jsonl cannot be downloaded .*name its folder: hub:/FOLDER"):
        read_comparisons("hub:org/none:train.jsonl")


@pytest.mark.usefixtures("_datasets")
def test_a_set_that_cannot_be_reached_says_what_to_do_without_a_network():
    with pytest.raises(DataError, match=r"hub:org/none: the data set cannot be opened .*name its folder: hub:/FOLDER:CONFIG:SPLIT"):
        read_comparisons("hub:org/none")


def test_the_address_that_datasets_gives_for_a_file_leads_to_that_commit(tmp_path):
    from dmoerm.data.hub import _local

    cached = tmp_path / "hub-cache" / "datasets--org--name" / "snapshots" / COMMIT / "easy" / "train.jsonl"
    write(cached, rows(1))
    name = parse_hub("hub:org/name:easy")
    # The form of the entries of `builder.config.data_files` in datasets 5.2.0 for a repository.
    file, local = _local("hub:org/name:easy", name, f"hf://datasets/org/name@{COMMIT}/easy/train.jsonl")
    assert (file, local) == ("easy/train.jsonl", cached)
    with pytest.raises(DataError, match=r"https://example\.org/x\.jsonl is outside the repository\. Download it"):
        _local("hub:org/name:easy", name, "https://example.org/x.jsonl")
