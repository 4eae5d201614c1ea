"""The smallest model and dataset that a real trainer works with; for the tests and `benchmarks/soak.py`."""

import json
from pathlib import Path


def make_tiny_model(folder: Path) -> Path:
    """A random Llama of a few thousand parameters with a byte-level tokenizer and a ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from workbench.data import templates

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "<|im_end|>", "<|im_start|>", *letters])}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = templates.read("chatml")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_data(folder: Path) -> Path:
    """A dataset folder with one small dataset named `small`."""
    folder.mkdir(parents=True)
    rows = [{"instruction": f"Question {i}?", "output": f"Answer {i} is {i * i}."} for i in range(24)]
    (folder / "small.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"small": {"file_name": "small.json"}}))
    return folder
