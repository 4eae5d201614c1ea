"""Answers as HTML with every token colored. All text is escaped here, template signs of the page too."""

import json
from html import escape

from workbench.ui.catalogue import say
from workbench.uncertainty.confidence import LOW, TokenView, summary, views
from workbench.uncertainty.consistency import Check
from workbench.uncertainty.contradiction import Reading

# one listener for all tokens: hover or tap shows what else the model had in mind, a click on an alternative branches
# there
TOKENS_JS = """
const card = document.createElement('div');
card.className = 'wb-pop'; card.hidden = true; element.appendChild(card);
let pinned = null;
const show = (token) => {
  const known = JSON.parse(token.dataset.t);
  card.replaceChildren();
  const line = document.createElement('div');
  line.className = 'wb-pop-head'; line.textContent = known.line; card.appendChild(line);
  for (const [index, text, share] of known.top) {
    const button = document.createElement('button');
    button.type = 'button'; button.disabled = !known.branch;
    const bar = document.createElement('i'); bar.style.width = Math.max(2, share * 100) + '%';
    const word = document.createElement('span'); word.textContent = text;
    const number = document.createElement('b'); number.textContent = (share * 100).toFixed(1) + '%';
    button.append(bar, word, number);
    button.onclick = (event) => {
      event.stopPropagation(); hide();
      trigger('click', {place: Number(token.dataset.i), alternative: index, turn: known.turn});
    };
    card.appendChild(button);
  }
  element.appendChild(card); card.hidden = false;
  const at = token.getBoundingClientRect(), home = element.getBoundingClientRect();
  card.style.left = Math.max(0, Math.min(at.left - home.left, home.width - card.offsetWidth - 4)) + 'px';
  const below = at.bottom + 2 + card.offsetHeight <= window.innerHeight || at.top < card.offsetHeight;
  card.style.top = (below ? at.bottom - home.top + 2 : at.top - home.top - card.offsetHeight - 2) + 'px';
};
const hide = () => { card.hidden = true; pinned = null; };
element.addEventListener('mouseover', (event) => {
  const token = event.target.closest('[data-t]'); if (token && !pinned) show(token);
});
element.addEventListener('focusin', (event) => {
  const token = event.target.closest('[data-t]'); if (token) show(token);
});
element.addEventListener('mouseleave', () => { if (!pinned) hide(); });
element.addEventListener('click', (event) => {
  const token = event.target.closest('[data-t]');
  if (token) { pinned = token; show(token); } else if (!card.contains(event.target)) hide();
});
element.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') hide();
  if (event.key === 'Enter' && event.target.dataset && event.target.dataset.t) {
    pinned = event.target; show(pinned); card.querySelector('button')?.focus();
  }
});
watch('value', hide);
"""


def safe(text: str) -> str:
    """`text` as HTML text, also where the page's own templates would read `{{` and `${`."""
    return escape(text).replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;").replace("`", "&#96;")


def visible(text: str) -> str:
    """A token's text with its line ends and lone spaces to be seen."""
    if not text:
        return "<i>·</i>"
    return safe(text).replace("\n", "<i>⏎</i><br>").replace("\t", "<i>⇥</i>")


def _plain(text: str) -> str:
    """For the card: blanks to be seen."""
    return text.replace("\n", "⏎").replace(" ", "␣") if not text.strip() else text.replace("\n", "⏎")


def legend(lang: str) -> str:
    names = ["< 20 %", "20–50 %", "50–80 %", "80–95 %", "> 95 %"]
    boxes = "".join(f"<span class='tk b{i}'>{escape(name)}</span> " for i, name in enumerate(names))
    return f"<div class='wb-legend'>{escape(say('legend_probability', lang))} {boxes}</div>"


def confidence_html(entries: list[dict], lang: str, branch: bool = True, turn: int = 0) -> str:
    """An answer with every token colored by its probability, and above it what matters most. A click tells the `turn`
    that was shown."""
    tokens = views(entries)
    if not tokens:
        return f"<div class='wb-note warn'>{escape(say('no_logprobs', lang))}</div>"
    of = summary(tokens)
    head = say(
        "confidence_summary",
        lang,
        mean=f"{of.mean_logprob:.2f}",
        span=of.weakest or "…",
        low=of.low,
        tokens=of.tokens,
        probability=f"{of.weakest_probability:.0%}",
        limit=f"{LOW:.0%}",
    )
    body = "".join(_token(number, token, lang, branch, turn) for number, token in enumerate(tokens))
    note = escape(say("uncertainty_note", lang))
    return (
        f"<div class='wb-sub' id='confidence-summary'>{safe(head)}</div>{legend(lang)}<div"
        f" class='wb-tokens'>{body}</div><div class='wb-sub'>{note}</div>"
    )


def _token(number: int, token: TokenView, lang: str, branch: bool, turn: int) -> str:
    line = say(
        "token_line",
        lang,
        p=f"{token.probability:.1%}",
        rank=token.rank or f">{len(token.top)}",
        entropy="–" if token.entropy is None else f"{token.entropy:.2f}",
    )
    known = {
        "line": line,
        "branch": branch,
        "turn": turn,
        "top": [[i, _plain(text), share] for i, (text, share) in enumerate(token.top)],
    }
    return (
        f"<span class='tk b{token.bin}' tabindex='0' data-i='{number}'"
        f" data-t='{safe(json.dumps(known))}'>{visible(token.text)}</span>"
    )


def difference_html(with_: list[dict], without: list[dict], lang: str) -> str:
    """The same answer, each token colored by how much more (blue) or less (orange) probable the adapter made it."""
    if not with_ or len(with_) != len(without):
        return f"<div class='wb-note warn'>{escape(say('no_logprobs', lang))}</div>"
    body, moved = [], []
    for number, (on, off) in enumerate(zip(views(with_), views(without), strict=True)):
        change = on.probability - off.probability
        moved.append((change, on, off))
        shade = 0 if abs(change) < 0.05 else 1 if abs(change) < 0.25 else 2 if abs(change) < 0.6 else 3
        line = say("difference_line", lang, on=f"{on.probability:.1%}", off=f"{off.probability:.1%}")
        known = {
            "line": line,
            "branch": False,
            "top": [[i, _plain(text), share] for i, (text, share) in enumerate(off.top)],
        }
        kind = ("m" if change < 0 else "p") + str(shade) if shade else "z"
        body.append(
            f"<span class='tk {kind}' tabindex='0' data-i='{number}'"
            f" data-t='{safe(json.dumps(known))}'>{visible(on.text)}</span>"
        )
    taught = sum(on.probability - off.probability > 0.25 for _, on, off in moved)
    sure = sum(on.probability > 0.95 and off.probability < 0.2 for _, on, off in moved)
    head = say(
        "difference_summary",
        lang,
        on=f"{sum(on.logprob for _, on, _ in moved) / len(moved):.2f}",
        off=f"{sum(off.logprob for _, _, off in moved) / len(moved):.2f}",
        taught=taught,
        sure=sure,
    )
    scale = (
        f"<span class='tk p3'>{escape(say('more_likely', lang))}</span> <span class='tk z'>=</span> <span class='tk"
        f" m3'>{escape(say('less_likely', lang))}</span>"
    )
    return (
        f"<div class='wb-sub' id='difference-summary'>{safe(head)}</div><div class='wb-legend'>{scale}</div><div"
        f" class='wb-tokens'>{''.join(body)}</div>"
    )


def consistency_html(check: Check, lang: str) -> str:
    """The answer's sentences colored by how far the samples support them, and the samples beside them."""
    level = say(f"level_{check.level}", lang)
    head = say(
        "consistency_summary",
        lang,
        total=f"{check.total:.0%}",
        words=level,
        n=len(check.samples),
        differ=len(check.disagreeing),
        meanings=check.meanings,
    )
    lines = []
    for text, score in check.sentences:
        kind = "z" if score is None else "b0" if score < 0.3 else "b1" if score < 0.6 else "b2" if score < 0.8 else "b4"
        number = "" if score is None else f" <b class='wb-score'>{score:.0%}</b>"
        lines.append(f"<span class='tk {kind}'>{safe(text).replace(chr(10), '<br>')}{number}</span>")
    facts = ", ".join(f"{safe(fact)} {share:.0%}" for fact, share in check.details[:20])
    parts = []
    for number, sample in enumerate(check.samples):
        differs = number in check.disagreeing
        mark = escape(say("disagrees" if differs else "agrees", lang))
        parts.append(
            f"<li class='{'differs' if differs else ''}'><b>{mark}</b> {safe(sample).replace(chr(10), '<br>')}</li>"
        )
    return (
        f"<div class='wb-note {'ok' if check.level == 'supported' else 'warn'}'"
        f" id='consistency-summary'>{safe(head)}</div><div class='wb-pair'><div class='wb-tokens'>{''.join(lines)}<div"
        f" class='wb-sub'>{facts}</div></div><ol class='wb-samples'>{''.join(parts)}</ol></div><div"
        f" class='wb-sub'>{escape(say('consistency_note', lang))}</div>"
    )


def contradiction_html(readings: list[Reading], lang: str, wordings: int | None = None) -> str:
    """Wordings and answers side by side; those that contradict the rest are marked. `wordings`: how
    many there are, while not all are answered."""
    rows = []
    for reading in readings:
        stance = say(f"stance_{reading.stance or 'unclear'}", lang)
        asked = safe(reading.wording.question) + (
            f" <i>({escape(say('asks_opposite', lang))})</i>" if reading.wording.opposite else ""
        )
        mark = f"<b>⚠ {escape(say('contradicts', lang))}</b>" if reading.contradicts else ""
        kind = "contradicts" if reading.contradicts else ""
        rows.append(
            f"<tr class='{kind}'><td>{asked}</td><td>{safe(reading.answer).replace(chr(10), '<br>')}</td>"
            f"<td>{escape(stance)}</td><td>{mark}</td></tr>"
        )
    bad = sum(reading.contradicts for reading in readings)
    verdict = say("contradictions" if bad else "no_contradictions", lang, count=bad, total=len(readings))
    if wordings and wordings > len(readings):
        verdict = say("asked_so_far", lang, done=len(readings), total=wordings) + " " + verdict
    titles = "".join(f"<th>{escape(say(key, lang))}</th>" for key in ("wording", "reply", "stance", "mark"))
    return (
        f"<div class='wb-note {'warn' if bad else 'ok'}' id='contradiction-summary'>{escape(verdict)}</div>"
        f"<div class='wb-wide'><table class='wb-table'><tr>{titles}</tr>{''.join(rows)}</table></div>"
    )
