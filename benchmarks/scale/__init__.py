"""What the second half of a job costs: an event, a request, a step and a whole run; ``python -m benchmarks.scale``."""
