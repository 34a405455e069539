"""The recipe: everything a run depends on, one section per stage, values only.

`load_recipe` reads it strictly: an unknown key, a value out of range, an impossible pair of values or a missing file stops before any
model is loaded. Defaults and descriptions stand here and nowhere else; `dmoerm init` and docs/recipe.md are made from them.
A recipe holds no code and no dotted names, and nothing of it is changed after loading.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dmoerm.errors import ConfigError
from dmoerm.locations import absolute_location, is_hub, parse_hub
from dmoerm.records import OVERALL
from dmoerm.taxonomy import Taxonomy, load_taxonomy, paper_taxonomy
from dmoerm.validation import Section, did_you_mean, validate
from dmoerm.yaml_strict import KeyPath, YamlDocument, dump_yaml, inline_yaml, parse_yaml, read_yaml

__all__ = [
    "PAPER_SCHEDULE",
    "AggregatorOptions",
    "BackboneOptions",
    "DataOptions",
    "EvaluationOptions",
    "ExpertOptions",
    "LabelingOptions",
    "Recipe",
    "RouterOptions",
    "TaskModelOptions",
    "TrainingOptions",
    "dump_recipe",
    "load_recipe",
    "recipe_hash",
    "recipe_taxonomy",
    "run_folder",
]

Count = Annotated[int, Field(ge=1)]
LearningRate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]

PAPER_SCHEDULE: Mapping[str, Mapping[str, Any]] = {
    "backbone": {"layers": "all"},
    "task_model": {"kind": "full", "depth": "all", "fit_head": False},
    "experts": {"depth": "all", "rank": 32, "alpha": 32, "dropout": 0.05, "fit_heads": False},
    "aggregator": {"cross_fit_folds": None, "holdout_fraction": 0.4, "hidden_size": "hidden"},
}
"""What `schedule: paper` sets (arXiv 2403.01197): 60 % of the comparisons for phase 1, 40 % for phase 3, full fine-tuning, rank 32."""


Depth = Literal["all", "third", "sixth"]


def top_layers(depth: int | str, total: int) -> int:
    """How many of `total` layers a `depth` means, counted from the top: a number, or a share (rounded, at least one)."""
    shares = {"all": 1, "third": 3, "sixth": 6}
    return max(1, round(total / shares[depth])) if isinstance(depth, str) else depth


MEASURED_LAYERS: Mapping[str, int] = {"sentence-transformers/all-MiniLM-L6-v2": 3}
"""Backbones whose lower layers order responses better than all of them together, and how many to keep (benchmarks/layer_probe.py)."""


class BackboneOptions(Section):
    """The pretrained model under everything."""

    name: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        min_length=1,
        description="Hub id of an encoder or decoder, or a folder: an absolute path, or one that starts with ./ or ../ (from the recipe).",
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub; null takes the newest and records its commit.")
    layers: Count | Literal["auto", "all"] = Field(
        "auto",
        description="How many of its layers are used, counted from the embeddings; vectors are read behind the last of them. "
        "auto: those of a backbone whose middle layers were measured to tell more (docs/results.md), all of any other.",
    )
    max_length_tokens: Annotated[int, Field(ge=8)] = Field(256, description="Token budget for prompt and response together.")
    pooling: Literal["auto", "mean", "spread", "last", "first"] = Field(
        "auto", description="Where the vector of a text is read; auto: the mean over the tokens of an encoder, the last token of a decoder."
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="Attention implementation; auto: sdpa, which was as fast or up to five times faster wherever measured."
    )
    target_modules: Literal["auto"] | tuple[str, ...] = Field(
        "auto", description="Names of the linear layers that carry task adapters and experts; auto: the query and value projections."
    )

    def used_layers(self) -> int | None:
        """The number of layers to keep; None keeps all."""
        if self.layers == "auto":
            return MEASURED_LAYERS.get(self.name)
        return None if self.layers == "all" else self.layers


FormatName = Literal[
    "native",
    "pairs",
    "judgements",
    "ultrafeedback",
    "helpsteer2",
    "helpsteer2_preference",
    "helpsteer3",
    "reward_bench_2",
    "reward_bench",
    "rm_bench",
    "judge_bench",
    "arena",
    "llama_factory_alpaca",
    "llama_factory_sharegpt",
    "ms_swift",
    "mtmc",
    "hh",
    "trl",
]
"""The keys of `dmoerm.data.readers.FORMATS`; a test compares the two."""


class DataOptions(Section):
    """The files to learn from: relative paths from the folder of the recipe, or `hub:ORG/NAME@REVISION:CONFIG:SPLIT` (docs/data.md)."""

    comparisons: tuple[Path, ...] = Field(
        min_length=1,
        examples=[["comparisons.jsonl"]],
        description="Files with prompts and ranked responses; capability labels may stand in the same rows.",
    )
    labels: tuple[Path, ...] = Field((), description="Files of which only the capability labels are used, never the overall preference.")
    prompts: tuple[Path, ...] = Field((), description="Files with prompt and category, for the router only.")
    test: tuple[Path, ...] = Field((), description="Files to test on, once, at the end; empty: test_fraction of the prompts is held out.")
    test_fraction: Fraction = Field(
        0.2, description="Share of the prompts held out for the test, chosen by prompt hash; used where test is empty."
    )
    formats: dict[str, FormatName] = Field(
        {}, description="The format of a file, under its name as it is listed above; the others are recognised by their keys."
    )
    aspects: dict[str, str | None] = Field(
        {},
        description="The capability to which a rated or labelled aspect counts, for example honesty: objectiveness; null: to none. "
        "An aspect that is not listed counts to the capability of the same name, if there is one.",
    )
    rank_order: Literal["smaller_is_better", "larger_is_better"] = Field(
        "smaller_is_better", description="Which end of the ranks is better in files of mtmc-rlhf, whose own code reads them both ways."
    )
    bad_rows: Literal["stop", "skip"] = Field("stop", description="On a row that cannot be used: stop, or skip it and report the count.")
    max_drop_fraction: Fraction = Field(0.01, description="Stop when more than this share of the rows was bad or could not be rendered.")
    allow_overlap: bool = Field(False, description="Go on although prompts of the test files are in the training files.")


class LabelingOptions(Section):
    """Capability labels from an LLM behind an OpenAI-compatible endpoint: `dmoerm label`, docs/labeling.md."""

    base_url: str = Field(
        "https://api.openai.com/v1", min_length=1, description="The endpoint, with /v1: hosted, or your own vLLM, Ollama, gateway."
    )
    model: str | None = Field(None, description="The judge, by the endpoint's name for it; null: this recipe labels nothing.")
    api_key_env: str | None = Field(
        "OPENAI_API_KEY", description="Environment variable that holds the key; null: the endpoint takes none. The key is never stored."
    )
    calls: Literal["one_capability", "all_capabilities"] = Field(
        "one_capability",
        description="one_capability: a call for each capability of a pair (the paper); all_capabilities: one call for all of them, about a "
        "fifth of the cost, with more halo.",
    )
    overall: bool = Field(True, description="Ask for the overall preference as well: the halo is measured against it.")
    reason: bool = Field(False, description="Let the judge write one sentence before its verdict; costs output tokens.")
    soft: bool = Field(
        False, description="Ask for log-probabilities, and weigh each label by the judge's own probability; not every endpoint has them."
    )
    template: Path | None = Field(None, description="A YAML file with the texts of the question; null: the packaged one.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        0.0, description="Sampling temperature; null leaves it out, as some reasoning models want."
    )
    max_tokens: Count = Field(256, description="Limit of a reply in tokens; models that think before they answer need thousands.")
    response_format: Literal["json_object", "none"] = Field(
        "json_object", description="A hint for the endpoint, dropped where it is not understood; the reply is parsed strictly in any case."
    )
    request: dict[str, Any] = Field(
        {}, description="Further fields of each request, by the endpoint's names, for example reasoning_effort: low."
    )
    pairs_per_comparison: Count = Field(
        3, description="Pairs asked of a comparison with more than two responses: neighbours by rank first, so that every response is seen."
    )
    comparisons_per_category: Count | None = Field(
        None, description="Comparisons asked of each category, drawn by prompt hash; null: all. A larger number only adds to the draw."
    )
    test_too: bool = Field(False, description="Label the held-out comparisons, too: to measure experts on them, never to train.")
    canaries: bool = Field(
        True,
        description="Ask first about packaged pairs with a known winner, plain and with an injected instruction: tells a judge that fails.",
    )
    store: Path = Field(Path("labels.db"), description="Where raw replies, usage and verdicts are kept; from the folder of the recipe.")
    output: Path = Field(
        Path("labels.jsonl"), description="The labels for training, written after each run; where it exists, dmoerm train reads it."
    )
    categories: Path = Field(
        Path("categories.jsonl"),
        description="Categories of prompts, written by `dmoerm label categories`; where it exists, it counts as one of data.prompts.",
    )
    max_in_flight: Count = Field(32, description="Requests under way at once, at most; fewer while the endpoint says it is too much.")
    timeout_s: Annotated[float, Field(gt=0)] = Field(120.0, description="Seconds for one request, from its start to the last byte.")
    max_attempts: Count = Field(3, description="Tries of a question whose reply cannot be used, over all runs.")
    max_retry_after_s: NotNegative = Field(
        120.0, description="Longest wait in seconds that the endpoint may ask for; beyond it the run pauses (exit code 75)."
    )
    input_price: NotNegative | None = Field(None, description="US dollars a million input tokens; null: the packaged table, if it knows.")
    output_price: NotNegative | None = Field(None, description="US dollars a million output tokens; null: the packaged table.")


class RouterOptions(Section):
    """The outer layer: from the prompt to a category."""

    features: Literal["frozen", "finetuned"] = Field(
        "frozen", description="frozen: a classifier on the backbone's own vectors; finetuned: a copy of the backbone is trained as well."
    )
    general_below: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="Where the best category is less probable than this, the fallback inner model (general) judges."
    )
    learning_rate: LearningRate = Field(5e-5, description="Peak learning rate; finetuned only.")
    epochs: Count = Field(3, description="Passes over the prompts; finetuned only.")


class TaskModelOptions(Section):
    """Phase 1: the backbone learns the comparisons of one category."""

    kind: Literal["lora", "full"] = Field(
        "lora", description="lora: an adapter per category over one shared backbone; full: all weights, one copy per category (the paper)."
    )
    depth: Count | Depth = Field(
        "third",
        description="In how many of the top layers the task adapters sit; below, one frozen trunk serves every category and fold. "
        "all: the paper; third, sixth: that share of them.",
    )
    rank: Count = Field(64, description="Rank of the LoRA; kind lora only.")
    alpha: Annotated[float, Field(gt=0)] = Field(
        64.0, description="Scale of the LoRA: its product is multiplied by alpha / rank; kind lora only."
    )
    dropout: Fraction = Field(0.05, description="Dropout before the LoRA; kind lora only.")
    learning_rate: LearningRate = Field(1e-3, description="Peak learning rate.")
    epochs: Count = Field(2, description="Passes over the comparisons at most; inner folds may stop earlier.")
    comparisons_per_batch: Count = Field(16, description="Comparisons per step and device; all responses of a comparison stay together.")
    weight_decay: NotNegative = Field(0.01, description="Decoupled weight decay (AdamW).")
    warmup_fraction: Fraction = Field(
        0.1, description="Share of the steps over which the learning rate rises, rounded down to whole steps."
    )
    gradient_accumulation_steps: Count = Field(1, description="Batches whose gradients are added up before one step.")
    fit_head: bool = Field(
        True, description="Start from a head fitted on the frozen vectors (linear probing before fine-tuning) instead of a random one."
    )
    use_margin: bool = Field(
        False,
        description="Ask of each pair the margin that its file states (TRL's `margin`, reward units): −log σ(r_w − r_l − margin); a pair "
        "without one is asked for 0.",
    )
    minimum_comparisons: Count = Field(
        20, description="A category with fewer comparisons gets no inner model of its own; the fallback (general) judges it."
    )


class ExpertOptions(Section):
    """Phase 2: one LoRA per capability on top of the task model, all of a category in the same pass."""

    depth: Count | Depth = Field(
        "sixth",
        description="In how many of the top layers the experts differ; below, they share one pass. "
        "all: the paper; third, sixth: that share of them.",
    )
    rank: Count = Field(32, description="Rank of each LoRA.")
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="Scale of each LoRA: its product is multiplied by alpha / rank.")
    dropout: Fraction = Field(0.05, description="Dropout before each LoRA.")
    learning_rate: LearningRate = Field(1e-3, description="Peak learning rate.")
    epochs: Count = Field(2, description="Passes over the labelled comparisons at most; inner folds may stop earlier.")
    comparisons_per_batch: Count = Field(16, description="Comparisons per step and device.")
    weight_decay: NotNegative = Field(0.0, description="Decoupled weight decay (AdamW).")
    warmup_fraction: Fraction = Field(
        0.1, description="Share of the steps over which the learning rate rises, rounded down to whole steps."
    )
    fit_heads: bool = Field(
        True, description="Start each expert's head from the task model's head refitted to its labels; false: a plain copy (the paper)."
    )
    with_task_model: bool = Field(False, description="The task model itself is one more member beside its experts.")
    minimum_labels: Count = Field(20, description="A capability with fewer labels that prefer one response gets no expert.")


class AggregatorOptions(Section):
    """Phase 3: from the vectors of the frozen experts to one reward."""

    hidden_size: Count | Literal["hidden"] = Field(32, description="Width of the MLP; hidden: that of the backbone (the paper).")
    learning_rate: LearningRate = Field(1e-3, description="Learning rate.")
    weight_decay: NotNegative = Field(1.0, description="Pull towards the start, which is the mean of the standardised expert rewards.")
    epochs: Count = Field(50, description="Passes over the cached vectors at most.")
    cross_fit_folds: Annotated[int, Field(ge=2)] | None = Field(
        2, description="Parts by which every comparison gets vectors from experts that have not seen it; null: one split (the paper)."
    )
    holdout_fraction: Share = Field(
        0.4, description="Share of the comparisons kept from phase 1 for phase 3; used where cross_fit_folds is null."
    )
    members: Annotated[int, Field(ge=2)] = Field(5, description="Bootstrapped aggregators; their spread is the uncertainty of a reward.")
    default: Literal["mlp", "mean", "wco", "uwo"] = Field(
        "mlp",
        description="How a saved model aggregates unless asked otherwise; wco: the worst expert; uwo: the mean less a penalty on variance.",
    )
    uwo_penalty: NotNegative = Field(0.5, description="Weight of the variance over experts in uwo.")


class TrainingOptions(Section):
    """What all phases share: the machine and the trackers."""

    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="Number format; auto: bf16 where the device computes in it.")
    device: str = Field("auto", min_length=1, description="Where to run: auto, cpu, cuda, cuda:1, mps.")
    trunk_cache_mib: Annotated[int, Field(ge=0)] = Field(
        4096, description="Memory in MiB for hidden states of the frozen layers, kept over epochs; 0: compute them anew."
    )
    sampled_positions: Count | None = Field(
        32,
        description="With mean pooling, at how many positions of a row, drawn anew in every step, the top layer is computed in training; "
        "null: at all of them. Scoring takes the mean over all.",
    )
    share_heads: bool = Field(
        True,
        description="Fit the first heads of a category near what the experts of all categories agree on (task_model.fit_head, "
        "experts.fit_heads); false: each category stands alone.",
    )
    checkpoint_steps: Annotated[int, Field(ge=0)] = Field(
        200, description="Optimizer steps between two stored states within an epoch, from which --resume goes on; 0: at the ends of epochs."
    )
    report_to: tuple[str, ...] = Field(
        (), description="Trackers by the names that transformers uses, for example tensorboard; their packages must be there."
    )
    gradient_checkpointing: bool = Field(False, description="Compute activations again in the backward pass: less memory, more time.")


class EvaluationOptions(Section):
    """How the numbers at the end are made."""

    bootstrap_samples: Annotated[int, Field(ge=100)] = Field(2000, description="Resamples of the prompts behind an interval.")
    confidence: Share = Field(0.95, description="Coverage of the intervals.")
    baselines: tuple[Literal["random", "length", "bag_of_words", "author_prior"], ...] = Field(
        ("random", "length", "bag_of_words", "author_prior"), description="What is measured beside the model, without a backbone."
    )


class Recipe(Section):
    """One run, from files to a saved and measured model."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="The one seed; same seed and machine, same result.")
    schedule: Literal["crossfit", "paper"] = Field(
        "crossfit", description="crossfit: our phases on cross-fitted folds; paper: the phases and sizes of arXiv 2403.01197."
    )
    taxonomy: Annotated[Literal["paper"] | Path, Field(union_mode="left_to_right")] = Field(
        "paper",
        examples=["taxonomy.yaml"],
        description="A file with categories and capabilities; paper: those of arXiv 2403.01197.",
    )
    output: Path = Field(Path("model"), description="The folder for the model and its reports, from the folder of the recipe.")
    backbone: BackboneOptions = Field(default_factory=BackboneOptions)
    data: DataOptions = Field(description="the section that names the files to learn from")
    labeling: LabelingOptions = Field(default_factory=LabelingOptions)
    router: RouterOptions = Field(default_factory=RouterOptions)
    task_model: TaskModelOptions = Field(default_factory=TaskModelOptions)
    experts: ExpertOptions = Field(default_factory=ExpertOptions)
    aggregator: AggregatorOptions = Field(default_factory=AggregatorOptions)
    training: TrainingOptions = Field(default_factory=TrainingOptions)
    evaluation: EvaluationOptions = Field(default_factory=EvaluationOptions)

    @property
    def prompt_files(self) -> tuple[Path, ...]:
        """Files of prompts with a category: `data.prompts`, and what `dmoerm label categories` has written."""
        written = (self.labeling.categories,) if self.labeling.model is not None and self.labeling.categories.is_file() else ()
        return (*self.data.prompts, *(path for path in written if path not in self.data.prompts))

    @property
    def label_files(self) -> tuple[Path, ...]:
        """Files of which only the capability labels are used: `data.labels`, and what `dmoerm label` has written."""
        written = (self.labeling.output,) if self.labeling.model is not None and self.labeling.output.is_file() else ()
        return (*self.data.labels, *(path for path in written if path not in self.data.labels))

    @model_validator(mode="after")
    def _paper_means_paper(self) -> "Recipe":
        # For recipes built in Python: `load_recipe` fills these values in, or refuses with the line.
        if self.schedule == "paper":
            for section, key, value in _paper_values():
                if getattr(getattr(self, section), key) != value:
                    raise ValueError(f"schedule paper needs {section}.{key}: {inline_yaml(value)} (all such values: PAPER_SCHEDULE)")
        return self


def load_recipe(path: Path | str, overrides: Sequence[str] = (), *, check_files: bool = True) -> Recipe:
    """Read, complete and check a recipe.

    Args:
        path: the YAML file.
        overrides: texts "section.key=value" that replace or add a value, as after `--set`; the value is YAML.
        check_files: refuse when a data file, the taxonomy file or a local backbone is missing; False for a recipe still to be filled in.

    Returns:
        The recipe with absolute paths; relative ones, those of overrides included, start at the recipe's folder.

    Raises:
        ConfigError: one line for each problem with file, line, what came and what was expected.
    """
    document = _with_schedule(_with_overrides(read_yaml(Path(path)), overrides))
    written = validate(Recipe, document)
    recipe = _anchored(written, Path(path).absolute().parent)
    problems = [*_malformed_names(recipe, document), *_repeated_files(recipe, document), *_unlisted_formats(written, document)]
    if check_files and not problems:
        problems += _missing_files(recipe, document)
    if problems:
        raise ConfigError("\n".join(problems))
    if check_files:
        unknown = list(_unknown_capabilities(recipe, document, recipe_taxonomy(recipe)))
        if unknown:
            raise ConfigError("\n".join(unknown))
    return recipe


def recipe_taxonomy(recipe: Recipe) -> Taxonomy:
    """The categories and capabilities that a recipe names.

    Raises:
        ConfigError: its taxonomy file is missing or wrong.
    """
    return paper_taxonomy() if recipe.taxonomy == "paper" else load_taxonomy(Path(recipe.taxonomy))


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every value written out, as YAML that `load_recipe` reads back to an equal recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))


def recipe_hash(recipe: Recipe) -> str:
    """12 hex digits over all values but the output folder and the section `labeling`, whose labels count as data.

    Data files count by their absolute path, not by their content: a moved folder changes the hash.
    """
    values = json.dumps(recipe.model_dump(mode="json", exclude={"output", "labeling"}), sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()[:12]


def run_folder(output: Path) -> Path:
    """Where the run that wrote the model at `output` keeps its resolved recipe, its metrics, its checkpoints and its evaluation."""
    return output.with_name(f"{output.name}-run")


def _paper_values() -> Iterator[tuple[str, str, Any]]:
    for section, values in PAPER_SCHEDULE.items():
        for key, value in values.items():
            yield section, key, value


def _with_overrides(document: YamlDocument, overrides: Sequence[str]) -> YamlDocument:
    values = {} if document.value is None else document.value
    if overrides and not isinstance(values, dict):
        return document  # refused with a better message when it is validated
    places = dict(document.places)
    for override in overrides:
        flag = f"--set {override}"
        key, equals, text = override.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            raise ConfigError(f'{flag}: expected section.key=value, for example "experts.learning_rate=5e-5"')
        values = _replaced(values, path, parse_yaml(text, flag).value, flag)
        places[path] = flag
    return YamlDocument(document.name, values, places)


def _replaced(values: Any, path: KeyPath, value: Any, flag: str) -> Any:
    """A copy of `values` with `value` at `path`."""
    if not path:
        return value
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{flag}: there is no key below {inline_yaml(values)}; expected section.key=value")
    inner = {} if values is None else values
    return {**inner, path[0]: _replaced(inner.get(path[0]), path[1:], value, flag)}


def _with_schedule(document: YamlDocument) -> YamlDocument:
    values = document.value
    if not isinstance(values, dict) or values.get("schedule") != "paper":
        return document
    for section, key, value in _paper_values():
        given = values.get(section)
        if given is not None and not isinstance(given, dict):
            return document  # refused with a better message when it is validated
        if given is not None and key in given and given[key] != value:
            raise ConfigError(
                f"{document.where((section, key))}: {section}.{key} is {inline_yaml(given[key])}, but schedule paper means "
                f"{inline_yaml(value)}. Take away this line, or write schedule: crossfit"
            )
        values = {**values, section: {**(given or {}), key: value}}
    return YamlDocument(document.name, values, document.places)


_FILE_LISTS = ("comparisons", "labels", "prompts", "test")


def _anchored(recipe: Recipe, folder: Path) -> Recipe:
    """The same recipe with absolute paths."""

    def absolute(path: Path) -> Path:
        return absolute_location(path, folder)

    lists: dict[str, Any] = {key: tuple(map(absolute, getattr(recipe.data, key))) for key in _FILE_LISTS}
    formats = {str(absolute(Path(name))): format for name, format in recipe.data.formats.items()}
    data = recipe.data.model_copy(update={**lists, "formats": formats})
    backbone = recipe.backbone
    if _is_folder(backbone.name):
        backbone = backbone.model_copy(update={"name": str(absolute(Path(backbone.name)))})
    taxonomy = recipe.taxonomy if recipe.taxonomy == "paper" else absolute(Path(recipe.taxonomy))
    labeling = recipe.labeling.model_copy(
        update={
            "store": absolute(recipe.labeling.store),
            "output": absolute(recipe.labeling.output),
            "categories": absolute(recipe.labeling.categories),
            "template": None if recipe.labeling.template is None else absolute(recipe.labeling.template),
        }
    )
    return recipe.model_copy(
        update={"output": absolute(recipe.output), "taxonomy": taxonomy, "data": data, "labeling": labeling, "backbone": backbone}
    )


def _is_folder(backbone: str) -> bool:
    return backbone.startswith(("./", "../", "~")) or Path(backbone).is_absolute()


def _missing_files(recipe: Recipe, document: YamlDocument) -> Iterator[str]:
    for key in _FILE_LISTS:
        for index, file in enumerate(getattr(recipe.data, key)):
            if is_hub(file):
                name = parse_hub(file)
                if name.local and not Path(name.repository).is_dir():
                    where = document.where(("data", key, index))
                    yield f"{where}: data.{key} names {name.repository}, which is not a folder. Correct the path"
            elif not file.is_file():
                yield f"{document.where(('data', key, index))}: data.{key} names {file}, which is not a file. Correct the path"
    if recipe.taxonomy != "paper" and not Path(recipe.taxonomy).is_file():
        yield f"{document.where(('taxonomy',))}: taxonomy names {recipe.taxonomy}, which is not a file; expected a file, or paper"
    if recipe.labeling.template is not None and not recipe.labeling.template.is_file():
        yield f"{document.where(('labeling', 'template'))}: labeling.template names {recipe.labeling.template}, which is not a file"
    if _is_folder(recipe.backbone.name) and not Path(recipe.backbone.name).is_dir():
        yield f"{document.where(('backbone', 'name'))}: backbone.name is {recipe.backbone.name}, which is not a folder"


def _malformed_names(recipe: Recipe, document: YamlDocument) -> Iterator[str]:
    for key in _FILE_LISTS:
        for index, file in enumerate(getattr(recipe.data, key)):
            if is_hub(file):
                try:
                    parse_hub(file)
                except ConfigError as error:
                    yield f"{document.where(('data', key, index))}: {error}"


def _unlisted_formats(recipe: Recipe, document: YamlDocument) -> Iterator[str]:
    listed = {str(file) for key in ("comparisons", "labels", "test") for file in getattr(recipe.data, key)}
    for name in recipe.data.formats:
        if str(Path(name)) not in listed:
            where = document.where(("data", "formats", name))
            near = did_you_mean(name, sorted(listed))
            yield f"{where}: data.formats names {name}, which is in none of data.comparisons, data.labels and data.test{near}"


def _unknown_capabilities(recipe: Recipe, document: YamlDocument, taxonomy: Taxonomy) -> Iterator[str]:
    for aspect, capability in recipe.data.aspects.items():
        where = document.where(("data", "aspects", aspect))
        if aspect == OVERALL:
            yield f'{where}: data.aspects maps "{OVERALL}", which is the verdict on the whole response and no aspect. Take it away'
        if capability is not None and capability not in taxonomy.capability_names:
            near = did_you_mean(capability, taxonomy.capability_names)
            yield f'{where}: data.aspects maps "{aspect}" to "{capability}", which is no capability of the taxonomy{near}'


def _repeated_files(recipe: Recipe, document: YamlDocument) -> Iterator[str]:
    for key in _FILE_LISTS:
        files = getattr(recipe.data, key)
        for index, file in enumerate(files):
            if file in files[:index]:
                yield f"{document.where(('data', key, index))}: data.{key} names {file} twice; expected each file once"
    for index, file in enumerate(recipe.data.test):
        if file in recipe.data.comparisons and not recipe.data.allow_overlap:
            yield (
                f"{document.where(('data', 'test', index))}: {file} is in data.test and in data.comparisons; a test needs unseen rows. "
                "Name other files, or leave data.test empty to hold out data.test_fraction of the prompts"
            )
