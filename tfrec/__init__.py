"""tfrec: interaction tables and product text in, a recommender for TensorFlow Serving out."""

__version__ = "0.1.0"
