"""A model on its way out: merged, in 4 bits, an adapter alone, or GGUF; its card; its way to a hub."""

from workbench.models import gguf

FORMATS = ("safetensors", "bnb-4bit", "lora", *gguf.FORMATS)
WITHOUT_ADAPTERS = ("bnb-4bit", *gguf.WITHOUT_ADAPTERS)  # also a base alone
