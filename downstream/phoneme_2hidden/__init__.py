"""Which phoneme a token is centred on: two hidden layers."""
