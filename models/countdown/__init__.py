"""Countdown, a tiny domain in which search is real: numbers, four operations, a target, and exact values of every state."""
