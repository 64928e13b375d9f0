"""Who speaks, from the mean of an utterance's tokens: one linear layer."""
