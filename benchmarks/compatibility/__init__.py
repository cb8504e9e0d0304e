"""The same requests through us and to a bare `vllm serve`, compared field for field."""
