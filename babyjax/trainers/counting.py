"""Training by counting: the bigram."""

import time

from babyjax.progress import duration
from babyjax.schema import BigramConfig
from babyjax.trainers.job import Job


def train_by_counting(job: Job, first_step: int) -> None:
    """The count bigram: one pass over the corpus, or the seed's random windows; a single step."""
    if first_step:
        job.already_trained(first_step)
        return
    import jax
    import numpy as np

    from babyjax.models.bigram import Bigram, count_matrix
    from babyjax.training.devices import require_memory
    from babyjax.training.statistics import count_windows
    from babyjax.training.step import TrainState

    config, vocab_size = job.config, job.tokenizer.vocab_size
    assert isinstance(config.model, BigramConfig)
    job.introduce(vocab_size**2, jax.devices()[0].device_kind)
    require_memory(2 * 4 * vocab_size**2, f"a table of {vocab_size:,} x {vocab_size:,} counts")
    job.create()
    start = time.perf_counter()
    if config.model.counting == "corpus":
        counts = count_matrix(job.split.train, vocab_size)
    else:
        counts = count_windows(
            job.split.train,
            vocab_size,
            config.train.seed,
            steps=config.train.steps,
            batch_size=config.train.batch_size,
            block_size=config.model.block_size,
        )
    jax.block_until_ready(counts)
    seconds = time.perf_counter() - start
    model = Bigram(counts, config.model.smoothing)
    losses = job.evaluate(model)
    job.run.add_rows([{"step": 1, "train_loss": losses["train"], "val_loss": losses["val"]}])
    job.save(TrainState(jax.numpy.int32(1), model, ()), 1, losses)
    job.run.checkpoints.wait()
    pairs = int(np.asarray(counts).sum(dtype=np.int64))
    job.conclude(losses, f"took     {duration(seconds)} to count {pairs:,} pairs")
