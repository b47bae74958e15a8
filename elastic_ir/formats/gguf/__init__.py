"""``.gguf`` files: a section of metadata, a list of tensors with their types, and the tensors' bytes. No torch here.

Every integer is little-endian. The file begins with ``GGUF``, a version, the number of tensors and that of entries of
metadata. An entry is a key, the type of its value and the value; a tensor is stated by its name, its extents (the
fastest first), its type and where its bytes begin behind all of that, a multiple of ``general.alignment``.
"""
