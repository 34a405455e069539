"""A disturbance study from a recipe: every mixture of categories trained once for each seed, its test rewards kept, the matrix made.

Data, split, backbone and phase 1 are the recipe's; router, experts and aggregators are not trained, but for the router's first choice
where a comparison has no category. Each (seed, mixture) leaves one JSON of rewards in `DIR/rewards/`, whole or not there, so a run that
was stopped goes on with the next one. `DIR/run.json` keeps what the rewards depend on; a folder that was begun with something else is
refused field by field.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dmoerm.data.sources import RunData, load_run_data
from dmoerm.errors import ConfigError, DataError, TrainingError
from dmoerm.evaluation.bootstrap import Resampling
from dmoerm.evaluation.disturbance import DisturbanceStudy, Trained, study_disturbance, write_csv
from dmoerm.evaluation.disturbance_page import disturbance_sections
from dmoerm.evaluation.pair_table import Scored
from dmoerm.evaluation.report import write_report
from dmoerm.evaluation.run import baselines_beside, write_json
from dmoerm.recipe import Recipe, recipe_hash
from dmoerm.records import Comparison
from dmoerm.validation import changed_fields

if TYPE_CHECKING:
    from dmoerm.data.rendering import Renderer
    from dmoerm.modeling.backbone import Backbone
    from dmoerm.training.mixtures import Mixture
    from dmoerm.training.progress import RunLog

__all__ = ["DisturbanceOptions", "run_disturbance"]

RUN_FILE, REWARDS, PAGE = "run.json", "rewards", "disturbance.html"

DEPENDS_ON = ("backbone", "data", "dmoerm", "seed", "task_model", "taxonomy", "tokens", "training")
"""Of the fields of a run's fingerprint, those that phase 1 on a mixture depends on, by what stands before the first dot."""

ROUTER_ONLY = ("data.labels", "data.prompts")
"""What only moves the router; where it decides on categories, these are a field of their own."""


@dataclass(frozen=True, slots=True)
class DisturbanceOptions:
    """What the models have alike, and how many there are.

    Attributes:
        equal: `steps`: every model takes as many optimizer steps as the recipe's epochs over all categories; `epochs`: as many passes.
        steps: another number of steps; None: as above. Not with `epochs`.
        sizes_equal: every model gets as many training comparisons as the smallest category has.
        pairs: train on pairs of categories, too.
        seeds: of training; None: the recipe's. The split stays that of the recipe.

    Raises:
        ConfigError: an impossible value.
    """

    equal: Literal["steps", "epochs"] = "steps"
    steps: int | None = None
    sizes_equal: bool = False
    pairs: bool = True
    seeds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.equal == "epochs":
            raise ConfigError("a number of steps and equal epochs exclude each other; leave one out")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps: {self.steps}; expected at least 1")
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0):
            raise ConfigError(f"seeds: {', '.join(map(str, self.seeds)) or 'none'}; expected numbers from 0 up, each once")


def run_disturbance(
    recipe: Recipe, output: Path, options: DisturbanceOptions | None = None, *, overwrite: bool = False, quiet: bool = False
) -> DisturbanceStudy:
    """Train what is missing in `output`, and write `disturbance.json`, two CSVs and the page there.

    Args:
        recipe: data, split, backbone, phase 1, intervals and baselines.
        output: the folder of the study; what an earlier run of the same study left there is used.
        options: what the models have alike.
        overwrite: begin anew where another study was begun.
        quiet: no progress on stderr.

    Raises:
        DataError: fewer than two categories can be measured, or the data cannot be used.
        TrainingError: the folder holds another study, several processes, or training fails.
    """
    from dmoerm.training.checkpoints import content_key
    from dmoerm.training.mixtures import mixtures_of
    from dmoerm.training.pipeline import load_backbone
    from dmoerm.training.progress import RunLog

    options = options or DisturbanceOptions()
    seeds = options.seeds or (recipe.seed,)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("many small models are trained one after the other here; start this verb in one process")
    data = load_run_data(recipe)
    backbone, renderer = load_backbone(recipe)
    fields = _fields(recipe, data, options, backbone, renderer)  # before a router that is fine-tuned adds its adapter
    with RunLog(None, quiet=quiet) as log:
        train, test = _with_categories(recipe, data, backbone, renderer, log)
        _take_folder(output, {**fields, "categories": content_key([(c.id, c.category) for c in (*train, *test)])}, overwrite=overwrite)
        of_category, tests, left_out = _measurable(recipe, data, train, test)
        for name, why in left_out.items():
            log.say(f"left out: {name} ({why})")
        mixtures = mixtures_of(list(of_category), pairs=options.pairs)
        missing = [(seed, mixture) for seed in seeds for mixture in mixtures if _read(_path(output, seed, mixture), log.say) is None]
        log.say(f"{len(mixtures)} models on {len(of_category)} categories, seeds {', '.join(map(str, seeds))}: {len(missing)} to train")
        if missing:
            _train(recipe, options, output, of_category, tests, missing, backbone, renderer, log)
    study = _study(recipe, options, output, of_category, tests, mixtures, seeds, left_out)
    write_json(output / "disturbance.json", study.as_dict())
    write_csv(output, study)
    write_report(output / PAGE, "Multi-task disturbance", disturbance_sections(study), subtitle=f"recipe {recipe_hash(recipe)}")
    return study


# --- data -----------------------------------------------------------------------------------------------------------------------------


def _with_categories(
    recipe: Recipe, data: RunData, backbone: "Backbone", renderer: "Renderer", log: "RunLog"
) -> tuple[list[Comparison], list[Comparison]]:
    """Training and test comparisons with a preference; those without a category get the router's first choice, as in training."""
    from dmoerm.training.inner import Workspace
    from dmoerm.training.pipeline import Prepared, train_run_router, with_categories
    from dmoerm.training.rows import Rows

    train, test = ([c for c in side if c.has_preference] for side in (data.comparisons, data.test))
    if all(c.category is not None for c in (*train, *test)):
        return train, test
    bare = Prepared(backbone, renderer, Workspace(backbone, Rows(renderer.tokenizer.pad_token_id), {}, None, False, log), [], [])
    router, _ = train_run_router(bare, recipe, data, data.taxonomy)
    return with_categories(train, bare, router), with_categories(test, bare, router)


def _measurable(
    recipe: Recipe, data: RunData, train: Sequence[Comparison], test: Sequence[Comparison]
) -> tuple[dict[str, list[Comparison]], list[Comparison], dict[str, str]]:
    """Training comparisons by category, in the order of the taxonomy, the test comparisons of these, and which categories are left out."""
    of_category: dict[str, list[Comparison]] = {}
    left_out: dict[str, str] = {}
    least = recipe.task_model.minimum_comparisons
    for name in data.taxonomy.category_names:
        own, tested = ([c for c in side if c.category == name] for side in (train, test))
        if len(own) >= least and tested:
            of_category[name] = own
        elif own or tested:
            few = f"{len(own)} comparisons to train on, fewer than task_model.minimum_comparisons ({least})" if len(own) < least else ""
            left_out[name] = few or f"no comparison with a preference among the held-out ones, {len(own)} to train on"
    unknown = sum(c.category is None for c in (*train, *test))
    if unknown:
        left_out["no category"] = f"{unknown} comparisons, and no router could be trained to tell"
    if len(of_category) < 2:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "the data has no other category"
        raise DataError(
            f"{len(of_category)} categories can be trained on and measured; disturbance needs two. {why}. Give more comparisons, or lower "
            "task_model.minimum_comparisons."
        )
    return of_category, [c for c in test if c.category in of_category], left_out


# --- training -------------------------------------------------------------------------------------------------------------------------


def _train(
    recipe: Recipe,
    options: DisturbanceOptions,
    output: Path,
    of_category: Mapping[str, Sequence[Comparison]],
    tests: Sequence[Comparison],
    missing: "Sequence[tuple[int, Mixture]]",
    backbone: "Backbone",
    renderer: "Renderer",
    log: "RunLog",
) -> None:
    """Train the missing models, one after the other, on trunk states computed once; each leaves its rewards."""
    from dataclasses import replace

    from dmoerm.training.checkpoints import RunState
    from dmoerm.training.mixtures import budget, draw, train_mixture
    from dmoerm.training.pipeline import inner_plan, prepare

    everything = [c for own in of_category.values() for c in own]
    prepared = prepare([*everything, *tests], [], recipe, log, backbone=backbone, renderer=renderer, state=RunState(None))
    usable = {name: [c for c in own if c.id in prepared.work.rows.of_comparison] for name, own in of_category.items()}
    size = min(map(len, usable.values())) if options.sizes_equal else None
    plan = inner_plan(recipe, prepared)
    steps = options.steps
    if steps is None and options.equal == "steps":
        steps = budget(sum(map(len, usable.values())) if size is None else size, plan.task_settings).steps
    chosen = [(seed, mixture, draw(usable, mixture, size, seed)) for seed, mixture in missing]
    settings = [replace(plan.task_settings, steps=steps, seed=seed) for seed, _, _ in chosen]
    budgets = [budget(len(own), setting) for (_, _, own), setting in zip(chosen, settings, strict=True)]
    done, total = 0, sum(one.steps for one in budgets)
    shown = log.stepper("all models")
    for number, ((seed, mixture, own), setting, one) in enumerate(zip(chosen, settings, budgets, strict=True), start=1):
        rewards = train_mixture(prepared.work, own, tests, plan, setting, report=_after(shown, done, total))
        done += one.steps
        write_json(_path(output, seed, mixture), {"seed": seed, "trained_on": list(mixture.categories), **asdict(one), "rewards": rewards})
        log.say(
            f"{number} of {len(chosen)}: {mixture.name}, seed {seed}: {one.comparisons} comparisons, {one.steps} steps, "
            f"{one.passes:.1f} passes"
        )


def _after(report: Callable[[int, int], None], done: int, total: int) -> Callable[[int, int], None]:
    """The steps of one model as steps of all of them."""
    return lambda step, _: report(done + step, total)


# --- what is kept ---------------------------------------------------------------------------------------------------------------------


def _fields(recipe: Recipe, data: RunData, options: DisturbanceOptions, backbone: "Backbone", renderer: "Renderer") -> dict[str, Any]:
    """What the rewards depend on, field by field. Seeds and pairs are no part of it: more of them only add to what is there."""
    from dmoerm.training.pipeline import run_fingerprint

    found = run_fingerprint(recipe, data, backbone, renderer)
    kept = {name: value for name, value in found.items() if name.partition(".")[0] in DEPENDS_ON and name not in ROUTER_ONLY}
    return {**kept, "equal": options.equal, "steps": options.steps, "sizes_equal": options.sizes_equal}


def _take_folder(output: Path, fields: Mapping[str, Any], *, overwrite: bool) -> None:
    """Take the folder for this study.

    Raises:
        TrainingError: another study was begun there; the message lists the fields.
    """
    file = output / RUN_FILE
    now = json.loads(json.dumps(fields, default=str))
    if file.is_file() and not overwrite:
        try:
            then = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TrainingError(f"{file}: damaged ({error}). Begin anew with --overwrite, or take another --output.") from error
        changed = changed_fields(then, now)
        if changed:
            lines = "\n".join(f"  {name}: {json.dumps(old)} then, {json.dumps(new)} now" for name, (old, new) in changed.items())
            raise TrainingError(
                f"{output}: the study that was begun there differs from this one:\n{lines}\n"
                "Take the change back, take another --output, or begin anew with --overwrite, losing it."
            )
    elif output.is_dir() and any(output.iterdir()) and not file.is_file():
        raise TrainingError(f"{output} is not empty and holds no disturbance study; nothing was done. Take another --output.")
    if overwrite:
        shutil.rmtree(output / REWARDS, ignore_errors=True)
    write_json(file, now)


def _path(output: Path, seed: int, mixture: "Mixture") -> Path:
    """Where the rewards of one model are kept."""
    return output / REWARDS / f"seed-{seed}-{mixture.key}.json"


def _read(path: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """What one model left, or None where it has to be trained."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("comparisons", "steps", "passes", "rewards")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        say(f"{path}: damaged ({error}); this model is trained again")
        return None


# --- the study ------------------------------------------------------------------------------------------------------------------------


def _study(
    recipe: Recipe,
    options: DisturbanceOptions,
    output: Path,
    of_category: Mapping[str, Sequence[Comparison]],
    tests: Sequence[Comparison],
    mixtures: "Sequence[Mixture]",
    seeds: Sequence[int],
    left_out: Mapping[str, str],
) -> DisturbanceStudy:
    rows, scored = [], {}
    for mixture in mixtures:
        found = [json.loads(_path(output, seed, mixture).read_text(encoding="utf-8")) for seed in seeds]
        rows.append(Trained(mixture.name, mixture.categories, *(found[0][name] for name in ("comparisons", "steps", "passes"))))
        scored[mixture.name] = [[Scored(c, tuple(one["rewards"].get(c.id, [None] * len(c.responses)))) for c in tests] for one in found]
    answers, notes = baselines_beside([c for own in of_category.values() for c in own], tests, recipe.evaluation.baselines)
    rows += [Trained(name, ()) for name in answers]
    scored |= {name: [found] for name, found in answers.items()}
    return study_disturbance(
        rows,
        scored,
        seeds=seeds,
        equal=options.equal,
        size=rows[0].comparisons if options.sizes_equal else None,
        left_out=left_out,
        resampling=Resampling(recipe.seed, recipe.evaluation.bootstrap_samples, recipe.evaluation.confidence),
        meta={"recipe": recipe_hash(recipe), "split seed": recipe.seed, "learning rate": recipe.task_model.learning_rate, **notes},
    )
