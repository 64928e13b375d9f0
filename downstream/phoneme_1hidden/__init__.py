"""Which phoneme a token is centred on: one hidden layer."""
