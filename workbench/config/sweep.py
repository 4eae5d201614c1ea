"""Several runs of one config that differ in chosen options: all combinations of a grid, or random draws.

A line says what an option may be: `learning_rate=1e-4,2e-4` (a list) or `learning_rate=1e-5:5e-4:log` (a range, drawn
evenly or, with `:log`, evenly in its logarithm).
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.config.options import RunConfig
from workbench.config.run_config import coerced, nearest, parse_overrides, unfit_reason, validated
from workbench.errors import UserError

MOST = 64  # runs of a sweep
OWN = ("output_dir", "run_name", "overwrite_output_dir", "resume_from_checkpoint")  # each run has its own
_DIGITS = 3  # of a number that is drawn


@dataclass(frozen=True)
class Axis:
    """What one option may be: `values`, or a range from `low` to `high`."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def draw(self, dice: random.Random) -> Any:
        """One of its values, drawn."""
        if self.values:
            return dice.choice(self.values)
        if self.log:
            value = math.exp(dice.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = dice.uniform(self.low, self.high)
        whole = "int" in str(RunConfig.model_fields[self.name].annotation)
        return round(value) if whole else float(f"{value:.{_DIGITS}g}")


def axis(line: str, *, ranges: bool) -> Axis:
    """What a line says. Raises UserError: an option that is none or not to be varied, a value that is none of it, or a
    range where there can be none."""
    name, equals, text = (part.strip() for part in line.partition("="))
    if not equals or not name or not text:
        raise UserError("sweep_form", line=line[:100])
    if name not in RunConfig.model_fields:
        raise UserError("option_unknown", key=name[:80], guess=nearest(name, RunConfig.model_fields))
    if name in OWN:
        raise UserError("sweep_own", name=name)
    if ranges and "," not in text and text.count(":") in (1, 2):
        return _range(name, text)
    parts = [part.strip() for part in text.split(";" if ";" in text else ",") if part.strip()]
    values = [_value(name, part) for part in parts]
    return Axis(name, tuple(dict.fromkeys(values)))


def _range(name: str, text: str) -> Axis:
    first, last, *kind = (part.strip() for part in text.split(":"))
    low, high = _value(name, first), _value(name, last)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
    if not numbers or not low < high or kind not in ([], ["log"]) or (kind and low <= 0):
        raise UserError("sweep_range", name=name, text=text[:80])
    return Axis(name, low=float(low), high=float(high), log=bool(kind))


def _value(name: str, text: str) -> Any:
    """A value as the option has it. Raises UserError."""
    given = parse_overrides([f"{name}={text}"])[name]
    try:
        return coerced(name, given)
    except UserError as error:
        raise UserError("option_wrong", key=name, reason=unfit_reason(error)) from None


def grid(lines: Sequence[str]) -> list[dict[str, Any]]:
    """The changes of every run of a grid. Raises UserError: a wrong line, an option twice, none or too many runs."""
    axes = _axes(lines, ranges=False)
    count = math.prod(len(one.values) for one in axes)
    if count > MOST:
        raise UserError("sweep_many", count=count, most=MOST)
    return [
        dict(zip([one.name for one in axes], values, strict=True))
        for values in itertools.product(*(one.values for one in axes))
    ]


def drawn(lines: Sequence[str], trials: int, seed: int) -> list[dict[str, Any]]:
    """The changes of `trials` runs that are drawn, the same for the same seed; fewer where there are not so many.
    Raises UserError as `grid`."""
    axes = _axes(lines, ranges=True)
    if not 1 <= trials <= MOST:
        raise UserError("sweep_many", count=trials, most=MOST)
    dice = random.Random(seed)
    found: dict[tuple, dict[str, Any]] = {}
    for _ in range(20 * trials):  # draws that came before are drawn again
        one = {each.name: each.draw(dice) for each in axes}
        found.setdefault(tuple(one.values()), one)
        if len(found) == trials:
            break
    return list(found.values())


def _axes(lines: Sequence[str], *, ranges: bool) -> list[Axis]:
    axes = [axis(line, ranges=ranges) for line in lines if line.strip()]
    if not axes:
        raise UserError("sweep_empty")
    names = [one.name for one in axes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError("sweep_twice", name=twice[0])
    return axes


def changes_of(grid_lines: Sequence[str], random_lines: Sequence[str], trials: int, seed: int) -> list[dict[str, Any]]:
    """The changes of every run. Raises UserError: neither a grid nor ranges, or both."""
    if any(line.strip() for line in grid_lines) and any(line.strip() for line in random_lines):
        raise UserError("sweep_both")
    return drawn(random_lines, trials, seed) if any(random_lines) else grid(grid_lines)


def members(values: dict[str, Any], changes: Sequence[dict[str, Any]]) -> list[RunConfig]:
    """The checked config of every run; `values` are those of the config that they vary.

    Raises:
        UserError: one of them cannot work; says which.
    """
    kept = {key: value for key, value in values.items() if key not in OWN}
    configs: list[RunConfig] = []
    for one in changes:
        try:
            configs.append(validated(kept | one))
        except UserError as error:
            raise UserError("sweep_member", changes=words(one), problem=error.message) from None
    return configs


def words(changes: dict[str, Any]) -> str:
    """`learning_rate=0.0002, lora_rank=16`: how a run of a sweep is named."""
    return ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in changes.items()
    )
