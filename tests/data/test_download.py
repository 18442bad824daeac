"""The download, against a server on 127.0.0.1 that misbehaves as servers do."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinlab.data.digests import OFFICIAL_DIGEST
from tinlab.data.download import archive_content_digest, cache_folder, download
from tinlab.errors import TinlabError

FILES = {f"set/{i}.bin": hashlib.sha256(bytes([i])).digest() * 2000 for i in range(10)}


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return memory.getvalue()


ARCHIVE = zipped(FILES)
DIGEST = hashlib.sha256(
    "".join(f"{hashlib.sha256(FILES[name]).hexdigest()}  {name}\n" for name in sorted(FILES)).encode()
).hexdigest()


class Server:
    """Serves `content` at /set.zip. `breaks` are the counts of bytes after which the next answers are cut
    off, `statuses` what the next answers are instead of the file; `sent` the [start, stop) of every body."""

    def __init__(self, content: bytes) -> None:
        self.content, self.etag = content, '"one"'
        self.ranges = self.says_length = self.checks_if_range = True
        self.breaks: list[int] = []
        self.statuses: list[int] = []
        self.stall_seconds = 0.0
        self.change_after_break: bytes | None = None
        self.sent: list[tuple[int, int]] = []
        self.requests = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/set.zip"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        self.requests += 1
        if request.path == "/moved.zip":
            request.send_response(302)
            request.send_header("Location", "/set.zip")
            request.end_headers()
            return
        if request.path == "/ftp.zip":
            request.send_response(302)
            request.send_header("Location", "ftp://127.0.0.1/set.zip")
            request.end_headers()
            return
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        wanted = request.headers.get("Range")
        fresh = not self.checks_if_range or request.headers.get("If-Range") == self.etag
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges and fresh else 0
        total = len(self.content)
        if start >= total:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{total}")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if self.says_length:
            request.send_header("Content-Length", str(total - start))
        request.send_header("ETag", self.etag)
        request.end_headers()
        stop = min(self.breaks.pop(0), total) if self.breaks else total
        request.wfile.write(self.content[start:stop])
        request.wfile.flush()
        self.sent.append((start, stop))
        if stop < total:
            time.sleep(self.stall_seconds)
            if self.change_after_break is not None:
                self.content, self.etag, self.change_after_break = self.change_after_break, '"two"', None


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(ARCHIVE)
    yield made
    made.http.shutdown()
    made.http.server_close()


def fetch(server: Server, folder: Path, **options: object) -> Path:
    given: dict = {"url": server.url, "expected": DIGEST, "pause_seconds": 0.01, "timeout_seconds": 5}
    return download(folder, **(given | options))


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"set.zip", "set.zip.lock", "set.zip.verified.json"}


def test_fetches_verifies_and_does_not_ask_again(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch(server, tmp_path / "new" / "folder", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == ARCHIVE
    assert seen[0] == (0, len(ARCHIVE))
    assert seen[-1] == (len(ARCHIVE), len(ARCHIVE))
    assert seen == sorted(seen)
    assert leftovers(path.parent) == set()
    assert fetch(server, path.parent) == path
    assert server.requests == 1


def test_a_break_costs_only_what_had_not_arrived(server: Server, tmp_path: Path) -> None:
    half = len(ARCHIVE) // 2
    server.breaks = [half]
    assert fetch(server, tmp_path).read_bytes() == ARCHIVE
    assert server.sent == [(0, half), (half, len(ARCHIVE))]


def test_many_breaks_are_survived_while_bytes_arrive(server: Server, tmp_path: Path) -> None:
    server.breaks = list(range(5000, len(ARCHIVE), 50_000))
    assert fetch(server, tmp_path, retries=1).read_bytes() == ARCHIVE
    assert sum(stop - start for start, stop in server.sent) == len(ARCHIVE)


def test_a_later_call_continues(server: Server, tmp_path: Path) -> None:
    server.breaks = [70_000]
    with pytest.raises(TinlabError, match=r"closed after 70,000 of .* run the same command again"):
        fetch(server, tmp_path, retries=0)
    fetch(server, tmp_path)
    assert server.sent == [(0, 70_000), (70_000, len(ARCHIVE))]


def test_a_server_that_ignores_ranges(server: Server, tmp_path: Path) -> None:
    server.ranges, server.breaks = False, [70_000]
    assert fetch(server, tmp_path).read_bytes() == ARCHIVE
    assert server.sent == [(0, 70_000), (0, len(ARCHIVE))]


def test_a_server_that_always_breaks_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges, server.breaks = False, [70_000] * 50
    with pytest.raises(TinlabError, match="cannot be fetched"):
        fetch(server, tmp_path, retries=3)
    assert server.requests == 4


@pytest.mark.parametrize("checks_if_range", [True, False])
@pytest.mark.parametrize("longer", [True, False])
def test_a_changed_file_is_not_glued_to_the_old_half(
    server: Server, tmp_path: Path, checks_if_range: bool, longer: bool
) -> None:
    # The old file has other bytes, and another length; what the server then has is the right one.
    server.content = zipped({"other": b"\1" * (len(ARCHIVE) * (2 if longer else 1) - 30_000)})
    server.breaks, server.change_after_break = [len(server.content) - 1000], ARCHIVE
    server.checks_if_range = checks_if_range
    assert fetch(server, tmp_path).read_bytes() == ARCHIVE
    assert leftovers(tmp_path) == set()


def test_a_wrong_archive_is_moved_aside(server: Server, tmp_path: Path) -> None:
    server.content = zipped({"set/0.bin": b"no"})
    with pytest.raises(TinlabError, match=r"not the expected archive .*digest.*set\.zip\.wrong"):
        fetch(server, tmp_path)
    assert leftovers(tmp_path) == {"set.zip.wrong"}
    server.content = ARCHIVE
    assert fetch(server, tmp_path).read_bytes() == ARCHIVE


def test_a_repacked_archive_is_right(server: Server, tmp_path: Path) -> None:
    server.content = zipped(dict(reversed(FILES.items())), zipfile.ZIP_DEFLATED)
    assert fetch(server, tmp_path).read_bytes() == server.content != ARCHIVE


def test_a_web_page_with_status_200(server: Server, tmp_path: Path) -> None:
    server.content = b"<!DOCTYPE html><title>Sign in</title>" * 100
    with pytest.raises(TinlabError, match=r"not a whole zip archive .*DOCTYPE html"):
        fetch(server, tmp_path)
    assert leftovers(tmp_path) == {"set.zip.wrong"}


def test_a_truncated_archive(server: Server, tmp_path: Path) -> None:
    server.content = ARCHIVE[:-100]
    with pytest.raises(TinlabError, match="not a whole zip archive"):
        fetch(server, tmp_path)


def test_not_found_is_said_at_once(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(TinlabError, match="404"):
        fetch(server, tmp_path)
    assert server.requests == 1


def test_a_servers_errors_are_waited_out(server: Server, tmp_path: Path) -> None:
    server.statuses = [500, 503, 429]
    assert fetch(server, tmp_path).read_bytes() == ARCHIVE
    assert server.requests == 4


def test_a_stall_is_a_break(server: Server, tmp_path: Path) -> None:
    server.breaks, server.stall_seconds = [70_000], 8
    started = time.monotonic()
    assert fetch(server, tmp_path, timeout_seconds=1).read_bytes() == ARCHIVE
    assert time.monotonic() - started < 6
    assert server.sent[-1] == (70_000, len(ARCHIVE))


def test_no_content_length(server: Server, tmp_path: Path) -> None:
    server.says_length = False
    totals: list[int | None] = []
    path = fetch(server, tmp_path, progress=lambda _, total: totals.append(total))
    assert path.read_bytes() == ARCHIVE
    assert set(totals) == {None}


def test_all_had_arrived_but_nobody_knew(server: Server, tmp_path: Path) -> None:
    # Without a length, a process that was killed at the very end cannot know that it was: it is told by 416.
    server.says_length, server.breaks = False, [len(ARCHIVE) - 1]
    with pytest.raises(TinlabError, match="not a whole zip"):
        fetch(server, tmp_path)
    (tmp_path / "set.zip.partial").write_bytes(ARCHIVE)
    (tmp_path / "set.zip.partial.json").write_text(
        f'{{"url": "{server.url}", "validator": "\\"one\\"", "total": null}}'
    )
    assert fetch(server, tmp_path).read_bytes() == ARCHIVE
    assert server.sent == [(0, len(ARCHIVE) - 1)]


@pytest.mark.parametrize("sidecar", ["", "[]", '{"url": 1}', '{"url": "x", "validator": null, "total": "y"}'])
def test_a_damaged_sidecar_means_starting_over(server: Server, tmp_path: Path, sidecar: str) -> None:
    (tmp_path / "set.zip.partial").write_bytes(b"\0" * 5000)
    (tmp_path / "set.zip.partial.json").write_text(sidecar)
    assert fetch(server, tmp_path).read_bytes() == ARCHIVE


def test_redirects(server: Server, tmp_path: Path) -> None:
    address = server.url.replace("set.zip", "moved.zip")
    server.breaks = [70_000]
    assert fetch(server, tmp_path, url=address).read_bytes() == ARCHIVE
    assert server.sent[-1] == (70_000, len(ARCHIVE))
    with pytest.raises(TinlabError):
        fetch(server, tmp_path, url=server.url.replace("set.zip", "ftp.zip"), retries=0)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a.zip", "a.zip", "http://127.0.0.1/"])
def test_addresses_that_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(TinlabError, match="give one"):
        download(tmp_path, url=url)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(TinlabError, match="cannot be fetched"):
        download(tmp_path, url="http://127.0.0.1:9/a.zip", retries=1, pause_seconds=0.01)


def test_a_file_that_is_there_is_checked_once(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(ARCHIVE)
    fetch(server, tmp_path)
    assert (tmp_path / "set.zip.verified.json").is_file()
    assert server.requests == 0
    (tmp_path / "set.zip").write_bytes(b"broken since")
    assert fetch(server, tmp_path).read_bytes() == ARCHIVE
    assert (tmp_path / "set.zip.wrong").read_bytes() == b"broken since"


def test_two_downloads_to_one_place(server: Server, tmp_path: Path) -> None:
    server.breaks, server.stall_seconds = [70_000], 1
    first = threading.Thread(target=fetch, args=(server, tmp_path))
    first.start()
    while not server.sent:
        time.sleep(0.01)
    with pytest.raises(TinlabError, match="under way"):
        fetch(server, tmp_path)
    first.join()
    assert fetch(server, tmp_path).read_bytes() == ARCHIVE


def test_places_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TinlabError, match="choose another folder"):
        fetch(server, tmp_path / "file")


def test_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs(tmp_path)
    usage = type("Usage", (), {"free": 1000, "total": full.f_blocks})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(TinlabError, match=r"1,000 are free.*free some space"):
        fetch(server, tmp_path)


def test_an_interrupt_keeps_what_has_arrived(server: Server, tmp_path: Path) -> None:
    server.breaks, server.stall_seconds = [70_000], 5
    program = (
        "import sys; from pathlib import Path; from tinlab.data.download import download\n"
        "try: download(Path(sys.argv[1]), url=sys.argv[2], expected=sys.argv[3])\n"
        "except KeyboardInterrupt: sys.exit(77)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), server.url, DIGEST])
    partial = tmp_path / "set.zip.partial"
    for _ in range(1000):
        if partial.exists() and partial.stat().st_size == 70_000:
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == 77
    server.stall_seconds = 0
    assert fetch(server, tmp_path).read_bytes() == ARCHIVE
    assert server.sent == [(0, 70_000), (70_000, len(ARCHIVE))]


def test_the_digest_rejects_what_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    damaged = bytearray(ARCHIVE)
    damaged[200] ^= 1
    memory = io.BytesIO(ARCHIVE)
    with zipfile.ZipFile(memory, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("set/0.bin", b"another")
    for content in (b"", b"PK", bytes(damaged), ARCHIVE[:1000], memory.getvalue()):
        path.write_bytes(content)
        with pytest.raises(TinlabError, match="download it again"):
            archive_content_digest(path)
    with pytest.raises(TinlabError, match="cannot be read"):
        archive_content_digest(tmp_path / "missing.zip")


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TINLAB_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TINLAB_CACHE")
    assert cache_folder().name == "tinlab"


@pytest.mark.real
def test_the_official_archive(server: Server, tmp_path: Path, real_zip: Path) -> None:
    server.content = real_zip.read_bytes()
    half = len(server.content) // 2
    server.breaks = [half]
    path = fetch(server, tmp_path, expected=OFFICIAL_DIGEST)
    assert path.stat().st_size == len(server.content)
    assert server.sent == [(0, half), (half, len(server.content))]
