"""The page at `/`: what the operator looks at. Static files, and what they ask the server for."""
