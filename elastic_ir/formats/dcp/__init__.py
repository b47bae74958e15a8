"""Folders of torch.distributed.checkpoint: their metadata, the entries in their files, and new ones. No torch.

The form is that of `torch/distributed/checkpoint/metadata.py` and `filesystem.py`: the file ``.metadata`` is a pickle
that says of each entry which boxes of a tensor lie at which range of which file (``__RANK_NUMBER.distcp``), and each
range is, by itself, a file of ``torch.save``. So an entry is carried as the bytes that it is, under any name.
"""
