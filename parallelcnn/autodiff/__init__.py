"""Automatic differentiation of functions of numbers and of arrays, and checks against finite differences."""
