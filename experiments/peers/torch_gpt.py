"""The networks of the ladder in PyTorch, as its users write them."""

import math

import jax
import numpy as np
import torch
from torch import nn

from babyjax import BabyGPT
from babyjax.config import AdamWConfig, BabyGPTConfig, Config


class TorchBlock(nn.Module):
    """Attention and feed-forward of one block."""

    def __init__(self, config: BabyGPTConfig):
        super().__init__()
        width, hidden = config.n_embd, config.feed_forward * config.n_embd
        self.config = config
        self.attention_norm = nn.LayerNorm(width) if config.norm else nn.Identity()
        self.qkv = nn.Linear(width, 3 * width, bias=config.attention_bias)
        self.attention_projection = nn.Linear(width, width) if config.projection else nn.Identity()
        if config.feed_forward:
            self.feed_forward_norm = nn.LayerNorm(width) if config.norm else nn.Identity()
            self.hidden = nn.Linear(width, hidden)
            self.activation = nn.ReLU() if config.activation == "relu" else nn.GELU(approximate="tanh")
            self.feed_forward_projection = nn.Linear(hidden, width) if config.projection else nn.Identity()

    def forward(self, x, past=None, position: int = 0):
        batch, length, width = x.shape
        heads = self.config.n_head
        q, k, v = (
            part.view(batch, length, heads, width // heads).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).split(width, dim=2)
        )
        if past is not None:
            keys, values = past
            keys[:, :, position : position + length] = k
            values[:, :, position : position + length] = v
            k, v = keys[:, :, : position + length], values[:, :, : position + length]
        y = nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=length > 1, dropout_p=self.config.dropout if self.training else 0.0
        )
        x = self._add(x, self.attention_projection(y.transpose(1, 2).reshape(batch, length, width)))
        if not self.config.feed_forward:
            return x
        y = self.activation(self.hidden(self.feed_forward_norm(x)))
        return self._add(x, self.feed_forward_projection(y))

    def _add(self, x, y):
        y = nn.functional.dropout(y, self.config.dropout, self.training)
        return x + y if self.config.residual else y


class TorchGPT(nn.Module):
    """The network that a config describes."""

    def __init__(self, config: BabyGPTConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd) if config.position else None
        self.blocks = nn.ModuleList(TorchBlock(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd) if config.norm else nn.Identity()
        self.head = nn.Linear(config.n_embd, vocab_size, bias=config.bias)
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
                _copy_linear(block.qkv, source.attention.query_key_value)
                _copy_norm(block.attention_norm, source.attention_norm)
                _copy_linear(block.attention_projection, source.attention.projection)
                if config.feed_forward:
                    _copy_norm(block.feed_forward_norm, source.feed_forward_norm)
                    _copy_linear(block.hidden, source.feed_forward.hidden)
                    _copy_linear(block.feed_forward_projection, source.feed_forward.projection)
            _copy_norm(network.norm, model.norm)
            if not config.tied:
                _copy_linear(network.head, model.lm_head)
            elif config.bias:
                network.head.bias.copy_(_tensor(model.lm_head_bias))
        return network

    def forward(self, tokens, cache=None, position: int = 0):
        """Logits of every position; with a cache only of the last."""
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[position : position + tokens.shape[1]]
        for index, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache[index], position)
        return self.head(self.norm(x if cache is None else x[:, -1:]))

    @torch.no_grad()
    def generate(self, prompt, max_new_tokens: int):
        """Sample with a cache of keys and values, up to `block_size` tokens in all."""
        config, batch = self.config, prompt.shape[0]
        shape = (batch, config.n_head, config.block_size, config.n_embd // config.n_head)
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


def _copy_linear(layer, source) -> None:
    if source is not None:
        layer.weight.copy_(_tensor(source.kernel).T)
        if source.bias is not None:
            layer.bias.copy_(_tensor(source.bias))


def _copy_norm(layer, source) -> None:
    if source is not None:
        layer.weight.copy_(_tensor(source.scale))
        layer.bias.copy_(_tensor(source.bias))


def adamw(model: TorchGPT, config: AdamWConfig) -> torch.optim.AdamW:
    """Return PyTorch's AdamW with our options; with `decay=kernels` only matrices of linear layers decay."""
    kernels = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)}
    kernels -= {id(model.token_embedding.weight)}
    decayed = [p for p in model.parameters() if config.decay == "all" or id(p) in kernels]
    rest = [p for p in model.parameters() if all(p is not other for other in decayed)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps)


def learning_rate(config: AdamWConfig, step: int, steps: int) -> float:
    """Return the learning rate of a constant or cosine schedule with warm-up, as nanoGPT writes it."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / (steps - config.warmup_steps)
    low = config.final_fraction * config.learning_rate
    return low + 0.5 * (1 + math.cos(math.pi * done)) * (config.learning_rate - low)


def train(model, optimizer, config: Config, data: torch.Tensor, steps: int) -> None:
    """nanoGPT's loop: random windows, a learning-rate schedule, gradient clipping."""
    rule = config.optimizer
    assert isinstance(rule, AdamWConfig)
    batch_size, block_size = config.train.batch_size, config.model.window
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(rule, step, config.train.steps)
        starts = torch.randint(len(data) - block_size, (batch_size,))
        inputs = torch.stack([data[start : start + block_size] for start in starts])
        targets = torch.stack([data[start + 1 : start + block_size + 1] for start in starts])
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if rule.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), rule.clip_norm)
        optimizer.step()
