"""Over-optimisation by real RL: a policy is trained against each reward, and a gold reward that it never sees says what became of it.

Every reward gets a run of its own from the same policy, prompts and seed. At intervals the policy answers prompts that it is not trained
on, always the same ones; from these answers come the curves: gold and proxy against d = √KL, and the fit of the gold gain,
R(d) = d (α − β log d), of Gao, Schulman & Hilton 2022 (arXiv 2210.10760). Their intervals are over prompts: how far another seed would lead
the same run elsewhere they do not know.

A completion that a reward cannot score is left out of that reward's means and counted; a prompt whose completions at some step all lack a
gold score is left out of every curve.

One folder holds it all: `runs/NAME/` with `metrics.jsonl` (a row a step), `samples.jsonl` (every measured completion), `run.json` and
checkpoints; `overoptimization.json`, `curves.csv` and `report.html` are made from them.
"""

import csv
import io
import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmoerm.data.files import scan_file
from dmoerm.data.jsonl import Row, map_rows
from dmoerm.data.readers.fields import check_fields, messages_field
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.bootstrap import FEW_PROMPTS, Resampling
from dmoerm.evaluation.gold_curves import GoldCurve, Interval, PromptCurves, gold_curves
from dmoerm.evaluation.scorers import Candidates, Rewards, Scorer
from dmoerm.records import Message, prompt_hash

if TYPE_CHECKING:
    from dmoerm.training.policy import Judge, PolicyOptions

__all__ = ["Answer", "Overoptimization", "PromptSets", "Run", "overoptimize", "read_prompt_sets", "study_runs", "write_csv"]

Conversation = tuple[Message, ...]

RUN_FILE = "run.json"

_NAME_WIDTH = 22
_SHOWN_PROMPTS = 4


@dataclass(frozen=True, slots=True)
class PromptSets:
    """Prompts of one file, none twice.

    Attributes:
        training: what policies are trained on.
        measured: what they are measured on.
        repeats: rows left out since their prompt had come before.
    """

    training: tuple[Conversation, ...]
    measured: tuple[Conversation, ...]
    repeats: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the policy says to a measured prompt at first and at last."""

    prompt: str
    first: str
    last: str
    first_proxy: float | None
    last_proxy: float | None
    first_gold: float | None
    last_gold: float | None


@dataclass(frozen=True, slots=True)
class Run:
    """One policy, trained against one reward.

    Attributes:
        name: of the reward.
        curve: gold and proxy on the measured prompts; a setting is a step, and the first the policy as it was. Proxy: 0 is its mean before
            training, 1 the standard deviation of the rewards of single completions then.
        steps: rows of `metrics.jsonl`.
        proxy: mean raw reward of the measured completions at the first and the last measurement; None where none has one.
        length_tokens: likewise, of a measured completion.
        proxy_failed: measured completions without a reward.
        gold_failed: measured completions without a gold score.
        answers: some, for people to look at.
    """

    name: str
    curve: GoldCurve
    steps: tuple[Mapping[str, Any], ...]
    proxy: tuple[float | None, float | None]
    length_tokens: tuple[float, float]
    proxy_failed: int
    gold_failed: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Overoptimization:
    """All runs, measured on the same prompts.

    Attributes:
        runs: in the order given; the first is the reference of the differences.
        prompts: measured ones that are in the curves.
        left_out: measured ones that are not, for want of gold scores.
        start: gold of the policy as it was.
        resampling: how intervals were drawn.
        version: of dmoerm.
        meta: what was run.
    """

    runs: tuple[Run, ...]
    prompts: int
    left_out: int
    start: Interval
    resampling: Resampling
    version: str
    meta: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """All figures in types that JSON knows."""
        return asdict(self)

    def as_table(self) -> str:
        """Plain text for a terminal."""
        few = f" (fewer than {FEW_PROMPTS}: intervals are too narrow)" if self.prompts < FEW_PROMPTS else ""
        left_out = f"; {self.left_out:,} left out for want of gold scores" if self.left_out else ""
        heads = ("KL at end", "proxy at end", "gold at peak", "step there", "gold at end", "fall", "alpha", "beta", "failed")
        widths = (9, 12, 23, 10, 23, 25, 7, 7, 7)
        lines = [
            f"{self.prompts:,} measured prompts{few}{left_out}. Gold of the policy as it was: {_text(self.start)}",
            "KL in nats a completion; proxy in standard deviations of the policy as it was; failed: without a reward/gold score.",
            "",
            " ".join([" " * _NAME_WIDTH, *(head.rjust(width) for head, width in zip(heads, widths, strict=True))]),
        ]
        for run in self.runs:
            name = "".join(character if character.isprintable() else "?" for character in run.name)
            if len(name) > _NAME_WIDTH:
                lines.append(name)
                name = ""
            curve, last = run.curve, run.curve.points[-1]
            cells = (
                f"{last.kl:.3f}",
                "-" if last.proxy is None else f"{last.proxy:+.2f}",
                _text(curve.peak.gold),
                f"{curve.peak.setting:,.0f}",
                _text(last.gold),
                _signed(curve.fall),
                "-" if curve.fit is None else f"{curve.fit.alpha.value:.3f}",
                "-" if curve.fit is None else f"{curve.fit.beta.value:.3f}",
                f"{run.proxy_failed}/{run.gold_failed}",
            )
            lines.append(" ".join([name.ljust(_NAME_WIDTH), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))]))
        differences = [(run.name, run.curve.end_difference) for run in self.runs if run.curve.end_difference is not None]
        if differences:
            lines += ["", f"Gold at the end minus {self.runs[0].name}, paired by prompt (at different KL: see the curves):"]
            lines += [f"{name:{_NAME_WIDTH}} {_signed(difference)}" for name, difference in differences]
        return "\n".join(line.rstrip() for line in lines)


def read_prompt_sets(path: str | os.PathLike[str], measured: int | None = None) -> PromptSets:
    """Split the prompts of a file by their hashes, so that the same prompt is measured whatever else the file holds.

    Args:
        path: rows with "prompt", a text or messages; other fields are not read, so pools and most preference files do.
        measured: prompts to measure on; None is a fifth, at most 64.

    Raises:
        DataError: a row without a prompt, or fewer than two prompts.
        ConfigError: nothing would be left to train on.
    """
    prompts = map_rows(path, _prompt, scan=scan_file).items
    unique = list({prompt_hash(prompt): prompt for prompt in prompts}.values())
    if len(unique) < 2:
        raise DataError(f"{path}: {len(unique)} prompts; expected at least two, one to train on and one to measure on.")
    wanted = min(64, max(1, len(unique) // 5)) if measured is None else measured
    if not 1 <= wanted < len(unique):
        raise ConfigError(f"measured prompts: {wanted}; expected 1 to {len(unique) - 1}, {path} has {len(unique)} prompts")
    chosen = {prompt_hash(prompt) for prompt in sorted(unique, key=prompt_hash)[:wanted]}
    return PromptSets(
        training=tuple(prompt for prompt in unique if prompt_hash(prompt) not in chosen),
        measured=tuple(prompt for prompt in unique if prompt_hash(prompt) in chosen),
        repeats=len(prompts) - len(unique),
    )


def overoptimize(
    proxies: Mapping[str, Callable[[], Scorer]],
    gold: Scorer,
    prompts: PromptSets,
    options: "PolicyOptions",
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    resampling: Resampling | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int, Mapping[str, Any]], None] = lambda name, done, total, row: None,
) -> Overoptimization:
    """Train a policy against each reward and say what became of gold.

    Args:
        proxies: by name, what opens the reward; each is opened for its run and let go after it.
        gold: watched, never trained on.
        prompts: to train and to measure on.
        options: of every run.
        folder: of the result; see the top of this file.
        resume: go on with runs that are unfinished and keep those that are done. More `steps` than before continue a finished run.
        overwrite: delete the runs that are there and begin anew.
        resampling: how intervals are drawn.
        meta: JSON-safe facts to keep with the result and to compare on resume.
        progress: called with (name, steps done, all of them, the row of `metrics.jsonl`).

    Raises:
        DmoermError: trl is not installed.
        ConfigError: a setting cannot be used, there are runs already, or the one to resume was another.
        DataError: no measured prompt has gold scores throughout.
    """
    from dmoerm.training.interrupt import graceful_stop
    from dmoerm.training.policy import SAMPLES, read_jsonl, require_policy, train_policy

    if not proxies:
        raise ConfigError("no rewards to train on; expected at least one")
    require_policy(options)
    folder, meta = Path(folder), dict(meta or {})
    places = {name: folder / "runs" / name.replace("/", "-") for name in proxies}
    facts = {**asdict(options), **meta, "prompts_sha256": _prompts_digest(prompts)}
    for name, place in places.items():
        _require_place(place, resume=resume, overwrite=overwrite)
        if resume:
            _require_same(place / RUN_FILE, facts | {"reward": name})
    with graceful_stop():
        for name, opened in proxies.items():
            place = places[name]
            if overwrite:
                shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True, exist_ok=True)
            (place / RUN_FILE).write_text(json.dumps(facts | {"reward": name}, indent=1) + "\n", encoding="utf-8")
            if max((row["step"] for row in read_jsonl(place / SAMPLES)), default=-1) >= options.steps:
                continue
            train_policy(
                options,
                prompts.training,
                prompts.measured,
                _judge(opened(), gold),
                place,
                resume=resume,
                progress=lambda done, total, row, name=name: progress(name, done, total, row),  # type: ignore[misc]
            )
    return study_runs(places, prompts, resampling or Resampling(), meta)


def write_csv(path: str | os.PathLike[str], study: Overoptimization) -> Path:
    """Every point of every curve; an existing file is replaced."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("reward", "step", "kl", "sqrt_kl", "proxy", "gold", "gold_low", "gold_high"))
    for run in study.runs:
        for point in run.curve.points:
            proxy = "" if point.proxy is None else point.proxy
            gold = point.gold
            writer.writerow((run.name, int(point.setting), point.kl, math.sqrt(point.kl), proxy, gold.value, gold.low, gold.high))
    target = Path(path)
    unfinished = target.with_name(target.name + ".part")
    unfinished.write_text(text.getvalue(), encoding="utf-8", newline="")
    unfinished.replace(target)
    return target


# --- runs -----------------------------------------------------------------------------------------------------------------------------


def _judge(proxy: Scorer, gold: Scorer) -> "Judge":
    def judge(groups: Sequence[tuple[Conversation, tuple[str, ...]]]) -> tuple[list[Rewards], list[Rewards]]:
        candidates = [Candidates(prompt, responses) for prompt, responses in groups]
        return proxy.score(candidates), gold.score(candidates)

    return judge


def _require_place(place: Path, *, resume: bool, overwrite: bool) -> None:
    if place.exists() and not (place / RUN_FILE).is_file():
        raise ConfigError(f"{place} is no run of ours (no {RUN_FILE}), so it is left alone. Name another folder")
    if place.exists() and not resume and not overwrite:
        raise ConfigError(f"{place} is there already. Go on with it (--resume), begin anew (--overwrite), or name another folder")


def _require_same(path: Path, facts: Mapping[str, Any]) -> None:
    """What may differ on resume: how far to train and how often to save, and where."""
    if not path.is_file():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    free = {"steps", "save_every", "measure_every", "device"}
    differ = [name for name in {**found, **facts} if name not in free and found.get(name) != facts.get(name)]
    if differ:
        listed = "; ".join(f"{name} was {found.get(name)!r}, is {facts.get(name)!r}" for name in differ)
        raise ConfigError(f"{path.parent}: the run there is another one: {listed}. Name another folder, or begin anew (--overwrite)")
    if found.get("steps", 0) > facts["steps"]:
        raise ConfigError(f"{path.parent}: that run has {found['steps']} steps, more than {facts['steps']}. Ask for at least as many")


def _prompts_digest(prompts: PromptSets) -> str:
    import hashlib

    digest = hashlib.sha256()
    for part in (prompts.training, prompts.measured):
        digest.update(b"|".join(prompt_hash(prompt).encode() for prompt in part) + b";")
    return digest.hexdigest()


def _prompt(row: Row) -> Conversation:
    check_fields(row.data, ("prompt",))
    return messages_field(row.data["prompt"], '"prompt"')


# --- figures ----------------------------------------------------------------------------------------------------------------------------


def study_runs(folders: Mapping[str, Path], prompts: PromptSets, resampling: Resampling, meta: Mapping[str, Any]) -> Overoptimization:
    """All figures, from what runs have written down.

    Args:
        folders: of the runs by the name of their reward; the first is the reference of the differences.
        prompts: of all runs.
        resampling: how intervals are drawn.
        meta: JSON-safe facts to keep with the result.

    Raises:
        DataError: no measured prompt has gold scores throughout.
    """
    from dmoerm.training.policy import METRICS, SAMPLES, read_jsonl

    samples = {name: read_jsonl(place / SAMPLES) for name, place in folders.items()}
    means = {name: _gold_means(rows) for name, rows in samples.items()}
    first = len(prompts.training)  # measured prompts are numbered behind those of training
    wanted = {(name, row["step"]) for name, rows in samples.items() for row in rows}
    numbers = range(first, first + len(prompts.measured))
    kept = [number for number in numbers if all((step, number) in means[name] for name, step in wanted)]
    if not kept:
        raise DataError("No measured prompt has a gold score at every measurement; nothing can be said. Look at samples.jsonl.")
    curves = {name: _prompt_curves(rows, means[name], kept) for name, rows in samples.items()}
    counts = {name: (len(rows), sum(row["proxy"] is None for row in rows)) for name, rows in samples.items()}
    found = gold_curves(curves, "rl", reference=next(iter(folders)), resampling=resampling, counts=counts)
    runs = tuple(_run(curve, samples[curve.name], read_jsonl(folders[curve.name] / METRICS), prompts) for curve in found)
    left_out = len(prompts.measured) - len(kept)
    return Overoptimization(runs, len(kept), left_out, found[0].points[0].gold, resampling, version("dmoerm"), dict(meta))


def _gold_means(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], float]:
    """(step, prompt) to its mean gold, where a completion has one."""
    scores: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in rows:
        if row["gold"] is not None:
            scores[row["step"], row["prompt"]].append(row["gold"])
    return {place: math.fsum(found) / len(found) for place, found in scores.items()}


def _prompt_curves(rows: Sequence[Mapping[str, Any]], gold: Mapping[tuple[int, int], float], kept: Sequence[int]) -> PromptCurves:
    steps = sorted({row["step"] for row in rows})
    start = [row["proxy"] for row in rows if row["step"] == steps[0] and row["proxy"] is not None]
    mean, deviation = (float(np.mean(start)), float(np.std(start))) if start else (0.0, 0.0)
    kl: dict[tuple[int, int], list[float]] = defaultdict(list)
    proxy: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in rows:
        place = (row["step"], row["prompt"])
        kl[place].append(row["kl"])
        if row["proxy"] is not None:
            proxy[place].append((row["proxy"] - mean) / (deviation or 1.0))
    grid = [[(step, prompt) for step in steps] for prompt in kept]
    return PromptCurves(
        settings_N=np.array(steps, dtype=np.float64),
        kl_GN=np.array([[float(np.mean(kl[place])) for place in line] for line in grid]),
        gold_GN=np.array([[gold[place] for place in line] for line in grid]),
        proxy_GN=np.array([[float(np.mean(proxy[place])) if proxy[place] else math.nan for place in line] for line in grid]),
    )


def _run(curve: GoldCurve, rows: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]], prompts: PromptSets) -> Run:
    ends = (int(curve.points[0].setting), int(curve.points[-1].setting))
    first, last = ([row for row in rows if row["step"] == step] for step in ends)
    return Run(
        name=curve.name,
        curve=curve,
        steps=tuple(steps),
        proxy=(_mean(row["proxy"] for row in first), _mean(row["proxy"] for row in last)),
        length_tokens=(float(np.mean([row["tokens"] for row in first])), float(np.mean([row["tokens"] for row in last]))),
        proxy_failed=curve.failed,
        gold_failed=sum(row["gold"] is None for row in rows),
        answers=tuple(_answers(first, last, prompts)),
    )


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _answers(first: Sequence[Mapping[str, Any]], last: Sequence[Mapping[str, Any]], prompts: PromptSets) -> Iterator[Answer]:
    """The first completion of the first few measured prompts, before and after."""
    before = {row["prompt"]: row for row in reversed(first)}
    after = {row["prompt"]: row for row in reversed(last)}
    for index in sorted(before.keys() & after.keys())[:_SHOWN_PROMPTS]:
        old, new = before[index], after[index]
        prompt = prompts.measured[index - len(prompts.training)][-1].content
        yield Answer(prompt, old["completion"], new["completion"], old["proxy"], new["proxy"], old["gold"], new["gold"])


def _text(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _signed(found: Interval) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
