#!/usr/bin/env python3
"""Replicates a small database with Litestream 0.3 and keeps its replica.

  make.py LITESTREAM PAGE_SIZE OUT

OUT becomes `generations`, as Litestream left it, and `states.json`: the time of each object, which
git does not keep, and at some times how many rows the database had and the checksum of its pages.
At each of them Litestream's own restore gave the rows of the source; the checksum is of that.
"""
import json, os, shutil, signal, sqlite3, subprocess, sys, tempfile, time

sys.dont_write_bytecode = True
here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "..", "..", "..", "ltx", "tests"))
import ltx_probe

DEADLINE_SECONDS = 60


class Replica:
    """One database, replicated by a Litestream that can be stopped and started."""

    def __init__(self, litestream, page_size):
        self.litestream = litestream
        self.work = tempfile.mkdtemp()
        self.path, self.root, self.config, self.restored = (
            os.path.join(self.work, name) for name in ("app.db", "replica", "litestream.yml", "restored.db"))
        self.db = sqlite3.connect(self.path, isolation_level=None)
        self.db.execute("pragma page_size = %d" % page_size)
        self.db.execute("pragma journal_mode = wal")
        self.db.execute("create table item(id integer primary key, text)")
        # A checkpoint, and with it another log, after each few pages; another snapshot now and then.
        with open(self.config, "w") as f:
            f.write("dbs:\n- path: %s\n  monitor-interval: 20ms\n  min-checkpoint-page-count: 12\n"
                    "  replicas:\n  - {path: %s, sync-interval: 20ms, snapshot-interval: 600ms}\n"
                    % (self.path, self.root))
        self.log = open(os.path.join(self.work, "log"), "w")
        self.states = []

    def run(self, *arguments):
        return subprocess.run([self.litestream, *arguments], stdout=self.log, stderr=self.log).returncode == 0

    def start(self):
        self.daemon = subprocess.Popen([self.litestream, "replicate", "-config", self.config],
                                       stdout=self.log, stderr=self.log)

    def stop(self):
        self.daemon.send_signal(signal.SIGTERM)
        self.daemon.wait()

    def objects(self):
        found = {}
        for directory, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(directory, name)
                if name.endswith(".lz4"):
                    found[os.path.relpath(path, self.root)] = os.stat(path).st_mtime_ns // 1_000_000
        return found

    def rows(self, path):
        db = sqlite3.connect(path)
        try:
            return db.execute("select id, text from item order by id").fetchall()
        finally:
            db.close()

    def note(self):
        """Waits until everything is stored, and notes what there is then."""
        end = time.monotonic() + DEADLINE_SECONDS
        while not self.noted():
            if time.monotonic() > end:
                sys.exit("gave up waiting for the replica: see " + self.work)
            time.sleep(0.05)

    def noted(self):
        objects = self.objects()
        for name in (self.restored, self.restored + "-wal", self.restored + "-shm", self.restored + ".tmp"):
            if os.path.exists(name):
                os.remove(name)
        if not objects or not self.run("restore", "-config", self.config, "-o", self.restored, self.path):
            return False
        _, commit, pages = ltx_probe.db_pages(self.restored)
        checksum = ltx_probe.TOP
        for pgno, data in pages:
            checksum = ltx_probe.TOP | (checksum ^ ltx_probe.page_sum(pgno, data))
        rows = self.rows(self.restored)
        if objects != self.objects() or rows != self.rows(self.path):
            return False
        newest = max(objects.values())
        if newest >= time.time_ns() // 1_000_000 - 1:
            return False
        if not self.states or self.states[-1]["time_ms"] != newest:
            self.states.append({"time_ms": newest, "rows": len(rows), "pages": commit, "checksum": "%016x" % checksum})
        return True

    def insert(self, count, word):
        self.db.execute("begin")
        self.db.executemany("insert into item(text) values (?)", [("%s %d " % (word, n) * 9,) for n in range(count)])
        self.db.execute("commit")


def first_generation(replica):
    """Commits of different kinds: growth, changes in place, and a shrinking VACUUM."""
    yield lambda: replica.insert(3, "one")
    yield lambda: replica.insert(2, "two")
    yield lambda: replica.db.execute("update item set text = 'changed' where id % 2 = 0")
    yield lambda: replica.insert(60, "many")
    yield lambda: replica.db.execute("delete from item where id > 12")
    yield lambda: replica.db.execute("vacuum")
    yield lambda: replica.insert(1, "after")


def second_generation(replica):
    yield lambda: replica.insert(4, "again")
    yield lambda: replica.insert(4, "last")


def main(litestream, page_size, out):
    replica = Replica(litestream, page_size)
    replica.insert(20, "row")
    for number, steps in enumerate((first_generation, second_generation)):
        # Without its local files Litestream begins anew.
        shutil.rmtree(os.path.join(replica.work, ".app.db-litestream"), ignore_errors=True)
        replica.start()
        try:
            replica.note()
            for step in steps(replica):
                step()
                replica.note()
        finally:
            replica.stop()
    replica.note()
    # What has no log beside it is all in the file: the source is what was restored last.
    replica.db.execute("pragma wal_checkpoint(truncate)")
    with open(replica.path, "rb") as source, open(replica.restored, "rb") as restored:
        assert source.read() == restored.read(), "the last state is not the source"
    os.makedirs(out)
    shutil.copytree(os.path.join(replica.root, "generations"), os.path.join(out, "generations"))
    with open(os.path.join(out, "states.json"), "w") as f:
        json.dump({"page_size": page_size, "objects": replica.objects(), "states": replica.states}, f, indent=1,
                  sort_keys=True)
        f.write("\n")
    shutil.rmtree(replica.work)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
