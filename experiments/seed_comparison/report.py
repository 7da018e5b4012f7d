"""The report from the results alone: Markdown, and the same as one self-contained page of HTML."""

import base64
import html
import re
from collections import Counter

from markdown_it import MarkdownIt

from babyjax.text import compact
from experiments.seed_comparison.claims import CLAIMS, SECTIONS, Claim, Results, Verdict
from experiments.seed_comparison.pictures import DARK, GRID, INK, PAPER

SIGNS = {Verdict.HOLDS: "\u2713", Verdict.LIMIT: "\u2248", Verdict.FAILS: "\u2717"}


def row_of(**alts: str) -> list[str]:
    """Return pictures side by side, by name, each with its text for readers who do not see it."""
    images = (f'<img src="pictures/{name}.svg" alt="{html.escape(alt)}" width="480">' for name, alt in alts.items())
    return ["<p>", *images, "</p>", ""]


def plain(text: str) -> str:
    """Return any text for a table cell, with everything escaped that Markdown or HTML might interpret."""
    return "".join(
        "<br>" if character == "\n" else character if character.isalnum() else f"&#{ord(character)};"
        for character in text
    )


def table(head: list[str], rows: list[list[str]], align: str = "") -> list[str]:
    rule = "|".join({"r": "---:"}.get(side, "---") for side in align.ljust(len(head)))
    return [f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def claims_table(results: Results, claims: list[Claim]) -> list[str]:
    rows = []
    for claim in claims:
        found = claim.judge(results)
        verdict = f"{SIGNS[found.verdict]}\u00a0**{found.verdict}**: {found.because}"
        rows.append([claim.says, claim.method, found.figure, verdict])
    return table(["The seed says", "Measured here", "Result", "Verdict"], rows)


def training_table(results: Results) -> list[str]:
    curves = results["training"]["curves"]
    target = max(curve["train"][-1] for curve in curves.values())
    rows = []
    for name, curve in curves.items():
        reached = next(s for s, loss in zip(curve["seconds"], curve["train"], strict=True) if loss <= target)
        losses = [f"{curve[split][-1]:.4f}" for split in ("train", "val")]
        rows.append([name, f"{curve['steps'][-1]:,}", f"{curve['seconds'][-1]:.3g}", *losses, f"{reached:.3g}"])
    return table(["Training", "steps", "seconds", "train", "val", f"seconds to {target:.4f}"], rows, " rrrrr")


def cost_table(results: Results) -> list[str]:
    rows = []
    for name, subject in results["scaling"].items():
        cost, axes = subject["at_base"], subject["axes"]
        sizes = ", ".join(f"{axis} {subject['base'][axis]}" for axis in "BTVD" if axis in axes)
        counted = [compact(cost[name]) if name in cost else "" for name in ("flops", "bytes")]
        intensity = f"{cost['flops'] / cost['bytes']:.3g}" if cost.get("bytes") else ""
        rows.append([name, sizes, f"{1e3 * cost['seconds']:.3g}", *counted, intensity])
    return table(["Operation", "sizes", "ms", "FLOPs", "bytes", "FLOPs per byte"], rows, "  rrrr")


def details_of(results: Results, title: str) -> list[str]:
    """Return what stands below the claims of a section."""
    match title:
        case "Training":
            text = (
                "Exact losses in nats per token. Seconds are of training alone, without compilation and evaluation. "
                "The bigram's train loss is that of the counts themselves; its val loss is with add-1 smoothing, since "
                "without it an unseen pair costs infinity."
            )
            return [*training_table(results), *row_of(loss="Training loss against seconds, and the entropy"), text]
        case "Complexity and memory access":
            text = (
                "Seconds against each size, the other sizes at their base. The number is the exponent fitted to the "
                "three largest sizes; the dotted line has the seed's exponent. FLOPs and bytes are the compiler's "
                "count, which counts a table that is indexed as read whole. At small sizes the overhead of a dispatch "
                "dominates, so exponents of seconds are below those of FLOPs. The cost of a fit on counts does not "
                "depend on B and T."
            )
            pictures = row_of(
                forward="Seconds of a forward pass against B, T, V and D",
                training="Seconds of a training step against B, T, V and D",
            )
            return [*cost_table(results), *pictures, text]
        case "Generation":
            samples = results["generation"]["samples"]
            return table(list(samples), [[f"<code>{plain(text)}</code>" for text in samples.values()]])
        case "Equivalence":
            shown = results["matrices"]
            text = (
                f"The {len(shown['characters'])} most frequent characters, {shown['share_of_text']:.1%} of the text; "
                "\u2423 is a space, \u21b5 a new line, and gray pairs do not occur. Your browser's fonts draw the "
                "characters."
            )
            colors = "Vowels are orange, other lowercase letters blue, other letters green, and the rest purple."
            heat_maps = row_of(
                counts="Heat map of pair counts",
                bigram="Heat map of the count bigram's log-probabilities",
                babygpt="Heat map of BabyGPT's log-probabilities",
                difference="Heat map of their difference",
            )
            return [*heat_maps, text, "", *row_of(embedding="Embeddings in two dimensions"), colors]
        case "Summary":
            orders = results["extension"]["ngram_val"].items()
            text = ", ".join(f"{nats:.4f} (order {order})" for order, nats in orders)
            text = (
                f"Validation loss of n-grams with interpolated modified Kneser-Ney smoothing, nats per token: {text}."
            )
            return [*row_of(widths="Training loss above the entropy at each width"), text]
    return []


def markdown(results: Results) -> str:
    """Return the report as Markdown, with its pictures under `pictures/`."""
    corpus, options, versions = results["corpus"], results["options"], results["versions"]
    verdicts = Counter(claim.judge(results).verdict for claim in CLAIMS)
    tally = ", ".join(f"{verdicts[verdict]} {SIGNS[verdict]} {verdict}" for verdict in Verdict)
    lines = [
        f"# BabyGPT v1 and the count bigram, measured on {plain(corpus['name'])}",
        "",
        f"Each claim of the seed's comparison, how it was measured here, the result, and the verdict: {tally}.",
        "",
        f"Text: {corpus['characters']:,} characters, V = {corpus['vocab_size']:,}, sha256 `{corpus['sha256']}`, split "
        f"into 90% train and 10% validation. BabyGPT: n_embd {options['n_embd']}, {options['steps']:,} steps of "
        f"{options['batch_size']} x {options['block_size']} tokens, learning rate {options['learning_rate']:g}, one "
        f"seed ({options['seed']}).",
        "",
        f"`{results['command']}`, {results['date']}, {results['machine']}, {results['device']}, Python "
        f"{results['python']}, {', '.join(f'{name} {number}' for name, number in versions.items())}; "
        f"{results['elapsed']:.0f} s.",
    ]
    for number, section in enumerate(SECTIONS, 1):
        lines += ["", f"## {number}. {section.title}", ""]
        lines += [*claims_table(results, section.claims), *details_of(results, section.title)]
    return "\n".join(lines).rstrip() + "\n"


STYLE = f"""
:root {{ color-scheme: light dark; --paper: {PAPER}; --ink: {INK}; --line: {GRID};
  --good: #1a7f37; --mixed: #9a6700; --bad: #cf222e; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: {DARK[PAPER]}; --ink: {DARK[INK]}; --line: {DARK[GRID]};
  --good: #3fb950; --mixed: #d29922; --bad: #f85149; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 66rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; }} h2 {{ margin-top: 2.5rem; }}
table {{ border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: 0.9rem; }}
th, td {{ border-bottom: 1px solid var(--line); padding: 0.4rem 0.6rem; text-align: left; vertical-align: top; }}
td[style] {{ font-variant-numeric: tabular-nums; }} td code {{ white-space: pre-wrap; }}
table:has(th:nth-child(3):last-child), table:has(th:nth-child(4):last-child) {{ table-layout: fixed; }}
p:has(img) {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
img {{ flex: 1 1 24rem; min-width: 0; max-width: min(46rem, 100%); height: auto; }}
code {{ font-size: 0.85em; }}
.holds {{ color: var(--good); }} .limit {{ color: var(--mixed); }} .fails {{ color: var(--bad); }}
@media (max-width: 46rem) {{
  thead {{ display: none; }}
  tr {{ display: block; border: 1px solid var(--line); border-radius: 0.5rem; margin: 0.8rem 0; }}
  td {{ display: block; width: auto !important; border: 0; text-align: left !important; }}
  td::before {{ content: attr(data-label); display: block; font-size: 0.75rem; opacity: 0.7; }}
  td[style] {{ display: flex; justify-content: space-between; }}
}}
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(text: str, pictures: dict[str, str]) -> str:
    """Return the Markdown report as one HTML page with its pictures inside."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens, head, labels = parser.parse(text), [], iter(())
    for index, token in enumerate(tokens):
        if token.type == "thead_open":
            head = []
        elif token.type == "th_open":
            head.append(tokens[index + 1].content)
        elif token.type == "tr_open":
            labels = iter(head)
        elif token.type == "td_open":  # a narrow screen shows each cell under its own heading
            token.attrSet("data-label", next(labels))
    body = parser.renderer.render(tokens, parser.options, {})
    for verdict in Verdict:
        kind = verdict.name.lower()
        body = body.replace(f"<strong>{verdict}</strong>", f'<strong class="{kind}">{verdict}</strong>')
    for name, svg in pictures.items():
        data = base64.b64encode(svg.encode()).decode()
        body = body.replace(f'"pictures/{name}"', f'"data:image/svg+xml;base64,{data}"')
    title = re.sub("^# ", "", text.partition("\n")[0])
    return PAGE.format(title=title, style=STYLE, body=body)
