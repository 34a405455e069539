"""A label report in words: findings with a severity, a sentence, what to do, and the figures behind it. Nothing is computed here.

Findings, their look in a terminal and the thresholds on kept labels are the doctor's, so that `check` and `label report` do not disagree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dmoerm.data.doctor import length
from dmoerm.data.doctor.finding import SEVERITIES, Cell, Finding, Table
from dmoerm.data.doctor.labels import ENOUGH_LABELS, HALO, MILD_HALO, REPEATED
from dmoerm.data.doctor.orders import MANY_INCONSISTENT
from dmoerm.data.doctor.page import HEADINGS, NARROWEST, WIDEST, finding_lines, painted, wrapped
from dmoerm.data.doctor.wording import counted, part, percent, share_text
from dmoerm.labeling.wording import figure_text, listed, percent_text, signed_percent_text, size_text
from dmoerm.records import OVERALL

if TYPE_CHECKING:
    from dmoerm.labeling.agreement import JudgeReport, LabelReport, LabelRow
    from dmoerm.labeling.judges import JudgesAgreement

__all__ = ["findings_text", "label_findings", "page_of", "row_name"]

STRONG_BIAS, MILD_BIAS = 0.15, 0.05
"""Position bias at which a judge needs another setting, and at which it is worth a note."""
NOISY = 0.25
"""Noise in each order at which a tenth of the kept labels is chance, position aside (0.25² / (0.25² + 0.75²))."""
WEAK_WITH_PEOPLE = 0.6
"""Agreement with people below which labels are doubtful; people agree with each other in 60 to 75 % of pairs."""


def label_findings(report: "LabelReport") -> tuple[Finding, ...]:
    """What a report says, most serious first; where there are several judges, each by name."""
    found = [finding for judge in report.judges for finding in _of_judge(judge, report)]
    if report.several is not None:
        found.append(_several(report.several))
    if not found:
        found.append(Finding("labels", "No verdicts", "problem", "there are no judged pairs", "Label some pairs first (dmoerm label)."))
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def findings_text(report: "LabelReport", width: int, *, colour: bool) -> str:
    """The whole report for a terminal."""
    several = len(report.several.judges) if report.several else len(report.judges)
    judges = f"judge {report.judges[0].judge}" if several == 1 else counted(several, "judge")
    head = f"{counted(report.pairs, 'judged pair')} of {counted(report.prompts, 'prompt')}, {judges}"
    foot = (
        f"Brackets are 95% intervals over prompts: Wilson at the effective number of prompts for shares, else {report.samples:,} draws, "
        f"seed {report.seed}."
    )
    return page_of(head, report.findings(), width, colour=colour, foot=foot)


def page_of(head: str, findings: Sequence[Finding], width: int, *, colour: bool, foot: str = "") -> str:
    """Findings under their headings, no line wider than `width` but for words that are."""
    width = max(NARROWEST, min(width, WIDEST))
    blocks = [[painted(line, "1", colour) for line in wrapped(head, width, "")]]
    for severity, heading, paint in (*HEADINGS, ("fine", "FINE", "32;1")):
        of_severity = [finding for finding in findings if finding.severity == severity]
        if of_severity:
            blocks.append([painted(heading, paint, colour)])
            blocks += [list(finding_lines(finding, width, colour=colour)) for finding in of_severity]
    blocks.append(wrapped(foot, width, ""))
    return "\n\n".join("\n".join(block) for block in blocks if block)


def row_name(row: "LabelRow") -> str:
    """How a row is called: category/capability, or one of them."""
    return "/".join(filter(None, (row.category, row.capability or "all capabilities")))


def _of_judge(judge: "JudgeReport", report: "LabelReport") -> Iterator[Finding]:
    suffix = f" ({judge.judge})" if len(report.judges) > 1 else ""
    rows = [row for row in (judge.all_capabilities, judge.overall) if row is not None]
    if not rows:
        yield Finding("labels", f"No verdicts{suffix}", "problem", f"nothing was asked about {counted(judge.pairs, 'pair')}", count=0)
        return
    checks = (_labels, _orders, _position, _steadiness, _people, _length, _halo, _twins)
    for check in checks:
        for finding in check(judge, rows, report.minimum_labels):
            yield replace(finding, title=finding.title + suffix)


_Rows = Sequence["LabelRow"]


def _labels(judge: "JudgeReport", rows: _Rows, minimum: int) -> Iterator[Finding]:
    asked, kept = (sum(getattr(row.outcomes, name) for row in rows) for name in ("asked", "labels"))
    incomplete = sum(row.outcomes.incomplete for row in rows)
    few = ["/".join(filter(None, name)) for name in judge.few]
    summary = f"{part(kept, asked, 'question')} became labels, on {counted(judge.pairs, 'pair')} of {counted(judge.prompts, 'prompt')}"
    summary += f"; {incomplete:,} lack an answer" if incomplete else ""
    summary += f"; fewer than {minimum} labels: {listed(few)}" if few else ""
    nothing = incomplete == asked
    cells = [
        (row_name(row), row.outcomes.asked, row.outcomes.labels, row.kept, row.ties, row.outcomes.incomplete)
        for row in (*rows, *judge.questions)
    ]
    yield Finding(
        "labels",
        "No question was answered in both orders" if nothing else "Capabilities with too few labels" if few else "Labels kept",
        "problem" if nothing else "warning" if few else "fine",
        summary,
        "Ask in both orders; a verdict of one order is no label."
        if nothing
        else "Label more, or they get no expert (experts.minimum_labels)."
        if few
        else "",
        kept,
        asked,
        table=Table(("question", "asked", "labels", "kept", "ties", "unanswered"), tuple(cells)),
    )


def _orders(judge: "JudgeReport", rows: _Rows, minimum: int) -> Iterator[Finding]:
    complete = [row for row in rows if row.consistency is not None]
    if not complete:
        return
    limit = 1.0 - MANY_INCONSISTENT
    unsteady = [
        row_name(row) for row in judge.questions if row.consistency and row.consistency.n >= ENOUGH_LABELS and row.consistency.high < limit
    ]
    many = any(row.consistency is not None and row.consistency.value < limit for row in complete)
    told = [f"{row_name(row)}: {share_text(row.consistency)} of {row.consistency.n:,}" for row in complete if row.consistency]
    changed, half = (sum(found) for found in zip(*((_changed(row), row.outcomes.half_tied) for row in complete), strict=True))
    told.append(f"of {changed:,} that change, {half:,} are between a response and no difference")
    yield Finding(
        "orders",
        "Verdicts that depend on the order" if many or unsteady else "Verdicts hold in both orders",
        "warning" if many or unsteady else "fine",
        f"the same verdict in both orders: {'; '.join(told)}"
        + (f"; clearly below {percent(limit)}: {listed(unsteady)}" if unsteady else ""),
        "Ask a stronger judge, or word these capabilities more narrowly." if many or unsteady else "",
        table=Table(
            ("capability", "same verdict", "alpha", "n"),
            tuple(
                (row_name(row), row.consistency, figure_text(row.order_alpha), row.outcomes.complete)
                for row in (*rows, *judge.capabilities)
            ),
        ),
    )


def _changed(row: "LabelRow") -> int:
    counts = row.outcomes
    return counts.half_tied + counts.to_first_shown + counts.to_second_shown


def _position(judge: "JudgeReport", rows: _Rows, minimum: int) -> Iterator[Finding]:
    known = [row for row in rows if row.position.bias is not None]
    if not known:
        return
    strong = any(_leans(row, STRONG_BIAS) for row in known)
    leaning = [row_name(row) for row in judge.capabilities if _leans(row, MILD_BIAS)]
    mild = bool(leaning) or any(_leans(row, MILD_BIAS) for row in known)
    noisy = [
        row_name(row)
        for row in judge.capabilities
        if row.position.noise and row.position.noise.n >= ENOUGH_LABELS and row.position.noise.value >= NOISY
    ]
    told = [_position_sentence(row) for row in known]
    yield Finding(
        "position",
        "The place of a response decides" if strong else "Some leaning to a place" if mild else "Hardly any leaning to a place",
        "warning" if strong or noisy else "note" if mild else "fine",
        "; ".join(told)
        + (f"; {percent(MILD_BIAS)} or more: {listed(leaning)}" if leaning else "")
        + (f"; noise of {NOISY:g} or more: {listed(noisy)}" if noisy else ""),
        "Both orders cancel the leaning in the labels, at the price of those that are lost; a judge of one order would carry it on."
        if strong or mild
        else "",
        table=Table(
            ("capability", "changed", "to first", "bias b, %", "noise e"),
            tuple(
                (
                    row_name(row),
                    row.position.changed,
                    row.position.to_first,
                    signed_percent_text(row.position.bias),
                    percent_text(row.position.noise),
                )
                for row in (*rows, *judge.capabilities)
            ),
        ),
    )


def _leans(row: "LabelRow", size: float) -> bool:
    bias = row.position.bias
    return bias is not None and bias.n >= ENOUGH_LABELS and bias.apart_from(0.0) and abs(bias.value) >= size


def _position_sentence(row: "LabelRow") -> str:
    found = row.position
    assert found.bias is not None
    text = (
        f"{row_name(row)}: names the response shown {'first' if found.bias.value >= 0 else 'second'} regardless in {size_text(found.bias)}"
    )
    if found.noise and found.slips:
        text += f" of verdicts, else errs in {percent_text(found.noise)}"
        text += f", so that {percent_text(found.slips)} of its labels are slips in both orders"
    if found.to_first:
        text += f"; of {counted(found.to_first.n, 'pair')} that change sides, {share_text(found.to_first)} go to the first shown"
    return text


def _steadiness(judge: "JudgeReport", rows: _Rows, minimum: int) -> Iterator[Finding]:
    found = judge.steadiness
    if found is None or found.consistency_difference is None or found.capabilities is None or found.overall is None:
        return
    difference, named = found.consistency_difference, found.named_difference
    better, worse = difference.low > 0.0, difference.high < 0.0
    if worse and named is not None and named.low > 0.0:
        title = "Capabilities change to no difference more often than the whole, and change sides less often"
    else:
        how = "more steadily than" if better else "less steadily than" if worse else "about as steadily as"
        title = f"Capabilities are judged {how} the whole"
    cells: list[tuple[Cell, ...]] = [("same verdict", found.capabilities, found.overall, signed_percent_text(difference))]
    cells.append(("same, where both name one", found.capabilities_named, found.overall_named, signed_percent_text(named)))
    cells.append(
        (
            "alpha of the orders",
            *map(figure_text, (found.capabilities_alpha, found.overall_alpha)),
            figure_text(found.alpha_difference, signed=True),
        )
    )
    summary = f"the same verdict in both orders, capabilities minus overall: {signed_percent_text(difference)} points"
    summary += f"; where both orders name a response: {signed_percent_text(named)} points" if named else ""
    yield Finding(
        "steadiness",
        title,
        "note" if worse else "fine",
        f"{summary} ({counted(found.pairs, 'pair')} with a complete overall question)",
        table=Table(("in both orders", "capabilities", "overall", "difference"), tuple(cells)),
    )


def _people(judge: "JudgeReport", rows: _Rows, minimum: int) -> Iterator[Finding]:
    known = [row for row in rows if row.people is not None and row.people.n >= ENOUGH_LABELS]
    if not known:
        return
    shares = [row.people for row in known if row.people is not None]
    turned, weak = any(share.high < 0.5 for share in shares), any(share.value < WEAK_WITH_PEOPLE for share in shares)
    told = [
        f"{row_name(row)}: {share_text(row.people)} of {row.people.n:,} labels"
        + (f", length-balanced {percent_text(row.people_balanced)}" if row.people_balanced else "")
        for row in known
        if row.people
    ]
    yield Finding(
        "people",
        "Labels go against the ranks" if turned else "Labels and the ranks disagree" if weak else "Labels go with the ranks",
        "problem" if turned else "warning" if weak else "fine",
        "; ".join(told),
        "Have the two responses changed places?" if turned else "The labels are doubtful; look at some of them." if weak else "",
        table=Table(
            ("capability", "with ranks", "length-balanced", "errs against", "settled against"),
            tuple(
                (
                    row_name(row),
                    row.people,
                    percent_text(row.people_balanced),
                    percent_text(row.position.noise_against_people),
                    percent_text(row.position.settled_against_people),
                )
                for row in (*rows, *judge.capabilities)
            ),
        ),
    )


def _length(judge: "JudgeReport", rows: _Rows, minimum: int) -> Iterator[Finding]:
    known = [row for row in rows if row.longer is not None and row.longer.n >= ENOUGH_LABELS]
    if not known:
        return
    worst = max((row.longer for row in known if row.longer), key=lambda share: abs(share.value - 0.5))
    strong, mild = worst.away_from_half(length.STRONG), worst.away_from_half(length.MILD)
    told = [
        f"{row_name(row)}: {share_text(row.longer)} of {row.longer.n:,} labels go to the longer response"
        + (f", the ranks of these pairs in {share_text(row.people_longer)}" if row.people_longer else "")
        for row in known
        if row.longer
    ]
    yield Finding(
        "length_bias",
        "Length bias of the labels" if mild else "No length bias of the labels",
        "warning" if strong else "note" if mild else "fine",
        "; ".join(told),
        "Compare with the ranks: what goes beyond them is the judge's." if mild else "",
        table=Table(
            ("capability", "to the longer", "ranks to the longer"),
            tuple((row_name(row), row.longer, row.people_longer) for row in (*rows, *judge.capabilities)),
        ),
    )


def _halo(judge: "JudgeReport", rows: _Rows, minimum: int) -> Iterator[Finding]:
    everything = judge.all_capabilities
    if everything is None or everything.follows_overall is None:
        return
    share = everything.follows_overall
    same = [
        row_name(row)
        for row in judge.questions
        if row.follows_overall and row.follows_overall.n >= ENOUGH_LABELS and row.follows_overall.value >= HALO
    ]
    mild = share.low >= MILD_HALO
    summary = (
        f"{share_text(share)} of {share.n:,} labels are the judge's own overall label; {everything.against_overall:,} go against it and "
        f"{everything.beside_overall:,} stand on pairs without one"
    )
    yield Finding(
        "halo",
        "Capabilities that repeat the judge's overall verdict" if same else "Capabilities and the judge's overall verdict",
        "warning" if same else "note" if mild else "fine",
        summary + (f"; {percent(HALO)} or more: {listed(same)}" if same else ""),
        "Their experts learn what the task model knows: ask one capability a call, ask about narrower points, or label closer pairs."
        if same
        else "",
        len(same),
        len(judge.questions),
        share,
        table=Table(
            ("capability", "follow overall", "against it", "without overall"),
            tuple(
                (row_name(row), row.follows_overall, row.against_overall, row.beside_overall)
                for row in (everything, *judge.questions)
                if row.capability != OVERALL
            ),
        ),
    )


def _twins(judge: "JudgeReport", rows: _Rows, minimum: int) -> Iterator[Finding]:
    compared = [pair for pair in judge.twins if OVERALL not in (pair.one, pair.other) and pair.agree and pair.agree.n >= ENOUGH_LABELS]
    if not compared:
        return
    same = [pair for pair in compared if pair.same]
    cells: list[tuple[Cell, ...]] = []
    for pair in sorted(compared, key=lambda pair: -pair.agree.value if pair.agree else 0.0)[:8]:
        name = "/".join(filter(None, (pair.category, f"{pair.one} {'=' if pair.same else '~'} {pair.other}")))
        cells.append((name, pair.agree, pair.beyond_people, pair.beyond_overall, pair.agree.n if pair.agree else 0))
    yield Finding(
        "repeated_capabilities",
        "Capabilities that repeat one another" if same else "No two capabilities say the same",
        "warning" if same else "fine",
        f"{part(len(same), len(compared), 'pair')} of capabilities give the same labels ({percent(REPEATED)} or more), also where they go "
        "against the ranks (kappa beyond them; without ranks, beyond the judge's overall verdict)",
        "Merge them, or sharpen their descriptions: two experts on one thing cost two and say one." if same else "",
        len(same),
        len(compared),
        table=Table(("capabilities", "agree", "beyond ranks", "beyond overall", "both"), tuple(cells)),
    )


def _several(found: "JudgesAgreement") -> Finding:
    told = [
        f"capabilities {figure_text(found.capabilities)}" if found.capabilities else "",
        f"overall {figure_text(found.overall)}" if found.overall else "",
    ]
    difference = found.difference
    better = difference is not None and difference.low > 0.0
    worse = difference is not None and difference.high < 0.0
    summary = f"alpha of {counted(len(found.judges), 'judge')} on {counted(found.items, 'pair')}: {', '.join(filter(None, told))}"
    summary += f"; difference on the same pairs {figure_text(difference, signed=True)}" if difference else ""
    cells = [(f"{pair.one}, {pair.other}", pair.capabilities, pair.overall) for pair in found.pairs[:10]]
    return Finding(
        "judges",
        "Judges agree more on capabilities than overall"
        if better
        else "Judges agree less on capabilities than overall"
        if worse
        else "Agreement among judges",
        "note",
        summary,
        table=Table(("judges", "same on capabilities", "same overall"), tuple(cells)),
    )
