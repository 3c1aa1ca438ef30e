"""Float network -> quantized network: quantize, calibrate, round to integers, export."""
