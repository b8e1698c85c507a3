"""Prompts to conditions: a small encoder to train along with the network, and frozen pretrained ones."""
