"""The networks of the ladder in PyTorch, as its users write them."""

import math

import jax
import numpy as np
import torch
from torch import nn

from babyjax import BabyGPT
from babyjax.config import AdamWConfig, BabyGPTConfig, Config, MuonConfig, OptimizerConfig


class TorchBlock(nn.Module):
    """Attention and feed-forward of one block."""

    def __init__(self, config: BabyGPTConfig):
        super().__init__()
        width, hidden, size = config.n_embd, config.hidden_width, config.head_width
        self.config = config
        self.sizes = [config.n_head * size, config.kv_heads * size, config.kv_heads * size]
        self.attention_norm = _norm(config)
        self.qkv = nn.Linear(width, sum(self.sizes), bias=config.qkv_bias)
        self.query_norm = nn.RMSNorm(size, config.norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(size, config.norm_eps) if config.qk_norm else nn.Identity()
        self.attention_projection = (
            nn.Linear(self.sizes[0], width, bias=config.bias) if config.projection else nn.Identity()
        )
        if config.feed_forward:
            self.feed_forward_norm = _norm(config)
            self.hidden = nn.Linear(width, hidden, bias=config.bias)
            self.gate: nn.Module | None = nn.Linear(width, hidden, bias=config.bias) if config.gated else None
            self.activation = {"relu": nn.ReLU(), "gelu": nn.GELU(approximate="tanh"), "silu": nn.SiLU()}[
                config.activation
            ]
            self.feed_forward_projection = (
                nn.Linear(hidden, width, bias=config.bias) if config.projection else nn.Identity()
            )

    def forward(self, x, rotation=None, past=None, position: int = 0):
        batch, length, _ = x.shape
        q, k, v = (
            part.view(batch, length, -1, self.config.head_width).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).split(self.sizes, dim=2)
        )
        q, k = self.query_norm(q), self.key_norm(k)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        if past is not None:
            keys, values = past
            keys[:, :, position : position + length] = k
            values[:, :, position : position + length] = v
            k, v = keys[:, :, : position + length], values[:, :, : position + length]
        y = nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            is_causal=length > 1,
            dropout_p=self.config.dropout if self.training else 0.0,
            enable_gqa=self.config.kv_heads != self.config.n_head,
        )
        x = self._add(x, self.attention_projection(y.transpose(1, 2).reshape(batch, length, -1)))
        if not self.config.feed_forward:
            return x
        y = self.feed_forward_norm(x)
        y = self.activation(self.hidden(y)) if self.gate is None else self.activation(self.gate(y)) * self.hidden(y)
        return self._add(x, self.feed_forward_projection(y))

    def _add(self, x, y):
        y = nn.functional.dropout(y, self.config.dropout, self.training)
        return x + y if self.config.residual else y


def _norm(config: BabyGPTConfig) -> nn.Module:
    if config.norm == "rms":
        return nn.RMSNorm(config.n_embd, config.norm_eps)
    return nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias) if config.norm == "layer" else nn.Identity()


def rotate(x, cos, sin):
    """Rotary positions, as in transformers."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class TorchGPT(nn.Module):
    """The network that a config describes."""

    def __init__(self, config: BabyGPTConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        learned = config.position == "learned"
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd) if learned else None
        self.rotation: tuple[torch.Tensor, torch.Tensor] | None = None
        if config.position == "rotary":
            half = config.head_width // 2
            angles = torch.arange(config.block_size)[:, None] * config.rotary_base ** (-torch.arange(half) / half)
            self.rotation = angles.cos(), angles.sin()
        self.blocks = nn.ModuleList(TorchBlock(config) for _ in range(config.n_layer))
        self.norm = _norm(config)
        self.head = nn.Linear(config.n_embd, vocab_size, bias=config.head_bias)
        if config.tied:
            self.head.weight = self.token_embedding.weight

    @classmethod
    def like(cls, model: BabyGPT) -> "TorchGPT":
        """Return the network with the parameters of one of ours."""
        config = model.config
        network = cls(config, model.vocab_size)
        with torch.no_grad():
            network.token_embedding.weight.copy_(_tensor(model.token_embedding.embedding))
            if network.position_embedding is not None and model.position_embedding is not None:
                network.position_embedding.weight.copy_(_tensor(model.position_embedding.embedding))
            for index, block in enumerate(network.blocks):
                source = jax.tree.map(lambda leaf, index=index: leaf[index], model.blocks)
                attention = source.attention
                _copy_side_by_side(block.qkv, attention.query, attention.key, attention.value)
                _copy_norm(block.query_norm, source.attention.query_norm)
                _copy_norm(block.key_norm, source.attention.key_norm)
                _copy_norm(block.attention_norm, source.attention_norm)
                _copy_linear(block.attention_projection, source.attention.projection)
                if config.feed_forward:
                    _copy_norm(block.feed_forward_norm, source.feed_forward_norm)
                    _copy_linear(block.hidden, source.feed_forward.hidden)
                    _copy_linear(block.gate, source.feed_forward.gate)
                    _copy_linear(block.feed_forward_projection, source.feed_forward.projection)
            _copy_norm(network.norm, model.norm)
            if not config.tied:
                _copy_linear(network.head, model.lm_head)
            elif config.head_bias:
                network.head.bias.copy_(_tensor(model.lm_head_bias))
        return network

    def forward(self, tokens, cache=None, position: int = 0):
        """Logits of every position; with a cache only of the last."""
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[position : position + tokens.shape[1]]
        rotation = self.rotation
        if rotation is not None:
            rotation = [part[position : position + tokens.shape[1]].to(x.device) for part in rotation]
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, None if cache is None else cache[index], position)
        return self.head(self.norm(x if cache is None else x[:, -1:]))

    @torch.no_grad()
    def generate(self, prompt, max_new_tokens: int):
        """Sample with a cache of keys and values, up to `block_size` tokens in all."""
        config, batch = self.config, prompt.shape[0]
        shape = (batch, config.kv_heads, config.block_size, config.head_width)
        kind = {"device": prompt.device, "dtype": self.head.weight.dtype}
        cache = [(torch.zeros(shape, **kind), torch.zeros(shape, **kind)) for _ in self.blocks]
        tokens, position, sampled = prompt, 0, []
        for _ in range(max_new_tokens):
            logits = self(tokens, cache, position)[:, -1]
            position += tokens.shape[1]
            tokens = torch.multinomial(logits.softmax(dim=-1), 1)
            sampled.append(tokens)
        return torch.cat(sampled, dim=1)


def _tensor(parameter):
    return torch.tensor(np.asarray(parameter[...]))


def _copy_side_by_side(layer, *sources) -> None:
    layer.weight.copy_(torch.cat([_tensor(source.kernel).T for source in sources]))
    if layer.bias is not None:
        layer.bias.copy_(torch.cat([_tensor(source.bias) for source in sources]))


def _copy_linear(layer, source) -> None:
    if source is not None:
        layer.weight.copy_(_tensor(source.kernel).T)
        if source.bias is not None:
            layer.bias.copy_(_tensor(source.bias))


def _copy_norm(layer, source) -> None:
    if source is not None:
        layer.weight.copy_(_tensor(source.scale))
        if source.bias is not None:
            layer.bias.copy_(_tensor(source.bias))


def adamw(model: TorchGPT, config: AdamWConfig) -> torch.optim.AdamW:
    """Return PyTorch's AdamW with our options; with `decay=kernels` only matrices of linear layers decay."""
    kernels = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)}
    kernels -= {id(model.token_embedding.weight)}
    decayed = [p for p in model.parameters() if config.decay == "all" or id(p) in kernels]
    rest = [p for p in model.parameters() if all(p is not other for other in decayed)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=model.head.weight.is_cuda,  # nanoGPT's choice
    )


def optimizers(model: TorchGPT, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a recipe: AdamW, or PyTorch's Muon for the matrices of blocks and AdamW for the rest."""
    if isinstance(config, AdamWConfig):
        return [adamw(model, config)]
    assert isinstance(config, MuonConfig)
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not other for other in matrices)]
    return [
        torch.optim.Muon(matrices, config.learning_rate, config.weight_decay, config.momentum),
        torch.optim.AdamW(rest, config.adam_learning_rate, weight_decay=0.0),
    ]


def learning_rate(config: OptimizerConfig, step: int, steps: int, peak: float | None = None) -> float:
    """Return the learning rate of a constant or cosine schedule with warm-up, as nanoGPT writes it."""
    peak = config.learning_rate if peak is None else peak
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return peak
    done = (step - config.warmup_steps) / (steps - config.warmup_steps)
    low = config.final_fraction * peak
    return low + 0.5 * (1 + math.cos(math.pi * done)) * (peak - low)


def train(model, rules: list[torch.optim.Optimizer], config: Config, data: torch.Tensor, steps: int) -> None:
    """nanoGPT's loop: random windows, a learning-rate schedule, gradient clipping."""
    rule = config.optimizer
    batch_size, block_size = config.train.batch_size, config.model.window
    groups = [(group, group["lr"]) for optimizer in rules for group in optimizer.param_groups]
    for step in range(steps):
        for group, peak in groups:
            group["lr"] = learning_rate(rule, step, config.train.steps, peak)
        starts = torch.randint(len(data) - block_size, (batch_size,))
        inputs = torch.stack([data[start : start + block_size] for start in starts])
        targets = torch.stack([data[start + 1 : start + block_size + 1] for start in starts])
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        model.zero_grad(set_to_none=True)
        loss.backward()
        if rule.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), rule.clip_norm)
        for optimizer in rules:
            optimizer.step()
