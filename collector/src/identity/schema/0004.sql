-- The replacement of a CA: what each agent trusts, and whose certificate it showed last. All of it is learnt anew at the next
-- connection, so an agent that was never seen by this version has none of it.

ALTER TABLE agents ADD COLUMN roots BLOB;             -- SHA-256 of each CA certificate that it trusts, one after another
ALTER TABLE agents ADD COLUMN roots_unix_s INTEGER;   -- when it said so
ALTER TABLE agents ADD COLUMN shown_ca BLOB;          -- SHA-256 of the key that signed the certificate it showed last
