"""The bytes that a token stands for, as OpenAI's `logprobs` give them."""

import re
from functools import lru_cache

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@lru_cache(maxsize=1)
def _letters_of_bytes() -> dict[str, int]:
    """The letters that byte-level BPE (GPT-2's code) writes for the 256 bytes."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in plain)
    return letters | {chr(256 + number): byte for number, byte in enumerate(others)}


class Vocabulary:
    """Bytes of tokens of a fast tokenizer: byte-level BPE, or SentencePiece with `▁` for a space and byte fallback."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._added = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items()}
        self._byte_level = '"ByteLevel"' in tokenizer.backend_tokenizer.to_str()[-20_000:] or "Ġ" in "".join(
            tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), 2000)))
        )
        self.bytes = lru_cache(maxsize=50_000)(self._bytes)

    def _bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # a row of the head beyond the vocabulary
            return b""
        if self._byte_level:
            letters = _letters_of_bytes()
            if all(letter in letters for letter in piece):
                return bytes(letters[letter] for letter in piece)
        elif match := _BYTE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace("▁", " ").encode()
