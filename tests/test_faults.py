"""The page on faults and the marks of the tests name the same cases, so that promise and test cannot drift apart."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def marked():
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").glob("test_*.py"))]
    return {case for text in texts for mark in re.findall(r"mark\.faults\(([^)]*)\)", text) for case in re.findall(r"F\d\d", mark)}


def promised():
    return set(re.findall(r"^\| (F\d\d) \|", (ROOT / "docs" / "faults.md").read_text(encoding="utf-8"), re.MULTILINE))


def test_every_promised_case_has_a_test_and_every_marked_case_is_promised():
    assert promised() == marked()


@pytest.mark.parametrize("case", range(1, 40))
def test_the_cases_of_data_labelling_training_checkpoints_scoring_and_serving_are_promised(case):
    assert f"F{case:02d}" in promised()
