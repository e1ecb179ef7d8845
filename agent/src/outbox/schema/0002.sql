-- The outbox, second version: every row carries a sum, and gaps that still grow are known.
-- `sum`: the first 8 bytes of BLAKE3 over rank, created and body, read as signed; NULL in rows of the first version.
ALTER TABLE alert ADD COLUMN sum INTEGER;
ALTER TABLE telemetry ADD COLUMN sum INTEGER;

-- Gap events that nobody has read for sending yet: the next loss of the same kind is added to them.
CREATE TABLE growing (
    reason INTEGER NOT NULL,
    class  INTEGER NOT NULL,            -- whose numbers were lost
    seq    INTEGER NOT NULL,            -- its row in `alert`
    PRIMARY KEY (reason, class)
) WITHOUT ROWID;
