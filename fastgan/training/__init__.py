"""Training: options, recipes, loop and step. Imports nothing itself: process settings come before torch."""
