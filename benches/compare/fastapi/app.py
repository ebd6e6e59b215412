"""A FastAPI server that does its heavy work in BackgroundTasks, in one of three ways.

    app.py async-def    a task given as `async def`, with a synchronous Session on psycopg2: it blocks the event loop
    app.py def          the same Session in a task given as `def`: it takes a thread of the pool
    app.py asyncpg      a task given as `async def`, with an AsyncSession on asyncpg

DATABASE_URL is a URL as libpq reads it, WORK_SQL the heavy statement, GRACE the seconds that requests and tasks have to
end in after a SIGTERM. The pool is SQLAlchemy's default (5 connections, and 10 more). uvicorn runs one process, on
uvloop and httptools, which it picks where they are installed; `uvicorn[standard]` installs them.

It listens on a free port of 127.0.0.1, says on stdout what happens, one JSON object a line, and ends with its stdin.
"""

import contextlib
import json
import os
import socket
import sys
import threading

import uvicorn
from fastapi import BackgroundTasks, FastAPI
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

VARIANTS = ("async-def", "def", "asyncpg")
# What asyncpg calls those parameters of libpq's that it has too, and the type that it wants.
ASYNCPG = {"sslmode": ("ssl", str), "connect_timeout": ("timeout", float), "host": ("host", str), "port": ("port", int)}

if len(sys.argv) != 2 or sys.argv[1] not in VARIANTS:
    sys.exit(f"usage: app.py {'|'.join(VARIANTS)}")
VARIANT = sys.argv[1]
# Not a single `:` of it is a parameter of SQLAlchemy's.
WORK = text(os.environ["WORK_SQL"].replace(":", "\\:"))


def say(event, **members):
    """One write a line, so that threads don't mix theirs."""
    os.write(1, (json.dumps({"event": event, **members}) + "\n").encode())


def say_of(event, id):
    say(event, id=id, thread=threading.get_native_id())


def for_asyncpg(query):
    """The parameters that asyncpg has; what it hasn't is left out and named."""
    arguments = {}
    for name, value in query.items():
        if name in ASYNCPG:
            argument, kind = ASYNCPG[name]
            arguments[argument] = kind(value)
        elif name != "application_name":
            print(f"app.py: asyncpg has no {name}: it is left out", file=sys.stderr)
    return arguments


url = make_url(os.environ["DATABASE_URL"])
name = {"application_name": f"compare:{VARIANT}"}
if VARIANT == "asyncpg":
    arguments = {**for_asyncpg(url.query), "server_settings": name}
    engine = create_async_engine(url.set(drivername="postgresql+asyncpg", query={}), connect_args=arguments)
else:
    engine = create_engine(url.set(drivername="postgresql+psycopg2"), connect_args=name)


# The heavy work, as a background task.


@contextlib.contextmanager
def said(id):
    say_of("working", id)
    try:
        yield
    except Exception:
        say_of("failed", id)
        raise
    say_of("done", id)


def work_synchronously(id):
    with said(id), Session(engine) as session:
        session.execute(WORK).all()


async def work_on_the_loop(id):
    work_synchronously(id)


async def work_asynchronously(id):
    with said(id):
        async with AsyncSession(engine) as session:
            (await session.execute(WORK)).all()


work = {"async-def": work_on_the_loop, "def": work_synchronously, "asyncpg": work_asynchronously}[VARIANT]
app = FastAPI()


@app.post("/trigger", status_code=202)
async def trigger(id: str, tasks: BackgroundTasks):
    say_of("handled", id)
    tasks.add_task(work, id)
    return {"id": id}


# What else the server has to answer meanwhile.


@app.get("/healthz")
async def healthz():
    return {"ok": True}


def database():
    with Session(engine) as session:
        return {"one": session.scalar(text("SELECT 1"))}


async def database_asynchronously():
    async with AsyncSession(engine) as session:
        return {"one": await session.scalar(text("SELECT 1"))}


app.get("/database")(database_asynchronously if VARIANT == "asyncpg" else database)


class Server(uvicorn.Server):
    """Says where it listens, once it does."""

    async def startup(self, sockets=None):
        await super().startup(sockets)
        if self.started:
            say("listening", url="http://{}:{}".format(*sockets[0].getsockname()))


def end_with_stdin():
    while os.read(0, 4096):
        pass
    os._exit(0)


def main():
    # Whoever started it holds the other end: it never outlives them.
    threading.Thread(target=end_with_stdin, name="stdin", daemon=True).start()
    # With its protocol named, as asyncio's own listeners have it: asyncio sets TCP_NODELAY only then, uvloop always.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    grace = int(os.environ.get("GRACE", "4"))
    config = uvicorn.Config(app, access_log=False, log_level="error", timeout_graceful_shutdown=grace)
    Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
