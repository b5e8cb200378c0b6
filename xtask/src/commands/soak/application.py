"""The application of the soak: one process, a thread for each database, writing as applications do.

Each transaction counts `head.n` up, chains a digest of what it did, and keeps the number and the sum
of the items. Its line `n chain` is in the journal before the COMMIT. So a restored database is a
state that was committed exactly if its head is in the journal and its items add up to its head.
"""

import hashlib
import json
import os
import random
import signal
import sqlite3
import sys
import threading
import time
import zlib

ITEMS = 2000
PAGE_SIZES = (4096, 512, 16384)
LONGEST_SECONDS = 24 * 3600
MODES = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")

SCHEMA = """
CREATE TABLE IF NOT EXISTS head(id INTEGER PRIMARY KEY, n INTEGER, chain TEXT, items INTEGER, total INTEGER);
CREATE TABLE IF NOT EXISTS item(id INTEGER PRIMARY KEY, crc INTEGER, body BLOB);
CREATE INDEX IF NOT EXISTS item_crc ON item(crc);
INSERT OR IGNORE INTO head VALUES(1, 0, '', 0, 0);
"""


class Writer(threading.Thread):
    def __init__(self, folder, number, seed, stop):
        super().__init__()
        self.path = os.path.join(folder, f"{number}.db")
        self.flood_file = os.path.join(folder, "flood") if number == 0 else None
        self.journal = os.open(os.path.join(folder, f"{number}.journal"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.number = number
        self.source = random.Random(f"{seed} {number}")
        self.stop = stop

    def run(self):
        try:
            self.work()
        except BaseException as error:
            print(f"{self.path}: {error!r}", flush=True)
            os._exit(1)

    def work(self):
        db = self.open()
        while not self.stop.is_set():
            pattern = self.source.choice((self.constant, self.burst, self.at_random, self.shrink, self.vacuum,
                                          self.checkpoint, self.large, self.rest))
            try:
                while self.flood_file and os.path.exists(self.flood_file) and not self.stop.is_set():
                    self.put(db, [self.source.randrange(64) for _ in range(8)], 256 * 1024)
                pattern(db)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) and "busy" not in str(error):
                    raise
                if db.in_transaction:
                    db.execute("ROLLBACK")
            if self.source.random() < 0.1:
                db.close()
                db = self.open()
        db.close()

    def open(self):
        db = sqlite3.connect(self.path, isolation_level=None, timeout=30)
        db.execute(f"PRAGMA page_size={PAGE_SIZES[self.number % len(PAGE_SIZES)]}")
        db.execute(f"PRAGMA auto_vacuum={self.number % 3}")
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(SCHEMA)
        db.execute(f"PRAGMA wal_autocheckpoint={self.source.choice((1, 10, 100, 1000))}")
        db.execute(f"PRAGMA synchronous={self.source.choice(('NORMAL', 'FULL'))}")
        return db

    def constant(self, db):
        for _ in range(100):
            self.put(db, [self.source.randrange(ITEMS)], 1500)
            if self.stop.wait(0.01):
                return

    def burst(self, db):
        for _ in range(self.source.randrange(300)):
            self.put(db, [self.source.randrange(ITEMS)], 400)

    def at_random(self, db):
        for _ in range(20):
            self.put(db, [self.source.randrange(ITEMS) for _ in range(self.source.randrange(1, 10))], 3000)
            if self.stop.wait(self.source.random() / 5):
                return

    def large(self, db):
        self.put(db, [self.source.randrange(ITEMS) for _ in range(400)], 3000)

    def rest(self, db):
        self.stop.wait(self.source.random() * 3)

    def shrink(self, db):
        start = self.source.randrange(ITEMS)
        self.commit(db, lambda: self.delete(db, start, start + self.source.randrange(ITEMS)))

    def vacuum(self, db):
        db.execute(self.source.choice(("VACUUM", "PRAGMA incremental_vacuum", "PRAGMA incremental_vacuum(20)"))).fetchall()

    def checkpoint(self, db):
        db.execute(f"PRAGMA wal_checkpoint({self.source.choice(MODES)})").fetchall()

    def put(self, db, ids, most):
        bodies = [(id, self.source.randbytes(self.source.randrange(1, most))) for id in ids]
        # A failed transaction, now and then: nothing of it may ever be seen.
        undo = self.source.random() < 0.02
        self.commit(db, lambda: self.replace(db, bodies), undo)

    def replace(self, db, bodies):
        items = total = 0
        for id, body in bodies:
            gone = self.delete(db, id, id)
            crc = zlib.crc32(body)
            db.execute("INSERT INTO item VALUES(?, ?, ?)", (id, crc, body))
            items, total = items + 1 + gone[0], total + crc + gone[1]
        return items, total

    def delete(self, db, first, last):
        where = "FROM item WHERE id BETWEEN ? AND ?"
        items, total = db.execute(f"SELECT count(*), coalesce(sum(crc), 0) {where}", (first, last)).fetchone()
        db.execute(f"DELETE {where}", (first, last))
        return -items, -total

    def commit(self, db, change, undo=False):
        db.execute("BEGIN IMMEDIATE")
        n, chain, items, total = db.execute("SELECT n, chain, items, total FROM head").fetchone()
        more = change()
        chain = hashlib.sha256(f"{chain} {more} {self.source.random()}".encode()).hexdigest()[:32]
        db.execute("UPDATE head SET n = ?, chain = ?, items = ?, total = ?", (n + 1, chain, items + more[0], total + more[1]))
        if undo:
            db.execute("ROLLBACK")
            return
        os.write(self.journal, f"{n + 1} {chain}\n".encode())
        db.execute("COMMIT")


def run(folder, count, seed):
    """Writes until it is told to end, then closes every database."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.alarm(LONGEST_SECONDS)
    writers = [Writer(folder, number, seed, stop) for number in range(int(count))]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()


def judge(path, journal):
    """Returns the number of the commit that a database holds, and what is wrong with it."""
    db = sqlite3.connect(path)
    verdict = db.execute("PRAGMA integrity_check").fetchone()[0]
    if verdict != "ok":
        return 0, f"integrity_check: {verdict}"
    if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'head'").fetchone():
        return 0, None
    head = db.execute("SELECT n, chain, items, total FROM head").fetchone()
    if head is None or head[0] == 0:
        return 0, None
    n, chain, items, total = head
    with open(journal) as lines:
        if f"{n} {chain}\n" not in lines:
            return n, f"commit {n} with chain {chain} was never made"
    found = 0, 0
    for id, crc, body in db.execute("SELECT id, crc, body FROM item"):
        if zlib.crc32(body) != crc:
            return n, f"item {id} is damaged"
        found = found[0] + 1, found[1] + crc
    if found != (items, total):
        return n, f"commit {n} has {items} items that add up to {total}, found {found}"
    return n, None


def check(path, journal):
    n, problem = judge(path, journal)
    print(json.dumps({"n": n, "problem": problem}))


def newest(journal):
    """Prints the newest commit that was certainly made: its line is followed by another one."""
    with open(journal) as lines:
        told = [line.split()[0] for line in lines if line.endswith("\n")][-2:]
    print(int(told[0]) if len(told) > 1 else 0)


def same(source, restored):
    """Compares a restored file, byte for byte, with what SQLite sees in its source."""
    expected = sqlite3.connect(source).serialize()
    with open(restored, "rb") as file:
        found = file.read()
    if expected != found:
        at = next((i for i, (a, b) in enumerate(zip(expected, found)) if a != b), min(len(expected), len(found)))
        sys.exit(f"{restored} differs at byte {at}: {len(found)} bytes, the source has {len(expected)}")


COMMANDS = {"run": run, "check": check, "newest": newest, "same": same}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
