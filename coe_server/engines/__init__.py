"""Engines: one expert's process, or its connection to a server. Independent of other experts."""
