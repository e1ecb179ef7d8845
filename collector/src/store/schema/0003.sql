-- One day's events, third version: each row has a sum, so that what the disk made of it is not taken for what was
-- stored. Rows are only ever added; retention deletes the whole file.
CREATE TABLE file (
    only     INTEGER PRIMARY KEY CHECK (only = 1),
    number   INTEGER NOT NULL,          -- running number, in the file's name too
    label    TEXT NOT NULL,             -- the day it was begun, YYYYMMDD, UTC
    first_id INTEGER NOT NULL,          -- every id in this file is this or above, every id before it below
    next_id  INTEGER NOT NULL,          -- no id below this was free when the file was made
    sum      INTEGER NOT NULL           -- of both ids: a wrong one would hide events
);

-- Who sent what: a lane is one class of one outbox of one agent. `seq` is the high-water mark: everything
-- up to it is stored here or in an earlier file. A new file begins with a copy of all marks.
CREATE TABLE lane (
    lane  INTEGER PRIMARY KEY,
    agent BLOB NOT NULL,
    epoch INTEGER NOT NULL,             -- 64 bits, read as signed
    class INTEGER NOT NULL,
    seq   INTEGER NOT NULL,
    sum   INTEGER NOT NULL,             -- of all columns: a mark that went up would let events be taken for stored
    UNIQUE (agent, epoch, class)
);

-- `id` grows over both tables and all files. It only grows, so that inserting never touches an old page.
CREATE TABLE alert (
    id       INTEGER PRIMARY KEY,
    lane     INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    received INTEGER NOT NULL,          -- collector's wall clock, Unix nanoseconds
    happened INTEGER NOT NULL,          -- host's wall clock, Unix nanoseconds
    kind     INTEGER NOT NULL,          -- field number of the kind in Event, 0 when not known here
    severity INTEGER NOT NULL,
    rules    TEXT,                      -- names and ids of rules, each between newlines
    body     BLOB NOT NULL,             -- the encoded Event
    sum      INTEGER NOT NULL           -- of all columns and its lane: see damage.rs
);

CREATE TABLE telemetry (
    id       INTEGER PRIMARY KEY,
    lane     INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    received INTEGER NOT NULL,
    happened INTEGER NOT NULL,
    kind     INTEGER NOT NULL,
    severity INTEGER NOT NULL,
    rules    TEXT,
    body     BLOB NOT NULL,
    sum      INTEGER NOT NULL
);

-- 16,384 ids are a segment. When the first id beyond it is given, what is below is written here, in `entry` and in
-- `count`, in the same transaction, and never changed: an index that only grows. Rows of a segment that is not here yet
-- are looked at one by one.
CREATE TABLE segment (
    segment      INTEGER PRIMARY KEY,   -- id / 16384
    happened_min INTEGER NOT NULL,      -- of its rows, Unix nanoseconds
    happened_max INTEGER NOT NULL
);

-- Which rows of a segment are of one lane, class, kind, severity, rule or minute.
CREATE TABLE entry (
    segment INTEGER NOT NULL,
    key     INTEGER NOT NULL,           -- what it is in the upper 8 bits, which one in the rest
    ids     BLOB NOT NULL,              -- 2048 bytes: a bit an id; fewer: id % 16384 of each, 2 bytes, little endian
    PRIMARY KEY (segment, key)
) WITHOUT ROWID;

-- Numbers that an agent said will never come.
CREATE TABLE hole (
    lane      INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq  INTEGER NOT NULL,
    received  INTEGER NOT NULL
);

-- Rolled up, over all rows whose segment is finished.
CREATE TABLE count (
    agent    BLOB NOT NULL,
    class    INTEGER NOT NULL,
    kind     INTEGER NOT NULL,
    severity INTEGER NOT NULL,
    events   INTEGER NOT NULL,
    PRIMARY KEY (agent, class, kind, severity)
) WITHOUT ROWID;
