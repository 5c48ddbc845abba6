"""Inside a language model: heads, neurons and the residual stream, and what flows through some of them."""

import copy

import pytest
import torch
from test_language import PROMPT, bart, byte_level, t5, word_pieces

import fxlrp
from fxlrp.errors import ConditionError, InputError

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}


def llama(size):
    config = transformers.LlamaConfig(**WIDTHS, num_key_value_heads=2, intermediate_size=48, vocab_size=size)
    return transformers.LlamaForCausalLM(config)


def gpt2(size):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, vocab_size=size, initializer_range=0.3))


def neox(size):
    """Attention and perceptron read the same stream and are added together."""
    config = transformers.GPTNeoXConfig(**WIDTHS, intermediate_size=48, vocab_size=size, use_parallel_residual=True)
    return transformers.GPTNeoXForCausalLM(config)


def gemma2(size):
    """What blocks add is normalised before."""
    sizes = {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**WIDTHS, **sizes, vocab_size=size))


def made(kind, **options):
    tokenizer = byte_level()
    torch.manual_seed(0)
    return fxlrp.language_model(kind(len(tokenizer)).double().eval(), tokenizer, **options)


@pytest.fixture(scope="module")
def lm():
    return made(llama)


@pytest.fixture(scope="module")
def story(lm):
    return lm.explain(PROMPT, "Rome is it")


@pytest.fixture(scope="module")
def inside(lm):
    return lm.inside(PROMPT, "Rome is it")


@pytest.mark.parametrize("kind", [llama, gpt2, neox, gemma2])
def test_blocks_are_found_by_the_graph(kind):
    lm = made(kind)
    inside, story = lm.inside(PROMPT, "Rome"), lm.explain(PROMPT, "Rome")
    tokens = len(inside.tokens)
    assert inside.heads.shape == (2, 4, tokens)
    assert [amount.shape for amount in inside.neurons] == [(48, tokens)] * 2
    assert inside.residual.shape == (3, tokens)
    torch.testing.assert_close(inside.residual[0], story.total()[:tokens], atol=1e-5, rtol=1e-4)
    assert inside.residual[-1].sum() == pytest.approx(float(story.start.sum()), rel=1e-4)


def test_relevance_of_units_adds_up_to_that_of_what_their_layer_writes(inside):
    for layer in range(2):
        written = inside[f"blocks.{layer}.hook_attn_out"]
        torch.testing.assert_close(inside.heads[layer].sum(0), written, atol=1e-5, rtol=1e-3)
        written = inside[f"blocks.{layer}.hook_mlp_out"]
        torch.testing.assert_close(inside.neurons[layer].sum(0), written, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(inside["blocks.0.hook_resid_post"], inside["blocks.1.hook_resid_pre"])


def test_a_head_has_the_relevance_of_its_own_features(lm, inside):
    inputs, wanted, _, _ = lm._call(lm._asked(PROMPT, "Rome is it", None, None, 1))
    nodes = {node.name: node for node in lm.explainer.model_graph.nodes}
    node = nodes["model_layers_1_self_attn_o_proj"].all_input_nodes[0].name  # what the layer behind the heads reads
    features = lm.explainer.relevance_of(nodes=[node], target=wanted, **inputs)[node].sum(0)[0].float()
    for head in range(4):
        of_head = features[:, 8 * head : 8 * head + 8].sum(-1)
        torch.testing.assert_close(inside.heads[1, head], of_head, atol=1e-5, rtol=1e-4)


def test_relevance_inside_is_that_of_single_calls(lm, inside, story):
    rows = [lm.inside(PROMPT, "Rome is it", row=row, at_once=1) for row in range(len(story.rows))]
    for name, amount in inside.amounts.items():
        torch.testing.assert_close(sum(row.amounts[name] for row in rows), amount, atol=1e-5, rtol=1e-4)


def test_what_flows_through_a_layer_is_what_flows_through_its_units(lm, story):
    through = lm.explain(PROMPT, "Rome is it", conditions={"blocks.1.attn.hook_z": range(4)})
    each = [lm.explain(PROMPT, "Rome is it", conditions=[f"L1H{head}"]).matrix for head in range(4)]
    torch.testing.assert_close(sum(each), through.matrix, atol=1e-5, rtol=1e-4)
    asked = lm._asked(PROMPT, "Rome is it", None, None, 1)
    inputs, wanted, _, _ = lm._call(asked)
    masked = {"model.layers.1.self_attn.o_proj": torch.zeros(32)}
    without = lm.explainer.explain((), inputs, target=wanted, conditions=masked).by_input["input_ids"].sum(-1)[:, 0]
    expected = story.matrix[:, : without.shape[1]] - without.float()
    torch.testing.assert_close(through.matrix[:, : without.shape[1]], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(through.start, story.start)


def test_conditions_over_layers_keep_what_flows_through_any_of_them(lm, story):
    names = ["L0H1", "L1N7"]
    first, second = (lm.explain(PROMPT, "Rome is it", conditions=[name]).matrix for name in names)
    both = lm.explain(PROMPT, "Rome is it", conditions=names).matrix
    written = lm.explain(PROMPT, "Rome is it", conditions={"blocks.0.attn.hook_z": [1], "blocks.1.mlp.hook_post": [7]})
    torch.testing.assert_close(both, written.matrix)
    # What flows through both is counted once.
    assert not torch.allclose(both, first + second, atol=1e-6)
    assert float((both - first).abs().max()) <= float(second.abs().sum())


def test_ablated_units_are_zero_and_the_model_is_as_it_was(lm):
    model = lm.model
    ids = torch.arange(5, 17)[None]
    before = model(ids).logits
    silent = copy.deepcopy(model)
    with torch.no_grad():
        silent.model.layers[1].self_attn.o_proj.weight[:, 8:16] = 0
        silent.model.layers[0].mlp.down_proj.weight[:, 7] = 0
    with lm.ablated(["L1H1", "L0N7"]):
        torch.testing.assert_close(model(ids).logits, silent(ids).logits)
    assert torch.equal(model(ids).logits, before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_units_with_most_relevance_are_named(inside):
    name, value = inside.top_heads(1)[0]
    sums = inside.heads.sum(-1)
    layer, head = divmod(int(sums.abs().argmax()), 4)
    assert (name, value) == (f"L{layer}H{head}", pytest.approx(float(sums[layer, head])))
    (name, value), *_ = inside.top_neurons(3, token=4)
    values = torch.stack([amount[:, 4] for amount in inside.neurons])
    layer, neuron = divmod(int(values.abs().argmax()), 48)
    assert (name, value) == (f"L{layer}N{neuron}", pytest.approx(float(values[layer, neuron])))
    assert "heads: " in str(inside)


def test_masked_models_have_an_inside():
    tokenizer = word_pieces()
    torch.manual_seed(0)
    config = transformers.BertConfig(**WIDTHS, intermediate_size=48, vocab_size=len(tokenizer))
    lm = fxlrp.language_model(transformers.BertForMaskedLM(config).double().eval(), tokenizer)
    inside = lm.inside("the capital of [MASK] is rome.")
    assert inside.heads.shape == (2, 4, len(inside.tokens))
    assert len(inside.residual) == 3


@pytest.fixture(scope="module", params=[t5, pytest.param(bart, marks=pytest.mark.slow)])
def pair(request):
    """An encoder and a decoder."""
    tokenizer = word_pieces()
    torch.manual_seed(0)
    lm = fxlrp.language_model(request.param(tokenizer).double().eval(), tokenizer, "attnlrp")
    return lm, lm.explain(PROMPT, "Rome is it"), lm.inside(PROMPT, "Rome is it", stack="encoder"), lm.inside(
        PROMPT, "Rome is it"
    )


def test_an_encoder_and_a_decoder_have_an_inside_each(pair):
    lm, story, encoder, decoder = pair
    first = story.text.answer - 1
    assert (len(encoder.tokens), len(decoder.tokens)) == (first, len(story.text.ids) - 1 - first)
    for inside, columns in ((encoder, slice(first)), (decoder, slice(first, -1))):
        layers = len(inside.residual) - 1
        assert inside.heads.shape == (layers, 2, len(inside.tokens))
        if "hook_resid_mid_cross" in "".join(inside.amounts):
            assert inside.cross_heads.shape == inside.heads.shape
        if lm.model.config.model_type == "t5":  # the stream of BART begins behind a norm
            torch.testing.assert_close(inside.residual[0], story.total()[columns], atol=1e-5, rtol=1e-4)
    stream = decoder["decoder.0.hook_resid_mid_cross"] - decoder["decoder.0.hook_resid_mid"]
    assert stream.abs().max() > 1e-6  # what looks at the encoder is between the two
    written = decoder["decoder.0.hook_cross_attn_out"]
    torch.testing.assert_close(decoder.cross_heads[0].sum(0), written, atol=1e-5, rtol=1e-3)
    assert {name[0] for name, _ in encoder.top_heads()} == {"E"}
    assert {name[:1] + name[2] for name, _ in decoder.top_heads()} == {"DH", "DX"}
    with pytest.raises(InputError, match="no head looks"):
        _ = encoder.cross_heads
    with pytest.raises(InputError, match="choose 'encoder' or 'decoder'"):
        lm.inside(PROMPT, "Rome", stack="both")


def test_what_an_encoder_receives_flows_through_the_heads_that_look_at_it(pair):
    lm, story, *_ = pair
    layers = range(len(lm.inside(PROMPT, "Rome is it").residual) - 1)
    through = lm.explain(PROMPT, "Rome is it", conditions=[f"D{layer}X{head}" for layer in layers for head in (0, 1)])
    first = story.text.answer - 1
    torch.testing.assert_close(through.matrix[:, :first], story.matrix[:, :first], atol=1e-5, rtol=1e-4)
    ids, given = story.text.ids[None, :first], story.text.ids[None, first:-1]
    before = lm.model(input_ids=ids, decoder_input_ids=given).logits
    with lm.ablated([f"D{layer}X{head}" for layer in layers for head in (0, 1)]):
        silent, other = (lm.model(input_ids=some, decoder_input_ids=given).logits for some in (ids, ids.flip(1)))
        torch.testing.assert_close(silent, other)  # nothing of the encoder arrives
    assert torch.equal(lm.model(input_ids=ids, decoder_input_ids=given).logits, before)


def test_what_is_inside_is_data_and_a_picture(inside):
    pytest.importorskip("polars")
    pytest.importorskip("matplotlib")
    frame = inside.to_frame()
    heads = frame.filter(frame["name"] == "blocks.1.attn.hook_z")
    assert heads["relevance"].sum() == pytest.approx(float(inside.heads[1].sum()), abs=1e-5)
    assert len(inside.plot().axes) == 4


def test_what_goes_wrong_inside_says_what_to_write(lm, inside):
    for conditions, said in (
        (["L9H0"], "has no units"), (["L0H4"], "it has 4, 0 to 3"), (["head 3"], "a head is written L5H3"),
        ({"blocks.0.hook_resid_pre": [0]}, "has no units"), ({}, "names no unit"),
        ({"blocks.0.attn.hook_z": [-1]}, "unit -1"),
    ):  # fmt: skip
        with pytest.raises(ConditionError, match=said):
            lm.explain(PROMPT, "Rome", conditions=conditions)
    with pytest.raises(InputError, match=r"0 to \d"):
        lm.inside(PROMPT, "Rome", row=9)
    with pytest.raises(InputError, match="this one has one stack"):
        lm.inside(PROMPT, "Rome", stack="decoder")
    with pytest.raises(InputError, match="choose one of blocks"):
        inside["blocks.7.attn.hook_z"]
    with pytest.raises(InputError, match="no attention on a skip"):
        made(lambda size: transformers.MambaForCausalLM(
            transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=size, state_size=2)
        )).inside(PROMPT, "Rome")  # fmt: skip
