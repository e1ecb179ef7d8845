-- Tokens for many hosts, with a label and a group for all who join by them; hosts that join again; agents that leave.
-- A token of version 1 is one of one use.

ALTER TABLE tokens RENAME TO tokens_1;

CREATE TABLE tokens (
    id             TEXT PRIMARY KEY NOT NULL,      -- what people call it; says nothing about the secret
    digest         BLOB NOT NULL UNIQUE CHECK (length(digest) = 32), -- SHA-256 of the secret
    label          TEXT,
    group_name     TEXT,
    created_unix_s INTEGER NOT NULL,
    expires_unix_s INTEGER NOT NULL,
    uses_max       INTEGER NOT NULL CHECK (uses_max > 0),
    uses           INTEGER NOT NULL DEFAULT 0 CHECK (uses BETWEEN 0 AND uses_max),
    used_unix_s    INTEGER,                        -- the last time
    revoked_unix_s INTEGER
) STRICT, WITHOUT ROWID;

INSERT INTO tokens (id, digest, label, created_unix_s, expires_unix_s, uses_max, uses, used_unix_s, revoked_unix_s)
    SELECT id, digest, label, created_unix_s, expires_unix_s, 1, used_unix_s IS NOT NULL, used_unix_s, revoked_unix_s
    FROM tokens_1;

-- Who joined by which token. A host that asks again with the same key has lost the answer: it is the same use.
CREATE TABLE token_uses (
    agent       BLOB PRIMARY KEY NOT NULL REFERENCES agents (id),
    token       TEXT    NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    key_digest  BLOB,                              -- SHA-256 of the public key; unknown for uses of version 1
    used_unix_s INTEGER NOT NULL,
    answers     INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX token_uses_of_token ON token_uses (token, key_digest);

INSERT INTO token_uses (agent, token, used_unix_s)
    SELECT used_by, id, used_unix_s FROM tokens_1 WHERE used_by IS NOT NULL AND used_unix_s IS NOT NULL;

DROP TABLE tokens_1;

ALTER TABLE agents ADD COLUMN label TEXT;
ALTER TABLE agents ADD COLUMN group_name TEXT;
ALTER TABLE agents ADD COLUMN host_mark BLOB;         -- what the host says it is; only ever points at older agents
ALTER TABLE agents ADD COLUMN replaced_by BLOB REFERENCES agents (id);
ALTER TABLE agents ADD COLUMN replaced_unix_s INTEGER;
ALTER TABLE agents ADD COLUMN left_unix_s INTEGER;

CREATE INDEX agents_of_host ON agents (host_mark) WHERE host_mark IS NOT NULL;
CREATE INDEX agents_of_name ON agents (host_name);
