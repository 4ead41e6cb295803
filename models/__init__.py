"""What is learned: search algorithms, the generative question and verifier, step latency."""

from models.compiled import ahead

__path__[:0] = ahead("models")
