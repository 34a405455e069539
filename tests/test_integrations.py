"""The hooks give trainers the model's own rewards, never a 0 for a failure; TRL's trainer is run for real."""

import logging
import re
import threading
from pathlib import Path

import pytest

from dmoerm.errors import ConfigError, DataError
from dmoerm.integrations import loaded
from dmoerm.integrations.openrlhf import reward_func
from dmoerm.integrations.templated import read_prompt, read_response
from dmoerm.integrations.trl import capability_functions, reward_function
from dmoerm.integrations.verl import compute_score
from dmoerm.records import Message

FIXTURES = Path(__file__).parent / "fixtures"
FOLDER, BACKBONE = FIXTURES / "artifact_v2" / "model", FIXTURES / "artifact_v2" / "backbone"
RIVER, BIRD = "explain the river and the bank", "tell me about the big bird"
GOOD, BAD = "a clear answer about water", "no"


@pytest.fixture(scope="module")
def model():
    from dmoerm.modeling.reward_model import RewardModel

    return RewardModel.from_pretrained(FOLDER, device="cpu", backbone=BACKBONE)


@pytest.fixture
def environment(monkeypatch, model):
    """The model as DMOERM_MODEL names it."""
    loaded._model.cache_clear()
    monkeypatch.setenv("DMOERM_MODEL", str(FOLDER))
    monkeypatch.setenv("DMOERM_BACKBONE", str(BACKBONE))
    monkeypatch.setenv("DMOERM_DEVICE", "cpu")
    yield monkeypatch
    loaded._model.cache_clear()


def rewards_of(model, prompt, responses, **settings):
    return [reward.reward for reward in model.score(prompt, responses, **settings)]


# --- TRL ------------------------------------------------------------------------------------------------------------------------------


def test_a_batch_gets_the_rewards_of_score_in_its_own_order(model):
    function = reward_function(model)
    river, bird = rewards_of(model, RIVER, [GOOD, BAD]), rewards_of(model, BIRD, [BAD, GOOD])
    found = function(prompts=[RIVER, BIRD, RIVER, BIRD], completions=[GOOD, BAD, BAD, GOOD], completion_ids=[[1]] * 4, answer=["x"] * 4)
    assert found == pytest.approx([river[0], bird[0], river[1], bird[1]], abs=1e-5)
    assert function.__name__ == "dmoerm"


def test_conversations_are_read_as_texts_are(model):
    prompt, completions = [{"role": "user", "content": RIVER}], [[{"role": "assistant", "content": text}] for text in (GOOD, BAD)]
    plain = reward_function(model)(prompts=[RIVER] * 2, completions=[GOOD, BAD])
    assert reward_function(model)(prompts=[prompt] * 2, completions=completions) == plain


def test_an_aggregation_is_followed_or_refused(model):
    assert reward_function(model, aggregation="mean")(prompts=[RIVER], completions=[GOOD]) == pytest.approx(
        rewards_of(model, RIVER, [GOOD], aggregation="mean"), abs=1e-5
    )
    with pytest.raises(ConfigError, match="aggregation task"):
        reward_function(model, aggregation="task")


def test_the_completions_of_a_prompt_are_one_request(model, monkeypatch):
    seen = []
    monkeypatch.setattr(type(model), "score_many", lambda self, requests, **settings: seen.extend(requests) or [[] for _ in requests])
    with pytest.raises(ValueError, match="zip"):  # no rewards came back
        reward_function(model)(prompts=[RIVER, BIRD, RIVER], completions=["one", "two", "three"])
    assert [(request.prompt[0].content, request.responses) for request in seen] == [(RIVER, ("one", "three")), (BIRD, ("two",))]


def test_what_cannot_be_scored_is_none_with_a_warning(model, caplog):
    tools = [{"role": "assistant", "content": ""}, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "four"}]
    with caplog.at_level(logging.WARNING, "dmoerm"):
        found = reward_function(model)(prompts=[RIVER] * 4, completions=[GOOD, "", tools, [{"role": "assistant", "content": None}]])
    assert found[0] == pytest.approx(rewards_of(model, RIVER, [GOOD])[0], abs=1e-5)
    assert found[1:] == [None, None, None]
    assert "3 of 4 completions could not be scored and get no reward (None)" in caplog.text


def test_capabilities_are_none_where_the_category_has_them_not(model):
    """The fixture's categories: general (correctness, empathy) and objective_qa (correctness, logic)."""
    functions = capability_functions(model, ["correctness", "logic", "empathy"])
    assert [function.__name__ for function in functions] == ["correctness", "logic", "empathy"]
    (reward,) = model.score(RIVER, [GOOD])
    found = {function.__name__: function(prompts=[RIVER], completions=[GOOD])[0] for function in functions}
    assert found == {name: reward.capabilities.get(name) for name in found}
    assert None in found.values()
    assert [function.__name__ for function in capability_functions(model)] == ["correctness", "logic", "empathy"]
    for names in (["correctnes"], ["logic", "logic"], []):
        with pytest.raises(ConfigError, match="expected some of correctness, logic, empathy, each once"):
            capability_functions(model, names)


def test_functions_of_one_model_share_a_pass_and_log_once(model, monkeypatch):
    passes, logged = [], []
    plain = type(model).score_many
    monkeypatch.setattr(type(model), "score_many", lambda self, *given, **settings: passes.append(1) or plain(self, *given, **settings))
    functions = [reward_function(model), *capability_functions(model)]
    batch = {
        "prompts": [RIVER, RIVER],
        "completions": [GOOD, "a shared pass"],
        "log_metric": lambda name, value: logged.append((name, value)),
    }
    for function in functions:
        function(**batch)
    assert len(passes) == 1
    found = dict(logged)
    assert len(found) == len(logged)
    shares = {name: value for name, value in found.items() if name.startswith("dmoerm/category/")}
    assert set(shares) == {f"dmoerm/category/{name}" for name in model.inner}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert found["dmoerm/uncertainty"] == pytest.approx(
        sum(r.uncertainty for r in model.score(RIVER, [GOOD, "a shared pass"])) / 2, rel=1e-4
    )
    assert found["dmoerm/failed"] == 0.0
    functions[0](prompts=[RIVER], completions=["another batch"])
    assert len(passes) == 3  # model.score above, and this one


def test_a_model_is_let_go_with_its_functions():
    import gc
    import weakref

    from dmoerm.modeling.reward_model import RewardModel

    function = reward_function(RewardModel.from_pretrained(FOLDER, device="cpu", backbone=BACKBONE))
    gone = weakref.ref(function._model)
    assert function(prompts=[RIVER], completions=[GOOD])[0] is not None
    del function
    gc.collect()
    assert gone() is None


@pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning")  # trl 1.16 under transformers 5.24
def test_trl_trains_with_the_functions_and_logs_under_their_names(model, tiny_policy_folder, tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    trainer = GRPOTrainer(
        model=str(tiny_policy_folder),
        reward_funcs=[reward_function(model), *capability_functions(model, ["correctness", "logic"])],
        args=GRPOConfig(
            output_dir=str(tmp_path),
            reward_weights=[1.0, 0.5, 0.5],
            max_steps=2,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=6,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in (RIVER, BIRD)]),
    )
    trainer.train()
    first, second, _ = trainer.state.log_history
    for row in (first, second):
        assert row["dmoerm/failed"] == 0.0
        assert sum(row[f"dmoerm/category/{name}"] for name in model.inner) == pytest.approx(1.0)
        capabilities = [row[f"rewards/{name}/mean"] for name in ("correctness", "logic")]  # None where the category has it not
        weighted = row["rewards/dmoerm/mean"] + 0.5 * sum(value for value in capabilities if value is not None)
        assert row["reward"] == pytest.approx(weighted, abs=1e-4)


# --- templated prompts ----------------------------------------------------------------------------------------------------------------

CONVERSATION = (Message("system", "be kind"), Message("user", RIVER), Message("assistant", "which one"), Message("user", "the long one"))
LLAMA = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
TEMPLATED = {
    "chatml": ("", "<|im_start|>{}\n{}<|im_end|>\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "llama 3": ("<|begin_of_text|>", LLAMA, "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    "phi 3": ("", "<|{}|>\n{}<|end|>\n", "<|assistant|>\n"),
    "zephyr": ("", "<|{}|>\n{}</s>\n", "<|assistant|>\n"),
}
"""What stands before the turns, one turn, and the header of the answer."""


def templated(family):
    begin, turn, header = TEMPLATED[family]
    return begin + "".join(turn.format(message.role, message.content) for message in CONVERSATION) + header


@pytest.mark.parametrize("family", TEMPLATED)
def test_a_templated_prompt_is_read_back(family):
    assert read_prompt(templated(family)) == CONVERSATION


def test_families_without_a_system_turn_and_plain_texts_are_read_back():
    gemma = (
        f"<bos><start_of_turn>user\n{RIVER}<end_of_turn>\n<start_of_turn>model\nwhich one<end_of_turn>\n<start_of_turn>user\nthe long one"
    )
    assert read_prompt(gemma + "<end_of_turn>\n<start_of_turn>model\n") == CONVERSATION[1:]
    assert read_prompt(f"<s>[INST] {RIVER} [/INST] which one</s>[INST] the long one [/INST]") == CONVERSATION[1:]
    assert read_prompt(f" {RIVER}\n") == (Message("user", RIVER),)
    with pytest.raises(DataError, match="a turn of 'critic'"):
        read_prompt("<|im_start|>critic\nno<|im_end|>\n")


def test_a_response_is_what_stands_behind_the_prompt():
    prompt = templated("chatml")
    assert read_response(f"{prompt}{GOOD}<|im_end|>\n<|endoftext|><|endoftext|>", prompt) == GOOD
    assert read_response(f"<s>{prompt}{GOOD} <3", prompt) == f"{GOOD} <3"
    with pytest.raises(DataError, match="the query does not contain its prompt"):
        read_response(GOOD, prompt)


# --- OpenRLHF -------------------------------------------------------------------------------------------------------------------------


def test_openrlhf_gets_raw_rewards_and_scores_between_0_and_1(environment, model):
    import torch

    prompt = f"<|im_start|>user\n{RIVER}<|im_end|>\n<|im_start|>assistant\n"
    answer = reward_func([f"{prompt}{GOOD}<|im_end|>", f"{prompt}{BAD}<|im_end|>"], [prompt, prompt], ["x", "y"], more=1)
    expected = rewards_of(model, RIVER, [GOOD, BAD])
    assert answer["rewards"].tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(answer["scores"], torch.sigmoid(answer["rewards"]))
    assert answer["extra_logs"]["dmoerm_failed"].tolist() == [0.0, 0.0]
    empty = reward_func([], [], [])
    assert empty["rewards"].shape == (0,)


def test_openrlhf_gets_an_error_for_what_cannot_be_scored_unless_it_is_told_the_worth(environment, caplog):
    with pytest.raises(DataError, match=r"a response cannot be scored: .*Set DMOERM_FAILURE_REWARD"):
        reward_func([f"{RIVER}<|im_end|>"], [RIVER], [None])
    environment.setenv("DMOERM_FAILURE_REWARD", "-5")
    with caplog.at_level(logging.WARNING, "dmoerm"):
        answer = reward_func([RIVER], [RIVER], [None])
    assert answer["rewards"].tolist() == [-5.0]
    assert answer["extra_logs"]["dmoerm_failed"].tolist() == [1.0]
    assert answer["extra_logs"]["dmoerm_uncertainty"].isnan().all()
    assert "1 of 1 responses could not be scored and get DMOERM_FAILURE_REWARD" in caplog.text
    environment.setenv("DMOERM_FAILURE_REWARD", "low")
    with pytest.raises(ConfigError, match="DMOERM_FAILURE_REWARD is 'low'; expected a number"):
        reward_func([RIVER], [RIVER], [None])


# --- verl -----------------------------------------------------------------------------------------------------------------------------


def test_verl_gets_the_reward_and_the_same_keys_for_every_sample(environment, model):
    import numpy as np

    message = {"role": "user", "content": RIVER}
    expected = rewards_of(model, RIVER, [GOOD])[0]
    for extra_info in ({"prompt": RIVER}, {"raw_prompt": [message]}, {"question": np.array([message], dtype=object)}):
        assert compute_score("data", GOOD, None, extra_info)["score"] == pytest.approx(expected, abs=1e-5)
    other = compute_score(data_source="data", solution_str=GOOD, ground_truth=1, extra_info={"task": RIVER}, prompt_key="task", more=2)
    failed = compute_score("data", "", None, {"prompt": RIVER}, failure_score=-3.0)
    assert list(other) == list(failed)
    assert (failed["score"], failed["dmoerm_failed"], other["dmoerm_failed"]) == (-3.0, 1.0, 0.0)
    with pytest.raises(DataError, match="a response cannot be scored"):
        compute_score("data", " ", None, {"prompt": RIVER})


def test_verl_without_a_prompt_is_told_where_to_put_it(environment):
    with pytest.raises(DataError, match=re.escape("extra_info holds index; expected prompt or raw_prompt or question")):
        compute_score("data", GOOD, None, {"index": 3})
    with pytest.raises(DataError, match="extra_info holds nothing; expected task"):
        compute_score("data", GOOD, None, None, prompt_key="task")


def test_a_process_loads_its_model_once_and_threads_take_turns(environment, monkeypatch, model):
    from dmoerm.modeling.reward_model import RewardModel

    loads = []
    monkeypatch.setattr(RewardModel, "from_pretrained", staticmethod(lambda name, **settings: loads.append(name) or model))
    answers = {}
    threads = [
        threading.Thread(target=lambda n=n: answers.update({n: compute_score("d", f"{GOOD} {n}", None, {"prompt": RIVER})}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [str(FOLDER)]
    expected = rewards_of(model, RIVER, [f"{GOOD} {n}" for n in range(4)])
    assert [answers[n]["score"] for n in range(4)] == pytest.approx(expected, abs=1e-5)


def test_a_missing_model_and_an_unknown_aggregation_say_what_to_set(environment):
    with pytest.raises(ConfigError, match="aggregation 'best'; expected one of mlp, mean, wco, uwo, task"):
        compute_score("data", GOOD, None, {"prompt": RIVER}, aggregation="best")
    environment.delenv("DMOERM_MODEL")
    with pytest.raises(ConfigError, match="no model is named: set DMOERM_MODEL"):
        compute_score("data", GOOD, None, {"prompt": RIVER})
