"""Rows of data as HTML: conversation, tokens, exact text; problems; statistics. All text of the data is escaped
here."""

from html import escape

from workbench.data.formats import BROKEN, KINDS_OF_PROBLEMS
from workbench.ui.catalogue import say
from workbench.ui.notes import note, told
from workbench.ui.phrases import duration, suggestion
from workbench.ui.token_view import safe, visible

PARTS = ("conversation", "tokens", "text")

# a click on a row's button tells its number, and what is wanted with it
ROWS_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-edit], [data-look]');
  if (!button) return;
  const {edit, look} = button.dataset;
  trigger('click', edit ? {edit: Number(edit)} : {look: Number(look)});
});
"""


def legend(lang: str) -> str:
    """What the colors mean."""
    return (
        f"<div class='wb-legend'><span class='tk tr'>{escape(say('data_trained', lang))}</span> <span class='tk"
        f" mk'>{escape(say('data_masked', lang))}</span> <span class='wb-cut'>✂ 12</span>"
        f" {escape(say('data_cut_mark', lang))}</div>"
    )


def rows_html(rows: list[dict], parts: list[str], lang: str) -> str:
    """A card for each row of `data.preview.row_view`."""
    return legend(lang) * ("tokens" in parts) + "".join(_card(row, parts, lang) for row in rows)


def _number(value: int) -> str:
    return f"{value:,}"


def _card(row: dict, parts: list[str], lang: str) -> str:
    head = (
        f"<div class='wb-head'><b>{escape(say('data_row_head', lang, row=_number(row['row'])))}</b><span"
        f" class='wb-sub'>{safe(row['place'])}</span><button type='button' class='wb-link'"
        f" data-edit='{row['row']}'>{escape(say('data_edit', lang))}</button></div>"
    )
    notes = "".join(
        note_safe(f"{say('kind_' + kind, lang)}: {told(reason, lang)}", "bad" if kind in BROKEN else "warn")
        for kind, reason in row["problems"]
    )
    if row.get("broken"):
        body = f"<pre class='wb-source'>{safe(row['source'][:4000])}</pre>"
    else:
        talk = f"<div class='wb-cell'>{_conversation(row, lang)}</div>" if "conversation" in parts else ""
        lines = [talk] if talk and not row["encoded"] else []
        for number, encoded in enumerate(row["encoded"], 1):  # the pieces of a plain text, one under the other
            piece = say("data_piece", lang, number=number) + " · " if len(row["encoded"]) > 1 else ""
            if row["kind"] == "pairs":
                piece = say("data_chosen" if number == 1 else "data_rejected_pair", lang) + " · "
            cells = talk if number == 1 else "<div></div>" * bool(talk)
            if "tokens" in parts:
                cells += f"<div class='wb-cell'>{_lengths(encoded, piece, lang)}{tokens_html(encoded, lang)}</div>"
            if "text" in parts:
                cells += f"<div class='wb-cell'><pre class='wb-source'>{safe(encoded['text'])}</pre></div>"
            if row["kind"] == "pairs" and number == 2:  # beside the chosen one
                lines[-1] += cells.removeprefix("<div></div>")
                continue
            lines.append(cells)
        body = "".join(f"<div class='wb-cells'>{cells}</div>" for cells in lines)
        if row["large"]:
            body += f"<div class='wb-sub'>{escape(say('data_large', lang))}</div>"
        if row["pieces"] > len(row["encoded"]):
            more = _number(row["pieces"] - len(row["encoded"]))
            body += f"<div class='wb-sub'>{escape(say('data_pieces', lang, count=more))}</div>"
    return f"<div class='wb-card wb-row' data-row='{row['row']}'>{head}{notes}{body}</div>"


def note_safe(text: str, kind: str) -> str:
    """A message box whose text may have signs that the page's templates read."""
    return f"<div class='wb-note {kind}'>{safe(text)}</div>"


def _lengths(encoded: dict, piece: str, lang: str) -> str:
    key = "data_lengths_cut" if encoded["full_length"] > encoded["length"] else "data_lengths"
    line = say(
        key,
        lang,
        length=f"{encoded['length']:,}",
        full=f"{encoded['full_length']:,}",
        trained=f"{encoded['trained']:,}",
    )
    more = f" {say('data_answer_cut', lang)}" if encoded["answer_cut"] else ""
    return f"<div class='wb-sub'>{escape(piece + line + more)}</div>"


def _conversation(row: dict, lang: str) -> str:
    parts = []
    if row["label"] is not None:
        unwanted = "data_label_unwanted" if row["kind"] == "labeled" else "data_label_false"
        label = say("data_label_true" if row["label"] else unwanted, lang)
        parts.append(f"<div class='wb-sub'>{escape(label)}</div>")
    if row["tools"]:
        parts.append(
            f"<details class='wb-details'><summary>{escape(say('data_tools', lang))}</summary><pre"
            f" class='wb-source'>{safe(row['tools'])}</pre></details>"
        )
    if row["text"] is not None:
        parts.append(f"<div class='wb-turn'>{_lines(row['text'])}</div>")
    for turn in row["turns"]:
        name = turn.get("mark", "")
        name += "_pair" if name == "rejected" and row["kind"] == "pairs" else ""
        mark = f" <i>{escape(say('data_' + name, lang))}</i>" if name else ""
        calls = "".join(
            f"<pre class='wb-source'>{escape(say('data_calls', lang))} {safe(call)}</pre>" for call in turn["calls"]
        )
        kind = f"{turn['role']} {turn.get('mark', '')}".strip()
        parts.append(
            "<div class='wb-turn"
            f" {escape(kind)}'><b>{escape(turn['role'])}</b>{mark}<div>{_lines(turn['content'])}</div>{calls}</div>"
        )
    return "".join(parts)


def _lines(text: str) -> str:
    return safe(text).replace("\n", "<br>")


def tokens_html(encoded: dict, lang: str) -> str:
    """Every token with its id, trained or masked, and marks where something was cut or a packed conversation begins."""
    cuts = {index: f"✂ {count:,}" for index, count in encoded.get("cuts", [])}
    if encoded.get("dropped_turns"):
        at = encoded["dropped_at"]
        cuts[at] = (
            "✂ " + say("data_turns_out", lang, count=encoded["dropped_turns"]) + (f", {cuts[at]}" if at in cuts else "")
        )
    starts = {index: number for number, index in enumerate(encoded.get("starts", []), 1)}
    several, parts, index = len(starts) > 1, [], 0
    for position, (id_, text, trained) in enumerate(encoded["tokens"]):
        index = position if position < encoded["head"] else position + encoded["skipped"]
        if position == encoded["head"]:
            parts.append(
                f"<span class='wb-cut'>… {escape(say('data_hidden', lang, count=_number(encoded['skipped'])))} …</span>"
            )
        if several and index in starts:
            parts.append(f"<div class='wb-start'>{escape(say('data_starts', lang, number=starts[index]))}</div>")
        if index in cuts:
            parts.append(f"<span class='wb-cut'>{escape(cuts[index])}</span>")
        shown, breaks = visible(text), ""
        while shown.endswith("<br>"):  # the line ends behind the token and its id
            shown, breaks = shown.removesuffix("<br>"), breaks + "<br>"
        kind = "tr" if trained else "mk"
        parts.append(f"<span class='tk {kind}' title='{id_}' data-id='{id_}'>{shown}</span>{breaks}")
    if cuts.get(index + 1):
        parts.append(f"<span class='wb-cut'>{escape(cuts[index + 1])}</span>")
    return f"<div class='wb-tokens'>{''.join(parts)}</div>"


def batches_html(result: dict, lang: str) -> str:
    """Sequences of `train.batches.sequences`, and what the run's log says of the data."""
    log_lines = "".join(f"<li>{safe(line)}</li>" for line in result["log"])
    cards = []
    for one in result["sequences"]:
        head = say("data_sequence", lang, number=f"{one['number']:,}", total=f"{result['total']:,}")
        words = say("data_lengths", lang, length=f"{one['length']:,}", trained=f"{one['trained']:,}")
        if len(one["starts"]) > 1:
            words += " · " + say("data_packed", lang, count=len(one["starts"]))
        cards.append(
            f"<div class='wb-card wb-row'><div class='wb-head'><b>{escape(head)}</b><span"
            f" class='wb-sub'>{escape(words)}</span></div>{tokens_html(one, lang)}</div>"
        )
    return f"<ul class='wb-sub'>{log_lines}</ul>{legend(lang)}{''.join(cards)}"


def bar_html(words: str, share: float) -> str:
    """A progress bar; without a known share it only says the words."""
    bar = f"<div class='wb-bar'><div style='width:{100 * share:.0f}%'></div></div>" if share > 0 else ""
    return f"<div class='wb-sub'>{safe(words)} …</div>{bar}"


def check_html(result: dict, lang: str) -> str:
    """What a check found: counts, and a table of the first problems, each with a button to its row."""
    count = sum(result["counts"].values())
    rows = f"{result['rows']:,}"
    if not count:
        message = note(say("data_check_clean", lang, rows=rows))
    else:
        noticed = count - result["broken"]
        message = note(
            say("data_check_found", lang, rows=rows, broken=f"{result['broken']:,}", noticed=f"{noticed:,}"),
            "bad" if result["broken"] else "warn",
        )
    if result["untokenized"]:
        message += note_safe(say("data_unchecked", lang, why=result["untokenized"]), "warn")
    if result["unused"]:
        unused = say("data_unused", lang, columns=", ".join(result["unused"]))
        message += f"<p class='wb-sub'>{safe(unused)}</p>"
    if not count:
        return message
    tiles = "".join(
        f"<div class='wb-tile'><b>{result['counts'][kind]:,}</b><span>{escape(say('kind_' + kind, lang))}</span></div>"
        for kind in KINDS_OF_PROBLEMS
        if kind in result["counts"]
    )
    lines = "".join(
        f"<tr><td><button type='button' class='wb-link' data-look='{row}'>{row:,}</button></td><td>{safe(place)}</td>"
        f"<td class='wb-verdict {'bad' if kind in BROKEN else 'warn'}'><b>{escape(say('kind_' + kind, lang))}</b></td>"
        f"<td>{safe(told(reason, lang))}</td></tr>"
        for row, place, kind, reason in result["problems"]
    )
    more = ""
    if count > len(result["problems"]):
        first = say("data_check_first", lang, shown=len(result["problems"]), count=_number(count))
        more = f"<p class='wb-sub'>{escape(first)}</p>"
    titles = "".join(
        f"<th>{escape(say(key, lang))}</th>" for key in ("data_edit_row", "data_place", "data_kind", "data_problem")
    )
    return (
        f"{message}<div class='wb-tiles'>{tiles}</div>{more}<div class='wb-wide'><table class='wb-table'"
        f" id='problem-table'><tr>{titles}</tr>{lines}</table></div>"
    )


def stats_html(statistics: dict, lang: str) -> str:
    """Tiles of `data.statistics.Statistics`, and what it suggests."""
    if not statistics["training_rows"]:
        return note_safe(
            f"{statistics['dataset']}: {say('data_stats_empty', lang)} {statistics['first_broken']}", "bad"
        )
    middle = statistics["percentiles"]
    tiles = [
        (f"{statistics['training_rows']:,}", say("data_rows_training", lang)),
        (f"{statistics['tokens']:,}", say("data_all_tokens", lang)),
        (f"{statistics['share_trained']:.1%}", say("data_share_trained", lang)),
        (f"{middle['50']:,} · {statistics['mean']:,.0f}", say("data_length_mean", lang)),
        (f"{middle['99']:,} · {statistics['longest']:,}", say("data_length_long", lang)),
        (f"{statistics['rows_cut']:,} ({statistics['share_rows_cut']:.1%})", say("data_rows_cut", lang)),
        (f"{statistics['share_tokens_lost']:.2%}", say("data_tokens_lost", lang)),
        (f"{statistics['sequences']:,}", say("data_sequences", lang)),
        (f"{statistics['steps']:,}", say("data_steps", lang)),
    ]
    if statistics["seconds"] is None:
        tiles.append(("–", say("data_time_unknown", lang)))
    else:
        tiles.append(
            (
                duration(statistics["seconds"]),
                say("data_time", lang, speed=f"{statistics['throughput']:,.0f}", run=statistics["throughput_of"]),
            )
        )
    shown = "".join(
        f"<div class='wb-tile'><b>{escape(value)}</b><span>{safe(words)}</span></div>" for value, words in tiles
    )
    counts = {key: f"{statistics[key]:,}" for key in ("rows", "held_out", "broken", "untrained")}
    head = (
        f"<div class='wb-sub'><b>{safe(statistics['dataset'])}</b>:"
        f" {safe(say('data_stats_rows', lang, **counts))}</div>"
    )
    words = "\n".join(suggestion(kind, values, lang) for kind, values in statistics["suggestions"])
    return (
        f"{head}<div class='wb-tiles' id='stats-tiles'>{shown}</div><div"
        f" style='height:8px'></div>{note(words or say('suggest_none', lang), 'warn' if words else 'ok')}"
    )
