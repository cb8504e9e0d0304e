"""vLLM as an engine: its settings, command line, process, memory, and the worker code that runs inside it."""
