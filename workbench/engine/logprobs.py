"""What a model thought of its tokens, as OpenAI's two protocols write it."""

from workbench.engine.backend import TokenInfo


def token_text(raw: bytes) -> str:
    """A token as text. One that is no whole letter is written `bytes:\\xe4\\xbd`, as OpenAI does, which tells such
    tokens apart."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def alternatives(info: TokenInfo) -> list[tuple[int, bytes, float, bool]]:
    """The likeliest tokens, and the chosen one behind them where it is none of them."""
    if not info.top or any(id_ == info.id for id_, *_ in info.top):
        return info.top
    return [*info.top, (info.id, info.bytes, info.logprob, False)]


def logprob_entry(info: TokenInfo) -> dict:
    """One entry of `logprobs.content`. `token_id`, `rank`, `entropy` (nats), `text` and `ends` are ours."""
    return {
        "token": token_text(info.bytes),
        "logprob": info.logprob,
        "bytes": list(info.bytes),
        "top_logprobs": [
            {"token": token_text(raw), "logprob": logprob, "bytes": list(raw), "token_id": id_, "ends": ends}
            for id_, raw, logprob, ends in alternatives(info)
        ],
        "text": info.text,
        "token_id": info.id,
        "rank": info.rank,
        "entropy": info.entropy,
    }


class Listed:
    """`logprobs` of `/v1/completions`: lists that grow by token. `offset`: characters before the first."""

    def __init__(self, offset: int = 0):
        self.offset = offset

    def lists(self, infos: list[TokenInfo | None], texts: list[str]) -> dict:
        """The lists of some tokens with their texts; the first token of a prompt has no measurement."""
        out: dict[str, list] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for info, text in zip(infos, texts, strict=True):
            out["tokens"].append(token_text(info.bytes) if info else text)
            out["token_logprobs"].append(info.logprob if info else None)
            out["top_logprobs"].append(_best(info) if info else None)
            out["text_offset"].append(self.offset)
            self.offset += len(text)
        return out


def _best(info: TokenInfo) -> dict[str, float]:
    found: dict[str, float] = {}
    for _, raw, logprob, _ in alternatives(info) or [(info.id, info.bytes, info.logprob, False)]:
        found.setdefault(token_text(raw), logprob)
    return found
