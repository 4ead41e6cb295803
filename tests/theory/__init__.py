"""Queueing theory that the simulator must reproduce."""
