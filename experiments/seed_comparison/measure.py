"""What the report says is measured here: each function is one subject, its result plain numbers for results.json."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from babyjax import (
    BabyGPT,
    Bigram,
    ByteTokenizer,
    CharTokenizer,
    ContextEvaluator,
    Corpus,
    count_matrix,
    fit_counts,
    generate,
    init_state,
    make_advance,
)
from babyjax.config import load_config
from babyjax.errors import DataError
from babyjax.schema import Config
from babyjax.training.objective import sum_nats
from babyjax.training.optimizer import make_optimizer
from experiments.ladder.ngram import KneserNey
from experiments.marks import train
from experiments.record import take_turns
from experiments.seed_comparison.baselines import count, libraries
from experiments.seed_comparison.scaling import CALLS, repeated, scaling
from experiments.seed_comparison.study import Effort, Study, Text

# Characters in a picture of a matrix.
SHOWN = 32


def structure(study: Study) -> dict[str, Any]:
    """Parameters, and what the forward passes are made of."""
    model, text = study.adamw.model, study.text
    inputs, targets = study.batch()
    gradient = jax.jit(jax.grad(sum_nats))(study.start, inputs, targets)
    jaxpr = str(jax.make_jaxpr(lambda tokens: model(tokens))(inputs))
    embedding, head = model.token_embedding.embedding[...], model.lm_head
    assert head is not None
    matrix = embedding @ head.kernel[...] + (0.0 if head.bias is None else head.bias[...])
    logits = model(jnp.arange(text.vocab_size)[:, None])[:, 0]
    config, optimizer = study.config, make_optimizer(study.config.optimizer, study.config.train.steps)
    advance = make_advance(optimizer, study.seed, config.train.batch_size, config.model.block_size)
    advance = advance.lower(init_state(study.start, optimizer), text.tokens, 1).as_text()
    disturbed = np.array(inputs)
    disturbed[:, :-1] = (disturbed[:, :-1] + 1) % text.vocab_size
    return {
        "babygpt_parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
        "bigram_parameters": int(study.bigram.counts[...].size),
        "babygpt_trainable": sum(leaf.size for leaf in jax.tree.leaves(gradient)),
        "bigram_trainable": sum(
            leaf.size for leaf in jax.tree.leaves(study.bigram) if jnp.issubdtype(leaf.dtype, jnp.floating)
        ),
        "gathers": jaxpr.count("= gather["),
        "matrix_products": jaxpr.count("= dot_general["),
        "composed_difference": float(jnp.abs(matrix - logits).max() / jnp.abs(logits).max()),
        "rank": rank_of(model),
        "host_calls": advance.count("callback") + advance.count("infeed") + advance.count("outfeed"),
        "moved_by_earlier_tokens": float(
            jnp.abs(model(jnp.asarray(inputs))[:, -1] - model(jnp.asarray(disturbed))[:, -1]).max()
        ),
    }


def rank_of(model: BabyGPT) -> int:
    """The rank of the V x V matrix of logits, from its factors."""
    head = model.lm_head
    assert head is not None
    left, right = (
        np.asarray(model.token_embedding.embedding[...], np.float64),
        np.asarray(head.kernel[...].T, np.float64),
    )
    if head.bias is not None:
        left = np.column_stack([left, np.ones(len(left))])
        right = np.column_stack([right, np.asarray(head.bias[...], np.float64)])
    (_, r_left), (_, r_right) = np.linalg.qr(left), np.linalg.qr(right)
    return int(np.linalg.matrix_rank(r_left @ r_right.T, rtol=1e-5))


def training(study: Study) -> dict[str, Any]:
    """What each way of training reaches, in how long; and whether counting is gradient descent's own answer."""
    text, rounds = study.text, study.effort.rounds
    curves = {"BabyGPT, AdamW": study.adamw.curve}
    if "PyTorch" in libraries():
        curves["BabyGPT, AdamW in PyTorch eager"] = study.pytorch.curve
    curves["BabyGPT, on counts"] = study.counts.curve
    vectorised = take_turns(rounds, it=lambda: count_matrix(text.split.train, text.vocab_size))["it"]
    table = np.zeros((text.vocab_size, text.vocab_size), np.float32)
    clock = time.perf_counter()
    looped = count(table, text.split.train[None, :-1], text.split.train[None, 1:])
    seconds = time.perf_counter() - clock
    # The counts as they are on the training text; one more each on validation, where they know not every pair.
    bigram = {"train": text.losses(study.unsmoothed)["train"], "val": text.losses(study.bigram)["val"]}
    curves["count bigram, looped"] = {"seconds": [seconds], "steps": [1], **{k: [v] for k, v in bigram.items()}}
    curves["count bigram"] = {"seconds": [vectorised], "steps": [1], **{k: [v] for k, v in bigram.items()}}
    adamw, counts = study.adamw.curve, study.counts.curve
    reached = next(
        (second for second, loss in zip(counts["seconds"], counts["train"], strict=True) if loss <= adamw["train"][-1]),
        None,
    )
    half = len(text.split.train) // 2
    pieces = (text.split.train[: half + 1], text.split.train[half:])
    added = sum(np.asarray(count_matrix(piece, text.vocab_size), np.int64) for piece in pieces)
    return {
        "curves": curves,
        "start": text.losses(study.start),
        "bigram": bigram,
        "seconds_on_counts_to_adamw": reached,
        "looped_difference": int(np.abs(looped - text.counts).max()),
        "halves_difference": int(np.abs(added - text.counts).max()),
        "predictions_apart": divergence(text, study.counts.model, study.adamw.model),
        **gradients(study),
    }


def gradients(study: Study) -> dict[str, float]:
    """Of the mean loss, in a table of logits: at the logarithms of the counts, beside that at all zeros. And of a batch
    of BabyGPT's, beside the mean over its windows, one by one."""
    folded = study.folded()
    counts = jnp.asarray(folded.counts, jnp.float32)

    def loss(logits):
        return -(counts * jax.nn.log_softmax(logits)).sum() / counts.sum()

    at_zero, at_counts = (
        float(jnp.linalg.norm(jax.grad(loss)(logits)))
        for logits in (jnp.zeros_like(counts), jnp.log(jnp.maximum(counts, 1e-30)))
    )
    inputs, targets = study.batch()

    @jax.jit
    def gradient(model, inputs, targets):
        return jax.grad(lambda model: sum_nats(model, inputs, targets) / inputs.size)(model)

    def one_by_one():
        parts = [gradient(study.start, inputs[i : i + 1], targets[i : i + 1]) for i in range(len(inputs))]
        return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *parts)

    whole = gradient(study.start, inputs, targets)
    apart = jax.tree.map(lambda a, b: jnp.abs(a - b).max() / jnp.abs(a).max(), whole, one_by_one())
    seconds = take_turns(study.effort.rounds, whole=lambda: gradient(study.start, inputs, targets), single=one_by_one)
    return {
        "gradient_at_counts": at_counts / at_zero,
        "batch_gradient_difference": float(max(jax.tree.leaves(apart))),
        "batch_gradient_speedup": seconds["single"] / seconds["whole"],
    }


def divergence(text: Text, model: Any, other: Any) -> float:
    """Mean Kullback-Leibler divergence of `other`'s predictions from `model`'s over the training text, in nats."""
    contexts = jnp.arange(text.vocab_size)[:, None]
    weight = text.pairs.context_totals("train") / text.pairs.counts["train"].sum()

    @jax.jit
    def of_rows(rows):
        ours, theirs = (jax.nn.log_softmax(each(rows)[:, 0]) for each in (model, other))
        return (jnp.exp(ours) * (ours - theirs)).sum(-1)

    rows = [np.asarray(of_rows(contexts[first : first + 512])) for first in range(0, len(contexts), 512)]
    return float(weight @ np.concatenate(rows))


def baselines(study: Study) -> dict[str, Any]:
    """A batch of the seed's sizes counted and looked up, element by element and by one indexing operation."""
    inputs, targets = study.batch()
    size, table = inputs.size, study.text.counts.astype(np.float32)
    expected = table.copy()
    np.add.at(expected, (inputs, targets), 1)
    rows = {}
    for name, library in libraries().items():
        transition, x, y = (library.array(array) for array in (table, inputs, targets))
        result = library.array(np.zeros((*inputs.shape, len(table)), np.float32))
        library.look_up(transition, x, result)  # to warm up
        clock = time.perf_counter()
        looked_up = jax.block_until_ready(library.look_up(transition, x, result))
        look_up_seconds = time.perf_counter() - clock
        apart = np.abs(library.numpy(looked_up) - table[inputs]).max()
        library.count(library.array(table), x[:1], y[:1])
        clock = time.perf_counter()
        counted = jax.block_until_ready(library.count(transition, x, y))
        count_seconds = time.perf_counter() - clock
        rows[name] = {
            "count_us": 1e6 * count_seconds / size,
            "look_up_us": 1e6 * look_up_seconds / size,
            "difference": float(max(apart, np.abs(library.numpy(counted) - expected).max())),
        }
    on_device, tokens = jnp.asarray(table), jnp.asarray(inputs)
    look_up = jax.jit(lambda table, tokens: table[tokens])
    seconds = take_turns(study.effort.rounds, it=lambda: look_up(on_device, tokens))["it"]
    apart = np.abs(np.asarray(look_up(on_device, tokens)) - table[inputs]).max()
    return {
        "tokens": size,
        "loops": rows,
        "one_operation": {"look_up_us": 1e6 * seconds / size, "difference": float(apart)},
    }


def hardware(study: Study) -> dict[str, Any]:
    """What this device can do, and how much of it the two models' forward passes reach at a size that fills it."""
    tokens = vocab_size = 4096  # a table of 64 MiB
    width, random = 256, np.random.default_rng(0)
    ids = jnp.asarray(random.integers(0, vocab_size, (1, tokens)).astype(np.int32))
    in_order = jnp.arange(tokens, dtype=jnp.int32)[None]
    table = jnp.asarray(random.normal(size=(vocab_size, vocab_size)).astype(np.float32))
    model = BabyGPT.from_parameters(table[:, :width], table[:width], table[0])

    def forward(index, model, ids):
        return model((ids + index) % vocab_size)

    def gather(index, table, ids):
        return table[(ids + index) % vocab_size]

    seconds = take_turns(
        study.effort.rounds,
        product=repeated(lambda index, square: square @ (square + index), table[:1024, :1024]),
        copy=repeated(lambda index, table: table + index, table),
        forward=repeated(forward, model, ids),
        gather=repeated(gather, table, ids),
        gather_in_order=repeated(gather, table, in_order),
        forward_one=repeated(forward, model, ids[:, :1]),
        gather_one=repeated(gather, table, ids[:, :1]),
    )
    seconds = {name: each / CALLS for name, each in seconds.items()}
    flops, moved = 2 * tokens * vocab_size * width, 2 * 4 * tokens * vocab_size  # read and written
    roof, bandwidth = 2 * 1024**3 / seconds["product"], moved / seconds["copy"]
    return {
        "tokens": tokens,
        "vocab_size": vocab_size,
        "n_embd": width,
        "product_flops": roof,
        "copy_bytes": bandwidth,
        "forward_share_of_product": flops / seconds["forward"] / roof,
        "gather_share_of_copy": moved / seconds["gather"] / bandwidth,
        "random_over_ordered": seconds["gather"] / seconds["gather_in_order"],
        "forward_tokens_per_second": tokens / seconds["forward"],
        "gather_tokens_per_second": tokens / seconds["gather"],
        "forward_gain_of_batch": seconds["forward_one"] * tokens / seconds["forward"],
        "gather_gain_of_batch": seconds["gather_one"] * tokens / seconds["gather"],
    }


def generation(study: Study) -> dict[str, Any]:
    """Whether tokens are drawn as the models say, and what each writes."""
    text, tokenizer = study.text, study.tokenizer
    draws = min(study.effort.draws, (1 << 28) // text.vocab_size)  # which are drawn at once
    context = int(np.bincount(text.split.train).argmax())
    key = jax.random.key(study.seed)
    prompts = np.full((draws, 1), context, np.int32)
    drawn = np.bincount(np.asarray(generate(study.adamw.model, prompts, key, 1))[:, 0], minlength=text.vocab_size)
    expected = np.asarray(jax.nn.softmax(study.adamw.model(jnp.full((1, 1), context))[0, 0]))
    by_chance = float(np.sqrt(2 * expected * (1 - expected) / (np.pi * draws)).sum() / 2)
    totals = text.counts.sum(1)
    seen = np.flatnonzero(totals)[:1024]
    by_hand = text.counts[seen] / np.maximum(totals[seen, None], 1.0)
    softmax = np.asarray(jax.nn.softmax(Bigram(jnp.asarray(text.counts), 0.0)(jnp.asarray(seen[:, None]))[:, 0]))
    newline = tokenizer.encode("\n") if "\n" in getattr(tokenizer, "characters", "\n") else study.ids[:1]
    models = {
        "count bigram": study.unsmoothed,
        "BabyGPT, AdamW": study.adamw.model,
        "BabyGPT, on counts": study.counts.model,
    }
    samples = {
        name: tokenizer.decode(np.asarray(generate(model, newline[None], key, study.effort.sample))[0])
        for name, model in models.items()
    }
    return {
        "drawn_apart": float(np.abs(drawn / draws - expected).sum() / 2),
        "apart_by_chance": by_chance,
        "draws": draws,
        "rows_by_hand": len(seen),
        "by_hand_difference": float(np.abs(by_hand - softmax).max()),
        "characters_without_successor": int((totals == 0).sum()),
        "samples": samples,
    }


def equivalence(study: Study) -> dict[str, Any]:
    """BabyGPT as wide as the vocabulary: what it can be, and what AdamW makes of it."""
    text = study.folded()
    bigram = Bigram(jnp.asarray(text.counts), smoothing=1.0)
    contexts = jnp.arange(text.vocab_size)[:, None]
    log_rows = bigram(contexts)[:, 0]
    equal = BabyGPT.from_parameters(log_rows, jnp.eye(text.vocab_size), jnp.zeros(text.vocab_size))
    apart = jnp.abs(jax.nn.softmax(equal(contexts)[:, 0]) - jnp.exp(log_rows)).max()
    wide = replace(study.config, model=replace(study.model_config, n_embd=text.vocab_size))
    *_, (_, _, learned) = train(wide, text.tokens, text.vocab_size, [wide.train.steps])
    narrower = fit_counts(text.pairs, text.vocab_size - 1, bias=study.model_config.bias, tolerance=1e-4)
    return {
        "vocab_size": text.vocab_size,
        "probabilities_apart": float(apart),
        "adamw_gap": text.losses(learned)["train"] - text.entropy,
        "counts_gap": text.losses(narrower.model)["train"] - text.entropy,
        "correlation": correlation(study),
    }


def correlation(study: Study) -> float:
    """Of BabyGPT's log-probabilities and the logarithms of the frequencies, over the pairs seen, weighted by counts."""
    text = study.text
    ours = -study.text.evaluate.pair_nats(study.adamw.model)
    count = text.pairs.counts["train"]
    there = count > 0
    theirs = np.log(count[there] / text.pairs.context_totals("train")[text.pairs.current[there]])
    covariance = np.cov(ours[there], theirs, fweights=count[there])
    return float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))


def expressiveness(study: Study) -> dict[str, Any]:
    """The least loss found at each width, above the entropy."""
    text = study.text
    widths = sorted({*(w for w in study.effort.widths if w < text.vocab_size - 1), study.model_config.n_embd})
    small, gaps = text.vocab_size <= 512, []
    for width in widths:
        starts = 3 if small and width <= 16 else 1  # where the narrow have local minima
        fit = fit_counts(
            text.pairs,
            width,
            bias=study.model_config.bias,
            starts=starts,
            seed=study.seed,
            tolerance=1e-5 if small else 2e-3,
        )
        gaps.append(max(0.0, text.losses(fit.model)["train"] - text.entropy))
    return {"n_embd": widths, "gap": gaps}


def extension(study: Study) -> dict[str, Any]:
    """What more context brings: a rung above, trained until it beats both models or for their steps; n-grams."""
    effort, text = study.effort, study.text
    config = load_config([f"model={effort.upper_rung}", "optimizer.learning_rate=1e-3"])
    known = text.losses(study.bigram)["val"], study.adamw.curve["val"][-1]
    evaluator = ContextEvaluator(text.split, study.tokenizer.byte_lengths, config.model.block_size, 4)
    last = study.config.train.steps
    marks = sorted({min(step, last) for step in (500, 1000, 2000, last)})
    reached = []
    for step, _, model in train(config, text.tokens, text.vocab_size, marks):
        reached.append((step, evaluator(model, ["val"])["val"].per_token))
        if reached[-1][1] < min(known):
            break
    return {
        "rung": effort.upper_rung,
        "steps": reached[-1][0],
        "rung_val": reached[-1][1],
        "bigram_val": known[0],
        "babygpt_val": known[1],
        "ngram_val": {
            str(order): float(KneserNey(text.split.train, text.vocab_size, order).nats(text.split.val).mean())
            for order in effort.orders
        },
    }


def name_of(tokenizer: CharTokenizer | ByteTokenizer, token: int) -> str:
    """A token's character, or the byte it is where that is none."""
    character = tokenizer.decode(np.array([token]))
    return f"{token:02x}" if character == "\ufffd" else character


def matrices(study: Study) -> dict[str, Any]:
    """What the pictures of the matrices show: the most frequent tokens, their counts, and BabyGPT's predictions."""
    text = study.text
    shown = np.sort(np.argsort(-np.bincount(text.split.train, minlength=text.vocab_size), kind="stable")[:SHOWN])
    rows = jnp.asarray(shown[:, None])
    learned = np.asarray(jax.nn.log_softmax(study.adamw.model(rows)[:, 0]))[:, shown]
    embedding = np.asarray(study.adamw.model.token_embedding.embedding[...], np.float64)
    weight = np.bincount(text.split.train, minlength=text.vocab_size) / len(text.split.train)
    centred = embedding - weight @ embedding
    _, spread, axes = np.linalg.svd(centred * np.sqrt(weight)[:, None], full_matrices=False)
    plane = np.pad(centred[shown] @ axes[:2].T, ((0, 0), (0, max(0, 2 - len(axes)))))
    return {
        "characters": [name_of(study.tokenizer, int(token)) for token in shown],
        "share_of_text": float(weight[shown].sum()),
        "counts": text.counts[np.ix_(shown, shown)].tolist(),
        "totals": text.counts[shown].sum(1).tolist(),
        "babygpt": learned.round(4).tolist(),
        "embedding": plane.round(4).tolist(),
        "embedding_share": float((spread[:2] ** 2).sum() / (spread**2).sum()),
        "frequency": weight[shown].round(6).tolist(),
    }


SUBJECTS: dict[str, Callable[[Study], dict[str, Any]]] = {
    "structure": structure,
    "training": training,
    "scaling": lambda study: scaling(study.effort.factors, study.effort.rounds),
    "baselines": baselines,
    "generation": generation,
    "equivalence": equivalence,
    "hardware": hardware,
    "expressiveness": expressiveness,
    "extension": extension,
    "matrices": matrices,
}


def measure(corpus: Corpus, config: Config, effort: Effort, say: Callable[[str], None]) -> dict[str, Any]:
    """Every figure of the report, by subject; `say` is told what is being measured."""
    study = Study(corpus, config, effort)
    if study.text.entropy == 0:
        raise DataError(f"{corpus.name} leaves nothing to compare: each token is always followed by the same one")
    results: dict[str, Any] = {
        "corpus": {
            "name": corpus.name,
            "sha256": corpus.sha256,
            "characters": len(corpus.text),
            "vocab_size": study.text.vocab_size,
            "entropy": study.text.entropy,
        },
        "options": {
            "n_embd": study.model_config.n_embd,
            "bias": study.model_config.bias,
            "block_size": config.model.block_size,
            "batch_size": config.train.batch_size,
            "steps": config.train.steps,
            "learning_rate": config.optimizer.learning_rate,
            "seed": config.train.seed,
        },
    }
    for name, subject in SUBJECTS.items():
        say(name)
        results[name] = subject(study)
    return results
