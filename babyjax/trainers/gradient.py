"""Training by gradient steps on random windows: any network."""

import time
from contextlib import ExitStack
from typing import Any

from babyjax.door import command_line
from babyjax.errors import RunError
from babyjax.progress import TrainingDisplay, duration, short
from babyjax.schema import BabyGPTConfig
from babyjax.trainers.job import Job


def grown(job: Job) -> Any:
    """The network of the run `train.grow_from`, grown to the model of this one. Raises `RunError` for other tokens."""
    import jax

    from babyjax.models.grow import grow
    from babyjax.training.run import load_run
    from babyjax.training.step import start_key

    path, model = job.config.train.grow_from, job.config.model
    assert path is not None
    assert isinstance(model, BabyGPTConfig)
    run = load_run(path)
    if run.tokenizer != job.tokenizer:
        raise RunError(f"train.grow_from={path} was trained with another vocabulary")
    network = jax.jit(lambda network: grow(network, model, start_key(job.config.train.seed)))(run.model)
    job.say(f"grown from {run.config.model.name} in {path}, step {run.step:,}")
    return network


def train_by_gradient(job: Job, first_step: int, stopped: list[int], argv: list[str]) -> None:
    """Gradient steps on random windows, from `first_step` until `train.steps` or until `stopped` holds a signal."""
    accounted = isinstance(job.config.model, BabyGPTConfig) and job.config.model.is_v1
    if first_step >= job.config.train.steps:
        bound = job.config.optimizer.schedule != "constant"  # the run ends where its schedule does
        job.already_trained(first_step, "" if bound else f"train.steps={2 * first_step} goes on, ")
        if accounted:
            job.complete_ledger(stopped)
        return
    import jax

    from babyjax.models import make_model
    from babyjax.training.devices import data_mesh, program_memory, replicated, require_memory
    from babyjax.training.loop import dispatches
    from babyjax.training.optimizer import make_optimizer
    from babyjax.training.run import check_own_corpus, check_own_files
    from babyjax.training.step import init_state, make_advance, start_key
    from babyjax.training.throughput import peak_flops, training_flops

    config, batch_size, block_size = job.config, job.config.train.batch_size, job.config.model.block_size
    steps, eval_interval = config.train.steps, config.train.eval_interval
    accumulation = config.train.accumulation
    mesh = data_mesh(max(1, batch_size // accumulation))
    optimizer = make_optimizer(config.optimizer, steps)
    advance = make_advance(optimizer, config.train.seed, batch_size, block_size, mesh, accumulation=accumulation)

    def start():
        key = start_key(config.train.seed)
        return init_state(make_model(config.model, job.tokenizer.vocab_size, key), optimizer)

    shapes = jax.eval_shape(start)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.model))
    job.introduce(
        parameters, f"{mesh.size} x {jax.devices()[0].device_kind}" if mesh.size > 1 else jax.devices()[0].device_kind
    )
    require_memory(
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)),
        f"a model of {parameters:,} parameters",
    )
    with job.console.status("compiling"):
        clock = time.perf_counter()
        state = jax.jit(start, out_shardings=replicated(mesh))()
        if config.train.grow_from and not first_step:
            state = jax.device_put(init_state(grown(job), optimizer), replicated(mesh))
        tokens = jax.device_put(job.split.train, replicated(mesh))
        advance = advance.lower(state, tokens, 1).compile()
        require_memory(program_memory(advance), f"a batch of {batch_size:,} x {block_size:,} tokens")
        losses = job.evaluate(state.model) if job.exact else {}
        compilation = time.perf_counter() - clock
    if first_step:
        saved = job.run.checkpoints.load(first_step)
        check_own_files(saved.about, config, job.tokenizer, job.run)
        check_own_corpus(saved.about, job.corpus, job.run)
        state = saved.fill(state)
        job.run.rewind(config, first_step)
        job.say(f"continuing from step {first_step:,}")
    else:
        job.create()
    job.say(f"compiled in {duration(compilation)}\n")

    step, seconds = first_step, 0.0
    with ExitStack() as finally_, TrainingDisplay(job.console, first_step, steps) as display:
        finally_.callback(job.run.checkpoints.wait)
        for done in dispatches(advance, state, tokens, steps, eval_interval, config.checkpoint.interval):
            step = done.step
            seconds += done.seconds
            rows = [
                {"step": step - len(done.losses) + 1 + index, "train_loss": float(loss)}
                for index, loss in enumerate(done.losses)
            ]
            state = done.state
            display.advance(step, rows[-1]["train_loss"], len(rows) * batch_size * block_size / done.seconds)
            evaluated = step == steps or step % eval_interval == 0
            if evaluated:
                losses = job.evaluate(state.model)
                name = "exact_train_loss" if job.exact else "sampled_train_loss"
                rows[-1] |= {name: losses["train"], "val_loss": losses["val"]}
                display.evaluated(step, losses["train"], losses["val"], job.floor)
            job.run.add_rows(rows)
            if step == steps or stopped or step % config.checkpoint.interval == 0:
                job.save(state, step, losses if evaluated else {})
            if stopped:
                break
    if step < steps:
        job.was_interrupted(step, argv)
        return
    speed = (steps - first_step) * batch_size * block_size / seconds
    flops = speed * training_flops(state.model, block_size)
    peak = peak_flops(jax.devices()[0].device_kind)
    share = f", {flops / mesh.size / peak:.1%} of the device's bfloat16 peak" if peak else ""
    lines = [
        f"took     {duration(seconds)} for {steps - first_step:,} steps, {short(speed)} tokens/s",
        f"         {short(flops)} flop/s in the products of the model{share}",
    ]
    if not job.exact:
        scored = " and ".join(
            f"{loss.tokens:,} of {name} +-{loss.standard_error:.3f}" for name, loss in job.evaluated.items()
        )
        lines.insert(0, f"scored   {scored}; all of them: {command_line('evaluate', f'run_dir={config.run_dir}')}")
    job.conclude(losses, *lines)
    if accounted:
        job.account(state.model, stopped)
