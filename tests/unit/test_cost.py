"""Memory and time of runs from sizes and options: figures worked out by hand, bad input, the history."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.config.options import EngineConfig, RunConfig
from workbench.config.run_config import validated
from workbench.errors import UserError
from workbench.models.anatomy import bundled
from workbench.models.anatomy.shapes import Anatomy, Weight
from workbench.models.anatomy.sizes import read_sizes
from workbench.models.cost import changes, constants, time
from workbench.models.cost.adapters import targets, trained
from workbench.models.cost.batch import Rows, batch, padded_length
from workbench.models.cost.chat import chat_memory, planned_tokens
from workbench.models.cost.constants import GIB, MIB
from workbench.models.cost.device import Device, card_memory
from workbench.models.cost.experts import ExpertWork
from workbench.models.cost.host import HostMemory
from workbench.models.cost.placement import streamed, streams
from workbench.models.cost.plan import Need, lacking, plan, worth_compiling
from workbench.models.cost.split import split
from workbench.models.cost.training import Gpu, TrainingMemory, placement
from workbench.models.cost.weights import Form, Loaded, packed_bytes
from workbench.runs.run import create_run
from workbench.storage.files import write_atomically
from workbench.storage.workspace import Workspace
from workbench.train.estimates import history, record
from workbench.train.estimates.check import check_start
from workbench.train.estimates.outlook import outlook
from workbench.train.estimates.presets import for_machine
from workbench.train.estimates.rows import rows_of
from workbench.ui.costs import view
from workbench.ui.costs.view import time_lines

ROOT = Path(__file__).parents[2]
H100 = Device("NVIDIA H100 80GB HBM3", card_memory(80), True, 1, 700.0)
V2_ATTENTION = "q_proj,kv_a_proj_with_mqa,kv_b_proj,o_proj"
UNIFORM = Rows(256, 256 * 4096, 4096, "counted", uniform=True)
MIXED = Rows(640, 640 * 554, 4020, "counted")


def anatomy(name: str) -> Anatomy:
    sizes = read_sizes(bundled.configs()[name]).sizes
    assert sizes is not None
    return Anatomy(sizes)


def config(**values) -> RunConfig:
    base = {
        "model_name_or_path": "m", "dataset": "d", "quantization_bit": 4, "cutoff_len": 4096, "lora_rank": 16,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "max_steps": 20,
    }  # fmt: skip
    return validated(base | values)


def estimate(name: str, rows: Rows = MIXED, memory: float = 79.2 * GIB, **values):
    return TrainingMemory(anatomy(name), config(**values), rows, Gpu(memory)).estimate()


# ---- weights


def test_four_bits_hold_two_weights_a_byte_and_a_scale_for_each_64():
    weight = Weight("self_attn.q_proj.weight", "attention", (1024, 4096), linear=True)
    scales = 1024 * 4096 // 64
    tables = 16 * 4 + 256 * 4 + 4
    assert packed_bytes(weight, Form(4, True)) == (1024 * 4096 // 2, scales + 4 * scales // 256 + tables)
    assert packed_bytes(weight, Form(4, False)) == (1024 * 4096 // 2, 4 * scales + 16 * 4)
    assert packed_bytes(weight, Form(8)) == (1024 * 4096, 4 * 1024)


def test_weights_of_llama_3_8b():
    model = anatomy("Llama-3-8B")
    layer = 4096 * 4096 * 2 + 2 * 1024 * 4096 + 3 * 14336 * 4096
    rest = 2 * 128256 * 4096 + (2 * 32 + 1) * 4096
    assert model.total == 32 * layer + rest
    assert Loaded(model, Form()).bytes.total == 2 * model.total
    four = Loaded(model, Form(4)).bytes
    assert (four.plain, four.packed) == (2 * rest, 32 * layer // 2)
    assert four.constants == pytest.approx(32 * layer / 64 * (1 + 4 / 256), rel=0.01)
    eight = Loaded(model, Form(8)).bytes
    assert (eight.plain, eight.packed) == (2 * rest, 32 * layer)


def test_eight_bits_leave_fused_experts_and_gpt_oss_keeps_them_in_four():
    model = anatomy("DeepSeek-V2-Lite")
    experts = 26 * 64 * 3 * 2048 * 1408
    assert Loaded(model, Form(8)).bytes.plain > 2 * experts
    assert Loaded(model, Form(4)).bytes.packed > experts / 2 > Loaded(model, Form(4)).bytes.plain
    oss = anatomy("gpt-oss-20b")
    assert Loaded(oss, Form(4)).bytes.plain > 2 * oss.by_component()["experts"] * 0.99


# ---- what is trained


def test_parameters_of_adapters():
    model = anatomy("Llama-3-8B")
    found = trained(model, config(lora_target="q_proj,v_proj"))
    assert found.adapters == found.of_linears == 32 * 16 * ((4096 + 4096) + (4096 + 1024))
    mixture = anatomy("DeepSeek-V2-Lite")
    everything = trained(mixture, config(lora_target="all"))
    experts = 26 * 64 * 16 * ((2048 + 2816) + (1408 + 2048))
    assert everything.adapters - everything.of_linears == experts
    assert trained(mixture, config(lora_target="experts")).adapters == experts
    assert trained(mixture, config(lora_target="all", lora_dropout=0.1)).adapters == everything.of_linears
    full = trained(model, config(finetuning_type="full", quantization_bit=None))
    assert (full.adapters, full.modules) == (0, model.total)


def test_gradients_and_optimizers():
    found = trained(anatomy("Llama-3-8B"), config(lora_target="q_proj"))
    count = found.adapters
    assert found.gradients(2) == 4 * count
    assert [found.state(optim, 2) for optim in ("adamw_torch", "lion_32bit", "sgd", "paged_adamw_8bit")] == [
        8 * count, 4 * count, 0, 0,
    ]  # fmt: skip
    assert 2 * count < found.state("adamw_8bit", 2) < 2.1 * count
    full = trained(anatomy("Llama-3-8B"), config(finetuning_type="full", quantization_bit=None))
    assert full.state("adamw_torch", 2) == 4 * full.modules  # moments in 16 bits, as the weights


def test_targets_that_match_nothing_are_told():
    found = targets(anatomy("Llama-3-8B"), "q_proj,query,layers.3.self_attn.k_proj")
    assert found.unknown == ("query",)
    assert [name for name, _ in found.linears if "k_proj" in name] == ["model.layers.3.self_attn.k_proj"]
    notes = estimate("Llama-3-8B", lora_target="query").notes
    assert any("lora_target names nothing of this model: query" in str(note) for note in notes)


# ---- micro-batches


@pytest.mark.parametrize(("length", "padded"), [(1, 16), (100, 104 + 8), (1000, 1024), (4096, 4096), (4097, 4608)])
def test_padded_length_is_the_trainers(length, padded):
    assert padded_length(length) == padded


def test_tokens_of_the_largest_micro_batch():
    sizes = anatomy("Qwen3-8B").sizes
    joined = batch(config(), sizes, MIXED, recorded=True)
    assert (joined.tokens, joined.joined) == (8064, True)  # 2 x 4,020, in steps of 128: performance.md's run
    assert batch(config(cutoff_len=1024), sizes, MIXED, recorded=True).tokens == 2048
    few = Rows(3, 700, 400, "counted")
    assert batch(config(), sizes, few, recorded=True).tokens == 768  # all rows there are
    padded = batch(config(neftune_noise_alpha=5), sizes, Rows(9, 9000, 1000), recorded=True)
    assert (padded.tokens, padded.joined) == (2048, False)
    assert batch(config(packing=True, cutoff_len=512), sizes, few, recorded=True).tokens == 1024
    assert not batch(config(), anatomy("gpt-oss-20b").sizes, MIXED, recorded=True).joined


# ---- experts


def test_the_way_back_through_experts_by_hand():
    # 2 x 4096 tokens, 6 of 64 experts of 1,408 at 2,048: gate_up again, beside the rows and the gated gradient
    work = ExpertWork(49152, 2048, 1408, 64)
    rows, narrow, up = 2 * 49152 * 2048, 2 * 49152 * 1408, 64 * 2816 * 2048 * 2
    assert work.backward(False) == rows + narrow + 2 * narrow + up
    assert work.forward() == rows + 2 * narrow + up
    halves = ExpertWork(49152, 2048, 1408, 64, halves=True)
    assert halves.backward(False) == rows + narrow + 2 * narrow + up // 2
    assert halves.forward() == rows + 3 * narrow + up // 2  # the down projection's matrices are as large as a half
    assert halves.backward(True) == 2 * narrow + up // 2 + 2 * rows  # its gradient is whole
    assert work.backward(True) == 2 * narrow + up + rows
    assert ExpertWork(49152, 2048, 1408, 64, rank=16, halves=True).backward(False) == ExpertWork(
        49152, 2048, 1408, 64, 16
    ).backward(False)
    assert ExpertWork(49152, 2048, 1408, 64, rank=16).backward(False) > work.backward(False) - up


# ---- runs that were measured (docs/performance.md), on one H100


@pytest.mark.parametrize(
    ("model", "rows", "values", "measured"),
    [
        ("DeepSeek-V2-Lite", UNIFORM, {"activation_memory": "least", "gradient_accumulation_steps": 1}, 10.8),
        ("DeepSeek-V2-Lite", UNIFORM, {"activation_memory": "least", "cutoff_len": 1024}, 9.5),
        ("DeepSeek-V2-Lite", UNIFORM, {}, 54.8),
        ("DeepSeek-V2-Lite", UNIFORM, {"activation_memory": "least", "lora_target": "all"}, 13.8),
        ("DeepSeek-V2-Lite", MIXED, {}, 52.8),
        ("DeepSeek-V2-Lite", MIXED, {"activation_memory": "least"}, 10.6),
        ("DeepSeek-V2-Lite", MIXED, {"lora_target": "all"}, 56.6),
        ("DeepSeek-V2-Lite", MIXED, {"torch_compile": "off"}, 10.8),
        ("DeepSeek-V2-Lite", MIXED, {"max_gpu_memory": 16}, 14.8),
        ("DeepSeek-V2-Lite", MIXED, {"max_gpu_memory": 24}, 22.6),
        ("DeepSeek-V2-Lite", MIXED, {"max_gpu_memory": 40}, 38.0),
        ("DeepSeek-MoE-16B", MIXED, {"lora_target": "q_proj,v_proj", "lora_rank": 8}, 53.3),
        ("Qwen3-8B", MIXED, {"lora_target": "q_proj,k_proj,v_proj,o_proj"}, 35.6),
    ],
)
def test_peaks_that_were_measured(model, rows, values, measured):
    found = estimate(model, rows, **({"lora_target": V2_ATTENTION, "torch_compile": "on"} | values))
    assert found.allocated / GIB == pytest.approx(measured, rel=0.05)
    assert found.total == sum(found.parts.values()) > found.allocated


MEASURED = [json.loads(line) for line in (ROOT / "tests" / "measured_peaks.jsonl").read_text("utf-8").splitlines()]


def of_measured(one: dict):
    """The estimate of a run of `benchmarks/memory_estimates.py`, whose peak was measured on an H100."""
    asked = validated({"model_name_or_path": "m"} | one["options"])
    uniform = asked.dataset == "long"
    rows = Rows(48 if uniform else 160, 0, asked.cutoff_len, "counted", uniform)
    sizes = read_sizes(bundled.configs()[one["model"]] | one["changes"]).sizes
    assert sizes is not None
    return TrainingMemory(Anatomy(sizes), asked, rows, Gpu(79.1 * GIB)).estimate()


@pytest.mark.parametrize("one", MEASURED, ids=[one["name"] for one in MEASURED])
def test_tensors_of_short_runs_within_a_tenth(one):
    assert of_measured(one).allocated / GIB == pytest.approx(one["peak"], rel=0.1)


def test_half_of_the_short_runs_within_four_percent():
    tensors = [abs(of_measured(one).allocated / GIB / one["peak"] - 1) for one in MEASURED]
    in_all = [abs(of_measured(one).total / GIB / one["held"] - 1) for one in MEASURED]
    assert len(MEASURED) >= 24
    assert statistics.median(tensors) <= 0.04 and statistics.median(in_all) <= 0.04


def test_the_plan_keeps_as_many_layers_as_the_trainer_did():
    kept = [
        estimate("DeepSeek-V2-Lite", lora_target=V2_ATTENTION, torch_compile="on", max_gpu_memory=limit).facts
        for limit in (12, 16, 24, 80)
    ]
    assert [(one["kept_layers"], one["unpacked_layers"]) for one in kept] == [(1, 0), (4, 0), (19, 0), (27, 26)]
    assert [one["on_host"] for one in kept] == [True, False, False, False]


@pytest.mark.parametrize("size", [12, 16, 24, 40, 48])
def test_what_is_kept_leaves_room_on_the_card(size):
    found = estimate("DeepSeek-V2-Lite", memory=card_memory(size), lora_target=V2_ATTENTION, torch_compile="on")
    assert found.facts["lacking"] == 0 and found.total <= card_memory(size)


def test_plan_by_hand():
    need = Need(step=2 * GIB, stored=3 * GIB, kept=GIB)
    assert plan(need, 8 * GIB, 12 * GIB, 4, [], least=False).on_host  # 12 - 0.48 - 10 is less than 3
    chosen = plan(need, 8 * GIB, 16 * GIB, 4, [GIB], least=False)  # 2.36 left, a layer that keeps takes nothing more
    assert (chosen.kept_layers, chosen.unpacked_layers) == (4, 1)
    assert plan(need, 8 * GIB, 80 * GIB, 4, [GIB], least=True).on_host
    assert lacking(need, 8 * GIB, 80 * GIB) == 0
    assert lacking(need, 8 * GIB, 10 * GIB) == pytest.approx((2.4 - 2 + 0.4 + 0.0) / 2.4, abs=0.01)
    assert worth_compiling(1.9e6, 27, 2048) and not worth_compiling(1.7e6, 27, 2048)


def test_less_of_anything_never_takes_more():
    base = {"lora_target": "all", "torch_compile": "off"}
    whole = estimate("Qwen3-8B", **base).total
    for smaller in (
        {"cutoff_len": 1024}, {"per_device_train_batch_size": 1}, {"lora_rank": 8}, {"optim": "adamw_8bit"},
        {"lora_target": "q_proj"},
    ):  # fmt: skip
        assert estimate("Qwen3-8B", **(base | smaller)).total < whole, smaller
    for larger in ({"quantization_bit": None}, {"quantization_bit": 8}, {"disable_gradient_checkpointing": True}):
        assert estimate("Qwen3-8B", **(base | larger)).total > whole, larger


def test_smaller_micro_batches_where_memory_is_short():
    facts = estimate("Qwen3-8B", memory=8 * GIB, torch_compile="off").facts
    assert facts["wanted_tokens"] == 8064 and facts["tokens"] == 4096  # no row is cut


def test_an_evaluation_has_all_logits():
    found = estimate("Qwen3-8B", eval_strategy="steps", val_size=8, per_device_eval_batch_size=8, torch_compile="off")
    assert found.phase == "evaluation" and found.parts["logits"] == int(8 * 4020 * 151936 * constants.EVALUATED)
    assert found.total > estimate("Qwen3-8B", torch_compile="off").total


def test_several_cards_share_the_layers():
    one = estimate("Qwen3-8B", device_map="auto")
    two = TrainingMemory(anatomy("Qwen3-8B"), config(device_map="auto"), MIXED, Gpu(24 * GIB, 2)).estimate()
    fullest = max(part.bytes for part in split(Loaded(anatomy("Qwen3-8B"), Form(4)), 2))
    whole = one.parts["weights"] + one.parts["constants"]
    assert two.parts["weights"] + two.parts["constants"] == fullest
    assert whole / 2 < fullest < 0.6 * whole
    assert any("the one that takes most" in str(note) for note in two.notes)


def test_a_run_takes_one_of_several_cards_unless_it_is_spread(tmp_path):
    workspace, two = Workspace(tmp_path).create(), Device("Card", card_memory(8), True, 2)
    asked = config(model_name_or_path="Qwen/Qwen3-8B", quantization_bit=8, torch_compile="off")
    alone = outlook(asked, workspace, two)
    spread = outlook(asked.model_copy(update={"device_map": "auto"}), workspace, two)
    assert (alone.device.count, spread.device.count) == (1, 2)
    assert 0.5 < spread.estimate.parts["weights"] / alone.estimate.parts["weights"] < 0.6
    assert {"device_map": "auto"} in [change.options for change in alone.changes]


def test_a_run_on_the_host_is_in_32_bits():
    found = HostMemory(anatomy("Llama-3-8B"), config(quantization_bit=None), MIXED).estimate()
    assert found.parts["weights"] == 4 * anatomy("Llama-3-8B").total
    assert found.parts["context"] == constants.HOST_BASE


# ---- chat


def test_chat_counts_one_whole_context_as_the_engine_plans_it():
    model = anatomy("Llama-3-8B")
    found = chat_memory(model, EngineConfig(model_name_or_path="m"), 80 * GIB, True)
    assert found.parts["cache"] == GIB  # 8,192 tokens of 128 KiB
    assert found.parts["weights"] == 2 * model.total
    assert found.facts["planned_tokens"] == planned_tokens(
        80 * GIB - 2 * model.total - constants.CONTEXT - constants.LIBRARIES, 131072, 8192, 64, True
    )
    small = chat_memory(model, EngineConfig(model_name_or_path="m"), 16 * GIB, True)
    assert small.facts["held_tokens"] < 8192 and "There is room for a cache of" in str(small.notes[0])


def test_parts_of_two_gpus_as_transformers_gives_them_out():
    # six layers of DeepSeek-V2, 16 bits: 2 bytes each of embedding and head, a dense layer, five with experts
    six = Anatomy(read_sizes(bundled.configs()["DeepSeek-V2"] | {"num_hidden_layers": 6}).sizes)
    loaded = Loaded(six, Form(0))
    ends = 2 * 102400 * 5120
    dense, mixture = (2 * layer.count for layer in six.layers)
    total = 2 * six.total
    room = total // 2 + 1.25 * mixture - mixture  # of the first, which keeps room for a layer free
    assert ends + dense + 2 * mixture < room < ends + dense + 3 * mixture
    assert [(part.bytes, part.layers) for part in split(loaded, 2)] == [
        (ends + dense + 2 * mixture, 3),
        (3 * mixture + 2 * 5120 + ends, 3),
    ]
    assert sum(part.bytes for part in split(loaded, 5)) == total and sum(p.layers for p in split(loaded, 5)) == 6


def test_chat_on_two_gpus_counts_the_fuller_one():
    model = anatomy("Llama-3-8B")
    asked = EngineConfig(model_name_or_path="m", devices="0,1")
    one, two = (
        chat_memory(model, config, 16 * GIB, True) for config in (asked.model_copy(update={"devices": "0"}), asked)
    )
    assert one.parts["weights"] == 2 * model.total and one.facts["held_tokens"] < 8192
    fuller = max(split(Loaded(model, Form(0)), 2), key=lambda part: part.bytes)
    assert two.parts["weights"] == fuller.bytes < 0.55 * one.parts["weights"]
    assert two.parts["cache"] == 8192 * 131072 * fuller.layers // 32 and two.facts["held_tokens"] == 8192
    assert two.total < 16 * GIB < one.total


def test_planned_tokens_by_hand():
    assert planned_tokens(10 * GIB, 1 << 20, 100_000, 64, True) == 8192  # 0.8 x 10 GiB at 1 MiB
    assert planned_tokens(10 * GIB, 1 << 20, 4096, 64, False) == 4096  # one context, within half of the memory
    assert planned_tokens(10 * GIB, 1 << 20, 10, 2, True) == 20  # all that the rows could use
    assert planned_tokens(0, 1 << 20, 10, 2, True) == 16  # one page


# ---- weights in host memory

V2_ATTENTION_236B = "q_a_proj,q_b_proj,kv_a_proj_with_mqa,kv_b_proj,o_proj"
LARGE = {"lora_target": V2_ATTENTION_236B, "per_device_train_batch_size": 1}


def test_what_streams_of_the_236b_model_by_hand():
    model = anatomy("DeepSeek-V2")
    found = streamed(Loaded(model, Form(4)))
    experts = 160 * 3 * 1536 * 5120
    shared = 3 * 2 * 1536 * 5120
    attention = 5120 * 1536 + 1536 * 128 * 192 + 5120 * 576 + 512 * 128 * 256 + 128 * 128 * 5120
    count = experts + shared + attention
    layer = count / 2 + count / 64 * (1 + 4 / 256)
    assert found.slots == pytest.approx(3 * layer, rel=1e-4)
    assert found.host == pytest.approx(59 * layer + (count - experts - shared + 3 * 12288 * 5120) * 0.516, rel=1e-3)
    table = 102400 * 5120
    assert found.stays == pytest.approx(2 * (2 * table + 59 * 160 * 5120), rel=2e-3)  # both embeddings and the routers
    assert not any(streams(w) for layer in model.layers for w in layer.weights if w.component in ("norm", "router"))


@pytest.mark.parametrize(
    ("name", "size", "values", "expected"),
    [
        ("DeepSeek-V2", 24, LARGE, True),
        ("DeepSeek-V2", 24, LARGE | {"weights_on": "card"}, False),
        ("DeepSeek-V2", 24, LARGE | {"use_dora": True}, False),  # reads the weights
        ("DeepSeek-V2", 8, LARGE, False),  # does not fit either way
        ("DeepSeek-V2", 141, LARGE, False),  # all of it fits
        ("Llama-3-8B", 80, {"weights_on": "host"}, True),
        ("Llama-3-8B", 24, {}, False),
        ("Llama-3-8B", 8, {}, True),
        ("Llama-3-8B", 8, {"quantization_bit": None}, False),  # 4 bits are the better way then
        ("Llama-3-8B", 80, {"max_gpu_memory": 7}, True),
    ],
)
def test_auto_takes_host_memory_where_the_weights_do_not_fit(name, size, values, expected):
    where = placement(anatomy(name), config(**values), MIXED, Gpu(card_memory(size)))
    assert where == ("host" if expected else "card")


@pytest.mark.parametrize(
    ("name", "size", "count", "values", "expected"),
    [
        ("DeepSeek-V2", 80, 8, LARGE, "shared"),
        ("DeepSeek-V2", 48, 8, LARGE, "shared"),
        ("DeepSeek-V2", 24, 2, LARGE, "card"),  # half of it does not fit either
        ("DeepSeek-V2", 80, 8, LARGE | {"use_asft_loss": True}, "card"),
        ("DeepSeek-V2", 141, 2, LARGE, "card"),  # all of it fits
        ("Llama-3-8B", 80, 2, {"weights_on": "shared"}, "shared"),
    ],
)
def test_several_devices_share_weights_that_do_not_fit_one(name, size, count, values, expected):
    assert placement(anatomy(name), config(**values), MIXED, Gpu(card_memory(size), processes=count)) == expected


def test_what_a_device_keeps_of_shared_weights():
    """DeepSeek-V2 in NF4 with double quantization over eight cards, by hand: an eighth of its layers' matrices, of
    embeddings and head, and two whole layers. Embeddings and head are whole on each where something trains them."""
    sizes = anatomy("DeepSeek-V2").sizes
    d, heads, experts = 5120, 128, 160
    attention = d * 1536 + 1536 * heads * 192 + d * (512 + 64) + 512 * heads * 256 + heads * 128 * d
    expert = 3 * d * 1536
    layer = attention + (experts + 2) * expert
    first = attention + 3 * d * 12288
    bits = 4 + 8 / 64 + 32 / (64 * 256)
    divided, slots = (59 * layer + first) * bits / 8, 2 * layer * bits / 8
    ends = 2 * sizes.vocabulary * d * 2
    values, gpu = LARGE | {"weights_on": "shared"}, Gpu(card_memory(80), processes=8)
    for more, here in (({}, ends / 8), ({"additional_target": "lm_head"}, ends)):
        static = TrainingMemory(anatomy("DeepSeek-V2"), config(**values, **more), MIXED, gpu).static
        assert static["weights"] == pytest.approx(divided / 8 + slots + here, rel=0.02)


@pytest.mark.parametrize(
    ("values", "measured"),
    [
        ({"activation_memory": "least", "per_device_train_batch_size": 1, "torch_compile": "off"}, 5.72),
        ({"torch_compile": "on"}, 23.12),
    ],
    ids=["least", "defaults"],
)
def test_peaks_of_two_cards_that_share_weights(values, measured):
    """V2-Lite's shape on two H100s, `benchmarks/several_gpus.py`."""
    asked = config(lora_target=V2_ATTENTION, weights_on="shared", **values)
    found = TrainingMemory(anatomy("DeepSeek-V2-Lite"), asked, MIXED, Gpu(card_memory(80), processes=2)).estimate()
    assert found.allocated / GIB == pytest.approx(measured, rel=0.05)


def test_a_large_tied_embedding_stays_whole_where_weights_are_shared():
    """Qwen3-8B's layers with one table: slots of its size, and a half of it, would take more than the table."""
    tied = Anatomy(read_sizes(bundled.configs()["Qwen3-8B"] | {"tie_word_embeddings": True}).sizes)
    asked = config(lora_target="q_proj,v_proj", weights_on="shared")
    static = TrainingMemory(tied, asked, MIXED, Gpu(card_memory(24), processes=2)).static
    bits = 4 + 8 / 64 + 32 / (64 * 256)
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 12288
    assert static["weights"] == pytest.approx((36 / 2 + 2) * layer * bits / 8 + 151936 * 4096 * 2, rel=0.02)


def test_a_step_with_weights_from_host_memory():
    here, there = (estimate("DeepSeek-V2-Lite", weights_on=place) for place in ("card", "host"))
    assert there.facts["host_bytes"] > 7 * GIB and there.parts["weights"] < 2 * GIB < here.parts["weights"]
    assert not (there.facts["compiled"] or there.facts["recorded"])
    assert there.facts["tokens"] > 3 * here.facts["tokens"]  # as many of a step's rows at once as there is room for
    small = estimate("DeepSeek-V2-Lite", memory=card_memory(12), weights_on="host")
    assert small.total <= card_memory(12) and small.facts["tokens"] < there.facts["tokens"]
    uniform = estimate("DeepSeek-V2-Lite", UNIFORM, weights_on="host", gradient_accumulation_steps=2)
    assert uniform.facts["joined"] and uniform.facts["tokens"] == 4 * 4096
    assert any("stay in host memory" in str(note) for note in there.notes)


def test_time_of_a_step_that_waits_for_its_weights(tmp_path):
    workspace = Workspace(tmp_path).create()
    asked = config(model_name_or_path="deepseek-ai/DeepSeek-V2-Chat", **LARGE)
    unknown = outlook(asked, workspace, Device("24 GB", card_memory(24), True))
    facts = unknown.estimate.facts
    assert unknown.fits_here and unknown.fits[24] and not unknown.fits[8]
    assert unknown.duration.rate == pytest.approx(facts["tokens"] * 25e9 / (2 * facts["host_bytes"]))
    assert unknown.duration.link == 25e9 and unknown.duration.seconds > 0
    text = time_lines(unknown, "en")[0]
    assert "25 GB/s" in text and "25 GB/s" in time_lines(unknown, "zh")[0]
    short = outlook(asked.model_copy(update={"gradient_accumulation_steps": 1}), workspace, H100)
    assert short.duration.link and short.duration.rate < unknown.duration.rate


def test_a_host_without_room_is_one_sentence(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path).create()
    asked = config(model_name_or_path="deepseek-ai/DeepSeek-V2-Chat", **LARGE)
    card = Device("24 GB", card_memory(24), True)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"total": 64 * GIB, "available": 60 * GIB}))
    with pytest.raises(UserError) as caught:
        check_start(asked, workspace, outlook(asked, workspace, card))
    assert caught.value.message.code == "host_memory_small"
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"total": 999 * GIB, "available": 1}))
    monkeypatch.setattr("workbench.models.cost.device.Path.read_text", lambda self: "max")
    assert check_start(asked, workspace, outlook(asked, workspace, card)) == []


def test_chat_with_weights_in_host_memory():
    model, asked = anatomy("DeepSeek-V2"), EngineConfig(model_name_or_path="m", quantization_bit=4)
    found = chat_memory(model, asked, card_memory(24), True)
    assert found.facts["weights_on"] == "host" and found.total - found.parts["cache"] <= card_memory(24)
    assert "weights_on" not in chat_memory(model, asked, card_memory(141), True).facts
    card = asked.model_copy(update={"weights_on": "card"})
    assert chat_memory(model, card, card_memory(24), True).total > 100 * GIB
    whole = asked.model_copy(update={"quantization_bit": None})
    assert "weights_on" not in chat_memory(anatomy("Llama-3-8B"), whole, card_memory(12), True).facts
    forced = whole.model_copy(update={"weights_on": "host"})
    assert chat_memory(anatomy("Llama-3-8B"), forced, card_memory(12), True).total < card_memory(12)


# ---- what saves most


def test_changes_are_the_three_that_save_most():
    model = anatomy("Llama-3-8B")
    asked = config(quantization_bit=None, lora_target="all", lora_rank=64, torch_compile="off")

    def of(changed):
        return TrainingMemory(model, changed, MIXED, Gpu(24 * GIB)).estimate()

    found = changes.best(asked, model, of(asked), of, 12 * GIB, 1)
    assert len(found) == 3 and found[0].options == {"quantization_bit": 4}
    assert [one.saving for one in found] == sorted((one.saving for one in found), reverse=True)
    assert all(one.saving >= 50 * MIB for one in found)
    assert found[0].saving == of(asked).total - of(asked.model_copy(update={"quantization_bit": 4})).total


def test_a_smaller_batch_keeps_the_rows_of_a_step():
    options = changes.candidates(
        config(per_device_train_batch_size=3, gradient_accumulation_steps=4), anatomy("OLMoE-1B-7B")
    )
    assert {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 12} in options


# ---- time


def test_time_from_operations_and_from_earlier_runs():
    model, asked = anatomy("Llama-3-8B"), config(max_steps=-1, num_train_epochs=2)
    rows = Rows(160, 160_000, 1500, "counted")
    facts = {"compiled": True, "on_host": True}
    one = time.duration(model, asked, rows, H100, facts, (0.0, 0.0, 0))
    assert (one.steps, one.epochs, one.tokens, one.bound) == (20, 2, 320_000, False)
    flops = 2 * (model.multiplied) + 4 * 32 * 128 * 750 * 32
    assert one.rate == pytest.approx(989e12 * one.reached / (3 * flops), rel=0.01)
    known = time.duration(model, asked, rows, H100, facts, (5000.0, 600.0, 3))
    assert (known.seconds, known.measured) == (64.0, 3)
    assert known.kilowatt_hours == pytest.approx(600 * 64 / 3.6e6)
    unknown = time.duration(model, asked, rows, Device("Voodoo", GIB, True), facts, (0.0, 0.0, 0))
    assert unknown.rate == 0 and unknown.seconds == 0


@pytest.mark.parametrize(
    ("model", "values", "measured"),
    [
        ("DeepSeek-V2-Lite", {}, 31_300),
        ("DeepSeek-V2-Lite", {"activation_memory": "least"}, 22_700),
        ("DeepSeek-V2-Lite", {"lora_target": "all"}, 23_500),
        ("DeepSeek-V2-Lite", {"torch_compile": "off"}, 14_600),
        ("DeepSeek-MoE-16B", {"lora_target": "q_proj,v_proj"}, 31_300),
        ("Qwen3-8B", {"lora_target": "q_proj,k_proj,v_proj,o_proj"}, 14_900),
    ],
)
def test_assumed_speed_of_runs_that_were_measured(model, values, measured):
    """docs/performance.md, on one H100. What is assumed is one share of the peak for each kind of step."""
    asked = config(**({"lora_target": V2_ATTENTION, "torch_compile": "on"} | values))
    facts = TrainingMemory(anatomy(model), asked, MIXED, Gpu(79.2 * GIB)).estimate().facts
    found = time.duration(anatomy(model), asked, MIXED, H100, facts, (0.0, 0.0, 0))
    assert found.rate == pytest.approx(measured, rel=0.4)


# ---- rows


def test_rows_by_their_bytes_and_by_an_earlier_run(tmp_path):
    workspace = Workspace(tmp_path / "w").create()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset_info.json").write_text(
        json.dumps({"a": {"file_name": "a.jsonl"}, "b": {"file_name": "b.json"}, "c": {"file_name": "c.parquet"}})
    )
    (folder / "a.jsonl").write_text('{"instruction": "x", "output": "12345"}\n\n' * 3)
    (folder / "b.json").write_text(json.dumps([{"instruction": "x", "output": "1"}] * 2))
    (folder / "c.parquet").write_bytes(b"PAR1")
    line = len('{"instruction": "x", "output": "12345"}')
    asked = config(dataset="a", dataset_dir=str(folder))
    found = rows_of(asked, workspace)
    assert (found.count, found.longest, found.source) == (3, line + 64, "bytes")
    assert rows_of(config(dataset="a", dataset_dir=str(folder), cutoff_len=10), workspace).tokens == 30
    assert rows_of(config(dataset="b", dataset_dir=str(folder)), workspace).count == 2
    assert rows_of(config(dataset="c", dataset_dir=str(folder)), workspace) == Rows()
    assert rows_of(config(dataset="nosuch", dataset_dir=str(folder)), workspace) == Rows()
    run = create_run(workspace, asked, state="finished")
    write_atomically(run.path / "data.json", json.dumps({"a": {"kept": 3, "tokens": 60, "longest": 25}}))
    assert rows_of(asked, workspace) == Rows(3, 60, 25, "counted")
    assert rows_of(config(dataset="a", dataset_dir=str(folder), cutoff_len=99), workspace).source == "bytes"
    write_atomically(run.path / "data.json", "[1")
    assert rows_of(asked, workspace).source == "bytes"


# ---- the history


def entry(run: str, ratio: float, **values) -> history.Measured:
    base = {"model": "m (1)", "device": "H100", "bits": 4, "estimate": 10.0, "measured": 10 * ratio, "way": "compiled"}
    return history.Measured(run, **(base | values))


def test_a_run_is_measured_by_its_fullest_device():
    split = {"peak_memory": 20.1, "peak_memory_0": 9.6, "peak_memory_1": 10.5}  # one process, one model on both
    assert record.fullest(split) == 10.5
    assert record.fullest({"peak_memory": 7.5}) == 7.5 and record.fullest({"loss": 1.0}) == 0.0
    assert record.fullest({"peak_memory": 7.5, "peak_memory_0": None}) == 7.5


def test_the_history_corrects_and_can_be_forgotten(tmp_path):
    workspace = Workspace(tmp_path).create()
    assert history.read(workspace) == [] and history.correction([], "m (1)", "H100") == (1.0, 0)
    for number, ratio in enumerate((1.2, 1.0, 1.1)):
        history.add(workspace, entry(f"r{number}", ratio, rate=100.0 * (number + 1)))
    history.add(workspace, entry("r0", 1.3))  # the run went on
    history.add(workspace, entry("other", 9.0, device="A100"))
    kept = history.read(workspace)
    assert history.correction(kept, "m (1)", "H100") == (pytest.approx(1.1), 3)
    assert history.correction(kept, "m (1)", "A100") == (2.0, 1)  # bounded
    assert history.speed(kept, "m (1)", "H100", 4, "compiled")[0] == 250.0
    assert history.speed(kept, "m (1)", "H100", 8, "compiled") == (0.0, 0.0, 0)
    assert history.forget(workspace) == 4 and history.read(workspace) == []


@pytest.mark.parametrize("text", ["", "[]", '{"runs": 1}', '{"runs": [1, {"run": 2}, {"x": "y"}]}', "{" * 2000])
def test_a_history_that_is_none_corrects_nothing(tmp_path, text):
    workspace = Workspace(tmp_path).create()
    history.path_of(workspace).write_text(text)
    assert history.read(workspace) == []


# ---- bad input, and what is told before a run is queued


def outlook_of(tmp_path, values: dict, **options):
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return outlook(config(model_name_or_path=str(folder), **options), Workspace(tmp_path / "w").create(), H100)


SMALL = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def test_grpo_counts_answers_and_their_cache(tmp_path):
    """By hand: 2 layers, 2 key and value heads of 16, 2 bytes each; questions of at most 100 tokens, answers of 28."""
    given = {
        "stage": "grpo",
        "reward_funcs": "length",
        "num_generations": 4,
        "max_completion_length": 28,
        "cutoff_len": 100,
    }
    given |= {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "quantization_bit": None,
        "max_steps": 5,
    }
    found = outlook_of(tmp_path, SMALL, **given)
    assert found.estimate is not None and found.estimate.facts["tokens"] == 4 * (100 + 28)
    assert found.estimate.facts["phases"]["answers"] == 8 * (100 + 28) * 2 * 2 * 2 * 16 * 2
    assert not found.estimate.facts["compiled"] and not found.estimate.facts["joined"]
    assert [note.code for note in found.notes].count("cost_grpo") == 1
    assert found.duration is not None and (found.duration.steps, found.duration.rate) == (5, 0.0)
    assert found.duration.tokens == 5 * 8 * 128
    many = outlook_of(tmp_path, SMALL, **given | {"per_device_train_batch_size": 64, "num_generations": 64,
                                                  "disable_gradient_checkpointing": False})  # fmt: skip
    assert many.estimate is not None and many.total > found.total
    for more in ({"reward_funcs": "model", "reward_model": "r"}, {"grpo_beta": 0.1, "finetuning_type": "full"}):
        twice = outlook_of(tmp_path, SMALL, **given | more)
        once = outlook_of(
            tmp_path, SMALL, **given | more | {"reward_funcs": "length", "reward_model": None, "grpo_beta": 0}
        )
        assert twice.estimate is not None and once.estimate is not None
        assert twice.estimate.parts["weights"] == 2 * once.estimate.parts["weights"]


def test_asft_keeps_a_second_model_only_of_whole_weights(tmp_path):
    given = {"quantization_bit": None, "use_asft_loss": True}
    whole, dft = (
        outlook_of(
            tmp_path, SMALL, finetuning_type="full", quantization_bit=None, use_asft_loss=asft, use_dft_loss=not asft
        )
        for asft in (True, False)
    )
    assert whole.estimate and dft.estimate
    assert whole.estimate.parts["weights"] == 2 * dft.estimate.parts["weights"]
    lora = outlook_of(tmp_path, SMALL, **given)
    assert lora.estimate and lora.estimate.parts["weights"] == dft.estimate.parts["weights"]


def test_a_run_that_only_predicts_is_a_loaded_model(tmp_path):
    found = outlook_of(tmp_path, SMALL, do_train=False, do_predict=True)
    engine = EngineConfig(model_name_or_path="m", quantization_bit=4)
    asked = chat_memory(Anatomy(read_sizes(SMALL).sizes), engine, H100.memory, True)  # type: ignore[arg-type]
    assert found.estimate is not None and found.estimate.phase == "chat" and found.duration is None
    assert found.estimate.parts == asked.parts and "optimizer" not in asked.parts
    assert found.notes[0].code == "cost_predicts" and found.device is H100
    assert any("only predicts" in line for line in view.details(found, "en"))


@pytest.mark.parametrize(
    ("changes_", "words"),
    [
        ({"model_type": None}, "no model_type"),
        ({"model_type": "martian"}, "The architecture martian is not known"),
        ({"hidden_size": -4}, "hidden_size is -4"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers"),
    ],
)
def test_a_config_that_does_not_tell_gives_a_sentence_and_no_number(tmp_path, changes_, words):
    found = outlook_of(tmp_path, {k: v for k, v in (SMALL | changes_).items() if v is not None})
    assert found.estimate is None and found.total == 0 and found.fits == {} and found.duration is None
    assert words in " ".join(map(str, found.problems))
    assert check_start(config(), Workspace(tmp_path / "w"), found) == []


def test_of_an_unknown_architecture_the_weights_are_the_least(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\0" * 5000)
    found = outlook_of(tmp_path, {"model_type": "martian"})
    assert found.estimate is None and found.known_bytes == 5000


def test_a_model_that_is_nowhere(tmp_path):
    found = outlook(config(model_name_or_path="nobody/nothing"), Workspace(tmp_path).create(), H100)
    assert found.estimate is None and "is not on this machine" in str(found.problems[0])
    known = outlook(config(model_name_or_path="meta-llama/Llama-3.1-8B-Instruct"), Workspace(tmp_path), H100)
    assert known.estimate is not None and "8,030,261,248" in known.model


def test_a_wrong_target_is_refused_before_the_run(tmp_path):
    found = outlook_of(tmp_path, SMALL, lora_target="q_proj,query_key_value")
    with pytest.raises(UserError, match=r"query_key_value matches no module of this model.*It has: .*q_proj"):
        check_start(config(lora_target="q_proj,query_key_value"), Workspace(tmp_path / "w"), found)


def test_what_cannot_fit_is_refused_and_what_may_not_is_a_warning(tmp_path):
    workspace = Workspace(tmp_path).create()
    asked = config(model_name_or_path="Qwen/Qwen3-8B", quantization_bit=None)
    with pytest.raises(UserError, match=r"its weights alone take 15\.3 GiB, 12 GB has 11\.8 GiB"):
        check_start(asked, workspace, outlook(asked, workspace, Device("12 GB", card_memory(12), True)))
    tight = Device("16 GB", card_memory(16), True)
    (warning,) = check_start(asked, workspace, outlook(asked, workspace, tight))
    assert "It may run out of memory" in str(warning)
    assert check_start(asked, workspace, outlook(asked, workspace, H100)) == []


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path).create()
    asked = config(model_name_or_path="Qwen/Qwen3-8B", lora_target="all", save_steps=1)
    one = 12 * 16 * 36 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 12288))  # weights and two moments
    expected = outlook(asked, workspace, H100)
    for free, words in ((1.5 * one, "too little for this run"), (4 * one, None), (40 * one, "")):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: type("Use", (), {"free": int(free)}))
        if words:
            with pytest.raises(UserError, match=words):
                check_start(asked, workspace, expected)
        else:
            found = check_start(asked, workspace, expected)
            assert [("20 checkpoints" in str(line)) for line in found] == ([True] if words is None else [])


def test_presets_that_fit_come_first_and_one_is_recommended(tmp_path):
    workspace = Workspace(tmp_path).create()
    found = for_machine(workspace, Device("12 GB", card_memory(12), True))
    assert [recommended for _, _, recommended in found].count(True) == 1 and found[0][2]
    fits = [result.fits_here for _, result, _ in found if result and result.estimate]
    assert fits == sorted(fits, reverse=True) and not fits[-1]
    assert {preset.name for preset, _, _ in found} >= {"smollm2-demo", "deepseek-v2-qlora"}


def test_the_command_line(tmp_path):
    def run(*arguments) -> subprocess.CompletedProcess:
        command = [
            sys.executable,
            "-m",
            "workbench",
            "--lang",
            "en",
            "estimate",
            *arguments,
            "--workspace",
            str(tmp_path),
        ]
        return subprocess.run(command, capture_output=True, text=True)

    told = run("qwen3-8b-qlora", "--gpu", "8", "--set", "quantization_bit=8", "--set", "torch_compile=off")
    assert told.returncode == 0 and "It does not fit here" in told.stdout and "8 GB ✗" in told.stdout
    assert "--set quantization_bit=4" in told.stdout
    values = json.loads(run("qwen3-8b-qlora", "--gpu", "24", "--json").stdout)
    assert values["fits"]["24"] is True and values["total"] == sum(values["parts"].values())
    eight = ("deepseek-v2-qlora", "--gpu", "80", "--set", "device_map=none", "--set", "devices=0,1,2,3,4,5,6,7")
    assert "divided among the devices" in run(*eight).stdout
    assert run("nosuch").returncode == 2
    history.add(Workspace(tmp_path).create(), entry("r", 1.0))
    assert "1 measurements are forgotten" in run("--forget").stdout


def test_several_processes_never_have_weights_on_the_host(tmp_path):
    """Over several hosts `devices` says nothing of how many there are."""
    from workbench.models.cost.device import Device
    from workbench.train.estimates.outlook import outlook

    workspace = Workspace(tmp_path).create()
    values = {"model_name_or_path": "deepseek-ai/DeepSeek-V2-Chat", "dataset": "d", "quantization_bit": 4}
    asked = validated(values | {"lora_target": "o_proj", "cutoff_len": 512, "per_device_train_batch_size": 1})
    card = Device("card", card_memory(80), True)
    places = [outlook(asked, workspace, card, processes=count).estimate.facts.get("weights_on") for count in (1, 8)]
    assert places == ["host", "shared"]
