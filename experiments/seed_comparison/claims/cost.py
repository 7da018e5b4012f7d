"""Claims about speed: complexity and memory access, implementation, fit for a GPU."""

from experiments.seed_comparison.claims.base import (
    COST,
    FAILS,
    GPU,
    HOLDS,
    IMPLEMENTATION,
    LIMIT,
    Finding,
    Results,
    curve,
    digits,
    holds_if,
    in_words,
    times,
)


def exponents(r: Results, subject: str, of: str) -> dict[str, float]:
    return {axis: values["exponents"][of] for axis, values in r["scaling"][subject]["axes"].items()}


def in_sizes(found: dict[str, float]) -> str:
    return ", ".join(f"{axis}^{value:.2f}".replace("-0.00", "0.00") for axis, value in found.items())


def proportional(found: dict[str, float], tolerance: float) -> bool:
    """Return whether a cost is about proportional to B and to T."""
    return all(abs(found[axis] - 1) <= tolerance for axis in "BT")


@COST("BabyGPT's forward pass costs O(B T D).", "exponents fitted to the compiler's FLOP count at several sizes")
def forward_cost(r: Results) -> Finding:
    found, claimed = exponents(r, "BabyGPT forward", "flops"), r["scaling"]["BabyGPT forward"]["claimed"]
    figure = f"FLOPs {in_sizes(found)}; seconds {in_sizes(exponents(r, 'BabyGPT forward', 'seconds'))}"
    wrong = [axis for axis, value in found.items() if abs(value - claimed[axis]) > 0.25]
    if not wrong:
        return Finding(figure, HOLDS, "as claimed")
    return Finding(
        figure, FAILS, f"wrong in {' and '.join(wrong)}: the head is a product with a D x V matrix, O(B T D V)"
    )


@COST(
    "The bigram's forward pass costs O(B T).", "exponents fitted to the seconds of `transition[idx]` at several sizes"
)
def lookup_cost(r: Results) -> Finding:
    found = exponents(r, "bigram lookup", "seconds")
    if found["V"] > 0.5:
        return Finding(in_sizes(found), LIMIT, "B T lookups, but each copies a row of V numbers: O(B T V) bytes")
    if proportional(found, 0.5):
        return Finding(in_sizes(found), HOLDS, "as claimed")
    return Finding(in_sizes(found), FAILS, "not proportional to B T")


@COST(
    "Training BabyGPT costs O(max_iters).",
    "a step in the second half of a run compared with the first half; exponents fitted to the FLOPs of a step",
)
def training_cost(r: Results) -> Finding:
    seconds, steps = (curve(r, "BabyGPT, AdamW")[name] for name in ("seconds", "steps"))
    middle = min(range(len(steps)), key=lambda index: abs(steps[index] - steps[-1] / 2))
    early, late = seconds[middle] / steps[middle], (seconds[-1] - seconds[middle]) / max(1, steps[-1] - steps[middle])
    late = late or early  # of a single step
    found = exponents(r, "BabyGPT, AdamW step", "flops")
    figure = f"{late / early:.2f} times the seconds; FLOPs {in_sizes(found)}"
    if not 1 / 3 < late / early < 3:
        return Finding(figure, FAILS, "later steps do not cost what earlier ones do")
    if max(found.values()) > 0.5:
        return Finding(figure, LIMIT, "linear in the number of steps, but each step costs O(B T D V)")
    return Finding(figure, HOLDS, "as claimed")


@COST("Training the bigram costs O(max_iters B T).", "exponents fitted to the seconds of the counting loop")
def counting_cost(r: Results) -> Finding:
    found = exponents(r, "counting a batch, looped", "seconds")
    once = curve(r, "count bigram")["seconds"][0]
    figure = f"{in_sizes(found)}; the whole text in one operation: {in_words(once)}"
    because = "with random windows; reading each pair of the text once is enough"
    return holds_if(proportional(found, 0.35), figure, because, "not proportional to B T")


@COST(
    "BabyGPT reads memory contiguously, the bigram at scattered indices.",
    "bytes/s of `transition[idx]` at random indices, compared with a copy and with sorted indices (V = 4,096: 64 MiB)",
)
def memory_access(r: Results) -> Finding:
    share, order = r["hardware"]["gather_share_of_copy"], r["hardware"]["random_over_ordered"]
    figure = f"{share:.0%} of a copy; {order:.2f} times the seconds of sorted indices"
    if share > 0.5 and order < 1.25:
        return Finding(figure, FAILS, "a lookup reads whole rows of V numbers, and BabyGPT's embedding is a lookup too")
    if share > 0.2:
        return Finding(figure, LIMIT, "scattered rows cost part of the bandwidth, not most of it")
    return Finding(figure, HOLDS, "scattered indices cost most of the bandwidth")


@IMPLEMENTATION(
    "BabyGPT's forward pass is one lookup and one matrix product for the whole batch.",
    "operations of the traced program",
)
def one_lookup_one_product(r: Results) -> Finding:
    gathers, products = r["structure"]["gathers"], r["structure"]["matrix_products"]
    figure = f"{gathers} gather, {products} matrix product"
    return holds_if(gathers == products == 1, figure, "as claimed", "not one of each")


@IMPLEMENTATION(
    "The bigram's forward pass loops over B and T.",
    "µs per token of the loop in each library and of `transition[idx]`; largest difference of the results",
)
def loops_over_tokens(r: Results) -> Finding:
    loops, one = r["baselines"]["loops"], r["baselines"]["one_operation"]
    speedups = [loop["lookup_us"] / one["lookup_us"] for loop in loops.values()]
    difference = max(one["difference"], *(loop["difference"] for loop in loops.values()))
    spent = ", ".join(f"{library} {digits(loop['lookup_us'])}" for library, loop in loops.items())
    figure = f"{spent}; `transition[idx]` {digits(one['lookup_us'])}; difference {difference:g}"
    if difference == 0 and min(speedups) > 1:
        because = f"the script does; `transition[idx]` is {times(min(speedups))} to {times(max(speedups))} faster"
        return Finding(figure, LIMIT, because)
    return Finding(figure, HOLDS, "`transition[idx]` gives something else, or is not faster")


@GPU(
    "The bigram is serial; BabyGPT is parallel.",
    "tokens/s of a full batch over those of one token; counts of the text compared with the sum over its halves",
)
def serial(r: Results) -> Finding:
    babygpt, lookup = r["hardware"]["forward_gain_of_batch"], r["hardware"]["gather_gain_of_batch"]
    difference = r["training"]["halves_difference"]
    figure = f"BabyGPT {times(babygpt)}, lookup {times(lookup)}; difference {difference}"
    if difference == 0 and lookup > babygpt / 2:
        return Finding(figure, FAILS, "a batch speeds up lookups as it does BabyGPT, and counts of parts add up")
    return Finding(
        figure, HOLDS, "a batch does not speed up lookups as it does BabyGPT, or counts of parts do not add up"
    )


def of_a_gpu(r: Results, because: str) -> str:
    """Return a reason, restricted if it was measured on a CPU."""
    return because + ("; measured on a CPU, which says little about a GPU" if r["device"] == "cpu" else "")


@GPU(
    "All of BabyGPT's training can run on the device.",
    "calls of the host in the compiled program of up to 1,024 steps (batches, loss, optimizer)",
)
def trains_on_the_device(r: Results) -> Finding:
    calls = r["structure"]["host_calls"]
    return holds_if(calls == 0, f"{calls}", "one program", "it calls the host")


@GPU(
    "BabyGPT uses the device well, the bigram badly.",
    "share of the FLOP/s of a matrix product, and of the bytes/s of a copy (4,096 tokens, V = 4,096, D = 256)",
)
def utilization(r: Results) -> Finding:
    babygpt, lookup = r["hardware"]["forward_share_of_product"], r["hardware"]["gather_share_of_copy"]
    figure = f"BabyGPT {babygpt:.0%} of the product, lookup {lookup:.0%} of the copy"
    if lookup >= babygpt / 2:
        return Finding(
            figure, LIMIT, of_a_gpu(r, "true of the Python loop only: a lookup is a copy of rows, and about as fast")
        )
    return Finding(figure, HOLDS, of_a_gpu(r, "as claimed"))


@GPU(
    "Indexing element by element on a device is dominated by kernel launches.",
    "µs per token of the lookup loop in JAX and of one operation",
)
def launches(r: Results) -> Finding:
    loop, one = r["baselines"]["loops"]["JAX"]["lookup_us"], r["baselines"]["one_operation"]["lookup_us"]
    figure = f"loop {digits(loop)}, one operation {digits(one)}"
    because = f"{times(loop / one)}: nearly all of it is overhead"
    return holds_if(loop > 10 * one, figure, because, "the loop costs little more")


@GPU(
    "Its triple loop takes minutes (the script notes over 3, and an error on CUDA).",
    "µs per pair of the counting loop in each library, times the script's 5,000 x 32 x 8 pairs",
)
def takes_minutes(r: Results) -> Finding:
    pairs = 5000 * 32 * 8
    spent = {library: 1e-6 * loop["count_us"] * pairs for library, loop in r["baselines"]["loops"].items()}
    figure = ", ".join(f"{name} {in_words(seconds)}" for name, seconds in spent.items())
    figure += f"; the whole text in one operation: {in_words(curve(r, 'count bigram')['seconds'][0])}"
    if max(spent.values()) < 60:
        return Finding(figure, FAILS, "none takes a minute here")
    if min(spent.values()) < 60:
        return Finding(figure, LIMIT, "that depends on what an element access costs in the library, not on the model")
    return Finding(figure, HOLDS, "in every library")


@GPU(
    "A library for devices makes the loop slower, not faster.",
    "µs per pair of the counting loop in JAX over that in plain Python",
)
def slower_on_a_device(r: Results) -> Finding:
    loops = r["baselines"]["loops"]
    ratio = loops["JAX"]["count_us"] / loops["Python and NumPy"]["count_us"]
    because = "every pair is a dispatch of its own, and makes a new table"
    return holds_if(ratio > 1, times(ratio), because, "it does not")


@GPU(
    "The remedy is `transition[idx]`.",
    "largest difference from the lookup loop in PyTorch (in plain Python without PyTorch); speedup",
)
def remedy(r: Results) -> Finding:
    loops, one = r["baselines"]["loops"], r["baselines"]["one_operation"]
    loop = loops.get("PyTorch", loops["Python and NumPy"])
    speedup, difference = loop["lookup_us"] / one["lookup_us"], max(loop["difference"], one["difference"])
    figure = f"difference {difference:g}; {times(speedup)} faster"
    return holds_if(difference == 0 and speedup > 1, figure, "as claimed", "it does not help")


@GPU(
    "In conclusion, BabyGPT suits a GPU better than the bigram.",
    "tokens/s of both forward passes at a size that fills the device",
)
def suits_a_gpu(r: Results) -> Finding:
    babygpt, lookup = r["hardware"]["forward_tokens_per_second"], r["hardware"]["gather_tokens_per_second"]
    figure = f"BabyGPT {babygpt:,.0f}, lookup {lookup:,.0f}, on {r['device']}"
    if lookup > babygpt:
        return Finding(
            figure, LIMIT, of_a_gpu(r, "true of the Python loop only; a lookup of the whole batch is faster")
        )
    return Finding(figure, HOLDS, of_a_gpu(r, "as claimed"))
