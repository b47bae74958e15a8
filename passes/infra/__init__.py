"""What a pass, a pipeline and their texts are."""
