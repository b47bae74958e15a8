"""Models of the Hugging Face hub: what is in its cache is used as it is, of the rest what is needed is fetched.

``huggingface_hub`` fetches into its own cache, so that other programs find there what came here, and the other way
round. To look at a model its configuration is enough, and of each file of weights the header, which is read by a range
of bytes; a file is fetched when a tensor in it is needed. What was fetched is compared with the checksum that the hub
states of it.
"""
