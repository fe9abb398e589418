"""Measurements of clips."""
