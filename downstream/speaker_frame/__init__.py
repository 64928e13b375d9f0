"""Who speaks, from every token alone: one linear layer."""
