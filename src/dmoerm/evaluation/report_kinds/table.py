"""All kinds of result by name, in the order of the page.

A new one is a file beside this one, a row here, a test and a line of docs/report.md.
"""

from dmoerm.evaluation.report_kinds.agreement import AGREEMENT
from dmoerm.evaluation.report_kinds.baselines import BASELINES
from dmoerm.evaluation.report_kinds.benchmarks import BENCHMARKING
from dmoerm.evaluation.report_kinds.best_of_n import BEST_OF_N
from dmoerm.evaluation.report_kinds.disturbance import DISTURBANCE
from dmoerm.evaluation.report_kinds.kind import ReportKind
from dmoerm.evaluation.report_kinds.labels import LABELS
from dmoerm.evaluation.report_kinds.model import MODEL
from dmoerm.evaluation.report_kinds.overoptimization import OVEROPTIMIZATION
from dmoerm.evaluation.report_kinds.probes import PROBING

__all__ = ["KINDS"]

KINDS: dict[str, ReportKind] = {
    "model": MODEL,
    "agreement": AGREEMENT,
    "baselines": BASELINES,
    "benchmarks": BENCHMARKING,
    "disturbance": DISTURBANCE,
    "best_of_n": BEST_OF_N,
    "overoptimization": OVEROPTIMIZATION,
    "probes": PROBING,
    "labels": LABELS,
}
"""Name in the JSON ("kind") to what the report makes of it."""
