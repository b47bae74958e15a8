"""Items of a user's data, with an augmentation that a seed decides."""
