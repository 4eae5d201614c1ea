"""Rows laid end to end: the same losses, gradients and weights as padded rows, in float32 to rounding."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.models.test_experts import MODELS, SMALL, relative
from workbench.config.run_config import validated
from workbench.data.training_set import load_data
from workbench.models.attention import NAME, bounded_attention, bounds_arguments, no_masks, use_bounds
from workbench.runs.run import create_run
from workbench.train import trainer as trainer_module
from workbench.train.fast.rows import IGNORE, Conversation, RowBatch, chosen_shapes, conversations, exact_shapes
from workbench.train.fast.strategy import PlainStep, RowStep
from workbench.train.trainer import build_trainer

LENGTHS = [7, 90, 24, 150, 33, 12, 61, 5, 44, 18, 120, 9]


def conversation(length: int, share: float = 0.0) -> Conversation:
    return Conversation(np.arange(length) + 1, np.full(length, 3), share)


# ---- cutting


@pytest.mark.parametrize("seed", range(5))
def test_every_conversation_is_in_one_micro_batch_and_whole(seed):
    generator = random.Random(seed)
    lengths = [min(4000, max(24, int(generator.lognormvariate(5.9, 0.9)))) for _ in range(400)]
    shapes = chosen_shapes(lengths, per_step=16, budget=8192, overhead=1400)
    assert 2 <= len(shapes.sizes) <= 6 and shapes.sizes[-1] == 8192 and max(lengths) <= shapes.longest <= 4096
    real = padded = 0
    for at in range(0, 400, 16):
        step = lengths[at : at + 16]
        cut = shapes.cut(step)
        assert sorted(place for _, places in cut for place in places) == list(range(len(step)))
        for size, places in cut:
            assert size in shapes.sizes and sum(step[place] for place in places) <= size
            assert len(places) <= shapes.most
        real, padded = real + sum(step), padded + sum(size for size, _ in cut)
    assert padded < 1.15 * real


def test_rows_of_equal_length_need_no_padding():
    shapes = chosen_shapes([4096] * 50, per_step=2, budget=8192, overhead=1400)
    assert shapes.sizes == (8192,) and shapes.cut([4096, 4096]) == [(8192, [0, 1])]


def test_a_single_row_and_a_row_longer_than_the_budget():
    shapes = chosen_shapes([300, 20], per_step=1, budget=100, overhead=0)
    assert shapes.sizes[-1] == 384 and shapes.cut([300]) == [(384, [0])]
    assert shapes.cut([20])[0][0] <= 384
    with pytest.raises(ValueError, match="A row of 500 tokens is longer than the budget of 384 tokens"):
        shapes.cut([500])
    assert exact_shapes([5], 3).cut([5]) == [(5, [0])]


def test_many_short_rows_do_not_outgrow_the_bounds():
    shapes = chosen_shapes([1] * 50 + [400], per_step=200, budget=512, overhead=0)
    for size, places in shapes.cut([1] * 150):
        made = shapes.joined([conversation(1) for _ in places], size)
        assert made["bounds"].shape == (shapes.slots + 1,) and made["bounds"][-1] == size


def test_a_micro_batch_counts_positions_anew_and_pads_behind():
    shapes = chosen_shapes([200, 30], per_step=4, budget=512, overhead=0)
    size = shapes.sizes[-1]
    made = shapes.joined([conversation(30, 0.25), conversation(200, 0.75)], size)
    shape = (1, size)
    assert made["input_ids"].shape == made["labels"].shape == made["position_ids"].shape == shape
    assert made["bounds"][:3].tolist() == [0, 30, 230] and made["bounds"].diff().max() <= shapes.longest
    assert made["position_ids"][0, [0, 29, 30, 229, 230]].tolist() == [0, 29, 0, 199, 0]
    assert (made["labels"][0, 230:] == IGNORE).all() and (made["segments"][230:] == shapes.most).all()
    assert made["shares"].sum() == 1 and made["segments"][229] == 1


def test_shares_are_those_of_padded_batches():
    rows = [{"input_ids": [1] * n, "labels": [2] * n} for n in (4, 5, 6)]
    packed = {"input_ids": [1] * 9, "labels": [2] * 9, "seq_lengths": [4, 5]}
    found = conversations([RowBatch(rows[:2]), RowBatch(rows[2:])])
    assert [part.share for part in found] == [0.25, 0.25, 0.5]
    batch = RowBatch([packed])
    assert [len(part) for part in batch.parts] == [4, 5] and batch.trained == 7 and batch.tokens == 9


# ---- attention

KINDS = MODELS | {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"head_dim": 16, "num_key_value_heads": 2},
    "glm": {"head_dim": 16, "num_key_value_heads": 2},
    "glm4": {"head_dim": 16, "num_key_value_heads": 2},
    "mistral": {"sliding_window": 6, "head_dim": 16},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_sees_only_itself(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SMALL | KINDS[kind]))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    rows = [torch.randint(1, 300, (1, n)) for n in (9, 1, 14)]
    alone = torch.cat([model(row, use_cache=False).logits for row in rows], 1)
    assert use_bounds(model) == "" and model.config._attn_implementation == NAME
    bounds = torch.tensor([0, 9, 10, 24, 24], dtype=torch.int32)
    places = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    with no_masks():
        together = model(
            torch.cat(rows, 1), position_ids=places, use_cache=False, **bounds_arguments(bounds, 14)
        ).logits
    assert relative(together, alone) < 1e-5
    again = torch.cat([model(row, use_cache=False).logits for row in rows], 1)
    assert torch.equal(again, alone)  # without bounds it is as before
    padded = torch.nn.functional.pad(rows[0], (3, 0))
    mask = torch.tensor([[0] * 3 + [1] * 9])
    assert relative(model(padded, attention_mask=mask).logits[:, 3:], alone[:, :9]) < 1e-4
    assert "workbench" not in json.dumps(model.config.to_dict())


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("groups, wide", [(4, 8), (2, 8), (4, 6)])
def test_the_operator_has_the_gradients_of_plain_attention(window, groups, wide):
    torch.manual_seed(0)
    inputs = [torch.randn(20, heads, d, requires_grad=True) for heads, d in ((4, 8), (groups, 8), (groups, wide))]
    bounds, grad = torch.tensor([0, 7, 8, 20, 20], dtype=torch.int32), torch.randn(20, 4, wide)
    number = torch.repeat_interleave(torch.arange(4), bounds.diff())
    distance = torch.arange(20)[:, None] - torch.arange(20)
    seen = (number[:, None] == number) & (distance >= 0) & (distance < (window or 20))
    q, k, v = (x.transpose(0, 1) for x in inputs)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=0.3, enable_gqa=True).transpose(0, 1)
    out, _ = bounded_attention(*inputs, bounds, 12, 0.3, window)
    assert relative(out, plain) < 1e-5
    for ours, theirs in zip(
        torch.autograd.grad(out, inputs, grad), torch.autograd.grad(plain, inputs, grad), strict=True
    ):
        assert relative(ours, theirs) < 1e-5


def test_models_without_such_attention_say_why():
    def reason(kind, **values):
        config = AutoConfig.for_model(kind, **(SMALL | values))
        implementation = values.pop("attn_implementation", None)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
        before = model.config._attn_implementation
        found = use_bounds(model)
        assert model.config._attn_implementation == before
        return found

    assert "eager" in reason("llama", attn_implementation="eager")
    assert "eager" in reason("gemma2", head_dim=16)
    assert reason("llama", attention_dropout=0.1) == "its attention has dropout"
    linear = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 16}
    linear |= {"linear_value_head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 4}
    assert "linear_attention" in reason("qwen3_next", **linear, head_dim=16)


def test_a_model_that_mixes_tokens_beside_its_attention_is_refused():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL))
    model.model.layers[0].register_forward_hook(lambda module, args, out: out + 0.5 * out.roll(1, 1))
    assert use_bounds(model) == "its layers hand something on from one conversation to the next"
    assert model.config._attn_implementation == "sdpa"


def test_attention_with_sinks_or_soft_caps_is_refused():
    from workbench.models.attention import bounded_attention_forward

    x = torch.randn(1, 2, 4, 8)
    bounds = torch.tensor([0, 4], dtype=torch.int32)
    for name, value in (("s_aux", torch.zeros(2)), ("softcap", 30.0)):
        with pytest.raises(ValueError, match="its attention has s"):
            bounded_attention_forward(None, x, x, x, None, cu_seq_lens_q=bounds, max_length_q=4, **{name: value})


# ---- training


def trained(folder, workspace, tmp_path, joined: bool, monkeypatch, **values):
    """`(losses and gradient norms of the steps, weights, evaluation loss, balance losses)` of a run on the CPU."""
    from peft import LoraConfig, get_peft_model

    rows = [{"prompt": f"Q{i}", "completion": chr(97 + i) * n} for i, n in enumerate(LENGTHS)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = validated(
        {
            "model_name_or_path": str(folder), "dataset": "rows", "eval_dataset": "rows", "dataset_dir": str(tmp_path),
            "cutoff_len": 200, "report_to": "none", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4,
            "logging_steps": 1, "learning_rate": 1e-3, "save_strategy": "no", "eval_strategy": "no", "plot_loss": False,
            "num_train_epochs": 15.0, "lr_scheduler_type": "constant", "disable_gradient_checkpointing": False,
        }
        | values
    )  # fmt: skip
    quiet = {"progress": lambda phase, share: None, "log": lambda words: None}
    train_rows, eval_rows = load_data(config, workspace, tokenizer, **quiet)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    targets = ["q_proj", "o_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    if not joined:
        monkeypatch.setattr(trainer_module, "why_padded", lambda *_: "the test wants it")
    run = create_run(workspace, config)
    stop = SimpleNamespace(requested=False)
    trainer = build_trainer(run, config, model, tokenizer, train_rows, eval_rows, torch.float32, stop)
    assert isinstance(trainer.step_strategy, RowStep if joined else PlainStep)
    assert isinstance(trainer.step_strategy, RowStep) == joined
    trainer.train()
    log = [row for row in trainer.state.log_history if "loss" in row]
    weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    return (
        torch.tensor([[row["loss"], row["grad_norm"]] for row in log]),
        weights,
        trainer.evaluate()["eval_loss"],
        torch.tensor([row.get("aux_loss", 0.0) for row in log]),
        trainer._total_train_tokens,
    )


CASES = {
    "llama": ("tiny_model", {}),
    "llama, packed": ("tiny_model", {"packing": True, "per_device_train_batch_size": 1, "num_train_epochs": 20.0}),
    "llama, one row a batch": ("tiny_model", {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 30}),
    "mixture": ("tiny_moe", {}),
    "mixture, balanced": ("tiny_moe", {"moe_aux_loss_coef": 0.5, "num_train_epochs": 6.0}),
    "mixture, balanced and packed": ("tiny_moe", {"moe_aux_loss_coef": 0.5, "packing": True, "gradient_accumulation_steps": 2,
                                                  "num_train_epochs": 6.0}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_steps_equal_those_of_padded_rows(case, request, workspace, tmp_path, monkeypatch):
    """12 rows in steps of 8: every second step is incomplete."""
    fixture, values = CASES[case]
    folder = request.getfixturevalue(fixture)
    ours = trained(folder, workspace, tmp_path, True, monkeypatch, **values)
    plain = trained(folder, workspace, tmp_path, False, monkeypatch, **values)
    assert len(ours[0]) == len(plain[0]) >= 12
    assert torch.allclose(ours[0], plain[0], rtol=2e-4), (ours[0] - plain[0]).abs().max()
    assert relative(ours[1], plain[1]) < 1e-4
    assert ours[2] == pytest.approx(plain[2], rel=1e-4)
    assert torch.allclose(ours[3], plain[3], rtol=1e-3) and (ours[3].abs().sum() > 0) == ("balanced" in case)
    assert ours[4] == plain[4]


def test_a_micro_batch_without_trained_tokens(workspace, tmp_path, tiny_model, monkeypatch):
    seen = []

    def step(self, trainer, inputs, count):
        blank = inputs | {"labels": torch.full_like(inputs["labels"], IGNORE)}
        seen.append(float(original(self, trainer, blank, count)))
        return original(self, trainer, inputs, count)

    original = RowStep.step
    plain = trained(tiny_model, workspace, tmp_path, True, monkeypatch, max_steps=3)
    monkeypatch.setattr(RowStep, "step", step)
    ours = trained(tiny_model, workspace, tmp_path, True, monkeypatch, max_steps=3)
    assert seen and set(seen) == {0.0} and relative(ours[1], plain[1]) < 1e-6


def test_a_step_is_shared_out_by_tokens():
    import random

    from workbench.train.fast.rows import Conversation, shared_out

    def made(*lengths):
        return [Conversation(np.arange(n), np.full(n, 1), 1.0) for n in lengths]

    step = made(7, 1, 9, 3, 8, 2)
    first, second = shared_out(step, 2)
    # 9 | 8, then 7 to the 8, and 3, 2, 1 to the 9: 15 tokens each
    assert [len(part) for part in first] == [1, 9, 3, 2] and [len(part) for part in second] == [7, 8]
    pairs = [[len(part) for part in own] for own in shared_out(step, 2, together=2)]
    assert pairs == [[9, 3], [7, 1, 8, 2]]  # 12 | 10, then 8 to the 10
    assert [len(own) for own in shared_out(made(5), 3)] == [1, 0, 0]
    generator = random.Random(1)
    step = made(*(generator.randint(20, 2000) for _ in range(32)))
    loads = [sum(map(len, own)) for own in shared_out(step, 4)]
    assert sum(loads) == sum(map(len, step)) and max(loads) < 1.05 * min(loads)
