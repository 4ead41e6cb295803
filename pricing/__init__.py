"""What it costs and earns: GPU-seconds become USD per query, contracts become charges."""
