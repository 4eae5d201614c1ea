"""What is told of a model from its config alone: sizes, counts, cache, arithmetic, fields, folders. No torch."""

import json
import re
import struct

import pytest
from typer.testing import CliRunner

from workbench.cli import shared
from workbench.cli.main import app
from workbench.errors import UserError
from workbench.messages.message import told
from workbench.models.anatomy import bundled, cache, compute, fields, folder, rope
from workbench.models.anatomy.report import as_json, find, given, report
from workbench.models.anatomy.shapes import Anatomy
from workbench.models.anatomy.sizes import read_sizes
from workbench.models.anatomy.units import memory, operations, parameters
from workbench.storage.files import Unreadable
from workbench.storage.workspace import Workspace

CJK = re.compile(r"[\u4e00-\u9fff]")
TINY = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 8, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rope_theta": 10000.0,
}  # fmt: skip
# what the article's configuration lists
ARTICLE = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "n_shared_experts",
    "n_routed_experts",
    "ep_size",
    "routed_scaling_factor",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_rope_head_dim",
    "v_head_dim",
    "qk_nope_head_dim",
    "topk_method",
    "n_group",
    "topk_group",
    "num_experts_per_tok",
    "moe_layer_freq",
    "first_k_dense_replace",
    "norm_topk_prob",
    "scoring_func",
    "aux_loss_alpha",
    "seq_aux",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "pretraining_tp",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "attention_bias",
    "attention_dropout",
]


def anatomy(name: str) -> Anatomy:
    return Anatomy(read_sizes(bundled.configs()[name]).sizes)


def test_counts_of_a_model_that_is_counted_by_hand():
    # embedding and head 2 · 800; a layer: q, o 2 · 64, k, v 2 · 32, MLP 3 · 160, norms 16; last norm 8
    tiny = Anatomy(read_sizes(TINY).sizes)
    assert tiny.total == tiny.active == 1600 + 3 * (128 + 64 + 480 + 16) + 8
    assert tiny.multiplied == tiny.total - 800  # one row of the embedding is looked up
    assert tiny.by_component() == {
        "embedding": 800, "attention": 576, "mlp": 1440, "norm": 56, "head": 800,
    }  # fmt: skip
    assert compute.matrix_flops(tiny) == 2 * (576 + 1440 + 800)
    assert compute.attention_flops(tiny, 10) == 3 * 10 * 4 * (2 + 2) * 2  # heads of width 2, scores and values
    tied = Anatomy(read_sizes(TINY | {"tie_word_embeddings": True}).sizes)
    assert tied.total == tiny.total - 800 and tied.multiplied == tied.total


@pytest.mark.parametrize(
    "name, total, active",
    [
        ("DeepSeek-V2", 236, 21),
        ("DeepSeek-V2-Lite", 15.7, 2.7),
        ("DeepSeek-MoE-16B", 16.4, 2.8),
        ("DeepSeek-V3", 671, 37),
        ("Qwen3-8B", 8.2, 8.2),
        ("Qwen3-30B-A3B", 30.5, 3.3),
        ("Llama-3-8B", 8.0, 8.0),
        ("GLM-4-9B", 9.4, 9.4),
        ("Mixtral-8x7B", 46.7, 12.9),
        ("OLMoE-1B-7B", 6.9, 1.3),
        ("gpt-oss-20b", 20.9, 4.2),
        ("Phi-3.5-mini", 3.8, 3.8),
        ("Gemma-2-9B", 9.2, 9.2),
    ],
)
def test_published_sizes_come_out(name, total, active):
    one = anatomy(name)
    assert one.total / 1e9 == pytest.approx(total, rel=0.01)
    assert one.active / 1e9 == pytest.approx(active, rel=0.025)


def test_the_active_parameters_of_v2_lite_by_what_is_counted():
    lite = anatomy("DeepSeek-V2-Lite")
    assert f"{lite.active / 1e9:.1f}" == "2.7"  # with embedding and head
    assert f"{lite.multiplied / 1e9:.2f}" == "2.45"  # the 2.4B of its card: without the embedding
    assert sum(lite.by_component(active=True).values()) == lite.active


def test_the_cache_saving_of_the_paper_comes_out_of_the_arithmetic():
    sizes = anatomy("DeepSeek-V2").sizes
    assert cache.elements(sizes) == 512 + 64
    same, published = cache.published_saving(sizes)
    assert round(same, 3) == 0.822
    assert round(published, 3) == 0.933  # 6 bits per element against 16
    kinds = {v.kind: v for v in cache.variants(sizes)}
    assert kinds["mla"].own and kinds["mha"].elements == 2 * 128 * 128 and kinds["gqa"].elements == 2 * 8 * 128
    assert cache.cache_bytes(sizes, 1) == 60 * 576 * 2


def test_grouped_and_windowed_caches():
    llama = anatomy("Llama-3-8B").sizes
    assert [v.kind for v in cache.variants(llama) if v.own] == ["gqa"]
    assert cache.cache_bytes(llama, 8192) == 32 * 2 * 8 * 128 * 2 * 8192  # 1 GiB
    gpt = anatomy("gpt-oss-20b").sizes
    assert sum(map(bool, gpt.windows)) == 12
    per_layer = 2 * 8 * 64 * 2
    assert cache.cache_bytes(gpt, 1000) == per_layer * 12 * (1000 + 128)
    assert cache.cache_bytes(gpt, 1000, windows=False) == per_layer * 24 * 1000


def test_layers_of_a_mixture():
    v3 = anatomy("DeepSeek-V3")
    assert [(layer.mixture, layer.numbers[0], len(layer.numbers)) for layer in v3.layers] == [
        (False, 0, 3),
        (True, 3, 58),
    ]
    lora = {(one.name, one.component): one for one in anatomy("DeepSeek-V2").linears()}
    experts = lora["experts.down_proj", "experts"]
    assert (experts.out_features, experts.in_features, experts.count, experts.experts) == (5120, 1536, 59, 160)
    assert experts.lora_parameters(2) == 2 * (5120 + 1536) * 59 * 160


def test_every_field_of_the_article_and_of_the_bundled_configs_is_explained_in_both_languages():
    assert [name for name in ARTICLE if fields.explain(name) is None] == []
    for name, config in bundled.configs().items():
        assert [f.name for f in fields.fields(config) if f.group == fields.UNKNOWN] == [], name
    for group in fields.GROUPS.values():
        for name, (meaning, zh, effect, effect_zh) in group.items():
            assert meaning.endswith(".") and effect.endswith("."), name
            assert CJK.search(zh) and CJK.search(effect_zh) and not CJK.search(meaning + effect), name


def test_fields_with_siblings_and_unknown_ones():
    config = bundled.configs()["DeepSeek-V2"] | {"made_up": [1] * 50}
    listed = {f.name: f for f in fields.fields(config, ["DeepSeek-V2-Lite", "Llama-3-8B"])}
    assert listed["q_lora_rank"].siblings == ("null", "")
    assert listed["rope_scaling.factor"].value == "40" and listed["rope_scaling.factor"].group == "position"
    assert listed["made_up"].group == fields.UNKNOWN and listed["made_up"].value == "[1, 1, 1, … 50]"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": None}, "no model_type"),
        ({"model_type": "martian"}, "The architecture martian is not known"),
        ({"model_type": ["llama"]}, "no model_type"),
        ({"hidden_size": -8}, "hidden_size is -8"),
        ({"hidden_size": "8"}, "hidden_size is 8; it should be a whole number"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"vocab_size": 10**30}, "vocab_size is 1e+30"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"intermediate_size": None}, "intermediate_size is missing"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads (3)"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "hidden_size (8) is no multiple"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is yes"),
    ],
)
def test_a_wrong_config_gives_no_figures_but_a_sentence(changes, words):
    result = report(given(json.dumps(TINY | changes)))
    assert result.anatomy is None and result.rotary is None
    assert any(words in str(problem) for problem in result.problems), result.problems
    assert all(CJK.search(told(problem, "zh")) for problem in result.problems)
    values = as_json(result)
    assert values["parameters"] is None and values["cache"] is None and values["four_bit"] is None
    assert {f["name"] for f in values["fields"]} >= {"hidden_size", "vocab_size"}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_experts_per_tok": 200}, "num_experts_per_tok (200) is more than there are experts (160)"),
        ({"topk_group": 9}, "topk_group (9) is more than there are groups (n_group 8)"),
        ({"n_group": 7}, "160 experts cannot be put into 7 groups"),
        ({"first_k_dense_replace": 61}, "first_k_dense_replace (61) is more"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim is 63; it should be even"),
        ({"n_routed_experts": 0}, "n_routed_experts is 0"),
        ({"kv_lora_rank": None}, "kv_lora_rank is missing"),
    ],
)
def test_a_mixture_that_contradicts_itself(changes, words):
    result = report(given(json.dumps(bundled.configs()["DeepSeek-V2"] | changes)))
    assert result.anatomy is None and any(words in str(problem) for problem in result.problems), result.problems


def test_layer_types_of_another_length():
    result = report(given(json.dumps(bundled.configs()["gpt-oss-20b"] | {"layer_types": ["full_attention"]})))
    assert "layer_types has 1 entries for 24 layers" in str(result.problems[0])


def test_what_a_config_does_not_say_is_told():
    notes = read_sizes({k: v for k, v in bundled.configs()["Qwen3-8B"].items() if k != "head_dim"}).notes
    assert "does not say head_dim; the architecture's own default 128" in str(notes[0])


def test_the_text_part_of_a_larger_model():
    whole = {"model_type": "gemma3", "text_config": bundled.configs()["Gemma-2-9B"], "vision_config": {}}
    result = report(given(json.dumps(whole)))
    assert result.anatomy.total == anatomy("Gemma-2-9B").total and result.rotary.theta == 10000
    assert "figures are of that alone" in str(result.notes[0])


@pytest.mark.parametrize("scaling", [{"type": "yarn"}, {"type": "linear", "factor": -2}, [4], {"type": "longrope"}])
def test_a_scaling_that_cannot_be_used(scaling):
    result = report(given(json.dumps(TINY | {"rope_scaling": scaling})))
    assert result.anatomy is not None and result.rotary is None
    assert "the position encoding is not shown" in str(result.notes[-1])


def test_an_unknown_scaling_shows_the_plain_turns():
    result = report(given(json.dumps(TINY | {"rope_scaling": {"type": "spiral", "factor": 2}})))
    assert rope.scaled(result.rotary, "spiral", 2) == rope.plain(result.rotary) == [1.0]
    assert "RoPE scaling spiral is not known" in str(result.notes[-1])


def test_texts_that_are_no_config():
    for text, words in (("[1]", "no JSON object"), ("{", "cannot be read"), ("x" * (2 << 20), "at most 1024 KiB")):
        with pytest.raises(UserError, match=words):
            given(text)
    with pytest.raises(Unreadable):
        given('{"a":' * 5000 + "1" + "}" * 5000)


def test_numbers_as_people_read_them():
    assert [parameters(n) for n in (235_741_434_880, 134_515_008, 960)] == ["235.74B", "134.5M", "960"]
    assert memory(31104) == "30.4 KiB" and memory(12) == "12 B"
    assert operations(4_902_000_000) == "4.9 GFLOP"


# folders


def shard(path, tensors: dict[str, list[int]], dtype: str = "BF16", lost: int = 0):
    """A safetensors file of zeros, `lost` bytes of it cut off."""
    head, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        size = 2
        for side in shape:
            size *= side
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(at)
    path.write_bytes(data[: len(data) - lost])


def model(tmp_path, *, lost: int = 0, drop: str = ""):
    """A folder with the whole tiny model."""
    folder_ = tmp_path / "models" / "tiny"
    folder_.mkdir(parents=True)
    (folder_ / "config.json").write_text(json.dumps(TINY))
    tensors = {name: list(w.shape) for name, w in Anatomy(read_sizes(TINY).sizes).weights() if name != drop}
    shard(folder_ / "model.safetensors", tensors, lost=lost)
    return folder_


def test_a_whole_folder(tmp_path):
    path = model(tmp_path)
    (path / "README.md").write_text("---\nlicense: apache-2.0\nextra_gated_prompt: ask\n---\n# Tiny\n")
    (path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (path / "modeling_tiny.py").write_text("raise SystemExit\n")
    result = report(find("tiny", Workspace(tmp_path)))
    found = result.folder
    assert result.problems == [] and found.whole and found.weights == result.anatomy.total
    assert (found.license, found.gated, found.template, found.code) == (
        "apache-2.0", True, "tokenizer_config.json", ["modeling_tiny.py"],
    )  # fmt: skip
    assert as_json(result, "zh")["folder"]["whole"] is True


@pytest.mark.parametrize("half", ["cut", "named", "unfinished", "lacking", "nonsense", "pickled"])
def test_half_a_download(tmp_path, half):
    path = model(tmp_path, lost=100 if half == "cut" else 0, drop="lm_head.weight" if half == "lacking" else "")
    words = {
        "cut": "model.safetensors is not whole",
        "named": "lacks 1 of 2 weight files: b.safetensors",
        "unfinished": "1 files of a download are not finished",
        "lacking": "hold 2,872 parameters, the config makes 3,672",
        "nonsense": "no header of the safetensors format",
        "pickled": "only in pickled form",
    }
    if half == "named":
        index = {"weight_map": {"a": "model.safetensors", "b": "b.safetensors"}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    elif half == "unfinished":
        (path / ".cache").mkdir()
        (path / ".cache" / "x.incomplete").write_text("")
    elif half == "nonsense":
        (path / "model.safetensors").write_bytes(b"\xff" * 64)
    elif half == "pickled":
        (path / "model.safetensors").rename(path / "pytorch_model.bin")
    result = report(find(str(path), Workspace(tmp_path)))
    assert any(words[half] in str(problem) for problem in result.problems), result.problems
    assert result.anatomy is not None  # the config is known all the same
    assert half == "lacking" or not result.folder.whole


def test_more_weights_than_are_built_are_a_note(tmp_path):
    path = model(tmp_path)
    shard(path / "extra.safetensors", {"mtp.weight": [3, 5]})
    result = report(find("tiny", Workspace(tmp_path)))
    assert result.problems == [] and "of which transformers builds" in str(result.notes[-1])


@pytest.mark.parametrize("index", ["[]", '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": 1}}', "{"])
def test_a_broken_index(tmp_path, index):
    path = model(tmp_path)
    (path / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json is broken" in str(folder.look(path).problems[0])


def test_hostile_headers_and_cards(tmp_path):
    path = model(tmp_path)
    for head in (
        {"a": 1},
        {"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}},
        [1],
        {"a": {"dtype": "F32"}},
    ):
        text = json.dumps(head).encode()
        (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
        assert "no header" in str(folder.look(path).problems[0])
    (path / "README.md").write_text("---\nlicense: [a, *b]\n---\n")
    assert folder.look(path).license == ""


def test_models_are_found_by_name_path_and_config(tmp_path):
    path, space = model(tmp_path), Workspace(tmp_path)
    assert find("tiny", space).source == find("owner/tiny", space).source == find(str(path), space).source == "folder"
    assert find(str(path / "config.json"), space).source == "file"
    assert (
        find("deepseek-ai/DeepSeek-V2-Lite", space).name == find("deepseek-v2-lite", space).name == "DeepSeek-V2-Lite"
    )
    for name, words in (("nothing", "Bundled: DeepSeek-V2"), ("", "Bundled"), (str(tmp_path), "no config.json")):
        with pytest.raises(UserError, match=words):
            find(name, space)


def test_a_page_reads_only_where_its_users_may(tmp_path):
    path = model(tmp_path / "outside").parent
    space = Workspace(tmp_path / "inside", confined=True).create()
    for name in (str(path / "tiny"), str(path / "tiny" / "config.json"), "../outside/models/tiny", "/etc/passwd"):
        with pytest.raises(UserError, match=r"outside|allowed|lies"):
            find(name, space)


# the command line


@pytest.fixture
def told_in_english():
    yield
    shared.speak("en")


def test_inspect_prints_figures_fields_and_json(tmp_path, told_in_english):
    def inspected(*arguments):
        done = CliRunner().invoke(app, ["inspect", *arguments, "--workspace", str(tmp_path)])
        assert done.exit_code == 0, done.output
        return done.output

    text = inspected("DeepSeek-V2")
    assert "235,741,434,880 parameters" in text and "21.38B" in text and "93.3%" in text and "MLA" in text
    assert "kv_lora_rank: 512" not in text and "kv_lora_rank: 512" in inspected("DeepSeek-V2", "--fields")
    assert "路由专家" in inspected("DeepSeek-V2", "--lang", "zh")
    values = json.loads(inspected("deepseek-ai/DeepSeek-V2", "--lang", "en", "--json"))
    assert values["parameters"]["total"] == 235_741_434_880 and values["cache"]["as"]["mla"] == 60 * 576 * 2
    (tmp_path / "bad.json").write_text("{}")
    text = inspected(str(tmp_path / "bad.json"), "--lang", "en")
    assert "no model_type" in text and "parameters as transformers" not in text
