"""The decoder is transformers' Llama: same names, same numbers."""

import pytest
import torch
from pico_train.model.decoder import Decoder, DecoderConfig
from pico_train.model.hf import hf_config, load_weights
from pico_train.seeds import generator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "grouped": DecoderConfig(61, 32, 48, 2, 4, 2, 64),
    "full": DecoderConfig(97, 24, 40, 3, 3, 3, 32, rope_theta=5000.0),
    "single": DecoderConfig(50, 16, 32, 1, 4, 1, 16, rms_norm_eps=1e-5),
    "tied": DecoderConfig(61, 32, 48, 2, 8, 2, 64, tie_word_embeddings=True),
}


def make(config: DecoderConfig, seed: int = 0) -> Decoder:
    model = Decoder(config)
    model.init_weights(lambda name: generator(seed, name))
    with torch.no_grad():  # norms other than one, and activations of order one, so that nothing is tested at zero
        for name, parameter in model.named_parameters():
            parameter.mul_(4.0) if parameter.dim() > 1 else parameter.normal_(1.0, 0.2, generator=generator(1, name))
    return model


def twin(model: Decoder, attention: str = "eager") -> LlamaForCausalLM:
    # No pad id here: transformers would keep the gradient of its row of the embedding at zero.
    hf = LlamaForCausalLM(LlamaConfig(**hf_config(model.config, {"eos": 0}), attn_implementation=attention))
    hf.load_state_dict(model.state_dict(), strict=True)
    return hf


def tokens(config: DecoderConfig, rows: int = 3, length: int = 11) -> torch.Tensor:
    return torch.randint(config.vocab_size, (rows, length), generator=generator(5, "tokens"))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_equal_hugging_face(shape):
    model = make(SHAPES[shape])
    hf, ids = twin(model), tokens(SHAPES[shape])
    torch.testing.assert_close(model(ids), hf(ids).logits, rtol=1e-5, atol=1e-5)

    loss = model(ids[:, :-1], labels=ids[:, 1:]) / ids[:, 1:].numel()
    reference = hf(ids, labels=ids).loss
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=1e-6)
    loss.backward()
    reference.backward()
    expected = dict(hf.named_parameters())
    for name, parameter in model.named_parameters():
        scale = expected[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-5, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_rounds_where_hugging_face_does(shape):
    """Norms, rotation and residual stream in float32, products in bfloat16: nothing differs but products' kernels."""
    model = make(SHAPES[shape])
    hf, ids = twin(model, "sdpa"), tokens(SHAPES[shape], length=16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = model(ids), hf(ids).logits
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert (ours != theirs).float().mean() < 0.01


def test_parameter_names_are_the_contract():
    """The names that checkpoints, snapshots and analysis rely on."""
    names = [name for name, _ in Decoder(DecoderConfig(8, 8, 8, 1, 2, 1, 8)).named_parameters()]
    assert names == [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.norm.weight",
        "lm_head.weight",
    ]
    assert list(Decoder(DecoderConfig(8, 8, 8, 1, 2, 1, 8)).state_dict()) == names


def test_two_shapes_live_in_one_process():
    first, second = make(SHAPES["grouped"]), make(SHAPES["full"])
    before = first(tokens(SHAPES["grouped"]))
    second(tokens(SHAPES["full"]))
    assert torch.equal(before, first(tokens(SHAPES["grouped"])))


def test_initialisation_depends_on_seed_and_name_only():
    small, deep = Decoder(DecoderConfig(61, 32, 48, 1, 4, 2, 64)), Decoder(DecoderConfig(61, 32, 48, 2, 4, 2, 64))
    for model in (deep, small):
        model.init_weights(lambda name: generator(3, "init", name))
    shared = dict(deep.named_parameters())
    assert all(torch.equal(parameter, shared[name]) for name, parameter in small.named_parameters())
    assert not torch.equal(shared["model.layers.0.mlp.up_proj.weight"], shared["model.layers.1.mlp.up_proj.weight"])
    assert abs(shared["model.embed_tokens.weight"].std().item() - 0.02) < 0.002


@pytest.mark.parametrize("shape", ["grouped", "tied"])
def test_a_meta_decoder_takes_weights_without_copying(shape):
    model = make(SHAPES[shape])
    with torch.device("meta"):
        other = Decoder(SHAPES[shape])
    load_weights(other, {name: p.detach() for name, p in model.named_parameters()}, assign=True)
    assert other.model.embed_tokens.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    ids = tokens(SHAPES[shape])
    assert torch.equal(other(ids), model(ids))
    assert len(list(other.parameters())) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_size": 30}, "does not divide hidden_size"),
        ({"num_key_value_heads": 3}, "does not divide num_attention_heads"),
        ({"hidden_size": 12}, "even head width"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ],
)
def test_impossible_geometry_is_named(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        DecoderConfig(**{"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, **change})


class _Shapes(TorchDispatchMode):
    """Shapes of every tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen.update(tuple(x.shape) for x in tree_leaves(out) if isinstance(x, torch.Tensor))
        return out


def test_no_attention_mask_is_materialised():
    config, length = SHAPES["grouped"], 37  # a length that is no other size of the model
    model, ids = make(config), tokens(config, rows=3, length=length)
    with _Shapes() as shapes:
        model(ids, labels=ids).backward()
    assert (3, length, config.hidden_size) in shapes.seen
    assert not [shape for shape in shapes.seen if shape.count(length) > 1]
    with _Shapes() as shapes:
        twin(model)(ids)
    assert [shape for shape in shapes.seen if shape[-2:] == (length, length)]  # what it would look like
