"""What several test modules share: a small tokenizer and two tiny models on disk, made on the spot, the same every time.

Torch and transformers are imported inside the fixtures, so that tests of the light modules stay light.
"""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is first imported; no test may reach the network
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process of tests for each core, and tiny models: more threads would only wait

WORDS = """
a able about above across act after again against age ago agree air all almost alone along already also although always am among an and
animal another answer any anyone anything are area argue around art as ask at author away back bad bake balance bank base be because
become bed been before begin behind being believe best better between big bird black blue board body book both bread break bring build
business but butter buy by call came can capital car care case cat cause center century certain change chapter character check child
choose city class clear close cloud code cold color come common company compare complete consider contain cook correct cost could count
country course cover create cup cut dark data day dear decide deep describe did difference different do doctor does dog done door down
draw dream drink drive dry during each early earth easy eat edge effect eight either else empty end energy english enough evening event
every exact example explain eye face fact fall family far fast father feel few field fill find fire first fish five flour fly follow food
for force form four free french friend from front full game garden gave general get girl give glass go gold good grass great green ground
group grow had half hand happy hard has have he head hear heart heat help her here high him his history hold home honest hope horse hot
hour house how however human hundred i idea if important in inside into is it its just keep kind king kitchen know land language large
last late laugh law lead learn leave left less let letter level life light like line list listen little live long look lose love low made
main make man many mark matter may me mean measure meet mind minute moment money month moon more morning most mother mountain move much
music must my name near need never new next night no north not note nothing now number of off often oil old on once one only open or
order other our out over own page paper paris part people perhaps person picture piece place plain plan plant play please poem point poor
possible power present price problem prove pull put question quick quiet rain read ready real reason red remember reply rest rich right
rise river road rock room round rule run said salt same saw say school sea second see seem sentence set seven several shall she ship short
should show side simple since sing sister sit six sky sleep slow small snow so soft some something song soon sorry sound south space speak
spring stand star start state stay step still stone stop story street strong study such sugar summer sun sure table take talk teach tell
ten test than that the their them then there these they thing think this those though thousand three through time to today together told
too took top town tree true try turn two under understand until up us use very voice wait walk wall want war warm was watch water way we
weather week well went were west what when where whether which while white who whole why wind window winter wish with without woman wonder
word work world would write wrong year yes yet you young your zero system user assistant 0 1 2 3 4 5 6 7 8 9 10 12 20 50 100 1000
. , : ; ! ? ' " ( ) - + * / = # _
""".split()

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(*, chat: bool, words=WORDS):
    """A fast whole-word tokenizer: BERT's special tokens, or with `chat` a ChatML-like template and its turn markers."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "<|im_start|>", "<|im_end|>"] if chat else ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core = Tokenizer(WordLevel({word: index for index, word in enumerate([*special, *words])}, unk_token="[UNK]"))
    core.normalizer = Lowercase()
    core.pre_tokenizer = BertPreTokenizer()  # white space, and every mark by itself
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 128}
    if chat:
        return PreTrainedTokenizerFast(
            tokenizer_object=core,
            **names,
            eos_token="<|im_end|>",
            additional_special_tokens=["<|im_start|>", "<|im_end|>"],
            chat_template=CHAT_TEMPLATE,
            model_input_names=["input_ids", "attention_mask"],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **names,
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture
def tiny_tokenizer():
    """BERT-like: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, then some hundred lower-case words, digits and marks; each test gets its own."""
    return build_tokenizer(chat=False)


@pytest.fixture
def tiny_chat_tokenizer():
    """As `tiny_tokenizer`, with <|im_start|> 2 and <|im_end|> 3 (the end token) and a ChatML-like template."""
    return build_tokenizer(chat=True)


def save_model(folder, config, tokenizer):
    """Seeded random weights of a config and the tokenizer, as AutoModel and AutoTokenizer read them; wider than usual, so texts differ."""
    import torch
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20240305)
        model = AutoModel.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory):
    """A BERT of hidden size 32 with 4 layers, and the tokenizer of `tiny_tokenizer`. Read-only: copy it before changing files."""
    from transformers import BertConfig

    tokenizer = build_tokenizer(chat=False)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.2,
        pad_token_id=0,
    )
    return save_model(tmp_path_factory.mktemp("models") / "tiny-encoder", config, tokenizer)


def tiny_qwen3(tokenizer, **changes):
    """The shape of a Qwen3 of hidden size 32."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=3,
        bos_token_id=None,
        **changes,
    )


@pytest.fixture(scope="session")
def tiny_decoder_folder(tmp_path_factory):
    """A Qwen3 of hidden size 32 with 4 layers, and the tokenizer of `tiny_chat_tokenizer`. Read-only: copy it before changing files."""
    tokenizer = build_tokenizer(chat=True)
    config = tiny_qwen3(tokenizer, num_hidden_layers=4)
    return save_model(tmp_path_factory.mktemp("models") / "tiny-decoder", config, tokenizer)


@pytest.fixture(scope="session")
def tiny_policy_folder(tmp_path_factory):
    """A Qwen3 language model of hidden size 32 with 2 layers that says words at random, and the tokenizer of `tiny_chat_tokenizer`."""
    import torch
    from transformers import Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("policy") / "tiny-policy"
    tokenizer = build_tokenizer(chat=True)
    config = tiny_qwen3(tokenizer, num_hidden_layers=2, tie_word_embeddings=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_classifier_folder(tmp_path_factory, tiny_decoder_folder):
    """A published reward model in small: a Qwen3 classifier with one label, on the tokenizer of `tiny_decoder_folder`. Read-only."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, Qwen3ForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder_folder)
    config = AutoConfig.from_pretrained(tiny_decoder_folder)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3ForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pytest_collection_modifyitems(items):
    """Write the ids of fault cases into what is reported of a test, where other processes of a parallel run can read them."""
    for item in items:
        item.user_properties += [("fault", case) for mark in item.iter_markers("faults") for case in mark.args]


def pytest_terminal_summary(terminalreporter, config):
    """With `-m faults`, a line for each id of docs/faults.md: how many tests of it passed and failed."""
    if "faults" not in (config.option.markexpr or "").replace("not faults", ""):
        return
    counts = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, case in getattr(report, "user_properties", ()):
                if name == "fault":
                    found = counts.setdefault(case, {})
                    found[outcome] = found.get(outcome, 0) + 1
    terminalreporter.section("fault cases")
    for case, found in sorted(counts.items()):
        terminalreporter.write_line(f"{case}: " + ", ".join(f"{number} {outcome}" for outcome, number in found.items()))
