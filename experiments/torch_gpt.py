"""The networks of the ladder in PyTorch, as its users write them: the peer for parity and speed. The `bench` extra."""

import math

import jax
import numpy as np
import torch
from torch import nn

from babyjax.models import make_model
from babyjax.schema import BabyGPTConfig


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
        y = self.attention_projection(y.transpose(1, 2).reshape(batch, length, width))
        x = self._add(x, y)
        if not self.config.feed_forward:
            return x
        y = self.activation(self.hidden(self.feed_forward_norm(x)))
        return self._add(x, self.feed_forward_projection(y))

    def _add(self, x, y):
        y = nn.functional.dropout(y, self.config.dropout, self.training)
        return x + y if self.config.residual else y


class TorchGPT(nn.Module):
    """The network a config describes. `TorchGPT.like(model, config)` has the parameters of ours."""

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
    def like(cls, model, config: BabyGPTConfig) -> "TorchGPT":
        """A copy of one of our models."""
        ours = cls(config, model.token_embedding.embedding.shape[0])
        with torch.no_grad():
            ours.token_embedding.weight.copy_(_tensor(model.token_embedding.embedding))
            if ours.position_embedding is not None:
                ours.position_embedding.weight.copy_(_tensor(model.position_embedding.embedding))
            for index, block in enumerate(ours.blocks):
                theirs = jax.tree.map(lambda leaf, index=index: leaf[index], model.blocks)
                _copy_linear(block.qkv, theirs.attention.query_key_value)
                pairs = [(block.attention_norm, theirs.attention_norm)]
                _copy_linear(block.attention_projection, theirs.attention.projection)
                if config.feed_forward:
                    _copy_linear(block.hidden, theirs.feed_forward.hidden)
                    _copy_linear(block.feed_forward_projection, theirs.feed_forward.projection)
                    pairs.append((block.feed_forward_norm, theirs.feed_forward_norm))
                for norm, their_norm in pairs:
                    _copy_norm(norm, their_norm)
            _copy_norm(ours.norm, model.norm)
            if not config.tied:
                _copy_linear(ours.head, model.lm_head)
            elif config.bias:
                ours.head.bias.copy_(_tensor(model.lm_head_bias))
        return ours

    def forward(self, tokens, cache=None, position: int = 0):
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[position : position + tokens.shape[1]]
        for index, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache[index], position)
        return self.head(self.norm(x if cache is None else x[:, -1:]))

    @torch.no_grad()
    def generate(self, prompt, max_new_tokens: int):
        """Tokens drawn with a cache of keys and values, up to `block_size` in all."""
        config, batch = self.config, prompt.shape[0]
        shape = (batch, config.n_head, config.block_size, config.n_embd // config.n_head)
        kind = {"device": prompt.device, "dtype": self.head.weight.dtype}
        cache = [(torch.zeros(shape, **kind), torch.zeros(shape, **kind)) for _ in self.blocks]
        tokens, position, drawn = prompt, 0, []
        for _ in range(max_new_tokens):
            logits = self(tokens, cache, position)[:, -1]
            position += tokens.shape[1]
            tokens = torch.multinomial(logits.softmax(dim=-1), 1)
            drawn.append(tokens)
        return torch.cat(drawn, dim=1)


def _tensor(parameter):
    return torch.tensor(np.asarray(parameter[...]))


def _copy_linear(ours, theirs) -> None:
    if theirs is not None:
        ours.weight.copy_(_tensor(theirs.kernel).T)
        if theirs.bias is not None:
            ours.bias.copy_(_tensor(theirs.bias))


def _copy_norm(ours, theirs) -> None:
    if theirs is not None:
        ours.weight.copy_(_tensor(theirs.scale))
        ours.bias.copy_(_tensor(theirs.bias))


def adamw(model: TorchGPT, config) -> torch.optim.AdamW:
    """PyTorch's AdamW with our options; only the matrices of linear layers decay where those say so."""
    kernels = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)}
    kernels -= {id(model.token_embedding.weight)}
    decayed = [p for p in model.parameters() if config.decay == "all" or id(p) in kernels]
    rest = [p for p in model.parameters() if all(p is not other for other in decayed)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps)


def learning_rate(config, step: int, steps: int) -> float:
    """The step size of a cosine schedule with warm-up, as nanoGPT writes it."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / (steps - config.warmup_steps)
    low = config.final_learning_rate
    return low + 0.5 * (1 + math.cos(math.pi * done)) * (config.learning_rate - low)


def train(model, optimizer, config, data: torch.Tensor, steps: int) -> None:
    """nanoGPT's loop: random windows, clipping, a schedule."""
    batch_size, block_size = config.train.batch_size, config.model.block_size
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step, config.train.steps)
        starts = torch.randint(len(data) - block_size, (batch_size,))
        inputs = torch.stack([data[start : start + block_size] for start in starts])
        targets = torch.stack([data[start + 1 : start + block_size + 1] for start in starts])
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()


def copy_of(config, vocab_size: int, seed: int = 0) -> TorchGPT:
    """The PyTorch copy of our random start."""
    return TorchGPT.like(make_model(config, vocab_size, jax.random.key(seed)), config)
