"""BabyGPT v1 and its training loop in PyTorch eager mode, as in the published script."""

import jax.numpy as jnp
import numpy as np
import torch

from babyjax import BabyGPT
from babyjax.config import AdamWConfig, BabyGPTConfig, Config


class TorchV1:
    """`train(steps)` runs the loop: random windows, embedding, linear layer, cross-entropy, AdamW."""

    def __init__(self, tokens: np.ndarray, vocab_size: int, config: Config):
        model, optimizer = config.model, config.optimizer
        assert isinstance(model, BabyGPTConfig)
        assert isinstance(optimizer, AdamWConfig)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(config.train.seed)
        self.data = torch.tensor(tokens, dtype=torch.long, device=self.device)
        self.batch_size, self.block_size = config.train.batch_size, model.block_size
        self.embedding = torch.nn.Embedding(vocab_size, model.n_embd, device=self.device)
        self.head = torch.nn.Linear(model.n_embd, vocab_size, bias=model.head_bias, device=self.device)
        self.optimizer = torch.optim.AdamW(
            [*self.embedding.parameters(), *self.head.parameters()],
            lr=optimizer.learning_rate,
            weight_decay=optimizer.weight_decay,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
        )

    def train(self, steps: int) -> None:
        """Make `steps` updates."""
        for _ in range(steps):
            starts = torch.randint(len(self.data) - self.block_size, (self.batch_size,))
            inputs = torch.stack([self.data[start : start + self.block_size] for start in starts])
            targets = torch.stack([self.data[start + 1 : start + self.block_size + 1] for start in starts])
            logits = self.head(self.embedding(inputs))
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()

    def model(self) -> BabyGPT:
        """Return the same network as a babyjax model."""
        embedding, kernel = self.embedding.weight, self.head.weight.T
        arrays = (embedding, kernel) if self.head.bias is None else (embedding, kernel, self.head.bias)
        return BabyGPT.from_parameters(*(jnp.array(array.numpy(force=True)) for array in arrays))
