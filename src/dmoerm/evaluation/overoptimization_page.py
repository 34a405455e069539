"""The sections of a page about policies trained against rewards: curves, figures, fits, what the policies say. Nothing is computed here."""

import math

from dmoerm.evaluation.gold_curves import Interval
from dmoerm.evaluation.overoptimization import Overoptimization
from dmoerm.evaluation.sections import Cell, Curve, Measured, Section, Series, Table, Text

__all__ = ["overoptimization_sections"]

_FIT_POINTS = 41


def overoptimization_sections(study: Overoptimization) -> list[Section]:
    """What was measured; gold and proxy against √KL; the training itself; figures, fits and answers; what it was made with."""
    left_out = f" {study.left_out:,} more are left out for want of gold scores." if study.left_out else ""
    percent = f"{100 * study.resampling.confidence:g} %"
    lead = (
        f"A policy is trained by GRPO against each reward. On {study.prompts:,} prompts that it is not trained on, a gold reward that it "
        f"never sees says how good its answers are.{left_out}",
        "Where gold turns down while the proxy still rises, the reward is over-optimised. One run a reward: intervals are over prompts and "
        "know nothing of other seeds.",
    )
    gold_caption = (
        f"√KL: the distance from the policy as it was, KL in nats a completion. Bands: {percent} over prompts. Points stand in the order "
        "of training."
    )
    proxy_caption = (
        "Proxy: the reward that is trained on, 0 for the policy as it was, in standard deviations of its single completions. Each reward "
        "has its own unit, so compare shapes."
    )
    sections: list[Section] = [
        Text("What is measured", lead),
        Curve("Gold against √KL", "√KL, √nats", "gold score", _gold(study), gold_caption),
    ]
    if proxies := _proxies(study):
        sections.append(Curve("Proxy against √KL", "√KL, √nats", "proxy reward, standard deviations", proxies, proxy_caption))
    if fitted := _fitted(study):
        form = "Gold gain over the policy as it was, and R(d) = d (α − β log d), d = √KL (Gao, Schulman & Hilton 2022, arXiv 2210.10760)."
        sections.append(Curve("Gold gain and its fit", "√KL, √nats", "gold gain", fitted, form))
    return [*sections, *_figures(study), *_fits(study), *_training(study), *_answers(study), _provenance(study)]


def _gold(study: Overoptimization) -> tuple[Series, ...]:
    return tuple(
        Series(
            run.name,
            tuple(math.sqrt(point.kl) for point in run.curve.points),
            tuple(point.gold.value for point in run.curve.points),
            tuple(point.gold.low for point in run.curve.points),
            tuple(point.gold.high for point in run.curve.points),
            style,
        )
        for style, run in enumerate(study.runs)
    )


def _proxies(study: Overoptimization) -> tuple[Series, ...]:
    series = []
    for style, run in enumerate(study.runs):
        known = [(math.sqrt(point.kl), point.proxy) for point in run.curve.points if point.proxy is not None]
        if known:
            distance, proxy = zip(*known, strict=True)
            series.append(Series(run.name, distance, proxy, style=style))
    return tuple(series)


def _fitted(study: Overoptimization) -> tuple[Series, ...]:
    """The measured gains, and behind them the forms that were fitted, each with a look of its own."""
    measured, forms = [], []
    for style, run in enumerate(study.runs):
        points, fit = run.curve.points, run.curve.fit
        if fit is None:
            continue
        distance = tuple(math.sqrt(point.kl) for point in points)
        measured.append(Series(run.name, distance, tuple(point.gold.value - points[0].gold.value for point in points), style=style))
        grid = tuple(max(distance) * index / (_FIT_POINTS - 1) for index in range(_FIT_POINTS))
        line = tuple(d * (fit.alpha.value - fit.beta.value * (math.log(d) if d > 0 else 0.0)) for d in grid)
        forms.append(Series(f"{run.name}: fit", grid, line, style=style + len(study.runs)))
    return (*measured, *forms)


def _figures(study: Overoptimization) -> list[Section]:
    gold: tuple[tuple[Cell, ...], ...] = tuple(
        (
            run.name,
            run.curve.points[-1].kl,
            _measured(run.curve.peak.gold),
            int(run.curve.peak.setting),
            _measured(run.curve.points[-1].gold),
            _measured(run.curve.fall),
            run.curve.turns,
        )
        for run in study.runs
    )
    gold_caption = (
        "KL in nats a completion. Fall: gold at the end minus gold at the peak, the same step in every draw; as it was chosen for being "
        "high, a small fall is expected by chance. Draws that turn: share of the draws of prompts that end below their own peak."
    )
    answers: tuple[tuple[Cell, ...], ...] = tuple(
        (run.name, *run.proxy, *run.length_tokens, run.curve.responses, run.proxy_failed, run.gold_failed) for run in study.runs
    )
    columns = ("reward", "proxy at first", "at last", "tokens at first", "at last", "measured completions", "without proxy", "without gold")
    answer_caption = (
        "Measured completions: means at the first and the last measurement, the proxy in its own unit; those without a proxy or a gold "
        "score are left out of its means."
    )
    heads = ("reward", "KL at the end", "gold at the peak", "step there", "gold at the end", "fall", "draws that turn")
    return [Table("Gold: peak and fall", heads, gold, gold_caption), Table("Answers", columns, answers, answer_caption)]


def _fits(study: Overoptimization) -> list[Section]:
    fits = [(run.name, run.curve.fit) for run in study.runs if run.curve.fit is not None]
    sections: list[Section] = []
    if fits:
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (name, _measured(fit.alpha), _measured(fit.beta), fit.misfit, fit.peak_kl) for name, fit in fits
        )
        caption = "Intervals: refits of draws of prompts. Misfit: root mean square of what is left, units of gold. Fitted peak: its KL."
        sections.append(Table("Fit R(d) = d (α − β log d)", ("reward", "α", "β", "misfit", "fitted peak"), rows, caption))
    differences = tuple(
        (run.name, _measured(run.curve.peak_difference), _measured(run.curve.end_difference))
        for run in study.runs
        if run.curve.end_difference is not None
    )
    if differences:
        caption = "The same prompts are drawn for both. The runs may end at different KL: read this beside the curves."
        sections.append(Table(f"Gold minus {study.runs[0].name}", ("reward", "at the peaks", "at the end"), differences, caption))
    return sections


def _training(study: Overoptimization) -> list[Section]:
    """Means over the completions that each step was made from."""
    sections: list[Section] = []
    for key, title, unit in (
        ("kl", "Training: KL", "KL, nats a completion"),
        ("gold", "Training: gold", "gold score"),
        ("length_tokens", "Training: length", "tokens a completion"),
    ):
        series = []
        for style, run in enumerate(study.runs):
            known = [(float(row["step"]), float(row[key])) for row in run.steps if row.get(key) is not None]
            if known:
                series.append(Series(run.name, tuple(step for step, _ in known), tuple(value for _, value in known), style=style))
        if series:
            sections.append(
                Curve(title, "step", unit, tuple(series), "Over the completions that a step is made from, as in metrics.jsonl.")
            )
    return sections


def _answers(study: Overoptimization) -> list[Section]:
    sections: list[Section] = []
    for run in study.runs:
        rows: list[tuple[Cell, ...]] = []
        for one in run.answers:
            rows.append((one.prompt, "before", one.first, one.first_proxy, one.first_gold))
            rows.append((one.prompt, "after", one.last, one.last_proxy, one.last_gold))
        if rows:
            title = f"What the policy says: {run.name}"
            sections.append(Table(title, ("prompt", "training", "answer", "proxy", "gold"), tuple(rows), "All: samples.jsonl of the run."))
    return sections


def _provenance(study: Overoptimization) -> Table:
    draws = f"bootstrap over prompts, {study.resampling.samples:,} samples, {100 * study.resampling.confidence:g} %"
    rows = [("dmoerm", study.version), ("intervals", draws), ("bootstrap seed", str(study.resampling.seed))]
    rows += [(str(key), str(value)) for key, value in study.meta.items()]
    return Table("Made with", ("what", "value"), tuple(rows))


def _measured(found: Interval | None) -> Cell:
    return None if found is None else Measured(found.value, found.low, found.high)
