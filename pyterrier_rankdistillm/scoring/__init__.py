"""(query, text) pairs to scores: checkpoints, tokenisation, batching and the forward pass. Knows no data frames."""
