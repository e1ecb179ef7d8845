-- The outbox, third version: numbers and what was acknowledged belong to one agent of the collector's.
ALTER TABLE outbox ADD COLUMN agent BLOB; -- its id, 16 bytes; NULL until it has connected
