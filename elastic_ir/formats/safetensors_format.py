"""What the writer and the reader of ``.safetensors`` files must agree on: names of dtypes, limits. No torch here."""

from __future__ import annotations

#: The format's name of each dtype; ``complex128`` has none.
DTYPES: dict[str, str] = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "int64": "I64",
    "uint64": "U64",
    "float64": "F64",
    "complex64": "C64",
}

#: Dtypes of less than a byte an element, which nothing here computes with: their bytes are carried as they are.
PACKED: dict[str, str] = {
    "float4_e2m1fn": "F4",
    "float6_e2m3fn": "F6_E2M3",
    "float6_e3m2fn": "F6_E3M2",
    "int4": "I4",
    "uint4": "U4",
}

#: The safetensors library reads no file whose header is longer.
MAX_HEADER = 100_000_000

#: The one key of the header that names no tensor.
METADATA = "__metadata__"
