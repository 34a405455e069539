"""A reward model measured on comparisons, beside baselines and, where given, another model.

The router decides on every prompt, as it will in use: a category that a comparison brings along is used for the rows of the table and to
measure the router, never to score. A response that cannot be scored makes its pairs wrong (see `pair_table`).
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmoerm.data.readers import read_comparisons
from dmoerm.errors import DataError
from dmoerm.evaluation.agreement import AgreementReport, evaluate_agreement
from dmoerm.evaluation.baselines import BASELINES, score_baselines
from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.llm_judge import judge_scores
from dmoerm.evaluation.metrics import RiskCoverage, risk_coverage
from dmoerm.evaluation.pair_table import PairTable, Scored
from dmoerm.labeling.judged import JudgedPair
from dmoerm.records import Comparison, Reward, ScoreFailure, prompt_hash
from dmoerm.taxonomy import GENERAL

if TYPE_CHECKING:
    from dmoerm.modeling.inner import Aggregation
    from dmoerm.modeling.reward_model import RewardModel

__all__ = ["ModelReport", "Risk", "Routing", "baselines_beside", "evaluate_model", "read_files", "write_json"]

Results = list[list[Reward | ScoreFailure]]

CHUNK = 256
"""Comparisons scored between two calls of `progress`."""

RISK_SAMPLES = 500
"""Bootstrap samples of a gain at most: each one sorts all pairs again."""

_RECIPE_NAMES = {"length": "longer"}
"""Names of baselines in recipes where they differ from those of `BASELINES`."""


@dataclass(frozen=True, slots=True)
class Risk:
    """Whether a figure that comes with a reward tells right pairs from wrong ones: errors on the pairs it is surest of.

    Attributes:
        error: share of wrong pairs, all of them judged.
        error_at_half: the same where only the surest half (at least) is judged.
        gain: `error` minus the mean error over all coverages; 0 for a figure that says nothing, higher is better.
        gain_low: lower end of its interval over prompts.
        gain_high: upper end.
        pairs: strictly ranked pairs with both rewards.
        curve: the risk–coverage curve.
    """

    error: float
    error_at_half: float
    gain: float
    gain_low: float
    gain_high: float
    pairs: int
    curve: RiskCoverage


@dataclass(frozen=True, slots=True)
class Routing:
    """Where the router sent the prompts that came with a category the model knows.

    Attributes:
        judged_by: category, then inner model that judged, then number of prompts.
        prompts: how many there were.
        right: share judged by the inner model of their category (by `general` where that category has none).
        unsure: share judged by `general` though their category has an inner model.
    """

    judged_by: Mapping[str, Mapping[str, int]]
    prompts: int
    right: float
    unsure: float


@dataclass(frozen=True, slots=True)
class ModelReport(AgreementReport):
    """An `AgreementReport` with what only a reward model has.

    Attributes:
        main: name of the row that the rest is about.
        risk: by what a pair's doubt is read from: `uncertainty`, `capability_spread`, and the small `margin` to compare them with.
        routing: None where no comparison came with a category of the model.
        results: rewards (or failures) by comparison id, under the first aggregation.
    """

    main: str = ""
    risk: Mapping[str, Risk] = field(default_factory=dict)
    routing: Routing | None = None
    results: Mapping[str, Sequence[Reward | ScoreFailure]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the single rewards, in types that JSON knows."""
        # Not super(): a dataclass with slots is made anew, and its methods would still mean the first one.
        return {
            **AgreementReport.as_dict(self),
            "main": self.main,
            "risk_coverage": {name: asdict(risk) for name, risk in self.risk.items()},
            "routing": None if self.routing is None else asdict(self.routing),
        }

    def as_table(self) -> str:
        """Plain text for a terminal: agreement, then doubt and routing."""
        blocks = [AgreementReport.as_table(self)]
        if self.risk:
            first = next(iter(self.risk.values()))
            lines = [f"Doubt of {self.main}: error {first.error:.3f} over {first.pairs:,} pairs; by the surest half of them"]
            lines += [
                f"{name:20} {risk.error_at_half:.3f}, gain over all shares {risk.gain:+.3f} [{risk.gain_low:+.3f},{risk.gain_high:+.3f}]"
                for name, risk in self.risk.items()
            ]
            blocks.append("\n".join(lines))
        if self.routing is not None:
            blocks.append(
                f"Router: {self.routing.right:.1%} of {self.routing.prompts:,} prompts go to their category, "
                f"{self.routing.unsure:.1%} to the fallback (general)."
            )
        return "\n\n".join(blocks)


def evaluate_model(
    model: "RewardModel",
    comparisons: Sequence[Comparison],
    *,
    training: Sequence[Comparison] = (),
    baselines: Iterable[str] = tuple(BASELINES),
    aggregations: Sequence["Aggregation"] = ("mlp", "mean"),
    against: "RewardModel | None" = None,
    judges: Mapping[str, Sequence[JudgedPair]] | None = None,
    seed: int = 0,
    samples: int = 2000,
    confidence: float = 0.95,
    meta: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ModelReport:
    """Agreement of a model with the preferences of comparisons, beside baselines.

    Args:
        model: the model.
        comparisons: what people ranked; best unseen by the model. Ids must be unique.
        training: what baselines may learn from; those with a prompt of `comparisons` are left out of it.
        baselines: names of `BASELINES` (or of a recipe); those that cannot be had are left out, and `meta` says so.
        aggregations: of the model, one row each ("model/mlp" …); the first is what doubt, routing and the differences are about.
        against: another model, one row under its own default aggregation; it is then the reference of the differences.
        judges: by name, the overall verdicts of LLM judges on these comparisons, one row each ("judge/NAME").
        seed: of the bootstrap.
        samples: bootstrap draws, at least 100.
        confidence: mass of the intervals.
        meta: JSON-safe facts to keep with the result.
        progress: called with (comparisons scored, all of them, over all passes).

    Returns:
        Rows overall and by category: the comparison's own or else the routed one.

    Raises:
        DataError: no strictly ranked pair, or ids that repeat.
        ConfigError: an aggregation that the model does not have, or an unknown baseline.
    """
    from dmoerm.scoring.bulk import require_aggregation

    for aggregation in aggregations:
        require_aggregation(model, aggregation)
    if not comparisons:
        raise DataError("No comparisons were given, and a model measured on nothing has no figures; expected at least one.")
    names = list(dict.fromkeys(aggregations))
    total = len(comparisons) * (1 if against is None else 2)
    scored = _score(model, comparisons, names, progress, 0, total)
    results = {f"model/{name}": found for name, found in zip(names, scored, strict=True)}
    main = next(iter(results))
    reference = main
    if against is not None:
        reference = f"against/{against.aggregation}"
        results[reference] = _score(against, comparisons, [against.aggregation], progress, len(comparisons), total)[0]
    judged = [_judged_by(rewards) for rewards in results[main]]
    named = [replace(c, category=c.category or category) for c, category in zip(comparisons, judged, strict=True)]
    models = {
        row: [Scored(c, tuple(map(_value, rewards))) for c, rewards in zip(named, found, strict=True)] for row, found in results.items()
    }
    models |= {f"judge/{name}": judge_scores(named, verdicts) for name, verdicts in (judges or {}).items()}
    beside, notes = baselines_beside(training, named, baselines)
    report = evaluate_agreement({**models, **beside}, reference, seed, samples, confidence, {**(meta or {}), **notes})
    by_id = {c.id: tuple(rewards) for c, rewards in zip(named, results[main], strict=True)}
    table = PairTable.of(models[main])
    resampling = Resampling(seed, min(samples, RISK_SAMPLES), confidence)
    return ModelReport(
        **{name: getattr(report, name) for name in AgreementReport.__dataclass_fields__},
        main=main,
        risk=_risks(table, by_id, resampling),
        routing=_routing(model, comparisons, judged),
        results=by_id,
    )


def read_files(
    paths: Sequence[Path], *, format: str = "auto", bad_rows: str = "stop"
) -> tuple[list[Comparison], dict[str, str], Counter[str]]:
    """Comparisons of several files as one list with unique ids, the format of each file, and how many rows were skipped.

    Raises:
        ConfigError: no such format or policy.
        DataError: a file that cannot be read or, with `bad_rows` "stop", a row that cannot be used.
    """
    comparisons: list[Comparison] = []
    formats: dict[str, str] = {}
    notes: Counter[str] = Counter()
    taken: set[str] = set()
    for path in paths:
        found = read_comparisons(path, format=format, bad_rows=bad_rows)
        formats[str(path)] = found.format
        notes["rows skipped"] += found.rejected
        notes.update({f"rows without a comparison: {reason}": count for reason, count in found.left_out.items()})
        for comparison in found.comparisons:
            unique = comparison.id if comparison.id not in taken else f"{path}/{comparison.id}"
            taken.add(unique)
            comparisons.append(replace(comparison, id=unique))
    return comparisons, formats, notes


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON document in one step, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _score(
    model: "RewardModel",
    comparisons: Sequence[Comparison],
    aggregations: "Sequence[Aggregation]",
    progress: Callable[[int, int], None],
    done: int,
    total: int,
) -> list[Results]:
    """Rewards of every comparison, once for each aggregation."""
    from dmoerm.modeling.reward_model import ScoreRequest

    results: list[Results] = [[] for _ in aggregations]
    for start in range(0, len(comparisons), CHUNK):
        requests = [ScoreRequest(c.prompt, c.responses) for c in comparisons[start : start + CHUNK]]
        for result, found in zip(results, model.score_by_aggregation(requests, aggregations), strict=True):
            result += found
        progress(done + start + len(requests), total)
    return results


def _value(result: Reward | ScoreFailure) -> float | None:
    # A reward that is no number is a failed response like any other.
    return result.reward if isinstance(result, Reward) and math.isfinite(result.reward) else None


def _judged_by(results: Sequence[Reward | ScoreFailure]) -> str | None:
    return next((result.category for result in results if isinstance(result, Reward)), None)


def baselines_beside(
    training: Sequence[Comparison], comparisons: Sequence[Comparison], names: Iterable[str]
) -> tuple[dict[str, list[Scored]], dict[str, Any]]:
    """Scored baselines, and what to say about those that cannot be had."""
    notes: dict[str, Any] = {}
    tested = {prompt_hash(c.prompt) for c in comparisons}
    kept = [c for c in training if prompt_hash(c.prompt) not in tested]
    if len(kept) < len(training):
        notes["training comparisons with a tested prompt, left out"] = len(training) - len(kept)
    wanted = [_RECIPE_NAMES.get(name, name) for name in names]
    absent = {}
    if not any(c.has_preference for c in kept):
        kept = []
        absent = {name: "no training comparisons" for name in wanted if name in BASELINES and BASELINES[name].needs_fit}
    if "author_prior" in wanted and not any(author for c in comparisons for author in c.authors):
        absent["author_prior"] = "no authors in the data"
    if absent:
        notes["baselines left out"] = ", ".join(f"{name} ({reason})" for name, reason in absent.items())
    return score_baselines(kept, comparisons, [name for name in wanted if name not in absent]), notes


# --- doubt ----------------------------------------------------------------------------------------------------------------------------


def _risks(table: PairTable, results: Mapping[str, Sequence[Reward | ScoreFailure]], resampling: Resampling) -> dict[str, Risk]:
    """Risk–coverage of what the model says about its own doubt, on strictly ranked pairs with both rewards."""
    used = table.select(~table.human_tie_P & ~table.failed_P)
    if len(used) == 0:
        return {}
    pairs = []
    for number, chosen, rejected in zip(used.comparison_P, used.chosen_P, used.rejected_P, strict=True):
        rewards = results[used.comparison_ids[number]]
        first, second = rewards[chosen], rewards[rejected]
        assert isinstance(first, Reward), "failed pairs were left out"
        assert isinstance(second, Reward), "failed pairs were left out"
        # The bootstrap copies of two responses move together, so this overstates the doubt of a margin; only the order of pairs counts.
        doubt = math.hypot(first.uncertainty, second.uncertainty)
        pairs.append((doubt, (first.capability_spread + second.capability_spread) / 2, -abs(first.reward - second.reward)))
    doubts = dict(zip(("uncertainty", "capability_spread", "margin"), np.array(pairs).T, strict=True))
    return {name: _risk(used, doubt_P, resampling) for name, doubt_P in doubts.items()}


def _risk(table: PairTable, doubt_P: NDArray[np.float64], resampling: Resampling) -> Risk:
    correct_P = table.correct_P
    curve = risk_coverage(correct_P, doubt_P)
    half = next(risk for coverage, risk in zip(curve.coverage, curve.risk, strict=True) if coverage >= 0.5)
    rng = np.random.default_rng(resampling.seed)
    _, prompt_P = np.unique(table.prompt_P, return_inverse=True)
    rows_of = [np.flatnonzero(prompt_P == prompt) for prompt in range(int(prompt_P.max()) + 1)]
    gains = []
    for _ in range(resampling.samples):
        drawn_P = np.concatenate([rows_of[prompt] for prompt in rng.integers(0, len(rows_of), len(rows_of))])
        draw = risk_coverage(correct_P[drawn_P], doubt_P[drawn_P])
        gains.append(draw.risk[-1] - draw.area)
    tail = (1.0 - resampling.confidence) / 2.0
    low, high = np.quantile(gains, [tail, 1.0 - tail])
    return Risk(curve.risk[-1], half, curve.risk[-1] - curve.area, float(low), float(high), len(table), curve)


# --- routing --------------------------------------------------------------------------------------------------------------------------


def _routing(model: "RewardModel", comparisons: Sequence[Comparison], judged: Sequence[str | None]) -> Routing | None:
    prompts = {
        (prompt_hash(c.prompt), c.category): by
        for c, by in zip(comparisons, judged, strict=True)
        if by is not None and c.category in model.taxonomy.category_names
    }
    if not prompts:
        return None
    counts: dict[str, Counter[str]] = {}
    for (_, category), by in prompts.items():
        counts.setdefault(str(category), Counter())[by] += 1
    home = {category: category if category in model.inner else GENERAL for category in counts}
    right = sum(found[home[category]] for category, found in counts.items())
    unsure = sum(found[GENERAL] for category, found in counts.items() if home[category] != GENERAL)
    return Routing({name: dict(counts[name]) for name in sorted(counts)}, len(prompts), right / len(prompts), unsure / len(prompts))
