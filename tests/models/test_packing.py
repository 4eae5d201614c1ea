"""Packed conversations do not see each other: the loss of a packed sequence is that of its rows on their own."""

import itertools
import json

import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from workbench.config.run_config import validated
from workbench.data.training_set import load_data


def _flash(q, k, v, causal, softmax_scale=None, **_):
    """What flash-attn's `flash_attn_func` computes, [batch, length, heads, dim]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, scale=softmax_scale, enable_gqa=True
    )
    return out.transpose(1, 2)


def _flash_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale=None):
    """What `flash_attn_varlen_func` computes, [tokens, heads, dim]: each sequence on its own."""
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    bounds = itertools.pairwise(cu_seqlens_q.tolist())
    return torch.cat([_flash(*(x[None, a:b] for x in (q, k, v)), causal, softmax_scale)[0] for a, b in bounds])


@pytest.fixture
def flash_attention(monkeypatch):
    """flash-attn's two functions in plain torch, where transformers looks for them: the package needs a GPU."""
    from transformers import modeling_flash_attention_utils as flash

    monkeypatch.setattr(
        flash, "_lazy_imports", lambda *_, **__: (_flash, _flash_varlen, None, flash._pad_input, flash._unpad_input)
    )
    monkeypatch.setattr(flash, "_loaded_implementation", None)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_moe"])
def test_the_loss_of_packed_rows_is_that_of_the_rows(
    fixture, attention, request, workspace, tokenizer, tmp_path, flash_attention
):
    from transformers import AutoModelForCausalLM

    # short ones, and one that is longer than cutoff_len: none is dropped
    rows = [{"prompt": f"Question {i}{'?' * (i % 7)}", "completion": f"Answer {i * i}"} for i in range(12)]
    rows.append({"prompt": "x" * 300, "completion": "Long."})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))
    folder = request.getfixturevalue(fixture)
    values = {"model_name_or_path": str(folder), "dataset": "rows", "dataset_dir": str(tmp_path), "cutoff_len": 160}
    quiet = {"progress": lambda phase, share: None, "log": lambda words: None}
    plain, _ = load_data(validated(values), workspace, tokenizer, **quiet)
    packed, _ = load_data(validated(values | {"packing": True}), workspace, tokenizer, **quiet)
    assert sum(len(row["seq_lengths"]) for row in packed) == len(plain) == 13 and len(packed) < 13
    assert sum(len(row["input_ids"]) for row in packed) == sum(len(row["input_ids"]) for row in plain)

    flash = attention.startswith("flash")  # transformers would refuse it without a GPU
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager" if flash else attention).eval()
    model.config._attn_implementation = attention

    def summed(rows, padding_free: bool) -> tuple[float, int]:
        collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free)
        total, count = 0.0, 0
        for row in rows:
            batch = collate([row])
            labels = batch.pop("labels")[:, 1:].flatten()
            if not flash:  # flash attention reads the bounds of the sequences, the others tell them from the positions
                batch = {k: v for k, v in batch.items() if k in ("input_ids", "position_ids")}
            with torch.no_grad():
                logits = model(**batch, use_cache=False).logits[:, :-1].flatten(0, 1)
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            count += int((labels != -100).sum())
        return total, count

    alone, together = summed(plain, False), summed(packed, True)
    assert alone[1] == together[1] > 100
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
