"""A double-layer model taught to one stock classifier: it loads with transformers alone, learns, and is measured as it was written."""

import json
import os
import random
import subprocess
import sys
from typing import ClassVar

import pytest
from conftest import WORDS
from make_artifact_fixture import random_model

from dmoerm.cli.main import main as cli
from dmoerm.errors import ArtifactError, ConfigError, DataError
from dmoerm.evaluation.rank_agreement import kendall_difference, kendall_tau, rank_agreement, spearman_rho
from dmoerm.evaluation.scorers import Candidates, ClassifierScorer, ModelScorer
from dmoerm.evaluation.student_export import StudentOptions, export_student, read_candidates
from dmoerm.modeling.routed_bert import CUT, RESPONSE
from dmoerm.records import Message

QUICK = StudentOptions(epochs=3, learning_rate=1e-3, held_out_fraction=0.3)

ALONE = """
import json, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
folder, chats = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
texts = tokenizer.apply_chat_template(chats, tokenize=False)
batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
logits = model(**batch).logits[:, 0].tolist()
piped = [one["score"] for one in pipeline("text-classification", model=folder)(texts)]
assert not any(name.startswith("dmoerm") for name in sys.modules)
print(json.dumps([logits, piped]))
"""


def candidates(count, seed=0, responses=3):
    draw = random.Random(seed)
    text = lambda size: " ".join(draw.choices(WORDS[:300], k=size))  # noqa: E731
    return [Candidates((Message("user", text(6)),), tuple(text(draw.randint(3, 10)) for _ in range(responses))) for _ in range(count)]


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def teacher(request, tiny_encoder_folder, tiny_decoder_folder):
    return random_model(str(tiny_encoder_folder if request.param == "encoder" else tiny_decoder_folder), full=False)


@pytest.fixture(scope="module")
def data():
    return candidates(150, responses=6)


@pytest.fixture(scope="module")
def exported(teacher, data, tmp_path_factory):
    return export_student(teacher, tmp_path_factory.mktemp("student") / "out", data, options=QUICK, reseeded=None)


def test_the_student_loads_with_transformers_alone_and_gives_the_rewards_that_were_measured(exported, data):
    """In a process of its own, which never imports dmoerm; padded in one batch, and through a pipeline."""
    one = data[0]
    (measured,) = ClassifierScorer(str(exported.folder), device="cpu").score([one])
    chats = [[{"role": "user", "content": one.prompt[0].content}, {"role": "assistant", "content": text}] for text in one.responses]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(exported.folder), json.dumps(chats)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    logits, piped = json.loads(done.stdout.splitlines()[-1])
    assert logits == pytest.approx(measured, abs=1e-4)
    assert piped == pytest.approx(measured, abs=1e-4)
    assert max(measured) - min(measured) > 1e-3


def test_the_student_orders_held_out_responses_as_its_teacher_does_and_an_untaught_one_does_not(exported, teacher):
    from dmoerm.modeling.student import build_student, save_student

    fresh = candidates(60, seed=1, responses=6)
    known = ModelScorer(teacher).score(fresh)
    untaught = exported.folder.with_name("untaught")
    save_student(build_student(teacher), untaught)
    before, after = (
        rank_agreement(known, ClassifierScorer(str(folder), device="cpu").score(fresh)) for folder in (untaught, exported.folder)
    )
    assert after.kendall.low > max(0.1, before.kendall.high)
    assert after.margin_r2.value > max(0.0, before.margin_r2.value)
    assert exported.student.kendall.value == pytest.approx(after.kendall.value, abs=0.2)


def test_the_config_is_that_of_a_regressor_with_one_label(exported):
    config = json.loads((exported.folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] in (["BertForSequenceClassification"], ["Qwen3ForSequenceClassification"])
    assert (config["problem_type"], config["id2label"], config["pad_token_id"]) == ("regression", {"0": "reward"}, 0)
    tokenizer = json.loads((exported.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_template_gives_the_tokens_of_the_teacher(exported, teacher):
    from transformers import AutoTokenizer

    from dmoerm.modeling.student import encode

    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    single = (Message("user", "tell me about the river"),)
    several = (Message("system", "be quick"), *single, Message("assistant", "water"), Message("user", "more ?"))
    for prompt in (single, several):
        (row,) = teacher.renderer.render(prompt, ["a good answer"])
        ids = list(row.input_ids)
        if row.token_type_ids is not None:  # an encoder: the student's own tokens say where the response begins, and stand for a lost end
            cut, response = tokenizer.convert_tokens_to_ids([CUT, RESPONSE])
            ids = [ids[0], cut, *ids[1 : row.response_start - 1], response, *ids[row.response_start :]]
        assert encode(tokenizer, prompt, "a good answer") == (ids, False)
        turns = [{"role": message.role, "content": message.content} for message in prompt] + [
            {"role": "assistant", "content": "a good answer"}
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        assert tokenizer(text)["input_ids"] == ids  # nothing is added where a tool asks for special tokens


def test_the_card_and_the_marker_hold_the_figures(exported):
    card = (exported.folder / "README.md").read_text(encoding="utf-8")
    own = exported.student
    assert f"{own.kendall.value:.3f} ({own.kendall.low:.3f} to {own.kendall.high:.3f})" in card
    assert "pipeline_tag: text-classification" in card
    assert "base_model" not in card  # a folder of this machine means nothing elsewhere
    assert str(exported.folder.parent) not in card
    marker = json.loads((exported.folder / "dmoerm_export.json").read_text(encoding="utf-8"))
    assert (marker["format"], marker["student"]["kendall"]["value"]) == ("seqcls", own.kendall.value)
    assert marker["train_prompts"] + marker["held_out_prompts"] == 150


def test_bert_starts_as_the_teachers_general_task_model(tiny_encoder_folder):
    import torch

    from dmoerm.modeling.student import build_student, encode

    teacher = random_model(str(tiny_encoder_folder), full=False)
    student = build_student(teacher, routes=2)
    assert student.model.config.num_hidden_layers == 4 + 3
    prompt = (Message("user", "tell me about the river"),)
    (row,) = teacher.renderer.render(prompt, ["a good answer"])
    ids = torch.tensor([encode(student.tokenizer, prompt, "a good answer")[0]])
    _, pooled = student.routed.features(ids, torch.ones_like(ids))
    batch = {"input_ids": torch.tensor([row.input_ids]), "token_type_ids": torch.tensor([row.token_type_ids])}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    with torch.no_grad():
        adapted, bare = (teacher.backbone.pooled(batch, task=task)[0, 0] for task in ("general", None))
    distance = lambda other: float(((pooled[0] - pooled.mean()) - (other - other.mean())).norm() / other.norm())  # noqa: E731
    assert distance(adapted) < 0.05 < distance(bare)


def test_a_teacher_that_adapts_nothing_is_followed_through_its_routes_without_training(tiny_encoder_folder, tmp_path):
    """Heads by category on one body: what a student that routes can be, and one with a single head cannot."""
    import torch

    teacher = random_model(str(tiny_encoder_folder), full=False)
    for name, parameter in teacher.backbone.named_parameters():
        if name.endswith("b_KOR"):
            parameter.data.zero_()
    for inner in teacher.inner.values():
        inner.aggregator.outer_SH.data.zero_()
    draw = random.Random(3)
    text = lambda words, size: " ".join(draw.choices(words, k=size))  # noqa: E731
    kinds = [WORDS[:2] if number % 2 else WORDS[200:202] for number in range(160)]
    data = [
        Candidates((Message("user", text(words, 12)),), tuple(text(WORDS[:300], draw.randint(3, 9)) for _ in range(8))) for words in kinds
    ]
    router = teacher.router
    router.finetuned, router.general_below = False, 0.0
    with torch.no_grad():
        vectors = teacher.prompt_vectors([one.prompt for one in data])
    apart = vectors[1::2].mean(0) - vectors[::2].mean(0)
    router.mean_D.copy_(vectors.mean(0))
    router.std_D.fill_(1.0)
    router.bias_T.zero_()
    router.weight_TD.copy_(torch.stack([apart, -apart]) * 10 / apart.square().sum())
    found = export_student(teacher, tmp_path / "out", data)
    assert sorted(found.routes) == ["chitchat", "objective_qa"]
    assert (found.epochs, found.errors) == (0, ())
    assert found.student.kendall.low > 0.8
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "no weight of the body was trained" in card
    assert f"between {', '.join(found.routes)}" in card


def test_the_template_of_a_routed_student_takes_the_middle_out_of_a_long_prompt(tiny_encoder_folder):
    """By the rule of rendering.py in characters: half of the room, or what the response leaves; the longest message, its middle."""
    from dmoerm.modeling.student import stock_tokenizer

    base = random_model(str(tiny_encoder_folder), full=False).renderer.tokenizer
    tokenizer = stock_tokenizer(base, 104, "right", routed_characters=1.0)  # a room of 100 characters

    def prompt_of(messages, response):
        text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": response}], tokenize=False)
        assert text.startswith(f"[CLS]{CUT}")
        return text.removeprefix(f"[CLS]{CUT}").split(RESPONSE)[0]

    long = {"role": "user", "content": "a" * 60 + "b" * 60}
    assert prompt_of([long], "c" * 200) == "a" * 25 + "b" * 25  # half of the room
    assert prompt_of([long], "c" * 30) == "a" * 35 + "b" * 35  # what the response leaves
    assert prompt_of([{"role": "user", "content": "a" * 50}], "c" * 200) == "a" * 50
    turns = [{"role": "user", "content": "x" * 9}, {"role": "assistant", "content": "y"}, long]
    assert prompt_of(turns, "c" * 200) == f"user: {'x' * 9}\nassistant: y\nuser: {'a' * 20}{'b' * 20}"
    assert (
        prompt_of([{"role": "system", "content": "s" * 70}, long], "c" * 90) == f"system: {'s' * 70}\nuser: {'a' * 20}{'b' * 20}"
    )  # 40 stay


def test_how_the_teacher_reads_decides_where_a_stock_tokenizer_cuts(tiny_encoder_folder):
    from dmoerm.modeling.student import encode, reading_of, stock_tokenizer, student_renderer

    teacher = random_model(str(tiny_encoder_folder), full=False)
    renderer = student_renderer(teacher)
    prompt, long = (Message("user", "a b c"),), " ".join(["river"] * 100)
    assert reading_of(renderer, [(prompt, ["x y", long])]).truncation_side == "right"  # the teacher drops the end of a response
    ends = (Message("user", " ".join(["a"] * 100)), Message("assistant", "b"), Message("user", " ".join(["c"] * 8)))
    assert reading_of(renderer, [(ends, ["x y"])]).truncation_side == "left"  # a long prompt loses its middle, a short response nothing
    tokenizers = (stock_tokenizer(renderer.tokenizer, renderer.max_length_tokens, side) for side in ("left", "right"))
    ids = {tokenizer.truncation_side: encode(tokenizer, prompt, long) for tokenizer in tokenizers}
    assert ids["right"][0][0] == renderer.tokenizer.cls_token_id
    assert ids["left"][0][-1] == renderer.tokenizer.sep_token_id
    assert [len(row) for row, _ in ids.values()] == [renderer.max_length_tokens] * 2


def test_the_epoch_that_is_nearest_to_the_teacher_is_kept(tiny_encoder_folder, data, tmp_path):
    """A rate that ruins the student leaves the fitted last layer, one that serves it a later epoch; the folder holds it."""
    teacher = random_model(str(tiny_encoder_folder), full=False)
    ruined, served = (
        export_student(teacher, tmp_path / str(rate), data, options=StudentOptions(epochs=2, learning_rate=rate)) for rate in (0.5, 1e-3)
    )
    for found in (ruined, served):
        assert len(found.errors) == 3
        assert found.errors[found.epoch] == min(found.errors)
    assert ruined.epoch == 0
    assert served.epoch > 0
    assert served.errors[0] == pytest.approx(ruined.errors[0])  # both began alike
    assert ruined.student.kendall.value > 0.2
    assert f"the state after epoch {served.epoch} was kept" in (served.folder / "README.md").read_text(encoding="utf-8")


def test_a_reseeded_teacher_is_measured_beside_and_the_teacher_itself_is_refused(tiny_encoder_folder, tmp_path):
    data = candidates(60)
    teacher = random_model(str(tiny_encoder_folder), full=False)
    other = random_model(str(tiny_encoder_folder), full=False, seed=8)
    found = export_student(teacher, tmp_path / "a", data, options=StudentOptions(epochs=1), reseeded=other)
    assert found.reseeded.n_prompts == found.student.n_prompts
    assert found.difference.value == pytest.approx(found.student.kendall.value - found.reseeded.kendall.value)
    assert "another seed" in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="it is the same model"):
        export_student(teacher, tmp_path / "b", data, options=StudentOptions(epochs=1), reseeded=teacher)
    assert not (tmp_path / "b").exists()


def test_what_cannot_be_taught_or_measured_is_refused(tiny_encoder_folder, tmp_path, monkeypatch):
    teacher = random_model(str(tiny_encoder_folder), full=False)
    with pytest.raises(DataError, match=r"\d prompts with several responses are left to measure on; expected at least 8"):
        export_student(teacher, tmp_path / "a", candidates(12))
    with pytest.raises(DataError, match="left to measure on"):
        export_student(teacher, tmp_path / "a", candidates(90, responses=1))
    with pytest.raises(ConfigError, match="learning_rate is 0"):
        StudentOptions(learning_rate=0.0)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("x")
    with pytest.raises(ArtifactError, match="holds no dmoerm export"):
        export_student(teacher, tmp_path / "taken", candidates(60))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="taught in one process"):
        export_student(teacher, tmp_path / "a", candidates(60))


def test_rows_of_any_format_are_put_together_by_prompt(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "one", "response": "x"}\n{"prompt": "one", "responses": ["y", "x", " "]}\n', encoding="utf-8"
    )
    (tmp_path / "b.jsonl").write_text('{"prompt": "one", "chosen": "z", "rejected": "y"}\n', encoding="utf-8")
    (one,) = read_candidates([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert one.responses == ("x", "y", "z")


def test_rank_correlation_by_hand():
    assert kendall_tau([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)  # two pairs alike, one not
    assert spearman_rho([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)  # 1 - 6 * 2 / 24
    assert kendall_tau([1, 2, 2], [1, 2, 3]) == pytest.approx(2 / 6**0.5)  # 2 of 2 told pairs; roots of 2 and 3 pairs
    assert kendall_tau([1, 2], [5, 5]) == 0.0
    found = rank_agreement([[1.0, 2.0, 3.0], [1.0, 1.0], [0.0, None]], [[1.0, 3.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    assert (found.n_prompts, found.n_pairs, found.failures) == (1, 3, 1)
    assert found.agreement.value == pytest.approx(2 / 3)
    assert found.margin_r2.value == pytest.approx(1 - 2 / 2)
    apart = kendall_difference([[1.0, 2.0]] * 3, [[1.0, 2.0]] * 3, [[2.0, 1.0]] * 3)
    assert (apart.value, apart.low, apart.high) == (2.0, 2.0, 2.0)
    with pytest.raises(DataError, match="nothing can be compared"):
        rank_agreement([[1.0, 1.0]], [[1.0, 2.0]])


def test_distillation_loss_by_hand():
    import torch

    from dmoerm.training.distillation import distillation_loss

    teacher, prompts = torch.zeros(4), torch.tensor([0, 0, 1, 1])
    apart = distillation_loss(torch.tensor([1.0, -1.0, 0.0, 0.0]), teacher, prompts, 0.1)
    assert float(apart) == pytest.approx(1.0)  # (2² / 2 + 0) / 2: differences count, the mean is right
    level = distillation_loss(torch.tensor([3.0, 3.0, 3.0, 3.0]), teacher, prompts, 0.1)
    assert float(level) == pytest.approx(0.9)  # 0.1 * 3²: a shift counts little
    assert float(distillation_loss(torch.tensor([2.0]), torch.zeros(1), torch.tensor([0]), 0.5)) == pytest.approx(2.0)


# --- the verb and the Hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tiny_encoder_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    random_model(str(tiny_encoder_folder), full=False).save_pretrained(folder)
    return folder


def test_the_verb_writes_measures_and_says_so(saved, tmp_path, capsys):
    data = candidates(60)
    rows = [json.dumps({"prompt": one.prompt[0].content, "responses": list(one.responses)}) for one in data]
    (tmp_path / "data.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    arguments = ["export", str(saved), str(tmp_path / "out"), "--to", "seqcls", "--data", str(tmp_path / "data.jsonl"), "--epochs", "1"]
    assert cli([*arguments, "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "Kendall's tau" in printed
    assert "held-out prompts" in printed
    assert cli([*arguments, "--quiet", "--overwrite", "--json", "--test", str(tmp_path / "data.jsonl")]) == 1  # all of it is tested
    assert "0 prompts with several responses are left to learn from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "seqcls"], "needs --data FILE"),
        (["--to", "seqcls", "--data", "x", "--category", "chitchat"], "--category belongs to --to peft"),
        (["--to", "peft", "--epochs", "3"], "--epochs belongs to --to seqcls"),
        (["--to", "hub", "--with-base"], "--with-base belongs to --to peft"),
        (["--to", "hub", "--overwrite"], "does not apply to --to hub"),
    ],
)
def test_flags_of_another_target_are_refused(saved, tmp_path, capsys, flags, message):
    assert cli(["export", str(saved), str(tmp_path / "out"), *flags]) == 1
    assert message in capsys.readouterr().err


class FakeHub:
    """Stands in for `huggingface_hub.HfApi`: remembers what it was asked."""

    calls: ClassVar[list] = []

    def create_repo(self, name, *, private, exist_ok):
        from types import SimpleNamespace

        self.calls.append(("create", name, private, exist_ok))
        return SimpleNamespace(repo_id=name if "/" in name else f"me/{name}")

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        from pathlib import Path
        from types import SimpleNamespace

        assert all((Path(folder_path) / name).is_file() for name in allow_patterns)
        self.calls.append(("upload", repo_id, sorted(allow_patterns), commit_message))
        return SimpleNamespace(commit_url=f"address/of/{repo_id}")


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "calls", [])
    return FakeHub.calls


def test_model_and_student_go_to_the_hub_private_unless_asked(saved, exported, hub, capsys):
    from dmoerm.modeling.reward_model import RewardModel

    assert cli(["export", str(saved), "me/teacher", "--to", "hub", "--quiet"]) == 0
    assert "Its backbone is the folder" in capsys.readouterr().out
    assert cli(["export", str(exported.folder), "me/student", "--to", "hub", "--public", "--message", "first", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["address"] == "address/of/me/student"
    assert RewardModel.from_pretrained(saved, device="cpu").push_to_hub("again") == "address/of/me/again"
    assert [call[:3] for call in hub if call[0] == "create"] == [("create", "me/teacher", True), ("create", "me/student", False),
                                                                ("create", "again", True)]  # fmt: skip
    sent = {call[1]: call[2] for call in hub if call[0] == "upload"}
    assert {"dmoerm.json", "README.md"} <= set(sent["me/teacher"])
    assert sent["me/teacher"] == sent["me/again"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "dmoerm_export.json", "README.md"} <= set(sent["me/student"])
    assert [call[3] for call in hub if call[0] == "upload"][1] == "first"


def test_a_damaged_or_foreign_folder_is_not_sent(saved, exported, hub, tmp_path):
    import shutil

    from dmoerm.modeling.hub_upload import push_folder

    with pytest.raises(ArtifactError, match="holds neither a model"):
        push_folder(tmp_path, "me/x")
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    (broken / "router" / "router.safetensors").write_bytes(b"cut")
    with pytest.raises(ArtifactError, match="router"):
        push_folder(broken, "me/x")
    student = tmp_path / "student"
    shutil.copytree(exported.folder, student)
    (student / "extra.py").write_text("1")
    with pytest.raises(ArtifactError, match=r"extra\.py can carry code"):
        push_folder(student, "me/x")
    (student / "extra.py").unlink()
    (student / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"lacks model\.safetensors"):
        push_folder(student, "me/x")
    assert hub == []
