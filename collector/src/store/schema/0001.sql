-- One day of events, first version.
CREATE TABLE day (
    only     INTEGER PRIMARY KEY CHECK (only = 1),
    label    TEXT NOT NULL,               -- the day it was begun, by the collector's clock: YYYY-MM-DD
    first_id INTEGER NOT NULL             -- ids below it are in earlier files
);

-- Up to where each stream is stored. Moves in the same transaction as the rows it covers.
CREATE TABLE mark (
    agent BLOB NOT NULL,
    epoch INTEGER NOT NULL,               -- 64 bits, read as signed
    class INTEGER NOT NULL,
    seq   INTEGER NOT NULL,
    PRIMARY KEY (agent, epoch, class)
) WITHOUT ROWID;

-- Ids run over both tables and all files, in the order of commit. They are the one index.
CREATE TABLE alert (
    id       INTEGER PRIMARY KEY,
    agent    BLOB NOT NULL,
    epoch    INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    time     INTEGER NOT NULL,            -- by the host's clock, Unix nanoseconds
    received INTEGER NOT NULL,            -- by the collector's
    kind     INTEGER NOT NULL,
    severity INTEGER NOT NULL,
    rules    TEXT NOT NULL,               -- names and ids, each with a newline on both sides
    body     BLOB NOT NULL                -- an encoded Event
);

CREATE TABLE telemetry (
    id       INTEGER PRIMARY KEY,
    agent    BLOB NOT NULL,
    epoch    INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    time     INTEGER NOT NULL,
    received INTEGER NOT NULL,
    kind     INTEGER NOT NULL,
    severity INTEGER NOT NULL,
    rules    TEXT NOT NULL,
    body     BLOB NOT NULL
);

-- Numbers that will never come; a gap event of the agent says why.
CREATE TABLE hole (
    agent BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    class INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last  INTEGER NOT NULL,
    noted INTEGER NOT NULL
);

-- Counted when written, so that nobody has to count later.
CREATE TABLE counter (
    agent    BLOB NOT NULL,
    class    INTEGER NOT NULL,
    kind     INTEGER NOT NULL,
    severity INTEGER NOT NULL,
    hour     INTEGER NOT NULL,            -- hours since 1970, of `received`
    events   INTEGER NOT NULL,
    PRIMARY KEY (agent, class, kind, severity, hour)
) WITHOUT ROWID;
