-- The collector's register of who may talk to it. Small: a row a host, a row a token, a row a certificate
-- that has not been expired for long. Times are Unix seconds.

CREATE TABLE agents (
    id               BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),
    host_name        BLOB    NOT NULL,
    os               TEXT    NOT NULL,
    version          TEXT    NOT NULL,
    joined_unix_s    INTEGER NOT NULL,
    last_seen_unix_s INTEGER NOT NULL,
    level            INTEGER NOT NULL DEFAULT 0,   -- vidette.v1.SensorLevel
    rules_version    TEXT    NOT NULL DEFAULT '',
    revoked_unix_s   INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    id             TEXT PRIMARY KEY NOT NULL,      -- what people call it; says nothing about the secret
    digest         BLOB NOT NULL UNIQUE CHECK (length(digest) = 32), -- SHA-256 of the secret
    label          TEXT,
    created_unix_s INTEGER NOT NULL,
    expires_unix_s INTEGER NOT NULL,
    used_unix_s    INTEGER,
    used_by        BLOB REFERENCES agents (id),
    revoked_unix_s INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE certificates (
    serial         BLOB PRIMARY KEY NOT NULL,
    agent          BLOB    NOT NULL REFERENCES agents (id),
    issued_unix_s  INTEGER NOT NULL,
    expires_unix_s INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX certificates_of_agent ON certificates (agent, expires_unix_s);
