"""A trained model as it lies on disk: what it is made of, what its phases measured on the way, and the recipe. No weights are loaded."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open

from dmoerm.errors import ArtifactError, ConfigError
from dmoerm.evaluation.report_kinds.kind import Chapter, Headline, Made, ReportKind, Run, several_parts
from dmoerm.evaluation.sections import Cell, Curve, Folded, Section, Series, Table
from dmoerm.modeling.manifest import Manifest, read_manifest
from dmoerm.recipe import run_folder
from dmoerm.taxonomy import GENERAL
from dmoerm.yaml_strict import inline_yaml, parse_yaml

__all__ = ["METRICS", "MODEL", "Epoch", "TrainedModel", "read_model"]

METRICS = "metrics.jsonl"

_PHASES = {1: "task models", 2: "experts"}


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch of a phase measured on the comparisons that it held out.

    Attributes:
        phase: 1 or 2.
        category: of the inner model.
        part: the fold.
        epoch: 0 is before training.
        loss: nats a pair.
        accuracy: share of right pairs.
        pairs: how many.
    """

    phase: int
    category: str
    part: str
    epoch: int
    loss: float
    accuracy: float
    pairs: int


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model folder and what its run folder keeps.

    Attributes:
        manifest: of the model.
        temperatures: by category, what its rewards are divided by under the default aggregation.
        epochs: those with held-out pairs; empty where the run folder is gone.
        unreadable: lines of `metrics.jsonl` that cannot be read.
    """

    manifest: Manifest
    temperatures: Mapping[str, float]
    epochs: tuple[Epoch, ...]
    unreadable: int

    @property
    def recipe(self) -> str:
        """The YAML of the recipe; "" for a model that was put together by hand."""
        return _text(self.manifest.metadata.get("recipe"))

    @property
    def recipe_hash(self) -> str:
        """Of that recipe, or ""."""
        return _text(self.manifest.metadata.get("recipe_hash"))

    def measured(self, category: str, name: str) -> float | None:
        """A figure that training kept of a category, where it is a finite number."""
        found = _mapping(_mapping(self.manifest.metadata.get("categories")).get(category)).get(name)
        return _number(found)


def read_model(folder: Path) -> TrainedModel:
    """Manifest, calibration and metrics of a saved model.

    Raises:
        ArtifactError: there is no such model, or a part of it is damaged.
    """
    manifest = read_manifest(folder)
    epochs, unreadable = _epochs(run_folder(folder) / METRICS)
    return TrainedModel(manifest, {name: _temperature(folder, manifest, name) for name in manifest.categories}, epochs, unreadable)


def _temperature(folder: Path, manifest: Manifest, category: str) -> float:
    path = folder / "categories" / category / "aggregator.safetensors"
    place = get_args(Manifest.model_fields["aggregation"].annotation).index(manifest.aggregation)
    try:
        with safe_open(path, "np") as file:
            return float(file.get_tensor("temperature_A")[place])
    except (OSError, SafetensorError, IndexError) as error:
        raise ArtifactError(f"{path}: the calibration cannot be read ({error}). See: dmoerm verify {folder}") from error


def _epochs(path: Path) -> tuple[tuple[Epoch, ...], int]:
    if not path.is_file():
        return (), 0
    found: dict[tuple[int, str, str, int], Epoch] = {}
    unreadable = 0
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line) if line.strip() else {}
            if row.get("phase") in _PHASES and row["held_out_pairs"]:
                epoch = Epoch(
                    row["phase"],
                    str(row["category"]),
                    str(row["part"]),
                    int(row["epoch"]),
                    float(row["held_out_loss"]),
                    float(row["held_out_accuracy"]),
                    int(row["held_out_pairs"]),
                )
                # A resumed run, or one part trained anew, tells an epoch again: the last word counts.
                found[epoch.phase, epoch.category, epoch.part, epoch.epoch] = epoch
        except (ValueError, KeyError, TypeError, AttributeError):
            unreadable += 1
    return tuple(epoch for epoch in found.values() if math.isfinite(epoch.loss) and math.isfinite(epoch.accuracy)), unreadable


# --- the chapter ----------------------------------------------------------------------------------------------------------------------


def _chapter(runs: Sequence[Run]) -> Chapter:
    return Chapter(
        headlines=tuple(_headline(run) for run in runs),
        warnings=tuple(warning for run in runs for warning in _warnings(run)),
        made=tuple(Made(run.name, run.found.manifest.dmoerm_version, _seed(run.found), "") for run in runs),
        parts=several_parts(runs, _together(runs), lambda run: [*([_parts_table([run])] if len(runs) == 1 else []), *_sections(run.found)]),
        recipes=tuple(
            Folded("", f"Recipe of {run.name} ({run.found.recipe_hash or 'no hash'})", run.found.recipe) for run in runs if run.found.recipe
        ),
    )


def _headline(run: Run) -> Headline:
    entries = run.found.manifest.categories
    experts = sum(len(entry.capabilities) for entry in entries.values())
    comparisons = run.found.measured(GENERAL, "comparisons")
    on = "" if comparisons is None else f"{comparisons:,.0f} comparisons to train on"
    return Headline("A double-layer reward model", run.name, f"{len(entries)} inner models, {experts} experts", on)


def _warnings(run: Run) -> Iterator[str]:
    model: TrainedModel = run.found
    if not model.epochs:
        yield f"Model {run.name}: its run folder with {METRICS} is not there, so there are no curves of its training."
    if model.unreadable:
        yield f"Model {run.name}: {model.unreadable:,} lines of {METRICS} cannot be read and are left out."
    dropped = _mapping(_mapping(model.manifest.metadata.get("rendering")).get("dropped"))
    if dropped:
        yield f"Model {run.name}: responses dropped in training: {', '.join(f'{count} {reason}' for reason, count in dropped.items())}."
    without = [name for name, entry in model.manifest.categories.items() if not entry.capabilities]
    if without:
        yield f"Model {run.name}: no expert in {', '.join(without)}; the task model judges alone."
    guessing = [name for name in model.manifest.categories if (model.measured(name, "held_out_accuracy") or 1.0) <= 0.5]
    if guessing:
        yield f"Model {run.name}: held-out accuracy in training is not above chance in {', '.join(guessing)}."


def _together(runs: Sequence[Run]) -> list[Section]:
    sections: list[Section] = [_parts_table(runs)]
    names = list(dict.fromkeys(name for run in runs for name in run.found.manifest.categories))
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (run.name, *(run.found.measured(name, "held_out_accuracy") for name in names)) for run in runs
    )
    caption = f"Of the aggregator, in training. {_INNER}"
    sections.append(Table("Held-out accuracy of all models", ("model", *names), rows, caption))
    differences = _recipe_differences(runs)
    if differences is not None:
        sections.append(differences)
    return sections


def _parts_table(runs: Sequence[Run]) -> Table:
    columns = ("model", "backbone", "layers", "tokens", "inner models", "experts", "aggregation", "router right", "recipe")
    rows = []
    for run in runs:
        manifest: Manifest = run.found.manifest
        router = _mapping(manifest.metadata.get("router"))
        rows.append(
            (
                run.name,
                manifest.backbone.name,
                "all" if manifest.backbone.keep_layers is None else f"lowest {manifest.backbone.keep_layers}",
                manifest.rendering.max_length_tokens,
                len(manifest.categories),
                sum(len(entry.capabilities) for entry in manifest.categories.values()),
                manifest.aggregation,
                _number(router.get("held_out_accuracy")),
                run.found.recipe_hash or None,
            )
        )
    caption = "Layers: of the backbone, used. Tokens: budget of prompt and response. Router right: held-out prompts, in training."
    return Table("What the model is made of" if len(runs) == 1 else "What the models are made of", columns, tuple(rows), caption)


_INNER = "Held-out folds of the training data serve for stopping and calibration, so these figures are no test and have no interval."


def _sections(model: TrainedModel) -> list[Section]:
    sections: list[Section] = [_by_category(model)]
    sections += [curve for phase in _PHASES for curve in _loss_curve(model, phase)]
    counts = {name: count for name, count in _mapping(model.manifest.metadata.get("labels")).items() if isinstance(count, int)}
    if counts:
        rows = tuple((name.replace("_", " "), count) for name, count in sorted(counts.items(), key=lambda item: -item[1]))
        sections.append(Table("Labels that the experts learned from", ("capability", "labels"), rows))
    return sections


def _by_category(model: TrainedModel) -> Table:
    figures = ("held_out_task_accuracy", "held_out_expert_accuracy", "held_out_accuracy_mean", "held_out_accuracy", "held_out_loss")
    columns = (
        "category",
        "comparisons",
        "labelled",
        "experts",
        "task model",
        "experts alone",
        "their mean",
        "aggregator",
        "loss",
        "temperature",
    )
    rows = tuple(
        (
            name,
            *(_whole(model.measured(name, count)) for count in ("comparisons", "labelled_comparisons")),
            len(entry.capabilities),
            *(model.measured(name, figure) for figure in figures),
            model.temperatures[name],
        )
        for name, entry in model.manifest.categories.items()
    )
    caption = (
        "Accuracy of the task model and of the aggregator on held-out comparisons, of each expert on the labels of its capability. Loss: "
        f"nats a pair, 0.693 says nothing. Temperature: what the rewards of the category are divided by. {_INNER}"
    )
    return Table("What the phases measured", columns, rows, caption)


def _loss_curve(model: TrainedModel, phase: int) -> Iterator[Curve]:
    series = []
    for category in dict.fromkeys(epoch.category for epoch in model.epochs if epoch.phase == phase):
        own = [epoch for epoch in model.epochs if (epoch.phase, epoch.category) == (phase, category)]
        # A fold that stopped early has no later epochs: a mean over the others alone would jump.
        folds = {epoch.part for epoch in own}
        numbers = [n for n in sorted({e.epoch for e in own}) if {e.part for e in own if e.epoch == n} == folds]
        losses = [_mean([epoch for epoch in own if epoch.epoch == number]) for number in numbers]
        series.append(Series(category, tuple(map(float, numbers)), tuple(losses)))
    if series:
        caption = f"Mean over folds, weighted by their pairs; epoch 0 is before training. {_INNER}"
        yield Curve(f"Held-out loss of the {_PHASES[phase]} (phase {phase})", "epoch", "nats a pair", tuple(series), caption)


def _mean(epochs: Sequence[Epoch]) -> float:
    return sum(epoch.loss * epoch.pairs for epoch in epochs) / sum(epoch.pairs for epoch in epochs)


def _recipe_differences(runs: Sequence[Run]) -> Table | None:
    values = [dict(_flat(_parsed_recipe(run))) for run in runs]
    keys = [key for key in dict.fromkeys(key for found in values for key in found) if key not in ("output", "labeling")]
    differ = [key for key in keys if len({repr(found.get(key)) for found in values}) > 1]
    rows = tuple((key, *(inline_yaml(found[key]) if key in found else None for found in values)) for key in differ)
    if not any(values):
        return None
    caption = "Every key that is not the same in all recipes." if rows else "None: all keys but the output folder are the same."
    return Table("Where the recipes differ", ("key", *(run.name for run in runs)), rows, caption)


def _parsed_recipe(run: Run) -> Mapping[str, Any]:
    try:
        return _mapping(parse_yaml(run.found.recipe, run.name).value)
    except ConfigError:
        return {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _seed(model: TrainedModel) -> str:
    for line in model.recipe.splitlines():
        if line.startswith("seed: "):
            return line.removeprefix("seed: ")
    return ""


# --- the metadata of a manifest may hold anything ---------------------------------------------------------------------------------------


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


MODEL = ReportKind("The model", "dmoerm train", _chapter)
