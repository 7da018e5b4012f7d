"""Training on pair counts: the exact loss of a network of the previous token."""

import time
from contextlib import ExitStack

from babyjax.errors import ConfigError
from babyjax.progress import CountsDisplay, duration
from babyjax.schema import BabyGPTConfig, CountsConfig
from babyjax.trainers.job import Job

# A fit whose steps are long is saved after so many seconds, too.
SAVE_SECONDS = 60


def train_by_solving(job: Job, first_step: int, stopped: list[int], argv: list[str]) -> None:
    """The exact loss, from counts, to a tolerance; from `first_step` until done or until `stopped` holds a signal."""
    import jax

    from babyjax.training.counts import CountsProblem, legs_of, legs_to_choose
    from babyjax.training.devices import require_memory
    from babyjax.training.run import check_own_corpus, check_own_files
    from babyjax.training.step import TrainState

    model, trainer, seed = job.config.model, job.config.trainer, job.config.train.seed
    assert isinstance(trainer, CountsConfig)
    if not (isinstance(model, BabyGPTConfig) and model.is_v1):
        raise ConfigError(
            "trainer=counts trains v1 in float32, whose loss the pair counts determine, and no other model than that"
        )
    vocab_size = job.tokenizer.vocab_size
    smoothing = 1 / vocab_size if trainer.smoothing is None else trainer.smoothing
    choosing = trainer.choose != "nothing"
    if (trainer.choose == "smoothing" and trainer.smoothing is not None) or (
        trainer.choose == "penalty" and trainer.penalty
    ):
        raise ConfigError(f"trainer.choose={trainer.choose} and trainer.{trainer.choose}= cannot both be given")
    problem = CountsProblem(
        job.pairs,
        model.n_embd,
        legs_to_choose(trainer.choose, trainer.starts, seed, smoothing, trainer.penalty)
        if choosing
        else legs_of(trainer.starts, seed, smoothing, trainer.penalty),
        bias=model.bias,
        tolerance=trainer.tolerance,
        score=(lambda network: job.evaluate(network)["val"]) if choosing else None,
    )
    parameters = 2 * vocab_size * model.n_embd + vocab_size * model.bias
    job.introduce(parameters, jax.devices()[0].device_kind)
    require_memory(4 * parameters, f"a model of {parameters:,} parameters")
    fit = problem.start()
    if first_step:
        saved = job.run.checkpoints.load(first_step)
        check_own_files(saved.about, job.config, job.tokenizer, job.run)
        check_own_corpus(saved.about, job.corpus, job.run)
        fit = saved.fill(fit, "opt_state")
        if problem.done(fit):
            job.already_trained(first_step)
            job.complete_ledger(stopped)
            return
        job.run.rewind(job.config, first_step)
        job.say(f"continuing from step {first_step:,}")
    else:
        job.create()

    def save(step: int, losses: dict[str, float]) -> None:
        job.save(TrainState(jax.numpy.int32(step), problem.model(fit), fit), step, losses)

    if not problem.second_order and trainer.starts > 1:
        job.say("the vocabulary is large: one start, from the SVD, in sweeps")
    network = problem.model(fit)
    step, start, losses = first_step, time.perf_counter(), job.evaluate(network)
    saved_at = start
    with ExitStack() as finally_, CountsDisplay(job.console, job.floor) as display:
        finally_.callback(job.run.checkpoints.wait)
        while not problem.done(fit):
            leg, before = problem.legs[int(fit.leg)], fit
            fit = problem.advance(fit)
            step += 1
            ended = fit.leg != before.leg
            if ended or fit.made == 0:  # from the second descent on, the best network changes only when one ends
                network = problem.model(fit)
                losses = job.evaluate(network)
            row = {"step": step, "train_loss": losses["train"], "val_loss": losses["val"]}
            job.run.add_rows([row | leg._asdict() | {"objective": problem.objective}])
            display.step(step, losses["train"], losses["val"], problem.progress(), bool(ended))
            due = step % job.config.checkpoint.interval == 0 or time.perf_counter() - saved_at > SAVE_SECONDS
            if problem.done(fit) or stopped or due:
                save(step, losses)
                saved_at = time.perf_counter()
            if stopped:
                break
    if not problem.done(fit):
        job.was_interrupted(step, argv)
        return
    chosen = problem.legs[int(fit.best_leg)]
    lines = [f"known    {problem.quality(fit)}"]
    if choosing:
        lines.append(f"chosen   {trainer.choose}={getattr(chosen, trainer.choose):g}, by validation")
    if chosen.smoothing:
        smoothed = job.pairs.add_k_loss("train", chosen.smoothing)
        lines.append(
            f"smoothed by {chosen.smoothing:.3g} a cell: the bigram so smoothed has {smoothed:.4f} on train, "
            f"{job.pairs.add_k_loss('val', chosen.smoothing):.4f} on val"
        )
    seconds = duration(time.perf_counter() - start)
    job.conclude(
        losses, *lines, f"took     {seconds} for {step - first_step:,} steps on the counts, compilation included"
    )
    job.account(network, stopped)
