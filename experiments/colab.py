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
# Two models predict the next character from the one before: a table of counts, and an embedding with a linear layer.
# Train both on this machine's CPU, GPU or TPU, and see how far apart they are and why. It takes a few minutes at most.

# %% tags=["parameters"]
steps = 5000  # of AdamW
text_file = ""  # path to a UTF-8 text file; empty: Python's own documentation, which needs no network
source = ""  # where to install babyjax from, if needed: a folder, or git+https://... of a repository

# %% [markdown]
# ## Install
#
# `pip install babyjax` from a folder or a repository. On Colab, clone or upload the repository and set `source` above.
# A constraint keeps the JAX of this machine, which fits its GPU or TPU.

# %%
import importlib
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tempfile

installed = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
kept = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib") if name in installed}
if "babyjax" not in installed:
    source = source or (".." if pathlib.Path("../babyjax/recipes.py").is_file() else "")
    if not source:
        raise RuntimeError("set `source`, above, to the folder or the repository of babyjax")
    constraints = pathlib.Path(tempfile.mkdtemp()) / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()))
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-c", constraints, source], check=True)
    importlib.invalidate_caches()
assert all(importlib.metadata.version(name) == version for name, version in kept.items())
os.environ.pop("FORCE_COLOR", None)  # Jupyter sets it; without it the commands print plain lines
os.environ["PATH"] = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])  # finds `babyjax`

# %% [markdown]
# ## The commands
#
# Train, evaluate and sample from the shell; `data.path=my.txt` trains on your text. The rest of the notebook uses the
# library.

# %% language="bash"
# set -e
# run_dir=$(mktemp -d)/bigram
# babyjax train model=bigram run_dir=$run_dir
# babyjax evaluate run_dir=$run_dir
# babyjax sample run_dir=$run_dir max_new_tokens=100

# %% [markdown]
# ## The library

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats

import babyjax

# Characters in pictures stay text, which the browser's fonts draw.
set_matplotlib_formats("svg")
plt.rcParams["svg.fonttype"] = "none"

print(f"jax {jax.__version__} on {len(jax.devices())} x {jax.devices()[0].device_kind}")

# %% [markdown]
# ## The task
#
# A task is what is learned and how it is judged: tokenizer, splits, pair counts, evaluation. The pair counts are all
# that a model of the previous character can learn from a text, and their entropy is a lower bound of its training loss.

# %%
data = [f"data.path={text_file}"] if text_file else []
config = babyjax.load_config(["model=babygpt", f"train.steps={steps}", *data])
task = babyjax.load_task(config)
vocab_size, tokens = task.tokenizer.vocab_size, task.split.train
print(f"{task.corpus.characters:,} characters, V = {vocab_size:,}, entropy {task.entropy:.4f} nats per character")

# %% [markdown]
# ## Count

# %%
bigram = babyjax.Bigram.from_tokens(tokens, vocab_size)
models: dict[str, babyjax.LanguageModel] = {"count bigram": bigram}
print({split: round(loss.per_token, 4) for split, loss in task.evaluate(bigram).items()})

# %% [markdown]
# ## Train BabyGPT by AdamW
#
# The published recipe: 32 random windows of 8 characters per step, learning rate 0.01. A trainer is a generator of
# events, and `evaluated` adds losses to them. The losses are exact: every character of the text is predicted once.

# %%
trainer = babyjax.make_trainer(config, task)
events = trainer.run(trainer.init(), pauses=(max(1, steps // 25),))
seconds, curve = 0.0, []
for event in babyjax.evaluated(events, task.evaluate, interval=1):
    seconds += event.seconds
    if event.losses:
        curve.append((event.step, seconds, event.losses["train"].per_token))
        models["BabyGPT, AdamW"] = event.state.model  # the last one stays
print(f"{curve[-1][0]:,} steps in {seconds:.1f} s: train {curve[-1][2]:.4f}")

# %% [markdown]
# ## Train it on the counts
#
# The same network and the exact loss, to a tolerance instead of a number of steps.

# %%
fit = babyjax.fit_counts(task.pairs, n_embd=32, smoothing=1 / vocab_size)
models["BabyGPT, on counts"] = fit.model
losses = {
    name: {split: loss.per_token for split, loss in task.evaluate(model).items()} for name, model in models.items()
}
print(f"train {losses['BabyGPT, on counts']['train']:.4f} after {fit.steps} steps; {fit.quality}")

# %%
_, times, by_adamw = zip(*curve, strict=True)
plt.figure(figsize=(7, 4))
plt.semilogx(times, by_adamw, "o-", label="BabyGPT, AdamW")
plt.axhline(losses["BabyGPT, on counts"]["train"], color="tab:green", label="BabyGPT, on counts")
plt.axhline(losses["count bigram"]["train"], color="tab:orange", ls=":", label="count bigram, add-1")
plt.axhline(task.entropy, color="black", ls="--", lw=1, label="entropy")
plt.ylim(task.entropy - 0.02, task.entropy + 0.6)
plt.xlabel("seconds of training")
plt.ylabel("training loss (nats per character)")
plt.title("Loss against time")
plt.legend()
plt.show()

# %% [markdown]
# ## What it learned
#
# BabyGPT's logits form a V x V matrix of rank `n_embd` + 1 at most: a bigram in disguise. Here it is beside the counted
# one, for the most frequent characters.

# %%
shown = np.sort(np.argsort(-np.bincount(tokens, minlength=vocab_size))[:32])
names = [
    {" ": "\u2423", "\n": "\u21b5"}.get(name, name) for name in (task.tokenizer.decode([token]) for token in shown)
]
counted, learned = (
    np.asarray(jax.nn.log_softmax(models[name](jnp.asarray(shown[:, None]))[:, 0]))[:, shown]
    for name in ("count bigram", "BabyGPT, AdamW")
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
prompt = tokens[None, :1]
for name, model in models.items():
    text = task.tokenizer.decode(np.asarray(babyjax.generate(model, prompt, jax.random.key(0), 200))[0])
    print(f"--- {name}: train {losses[name]['train']:.4f}, val {losses[name]['val']:.4f}\n{text}\n")
