"""YAML says what it means: numbers are numbers, words are words, and what is doubtful is refused with its line."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoerm.errors import ConfigError
from dmoerm.yaml_strict import dump_yaml, inline_yaml, parse_yaml, read_yaml


def value_of(text):
    return parse_yaml(f"key: {text}", "t.yaml").value["key"]


@pytest.mark.faults("F39")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5E3", 5000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("12", 12),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+3", 3),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("0b11", "0b11"),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("Yes", "Yes"),
        ("on", "on"),
        ("off", "off"),
        ("2024-01-01", "2024-01-01"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1e-5'", "1e-5"),
        ("角色", "角色"),
        ("<<", "<<"),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text, value):
    read = value_of(text)
    assert read == value
    assert type(read) is type(value)


def test_not_a_number_is_a_number_to_yaml():
    assert math.isnan(value_of(".nan"))


@pytest.mark.faults("F39")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r't\.yaml:3: "a" is given twice, first at t\.yaml:1'),
        ("a:\n  b: 1\n  b: 2\n", r't\.yaml:3: "b" is given twice, first at t\.yaml:2'),
        ("a: 1\n2: b\n", r"t\.yaml:2: a key must be text, got '2'"),
        ("true: b\n", r"t\.yaml:1: a key must be text"),
        ("? [a, b]\n: c\n", r"t\.yaml:1: a key must be text"),
        ("a: &x 1\nb: *x\n", r"t\.yaml:1: anchors and aliases"),
        ("a: &x [*x]\n", r"t\.yaml:1: anchors and aliases"),
        ("a: 1\nb: !!python/name:os.system x\n", r"t\.yaml:2: the tag .* is not read here"),
        ("a: !!timestamp 2024-01-01\n", r"t\.yaml:1: the tag .* is not read here"),
        ("a: !!int many\n", r"t\.yaml:1: 'many' cannot be read as int"),
        ('a: "\\ud800"\n', r"t\.yaml:1: .* cannot be read as str"),
        ("a: 1\n---\nb: 2\n", r"t\.yaml:2: not valid YAML: but found another document"),
        ("a: [1,\nb: 2\n", r"t\.yaml:\d: not valid YAML"),
        ("a: 1\nb: \x00\n", r"t\.yaml:2: character .* is not allowed"),
        ("[" * 5000, r"t\.yaml:1: nested more than 40 levels deep"),
    ],
)
def test_what_is_doubtful_is_refused_with_its_line(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, "t.yaml")


def test_every_value_knows_its_line_and_a_missing_one_the_line_around_it():
    document = parse_yaml("a: 1\nb:\n  - x\n  - c: y\n", "t.yaml")
    assert document.value == {"a": 1, "b": ["x", {"c": "y"}]}
    assert document.where(("b", 1, "c")) == "t.yaml:4"
    assert document.where(("b", 1, "missing")) == "t.yaml:4"
    assert document.where(("b", "missing")) == "t.yaml:2"
    assert document.where(("missing",)) == "t.yaml"


def test_an_empty_document_is_null():
    assert parse_yaml("# only a comment\n", "t.yaml").value is None


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: byte 6 is not UTF-8"):
        read_yaml(path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_yaml(path).value == {"a": 1, "b": 2}


def test_a_text_that_looks_like_a_number_comes_back_as_text():
    assert parse_yaml(dump_yaml({"a": "1e-5", "b": "no", "c": "0x1F"}), "t.yaml").value == {"a": "1e-5", "b": "no", "c": "0x1F"}


@pytest.mark.parametrize("text", ["\x85", "a\x85b", "\u2028", "\u2029 c", "\r", "\x85 # no comment: 1"])
def test_every_line_break_of_yaml_comes_back(text):
    assert parse_yaml(dump_yaml({"a": [text]}), "t.yaml").value == {"a": [text]}
    assert parse_yaml(inline_yaml(text), "t.yaml").value == text


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc1e-", max_size=4), inner, max_size=3))


@given(values)
def test_what_is_dumped_is_read_back(value):
    assert parse_yaml(dump_yaml(value), "t.yaml").value == value
    assert parse_yaml(inline_yaml(value), "t.yaml").value == value
