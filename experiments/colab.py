# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BabyGPT v1 and the count bigram
#
# Two models that predict the next character from the one before: a table of counts, and an embedding with a linear
# layer. Train both, see how far apart they are and why, on whatever this machine has: CPU, GPU or TPU. It takes a few
# minutes at most.

# %% tags=["parameters"]
steps = 5000  # of AdamW
text_file = ""  # a UTF-8 text of yours; empty: Python's own documentation, which needs no network
source = ""  # where babyjax is, if not installed nor beside this notebook: a folder, or git+https://... of a repository

# %% [markdown]
# ## Install
#
# Opened on its own, as on Colab, the notebook has to be told where babyjax is: clone or upload the repository and write
# its folder into `source`, above. The JAX that this machine came with stays: pip is held to it.

# %%
import importlib
import importlib.metadata
import pathlib
import subprocess
import sys
import tempfile

installed = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
held = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib") if name in installed}
if "babyjax" not in installed:
    here = ".." if pathlib.Path("../babyjax/conf").is_dir() else source
    if not here:
        raise RuntimeError("say in `source`, above, where babyjax is")
    constraints = pathlib.Path(tempfile.mkdtemp()) / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in held.items()))
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-c", constraints, here], check=True)
    importlib.invalidate_caches()
assert all(importlib.metadata.version(name) == version for name, version in held.items())

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib_inline.backend_inline import set_matplotlib_formats

import babyjax

# Pictures whose characters stay text: the browser has fonts for all of them.
set_matplotlib_formats("svg")
plt.rcParams["svg.fonttype"] = "none"

print(f"jax {jax.__version__} on {len(jax.devices())} x {jax.devices()[0].device_kind}")

# %% [markdown]
# ## The text
#
# The pair counts of a text are all that a model of the previous character can learn from it. Their entropy is the
# floor: no such model has a lower loss on the training part.

# %%
corpus = babyjax.read_corpus(text_file) if text_file else babyjax.load_corpus("pydocs")
tokenizer = babyjax.CharTokenizer.fit(corpus.text)
split = babyjax.split_tokens(tokenizer.encode(corpus.text))
pairs = babyjax.PairCounts.from_split(split, tokenizer.vocab_size)
evaluate = babyjax.ExactEvaluator(pairs, tokenizer.byte_lengths)
floor = pairs.entropy("train")
print(f"{len(corpus.text):,} characters, V = {tokenizer.vocab_size:,}, floor {floor:.4f} nats per character")

# %% [markdown]
# ## Count

# %%
start = time.perf_counter()
bigram = jax.block_until_ready(babyjax.Bigram.from_tokens(split.train, tokenizer.vocab_size))
seconds = time.perf_counter() - start
losses = {"count bigram": {name: loss.per_token for name, loss in evaluate(bigram).items()}}
print(f"counted in {seconds:.2f} s, compilation included: {losses['count bigram']}")

# %% [markdown]
# ## Train BabyGPT by AdamW
#
# The published recipe: 32 random windows of 8 characters a step, step size 0.01. Losses are exact: every character of
# the text, once.

# %%
optimizer = optax.adamw(1e-2, weight_decay=0.01)
train = babyjax.make_advance(optimizer, seed=0, batch_size=32, block_size=8)
state = babyjax.init_state(babyjax.BabyGPT(tokenizer.vocab_size, n_embd=32, key=jax.random.key(0)), optimizer)
tokens = jnp.asarray(split.train)
train = train.lower(state, tokens, 1).compile()

curve, seconds = [], 0.0
marks = np.unique([*np.geomspace(1, steps, 25).astype(int), *range(0, steps, 1000), steps])
for count in np.diff(marks):
    start = time.perf_counter()
    state, _ = jax.block_until_ready(train(state, tokens, count))
    seconds += time.perf_counter() - start
    curve.append((int(state.step), seconds, evaluate(state.model)["train"].per_token))
babygpt = state.model
losses["BabyGPT, AdamW"] = {name: loss.per_token for name, loss in evaluate(babygpt).items()}
print(f"{int(state.step):,} steps in {seconds:.1f} s: {losses['BabyGPT, AdamW']}")

# %% [markdown]
# ## Train it on the counts
#
# The same network, the exact loss, and no steps but a tolerance.

# %%
start = time.perf_counter()
fit = babyjax.fit_counts(pairs, n_embd=32, smoothing=1 / tokenizer.vocab_size)
losses["BabyGPT, on counts"] = {name: loss.per_token for name, loss in evaluate(fit.model).items()}
print(f"{time.perf_counter() - start:.1f} s, compilation included: {losses['BabyGPT, on counts']}; {fit.quality}")

# %%
_, times, by_adamw = zip(*curve, strict=True)
plt.figure(figsize=(7, 4))
plt.semilogx(times, by_adamw, "o-", label="BabyGPT, AdamW")
plt.axhline(losses["BabyGPT, on counts"]["train"], color="tab:green", label="BabyGPT, on counts")
plt.axhline(losses["count bigram"]["train"], color="tab:orange", ls=":", label="count bigram, add-one")
plt.axhline(floor, color="black", ls="--", lw=1, label="floor: entropy")
plt.ylim(floor - 0.02, floor + 0.6)
plt.xlabel("seconds of training")
plt.ylabel("training loss (nats per character)")
plt.title("Loss against time")
plt.legend()
plt.show()

# %% [markdown]
# ## What it learned
#
# BabyGPT's logits form a V x V matrix of rank 33 at most: a bigram in disguise. Here it is beside the counted one, for
# the most frequent characters.

# %%
shown = np.sort(np.argsort(-np.bincount(split.train, minlength=tokenizer.vocab_size))[:32])
signs = {" ": "\u2423", "\n": "\u21b5"}
names = [signs.get(tokenizer.characters[token], tokenizer.characters[token]) for token in shown]
counted, learned = (
    np.asarray(jax.nn.log_softmax(model(jnp.asarray(shown[:, None]))[:, 0]))[:, shown] for model in (bigram, babygpt)
)
figure, panels = plt.subplots(1, 3, figsize=(17, 5.4), layout="constrained")
for axes, matrix, title, scale in (
    (panels[0], counted, "count bigram", {"vmin": -10, "vmax": 0}),
    (panels[1], learned, "BabyGPT, AdamW", {"vmin": -10, "vmax": 0}),
    (panels[2], learned - counted, "difference", {"vmin": -3, "vmax": 3, "cmap": "RdBu_r"}),
):
    image = axes.imshow(matrix, **scale)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(title=title, xlabel="next character", ylabel="character")
    figure.colorbar(image, ax=axes, label="log-probability (nats)", fraction=0.046)
plt.show()

# %% [markdown]
# ## What they write

# %%
prompt = np.array([[split.train[0]]])
for name, model in (("count bigram", bigram), ("BabyGPT, AdamW", babygpt), ("BabyGPT, on counts", fit.model)):
    written = babyjax.generate(model, prompt, jax.random.key(0), 200)
    print(f"--- {name}: train {losses[name]['train']:.4f}, val {losses[name]['val']:.4f}")
    print(tokenizer.decode(np.asarray(written)[0]), end="\n\n")
