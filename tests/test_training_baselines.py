"""The ensemble and the multi-head model, on a tiny encoder and preferences that one can see."""

import random
from pathlib import Path

import pytest
import torch

from dmoerm.errors import TrainingError
from dmoerm.modeling.inner import aggregate
from dmoerm.recipe import DataOptions, Recipe
from dmoerm.records import CapabilityLabel, Comparison, Message
from dmoerm.training.baselines import bootstrap_items, train_ensemble, train_multi_head
from dmoerm.training.phase1 import TaskModelShape, task_items, task_vectors
from dmoerm.training.pipeline import load_backbone
from dmoerm.training.rows import Rows
from dmoerm.training.trainer import Item, PhaseSettings

GOOD, POOR = "good clear true honest warm exact".split(), "bad wrong late cold dark empty".split()
FILLER = "river stone garden city house road book tree paper glass".split()
SHAPE = TaskModelShape(depth=1, rank=4, alpha=4.0, dropout=0.05, fit_head=True)
SETTINGS = PhaseSettings(
    learning_rate=1e-3, epochs=1, comparisons_per_batch=8, weight_decay=0.0, warmup_fraction=0.0, gradient_accumulation_steps=1, seed=3,
    bf16=False,
)  # fmt: skip


def comparisons(count, seed):
    """The first response has good words and wins; the capability `brevity` prefers the other one."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        texts = tuple(" ".join(rng.sample(words, 3) + rng.sample(FILLER, 3)) for words in (GOOD, POOR))
        labels = (CapabilityLabel("logic", 0, 1), CapabilityLabel("brevity", 1, 0))
        made.append(Comparison(f"c{seed}-{number}", (Message("user", f"tell {number}"),), texts, (1, 2), labels=labels))
    return made


@pytest.fixture
def work(tiny_encoder_folder):
    """Backbone, rows of 120 training and 40 test pairs, and the items and vectors of the former."""
    options = {"data": DataOptions(comparisons=(Path("a.jsonl"),)), "backbone": {"name": str(tiny_encoder_folder), "max_length_tokens": 48}}
    backbone, renderer = load_backbone(Recipe.model_validate(options))
    rows, train, test = Rows(renderer.tokenizer.pad_token_id), comparisons(120, 1), comparisons(40, 2)
    rows.add([*train, *test], renderer)
    items = task_items([(rows.of_comparison[c.id], [(p.chosen, p.rejected) for p in c.pairs()]) for c in train])
    numbers = [row for c in train for row in rows.of_comparison[c.id]]
    return backbone, rows, train, test, items, task_vectors(backbone, rows, numbers, task=None, states=None, bf16=False)


def test_an_ensemble_has_members_that_differ_and_a_mean_that_follows_the_preference(work):
    backbone, rows, train, test, items, vectors = work
    ensemble = train_ensemble(backbone, rows, "all", items, SHAPE, SETTINGS, members=3, base_vectors=vectors, states=None)
    own = ensemble.scalars(backbone, rows, [row for c in train for row in rows.of_comparison[c.id]], states=None, bf16=False)
    assert own.mean(0).abs().max() < 1e-4
    assert own.std(0).tolist() == pytest.approx([1.0] * 3, abs=1e-4)
    scalars = ensemble.scalars(backbone, rows, [row for c in test for row in rows.of_comparison[c.id]], states=None, bf16=False)
    assert (scalars[:, 0] - scalars[:, 1]).abs().max() > 0.01
    rewards = aggregate(scalars, 0.5)
    for name in ("mean", "wco", "uwo"):
        pairs = rewards[name].reshape(-1, 2)
        assert (pairs[:, 0] > pairs[:, 1]).float().mean() > 0.8, name
    assert torch.equal(aggregate(scalars, 0.0)["uwo"], rewards["mean"])


def test_the_same_seed_gives_the_same_ensemble(work):
    backbone, rows, _, _, items, vectors = work
    first, second = (
        train_ensemble(backbone, rows, name, items, SHAPE, SETTINGS, members=2, base_vectors=vectors, states=None) for name in ("a", "b")
    )
    assert torch.equal(first.heads_MD, second.heads_MD)


def test_the_heads_of_one_model_learn_their_own_capability(work):
    backbone, rows, train, test, items, vectors = work
    labelled = [(rows.of_comparison[c.id], c.labels) for c in train]
    model = train_multi_head(
        backbone, rows, "heads", items, labelled, ("logic", "brevity"), SHAPE, SETTINGS, base_vectors=vectors, states=None
    )
    assert model.names == ("overall", "logic", "brevity")
    scalars = model.scalars(backbone, rows, [row for c in test for row in rows.of_comparison[c.id]], states=None, bf16=False)
    margins = scalars[0::2] - scalars[1::2]
    agree = (margins > 0).float().mean(0)
    assert agree[0] > 0.85
    assert agree[1] > 0.85
    assert agree[2] < 0.15  # brevity prefers the response that loses overall


def test_a_bootstrap_draws_as_many_with_replacement_and_is_seeded():
    items = [Item((index,), ((0, 0, 0),)) for index in range(50)]
    drawn = bootstrap_items(items, 1)
    assert len(drawn) == 50
    assert len({item.rows for item in drawn}) < 40  # about 63 % of them
    assert drawn == bootstrap_items(items, 1)
    assert drawn != bootstrap_items(items, 2)


def test_an_ensemble_of_one_or_of_full_models_is_refused(work):
    backbone, rows, _, _, items, vectors = work
    with pytest.raises(TrainingError, match="an ensemble of 1; expected two members or more"):
        train_ensemble(backbone, rows, "x", items, SHAPE, SETTINGS, members=1, base_vectors=vectors, states=None)
    full = TaskModelShape(None, 4, 4.0, 0.0, True)
    with pytest.raises(TrainingError, match="shares one backbone"):
        train_ensemble(backbone, rows, "x", items, full, SETTINGS, base_vectors=vectors, states=None)
