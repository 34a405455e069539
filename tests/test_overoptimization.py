"""A tiny policy is trained against a tiny double-layer reward while another reward watches: what is logged, and what is learnt from."""

import contextlib
import csv
import io
import itertools
import json
import math
import shutil
from pathlib import Path

import pytest

from dmoerm.cli import main as cli
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.overoptimization import read_prompt_sets
from dmoerm.records import Message

FIXTURES = Path(__file__).parent / "fixtures"
REWARD = FIXTURES / "artifact_v2" / "model"
BACKBONE = FIXTURES / "artifact_v2" / "backbone"
THINGS = "bird dog door city tree house friend river song word egg fish car book child".split()


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Fifteen prompts; that about the dog comes a second time, as a conversation."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"prompt": f"tell me about the {thing}"} for thing in THINGS]
    rows.append({"prompt": [{"role": "user", "content": "tell me about the dog"}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def command(policy, prompts, gold, output, *more, steps=3):
    return list(map(str, (
        "overoptimize", REWARD, "--backbone", BACKBONE, "--policy", policy, "--prompts", prompts, "--gold", gold, "--output", output,
        "--steps", steps, "--generations", 4, "--prompts-per-step", 2, "--max-completion-tokens", 8, "--learning-rate", "3e-3",
        "--measure-prompts", 4, "--device", "cpu", "--bootstrap-samples", 100, *more,
    )))  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_policy_folder, prompts, tiny_classifier_folder, tmp_path_factory):
    """A run of three steps, measured and saved at each: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("overoptimize") / "out"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(command(tiny_policy_folder, prompts, tiny_classifier_folder, folder))
    assert code == cli.DONE, err.getvalue()
    return folder, out.getvalue()


def refused(capsys, arguments):
    """What is said of a command that must fail."""
    assert cli.main(list(map(str, arguments))) == cli.FAILED
    return capsys.readouterr().err


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- KL -------------------------------------------------------------------------------------------------------------------------------


def test_next_token_kl_is_the_sum_over_the_vocabulary_and_the_log_ratio_that_of_the_sampled_token():
    import torch

    from dmoerm.training.policy import next_token_kl

    policy = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]).log() + torch.tensor(
        [[3.0], [-1.0]]
    )  # a shift of logits changes nothing
    kl_L, ratio_L = next_token_kl(policy, torch.zeros(2, 3), torch.tensor([0, 2]))
    # 1/2 ln(3/2) + 2 · 1/4 ln(3/4) = 0.0589; the first token has log ratio ln(3/2).
    assert kl_L.tolist() == pytest.approx([0.5 * math.log(1.5) + 0.5 * math.log(0.75), 0.0], abs=1e-6)
    assert ratio_L.tolist() == pytest.approx([math.log(1.5), 0.0], abs=1e-6)


def test_the_mean_of_both_sums_over_all_completions_is_the_kl_of_the_two_policies():
    import torch

    from dmoerm.training.policy import next_token_kl

    # Two tokens of two kinds; the second depends on the first.
    first, second = (0.7, 0.3), {0: (0.2, 0.8), 1: (0.5, 0.5)}
    first_reference, second_reference = (0.5, 0.5), {0: (0.6, 0.4), 1: (0.9, 0.1)}
    exact = by_kl = by_ratio = 0.0
    for a, b in itertools.product((0, 1), repeat=2):
        probability, reference = first[a] * second[a][b], first_reference[a] * second_reference[a][b]
        exact += probability * math.log(probability / reference)
        logits = torch.tensor([first, second[a]]).log()
        kl_L, ratio_L = next_token_kl(logits, torch.tensor([first_reference, second_reference[a]]).log(), torch.tensor([a, b]))
        by_kl += probability * float(kl_L.sum())
        by_ratio += probability * float(ratio_L.sum())
    assert by_kl == pytest.approx(exact, abs=1e-6)
    assert by_ratio == pytest.approx(exact, abs=1e-6)


def test_the_kl_of_a_run_is_that_between_its_checkpoint_and_the_policy(finished, prompts, tiny_policy_folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = finished[0] / "runs" / "model"
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy_folder)
    new = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "checkpoint-3").eval()
    old = AutoModelForCausalLM.from_pretrained(tiny_policy_folder).eval()
    sets = read_prompt_sets(prompts, 4)
    checked = 0
    for row in (row for row in rows(run / "samples.jsonl") if row["step"] == 3):
        prompt = (*sets.training, *sets.measured)[row["prompt"]]
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt[0].content}], add_generation_prompt=True, tokenize=False)
        start = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        said = tokenizer(row["completion"], add_special_tokens=False, return_tensors="pt")["input_ids"]
        if said.shape[1] != row["tokens"]:  # a token without text was sampled
            continue
        ids = torch.cat([start, said], dim=1)
        with torch.no_grad():
            logits = [model(ids).logits[0, start.shape[1] - 1 : -1] for model in (new, old)]
        distributions = [torch.distributions.Categorical(logits=one) for one in logits]
        kl = torch.distributions.kl_divergence(*distributions).sum().item()
        ratio = (distributions[0].log_prob(said[0]) - distributions[1].log_prob(said[0])).sum().item()
        assert row["kl"] == pytest.approx(kl, abs=1e-4)
        assert row["log_ratio"] == pytest.approx(ratio, abs=1e-4)
        checked += 1
    assert checked >= 4


# --- a run ----------------------------------------------------------------------------------------------------------------------------


def check_run(folder, steps):
    metrics = rows(folder / "runs" / "model" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(steps))
    for row in metrics:
        assert row["completions"] == 8
        assert row["proxy_failed"] == row["gold_failed"] == 0
        assert all(math.isfinite(row[name]) for name in ("proxy", "gold", "kl", "kl_log_ratio", "loss", "entropy"))
        assert 1 <= row["length_tokens"] <= 8
        assert row["kl_trl"] is None  # without a penalty TRL has no reference and no KL
    assert metrics[0]["kl"] == metrics[0]["kl_log_ratio"] == 0.0  # the policy as it is
    assert metrics[-1]["kl"] > 0.01


def test_every_step_logs_proxy_gold_kl_and_length(finished):
    check_run(finished[0], 3)


@pytest.mark.slow
def test_twenty_steps_log_proxy_gold_and_kl(tiny_policy_folder, prompts, tiny_classifier_folder, tmp_path):
    assert cli.main(command(tiny_policy_folder, prompts, tiny_classifier_folder, tmp_path / "out", steps=20)) == cli.DONE
    check_run(tmp_path / "out", 20)
    (run,) = json.loads((tmp_path / "out" / "overoptimization.json").read_text(encoding="utf-8"))["runs"]
    assert [point["setting"] for point in run["curve"]["points"]] == list(range(0, 21, 2))


def test_the_same_prompts_are_measured_before_the_first_step_and_after_each(finished):
    samples = rows(finished[0] / "runs" / "model" / "samples.jsonl")
    # 15 prompts without the repeat: 11 are trained on, the 4 others are measured with two completions each.
    assert [row["step"] for row in samples] == [step for step in range(4) for _ in range(8)]
    for step in range(4):
        assert sorted(row["prompt"] for row in samples if row["step"] == step) == [11, 11, 12, 12, 13, 13, 14, 14]


def test_rewards_are_those_that_the_models_give(finished, prompts, tiny_classifier_folder):
    from dmoerm.evaluation.scorers import Candidates, open_scorer

    sets = read_prompt_sets(prompts, 4)
    first = next(row for row in rows(finished[0] / "runs" / "model" / "samples.jsonl") if row["step"] == 3)
    one = [Candidates(sets.measured[first["prompt"] - 11], (first["completion"],))]
    assert open_scorer(str(REWARD), device="cpu", backbone=str(BACKBONE)).score(one)[0][0] == pytest.approx(first["proxy"], abs=1e-5)
    assert open_scorer(str(tiny_classifier_folder), device="cpu").score(one)[0][0] == pytest.approx(first["gold"], abs=1e-5)


def test_gold_does_not_enter_training(finished, tiny_policy_folder, prompts, tmp_path):
    """With another gold reward, of another unit, the policy makes the same way to the last bit."""
    assert cli.main(command(tiny_policy_folder, prompts, "longest", tmp_path / "out")) == cli.DONE
    mine, other = (rows(folder / "runs" / "model" / "metrics.jsonl") for folder in (finished[0], tmp_path / "out"))
    assert [row["gold"] for row in mine] != [row["gold"] for row in other]
    for row, same in zip(mine, other, strict=True):
        assert {**row, "gold": None} == {**same, "gold": None}


def test_a_report_has_a_chapter_of_the_runs(finished, tmp_path, capsys):
    page = tmp_path / "all.html"
    assert cli.main(["report", str(finished[0] / "overoptimization.json"), "--output", str(tmp_path / "all")]) == cli.DONE
    assert f"Page: {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "Over-optimisation by RL" in text
    assert "Gold gained by RL at its peak (step " in text
    assert "RL: 4 prompts, fewer than 30; its intervals are too narrow." in text


def test_figures_curves_and_page_agree(finished):
    folder, printed = finished
    study = json.loads((folder / "overoptimization.json").read_text(encoding="utf-8"))
    (run,) = study["runs"]
    samples = rows(folder / "runs" / "model" / "samples.jsonl")
    points = run["curve"]["points"]
    with (folder / "curves.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    start = [row["proxy"] for row in samples if row["step"] == 0]
    mean = sum(start) / 8
    deviation = math.sqrt(sum((value - mean) ** 2 for value in start) / 8)
    for step, (point, line) in enumerate(zip(points, lines, strict=True)):
        here = [row for row in samples if row["step"] == step]
        assert point["setting"] == int(line["step"]) == step
        assert point["gold"]["value"] == float(line["gold"]) == pytest.approx(sum(row["gold"] for row in here) / 8)
        assert point["kl"] == float(line["kl"]) == pytest.approx(sum(row["kl"] for row in here) / 8)
        assert float(line["sqrt_kl"]) == pytest.approx(math.sqrt(point["kl"]))
        assert point["proxy"] == float(line["proxy"]) == pytest.approx((sum(row["proxy"] for row in here) / 8 - mean) / deviation)
    assert run["curve"]["fit"]["form"] == "rl"
    assert f"{points[-1]['kl']:.3f}" in printed
    assert "4 measured prompts (fewer than 30: intervals are too narrow)" in printed
    page = (folder / "report.html").read_text(encoding="utf-8")
    for title in ("Gold against √KL", "Proxy against √KL", "Gold gain and its fit", "Training: KL", "What the policy says: model"):
        assert f"<h2>{title}</h2>" in page
    assert samples[0]["completion"].split()[0] in page


# --- failures, penalty, LoRA ------------------------------------------------------------------------------------------------------------


def test_a_completion_without_a_reward_is_counted_and_moves_nothing(tiny_policy_folder, tmp_path):
    """All completions but one have no reward: no group has a spread, so nothing is learnt, though a 0 for the others would teach."""
    from dmoerm.training.policy import PolicyOptions, train_policy

    def judge(groups):
        return [[1.0, *[None] * (len(texts) - 1)] for _, texts in groups], [[None] * len(texts) for _, texts in groups]

    prompts = [(Message("user", f"tell me about the {thing}"),) for thing in THINGS[:3]]
    options = PolicyOptions(
        str(tiny_policy_folder), steps=2, generations=4, prompts_per_step=2, max_completion_tokens=6, learning_rate=1e-2, device="cpu"
    )
    train_policy(options, prompts[:2], prompts[2:], judge, tmp_path)
    metrics = rows(tmp_path / "metrics.jsonl")
    assert [(row["proxy"], row["proxy_failed"], row["gold"], row["gold_failed"]) for row in metrics] == [(1.0, 6, None, 8)] * 2
    assert [row["kl"] for row in metrics] == [0.0, 0.0]


def test_a_lora_policy_with_a_penalty_logs_both_kinds_of_kl(tiny_policy_folder, tmp_path):
    from dmoerm.training.policy import PolicyOptions, train_policy

    def judge(groups):
        lengths = [[float(len(text)) for text in texts] for _, texts in groups]
        return lengths, lengths

    prompts = [(Message("user", f"tell me about the {thing}"),) for thing in THINGS[:3]]
    options = PolicyOptions(
        str(tiny_policy_folder), steps=3, generations=4, prompts_per_step=2, batch=2, max_completion_tokens=6, learning_rate=3e-2, beta=0.1,
        lora_rank=2, device="cpu",
    )  # fmt: skip
    train_policy(options, prompts[:2], prompts[2:], judge, tmp_path)
    metrics = rows(tmp_path / "metrics.jsonl")
    assert metrics[0]["kl"] == 0.0
    assert metrics[0]["kl_trl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics[-1]["kl"] > 0.01
    # TRL's is a mean over tokens, ours a sum over the tokens of a completion: about as many times as large as it has tokens.
    assert metrics[-1]["kl"] / metrics[-1]["kl_trl"] == pytest.approx(metrics[-1]["length_tokens"], rel=0.8)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} >= {"checkpoint-3"}


# --- going on -------------------------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_numbers(finished, tiny_policy_folder, prompts, tiny_classifier_folder, tmp_path, capsys):
    """Killed while checkpoint 3 was written and a row was half on disk: the run goes on from checkpoint 2."""
    folder = tmp_path / "out"
    shutil.copytree(finished[0], folder)
    run = folder / "runs" / "model"
    (run / "checkpoints" / "checkpoint-3" / "complete.json").unlink()
    kept = [line for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines(True) if '"step": 3' not in line]
    (run / "samples.jsonl").write_text("".join(kept) + '{"step": 3, "pro', encoding="utf-8")
    assert cli.main([*command(tiny_policy_folder, prompts, tiny_classifier_folder, folder), "--resume"]) == cli.DONE
    assert "checkpoint-3: unfinished" in capsys.readouterr().err
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert rows(run / name) == rows(finished[0] / "runs" / "model" / name), name


def test_a_finished_run_is_not_trained_again(finished, tiny_policy_folder, prompts, tiny_classifier_folder, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "runs" / "model" / "checkpoints")  # nothing to train from
    assert cli.main([*command(tiny_policy_folder, prompts, tiny_classifier_folder, folder), "--resume", "--json"]) == cli.DONE
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((finished[0] / "overoptimization.json").read_text(encoding="utf-8"))


def test_a_run_that_is_there_is_not_passed_over(finished, tiny_policy_folder, prompts, tiny_classifier_folder, tmp_path, capsys):
    folder = finished[0]
    same = command(tiny_policy_folder, prompts, tiny_classifier_folder, folder)
    assert "is there already. Go on with it (--resume), begin anew (--overwrite)" in refused(capsys, same)
    assert "seed was 0, is 7" in refused(capsys, [*same, "--resume", "--seed", 7])
    fewer = command(tiny_policy_folder, prompts, tiny_classifier_folder, folder, "--resume", steps=2)
    assert "that run has 3 steps, more than 2" in refused(capsys, fewer)
    (tmp_path / "runs" / "model").mkdir(parents=True)
    foreign = command(tiny_policy_folder, prompts, tiny_classifier_folder, tmp_path, "--overwrite")
    assert "is no run of ours (no run.json), so it is left alone" in refused(capsys, foreign)


# --- what is refused ------------------------------------------------------------------------------------------------------------------


def test_settings_that_cannot_be_used_are_refused():
    from dmoerm.training.policy import PolicyOptions

    with pytest.raises(ConfigError, match="generations: 1; expected at least 2"):
        PolicyOptions("policy", generations=1)
    with pytest.raises(ConfigError, match="batch: 3; expected a divisor of the completions of a step, 4 prompts times 8 generations"):
        PolicyOptions("policy", batch=3)
    with pytest.raises(ConfigError, match="beta -1"):
        PolicyOptions("policy", beta=-1.0)
    with pytest.raises(ConfigError, match="Choose a GPU with CUDA_VISIBLE_DEVICES"):
        PolicyOptions("policy", device="cuda:1")


def test_a_policy_that_is_no_language_model_is_refused(tiny_classifier_folder, prompts, tmp_path, capsys):
    asked = command(tiny_classifier_folder, prompts, "longest", tmp_path / "out")
    assert "Qwen3ForSequenceClassification; expected a causal language model" in refused(capsys, asked)
    assert "no model there" in refused(capsys, command(tmp_path / "nothing", prompts, "longest", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(tiny_policy_folder, prompts, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = command(tiny_policy_folder, prompts, "longest", tmp_path / "out")
    assert "several processes were started" in refused(capsys, asked)


def test_a_missing_trl_names_the_extra(tiny_policy_folder, monkeypatch):
    from dmoerm.errors import DmoermError
    from dmoerm.training import policy

    monkeypatch.setattr(policy, "find_spec", lambda name: None)
    with pytest.raises(DmoermError, match=r"'trl' is not installed. Install it with: pip install 'dmoerm\[rl\]'"):
        policy.require_policy(policy.PolicyOptions(str(tiny_policy_folder)))


def test_prompts_without_room_for_an_answer_are_refused(tiny_policy_folder, tmp_path):
    from dmoerm.training.policy import PolicyOptions, train_policy

    prompts = [(Message("user", "dog " * length),) for length in (3, 90, 4)]
    options = PolicyOptions(str(tiny_policy_folder), prompts_per_step=1, max_completion_tokens=40, device="cpu")
    with pytest.raises(ConfigError, match="1 of 3 prompts leave the policy no room for 40 tokens"):
        train_policy(options, prompts[:2], prompts[2:], lambda groups: ([], []), tmp_path)


def test_the_same_prompts_are_measured_whatever_else_the_file_holds(prompts, tmp_path):
    sets = read_prompt_sets(prompts, 4)
    assert (len(sets.training), len(sets.measured), sets.repeats) == (11, 4, 1)
    lines = prompts.read_text(encoding="utf-8").splitlines(True)
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(reversed(lines)), encoding="utf-8")
    assert set(read_prompt_sets(turned, 4).measured) == set(sets.measured)
    assert len(read_prompt_sets(prompts).measured) == 3  # a fifth
    with pytest.raises(ConfigError, match="measured prompts: 15; expected 1 to 14"):
        read_prompt_sets(prompts, 15)
    single = tmp_path / "single.jsonl"
    single.write_text(lines[0], encoding="utf-8")
    with pytest.raises(DataError, match="1 prompts; expected at least two"):
        read_prompt_sets(single)
