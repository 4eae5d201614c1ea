"""The tokens at which an answer ends: for chat, for the samples of a run, and for an exported model."""

# ends of turns that templates write; models whose end token is another stop at them, too
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|user|>",
    "<|observation|>",
    "<|endoftext|>",
)


def end_tokens(model, tokenizer) -> list[int]:
    """Ids of the tokens that end an answer: the model's own, the tokenizer's, and those of its chat template."""
    own = model.generation_config.eos_token_id
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
    template = str(tokenizer.chat_template or "")
    for text in END_OF_TURN:
        if text in template:
            token = tokenizer.convert_tokens_to_ids(text)
            if token is not None and token != tokenizer.unk_token_id:
                ends.add(token)
    return sorted(ends - {None})
