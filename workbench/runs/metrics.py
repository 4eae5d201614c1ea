"""Incremental readers of a run's growing files. Memory and time per look stay bounded however long the run is."""

import math
import mmap
import os
import re
from collections import defaultdict
from pathlib import Path

import orjson

# of the stages on preferences, TRL's names
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins")
# of stage grpo
OF_GROUPS = ("reward", "reward_std", "completion_length")
_MEASURED = (*REWARDS, "rewards/accuracies", "logps/chosen", "logps/rejected", "kl", *OF_GROUPS)
# of each of several devices, with its number: `peak_memory_1`
OF_DEVICES = ("peak_memory", "vram_reserved", "gpu_utilization")
MOST_DEVICES = 16
_BY_DEVICE = tuple(f"{name}_{number}" for name in OF_DEVICES for number in range(MOST_DEVICES))
MEASURES: tuple[str, ...] = (*_MEASURED, *(f"eval_{name}" for name in _MEASURED))
METRICS = (
    "loss", "eval_loss", "lr", "grad_norm", "throughput", "peak_memory", "vram_reserved", "gpu_utilization", "aux_loss",
    "epoch", "total_tokens", "elapsed_seconds", *MEASURES, *_BY_DEVICE,
)  # fmt: skip
_OF_ONE = re.compile(r"eval_(.+)_loss", re.DOTALL)  # of one of several evaluation datasets
MOST_DATASETS = 16  # whose losses are followed
_POINTS = 600  # a series is thinned to between this many and half as many points
_WHOLE = 4 << 20  # a file up to this size is read whole at the first look, a larger one is sampled
_SAMPLES = 1200
_CHUNK = 1 << 20  # bytes read per look after that
_STEPS = ("current_steps", "total_steps")
_MAX_TEXT = 200  # characters of a value that is no figure, such as the time left


def by_device(name: str, series: dict) -> tuple[str, ...]:
    """The metrics that show `name`: of each device where there are several, else of all."""
    each = [one for number in range(MOST_DEVICES) if (one := f"{name}_{number}") in series and series[one].x]
    return tuple(each) or (name,)


class Series:
    """Points of one metric, thinned by averaging neighbors so that at most `_POINTS` are kept.

    `x` are steps, `y` values; each kept point is the mean of `stride` neighboring ones.
    """

    def __init__(self):
        self.x: list[float] = []
        self.y: list[float] = []
        self.stride = 1
        self._sum_x = self._sum_y = 0.0
        self._count = 0

    def add(self, x: float, y: float) -> None:
        if self.x and x <= self.x[-1] - self.stride:  # the run was resumed from an earlier step
            while self.x and self.x[-1] >= x:
                self.x.pop()
                self.y.pop()
        self._sum_x += x
        self._sum_y += y
        self._count += 1
        if self._count < self.stride:
            return
        self.x.append(self._sum_x / self._count)
        self.y.append(self._sum_y / self._count)
        self._sum_x = self._sum_y = 0.0
        self._count = 0
        if len(self.x) > _POINTS:
            pairs = range(0, len(self.x) - 1, 2)
            self.x = [(self.x[i] + self.x[i + 1]) / 2 for i in pairs]
            self.y = [(self.y[i] + self.y[i + 1]) / 2 for i in pairs]
            self.stride *= 2


class MetricsReader:
    """Follows `trainer_log.jsonl`. `update()` reads what is new and says whether anything was.

    The first look at a very long file takes `_SAMPLES` lines spread evenly over it (and every evaluation), so that
    opening the page on a run of a million steps costs the same as on a short one. A half-written last line waits
    for its rest; a broken line is skipped.
    """

    def __init__(self, path: Path):
        self.path = path
        self._reset()

    def _reset(self) -> None:
        self.series: dict[str, Series] = defaultdict(Series)
        self.last: dict = {}
        self.version = 0
        self._offset = 0
        self._inode: int | None = None

    def update(self) -> bool:
        try:
            stat = os.stat(self.path)
        except OSError:
            if self._inode is not None:
                self._reset()
                return True
            return False
        if self._inode is not None and (stat.st_ino != self._inode or stat.st_size < self._offset):
            self._reset()
        self._inode = stat.st_ino
        if stat.st_size == self._offset:
            return False
        with open(self.path, "rb") as file:
            if self._offset == 0 and stat.st_size > _WHOLE:
                self._sample(file, stat.st_size)
            else:
                file.seek(self._offset)
                self._take(file.read(max(_CHUNK, _WHOLE if self._offset == 0 else 0)))
        self.version += 1
        return True

    def _take(self, data: bytes) -> None:
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        for line in data[:whole].splitlines():
            self._line(line)

    def _sample(self, file, size: int) -> None:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            end = view.rfind(b"\n") + 1
            starts = {view.rfind(b"\n", 0, end * i // _SAMPLES) + 1 for i in range(_SAMPLES)}
            starts.add(view.rfind(b"\n", 0, max(0, end - 1)) + 1)
            position = view.find(b'"eval_loss"')
            while position != -1 and len(starts) < 4 * _SAMPLES:
                starts.add(view.rfind(b"\n", 0, position) + 1)
                position = view.find(b'"eval_loss"', position + 1)
            for start in sorted(starts):
                self._line(view[start : view.find(b"\n", start)])
            self._offset = end

    def _line(self, line: bytes) -> None:
        try:
            row = logged(line)
            step = row["current_steps"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return
        for name in METRICS:
            if name in row:
                self.series[name].add(step, row[name])
        for name in filter(dataset_of, row):
            if name in self.series or len(losses_of_each(self.series)) < MOST_DATASETS:
                self.series[name].add(step, row[name])
        self.last.update(row)


def dataset_of(metric: str) -> str:
    """The evaluation dataset whose loss a metric is (`eval_on_each_dataset`); empty for every other metric."""
    found = None if metric in METRICS else _OF_ONE.fullmatch(metric)
    return found[1] if found else ""


def losses_of_each(series: dict[str, Series]) -> list[str]:
    """Names of the losses of each of several evaluation datasets, in the order in which they came."""
    return [name for name in series if dataset_of(name) and series[name].x]


def logged(line: bytes) -> dict:
    """One line of `trainer_log.jsonl`, without the values that are not what their name says.

    Raises:
        ValueError: not JSON. TypeError: not an object.
    """
    row = orjson.loads(line)
    if not isinstance(row, dict):
        raise TypeError("a line should be an object")
    return {name: value for name, value in row.items() if _fits(name, value)}


def _fits(name: str, value) -> bool:
    if name in _STEPS:
        return type(value) is int and 0 <= value < 2**53
    if name in METRICS or dataset_of(name):
        return type(value) in (int, float) and math.isfinite(value)
    return isinstance(value, str | int | float) and len(str(value)) <= _MAX_TEXT


def summary(path: Path) -> tuple[dict, float | None, float | None]:
    """`(last values, lowest loss, lowest eval_loss)` of a `trainer_log.jsonl`; of a very long one, of the lines that
    are sampled."""
    try:
        small = path.stat().st_size <= _WHOLE
        data = path.read_bytes() if small else b""
    except OSError:
        return {}, None, None
    if not small:
        reader = MetricsReader(path)
        reader.update()
        loss, eval_loss = (min(reader.series[name].y, default=None) for name in ("loss", "eval_loss"))
        return reader.last, loss, eval_loss
    last, lowest = {}, {"loss": None, "eval_loss": None}
    for line in data.splitlines():
        try:
            row = logged(line)
        except (orjson.JSONDecodeError, TypeError):
            continue
        for name, low in lowest.items():
            if name in row and (low is None or row[name] < low):
                lowest[name] = row[name]
        last.update(row)
    return last, lowest["loss"], lowest["eval_loss"]


def smoothed(values: list[float], weight: float | None = None) -> list[float]:
    """Exponential moving average, corrected for its start (as TensorBoard does). `weight` None: by length."""
    if weight is None:
        weight = min(0.95, max(0.3, 1 - 8 / max(1, len(values))))
    average, result = 0.0, []
    for count, value in enumerate(values, 1):
        average = average * weight + (1 - weight) * value
        result.append(average / (1 - weight**count))
    return result


def tail(path: Path, lines: int = 60, limit: int = 12_000) -> str:
    """The last lines of a log, at most `limit` bytes of it, whatever the file's size."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            data = file.read(limit)
    except OSError:
        return ""
    if size > limit:
        data = data[data.find(b"\n") + 1 :]
    return "\n".join(data.decode("utf-8", "replace").splitlines()[-lines:])
