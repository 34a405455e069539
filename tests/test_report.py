import math
import re
from html.parser import HTMLParser

import pytest

from dmoerm.errors import DataError
from dmoerm.evaluation.agreement import evaluate_agreement
from dmoerm.evaluation.charts import Scale, bar, legend_mark, nice_scale, number_text
from dmoerm.evaluation.metrics import Scored
from dmoerm.evaluation.report import (
    Bar,
    Bars,
    Curve,
    Explanation,
    Heat,
    Measured,
    Series,
    Table,
    Text,
    agreement_sections,
    report_html,
    write_report,
)
from dmoerm.evaluation.sections import section_html
from dmoerm.records import Comparison, Message, Reward

HOSTILE = "<script>alert(\"1\")</script> & 'quoted' \x1b[31m \x00 \ud800"


def reward(value: float, *, truncated: bool = False, **capabilities: float) -> Reward:
    return Reward(value, "objective_qa", 0.93, capabilities, 0.4, 0.21, truncated)


def explanation(*rewards: Reward | None, text: str = "An answer.") -> Explanation:
    return Explanation("One comparison", (Message("user", text),), (text,) * len(rewards), rewards, tuple(range(1, len(rewards) + 1)))


EVERY_KIND = [
    Text("Words", ("First.", "Second.")),
    Table("Figures", ("model", "value", "n"), (("ours", Measured(0.75, 0.7, 0.8), 1200), ("none", None, 3))),
    Heat("Shares", ("ours",), (("empty", (Measured(0.24, 0.2, 0.3),)), ("none", (None,)))),
    Bars("Agreement", (Bar("ours", 0.75, (0.7, 0.8), strong=True), Bar("random", 0.5)), origin=0.5),
    Curve(
        "Gold", "KL", "reward", (Series("ours", (0.0, 1.0), (0.0, 0.5), (-0.1, 0.4), (0.1, 0.6)), Series("single", (0.0, 1.0), (0.0, 0.3)))
    ),
    explanation(reward(1.5, logic=0.5, correctness=-1.25), reward(0.4, logic=0.1, correctness=0.2, truncated=True), None),
]


class Balance(HTMLParser):
    """Raises where a tag closes that was not the last one opened."""

    void = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)


def tags_of(page: str) -> Balance:
    checker = Balance()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_the_page_is_well_formed_and_has_every_section():
    page = report_html("Report", EVERY_KIND, subtitle="24 prompts")
    assert {"svg", "table", "details", "article", "polyline", "polygon"} <= tags_of(page).seen
    for text in ("<h1>Report</h1>", "24 prompts", "<h2>Words</h2>", "<h2>Gold</h2>", "<h2>One comparison</h2>"):
        assert text in page


def test_the_page_asks_nothing_of_the_network_and_runs_no_script():
    page = report_html("Report", EVERY_KIND)
    assert "script" not in tags_of(page).seen
    assert not re.search(r"https?:|\bsrc=|\bhref=|url\(|@import", page)
    assert "default-src 'none'" in page


def test_the_page_follows_the_colour_scheme_and_fits_small_screens():
    page = report_html("Report", EVERY_KIND)
    assert "prefers-color-scheme:dark" in page
    assert 'content="width=device-width, initial-scale=1"' in page


def test_text_from_outside_is_escaped_in_every_section():
    sections = [
        Text(HOSTILE, (HOSTILE,)),
        Table(HOSTILE, (HOSTILE,), ((HOSTILE,),), HOSTILE),
        Heat(HOSTILE, (HOSTILE,), ((HOSTILE, (None,)),), HOSTILE),
        Bars(HOSTILE, (Bar(HOSTILE, 1.0),), value_name=HOSTILE, caption=HOSTILE),
        Curve(HOSTILE, HOSTILE, HOSTILE, (Series(HOSTILE, (0.0,), (1.0,)),), HOSTILE),
        Explanation(HOSTILE, (Message("user", HOSTILE),), (HOSTILE,), (Reward(1.0, HOSTILE, 1.0, {HOSTILE: 1.0}, 0.0, 0.0),), note=HOSTILE),
    ]
    page = report_html(HOSTILE, sections, subtitle=HOSTILE)
    assert "script" not in tags_of(page).seen
    assert page.count("&lt;script&gt;") >= 20
    assert not re.search("[\x00\x1b\ud800]", page)


def test_the_file_is_utf8_whole_and_the_same_each_time(tmp_path):
    path = write_report(tmp_path / "new" / "report.html", "Bericht über Güte", EVERY_KIND)
    first = path.read_bytes()
    assert "Bericht über Güte" in first.decode("utf-8")
    write_report(path, "Bericht über Güte", EVERY_KIND)
    assert path.read_bytes() == first
    assert [found.name for found in path.parent.iterdir()] == ["report.html"]


def test_numbers_of_charts_stand_in_tables_too():
    page = report_html("Report", EVERY_KIND)
    assert "0.750 <span" in page
    assert "[0.700, 0.800]" in page
    assert ">0.300</td>" in page  # a point of the curve
    assert ">\N{MINUS SIGN}1.25</td>" in page  # a capability
    assert ">1,200</td>" in page


def test_the_winner_is_marked_and_a_failed_response_is_called_failed():
    page = report_html("Report", [explanation(reward(0.2), reward(1.2), None)])
    cards = page.split("<article")[1:]
    assert ["winner" in card for card in cards] == [False, True, False]
    assert "could not be scored" in cards[2]
    # sigmoid(1.0) = 0.731.
    assert "<strong>B wins.</strong> Its reward is 1.00 above the next one" in page
    assert "73 % of such cases" in page


def test_equal_rewards_are_a_tie_and_not_a_win():
    page = report_html("Report", [explanation(reward(0.2), reward(0.2))])
    assert "Tied: A, B have the same reward." in page
    assert ">winner<" not in page


def test_explanations_with_one_or_no_reward_say_so():
    assert "A is the only response with a reward." in report_html("R", [explanation(reward(0.2), None)])
    assert "No response could be scored." in report_html("R", [explanation(None, None)])


def test_a_bar_runs_from_its_origin_to_its_value():
    # On an axis of 0 to 2, origin 0.5 is at 25 % and value 1.5 at 75 %.
    drawn = bar(1.5, Scale(0.0, 2.0, (0.0, 1.0, 2.0)), origin=0.5, interval=(1.0, 2.0))
    assert 'x="25.00%" width="50.00%"' in drawn
    assert 'class="whisker" x1="50.00%" x2="100.00%"' in drawn
    # A value below the origin draws leftwards.
    assert 'x="25.00%" width="25.00%"' in bar(0.5, Scale(0.0, 2.0, (0.0, 1.0, 2.0)), origin=1.0)


def test_a_heat_cell_is_shaded_by_its_tenth():
    page = report_html("R", [Heat("H", ("a", "b"), (("x", (Measured(0.24, 0.2, 0.3), None)),))])
    assert '<td class="number h2">0.240<br>' in page
    assert '<td class="number h0">\N{EN DASH}</td>' in page


def test_counts_have_ticks_at_whole_numbers_only():
    assert nice_scale([0, 1], whole=True).ticks == (0, 1)
    assert nice_scale([0, 3], whole=True).ticks == (0, 1, 2, 3)
    assert nice_scale([4, 4], whole=True).ticks == (3, 4, 5)
    page = report_html("R", [Curve("Loss", "epoch", "nats", (Series("a", (0.0, 1.0), (0.5, 0.25)),))])
    assert re.findall(r'text-anchor="middle">([^<]*)<', page) == ["0", "1"]


def test_a_reward_keeps_its_look_where_others_are_left_out():
    first = Curve("One", "x", "y", tuple(Series(name, (0.0,), (1.0,), style=place) for place, name in enumerate("abc")))
    second = Curve("Two", "x", "y", (Series("c", (0.0,), (1.0,), style=2),))
    one, two = (report_html("R", [curve]) for curve in (first, second))
    marks = [[key for key in page.split("<li>") if "</svg>c</li>" in key] for page in (one, two)]
    assert [key.split("</li>")[0] for (key,) in marks] == [marks[0][0].split("</li>")[0]] * 2


def test_a_screen_reader_hears_the_ends_and_the_top_of_each_line_once_escaped():
    page = report_html("R", [Curve("Gold", "KL", "gold & more", (Series("ours", (0.0, 1.0, 2.0), (0.25, 0.75, 0.5)),))])
    assert 'aria-label="gold &amp; more against KL: ours from 0.25 at 0 to 0.5 at 2, highest 0.75 at 1.' in page


def test_axes_end_at_round_numbers_around_all_values():
    assert nice_scale([0.52, 0.887, 0.5]).ticks == (0.5, 0.6, 0.7, 0.8, 0.9)
    assert nice_scale([-1.9, 1.2]).ticks == (-2.0, -1.0, 0.0, 1.0, 2.0)
    assert nice_scale([0.1 + 0.2, 0.0]).high == 0.3
    same = nice_scale([3.0, 3.0])
    assert same.low < 3.0 < same.high


def test_tick_numbers_are_short():
    assert [number_text(value) for value in (0.0, 0.25, 1200.0, -0.5)] == ["0", "0.25", "1,200", "\N{MINUS SIGN}0.5"]


def test_sections_refuse_what_cannot_be_shown():
    with pytest.raises(DataError, match="Report 'R' has no sections"):
        report_html("R", [])
    with pytest.raises(DataError, match="Bars 'B', 'x': nan cannot be drawn"):
        Bars("B", (Bar("x", math.nan),))
    with pytest.raises(DataError, match="Bars 'B' has no bar"):
        Bars("B", ())
    with pytest.raises(DataError, match="row 1: 1 cells; expected 2"):
        Table("T", ("a", "b"), (("x",),))
    with pytest.raises(DataError, match="Heat 'H', row 'x': 0 shares; expected 1"):
        Heat("H", ("a",), (("x", ()),))
    with pytest.raises(DataError, match=r"Heat 'H', row 'x': 1\.5; expected a share between 0 and 1"):
        Heat("H", ("a",), (("x", (Measured(1.5, 1.0, 2.0),)),))
    with pytest.raises(DataError, match=r"Curve 'C', series 's': .* lengths \[2, 1, 2, 2\]"):
        Curve("C", "x", "y", (Series("s", (0.0, 1.0), (0.0,)),))
    with pytest.raises(DataError, match="Curve 'C' has no series"):
        Curve("C", "x", "y", ())
    with pytest.raises(DataError, match="2 responses, 1 rewards"):
        Explanation("E", (), ("a", "b"), (None,))
    with pytest.raises(DataError, match="Explanation 'One comparison': inf cannot be drawn"):
        explanation(reward(math.inf))
    with pytest.raises(DataError, match="not finite"):
        nice_scale([])


def test_an_agreement_result_becomes_sections_with_its_provenance():
    def model(*margins: float) -> list[Scored]:
        return [
            Scored(Comparison(f"c{i}", (Message("user", f"p{i}"),), ("a", "bb"), (1, 2), ("qa", "chat")[i % 2]), (margin, 0.0))
            for i, margin in enumerate(margins)
        ]

    result = evaluate_agreement(
        {"ours": model(1, 1, -1, 1), "single": model(1, -1, -1, 1)}, "single", seed=9, samples=100, meta={"recipe": "ab"}
    )
    sections = agreement_sections(result, strong=["ours"])
    assert [section.title for section in sections] == [
        "Agreement with human preference",
        "Difference to single",
        "All figures",
        "Agreement by category",
        "Calibration by category",
        "Made with",
    ]
    page = report_html("R", sections)
    tags_of(page)
    assert "<strong>ours</strong>" in page
    assert "chat* (2 pairs)" in page
    for fact in ("ab</td>", ">9</td>", "100 samples, 95 %"):
        assert fact in page


def test_many_lines_look_different_and_keep_their_intervals_in_the_numbers_alone():
    assert len({legend_mark(style) for style in range(24)}) == 24
    series = (Series("a", (0.0, 1.0), (0.5, 0.6), (-9.0, -9.0), (9.0, 9.0)),)
    shaded, bare = (section_html(Curve("T", "x", "y", series, shaded=shaded)) for shaded in (True, False))
    assert "<polygon" in shaded
    assert "<polygon" not in bare
    assert "\N{MINUS SIGN}9.000" in bare  # in the table
    assert ">10</text>" not in bare  # the axis is that of the line


def test_no_minus_stands_before_a_zero():
    text = section_html(Table("T", ("a",), ((Measured(-0.0004, -0.0006, 0.0),),)))
    assert ">0.000<br>" in text
    assert "[\N{MINUS SIGN}0.001, 0.000]" in text
