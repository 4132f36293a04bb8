"""elk_jax: finding breast lesions when data is scarce, in JAX and Flax."""

__version__ = "0.1.0"
