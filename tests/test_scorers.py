"""Our models, published classifiers and rules give rewards through one method."""

import json

import pytest

from dmoerm.errors import ArtifactError
from dmoerm.evaluation.scorers import Candidates, ClassifierScorer, Longest, open_scorer
from dmoerm.records import Message

ONE = Candidates((Message("user", "tell me about the river"),), ("good clear river", "bad cold stone and a long garden"))


@pytest.fixture(scope="module")
def classifier(tiny_classifier_folder):
    """Its folder, model and tokenizer."""
    from transformers import AutoTokenizer, Qwen3ForSequenceClassification

    model = Qwen3ForSequenceClassification.from_pretrained(tiny_classifier_folder).eval()
    return tiny_classifier_folder, model, AutoTokenizer.from_pretrained(tiny_classifier_folder)


def test_a_classifier_is_scored_by_its_own_template_and_its_raw_logit(classifier):
    import torch

    folder, model, tokenizer = classifier
    (rewards,) = ClassifierScorer(str(folder)).score([ONE])
    for response, reward in zip(ONE.responses, rewards, strict=True):
        turns = [{"role": "user", "content": ONE.prompt[0].content}, {"role": "assistant", "content": response}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            assert reward == pytest.approx(model(**ids).logits.item(), abs=1e-5)


def test_a_batch_changes_no_reward(classifier):
    scorer = ClassifierScorer(str(classifier[0]))
    together = scorer.score([ONE, Candidates(ONE.prompt, ("good",))])
    assert together[0] == pytest.approx(scorer.score([ONE])[0], abs=1e-5)
    assert [len(rewards) for rewards in together] == [2, 1]


def test_a_classifier_without_its_head_or_with_two_labels_is_refused(classifier, tiny_decoder_folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    headless = tmp_path / "headless"
    shutil.copytree(classifier[0], headless)
    weights = load_file(headless / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if not name.startswith("score")}, headless / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ArtifactError, match=r"weights are missing \(score\.weight\) and would be random"):
        ClassifierScorer(str(headless))
    two = tmp_path / "two"
    shutil.copytree(classifier[0], two)
    config = json.loads((two / "config.json").read_text(encoding="utf-8"))
    config |= {"id2label": {"0": "A", "1": "B"}, "label2id": {"A": 0, "B": 1}}
    (two / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ArtifactError, match="2 labels; expected a reward model with one"):
        ClassifierScorer(str(two))


def test_a_name_opens_the_scorer_that_it_stands_for(classifier):
    assert isinstance(open_scorer("longest"), Longest)
    assert isinstance(open_scorer(str(classifier[0])), ClassifierScorer)
    assert open_scorer("longest").score([ONE]) == [[16.0, 32.0]]
    with pytest.raises(ArtifactError):
        open_scorer("no/such-model-anywhere")
