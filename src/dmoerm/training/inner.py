"""The three phases of one category, with or without cross-fitting, ending in an inner model.

Cross-fitting: for each fold, phases 1 and 2 run on the other folds; the fold's own comparisons then give member vectors of experts that
have not seen them. These vectors fit the aggregator, choose the number of epochs and calibrate the reward. The experts that are kept are
trained once more on everything. The paper's schedule trains phase 1 on one part of the comparisons and phase 3 on the other instead.

The first heads of a category are fitted near what the experts of all categories together agree on (`Workspace.everyone`): a few hundred
comparisons of one kind say little about hundreds of features, and what makes a good response is much the same elsewhere.

Fold models live in the same adapter slot one after the other; their weights wait on the CPU.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dmoerm.data.splits import split_of
from dmoerm.errors import ConfigError
from dmoerm.modeling.backbone import Backbone
from dmoerm.modeling.inner import InnerModel
from dmoerm.records import Comparison
from dmoerm.taxonomy import GENERAL, TASK_MEMBER
from dmoerm.training.checkpoints import EpochResult, RunState, Unit, content_key
from dmoerm.training.phase1 import TaskModelShape, fit_head, task_items, task_vectors, train_task_model
from dmoerm.training.phase2 import ExpertShape, expert_items, train_experts
from dmoerm.training.phase3 import AggregatorSettings, FitReport, VectorSet, calibrate, fit_aggregator, set_statistics
from dmoerm.training.progress import RunLog
from dmoerm.training.rows import Rows, TrunkStates, member_vectors
from dmoerm.training.trainer import Item, PhaseSettings, RankingModule, best_epoch, restore

LeftOut = int | Literal["holdout"] | None
"""Which comparisons a fit must not see: those of a cross-fitting fold, those kept for phase 3, or none."""

CONSENSUS = "#consensus"
"""Stands for no capability: the mean of the standardised experts of all categories, as one head."""

STATISTICS_COMPARISONS = 128
"""Comparisons over which the kept experts are standardised: more would move a mean by less than a tenth of a standard deviation."""

__all__ = ["Everyone", "InnerPlan", "InnerResult", "Workspace", "change_experts", "enough_labels", "task_epochs", "train_inner"]


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
class Everyone:
    """The comparisons of a run, of all categories, and the heads that were fitted to them on the bare backbone's vectors.

    Attributes:
        comparisons: with an overall preference.
        labelled: with capability labels.
        capabilities: those of the labels.
        key: hash of comparisons and labels.
        heads: (D,) by what was left out (fold, holdout or nothing) and capability, TASK_MEMBER for the overall preference or CONSENSUS.
    """

    comparisons: Sequence[Comparison]
    labelled: Sequence[Comparison]
    capabilities: Sequence[str]
    key: str
    heads: dict[tuple[LeftOut, str], Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Workspace:
    """What all categories of a run share: the backbone, the rendered rows and their stored states.

    Attributes:
        backbone: bare, with one slot of adapters for each category trained so far.
        rows: every row of the run.
        base_vectors: pooled vector of each row under the bare backbone.
        states: hidden states of the bare trunk below the task adapters, or None.
        bf16: mixed precision for everything that runs the backbone.
        log: where progress goes.
        state: where finished phases are kept.
        key: hash of what every phase starts from: the backbone's weights, precision, number of processes.
        everyone: what first heads are fitted near; None: each category stands alone.
    """

    backbone: Backbone
    rows: Rows
    base_vectors: dict[int, Tensor]
    states: TrunkStates | None
    bf16: bool
    log: RunLog
    state: RunState = field(default_factory=lambda: RunState(None))
    key: str = ""
    everyone: Everyone | None = None


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


def change_experts(
    work: Workspace,
    kept: InnerModel,
    backbone: Backbone,
    anew: Sequence[str],
    experts: Sequence[str],
    comparisons: Sequence[Comparison],
    labelled: Sequence[Comparison],
    plan: InnerPlan,
) -> InnerResult:
    """Train some experts of a trained category, or leave some out, and keep the others bit for bit; the aggregator is fitted anew.

    Args:
        work: shared by all categories.
        kept: the inner model as it is.
        backbone: with its adapters: the shared one, or the category's own full fine-tune.
        anew: capabilities whose experts are trained, in place of what is there or in addition.
        experts: all experts of the new inner model, in order; each is in `anew` or in `kept`.
        comparisons: with overall preferences, for the folds of phase 1 and for phase 3.
        labelled: with capability labels.
        plan: the phases; its expert shape is that of the kept experts.

    Raises:
        ConfigError: the shape of the experts differs from the kept ones.
    """
    side = _Side(work, kept.category, tuple(experts), plan)
    config = backbone.adapter_config.get(f"experts/{kept.category}")
    shape = plan.expert_shape
    wanted = {"first_layer": backbone.first_layer(shape.depth), "rank": shape.rank, "alpha": shape.alpha}
    differing = (
        []
        if config is None
        else [f"{name}: {config[name]} in the model, {value} in the recipe" for name, value in wanted.items() if config[name] != value]
    )
    if differing:
        raise ConfigError(
            f"{kept.category}: its experts have another shape ({'; '.join(differing)}), and one stack holds experts of one shape. "
            f"Write the model's into the recipe, or train the category whole: --only {kept.category}"
        )
    return side.with_kept_experts(kept, backbone, anew, list(comparisons), list(labelled))


def task_epochs(work: Workspace, category: str, comparisons: Sequence[Comparison], plan: InnerPlan) -> int:
    """Epochs of phase 1 that the inner folds of `train_inner` choose for these comparisons; without folds, all of them.

    What is stored of the folds is used, and used again by `train_inner`. The slot of `category` is left with the last fold's model.
    """
    if plan.folds is None:
        return plan.task_settings.epochs
    return _Side(work, category, (), plan)._folded(list(comparisons), [], plan.folds).task_epoch


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
        folded = self._folded(comparisons, labelled, folds)
        final = self._phase1(_Part(comparisons, labelled), _Part(), name="all", stop_after=folded.task_epoch)
        self._load(final, folded.task_epoch, None)
        self._phase2(final, _Part(comparisons, labelled), _Part(), name="all", stop_after=folded.expert_epoch)
        self._load(final, folded.task_epoch, folded.expert_epoch)
        inner = self._inner(final, folded.task_epoch, folded.expert_epoch)
        return self._finished(inner, final.backbone, folded, comparisons, labelled)

    def split_schedule(self, comparisons: list[Comparison], labelled: list[Comparison]) -> InnerResult:
        first, third = self._halves(comparisons)
        run = self._phase1(_Part(first, labelled), _Part(third, []), name="60 %", left_out="holdout")
        task_epoch = len(run.task_results) - 1
        self._phase2(run, _Part(first, labelled), _Part(), name="all", left_out="holdout")
        expert_epoch = len(run.expert_results) - 1 if self.experts else 0
        inner = self._inner(run, task_epoch, expert_epoch)
        folded = self._split(inner, run.backbone, third, task_epoch, expert_epoch, [run.task_results[-1]])
        return self._finished(inner, run.backbone, folded, comparisons, labelled)

    def with_kept_experts(
        self, kept: InnerModel, backbone: Backbone, anew: Sequence[str], comparisons: list[Comparison], labelled: list[Comparison]
    ) -> InnerResult:
        """The task model and the experts of `kept` as they are, those named in `anew` trained on everything, phase 3 done again.

        The aggregator must see vectors of experts that have not seen the prompt, so the folds run for the new set of experts; what an
        earlier run has stored of them is used.
        """
        stored = KeptAdapters.take(backbone, kept, self.task_slot)
        epochs = self.plan.expert_settings.epochs
        folded = None if self.plan.folds is None else self._folded(comparisons, labelled, self.plan.folds)
        stored.put_task(backbone)
        inner = self._fresh_inner(backbone)
        with torch.no_grad():
            inner.task_head_D.copy_(kept.task_head_D)
            for member in set(inner.members) & set(kept.members):
                inner.heads_KD[inner.members.index(member)] = kept.heads_KD[kept.members.index(member)]
        for capability in anew:
            stored.one_expert[capability], head_D = self._one_expert(
                backbone, kept.task_head_D.detach(), capability, labelled, epochs if folded is None else folded.expert_epoch
            )
            with torch.no_grad():
                inner.heads_KD[inner.members.index(capability)] = head_D
        stored.put_experts(backbone, inner.members, self.plan.expert_shape)
        if folded is None:
            _, third = self._halves(comparisons)
            folded = self._split(inner, backbone, third, 0, epochs, [])
        return self._finished(inner, backbone, folded, comparisons, labelled)

    # --- parts of the schedules ---------------------------------------------------------------------------------------------------

    def _folded(self, comparisons: list[Comparison], labelled: list[Comparison], folds: int) -> "_Folded":
        """Phases 1 and 2 on the other folds of each fold, and the vectors that they give to its own comparisons."""
        fold_of = {c.id: split_of(c.prompt, folds, self.plan.seed) for c in [*comparisons, *labelled]}
        used = sorted({fold_of[c.id] for c in comparisons if c.has_preference})
        parts = [
            (self._part(comparisons, labelled, fold_of, fold, inside=False), self._part(comparisons, labelled, fold_of, fold, inside=True))
            for fold in used
        ]
        names = [f"fold {index + 1} of {len(used)}" for index in range(len(used))]
        trained = [
            self._phase1(train, held, name=name, left_out=fold) for (train, held), name, fold in zip(parts, names, used, strict=True)
        ]
        task_epoch = best_epoch([run.task_results for run in trained])
        for run, (train, held), name, fold in zip(trained, parts, names, used, strict=True):
            self._load(run, task_epoch, None)
            self._phase2(run, train, held, name=name, left_out=fold)
        expert_epoch = best_epoch([run.expert_results for run in trained], least=1) if self.experts else 0
        pieces: list[tuple[InnerModel, Tensor, list[Comparison]]] = []
        for run, (_, held) in zip(trained, parts, strict=True):
            self._load(run, task_epoch, expert_epoch)
            chosen = [c for c in held.comparisons if c.has_preference]
            vectors = self._vectors(run.backbone, chosen)
            inner = self._inner(run, task_epoch, expert_epoch)
            set_statistics(inner, vectors)
            pieces.append((inner, vectors, chosen))
        return _Folded(
            pieces,
            {c.id: used.index(fold_of[c.id]) for c in comparisons if c.has_preference},
            task_epoch,
            expert_epoch,
            [run.task_results[task_epoch] for run in trained],
            [run.expert_results[expert_epoch] for run in trained] if self.experts else [],
        )

    def _halves(self, comparisons: list[Comparison]) -> tuple[list[Comparison], list[Comparison]]:
        """The paper's split: comparisons for phase 1, and those with a preference for phase 3."""
        held_side = {c.id: _in_holdout(c, self.plan) for c in comparisons}
        return [c for c in comparisons if not held_side[c.id]], [c for c in comparisons if held_side[c.id] and c.has_preference]

    def _split(
        self,
        inner: InnerModel,
        backbone: Backbone,
        third: list[Comparison],
        task_epoch: int,
        expert_epoch: int,
        held_task: list[EpochResult],
    ) -> "_Folded":
        """The paper's schedule as a single piece: the kept experts judge the comparisons that phase 1 has not seen."""
        vectors = self._vectors(backbone, third)
        set_statistics(inner, vectors)
        fold_of = {c.id: split_of(c.prompt, 5, self.plan.seed, "phase 3") for c in third}
        return _Folded([(inner, vectors, third)], fold_of, task_epoch, expert_epoch, held_task, [])

    def _finished(
        self, inner: InnerModel, backbone: Backbone, folded: "_Folded", comparisons: list[Comparison], labelled: list[Comparison]
    ) -> InnerResult:
        """Phase 3, statistics and calibration of the kept experts."""
        report = self._phase3(inner, folded.pieces, folded.fold_of)
        if self.plan.folds is None:
            vectors = folded.pieces[0][1]
        else:
            vectors = self._vectors(backbone, _evenly([c for c in comparisons if c.has_preference], STATISTICS_COMPARISONS))
            set_statistics(inner, vectors)
        calibrate(inner, report, vectors, uwo_penalty=self.plan.aggregator.uwo_penalty)
        return self._result(inner, backbone, report, comparisons, labelled, folded)

    def _one_expert(
        self, backbone: Backbone, head_D: Tensor, capability: str, labelled: list[Comparison], epochs: int
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
        """One expert on all its labels, alone in a slot of its own: its A and B by layer, and its head (D,)."""
        work, plan, alone = self.work, self.plan, f"{self.category}__{capability}"
        shape = replace(plan.expert_shape, task_member=False)
        items = expert_items([(work.rows.of_comparison[c.id], c.labels) for c in labelled], (capability,), task_member=False)
        task_weights = {path: (u.a_KRD, u.b_KOR) for path, u in backbone.adapters("task", self.category).items()}
        everyone = self._everyone(wanted=shape.fit_heads)
        depends_on = (shape, plan.expert_settings, epochs, head_D, task_weights, *_key(everyone, None))
        unit = self._unit("phase2", f"only {capability}", items, [], *depends_on)
        module, results = train_experts(
            backbone,
            work.rows,
            alone,
            (capability,),
            head_D,
            items,
            [],
            shape,
            plan.expert_settings,
            task=self.task_slot,
            states=None if unit.finished else self._expert_states(backbone, labelled),
            vectors=lambda: self._task_vectors(backbone, labelled),
            prior_D=None if unit.finished else self._consensus(everyone, None),
            unit=unit,
            stop_after=epochs,
            report=work.log.stepper(f"phase 2, {self.category}, {capability}"),
        )
        self._tell("phase 2", f"{capability} alone", results, len(items))
        restore(module, results[-1].weights)
        weights = {
            path: (u.a_KRD[0].detach().clone(), u.b_KOR[0].detach().clone()) for path, u in backbone.adapters("experts", alone).items()
        }
        backbone.remove("experts", alone)
        return weights, module.heads_KD.detach()[0].clone()

    # --- the steps ----------------------------------------------------------------------------------------------------------------

    def _phase1(self, train: _Part, held: _Part, *, name: str, left_out: LeftOut = None, stop_after: int | None = None) -> _Trained:
        work, plan = self.work, self.plan
        backbone = copy.deepcopy(work.backbone) if self.full else work.backbone
        items, held_items = (self._task_items(part.comparisons) for part in (train, held))
        states = None if self.full else work.states
        everyone = self._everyone(wanted=plan.task_shape.fit_head)
        depends_on = (plan.task_shape, plan.task_settings, stop_after, states is not None, *_key(everyone, left_out))
        unit = self._unit("phase1", name, items, held_items, *depends_on)
        module, results = train_task_model(
            backbone,
            work.rows,
            self.category,
            items,
            held_items,
            plan.task_shape,
            plan.task_settings,
            base_vectors=work.base_vectors,
            prior_D=None if unit.finished else self._consensus(everyone, left_out),
            states=states,
            unit=unit,
            stop_after=stop_after,
            report=work.log.stepper(f"phase 1, {self.category}, {name}"),
        )
        self._tell("phase 1", name, results, len(train.comparisons))
        return _Trained(backbone, module, results)

    def _phase2(
        self, run: _Trained, train: _Part, held: _Part, *, name: str, left_out: LeftOut = None, stop_after: int | None = None
    ) -> None:
        if not self.experts:
            return
        work, plan = self.work, self.plan
        items, held_items = self._expert_items(train.labelled), self._expert_items(held.labelled, soft=False)
        head_D = run.task.heads_KD.detach()[0]
        task_weights = {name: parameter for name, parameter in run.task.named_parameters() if name in run.task_results[0].weights}
        everyone = self._everyone(wanted=plan.expert_shape.fit_heads)
        depends_on = (plan.expert_shape, plan.expert_settings, stop_after, self.experts, task_weights, *_key(everyone, left_out))
        unit = self._unit("phase2", name, items, held_items, *depends_on)
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
            prior_D=None if unit.finished else self._consensus(everyone, left_out),
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
        pairs = [[(item.pairs, item.margin) for item in side] for side in (items, held)]
        settings = [_plain_settings(value) for value in depends_on]
        key = content_key(phase, self.category, self.work.key, rows, pairs, settings)
        return self.work.state.unit(f"{self.category}/{phase}-{part.replace(' ', '-')}", key)

    # --- what all categories share ---------------------------------------------------------------------------------------------

    def _everyone(self, *, wanted: bool) -> Everyone | None:
        """What first heads are fitted near; None where that is not wanted, or no other category is there to learn from."""
        everyone = self.work.everyone
        alone = everyone is None or {c.category for c in everyone.comparisons} <= {self.category}
        return None if alone or self.category == GENERAL or not wanted else everyone

    def _shared_head(self, everyone: Everyone, member: str, left_out: LeftOut) -> Tensor | None:
        """The head (D,) of TASK_MEMBER or a capability over all categories, prompts of `left_out` aside; None with too few labels."""
        if (left_out, member) not in everyone.heads:
            seen = [c for c in (everyone.comparisons if member == TASK_MEMBER else everyone.labelled) if not self._is_in(left_out, c)]
            if member == TASK_MEMBER:
                items, prior_D = self._task_items([c for c in seen if c.has_preference]), None
            else:
                rows = self.work.rows.of_comparison
                items = expert_items([(rows[c.id], c.labels) for c in seen], (member,), task_member=False)
                prior_D = self._shared_head(everyone, TASK_MEMBER, left_out)
            if len(items) < (1 if member == TASK_MEMBER else self.plan.minimum_labels):
                return None
            everyone.heads[left_out, member] = fit_head(self.work.base_vectors, items, prior_D=prior_D)
        return everyone.heads[left_out, member]

    def _consensus(self, everyone: Everyone | None, left_out: LeftOut) -> Tensor | None:
        """The head (D,) that gives the mean of the standardised shared experts; where none has enough labels, the shared task head."""
        if everyone is None:
            return None
        if (left_out, CONSENSUS) not in everyone.heads:
            shared = (self._shared_head(everyone, name, left_out) for name in everyone.capabilities)
            heads = [head_D for head_D in shared if head_D is not None]
            if not heads:
                return self._shared_head(everyone, TASK_MEMBER, left_out)
            rows = {row for c in everyone.comparisons if not self._is_in(left_out, c) for row in self.work.rows.of_comparison[c.id]}
            vectors_BD = torch.stack([self.work.base_vectors[row] for row in sorted(rows)])
            standardised = [head_D / ((vectors_BD @ head_D).std() + 1e-8) for head_D in heads]
            everyone.heads[left_out, CONSENSUS] = torch.stack(standardised).mean(0)
        return everyone.heads[left_out, CONSENSUS]

    def _is_in(self, left_out: LeftOut, comparison: Comparison) -> bool:
        if left_out == "holdout":
            return _in_holdout(comparison, self.plan)
        return left_out is not None and split_of(comparison.prompt, self.plan.folds or 1, self.plan.seed) == left_out

    # --- small things -------------------------------------------------------------------------------------------------------------

    def _part(
        self, comparisons: list[Comparison], labelled: list[Comparison], fold_of: dict[str, int], fold: int, *, inside: bool
    ) -> _Part:
        return _Part(
            [c for c in comparisons if (fold_of[c.id] == fold) == inside], [c for c in labelled if (fold_of[c.id] == fold) == inside]
        )

    def _task_items(self, comparisons: Sequence[Comparison]) -> list[Item]:
        margins = [c.margin for c in comparisons] if self.plan.task_shape.use_margin else None
        return task_items([self._pairs(c) for c in comparisons], margins)

    def _expert_items(self, labelled: Sequence[Comparison], *, soft: bool = True) -> list[Item]:
        rows, member = self.work.rows.of_comparison, self.plan.expert_shape.task_member
        return expert_items([(rows[c.id], c.labels) for c in labelled], self.experts, task_member=member, soft=soft)

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

    def _fresh_inner(self, backbone: Backbone) -> InnerModel:
        return InnerModel(
            self.category,
            self.experts,
            backbone.hidden_size,
            units=self.plan.aggregator.units,
            copies=1 + self.plan.aggregator.members,
            with_task_member=self.plan.expert_shape.task_member,
        )

    def _inner(self, run: _Trained, task_epoch: int, expert_epoch: int) -> InnerModel:
        inner = self._fresh_inner(run.backbone)
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
        folded: "_Folded",
    ) -> InnerResult:
        metrics: dict[str, float | int | str] = {
            "comparisons": len(comparisons),
            "labelled_comparisons": len(labelled),
            "experts": len(self.experts),
            "task_epochs": folded.task_epoch,
            "expert_epochs": folded.expert_epoch,
            "aggregator_steps": report.steps,
            "held_out_accuracy": report.accuracy,
            "held_out_accuracy_mean": report.mean_accuracy,
            "held_out_loss": report.loss,
        }
        if folded.held_task:
            metrics["held_out_task_accuracy"] = _weighted(folded.held_task)
        if folded.held_experts:
            metrics["held_out_expert_accuracy"] = _weighted(folded.held_experts)
        return InnerResult(inner, backbone, metrics)


@dataclass(frozen=True, slots=True)
class _Folded:
    """What phase 3 works on: vectors of comparisons by experts that have not seen them, and how those experts came about."""

    pieces: list[tuple[InnerModel, Tensor, list[Comparison]]]
    fold_of: dict[str, int]
    task_epoch: int
    expert_epoch: int
    held_task: list[EpochResult]
    held_experts: list[EpochResult]


@dataclass(slots=True)
class KeptAdapters:
    """Adapters of one category set aside while fold models use its slot: the task adapter, and A and B of each expert by name."""

    category: str
    task_config: dict[str, Any] | None
    task: dict[str, tuple[Tensor, Tensor]]
    one_expert: dict[str, dict[str, tuple[Tensor, Tensor]]]

    @staticmethod
    def take(backbone: Backbone, inner: InnerModel, task_slot: str | None) -> "KeptAdapters":
        """Copies of everything in the slot of `inner.category`."""
        name = inner.category
        task = backbone.adapters("task", name) if task_slot is not None else {}
        experts = backbone.adapters("experts", name) if inner.capabilities else {}
        return KeptAdapters(
            name,
            dict(backbone.adapter_config[f"task/{name}"]) if task else None,
            {path: (u.a_KRD.detach().clone(), u.b_KOR.detach().clone()) for path, u in task.items()},
            {
                member: {path: (u.a_KRD[index].detach().clone(), u.b_KOR[index].detach().clone()) for path, u in experts.items()}
                for index, member in enumerate(inner.members)
                if experts
            },
        )

    def put_task(self, backbone: Backbone) -> None:
        """The kept task adapter back in its slot; no experts on it."""
        backbone.remove("experts", self.category)
        if self.task_config is None:
            return
        config = self.task_config
        backbone.add_task_adapter(
            self.category,
            depth=len(backbone.layers) - config["first_layer"],
            rank=config["rank"],
            alpha=config["alpha"],
            dropout=config["dropout"],
        )
        with torch.no_grad():
            for path, update in backbone.adapters("task", self.category).items():
                update.a_KRD.copy_(self.task[path][0])
                update.b_KOR.copy_(self.task[path][1])

    def put_experts(self, backbone: Backbone, members: Sequence[str], shape: ExpertShape) -> None:
        """A stack of `members`, each as it was kept or has been trained since."""
        if not set(members) - {TASK_MEMBER}:
            return
        backbone.add_experts(self.category, len(members), depth=shape.depth, rank=shape.rank, alpha=shape.alpha, dropout=shape.dropout)
        with torch.no_grad():
            for path, update in backbone.adapters("experts", self.category).items():
                for index, member in enumerate(members):
                    if member in self.one_expert:  # a task member that is new has no expert: its B stays zero
                        update.a_KRD[index].copy_(self.one_expert[member][path][0])
                        update.b_KOR[index].copy_(self.one_expert[member][path][1])


def _key(everyone: Everyone | None, left_out: LeftOut) -> tuple[object, ...]:
    """What a stored phase depends on through shared heads."""
    return () if everyone is None else (everyone.key, left_out)


def _evenly(comparisons: list[Comparison], most: int) -> list[Comparison]:
    """At most `most` of them, at equal distance."""
    count = len(comparisons)
    return comparisons if count <= most else [comparisons[index * count // most] for index in range(most)]


def _plain_settings(value: object) -> object:
    """Fields of a settings object that change a result: trackers do not, nor does computing activations twice, nor what is not set."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    skipped = {"report_to", "gradient_checkpointing", *(["steps"] if getattr(value, "steps", 0) is None else [])}
    return {name: entry for name, entry in asdict(value).items() if name not in skipped}


def _weighted(results: Sequence[EpochResult]) -> float:
    total = sum(result.pairs for result in results)
    return sum(result.accuracy * result.pairs for result in results if result.pairs) / total if total else float("nan")


def _in_holdout(comparison: Comparison, plan: InnerPlan) -> bool:
    """The part of the comparisons that phase 1 does not see, by prompt, to the nearest per cent."""
    return split_of(comparison.prompt, 100, plan.seed, "holdout") < round(plan.holdout_fraction * 100)
