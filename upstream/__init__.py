"""The models: features, attention variants, encoder, and the experts S3PRL talks to."""
