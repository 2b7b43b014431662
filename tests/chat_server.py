"""A chat server on loopback that plays the protocol, its faults too."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def say(body, text=None, *, reason="stop", **message):
    """A well-formed answer."""
    text = f"re: {body['messages'][-1]['content']}" if text is None else text
    return {
        "id": "chat-1",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **message},
                "finish_reason": reason,
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": len(text.split()), "total_tokens": 9},
    }


class ChatServer(ThreadingHTTPServer):
    """Answers with ``answer(number, body)`` → ``(status, payload, headers)``, or "drop", "half".

    ``seen`` holds ``(path, headers, body)`` of every request, ``most`` how many ran at a time.
    """

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.seen, self.running, self.most = answer, [], 0, 0
        self.lock = threading.Lock()
        self.connections = set()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def bodies(self):
        return [body for _, _, body in self.seen]

    def die(self):
        """Stop at once: no new connection, those there are cut."""
        self.shutdown()
        self.socket.close()
        with self.lock:
            for connection in self.connections:
                cut(connection)

    def close(self):
        self.shutdown()
        self.thread.join()
        self.server_close()
        with self.lock:
            for connection in self.connections:
                cut(connection)


def cut(connection):
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        with self.server.lock:
            self.server.connections.add(self.connection)

    def finish(self):
        with self.server.lock:
            self.server.connections.discard(self.connection)
        super().finish()

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.seen)
            server.seen.append((self.path, dict(self.headers), body))
            server.running += 1
            server.most = max(server.most, server.running)
        try:
            answer = server.answer(number, body)
        finally:
            with server.lock:
                server.running -= 1
        try:
            self.send(answer)
        except OSError:
            self.close_connection = True

    def send(self, answer):
        if answer == "drop":
            self.close_connection = True
            cut(self.connection)
            return
        status, payload, headers = answer if isinstance(answer, tuple) else (200, answer, {})
        data = payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if headers.get("X-Half"):
            data, self.close_connection = data[: len(data) // 2], True
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass
