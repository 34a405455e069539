"""Probes put to models: how often does a bad answer outrank the honest one, and by how much?

The honest answer to a prompt is the top-ranked response of its first comparison. Every text is scored by itself, as in training with
rollouts: a text that is repeated ten times must not change how the prompt of another is cut to fit. All models see the same texts.

Equal rewards count one half. A text that a model cannot score is counted as refused: it was neither resisted nor fallen for.
Rewards of different models have different scales, so a margin is divided by the standard deviation of the model's own margins between
the honest answer and that to another prompt: a plain difference in quality.
"""

import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from dmoerm.data.doctor.share import Share, share_of
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.bootstrap import FEW_PROMPTS
from dmoerm.evaluation.probes import KINDS, PROBES, Case, Kind
from dmoerm.evaluation.scorers import Candidates, Scorer
from dmoerm.labeling.draws import Draws, Figure, figure
from dmoerm.records import Comparison, Message, prompt_hash

__all__ = ["ProbeExample", "ProbeReport", "ProbeRow", "ProbedPrompt", "probe_texts", "run_probes"]

CHUNK = 8
"""Prompts scored between two calls of `progress`; each has some twenty texts."""
EXAMPLES = 5
"""Examples kept of each model, one a probe."""
_TRIES = 50
"""Draws of another prompt's answer before it is taken that there is none."""


@dataclass(frozen=True, slots=True)
class ProbedPrompt:
    """One prompt with all texts that are scored for it.

    Attributes:
        prompt: the conversation.
        honest: its top-ranked response.
        worst: its last-ranked response.
        other: the honest answer to another prompt, or None.
        texts: by probe, where it applies and differs from the honest answer.
    """

    prompt: tuple[Message, ...]
    honest: str
    worst: str
    other: str | None
    texts: Mapping[str, str]

    def all_texts(self) -> list[str]:
        """Everything that is scored for this prompt; equal texts once."""
        return list(dict.fromkeys((self.honest, self.worst, *([] if self.other is None else [self.other]), *self.texts.values())))

    def candidates(self) -> list[Candidates]:
        """The same as a scorer is asked for them: each text by itself."""
        return [Candidates(self.prompt, (text,)) for text in self.all_texts()]


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """One probe, or all of one kind, under one model.

    Attributes:
        model: its name.
        probe: a name of `PROBES`; None for all of the kind.
        kind: degradation or decoration.
        over_honest: share of probes with a higher reward than the honest answer; None where nothing was compared.
        over_worst: the same beside the last-ranked response.
        margin: mean reward of the honest answer minus that of the probe, in standard deviations (see the top of this file); below 0 the
            probe is ahead. None where the model gives all answers one reward, or there is a single prompt; None for a kind.
        refused: probes that the model could not score, though it scored the honest answer.
        not_applicable: prompts for which the probe has no text.
    """

    model: str
    probe: str | None
    kind: Kind
    over_honest: Share | None
    over_worst: Share | None
    margin: Figure | None
    refused: int
    not_applicable: int


@dataclass(frozen=True, slots=True)
class ProbeExample:
    """A probe that outranked the honest answer.

    Attributes:
        model: its name.
        probe: the name.
        prompt: the conversation.
        honest: the honest answer.
        text: the probe.
        honest_reward: what the model gave.
        reward: what it gave the probe.
        lead: by how much the probe is ahead, in standard deviations; None where these are 0.
    """

    model: str
    probe: str
    prompt: tuple[Message, ...]
    honest: str
    text: str
    honest_reward: float
    reward: float
    lead: float | None


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """All probes under all models.

    Attributes:
        rows: model by model; its kinds first, then every probe in the order of `PROBES`.
        examples: where a model was fooled most, at most `EXAMPLES` a model.
        prompts: probed.
        honest_failed: by model, prompts left out because it could not score the honest answer.
        spread: by model, the standard deviation that margins are divided by, reward units; None below two prompts.
        seed: of the prompts, the texts and the intervals.
        samples: draws behind the interval of a margin.
        version: of this package.
        meta: what the caller wants kept beside the numbers.
    """

    rows: tuple[ProbeRow, ...]
    examples: tuple[ProbeExample, ...]
    prompts: int
    honest_failed: Mapping[str, int]
    spread: Mapping[str, float | None]
    seed: int
    samples: int
    version: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """Names, in the order given."""
        return list(self.spread)

    def row(self, model: str, probe: str) -> ProbeRow:
        """The row of a probe, or of a kind by its name.

        Raises:
            ConfigError: there is none.
        """
        for row in self.rows:
            if row.model == model and probe == (row.probe or row.kind):
                return row
        known = f"models: {', '.join(self.models)}; probes: {', '.join((*KINDS, *PROBES))}"
        raise ConfigError(f"No row for model {model!r} and probe {probe!r}. {known}.")

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows; a figure that does not exist is None."""
        return asdict(self) | {"probes": {name: {"kind": probe.kind, "rewards": probe.rewards} for name, probe in PROBES.items()}}

    def as_table(self) -> str:
        """Plain text for a terminal: models side by side where there are several, then each with all its figures."""
        blocks = [self._side_by_side()] if len(self.models) > 1 else []
        return "\n\n".join([*blocks, *map(self._block, self.models), self._footnote()])

    def _side_by_side(self) -> str:
        width = max(20, *(len(_printable(name)) for name in self.models))
        lines = ["Share outranking the honest answer", " ".join([" " * 24, *(_printable(name).rjust(width) for name in self.models)])]
        for kind in KINDS:
            lines.append(f"{kind}: {KINDS[kind]}")
            for name in (kind, *_probes_of(kind)):
                cells = [_share_text(self.row(model, name).over_honest).rjust(width) for model in self.models]
                lines.append(" ".join([_label(name).ljust(24), *cells]))
        return "\n".join(lines)

    def _block(self, model: str) -> str:
        titles = ("over the honest", "over the last-ranked", "margin in sd", "refused", "n")
        widths = (20, 20, 24, 7, 5)
        failed = self.honest_failed[model]
        few = " *" if self.prompts - failed < FEW_PROMPTS else ""
        lines = [
            f"{_printable(model)}: {self.prompts - failed:,} prompts{few}"
            + (f", {failed:,} left out (honest answer failed)" if failed else ""),
            " ".join([" " * 24, *(title.rjust(width) for title, width in zip(titles, widths, strict=True))]),
        ]
        for kind in KINDS:
            for name in (kind, *_probes_of(kind)):
                row = self.row(model, name)
                cells = (
                    _share_text(row.over_honest),
                    _share_text(row.over_worst),
                    _figure_text(row.margin),
                    f"{row.refused:,}",
                    f"{row.over_honest.n if row.over_honest else 0:,}",
                )
                lines.append(" ".join([_label(name).ljust(24), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))]))
        return "\n".join(lines)

    def _footnote(self) -> str:
        lines = [
            f"Degradations are {KINDS['degradation']}. Decorations are {KINDS['decoration']}.",
            "Equal rewards count one half; what a model cannot score is refused and in no share.",
            "margin: honest answer minus probe, in standard deviations of its margins to another prompt's answer; below 0: fooled.",
            f"Brackets: 95 % over prompts. Seed {self.seed}. dmoerm {self.version}.",
        ]
        if any(self.prompts - failed < FEW_PROMPTS for failed in self.honest_failed.values()):
            lines.append(f"* fewer than {FEW_PROMPTS} prompts: little can be said.")
        lines += [f"{_printable(key)}: {_printable(value)}" for key, value in self.meta.items()]
        return "\n".join(lines)


def run_probes(
    scorers: Sequence[Scorer],
    comparisons: Sequence[Comparison],
    *,
    limit: int | None = None,
    seed: int = 0,
    samples: int = 1000,
    meta: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ProbeReport:
    """Put every probe to every model.

    Args:
        scorers: the models; equal names are told apart by a number.
        comparisons: where prompts and honest answers come from; best unseen by the models. Those that people tied are left out.
        limit: prompts drawn from them; None takes all.
        seed: of the prompts drawn, the texts and the intervals.
        samples: draws behind the interval of a margin.
        meta: JSON-safe facts to keep with the result.
        progress: called with (prompts scored, all of them, over all models).

    Raises:
        ConfigError: no model, or a limit below 1.
        DataError: no comparison with a preference, or a model that could score no honest answer.
    """
    if not scorers:
        raise ConfigError("No model was given to run_probes; expected at least one.")
    probed = probe_texts(comparisons, limit=limit, seed=seed)
    draws = Draws(seed, samples)
    rows: list[ProbeRow] = []
    examples: list[ProbeExample] = []
    failed: dict[str, int] = {}
    spread: dict[str, float | None] = {}
    for number, scorer in enumerate(scorers):
        name = _unique(scorer.name, spread)
        scored = list(_scored(scorer, probed, partial(_passed_on, progress, number * len(probed), len(scorers) * len(probed))))
        judged = [(one, rewards) for one, rewards in zip(probed, scored, strict=True) if rewards.get(one.honest) is not None]
        if not judged:
            raise DataError(f"{name}: none of {len(probed):,} honest answers could be scored, so there is nothing to compare probes with.")
        failed[name], spread[name] = len(probed) - len(judged), _spread(judged)
        rows += _rows(name, judged, spread[name], draws)
        examples += _examples(name, judged, spread[name])
    return ProbeReport(tuple(rows), tuple(examples), len(probed), failed, spread, seed, samples, version("dmoerm"), dict(meta or {}))


def probe_texts(comparisons: Sequence[Comparison], *, limit: int | None = None, seed: int = 0) -> list[ProbedPrompt]:
    """The prompts that are probed, with every text; the same seed and comparisons give the same texts.

    Raises:
        ConfigError: a limit below 1.
        DataError: no comparison with a preference.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: {limit}; expected at least 1 prompt.")
    first: dict[str, Comparison] = {}
    for comparison in comparisons:
        if comparison.has_preference:
            first.setdefault(prompt_hash(comparison.prompt), comparison)
    if not first:
        raise DataError(f"None of {len(comparisons):,} comparisons has a preference, so none says which response is the honest one.")
    keys = list(first)
    if limit is not None and limit < len(keys):
        drawn = set(random.Random(seed).sample(range(len(keys)), limit))
        keys = [key for number, key in enumerate(keys) if number in drawn]
    of_category: dict[str | None, list[Comparison]] = {}
    for comparison in first.values():
        of_category.setdefault(comparison.category, []).append(comparison)
    everyone = list(first.values())
    return [_probed(first[key], (of_category[first[key].category], everyone), f"{seed}/{key}") for key in keys]


def _probed(comparison: Comparison, pools: Sequence[Sequence[Comparison]], seed: str) -> ProbedPrompt:
    honest, other = _top(comparison), _other(comparison, pools, random.Random(seed))
    texts = {}
    for name, probe in PROBES.items():
        text = probe.make(Case(comparison.prompt, honest, other, random.Random(f"{seed}/{name}")))
        if text is not None and text != honest:
            texts[name] = text
    worst = comparison.responses[comparison.ranks.index(max(comparison.ranks))]
    return ProbedPrompt(comparison.prompt, honest, worst, other, texts)


def _top(comparison: Comparison) -> str:
    return comparison.responses[comparison.ranks.index(min(comparison.ranks))]


def _other(comparison: Comparison, pools: Sequence[Sequence[Comparison]], rng: random.Random) -> str | None:
    """The honest answer to another prompt from the first pool that has one."""
    for pool in pools:
        for _ in range(_TRIES):
            drawn = rng.choice(pool)
            if drawn is not comparison and _top(drawn) not in comparison.responses:
                return _top(drawn)
    return None


# --- scoring --------------------------------------------------------------------------------------------------------------------------

_ByText = Mapping[str, float | None]
_Judged = Sequence[tuple[ProbedPrompt, _ByText]]


def _scored(scorer: Scorer, probed: Sequence[ProbedPrompt], progress: Callable[[int], None]) -> Iterator[_ByText]:
    """The reward of every text of each prompt; equal texts are scored once."""
    for start in range(0, len(probed), CHUNK):
        chunk = probed[start : start + CHUNK]
        texts = [one.all_texts() for one in chunk]
        rewards = iter([found[0] for found in scorer.score([candidates for one in chunk for candidates in one.candidates()])])
        for wanted in texts:
            yield {text: next(rewards) for text in wanted}
        progress(start + len(chunk))


def _passed_on(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _spread(judged: _Judged) -> float | None:
    """Standard deviation of the margins between the honest answer and that to another prompt."""
    margins = []
    for one, rewards in judged:
        honest, other = rewards[one.honest], None if one.other is None else rewards[one.other]
        if honest is not None and other is not None:
            margins.append(honest - other)
    return statistics.stdev(margins) if len(margins) > 1 else None


def _rows(model: str, judged: _Judged, spread: float | None, draws: Draws) -> Iterator[ProbeRow]:
    for kind in KINDS:
        yield _row(model, None, kind, judged, None, draws)
        for name in _probes_of(kind):
            yield _row(model, name, kind, judged, spread, draws)


def _row(model: str, probe: str | None, kind: Kind, judged: _Judged, spread: float | None, draws: Draws) -> ProbeRow:
    names = _probes_of(kind) if probe is None else [probe]
    over_honest: list[tuple[float, int]] = []
    over_worst: list[tuple[float, int]] = []
    margins: list[tuple[float, int]] = []
    refused = not_applicable = 0
    for number, (one, rewards) in enumerate(judged):
        honest, worst = rewards[one.honest], rewards[one.worst]
        assert honest is not None, "prompts without a reward of the honest answer were left out"
        for name in names:
            if name not in one.texts:
                not_applicable += 1
                continue
            reward = rewards[one.texts[name]]
            if reward is None:
                refused += 1
                continue
            over_honest.append((_above(reward, honest), number))
            margins.append((honest - reward, number))
            if worst is not None:
                over_worst.append((_above(reward, worst), number))
    return ProbeRow(model, probe, kind, _share(over_honest), _share(over_worst), _margin(margins, spread, draws), refused, not_applicable)


def _above(reward: float, other: float) -> float:
    return 0.5 if reward == other else float(reward > other)


def _share(found: Sequence[tuple[float, int]]) -> Share | None:
    return share_of([hit for hit, _ in found], [number for _, number in found])


def _margin(found: Sequence[tuple[float, int]], spread: float | None, draws: Draws) -> Figure | None:
    if not found or not spread:
        return None
    margins, prompts = np.array([margin for margin, _ in found]) / spread, [number for _, number in found]
    sums = draws.sums(np.stack([margins, np.ones(len(margins))], axis=1), prompts)
    return figure(float(margins.mean()), sums[:, 0] / sums[:, 1], prompts)


def _examples(model: str, judged: _Judged, spread: float | None) -> list[ProbeExample]:
    """The prompt on which each probe is furthest ahead, then the probes with the greatest lead."""
    furthest: dict[str, ProbeExample] = {}
    for one, rewards in judged:
        honest = rewards[one.honest]
        for name, text in one.texts.items():
            reward = rewards[text]
            if honest is None or reward is None or reward <= honest:
                continue
            if name not in furthest or reward - honest > furthest[name].reward - furthest[name].honest_reward:
                lead = (reward - honest) / spread if spread else None
                furthest[name] = ProbeExample(model, name, one.prompt, one.honest, text, honest, reward, lead)
    return sorted(furthest.values(), key=lambda example: example.honest_reward - example.reward)[:EXAMPLES]


# --- names and numbers ----------------------------------------------------------------------------------------------------------------


def _probes_of(kind: Kind) -> list[str]:
    return [name for name, probe in PROBES.items() if probe.kind == kind]


def _unique(name: str, taken: Mapping[str, object]) -> str:
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name} ({number})"
    return unique


def _label(name: str) -> str:
    return f"all {name}s" if name in KINDS else f"  {name}"


def _share_text(share: Share | None) -> str:
    return "-" if share is None else f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"


def _figure_text(found: Figure | None) -> str:
    return "-" if found is None else f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _printable(value: object) -> str:
    # Names come from folders and files; control characters could steer a terminal.
    return "".join(character if character.isprintable() else "?" for character in str(value))
