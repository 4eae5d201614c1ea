"""What the trainer tells the world: lines in the log, `trainer_log.jsonl`, `state.json`, the loss picture."""

import json
import math
import resource
import time
from datetime import timedelta

from workbench.models.demo import Progress
from workbench.runs.metrics import MEASURES, MOST_DEVICES, OF_DEVICES, tail
from workbench.runs.run import Run
from workbench.runs.state import StateDirectory
from workbench.train import launch


def log(text: str) -> None:
    """A line for the running log. Of several processes that train together the first one says it."""
    if launch.rank() == 0:
        print(text, flush=True)


def progress_writer(run: StateDirectory, *, say: bool = True) -> Progress:
    """A callback that writes phase and progress into `state.json`, at most twice a second, and with `say` phases into
    the log."""
    last = {"time": 0.0, "phase": None}

    def write(phase: str, share: float) -> None:
        now = time.monotonic()
        if say and phase != last["phase"] and phase:
            log(f"{phase} …")
        elif (phase == last["phase"] or not say) and now - last["time"] < 0.5 and share < 1.0:
            return
        last.update(time=now, phase=phase)
        run.update(phase=phase, progress=round(share, 3), heartbeat=time.time())

    return write


# GPU -> peaks of allocated and of reserved bytes before their counters were set back
_noted: dict[int, tuple[int, int]] = {}


def note_peak() -> None:
    """Keep the GPUs' peaks so far: their counters are about to be set back."""
    _noted.update({number: _peaks(number) for number in _own_gpus()})


def _own_gpus() -> list[int]:
    """The GPUs of this process: one where several train together, else all that it sees."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.current_device()] if launch.count() > 1 else list(range(torch.cuda.device_count()))


def _peaks(number: int) -> tuple[int, int]:
    """Peaks of allocated and of reserved bytes of a GPU."""
    import torch

    allocated, reserved = _noted.get(number, (0, 0))
    now = torch.cuda.max_memory_allocated(number), torch.cuda.max_memory_reserved(number)
    return max(allocated, now[0]), max(reserved, now[1])


def own_devices() -> list[dict[str, float]]:
    """What each device of this process takes: memory in GiB, and where nvidia-ml-py can tell, how busy it is in percent
    and what it draws in watts. Without GPUs, the peak of this process's resident memory."""
    import torch

    found: list[dict[str, float]] = []
    for number in _own_gpus():
        allocated, reserved = _peaks(number)
        now: dict[str, float] = {
            "peak_memory": allocated / 2**30,
            "peak_reserved": reserved / 2**30,
            "vram_allocated": torch.cuda.memory_allocated(number) / 2**30,
            "vram_reserved": torch.cuda.memory_reserved(number) / 2**30,
        }
        try:
            now["gpu_utilization"] = torch.cuda.utilization(number)
            now["power"] = torch.cuda.power_draw(number) / 1000
        except (ModuleNotFoundError, RuntimeError):
            pass
        found.append({name: round(value, 3) for name, value in now.items()})
    return found or [{"peak_memory": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}]


def figures_of(devices: list[dict[str, float]], *, processes: int = 1) -> dict[str, float]:
    """Figures of all devices as a line of the log has them.

    Memory is that of the fullest device where each holds the whole model (several processes), else the sum; use and
    power are those of the first. Of several devices each has figures of its own, such as `peak_memory_1`.
    """
    whole = max if processes > 1 else sum
    figures = dict(devices[0])
    for name in ("peak_memory", "peak_reserved", "vram_allocated", "vram_reserved"):
        if name in figures:
            figures[name] = round(whole(device[name] for device in devices), 3)
    if len(devices) > 1:
        for number, device in enumerate(devices[:MOST_DEVICES]):
            figures |= {f"{name}_{number}": device[name] for name in OF_DEVICES if name in device}
    return figures


class MetricsLog:
    """Appends to `trainer_log.jsonl` with LLaMA-Factory's names, and prints the same for people.

    `throughput` is tokens per second of training since the last line, loading of batches included; evaluation and
    saving do not count.
    """

    def __init__(self, run: Run):
        self.run = run
        self.began = time.monotonic()
        self.first_step = 0
        before = last_row(run)  # of a run that goes on
        self._seconds_before = before.get("elapsed_seconds", 0.0)
        self._tokens_before = before.get("total_tokens", 0)
        self._busy = 0.0  # seconds of training since the last line
        self._mark: float | None = None
        self._tokens = 0

    def step_began(self) -> None:
        if self._mark is None:
            self._mark = time.monotonic()

    def pause(self) -> None:
        """Training rests until the next step begins; whatever the GPU still had to do is done."""
        if self._mark is not None:
            self._busy += time.monotonic() - self._mark
            self._mark = None

    def write(self, logs: dict, step: int, total: int, epoch: float, devices: list[list[dict]] | None = None) -> dict:
        """One line. Values that are not finite are written as null, which JSON knows.

        Args:
            devices: `own_devices` of each process; of this one if none is given.
        """
        elapsed = time.monotonic() - self.began
        done = max(1, step - self.first_step)
        remaining = elapsed / done * max(0, total - step)
        row = {"current_steps": step, "total_steps": total}
        for ours, theirs in (
            ("loss", "loss"),
            ("eval_loss", "eval_loss"),
            ("lr", "learning_rate"),
            ("grad_norm", "grad_norm"),
            ("aux_loss", "aux_loss"),
            *((name, name) for name in MEASURES),
        ):
            if theirs in logs:
                row[ours] = _finite(logs[theirs])
        for name, value in logs.items():  # of each evaluation dataset
            if name.startswith("eval_") and name.endswith("_loss") and name != "eval_loss":
                row[name] = _finite(value)
        whole = elapsed + self._seconds_before
        row |= {
            "epoch": round(epoch, 4),
            "percentage": round(100 * step / total, 2) if total else 0.0,
            "elapsed_time": str(timedelta(seconds=int(whole))),
            "remaining_time": str(timedelta(seconds=int(remaining))),
            "elapsed_seconds": round(whole, 2),
        }
        if "loss" in logs:
            tokens = int(logs.get("num_tokens", 0))
            if self._busy > 0 and tokens > self._tokens:
                row["throughput"] = round((tokens - self._tokens) / self._busy, 2)
            row["total_tokens"] = tokens + self._tokens_before
            self._tokens, self._busy = tokens, 0.0
        devices = devices or [own_devices()]
        row |= figures_of([device for own in devices for device in own], processes=len(devices))
        with open(self.run.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        log(_line(row))
        return row


def last_row(run: Run) -> dict:
    """The last whole line of `trainer_log.jsonl` that counts tokens; empty if there is none."""
    for line in reversed(tail(run.metrics, lines=200, limit=200_000).splitlines()):
        try:
            row = json.loads(line)
            if "total_tokens" in row:
                return row
        except (ValueError, TypeError, RecursionError):
            continue
    return {}


def _finite(value) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def _line(row: dict) -> str:
    parts = [f"step {row['current_steps']}/{row['total_steps']}", f"epoch {row['epoch']:.2f}"]
    for key, form in (
        ("loss", "{:.4f}"),
        ("eval_loss", "{:.4f}"),
        ("lr", "{:.2e}"),
        ("grad_norm", "{:.3f}"),
        ("aux_loss", "{:.4f}"),
        ("reward", "{:.4f}"),
        ("rewards/margins", "{:.4f}"),
        ("rewards/accuracies", "{:.0%}"),
    ):
        if key in row:
            parts.append(f"{key} " + (form.format(row[key]) if row[key] is not None else "nan"))
    if "throughput" in row:
        parts.append(f"{row['throughput']:.0f} tokens/s")
    return "  ".join([*parts, f"left {row['remaining_time']}"])


def plot_loss(run: Run) -> None:
    """`training_loss.png`: raw and smoothed training loss, evaluation loss. Nothing is drawn without points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from workbench.runs.metrics import MetricsReader, smoothed

    reader = MetricsReader(run.metrics)
    reader.update()
    series = reader.series
    if not series["loss"].x:
        return
    figure, axes = plt.subplots(figsize=(8, 5))
    loss = series["loss"]
    axes.plot(loss.x, loss.y, color="#9db4d8", label="loss")
    axes.plot(loss.x, smoothed(loss.y), color="#1f4e9c", label="loss, smoothed")
    if series["eval_loss"].x:
        axes.plot(series["eval_loss"].x, series["eval_loss"].y, "o-", color="#c8553d", label="eval loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(run.path / "training_loss.png", dpi=120)
    plt.close(figure)
