"""Selection and optimisation on pools: every reward's gold curve under best-of-n and, on a finite pool, along the exact RL frontier.

`study_pools` takes rewards that were computed before, so that a model is run once whatever is then asked of them. It adds the rows that a
reward model has to be read against:

- `longest`: the longest response;
- `best author`: the mean gold of each response's author on the other prompts, reading no text. At the largest n it is the one author who is
  best elsewhere, so a reward model that only recognises good authors does no better;
- `random`: knows nothing; gold stays where it is. On no frontier: there, too, it is a level line;
- `gold`: the gold score itself, the most that any reward can reach.
"""

import csv
import io
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.best_of_n import Regime, best_of_n_curves, n_grid, random_curves
from dmoerm.evaluation.bootstrap import FEW_PROMPTS, Resampling
from dmoerm.evaluation.frontier import frontier_curves, kl_targets
from dmoerm.evaluation.gold_curves import GoldCurve, Interval, gold_curves
from dmoerm.evaluation.pools import Pool
from dmoerm.evaluation.scorers import Longest, Rewards, Scorer
from dmoerm.records import prompt_hash

if TYPE_CHECKING:
    from dmoerm.modeling.inner import Aggregation
    from dmoerm.modeling.reward_model import RewardModel

__all__ = [
    "REGIMES",
    "RESERVED",
    "PoolStudy",
    "author_rewards",
    "regime_of",
    "score_aggregations",
    "score_pools",
    "setting_text",
    "study_pools",
    "with_gold",
    "write_csv",
]

BEST_AUTHOR, GOLD, RANDOM = "best author", "gold", "random"
RESERVED = (BEST_AUTHOR, GOLD, RANDOM)
"""Names that the study gives itself."""

_PROMPTS_AT_ONCE = 8
_NAME_WIDTH = 22

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class PoolStudy:
    """Every reward's curves on the same prompts.

    Attributes:
        regime: how the pools were read.
        prompts: how many.
        responses: members of all pools that have a gold score.
        without_gold: responses that were left out for want of one.
        short_pools: prompts that were left out, as fewer than two of their responses have one.
        reference: the row that differences are taken to.
        start: mean gold of the policy as it is.
        best_of_n: one row a reward.
        frontier: one row a reward that has a frontier; empty for samples.
        resampling: how intervals were drawn.
        version: of dmoerm.
        meta: what was measured.
    """

    regime: Regime
    prompts: int
    responses: int
    without_gold: int
    short_pools: int
    reference: str
    start: Interval
    best_of_n: tuple[GoldCurve, ...]
    frontier: tuple[GoldCurve, ...]
    resampling: Resampling
    version: str
    meta: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """All figures in types that JSON knows; an infinite β is null."""
        found: dict[str, Any] = _without_infinity(asdict(self))
        return found

    def as_table(self) -> str:
        """Plain text for a terminal."""
        few = f" (fewer than {FEW_PROMPTS}: intervals are too narrow)" if self.prompts < FEW_PROMPTS else ""
        left_out = f"; {self.without_gold:,} responses without a gold score left out" if self.without_gold else ""
        left_out += f", {self.short_pools:,} prompts with them" if self.short_pools else ""
        head = [
            f"{self.prompts:,} prompts{few}, {self.responses:,} responses{left_out}. {REGIMES[self.regime]}.",
            f"Gold of the policy as it is: {_text(self.start)}",
        ]
        last = self.best_of_n[0].points[-1].setting
        blocks = ["\n".join(head), _block(f"Best-of-n, n = 1 to {last:,.0f}", "n", self.best_of_n, self.reference)]
        if self.frontier:
            blocks.append(_block("KL-regularised optimum (exact), from beta = infinity to 0", "beta", self.frontier, self.reference))
        return "\n\n".join(blocks)


REGIMES: Mapping[Regime, str] = {
    "finite": "The pool is the policy (finite): draws with replacement, gold and KL exact",
    "samples": "Samples of one policy: the mean over subsets, unbiased; KL is the upper bound log n - (n - 1)/n",
}
"""What the regimes mean, in a sentence."""


def score_pools(scorer: Scorer, pools: Sequence[Pool], progress: Progress = lambda done, total: None) -> list[Rewards]:
    """The rewards of every pool; `progress` gets (responses done, all of them)."""
    found: list[Rewards] = []
    for chunk in _chunks(pools, progress):
        found += scorer.score([pool.candidates for pool in chunk])
    return found


def score_aggregations(
    model: "RewardModel",
    aggregations: "Sequence[Aggregation]",
    pools: Sequence[Pool],
    progress: Progress = lambda done, total: None,
) -> list[list[Rewards]]:
    """The same under several aggregations of one model, for the price of one; one list an aggregation.

    Raises:
        ConfigError: the model has no such aggregation.
    """
    from dmoerm.modeling.reward_model import ScoreRequest
    from dmoerm.records import Reward
    from dmoerm.scoring.bulk import require_aggregation

    for aggregation in aggregations:
        require_aggregation(model, aggregation)
    found: list[list[Rewards]] = [[] for _ in aggregations]
    for chunk in _chunks(pools, progress):
        requests = [ScoreRequest(pool.prompt, pool.responses) for pool in chunk]
        for kept, results in zip(found, model.score_by_aggregation(requests, aggregations), strict=True):
            kept += [
                [one.reward if isinstance(one, Reward) and math.isfinite(one.reward) else None for one in rewards] for rewards in results
            ]
    return found


def with_gold(pools: Sequence[Pool], rewards: Sequence[Rewards]) -> list[Pool]:
    """The pools with the rewards of a gold model as their gold scores."""
    return [replace(pool, gold=tuple(found)) for pool, found in zip(pools, rewards, strict=True)]


def regime_of(pools: Sequence[Pool]) -> Regime:
    """`finite` where one prompt has responses of several authors, who cannot be samples of one policy; else `samples`."""
    return "finite" if any(len(set(pool.authors)) > 1 for pool in pools) else "samples"


def author_rewards(pools: Sequence[Pool], elsewhere: Sequence[Pool] = ()) -> list[Rewards] | None:
    """The mean gold of each response's author on other prompts; None where no prompt has responses of two known authors.

    Args:
        pools: with gold scores; where `elsewhere` is empty, the other prompts among them count.
        elsewhere: pools to learn from instead; those with a prompt of `pools` are left out.
    """
    if not any(len({author for author in pool.authors if author is not None}) > 1 for pool in pools):
        return None
    own = [_gold_by_author(pool) for pool in pools]
    tested = {prompt_hash(pool.prompt) for pool in pools}
    learned = own if not elsewhere else [_gold_by_author(pool) for pool in elsewhere if prompt_hash(pool.prompt) not in tested]
    everywhere: dict[str, list[float]] = defaultdict(list)
    for found in learned:
        for author, scores in found.items():
            everywhere[author] += scores
    totals = {author: (math.fsum(scores), len(scores)) for author, scores in everywhere.items()}
    rewards: list[Rewards] = []
    for pool, here in zip(pools, own, strict=True):
        means: dict[str, float] = {}
        for author, (total, count) in totals.items():
            inside = [] if elsewhere else here.get(author, [])
            if count > len(inside):
                means[author] = (total - math.fsum(inside)) / (count - len(inside))
        rewards.append([None if author is None else means.get(author) for author in pool.authors])
    return rewards


def study_pools(
    pools: Sequence[Pool],
    rewards: Mapping[str, Sequence[Rewards]],
    *,
    regime: Regime | None = None,
    max_n: int | None = None,
    authors_from: Sequence[Pool] = (),
    resampling: Resampling | None = None,
    meta: Mapping[str, Any] | None = None,
) -> PoolStudy:
    """All curves, figures and fits.

    Args:
        pools: with gold scores; responses without one are left out for every reward.
        rewards: by name, of every response of every pool. The first is the reference of the differences.
        regime: how the pools are read; None is as `regime_of` says.
        max_n: the largest n; None is as `n_grid` says.
        authors_from: other pools, from which `best author` learns.
        resampling: how intervals are drawn.
        meta: JSON-safe facts to keep with the result.

    Raises:
        DataError: no rewards, no gold scores, or rewards of other pools.
        ConfigError: a reserved name, or an n that the regime does not allow.
    """
    _check(pools, rewards)
    kept, found, without_gold, short = _with_scores(pools, rewards)
    regime = regime or regime_of(kept)
    gold = [[score for score in pool.gold if score is not None] for pool in kept]
    rows = {**found, **_beside(kept, found, authors_from)}
    n_N = n_grid([len(pool.responses) for pool in kept], regime, max_n)
    selected = {name: best_of_n_curves(one, gold, n_N, regime) for name, one in rows.items()}
    selected[RANDOM] = random_curves(gold, n_N, regime)
    rows[GOLD] = [list(scores) for scores in gold]
    selected[GOLD] = best_of_n_curves(rows[GOLD], gold, n_N, regime)
    reference, resampling = next(iter(rewards)), resampling or Resampling()
    counts = {name: (sum(map(len, one)), sum(reward is None for group in one for reward in group)) for name, one in rows.items()}
    counts[RANDOM] = (counts[GOLD][0], 0)
    shared: dict[str, Any] = {"reference": reference, "resampling": resampling, "counts": counts}
    frontier: list[GoldCurve] = []
    if regime == "finite":
        targets = kl_targets([len(pool.responses) for pool in kept])
        frontier = gold_curves({name: frontier_curves(one, gold, targets) for name, one in rows.items()}, "rl", **shared)
    best_of_n = gold_curves(selected, "best_of_n", **shared)
    start = best_of_n[-1].points[0].gold
    return PoolStudy(
        regime=regime,
        prompts=len(kept),
        responses=counts[GOLD][0],
        without_gold=without_gold,
        short_pools=short,
        reference=reference,
        start=start,
        best_of_n=tuple(best_of_n),
        frontier=tuple(frontier),
        resampling=resampling,
        version=version("dmoerm"),
        meta=dict(meta or {}),
    )


def write_csv(folder: str | os.PathLike[str], study: PoolStudy) -> list[Path]:
    """Every point of every curve: `best_of_n.csv` and, where there is one, `frontier.csv`; existing ones are replaced."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, setting, curves in (("best_of_n", "n", study.best_of_n), ("frontier", "beta", study.frontier)):
        if curves:
            written.append(folder / f"{name}.csv")
            unfinished = written[-1].with_name(f"{name}.csv.part")
            unfinished.write_text(_csv_text(setting, curves), encoding="utf-8", newline="")
            unfinished.replace(written[-1])
    return written


# --- the study ----------------------------------------------------------------------------------------------------------------------------


def _check(pools: Sequence[Pool], rewards: Mapping[str, Sequence[Rewards]]) -> None:
    if not rewards:
        raise DataError("No rewards were given; expected those of at least one model.")
    for name, one in rewards.items():
        if name in RESERVED:
            raise ConfigError(f"a model is named {name!r}, which is a row of its own; rename its folder")
        if [len(group) for group in one] != [len(pool.responses) for pool in pools]:
            raise DataError(f"The rewards of {name!r} are not one for each response of these pools; score these pools.")
    if not any(score is not None for pool in pools for score in pool.gold):
        raise DataError("No response has a gold score. Name the key that holds it (--gold-column), or a gold model (--gold).")


def _with_scores(pools: Sequence[Pool], rewards: Mapping[str, Sequence[Rewards]]) -> tuple[list[Pool], dict[str, list[Rewards]], int, int]:
    """Pools and rewards of the responses with a gold score; how many responses and whole prompts were left out."""
    kept: list[Pool] = []
    found: dict[str, list[Rewards]] = {name: [] for name in rewards}
    without = sum(score is None for pool in pools for score in pool.gold)
    for number, pool in enumerate(pools):
        places = [place for place, score in enumerate(pool.gold) if score is not None]
        if len(places) < 2:
            continue
        kept.append(
            replace(
                pool,
                responses=tuple(pool.responses[place] for place in places),
                gold=tuple(pool.gold[place] for place in places),
                authors=tuple(pool.authors[place] for place in places),
            )
        )
        for name, one in rewards.items():
            found[name].append([one[number][place] for place in places])
    if not kept:
        raise DataError("No prompt has two responses with a gold score; expected at least one such prompt.")
    return kept, found, without, len(pools) - len(kept)


def _beside(pools: Sequence[Pool], found: Mapping[str, Sequence[Rewards]], authors_from: Sequence[Pool]) -> dict[str, list[Rewards]]:
    rows: dict[str, list[Rewards]] = {}
    if Longest.name not in found:
        rows[Longest.name] = Longest().score([pool.candidates for pool in pools])
    authors = author_rewards(pools, authors_from)
    if authors is not None:
        rows[BEST_AUTHOR] = authors
    return rows


def _gold_by_author(pool: Pool) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for author, score in zip(pool.authors, pool.gold, strict=True):
        if author is not None and score is not None:
            found[author].append(score)
    return found


def _chunks(pools: Sequence[Pool], progress: Progress) -> Iterator[Sequence[Pool]]:
    total, done = sum(len(pool.responses) for pool in pools), 0
    for start in range(0, len(pools), _PROMPTS_AT_ONCE):
        chunk = pools[start : start + _PROMPTS_AT_ONCE]
        yield chunk
        done += sum(len(pool.responses) for pool in chunk)
        progress(done, total)


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- text ---------------------------------------------------------------------------------------------------------------------------------


def _block(title: str, setting: str, curves: Sequence[GoldCurve], reference: str) -> str:
    heads = (
        ("gold at peak", 21),
        (f"{setting} there", 17),
        ("KL", 5),
        ("gold at end", 11),
        ("fall", 23),
        ("alpha", 7),
        ("beta", 7),
        ("failed", 6),
    )
    lines = [title, " ".join([" " * _NAME_WIDTH, *(head.rjust(width) for head, width in heads)])]
    for row in curves:
        name = "".join(character if character.isprintable() else "?" for character in row.name)
        if len(name) > _NAME_WIDTH:
            # A long name gets its own line: cutting it could make two models look alike.
            lines.append(name)
            name = ""
        ends = row.peak_setting
        cells = (
            _text(row.peak.gold),
            f"{setting_text(ends.value)} [{setting_text(ends.low)}, {setting_text(ends.high)}]",
            f"{row.peak.kl:.2f}",
            f"{row.points[-1].gold.value:.3f}",
            _signed(row.fall),
            "-" if row.fit is None else f"{row.fit.alpha.value:.3f}",
            "-" if row.fit is None else f"{row.fit.beta.value:.3f}",
            str(row.failed),
        )
        lines.append(" ".join([name.ljust(_NAME_WIDTH), *(cell.rjust(width) for cell, (_, width) in zip(cells, heads, strict=True))]))
    differences = [row for row in curves if row.end_difference is not None and row.name not in RESERVED]
    if differences:
        lines.append(f"Minus {reference}, paired by prompt:")
    for row in differences:
        assert row.end_difference is not None
        assert row.peak_difference is not None
        lines.append(f"{row.name:{_NAME_WIDTH}} at the peaks {_signed(row.peak_difference)}, at the end {_signed(row.end_difference)}")
    return "\n".join(line.rstrip() for line in lines)


def setting_text(value: float) -> str:
    """An n or a β as people write it."""
    return "inf" if math.isinf(value) else f"{value:,.4g}" if value < 10_000 else f"{value:,.0f}"


def _text(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _signed(found: Interval) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _csv_text(setting: str, curves: Sequence[GoldCurve]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("reward", setting, "kl", "proxy", "gold", "gold_low", "gold_high"))
    for row in curves:
        for point in row.points:
            proxy = "" if point.proxy is None else point.proxy
            writer.writerow((row.name, point.setting, point.kl, proxy, point.gold.value, point.gold.low, point.gold.high))
    return text.getvalue()
