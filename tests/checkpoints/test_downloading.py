"""Downloads are cached complete or not at all, by address, and a silent server causes a timeout."""

import io
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from mmcare import UserError
from mmcare.checkpoints import downloading, read_checkpoint


@pytest.fixture
def web(tmp_path, monkeypatch):
    """Return the address of a web server and its pages; the download cache is empty."""
    pages = {}
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in pages:
                self.send_error(404)
                return
            content, promised, hangs_up = pages[self.path]
            if promised:
                self.send_response(200)
                self.send_header("Content-Length", str(promised))
                self.end_headers()
            self.wfile.write(content)
            if not hangs_up:
                done.wait()

        def log_message(self, *args):
            pass

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", pages, tmp_path / "cache"
        done.set()
        server.shutdown()


def content_of(value):
    buffer = io.BytesIO()
    torch.save({"a": torch.full((100,), value)}, buffer)
    return buffer.getvalue()


def page(content, promised=None, hangs_up=True):
    return content, promised or len(content), hangs_up


def files(folder):
    return [file for file in folder.rglob("*") if file.is_file()]


@pytest.mark.stack
def test_a_download_is_kept_by_its_whole_address(web):
    address, pages, _ = web
    pages.update({"/v1/weights.pth": page(content_of(1)), "/v2/weights.pth": page(content_of(2))})
    for _ in range(2):
        assert read_checkpoint(f"{address}/v1/weights.pth")["a"][0] == 1
        assert read_checkpoint(f"{address}/v2/weights.pth")["a"][0] == 2
        pages.clear()


@pytest.mark.parametrize("path", ["/a/..", "/", "/..%2f..%2fescaped.pth", "/" + "long" * 200, "/a\\..\\b", "/.bashrc"])
def test_no_address_leads_out_of_the_cache(web, path, tmp_path):
    address, pages, cache = web
    pages[path] = page(content_of(1))
    assert read_checkpoint(address + path)["a"][0] == 1
    (kept,) = files(tmp_path)
    assert kept.parent == cache / "hub/checkpoints"
    assert not kept.name.startswith(".")


WHOLE = content_of(1)
BROKEN = {
    "cut": (page(WHOLE[:900], len(WHOLE)), "is damaged, truncated or not a checkpoint"),
    "cut by a server that does not know": (page(WHOLE[:900]), "is damaged, truncated or not a checkpoint"),
    "cut safetensors": (page(save({"a": torch.zeros(1000)})[:900], 4000), "is a damaged safetensors file"),
    "web page": (page(b"<html>Sign in</html>"), "is a web page"),
    "empty": ((b"HTTP/1.0 200 OK\r\n\r\n", None, True), "is empty"),
    "gone": (None, "could not be downloaded .*404"),
    "silent": ((b"", None, False), "could not be downloaded .*timed out"),
    "silent in the middle": (page(WHOLE[:900], len(WHOLE), False), "could not be downloaded .*timed out"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_download_is_told_and_leaves_nothing(web, kind, monkeypatch):
    address, pages, cache = web
    content, said = BROKEN[kind]
    if content:
        pages["/weights.pth"] = content
    monkeypatch.setattr(downloading, "SILENCE", 0.3)
    start = time.monotonic()
    with pytest.raises(UserError, match=f"{address}/weights.pth {said}") as error:
        read_checkpoint(f"{address}/weights.pth")
    assert "\n" not in str(error.value)
    assert files(cache) == []
    assert time.monotonic() - start < 5
    assert socket.getdefaulttimeout() is None


def test_a_server_that_is_not_there(web):
    with pytest.raises(UserError, match="could not be downloaded"):
        read_checkpoint("http://127.0.0.1:9/weights.pth")
    with pytest.raises(UserError, match="could not be downloaded"):
        read_checkpoint("http://127.0.0.1:port/weights.pth")


def test_an_interrupted_download_leaves_nothing(web, monkeypatch):
    address, pages, cache = web
    pages["/weights.pth"] = page(content_of(1))

    def interrupt(url, path, **_):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.hub, "download_url_to_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_checkpoint(f"{address}/weights.pth")
    assert files(cache) == []
