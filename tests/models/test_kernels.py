"""The Triton kernels in Triton's interpreter, which needs no GPU, against plain torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]

# a process of its own: the interpreter is chosen when triton is imported
PROGRAM = """
import sys
import bitsandbytes.functional as bnb
import torch
from torch.nn import functional as F
from workbench.models.quantized import experts, kernels
from workbench.train.fast.cross_entropy import cross_entropy_

torch.manual_seed(0)

def close(ours, theirs, tolerance=1e-6):
    assert ours.dtype is theirs.dtype and ours.shape == theirs.shape, (ours.dtype, theirs.dtype)
    error = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-9)
    assert error <= tolerance, error

def unpacking():
    for nested in (True, False):
        for shape in ((4, 48, 64), (3, 64), (1, 192)):
            packed, state = bnb.quantize_4bit(torch.randn(shape) * 0.1, quant_type="nf4", compress_statistics=nested)
            whole = bnb.dequantize_4bit(packed, state)
            close(kernels.dequantize(packed, state, torch.float32), whole)
            if shape == (4, 48, 64):
                for half, theirs in enumerate((whole[:, :24], whole[:, 24:])):
                    close(kernels.dequantize(packed, state, torch.float32, half), theirs)

def routing():
    for tokens, k, count in ((7, 3, 8), (100, 6, 64), (33, 2, 300), (1, 1, 5)):
        index = torch.stack([torch.randperm(count)[:k] for _ in range(tokens)])
        x = torch.randn(tokens, 48)
        theirs, ours = experts.route(index, count), kernels.route(index.reshape(-1), count)
        for a, b in zip(ours, theirs):
            assert a.dtype is b.dtype and torch.equal(a, b)
        source, back, ends = ours
        rows = kernels.spread(x, back, k)
        assert torch.equal(rows, x[source.long() // k])
        close(kernels.combine(rows, back, k), experts.combine(rows, back, k))
        more = torch.randn_like(rows)
        close(kernels.combine(rows, back, k, more), experts.combine(rows + more, back, k))

def gating():
    for in_place in (True, False):
        tokens, k, width = 7, 3, 20
        source = torch.randperm(tokens * k).to(torch.int32)
        gate_up, weight, grad = torch.randn(21, 2 * width), torch.rand(21), torch.randn(21, width)
        for gates, ups in (gate_up.chunk(2, dim=1), (gate_up[:, :width].clone(), gate_up[:, width:].clone())):
            close(kernels.gate(gates, ups, weight, source), experts.gate(gates, ups, weight, source))
            theirs = torch.empty_like(gates), torch.empty_like(ups)
            of_weight = experts.gate_backward(gates, ups, weight, source, grad, theirs)
            before = gates.clone(), ups.clone()
            out = (gates, ups) if in_place else torch.empty_like(gate_up).chunk(2, dim=1)
            if gates.is_contiguous() and not in_place:
                out = torch.empty_like(gates), torch.empty_like(ups)
            close(kernels.gate_backward(gates, ups, weight, source, grad, out), of_weight, 1e-5)
            assert torch.equal(gates, before[0]) is torch.equal(ups, before[1]) is not in_place
            for a, b in zip(out, theirs):
                close(a, b, 1e-5)
            gates.copy_(before[0]), ups.copy_(before[1])

def loss():
    for cap in (0.0, 3.0):
        for vocabulary in (300, 9000):
            logits, targets = torch.randn(5, vocabulary) * 3, torch.tensor([3, -100, vocabulary - 1, 0, 7])
            theirs, ours = logits.clone(), logits.clone()
            close(kernels.cross_entropy_(ours, targets, 0.7, cap), cross_entropy_(theirs, targets, 0.7, cap), 1e-5)
            close(ours, theirs, 1e-5)

def around_few_rows():
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import apply_rotary_emb
    from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
    from workbench.models.fused import kernels as fused
    from workbench.models.quantized import few_rows_kernels as few

    x, a = torch.randn(3, 1100), torch.randn(5, 1100)
    close(few.low_rank(x, a), x @ a.t())
    keys, a = torch.tensor([2, 0, 1, 2, 1, 0]), torch.randn(3, 4, 1100)
    want = torch.einsum("pk,prk->pr", x.repeat_interleave(2, 0), a[keys])
    close(few.low_of_pairs(x, a, keys, 2), want)
    close(few.low_of_pairs(x, a, keys, 2, 1.7), 1.7 * want)
    norm = LlamaRMSNorm(80)
    norm.weight.data.normal_()
    x = torch.randn(3, 5, 80)
    close(fused.rms_norm(x, norm.weight, norm.variance_epsilon), norm(x).detach())
    q, k = torch.randn(3, 4, 20)[:, :, None], torch.randn(3, 40)[:, None, None, 6:26]  # with strides of their own
    angles = torch.randn(3, 1, 20)
    cos, sin = angles.cos(), angles.sin()
    for ours, theirs in zip((q, k), apply_rotary_pos_emb(q, k, cos, sin)):
        close(fused.rotate_halves(ours, cos, sin), theirs)
    factors = torch.polar(torch.ones(3, 1, 10), torch.randn(3, 1, 10))
    for ours, theirs in zip((q, k), apply_rotary_emb(q, k, factors)):
        close(fused.rotate_pairs(ours, factors), theirs)

{"around_few_rows": around_few_rows, "unpacking": unpacking, "routing": routing, "gating": gating, "loss": loss}[sys.argv[1]]()
"""


@pytest.mark.parametrize("what", ["unpacking", "routing", "gating", "loss", "around_few_rows"])
def test_kernels_equal_plain_torch(what):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
