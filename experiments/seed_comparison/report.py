"""The report, from the results alone: Markdown, and the same as one page of HTML that needs nothing else."""

import base64
import html
import re
from collections import Counter
from typing import Any

from markdown_it import MarkdownIt

from babyjax.progress import short
from experiments.seed_comparison.claims import CLAIMS, SECTIONS, Verdict
from experiments.seed_comparison.pictures import DARK, LIGHT

Results = dict[str, Any]

SIGNS = {Verdict.HOLDS: "\u2713", Verdict.LIMIT: "\u2248", Verdict.FAILS: "\u2717"}


def picture(name: str, alt: str) -> str:
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="pictures/{name}-dark.svg">'
        f'<img src="pictures/{name}.svg" alt="{html.escape(alt)}" width="480"></picture>'
    )


def plain(text: str) -> str:
    """Any text as it is, in a cell of a table: nothing in it is Markdown or HTML."""
    return "".join(
        "<br>" if character == "\n" else character if character.isalnum() else f"&#{ord(character)};"
        for character in text
    )


def table(head: list[str], rows: list[list[str]], align: str = "") -> list[str]:
    rule = "|".join({"r": "---:"}.get(where, "---") for where in align.ljust(len(head)))
    return [f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def claims_table(results: Results, section: int) -> list[str]:
    rows = []
    for claim in CLAIMS:
        if claim.section == section:
            found = claim.judge(results)
            verdict = f"{SIGNS[found.verdict]}\u00a0**{found.verdict}**: {found.because}"
            rows.append([claim.says, claim.method, found.figure, verdict])
    return table(["The seed says", "Measured here", "Figure", "Verdict"], rows)


def training_table(results: Results) -> list[str]:
    curves = results["training"]["curves"]
    given = max(curve["train"][-1] for curve in curves.values())
    rows = []
    for name, curve in curves.items():
        reached = next(s for s, loss in zip(curve["seconds"], curve["train"], strict=True) if loss <= given)
        losses = [f"{curve[split][-1]:.4f}" for split in ("train", "val")]
        rows.append([name, f"{curve['steps'][-1]:,}", f"{curve['seconds'][-1]:.3g}", *losses, f"{reached:.3g}"])
    return table(["Trained", "steps", "seconds", "train", "val", f"seconds to {given:.4f}"], rows, " rrrrr")


def cost_table(results: Results) -> list[str]:
    rows = []
    for name, subject in results["scaling"].items():
        cost, axes = subject["at_base"], subject["axes"]
        sizes = ", ".join(f"{axis} {subject['base'][axis]}" for axis in "BTVD" if axis in axes)
        counted = [short(cost[name]) if name in cost else "" for name in ("flops", "bytes")]
        intensity = f"{cost['flops'] / cost['bytes']:.3g}" if cost.get("bytes") else ""
        rows.append([name, sizes, f"{1e3 * cost['seconds']:.3g}", *counted, intensity])
    return table(["One", "at", "ms", "FLOPs", "bytes", "FLOPs a byte"], rows, "  rrrr")


def pictures_of(results: Results, section: int) -> list[str]:
    """What stands below the claims of a section."""
    shown = results["matrices"]
    frequent = (
        f"The {len(shown['characters'])} most frequent characters, {shown['share_of_text']:.1%} of the text; \u2423 is "
        "a space, \u21b5 a new line; grey pairs were never seen. The characters are text, drawn by your own fonts."
    )
    match section:
        case 2:
            text = (
                "Exact losses in nats per token; seconds of training alone, compilation and evaluation apart. The "
                "bigram's loss is that of the counts themselves on train and with add-one smoothing on val, where "
                "without it a pair never seen costs infinity."
            )
            return [*training_table(results), picture("loss", "Training loss against seconds, and the floor"), "", text]
        case 3:
            text = (
                "Seconds against each size, the others at their base; the number is the exponent fitted to the three "
                "largest sizes, the dotted line the seed's. FLOPs and bytes are the compiler's own count; it counts a "
                "table that is looked up as read whole. Small sizes cost a launch more than work, so exponents in "
                "seconds lie below those in FLOPs. What a fit on counts costs does not depend on B and T."
            )
            both = picture("forward", "Seconds of a forward pass against B, T, V and D")
            both += "\n" + picture("training", "Seconds of a training step against B, T, V and D")
            return [*cost_table(results), both, "", text]
        case 5:
            samples = results["generation"]["samples"]
            return table(list(samples), [[f"<code>{plain(text)}</code>" for text in samples.values()]])
        case 6:
            four = [
                picture("counts", "Heat map of pair counts"),
                picture("bigram", "Heat map of the count bigram's log-probabilities"),
                picture("babygpt", "Heat map of BabyGPT's log-probabilities"),
                picture("difference", "Heat map of their difference"),
            ]
            colours = "Vowels are orange, other small letters blue, capitals and other scripts green, the rest purple."
            plane = picture("embedding", "Embeddings in two dimensions")
            return ["\n".join(four), "", frequent, "", plane, "", colours]
        case 8:
            orders = results["extension"]["ngram_val"]
            text = ", ".join(f"{nats:.4f} (order {order})" for order, nats in orders.items())
            return [
                picture("widths", "Training loss above the entropy at each width"),
                "",
                f"Validation loss of n-grams by interpolated modified Kneser-Ney, nats per token: {text}.",
            ]
    return []


def markdown(results: Results) -> str:
    """The report, its pictures under `pictures/`."""
    corpus, options, versions = results["corpus"], results["options"], results["versions"]
    verdicts = Counter(claim.judge(results).verdict for claim in CLAIMS)
    tally = ", ".join(f"{verdicts[verdict]} {SIGNS[verdict]} {verdict}" for verdict in Verdict)
    lines = [
        f"# BabyGPT v1 and the count bigram, measured on {plain(corpus['name'])}",
        "",
        f"Each claim of the seed's comparison, how it was measured here, the figure, and what follows: {tally}.",
        "",
        f"Text: {corpus['characters']:,} characters, V = {corpus['vocab_size']:,}, sha256 `{corpus['sha256']}`; the "
        f"first 90 % train. BabyGPT: n_embd {options['n_embd']}, {options['steps']:,} steps of {options['batch_size']} "
        f"x {options['block_size']} tokens at {options['learning_rate']:g}, seed {options['seed']}.",
        "",
        f"`{results['command']}`, {results['date']}, {results['machine']}, {results['device']}, Python "
        f"{results['python']}, {', '.join(f'{name} {number}' for name, number in versions.items())}; in "
        f"{results['elapsed']:.0f} s.",
    ]
    for section, title in SECTIONS.items():
        lines += ["", f"## {section}. {title}", "", *claims_table(results, section), *pictures_of(results, section)]
    return "\n".join(lines).rstrip() + "\n"


STYLE = f"""
:root {{ color-scheme: light dark; --paper: {LIGHT["paper"]}; --ink: {LIGHT["ink"]}; --line: {LIGHT["grid"]};
  --good: #1a7f37; --mixed: #9a6700; --bad: #cf222e; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: {DARK["paper"]}; --ink: {DARK["ink"]}; --line: {DARK["grid"]};
  --good: #3fb950; --mixed: #d29922; --bad: #f85149; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 66rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; }} h2 {{ margin-top: 2.5rem; }}
table {{ border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: 0.9rem; }}
th, td {{ border-bottom: 1px solid var(--line); padding: 0.4rem 0.6rem; text-align: left; vertical-align: top; }}
td[style] {{ font-variant-numeric: tabular-nums; }} td code {{ white-space: pre-wrap; }}
td:has(> code:only-child) {{ width: 33%; }}
p:has(picture) {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
picture {{ flex: 1 1 24rem; max-width: 46rem; }} img {{ width: 100%; height: auto; display: block; }}
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
    """The Markdown report as one HTML page, its pictures inside."""
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
