"""Masked acoustic modelling: data, masking, the pre-training expert and the loop (SPEC section 3)."""
