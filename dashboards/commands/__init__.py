"""Bodies of commands: each file answers what one command of treeline.py asks."""
