"""The fast engine: networks folded for inference, in micro-batches."""
