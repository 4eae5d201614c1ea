"""Figures of the Model tab, as JSON for Plotly.js: parameters as a treemap, the cache as bars, wavelengths as lines."""

from math import log10

import orjson

from workbench.models.anatomy import cache, rope
from workbench.models.anatomy.report import Report
from workbench.models.anatomy.shapes import Anatomy
from workbench.models.anatomy.units import memory, parameters
from workbench.ui.catalogue import say
from workbench.ui.charts import literal

_COLORS = {
    "embedding": "#64748b",
    "attention": "#0f766e",
    "router": "#a16207",
    "experts": "#4f46e5",
    "shared_experts": "#7c3aed",
    "mlp": "#0369a1",
    "norm": "#57534e",
    "head": "#475569",
}
_HOVER = {"font": {"color": "#222"}, "bgcolor": "#fff"}
_GRID = {"gridcolor": "rgba(128,128,128,.18)", "zeroline": False}
_OWN, _OTHER = "#0f766e", "#8fb3c9"
_LINES = {"linear": ("#c2410c", "dash"), "dynamic": ("#4f46e5", "dot"), "yarn": ("#be185d", "dashdot")}


def treemap(name: str, anatomy: Anatomy, lang: str, active: bool = False) -> str:
    """Parameters by component and by matrix. `active`: of the experts only the share that one token meets."""
    components = anatomy.by_component(active)
    share = 1.0
    if active and anatomy.sizes.experts:
        share = anatomy.sizes.experts.used / anatomy.sizes.experts.count
    total = sum(components.values())
    ids, labels, parents = ["all"], [f"{literal(name)} · {parameters(total)}"], [""]
    values, colors, texts = [total], ["#94a3b8"], [parameters(total)]

    def add(id_: str, label: str, parent: str, count: int, color: str) -> None:
        ids.append(id_)
        labels.append(label)
        parents.append(parent)
        values.append(count)
        colors.append(color)
        texts.append(f"{parameters(count)} · {count / total:.1%}")

    for component, count in components.items():
        label = f"{say(f'component_{component}', lang)} · {parameters(count)}"
        add(component, label, "all", count, _COLORS[component])
    for (component, weight), count in anatomy.by_name().items():
        counted = round(count * share) if component == "experts" else count
        add(f"{component}/{weight}", weight.removeprefix("model."), component, counted, _COLORS[component])
    trace = {
        "type": "treemap",
        "ids": ids,
        "labels": labels,
        "parents": parents,
        "values": values,
        "branchvalues": "total",
        "text": texts,
        "textinfo": "label+text",
        "marker": {"colors": colors, "line": {"width": 1, "color": "#fff"}},
        "hovertemplate": "%{label}<br>%{value:,}<br>%{text}<extra></extra>",
        "tiling": {"pad": 2},
        "maxdepth": 3,
        "textfont": {"color": "#fff"},
    }
    layout = {"margin": {"l": 4, "r": 4, "t": 4, "b": 4}, "hoverlabel": _HOVER}
    return orjson.dumps({"data": [trace], "layout": layout}).decode()


def kind_name(variant: cache.Variant, lang: str) -> str:
    """`MLA`, `GQA, 8 groups`, `MHA, 128 heads`, with a mark at the model's own."""
    kind = "mqa" if variant.kind == "gqa" and variant.groups == 1 else variant.kind
    name = say(f"kind_{kind}", lang, groups=variant.groups)
    return f"{name} · {say('model_own_kind', lang)}" if variant.own else name


def cache_chart(anatomy: Anatomy, lang: str) -> str:
    """KiB per token of all layers with each kind of attention."""
    variants = cache.variants(anatomy.sizes)[::-1]
    sizes = [cache.cache_bytes(anatomy.sizes, 1, per_layer=v.elements, windows=False) for v in variants]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [kind_name(v, lang) for v in variants],
        "x": [size / 1024 for size in sizes],
        "text": [memory(size) for size in sizes],
        "textposition": "auto",
        "cliponaxis": False,
        "marker": {"color": [_OWN if v.own else _OTHER for v in variants]},
        "hovertemplate": "%{y}: %{text}<extra></extra>",
    }
    layout = {
        "margin": {"l": 10, "r": 20, "t": 8, "b": 44},
        "showlegend": False,
        "xaxis": {"rangemode": "tozero", "title": {"text": say("model_cache_axis", lang)}, **_GRID},
        "yaxis": {"automargin": True},
        "hoverlabel": _HOVER,
    }
    return orjson.dumps({"data": [bars], "layout": layout}).decode()


def rope_chart(report: Report, factor: float, lang: str) -> str:
    """Tokens per turn of each pair: unscaled, with the model's own scaling, and with others of a factor."""
    one = report.rotary
    if one is None:
        return ""
    lines = [(say("rope_plain", lang), rope.plain(one), {"color": "#64748b", "width": 2})]
    if one.kind not in ("default", *_LINES) or (one.kind in _LINES and one.factor != factor):
        turns = rope.scaled(one, one.kind, one.factor, one.context)
        name = say("rope_own", lang, kind=f"{literal(one.kind)} × {one.factor:g}")
        lines.append((name, turns, {"color": "#0f766e", "width": 3}))
    target = rope.stretched(one, factor)
    for kind, (color, dash) in _LINES.items():
        turns = rope.scaled(one, kind, factor, target)
        lines.append((f"{kind} × {factor:g}", turns, {"color": color, "width": 2, "dash": dash}))
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": list(range(len(turns))),
            "y": [float(f"{wave:.5g}") for wave in rope.wavelengths(turns)],
            "line": line,
        }
        for name, turns, line in lines
    ]
    marks = [(one.original, say("rope_original", lang)), (target, say("rope_target", lang, factor=f"{factor:g}"))]
    layout = {
        "margin": {"l": 60, "r": 12, "t": 8, "b": 44},
        "xaxis": {"title": {"text": say("rope_pair", lang)}, **_GRID},
        "yaxis": {"type": "log", "title": {"text": say("rope_wave", lang)}, **_GRID},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "x unified",
        "hoverlabel": _HOVER,
        "shapes": [
            {
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": length, "y1": length,
                "line": {"color": "#94a3b8", "width": 1.5, "dash": "dash"},
            }
            for length, _ in marks if length
        ],
        "annotations": [  # on a logarithmic axis placed by their logarithm
            {
                "text": f"{words}: {length:,}", "xref": "paper", "x": 0.01, "y": log10(length), "xanchor": "left",
                "yanchor": "bottom", "showarrow": False, "font": {"size": 11},
            }
            for length, words in marks if length
        ],
    }  # fmt: skip
    return orjson.dumps({"data": data, "layout": layout}).decode()
