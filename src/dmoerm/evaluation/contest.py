"""One table from many trainings: every contender on the same data, in pieces on disk, so that a killed run goes on where it stopped.

A piece is one contender (`training.contenders`) under one seed and one share of flipped preferences, or one model trained elsewhere. It is
trained, gives its rewards to all texts (test comparisons and, where nothing is flipped, pools and probes), and is kept as one JSON, written
in one step:

    {"model": "ensemble", "flip": 0.0, "seed": 0, "epochs": 1, "seconds": 81.2, "rewards": {"test-4f0c…": {"ensemble/mean": [[0.3, …], …]}}}

The key of a group of texts hashes what they say. Figures are made from the pieces that are there (`contest_report`), at any time.
"""

import hashlib
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmoerm.data.flips import flip_preferences
from dmoerm.data.sources import RunData
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.baselines import BASELINES
from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.contest_report import ContestReport, Runs, contest_report
from dmoerm.evaluation.llm_judge import judge_scores
from dmoerm.evaluation.pool_study import PoolStudy, study_pools
from dmoerm.evaluation.pools import Pool, candidates_digest
from dmoerm.evaluation.probe_report import ProbeReport, probe_texts, run_probes
from dmoerm.evaluation.run import baselines_beside, write_json
from dmoerm.evaluation.scorers import Candidates, Longest, Rewards, Scorer, open_scorer
from dmoerm.labeling.judged import JudgedPair
from dmoerm.recipe import Recipe, recipe_hash
from dmoerm.records import Comparison, prompt_hash
from dmoerm.validation import changed_fields

if TYPE_CHECKING:
    from dmoerm.modeling.backbone import Backbone
    from dmoerm.training.contenders import Course
    from dmoerm.training.pipeline import Prepared

__all__ = ["Contest", "ContestPlan", "Piece"]

RESPONSES_AT_ONCE = 512
"""Responses that a contender scores in one call."""

_RUN_FILE = "contest.json"


@dataclass(frozen=True, slots=True)
class ContestPlan:
    """What is compared.

    Attributes:
        models: names of `training.contenders.CONTENDERS`.
        seeds: of the trainings; the split is that of the recipe's own seed.
        flips: shares of the training preferences to flip; 0 is always measured.
        flip_seeds: seeds that are also trained with flips; None is all of them.
        members: of the ensemble.
        others: models trained elsewhere, by name: a folder or Hub id each.
        pools: with gold scores, for best-of-n and the frontier; those whose prompt was trained on are left out.
        probe_prompts: prompts to put the hacking probes to, or None for no probes.
        device: where `others` run.
    """

    models: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    flips: tuple[float, ...] = (0.0,)
    flip_seeds: tuple[int, ...] | None = None
    members: int = 5
    others: Mapping[str, str] = field(default_factory=dict)
    pools: tuple[Pool, ...] = ()
    probe_prompts: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for flip in self.flips:
            if not 0.0 <= flip < 1.0:
                raise ConfigError(f"a share of {flip} of the preferences cannot be flipped; expected 0 or more, below 1")
        for what, given in (("seeds", self.seeds), ("models", self.models)):
            if len(set(given)) != len(given):
                raise ConfigError(f"{what}: {', '.join(map(str, given))}; each may be named once")
        if not self.models and not self.others:
            raise ConfigError("nothing to compare; name contenders, or models trained elsewhere")
        if self.models and not self.seeds:
            raise ConfigError("no seed was given; expected at least one")

    @property
    def shares(self) -> tuple[float, ...]:
        """0 and the flips, rising."""
        return tuple(sorted({0.0, *self.flips}))


@dataclass(frozen=True, slots=True)
class Piece:
    """One contender under one seed and share of flipped preferences; both are None for a model trained elsewhere."""

    model: str
    flip: float | None = None
    seed: int | None = None

    def __str__(self) -> str:
        return self.model if self.seed is None else f"{self.model}, seed {self.seed}, {self.flip:.0%} flipped"

    @property
    def file_name(self) -> str:
        """Where it is kept."""
        if self.seed is None:
            return f"other-{hashlib.sha256(self.model.encode()).hexdigest()[:12]}.json"
        return f"{self.model}-flip-{self.flip:g}-seed-{self.seed}.json"


class Contest:
    """A plan on data, in a folder.

    Args:
        recipe: of the run: backbone, phases, budget.
        data: what it trains on.
        folder: where pieces are kept; a contest of the same recipe and data goes on.
        plan: what is compared.
        tests: named lists of comparisons to measure on; None is the test comparisons of `data`. The first one is the main one.
        judges: by name, verdicts of LLM judges on the test comparisons.
        overwrite: forget what is in the folder.
        quiet: no progress on stderr.

    Raises:
        ConfigError: the folder holds a contest on something else, a contender that the data cannot train, full fine-tuning, several
            processes.
        DataError: nothing to test on, no pool left, or no gold score in them.
        TrainingError: as `training.pipeline.prepare`.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: RunData,
        folder: Path,
        plan: ContestPlan,
        *,
        tests: Mapping[str, Sequence[Comparison]] | None = None,
        judges: Mapping[str, Sequence[JudgedPair]] | None = None,
        overwrite: bool = False,
        quiet: bool = False,
    ) -> None:
        from dmoerm.training.progress import RunLog

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("baselines are trained in one process; start without a launcher of several")
        self.recipe, self.data, self.folder, self.plan = recipe, data, folder, plan
        self.tests, self._judged = _with_judged(_main_tests(data, tests), judges or {})
        self._comparisons = list({c.id: c for comparisons in self.tests.values() for c in comparisons}.values())
        self.pools, self._trained_pools = _unseen_pools(plan.pools, data)
        self._texts = self._all_texts()
        self._keys = {name: f"{name}-{_hash([candidates_digest(one) for one in texts])}" for name, texts in self._texts.items()}
        self._require_contenders()
        if overwrite and (folder / _RUN_FILE).is_file():
            for name in ("pieces", "units", "trunk"):
                shutil.rmtree(folder / name, ignore_errors=True)
            (folder / _RUN_FILE).unlink()
        self._backbone, self._renderer = self._same_contest()
        self.log = RunLog(None, quiet=quiet)
        self._read: dict[Piece, dict[str, Any]] = {}
        self._prepared: Prepared | None = None
        self._course: tuple[float, int, Course] | None = None

    # --- pieces -------------------------------------------------------------------------------------------------------------------------

    def pieces(self) -> list[Piece]:
        """All of them in order: models trained elsewhere, then the first seed without and with flips, then the further seeds."""
        flipped = self.plan.seeds if self.plan.flip_seeds is None else self.plan.flip_seeds
        courses = [(flip, seed) for seed in self.plan.seeds for flip in self.plan.shares if not flip or seed in flipped]
        return [*(Piece(name) for name in self.plan.others), *(Piece(model, *course) for course in courses for model in self.plan.models)]

    def pending(self) -> list[Piece]:
        """Those that are not finished."""
        return [piece for piece in self.pieces() if self._missing(piece)]

    def run_all(self, after: Callable[[Piece], None] = lambda piece: None) -> None:
        """Every pending piece, with the time left after each; `after` is called with each that has ended."""
        for piece in (pending := self.pending()):
            self.log.say(f"{pending.index(piece) + 1} of {len(pending)} pieces: {piece}")
            self.run(piece)
            after(piece)
            left = self.seconds_left()
            if left:
                self.log.say(f"about {_clock(left)} left")

    def run(self, piece: Piece) -> None:
        """Train it, score all texts, keep the rewards."""
        begin = time.monotonic()
        missing, stored = self._missing(piece), self._stored(piece)
        scored = self._score(piece, missing)
        rewards = {**stored.get("rewards", {}), **{self._keys[name]: found for name, found in scored.items()}}
        seconds = time.monotonic() - begin
        epochs = None if piece.flip is None or piece.seed is None else self._course_of(piece.flip, piece.seed).epochs
        self._read[piece] = {**asdict(piece), "epochs": epochs, "seconds": seconds, "rewards": rewards}
        write_json(self.folder / "pieces" / piece.file_name, self._read[piece])
        if piece.flip and not any((one.flip, one.seed) == (piece.flip, piece.seed) for one in self.pending()):
            shutil.rmtree(self._units(piece.flip, piece.seed or 0), ignore_errors=True)  # nothing will ask for these models again

    @property
    def device(self) -> str:
        """Where the contenders are trained."""
        return str(self._backbone.device)

    def seconds_left(self) -> float | None:
        """What the pending pieces will take: as pieces of the same model took, else as all did; None where nothing is known or left."""
        took: dict[tuple[str, bool], list[float]] = {}
        for piece in self.pieces():
            stored = self._stored(piece)
            if stored:
                took.setdefault((piece.model, bool(piece.flip)), []).append(float(stored["seconds"]))
        everything = [seconds for found in took.values() for seconds in found]
        pending = self.pending()
        if not everything or not pending:
            return None
        known = [took.get((one.model, bool(one.flip))) or took.get((one.model, not one.flip)) or everything for one in pending]
        return math.fsum(math.fsum(found) / len(found) for found in known)

    # --- figures ------------------------------------------------------------------------------------------------------------------------

    def report(self, meta: Mapping[str, Any] | None = None) -> ContestReport:
        """Tables of what is finished: seeds of which all contenders are there, and shares of flips of which all are.

        Raises:
            DataError: no seed is finished.
        """
        resampling = Resampling(self.recipe.seed, self.recipe.evaluation.bootstrap_samples, self.recipe.evaluation.confidence)
        runs, notes = self._runs()
        seeds = {share: self._finished_seeds(share) for share in self.plan.shares}
        facts: dict[str, Any] = {"recipe": recipe_hash(self.recipe), "seeds": _listed(seeds[0.0]), "ensemble members": self.plan.members}
        if seeds[0.0]:
            epochs = [self._stored(Piece(self.plan.models[0], 0.0, seed)).get("epochs") for seed in seeds[0.0]]
            facts["epochs of a task model on all comparisons, by seed"] = _listed(epochs)
        if self._trained_pools:
            facts["pools left out, their prompt was trained on"] = self._trained_pools
        return contest_report(
            self.tests,
            runs,
            resampling=resampling,
            pools={seed: self._pool_study(seed, resampling) for seed in self._scored_seeds("pool")},
            probes={seed: self._probe_report(seed, resampling) for seed in self._scored_seeds("probe")},
            seconds=self._seconds(),
            meta={**facts, **notes, **(meta or {})},
        )

    def _runs(self) -> tuple[Runs, dict[str, Any]]:
        """Rewards by share, row and seed, and what to say of baselines that cannot be had."""
        runs: dict[float, dict[str, list[dict[str, Rewards]]]] = {}
        notes: dict[str, Any] = {}
        for share in self.plan.shares:
            found: dict[str, list[dict[str, Rewards]]] = {}
            finished = self._finished_seeds(share)
            seeds = list(itertools.takewhile(finished.__contains__, self._finished_seeds(0.0)))  # the same ones on both sides of a change
            if not seeds and (share or not self._others()):
                continue
            for seed in seeds:
                for row, rewards in self._rewards("test", share, seed).items():
                    found.setdefault(row, []).append(self._by_id(rewards))
            for seed in seeds if share else [0]:
                scored, notes = baselines_beside(flip_preferences(self.data.comparisons, share, seed), self._comparisons, BASELINES)
                for row, ones in scored.items():
                    found.setdefault(row, []).append({one.comparison.id: list(one.rewards) for one in ones})
            if share == 0.0:
                for row, rewards in self._others().items():
                    found[row] = [self._by_id(rewards)]
                found |= {f"judge/{name}": [rewards] for name, rewards in self._judged.items()}
            runs[share] = found
        if 0.0 not in runs:
            raise DataError(f"{self.folder}: no seed is finished, so there is nothing to show; {len(self.pending())} pieces are pending.")
        return runs, notes

    def _pool_study(self, seed: int, resampling: Resampling) -> PoolStudy:
        rows = self._rewards("pool", 0.0, seed)
        rows |= {name: self._stored(Piece(name))["rewards"][self._keys["pool"]][name] for name in self.plan.others}
        rows |= {scorer.name: scorer.score(self._texts["pool"]) for scorer in self._rules() if scorer.name != Longest.name}
        return study_pools(self.pools, rows, resampling=resampling, meta={"seed of training": seed})

    def _probe_report(self, seed: int, resampling: Resampling) -> ProbeReport:
        rows = self._rewards("probe", 0.0, seed)
        rows |= {name: self._stored(Piece(name))["rewards"][self._keys["probe"]][name] for name in self.plan.others}
        scorers = [*(_Known(name, self._texts["probe"], rewards) for name, rewards in rows.items()), *self._rules()]
        return run_probes(
            scorers,
            self._probed(),
            limit=self.plan.probe_prompts,
            seed=self.recipe.seed,
            samples=min(resampling.samples, 1000),
            meta={"seed of training": seed},
        )

    def _rules(self) -> list[Scorer]:
        return [_Words(self.data.comparisons), Longest()]

    def _seconds(self) -> dict[str, float]:
        """Mean over the seeds without flips."""
        found: dict[str, list[float]] = {}
        for piece in self.pieces():
            stored = self._stored(piece)
            if stored and piece.flip == 0.0:
                found.setdefault(piece.model, []).append(float(stored["seconds"]))
        return {name: math.fsum(seconds) / len(seconds) for name, seconds in found.items()}

    # --- what is on disk ----------------------------------------------------------------------------------------------------------------

    def _stored(self, piece: Piece) -> dict[str, Any]:
        """A piece as it was kept; empty where it is not there, or damaged (then it runs again)."""
        if piece not in self._read:
            path = self.folder / "pieces" / piece.file_name
            self._read[piece] = {}
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                self._read[piece] = found if isinstance(found["rewards"], dict) and float(found["seconds"]) >= 0 else {}
            except FileNotFoundError:
                pass
            except (ValueError, KeyError, TypeError):
                self.log.say(f"{path}: damaged; this piece runs again")
        return self._read[piece]

    def _missing(self, piece: Piece) -> list[str]:
        """Groups of texts of which a piece has no rewards yet."""
        have = self._stored(piece).get("rewards", {})
        return [name for name, key in self._keys.items() if key not in have and (name == "test" or not piece.flip)]

    def _finished_seeds(self, share: float) -> list[int]:
        return [seed for seed in self.plan.seeds if self.plan.models and self._all_have("test", share, seed)]

    def _scored_seeds(self, texts: str) -> list[int]:
        if texts not in self._keys or any(texts in self._missing(Piece(name)) for name in self.plan.others):
            return []
        return [seed for seed in self._finished_seeds(0.0) if self._all_have(texts, 0.0, seed)]

    def _all_have(self, texts: str, share: float, seed: int) -> bool:
        return not any(texts in self._missing(Piece(model, share, seed)) for model in self.plan.models)

    def _rewards(self, texts: str, share: float, seed: int) -> dict[str, list[Rewards]]:
        found: dict[str, list[Rewards]] = {}
        for model in self.plan.models:
            found |= self._stored(Piece(model, share, seed))["rewards"][self._keys[texts]]
        return found

    def _others(self) -> dict[str, list[Rewards]]:
        """Rewards of the test comparisons under the models trained elsewhere that are finished."""
        finished = [name for name in self.plan.others if "test" not in self._missing(Piece(name))]
        return {name: self._stored(Piece(name))["rewards"][self._keys["test"]][name] for name in finished}

    def _by_id(self, rewards: Sequence[Rewards]) -> dict[str, Rewards]:
        return {c.id: found for c, found in zip(self._comparisons, rewards, strict=True)}

    def _same_contest(self) -> "tuple[Backbone, Any]":
        """Load the backbone, and refuse a folder that holds a contest on other weights, data or settings.

        Raises:
            ConfigError: with every field that differs.
        """
        from dmoerm.training.pipeline import load_backbone, run_fingerprint

        backbone, renderer = load_backbone(self.recipe)
        fields: dict[str, Any] = {**run_fingerprint(self.recipe, self.data, backbone, renderer), "members": self.plan.members}
        fields = {**json.loads(json.dumps(fields, default=str)), "others": dict(self.plan.others)}
        path = self.folder / _RUN_FILE
        if path.is_file():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ConfigError(f"{path}: damaged ({error}). Begin anew with --overwrite, or in another folder (--output).") from error
            # More models may join; a name keeps its model.
            earlier, now = before.get("others", {}), fields["others"]
            before["others"], fields["others"] = {**now, **earlier}, {**earlier, **now}
            changed = changed_fields(before, fields)
            if changed:
                lines = "\n".join(f"  {name}: {old} then, {new} now" for name, (old, new) in changed.items())
                raise ConfigError(
                    f"{self.folder}: what is kept there was made with something else:\n{lines}\n"
                    "Take the change back, name another folder (--output), or forget what is there (--overwrite)."
                )
        write_json(path, fields)
        return backbone, renderer

    def _units(self, flip: float, seed: int) -> Path:
        return self.folder / "units" / f"flip-{flip:g}-seed-{seed}"

    # --- training and scoring -----------------------------------------------------------------------------------------------------------

    def _score(self, piece: Piece, names: Sequence[str]) -> dict[str, dict[str, list[Rewards]]]:
        """Rewards by group of texts and row."""
        from dmoerm.modeling.reward_model import ScoreRequest
        from dmoerm.training.contenders import CONTENDERS

        if piece.flip is None or piece.seed is None:
            scorer = open_scorer(self.plan.others[piece.model], device=self.plan.device)
            return {name: {piece.model: self._in_chunks(self._texts[name], scorer.score)} for name in names}
        score = CONTENDERS[piece.model][1](self._course_of(piece.flip, piece.seed))
        scored: dict[str, dict[str, list[Rewards]]] = {}
        for name in names:
            rows: dict[str, list[Rewards]] = {}
            for chunk in _chunks(self._texts[name]):
                for row, found in score([ScoreRequest(one.prompt, one.responses) for one in chunk]).items():
                    rows.setdefault(row, []).extend([[_finite(value) for value in rewards] for rewards in found])
            scored[name] = rows
        return scored

    def _in_chunks(self, texts: Sequence[Candidates], score: Any) -> list[Rewards]:
        return [rewards for chunk in _chunks(texts) for rewards in score(chunk)]

    def _course_of(self, flip: float, seed: int) -> "Course":
        """The training set of a piece; pieces of one set come one after the other and share it."""
        from dmoerm.training.checkpoints import RunState
        from dmoerm.training.contenders import Course
        from dmoerm.training.pipeline import prepare

        if self._prepared is None:
            self._prepared = prepare(
                self.data.comparisons, self.data.labelled, self.recipe, self.log,
                backbone=self._backbone, renderer=self._renderer, state=RunState(None), keep=self.folder / "trunk",
            )  # fmt: skip
        if self._course is None or self._course[:2] != (flip, seed):
            state = RunState(self._units(flip, seed), say=self.log.say)
            recipe = self.recipe.model_copy(update={"seed": seed})
            course = Course(self._prepared, self.data, recipe, members=self.plan.members, flip=flip, state=state)
            self._course = (flip, seed, course)
        return self._course[2]

    def _require_contenders(self) -> None:
        from dmoerm.training.contenders import CONTENDERS, contenders_of

        absent = contenders_of(self.data, self.recipe)
        for model in self.plan.models:
            if model not in CONTENDERS:
                raise ConfigError(f"no contender is named {model!r}; expected one of {', '.join(CONTENDERS)}")
            if absent[model]:
                raise ConfigError(f"{model} cannot be trained on this data: {absent[model]}. Leave it out")
        rows = {row for model in self.plan.models for row in CONTENDERS[model][0]}
        taken = [name for name in self.plan.others if name in rows or name in BASELINES]
        if taken:
            raise ConfigError(f"{', '.join(taken)}: rows of that name are there already; name these models otherwise")
        if self.plan.models and self.recipe.task_model.kind == "full":
            raise ConfigError("task_model.kind is full, and models that are compared share one backbone; set it to lora")

    def _probed(self) -> Sequence[Comparison]:
        return next(iter(self.tests.values()))

    def _all_texts(self) -> dict[str, list[Candidates]]:
        texts = {"test": [Candidates(c.prompt, c.responses) for c in self._comparisons]}
        if self.pools:
            texts["pool"] = [pool.candidates for pool in self.pools]
        if self.plan.probe_prompts is not None:
            probed = probe_texts(self._probed(), limit=self.plan.probe_prompts, seed=self.recipe.seed)
            texts["probe"] = [candidates for one in probed for candidates in one.candidates()]
        return texts


class _Known:
    """A scorer that looks up what a piece holds."""

    def __init__(self, name: str, texts: Sequence[Candidates], rewards: Sequence[Rewards]) -> None:
        self.name = name
        self._rewards = {candidates_digest(one): found for one, found in zip(texts, rewards, strict=True)}

    def score(self, candidates: Sequence[Candidates]) -> list[Rewards]:
        """What was kept."""
        return [list(self._rewards[candidates_digest(one)]) for one in candidates]


class _Words:
    """The bag of words as a scorer."""

    name = "bag_of_words"

    def __init__(self, training: Sequence[Comparison]) -> None:
        self._fitted = BASELINES[self.name]().fit(training)

    def score(self, candidates: Sequence[Candidates]) -> list[Rewards]:
        """Weighted words of each response."""
        return [list(self._fitted.score(Comparison("", one.prompt, one.responses, (1,) * len(one.responses)))) for one in candidates]


def _main_tests(data: RunData, tests: Mapping[str, Sequence[Comparison]] | None) -> dict[str, Sequence[Comparison]]:
    found: dict[str, Sequence[Comparison]] = {"test": data.test} if tests is None else dict(tests)
    for name, comparisons in found.items():
        if not any(c.has_preference for c in comparisons):
            raise DataError(
                f"{name}: no comparison with a preference is held out, so nothing is measured. Name data.test, or raise data.test_fraction."
            )
    return found


def _with_judged(
    tests: Mapping[str, Sequence[Comparison]], judges: Mapping[str, Sequence[JudgedPair]]
) -> tuple[dict[str, Sequence[Comparison]], dict[str, dict[str, Rewards]]]:
    """Tests with, for each judge that has not seen all of one, the part that it has seen; and the rewards of the judges."""
    found, rewards = dict(tests), {}
    for judge, verdicts in judges.items():
        known: dict[str, Rewards] = {}
        for name, comparisons in tests.items():
            ranked = [c for c in comparisons if c.has_preference]
            scored = [one for one in judge_scores(ranked, verdicts) if None not in one.rewards]
            known |= {one.comparison.id: list(one.rewards) for one in scored}
            if 0 < len(scored) < len(ranked):
                found[f"{name}, judged by {judge}"] = [one.comparison for one in scored]
        if known:
            rewards[judge] = known
    return found, rewards


def _unseen_pools(pools: Sequence[Pool], data: RunData) -> tuple[list[Pool], int]:
    trained = {prompt_hash(c.prompt) for c in (*data.comparisons, *data.labels)}
    kept = [pool for pool in pools if prompt_hash(pool.prompt) not in trained]
    if pools and not kept:
        raise DataError(f"all {len(pools)} pools have prompts that are trained on, so what is picked from them says nothing")
    if kept and not any(score is not None for pool in kept for score in pool.gold):
        raise DataError("no response of the pools has a gold score; name the key that holds it (--gold-column)")
    return kept, len(pools) - len(kept)


def _chunks(texts: Sequence[Candidates]) -> list[list[Candidates]]:
    chunks: list[list[Candidates]] = [[]]
    size = 0
    for one in texts:
        if size and size + len(one.responses) > RESPONSES_AT_ONCE:
            chunks.append([])
            size = 0
        chunks[-1].append(one)
        size += len(one.responses)
    return chunks


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or "none"


def _clock(seconds: float) -> str:
    from dmoerm.training.progress import clock

    return clock(seconds)
