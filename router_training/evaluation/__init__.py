"""What a router is worth: numbers, intervals, and whether an objective may ship."""
