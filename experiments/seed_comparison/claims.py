"""The seed's claims, section by section: what each says, how it was measured, the figure and the verdict it gives.

A claim is a function of the results alone. Change a figure there and the verdict follows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

Results = dict[str, Any]


class Verdict(StrEnum):
    HOLDS = "holds"
    LIMIT = "holds with a limit"
    FAILS = "does not hold"


HOLDS, LIMIT, FAILS = Verdict.HOLDS, Verdict.LIMIT, Verdict.FAILS

SECTIONS = {
    1: "Structure",
    2: "Training",
    3: "Complexity and memory access",
    4: "Implementation",
    5: "Generation",
    6: "Equivalence",
    7: "Fit for a GPU",
    8: "Summary",
}


class Finding(NamedTuple):
    """What was measured, in words and digits, what follows of the claim, and why."""

    figure: str
    verdict: Verdict
    because: str


@dataclass(frozen=True)
class Claim:
    """One statement of the seed, in one of its sections."""

    section: int
    name: str
    says: str
    method: str
    judge: Callable[[Results], Finding]


CLAIMS: list[Claim] = []


def claim(section: int, says: str, method: str) -> Callable[[Callable[[Results], Finding]], Claim]:
    """Makes a claim of the function that judges it."""

    def register(judge: Callable[[Results], Finding]) -> Claim:
        CLAIMS.append(Claim(section, judge.__name__, says, method, judge))
        return CLAIMS[-1]

    return register


def times(ratio: float) -> str:
    return f"{ratio:,.0f} x" if ratio >= 10 else f"{ratio:.2g} x"


def in_words(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    units = (("min", 60, 120), ("s", 1, 1), ("ms", 1e-3, 1e-3), ("us", 1e-6, 0))  # name, size, from when on
    unit, size = next((unit, size) for unit, size, least in units if seconds >= least)
    amount = seconds / size
    return f"{amount:,.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"


# 1. Structure


@claim(1, "BabyGPT is a neural network, the bigram a table of counts.", "parameters that a gradient can move")
def kinds_of_model(r: Results) -> Finding:
    babygpt, bigram = r["structure"]["babygpt_trainable"], r["structure"]["bigram_trainable"]
    figure = f"BabyGPT {babygpt:,}, bigram {bigram:,}"
    if babygpt and not bigram:
        return Finding(figure, HOLDS, "counts are whole numbers here: nothing to differentiate")
    return Finding(figure, FAILS, "both or neither can be moved by a gradient")


@claim(1, "BabyGPT has V x D + D x V parameters.", "arrays of the model counted")
def babygpt_parameters(r: Results) -> Finding:
    vocab_size, width = r["corpus"]["vocab_size"], r["options"]["n_embd"]
    found, said = r["structure"]["babygpt_parameters"], 2 * vocab_size * width
    figure = f"{found:,}; claimed {said:,}"
    if found == said:
        return Finding(figure, HOLDS, "the head has no bias")
    if found == said + vocab_size:
        return Finding(figure, LIMIT, f"the head's bias adds V = {vocab_size:,}: V D + D V + V")
    return Finding(figure, FAILS, "the numbers differ, and not by a bias")


@claim(1, "The bigram has V x V.", "cells of the count matrix")
def bigram_parameters(r: Results) -> Finding:
    found, said = r["structure"]["bigram_parameters"], r["corpus"]["vocab_size"] ** 2
    return Finding(f"{found:,}; claimed {said:,}", *((HOLDS, "exactly") if found == said else (FAILS, "it has not")))


# 2. Training


def of_folded(r: Results) -> str:
    folded, whole = r["equivalence"]["vocab_size"], r["corpus"]["vocab_size"]
    return "" if folded == whole else f" (all but the {folded - 1} most frequent tokens made one: V = {folded})"


def curve(r: Results, name: str) -> dict[str, list[float]]:
    return r["training"]["curves"][name]


@claim(
    2,
    "BabyGPT is trained by gradient descent and backpropagation, with AdamW.",
    "exact training loss, nats per token, before and after; beside it the same network fitted to pair counts",
)
def gradient_descent(r: Results) -> Finding:
    before, entropy = r["training"]["start"]["train"], r["corpus"]["entropy"]
    adamw, counts = curve(r, "BabyGPT, AdamW")["train"][-1], curve(r, "BabyGPT, on counts")["train"][-1]
    figure = f"{before:.4f} to {adamw:.4f} by AdamW; {counts:.4f} on counts; floor {entropy:.4f}"
    if adamw >= before:
        return Finding(figure, FAILS, "AdamW did not lower the loss")
    if counts < adamw:
        return Finding(figure, LIMIT, "so the script does it; the pair counts alone train the same network further")
    return Finding(figure, HOLDS, "and nothing here does better")


@claim(
    2,
    "The bigram has no loss function and no optimiser.",
    "gradient of the cross-entropy of a V x V table of logits at the logarithms of the counts, over that at zero",
)
def no_loss(r: Results) -> Finding:
    ratio = r["training"]["gradient_at_counts"]
    figure = f"{ratio:.1e}{of_folded(r)}"
    if ratio < 1e-4:
        return Finding(figure, LIMIT, "it needs none: counting is the exact minimum of the very loss BabyGPT descends")
    return Finding(figure, HOLDS, "the counts do not minimise BabyGPT's loss")


@claim(2, "The bigram counts pair by pair.", "looped and vectorised counts of the whole training text")
def counts_pair_by_pair(r: Results) -> Finding:
    apart = r["training"]["looped_difference"]
    loop, one = curve(r, "count bigram, looped")["seconds"][0], curve(r, "count bigram")["seconds"][0]
    figure = f"largest difference {apart}; {in_words(loop)} and {in_words(one)}"
    if apart == 0 and one < loop:
        return Finding(
            figure, LIMIT, f"so the script does it; one scatter-add gives the same counts {times(loop / one)} faster"
        )
    return Finding(figure, HOLDS, "one operation does not do the same, or not faster")


@claim(
    2,
    "BabyGPT's update takes the whole batch at once.",
    "gradient of a batch against the mean of its windows' gradients, one after another",
)
def whole_batch(r: Results) -> Finding:
    apart, gain = r["training"]["batch_gradient_difference"], r["training"]["batch_gradient_speedup"]
    figure = f"relative difference {apart:.1e}; {times(gain)} faster"
    if apart < 1e-4 and gain > 1:
        return Finding(figure, HOLDS, "the same gradient, sooner")
    return Finding(figure, FAILS, "it is not the same gradient, or not sooner")


# 3. Complexity and memory access


def exponents(r: Results, subject: str, of: str) -> dict[str, float]:
    return {axis: values["exponents"][of] for axis, values in r["scaling"][subject]["axes"].items()}


def in_sizes(found: dict[str, float]) -> str:
    return ", ".join(f"{axis}^{value:.2f}".replace("-0.00", "0.00") for axis, value in found.items())


@claim(3, "BabyGPT's forward pass costs O(B T D).", "FLOPs the compiler counts for each size: fitted exponents")
def forward_cost(r: Results) -> Finding:
    found, said = exponents(r, "BabyGPT forward", "flops"), r["scaling"]["BabyGPT forward"]["claimed"]
    figure = f"{in_sizes(found)}; seconds {in_sizes(exponents(r, 'BabyGPT forward', 'seconds'))}"
    wrong = [axis for axis, value in found.items() if abs(value - said[axis]) > 0.25]
    if not wrong:
        return Finding(figure, HOLDS, "as claimed")
    return Finding(figure, FAILS, f"wrong in {' and '.join(wrong)}: the head multiplies D by V numbers, O(B T D V)")


@claim(3, "The bigram's forward pass costs O(B T).", "seconds of `transition[idx]` for each size: fitted exponents")
def lookup_cost(r: Results) -> Finding:
    found = exponents(r, "bigram look-up", "seconds")
    if found["V"] > 0.5:
        return Finding(in_sizes(found), LIMIT, "B T look-ups, but each copies a row of V numbers: O(B T V) bytes")
    if abs(found["B"] - 1) < 0.5 and abs(found["T"] - 1) < 0.5:
        return Finding(in_sizes(found), HOLDS, "as claimed")
    return Finding(in_sizes(found), FAILS, "not in proportion to B T")


@claim(
    3,
    "Training BabyGPT costs O(max_iters).",
    "seconds over steps of one run, second half over the first; FLOPs of one step for each size: fitted exponents",
)
def training_cost(r: Results) -> Finding:
    seconds, steps = (curve(r, "BabyGPT, AdamW")[name] for name in ("seconds", "steps"))
    middle = min(range(len(steps)), key=lambda index: abs(steps[index] - steps[-1] / 2))
    early, late = seconds[middle] / steps[middle], (seconds[-1] - seconds[middle]) / max(1, steps[-1] - steps[middle])
    late = late or early  # of a single step
    found = exponents(r, "BabyGPT, AdamW step", "flops")
    figure = f"{late / early:.2f} a step; a step {in_sizes(found)}"
    if not 1 / 3 < late / early < 3:
        return Finding(figure, FAILS, "later steps do not cost what earlier ones do")
    if max(found.values()) > 0.5:
        return Finding(figure, LIMIT, "linear in the steps, but each costs O(B T D V)")
    return Finding(figure, HOLDS, "as claimed")


@claim(3, "Training the bigram costs O(max_iters B T).", "seconds of the loop for each size: fitted exponents")
def counting_cost(r: Results) -> Finding:
    found = exponents(r, "counting a batch, looped", "seconds")
    once = curve(r, "count bigram")["seconds"][0]
    figure = f"{in_sizes(found)}; the whole text, once: {in_words(once)}"
    if abs(found["B"] - 1) > 0.35 or abs(found["T"] - 1) > 0.35:
        return Finding(figure, FAILS, "not in proportion to B T")
    return Finding(figure, HOLDS, "for random windows; each pair of the text needs to be read only once")


@claim(
    3,
    "BabyGPT reads memory contiguously, the bigram at scattered indices.",
    "bytes/s of `transition[idx]` at random indices in a table of 64 MiB (V = 4,096), beside copying as many",
)
def memory_access(r: Results) -> Finding:
    share, order = r["hardware"]["gather_share_of_copy"], r["hardware"]["random_over_ordered"]
    figure = f"{share:.0%} of a copy's; {order:.2f} times the seconds of sorted indices"
    if share > 0.5 and order < 1.25:
        because = "a look-up reads whole rows of V numbers; and BabyGPT's embedding is a look-up too"
        return Finding(figure, FAILS, because)
    if share > 0.2:
        return Finding(figure, LIMIT, "scattered rows cost something, but most of the bandwidth is there")
    return Finding(figure, HOLDS, "scattered indices cost most of the bandwidth")


# 4. Implementation


@claim(4, "BabyGPT's forward pass is one look-up and one matrix product.", "operations of the traced program")
def one_look_up_one_product(r: Results) -> Finding:
    gathers, products = r["structure"]["gathers"], r["structure"]["matrix_products"]
    figure = f"{gathers} gather, {products} matrix product"
    return Finding(
        figure, *((HOLDS, "for the whole batch") if gathers == products == 1 else (FAILS, "not one of each"))
    )


@claim(
    4,
    "The bigram's forward pass loops over B and T.",
    "us a token of the loop in each library, beside `transition[idx]`; largest difference",
)
def loops_over_tokens(r: Results) -> Finding:
    loops, one = r["baselines"]["loops"], r["baselines"]["one_operation"]
    gains = {library: loop["look_up_us"] / one["look_up_us"] for library, loop in loops.items()}
    apart = max(one["difference"], *(loop["difference"] for loop in loops.values()))
    figure = (
        ", ".join(f"{library} {loop['look_up_us']:.3g}" for library, loop in loops.items())
        + f"; at once {one['look_up_us']:.3g}; difference {apart:g}"
    )
    if apart == 0 and min(gains.values()) > 1:
        return Finding(
            figure,
            LIMIT,
            f"so the script does it; at once is {times(min(gains.values()))} to {times(max(gains.values()))} faster",
        )
    return Finding(figure, HOLDS, "and indexing by the batch gives no more")


# 5. Generation


@claim(
    5,
    "BabyGPT draws from its softmax.",
    "total variation between frequencies of draws and the softmax, beside what chance alone makes",
)
def softmax_draws(r: Results) -> Finding:
    apart, chance = r["generation"]["drawn_apart"], r["generation"]["apart_by_chance"]
    figure = f"{apart:.4f} in {r['generation']['draws']:,} draws; by chance {chance:.4f}"
    return Finding(figure, *((HOLDS, "as chance would have it") if apart < 2 * chance else (FAILS, "more than chance")))


@claim(
    5,
    "The bigram divides its counts by their sum, clamped at 1.",
    "largest difference from the softmax of the logarithms of the counts; rows without any count",
)
def normalised_by_hand(r: Results) -> Finding:
    apart, empty = r["generation"]["by_hand_difference"], r["generation"]["characters_without_successor"]
    figure = (
        f"{apart:.1e} in {r['generation']['rows_by_hand']:,} rows; {empty} of V = {r['corpus']['vocab_size']:,} empty"
    )
    if apart > 1e-5:
        return Finding(figure, FAILS, "the two differ")
    if empty:
        return Finding(
            figure, LIMIT, "the same softmax; but an empty row, clamped, is no distribution, and drawing from it fails"
        )
    return Finding(figure, HOLDS, "the same softmax by another name; here no row is empty")


# 6. Equivalence


@claim(6, "Embedding and linear layer compose to one V x V matrix.", "its rows beside the model's logits; its rank")
def composes(r: Results) -> Finding:
    apart, rank = r["structure"]["composed_difference"], r["structure"]["rank"]
    figure = f"relative difference {apart:.1e}; rank {rank}"
    if apart < 1e-5 and rank <= r["options"]["n_embd"] + r["options"]["bias"]:
        return Finding(figure, HOLDS, f"no more than D{' + 1: the bias adds a row' if r['options']['bias'] else ''}")
    return Finding(figure, FAILS, "the logits are not those of such a matrix")


@claim(
    6,
    "The bigram holds frequencies, BabyGPT implicit associations.",
    "correlation of BabyGPT's log-probabilities with the logarithms of the frequencies, weighted by counts",
)
def implicit_associations(r: Results) -> Finding:
    found = r["equivalence"]["correlation"]
    if found > 0.9:
        return Finding(f"{found:.4f}", LIMIT, "what it associates are the frequencies")
    return Finding(f"{found:.4f}", HOLDS, "they differ from the frequencies")


@claim(
    6,
    "With n_embd = V BabyGPT can be any V x V matrix.",
    "set to the bigram's log-probabilities times the identity: largest difference of a probability",
)
def any_matrix(r: Results) -> Finding:
    apart = r["equivalence"]["probabilities_apart"]
    figure = f"{apart:.1e}{of_folded(r)}"
    return Finding(figure, *((HOLDS, "to rounding; n_embd = V - 1 would do") if apart < 1e-5 else (FAILS, "it is not")))


@claim(
    6,
    "Even so, training need not end at the bigram.",
    "exact training loss above the entropy: AdamW at n_embd = V, and a fit on counts at V - 1",
)
def need_not_converge(r: Results) -> Finding:
    adamw, counts = r["equivalence"]["adamw_gap"], r["equivalence"]["counts_gap"]
    figure = f"AdamW {adamw:.2g}, counts {counts:.2g} nats{of_folded(r)}"
    if adamw < 1e-3:
        return Finding(figure, FAILS, "AdamW ends at the bigram")
    if counts < 1e-3:
        return Finding(figure, LIMIT, "true of AdamW at a constant step size; a fit on the counts ends there")
    return Finding(figure, HOLDS, "neither ends there")


@claim(
    6,
    "BabyGPT learns the best representation of the data, the bigram only counts.",
    "losses, nats per token: BabyGPT by AdamW; the counts, on validation add-one and Kneser-Ney",
)
def best_representation(r: Results) -> Finding:
    adamw = curve(r, "BabyGPT, AdamW")
    train, entropy, val = adamw["train"][-1], r["corpus"]["entropy"], adamw["val"][-1]
    add_one, discounted = r["training"]["bigram"]["val"], r["extension"]["ngram_val"]["2"]
    figure = f"train {train:.4f} and {entropy:.4f}; val {val:.4f}, {add_one:.4f} and {discounted:.4f}"
    if train < entropy - 1e-5:
        return Finding(figure, HOLDS, "it beats the counts on the data")
    if val < min(add_one, discounted):
        return Finding(figure, LIMIT, "on the data the counts are the optimum, but BabyGPT generalises better")
    return Finding(figure, FAILS, "on the data the counts are the optimum; smoothed they are ahead on validation too")


# 7. Fit for a GPU


@claim(
    7,
    "The bigram is serial; BabyGPT is parallel.",
    "tokens/s of a full batch over those of one token; halves of the text counted apart and added",
)
def serial(r: Results) -> Finding:
    ours, theirs = r["hardware"]["forward_gain_of_batch"], r["hardware"]["gather_gain_of_batch"]
    apart = r["training"]["halves_difference"]
    figure = f"BabyGPT {times(ours)}, look-up {times(theirs)}; counts differ by {apart}"
    if apart == 0 and theirs > 10:
        return Finding(figure, FAILS, "counts add: any part of the text can be counted anywhere")
    return Finding(figure, HOLDS, "the bigram gains nothing from being done at once")


def of_a_gpu(r: Results, because: str) -> str:
    """A reason, with what a CPU cannot say."""
    return because + ("; measured on a CPU, which says little of a GPU" if r["device"] == "cpu" else "")


@claim(
    7,
    "All of BabyGPT's training can run on the device.",
    "calls of the host in the compiled program that makes up to 1,024 steps: batches, loss, optimiser",
)
def trains_on_the_device(r: Results) -> Finding:
    calls = r["structure"]["host_calls"]
    return Finding(f"{calls}", *((HOLDS, "one program") if calls == 0 else (FAILS, "it calls the host")))


@claim(
    7,
    "BabyGPT uses the device well, the bigram badly.",
    "share of the device's own matrix product (flop/s) and copy (bytes/s), at 4,096 tokens, V = 4,096, D = 256",
)
def utilisation(r: Results) -> Finding:
    ours, theirs = r["hardware"]["forward_share_of_product"], r["hardware"]["gather_share_of_copy"]
    figure = f"BabyGPT {ours:.0%} of the product, look-up {theirs:.0%} of the copy"
    if theirs >= ours / 2:
        return Finding(
            figure, LIMIT, of_a_gpu(r, "true of the loop only: a look-up is a copy, and the device copies as fast")
        )
    return Finding(figure, HOLDS, of_a_gpu(r, "as claimed"))


@claim(
    7,
    "Indexing element by element on a device is dominated by launches.",
    "us for each token of the loop in JAX and of one operation",
)
def launches(r: Results) -> Finding:
    loop, one = r["baselines"]["loops"]["JAX"]["look_up_us"], r["baselines"]["one_operation"]["look_up_us"]
    figure = f"{loop:.3g} and {one:.3g}"
    if loop > 10 * one:
        return Finding(figure, HOLDS, f"{times(loop / one)}: nearly all of it is not the look-up")
    return Finding(figure, FAILS, "the loop costs little more")


@claim(
    7,
    "Its triple loop takes minutes (the script notes over 3, and an error on CUDA).",
    "us a pair of the counting loop in each library, times the script's 5,000 x 32 x 8 pairs",
)
def takes_minutes(r: Results) -> Finding:
    pairs = 5000 * 32 * 8
    spent = {library: 1e-6 * loop["count_us"] * pairs for library, loop in r["baselines"]["loops"].items()}
    once = curve(r, "count bigram")["seconds"][0]
    figure = ", ".join(f"{name} {in_words(seconds)}" for name, seconds in spent.items())
    figure += f"; the text counted at once: {in_words(once)}"
    if max(spent.values()) < 60:
        return Finding(figure, FAILS, "none takes a minute here")
    if min(spent.values()) < 60:
        return Finding(figure, LIMIT, "it depends on what one indexing costs in a library, not on the model")
    return Finding(figure, HOLDS, "all of them")


@claim(
    7,
    "A library for devices makes the loop slower, not faster.",
    "us a pair of the counting loop in JAX over that in plain Python",
)
def slower_on_a_device(r: Results) -> Finding:
    loops = r["baselines"]["loops"]
    ratio = loops["JAX"]["count_us"] / loops["Python and NumPy"]["count_us"]
    if ratio > 1:
        return Finding(times(ratio), HOLDS, "each pair is a program of its own, and makes a table of its own")
    return Finding(times(ratio), FAILS, "it does not")


@claim(
    7, "The remedy is `transition[idx]`.", "beside the loop in PyTorch, else in plain Python: same rows, times faster"
)
def remedy(r: Results) -> Finding:
    loops, one = r["baselines"]["loops"], r["baselines"]["one_operation"]
    loop = loops.get("PyTorch", loops["Python and NumPy"])
    gain, apart = loop["look_up_us"] / one["look_up_us"], max(loop["difference"], one["difference"])
    figure = f"difference {apart:g}, {times(gain)}"
    return Finding(figure, *((HOLDS, "as claimed") if apart == 0 and gain > 1 else (FAILS, "it does not help")))


@claim(
    7,
    "In the end BabyGPT suits a GPU and the bigram does not.",
    "tokens/s of both forward passes on this device, at a size that fills it",
)
def suits_a_gpu(r: Results) -> Finding:
    ours, theirs = r["hardware"]["forward_tokens_per_second"], r["hardware"]["gather_tokens_per_second"]
    figure = f"BabyGPT {ours:,.0f}, look-up {theirs:,.0f}, on {r['device']}"
    if theirs > ours:
        because = "true of the Python loop only; the look-up does what the product does with less work"
        return Finding(figure, LIMIT, of_a_gpu(r, because))
    return Finding(figure, HOLDS, of_a_gpu(r, "as claimed"))


# 8. Summary


def narrowest(r: Results) -> int | None:
    """The least width measured at which nothing is lost: 0.001 nats or less."""
    rows = zip(r["expressiveness"]["n_embd"], r["expressiveness"]["gap"], strict=True)
    return next((width for width, gap in rows if gap < 1e-3), None)


@claim(
    8,
    "BabyGPT is not equivalent: n_embd = 32 is a bottleneck.",
    "least training loss found at the width of this run, above the entropy",
)
def bottleneck(r: Results) -> Finding:
    width = r["options"]["n_embd"]
    gap = r["expressiveness"]["gap"][r["expressiveness"]["n_embd"].index(width)]
    rank, vocab_size = r["structure"]["rank"], r["corpus"]["vocab_size"]
    figure = f"{gap:.2g} nats at n_embd = {width}; a matrix of rank {rank}, V = {vocab_size:,}"
    if rank >= vocab_size - 1:
        return Finding(figure, FAILS, "its rank is full: there is no bottleneck")
    if gap < 1e-3:
        return Finding(figure, LIMIT, "its rank is lower, but on this text nothing measurable is lost by it")
    return Finding(figure, HOLDS, "so much is lost by the best that was found")


@claim(
    8,
    "BabyGPT expresses less than the bigram where n_embd < V.",
    "least training loss found at each width: the narrowest within 0.001 nats of the entropy",
)
def expresses_less(r: Results) -> Finding:
    width, vocab_size = narrowest(r), r["corpus"]["vocab_size"]
    widest = r["expressiveness"]["n_embd"][-1]
    if width is None:
        return Finding(f"none up to {widest}, V = {vocab_size:,}", HOLDS, "every width tried loses something")
    if width < vocab_size - 1:
        return Finding(
            f"n_embd = {width}, V = {vocab_size:,}",
            LIMIT,
            f"lost only below the effective rank of the text, {width} or less",
        )
    return Finding(f"n_embd = {width}, V = {vocab_size:,}", HOLDS, "no narrower one that was tried will do")


@claim(
    8,
    "The two are trained in wholly different ways.",
    "mean KL divergence between the predictions of BabyGPT trained on counts and by AdamW, nats",
)
def different_ways(r: Results) -> Finding:
    apart, reached = r["training"]["predictions_apart"], r["training"]["seconds_on_counts_to_adamw"]
    seconds = curve(r, "BabyGPT, AdamW")["seconds"][-1]
    sooner = f"; AdamW's loss after {in_words(seconds)} by AdamW, {in_words(reached)} on counts" if reached else ""
    figure = f"{apart:.3f}{sooner}"
    if apart < 0.2:
        return Finding(figure, LIMIT, "different roads, one loss, nearly the same predictions")
    return Finding(figure, HOLDS, "and they predict differently")


@claim(
    8,
    "BabyGPT extends to a GPT; the bigram is only a baseline.",
    "validation loss, nats per token: both, a rung above after no more steps than BabyGPT's, and n-grams",
)
def extends(r: Results) -> Finding:
    found = r["extension"]
    pair = found["ngram_val"]["2"]
    order, ngram = min(((k, v) for k, v in found["ngram_val"].items() if k != "2"), key=lambda item: item[1])
    figure = (
        f"add-one bigram {found['bigram_val']:.4f}, BabyGPT {found['babygpt_val']:.4f}; {found['rung']} "
        f"{found['rung_val']:.4f} after {found['steps']:,} steps; Kneser-Ney of order 2 {pair:.4f}, {order} {ngram:.4f}"
    )
    if found["rung_val"] >= min(found["bigram_val"], found["babygpt_val"]):
        return Finding(figure, FAILS, "the rung above does no better than both")
    if ngram < pair:
        return Finding(figure, LIMIT, "counting extends as well: to longer contexts")
    return Finding(figure, HOLDS, "and longer counts bring nothing")


@claim(
    8,
    "BabyGPT v1 is a bigram in disguise.",
    "largest change of the last logits when all tokens before the last are changed",
)
def in_disguise(r: Results) -> Finding:
    moved = r["structure"]["moved_by_earlier_tokens"]
    return Finding(
        f"{moved:g}", *((HOLDS, "it sees one token") if moved == 0 else (FAILS, "it sees more than one token"))
    )
