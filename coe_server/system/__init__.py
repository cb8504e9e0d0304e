"""What the server asks of the operating system: its process, files and signals."""
