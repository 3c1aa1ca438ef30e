"""The float side: networks, data, one training loop."""
