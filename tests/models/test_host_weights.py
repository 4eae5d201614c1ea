"""Weights that stream from host memory: on the CPU everything must come out as with weights that stay."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.trained import losses, ready
from workbench.config.run_config import validated
from workbench.errors import UserError
from workbench.models.host_weights import Copies, host_weights_of, stream_weights, streamed_modules
from workbench.models.load import load_model

STEPS = 6
LLAMA = {"num_hidden_layers": 7, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
DEEPSEEK = {
    "num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 192, "moe_intermediate_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": None, "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3,
    "first_k_dense_replace": 1, "topk_method": "greedy", "norm_topk_prob": False,
}  # fmt: skip
ZERO = '{"zero_optimization": {"stage": 2}}'
KINDS = {"llama": LLAMA, "deepseek_v2": DEEPSEEK}


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    """Models of more layers than there are slots, by their kind."""
    made = {}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    special = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": 512}
    for kind, sizes in KINDS.items():
        made[kind] = folder = tmp_path_factory.mktemp("host") / kind
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **special, **sizes)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return made


def run_of(values, workspace, folder, **more):
    torch.manual_seed(0)
    options = {"model_name_or_path": str(folder), "max_steps": STEPS, "quantization_bit": 4, "lora_rank": 4}
    trainer, _, run = ready(values, workspace, **(options | {"lora_target": "all"} | more))
    return trainer, run


def trained(values, workspace, folder, **more):
    """`(losses of the steps, gradients' norms, adapters at the end, trainer)`."""
    trainer, _ = run_of(values, workspace, folder, **more)
    trainer.train()
    norms = torch.tensor([row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row])
    adapters = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    return losses(trainer), norms, adapters, trainer


def same(ours, theirs) -> bool:
    return torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1]) and all(
        torch.equal(ours[2][name], theirs[2][name]) for name in theirs[2]
    )  # fmt: skip


@pytest.mark.parametrize("checkpointing", [True, False], ids=["computed again", "kept"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_the_same_bit_for_bit(kind, checkpointing, values, workspace, folders):
    more = {"disable_gradient_checkpointing": not checkpointing}
    ours = trained(values, workspace, folders[kind], weights_on="host", **more)
    theirs = trained(values, workspace, folders[kind], weights_on="card", **more)
    made = host_weights_of(ours[3].model)
    assert same(ours, theirs) and len(ours[0]) == STEPS and ours[0][-1] < ours[0][0]
    assert made.slots == 3 < len(made.layers) and made.copied > STEPS * len(made.layers)
    if kind == "deepseek_v2":
        assert any("experts" in name for name in ours[2])


@pytest.mark.parametrize(
    "more",
    [
        {"finetuning_type": "oft", "oft_block_size": 8},
        {"moe_aux_loss_coef": 0.1},
        {"lora_dropout": 0.2},
        {"double_quantization": False},
        {"quantization_type": "fp4"},
        {"neftune_noise_alpha": 5.0},
        {"lora_target": "o_proj", "additional_target": "lm_head"},
    ],
    ids=lambda more: next(iter(more)),
)
def test_other_options_give_the_same(more, values, workspace, folders):
    more = {"disable_gradient_checkpointing": False, "max_steps": 3} | more
    ours = trained(values, workspace, folders["deepseek_v2"], weights_on="host", **more)
    theirs = trained(values, workspace, folders["deepseek_v2"], weights_on="card", **more)
    assert torch.allclose(ours[0], theirs[0], atol=1e-6) and torch.allclose(ours[1], theirs[1], rtol=1e-5)
    assert host_weights_of(ours[3].model) is not None and ours[0].diff().abs().min() > 0


class Late(Copies):
    """A device that copies no sooner than somebody waits for it."""

    def __init__(self):
        self.pending = {}

    def start(self, slot, target, source):
        target.fill_(0xFF)  # what lay there is gone
        self.pending[slot] = target, source

    def wait(self, slot):
        if slot in self.pending:
            target, source = self.pending.pop(slot)
            target.copy_(source)


@pytest.mark.parametrize("checkpointing", [True, False], ids=["computed again", "kept"])
def test_nothing_reads_a_slot_before_its_copy_was_waited_for(checkpointing, values, workspace, folders):
    more = {"disable_gradient_checkpointing": not checkpointing}
    theirs = trained(values, workspace, folders["deepseek_v2"], weights_on="card", **more)
    trainer, _ = run_of(values, workspace, folders["deepseek_v2"], weights_on="host", **more)
    made = host_weights_of(trainer.model)
    made.copies = Late()
    trainer.train()
    assert torch.equal(losses(trainer), theirs[0])


def test_copies_beside_the_computation_wait_for_it_and_it_for_them(values, workspace, folders, monkeypatch):
    """The calls of torch.cuda in their order, with stand-ins: there is no GPU here."""
    import contextlib

    from workbench.models import host_weights

    said = []

    class Event:
        def record(self, stream):
            said.append(("record", self, stream))

    class Stream:
        def __init__(self, device):
            pass

        def wait_event(self, event):
            said.append(("wait", event, self))

        def synchronize(self):
            pass

    computing = Stream(None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    copies = host_weights.CopiesBeside(torch.device("cpu"), 3)
    slot, source = torch.zeros(4), torch.ones(4)
    copies.start(1, slot, source)
    copies.wait(1)
    (asked, first, on), (waits, same_one, beside), (done, ready, there), (waited, last, back) = said
    assert (asked, on, waits, done, waited) == ("record", computing, "wait", "record", "wait")
    assert first is same_one and ready is last and beside is there is not computing and back is computing
    assert torch.equal(slot, source)
    trainer, _ = run_of(values, workspace, folders["llama"], weights_on="host")
    host_weights_of(trainer.model).copies = copies
    trainer.train()
    theirs = trained(values, workspace, folders["llama"], weights_on="card")
    assert torch.equal(losses(trainer), theirs[0])


def loaded(folder, workspace, place, bits=4):
    values = {"model_name_or_path": str(folder), "dataset": "d", "weights_on": place, "quantization_bit": bits}
    quiet = {"progress": lambda *_: None, "log": lambda line: None}
    return load_model(validated(values), workspace, dtype=torch.float32, split=False, **quiet)


@pytest.mark.parametrize("source", ["32 bits", "packed one by one elsewhere", "4 bits"])
def test_weights_are_the_same_wherever_they_come_from(source, workspace, folders, tmp_path, monkeypatch):
    from workbench.models import load
    from workbench.models.quantized import loader

    ids, theirs = torch.arange(5, 45)[None], loaded(folders["deepseek_v2"], workspace, "card")
    folder = folders["deepseek_v2"]
    if source == "4 bits":
        folder = tmp_path / "packed"
        theirs.save_pretrained(folder)
    if source.startswith("packed"):
        other, moved = torch.device("cpu"), []
        plain = loader._Quantize._packed
        monkeypatch.setattr(loader._Quantize, "_packed", lambda *a, **k: (moved.append(1), plain(*a, **k))[1])
        monkeypatch.setattr(load, "_packing", lambda options: loader.packing_on(other))
    ours = loaded(folder, workspace, "host")
    monkeypatch.undo()
    assert loader._packing_on is None and host_weights_of(ours) is not None and host_weights_of(theirs) is None
    assert not source.startswith("packed") or len(moved) > 6 * 5
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
        assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)  # once more from the bottom


@pytest.mark.parametrize("bits", [4, None])
@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_knows_what_streams(kind, bits, workspace, folders):
    from workbench.models.anatomy.shapes import Anatomy
    from workbench.models.anatomy.sizes import read_sizes
    from workbench.models.cost.placement import streamed
    from workbench.models.cost.weights import Form, Loaded

    model = loaded(folders[kind], workspace, "host", bits)
    made, sizes = host_weights_of(model), read_sizes(json.loads((folders[kind] / "config.json").read_text())).sizes
    expected = streamed(Loaded(Anatomy(sizes), Form(bits or 0, bytes=4)))
    there = streamed_modules(model)
    parts = {True: [], False: []}
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        scales = [state.absmax, state.state2.absmax] if state else []
        parts[name.rpartition(".")[0] in there].append(sum(t.nbytes for t in (parameter, *scales)))
    tables = len(parts[True]) * (16 * 4 + 256 * 4 + 4) if bits else 0  # of values, which stay
    assert expected.host - tables == pytest.approx(sum(parts[True]), rel=1e-3)
    assert expected.stays == pytest.approx(sum(parts[False]), rel=1e-3)
    assert sum(parts[True]) <= made.bytes <= sum(parts[True]) + len(parts[True]) * 3 * 512  # aligned
    assert expected.slots == pytest.approx(3 * max(expected.host / len(made.layers), made.slot_bytes), rel=0.25)


def test_layers_come_twice_for_a_micro_batch(values, workspace, folders):
    trainer, _ = run_of(values, workspace, folders["llama"], weights_on="host")
    made = host_weights_of(trainer.model)
    numbers = []
    plain = made._fetch
    made._fetch = lambda number: (numbers.append(number), plain(number))
    trainer.train()
    upwards, down = [3, 4, 5, 6], [3, 2, 1, 0]  # three of seven are there at each turn
    assert numbers[-8 * STEPS :] == (upwards + down) * STEPS and len(numbers) <= 8 * STEPS + 3


def test_slots_have_addresses_that_stay(values, workspace, folders):
    trainer, _ = run_of(values, workspace, folders["llama"], weights_on="host")
    streams = streamed_modules(trainer.model)
    assert any(name.endswith("mlp.down_proj.base_layer") for name in streams)

    def addresses():
        return {
            name: (module.weight.data_ptr(), module.weight.quant_state.absmax.data_ptr())
            for name, module in trainer.model.named_modules()
            if name in streams and hasattr(module.weight, "quant_state")
        }

    before = addresses()
    trainer.train()
    assert addresses() == before and len(before) == 7 * 7
    assert len({address for address, _ in before.values()}) == 3 * 7


def test_a_step_is_cut_into_as_few_micro_batches_as_its_rows_allow(values, workspace, folders):
    more = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2}
    ours = trained(values, workspace, folders["deepseek_v2"], weights_on="host", **more)
    theirs = trained(values, workspace, folders["deepseek_v2"], weights_on="card", **more)
    assert torch.allclose(ours[0], theirs[0], atol=1e-5) and torch.allclose(ours[1], theirs[1], rtol=1e-4)
    shapes = [one[3].step_strategy.shapes for one in (ours, theirs)]
    assert shapes[0].sizes[-1] == 3 * shapes[1].sizes[-1]
    layers = len(host_weights_of(ours[3].model).layers)
    assert host_weights_of(ours[3].model).copied <= STEPS * 2 * layers  # one micro-batch a step


def test_weights_in_16_bits_and_evaluation(values, workspace, folders):
    more = {"quantization_bit": None, "val_size": 4, "eval_strategy": "steps", "eval_steps": 3, "lora_target": "q_proj"}
    ours = trained(values, workspace, folders["deepseek_v2"], weights_on="host", **more)
    theirs = trained(values, workspace, folders["deepseek_v2"], weights_on="card", **more)
    # plain experts of transformers are not the same bit for bit from one run to the next either
    assert torch.allclose(ours[0], theirs[0], atol=2e-6) and torch.allclose(ours[1], theirs[1], rtol=1e-5)
    assert all(torch.allclose(ours[2][name], theirs[2][name], atol=1e-6) for name in theirs[2])
    evaluated = [[row["eval_loss"] for row in one[3].state.log_history if "eval_loss" in row] for one in (ours, theirs)]
    assert evaluated[0] == pytest.approx(evaluated[1], abs=2e-6) and len(evaluated[0]) == 2


def test_a_checkpoint_goes_on_as_if_it_had_never_stopped(values, workspace, folders):
    more = {"weights_on": "host", "save_strategy": "steps", "save_steps": 3}
    whole, run = run_of(values, workspace, folders["deepseek_v2"], **more)
    whole.train()
    again, _ = run_of(values, workspace, folders["deepseek_v2"], **more)
    again.train(resume_from_checkpoint=str(run.path / "checkpoint-3"))
    assert torch.equal(losses(again)[-3:], losses(whole)[-3:])
    adapters = [{n: p for n, p in t.model.named_parameters() if p.requires_grad} for t in (again, whole)]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[1])


def test_adapters_that_were_trained_so_load_anywhere(values, workspace, folders):
    from peft import PeftModel

    trainer, run = run_of(values, workspace, folders["llama"], weights_on="host", quantization_bit=None)
    trainer.train()
    trainer.save_model(str(run.path))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        ours = trainer.model.eval()(input_ids=ids).logits
        plain = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32)
        theirs = PeftModel.from_pretrained(plain, str(run.path)).eval()(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)


class Stored:
    """Keeps what it is given in copies, as the way to the host does."""

    def __init__(self):
        self.shapes, self.entered = [], 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor):
        self.shapes.append(tuple(tensor.shape))
        return tensor.clone()

    def __enter__(self):
        self.entered += 1
        self.hooks.__enter__()

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def begin(self):
        pass


def test_inputs_of_layers_go_where_they_are_stored(values, workspace, folders):
    """What the fast step of a GPU does for these weights, with copies in place of its way to the host."""
    from workbench.train.fast.compiled import store_layers

    more = {"disable_gradient_checkpointing": False}
    trainer, _ = run_of(values, workspace, folders["llama"], weights_on="host", **more)
    stored = Stored()
    store_layers(trainer.model, stored)
    store_layers(trainer.model, stored)  # once more changes nothing
    trainer.train()
    theirs = trained(values, workspace, folders["llama"], weights_on="card", **more)
    assert torch.equal(losses(trainer), theirs[0])
    assert stored.entered == len(stored.shapes) == 7 * STEPS
    assert {shape[-1] for shape in stored.shapes} == {64}  # a layer's input and nothing else


@pytest.mark.parametrize("room", [10**9, 1], ids=["a step at once", "host memory for one row"])
def test_the_fast_step_of_a_gpu_with_these_weights(room, values, workspace, folders, monkeypatch):
    """Its own code on the CPU, with stand-ins for what only a GPU has: the host's buffers, and waiting."""
    from workbench.train import trainer as trainer_module
    from workbench.train.fast import step as step_module

    made, stored, fast = [], Stored(), step_module.FastStep

    def in_place_of_rows(config, rows):
        made.append(fast(config, made.pop(), rows, STEPS, True, print))
        return made[-1]

    monkeypatch.setattr(step_module, "Offload", lambda device, parameters, active=True, exact=False: stored)
    monkeypatch.setattr(step_module, "free_host", lambda: step_module.LEFT_FREE + room)
    monkeypatch.setattr(step_module, "_moved", lambda inputs: inputs)
    monkeypatch.setattr(step_module, "shape_key", lambda *parts: "")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(trainer_module, "RowStep", in_place_of_rows)
    padded = trainer_module.why_padded
    monkeypatch.setattr(
        trainer_module, "why_padded", lambda config, causal: (made.append(causal), padded(config, causal))[1]
    )
    more = {"disable_gradient_checkpointing": False, "gradient_accumulation_steps": 2}
    trainer, _ = run_of(values, workspace, folders["deepseek_v2"], weights_on="host", **more)
    (strategy,) = made
    assert trainer.step_strategy is strategy and not (strategy.compiled or strategy.pads or strategy.replays)
    before = host_weights_of(trainer.model).copied
    trainer.train()
    layers = len(host_weights_of(trainer.model).layers)
    if room > 1:
        assert host_weights_of(trainer.model).copied - before <= (STEPS + 1) * 2 * layers  # one micro-batch a step
        assert len(stored.shapes) == (STEPS + 1) * layers  # the first is the made-up one
    else:
        assert len(stored.shapes) > (STEPS + 1) * layers
    monkeypatch.undo()
    theirs = trained(values, workspace, folders["deepseek_v2"], weights_on="card", **more)
    assert torch.allclose(losses(trainer), theirs[0], atol=1e-5)


# ---- chat


def answers(folder, workspace, **more):
    from workbench.config.options import EngineConfig
    from workbench.engine.batching.scheduler import backend_of
    from workbench.engine.transformers_backend import TransformersDecoder

    said = []
    options = {"model_name_or_path": str(folder), "template": "chatml", "devices": "cpu", "quantization_bit": 4}
    config = validated(options | more, EngineConfig)
    decoder = TransformersDecoder(config, workspace, lambda *_: None, said.append)
    return decoder.base, backend_of(decoder, said.append), said


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_same(kind, workspace, folders):
    from workbench.engine.backend import Job, Sampling

    found = []
    for place in ("card", "host"):
        model, backend, _ = answers(folders[kind], workspace, weights_on=place, cpu_weights="float32")
        jobs = [
            Job(None, [{"role": "user", "content": text}], Sampling(max_tokens=12, temperature=0.0, logprobs=2))
            for text in ("Who are you?", "Say something longer than that, please.")
        ]
        backend.call(lambda backend=backend, jobs=jobs: [backend.submit(job) for job in jobs])
        found.append([[(i.id, i.logprob) for token in job for i in token.infos] for job in jobs])
        assert not backend.capabilities.not_batched
        assert (host_weights_of(model) is not None) == (place == "host")
    for card, host in zip(*found, strict=True):  # llama's weights on the card take the lean pass
        assert [token for token, _ in card] == [token for token, _ in host] and len(card) > 3
        assert [value for _, value in host] == pytest.approx([value for _, value in card], abs=1e-5)


def test_weights_that_stream_are_not_packed_once_more(workspace, folders):
    *_, said = answers(folders["llama"], workspace, weights_on="host", quantization_bit=None)
    assert any("keep the form in which they were loaded" in line for line in said)


# ---- what is refused


@pytest.mark.parametrize(
    "more",
    [
        {"finetuning_type": "full", "quantization_bit": None},
        {"quantization_bit": 8},
        {"device_map": "auto"},
        {"use_dora": True},
        {"pissa_init": True, "quantization_bit": None},
        {"cuda_graphs": "on"},
        {"adapter_name_or_path": "a,b", "quantization_bit": None},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_does_not_go_with_it(more, values):
    from workbench.config.conflicts import conflicts

    config = validated(values | {"quantization_bit": 4} | more | {"weights_on": "card"})
    for place in ("host", "shared"):
        codes = [message.code for message in conflicts(config.model_copy(update={"weights_on": place}))]
        assert f"{place}_with" in codes and f"{place}_with" not in [message.code for message in conflicts(config)]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"stage": "grpo"}, "stage: grpo"),
        ({"use_asft_loss": True}, "use_asft_loss"),
        ({"streaming": True, "max_steps": 3}, "streaming"),
        ({"finetuning_type": "full", "quantization_bit": None, "deepspeed": ZERO}, "deepspeed"),
    ],
    ids=lambda one: str(one),
)
def test_what_is_not_divided_among_devices(more, what, values):
    from workbench.config.conflicts import conflicts

    config = validated(values | {"quantization_bit": 4} | more)
    told = conflicts(config.model_copy(update={"weights_on": "shared"}))
    assert [message.values["what"] for message in told if message.code == "shared_with"] == [what]
    if not config.deepspeed:
        on_host = config.model_copy(update={"weights_on": "host"})
        assert "host_with" not in [message.code for message in conflicts(on_host)]


def test_modules_that_stream_are_not_trained_as_a_whole(values, workspace, folders):
    for target in ("mlp", "layers.2", "o_proj"):
        with pytest.raises(UserError) as caught:
            run_of(values, workspace, folders["llama"], weights_on="host", additional_target=target)
        assert caught.value.message.code == "host_with"
    trainer, _ = run_of(values, workspace, folders["llama"], weights_on="host", additional_target="lm_head")
    assert any("lm_head" in name for name, p in trainer.model.named_parameters() if p.requires_grad)


def test_weights_that_layers_share_stay(folders):
    ids = torch.arange(5, 45)[None]
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32).eval()
    layers = model.model.layers
    layers[5].mlp.down_proj.weight = layers[1].mlp.down_proj.weight
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        made = stream_weights(model, torch.device("cpu"), slots=2)
        assert made.slots == 2 and torch.allclose(model(input_ids=ids).logits, expected, atol=1e-6)
    address = layers[1].mlp.down_proj.weight.data_ptr()
    assert layers[5].mlp.down_proj.weight.data_ptr() == address
    assert not any(0 <= address - memory.data_ptr() < memory.nbytes for memory in made._memory)


def test_a_model_without_known_layers():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(UserError) as caught:
        stream_weights(model, torch.device("cpu"))
    assert caught.value.message.code == "host_weights_no_layers"


def test_a_host_that_is_too_small_is_refused_before_anything_is_loaded(values, workspace, folders, monkeypatch):
    from workbench.models.cost import placement as cost
    from workbench.train.placement import placed

    config = validated(values | {"model_name_or_path": str(folders["llama"]), "weights_on": "host"})
    assert placed(config, workspace, print).weights_on == "host"
    monkeypatch.setattr(cost, "free_host", lambda: 1000)
    with pytest.raises(UserError) as caught:
        placed(config, workspace, print)
    assert caught.value.message.code == "host_memory_small"
    assert placed(config.model_copy(update={"weights_on": "auto"}), workspace, print).weights_on == "card"


def test_auto_takes_the_host_on_a_card_that_is_too_small(values, workspace, monkeypatch):
    """The decision of a run and of a chat, told of a card that this machine does not have."""
    from workbench.config.options import EngineConfig
    from workbench.models.cost import placement as cost
    from workbench.models.cost.device import Device
    from workbench.train import placement

    monkeypatch.setattr(placement, "_device", lambda devices: Device("A card", 23 << 30, True))
    options = {"model_name_or_path": "deepseek-ai/DeepSeek-V2-Chat", "quantization_bit": 4}
    config = validated(values | options | {"lora_target": "q_a_proj"})
    monkeypatch.setattr(cost, "free_host", lambda: 200 << 30)
    said = []
    assert placement.placed(config, workspace, said.append).weights_on == "host"
    assert "112.7 GiB" in said[0] and "A card" in said[0]
    assert placement.placed_chat(validated(options, EngineConfig), workspace, said.append).weights_on == "host"
    assert len(said) == 2
    small = config.model_copy(update={"model_name_or_path": "Qwen/Qwen3-8B", "lora_target": "q_proj"})
    assert placement.placed(small, workspace, said.append).weights_on == "card" and len(said) == 2
    monkeypatch.setattr(cost, "free_host", lambda: 118 << 30)  # enough when it is there, not while it is packed
    with pytest.raises(UserError) as caught:
        placement.placed(config, workspace, said.append)
    assert caught.value.message.code == "host_memory_small"


def test_an_estimate_that_fails_ends_no_run(values, workspace, monkeypatch):
    from workbench.models.cost.device import Device
    from workbench.train import placement

    def fails(*args, **kwargs):
        raise LookupError("no such field")

    monkeypatch.setattr(placement, "_device", lambda devices: Device("A card", 23 << 30, True))
    monkeypatch.setattr(placement, "outlook", fails)
    said = []
    assert (
        placement.placed(validated(values), workspace, said.append).weights_on == "card" and "no such field" in said[0]
    )


def test_several_processes_are_refused(values, workspace, monkeypatch):
    from workbench.train.placement import placed

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError) as caught:
        placed(validated(values | {"weights_on": "host"}), workspace, print)
    assert caught.value.message.code == "host_with"
    assert placed(validated(values), workspace, print).weights_on == "card"


# ---- stages on preferences and the rest


PAIRS = [
    {"prompt": [{"role": "user", "content": f"Question {i}?"}],
     "chosen": [{"role": "assistant", "content": f"yes {i}"}],
     "rejected": [{"role": "assistant", "content": f"no {i * i}"}]}
    for i in range(16)
]  # fmt: skip


@pytest.mark.parametrize("stage", ["pt", "dpo", "kto", "rm"])
def test_other_stages(stage, values, workspace, folders, tmp_path):
    from types import SimpleNamespace

    from workbench.data.training_set import load_data
    from workbench.models.load import load_tokenizer
    from workbench.models.reward import reward_model
    from workbench.models.tuning import tuned
    from workbench.runs.run import create_run
    from workbench.train.references import References
    from workbench.train.trainer import build_trainer

    if stage != "pt":
        (tmp_path / "pairs.json").write_text(json.dumps(PAIRS))
        info = json.loads((tmp_path / "dataset_info.json").read_text())
        info["pairs"] = {"file_name": "pairs.json", "ranking": True}
        (tmp_path / "dataset_info.json").write_text(json.dumps(info))
        values = values | {"dataset": "pairs"}
    found, quiet = [], {"progress": lambda *_: None, "log": lambda line: None}
    more = {"model_name_or_path": str(folders["deepseek_v2"]), "stage": stage, "quantization_bit": 4, "lora_rank": 4,
            "max_steps": 4, "disable_gradient_checkpointing": False}  # fmt: skip
    for place in ("card", "host"):
        config = validated(values | more | {"weights_on": place})
        tokenizer = load_tokenizer(config, workspace, lambda *_: None)
        rows, _ = load_data(config, workspace, tokenizer, lambda *_: None, log=lambda line: None)
        run = create_run(workspace, config)
        base = load_model(config, workspace, dtype=torch.float32, split=False, **quiet)
        torch.manual_seed(7)
        if stage == "rm":
            base = reward_model(base, 0)
        model = tuned(base, config, workspace, run.path, lambda line: None)
        references = None
        if config.needs_reference:
            references = References(config, workspace, torch.float32, quiet["progress"], quiet["log"])
            references._known = lambda file, rows: None  # each computes its own
        stop = SimpleNamespace(requested=False)
        trainer = build_trainer(run, config, model, tokenizer, rows, None, torch.float32, stop, references)
        assert (host_weights_of(trainer.model) is not None) == (place == "host")
        trainer.train()
        found.append(losses(trainer))
    assert torch.allclose(found[0], found[1], atol=1e-6) and len(found[0]) == 4 and found[0].diff().abs().min() > 0


@pytest.mark.parametrize("tied", [False, True])
def test_embedding_and_head_are_gathered_over_the_layers(tied):
    """As a process alone gathers them; two of them: `tests/process/test_ranks.py`."""
    import functools

    import torch.distributed as dist

    from workbench.models.shared_weights import SharedWeights, ends_of
    from workbench.train.fast.loss import sum_loss_in_forward

    config = AutoConfig.for_model("llama", vocab_size=300, tie_word_embeddings=tied, **LLAMA)
    ids = torch.randint(1, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found = []
        for shared in (False, True):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False)
            whole = model.get_input_embeddings().weight.data_ptr()
            if shared:
                kind = functools.partial(SharedWeights, ends=ends_of(model))
                made = stream_weights(model, torch.device("cpu"), kind=kind)
                ends = [end.weight.data_ptr() for end in ends_of(model)]
                assert len(set(ends)) == 1 and ends[0] == made._memory[0].data_ptr() != whole
            model.model.layers[0].input_layernorm.weight.requires_grad_(True)
            sum_loss_in_forward(model)
            loss = model(input_ids=ids, labels=ids, sum_loss=True).loss
            loss.backward()
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits
            found.append((loss.detach(), model.model.layers[0].input_layernorm.weight.grad, logits))
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
