"""Products of packed weights on the CPU, of a whole step of the demo's shape, by the number of rows.

    python benchmarks/cpu_products.py [--threads 1] [--rounds 7] [--bits 16]

Random weights. Printed is the least time of the rounds, as others use the machine, too.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
SHAPES = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)] * 30 + [(49152, 576)]
ROWS = (1, 4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bits", type=int, choices=(8, 16), default=16)
    options = parser.parse_args()
    import torch

    from workbench.models.cpu.library import load
    from workbench.models.cpu.linear import BlockedLinear
    from workbench.storage.workspace import Workspace

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        library = load(Workspace(Path(folder)).create(), print)
        if library is None:
            raise SystemExit(1)
        plain = (torch.nn.Linear(columns, rows, bias=False) for rows, columns in SHAPES)
        layers = [BlockedLinear(linear, library, options.bits) for linear in plain]
        print("| rows | ms of all products | tokens/s at the most |\n| --- | --- | --- |")
        for count in ROWS:
            inputs = {columns: torch.randn(count, columns) for _, columns in SHAPES}
            seconds = []
            for _ in range(options.rounds):
                began = time.perf_counter()
                for layer in layers:
                    layer(inputs[layer.in_features])
                seconds.append(time.perf_counter() - began)
            print(f"| {count} | {1000 * min(seconds):.1f} | {count / min(seconds):.0f} |", flush=True)


if __name__ == "__main__":
    main()
