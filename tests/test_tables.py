"""Parquet, JSON arrays and CSV: the same comparisons as from JSON lines, strings byte for byte, rows named where they stand."""

import json
import sys
from pathlib import Path

import pytest

from dmoerm.data.files import scan_file
from dmoerm.data.jsonl import BadRow
from dmoerm.data.readers import FORMATS, read_comparisons, read_prompts
from dmoerm.errors import DataError, DmoermError

FIXTURES = Path(__file__).parent / "fixtures" / "formats"
ODD = "2024-01-02T03:04:05"


def rows_of(name):
    return [json.loads(line) for line in (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def parquet():
    """Write rows as one Parquet file, with small row groups so that counting goes over their borders."""
    pyarrow = pytest.importorskip("pyarrow")
    writer = pytest.importorskip("pyarrow.parquet")

    def write(path, rows, schema=None):
        if not isinstance(rows, pyarrow.Table):
            keys = dict.fromkeys(key for row in rows for key in row)  # a column is there for every row, null where a row lacks it
            rows = pyarrow.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows], schema=schema)
        writer.write_table(rows, path, row_group_size=2)
        return path

    return write


def without_place(result):
    return [(one.prompt, one.responses, one.ranks, one.labels, one.authors, one.margin, one.subset) for one in result.comparisons]


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("native", "trl", "reward_bench_2")])  # mixed types in a column
def test_parquet_gives_the_comparisons_of_json_lines(tmp_path, parquet, name):
    result = read_comparisons(parquet(tmp_path / f"{name}.parquet", rows_of(name)))
    lines = read_comparisons(FIXTURES / f"{name}.jsonl")
    assert result.format == name
    assert without_place(result) == without_place(lines)
    assert result.left_out == lines.left_out


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_gives_the_comparisons_of_json_lines(tmp_path, name, indent):
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(rows_of(name), ensure_ascii=False, indent=indent), encoding="utf-8")
    result = read_comparisons(path)
    assert result.format == name
    assert without_place(result) == without_place(read_comparisons(FIXTURES / f"{name}.jsonl"))


def test_json_lines_may_be_named_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes((FIXTURES / "trl.jsonl").read_bytes())
    assert len(read_comparisons(path).comparisons) == 3


def test_csv_gives_the_votes_of_the_arena(tmp_path):
    import csv

    path = tmp_path / "arena.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows_of("arena")[0]))
        writer.writeheader()
        writer.writerows(rows_of("arena"))
    result = read_comparisons(path)
    assert result.format == "arena"
    assert without_place(result) == without_place(read_comparisons(FIXTURES / "arena.jsonl"))


@pytest.mark.faults("F03")
def test_strings_of_parquet_and_csv_are_kept_byte_for_byte(tmp_path, parquet):
    odd = [" 2024-01-02T03:04:05\u2028\r\n\t ", ODD, "1e5", "NA", "null", "\ufeff"]
    rows = [{"prompt": text, "chosen": text + "x", "rejected": text + "y"} for text in odd]
    for path in (parquet(tmp_path / "a.parquet", rows), tmp_path / "a.csv"):
        if path.suffix == ".csv":
            cells = ["prompt,chosen,rejected\n", *('"{prompt}","{chosen}","{rejected}"\n'.format(**row) for row in rows)]
            path.write_bytes("".join(cells).encode())
        read = read_comparisons(path).comparisons
        assert [one.prompt[0].content for one in read] == odd
        assert [one.responses[0] for one in read] == [text + "x" for text in odd]


def test_a_bad_row_of_parquet_is_named_by_its_number(tmp_path, parquet):
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    path = parquet(tmp_path / "a.parquet", [good, good, good, {**good, "chosen": ""}, good])
    with pytest.raises(DataError, match=rf'^{path}:row 4: "chosen" is empty; expected an assistant message'):
        read_comparisons(path)
    result = read_comparisons(path, bad_rows="skip", rejected_dir=tmp_path / "out")
    assert (len(result.comparisons), result.rejected) == (4, 1)
    assert [one.id for one in result.comparisons] == [f"a.parquet:{number}" for number in (1, 2, 3, 5)]
    assert result.comparisons[3].source == f"{path}:row 5"
    rejected = json.loads(result.rejected_path.read_text())
    assert rejected["line"] == "row 4"
    assert json.loads(rejected["text"]) == {**good, "chosen": ""}


@pytest.mark.faults("F02")
@pytest.mark.faults("F04")
def test_parquet_strings_that_are_no_text_are_bad_rows(tmp_path, parquet):
    import pyarrow

    texts = pyarrow.array([b"a", b"\xe9t", b"x\x00", b"b"], pyarrow.binary()).view(pyarrow.string())
    plain = pyarrow.array(["1", "2", "3", "4"])
    path = parquet(tmp_path / "a.parquet", pyarrow.table({"prompt": plain, "chosen": texts, "rejected": plain}))
    rows = list(scan_file(path))
    assert [isinstance(row, BadRow) for row in rows] == [False, True, True, False]
    with pytest.raises(DataError, match=r"a\.parquet:row 2: a string is not UTF-8(?s:.*)a\.parquet:row 3: .*NUL character at character 2"):
        read_comparisons(path)


@pytest.mark.faults("F03")
def test_a_column_that_was_already_turned_into_time_stamps_is_refused(tmp_path, parquet):
    import datetime

    stamp = datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    path = parquet(tmp_path / "a.parquet", [{"prompt": "p", "chosen": stamp, "rejected": stamp}])
    with pytest.raises(DataError, match='"chosen" is a time stamp; expected'):
        read_comparisons(path)


def test_a_margin_that_is_no_number_is_refused_and_a_missing_one_is_none(tmp_path, parquet):
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    read = read_comparisons(parquet(tmp_path / "a.parquet", [{**good, "margin": 1.0}, {**good, "margin": None}]))
    assert [one.margin for one in read.comparisons] == [1.0, None]
    with pytest.raises(DataError, match=r'row 1: "margin" is nan; expected a number'):
        read_comparisons(parquet(tmp_path / "b.parquet", [{**good, "margin": float("nan")}]))


def test_damage_and_doubled_columns_stop_a_parquet_file(tmp_path, parquet):
    import pyarrow

    path = parquet(tmp_path / "a.parquet", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"a\.parquet: not a Parquet file, or damaged after row 0 .*download it again"):
        read_comparisons(path, bad_rows="skip")
    with pytest.raises(DataError, match=r"none\.parquet: no such file"):
        read_comparisons(tmp_path / "none.parquet")
    column = pyarrow.array(["x"])
    path = parquet(tmp_path / "b.parquet", pyarrow.Table.from_arrays([column, column], ["prompt", "prompt"]))
    with pytest.raises(DataError, match='two columns are named "prompt"'):
        read_comparisons(path)


def test_parquet_without_pyarrow_is_one_line_with_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DmoermError, match=r"^'pyarrow' is not installed\. Install it with: pip install 'dmoerm\[parquet\]'$"):
        read_comparisons(tmp_path / "a.parquet")


def test_an_empty_table_has_no_rows(tmp_path, parquet):
    import pyarrow

    path = parquet(tmp_path / "a.parquet", [], pyarrow.schema([("prompt", pyarrow.string())]))
    assert read_comparisons(path).rows == 0
    for name, content in (("a.json", "[]"), ("b.json", ""), ("a.csv", ""), ("b.csv", "prompt,chosen,rejected\n")):
        (tmp_path / name).write_text(content)
        assert read_comparisons(tmp_path / name).rows == 0


@pytest.mark.faults("F04")
@pytest.mark.parametrize(
    ("item", "message"),
    [
        ('{"prompt": "p", "chosen": "a", "chosen": "b"}', "row 2: the key 'chosen' comes twice"),
        ('{"prompt": NaN}', "row 2: NaN is not a JSON number"),
        (r'{"prompt": "\ud800"}', r"row 2: a string holds the unpaired surrogate \\ud800"),
        ("[1]", "row 2: expected an object, got a list"),
        ('{"prompt": "p", "chosen": "", "rejected": "b"}', 'row 2: "chosen" is empty'),
    ],
)
def test_a_bad_item_of_an_array_is_named_by_its_number_and_the_rest_is_read(tmp_path, item, message):
    good = '{"prompt": "p", "chosen": "a", "rejected": "b"}'
    path = tmp_path / "a.json"
    path.write_text(f"[{good},\n{item},{good}]")
    with pytest.raises(DataError, match=rf"a\.json:{message}"):
        read_comparisons(path)
    assert len(read_comparisons(path, bad_rows="skip").comparisons) == 2


@pytest.mark.faults("F01")
@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (',\n{"prompt": "p", "cho', r"a\.json:2: not valid JSON in row 2 .*Nothing after it can be read"),
        ("", r"a\.json:1: the array is not closed after row 1; expected a comma or \]"),
        ("\n\n;]", r"a\.json:3: the array is not closed after row 1"),
    ],
)
def test_a_cut_array_stops_with_its_line_even_when_bad_rows_are_skipped(tmp_path, tail, message):
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "p", "chosen": "a", "rejected": "b"}' + tail)
    with pytest.raises(DataError, match=message):
        read_comparisons(path, bad_rows="skip")


@pytest.mark.faults("F02")
def test_bytes_that_are_not_utf8_are_named_in_arrays_and_csv(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"a": "\xe9"}]')
    with pytest.raises(DataError, match=r"a\.json: not UTF-8: byte 0xe9 at byte offset 8"):
        read_comparisons(tmp_path / "a.json")
    (tmp_path / "a.csv").write_bytes(b'prompt,chosen,rejected\np,"a\nb",c\np,\xe9,c\n')
    with pytest.raises(DataError, match=r"a\.csv:4: a string holds the unpaired surrogate"):
        read_comparisons(tmp_path / "a.csv")
    assert read_comparisons(tmp_path / "a.csv", bad_rows="skip").comparisons[0].responses == ("a\nb", "c")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,prompt\n", r"a\.csv:1: a column has no name, or the name of another one"),
        ('prompt,chosen,rejected\np,"a"b,c\n', r"a\.csv:2: not valid CSV .*Quote cells"),
        ('prompt,chosen,rejected\np,a,b\np,"a', r"a\.csv:3: not valid CSV"),
        ("prompt,chosen,rejected\np,a\n", r"a\.csv:2: 2 cells for 3 columns"),
    ],
)
def test_csv_that_is_not_quite_csv_is_refused_with_its_line(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_comparisons(path)


def test_a_cell_longer_than_the_usual_limit_is_read_and_the_limit_is_put_back(tmp_path):
    import csv

    limit = csv.field_size_limit()
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,chosen,rejected\np,{'a' * 200_000},b\n")
    assert len(read_comparisons(path).comparisons[0].responses[0]) == 200_000
    assert csv.field_size_limit() == limit


def test_prompts_for_the_router_may_come_from_a_table(tmp_path, parquet):
    path = parquet(tmp_path / "p.parquet", [{"prompt": "a", "category": "chitchat"}])
    assert [category for _, category in read_prompts(path)] == ["chitchat"]
