"""Tensors to tensors: the layers, the parts and the U-Net. Imports keras; knows nothing of noise."""
