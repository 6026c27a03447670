"""Figures from a table; pandas and matplotlib, never torch."""
