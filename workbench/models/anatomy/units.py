"""Numbers as people read them."""


def parameters(count: float) -> str:
    """`235.74B`, `8.03B`, `134.5M`, `960`."""
    for size, letter, digits in ((1e12, "T", 2), (1e9, "B", 2), (1e6, "M", 1), (1e3, "K", 1)):
        if count >= size:
            return f"{count / size:.{digits}f}{letter}"
    return f"{count:.0f}"


def memory(count: float) -> str:
    """Bytes as `11.2 GiB`, `67.5 KiB`."""
    for size, unit in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def operations(count: float) -> str:
    """Floating-point operations as `41.7 GFLOP`."""
    for size, unit in ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} FLOP"
