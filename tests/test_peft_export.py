"""Experts written for PEFT: stock `peft` on a stock sequence classifier gives this model's own scalars, padded or not, in any order."""

import json
import re
import shlex

import pytest
import torch
from conftest import build_tokenizer
from make_artifact_fixture import random_model, tiny_backbone
from safetensors.torch import load_file

from dmoerm.cli import main as cli
from dmoerm.data.rendering import collate
from dmoerm.errors import ArtifactError, ConfigError
from dmoerm.modeling.peft_export import export_peft
from dmoerm.modeling.peft_readme import vllm_rank
from dmoerm.modeling.reward_model import RewardModel, as_messages
from dmoerm.taxonomy import TASK_MEMBER

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT on transformers 5.24

PROMPT = "explain the river and the bank"
RESPONSES = ["a clear answer about water", "no", "because the big bird can build a bridge . " * 3]


def stock(source, export, adapter):
    """What a user of PEFT does, without dmoerm."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(export / adapter.base)
    base = AutoModelForSequenceClassification.from_pretrained(source, config=config, dtype=torch.float32)
    return (base if adapter.folder is None else peft.PeftModel.from_pretrained(base, export / adapter.folder)).eval()


def expected(model, category, capability):
    """r of each response: this model's head on this model's vector, by its general path and not the one that exports compare with."""
    backbone = model.own_backbones.get(category, model.backbone)
    inner = model.inner[category]
    rows = model.renderer.render(as_messages(PROMPT), RESPONSES)
    batch = collate(rows, model.renderer.tokenizer.pad_token_id)
    task = None if category in model.own_backbones else category
    is_task = capability == TASK_MEMBER
    with torch.no_grad():
        vectors = backbone.pooled(batch, task=task, experts=None if is_task else category, shortcut=False)
    return (vectors[:, 0] @ inner.task_head_D if is_task else inner.scalars(vectors)[:, inner.members.index(capability)]).tolist()


def batches(model):
    """The same rows in one batch padded right, padded left, and each alone."""
    rows = [torch.tensor(row.input_ids) for row in model.renderer.render(as_messages(PROMPT), RESPONSES)]
    length = max(map(len, rows))
    pad = model.renderer.tokenizer.pad_token_id
    for side in ("right", "left"):
        ids = torch.full((len(rows), length), pad)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
            ids[index, place], mask[index, place] = row, 1
        yield [{"input_ids": ids, "attention_mask": mask}]
    yield [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in rows]


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(family, tmp_path_factory):
    return tiny_backbone(tmp_path_factory.mktemp(family) / "backbone", family, num_hidden_layers=3)


@pytest.fixture(scope="module", params=[(3, 1), (1, 2), (2, 2)], ids=["task-deeper", "expert-deeper", "equal"])
def model(request, backbone):
    task_depth, expert_depth = request.param
    return random_model(str(backbone), task_depth=task_depth, expert_depth=expert_depth)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export_peft(model, tmp_path_factory.mktemp("export") / "out")


def test_stock_peft_gives_equal_rewards_padded_either_way_and_alone(model, backbone, exported):
    judges = {(a.category, a.capability) for a in exported.adapters}
    assert judges == {
        *(("objective_qa", name) for name in ("task_model", "correctness", "logic")),
        ("chitchat", "task_model"),
        *(("general", name) for name in ("task_model", "correctness", "empathy")),
    }
    for adapter in exported.adapters:
        source = backbone if adapter.base == "base" else exported.folder / adapter.base
        judge = stock(source, exported.folder, adapter)
        wanted = expected(model, adapter.category, adapter.capability)
        assert max(wanted) - min(wanted) > 1e-3  # texts differ, so equal rewards mean something
        for batch in batches(model):
            with torch.no_grad():
                found = [value for part in batch for value in judge(**part).logits[:, 0].tolist()]
            assert found == pytest.approx(wanted, abs=1e-5), adapter


def test_the_table_of_the_export_turns_r_into_the_capability_that_the_model_reports(model, exported):
    for adapter in exported.adapters:
        if adapter.capability == TASK_MEMBER:
            continue
        reported = [r.capabilities[adapter.capability] for r in model.score(PROMPT, RESPONSES, category=adapter.category)]
        found = [(r - adapter.mean) / adapter.std for r in expected(model, adapter.category, adapter.capability)]
        assert found == pytest.approx(reported, abs=1e-5)


def test_every_layer_of_an_adapter_has_the_summed_rank_and_nothing_else_is_in_it(exported):
    for adapter in exported.adapters:
        if adapter.folder is None:
            continue
        tensors = load_file(exported.folder / adapter.folder / "adapter_model.safetensors")
        config = json.loads((exported.folder / adapter.folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert adapter.rank == (4 if adapter.capability == TASK_MEMBER else 4 + 2)
        assert (config["r"], config["lora_alpha"]) == (adapter.rank, adapter.rank)
        assert config["task_type"] == "SEQ_CLS"
        assert config["modules_to_save"] == ["score"]
        assert tensors.pop("base_model.model.score.weight").shape == (1, 16)
        assert {tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name} == {adapter.rank}
        assert {tensor.shape[1] for name, tensor in tensors.items() if ".lora_B." in name} == {adapter.rank}
        assert len(tensors) == 2 * 2 * len(config["layers_to_transform"])


def test_the_base_is_a_regressor_with_one_label_and_a_padding_token_of_its_own(exported):
    config = json.loads((exported.folder / "base" / "config.json").read_text(encoding="utf-8"))
    assert re.fullmatch(r"(Qwen3|Llama)ForSequenceClassification", config["architectures"][0])
    assert (config["problem_type"], len(config["id2label"]), config["pad_token_id"]) == ("regression", 1, 0)
    assert config["pad_token_id"] != config["eos_token_id"]
    assert not (exported.folder / "base" / "model.safetensors").exists()


def test_the_export_reports_what_it_compared(exported):
    assert exported.largest_difference < 1e-5
    assert (exported.texts, exported.texts_differing) == (7, 0)
    stored = json.loads((exported.folder / "dmoerm_export.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(exported.as_dict()))


def run_readme(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("with_base", [False, True])
def test_the_code_of_its_readme_runs_and_gives_the_models_own_scalars(model, tmp_path, monkeypatch, capsys, with_base):
    export = export_peft(model, tmp_path / "out", categories=["general"], with_base=with_base)
    found = run_readme(export.folder, monkeypatch, capsys)
    rows = model.renderer.render(as_messages("Write a haiku about rain."), ["Rain taps the window", "No."])
    with torch.no_grad():
        vectors = model.backbone.pooled(collate(rows, 0), task="general")[:, 0]
        assert found == pytest.approx((vectors @ model.inner["general"].task_head_D).tolist(), abs=1e-5)


def test_a_written_base_without_an_adapter_gives_zero(model, tmp_path):
    from transformers import AutoModelForSequenceClassification

    export = export_peft(model, tmp_path / "out", with_base=True, check=False)
    base = AutoModelForSequenceClassification.from_pretrained(export.folder / "base").eval()
    with torch.no_grad():
        assert base(input_ids=torch.tensor([[5, 6, 7]])).logits.tolist() == [[0.0]]
    assert export.largest_difference is None


def test_exporting_twice_gives_the_same_bytes(model, tmp_path):
    def contents(name):
        folder = export_peft(model, tmp_path / name, with_base=True).folder
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert contents("first") == contents("second")


def test_several_adapters_of_one_base_serve_one_batch(model, backbone, exported):
    """PEFT's adapter_names: one base in memory, each row judged by another expert with its own head."""
    chosen = [a for a in exported.adapters if a.category == "general"]
    judge = stock(backbone, exported.folder, chosen[0])
    for adapter in chosen[1:]:
        judge.load_adapter(exported.folder / adapter.folder, adapter_name=adapter.capability)
    names = ["default", *(a.capability for a in chosen[1:])]
    (batch,) = next(batches(model))
    with torch.no_grad():
        for name, adapter in zip(names, chosen, strict=True):
            judge.set_adapter(name)
            assert judge(**batch).logits[:, 0].tolist() == pytest.approx(expected(model, "general", adapter.capability), abs=1e-5)
        mixed = judge(**batch, adapter_names=names).logits[:, 0].tolist()
    assert mixed == pytest.approx([expected(model, "general", a.capability)[row] for row, a in enumerate(chosen)], abs=1e-5)


def test_the_task_adapters_folder_inside_a_model_is_loadable_as_it_is(saved, backbone):
    """And an expert's folder is too, but it is only what phase 2 added: its r needs the task adapter below it, hence the export."""
    from transformers import AutoModelForSequenceClassification

    model = RewardModel.from_pretrained(saved)
    (batch,) = next(batches(model))
    for folder, capability, equal in (("task_adapter", TASK_MEMBER, True), ("experts/empathy", "empathy", False)):
        base = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1, dtype=torch.float32)
        judge = peft.PeftModel.from_pretrained(base, saved / "categories" / "general" / folder).eval()
        with torch.no_grad():
            found = judge(**batch).logits[:, 0].tolist()
        assert (found == pytest.approx(expected(model, "general", capability), abs=1e-5)) is equal


# --- what is refused ------------------------------------------------------------------------------------------------------------------


def test_an_encoder_is_refused_and_told_what_is_possible(tiny_encoder_folder, tmp_path):
    model = random_model(str(tiny_encoder_folder), full=False)
    with pytest.raises(ConfigError, match=r"pools by 'mean'; .* last token\. Use it through RewardModel.*backbone\.pooling: last"):
        export_peft(model, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_an_encoder_pooled_at_its_last_token_is_refused_too(tiny_encoder_folder, tmp_path):
    model = random_model(str(tiny_encoder_folder), full=False, pooling="last")
    with pytest.raises(ConfigError, match=r"BertForSequenceClassification is not this backbone with a linear head without bias"):
        export_peft(model, tmp_path / "out")


def test_a_decoder_with_another_pooling_is_refused(backbone, tmp_path):
    with pytest.raises(ConfigError, match=r"pools by 'spread'"):
        export_peft(random_model(str(backbone), pooling="spread"), tmp_path / "out")


@pytest.mark.parametrize("pad", ["<|im_end|>", None])
def test_a_padding_token_that_is_the_end_token_is_refused(backbone, tmp_path, pad):
    model = random_model(str(backbone), full=False)
    model.renderer.tokenizer.pad_token = pad
    with pytest.raises(ConfigError, match=r"the padding token has id (3|None), the end token 3"):
        export_peft(model, tmp_path / "out")


def test_a_row_that_ends_with_the_padding_token_is_refused(tmp_path):
    folder = tiny_backbone(tmp_path / "backbone")
    tokenizer = build_tokenizer(chat=True, words=[])
    model = random_model(str(folder), full=False)
    model.renderer.tokenizer.chat_template = tokenizer.chat_template.replace("'<|im_end|>'", "'<|im_end|>[PAD]'")
    model.renderer._template = model.renderer.tokenizer.chat_template
    with pytest.raises(ConfigError, match=r"ends with the padding token"):
        export_peft(model, tmp_path / "out")


def test_an_unknown_category_and_a_taken_folder_are_refused(model, tmp_path):
    with pytest.raises(ConfigError, match=r"category 'poetry' has no inner model here; choose from objective_qa, chitchat, general"):
        export_peft(model, tmp_path / "out", categories=["poetry"])
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="holds no dmoerm export"):
        export_peft(model, tmp_path, overwrite=True)


def test_a_difference_is_an_error_and_nothing_is_written(model, tmp_path, monkeypatch):
    from dmoerm.modeling import peft_export

    written = peft_export.write_adapter
    monkeypatch.setattr(peft_export, "write_adapter", lambda *a, head, **k: written(*a, head=head * 1.5, **k))  # a fault of ours, say
    with pytest.raises(ArtifactError, match=r"adapters/objective_qa/task_model: PEFT gives .* more or less than this model"):
        export_peft(model, tmp_path / "out")
    assert not any(tmp_path.iterdir())


# --- tokens ---------------------------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_chat_template_gets_one_that_writes_our_layout(backbone, tmp_path, monkeypatch, capsys):
    model = random_model(str(backbone), full=False)
    model.renderer.tokenizer.chat_template = None
    model.renderer._template = None
    model.renderer._frames.clear()
    export = export_peft(model, tmp_path / "out", categories=["general"])
    assert export.texts_differing == 0
    found = run_readme(export.folder, monkeypatch, capsys)
    rows = model.renderer.render(as_messages("Write a haiku about rain."), ["Rain taps the window", "No."])
    with torch.no_grad():
        vectors = model.backbone.pooled(collate(rows, 0), task="general")[:, 0]
    assert found == pytest.approx((vectors @ model.inner["general"].task_head_D).tolist(), abs=1e-5)


def test_tokens_that_other_software_would_see_otherwise_are_counted(backbone, tmp_path):
    model = random_model(str(backbone), full=False)
    tokenizer = model.renderer.tokenizer
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", "message['content'] | replace('water', 'air')")
    export = export_peft(model, tmp_path / "out")
    assert export.texts_differing == 2  # two canaries speak of water
    assert "for 5 of 7 texts compared" in (export.folder / "README.md").read_text(encoding="utf-8")


# --- the commands ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    random_model(str(backbone)).save_pretrained(folder)
    return folder


def test_the_command_writes_what_the_library_writes(saved, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["export", str(saved), str(out), "--to", "peft", "--category", "objective_qa"]) == cli.DONE
    printed = capsys.readouterr().out
    assert "objective_qa.logic: adapters/objective_qa/logic" in printed
    assert "compared with PEFT on 7 texts" in printed
    assert "chitchat" not in printed
    other = export_peft(RewardModel.from_pretrained(saved), tmp_path / "other", categories=["objective_qa"]).folder
    for path in other.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (out / path.relative_to(other)).read_bytes()
    assert cli.main(["export", str(saved), str(out), "--to", "peft"]) == cli.FAILED
    assert "already holds an export" in capsys.readouterr().err
    assert cli.main(["export", str(saved), str(out), "--to", "peft", "--overwrite", "--json", "--no-check"]) == cli.DONE
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], len(found["adapters"]), found["largest_difference"]) == ("peft", 7, None)


def test_the_target_must_be_named_and_known(saved, tmp_path, capsys):
    for arguments in ([], ["--to", "gguf"]):
        with pytest.raises(SystemExit) as left:
            cli.main(["export", str(saved), str(tmp_path / "out"), *arguments])
        assert left.value.code == cli.USAGE
    assert "invalid choice: 'gguf'" in capsys.readouterr().err


def test_the_vllm_command_names_every_adapter_and_a_rank_that_vllm_takes(model, tmp_path):
    export = export_peft(model, tmp_path / "out", with_base=True, check=False)
    blocks = re.findall(r"```bash\n(vllm .*?)```", (export.folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    shared, own = (shlex.split(block.replace("\\\n", "")) for block in blocks)
    assert shared[:3] == ["vllm", "serve", "base"]
    assert shared[shared.index("--max-lora-rank") + 1] == "8"
    names = dict(word.split("=") for word in shared[shared.index("--lora-modules") + 1 :])
    assert names == {f"{a.category}.{a.capability}": a.folder for a in export.adapters if a.folder}
    assert all((export.folder / folder / "adapter_model.safetensors").is_file() for folder in names.values())
    assert own == ["vllm", "serve", "own_bases/chitchat", "--runner", "pooling", "--dtype", "float32"]
    assert (export.folder / "own_bases" / "chitchat" / "model.safetensors").is_file()


def test_ranks_are_rounded_up_to_what_vllm_takes():
    assert [vllm_rank(rank) for rank in (1, 8, 9, 64, 65, 300, 512, 513)] == [8, 8, 16, 64, 128, 320, 512, None]
