"""Measure and tell: energy, comparison, recipes, report."""
