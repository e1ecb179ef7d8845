-- Generations of an agent's certificates, which find copies of an identity. The first certificate is of generation 1; a
-- renewal makes the next one, the first session with it confirms it, and what is older is superseded then.

ALTER TABLE certificates ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE certificates ADD COLUMN key_digest BLOB CHECK (key_digest IS NULL OR length(key_digest) = 32); -- SHA-256 of the public key; unknown for rows of version 2
ALTER TABLE certificates ADD COLUMN confirmed_unix_s INTEGER;  -- a session has begun with it
ALTER TABLE certificates ADD COLUMN address TEXT;              -- where it was asked for, then where it was confirmed

-- Rows of version 2 in their order; none counts as confirmed, because nobody knows which answer was lost.
UPDATE certificates SET generation = ranked.number
    FROM (SELECT serial, row_number() OVER (PARTITION BY agent ORDER BY issued_unix_s, serial) AS number FROM certificates)
        AS ranked
    WHERE ranked.serial = certificates.serial;

CREATE INDEX certificates_of_generation ON certificates (agent, generation);

ALTER TABLE agents ADD COLUMN cloned_unix_s INTEGER;           -- its identity was seen to be copied: no copy is let in
