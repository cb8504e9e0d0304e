"""Operating system: the server's process, files and signals."""
