"""GGUF files: read back they hold what transformers and PEFT compute, and what cannot be exported is said in a sentence.
What llama.cpp makes of them: `benchmarks/gguf_exports.py`."""

import copy
import errno
import json
import re
import shutil

import gguf
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV2Config, LlamaConfig

from tests.gguf_file import read
from tests.models.test_merging import KINDS, make
from workbench.config.options import EngineConfig
from workbench.data.encode import set_template
from workbench.errors import UserError
from workbench.models.gguf import architectures, file
from workbench.models.gguf.encoding import encode
from workbench.models.gguf.export import export_gguf
from workbench.models.locate import demo_package


def exported(workspace, model, kind="gguf-f16", adapters=None, name="out", **options):
    config = EngineConfig(model_name_or_path=str(model), **options)
    weights = {str(key): value for key, value in (adapters or {}).items()}
    return export_gguf(config, weights, name, kind, workspace, lambda *_: None, lambda line: None, set_template)


def halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of llama's q or k in transformers' order again: of each head the even rows, then the odd ones."""
    by_head = rows.reshape(heads, -1, *rows.shape[1:])
    return torch.cat([by_head[:, 0::2], by_head[:, 1::2]], dim=1).reshape(rows.shape)


LLAMA = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def as_llama(tensors: dict, heads: int, kv_heads: int) -> dict[str, torch.Tensor]:
    """transformers' names and order for the tensors of a llama GGUF."""
    weights = {}
    for name, value in tensors.items():
        *layer, part, leaf = name.removeprefix("blk.").split(".")
        new = (f"model.layers.{layer[0]}." if layer else "") + f"{LLAMA[part]}.{leaf}"
        count = {"attn_q": heads, "attn_k": kv_heads}.get(part)
        weights[new] = halves(value, count) if count else value
    return weights


@pytest.fixture(scope="module")
def demo_weights(demo_model):
    return AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)


@pytest.mark.parametrize(("kind", "distance"), [("gguf-f16", 0.001), ("gguf-q8_0", 0.06)])
def test_the_demo_model_computes_the_same_from_its_gguf(workspace, demo_model, demo_weights, kind, distance):
    path = exported(workspace, demo_model, kind)
    fields, tensors = read(path)
    again = copy.deepcopy(demo_weights)
    for value in again.parameters():
        value.data.zero_()
    missing = again.load_state_dict(as_llama(tensors, 9, 3), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["lm_head.weight"], [])
    ids = torch.tensor([AutoTokenizer.from_pretrained(demo_model)("The capital of France is Paris, and")["input_ids"]])
    with torch.no_grad():
        wanted, found = demo_weights(ids).logits, again(ids).logits
    assert (wanted - found).norm() / wanted.norm() < distance
    assert torch.equal(wanted.argmax(-1), found.argmax(-1))

    own = read(demo_package())[0]
    same = (
        "general.architecture", "general.type", "tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges",
        "tokenizer.ggml.eos_token_id", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_space_prefix", "tokenizer.chat_template", "llama.block_count", "llama.context_length",
        "llama.embedding_length", "llama.feed_forward_length", "llama.attention.head_count", "llama.rope.freq_base",
        "llama.attention.head_count_kv", "llama.attention.layer_norm_rms_epsilon", "llama.vocab_size",
        "llama.rope.dimension_count",
    )  # fmt: skip
    for name in same:
        assert fields[name] == own[name], name
    assert fields["general.file_type"] == {"gguf-f16": 1, "gguf-q8_0": 7}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_merged_as_peft_merges_them(workspace, tiny_model, tmp_path, kind):
    base = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    trained = make(tiny_model, tmp_path / "a", 1, **KINDS[kind])
    adapters = {tmp_path / "a": 1.0}
    other = base
    if kind != "dora":
        other = make(tiny_model, tmp_path / "b", 2)
        adapters = {tmp_path / "a": 0.5, tmp_path / "b": -2.0}
    first, second = [*adapters.values(), 0.0][:2]
    merged = as_llama(read(exported(workspace, tiny_model, "gguf-f32", adapters))[1], 4, 2)
    assert merged.keys() == base.keys()
    for key, value in merged.items():
        wanted = base[key] + first * (trained[key] - base[key]) + second * (other[key] - base[key])
        assert (value - wanted).abs().max() < 1e-5, key
    assert any(not torch.equal(merged[key], base[key]) for key in merged)


@pytest.fixture(scope="module")
def latent_model(tiny_model, tmp_path_factory):
    """A DeepSeek-V2 with a latent of queries, 2 layers, 4 experts."""
    folder = tmp_path_factory.mktemp("latent") / "latent"
    torch.manual_seed(0)
    config = DeepseekV2Config(
        vocab_size=260, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=32, q_lora_rank=48, qk_rope_head_dim=16,
        qk_nope_head_dim=32, v_head_dim=32, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2,
        first_k_dense_replace=1, topk_method="greedy", norm_topk_prob=False, max_position_embeddings=256,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_deepseeks_latents_and_experts_are_laid_out_for_llama_cpp(workspace, latent_model, tmp_path):
    experts = {
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        "target_modules": ["kv_b_proj"],
    }
    trained = make(latent_model, tmp_path / "a", **experts)
    fields, tensors = read(exported(workspace, latent_model, "gguf-f32", {tmp_path / "a": 1.0}))
    gate_up, down = (trained[f"model.layers.1.mlp.experts.{name}_proj"] for name in ("gate_up", "down"))
    assert torch.allclose(tensors["blk.1.ffn_gate_exps.weight"], gate_up[:, :32], atol=1e-5)
    assert torch.allclose(tensors["blk.1.ffn_up_exps.weight"], gate_up[:, 32:], atol=1e-5)
    assert torch.allclose(tensors["blk.1.ffn_down_exps.weight"], down, atol=1e-5)
    latent, query = torch.randn(32), torch.randn(4, 32)
    both = (trained["model.layers.1.self_attn.kv_b_proj.weight"] @ latent).reshape(4, 64)
    keys, values = both[:, :32], both[:, 32:]
    absorbed = torch.einsum("hlk,hk->hl", tensors["blk.1.attn_k_b.weight"], query)  # queries on latents
    assert torch.allclose((query * keys).sum(1), absorbed @ latent, atol=1e-4)
    assert torch.allclose(values, tensors["blk.1.attn_v_b.weight"] @ latent, atol=1e-4)
    size = {key: fields[f"deepseek2.attention.{key}"] for key in ("key_length", "value_length", "head_count_kv")}
    assert size == {"key_length": 48, "value_length": 32, "head_count_kv": 1}


def test_a_lora_alone_gives_pefts_product(workspace, tiny_model, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    first = make(tiny_model, tmp_path / "a", 1, target_modules=["q_proj", "embed_tokens"], use_rslora=True)
    second = make(tiny_model, tmp_path / "b", 2, r=3, alpha_pattern={"down_proj": 5})
    fields, tensors = read(exported(workspace, tiny_model, "gguf-lora", {tmp_path / "a": 1.0, tmp_path / "b": -0.5}))
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    changes = {}
    for name in {name.rpartition(".")[0] for name in tensors}:
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        rank = b.shape[1]
        change = a @ b.T if name.startswith("token_embd") else b @ a
        changes[name] = change * fields["adapter.lora.alpha"] / rank
    assert len(changes) == 2 * 2 + 1
    for key, change in as_llama(changes, 4, 2).items():
        wanted = (first[key] - base[key]) - 0.5 * (second[key] - base[key])
        assert (change - wanted).abs().max() < 1e-5, key


def test_rotation_by_neighbors_is_rotation_by_halves(tiny_model):
    query, key = torch.randn(2, 3, 2 * 8, 5).unbind(0)  # [rows of two heads of 8, 5 inputs] at three positions
    angles = torch.arange(3)[:, None] * 100.0 ** -(torch.arange(0, 8, 2) / 8)

    def turned(vectors, neighbors: bool):
        by_head = vectors.reshape(3, 2, 8)
        one, two = (by_head[..., 0::2], by_head[..., 1::2]) if neighbors else by_head.chunk(2, dim=-1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1)

    hidden = torch.randn(5)
    rows = {name: value[0] for name, value in (("q", query), ("k", key))}
    scores = []
    for neighbors in (False, True):
        q, k = (architectures.permuted(r, 2) if neighbors else r for r in rows.values())
        q, k = (turned((r @ hidden).expand(3, -1), neighbors) for r in (q, k))
        scores.append(torch.einsum("ihd,jhd->hij", q, k))
    assert torch.allclose(*scores, atol=1e-4)


def test_q8_0_is_ggmls_to_the_byte():
    values = torch.randn(7, 64) * torch.logspace(-6, 3, 7)[:, None]
    values[2, :32] = 0
    values[3, :32] = torch.linspace(-127, 127, 32).round()  # a scale of one: halves are rounded as they are
    values[3, :4] = torch.tensor([127.0, 0.5, -1.5, 0.49999997])
    wanted = gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType.Q8_0)
    assert encode(values, "Q8_0", "x").tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("kind", "number"), [("F16", 70000.0), ("F16", float("nan")), ("Q8_0", float("inf")), ("F32", float("nan"))]
)
def test_numbers_that_a_format_cannot_hold(kind, number):
    with pytest.raises(UserError, match=r"blk.0 has numbers that this format cannot hold"):
        encode(torch.tensor([number] + [1.0] * 31), kind, "blk.0")


def test_small_parts_give_the_whole(monkeypatch):
    values = torch.randn(10, 32)
    target = architectures.Target("x", (10, 32), ("y",))
    monkeypatch.setattr(file, "_PIECE", 96)  # numbers, three rows
    parts = list(file.pieces(target, lambda name, start=0, stop=None: values[start:stop]))
    assert [len(part) for part in parts] == [3, 3, 3, 1] and torch.equal(torch.cat(parts), values)


def test_llama3s_rope_factors_are_those_of_transformers():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(torch.arange(0, 128, 2) / 128)
    assert torch.allclose(plain / architectures.rope_factors(config), scaled, rtol=1e-4)


# --- what is refused, and that nothing is left


def left(workspace) -> list[str]:
    return sorted(path.name for path in workspace.models.iterdir())


def changed(folder, tmp_path, **values):
    """A copy of a model's folder with other values in its config."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text()) | values
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "gemma2"}, "knows llama, qwen2, qwen3, deepseek_v2; this model is gemma2"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act: gelu"),
        ({"num_hidden_layers": 3}, r"lack model.layers.2.input_layernorm.weight, "),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type: dynamic",
        ),
    ],
)
def test_models_that_are_not_exported_say_so(workspace, tiny_model, tmp_path, values, words):
    with pytest.raises(UserError, match=words):
        exported(workspace, changed(tiny_model, tmp_path, **values))
    assert left(workspace) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"topk_method": "group_limited_greedy"}, "topk_method"),
        ({"n_group": 2}, "n_group: 2"),
        ({"norm_topk_prob": True}, "norm_topk_prob: True"),
        ({"q_lora_rank": None}, "q_lora_rank: none"),  # llama.cpp takes that for models of 26 or 27 layers only
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "mscale_all_dim"),
    ],
)
def test_settings_of_deepseek_that_llama_cpp_computes_otherwise(workspace, latent_model, tmp_path, values, words):
    with pytest.raises(UserError, match=words):
        exported(workspace, changed(latent_model, tmp_path, **values))


def test_a_weight_without_a_place(workspace, tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = changed(tiny_model, tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.layers.0.extra.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"1 weights .* no place in llama.cpp's llama: model.layers.0.extra.weight"):
        exported(workspace, folder)
    save_file(weights | {"lm_head.weight": torch.zeros(260, 64, dtype=torch.int8)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head.weight is stored as I8"):
        exported(workspace, folder)
    for name in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight"):
        save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors")
        with pytest.raises(UserError, match=f"The model's files lack {name}."):
            exported(workspace, folder)
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:-40])
    with pytest.raises(UserError, match=r"is not whole \(398,520 bytes; 40 bytes less than its header says\)"):
        exported(workspace, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no safetensors to export"):
        exported(workspace, folder)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"lm_head.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}}')
    with pytest.raises(UserError, match=r"lacks 2 of 2 weight files: a.safetensors"):
        exported(workspace, folder)
    index.write_text('{"weight_map": {"lm_head.weight": "../a.safetensors"}}')
    with pytest.raises(UserError, match=r"index.json is broken"):
        exported(workspace, folder)


def test_a_taken_name_and_a_full_disk_leave_nothing(workspace, tiny_model, monkeypatch):
    (workspace.models / "out").mkdir()
    with pytest.raises(UserError, match="There is a model named out already"):
        exported(workspace, tiny_model)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
        with pytest.raises(UserError, match=r"The file takes .* the disk has"):
            exported(workspace, tiny_model, name="two")

    def full(piece, kind, name):
        if name.startswith("blk.1"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return encode(piece, kind, name)

    monkeypatch.setattr(file, "encode", full)
    with pytest.raises(UserError, match="could not be written: No space left on device"):
        exported(workspace, tiny_model, name="two")
    assert left(workspace) == ["out"]


def test_adapters_that_do_not_fit(workspace, tiny_model, latent_model, tmp_path):
    make(tiny_model, tmp_path / "a")
    with pytest.raises(UserError, match=r"does not fit this model: model.layers.0.mlp.down_proj.weight"):
        exported(workspace, latent_model, adapters={tmp_path / "a": 1.0})
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"fan_in_fan_out": True}))
    with pytest.raises(UserError, match="uses fan_in_fan_out"):
        exported(workspace, tiny_model, adapters={tmp_path / "a": 1.0})
    tuned = LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), tuned).save_pretrained(tmp_path / "bias")
    with pytest.raises(UserError, match="has a part that GGUF export does not merge"):
        exported(workspace, tiny_model, adapters={tmp_path / "bias": 1.0})
    make(tiny_model, tmp_path / "dora", use_dora=True)
    with pytest.raises(UserError, match="DoRA can be merged alone"):
        exported(workspace, tiny_model, adapters={tmp_path / "dora": 0.5})
    assert left(workspace) == []


@pytest.mark.parametrize(("kind", "words"), [("dora", "DoRA"), ("whole modules", "cannot hold (lm_head|model.norm)")])
def test_what_a_lora_alone_cannot_hold(workspace, tiny_model, latent_model, tmp_path, kind, words):
    make(tiny_model, tmp_path / "a", **KINDS[kind])
    with pytest.raises(UserError, match=words):
        exported(workspace, tiny_model, "gguf-lora", {tmp_path / "a": 1.0})
    with pytest.raises(UserError, match="Name at least one adapter"):
        exported(workspace, tiny_model, "gguf-lora")
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(latent_model), LoraConfig(r=2, target_modules=["o_proj"])
    )
    tuned.save_pretrained(tmp_path / "latent")
    with pytest.raises(UserError, match=r"llama.cpp leaves a LoRA out of parts of deepseek2"):
        exported(workspace, latent_model, "gguf-lora", {tmp_path / "latent": 1.0})


def test_what_lies_beside(workspace, tiny_model):
    from workbench.config.options import RunConfig
    from workbench.runs.run import create_run

    run = create_run(workspace, RunConfig(model_name_or_path=str(tiny_model), dataset="small", learning_rate=0.5))
    make(tiny_model, run.path)
    run.metrics.write_text('{"current_steps": 5, "loss": 2.5}\n{"current_steps": 10, "loss": 1.25}\n{"current_st')
    path = exported(workspace, tiny_model, "gguf-q8_0", {run.id: 0.5})
    card = (path.parent / "README.md").read_text()
    assert f"{run.id} × 0.5" in card and str(tiny_model) in card
    assert "- Data: small" in card and "- Last loss: 1.2500 (step 10)" in card and "learning_rate: 0.5" in card
    made = (path.parent / "Modelfile").read_text()
    assert made.startswith("FROM ./out-q8_0.gguf\n") and 'PARAMETER stop "<|im_end|>"' in made
    assert re.search(r'TEMPLATE """.+"""', made)
    lora = exported(workspace, tiny_model, "gguf-lora", {run.id: 0.5}, "alone")
    assert "ADAPTER ./alone-lora.gguf" in (lora.parent / "Modelfile").read_text()


def test_the_command(workspace, tiny_model):
    from typer.testing import CliRunner

    from workbench.cli.main import app

    def said(*arguments):
        result = CliRunner().invoke(app, ["export", str(tiny_model), "--workspace", str(workspace.root), *arguments])
        return result.exit_code, str(result.exception or result.output)

    code, text = said("--name", "n", "--format", "gguf-q4")
    assert code and "--format gguf-q4: choose safetensors, bnb-4bit, lora, gguf-f16, gguf-q8_0, gguf-lora." in text
    code, text = said("--name", "n")
    assert code == 0 and f"The model alone, with no adapter merged in, is n in {workspace.models}." in text
    shutil.rmtree(workspace.models / "n")
    code, text = said("--name", "n", "--format", "gguf-lora")
    assert code and "Name at least one adapter to merge." in text
    code, text = said("--name", "n", "--format", "gguf-f16")
    assert code == 0 and f"The GGUF file is {workspace.models / 'n' / 'n-f16.gguf'}." in text
    assert read(workspace.models / "n" / "n-f16.gguf")[0]["tokenizer.ggml.eos_token_id"] == 2
