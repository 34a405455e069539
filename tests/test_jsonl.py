import gzip
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoerm.data.jsonl import BadRow, map_rows, read_rows, scan_rows, write_rows
from dmoerm.data.strict_json import parse_object
from dmoerm.errors import ConfigError, DataError


@pytest.fixture
def file(tmp_path):
    def write(content: bytes, name: str = "train.jsonl"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.faults("F03")
def test_text_that_looks_like_a_date_a_number_or_a_boolean_stays_the_string_it_is(file):
    path = file(b'{"a": "2024-01-02T03:04:05", "b": "1e5", "c": "no", "d": " x\\r\\n"}\n')
    assert next(read_rows(path)).data == {"a": "2024-01-02T03:04:05", "b": "1e5", "c": "no", "d": " x\r\n"}


@pytest.mark.faults("F04")
def test_unicode_line_separators_do_not_split_a_row(file):
    text = "one\u2028two\u0085three\x0bfour"
    path = file((json.dumps({"t": text}, ensure_ascii=False) + '\n{"t": 2}\n').encode())
    assert [(row.line, row.data["t"]) for row in read_rows(path)] == [(1, text), (2, 2)]


def test_line_numbers_are_physical_and_blank_lines_are_no_rows(file):
    path = file(b'\n{"a": 1}\n   \n\r\n{"a": 2}\r\n{"a": 3}')
    assert [(row.line, row.data["a"]) for row in read_rows(path)] == [(2, 1), (5, 2), (6, 3)]


@pytest.mark.faults("F02")
@pytest.mark.parametrize(
    ("content", "name"), [(b"", "a.jsonl"), (gzip.compress(b"", mtime=0), "a.jsonl.gz"), (b"", "b.jsonl.gz"), (b"\n\n", "c.jsonl")]
)
def test_an_empty_file_has_no_rows(file, content, name):
    assert list(read_rows(file(content, name))) == []


@pytest.mark.faults("F02")
def test_a_byte_order_mark_of_utf8_is_accepted(file):
    assert next(read_rows(file(b'\xef\xbb\xbf{"a": 1}\n'))).data == {"a": 1}


@pytest.mark.faults("F02")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n'.encode("utf-16"), "byte 0xff at byte offset 0; the file looks like UTF-16"),
        ('{"a": 1}\n'.encode("utf-16-le"), "looks like UTF-16"),
        (b"\r\n\n <html>\n", "byte 0x3c at byte offset 4; the file looks like HTML"),
        (b"  <!doctype html>\n<html>", "byte 0x3c at byte offset 2; the file looks like HTML"),
        (gzip.compress(b'{"a": 1}\n', mtime=0), "looks like gzip; give it the suffix .gz"),
        (b"PAR1\x15\x04", "looks like Parquet"),
        (b'[{"a": 1},\n{"a": 2}]', "looks like one JSON array"),
        (b'{\n  "a": 1\n}', "looks like indented JSON"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_a_guess_even_when_bad_rows_are_skipped(file, content, message):
    with pytest.raises(DataError, match=message):
        list(read_rows(file(content), bad_rows="skip"))


@pytest.mark.faults("F02")
def test_a_byte_that_is_not_utf8_is_named_with_its_offset_in_the_file(file):
    # The first line has 9 bytes with its line break; the bad byte follows {"a": " in the second, which are 7 bytes.
    with pytest.raises(DataError, match=r"train\.jsonl:2: not UTF-8: byte 0xe9 at byte offset 16 of the file"):
        list(read_rows(file(b'{"a": 1}\n{"a": "\xe9t"}\n')))


@pytest.mark.faults("F01")
def test_broken_json_is_named_by_path_line_and_column(file):
    # {"a": 1 "b": 2}: the second key stands in column 9, where a comma should be.
    with pytest.raises(DataError, match=r"train\.jsonl:2: not valid JSON \(Expecting ',' delimiter: column 9\)"):
        list(read_rows(file(b'{"a": 1}\n{"a": 1 "b": 2}\n')))


@pytest.mark.faults("F01")
def test_stopping_lists_the_first_twenty_bad_rows_and_no_more(file):
    path = file(b'{"a": 1}\n' + b"{\n" * 30)
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    message = str(caught.value)
    assert message.count("not valid JSON") == 20
    assert f"{path}:21:" in message
    assert f"{path}:22:" not in message
    assert "first 20 bad rows" in message


def test_no_row_after_a_bad_one_is_given_when_reading_stops(file):
    rows = read_rows(file(b'{"a": 1}\nx\n{"a": 3}\n'))
    assert next(rows).line == 1
    with pytest.raises(DataError, match=":2: "):
        next(rows)


@pytest.mark.faults("F01")
def test_skipped_rows_are_counted_and_written_with_line_reason_and_text(file, tmp_path):
    path = file(b'{"a": 1}\n{"a": \n{"a": "\xff"}\n{"a": 4}\n')
    result = map_rows(path, lambda row: row.data["a"], bad_rows="skip", rejected_dir=tmp_path / "run")
    assert (result.items, result.rows, result.rejected) == ([1, 4], 4, 2)
    assert result.rejected_path == tmp_path / "run" / "train.rejected.jsonl"
    rejected = [row.data for row in read_rows(result.rejected_path)]
    assert [row["line"] for row in rejected] == [2, 3]
    assert rejected[1]["text"] == '{"a": "\\xff"}\n'
    assert "not UTF-8" in rejected[1]["reason"]


def test_skipping_without_a_folder_writes_nothing(file, tmp_path):
    path = file(b'x\n{"a": 1}\n')
    assert [row.line for row in read_rows(path, bad_rows="skip")] == [2]
    assert os.listdir(tmp_path) == ["train.jsonl"]


def test_a_row_that_the_converter_refuses_is_listed_beside_broken_ones(file):
    def convert(row):
        raise DataError("no good.")

    with pytest.raises(DataError, match=r"(?s):1: no good\.\n.*:2: not valid JSON"):
        map_rows(file(b'{"a": 1}\nx\n'), convert)


def test_an_unknown_policy_is_refused(file):
    with pytest.raises(ConfigError, match='expected "stop" or "skip"'):
        list(read_rows(file(b""), bad_rows="ignore"))


@pytest.mark.faults("F04")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' comes twice"),
        (b'{"b": {"a": 1, "c": 0, "a": 1}}', "the key 'a' comes twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "the number 1e999 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not usable JSON"),
        (rb'{"a": ["ok", "x\ud800"]}', r"unpaired surrogate \\ud800 at character 2"),
        (rb'{"\udfff": 1}', r"unpaired surrogate \\udfff"),
        (rb'{"a": "x\u0000"}', "a NUL character at character 2"),
        (b'{"a": "x\x00"}', "not valid JSON"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "nested deeper than 64 levels"),
        (b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested deeper than 64 levels"),
        (b"[1]", "expected an object, got a list"),
        (b'"x"', "expected an object, got a string"),
        (b"null", "expected an object, got null"),
    ],
)
def test_json_that_others_repair_is_refused(content, message):
    with pytest.raises(DataError, match=message):
        parse_object(content)


def test_paired_surrogates_and_64_levels_are_accepted():
    assert parse_object(rb'{"a": "\ud83d\ude00"}') == {"a": "\U0001f600"}
    assert parse_object(b'{"a": ' + b"[" * 63 + b"]" * 63 + b"}")


def test_gzip_is_read_by_suffix_and_damage_is_named_with_the_line(file):
    packed = gzip.compress(b'{"a": 1}\n' * 2000)
    assert sum(1 for _ in read_rows(file(packed, "a.jsonl.gz"))) == 2000
    with pytest.raises(DataError, match="damaged gzip after line"):
        list(read_rows(file(packed[:-12], "cut.jsonl.gz")))
    with pytest.raises(DataError, match="damaged gzip after line 0"):
        list(read_rows(file(b'{"a": 1}\n', "plain.jsonl.gz")))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        list(read_rows(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows(tmp_path))


def test_scanning_gives_bad_rows_in_their_place(file):
    kinds = [type(row) is BadRow for row in scan_rows(file(b'{"a": 1}\nx\n{"a": 3}\n'))]
    assert kinds == [False, True, False]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_equal_rows_are_written_as_equal_bytes_and_read_back(tmp_path, name):
    rows = [{"a": "é\u2028\n", "b": [1, None]}, {"a": 2}]
    first, second = tmp_path / "x" / name, tmp_path / "y" / name
    assert (write_rows(first, rows), write_rows(second, iter(rows))) == (2, 2)
    assert first.read_bytes() == second.read_bytes()
    assert [row.data for row in read_rows(first)] == rows


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "out.jsonl"
    write_rows(path, [{"a": 1}])
    for bad in ({"a": float("nan")}, {"a": "\ud800"}, {"a": object()}):
        with pytest.raises(DataError, match=r"out\.jsonl: row 2 cannot be written as JSON"):
            write_rows(path, [{"a": 2}, bad])
    assert path.read_bytes() == b'{"a": 1}\n'
    assert os.listdir(tmp_path) == ["out.jsonl"]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), st.text() | st.integers(-(10**12), 10**12) | st.lists(st.text())))
def test_any_object_without_nul_comes_back_as_it_was_written(tmp_path_factory, data):
    # st.text draws no surrogates.
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    write_rows(path, [data])
    if "\\u0000" in path.read_text(encoding="utf-8"):
        with pytest.raises(DataError, match="NUL"):
            list(read_rows(path))
    else:
        assert [row.data for row in read_rows(path)] == [data]
