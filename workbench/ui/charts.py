"""Plotly figures from a run's series, as JSON for Plotly.js (a figure is a dict with `data` and `layout`)."""

import itertools
from html import escape

import orjson

from workbench.runs.metrics import Series, dataset_of, losses_of_each, smoothed
from workbench.ui.notes import shortened

RAW, SMOOTH, EVAL = "#8fb3c9", "#0f766e", "#c2410c"  # told apart also with color-blind eyes, and in print


def literal(text: str) -> str:
    """`text` for a legend or title: Plotly takes tags in it for markup, links among them."""
    return escape(text, quote=False)


def _trace(series: Series, y: list[float], name: str, **style) -> dict:
    return {
        "type": "scatter",
        "x": [round(x, 1) for x in series.x],
        "y": [float(f"{v:.5g}") for v in y],
        "name": name,
        **style,
    }


def loss_chart(
    series: dict[str, Series],
    names: tuple[str, str, str],
    *,
    step: str,
    empty: str,
    log_scale: bool,
    run_id: str,
    rewards: dict[str, str] | None = None,
) -> str:
    """Raw and smoothed training loss and evaluation loss over steps, also those of each of several datasets; below
    them, where a run has such, `rewards`: names of the legend by metric.

    `names` are the legend's words for the three, `empty` stands in place of a chart without points. The zoom is kept as
    long as `run_id` stays the same (`uirevision`).
    """
    train, held_out = series["loss"], series["eval_loss"]
    data = [
        _trace(train, train.y, names[0], mode="lines", line={"color": RAW, "width": 1}),
        _trace(train, smoothed(train.y), names[1], mode="lines", line={"color": SMOOTH, "width": 2.5}),
    ]
    if held_out.x:
        data.append(
            _trace(
                held_out,
                held_out.y,
                names[2],
                mode="lines+markers",
                line={"color": EVAL, "width": 1.5, "dash": "dot"},
            )
        )
    for metric, color in zip(losses_of_each(series), itertools.cycle(COLORS), strict=False):
        points, style = series[metric], {"color": color, "width": 1.2, "dash": "dash"}
        name = f"{names[2]}: {escape(dataset_of(metric))}"  # Plotly reads tags in a name
        data.append(_trace(points, points.y, name, mode="lines+markers", line=style))
    layout = {
        "uirevision": f"{run_id}-{log_scale}",
        "margin": {"l": 52, "r": 12, "t": 8, "b": 40},
        "xaxis": {"title": {"text": step}, **_GRID},
        "yaxis": {"type": "log" if log_scale else "linear", **_GRID},
        "legend": {"orientation": "h", "y": 1.08, "x": 0},
        "hovermode": "x unified",
        "hoverlabel": {"font": {"color": "#222"}, "bgcolor": "#fff"},
    }
    measured = {metric: name for metric, name in (rewards or {}).items() if series[metric].x}
    for (metric, name), color in zip(measured.items(), COLORS, strict=False):
        points = series[metric]
        data.append(_trace(points, points.y, name, mode="lines", line={"color": color, "width": 1.8}, yaxis="y2"))
    if measured:
        layout["yaxis"] |= {"domain": [0.48, 1]}
        layout["yaxis2"] = {"domain": [0, 0.38], **_GRID}
    if not train.x and not held_out.x:  # words instead of an empty pair of axes
        hidden = {"visible": False}
        annotation = {"text": empty, "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
        data, layout = [], layout | {"xaxis": hidden, "yaxis": hidden, "annotations": [annotation]}
    return orjson.dumps({"data": data, "layout": layout}).decode()


COLORS = ("#0f766e", "#c2410c", "#4f46e5", "#a16207", "#be185d", "#0369a1", "#4d7c0f", "#7c3aed")
DASHES = ("solid", "dash", "dot", "dashdot")  # runs beyond the number of colors stay told apart
AXES = {"steps": None, "epochs": "epoch", "tokens": "total_tokens", "seconds": "elapsed_seconds"}
_GRID = {"gridcolor": "rgba(128,128,128,.18)", "zeroline": False}


def along(series: dict[str, Series], steps: list[float], axis: str) -> list[float]:
    """Steps as places on another axis (`AXES`), interpolated between the logged ones."""
    other = series[AXES[axis]] if AXES[axis] else None
    if other is None or not other.x:
        return steps
    result, at = [], 0
    for step in steps:
        while at < len(other.x) - 1 and other.x[at + 1] < step:
            at += 1
        if step <= other.x[0] or len(other.x) == 1:
            result.append(other.y[0] * (step / other.x[0] if other.x[0] else 1))
            continue
        nxt = min(at + 1, len(other.x) - 1)
        span = other.x[nxt] - other.x[at]
        share = (step - other.x[at]) / span if span else 0.0
        result.append(other.y[at] + (other.y[nxt] - other.y[at]) * share)
    return result


def compare_chart(
    runs: list[tuple[str, dict[str, Series]]],
    *,
    axis: str,
    axis_name: str,
    smooth: float,
    log_scale: bool,
    eval_name: str,
) -> str:
    """Loss curves of several runs, `(name, series)`, in one figure; evaluation losses as marks in the run's color, the
    lowest a star.

    `smooth` is the weight of the moving average, 0 for none.
    """
    data = []
    for number, (name, series) in enumerate(runs):
        whole, name = literal(name), literal(shortened(name, 40))
        hover = {"meta": whole, "hovertemplate": "%{y}<extra>%{meta}</extra>"} if whole != name else {}
        color, dash = COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]
        for metric, style in (
            ("loss", {"mode": "lines", "line": {"color": color, "width": 2, "dash": dash}, "name": name}),
            (
                "eval_loss",
                {
                    "mode": "markers",
                    "marker": {"color": color, **_best_marked(series["eval_loss"].y)},
                    "name": f"{name} · {eval_name}",
                    "showlegend": False,
                },
            ),
        ):
            points = series[metric]
            y = smoothed(points.y, smooth) if smooth and metric == "loss" else points.y
            if points.x:
                x = [float(f"{v:.6g}") for v in along(series, points.x, axis)]
                data.append({"type": "scatter", "x": x, "y": [float(f"{v:.5g}") for v in y], **hover, **style})
    layout = {
        "uirevision": f"{axis}-{log_scale}",
        "margin": {"l": 52, "r": 12, "t": 8, "b": 40},
        "showlegend": True,  # also of one run alone
        "xaxis": {"title": {"text": axis_name}, **_GRID},
        "yaxis": {"type": "log" if log_scale else "linear", **_GRID},
        "legend": {"orientation": "h", "y": 1.1, "x": 0},
        "hoverlabel": {"font": {"color": "#222"}, "bgcolor": "#fff"},
    }
    return orjson.dumps({"data": data, "layout": layout}).decode()


def _best_marked(values: list[float]) -> dict:
    best = min(values, default=None)
    return {
        "symbol": ["star" if v == best else "diamond" for v in values],
        "size": [13 if v == best else 7 for v in values],
    }


def panel_chart(series: dict[str, Series], panels: list[tuple[str, tuple[str, ...]]], *, run_id: str) -> str:
    """Small charts in a grid, three in a row: `(title, metrics)` each, with a legend where there are several metrics;
    panels without points are left out."""
    filled = [(title, [m for m in metrics if series[m].x]) for title, metrics in panels]
    filled = [(title, metrics) for title, metrics in filled if metrics]
    rows = max(1, -(-len(filled) // 3))
    data, layout = (
        [],
        {"uirevision": run_id, "margin": {"l": 48, "r": 10, "t": 26, "b": 34}, "showlegend": True, "annotations": []},
    )
    for number, (title, metrics) in enumerate(filled):
        suffix = "" if number == 0 else str(number + 1)
        left, bottom = number % 3 / 3, 1 - (number // 3 + 1) / rows
        across, up = [left + 0.02, left + 0.31], [bottom + 0.14 / rows, bottom + 0.9 / rows]
        layout[f"xaxis{suffix}"] = {"domain": across, "anchor": f"y{suffix}", **_GRID}
        layout[f"yaxis{suffix}"] = {"domain": up, "anchor": f"x{suffix}", **_GRID}
        layout["annotations"].append(
            {
                "text": title,
                "showarrow": False,
                "xref": "paper",
                "yref": "paper",
                "x": across[0],
                "y": up[1],
                "xanchor": "left",
                "yanchor": "bottom",
                "font": {"size": 13},
            }
        )
        named = len(metrics) > 1
        if named:
            rises = sum(series[m].y[-1] - series[m].y[0] for m in metrics) > 0  # the lines end in the other corner
            layout[f"legend{suffix}"] = {
                "x": across[1],
                "y": up[0] if rises else up[1],
                "xanchor": "right",
                "yanchor": "bottom" if rises else "top",
                "font": {"size": 10},
                "bgcolor": "rgba(127,127,127,0.12)",
            }
        for metric, color in zip(metrics, itertools.cycle(COLORS), strict=False):
            points = series[metric]
            mode = "lines+markers" if len(points.x) < 40 else "lines"
            data.append(
                _trace(
                    points,
                    points.y,
                    escape(metric),
                    mode=mode,
                    line={"color": color, "width": 1.8},
                    xaxis=f"x{suffix}",
                    yaxis=f"y{suffix}",
                    showlegend=named,
                    legend=f"legend{suffix}",
                )
            )
    if not filled:
        hidden = {"visible": False}
        layout |= {"xaxis": hidden, "yaxis": hidden}
    return orjson.dumps({"data": data, "layout": layout}).decode()


def length_chart(edges: list[int], counts: list[int], cutoff_len: int, *, axes: tuple[str, str], title: str) -> str:
    """Histogram of row lengths; bins beyond `cutoff_len` in another color, a line at it (`title`). The last bin may be
    wider than it is drawn."""
    width = edges[1] - edges[0] if len(edges) > 1 else 1
    colors = [EVAL if cutoff_len and start >= cutoff_len else SMOOTH for start in edges[:-1]]
    ranges = [f"{start:,}–{end - 1:,}" for start, end in itertools.pairwise(edges)]
    bars = {
        "type": "bar",
        "x": [start + width / 2 for start in edges[:-1]],
        "y": counts,
        "width": width,
        "marker": {"color": colors},
        "text": ranges,
        "textposition": "none",
        "hovertemplate": "%{text}: %{y:,}<extra></extra>",
    }
    layout = {
        "margin": {"l": 58, "r": 12, "t": 24, "b": 44},
        "showlegend": False,
        "bargap": 0,
        "xaxis": {"title": {"text": axes[0]}, **_GRID, "rangemode": "tozero"},
        "yaxis": {"title": {"text": axes[1]}, **_GRID},
        "hoverlabel": {"font": {"color": "#222"}, "bgcolor": "#fff"},
        "uirevision": f"{cutoff_len}",
    }
    end = edges[0] + width * len(counts)
    if cutoff_len and cutoff_len <= 3 * end:
        dashed = {"color": EVAL, "width": 2, "dash": "dash"}
        layout["shapes"] = [
            {"type": "line", "x0": cutoff_len, "x1": cutoff_len, "y0": 0, "y1": 1, "yref": "paper", "line": dashed}
        ]
        layout["xaxis"] |= {"range": [0, max(end, cutoff_len * 1.02)]}
        mark = {"x": cutoff_len, "xanchor": "left" if cutoff_len < 0.8 * end else "right", "text": title}
    else:  # far to the right of all rows
        mark = {"x": 1, "xref": "paper", "xanchor": "right", "text": f"{title} →"}
    if cutoff_len:
        layout["annotations"] = [{**mark, "y": 1, "yref": "paper", "showarrow": False, "yanchor": "bottom"}]
    return orjson.dumps({"data": [bars], "layout": layout}).decode()
