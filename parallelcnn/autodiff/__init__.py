"""Gradient check: a layer's backward pass against finite differences."""
