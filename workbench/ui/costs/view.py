"""An estimate as sentences, as JSON and as a chart. No gradio here; the command line uses it, too."""

import orjson

from workbench.config.presets import Preset
from workbench.messages.message import stored, told
from workbench.models.anatomy.units import memory
from workbench.models.cost.changes import Change
from workbench.models.cost.parts import PARTS
from workbench.train.estimates.outlook import Outlook
from workbench.ui.catalogue import say

_COLORS = {
    "weights": "#4f46e5",
    "constants": "#818cf8",
    "adapters": "#0f766e",
    "gradients": "#14b8a6",
    "optimizer": "#0369a1",
    "activations": "#c2410c",
    "layer": "#ea580c",
    "workspace": "#a16207",
    "logits": "#be185d",
    "unpacked": "#7c3aed",
    "cache": "#0891b2",
    "recordings": "#64748b",
    "context": "#475569",
}
_HOVER = {"font": {"color": "#222"}, "bgcolor": "#fff"}
GIB = 1 << 30


def rows(result: Outlook, lang: str) -> list[tuple[str, int]]:
    """`(part, bytes)` of an estimate, corrected as the total is; parts below 1 MiB are left out."""
    if result.estimate is None:
        return []
    found = []
    for part in PARTS:
        size = result.estimate.parts.get(part, 0)
        size = size if part == "context" else int(size * result.factor)
        if size >= 1 << 20:
            found.append((say(f"cost_part_{part}", lang), size))
    return found


def total_line(result: Outlook, lang: str) -> str:
    """Total against the device, and whether it fits."""
    device = result.device
    name = f"{device.count} × {device.name}" if device.gpu and device.count > 1 else device.name
    text = say("cost_total", lang, total=memory(result.total), memory=memory(device.memory), device=name)
    left = device.memory - result.total
    fits = say("cost_fits", lang, left=memory(left)) if left >= 0 else say("cost_fits_not", lang, over=memory(-left))
    return text + ("" if lang == "zh" else " ") + fits


def cards_line(result: Outlook, lang: str) -> str:
    """Which cards it fits."""
    cards = [say("cost_card_yes" if fits else "cost_card_no", lang, size=size) for size, fits in result.fits.items()]
    return say("cost_cards", lang, cards="  ".join(cards)) if cards else ""


def details(result: Outlook, lang: str) -> list[str]:
    """Sentences on how the figure comes about, what it leaves out, and how long the run takes."""
    lines = [told(text, lang) for text in result.problems]
    estimate = result.estimate
    if estimate is None:
        if result.known_bytes:
            lines.append(say("cost_least", lang, total=memory(result.known_bytes)))
        return lines
    facts = estimate.facts
    if "tokens" in facts:
        phase = say(f"cost_phase_{estimate.phase}", lang)
        tensors = memory(estimate.allocated * result.factor)
        values = {"tensors": tensors, "phase": phase, "tokens": f"{facts['tokens']:,}"}
        lines.append(say("cost_tensors" if result.device.gpu else "cost_host", lang, **values))
    if "wanted_tokens" in facts:
        tokens = {"wanted": f"{facts['wanted_tokens']:,}", "tokens": f"{facts['tokens']:,}"}
        lines.append(say("cost_smaller", lang, **tokens))
    if facts.get("kept_layers"):
        plan = {"kept": facts["kept_layers"], "layers": facts["layers"], "unpacked": facts["unpacked_layers"]}
        lines.append(say("cost_plan", lang, **plan))
    if facts.get("planned_tokens", 0) > facts.get("held_tokens", 0):
        size = memory(facts["planned_tokens"] * facts["bytes_per_token"])
        lines.append(say("cost_cache_more", lang, tokens=f"{facts['planned_tokens']:,}", size=size))
    if result.corrected_by:
        raw = memory(estimate.total)
        lines.append(say("cost_corrected", lang, factor=f"{result.factor:.2f}", runs=result.corrected_by, raw=raw))
    return [*lines, *time_lines(result, lang), *(told(text, lang) for text in result.notes)]


def time_lines(result: Outlook, lang: str) -> list[str]:
    """Steps, tokens and hours, and energy where the device tells its power."""
    one = result.duration
    if one is None:
        return []
    if not one.tokens:
        return [say("cost_rows_not_counted", lang)]
    tokens = f"{one.tokens:,}"
    tokens = say("cost_at_most", lang, count=tokens) if one.bound else tokens
    values = {"steps": f"{one.steps:,}", "epochs": f"{one.epochs:.3g}", "tokens": tokens}
    if not one.rate:
        return [say("cost_time_unknown", lang, **values)]
    if one.measured:
        why = say("cost_measured", lang, runs=one.measured)
    elif one.link:
        why = say("cost_assumed_link", lang, rate=f"{one.link / 1e9:.0f}")
    else:
        why = say("cost_assumed" if result.device.gpu else "cost_assumed_host", lang, reached=f"{one.reached:.0%}")
    time = say("cost_at_most" if one.bound else "cost_about", lang, count=time_text(one.seconds, lang))
    lines = [say("cost_time", lang, **values, time=time, rate=f"{one.rate:,.0f}", why=why)]
    if one.watts:
        energy = {"energy": f"{one.kilowatt_hours:.2g}", "watts": f"{one.watts:.0f}"}
        lines.append(say("cost_energy_limit" if one.limit else "cost_energy", lang, **energy))
    return lines


def time_text(seconds: float, lang: str) -> str:
    """`3.2 h`, `14 min`, `20 s`."""
    if seconds >= 3600:
        return say("cost_hours", lang, hours=f"{seconds / 3600:.1f}")
    if seconds >= 60:
        return say("cost_minutes", lang, minutes=f"{seconds / 60:.0f}")
    return say("cost_seconds", lang, seconds=f"{max(1.0, seconds):.0f}")


def options_text(change: Change) -> str:
    """`quantization_bit=4`."""
    return ", ".join(f"{name}={'' if value is None else value}" for name, value in change.options.items())


def change_line(change: Change, fits_now: bool, lang: str) -> str:
    """A change and what it saves."""
    text = say("cost_change", lang, options=options_text(change), saving=memory(change.saving))
    return text + (say("cost_change_fits", lang) if change.fits and not fits_now else "")


def chart(result: Outlook, lang: str) -> str:
    """A stacked bar of the parts against the device's memory, as a Plotly figure; empty without an estimate."""
    found = rows(result, lang)
    if not found:
        return ""
    keys = {say(f"cost_part_{part}", lang): part for part in PARTS}
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": [""],
            "x": [round(size / GIB, 3)],
            "name": name,
            "text": [memory(size)],
            "textposition": "none",
            "marker": {"color": _COLORS[keys[name]]},
            "hovertemplate": "%{fullData.name}: %{text}<extra></extra>",
        }
        for name, size in found
    ]
    limit = result.device.memory / GIB
    top = max(limit, result.total / GIB) * 1.04
    layout = {
        "barmode": "stack",
        "height": 190,
        "margin": {"l": 10, "r": 12, "t": 4, "b": 22},
        "xaxis": {"range": [0, top], "ticksuffix": " GiB", "gridcolor": "rgba(128,128,128,.18)"},
        "yaxis": {"visible": False},
        "legend": {
            "orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 11}, "traceorder": "normal",
        },
        "hoverlabel": _HOVER,
        "shapes": [
            {
                "type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": limit, "x1": limit,
                "line": {"color": "#b91c1c", "width": 2, "dash": "dash"},
            }
        ],
        "annotations": [
            {
                "text": memory(result.device.memory), "x": limit, "xanchor": "right", "yref": "paper", "y": 0.02,
                "yanchor": "bottom", "showarrow": False, "font": {"size": 11, "color": "#b91c1c"},
            }
        ],
    }  # fmt: skip
    return orjson.dumps({"data": data, "layout": layout}).decode()


def as_json(result: Outlook, lang: str) -> dict:
    """An outlook as JSON can hold it; sentences in `lang`, with their codes beside. Bytes and seconds."""
    estimate, one = result.estimate, result.duration
    values: dict = {
        "model": result.model,
        "device": {"name": result.device.name, "memory": result.device.memory, "count": result.device.count},
        "total": result.total if estimate else None,
        "at_least": result.known_bytes or None,
        "parts": estimate.parts if estimate else {},
        "tensors": estimate.allocated if estimate else None,
        "phase": estimate.phase if estimate else "",
        "facts": {k: v for k, v in estimate.facts.items() if k != "phases"} if estimate else {},
        "factor": result.factor,
        "corrected_by": result.corrected_by,
        "fits_here": result.fits_here if estimate else None,
        "fits": {str(size): fits for size, fits in result.fits.items()},
        "changes": [vars(change) for change in result.changes],
        "rows": vars(result.rows),
        "time": None,
        "problems": [told(text, lang) for text in result.problems],
        "notes": [told(text, lang) for text in result.notes],
        "messages": stored([*result.problems, *result.notes]),
    }
    if one is not None:
        values["time"] = vars(one) | {"seconds": one.seconds, "kilowatt_hours": one.kilowatt_hours}
    return values


def preset_row(preset: Preset, result: Outlook | None, lang: str) -> tuple[str, str, str, str]:
    """`(name, memory, whether it fits here, time)` of a preset."""
    if result is None or result.estimate is None:
        return preset.name, "", say("cost_preset_unknown", lang), ""
    here = say("cost_preset_fits" if result.fits_here else "cost_preset_not", lang)
    one = result.duration
    time = time_text(one.seconds, lang) if one is not None and one.seconds else ""
    return preset.name, memory(result.total), here, time
