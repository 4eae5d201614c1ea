"""What FP8 products of the frozen weights could bring to 4-bit training, on one H100: the products alone.

python benchmarks/fp8_products.py [--tokens 8192]

Every product of a DeepSeek-V2-Lite layer with a frozen weight, forward, computed again, and on the way back, in
bfloat16 and in FP8 (e4m3; a scale for each row of the activations and each column of the weight). Counted with FP8 are
the passes that scale the activations. Weights are taken as unpacked to FP8 at no more than what unpacking to bfloat16
takes. Last line: what of a step would be saved at the most, and the largest error of a product.
"""

import argparse

import torch

LAYERS, EXPERTS, CHOSEN = 26, 64, 6
# (name, in, out, products a layer and step with `activation_memory: least`)
DENSE = [
    ("q_proj", 2048, 3072, 2), ("kv_a", 2048, 576, 2), ("kv_b", 512, 4096, 2), ("o_proj", 2048, 2048, 2),
    ("shared gate and up", 2048, 5632, 3), ("shared down", 2816, 2048, 2),
]  # fmt: skip
GROUPED = [
    ("gate_up, forward", 2048, 2816, 2),
    ("down, forward", 1408, 2048, 1),
    ("down, back", 2048, 1408, 1),
    ("gate_up, back", 2816, 2048, 1),
]
_LARGEST = 448.0


def milliseconds(work, times: int = 20) -> float:
    """The mean of `times` calls after three, back to back, so that the clock is that of a busy card."""
    for _ in range(3):
        work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / times


@torch.compile
def scaled(x):
    """Rows [n, k] in FP8 and their scales [n, 1]."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / _LARGEST
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    tokens = parser.parse_args().tokens
    torch.manual_seed(0)
    before = after = alone = worst = 0.0

    def count(name, times, plain, fp8, scaling, error):
        nonlocal before, after, alone, worst
        print(f"{name}: bf16 {plain:.3f} ms, FP8 {fp8:.3f} + scaling {scaling:.3f}; {times} a layer; error {error:.3f}")
        before += times * plain
        after += times * (fp8 + scaling)
        alone += times * fp8
        worst = max(worst, error)

    for name, k, n, times in DENSE:
        x = torch.randn(tokens, k, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02
        (x8, sx), (w8, sw) = scaled(x), scaled(w)

        def fp8(x8=x8, w8=w8, sx=sx, sw=sw):
            return torch._scaled_mm(
                x8, w8.t(), scale_a=sx, scale_b=sw.t(), out_dtype=torch.bfloat16, use_fast_accum=True
            )

        exact = x @ w.t()
        error = ((fp8() - exact).float().norm() / exact.float().norm()).item()
        plain_ms = milliseconds(lambda x=x, w=w: x @ w.t())
        count(name, times, plain_ms, milliseconds(fp8), milliseconds(lambda x=x: scaled(x)), error)
    rows = tokens * CHOSEN
    ends = torch.arange(1, EXPERTS + 1, device="cuda", dtype=torch.int32) * (rows // EXPERTS)
    for name, k, n, times in GROUPED:
        x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(EXPERTS, n, k, device="cuda", dtype=torch.bfloat16) * 0.02
        x8, sx = scaled(x)
        w8, sw = scaled(w.view(-1, k))
        w8, sw = w8.view(EXPERTS, n, k), sw.view(EXPERTS, n)

        def fp8(x8=x8, w8=w8, sx=sx, sw=sw):
            return torch._scaled_grouped_mm(
                x8, w8.transpose(1, 2), sx.view(-1), sw, offs=ends, out_dtype=torch.bfloat16, use_fast_accum=True
            )

        def plain(x=x, w=w):
            return torch._grouped_mm(x, w.transpose(1, 2), offs=ends)

        exact = plain()
        error = ((fp8() - exact).float().norm() / exact.float().norm()).item()
        count(name, times, milliseconds(plain), milliseconds(fp8), milliseconds(lambda x=x: scaled(x)), error)
        del x, w, x8, w8, exact
    saved = LAYERS * (before - after)
    bf16, fp8 = LAYERS * before, LAYERS * after
    print(f"{LAYERS} layers: {bf16:.0f} ms in bf16, {fp8:.0f} ms in FP8 ({LAYERS * alone:.0f} without scaling):")
    print(f"at most {saved:.0f} ms of a step; relative error of a product up to {worst:.3f}")


if __name__ == "__main__":
    main()
