"""A web server on this machine that can be told to fail."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves `files` and can be told to fail; `log` holds (method, path, range, bytes sent)."""

    def __init__(self):
        self.files, self.log = {}, []
        self.cuts = []  # of the next answers, the bytes after which each is cut off
        self.lengths = {}  # sizes, as bytes, that are told instead of the right ones
        self.ranges = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.answer(send=False)

            def do_GET(self):
                self.answer(send=True)

            def answer(self, send):
                body = server.files.get(self.path.lstrip("/"))
                if body is None:
                    self.send_error(404)
                    return
                asked = self.headers["Range"] if server.ranges else None
                first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
                start = int(first)
                sent = body[start : int(last) + 1 if last else None]
                if asked and not sent:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                elif asked:
                    self.send_response(206)
                    end = start + len(sent) - 1
                    self.send_header("Content-Range", f"bytes {start}-{end}/{len(body)}")
                else:
                    self.send_response(200)
                length = server.lengths.get(self.path.lstrip("/"), str(len(sent)).encode())
                self.send_header("Content-Length", length.decode("latin-1"))
                if not send:
                    sent = b""
                elif server.cuts:
                    sent = sent[: server.cuts.pop(0)]
                # Logged before the client can act on the answer.
                server.log.append((self.command, self.path, self.headers["Range"], len(sent)))
                self.end_headers()
                self.wfile.write(sent)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def gets(self):
        return [entry for entry in self.log if entry[0] == "GET"]

    def stop(self):
        self.http.shutdown()
        self.http.server_close()
