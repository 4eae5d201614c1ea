"""QLoRA Workbench: fine-tune a language model in 4 bits from the browser, and talk to the result."""

__version__ = "0.1.0"
