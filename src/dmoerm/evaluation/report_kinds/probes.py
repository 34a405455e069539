"""Bad answers that should not win: `dmoerm probe`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.probe_page import probe_sections
from dmoerm.evaluation.probe_report import ProbeReport
from dmoerm.evaluation.probes import KINDS, PROBES
from dmoerm.evaluation.report_kinds.kind import Chapter, Headline, Made, ReportKind, Run, few_prompts, owned, parsed, several_parts
from dmoerm.evaluation.scorers import Longest
from dmoerm.evaluation.sections import Heat, Measured, Section

__all__ = ["PROBING", "probe_headlines", "probe_warnings", "read_probes"]

_HEADLINES = {
    "degradation": "Worse answers that outrank the honest one (best is 0)",
    "decoration": "Empty decorations that outrank the plain answer (0.5 is indifferent)",
}


def read_probes(document: Mapping[str, Any]) -> ProbeReport:
    """What the verb printed, also where it stands inside another result.

    Raises:
        DataError: it is not that, or lacks a row.
    """
    report = parsed(ProbeReport, document)
    try:
        for model in report.models:
            for name in (*KINDS, *PROBES):
                report.row(model, name)
            if model not in report.honest_failed:
                raise DataError(f"honest_failed: lacks {model!r}")
    except ConfigError as error:
        raise DataError(f"rows: {error}") from None
    if not report.models:
        raise DataError("spread: names no model")
    return report


def _chapter(runs: Sequence[Run]) -> Chapter:
    return Chapter(
        headlines=tuple(headline for run in runs for headline in _headlines(run, runs)),
        warnings=tuple(warning for run in runs for warning in _warnings(run, runs)),
        made=tuple(_made(run) for run in runs),
        parts=several_parts(runs, _together(runs), lambda run: probe_sections(run.found, folded=True)),
    )


def _asked_about(report: ProbeReport) -> list[str]:
    """The models, without the rule that stands beside them."""
    return [model for model in report.models if model != Longest.name] or report.models


def _headlines(run: Run, runs: Sequence[Run]) -> Iterator[Headline]:
    for model in _asked_about(run.found):
        yield from probe_headlines(run.found, model, owned(model, run, runs))


def probe_headlines(report: ProbeReport, model: str, of: str) -> Iterator[Headline]:
    """Both kinds of probes under one model, which the page calls `of`."""
    for kind in KINDS:
        share = report.row(model, kind).over_honest
        if share is not None:
            on = f"{share.n:,} probes of {share.n_prompts:,} prompts"
            yield Headline(_HEADLINES[kind], of, Measured(share.value, share.low, share.high), on)


def _warnings(run: Run, runs: Sequence[Run]) -> Iterator[str]:
    for model in _asked_about(run.found):
        yield from probe_warnings(run.found, model, f"Probes of {owned(model, run, runs)}")


def probe_warnings(report: ProbeReport, model: str, name: str) -> Iterator[str]:
    """What to know of one model's figures; `name` begins each sentence."""
    yield from few_prompts(name, report.prompts - report.honest_failed[model])
    if report.honest_failed[model]:
        yield f"{name}: {report.honest_failed[model]:,} prompts are left out; their honest answer could not be scored."
    fooled = []
    for probe, one in PROBES.items():
        share = report.row(model, probe).over_honest
        if share is not None and (share.low > 0.5 or (one.kind == "degradation" and share.value >= 0.5)):
            fooled.append(f"{probe.replace('_', ' ')} ({share.value:.2f})")
    if fooled:
        yield f"{name}: fooled on half of the prompts or more by {', '.join(fooled)}."


def _together(runs: Sequence[Run]) -> list[Section]:
    columns = [(run, model) for run in runs for model in run.found.models]
    rows = tuple(
        (f"all {name}s" if name in KINDS else name.replace("_", " "), tuple(_share(run.found, model, name) for run, model in columns))
        for name in (*KINDS, *PROBES)
    )
    caption = (
        "Share of prompts on which the probe has a higher reward than the honest answer. Results compare where file, limit and seed agree."
    )
    return [Heat("Probes of all models", tuple(owned(model, run, runs) for run, model in columns), rows, caption)]


def _share(report: ProbeReport, model: str, name: str) -> Measured | None:
    share = report.row(model, name).over_honest
    return None if share is None else Measured(share.value, share.low, share.high)


def _made(run: Run) -> Made:
    report: ProbeReport = run.found
    return Made(run.name, report.version, str(report.seed), f"95 %, {report.samples:,} draws")


PROBING = ReportKind("Answers that should not win", "dmoerm probe --json", _chapter, read_probes)
