"""Small filesystems that a test fills, frees or makes read-only; mounting needs root."""

import contextlib
import subprocess
from pathlib import Path

from tests.support.waiting import eventually


class MountedDisk:
    """A small filesystem of its own."""

    def __init__(self, place: Path, options: str) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)

    def fill(self) -> None:
        """Take all of its space, down to the last byte."""
        with contextlib.suppress(OSError), (self.place / "ballast").open("ab", buffering=0) as file:
            for size in (2**16, 2**12, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        continue

    def fill_inodes(self) -> None:
        """Take all of its files, not its space."""
        (self.place / "many").mkdir()
        with contextlib.suppress(OSError):
            for number in range(10**6):
                (self.place / "many" / str(number)).touch()

    def free(self) -> None:
        subprocess.run(["rm", "-rf", str(self.place / "ballast"), str(self.place / "many")], check=True)

    def read_only(self) -> None:
        """Forbid writing as soon as no process is writing."""
        remount = ["mount", "-o", "remount,ro", str(self.place)]
        eventually(lambda: not subprocess.run(remount, capture_output=True).returncode, "a moment without writing")

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.place)], check=True)
