"""The sections of a report page about probes: shares shaded by how bad they are, all figures, and where each model was fooled most.

Nothing is computed here.
"""

from collections.abc import Sequence

from dmoerm.data.doctor.share import Share
from dmoerm.evaluation.probe_report import ProbeExample, ProbeReport
from dmoerm.evaluation.probes import KINDS, PROBES, Kind
from dmoerm.evaluation.sections import Cell, Folded, Heat, Measured, Section, Table, Text
from dmoerm.labeling.draws import Figure

__all__ = ["probe_sections"]

_HEADS: dict[Kind, str] = {"degradation": "Degradations", "decoration": "Decorations"}
_SHOWN_CHARACTERS = 600


def probe_sections(report: ProbeReport, *, detailed: Sequence[str] | None = None, folded: bool = False) -> list[Section]:
    """A shaded table a kind, every figure of each model, what a probe would reward, examples, and what the numbers were made with.

    Args:
        report: the result.
        detailed: models of which every figure is listed; None is all.
        folded: examples open on a click, as their texts are long.
    """
    sections: list[Section] = [_heat(report, kind) for kind in KINDS]
    sections += [_figures(report, model) for model in (report.models if detailed is None else detailed)]
    sections.append(
        Table("What is rewarded where a probe wins", ("probe", "rewarded"), tuple((_spaced(n), p.rewards) for n, p in PROBES.items()))
    )
    examples = [_example(example, len(report.models) > 1) for example in report.examples]
    sections += _folded(examples) if folded else examples
    return [*sections, _provenance(report)]


def _heat(report: ProbeReport, kind: Kind) -> Heat:
    rows = tuple(
        (
            f"all {kind}s" if name == kind else _spaced(name),
            tuple(_share(report.row(model, name).over_honest) for model in report.models),
        )
        for name in (kind, *(name for name, probe in PROBES.items() if probe.kind == kind))
    )
    caption = (
        f"Share of {report.prompts:,} prompts on which the probe has a higher reward than the honest answer; equal rewards count one half. "
        f"{_HEADS[kind]} are {KINDS[kind]}. Beneath: 95 % intervals over prompts."
    )
    return Heat(f"{_HEADS[kind]} that outrank the honest answer", tuple(report.models), rows, caption)


def _figures(report: ProbeReport, model: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for row in report.rows:
        if row.model == model:
            name = f"all {row.kind}s" if row.probe is None else _spaced(row.probe)
            compared = 0 if row.over_honest is None else row.over_honest.n
            rows.append(
                (name, _share(row.over_honest), _share(row.over_worst), _figure(row.margin), compared, row.refused, row.not_applicable)
            )
    columns = ("probe", "over the honest", "over the last-ranked", "margin in sd", "compared", "refused", "does not apply")
    failed = report.honest_failed[model]
    left_out = f" {failed:,} prompts are left out: their honest answer could not be scored." if failed else ""
    caption = (
        "Margin: honest answer minus probe, in standard deviations of the margins between the honest answer and that to another prompt; "
        f"below 0 the probe is ahead. Refused: the model gave no reward; these are in no share.{left_out}"
    )
    return Table(f"All figures of {model}", columns, tuple(rows), caption)


def _example(example: ProbeExample, several: bool) -> Text:
    lead = "" if example.lead is None else f", {example.lead:.1f} standard deviations ahead"
    return Text(
        f"Fooled{f' ({example.model})' if several else ''}: {_spaced(example.probe)}",
        (
            f"Reward {example.reward:.3g}; the honest answer has {example.honest_reward:.3g}{lead}. "
            f"A model that does this rewards {PROBES[example.probe].rewards}.",
            *(f"Prompt ({message.role}): {_shortened(message.content)}" for message in example.prompt[-1:]),
            f"Honest answer: {_shortened(example.honest)}",
            f"Probe: {_shortened(example.text) or '(no text)'}",
        ),
    )


def _folded(examples: Sequence[Text]) -> list[Folded]:
    """One heading for all."""
    heading = "Where models were fooled most"
    return [Folded("" if number else heading, one.title, "\n\n".join(one.paragraphs)) for number, one in enumerate(examples)]


def _provenance(report: ProbeReport) -> Table:
    rows: list[tuple[Cell, ...]] = [
        ("dmoerm", report.version),
        ("prompts", f"{report.prompts:,}"),
        ("seed", str(report.seed)),
        ("intervals", f"95 % over prompts: Wilson at the effective number of prompts for shares, {report.samples:,} draws for margins"),
    ]
    rows += [
        (f"standard deviation of {model}", "none" if spread is None else f"{spread:.4g} reward units")
        for model, spread in report.spread.items()
    ]
    rows += [(str(key), str(value)) for key, value in report.meta.items()]
    return Table("Made with", ("what", "value"), tuple(rows))


def _shortened(text: str) -> str:
    # Of both ends: what a probe adds often stands last.
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]} […] {text[-half:]}"


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _share(share: Share | None) -> Measured | None:
    return None if share is None else Measured(share.value, share.low, share.high)


def _figure(found: Figure | None) -> Measured | None:
    return None if found is None else Measured(found.value, found.low, found.high)
