"""Whole transformers of torchvision, timm and Hugging Face, on small random weights."""

import pytest
import torch
import torchvision
from checks import assert_close, assert_conserves, assert_explains
from torch import nn

import fxlrp

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 60,
}  # fmt: skip


def classifiers(transformers):
    """Models of (batch, labels) logits, by name."""
    t = transformers
    distil = {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32, "vocab_size": 60}
    return {
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**SIZES)),
        "roberta": lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**SIZES)),
        "distilbert": lambda: t.DistilBertForSequenceClassification(t.DistilBertConfig(**distil)),
    }


def language_models(transformers):
    """Models of (batch, tokens, vocabulary) logits, by name."""
    t = transformers
    gpt2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 60, "bos_token_id": 0, "eos_token_id": 0}
    return {
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**gpt2)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=2)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SIZES, num_key_value_heads=2)),
    }


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture
def text():
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": torch.randint(3, 60, (2, 7)), "attention_mask": mask}


def assert_tokens_conserve(explainer, model, text, limit=1e-10):
    explanation, ledger = explainer(**text), explainer.ledger(**text)
    with torch.no_grad():
        assert torch.equal(explanation.output[0], model(**text)[0])
    assert (ledger.error.abs() <= limit * ledger.start.abs()).all()
    assert all((row.error.abs() <= limit * ledger.start.abs()).all() for row in ledger)
    assert not any(amount.any() for amount in ledger.absorbed.values())
    tokens = fxlrp.token_relevance(explanation.by_input["input_ids"])
    assert torch.isfinite(tokens).all()
    assert not explanation.by_input["attention_mask"].any()
    alone = explainer(**{name: value[:1] for name, value in text.items()})
    assert_close(alone.by_input["input_ids"], explanation.by_input["input_ids"][:1])
    return tokens


def sample(fast, *long):
    """The first by default, the others in the long sweep."""
    return pytest.mark.parametrize("name", [fast, *(pytest.param(name, marks=pytest.mark.slow) for name in long)])


@sample("bert", "roberta", "distilbert")
def test_text_classifiers(transformers, text, name):
    model = classifiers(transformers)[name]().double().eval()
    explainer = fxlrp.compile(model, "conserving")
    tokens = assert_tokens_conserve(explainer, model, text)
    assert not tokens[1, 5:].any()  # padding
    longer = torch.randint(3, 60, (1, 11))
    explanation = explainer(input_ids=longer, attention_mask=torch.ones_like(longer))
    assert explanation.by_input["input_ids"].shape == (1, 11, 16)


@sample("llama", "gpt2", "qwen2")
def test_language_models(transformers, text, name):
    model = language_models(transformers)[name]().double().eval()
    explainer = fxlrp.compile(model, "conserving", output=lambda out: out.logits[:, 4])
    tokens = assert_tokens_conserve(explainer, model, text)
    assert not tokens[:, 5:].any()  # what comes later has no part in it
    assert tokens[:, 4].all()


@pytest.mark.slow
def test_an_encoder_whose_output_is_no_class(transformers, text):
    config = transformers.T5Config(d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, vocab_size=60)
    model = transformers.T5EncoderModel(config).double().eval()
    magnitude = {"output": "last_hidden_state", "start": lambda output, target: output.abs()}
    explainer = fxlrp.compile(model, "conserving", **magnitude)
    assert_tokens_conserve(explainer, model, text)


@pytest.mark.slow
def test_an_image_transformer_of_hugging_face(transformers):
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, image_size=16, patch_size=8
    )
    model = transformers.ViTForImageClassification(config).double().eval()
    assert_conserves(fxlrp.compile(model, "conserving"), torch.randn(2, 3, 16, 16).double(), absorbs=("constant",))


def awake(model):
    """With nothing at zero that would hide a branch."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.01)
    return model.eval()


def test_a_small_vision_transformer():
    model = torchvision.models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    model = awake(model).double()
    explainer, _ = assert_explains(model, torch.randn(2, 3, 32, 32).double(), absorbs=("constant",))
    assert explainer.capture == "symbolic"
    assert {join.kind for join in explainer.joins} == {"identity"}


SIZE = {"vit_b_32": 224, "swin_t": 64, "swin_v2_t": 64, "maxvit_t": 224}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZE)
def test_torchvision_transformers(name):
    size = SIZE[name]
    model = awake(torchvision.models.get_model(name, weights=None))
    assert_conserves(fxlrp.compile(model, "conserving"), torch.randn(1, 3, size, size), absorbs=("constant",))


TIMM = (
    "test_vit", "test_vit2", "levit_128s", "edgenext_xx_small", "efficientvit_b0", "mobilevitv2_050", "pit_xs_224",
    "deit_tiny_patch16_224", "shvit_s1", "efficientvim_m1", "cait_xxs24_224", "xcit_nano_12_p16_224",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm_transformers(name):
    timm = pytest.importorskip("timm")
    model = awake(timm.create_model(name))
    size = model.default_cfg["input_size"]
    assert_conserves(fxlrp.compile(model, "conserving"), torch.randn(1, *size), absorbs=("constant",))


@pytest.mark.slow
def test_a_segmentation_from_a_start_of_ones_own():
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()

    def of_class(output, target):
        wanted = nn.functional.one_hot(target, output.shape[1]).to(output)[:, :, None, None]
        return output.softmax(dim=1) * wanted

    explainer = fxlrp.compile(model, "conserving", start=of_class)
    x = torch.randn(2, 3, 64, 64)
    assert_conserves(explainer, x, target=torch.tensor([3, 15]))
    assert explainer(x, 3).output["out"].shape == (2, 21, 64, 64)
