"""The pieces of a training step at DeepSeek-V2-Lite's shape, each timed alone and checked, on one NVIDIA GPU.

    python benchmarks/moe_kernels.py [--tokens 8192]

Times are medians in milliseconds; GB/s count every byte read and written once. Errors are relative to float32.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

H, I, E, K, V = 2048, 1408, 64, 6, 102400


def main() -> None:
    import bitsandbytes.functional as bnb
    from triton.testing import do_bench

    from workbench.models.quantized import experts, kernels
    from workbench.models.quantized.weights import register

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    tokens = parser.parse_args().tokens
    torch.manual_seed(0)
    cuda, bf16 = "cuda", torch.bfloat16

    def show(name, run, gigabytes=0.0, teraflops=0.0):
        ms = do_bench(run, warmup=20, rep=80, return_mode="median")
        rate = (
            f"{gigabytes / ms * 1e3:8.0f} GB/s"
            if gigabytes
            else f"{teraflops / ms * 1e3:8.0f} TFLOP/s"
            if teraflops
            else ""
        )
        print(f"{name:44s} {ms:8.3f} ms {rate}", flush=True)

    def error(ours, theirs):
        return f"{((ours.float() - theirs.float()).norm() / theirs.float().norm()).item():.1e}"

    def normal(*shape):
        return torch.randn(*shape, device=cuda, dtype=bf16)

    class Module(torch.nn.Module):
        pass

    module = Module()
    module.num_experts, module.plain_silu = E, True
    for name, shape in (("gate_up_proj", (E, 2 * I, H)), ("down_proj", (E, H, I))):
        data, state = bnb.quantize_4bit(normal(*shape) * 0.02, quant_type="nf4", compress_statistics=True)
        parameter = torch.nn.Parameter(data, requires_grad=False)
        parameter.__class__ = __import__("bitsandbytes").nn.Params4bit
        parameter.quant_state = state
        module._parameters[name] = parameter
        theirs, ours = bnb.dequantize_4bit(data, state), kernels.dequantize(data, state, bf16)
        print(
            f"unpack {name}: {(ours != theirs).float().mean().item():.1e} of the weights differ, error"
            f" {error(ours, theirs)}"
        )
        size = theirs.numel() * 2.5156e-9
        show(f"unpack {name}, bitsandbytes", lambda d=data, s=state: bnb.dequantize_4bit(d, s), size)
        show(f"unpack {name}", lambda d=data, s=state: kernels.dequantize(d, s, bf16), size)
    register(module)

    x, grad = normal(tokens, H), normal(tokens, H)
    scores = torch.rand(tokens, E, device=cuda).softmax(-1)
    weight, index = scores.topk(K, dim=-1)
    source, back, ends = experts.route(index, E)
    rows, flat = kernels.spread(x, back, K), weight.reshape(-1)
    show("route", lambda: experts.route(index, E))
    show("spread", lambda: kernels.spread(x, back, K), (rows.numel() + x.numel()) * 2e-9)
    assert torch.equal(rows, x[source.long() // K])
    up, down = (kernels.dequantize(p.data, p.quant_state, bf16) for p in module._parameters.values())
    flops = 2e-12 * rows.shape[0] * H * I
    gate_up = experts.grouped(rows, up.transpose(1, 2), ends)
    show("grouped, gate_up", lambda: experts.grouped(rows, up.transpose(1, 2), ends), teraflops=2 * flops)
    show("grouped, gate_up, way back", lambda: experts.grouped(gate_up, up, ends), teraflops=2 * flops)
    halves, into = gate_up.chunk(2, dim=-1), torch.empty_like(gate_up).chunk(2, dim=-1)
    gated = kernels.gate(*halves, flat, source)
    show("gate", lambda: kernels.gate(*halves, flat, source), gate_up.numel() * 3e-9)
    show("gate, way back", lambda: kernels.gate_backward(*halves, flat, source, gated, into), gate_up.numel() * 5e-9)
    show("grouped, down", lambda: experts.grouped(gated, down.transpose(1, 2), ends), teraflops=flops)
    show("grouped, down, way back", lambda: experts.grouped(rows, down, ends), teraflops=flops)
    show("combine", lambda: kernels.combine(rows, back, K), (rows.numel() + x.numel()) * 2e-9)
    a, b = normal(E, 16, H), normal(E, 2 * I, 16)
    low = experts.grouped(rows, a.transpose(1, 2), ends)
    show("LoRA, rows A", lambda: experts.grouped(rows, a.transpose(1, 2), ends), rows.numel() * 2e-9)
    show("LoRA, low B", lambda: experts.grouped(low, b.transpose(1, 2), ends), gate_up.numel() * 2e-9)
    show("LoRA, gradient of A", lambda: experts.grouped_outer(low, rows, ends), rows.numel() * 2e-9)
    show("LoRA, gradient of B", lambda: experts.grouped_outer(gate_up, low, ends), gate_up.numel() * 2e-9)
    try:
        half = experts.torch.nn.functional.grouped_mm(rows.half(), up.half().transpose(1, 2), offs=ends)
        print("grouped_mm in fp16: error", error(half, gate_up))
    except RuntimeError as problem:
        print("grouped_mm in fp16:", str(problem)[:120])
    module.packed_sizes = [2 * I, H]
    adapters = [a, b * 0.01, normal(E, 16, I), normal(E, H, 16) * 0.01]
    for name, lora, module.in_halves in (
        ("experts", [], False),
        ("experts in halves", [], True),
        ("experts with LoRA", adapters, False),
    ):
        pair = (lora[:2], lora[2:])
        out, kept = experts.experts_kept(x, weight, source, back, ends, *pair, module.packed_handle, 2 * I)

        def run(k, pair=pair):
            return experts.experts_backward(grad, x, weight, source, back, ends, *pair, k, module.packed_handle)

        none = kept.new_empty(0)
        show(
            f"{name}, forward",
            lambda pair=pair: experts.experts(x, weight, source, back, ends, *pair, module.packed_handle),
        )
        show(f"{name}, backward", lambda run=run, none=none: run(none))
        show(f"{name}, backward with gate_up kept", lambda run=run, kept=kept: run(kept))
        theirs = reference(x, weight, index, up, down, lora, grad)
        print(f"{name}: errors", *[error(o, t) for o, t in zip([out, *run(none)], theirs, strict=True)])
        print(f"{name}: errors with gate_up kept", *[error(o, t) for o, t in zip(run(kept), theirs[1:], strict=True)])

    measure_head(show, error, x)

    batch, length = max(1, tokens // 4096), min(tokens, 4096)
    q, k = (normal(batch, length, 16, 192).transpose(1, 2).requires_grad_() for _ in range(2))
    v = normal(batch, length, 16, 128).transpose(1, 2).requires_grad_()
    flops = 2e-12 * batch * 16 * length * length * (192 + 128) / 2
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for backend in (None, SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        chosen = sdpa_kernel(backend) if backend else torch.enable_grad()
        try:
            with chosen:
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                g = torch.randn_like(out)
                show(
                    f"attention, {backend}",
                    lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
                    teraflops=flops,
                )
                show(
                    "  way back",
                    lambda out=out, g=g: torch.autograd.grad(out, (q, k, v), g, retain_graph=True),
                    teraflops=2.5 * flops,
                )
        except RuntimeError as problem:
            print(f"attention, {backend}: {str(problem)[:100]}")
    host = torch.empty(32 << 20, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(host, device=cuda)
    show("32 MiB to the host", lambda: host.copy_(device, non_blocking=True), 32 * 2**20 / 1e9)
    show("32 MiB from the host", lambda: device.copy_(host, non_blocking=True), 32 * 2**20 / 1e9)


def measure_head(show, error, x) -> None:
    """The output head and the loss of 2,048 rows of x."""
    logits = torch.randn(2048, V, device=x.device, dtype=x.dtype)
    target = torch.randint(0, V, (2048,), device=x.device)
    theirs = F.cross_entropy(logits.float(), target, reduction="none")
    copy = logits.clone()
    from workbench.models.quantized import kernels

    print("cross-entropy: error", error(kernels.cross_entropy_(copy, target), theirs))
    show("cross-entropy of 2,048 rows", lambda: kernels.cross_entropy_(copy, target), logits.numel() * 6e-9)
    head = torch.randn(V, H, device=x.device, dtype=x.dtype)
    show("head, 2,048 rows", lambda: x[:2048] @ head.t(), teraflops=2e-12 * 2048 * H * V)
    show("head, 2,048 rows, way back", lambda: logits @ head, teraflops=2e-12 * 2048 * H * V)


def reference(x, weight, index, up, down, lora, grad):
    """The same in float32, one expert after another: output, gradients of x and weight, of A and B of both matrices."""
    x, weight = x.float().requires_grad_(), weight.detach().float().requires_grad_()
    lora = [part.float().requires_grad_() for part in lora]
    out = torch.zeros_like(x)
    for e in range(E):
        token, place = (index == e).nonzero(as_tuple=True)
        rows = x[token]
        gate_up = rows @ up[e].float().t()
        if lora:
            gate_up = gate_up + rows @ lora[0][e].t() @ lora[1][e].t()
        gate, above = gate_up.chunk(2, -1)
        act = F.silu(gate) * above * weight[token, place, None]
        done = act @ down[e].float().t()
        if lora:
            done = done + act @ lora[2][e].t() @ lora[3][e].t()
        out = out.index_add(0, token, done)
    out.backward(grad.float())
    return [out.detach(), x.grad, weight.grad, *[part.grad for part in lora]]


if __name__ == "__main__":
    main()
