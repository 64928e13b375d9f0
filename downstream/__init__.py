"""The four probes on frozen features, as S3PRL downstream experts (SPEC section 4)."""
