"""One grammar a topic: each draws meanings and words them; none knows of splits or files."""
