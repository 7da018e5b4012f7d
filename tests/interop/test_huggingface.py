"""Models of `transformers` and ours: the same logits, gradients and text, in both directions."""

import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ladder import RUNGS, filled, logits_of, mostly_slow, small

from babyjax.data.tokenizer import ByteTokenizer, CharTokenizer
from babyjax.errors import ConfigError, DataError, TokenError
from babyjax.generation.sampling import generate
from babyjax.interop.huggingface import load_huggingface, save_huggingface
from babyjax.interop.huggingface_config import config_to_json
from babyjax.interop.safetensors import write_safetensors
from babyjax.training.step import sum_nats
from babyjax.trees import named_arrays

pytest.importorskip("safetensors")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENIZER = CharTokenizer("\n abcdefghijklmno")
V = TOKENIZER.vocab_size
SIZES = {"vocab_size": V, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA = SIZES | {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GPT2 = SIZES | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
FAMILIES = {
    "llama": ("Llama", LLAMA | {"rope_theta": 5e5}),
    "llama-tied": ("Llama", LLAMA | {"tie_word_embeddings": True}),
    "llama-biased": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "llama-attention-biased": ("Llama", LLAMA | {"attention_bias": True, "head_dim": 6}),
    "qwen2": ("Qwen2", LLAMA | {"rms_norm_eps": 1e-6}),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-untied": ("Qwen3", LLAMA | {"head_dim": 16, "rms_norm_eps": 1e-6}),
    "gpt2": ("GPT2", GPT2),
    "gpt2-untied": ("GPT2", GPT2 | {"tie_word_embeddings": False, "activation_function": "relu", "n_inner": 48}),
}


def random_network(kind: str, options: dict):
    """A network of theirs with random weights, biases and norms too."""
    torch.manual_seed(0)
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    config = getattr(transformers, f"{kind}Config")(**options, attn_implementation="eager")
    network = getattr(transformers, f"{kind}{head}")(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1 and "weight" in name))
    return network


def write_tokenizer(folder):
    from babyjax.data.subwords import tokenizer_json

    (folder / "tokenizer.json").write_text(tokenizer_json(TOKENIZER))


@pytest.fixture(params=mostly_slow(FAMILIES))
def theirs(request, tmp_path):
    """A directory that `transformers` wrote, and its network."""
    network = random_network(*FAMILIES[request.param])
    network.save_pretrained(tmp_path / "theirs")
    write_tokenizer(tmp_path / "theirs")
    return tmp_path / "theirs", network


TOKENS = np.random.default_rng(0).integers(0, V, (2, 40))


def test_an_imported_network_has_their_logits_and_gradients(theirs):
    folder, network = theirs
    model, tokenizer = load_huggingface(folder)
    assert tokenizer.vocab_size == V
    batch = torch.tensor(TOKENS)
    logits = network(batch).logits
    np.testing.assert_allclose(logits_of(model, jnp.asarray(TOKENS)), logits.detach().numpy(), atol=2e-5)

    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").backward()
    tokens = jnp.asarray(TOKENS)
    gradient = jax.jit(jax.grad(sum_nats))(model, tokens[:, :-1], tokens[:, 1:])
    expected = network.get_input_embeddings().weight.grad.numpy()
    found = named_arrays(gradient)["token_embedding/embedding"]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    last = network.model.layers[1].mlp.down_proj if hasattr(network, "model") else network.transformer.h[1].mlp.c_proj
    expected = last.weight.grad.numpy().T if hasattr(network, "model") else last.weight.grad.numpy()
    found = named_arrays(gradient)["blocks/feed_forward/projection/kernel"][1]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("theirs", ["llama", "qwen2", "qwen3", "gpt2"], indirect=True)
def test_an_imported_network_writes_their_text(theirs):
    folder, network = theirs
    model, tokenizer = load_huggingface(folder)
    prompt = tokenizer.encode("abc")
    ours = generate(model, prompt[None], jax.random.key(0), 200, temperature=0.0)
    text = network.generate(torch.tensor(prompt)[None].long(), max_new_tokens=200, do_sample=False)
    np.testing.assert_array_equal(ours[0], text[0, 3:])


@pytest.mark.slow
def test_an_imported_network_goes_back_as_it_came(theirs, tmp_path):
    folder, network = theirs
    model, tokenizer = load_huggingface(folder)
    save_huggingface(model, tokenizer, tmp_path / "again")
    again, same_tokenizer = load_huggingface(tmp_path / "again")
    chex.assert_trees_all_equal(again, model)
    assert same_tokenizer == tokenizer
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", attn_implementation="eager").eval()
    np.testing.assert_allclose(
        loaded(torch.tensor(TOKENS)).logits.detach(), network(torch.tensor(TOKENS)).logits.detach(), atol=2e-5
    )


# What each preset is there, and with `model.head_bias=false`, or the idea that no class has.
EXPORTED = {
    "babygpt": "a network without blocks",
    "babygpt-v3-attention": "blocks without residual connections",
    "babygpt-v7-residual": "blocks without output projections",
    "babygpt-v8-projection": "a network without norms",
    "babygpt-v9-layernorm": "a bias in the head",
    "babygpt-v13-rotary": "positions that are rotary with layer norm",
    "babygpt-v14-rmsnorm": "RMSNorm with a feed-forward that is not gated",
    "babygpt-v15-swiglu": "llama",
    "babygpt-v16-gqa": "llama",
    "babygpt-v17-qknorm": "qwen3",
    "gpt-tiny": "qwen3",
    "gpt2": "gpt2",
    "llama-tiny": "llama",
    "qwen-tiny": "qwen3",
    "smollm2-135m": "llama",
    "qwen3-0.6b": "qwen3",
}
WITHOUT_HEAD_BIAS = {"babygpt-v9-layernorm": "gpt2", "babygpt-v10-dropout": "gpt2", "gpt-tiny-2019": "gpt2"}


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        *((name, {}, expected) for name, expected in EXPORTED.items()),
        *((name, {"head_bias": False}, expected) for name, expected in WITHOUT_HEAD_BIAS.items()),
        ("gpt2", {"logit_cap": 30.0}, "a bound on the logits"),
        ("gpt2", {"bias": False}, "layer norm without biases"),
        ("gpt2", {"gated": True}, "layer norm with a gated feed-forward"),
        ("gpt2", {"n_kv_head": 1}, "layer norm with heads that share keys and values"),
        ("gpt2", {"qk_norm": True}, "layer norm with norms of queries and keys"),
        ("gpt2", {"head_size": 4}, "layer norm with heads of another size"),
        ("babygpt-v8-projection", {"residual": True, "feed_forward": 0}, "blocks without a feed-forward"),
        ("llama-tiny", {"position": "learned"}, "positions that are learned with RMSNorm"),
        ("llama-tiny", {"qkv_bias": True}, "qwen2"),
        ("qwen-tiny", {"bias": True}, "norms of queries and keys beside biases"),
    ],
)
def test_a_rung_is_one_of_their_classes_or_the_idea_that_none_has_is_named(name, changes, expected):
    config = small(name, **changes)
    if expected in ("gpt2", "llama", "qwen2", "qwen3"):
        assert config_to_json(config, V)["model_type"] == expected
    else:
        with pytest.raises(ConfigError, match=f"none of GPT2LMHeadModel, .* has {expected}"):
            config_to_json(config, V)


EXPORTABLE = [
    ("babygpt-v9-layernorm", {"head_bias": False}),
    ("llama-tiny", {"bias": True, "activation": "gelu"}),
    ("qwen-tiny", {}),
    ("smollm2-135m", {}),
]


@pytest.mark.parametrize("case", mostly_slow(EXPORTABLE), ids=lambda case: case[0])
def test_an_exported_network_has_our_logits_and_writes_our_text(tmp_path, case):
    name, changes = case
    config = small(name, **changes).replace(block_size=256)
    model = filled(config, V)
    save_huggingface(model, TOKENIZER, tmp_path / "out")
    assert not any(path.name.startswith(".") for path in (tmp_path / "out").iterdir())
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    logits = network(torch.tensor(TOKENS)).logits.detach()
    np.testing.assert_allclose(logits, logits_of(model, jnp.asarray(TOKENS)), atol=2e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer("feed a", return_tensors="pt")["input_ids"]
    np.testing.assert_array_equal(prompt[0], TOKENIZER.encode("feed a"))
    text = tokenizer.decode(network.generate(prompt, max_new_tokens=200, do_sample=False)[0])
    ours = generate(model, np.asarray(prompt), jax.random.key(0), 200, temperature=0.0)
    assert text == "feed a" + TOKENIZER.decode(np.asarray(ours[0]))


# Directories that are not what they seem.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "good"
    save_huggingface(filled(small("llama-tiny"), V), TOKENIZER, folder)
    return folder


@pytest.fixture
def good(saved, tmp_path):
    """A directory to damage."""
    return Path(shutil.copytree(saved, tmp_path / "good"))


def change_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "mamba"}, "describes a model of type mamba; supported are gpt2, llama, qwen2, qwen3"),
        ({"model_type": "absent"}, "describes a model of type None"),
        ({"model_type": ["llama"]}, "describes a model of type"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized weights"),
        ({"hidden_size": 10**8, "intermediate_size": 10**8}, "config.json means"),
        ({"hidden_size": "absent"}, "has hidden_size=None; expected a positive integer"),
        ({"hidden_size": -4}, "has hidden_size=-4; expected a positive integer"),
        ({"hidden_size": 10**30}, "expected a positive integer"),
        ({"num_hidden_layers": "two"}, "has num_hidden_layers=two"),
        ({"num_hidden_layers": 5000}, "model.n_layer=5000 is out of range"),
        ({"num_hidden_layers": 3}, "lacks the array model.layers.2"),
        ({"num_hidden_layers": 1}, "has the array model.layers.1.*, which config.json does not mean"),
        ({"hidden_size": 64}, "config.json means"),
        ({"rms_norm_eps": "small"}, "model.norm_eps=small is invalid"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "scaled rotary positions .yarn."),
        (
            {"rope_parameters": "absent", "rope_scaling": {"type": "linear", "factor": 2}},
            "scaled rotary positions .linear.",
        ),
        ({"rope_parameters": [1]}, "expected a table"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "big"}}, "model.rotary_base=big is invalid"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rotary positions that differ by layer"),
        ({"layer_types": 3}, "attention in a sliding window"),
        ({"partial_rotary_factor": 0.5}, "partly rotary heads"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "attention in a sliding window"),
        ({"use_sliding_window": True}, "attention in a sliding window"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention with biases and norms of queries and keys"),
        ({"hidden_act": "quick_gelu"}, "the activation quick_gelu"),
        ({"vocab_size": 3}, "17 tokens in its tokenizer but only 3 in its model"),
        ({"attention_bias": True}, "lacks the array model.layers.0.self_attn.k_proj.bias"),
        ({"tie_word_embeddings": 1}, "model.tied=1 is invalid"),
    ],
)
def test_a_config_that_does_not_fit_gets_one_sentence(good, changes, complaint):
    change_config(good, **changes)
    with pytest.raises((ConfigError, DataError), match=complaint):
        load_huggingface(good)


def test_fields_that_mean_nothing_are_ignored(good):
    expected, _ = load_huggingface(good)
    change_config(good, architectures=["Surprise"], custom_field={"a": [1, 2]}, auto_map={"AutoModel": "evil.py"})
    (good / "evil.py").write_text("raise SystemExit('run')")
    chex.assert_trees_all_equal(load_huggingface(good)[0], expected)


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("config.json", b"{", "is not JSON"),
        ("config.json", b"[1]", "is not a table of options"),
        ("config.json", None, "cannot read .*config.json: No such file"),
        ("tokenizer.json", None, "cannot read the tokenizer"),
        ("tokenizer.json", b"{}", "is not a saved tokenizer"),
        ("tokenizer.json", b'{"model": {"type": "Magic"}}', "the tokenizers library does not accept this tokenizer"),
        ("tokenizer.json", b"\xff", "cannot be used"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("model.safetensors", b"", "is not a safetensors file"),
        ("model.safetensors", (2**60).to_bytes(8, "little") + b"{}", "is not a safetensors file"),
        ("model.safetensors.index.json", b"{}", "is not an index of safetensors files .KeyError."),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "../../x.safetensors"}}',
            "is not a safetensors file beside it",
        ),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "/etc/passwd"}}',
            "is not a safetensors file beside it",
        ),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "model.bin"}}', "is not a safetensors file beside it"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}', "lacks b.safetensors"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": 3}}',
            "is not an index of safetensors files .TypeError.",
        ),
    ],
)
def test_a_file_that_is_damaged_or_missing_gets_one_sentence(good, file, content, complaint):
    if content is None:
        (good / file).unlink()
    else:
        (good / file).write_bytes(content)
    with pytest.raises((DataError, TokenError), match=complaint):
        load_huggingface(good)


def rewrite_header(folder, change):
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = change(json.loads(data[8 : 8 + size]))
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda header: header["model.norm.weight"].update(data_offsets=[0, 128]), "is not a safetensors file"),
        (lambda header: header["model.norm.weight"].update(data_offsets=[2**62, 2**62 + 128]), "is not a safetensors"),
        (lambda header: header["model.norm.weight"].update(shape=[2**40]), "is not a safetensors file"),
        (lambda header: header["model.norm.weight"].update(dtype="X9"), "is not a safetensors file"),
        (lambda header: header["model.norm.weight"].update(dtype="I32"), "has the type I32; expected one of F64, F32"),
        (
            lambda header: header.update({"surprise": header.pop("model.norm.weight")}),
            "lacks the array model.norm.weight",
        ),
    ],
)
def test_a_header_that_lies_gets_one_sentence(good, change, complaint):
    def changed(header):
        change(header)
        return header

    rewrite_header(good, changed)
    with pytest.raises(DataError, match=complaint):
        load_huggingface(good)


def test_pickles_are_refused_without_being_read(good):
    (good / "model.safetensors").rename(good / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        load_huggingface(good)


@pytest.mark.slow
def test_shards_and_bfloat16_are_read(good, tmp_path):
    expected, _ = load_huggingface(good)
    network = transformers.AutoModelForCausalLM.from_pretrained(good)
    network.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    network.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    for name, tolerance in (("shards", 0.0), ("half", 2**-8)):
        write_tokenizer(tmp_path / name)
        model, _ = load_huggingface(tmp_path / name)
        chex.assert_trees_all_close(model, expected, rtol=tolerance, atol=0)


def test_names_without_a_prefix_are_read_as_on_the_hub(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = filled(small("gpt2"), V)
    save_huggingface(model, TOKENIZER, tmp_path / "gpt2")
    path = tmp_path / "gpt2" / "model.safetensors"
    arrays = {name.removeprefix("transformer."): array for name, array in load_file(path).items()}
    save_file(arrays | {"h.0.attn.bias": np.tri(8, dtype=np.float32)}, path)
    chex.assert_trees_all_equal(*(named_arrays(each) for each in (load_huggingface(tmp_path / "gpt2")[0], model)))


def test_a_long_context_is_limited_and_a_learned_one_cannot_grow(good, tmp_path):
    change_config(good, max_position_embeddings=40960)
    assert load_huggingface(good)[0].config.block_size == 1024
    assert load_huggingface(good, 4096)[0].config.block_size == 4096
    save_huggingface(filled(small("gpt2"), V), TOKENIZER, tmp_path / "gpt2")
    short = load_huggingface(tmp_path / "gpt2", 4)[0]
    assert short.position_embedding.embedding.shape == (4, 96)
    with pytest.raises(ConfigError, match="block_size=9 is more than the 8 positions"):
        load_huggingface(tmp_path / "gpt2", 9)


def test_a_folder_with_other_files_is_not_written_to(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is not an empty folder"):
        save_huggingface(filled(small("llama-tiny"), V), TOKENIZER, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_bytes_are_exported_too(tmp_path):
    save_huggingface(filled(small("llama-tiny"), 256), ByteTokenizer(), tmp_path / "bytes")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "bytes")
    text = "\tLine\r\n 詩 🙂 e\u0301 \u2581 </s>"
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text


def test_every_idea_of_the_ladder_is_listed_above():
    same_ideas = {f"babygpt-v{number}" for number in ("2-position", "4-multihead", "5-feedforward", "6-blocks", "11")}
    assert set(EXPORTED) | set(WITHOUT_HEAD_BIAS) | same_ideas >= set(RUNGS)


def test_a_disk_that_fills_up_is_called_so(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_safetensors(tmp_path / "x", {"x": [np.zeros((1 << 16, 1), np.float32)]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
