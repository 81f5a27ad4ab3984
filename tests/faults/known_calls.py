"""Makes known system calls from Python, SQLite and a thread."""

import os
import socket
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> None:
    folder, port = Path(words[0]), int(words[1])
    (folder / "made").mkdir()

    def writing() -> None:
        with (folder / "made" / "a").open("wb", buffering=0) as file:
            file.write(b"1")
            os.fsync(file.fileno())

    thread = threading.Thread(target=writing)
    thread.start()
    thread.join()
    (folder / "made" / "a").read_bytes()  # reading is nobody's business
    (folder / "made" / "a").rename(folder / "made" / "b")
    (folder / "made" / "b").unlink()
    (folder / "made").rmdir()
    database = sqlite3.connect(folder / "db")
    database.execute("CREATE TABLE t (x)")
    database.close()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"hello")
    print("done")
