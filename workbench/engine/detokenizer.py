"""From tokens to the text that a client gets: letters of several tokens, stop texts, and what was measured of each
piece."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from workbench.engine.backend import Token, TokenInfo

_CONTEXT = 8  # tokens of a prompt that tell how the first one after it is written


def after_prompt(tokenizer, prompt: Sequence[int], skip_special: bool) -> DecodeStream:
    """A stream that writes what follows a prompt. SentencePiece's decoders drop a space at the beginning of a text,
    which the first token of an answer is not."""
    shown = [token for token in prompt[-_CONTEXT:] if not skip_special or token not in tokenizer.all_special_ids]
    text = tokenizer._tokenizer.decode(shown, skip_special_tokens=skip_special)
    if not text or text.endswith("\ufffd"):  # nothing to go on from, or half a letter
        shown = []
    return DecodeStream(ids=shown, skip_special_tokens=skip_special)


class AnswerRow:
    """One answer on its way: its text, and what was measured of the tokens whose text is not out yet.

    `plain`: special tokens are no part of the text. `prompt`: the tokens before the answer.
    """

    def __init__(self, index: int, tokenizer, stops: tuple[str, ...], plain: bool, prompt: Sequence[int] = ()):
        self.index, self._tokenizer = index, tokenizer._tokenizer
        self._detokenizer = after_prompt(tokenizer, prompt, plain)
        self._text, self._sent = StopText(stops), 0
        self._length = 0  # characters so far, held back or not
        self._held: list[tuple[int, TokenInfo]] = []  # with the place where the token's text begins

    def add(self, token: int, info: TokenInfo | None, *, end: bool, ended: bool, full: bool) -> Token:
        """Take one token. `end`: it is an end token, which is not part of the text; `ended`: nothing may follow;
        `full`: no more are wanted."""
        piece = "" if end else self._detokenizer.step(self._tokenizer, token) or ""
        if info and not end:
            info.text = piece
            self._held.append((self._length, info))
        self._length += len(piece)
        text, stopped = self._text.add(piece)
        finish = "stop" if stopped or ended else "length" if full else None
        if finish and not stopped:
            text += self._text.rest()
        self._sent += len(text)
        infos = self._measured(all_=bool(finish) and not stopped)
        sent = Token(text, finish, self.index, infos)
        if end:
            sent.end, sent.end_info = self._tokenizer.id_to_token(token) or "", info
        return sent

    def close(self, finish: str) -> Token:
        """No more tokens come: what was held back of the text and of the measurements."""
        return Token(self._text.rest(), finish, self.index, self._measured(all_=True))

    def _measured(self, all_: bool) -> list[TokenInfo]:
        """Measurements of tokens whose text has begun to go out; after a stop text the rest belongs to nobody. A token
        that is a part of a letter waits for the letter."""
        out = [info for start, info in self._held if all_ or start < self._sent]
        self._held = self._held[len(out) :]
        return out


class StopText:
    """Passes text on until one of the stop texts appears; holds back what could be the beginning of one."""

    def __init__(self, stops: tuple[str, ...]):
        self.stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def add(self, piece: str) -> tuple[str, bool]:
        """`(text to send, whether a stop text was reached)`."""
        self._held += piece
        positions = [i for stop in self.stops if (i := self._held.find(stop)) >= 0]
        if positions:
            sent, self._held = self._held[: min(positions)], ""
            return sent, True
        longest = len(self._held) + 1
        beginnings = ((stop, n) for stop in self.stops for n in range(1, min(len(stop), longest)))
        keep = max((n for stop, n in beginnings if self._held.endswith(stop[:n])), default=0)
        sent = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return sent, False

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        sent, self._held = self._held, ""
        return sent
