"""The three phases of one category, with or without cross-fitting, ending in an inner model.

Cross-fitting: for each fold, phases 1 and 2 run on the other folds; the fold's own comparisons then give member vectors of experts that
have not seen them. These vectors fit the aggregator, choose the number of epochs and calibrate the reward. The experts that are kept are
trained once more on everything. The paper's schedule trains phase 1 on one part of the comparisons and phase 3 on the other instead.

Fold models live in the same adapter slot one after the other; their weights wait on the CPU.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass

import torch
from torch import Tensor

from dmoerm.data.splits import split_of
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.inner import InnerModel
from dmoerm.records import Comparison
from dmoerm.training.checkpoints import EpochResult, RunState, Unit, content_key
from dmoerm.training.phase1 import TaskModelShape, task_items, task_vectors, train_task_model
from dmoerm.training.phase2 import ExpertShape, expert_items, train_experts
from dmoerm.training.phase3 import AggregatorSettings, FitReport, VectorSet, calibrate, fit_aggregator, set_statistics
from dmoerm.training.progress import RunLog
from dmoerm.training.rows import Rows, TrunkStates, member_vectors
from dmoerm.training.trainer import Item, PhaseSettings, RankingModule, best_epoch, restore

STATISTICS_COMPARISONS = 512
"""Comparisons over which the kept experts are standardised: more would move a mean by less than a twentieth of a standard deviation."""

__all__ = ["InnerPlan", "InnerResult", "Workspace", "train_inner"]


@dataclass(frozen=True, slots=True)
class InnerPlan:
    """Everything about the three phases that does not depend on the category.

    Attributes:
        task_shape: the task adapter; its `depth` None is full fine-tuning.
        expert_shape: one expert.
        task_settings: phase 1.
        expert_settings: phase 2.
        aggregator: phase 3.
        folds: number of cross-fitting folds, or None for the paper's split.
        holdout_fraction: without folds, the share of comparisons kept out of phase 1 for phase 3.
        minimum_labels: a capability with fewer labels gets no expert.
        seed: of the folds.
        trunk_cache_mib: memory for stored hidden states.
    """

    task_shape: TaskModelShape
    expert_shape: ExpertShape
    task_settings: PhaseSettings
    expert_settings: PhaseSettings
    aggregator: AggregatorSettings
    folds: int | None
    holdout_fraction: float
    minimum_labels: int
    seed: int
    trunk_cache_mib: int


@dataclass(slots=True)
class Workspace:
    """What all categories of a run share: the backbone, the rendered rows and their stored states.

    Attributes:
        backbone: bare, with one slot of adapters for each category trained so far.
        rows: every row of the run.
        base_vectors: pooled vector of each comparison row under the bare backbone.
        states: hidden states of the bare trunk below the task adapters, or None.
        bf16: mixed precision for everything that runs the backbone.
        log: where progress goes.
        state: where finished phases are kept.
        key: hash of what every phase starts from: the backbone's weights, precision, number of processes.
    """

    backbone: Backbone
    rows: Rows
    base_vectors: dict[int, Tensor]
    states: TrunkStates | None
    bf16: bool
    log: RunLog
    state: RunState = field(default_factory=lambda: RunState(None))
    key: str = ""


@dataclass(frozen=True, slots=True)
class InnerResult:
    """The inner model, its backbone (the shared one, or the category's own full fine-tune) and what was measured."""

    inner: InnerModel
    backbone: Backbone
    metrics: dict[str, float | int | str]


@dataclass(frozen=True, slots=True)
class _Part:
    """Comparisons and labels on one side of a split."""

    comparisons: list[Comparison] = field(default_factory=list)
    labelled: list[Comparison] = field(default_factory=list)


@dataclass(slots=True)
class _Trained:
    """One run of phases 1 and 2 in the slot of the category."""

    backbone: Backbone
    task: RankingModule
    task_results: list[EpochResult]
    experts: RankingModule | None = None
    expert_results: list[EpochResult] = field(default_factory=list)


def train_inner(
    work: Workspace,
    category: str,
    comparisons: Sequence[Comparison],
    labelled: Sequence[Comparison],
    capabilities: Sequence[str],
    plan: InnerPlan,
) -> InnerResult:
    """Train the inner model of one category.

    Args:
        work: shared by all categories; the category's adapters are left in its backbone.
        category: name of the slot.
        comparisons: with overall preferences, for phases 1 and 3.
        labelled: with capability labels, for phase 2; may repeat comparisons.
        capabilities: the category's, in order; those with too few labels get no expert.
        plan: the phases.
    """
    experts = enough_labels(labelled, capabilities, plan.minimum_labels)
    side = _Side(work, category, experts, plan)
    if plan.folds is None:
        return side.split_schedule(list(comparisons), list(labelled))
    return side.cross_fitted(list(comparisons), list(labelled), plan.folds)


def enough_labels(labelled: Sequence[Comparison], capabilities: Sequence[str], minimum: int) -> tuple[str, ...]:
    """Capabilities with at least `minimum` labels, in the order given."""
    counts = dict.fromkeys(capabilities, 0)
    for comparison in labelled:
        for label in comparison.labels:
            if label.capability in counts:
                counts[label.capability] += 1
    return tuple(name for name, count in counts.items() if count >= minimum)


class _Side:
    """One category on its way through the phases; holds what every step needs, so that the steps read as the method does."""

    def __init__(self, work: Workspace, category: str, experts: tuple[str, ...], plan: InnerPlan) -> None:
        self.work, self.category, self.experts, self.plan = work, category, experts, plan
        self.full = plan.task_shape.depth is None
        self.task_slot = None if self.full else category

    # --- the two schedules --------------------------------------------------------------------------------------------------------

    def cross_fitted(self, comparisons: list[Comparison], labelled: list[Comparison], folds: int) -> InnerResult:
        fold_of = {c.id: split_of(c.prompt, folds, self.plan.seed) for c in [*comparisons, *labelled]}
        used = sorted({fold_of[c.id] for c in comparisons if c.has_preference})
        parts = [
            (self._part(comparisons, labelled, fold_of, fold, inside=False), self._part(comparisons, labelled, fold_of, fold, inside=True))
            for fold in used
        ]
        trained = [self._phase1(train, held, name=f"fold {index + 1} of {len(used)}") for index, (train, held) in enumerate(parts)]
        task_epoch = best_epoch([run.task_results for run in trained])
        for index, (run, (train, held)) in enumerate(zip(trained, parts, strict=True)):
            self._load(run, task_epoch, None)
            self._phase2(run, train, held, name=f"fold {index + 1} of {len(used)}")
        expert_epoch = best_epoch([run.expert_results for run in trained], least=1) if self.experts else 0
        pieces: list[tuple[InnerModel, Tensor, list[Comparison]]] = []
        for run, (_, held) in zip(trained, parts, strict=True):
            self._load(run, task_epoch, expert_epoch)
            chosen = [c for c in held.comparisons if c.has_preference]
            vectors = self._vectors(run.backbone, chosen)
            inner = self._inner(run, task_epoch, expert_epoch)
            set_statistics(inner, vectors)
            pieces.append((inner, vectors, chosen))
        final = self._phase1(_Part(comparisons, labelled), _Part(), name="all", stop_after=task_epoch)
        self._load(final, task_epoch, None)
        self._phase2(final, _Part(comparisons, labelled), _Part(), name="all", stop_after=expert_epoch)
        self._load(final, task_epoch, expert_epoch)
        inner = self._inner(final, task_epoch, expert_epoch)
        report = self._phase3(inner, pieces, {c.id: used.index(fold_of[c.id]) for c in comparisons if c.has_preference})
        vectors = self._vectors(final.backbone, _evenly([c for c in comparisons if c.has_preference], STATISTICS_COMPARISONS))
        set_statistics(inner, vectors)
        calibrate(inner, report, vectors, uwo_penalty=self.plan.aggregator.uwo_penalty)
        held_task = [run.task_results[task_epoch] for run in trained]
        held_experts = [run.expert_results[expert_epoch] for run in trained] if self.experts else []
        return self._result(inner, final.backbone, report, comparisons, labelled, task_epoch, expert_epoch, held_task, held_experts)

    def split_schedule(self, comparisons: list[Comparison], labelled: list[Comparison]) -> InnerResult:
        held_side = {c.id: _in_holdout(c, self.plan) for c in comparisons}
        first = [c for c in comparisons if not held_side[c.id]]
        third = [c for c in comparisons if held_side[c.id] and c.has_preference]
        run = self._phase1(_Part(first, labelled), _Part(third, []), name="60 %")
        task_epoch = len(run.task_results) - 1
        self._phase2(run, _Part(first, labelled), _Part(), name="all")
        expert_epoch = len(run.expert_results) - 1 if self.experts else 0
        inner = self._inner(run, task_epoch, expert_epoch)
        vectors = self._vectors(run.backbone, third)
        set_statistics(inner, vectors)
        report = self._phase3(inner, [(inner, vectors, third)], {c.id: split_of(c.prompt, 5, self.plan.seed, "phase 3") for c in third})
        calibrate(inner, report, vectors, uwo_penalty=self.plan.aggregator.uwo_penalty)
        return self._result(inner, run.backbone, report, comparisons, labelled, task_epoch, expert_epoch, [run.task_results[-1]], [])

    # --- the steps ----------------------------------------------------------------------------------------------------------------

    def _phase1(self, train: _Part, held: _Part, *, name: str, stop_after: int | None = None) -> _Trained:
        work, plan = self.work, self.plan
        backbone = copy.deepcopy(work.backbone) if self.full else work.backbone
        items, held_items = (task_items([self._pairs(c) for c in part.comparisons]) for part in (train, held))
        states = None if self.full else work.states
        module, results = train_task_model(
            backbone,
            work.rows,
            self.category,
            items,
            held_items,
            plan.task_shape,
            plan.task_settings,
            base_vectors=work.base_vectors,
            states=states,
            unit=self._unit("phase1", name, items, held_items, plan.task_shape, plan.task_settings, stop_after, states is not None),
            stop_after=stop_after,
            report=work.log.stepper(f"phase 1, {self.category}, {name}"),
        )
        self._tell("phase 1", name, results, len(train.comparisons))
        return _Trained(backbone, module, results)

    def _phase2(self, run: _Trained, train: _Part, held: _Part, *, name: str, stop_after: int | None = None) -> None:
        if not self.experts:
            return
        work, plan = self.work, self.plan
        items, held_items = (self._expert_items(part.labelled) for part in (train, held))
        head_D = run.task.heads_KD.detach()[0]
        task_weights = {name: parameter for name, parameter in run.task.named_parameters() if name in run.task_results[0].weights}
        unit = self._unit(
            "phase2", name, items, held_items, plan.expert_shape, plan.expert_settings, stop_after, self.experts, task_weights
        )
        run.experts, run.expert_results = train_experts(
            run.backbone,
            work.rows,
            self.category,
            self.experts,
            head_D,
            items,
            held_items,
            plan.expert_shape,
            plan.expert_settings,
            task=self.task_slot,
            states=None if unit.finished else self._expert_states(run.backbone, [*train.labelled, *held.labelled]),
            vectors=lambda: self._task_vectors(run.backbone, train.labelled),
            unit=unit,
            stop_after=stop_after,
            report=work.log.stepper(f"phase 2, {self.category}, {name}"),
        )
        self._tell("phase 2", name, run.expert_results, len(train.labelled))

    def _phase3(
        self, inner: InnerModel, pieces: Sequence[tuple[InnerModel, Tensor, list[Comparison]]], fold_of: dict[str, int]
    ) -> FitReport:
        penalty = self.plan.aggregator.uwo_penalty
        scalars, vectors, pairs, first, number = [], [], [], 0, 0
        raw: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for maker, vectors_BKD, chosen in pieces:
                scalars_BK, vectors_BV = maker.standardise(vectors_BKD)
                scalars.append(scalars_BK)
                vectors.append(vectors_BV)
                for name, value in maker.raw_rewards(vectors_BKD, uwo_penalty=penalty).items():
                    if name != "mlp":
                        raw.setdefault(name, []).append(value)
                for comparison in chosen:
                    ranked = list(comparison.pairs())
                    pairs += [(first + p.chosen, first + p.rejected, 1 / len(ranked), number, fold_of[comparison.id]) for p in ranked]
                    first += len(comparison.responses)
                    number += 1
        columns = list(zip(*pairs, strict=True))
        data = VectorSet(
            torch.cat(scalars),
            torch.cat(vectors),
            *(torch.tensor(columns[index], dtype=torch.float32 if index == 2 else torch.long) for index in range(5)),
        )
        aggregator, report = fit_aggregator(data, self.plan.aggregator, {name: torch.cat(parts) for name, parts in raw.items()})  # type: ignore[misc]
        inner.aggregator.load_state_dict(aggregator.state_dict())
        self.work.log.record(
            phase=3,
            category=self.category,
            steps=report.steps,
            loss=report.loss,
            accuracy=report.accuracy,
            mean_accuracy=report.mean_accuracy,
        )
        self.work.log.say(
            f"phase 3, {self.category}: {number} comparisons, held out: aggregator {report.accuracy:.3f}, "
            f"mean of members {report.mean_accuracy:.3f}, {report.steps} steps"
        )
        return report

    def _unit(self, phase: str, part: str, items: Sequence[Item], held: Sequence[Item], *depends_on: object) -> Unit:
        """Where this phase is stored: its key hashes what the rows say, which pairs count, and everything given."""
        rows = [[self.work.rows.rendered[row].input_ids for row in item.rows] for item in (*items, *held)]
        pairs = [[item.pairs for item in side] for side in (items, held)]
        settings = [_plain_settings(value) for value in depends_on]
        key = content_key(phase, self.category, self.work.key, rows, pairs, settings)
        return self.work.state.unit(f"{self.category}/{phase}-{part.replace(' ', '-')}", key)

    # --- small things -------------------------------------------------------------------------------------------------------------

    def _part(
        self, comparisons: list[Comparison], labelled: list[Comparison], fold_of: dict[str, int], fold: int, *, inside: bool
    ) -> _Part:
        return _Part(
            [c for c in comparisons if (fold_of[c.id] == fold) == inside], [c for c in labelled if (fold_of[c.id] == fold) == inside]
        )

    def _expert_items(self, labelled: Sequence[Comparison]) -> list[Item]:
        rows, member = self.work.rows.of_comparison, self.plan.expert_shape.task_member
        return expert_items([(rows[c.id], c.labels) for c in labelled], self.experts, task_member=member)

    def _pairs(self, comparison: Comparison) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        return self.work.rows.of_comparison[comparison.id], [(pair.chosen, pair.rejected) for pair in comparison.pairs()]

    def _expert_states(self, backbone: Backbone, labelled: Sequence[Comparison]) -> TrunkStates | None:
        layer = backbone.first_layer(self.plan.expert_shape.depth)
        below = None if self.full else self.work.states
        if below is not None and below.layer == layer:
            return below
        numbers = sorted({row for c in labelled for row in self.work.rows.of_comparison[c.id]})
        needed = TrunkStates.bytes_needed(self.work.rows, numbers, backbone.hidden_size, bf16=self.work.bf16)
        if layer == 0 or needed > self.plan.trunk_cache_mib * 2**20:
            return None
        if below is not None and below.layer > layer:
            below = None
        return TrunkStates.compute(backbone, self.work.rows, numbers, layer, task=self.task_slot, below=below, bf16=self.work.bf16)

    def _task_vectors(self, backbone: Backbone, labelled: Sequence[Comparison]) -> dict[int, Tensor]:
        numbers = sorted({row for c in labelled for row in self.work.rows.of_comparison[c.id]})
        states = None if self.full else self.work.states
        return task_vectors(backbone, self.work.rows, numbers, task=self.task_slot, states=states, bf16=self.work.bf16)

    def _vectors(self, backbone: Backbone, comparisons: Sequence[Comparison]) -> Tensor:
        numbers = [row for c in comparisons for row in self.work.rows.of_comparison[c.id]]
        states = None if self.full else self.work.states
        if states is not None and self.experts and states.layer > backbone.first_layer(self.plan.expert_shape.depth):
            states = None
        slot = self.category if self.experts else None
        return member_vectors(backbone, self.work.rows, numbers, task=self.task_slot, experts=slot, states=states, bf16=self.work.bf16)

    def _load(self, run: _Trained, task_epoch: int, expert_epoch: int | None) -> None:
        """Put a run's weights of these epochs into the category's slot."""
        if not self.full:
            shape = self.plan.task_shape
            assert shape.depth is not None
            run.backbone.remove("experts", self.category)
            restore(run.task, run.task_results[task_epoch].weights)
        elif task_epoch != len(run.task_results) - 1:
            restore(run.task, run.task_results[task_epoch].weights)
        if run.experts is not None and expert_epoch is not None:
            expert = self.plan.expert_shape
            copies = run.experts.heads_KD.shape[0]
            run.backbone.add_experts(
                self.category, copies, depth=expert.depth, rank=expert.rank, alpha=expert.alpha, dropout=expert.dropout
            )
            restore(run.experts, run.expert_results[expert_epoch].weights)

    def _inner(self, run: _Trained, task_epoch: int, expert_epoch: int) -> InnerModel:
        inner = InnerModel(
            self.category,
            self.experts,
            run.backbone.hidden_size,
            units=self.plan.aggregator.units,
            copies=1 + self.plan.aggregator.members,
            with_task_member=self.plan.expert_shape.task_member,
        )
        with torch.no_grad():
            inner.task_head_D.copy_(run.task_results[task_epoch].weights["heads_KD"][0])
            heads = run.expert_results[expert_epoch].weights["heads_KD"] if self.experts else inner.task_head_D.unsqueeze(0)
            inner.heads_KD.copy_(heads)
        return inner

    def _tell(self, phase: str, name: str, results: Sequence[EpochResult], count: int) -> None:
        for result in results:
            self.work.log.record(
                phase=int(phase[-1]), category=self.category, part=name, epoch=result.epoch, held_out_loss=result.loss,
                held_out_accuracy=result.accuracy, held_out_pairs=result.pairs,
            )  # fmt: skip
        held = ", ".join(f"{result.accuracy:.3f}" for result in results) if results[0].pairs else "none"
        self.work.log.say(
            f"{phase}, {self.category}, {name}: {count} comparisons, {len(results) - 1} epochs, held-out agreement by epoch {held}"
        )

    def _result(
        self,
        inner: InnerModel,
        backbone: Backbone,
        report: FitReport,
        comparisons: Sequence[Comparison],
        labelled: Sequence[Comparison],
        task_epoch: int,
        expert_epoch: int,
        held_task: Sequence[EpochResult],
        held_experts: Sequence[EpochResult],
    ) -> InnerResult:
        metrics: dict[str, float | int | str] = {
            "comparisons": len(comparisons),
            "labelled_comparisons": len(labelled),
            "experts": len(self.experts),
            "task_epochs": task_epoch,
            "expert_epochs": expert_epoch,
            "aggregator_steps": report.steps,
            "held_out_accuracy": report.accuracy,
            "held_out_accuracy_mean": report.mean_accuracy,
            "held_out_loss": report.loss,
            "held_out_task_accuracy": _weighted(held_task),
        }
        if held_experts:
            metrics["held_out_expert_accuracy"] = _weighted(held_experts)
        return InnerResult(inner, backbone, metrics)


def _evenly(comparisons: list[Comparison], most: int) -> list[Comparison]:
    """At most `most` of them, at equal distance."""
    count = len(comparisons)
    return comparisons if count <= most else [comparisons[index * count // most] for index in range(most)]


def _plain_settings(value: object) -> object:
    """Fields of a settings object that change a result: trackers do not, nor does computing activations twice."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return {name: entry for name, entry in asdict(value).items() if name not in {"report_to", "gradient_checkpointing"}}


def _weighted(results: Sequence[EpochResult]) -> float:
    total = sum(result.pairs for result in results)
    return sum(result.accuracy * result.pairs for result in results if result.pairs) / total if total else float("nan")


def _in_holdout(comparison: Comparison, plan: InnerPlan) -> bool:
    """The part of the comparisons that phase 1 does not see, by prompt, to the nearest per cent."""
    return split_of(comparison.prompt, 100, plan.seed, "holdout") < round(plan.holdout_fraction * 100)
