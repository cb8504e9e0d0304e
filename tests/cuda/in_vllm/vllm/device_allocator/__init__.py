"""In the place of vLLM within a stand-in engine."""
