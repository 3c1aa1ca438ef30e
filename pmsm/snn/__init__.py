"""Quantized network -> spiking network: convert, simulate, verify, save, load."""
