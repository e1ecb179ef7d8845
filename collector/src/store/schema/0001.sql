-- One day's events, first version. Rows are only ever added; retention deletes the whole file.
CREATE TABLE file (
    only     INTEGER PRIMARY KEY CHECK (only = 1),
    number   INTEGER NOT NULL,          -- running number, in the file's name too
    label    TEXT NOT NULL,             -- the day it was begun, YYYYMMDD, UTC
    first_id INTEGER NOT NULL,          -- every id in this file is this or above, every id before it below
    next_id  INTEGER NOT NULL           -- no id below this was free when the file was made
);

-- Who sent what: a lane is one class of one outbox of one agent. `seq` is the high-water mark: everything
-- up to it is stored here or in an earlier file. A new file begins with a copy of all marks.
CREATE TABLE lane (
    lane  INTEGER PRIMARY KEY,
    agent BLOB NOT NULL,
    epoch INTEGER NOT NULL,             -- 64 bits, read as signed
    class INTEGER NOT NULL,
    seq   INTEGER NOT NULL,
    UNIQUE (agent, epoch, class)
);

-- `id` grows over both tables and all files. It is the only index: it only grows, so that inserting never
-- touches an old page.
CREATE TABLE alert (
    id       INTEGER PRIMARY KEY,
    lane     INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    received INTEGER NOT NULL,          -- collector's wall clock, Unix nanoseconds
    happened INTEGER NOT NULL,          -- host's wall clock, Unix nanoseconds
    kind     INTEGER NOT NULL,          -- field number of the kind in Event, 0 when not known here
    severity INTEGER NOT NULL,
    rules    TEXT,                      -- names and ids of rules, each between newlines
    body     BLOB NOT NULL              -- the encoded Event
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
    body     BLOB NOT NULL
);

-- Consecutive numbers with consecutive ids: finds one event without an index over all of them.
CREATE TABLE run (
    lane      INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq  INTEGER NOT NULL,
    first_id  INTEGER NOT NULL,
    PRIMARY KEY (lane, first_seq)
) WITHOUT ROWID;

-- Numbers that an agent said will never come.
CREATE TABLE hole (
    lane      INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq  INTEGER NOT NULL,
    received  INTEGER NOT NULL
);

-- Rolled up when written.
CREATE TABLE count (
    agent    BLOB NOT NULL,
    class    INTEGER NOT NULL,
    kind     INTEGER NOT NULL,
    severity INTEGER NOT NULL,
    events   INTEGER NOT NULL,
    PRIMARY KEY (agent, class, kind, severity)
) WITHOUT ROWID;
