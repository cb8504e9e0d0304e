"""What this process asks of the machine once, before it serves."""
