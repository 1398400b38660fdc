"""zobench: a reproducible benchmark suite for zeroth-order (backpropagation-free) fine-tuning of language models."""

__version__ = "0.1.0"
