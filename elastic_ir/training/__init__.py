"""Training sparse networks: baselines that choose masks, dynamic sparse training, and what each of them costs."""
