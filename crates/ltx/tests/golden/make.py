#!/usr/bin/env python3
"""Replicates a small database with a Litestream binary and keeps its LTX files.

  make.py LITESTREAM PAGE_SIZE OUT

OUT becomes <level>/<min>-<max>.ltx for levels 0, 1 and 9, and `restored.txt`: size in pages and
database checksum of what the same binary restores from them, computed with ltx_probe.py.
"""
import os, shutil, signal, sqlite3, subprocess, sys, tempfile, time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import ltx_probe

DEADLINE_SECONDS = 60


def wait_for(condition, what):
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > end:
            sys.exit("gave up waiting for " + what)
        time.sleep(0.05)


def max_txid(level):
    names = os.listdir(level) if os.path.isdir(level) else []
    return max((int(n[17:33], 16) for n in names if n.endswith(".ltx")), default=0)


def steps(db):
    """Commits of different kinds: a change in place, growth, and a shrinking VACUUM."""
    yield lambda: db.execute("update item set text = 'changed' where id % 3 = 0")
    yield lambda: db.executemany("insert into item(text) values (?)", [("more %d " % n * 9,) for n in range(60)])
    yield lambda: db.execute("delete from item where id > 20")
    yield lambda: db.execute("vacuum")


def main(litestream, page_size, out):
    work = tempfile.mkdtemp()
    path, replica, config = (os.path.join(work, name) for name in ("app.db", "replica", "litestream.yml"))
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma page_size = %d" % page_size)
    db.execute("pragma journal_mode = wal")
    db.execute("create table item(id integer primary key, text)")
    db.execute("begin")
    db.executemany("insert into item(text) values (?)", [("row %d " % n * 7,) for n in range(80)])
    db.execute("commit")
    with open(config, "w") as f:
        f.write("levels:\n- interval: 1s\ndbs:\n- path: %s\n  monitor-interval: 100ms\n"
                "  replica: {type: file, path: %s, sync-interval: 100ms}\n" % (path, replica))
    level = lambda n: os.path.join(replica, "ltx", str(n))
    log = open(os.path.join(work, "log"), "w")
    daemon = subprocess.Popen([litestream, "replicate", "-config", config], stdout=log, stderr=log)
    try:
        wait_for(lambda: max_txid(level(0)) and max_txid(level(9)), "the first snapshot")
        for step in steps(db):
            before = max_txid(level(0))
            step()
            wait_for(lambda: max_txid(level(0)) > before, "the next capture")
        newest = max_txid(level(0))
        wait_for(lambda: max_txid(level(1)) >= newest, "level 1")
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()
    for n in (0, 1, 9):
        shutil.copytree(level(n), os.path.join(out, str(n)))
    restored = os.path.join(work, "restored.db")
    subprocess.run([litestream, "restore", "-o", restored, "file://" + replica], check=True, stdout=log, stderr=log)
    _, commit, pages = ltx_probe.db_pages(restored)
    checksum = ltx_probe.TOP
    for pgno, data in pages:
        checksum = ltx_probe.TOP | (checksum ^ ltx_probe.page_sum(pgno, data))
    with open(os.path.join(out, "restored.txt"), "w") as f:
        f.write("%d %016x\n" % (commit, checksum))
    shutil.rmtree(work)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
