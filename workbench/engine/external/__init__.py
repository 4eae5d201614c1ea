"""Another engine, vLLM or SGLang, behind the same `Backend`: started as a child process, or found at an address."""
