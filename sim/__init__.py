"""What happens: queries arrive, think, share memory and time on a simulated fleet."""

from models.compiled import ahead

__path__[:0] = ahead("sim")
