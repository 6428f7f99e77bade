"""A file system that folds upper and lower case, as FAT and SMB do: it opens a file by any spelling,
and lists one. Mounts itself at the directory that it is given (as root), and serves until unmounted."""

import ctypes
import errno
import os
import stat
import struct
import sys

# By number: the name, and what is in it.
NODES = {
    1: ("", {}),
    2: ("secret.txt", b"secret"),
    3: ("open.txt", b"open"),
    4: ("private", {}),
    5: ("f.txt", b"secret"),
}
IN_DIRECTORY = {1: [2, 3, 4], 4: [5]}
LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 14, 15, 17, 18
INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = 26, 27, 28, 29, 36, 42


def attributes(node):
    content = NODES[node][1]
    is_dir = isinstance(content, dict)
    mode = stat.S_IFDIR | 0o755 if is_dir else stat.S_IFREG | 0o644
    return struct.pack("<6Q10I", node, len(content), 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def lookup(parent, name):
    for node in IN_DIRECTORY[parent]:
        if NODES[node][0].lower() == name.lower():
            return struct.pack("<4Q2I", node, 1, 60, 60, 0, 0) + attributes(node)
    raise OSError(errno.ENOENT, "absent")


def listed(node, offset):
    entries = b""
    for index, child in enumerate(IN_DIRECTORY[node]):
        name = NODES[child][0].encode()
        entry = struct.pack("<2Q2I", child, index + 1, len(name), 0) + name
        if index >= offset:
            entries += entry + b"\0" * (-len(entry) % 8)
    return entries


def answer(opcode, node, body):
    if opcode == INIT:
        return struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, *[0] * 8)
    if opcode == LOOKUP:
        return lookup(node, body.rstrip(b"\0").decode())
    if opcode == GETATTR:
        return struct.pack("<Q2I", 60, 0, 0) + attributes(node)
    if opcode in (OPEN, OPENDIR):
        return struct.pack("<Q2I", 0, 0, 0)
    if opcode == READDIR:
        return listed(node, struct.unpack_from("<Q", body, 8)[0])
    if opcode == READ:
        offset, size = struct.unpack_from("<QI", body, 8)
        return NODES[node][1][offset : offset + size]
    if opcode == STATFS:
        return struct.pack("<5Q10I", 0, 0, 0, 5, 0, 4096, 255, 4096, 0, *[0] * 6)
    if opcode in (RELEASE, RELEASEDIR):
        return b""
    raise OSError(errno.ENOSYS, "not here")


def main():
    fuse = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"folding", os.fsencode(sys.argv[1]), b"fuse", 0, options) != 0:
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    while True:
        try:
            request = os.read(fuse, 1 << 17)
        except OSError as err:
            if err.errno == errno.ENODEV:
                return
            raise
        _, opcode, unique, node = struct.unpack_from("<2I2Q", request)
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
            continue
        try:
            error, data = 0, answer(opcode, node, request[40:])
        except OSError as err:
            error, data = -err.errno, b""
        os.write(fuse, struct.pack("<IiQ", 16 + len(data), error, unique) + data)


main()
