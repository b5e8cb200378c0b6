"""The application of the benchmarks: a process of its own that writes one database.

It is SQLite as applications use it: WAL mode, synchronous=NORMAL, automatic checkpoints. What is
measured here is the time of a COMMIT; nothing else in this file is timed.
"""

import hashlib
import json
import os
import random
import resource
import signal
import sqlite3
import sys
import time

ROW_BYTES = 1000
LOG_BYTES = 200
# Of the rows of a database that does not compress.
DENSE_ROW_BYTES = 100_000
# A commit of `mark` carries so many random bytes, by which a stored file is known to hold it.
MARKER_BYTES = 16
# Rows that a transaction of `spread` changes.
SPREAD_ROWS = 4
LONGEST_SECONDS = 900


def connect(path):
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def body(source, size):
    """Half of it compresses well, as real rows do."""
    return source.randbytes(size // 2) + b"x" * (size - size // 2)


def fill(path, size, seed):
    """Makes a database of about so many bytes, checkpointed and closed."""
    source = random.Random(int(seed))
    connection = connect(path)
    connection.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, body BLOB)")
    connection.execute("CREATE TABLE log(id INTEGER PRIMARY KEY, at INTEGER, body BLOB)")
    rows = int(size) // ROW_BYTES
    for start in range(0, rows, 10_000):
        batch = ((body(source, ROW_BYTES),) for _ in range(start, min(start + 10_000, rows)))
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO item(body) VALUES(?)", batch)
        connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def fill_dense(path, size, seed):
    """Makes a database of about so many random bytes: fast, since nothing needs to survive."""
    source = random.Random(int(seed))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=OFF")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, body BLOB)")
    connection.execute("CREATE TABLE log(id INTEGER PRIMARY KEY, at INTEGER, body BLOB)")
    rows = max(1, int(size) // DENSE_ROW_BYTES)
    bodies = ((source.randbytes(DENSE_ROW_BYTES),) for _ in range(rows))
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO item(body) VALUES(?)", bodies)
    connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def commit(connection, source, rows):
    """Writes one small transaction; returns when it began and how long its COMMIT took, in ns."""
    connection.execute("BEGIN IMMEDIATE")
    at = time.monotonic_ns()
    text = body(source, LOG_BYTES)
    connection.execute("INSERT INTO log(at, body) VALUES(?, ?)", (at, text))
    if rows:
        place = source.randrange(rows) + 1
        connection.execute("UPDATE item SET body = ? WHERE id = ?", (body(source, ROW_BYTES), place))
    start = time.perf_counter_ns()
    connection.execute("COMMIT")
    return at, time.perf_counter_ns() - start


def load(path, count, pause_ms, seed, result):
    """Writes so many transactions, tells how long each COMMIT took, and stays until killed."""
    connection = connect(path)
    source = random.Random(int(seed))
    rows = connection.execute("SELECT max(id) FROM item").fetchone()[0] or 0
    pause = float(pause_ms) / 1000
    taken = []
    start = time.monotonic()
    for _ in range(int(count)):
        taken.append(commit(connection, source, rows)[1] // 1000)
        if pause:
            time.sleep(pause)
    finish(start, taken, result)


def paced(path, rate, seconds, seed, result):
    """Writes so many transactions a second, each at its time, and stays until killed."""
    connection = connect(path)
    source = random.Random(int(seed))
    rows = connection.execute("SELECT max(id) FROM item").fetchone()[0] or 0
    taken = []
    start = time.monotonic()
    for number in range(int(float(rate) * float(seconds))):
        wait_until(start + number / float(rate))
        taken.append(commit(connection, source, rows)[1] // 1000)
    finish(start, taken, result)


def spread(bytes_per_second, seconds, seed, result, *paths):
    """Writes rows of so many bytes a second into all databases in turn, and stays until killed."""
    source = random.Random(int(seed))
    connections = [connect(path) for path in paths]
    rows = connections[0].execute("SELECT max(id) FROM item").fetchone()[0]
    pause = (LOG_BYTES + SPREAD_ROWS * ROW_BYTES) / float(bytes_per_second)
    taken = []
    start = time.monotonic()
    number = 0
    while time.monotonic() < start + float(seconds):
        wait_until(start + number * pause)
        connection = connections[number % len(connections)]
        connection.execute("BEGIN IMMEDIATE")
        text = body(source, LOG_BYTES)
        connection.execute("INSERT INTO log(at, body) VALUES(?, ?)", (number, text))
        for _ in range(SPREAD_ROWS):
            place = source.randrange(rows) + 1
            text = body(source, ROW_BYTES)
            connection.execute("UPDATE item SET body = ? WHERE id = ?", (text, place))
        before = time.perf_counter_ns()
        connection.execute("COMMIT")
        taken.append((time.perf_counter_ns() - before) // 1000)
        number += 1
    finish(start, taken, result)


def wait_until(moment):
    """Sleeps until a moment of the monotonic clock, unless it has passed."""
    rest = moment - time.monotonic()
    if rest > 0:
        time.sleep(rest)


def finish(start, taken, result):
    """Tells how long each COMMIT took, in microseconds, and stays."""
    report = {"seconds": time.monotonic() - start, "commits_us": taken}
    with open(result + ".tmp", "w") as file:
        json.dump(report, file)
    os.rename(result + ".tmp", result)
    stay()


def mark(path, pause_ms, seed):
    """Writes until killed; prints the wall clock in ns after each commit, and its marker."""
    connection = connect(path)
    source = random.Random(int(seed))
    deadline = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < deadline:
        marker = source.randbytes(MARKER_BYTES)
        text = marker + body(source, LOG_BYTES - MARKER_BYTES)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO log(at, body) VALUES(?, ?)", (time.time_ns(), text))
        connection.execute("COMMIT")
        os.write(1, b"%d %s\n" % (time.time_ns(), marker.hex().encode()))
        time.sleep(float(pause_ms) / 1000)


def stream(path, pause_ms, seed):
    """Writes until killed, and tells each commit once it has returned."""
    connection = connect(path)
    source = random.Random(int(seed))
    deadline = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < deadline:
        at, _ = commit(connection, source, 0)
        os.write(1, b"%d\n" % at)
        time.sleep(float(pause_ms) / 1000)


def newest(path):
    """Prints when the newest row was written, or 0."""
    connection = sqlite3.connect(path)
    print(connection.execute("SELECT max(at) FROM log").fetchone()[0] or 0)


def digest(*paths):
    """Prints what identifies the rows of each database, after SQLite has checked all of it."""
    for path in paths:
        connection = sqlite3.connect(path)
        verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
        total = hashlib.sha256()
        for table in ("item", "log"):
            for row in connection.execute(f"SELECT * FROM {table} ORDER BY id"):
                total.update(repr(row[:-1]).encode())
                total.update(row[-1])
        connection.close()
        print(verdict, total.hexdigest())


def hold(result, *paths):
    """Keeps every database open, each read and written once, until killed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    connections = [connect(path) for path in paths]
    for connection in connections:
        connection.execute("INSERT INTO log(at, body) VALUES(0, x'00')")
    open(result, "w").close()
    stay()


def stay():
    """An application does not close its database; whoever started it ends it."""
    signal.alarm(LONGEST_SECONDS)
    signal.pause()


COMMANDS = {
    "fill": fill,
    "fill-dense": fill_dense,
    "load": load,
    "paced": paced,
    "spread": spread,
    "mark": mark,
    "stream": stream,
    "newest": newest,
    "digest": digest,
    "hold": hold,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
