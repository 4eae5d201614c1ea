"""Plotly figures from a run's series, as JSON for Plotly.js (a figure is a dict with `data` and `layout`)."""

import orjson

from workbench.logs import Series, smoothed

RAW, SMOOTH, EVAL = "#8fb3c9", "#0f766e", "#c2410c"  # told apart also with colour-blind eyes, and in print


def _trace(series: Series, y: list[float], name: str, **style) -> dict:
    return {
        "type": "scatter",
        "x": [round(x, 1) for x in series.x],
        "y": [float(f"{v:.5g}") for v in y],
        "name": name,
        **style,
    }


def loss_chart(
    series: dict[str, Series], names: tuple[str, str, str], *, step: str, empty: str, log_scale: bool, run_id: str
) -> str:
    """Raw and smoothed training loss and evaluation loss over steps.

    `names` are the legend's words for the three, `empty` stands in place of a chart without points. The zoom is kept as long as `run_id` stays the same (`uirevision`).
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
    grid = {"gridcolor": "rgba(128,128,128,.18)", "zeroline": False}
    layout = {
        "uirevision": f"{run_id}-{log_scale}",
        "margin": {"l": 52, "r": 12, "t": 8, "b": 40},
        "xaxis": {"title": {"text": step}, **grid},
        "yaxis": {"type": "log" if log_scale else "linear", **grid},
        "legend": {"orientation": "h", "y": 1.08, "x": 0},
        "hovermode": "x unified",
        "hoverlabel": {"font": {"color": "#222"}, "bgcolor": "#fff"},
    }
    if not train.x and not held_out.x:  # words instead of an empty pair of axes
        hidden = {"visible": False}
        words = {"text": empty, "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
        data, layout = [], layout | {"xaxis": hidden, "yaxis": hidden, "annotations": [words]}
    return orjson.dumps({"data": data, "layout": layout}).decode()
