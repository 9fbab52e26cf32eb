"""Several processes as one run, and what ends them: joining, agreeing, signals, hangs."""
