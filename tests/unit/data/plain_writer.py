"""The obvious twin of Megatron's dataset builder: keeps everything, writes it in one go.

In a module of its own, because worker processes import the factory by name.
"""

import struct
from pathlib import Path

import numpy as np

_CODES = {"uint16": 8, "int32": 4}


class PlainWriter:
    def __init__(self, prefix, vocab_size):
        self.prefix = prefix
        self.dtype = "uint16" if vocab_size < 65500 else "int32"
        self.documents = []
        self.file = Path(f"{prefix}.bin").open("wb")  # noqa: SIM115

    def add_document(self, tokens):
        data = np.array(tokens, self.dtype)
        self.documents.append(len(data))
        self.file.write(data.tobytes())

    def add_index(self, prefix):
        for document in read_documents(prefix):
            self.add_document(document)

    def finalize(self):
        self.file.close()
        count = len(self.documents)
        lengths = np.array(self.documents, np.int32)
        ends = np.cumsum(lengths, dtype=np.int64) * np.dtype(self.dtype).itemsize
        starts = np.concatenate([[0], ends])[:count].astype(np.int64)
        with Path(f"{self.prefix}.idx").open("wb") as index:
            index.write(b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, _CODES[self.dtype]))
            index.write(struct.pack("<QQ", count, count + 1))
            index.write(lengths.tobytes() + starts.tobytes())
            index.write(np.arange(count + 1, dtype=np.int64).tobytes())

    def close(self):
        self.file.close()


def open_plain(prefix, vocab_size):
    return PlainWriter(prefix, vocab_size)


def read_documents(prefix):
    """Every document as a list of token ids."""
    index = Path(f"{prefix}.idx").read_bytes()
    (code,) = struct.unpack_from("<B", index, 17)
    (count,) = struct.unpack_from("<Q", index, 18)
    dtype = {value: key for key, value in _CODES.items()}[code]
    lengths = np.frombuffer(index, np.int32, count, 34)
    tokens = np.fromfile(f"{prefix}.bin", dtype)
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])] if count else []
