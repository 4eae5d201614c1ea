"""What the Model tab shows as HTML. Everything that comes from a config or a folder is escaped."""

from html import escape

from workbench.messages.message import told
from workbench.models.anatomy import cache, compute, rope
from workbench.models.anatomy.fields import UNKNOWN
from workbench.models.anatomy.report import STAGES, Report
from workbench.models.anatomy.shapes import Anatomy, Layer
from workbench.models.anatomy.units import memory, operations, parameters
from workbench.ui.catalogue import say

RANK = 16  # of the adapters whose size is told
MOST_BOXES = 200  # layers that are drawn one by one
_ROPE_KINDS = ("linear", "dynamic", "yarn")


def problems_html(report: Report, lang: str) -> str:
    """What is wrong, and what was taken for granted."""
    lines = [("bad", text) for text in report.problems] + [("warn", text) for text in report.notes]
    return "".join(f"<div class='wb-note {kind}'>{escape(told(text, lang))}</div>" for kind, text in lines)


def tiles_html(report: Report, lang: str) -> str:
    """The figures that matter, at a glance."""
    anatomy = report.anatomy
    if anatomy is None:
        return f"<p class='wb-sub'>{escape(say('model_unknown_figures', lang))}</p>"
    sizes, context = anatomy.sizes, report.context
    tiles = [
        (parameters(anatomy.total), say("model_total", lang)),
        (parameters(anatomy.active), say("model_active", lang)),
        (str(sizes.layers), say("model_layers", lang)),
        (memory(cache.cache_bytes(sizes, 1, windows=False)), say("model_cache_token", lang)),
    ]
    if context:
        tiles.append((memory(cache.cache_bytes(sizes, context)), say("model_cache_full", lang, context=f"{context:,}")))
    tiles.append((operations(compute.token_flops(anatomy)), say("model_flops", lang)))
    boxes = "".join(
        f"<div class='wb-tile'><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in tiles
    )
    return f"<div class='wb-tiles'>{boxes}</div>"


def counted_text(anatomy: Anatomy, lang: str) -> str:
    """What the counts of parameters count."""
    key = "model_counted" if anatomy.sizes.experts else "model_counted_dense"
    values = {"total": f"{anatomy.total:,}", "multiplied": parameters(anatomy.multiplied)}
    if anatomy.sizes.experts:
        values["active"] = parameters(anatomy.active)
    return say(key, lang, **values)


def cache_texts(report: Report, lang: str) -> list[str]:
    """How the cache's figures come about."""
    anatomy = report.anatomy
    if anatomy is None:
        return []
    sizes = anatomy.sizes
    mla, gqa, mha = cache.variants(sizes)
    texts = [
        say(
            "model_cache_words",
            lang,
            mla=mla.elements,
            kv=mla.kv,
            rope=mla.rope,
            gqa=gqa.elements,
            groups=gqa.groups,
            mha=mha.elements,
            heads=mha.groups,
            width=cache.head_width(sizes),
            foreign="" if mla.own else say("model_cache_as_mla", lang),
        )
    ]
    limited = [window for window in sizes.windows if window]
    if limited and report.context and min(limited) < report.context:
        texts.append(
            say(
                "model_cache_windows",
                lang,
                count=len(limited),
                layers=sizes.layers,
                window=f"{min(limited):,}",
                less=memory(cache.cache_bytes(sizes, report.context)),
                all=memory(cache.cache_bytes(sizes, report.context, windows=False)),
            )
        )
    if sizes.latent:
        same, published = cache.published_saving(sizes)
        paper = say("model_cache_paper", lang) if f"{published:.1%}" == "93.3%" else ""
        texts.append(say("model_cache_saving", lang, same=f"{same:.1%}", published=f"{published:.1%}", paper=paper))
    return texts


def flops_text(report: Report, lang: str) -> str:
    """Arithmetic of a token in words."""
    anatomy = report.anatomy
    if anatomy is None:
        return ""
    context = report.context or 4096
    return say(
        "model_flops_words",
        lang,
        token=operations(compute.token_flops(anatomy)),
        context=f"{context:,}",
        full=operations(compute.token_flops(anatomy, context)),
        frozen=compute.FROZEN,
        all=compute.FULL,
    )


def paragraphs(*texts: str) -> str:
    return "".join(f"<p class='wb-sub'>{escape(text)}</p>" for text in texts if text)


def _kind(layer: Layer, lang: str) -> str:
    kind = say("map_mixture" if layer.mixture else "map_dense", lang)
    return f"{kind}, {say('map_window', lang)} ({layer.window:,})" if layer.window else kind


def map_html(report: Report, lang: str) -> str:
    """The layers as boxes in a row, and the weights of one layer of each kind."""
    anatomy = report.anatomy
    if anatomy is None:
        return ""
    sizes = anatomy.sizes
    kinds = {number: layer for layer in anatomy.layers for number in layer.numbers}
    boxes = [f"<i class='embedding' title='{escape(say('map_embedding', lang), quote=True)}'></i>"]
    for number in range(min(sizes.layers, MOST_BOXES)):
        layer = kinds[number]
        title = say("map_title", lang, number=number, kind=_kind(layer, lang), count=parameters(layer.count))
        classes = ("mixture" if layer.mixture else "dense") + (" window" if layer.window else "")
        boxes.append(f"<i class='{classes}' title='{escape(title, quote=True)}'></i>")
    if sizes.layers > MOST_BOXES:
        boxes.append(f"<span>… {sizes.layers}</span>")
    boxes.append(f"<i class='head' title='{escape(say('map_head', lang), quote=True)}'></i>")
    windows = sum(map(bool, sizes.windows))
    words = say("map_words", lang, name=report.found.name, layers=sizes.layers, mixtures=sum(sizes.mixtures))
    words += say("map_windows", lang, count=windows) if windows else ""
    shown = ["embedding"]
    shown += [kind for kind, there in (("dense", not all(sizes.mixtures)), ("mixture", any(sizes.mixtures))) if there]
    shown += ["window"] if windows else []
    legend = "".join(
        f"<span><i class='{'dense window' if kind == 'window' else kind}'></i>{escape(say(f'map_{kind}', lang))}</span>"
        for kind in (*shown, "head")
    )
    inside = "".join(_inside(layer, lang) for layer in anatomy.layers)
    return (
        f"<div class='wb-layers' role='img' aria-label='{escape(words, quote=True)}'>{''.join(boxes)}</div>"
        f"<div class='wb-layers-legend'>{legend}</div><p class='wb-sub'>{escape(words)}</p>{inside}"
    )


def _inside(layer: Layer, lang: str) -> str:
    rows = "".join(
        f"<tr><td>{escape(w.name)}</td><td>{' × '.join(f'{side:,}' for side in w.shape)}</td><td>{w.count:,}</td></tr>"
        for w in layer.weights
    )
    title = say("map_inside", lang, kind=_kind(layer, lang), number=len(layer.numbers))
    head = "".join(f"<th>{escape(say(key, lang))}</th>" for key in ("map_weight", "map_shape", "map_count"))
    return (
        f"<details><summary>{escape(title)}</summary><div class='wb-wide' tabindex='0'><table class='wb-table'>"
        f"<tr>{head}</tr>{rows}</table></div></details>"
    )


def rope_rows(report: Report, factor: float, lang: str) -> list[tuple[str, int, str]]:
    """What scalings make of the context: `(scaling, context in tokens, words)`."""
    one = report.rotary
    if one is None or not one.original:
        return []
    rows = [(say("rope_plain", lang), one.original, _says(one, "plain", 1.0, lang))]
    if one.kind != "default":
        name = say("rope_own", lang, kind=f"{one.kind} × {one.factor:g}")
        rows.append((name, one.context, _says(one, one.kind, one.factor, lang)))
    for kind in _ROPE_KINDS:
        name = f"{kind} × {factor:g} ({say('rope_by_option', lang)})"
        rows.append((name, rope.stretched(one, factor), _says(one, kind, factor, lang)))
    return rows


def rope_html(report: Report, factor: float, lang: str) -> str:
    """The same as a table."""
    if report.rotary is None or not report.rotary.original:
        return ""
    pairs = report.rotary.dims // 2
    head = "".join(
        f"<th>{escape(text)}</th>"
        for text in (say("rope_kind", lang), say("rope_context", lang), say("rope_effect", lang, pairs=pairs))
    )
    body = "".join(
        f"<tr><td>{escape(name)}</td><td>{context:,}</td><td>{escape(words)}</td></tr>"
        for name, context, words in rope_rows(report, factor, lang)
    )
    return (
        f"<div class='wb-wide' tabindex='0'><table class='wb-table' id='rope-table'><tr>{head}</tr>{body}</table></div>"
    )


def _says(one: rope.Rope, kind: str, factor: float, lang: str) -> str:
    turns = rope.plain(one)
    if kind == "plain":
        return say("rope_says_plain", lang, unseen=rope.unseen(one, turns), original=f"{one.original:,}")
    if kind == "linear":
        return say("rope_says_linear", lang, factor=f"{factor:g}")
    if kind == "dynamic":
        target = rope.stretched(one, factor)
        if target <= one.context:
            return say("rope_says_dynamic_never", lang, before=f"{one.context:,}", context=f"{target:,}")
        later = rope.scaled(one, "dynamic", factor, target)
        base = later[1] ** (-one.dims / 2) if len(later) > 1 else one.theta
        values = {"before": f"{one.context:,}", "context": f"{target:,}", "theta": f"{one.theta:,.0f}"}
        return say("rope_says_dynamic", lang, base=f"{base:,.0f}", **values)
    if kind in ("yarn", "llama3"):
        later = rope.scaled(one, kind, factor)
        kept = sum(abs(a / b - 1) < 1e-6 for a, b in zip(later, turns, strict=True))
        full = sum(abs(a * factor / b - 1) < 1e-6 for a, b in zip(later, turns, strict=True))
        return say(f"rope_says_{kind}", lang, kept=kept, full=full, factor=f"{factor:g}")
    if kind == "longrope":
        by = [a / b for a, b in zip(turns, rope.scaled(one, kind, factor, one.context), strict=True)]
        return say("rope_says_longrope", lang, least=f"{min(by):.2f}", largest=f"{max(by):.2f}")
    return ""


def fields_html(report: Report, lang: str) -> str:
    """Every field: value, meaning, what changing it does, and the siblings' values."""
    index = 1 if lang == "zh" else 0
    names = report.siblings
    head = "".join(
        f"<th>{escape(text)}</th>"
        for text in (
            *(say(f"fields_{key}", lang) for key in ("name", "value", "meaning", "effect")),
            *names,
        )
    )
    rows, group = [], None
    for f in report.fields:
        if f.group != group:
            group = f.group
            words = escape(say(f"group_fields_{group}", lang))
            rows.append(f"<tr class='wb-group'><th colspan='{4 + len(names)}' scope='colgroup'>{words}</th></tr>")
        meaning, effect = f.meaning[index], f.effect[index]
        if f.group == UNKNOWN:
            meaning = say("fields_unknown", lang)
        beside = "".join(f"<td>{escape(value)}</td>" for value in f.siblings)
        rows.append(
            f"<tr><td><code>{escape(f.name)}</code></td><td>{escape(f.value)}</td>"
            f"<td>{escape(meaning)}</td><td>{escape(effect)}</td>{beside}</tr>"
        )
    table = f"<table class='wb-table' id='fields-table'><tr>{head}</tr>{''.join(rows)}</table>"
    return f"<div class='wb-wide' tabindex='0'>{table}</div>"


def here_rows(report: Report, lang: str) -> list[tuple[str, str]]:
    """What can be done with the model on this machine: `(what, words)`."""
    rows = []
    if report.anatomy is not None:
        linears, total = report.anatomy.linears(), report.anatomy.total
        lines = [
            say(
                "here_lora_row",
                lang,
                name=one.name,
                rows=one.out_features,
                columns=one.in_features,
                count=one.count,
                component=say(f"component_{one.component}", lang),
            )
            + (say("here_lora_experts", lang, experts=one.experts) if one.experts else "")
            for one in linears
        ]
        trained = sum(one.lora_parameters(RANK) for one in linears)
        lines.append(say("here_lora_all", lang, count=parameters(trained), share=f"{trained / total:.2%}"))
        rows.append((say("here_lora", lang), "\n".join(lines)))
    can, why = report.four_bit
    words = say("here_untold" if can is None else "here_yes", lang)
    if can is False:
        words = say("here_no", lang, reason=why)
    rows.append((say("here_bits", lang), words))
    rows.append((say("here_stages", lang), ", ".join(STAGES)))
    folder = report.folder
    if folder is None:
        return [*rows, (say("here_files", lang), say("here_files_none", lang))]
    where = say("here_template_own", lang, file=folder.template) if folder.template else say("here_template_none", lang)
    rows.append((say("here_template", lang), where))
    size = memory(folder.weight_bytes)
    whole = say("here_files_whole", lang, count=folder.weight_files, size=size)
    none = say("here_files_broken", lang) if folder.problems else say("here_files_none", lang)
    rows.append((say("here_files", lang), whole if folder.whole else none))
    said = folder.license or say("here_license_unsaid" if folder.has_card else "here_card_none", lang)
    rows.append((say("here_license", lang), say("here_gated", lang, license=said) if folder.gated else said))
    if folder.code:
        names = ", ".join(folder.code[:5]) + (" …" if len(folder.code) > 5 else "")
        rows.append((say("here_code", lang), say("here_code_found", lang, files=names)))
    return rows


def here_html(report: Report, lang: str) -> str:
    """The same as a table."""
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{'<br>'.join(map(escape, words.splitlines()))}</td></tr>"
        for name, words in here_rows(report, lang)
    )
    return f"<div class='wb-wide' tabindex='0'><table class='wb-table' id='here-table'>{rows}</table></div>"
