"""Differentiation: the check of a layer's backward pass against finite differences."""
