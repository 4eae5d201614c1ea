"""GGUF files for llama.cpp, Ollama and LM Studio: a model with its adapters merged in, or a LoRA alone."""

FORMATS = ("gguf-f16", "gguf-q8_0", "gguf-lora")
WITHOUT_ADAPTERS = FORMATS[:2]  # also a base alone
