"""Asks for many files at once over raw sockets, in one thread: the cheapest operator there is.

A program of its own, so that its CPU time is known. It reads {host, port, targets, connections} as
JSON, and answers with {seconds, cpu_s, answers: [[status, seconds, body], …]}.
"""

import json
import os
import selectors
import socket
import sys
import time

ANSWER_WAIT_S = 90


class Operator:
    """One connection, with one request under way."""

    def __init__(self, host, port):
        self.host = host
        self.socket = socket.create_connection((host, port), timeout=ANSWER_WAIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def ask(self, target):
        self.asked_at = time.monotonic()
        request = f"POST {target} HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: 0\r\n\r\n"
        self.socket.sendall(request.encode())

    def answer(self):
        """Reads what has come. Returns status, seconds and body, once that is all."""
        piece = self.socket.recv(65536)
        if not piece:
            raise ConnectionError("the server hung up")
        self.buffer += piece
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return None
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields[b"content-length"])
        if len(body) < length:
            return None
        self.buffer = body[length:]
        return int(head[9:12]), time.monotonic() - self.asked_at, body.decode()


def ask_all(operators, targets):
    left = iter(targets)
    answers = []
    with selectors.DefaultSelector() as selector:
        for operator, target in zip(operators, left):
            selector.register(operator.socket, selectors.EVENT_READ, operator)
            operator.ask(target)
        while len(answers) < len(targets):
            ready = selector.select(ANSWER_WAIT_S)
            if not ready:
                raise TimeoutError("no answer came for too long")
            for key, _ in ready:
                answer = key.data.answer()
                if answer is None:
                    continue
                answers.append(answer)
                target = next(left, None)
                if target is not None:
                    key.data.ask(target)
    return answers


def main():
    order = json.load(sys.stdin)
    count = min(order["connections"], len(order["targets"]))
    operators = [Operator(order["host"], order["port"]) for _ in range(count)]
    before, began = os.times(), time.monotonic()
    answers = ask_all(operators, order["targets"])
    seconds, after = time.monotonic() - began, os.times()
    cpu_s = after.user + after.system - before.user - before.system
    json.dump({"seconds": seconds, "cpu_s": cpu_s, "answers": answers}, sys.stdout)


if __name__ == "__main__":
    main()
