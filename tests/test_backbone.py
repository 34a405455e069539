"""The backbone: loading, refusing, naming; and rows into batches."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from dmoerm.errors import ArtifactError, ConfigError
from dmoerm.modeling import embedded as embedded_module
from dmoerm.modeling.backbone import Backbone, load_tokenizer
from dmoerm.modeling.batching import token_batches
from dmoerm.modeling.embedded import EMBEDDED_NAME, EMBEDDED_PACKAGE, EMBEDDED_SHA256, resolve_source


@pytest.fixture
def decoder(tiny_decoder_folder):
    return Backbone.load(str(tiny_decoder_folder)).eval()


@pytest.fixture
def encoder(tiny_encoder_folder):
    return Backbone.load(str(tiny_encoder_folder)).eval()


def copy_of(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / folder.name)


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


# --- loading ----------------------------------------------------------------------------------------------------------------------------


def test_a_loaded_backbone_has_the_weights_of_the_folder(tiny_encoder_folder, encoder):
    plain = AutoModel.from_pretrained(tiny_encoder_folder).eval()
    batch = load_tokenizer(str(tiny_encoder_folder))(["the rain", "a long road to the sea"], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden_BLD = plain(**batch).last_hidden_state
        mask_BL1 = batch["attention_mask"].unsqueeze(-1)
        got = encoder.pooled(batch)
    assert got.shape == (2, 1, 32)
    torch.testing.assert_close(got[:, 0], (hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1), atol=1e-5, rtol=0)


def test_encoders_pool_the_mean_and_decoders_the_last_token_unless_told_otherwise(encoder, decoder, tiny_decoder_folder):
    assert encoder.pooling == "mean"
    assert decoder.pooling == "last"
    assert Backbone.load(str(tiny_decoder_folder), pooling="mean").pooling == "mean"


@pytest.mark.faults("F21")
def test_a_checkpoint_with_missing_weights_is_refused(tiny_encoder_folder, tmp_path):
    folder = copy_of(tiny_encoder_folder, tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.3.output.dense.weight"))
    save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 weights are missing .*first: \['encoder\.layer\.3\.output\.dense\.weight'\]"):
        Backbone.load(str(folder))


def test_a_checkpoint_with_fewer_layers_than_its_config_is_refused(tiny_decoder_folder, tmp_path):
    folder = copy_of(tiny_decoder_folder, tmp_path)
    change_config(folder, num_hidden_layers=5, layer_types=["full_attention"] * 5)
    with pytest.raises(ConfigError, match=r"\d+ weights are missing"):
        Backbone.load(str(folder))


def test_a_missing_pooler_is_no_reason_to_refuse_since_nothing_reads_it(tiny_encoder_folder, tmp_path):
    folder = copy_of(tiny_encoder_folder, tmp_path)
    weights = load_file(folder / "model.safetensors")
    assert any("pooler" in name for name in weights)
    save_file(
        {key: value for key, value in weights.items() if "pooler" not in key}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    assert not any("pooler" in name for name, _ in Backbone.load(str(folder)).named_parameters())


def test_a_name_that_cannot_be_resolved_is_a_config_error():
    with pytest.raises(ConfigError, match="no-such-folder"):
        Backbone.load("./no-such-folder")


def test_the_packaged_minilm_is_the_published_file():
    pytest.importorskip(EMBEDDED_PACKAGE)
    assert EMBEDDED_SHA256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert resolve_source(EMBEDDED_NAME) != EMBEDDED_NAME


def test_a_packaged_minilm_with_another_sha_is_refused(monkeypatch):
    pytest.importorskip(EMBEDDED_PACKAGE)
    monkeypatch.setattr(embedded_module, "EMBEDDED_SHA256", "0" * 64)
    for load in (Backbone.load, load_tokenizer, resolve_source):
        with pytest.raises(ArtifactError, match=r"SHA-256 is 53aa5117.*, the published .*MiniLM-L6-v2 has 0000.*Reinstall with:"):
            load(EMBEDDED_NAME)


def test_other_names_are_taken_as_they_are(tmp_path):
    assert resolve_source("some/model") == "some/model"
    assert resolve_source(str(tmp_path)) == str(tmp_path)


# --- adapters ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "first"), [(1, 3), (2, 2), (4, 0), ("all", 0), ("third", 3), ("sixth", 3)])
def test_depth_counts_layers_from_the_top(decoder, depth, first):
    assert decoder.first_layer(depth) == first


@pytest.mark.parametrize("depth", [0, -1, 5, 100])
def test_a_depth_that_does_not_fit_is_refused(decoder, depth):
    with pytest.raises(
        ConfigError, match=rf"depth {depth} does not fit .*tiny-decoder, which has 4 layers; use 1 to 4, 'sixth', 'third' or 'all'"
    ):
        decoder.add_experts("qa", 3, depth=depth, rank=2, alpha=2, dropout=0.0)
    assert decoder.adapter_config == {}


@pytest.mark.faults("F21")
def test_target_modules_that_match_nothing_are_refused_with_the_names_there_are(tiny_encoder_folder):
    with pytest.raises(ConfigError, match=r"0 modules matched q_proj, v_proj; this model's layers have: dense, key, query, value\."):
        Backbone.load(str(tiny_encoder_folder), target_modules=["q_proj", "v_proj"])


@pytest.mark.faults("F21")
def test_target_modules_of_which_one_matches_nothing_are_refused(tiny_decoder_folder):
    with pytest.raises(ConfigError, match=r"0 modules matched value; this model's layers have: .*q_proj"):
        Backbone.load(str(tiny_decoder_folder), target_modules=["q_proj", "value"])


def test_the_default_targets_are_the_query_and_value_projections(encoder, decoder):
    assert encoder.target_modules == ("query", "value")
    assert decoder.target_modules == ("q_proj", "v_proj")


def test_adapters_are_named_by_the_path_of_their_layer_in_the_plain_model(tiny_encoder_folder, encoder):
    encoder.add_experts("qa", 2, depth=1, rank=2, alpha=2, dropout=0.0)
    assert sorted(encoder.adapters("experts", "qa")) == [
        "encoder.layer.3.attention.self.query",
        "encoder.layer.3.attention.self.value",
    ]
    plain = dict(AutoModel.from_pretrained(tiny_encoder_folder).named_modules())
    assert all(isinstance(plain[path], torch.nn.Linear) for path in encoder.adapters("experts", "qa"))


def test_a_frozen_backbone_learns_nothing_but_its_adapters(decoder):
    decoder.add_experts("qa", 2, depth=1, rank=2, alpha=2, dropout=0.0)
    # rank 2, two experts: A 2·32 and B 64·2 for the query (4 heads of 16), A 2·32 and B 32·2 for the value (2 heads of 16)
    assert sum(parameter.numel() for parameter in decoder.parameters() if parameter.requires_grad) == 2 * ((64 + 128) + (64 + 64))


# --- fingerprint ------------------------------------------------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_a_single_weight(decoder, tiny_decoder_folder):
    before = decoder.fingerprint()
    assert Backbone.load(str(tiny_decoder_folder)).fingerprint() == before
    weight = decoder.layers[2].layer.mlp.up_proj.weight
    value = weight[3, 4].item()
    with torch.no_grad():
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
    assert decoder.fingerprint() != before
    with torch.no_grad():
        weight[3, 4] = value
    assert decoder.fingerprint() == before


def test_the_fingerprint_does_not_depend_on_adapters_or_on_what_is_adapted(decoder, tiny_decoder_folder):
    before = decoder.fingerprint()
    decoder.add_task_adapter("qa", depth="all", rank=2, alpha=2, dropout=0.0)
    decoder.add_experts("qa", 3, depth=1, rank=2, alpha=2, dropout=0.0)
    assert decoder.fingerprint() == before
    assert Backbone.load(str(tiny_decoder_folder), target_modules=["down_proj", "o_proj"]).fingerprint() == before


# --- tokenizer --------------------------------------------------------------------------------------------------------------------------


def without_pad(tokenizer, folder, **special):
    """Folder of a copy of `tokenizer` that names no padding token; `special` sets others, None takes them away."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key != "pad_token"} | special
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), encoding="utf-8")
    assert AutoTokenizer.from_pretrained(folder).pad_token_id is None
    return str(folder)


@pytest.mark.faults("F21")
def test_a_tokenizer_without_a_pad_token_gets_one_that_is_not_its_end_token(tiny_chat_tokenizer, tmp_path):
    tokenizer = load_tokenizer(without_pad(tiny_chat_tokenizer, tmp_path))
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_an_unknown_token_that_is_the_end_token_is_not_padded_with(tiny_chat_tokenizer, tmp_path):
    folder = without_pad(tiny_chat_tokenizer, tmp_path, unk_token="<|im_end|>")
    try:
        tokenizer = load_tokenizer(folder)
    except ConfigError:
        return
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.faults("F21")
def test_a_tokenizer_with_nothing_to_pad_with_is_refused(tiny_chat_tokenizer, tmp_path):
    folder = without_pad(tiny_chat_tokenizer, tmp_path, unk_token=None)
    with pytest.raises(ConfigError, match=r"has no padding token\. Add one"):
        load_tokenizer(folder)


def test_the_shared_tokenizers_survive_saving(tiny_tokenizer, tiny_chat_tokenizer, tiny_encoder_folder, tiny_decoder_folder):
    for built, folder in ((tiny_tokenizer, tiny_encoder_folder), (tiny_chat_tokenizer, tiny_decoder_folder)):
        loaded = load_tokenizer(str(folder))
        text = "Why is the Sea blue? 42 [SEP]<|im_end|>"
        assert loaded(text) == built(text)
        assert loaded.pad_token_id == 0
        assert loaded.is_fast
    messages = [{"role": "user", "content": "rain"}, {"role": "assistant", "content": "snow"}]
    assert load_tokenizer(str(tiny_decoder_folder)).apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>user\nrain<|im_end|>\n<|im_start|>assistant\nsnow<|im_end|>\n"
    )


# --- batches ----------------------------------------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(0, 300), max_size=60),
    max_tokens=st.integers(1, 1000),
    max_rows=st.integers(1, 20),
)
def test_token_batches_hold_every_row_once_and_keep_their_budget(lengths, max_tokens, max_rows):
    batches = list(token_batches(lengths, max_tokens, max_rows=max_rows))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= max_tokens


def test_token_batches_go_from_the_longest_row_to_the_shortest_and_keep_the_order_of_equal_ones():
    assert list(token_batches([3, 5, 3, 1], 6)) == [[1], [0, 2], [3]]  # 1·5, 2·3, then 1·1


def test_a_row_longer_than_the_budget_gets_a_batch_of_its_own():
    assert list(token_batches([2, 9, 2], 4)) == [[1], [0, 2]]
