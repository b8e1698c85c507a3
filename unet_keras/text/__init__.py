"""Prompts to conditions: frozen pretrained encoders, tokens for trainable ones, and a cache on disk."""
