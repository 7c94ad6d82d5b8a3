"""flmrec: a nightly recommender that fine-tunes a pretrained language model on the Spark cluster a team already has."""

__version__ = "0.1.0"
