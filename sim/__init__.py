"""What happens: queries arrive, think, share memory and time on a simulated fleet."""
