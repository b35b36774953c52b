"""Measuring what the framework costs."""
