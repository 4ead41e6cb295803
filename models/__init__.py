"""What is learned: search algorithms, the generative question and verifier, step latency."""
