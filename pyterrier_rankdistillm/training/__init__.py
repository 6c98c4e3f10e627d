"""Training cross-encoders: a run with targets in, a trained re-ranker out."""
