"""One OpenAI-compatible endpoint for many experts: http -> routing -> cache -> engines."""
