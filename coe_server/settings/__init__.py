"""What a person writes in a settings file, and what is wrong with it. Knows no particular setting."""
