"""An HTTP server that speaks the chat completions protocol, well and badly, as each test tells it."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KEY = "sk-right"
DOCUMENT = "Leases are renewed in one batch. A zombie can finish nothing. Cats sleep for most of the day."
REPLY = {
    "summary": "About leases and cats.",
    "key_points": ["Leases are renewed together."],
    "answers": [{"question": 1, "answer": "They sleep.", "quotes": ["Cats sleep for most of the day."]}],
}
Behaviour = Callable[["Exchange"], Any]


@dataclass
class Exchange:
    """One request, and the means to answer it."""

    body: dict[str, Any]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def hung_up(self) -> None:
        """Wait until the client has closed the connection."""
        async with asyncio.timeout(20):
            assert await self.reader.read() == b""

    async def answer(self, status: int, body: Any, **headers: str) -> None:
        content = json.dumps(body).encode()
        extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{extra}\r\n"
        self.writer.write(head.encode() + content)
        await self.writer.drain()

    async def refuse(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        await self.answer(status, {"error": {"message": message, "code": code}}, **headers)

    async def start_stream(self, *, chunked: bool = True) -> None:
        framing = "Transfer-Encoding: chunked" if chunked else "Connection: close"
        self.writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n\r\n".encode())
        await self.writer.drain()

    async def send(self, data: str, *, chunked: bool = True) -> None:
        content = f"data: {data}\n\n".encode()
        self.writer.write(b"%x\r\n%s\r\n" % (len(content), content) if chunked else content)
        await self.writer.drain()

    async def send_text(self, text: str | None, finish: str | None = None, *, chunked: bool = True) -> None:
        choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish}
        shape = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        await self.send(json.dumps({**shape, "choices": [choice]}), chunked=chunked)

    async def end_stream(self) -> None:
        await self.send("[DONE]")
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def whole_stream(self, text: str, finish: str = "stop") -> None:
        await self.start_stream()
        for start in range(0, len(text), 20):
            await self.send_text(text[start : start + 20])
        await self.send_text(None, finish)
        await self.send('{"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}')
        await self.end_stream()


async def well(exchange: Exchange) -> None:
    await exchange.whole_stream(f"Here you are:\n```json\n{json.dumps(REPLY)}\n```")


@dataclass
class InferenceServer:
    """Checks the key and the model like a real one; `behaviours` answer the next requests, `well` all after."""

    url: str = ""
    behaviours: list[Behaviour] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    """Request line and headers of the same requests, in small letters."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one_request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, as it does at the end of every test
        finally:
            writer.close()

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
        body = json.loads(await reader.readexactly(length) or b"{}")
        exchange = Exchange(body, reader, writer)
        if f"authorization: bearer {KEY}" not in head:
            await exchange.refuse(401, f"Incorrect API key provided: {head}")
        elif head.startswith("get /v1/models"):
            await exchange.answer(200, {"object": "list", "data": [{"id": "m", "object": "model"}, {"id": "n"}]})
        elif body.get("model") not in ("m", "n"):
            await exchange.refuse(404, f"The model `{body.get('model')}` does not exist", "model_not_found")
        else:
            self.bodies.append(body)
            self.heads.append(head)
            await (self.behaviours.pop(0) if self.behaviours else well)(exchange)
        return not writer.is_closing()
