"""The engine: a process that holds one base model with its adapters and speaks the OpenAI protocol."""
