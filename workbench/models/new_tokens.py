"""Tokens that a run adds (`add_tokens`, `add_special_tokens`), and the rows of embedding and head for them.

New rows start as the mean of the others with noise of 1 / √width, and their number is a multiple of 64: LLaMA-Factory's
ways. With `init_special_tokens` a special token's row is the mean of those of its description instead. An adapter that
was trained with them brings its embedding and head, and its tokenizer lies beside it.
"""

import math
from collections.abc import Callable
from pathlib import Path

from workbench.config.options import ModelOptions, RunConfig
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files

_MULTIPLE = 64


def token_list(text: str | None) -> list[str]:
    """Tokens that a comma-separated text names, each once."""
    return list(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


def described_tokens(options: ModelOptions) -> dict[str, str]:
    """Special tokens of `new_special_tokens_config` with their descriptions. Raises UserError: no such file."""
    name = getattr(options, "new_special_tokens_config", None)
    if not name:
        return {}
    try:
        values = files.parse_yaml(files.read_text(Path(name).expanduser(), files.MAX_YAML), name)
    except (OSError, files.Unreadable) as error:
        raise UserError("tokens_file", name=name, problem=getattr(error, "strerror", None) or error) from None
    if not isinstance(values, dict) or not values or not all(isinstance(v, str) for v in values.values()):
        raise UserError("tokens_file", name=name, problem=Message("tokens_no_lines"))
    return {str(token): text for token, text in values.items()}


def add_tokens(tokenizer, options: ModelOptions) -> int:
    """Give a tokenizer the tokens of the options; how many it did not have."""
    plain = token_list(getattr(options, "add_tokens", None))
    special = list(described_tokens(options)) or token_list(getattr(options, "add_special_tokens", None))
    count = tokenizer.add_tokens(plain) if plain else 0
    return count + (tokenizer.add_tokens(special, special_tokens=True) if special else 0)


def rows_of(model) -> int:
    """Rows of the embedding."""
    return model.get_input_embeddings().weight.shape[0]


def grow(model, tokens: int, log: Callable[[str], None]) -> None:
    """Rows for so many tokens; those that are missing are made.

    Raises:
        UserError: a quantized model, or one whose head is no linear layer.
    """
    import torch

    before = rows_of(model)
    if tokens <= before:
        return
    if getattr(model, "quantization_method", None):
        raise UserError("new_tokens_quantized", tokens=tokens, rows=before)
    if not isinstance(model.get_output_embeddings(), torch.nn.Linear):
        raise UserError("new_tokens_head")
    model.resize_token_embeddings(tokens, pad_to_multiple_of=_MULTIPLE, mean_resizing=False)
    matrices = [model.get_input_embeddings().weight]
    if not getattr(model.config, "tie_word_embeddings", False):
        matrices.append(model.get_output_embeddings().weight)
    with torch.no_grad():
        for matrix in matrices:
            mean = matrix[:before].float().mean(dim=0, keepdim=True)
            noise = torch.empty(matrix.shape[0] - before, matrix.shape[1]).normal_(0, 1 / math.sqrt(matrix.shape[1]))
            matrix[before:] = (mean + noise.to(mean.device)).to(matrix.dtype)
    log(f"Embedding and head: {rows_of(model):,} rows, {rows_of(model) - before:,} of them new.")


def ready_for_tokens(model, tokenizer, config: RunConfig, log: Callable[[str], None]) -> RunConfig:
    """Grow a model for a run's tokenizer; the run's options, with embedding and head among what is trained where an
    adapter would leave their new rows as they are. Raises UserError as `grow`."""
    if not config.new_tokens:
        return config
    before = rows_of(model)
    grow(model, len(tokenizer), log)
    if config.init_special_tokens != "noise_init":
        _describe(model, tokenizer, config, before, log)
    if config.finetuning_type == "full":
        return config
    ends = {module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None}
    names = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if module in ends})
    if config.finetuning_type == "freeze":
        log(f"New rows of {', '.join(names)} are trained only where freeze_extra_modules names these.")
        return config
    if config.additional_target:
        return config
    log(f"For the new tokens {', '.join(names)} are trained whole beside the adapters.")
    return config.model_copy(update={"additional_target": ",".join(names)})


def _describe(model, tokenizer, config: RunConfig, before: int, log: Callable[[str], None]) -> None:
    """Let the rows of special tokens start as the mean of the embeddings of their descriptions, in embedding and
    head."""
    import torch

    described, noisy = described_tokens(config), config.init_special_tokens == "desc_init_w_noise"
    new = {tokenizer.convert_tokens_to_ids(token) for token in described}
    embedding = model.get_input_embeddings().weight
    matrices = {id(matrix): matrix for matrix in (embedding, model.get_output_embeddings().weight)}
    with torch.no_grad():
        for token, text in described.items():
            ids = [one for one in tokenizer(text, add_special_tokens=False)["input_ids"] if one not in new]
            ids = [one for one in ids if one < before]
            if not ids:
                log(f"The description of {token} has no token: its row stays the mean of all.")
                continue
            mean = embedding[torch.tensor(ids, device=embedding.device)].float().mean(dim=0)
            for matrix in matrices.values():
                noise = torch.empty(mean.shape).normal_(0, 1 / math.sqrt(len(mean))) if noisy else torch.zeros(())
                row = tokenizer.convert_tokens_to_ids(token)
                matrix[row] = (mean + noise.to(mean.device)).to(matrix)
    log(f"{len(described)} special tokens start as their descriptions.")


def take_tokens_of(tokenizer, model, adapter: Path, log: Callable[[str], None]) -> None:
    """Give a tokenizer the tokens that an adapter was trained with, and the model rows for them. Raises UserError as
    `grow`."""
    if missing := missing_tokens(tokenizer, adapter):
        for token in missing:
            tokenizer.add_tokens([token], special_tokens=token.special)
        log(f"{len(missing)} tokens of the adapter are added: {', '.join(str(token) for token in missing[:10])}.")
        grow(model, len(tokenizer), log)


def missing_tokens(tokenizer, adapter: Path) -> list:
    """Tokens that were added for an adapter and that `tokenizer` does not have, in their order."""
    beside = (adapter / "tokenizer.json").is_file() or not adapter.name.startswith("checkpoint-")
    folder = adapter if beside else adapter.parent
    try:
        added = files.read_object(folder / "tokenizer.json", 256 << 20).get("added_tokens")
    except (OSError, files.Unreadable):
        return []
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    found = [entry for entry in added or [] if isinstance(entry, dict) and isinstance(entry.get("content"), str)]
    return [
        AddedToken(entry["content"], special=bool(entry.get("special")), normalized=bool(entry.get("normalized", True)))
        for entry in sorted(found, key=lambda entry: entry.get("id") if isinstance(entry.get("id"), int) else 0)
        if entry["content"] not in known
    ]
