#!/usr/bin/env python3
"""Makes the golden files again: databases in WAL mode, with log and wal-index, copied while open.

Per page size, <page size>.db-head (first 100 bytes), <page size>.wal and <page size>.shm (first 136
bytes, that is both header copies and the checkpoint information), and in expected.txt what SQLite
says about them. `tail.*` is a log that has started over and is shorter than the one before it, with
an uncommitted transaction at its end. Uses the SQLite of python3; needs a little-endian machine.
"""
import os, shutil, sqlite3, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def keep(path, name):
    for source, target, length in (("", ".db-head", 100), ("-wal", ".wal", None), ("-shm", ".shm", 136)):
        with open(path + source, "rb") as f:
            data = f.read(length)
        with open(os.path.join(HERE, name + target), "wb") as f:
            f.write(data)


def describe(db, name, frames):
    ask = lambda pragma: db.execute("pragma " + pragma).fetchone()[0]
    return "%s page_size=%d page_count=%d schema_cookie=%d user_version=%d frames=%d\n" % (
        name, ask("page_size"), ask("page_count"), ask("schema_version"), ask("user_version"), frames)


def fresh(path, page_size):
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma page_size = %d" % page_size)
    db.execute("create table item(id integer primary key, text)")
    db.execute("pragma user_version = 77")
    db.execute("pragma journal_mode = wal")
    db.execute("pragma wal_autocheckpoint = 0")
    return db


def plain(work, page_size):
    path = os.path.join(work, "%d.db" % page_size)
    db = fresh(path, page_size)
    db.execute("insert into item(text) values ('one'), ('two')")
    db.execute("update item set text = 'three' where id = 2")
    keep(path, str(page_size))
    frames = (os.path.getsize(path + "-wal") - 32) // (24 + page_size)
    line = describe(db, str(page_size), frames)
    db.close()
    return line


def tail(work):
    path = os.path.join(work, "tail.db")
    db = fresh(path, 512)
    db.executemany("insert into item(text) values (?)", [("x" * 300,) for _ in range(12)])
    db.execute("pragma wal_checkpoint(restart)")
    # A reader keeps checkpoints from copying the new log, or else the next writer starts a third one.
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("begin")
    reader.execute("select count(*) from item").fetchone()
    db.execute("insert into item(text) values ('new log')")
    _, frames, copied = db.execute("pragma wal_checkpoint(passive)").fetchone()
    assert copied == 0
    line = describe(db, "tail", frames)
    # With a small cache an open transaction spills pages into the log.
    db.execute("pragma cache_size = 1")
    db.execute("begin")
    db.executemany("insert into item(text) values (?)", [("y" * 300,) for _ in range(20)])
    keep(path, "tail")
    db.execute("rollback")
    reader.close()
    db.close()
    return line


def main():
    assert sys.byteorder == "little"
    work = tempfile.mkdtemp()
    lines = [plain(work, size) for size in (512, 4096, 65536)] + [tail(work)]
    with open(os.path.join(HERE, "expected.txt"), "w") as f:
        f.writelines(lines)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
