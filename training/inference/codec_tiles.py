"""Both halves of a codec in tiles, at their place among the parts of inference, where other tools
look for them."""

from datagen.tiles.autoencoder import decode_tiled, encode_tiled

__all__ = ["decode_tiled", "encode_tiled"]
