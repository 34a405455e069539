"""What the first heads of a category are fitted near: those of all categories together, without the comparisons that must not be seen."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dmoerm.data.splits import split_of
from dmoerm.modeling.backbone import Backbone
from dmoerm.records import CapabilityLabel, Comparison, Message
from dmoerm.taxonomy import GENERAL, TASK_MEMBER
from dmoerm.training.inner import CONSENSUS, Everyone, InnerPlan, Workspace, _Part, _Side, _Trained
from dmoerm.training.phase1 import TaskModelShape, fit_head, task_items
from dmoerm.training.phase2 import ExpertShape, expert_items
from dmoerm.training.progress import RunLog
from dmoerm.training.rows import Rows
from dmoerm.training.trainer import PhaseSettings

D = 6
AGGREGATOR = None  # no phase 3 here


def comparison(number, category, *, labelled=False):
    labels = (CapabilityLabel("logic", 1, 0),) if labelled else ()
    return Comparison(f"c{number}", (Message("user", f"prompt {number}"),), ("a", "b"), (1, 2), category, labels)


@pytest.fixture
def everyone():
    """Forty comparisons of two categories, of which every second one carries a label that contradicts its ranks."""
    rows = [comparison(number, ("qa", "poems")[number % 2], labelled=number % 4 < 2) for number in range(40)]
    return Everyone(rows, [c for c in rows if c.labels], ("logic", "warmth"), "key")


@pytest.fixture
def plan():
    settings = PhaseSettings(
        epochs=1,
        learning_rate=1e-3,
        comparisons_per_batch=4,
        weight_decay=0.0,
        warmup_fraction=0.0,
        gradient_accumulation_steps=1,
        seed=0,
        bf16=False,
    )
    return InnerPlan(
        TaskModelShape(1, 4, 4.0, 0.0), ExpertShape(1, 4, 4.0, 0.0, task_member=False), settings, settings, AGGREGATOR,
        folds=2, holdout_fraction=0.4, minimum_labels=5, seed=0, trunk_cache_mib=0,
    )  # fmt: skip


@pytest.fixture
def work(everyone, tiny_encoder_folder):
    rows = Rows(0, of_comparison={c.id: (2 * index, 2 * index + 1) for index, c in enumerate(everyone.comparisons)})
    generator = torch.Generator().manual_seed(3)
    vectors = {row: torch.randn(D, generator=generator) + (row % 2 == 0) for row in range(80)}  # the preferred row is larger on average
    return Workspace(Backbone.load(str(tiny_encoder_folder)), rows, vectors, None, False, RunLog(None, quiet=True), everyone=everyone)


def side(work, plan, category="qa"):
    return _Side(work, category, ("logic", "warmth"), plan)


def pairs(work, comparisons):
    return task_items([(work.rows.of_comparison[c.id], [(0, 1)]) for c in comparisons])


def test_the_shared_task_head_is_fitted_to_all_categories_without_the_fold_that_must_not_be_seen(work, plan, everyone):
    seen = [c for c in everyone.comparisons if split_of(c.prompt, 2, 0) != 1]
    assert {c.category for c in seen} == {"qa", "poems"}
    assert 0 < len(seen) < 40
    found_D = side(work, plan)._shared_head(everyone, TASK_MEMBER, 1)
    assert torch.equal(found_D, fit_head(work.base_vectors, pairs(work, seen)))
    whole_D = side(work, plan)._shared_head(everyone, TASK_MEMBER, None)
    assert torch.equal(whole_D, fit_head(work.base_vectors, pairs(work, everyone.comparisons)))


@pytest.mark.parametrize("left_out", [0, 1, "holdout"])
def test_what_is_left_out_does_not_move_a_shared_head(work, plan, everyone, left_out):
    asked = side(work, plan)
    hidden = [row for c in everyone.comparisons if asked._is_in(left_out, c) for row in work.rows.of_comparison[c.id]]
    assert 0 < len(hidden) < 80
    before = [asked._shared_head(everyone, member, left_out) for member in (TASK_MEMBER, "logic")]
    for row in hidden:
        work.base_vectors[row] = torch.full((D,), 100.0) * (-1) ** row
    everyone.heads.clear()
    after = [asked._shared_head(everyone, member, left_out) for member in (TASK_MEMBER, "logic")]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_shared_expert_head_is_fitted_near_the_shared_task_head_to_the_labels_of_all_categories(work, plan, everyone):
    asked = side(work, plan)
    task_D = asked._shared_head(everyone, TASK_MEMBER, None)
    items = expert_items([(work.rows.of_comparison[c.id], c.labels) for c in everyone.labelled], ("logic",), task_member=False)
    assert torch.equal(asked._shared_head(everyone, "logic", None), fit_head(work.base_vectors, items, prior_D=task_D))
    assert torch.cosine_similarity(asked._shared_head(everyone, "logic", None), task_D, dim=0) < 0  # the labels contradict the ranks
    assert asked._shared_head(everyone, "warmth", None) is None  # nobody labelled it


def test_the_consensus_is_the_mean_of_the_standardised_experts_of_all_categories(work, plan, everyone):
    asked = side(work, plan)
    everyone.heads |= {(None, "logic"): torch.arange(1.0, D + 1), (None, "warmth"): -torch.ones(D)}
    consensus_D = asked._consensus(everyone, None)
    vectors_BD = torch.stack([work.base_vectors[row] for row in range(80)])
    for scalars in (vectors_BD @ torch.arange(1.0, D + 1), vectors_BD @ -torch.ones(D)):
        vectors_BD = torch.cat([vectors_BD, (scalars / scalars.std())[:, None]], 1)
    assert torch.allclose(vectors_BD[:, :D] @ consensus_D, vectors_BD[:, D:].mean(1), atol=1e-5)


def test_without_labels_the_consensus_is_the_task_head_of_all_categories(work, plan, everyone):
    bare = replace(everyone, labelled=(), capabilities=(), heads={})
    assert torch.equal(side(work, plan)._consensus(bare, 0), side(work, plan)._shared_head(bare, TASK_MEMBER, 0))


class Called(Exception):
    pass


def test_both_phases_of_a_category_are_given_the_consensus_without_the_fold_that_must_not_be_seen(work, plan, everyone, monkeypatch):
    def called(*args, prior_D, **options):
        raise Called(prior_D)

    monkeypatch.setattr("dmoerm.training.inner.train_task_model", called)
    monkeypatch.setattr("dmoerm.training.inner.train_experts", called)
    asked, part = side(work, plan), _Part([], [])
    for left_out in (0, None):
        with pytest.raises(Called) as first:
            asked._phase1(part, part, name="x", left_out=left_out)
        phase1 = _Trained(work.backbone, SimpleNamespace(heads_KD=torch.ones(1, D), named_parameters=list), [SimpleNamespace(weights={})])
        with pytest.raises(Called) as second:
            asked._phase2(phase1, part, part, name="x", left_out=left_out)
        assert first.value.args[0] is second.value.args[0] is everyone.heads[left_out, CONSENSUS]


def test_heads_are_shared_by_all_categories_and_fitted_once(work, plan, everyone, monkeypatch):
    side(work, plan)._shared_head(everyone, "logic", 0)
    monkeypatch.setattr("dmoerm.training.inner.fit_head", None)
    other_D = side(work, plan, "poems")._shared_head(everyone, "logic", 0)
    assert other_D is everyone.heads[0, "logic"]


def test_nothing_is_shared_where_a_category_has_it_all_or_nobody_wants_it(work, plan, everyone):
    assert side(work, plan)._everyone(wanted=True) is everyone
    assert side(work, plan)._everyone(wanted=False) is None
    assert side(work, plan, GENERAL)._everyone(wanted=True) is None
    work.everyone = replace(everyone, comparisons=[c for c in everyone.comparisons if c.category == "qa"])
    assert side(work, plan)._everyone(wanted=True) is None
    work.everyone = None
    assert side(work, plan)._everyone(wanted=True) is None
