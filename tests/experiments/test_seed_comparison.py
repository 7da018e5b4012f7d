"""The report: every section, every figure finite, every verdict from its figure, and a page that opens anywhere."""

import copy
import html
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from babyjax import Corpus, load_corpus
from babyjax.config import load_config
from babyjax.errors import ConfigError, DataError, DivergenceError
from experiments.record import provenance
from experiments.seed_comparison import __main__ as door
from experiments.seed_comparison import scaling
from experiments.seed_comparison.baselines import libraries
from experiments.seed_comparison.claims import CLAIMS, FAILS, HOLDS, LIMIT, SECTIONS, Verdict, in_words
from experiments.seed_comparison.measure import measure
from experiments.seed_comparison.pictures import PICTURES, visible
from experiments.seed_comparison.report import markdown, page, plain
from experiments.seed_comparison.study import Effort, Study

pytest.importorskip("matplotlib")

LITTLE = Effort(
    factors=(0.5, 1.0),
    rounds=1,
    widths=(2,),
    full_width_vocab=24,
    draws=2000,
    upper_rung="babygpt-v3-attention",
    orders=(2, 3),
    sample=20,
)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """Measured once, by whichever of the parallel test processes comes first."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return measured()
    kept = tmp_path_factory.getbasetemp().parent / "seed_comparison.json"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            kept.write_text(json.dumps(measured()))
        return json.loads(kept.read_text())


def measured():
    corpus = Corpus("a|b <i>*text*", load_corpus("pydocs").text[:30_000] + "\u6625\u82b1\u79cb\u6708\u3000<>|`*_")
    config = load_config(["train.steps=40", "model.n_embd=24"])
    said = []
    found = measure(corpus, config, LITTLE, said.append)
    assert said == list(dict.fromkeys(said)) != []
    return {**provenance("experiments.seed_comparison"), "elapsed": 1.0, **found}


@pytest.fixture(scope="module")
def report(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    door.write(results, folder)
    return folder


def numbers_in(value) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from numbers_in(each)
    elif isinstance(value, (int, float)):
        yield value


def test_every_figure_is_finite(results):
    numbers = list(numbers_in(results))
    assert len(numbers) > 1000
    assert all(math.isfinite(number) for number in numbers)


def test_every_section_of_the_seed_has_its_claims_in_the_report(results, report):
    text = (report / "report.md").read_text(encoding="utf-8")
    assert len(CLAIMS) > 30
    sections = re.split(r"^## \d\. ", text, flags=re.MULTILINE)[1:]
    assert len(sections) == len(SECTIONS) == 8
    for number, section in enumerate(sections, 1):
        claims = [claim for claim in CLAIMS if claim.section == number]
        assert claims
        for claim in claims:
            found = claim.judge(results)
            assert f"| {claim.says} | {claim.method} | {found.figure} | " in section
            assert f"**{found.verdict}**: {found.because} |" in section


def test_what_each_way_of_training_and_each_size_costs_is_there(results):
    assert {"BabyGPT, AdamW", "BabyGPT, on counts", "count bigram, looped", "count bigram"} <= set(
        results["training"]["curves"]
    )
    assert set(results["scaling"]["BabyGPT forward"]["axes"]) == set("BTVD")
    assert set(results["baselines"]["loops"]) == set(libraries())


# A claim, changes of results, the verdict that follows: two at least for each.
CURVE = ("training", "curves", "BabyGPT, AdamW")
COUNTS = ("training", "curves", "BabyGPT, on counts")
CASES = [
    ("kinds_of_model", {("structure", "bigram_trainable"): 0}, HOLDS),
    ("kinds_of_model", {("structure", "bigram_trainable"): 9}, FAILS),
    ("babygpt_parameters", {}, LIMIT),
    ("babygpt_parameters", {("structure", "babygpt_parameters"): lambda r: 48 * r["corpus"]["vocab_size"]}, HOLDS),
    ("babygpt_parameters", {("structure", "babygpt_parameters"): 1}, FAILS),
    ("bigram_parameters", {}, HOLDS),
    ("bigram_parameters", {("structure", "bigram_parameters"): 1}, FAILS),
    ("gradient_descent", {(*CURVE, "train", -1): 2.0, (*COUNTS, "train", -1): 1.9}, LIMIT),
    ("gradient_descent", {(*CURVE, "train", -1): 2.0, (*COUNTS, "train", -1): 2.1}, HOLDS),
    ("gradient_descent", {(*CURVE, "train", -1): 99.0}, FAILS),
    ("no_loss", {("training", "gradient_at_counts"): 1e-7}, LIMIT),
    ("no_loss", {("training", "gradient_at_counts"): 0.1}, HOLDS),
    ("counts_pair_by_pair", {("training", "looped_difference"): 0}, LIMIT),
    ("counts_pair_by_pair", {("training", "looped_difference"): 1}, HOLDS),
    ("whole_batch", {("training", "batch_gradient_speedup"): 3.0}, HOLDS),
    ("whole_batch", {("training", "batch_gradient_difference"): 0.1}, FAILS),
    ("forward_cost", {}, FAILS),
    ("forward_cost", {("scaling", "BabyGPT forward", "axes", "V", "exponents", "flops"): 0.0}, HOLDS),
    ("lookup_cost", {("scaling", "bigram look-up", "axes", "V", "exponents", "seconds"): 1.0}, LIMIT),
    (
        "lookup_cost",
        {("scaling", "bigram look-up", "axes", axis, "exponents", "seconds"): float(axis != "V") for axis in "BTV"},
        HOLDS,
    ),
    (
        "training_cost",
        {(*CURVE, "seconds"): lambda r: [1e-3 * step for step in r["training"]["curves"]["BabyGPT, AdamW"]["steps"]]},
        LIMIT,
    ),
    ("training_cost", {(*CURVE, "seconds", -1): 1e6}, FAILS),
    (
        "counting_cost",
        {("scaling", "counting a batch, looped", "axes", axis, "exponents", "seconds"): 1.0 for axis in "BT"},
        HOLDS,
    ),
    ("counting_cost", {("scaling", "counting a batch, looped", "axes", "B", "exponents", "seconds"): 2.0}, FAILS),
    ("memory_access", {("hardware", "gather_share_of_copy"): 0.8, ("hardware", "random_over_ordered"): 1.0}, FAILS),
    ("memory_access", {("hardware", "gather_share_of_copy"): 0.8, ("hardware", "random_over_ordered"): 1.5}, LIMIT),
    ("memory_access", {("hardware", "gather_share_of_copy"): 0.3}, LIMIT),
    ("memory_access", {("hardware", "gather_share_of_copy"): 0.1}, HOLDS),
    ("one_look_up_one_product", {}, HOLDS),
    ("one_look_up_one_product", {("structure", "gathers"): 8}, FAILS),
    ("loops_over_tokens", {("baselines", "one_operation", "look_up_us"): 1e-6}, LIMIT),
    ("loops_over_tokens", {("baselines", "one_operation", "look_up_us"): 1e6}, HOLDS),
    ("softmax_draws", {("generation", "drawn_apart"): 0.01, ("generation", "apart_by_chance"): 0.01}, HOLDS),
    ("softmax_draws", {("generation", "drawn_apart"): 0.3}, FAILS),
    ("normalised_by_hand", {("generation", "characters_without_successor"): 0}, HOLDS),
    ("normalised_by_hand", {("generation", "characters_without_successor"): 2}, LIMIT),
    ("normalised_by_hand", {("generation", "by_hand_difference"): 0.1}, FAILS),
    ("composes", {}, HOLDS),
    ("composes", {("structure", "rank"): 90}, FAILS),
    ("implicit_associations", {("equivalence", "correlation"): 0.95}, LIMIT),
    ("implicit_associations", {("equivalence", "correlation"): 0.5}, HOLDS),
    ("any_matrix", {}, HOLDS),
    ("any_matrix", {("equivalence", "probabilities_apart"): 0.1}, FAILS),
    ("need_not_converge", {("equivalence", "adamw_gap"): 0.1, ("equivalence", "counts_gap"): 1e-5}, LIMIT),
    ("need_not_converge", {("equivalence", "adamw_gap"): 0.1, ("equivalence", "counts_gap"): 0.1}, HOLDS),
    ("need_not_converge", {("equivalence", "adamw_gap"): 1e-5}, FAILS),
    ("best_representation", {(*CURVE, "val", -1): 99.0}, FAILS),
    ("best_representation", {(*CURVE, "val", -1): 0.1}, LIMIT),
    ("best_representation", {(*CURVE, "val", -1): 0.1, ("extension", "ngram_val", "2"): 0.05}, FAILS),
    ("best_representation", {(*CURVE, "train", -1): 0.1}, HOLDS),
    ("serial", {("hardware", "gather_gain_of_batch"): 40.0}, FAILS),
    ("serial", {("training", "halves_difference"): 1}, HOLDS),
    ("trains_on_the_device", {}, HOLDS),
    ("trains_on_the_device", {("structure", "host_calls"): 2}, FAILS),
    ("slower_on_a_device", {("baselines", "loops", "JAX", "count_us"): 1e6}, HOLDS),
    ("slower_on_a_device", {("baselines", "loops", "JAX", "count_us"): 1e-6}, FAILS),
    ("utilisation", {("hardware", "gather_share_of_copy"): 0.9, ("hardware", "forward_share_of_product"): 0.5}, LIMIT),
    ("utilisation", {("hardware", "gather_share_of_copy"): 0.1, ("hardware", "forward_share_of_product"): 0.5}, HOLDS),
    ("launches", {("baselines", "loops", "JAX", "look_up_us"): 1e6}, HOLDS),
    ("launches", {("baselines", "loops", "JAX", "look_up_us"): 1e-9}, FAILS),
    ("takes_minutes", {("baselines", "loops"): {"JAX": {"count_us": 1000.0}, "C": {"count_us": 0.1}}}, LIMIT),
    ("takes_minutes", {("baselines", "loops"): {"JAX": {"count_us": 1000.0}}}, HOLDS),
    ("takes_minutes", {("baselines", "loops"): {"JAX": {"count_us": 0.1}}}, FAILS),
    ("remedy", {("baselines", "one_operation", "look_up_us"): 1e-6}, HOLDS),
    ("remedy", {("baselines", "one_operation", "difference"): 1.0}, FAILS),
    ("suits_a_gpu", {("hardware", "gather_tokens_per_second"): 1e15}, LIMIT),
    ("suits_a_gpu", {("hardware", "gather_tokens_per_second"): 1.0}, HOLDS),
    ("bottleneck", {("expressiveness", "gap", -1): 0.4}, HOLDS),
    ("bottleneck", {("expressiveness", "gap", -1): 1e-5}, LIMIT),
    ("bottleneck", {("structure", "rank"): 1000}, FAILS),
    ("expresses_less", {("expressiveness", "gap"): [0.5, 1e-5]}, LIMIT),
    ("expresses_less", {("expressiveness", "gap"): [0.5, 0.1]}, HOLDS),
    ("different_ways", {("training", "predictions_apart"): 0.01}, LIMIT),
    ("different_ways", {("training", "predictions_apart"): 1.0}, HOLDS),
    ("extends", {("extension", "rung_val"): 1.0, ("extension", "ngram_val", "3"): 1.0}, LIMIT),
    ("extends", {("extension", "rung_val"): 1.0, ("extension", "ngram_val"): {"2": 2.0, "3": 2.1}}, HOLDS),
    ("extends", {("extension", "rung_val"): 99.0}, FAILS),
    ("in_disguise", {}, HOLDS),
    ("in_disguise", {("structure", "moved_by_earlier_tokens"): 0.1}, FAILS),
]


@pytest.mark.parametrize(
    ("name", "changes", "verdict"), CASES, ids=[f"{name}-{verdict.name}" for name, _, verdict in CASES]
)
def test_the_verdict_follows_from_the_figure(results, name, changes, verdict):
    changed = copy.deepcopy(results)
    for path, value in changes.items():
        target = changed
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value(changed) if callable(value) else value
    (claim,) = (claim for claim in CLAIMS if claim.name == name)
    assert claim.judge(changed).verdict == verdict


def test_every_claim_is_seen_with_two_verdicts():
    for claim in CLAIMS:
        assert len({verdict for name, _, verdict in CASES if name == claim.name}) >= 2, claim.name


def test_the_loops_count_and_look_up_what_one_operation_does(rng):
    inputs, targets = rng.integers(0, 5, (2, 3, 4))
    table = rng.normal(size=(5, 5)).astype(np.float32)
    expected = table.copy()
    np.add.at(expected, (inputs, targets), 1)
    for library in libraries().values():
        x, y = library.array(inputs), library.array(targets)
        result = library.array(np.zeros((3, 4, 5), np.float32))
        assert (library.numpy(library.look_up(library.array(table), x, result)) == table[inputs]).all()
        assert library.numpy(library.count(library.array(table), x, y)) == pytest.approx(expected)


@given(exponent=st.floats(-3, 3), factor=st.floats(1e-3, 1e3))
def test_a_power_law_has_its_exponent(exponent, factor):
    sizes = [1, 4, 16, 64, 256]
    values = [7.0, 7.0, *(factor * size**exponent for size in sizes[2:])]
    assert scaling.slope(sizes, values) == pytest.approx(exponent, abs=1e-6)


def test_folding_keeps_the_frequent_and_counts_the_rest_as_one():
    corpus = Corpus("letters", "aaaabbbccd" * 40)
    text = Study(corpus, load_config([]), Effort(full_width_vocab=3)).folded()
    assert text.vocab_size == 3
    assert np.bincount(text.split.train).tolist() == [144, 108, 108]


def test_a_run_that_diverges_says_so():
    config = load_config(["train.steps=60", "optimizer=sgd", "optimizer.weight_decay=1e6"])
    study = Study(Corpus("letters", "abcab" * 40), config, LITTLE)
    with pytest.raises(DivergenceError, match=r"smaller optimizer\.learning_rate"):
        _ = study.adamw


@pytest.mark.parametrize("text", ["a" * 300, "ab" * 200])
def test_a_text_that_leaves_nothing_to_learn_is_refused(text):
    with pytest.raises(DataError, match="nothing to compare"):
        measure(Corpus("dull", text), load_config([]), LITTLE, print)


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("|`*_<>&\\[]()#~!-+\n")))
def test_any_text_stands_in_a_table_as_it_is(text):
    rendered = (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render(f"| a | b |\n|---|---|\n| <code>{plain(text)}</code> | end |\n")
    )
    (cell,) = re.findall(r"<td><code>(.*?)</code></td>\n<td>end</td>", rendered, re.DOTALL)
    assert html.unescape(cell.replace("<br>", "\n")) == text


def test_characters_without_a_shape_are_named():
    assert [visible(character) for character in " \n\u6625a\u200b"] == ["\u2423", "\u21b5", "\u6625", "a", "U+200B"]


def test_seconds_have_the_unit_that_suits_them():
    assert [in_words(seconds) for seconds in (1.3e-5, 0.0123, 1.3, 75, 92_400)] == [
        "13 us",
        "12.3 ms",
        "1.3 s",
        "75 s",
        "1,540 min",
    ]


def test_pictures_keep_their_characters_as_text_and_the_page_needs_nothing_else(report):
    assert {path.stem for path in (report / "pictures").iterdir()} == {
        f"{name}{suffix}" for name in PICTURES for suffix in ("", "-dark")
    }
    for name in ("counts", "bigram", "babygpt", "difference"):
        svg = (report / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
        assert ">next character</text>" in svg
        assert ">\u2423</text>" in svg
    text = (report / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:src|srcset|href)="([^"]*)"', text)
    assert len(links) == 2 * len(PICTURES) + 1
    assert all(link.startswith("data:") for link in links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text).replace("http-equiv", "")


def test_a_change_of_a_figure_changes_the_page(results):
    changed = copy.deepcopy(results)
    changed["structure"]["babygpt_parameters"] = 123_456
    pages = [page(markdown(each), {}) for each in (results, changed)]
    assert "123,456" not in pages[0]
    assert "123,456" in pages[1]
    assert pages[0].count('class="limit"') == pages[1].count('class="limit"') + 1


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("model=gpt2", "has no meaning here"),
        ("trainer=counts", "has no meaning here"),
        ("optimizer=lion", "has no meaning here"),
        ("optimizer.clip_norm=1", "has no meaning here"),
        ("data.pth=x", "did you mean data.path"),
        ("model.n_embd=none", "not an integer"),
        ("rubbish", "options are written key=value"),
    ],
)
def test_what_has_no_meaning_here_is_one_sentence(argument, says):
    with pytest.raises(ConfigError, match=says):
        door.read_config([argument])


def test_the_report_goes_where_it_is_asked_to(tmp_path):
    assert door.read_config([f"run_dir={tmp_path / 'here'}"])[1] == tmp_path / "here"
    assert door.read_config(["data.path=my text.txt"])[1] == ROOT / "experiments" / "seed_comparison" / "my text"
    assert "data.path" in door.help_text([])


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_the_page_opens_in_a_browser(report, width, scheme):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium here")
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    messages, requests = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        opened.on("console", lambda message: messages.append(message.text))
        opened.on("pageerror", lambda error: messages.append(str(error)))
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto((report / "report.html").as_uri())
        opened.wait_for_function("[...document.images].every(image => image.complete)")
        pictures = opened.evaluate("[...document.images].map(image => [image.naturalWidth, image.currentSrc.length])")
        scroll = opened.evaluate("document.documentElement.scrollWidth")
        headings = opened.locator("h2").count()
        paper = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        browser.close()
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert scroll <= width
    assert len(pictures) == len(PICTURES)
    assert all(natural > 0 for natural, _ in pictures)
    assert headings == len(SECTIONS)
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("name", ["tinyshakespeare", "songci"])
def test_the_report_on_record_is_that_of_its_results(name):
    folder = ROOT / "experiments" / "seed_comparison" / name
    recorded = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert (folder / "report.md").read_text(encoding="utf-8") == markdown(recorded)
    assert len(recorded["corpus"]["sha256"]) == 64
    assert {"command", "date", "machine", "device", "versions"} <= set(recorded)
    verdicts = {claim.judge(recorded).verdict for claim in CLAIMS}
    assert verdicts == set(Verdict)
