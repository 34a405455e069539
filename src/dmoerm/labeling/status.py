"""Where a plan stands: what is answered, what is open, what failed and how, and which earlier answers do not count any more, and why."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dmoerm.labeling.canaries import CanaryResult, canary_result
from dmoerm.labeling.costs import Costs
from dmoerm.labeling.plan import LabelPlan
from dmoerm.labeling.replies import UNUSABLE, Outcome
from dmoerm.labeling.store import Store

__all__ = ["LabelStatus", "Place", "label_status"]

_NAMES = {
    "base_url": "endpoint",
    "model": "model",
    "temperature": "temperature",
    "max_tokens": "max_tokens",
    "response_format": "response_format",
    "soft": "soft",
    "request": "request",
    "template": "template",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Questions of one point of one category."""

    category: str
    capability: str
    planned: int
    answered: int
    given_up: int


@dataclass(frozen=True, slots=True)
class LabelStatus:
    """Where a plan stands.

    Attributes:
        questions: calls of the plan, canaries counted.
        answered: those with an answer under the plan's settings.
        given_up: those that the endpoint rejected, or whose reply could not be used `max_attempts` times.
        places: by category and capability, in the order of the taxonomy; a call about several points counts for each of them.
        superseded: answers to open questions that were given under other settings, by what has changed since.
        failures: failed attempts at questions without an answer, by outcome.
        lost: requests that were under way when a run was killed.
        cost: US dollars spent, None without prices.
        unknown_usage: attempts whose tokens the endpoint did not count, estimated in `cost`.
        canaries: how the judge did on known pairs; None where they are not asked.
    """

    questions: int
    answered: int
    given_up: int
    places: tuple[Place, ...]
    superseded: Mapping[str, int]
    failures: Mapping[str, int]
    lost: int
    cost: float | None
    unknown_usage: int
    canaries: CanaryResult | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "superseded": dict(self.superseded), "failures": dict(self.failures)}


def label_status(plan: LabelPlan, store: Store) -> LabelStatus:
    """Compare a plan with the answers of a store."""
    settings = plan.settings.fingerprint
    answers = store.answers(settings)
    failures = store.failures()
    answered_items, all_settings = store.answered_items(), store.settings()
    counts: dict[tuple[str, str], list[int]] = {}
    superseded: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    canaries = {id(pair) for pair in plan.canaries}
    total = done = given_up = lost = 0
    for question in plan.questions():
        key = question.key
        total += 1
        tries = failures.get(key, [])
        has_answer = key in answers
        spent = not has_answer and (sum(outcome in UNUSABLE for outcome in tries) >= plan.options.max_attempts or Outcome.REJECTED in tries)
        done += has_answer
        given_up += spent
        lost += tries.count(Outcome.UNDER_WAY)
        failed.update(outcome for outcome in tries if outcome != Outcome.UNDER_WAY)
        if not has_answer and question.item in answered_items:
            superseded[_changes(plan, question.criteria, answered_items[question.item], all_settings)] += 1
        if id(question.pair) not in canaries:
            for name in question.names:
                place = counts.setdefault((question.pair.comparison.category or "", name), [0, 0, 0])
                for index, value in enumerate((1, has_answer, spent)):
                    place[index] += value
    costs = Costs(plan, store)
    return LabelStatus(
        questions=total,
        answered=done,
        given_up=given_up,
        places=tuple(Place(*name, *values) for name, values in sorted(counts.items())),
        superseded=dict(superseded),
        failures=dict(failed),
        lost=lost,
        cost=costs.spent,
        unknown_usage=costs.unknown,
        canaries=canary_result(settings, answers, plan.canaries) if plan.canaries else None,
    )


def _changes(plan: LabelPlan, criteria: str, given: list[tuple[str, str]], all_settings: Mapping[str, Mapping[str, Any]]) -> str:
    """What differs between now and the nearest, of equally near ones the newest, of the settings under which a question has an answer."""
    now = asdict(plan.settings)
    found: list[list[str]] = []
    for settings, with_criteria in given:
        before = all_settings.get(settings, {})
        changed = [_change(name, before.get(name), now[name]) for name in _NAMES if before.get(name) != now[name]]
        if with_criteria != criteria:
            changed.append("the description of the capability")
        found.append(changed)
    return ", ".join(sorted(reversed(found), key=len)[0]) or "nothing that is known"


def _change(name: str, before: Any, now: Any) -> str:
    return _NAMES[name] if name == "template" else f"{_NAMES[name]} ({before} before, {now} now)"
