"""Speed, memory, size and accuracy beside the peers; ``python -m benchmarks`` runs all of it."""
