"""Checkpoints that labs share: a store of published ones, the Hugging Face Hub, S3PRL's own formats."""
