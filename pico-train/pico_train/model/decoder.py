"""A LLaMA-style decoder under the names of Hugging Face's Llama, to be read from top to bottom.

Shapes: B batch, T tokens, D width, F feed-forward width, H query heads, K key-value heads, d head
width, V vocabulary.

Token ids (B, T) are looked up in the embedding (B, T, D); every layer adds attention and a
feed-forward network to them; the head turns the result into logits (B, T, V). The layers below are
the definition. Other ways to compute the same numbers, with less memory or compiled, are swapped in
by model/execution.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from pico_train.model.loss import fused_loss_sum, plain_loss_sum, token_nll


@dataclass(frozen=True)
class DecoderConfig:
    """Geometry, in the terms of Hugging Face's LlamaConfig. The defaults are pico-decoder tiny."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    vocab_size: int = 50_304
    """Rows of the embedding and of the head."""
    hidden_size: int = 96
    """Width D of the residual stream."""
    intermediate_size: int = 384
    """Width of the feed-forward layers."""
    num_hidden_layers: int = 12
    """Layers."""
    num_attention_heads: int = 12
    """Query heads H; D / H is the head width."""
    num_key_value_heads: int = 4
    """Key-value heads K, each shared by H / K query heads."""
    max_position_embeddings: int = 2048
    """Longest sequence, tokens."""
    rope_theta: float = 10_000.0
    """Base of the rotary position embedding."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    tie_word_embeddings: bool = False
    """Whether the head shares the embedding's weight."""
    initializer_range: float = 0.02
    """Standard deviation of every matrix at initialisation."""

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        width, heads = self.hidden_size, self.num_attention_heads
        kv_heads = self.num_key_value_heads
        if width % heads:
            raise ValueError(
                f"num_attention_heads ({heads}) does not divide hidden_size ({width})"
            )
        if heads % kv_heads:
            raise ValueError(
                f"num_key_value_heads ({kv_heads}) does not divide num_attention_heads ({heads})"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"hidden_size / num_attention_heads is {self.head_dim};"
                " rotary embeddings need an even head width"
            )

    @property
    def head_dim(self) -> int:
        """Width d of one head."""
        return self.hidden_size // self.num_attention_heads


_POSITIVE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    *("rope_theta", "rms_norm_eps", "initializer_range"),
)
"""Fields of a `DecoderConfig` that are refused unless they are positive."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Rotary:
    """cos and sin of the rotary position embedding (Su et al. 2021), rotate-half layout, float32.

    A plain object of one model, neither a buffer nor shared by a class: models of different shapes
    live side by side, the state dict holds nothing of it, and a model built on the meta device
    computes the tables where it first runs.
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        self.head_dim, self.theta = head_dim, theta
        self._cos = self._sin = torch.empty(0, device="cpu")

    def tables(
        self, start: int, stop: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (cos, sin) of the positions start..stop-1, each (T, d)."""
        if self._cos.shape[0] < stop or self._cos.device != device:
            # The next power of two: decoding token by token seldom computes the tables anew.
            self._compute(1 << (stop - 1).bit_length(), device)
        return self._cos[start:stop], self._sin[start:stop]

    def _compute(self, length: int, device: torch.device) -> None:
        # Tables made in inference mode could not be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            # Pair i turns by theta^(-2 i / d) a position: fast pairs tell neighbours apart, slow
            # ones distant tokens.
            even = torch.arange(0, self.head_dim, 2, device=device, dtype=torch.float32)
            exponents = even / self.head_dim
            frequencies = 1.0 / self.theta**exponents  # (d / 2,)
            positions = torch.arange(length, device=device, dtype=torch.float32)
            angles = torch.outer(positions, frequencies)  # (T, d / 2)
            # Dimensions i and i + d / 2 are one pair and turn by the same angle.
            angles = torch.cat((angles, angles), dim=-1)  # (T, d)
            self._cos = angles.cos()
            self._sin = angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + d/2) of the last dimension of x (B, heads, T, d) by position.

    A query at position m and a key at position n, each turned by its own angle, have a product that
    depends on m - n alone. The rotation is computed in float32 also for bfloat16 x, as Hugging Face
    does under autocast: cos and sin of 8 bits blur positions.
    """
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)  # each pair (a, b) as (-b, a)
    return (x * cos + turned * sin).to(x.dtype)


class KVCache:
    """Keys and values of the tokens seen so far, per layer."""

    def __init__(self, layers: int) -> None:
        self.keys: list[torch.Tensor | None] = [None] * layers
        self.values: list[torch.Tensor | None] = [None] * layers

    @property
    def length(self) -> int:
        """Number of tokens seen."""
        return 0 if self.keys[0] is None else self.keys[0].shape[2]

    def append(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new keys and values to `layer`; return all of them, each (B, K, T so far, d)."""
        old_key = self.keys[layer]
        old_value = self.values[layer]
        if old_key is not None and old_value is not None:
            key = torch.cat((old_key, key), dim=2)
            value = torch.cat((old_value, value), dim=2)
        self.keys[layer] = key
        self.values[layer] = value
        return key, value


class Attention(nn.Module):
    """Causal self-attention with grouped queries (Ainslie et al. 2023)."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        # Sharing keys and values among `groups` query heads makes the cache that much smaller.
        self.groups = config.num_attention_heads // config.num_key_value_heads
        width = config.hidden_size
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: KVCache | None
    ) -> torch.Tensor:
        batch, tokens, width = x.shape
        query = rotate(self._heads(self.q_proj(x)), cos, sin)  # (B, H, T, d)
        key = rotate(self._heads(self.k_proj(x)), cos, sin)  # (B, K, T, d)
        value = self._heads(self.v_proj(x))  # (B, K, T, d)
        if cache is not None:
            key, value = cache.append(self.layer, key, value)
        # softmax(query key^T / sqrt(d)) value for each head; no mask (T, T) is ever materialised.
        # A single new token sees everything. Several see a causal triangle, which a non-empty cache
        # would have to shift: callers therefore feed a prompt whole and then one token at a time.
        mixed = F.scaled_dot_product_attention(
            query, self._shared(key), self._shared(value), is_causal=tokens > 1
        )  # (B, H, T, d)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, heads * d) -> (B, heads, T, d)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _shared(self, x: torch.Tensor) -> torch.Tensor:
        """(B, K, T, d) -> (B, H, T, d): the H / K query heads of a group are neighbours."""
        return x if self.groups == 1 else x.repeat_interleave(self.groups, dim=1)


class SwiGLU(nn.Module):
    """The gated activation silu(gate) * up (Shazeer 2020); it has no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.silu = nn.SiLU()

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return self.silu(gate) * up


class MLP(nn.Module):
    """The feed-forward network down(silu(gate(x)) * up(x)), applied to each token by itself."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = SwiGLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # silu(gate) decides for each of F features how much of `up` passes.
        activated = self.act_fn(self.gate_proj(x), self.up_proj(x))  # (B, T, F)
        return self.down_proj(activated)


class Layer(nn.Module):
    """Attention and feed-forward, each behind an RMSNorm and added to the residual stream."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: KVCache | None
    ) -> torch.Tensor:
        # The sum passes gradients on unchanged, however many layers lie above (He et al. 2016).
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


def layer_forward(
    layer: nn.Module,
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    cache: KVCache | None,
) -> torch.Tensor:
    """Run `layer` by its own definition; model/execution.py has other ways to the same numbers."""
    return layer(x, cos, sin, cache)


class Backbone(nn.Module):
    """Embedding, layers and final norm: what Hugging Face calls `model`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(config.head_dim, config.rope_theta)
        self.layer_forward = layer_forward  # set by execution.py for training

    def forward(
        self, input_ids: torch.Tensor, cache: KVCache | None = None, *, eager: bool = False
    ) -> torch.Tensor:
        # Ways of execution are made for training: none of them knows a cache.
        run = layer_forward if eager or cache is not None else self.layer_forward
        start = cache.length if cache is not None else 0
        cos, sin = self.rotary.tables(start, start + input_ids.shape[1], input_ids.device)
        x = self.embed_tokens(input_ids)  # (B, T, D)
        for layer in self.layers:
            x = run(layer, x, cos, sin, cache)
        return self.norm(x)


class Decoder(nn.Module):
    """The backbone with a language-model head.

    `state_dict()` has the names of LlamaForCausalLM and nothing else.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # Tied: one parameter with two names, which trains by both its uses.
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def init_weights(self, generator_for: Callable[[str], torch.Generator]) -> None:
        """Initialise in place.

        | parameters                          | distribution                |
        |-------------------------------------|-----------------------------|
        | embedding, head, every projection   | N(0, initializer_range^2)   |
        | norms                               | 1                           |

        Each matrix is drawn on CPU in float32 from its own generator, `generator_for(parameter
        name)`, so that its values depend neither on the device nor on the order of construction.
        """
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() < 2:
                    parameter.fill_(1.0)
                    continue
                drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
                drawn.normal_(0.0, self.config.initializer_range, generator=generator_for(name))
                parameter.copy_(drawn)

    def hidden_states(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Compute the states (B, T, D) after the final norm of token ids (B, T)."""
        return self.model(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        *,
        double_backward: bool = False,
    ) -> torch.Tensor:
        """Compute logits (B, T, V) or, with `labels` (B, T), the scalar loss.

        The loss is the sum over tokens of -ln p(next token), in nats. `labels[:, t]` is the token
        that follows `input_ids[:, t]` (the caller shifts); -100 is left out. The logits of all
        tokens, by far the largest tensor of a small model, are never formed for the loss, unless
        `double_backward` asks for a path that is differentiable twice.
        """
        # Compiled layers have no second derivative.
        hidden = self.model(input_ids, eager=double_backward)
        if labels is None:
            return self.lm_head(hidden)
        loss_sum = plain_loss_sum if double_backward else fused_loss_sum
        return loss_sum(hidden.flatten(0, 1), self.lm_head.weight, labels.flatten())

    @torch.no_grad()
    def token_nll(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of each label in nats, (B, T) float32; 0 where it is -100."""
        hidden = self.hidden_states(input_ids).flatten(0, 1)  # (B * T, D)
        return token_nll(hidden, self.lm_head.weight, labels.flatten()).view_as(labels)
