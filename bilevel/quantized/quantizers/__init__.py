"""Quantisers, one file each; `bilevel.quantized` has their names."""
