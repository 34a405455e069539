"""What `dmoerm label` says: the line of progress, the end of a run, and where a plan stands."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from dmoerm.labeling.categories import CategoryPlan, Named
    from dmoerm.labeling.costs import Estimate
    from dmoerm.labeling.plan import LabelPlan, Plan
    from dmoerm.labeling.run import Progress, RunResult
    from dmoerm.labeling.status import LabelStatus

__all__ = [
    "category_estimate_dict",
    "category_estimate_text",
    "estimate_dict",
    "estimate_text",
    "left_out_lines",
    "named_dict",
    "named_text",
    "progress_text",
    "result_dict",
    "status_text",
    "summary_text",
]


def progress_text(now: "Progress") -> str:
    """One line: how far, how fast, how dear, and the least consistent capabilities."""
    from dmoerm.training.progress import clock

    parts = [f"labelled {now.done:,} of {now.total:,}, {now.rate:,.1f}/s"]
    if now.left_s is not None:
        parts.append(f"{clock(now.left_s)} left")
    if now.cost is not None:
        parts.append(f"${now.cost:,.4g}")
    if now.given_up:
        parts.append(f"{now.given_up:,} given up")
    parts.append(f"held for {now.held_s:.0f} s" if now.held_s >= 1 else f"{now.under_way} under way")
    complete = sum(now.tally.complete.values())
    if complete:
        shares = {name: now.tally.consistent[name] / count for name, count in now.tally.complete.items() if count >= 10}
        least = sorted(shares, key=lambda name: shares[name])[:3]
        worst = "".join(f", {name} {shares[name]:.0%}" for name in least)
        parts.append(f"consistent {sum(now.tally.consistent.values()) / complete:.0%}{worst}")
    return ", ".join(parts)


def summary_text(result: "RunResult") -> str:
    """How a run ended, in one or two lines."""
    from dmoerm.training.progress import clock

    now = result.progress
    cost = "cost unknown (no price)" if now.cost is None else f"${now.cost:,.4g} in all"
    unknown = (
        f", {result.unknown_usage:,} of them estimated, as the endpoint counted no tokens" if result.unknown_usage and now.cost else ""
    )
    failed = ", ".join(f"{count:,} {name}" for name, count in sorted(result.outcomes.items()) if count and name != "answered")
    lines = [
        f"{now.done:,} of {now.total:,} questions answered, {now.given_up:,} given up; {now.sent:,} requests in {clock(result.seconds)}; "
        f"{cost}{unknown}"
    ]
    return "\n".join([*lines, f"not answered: {failed}"] if failed else lines)


def result_dict(result: "RunResult") -> dict[str, Any]:
    """The same for --json."""
    now = result.progress
    return {
        "ended": result.ended,
        "reason": result.reason,
        "questions": now.total,
        "answered": now.done,
        "given_up": now.given_up,
        "requests": now.sent,
        "outcomes": dict(result.outcomes),
        "cost": now.cost,
        "unknown_usage": result.unknown_usage,
        "seconds": round(result.seconds, 2),
    }


def named_text(plan: "CategoryPlan", named: "Named", output: "Path", *, kept: bool) -> str:
    """How many prompts have a category now, and why others have none."""
    counts = ", ".join(f"{name} {count:,}" for name, count in named.counts.items())
    reasons = ((named.disagreeing, "answered differently in both orders"), (named.no_fit, "fit none"), (named.unanswered, "not answered"))
    without = ", ".join(f"{count:,} {reason}" for count, reason in reasons if count)
    where = f"{output} is left as it was" if kept else str(output) if named.categories else "nothing was written"
    lines = [f"{len(named.categories):,} of {len(plan.prompts):,} prompts have a category{f' ({counts})' if counts else ''}: {where}"]
    return "\n".join([*lines, f"without one: {without}"] if without else lines)


def named_dict(plan: "CategoryPlan", named: "Named", output: "Path") -> dict[str, Any]:
    """The same for --json."""
    return {
        "prompts": len(plan.prompts),
        "named": len(named.categories),
        "categories": named.counts,
        "disagreeing": named.disagreeing,
        "no_fit": named.no_fit,
        "unanswered": named.unanswered,
        "output": str(output),
    }


def status_text(status: "LabelStatus") -> str:
    """Where a plan stands, a line a point."""
    still = status.questions - status.answered - status.given_up
    cost = "cost unknown" if status.cost is None else f"${status.cost:,.4g} spent"
    lines = [f"{status.answered:,} of {status.questions:,} questions answered, {still:,} open, {status.given_up:,} given up; {cost}"]
    if status.unknown_usage:
        lines.append(f"{status.unknown_usage:,} attempts may have been billed without a count of tokens; their cost is estimated")
    if status.lost:
        lines.append(f"{status.lost:,} requests were under way when a run was stopped; they are asked again")
    if status.failures:
        lines.append("failed attempts at open questions: " + ", ".join(f"{n:,} {name}" for name, n in sorted(status.failures.items())))
    for change, count in sorted(status.superseded.items(), key=lambda item: -item[1]):
        lines.append(f"{count:,} open questions have an answer that does not count: asked with another {change}")
    if status.canaries is not None and status.canaries.plain:
        canaries = status.canaries
        lines.append(
            f"known pairs: right on {canaries.right} of {canaries.plain} presentations; an injected instruction turned "
            f"{canaries.flipped} of {canaries.injected}"
        )
    width = max((len(f"{place.category}/{place.capability}") for place in status.places), default=0)
    for place in status.places:
        name = f"{place.category}/{place.capability}".lstrip("/")
        lines.append(
            f"  {name:<{width}}  {place.answered:>7,} of {place.planned:>7,}{f', {place.given_up} given up' if place.given_up else ''}"
        )
    return "\n".join(lines)


def left_out_lines(plan: "LabelPlan") -> list[str]:
    """Comparisons that are asked about in part or not at all, a line a reason."""
    from dmoerm.labeling.questions import NO_CATEGORY

    advice = {NO_CATEGORY: ": dmoerm label categories RECIPE lets the judge name it"}
    return [f"{count:,} comparisons {reason}{advice.get(reason, '')}" for reason, count in plan.left_out.items()]


def estimate_dict(plan: "LabelPlan", estimate: "Estimate") -> dict[str, Any]:
    """What is left to ask, for --json."""
    return {"pairs": len(plan.pairs), **_estimate(plan, estimate), "left_out": dict(plan.left_out)}


def category_estimate_dict(plan: "CategoryPlan", estimate: "Estimate") -> dict[str, Any]:
    """The same where categories are asked for."""
    return {"prompts": len(plan.prompts), **_estimate(plan, estimate)}


def _estimate(plan: "Plan", estimate: "Estimate") -> dict[str, Any]:
    return {
        "model": plan.settings.model,
        "calls": estimate.calls,
        "answered": estimate.answered,
        "input_tokens": estimate.input_tokens,
        "output_tokens": estimate.output_tokens,
        "cost": estimate.dollars,
        "prices": None if plan.prices is None else plan.prices.source,
    }


def estimate_text(plan: "LabelPlan", estimate: "Estimate") -> str:
    """The same in three lines."""
    return _estimate_text(f"{len(plan.pairs):,} pairs", plan, estimate)


def category_estimate_text(plan: "CategoryPlan", estimate: "Estimate") -> str:
    """The same where categories are asked for."""
    return _estimate_text(f"{len(plan.prompts):,} prompts without a category", plan, estimate)


def _estimate_text(what: str, plan: "Plan", estimate: "Estimate") -> str:
    calls = f"{estimate.calls:,} calls to {plan.settings.model} at {plan.settings.base_url}"
    cost = "cost unknown: set labeling.input_price and labeling.output_price (US dollars a million tokens)"
    if estimate.dollars is not None and plan.prices is not None:
        prices = f"${plan.prices.input:g} and ${plan.prices.output:g} a million ({plan.prices.source})"
        cost = f"about ${estimate.dollars:,.4g} at {prices}"
    return "\n".join(
        [
            f"{what}, {calls}; {estimate.answered:,} questions are answered already",
            f"about {estimate.input_tokens:,} input and {estimate.output_tokens:,} output tokens, estimated from the length of the texts",
            cost,
        ]
    )
