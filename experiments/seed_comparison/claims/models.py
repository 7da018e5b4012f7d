"""Claims about the two models: structure, training, generation, equivalence, summary."""

from experiments.seed_comparison.claims.base import (
    EQUIVALENCE,
    FAILS,
    GENERATION,
    HOLDS,
    LIMIT,
    STRUCTURE,
    SUMMARY,
    TRAINING,
    Finding,
    Results,
    curve,
    holds_if,
    in_words,
    times,
)

NEGLIGIBLE = 1e-3  # nats per token


@STRUCTURE("BabyGPT is a neural network, the bigram a table of counts.", "trainable parameters")
def kinds_of_model(r: Results) -> Finding:
    babygpt, bigram = r["structure"]["babygpt_trainable"], r["structure"]["bigram_trainable"]
    figure = f"BabyGPT {babygpt:,}, bigram {bigram:,}"
    because = "counts are integers, so there is nothing to differentiate"
    return holds_if(babygpt > 0 and bigram == 0, figure, because, "both or neither have trainable parameters")


@STRUCTURE("BabyGPT has V x D + D x V parameters.", "parameters of the model")
def babygpt_parameters(r: Results) -> Finding:
    vocab_size, width = r["corpus"]["vocab_size"], r["options"]["n_embd"]
    measured, claimed = r["structure"]["babygpt_parameters"], 2 * vocab_size * width
    figure = f"{measured:,}; claimed {claimed:,}"
    if measured == claimed:
        return Finding(figure, HOLDS, "exactly")
    if measured == claimed + vocab_size:
        return Finding(figure, LIMIT, f"the bias of the head adds V = {vocab_size:,}")
    return Finding(figure, FAILS, "the bias of the head does not explain the difference")


@STRUCTURE("The bigram has V x V parameters.", "cells of the count matrix")
def bigram_parameters(r: Results) -> Finding:
    measured, claimed = r["structure"]["bigram_parameters"], r["corpus"]["vocab_size"] ** 2
    return holds_if(measured == claimed, f"{measured:,}; claimed {claimed:,}", "exactly", "the numbers differ")


@TRAINING(
    "BabyGPT is trained by gradient descent and backpropagation with AdamW.",
    "exact training loss (nats per token): initial, after AdamW, and of the same network fitted to the pair counts",
)
def gradient_descent(r: Results) -> Finding:
    initial, entropy = r["training"]["initial"]["train"], r["corpus"]["entropy"]
    adamw, counts = curve(r, "BabyGPT, AdamW")["train"][-1], curve(r, "BabyGPT, on counts")["train"][-1]
    figure = f"initial {initial:.4f}, AdamW {adamw:.4f}, on counts {counts:.4f}; entropy {entropy:.4f}"
    if adamw >= initial:
        return Finding(figure, FAILS, "AdamW did not lower the loss")
    if counts < adamw:
        return Finding(figure, LIMIT, "the script is; fitted to the pair counts, the same network has a lower loss")
    return Finding(figure, HOLDS, "and the fit to the pair counts has no lower loss")


def of_merged(r: Results) -> str:
    merged, whole = r["equivalence"]["vocab_size"], r["corpus"]["vocab_size"]
    return "" if merged == whole else f" (V = {merged}: all but the {merged - 1} most frequent tokens merged into one)"


@TRAINING(
    "The bigram has no loss function and no optimizer.",
    "cross-entropy of a V x V table of logits: gradient norm at the log counts over the gradient norm at zero",
)
def no_loss(r: Results) -> Finding:
    ratio = r["training"]["gradient_at_counts"]
    figure = f"{ratio:.1e}{of_merged(r)}"
    if ratio < 1e-4:
        return Finding(figure, LIMIT, "it needs none: counting gives the exact minimum of BabyGPT's loss")
    return Finding(figure, HOLDS, "the counts do not minimize BabyGPT's loss")


@TRAINING("The bigram counts pair by pair.", "the whole training text counted by a Python loop and by one scatter-add")
def counts_pair_by_pair(r: Results) -> Finding:
    difference = r["training"]["looped_difference"]
    loop, one = curve(r, "count bigram, looped")["seconds"][0], curve(r, "count bigram")["seconds"][0]
    figure = f"largest difference {difference}; {in_words(loop)} and {in_words(one)}"
    if difference == 0 and one < loop:
        because = f"the script does; one scatter-add gives the same counts and is {times(loop / one)} faster"
        return Finding(figure, LIMIT, because)
    return Finding(figure, HOLDS, "one scatter-add gives other counts, or is not faster")


@TRAINING(
    "BabyGPT's update takes the whole batch at once.",
    "gradient of a batch, compared with the mean gradient of its windows computed one by one",
)
def whole_batch(r: Results) -> Finding:
    difference, speedup = r["training"]["batch_gradient_difference"], r["training"]["batch_gradient_speedup"]
    figure = f"relative difference {difference:.1e}; {times(speedup)} faster"
    because = "the same gradient, computed faster"
    return holds_if(difference < 1e-4 and speedup > 1, figure, because, "not the same gradient, or not faster")


@GENERATION(
    "BabyGPT samples from its softmax.",
    "total variation distance between token frequencies in samples and the softmax; the distance expected by chance",
)
def softmax_draws(r: Results) -> Finding:
    measured, expected = r["generation"]["total_variation"], r["generation"]["expected_total_variation"]
    figure = f"{measured:.4f} in {r['generation']['draws']:,} samples; expected {expected:.4f}"
    return holds_if(measured < 2 * expected, figure, "no more than chance explains", "more than chance explains")


@GENERATION(
    "The bigram divides its counts by their sum, clamped to at least 1.",
    "largest difference from the softmax of the log counts; contexts without counts",
)
def normalized_by_hand(r: Results) -> Finding:
    difference, rows = r["generation"]["by_hand_difference"], r["generation"]["rows_by_hand"]
    empty = r["generation"]["contexts_without_counts"]
    figure = f"{difference:.1e} in {rows:,} rows; {empty} of V = {r['corpus']['vocab_size']:,} without counts"
    if difference > 1e-5:
        return Finding(figure, FAILS, "the two differ")
    if empty:
        return Finding(
            figure, LIMIT, "the same as a softmax, but a row without counts becomes all zeros: no distribution"
        )
    return Finding(figure, HOLDS, "the same as a softmax; no row is without counts here")


@EQUIVALENCE(
    "Embedding and linear layer compose to one V x V matrix.",
    "relative difference between the product matrix and the model's logits; rank of the matrix",
)
def composes(r: Results) -> Finding:
    difference, rank, bias = r["structure"]["composed_difference"], r["structure"]["rank"], r["options"]["bias"]
    because = "of rank D + 1 at most: the bias adds 1" if bias else "of rank D at most"
    equal = difference < 1e-5 and rank <= r["options"]["n_embd"] + bias
    return holds_if(equal, f"difference {difference:.1e}; rank {rank}", because, "the logits are not this matrix")


@EQUIVALENCE(
    "The bigram holds frequencies, BabyGPT implicit associations.",
    "correlation of BabyGPT's log-probabilities with the log frequencies, weighted by counts",
)
def implicit_associations(r: Results) -> Finding:
    correlation = r["equivalence"]["correlation"]
    if correlation > 0.9:
        return Finding(f"{correlation:.4f}", LIMIT, "the associations are the frequencies, approximately")
    return Finding(f"{correlation:.4f}", HOLDS, "the associations differ from the frequencies")


@EQUIVALENCE(
    "With n_embd = V BabyGPT can be any V x V matrix.",
    "BabyGPT with the bigram's log-probabilities as embedding: largest difference of a probability",
)
def any_matrix(r: Results) -> Finding:
    difference = r["equivalence"]["probability_difference"]
    because = "equal up to rounding; n_embd = V - 1 is enough"
    return holds_if(difference < 1e-5, f"{difference:.1e}{of_merged(r)}", because, "the probabilities differ")


@EQUIVALENCE(
    "Even so, training need not converge to the bigram.",
    "training loss above the entropy: AdamW at n_embd = V, and a fit on counts at n_embd = V - 1",
)
def need_not_converge(r: Results) -> Finding:
    adamw, counts = r["equivalence"]["adamw_gap"], r["equivalence"]["counts_gap"]
    figure = f"AdamW {adamw:.2g}, on counts {counts:.2g} nats{of_merged(r)}"
    if adamw < NEGLIGIBLE:
        return Finding(figure, FAILS, "AdamW converges to the bigram")
    if counts < NEGLIGIBLE:
        return Finding(figure, LIMIT, "true of AdamW at a constant learning rate; the fit on counts converges to it")
    return Finding(figure, HOLDS, "neither converges to it")


@EQUIVALENCE(
    "BabyGPT learns the best representation of the data, the bigram only counts.",
    "loss (nats per token); the penalty and the k of add-k are chosen by this validation loss",
)
def best_representation(r: Results) -> Finding:
    adamw, entropy = curve(r, "BabyGPT, AdamW"), r["corpus"]["entropy"]
    babygpt = {
        f"BabyGPT by AdamW at {r['options']['learning_rate']:g}": adamw["val"][-1],
        "BabyGPT on counts": curve(r, "BabyGPT, on counts")["val"][-1],
    }
    bigram = {"add-1 bigram": r["training"]["bigram"]["val"], "Kneser-Ney bigram": r["extension"]["ngram_val"]["2"]}
    if chosen := r.get("validation"):  # the record of songci is older than this measurement
        babygpt[f"BabyGPT on counts with penalty {chosen['penalty']:g}"] = chosen["penalty_val"]
        bigram[f"add-{chosen['smoothing']:g} bigram"] = chosen["smoothing_val"]
    val = ", ".join(f"{name} {loss:.4f}" for name, loss in (babygpt | bigram).items())
    figure = f"train: AdamW {adamw['train'][-1]:.4f}, counts {entropy:.4f}; validation: {val}"
    if adamw["train"][-1] < entropy - 1e-5:
        return Finding(figure, HOLDS, "its training loss is below that of the counts")
    best, counted = min(babygpt, key=babygpt.__getitem__), min(bigram, key=bigram.__getitem__)
    if babygpt[best] < bigram[counted]:
        return Finding(figure, LIMIT, f"counts are optimal on the training text; on validation {best} is ahead")
    return Finding(figure, FAILS, f"counts are optimal on the training text; on validation the {counted} is ahead")


@SUMMARY(
    "BabyGPT is not equivalent: n_embd = 32 is a bottleneck.",
    "training loss above the entropy of the best fit found at the width of this run",
)
def bottleneck(r: Results) -> Finding:
    width = r["options"]["n_embd"]
    gap = r["expressiveness"]["gap"][r["expressiveness"]["n_embd"].index(width)]
    rank, vocab_size = r["structure"]["rank"], r["corpus"]["vocab_size"]
    figure = f"at most {gap:.2g} nats lost at n_embd = {width}; rank {rank}, V = {vocab_size:,}"
    if rank >= vocab_size - 1:
        return Finding(figure, FAILS, "the rank is full: there is no bottleneck")
    if gap < NEGLIGIBLE:
        return Finding(figure, LIMIT, f"the rank is lower, but on this text that costs less than {NEGLIGIBLE:g} nats")
    return Finding(figure, HOLDS, "no fit found loses less")


@SUMMARY(
    "BabyGPT expresses less than the bigram if n_embd < V.",
    f"narrowest width tried with a fit within {NEGLIGIBLE:g} nats of the entropy",
)
def expresses_less(r: Results) -> Finding:
    widths, vocab_size = r["expressiveness"]["n_embd"], r["corpus"]["vocab_size"]
    enough = [width for width, gap in zip(widths, r["expressiveness"]["gap"], strict=True) if gap < NEGLIGIBLE]
    if not enough:
        return Finding(f"none up to {widths[-1]}, V = {vocab_size:,}", HOLDS, "every width tried loses something")
    figure = f"n_embd = {enough[0]}, V = {vocab_size:,}"
    if enough[0] < vocab_size - 1:
        return Finding(figure, LIMIT, f"true below the effective rank of the text, which is {enough[0]} at most")
    return Finding(figure, HOLDS, "no narrower width tried is enough")


@SUMMARY(
    "The two are trained in completely different ways.",
    "mean KL divergence (nats) between the predictions of BabyGPT trained on counts and by AdamW",
)
def different_ways(r: Results) -> Finding:
    divergence, reached = r["training"]["kl_divergence"], r["training"]["seconds_on_counts_to_adamw"]
    seconds = curve(r, "BabyGPT, AdamW")["seconds"][-1]
    sooner = f"; AdamW's loss takes {in_words(seconds)} by AdamW, {in_words(reached)} on counts" if reached else ""
    figure = f"{divergence:.3f}{sooner}"
    if divergence < 0.2:
        return Finding(figure, LIMIT, "different methods, the same loss function, nearly the same predictions")
    return Finding(figure, HOLDS, "and their predictions differ")


@SUMMARY(
    "BabyGPT extends to a GPT; the bigram is only a baseline.",
    "validation loss (nats per token) of both, of a higher rung after no more steps than BabyGPT, and of n-grams",
)
def extends(r: Results) -> Finding:
    rung, bigram, babygpt = (r["extension"][name] for name in ("rung_val", "bigram_val", "babygpt_val"))
    orders = dict(r["extension"]["ngram_val"])
    pair = orders.pop("2")
    order = min(orders, key=orders.__getitem__)
    figure = (
        f"add-1 bigram {bigram:.4f}, BabyGPT {babygpt:.4f}; {r['extension']['rung']} {rung:.4f} after "
        f"{r['extension']['steps']:,} steps; Kneser-Ney of order 2 {pair:.4f}, of order {order} {orders[order]:.4f}"
    )
    if rung >= min(bigram, babygpt):
        return Finding(figure, FAILS, "the higher rung is no better than both")
    if orders[order] < pair:
        return Finding(figure, LIMIT, "counting extends too, to longer contexts")
    return Finding(figure, HOLDS, "and counting gains nothing from longer contexts")


@SUMMARY(
    "BabyGPT v1 is a bigram in disguise.",
    "largest change of the last logits if all earlier tokens are changed",
)
def in_disguise(r: Results) -> Finding:
    change = r["structure"]["change_by_earlier_tokens"]
    return holds_if(change == 0, f"{change:g}", "it sees one token", "it sees more than one token")
